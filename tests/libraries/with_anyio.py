"""anyio: `hvsock.integrations.anyio`, on asyncio, uvloop and trio."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
from anyio.abc import SocketAttribute

import hvsock
from hvsock import HyperVAddress
from hvsock.integrations.anyio import Listener, Stream, connect
from libraries.harness import CONNECT, acheck, ready, vm_of
from libraries.streams import Buffered


def run(main: Callable[..., Awaitable[Any]], how: str, address: HyperVAddress) -> None:
    if how == "trio":
        anyio.run(main, address, backend="trio")
    else:
        anyio.run(main, address, backend="asyncio", backend_options={"use_uvloop": how == "uvloop"})


@contextlib.asynccontextmanager
async def fail_after(seconds: float) -> AsyncIterator[None]:
    with anyio.fail_after(seconds):
        yield


def buffered(stream: Stream) -> Buffered:
    async def receive() -> bytes:
        try:
            return await stream.receive()
        except anyio.EndOfStream:
            return b""

    return Buffered(receive, stream.send)


async def answer(stream: Stream) -> None:
    async with stream:
        await buffered(stream).answer(vm_of(stream.extra(SocketAttribute.remote_address)), anyio.sleep)


async def serve(address: HyperVAddress) -> None:
    async with Listener(hvsock.create_server(address)) as listener:
        ready()
        await listener.serve(answer)


async def ask(address: HyperVAddress) -> None:
    async with await connect(address, timeout=CONNECT) as stream:
        requests = buffered(stream)
        await acheck(requests.echo, requests.who, requests.slow, limit=fail_after)


def server(how: str, address: HyperVAddress) -> None:
    run(serve, how, address)


def client(how: str, address: HyperVAddress) -> None:
    run(ask, how, address)
