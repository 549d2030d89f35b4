"""tornado: a server's `add_socket`, and `IOStream` around a client's socket."""

from __future__ import annotations

import asyncio

from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpserver import TCPServer

import hvsock
from hvsock import HyperVAddress, aio
from libraries.harness import CONNECT, acheck, forever, ready, run, vm_of
from libraries.streams import Buffered


def buffered(stream: IOStream) -> Buffered:
    async def receive() -> bytes:
        try:
            return bytes(await stream.read_bytes(1 << 16, partial=True))
        except StreamClosedError:
            return b""

    return Buffered(receive, stream.write)


class Server(TCPServer):
    async def handle_stream(self, stream: IOStream, address: object) -> None:
        await buffered(stream).answer(vm_of(address), asyncio.sleep)


async def serve(address: HyperVAddress) -> None:
    listener = hvsock.create_server(address)
    listener.setblocking(False)
    Server().add_socket(listener)
    ready()
    await forever()


async def ask(address: HyperVAddress) -> None:
    stream = buffered(IOStream(await aio.connect(address, timeout=CONNECT)))
    await acheck(stream.echo, stream.who, stream.slow)


def server(how: str, address: HyperVAddress) -> None:
    run(serve(address), how)


def client(how: str, address: HyperVAddress) -> None:
    run(ask(address), how)
