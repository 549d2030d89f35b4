"""pycapnp: `AsyncIoStream.create_connection` takes ``sock=``, at both ends.

On uvloop its server crashes, over TCP too (pycapnp 2.2.4, uvloop 0.23.0).
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import capnp

from hvsock import HyperVAddress, HyperVSocket, aio
from libraries.harness import CONNECT, SLOW, acheck, forever, ready, run, vm_of

SCHEMA = """
@0xbf5147cbbecf40c1;
interface Service { echo @0 (body :Data) -> (body :Data); who @1 () -> (vm :Text); slow @2 () -> (); }
"""


@contextlib.contextmanager
def schema() -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "service.capnp"
        path.write_text(SCHEMA)
        yield capnp.load(str(path)).Service


async def serve(address: HyperVAddress) -> None:
    with schema() as interface:
        base: Any = interface.Server

        class Service(base):
            def __init__(self, peer: HyperVAddress) -> None:
                self.peer = peer

            async def echo(self, body: bytes, **_: Any) -> bytes:
                return body

            async def who(self, **_: Any) -> str:
                return vm_of(self.peer)

            async def slow(self, **_: Any) -> None:
                await asyncio.sleep(SLOW)

        async def answer(sock: HyperVSocket) -> None:
            service = Service(sock.getpeername())
            stream = await capnp.AsyncIoStream.create_connection(sock=sock)
            await capnp.TwoPartyServer(stream, bootstrap=service).on_disconnect()

        async with await aio.serve(answer, address):
            ready()
            await forever()


async def ask(address: HyperVAddress) -> None:
    with schema() as interface:
        sock = await aio.connect(address, timeout=CONNECT)
        stream = await capnp.AsyncIoStream.create_connection(sock=sock)
        service = capnp.TwoPartyClient(stream, traversal_limit_in_words=1 << 30).bootstrap().cast_as(interface)

        async def echo(body: bytes) -> bytes:
            return bytes((await service.echo(body)).body)

        async def who() -> str:
            return str((await service.who()).vm)

        async def late() -> None:
            await service.slow()

        await acheck(echo, who, late)


def server(how: str, address: HyperVAddress) -> None:
    run(inside(serve(address)), how)


def client(how: str, address: HyperVAddress) -> None:
    run(inside(ask(address)), how)


async def inside(main: Coroutine[Any, Any, None]) -> None:
    await capnp.run(main)
