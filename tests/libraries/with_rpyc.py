"""rpyc: its `SocketStream` takes a connected socket at both ends."""

from __future__ import annotations

import threading
import time

import rpyc
from rpyc.core.stream import SocketStream

import hvsock
from hvsock import HyperVAddress, HyperVSocket
from libraries.harness import CONNECT, PATIENCE, SLOW, check, ready, vm_of


class Service(rpyc.Service):
    def __init__(self, peer: HyperVAddress) -> None:
        self.peer = peer

    def exposed_echo(self, body: bytes) -> bytes:
        return body

    def exposed_who(self) -> str:
        return vm_of(self.peer)

    def exposed_slow(self) -> None:
        time.sleep(SLOW)


def answer(sock: HyperVSocket, peer: HyperVAddress) -> None:
    rpyc.utils.factory.connect_stream(SocketStream(sock), Service(peer)).serve_all()


def server(how: str, address: HyperVAddress) -> None:
    with hvsock.create_server(address) as listener:
        ready()
        while True:
            threading.Thread(target=answer, args=listener.accept(), daemon=True).start()


def client(how: str, address: HyperVAddress) -> None:
    sock = hvsock.create_connection(address, CONNECT)
    connection = rpyc.utils.factory.connect_stream(SocketStream(sock), config={"sync_request_timeout": CONNECT})
    root = connection.root
    check(root.echo, root.who, lambda: rpyc.timed(root.slow, PATIENCE)().value, rpyc.AsyncResultTimeout)
