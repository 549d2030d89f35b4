"""asyncio's streams, by `hvsock.aio`: a request is a line, SIZE bytes of which follow, and is answered by its body."""

from __future__ import annotations

import asyncio

from hvsock import HyperVAddress, aio
from libraries.harness import CONNECT, SLOW, acheck, ready, run, vm_of


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        word, size = line.split()
        body = await reader.readexactly(int(size))
        if word == b"who":
            body = vm_of(writer.get_extra_info("peername")).encode()
        elif word == b"slow":
            await asyncio.sleep(SLOW)
        writer.write(b"%d\n" % len(body) + body)
        await writer.drain()
    writer.close()


async def serve(address: HyperVAddress) -> None:
    async with await aio.start_server(answer, address) as server:
        ready()
        await server.serve_forever()


async def ask(address: HyperVAddress) -> None:
    reader, writer = await aio.open_connection(address, timeout=CONNECT)

    async def request(word: bytes, body: bytes = b"") -> bytes:
        writer.write(b"%s %d\n" % (word, len(body)) + body)
        await writer.drain()
        return await reader.readexactly(int(await reader.readline()))

    async def who() -> str:
        return (await request(b"who")).decode()

    await acheck(lambda body: request(b"echo", body), who, lambda: request(b"slow"))
    writer.close()


def server(how: str, address: HyperVAddress) -> None:
    run(serve(address), how)


def client(how: str, address: HyperVAddress) -> None:
    run(ask(address), how)
