"""An HTTP server of the standard library, over any transport, for the clients that are tested."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import socketserver
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import utils

import hvsock

BIG = utils.random_bytes(10 * utils.MIB)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answer a POST with its body, and a GET with what the path asks for."""

    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def do_GET(self) -> None:
        path, _, where = self.path.partition("?")
        if path == "/slow":
            self.server.released.wait(utils.LIMIT)  # type: ignore[attr-defined]
        if path == "/redirect":
            self.answer(b"", 302, Location=where)
        elif path == "/close":
            self.answer(b"closing")
            self.close_connection = True  # without a word of it, as a server that has waited for too long
        else:
            self.answer(f"{path} {self.headers['Host']} {self.client_address[0]}".encode())

    def log_message(self, *_: object) -> None:
        pass


class Server(socketserver.ThreadingTCPServer):
    def __init__(self, transport: str, context: ssl.SSLContext | None) -> None:
        socketserver.BaseServer.__init__(self, None, Handler)  # type: ignore[arg-type]
        self.socket: Any = utils.listen(transport)
        self.address: hvsock.HyperVAddress = self.socket.getsockname()
        self.context = context
        self.released = threading.Event()
        self.connections = 0
        self.threads: list[threading.Thread] = []

    def get_request(self) -> tuple[Any, Any]:
        sock, address = self.socket.accept()
        self.connections += 1
        sock.settimeout(utils.LIMIT)
        return sock if self.context is None else self.context.wrap_socket(sock, server_side=True), address

    def process_request(self, *args: Any) -> None:
        thread = threading.Thread(target=self.process_request_thread, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    async def settle(self) -> None:
        """Wait for the end of all connections, whose clients have closed them."""
        self.released.set()
        while any(thread.is_alive() for thread in self.threads):
            await asyncio.sleep(utils.TICK / 10)

    def handle_error(self, *_: object) -> None:
        pass  # a client that does not wait for its answer


@contextlib.contextmanager
def serving(transport: str, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run the server in a thread."""
    with Server(transport, context) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
