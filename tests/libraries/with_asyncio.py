"""asyncio's streams, by `hvsock.aio`."""

from __future__ import annotations

import asyncio
from typing import Any

from hvsock import HyperVAddress, aio
from libraries.harness import CONNECT, acheck, ready, run, vm_of
from libraries.streams import Buffered


def buffered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Buffered:
    async def send(data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    return Buffered(lambda: reader.read(1 << 16), send)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await buffered(reader, writer).answer(vm_of(writer.get_extra_info("peername")), asyncio.sleep)
    writer.close()


async def serve(address: HyperVAddress, **options: Any) -> None:
    async with await aio.start_server(answer, address, **options) as server:
        ready()
        await server.serve_forever()


async def ask(address: HyperVAddress, **options: Any) -> None:
    reader, writer = await aio.open_connection(address, timeout=CONNECT, **options)
    stream = buffered(reader, writer)
    await acheck(stream.echo, stream.who, stream.slow)
    writer.close()


def server(how: str, address: HyperVAddress) -> None:
    run(serve(address), how)


def client(how: str, address: HyperVAddress) -> None:
    run(ask(address), how)
