"""Servers on asyncio, and a client of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from typing import Any
from unittest import mock

import utils
from utils import LIMIT, TICK

import hvsock
from children import say
from hvsock import aio
from hvsock.aio import _server


def out_of_descriptors() -> None:
    """A server that has no descriptor left for a connection says so, and serves it when there is one."""
    import resource

    _server._RETRY_DELAY = TICK  # type: ignore[misc]
    reported: list[dict[str, Any]] = []

    async def handler(stream: aio.MessageStream) -> None:
        async for message in stream:
            await stream.send(message)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with await aio.serve_messages(handler, ("loopback", 5000), transport="local"):
            with hvsock.HyperVSocket(transport="local") as sock:
                resource.setrlimit(resource.RLIMIT_NOFILE, (utils.open_descriptors() + 5, hard))
                with contextlib.ExitStack() as stack:
                    with contextlib.suppress(OSError):
                        while True:
                            stack.callback(os.close, os.dup(0))
                    sock.connect(("loopback", 5000))
                    async with asyncio.timeout(LIMIT):
                        while len(reported) < 2:
                            await asyncio.sleep(TICK)
                assert {context["exception"].errno for context in reported} == {errno.EMFILE}
                async with aio.MessageStream(sock) as stream:
                    assert await stream.exchange(b"now") == b"now"

    asyncio.run(main())


def server_is_not_closed(transport: str) -> None:
    """The thread of a server whose loop has ended closes what it accepts, and does not keep the process."""

    async def handler(_stream: aio.MessageStream) -> None:
        raise AssertionError("nobody can be served")

    async def main() -> aio.MessageServer:
        return await aio.serve_messages(handler, address, transport=transport)

    address = ("loopback", utils.new_service())
    with mock.patch.object(_server, "watches_sockets", return_value=False):
        server = asyncio.run(main())
        with hvsock.create_connection(address, LIMIT, transport=transport) as sock:
            assert sock.recv(1) == b""
        server.close()
        asyncio.run(main())


def client_that_sleeps(transport: str, vm: str, service: str, sent: str) -> None:
    """A client that sends some bytes and waits to be killed."""
    with hvsock.create_connection((vm, service), timeout=LIMIT, transport=transport) as sock:
        sock.sendall(b"" if sent == "-" else bytes.fromhex(sent))
        say("sent")
        time.sleep(LIMIT)
