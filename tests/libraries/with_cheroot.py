"""cheroot, by `hvsock.integrations.cheroot`; the client is the standard library's."""

from __future__ import annotations

from hvsock import HyperVAddress
from hvsock.integrations.cheroot import serve
from libraries import http
from libraries.harness import ready


def server(how: str, address: HyperVAddress) -> None:
    ready()
    serve(http.wsgi_app, address)


def client(how: str, address: HyperVAddress) -> None:
    http.ask(address)
