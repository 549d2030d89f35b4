"""hypercorn, by `hvsock.integrations.hypercorn`; the client is the standard library's."""

from __future__ import annotations

from hypercorn.config import Config

from hvsock import HyperVAddress
from hvsock.integrations.hypercorn import serve_in_loop
from libraries import http
from libraries.harness import ready, run


def server(how: str, address: HyperVAddress) -> None:
    ready()
    run(serve_in_loop(http.asgi_app, address, config=Config.from_mapping(loglevel="ERROR")), how)


def client(how: str, address: HyperVAddress) -> None:
    http.ask(address)
