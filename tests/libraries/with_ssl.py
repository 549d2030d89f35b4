"""ssl: `SSLContext.wrap_socket` on a connected socket, and ``ssl=`` of `hvsock.aio`."""

from __future__ import annotations

import threading
from typing import Any

from certificates import tls_contexts

import hvsock
from hvsock import HyperVAddress, HyperVSocket
from libraries import streams, with_asyncio
from libraries.harness import CONNECT, PATIENCE, check, ready, run, vm_of

SERVER, CLIENT = tls_contexts("TLS 1.2, anonymous")


def answer(sock: HyperVSocket, peer: HyperVAddress) -> None:
    with SERVER.wrap_socket(sock, server_side=True) as wrapped, wrapped.makefile("rwb") as file:
        streams.answer(file, vm_of(peer))


def server(how: str, address: HyperVAddress) -> None:
    if how != "threads":
        run(with_asyncio.serve(address, ssl=SERVER), how)
        return
    with hvsock.create_server(address) as listener:
        ready()
        while True:
            threading.Thread(target=answer, args=listener.accept(), daemon=True).start()


def client(how: str, address: HyperVAddress) -> None:
    if how != "threads":
        run(with_asyncio.ask(address, ssl=CLIENT), how)
        return
    sock = hvsock.create_connection(address, CONNECT)
    with CLIENT.wrap_socket(sock) as wrapped, wrapped.makefile("rwb") as file:
        requests = streams.Client(file)

        def late() -> Any:
            wrapped.settimeout(PATIENCE)
            return requests.slow()

        check(requests.echo, requests.who, late)
