"""uvicorn, by `hvsock.integrations.uvicorn`; the client is the standard library's."""

from __future__ import annotations

from hvsock import HyperVAddress
from hvsock.integrations.uvicorn import serve
from libraries import http
from libraries.harness import ready


def server(how: str, address: HyperVAddress) -> None:
    ready()
    serve(http.asgi_app, address, loop=how, log_level="error")


def client(how: str, address: HyperVAddress) -> None:
    http.ask(address)
