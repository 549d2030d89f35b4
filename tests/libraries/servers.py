"""A threaded server of the standard library's `socketserver`, for libraries that have a client only."""

from __future__ import annotations

import socketserver
from typing import Any

import hvsock
from hvsock import HyperVAddress


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(
        self,
        address: HyperVAddress,
        handler: type[socketserver.BaseRequestHandler],
        transport: str | None = None,
    ) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = hvsock.create_server(address, transport=transport)
        #: What clients have stored.
        self.values: dict[Any, bytes] = {}

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)
