"""HTTP for the libraries that are one side of it: applications, a server and a client of the standard library.

A POST is answered with its body, ``GET /who`` with the VM's id, and ``GET /slow`` after `SLOW` seconds.
"""

from __future__ import annotations

import asyncio
import http.client
import http.server
import socketserver
import time
from collections.abc import Callable, Iterable
from typing import Any

import hvsock
from hvsock import HyperVAddress
from libraries.harness import CONNECT, PATIENCE, SLOW, check, ready, vm_of


async def asgi_app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    if scope["type"] != "http":
        raise NotImplementedError
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if scope["path"] == "/who":
        body = vm_of(scope["client"]).encode()
    elif scope["path"] == "/slow":
        await asyncio.sleep(SLOW)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    if environ["PATH_INFO"] == "/who":
        body = environ["REMOTE_ADDR"].encode()
    elif environ["PATH_INFO"] == "/slow":
        time.sleep(SLOW)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(SLOW)
        self.answer(vm_of(self.client_address).encode())

    def log_message(self, *_: object) -> None:
        pass


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, address: HyperVAddress) -> None:
        socketserver.BaseServer.__init__(self, None, Handler)  # type: ignore[arg-type]
        self.socket = hvsock.create_server(address)


def serve(address: HyperVAddress) -> None:
    """Serve with the standard library."""
    with Server(address) as server:
        ready()
        server.serve_forever()


class Connection(http.client.HTTPConnection):
    """A connection of the standard library's client, to a server that is about to listen."""

    def __init__(self, address: HyperVAddress) -> None:
        super().__init__("host")
        self._address = address

    def connect(self) -> None:
        self.sock = hvsock.create_connection(self._address, CONNECT, retry_for=CONNECT)


def ask(address: HyperVAddress) -> None:
    """Make the checks with the standard library."""
    connection = Connection(address)

    def request(method: str, path: str, body: bytes | None = None) -> bytes:
        connection.request(method, path, body)
        return connection.getresponse().read()

    def late() -> bytes:
        connection.sock.settimeout(PATIENCE)
        return request("GET", "/slow")

    check(lambda body: request("POST", "/", body), lambda: request("GET", "/who").decode(), late)
