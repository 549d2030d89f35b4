"""trio: `hvsock.integrations.trio`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio

import hvsock
from hvsock import HyperVAddress
from hvsock.integrations.trio import Listener, Stream, connect
from libraries.harness import CONNECT, acheck, ready, vm_of
from libraries.streams import Buffered


@contextlib.asynccontextmanager
async def fail_after(seconds: float) -> AsyncIterator[None]:
    with trio.fail_after(seconds):
        yield


async def answer(stream: Stream) -> None:
    async with stream:
        peer = vm_of(stream.socket.getpeername())
        await Buffered(stream.receive_some, stream.send_all).answer(peer, trio.sleep)


async def serve(address: HyperVAddress) -> None:
    async with trio.open_nursery() as nursery:
        listener = Listener(hvsock.create_server(address))
        await nursery.start(trio.serve_listeners, answer, [listener])
        ready()


async def ask(address: HyperVAddress) -> None:
    async with await connect(address, timeout=CONNECT) as stream:
        requests = Buffered(stream.receive_some, stream.send_all)
        await acheck(requests.echo, requests.who, requests.slow, trio.TooSlowError, fail_after)


def server(how: str, address: HyperVAddress) -> None:
    trio.run(serve, address)


def client(how: str, address: HyperVAddress) -> None:
    trio.run(ask, address)
