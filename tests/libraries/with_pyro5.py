"""Pyro5: ``connected_socket=`` at both ends, a daemon for each connection.

Its server makes a text of the socket's own name, which has to be as TCP's or AF_UNIX's. And it receives with
MSG_WAITALL, which AF_VSOCK refuses for more than the socket's buffer holds (ENOMEM).
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import Pyro5.api
import Pyro5.errors
import Pyro5.socketutil

import hvsock
from hvsock import HyperVAddress, HyperVSocket
from libraries.harness import CONNECT, PATIENCE, SLOW, check, ready, vm_of

Pyro5.socketutil.USE_MSG_WAITALL = False
Pyro5.config.SERIALIZER = "marshal"  # bytes as they are


class Named(HyperVSocket):
    """A socket whose own name is a host and a port, where its family's is not a path."""

    def getsockname(self) -> Any:
        vm = str(super().getsockname().vm_id)
        return vm if self.family == getattr(socket, "AF_UNIX", None) else (vm, 0)


@Pyro5.api.expose
class Service:
    def echo(self, body: bytes) -> bytes:
        return body

    def who(self) -> str:
        return vm_of(Pyro5.api.current_context.client_sock_addr)

    def slow(self) -> None:
        time.sleep(SLOW)


def answer(sock: HyperVSocket, peer: HyperVAddress) -> None:
    with Pyro5.api.Daemon(connected_socket=Named(fileno=sock.detach())) as daemon:
        daemon.register(Service(), "service")
        daemon.requestLoop()


def server(how: str, address: HyperVAddress) -> None:
    with hvsock.create_server(address) as listener:
        ready()
        while True:
            threading.Thread(target=answer, args=listener.accept(), daemon=True).start()


def client(how: str, address: HyperVAddress) -> None:
    sock = hvsock.create_connection(address, CONNECT)
    with Pyro5.api.Proxy("service", connected_socket=sock) as proxy:

        def late() -> None:
            proxy._pyroTimeout = PATIENCE
            proxy.slow()

        check(proxy.echo, proxy.who, late, Pyro5.errors.TimeoutError)
