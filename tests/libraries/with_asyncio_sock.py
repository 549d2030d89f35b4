"""asyncio's own functions with ``sock=``, on the loops of `hvsock.aio.new_event_loop`."""

from __future__ import annotations

import asyncio

import hvsock
from hvsock import HyperVAddress, aio
from libraries.harness import CONNECT, acheck, ready, run_with_sockets
from libraries.with_asyncio import answer, buffered


async def serve(address: HyperVAddress) -> None:
    async with await asyncio.start_server(answer, sock=hvsock.create_server(address)) as server:
        ready()
        await server.serve_forever()


async def ask(address: HyperVAddress) -> None:
    sock = await aio.connect(address, timeout=CONNECT)
    reader, writer = await asyncio.open_connection(sock=sock)
    stream = buffered(reader, writer)
    await acheck(stream.echo, stream.who, stream.slow)
    writer.close()


def server(how: str, address: HyperVAddress) -> None:
    run_with_sockets(serve(address), how)


def client(how: str, address: HyperVAddress) -> None:
    run_with_sockets(ask(address), how)
