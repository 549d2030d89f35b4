"""pycapnp: `AsyncIoStream` takes ``sock=`` at both ends."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import capnp

import hvsock
from hvsock import HyperVAddress
from libraries.harness import CONNECT, SLOW, acheck, forever, ready, run

SCHEMA = """
@0xbf5147cbbecf40c1;
interface Service { echo @0 (body :Data) -> (body :Data); slow @1 () -> (); }
"""


@contextlib.contextmanager
def schema() -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "service.capnp"
        path.write_text(SCHEMA)
        yield capnp.load(str(path)).Service


async def serve(address: HyperVAddress) -> None:
    with schema() as interface:

        class Service(interface.Server):
            async def echo(self, body: bytes, **_: Any) -> bytes:
                return body

            async def slow(self, **_: Any) -> None:
                await asyncio.sleep(SLOW)

        async def answer(stream: Any) -> None:
            await capnp.TwoPartyServer(stream, bootstrap=Service()).on_disconnect()

        await capnp.AsyncIoStream.create_server(answer, sock=hvsock.create_server(address))
        ready()
        await forever()


async def ask(address: HyperVAddress) -> None:
    with schema() as interface:
        sock = await asyncio.to_thread(hvsock.create_connection, address, CONNECT)
        stream = await capnp.AsyncIoStream.create_connection(sock=sock)
        service = capnp.TwoPartyClient(stream, traversal_limit_in_words=1 << 30).bootstrap().cast_as(interface)

        async def echo(body: bytes) -> bytes:
            return bytes((await service.echo(body)).body)

        async def who() -> Any:
            return None

        async def late() -> None:
            await service.slow()

        await acheck(echo, who, late)


def server(how: str, address: HyperVAddress) -> None:
    run(inside(serve(address)), how)


def client(how: str, address: HyperVAddress) -> None:
    run(inside(ask(address)), how)


async def inside(main: Coroutine[Any, Any, None]) -> None:
    await capnp.run(main)
