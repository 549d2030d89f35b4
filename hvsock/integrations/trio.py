"""trio streams over Hyper-V sockets: `connect`, and `Listener` for `trio.serve_listeners`. Needs trio."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from functools import partial

import trio

from hvsock import Address, HyperVSocket
from hvsock.integrations._watched import LOOK, accepted, attempt, connected, send_all, timed_out

__all__ = ["Listener", "Stream", "connect"]


async def _has_room(sock: HyperVSocket) -> bool:
    with trio.move_on_after(LOOK) as scope:
        await trio.lowlevel.wait_writable(sock)
    return not scope.cancelled_caught


class _Resource(trio.abc.AsyncResource):
    def __init__(self, sock: HyperVSocket) -> None:
        sock.setblocking(False)
        self.socket = sock

    @contextlib.contextmanager
    def _open(self, *errors: type[OSError]) -> Iterator[HyperVSocket]:
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError("this socket was already closed")
        try:
            yield self.socket
        except errors as exc:
            raise trio.BrokenResourceError(str(exc)) from exc

    async def aclose(self) -> None:
        if self.socket.fileno() != -1:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        await trio.lowlevel.checkpoint()


class Stream(_Resource, trio.abc.HalfCloseableStream):
    """A stream over a connected socket, which it closes: `stream.socket.getpeername()` is the peer's address."""

    _busy = _ended = False

    @contextlib.contextmanager
    def _sending(self) -> Iterator[HyperVSocket]:
        if self._busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._busy = True
        try:
            with self._open(OSError) as sock:
                yield sock
        finally:
            self._busy = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._sending() as sock:
            await trio.lowlevel.checkpoint()
            if self._ended:
                raise trio.ClosedResourceError("send_eof() has ended this direction")
            await send_all(sock, data, _has_room)

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending() as sock:
            while not await _has_room(sock):
                sock.send(b"")

    async def send_eof(self) -> None:
        with self._sending() as sock:
            await trio.lowlevel.checkpoint()
            self._ended = True
            sock.shutdown(socket.SHUT_WR)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        await trio.lowlevel.checkpoint()
        with self._open(OSError) as sock:
            return await attempt(sock, partial(sock.recv, max_bytes or 1 << 16), trio.lowlevel.wait_readable)


class Listener(_Resource, trio.abc.Listener[Stream]):
    """What `trio.serve_listeners` takes, over a listening socket such as `hvsock.create_server` returns."""

    async def accept(self) -> Stream:
        await trio.lowlevel.checkpoint()
        with self._open() as sock:
            return Stream(await accepted(sock, trio.lowlevel.wait_readable))


async def connect(address: Address, *, timeout: float | None = None, transport: str | None = None) -> Stream:
    """Connect to a service within `timeout` seconds, by default the system's own limit of about 2 s.

    If it is cancelled, it ends at once, and leaves nothing pending and no handle open. The errors are those of
    `hvsock.create_connection`.
    """
    with trio.move_on_after(float("inf") if timeout is None else timeout):
        return Stream(await connected(address, timeout, transport, trio.lowlevel.wait_writable, trio.sleep))
    raise timed_out(address)
