"""anyio streams over Hyper-V sockets: `connect` and `Listener`, on asyncio, uvloop and trio. Needs anyio."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import anyio
import anyio.abc
from anyio.abc import SocketAttribute

from hvsock import Address, HyperVSocket
from hvsock.integrations._watched import LOOK, accepted, attempt, connected, send_all, timed_out

__all__ = ["Listener", "Stream", "connect"]


async def _wait_for_room(sock: HyperVSocket) -> None:
    with anyio.move_on_after(LOOK):
        await anyio.wait_writable(sock)


class _Resource(anyio.abc.AsyncResource):
    def __init__(self, sock: HyperVSocket) -> None:
        sock.setblocking(False)
        self.socket = sock

    @contextlib.contextmanager
    def _open(self, *errors: type[OSError]) -> Iterator[HyperVSocket]:
        if self.socket.fileno() == -1:
            raise anyio.ClosedResourceError
        try:
            yield self.socket
        except errors as exc:
            raise anyio.BrokenResourceError from exc

    async def aclose(self) -> None:
        if self.socket.fileno() != -1:
            anyio.notify_closing(self.socket)
            self.socket.close()
        await anyio.lowlevel.checkpoint()


class Stream(_Resource, anyio.abc.ByteStream):
    """A stream over a connected socket, which it closes; `SocketAttribute.remote_address` is a `HyperVAddress`."""

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {
            SocketAttribute.family: lambda: self.socket.family,
            SocketAttribute.local_address: self.socket.getsockname,
            SocketAttribute.raw_socket: lambda: self.socket,
            SocketAttribute.remote_address: self.socket.getpeername,
        }

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        with self._open(OSError) as sock:
            await send_all(sock, item, _wait_for_room)

    async def send_eof(self) -> None:
        await anyio.lowlevel.checkpoint()
        with self._open(OSError) as sock:
            sock.shutdown(socket.SHUT_WR)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        with self._open(OSError) as sock:
            if data := await attempt(sock, partial(sock.recv, max_bytes), anyio.wait_readable):
                return data
        raise anyio.EndOfStream


class Listener(_Resource, anyio.abc.Listener[Stream]):
    """A listener over a listening socket, such as `hvsock.create_server` returns."""

    async def accept(self) -> Stream:
        with self._open() as sock:
            return Stream(await accepted(sock, anyio.wait_readable))

    async def serve(self, handler: Callable[[Stream], Any], task_group: anyio.abc.TaskGroup | None = None) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if task_group is None:
                task_group = await stack.enter_async_context(anyio.create_task_group())
            while True:
                task_group.start_soon(handler, await self.accept())


async def connect(address: Address, *, timeout: float | None = None, transport: str | None = None) -> Stream:
    """Connect to a service within `timeout` seconds, by default the system's own limit of about 2 s.

    If it is cancelled, it ends at once, and leaves nothing pending and no handle open. The errors are those of
    `hvsock.create_connection`.
    """
    with anyio.move_on_after(math.inf if timeout is None else timeout):
        return Stream(await connected(address, timeout, transport, anyio.wait_writable, anyio.sleep))
    raise timed_out(address)
