"""Readiness and completion links: messages over a socket, on loops that say it is ready and on those that transfer."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Final

from hvsock._sockets import HyperVSocket
from hvsock.aio._connect import settle
from hvsock.aio._parser import HEADER, LONGEST, SHORT, MessageParser
from hvsock.aio._turns import Waiter

__all__ = ["Buffer", "Link", "OverlappedLink", "WatchedLink", "to_be_repeated"]

Buffer = bytes | bytearray | memoryview

_MOST_BUFFERS: Final = 64  # of one system call; the systems' own limits are higher
_LARGE: Final = 2**18  # bytes; what a system takes of a message at once is less as a rule
_SEND_LEAST: Final = 4096  # bytes that there has to be memory for


def to_be_repeated(buffers: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
    """Return the buffers of a message as `Link.send` may be given them again and again.

    It looks each time whether they are the same: at few objects, or at all that is not bytes.
    """
    if len(buffers) > _MOST_BUFFERS:
        return (b"".join(buffers),)
    for buffer in buffers:
        if type(buffer) is not bytes and memoryview(buffer).nbytes > _LARGE:
            return (b"".join(buffers),)
    return buffers


def _cut_off() -> OSError:
    """Return the error of a stream that had a transfer cancelled, as by a loop that cancels every task at its end."""
    return ConnectionAbortedError(
        errno.ECONNABORTED, "a transfer was cancelled and may be incomplete; close the stream"
    )


class Link(abc.ABC):
    """Transfers messages over a connected socket, one at a time in each direction, without waiting.

    It receives as much as there is, so that many short messages cost one system call, but keeps less than twice `SHORT`
    bytes that no task has asked for.
    """

    __slots__ = ("_drained", "_loop", "_parser", "_receiver", "_sock")

    send: Callable[..., None]
    """Send a message, the concatenation of the buffers that are the arguments: those of `to_be_repeated`.

    BlockingIOError: call it again with the same ones when the link is writable(); no other message until then.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: HyperVSocket) -> None:
        self._loop = loop
        self._sock = sock
        self._parser = MessageParser()
        self._receiver: Waiter | None = None
        self._drained = False  # the last receive got less than it asked for, and nothing is known to have come since

    def take(self, max_size: int) -> bytes | None:
        """Return the next message, or None if it has not arrived; what has of it is kept.

        Raises:
            EOFError, IncompleteReadError: the peer has ended the stream.
            OSError: EMSGSIZE, it is longer than `max_size`.
        """
        while True:
            message = self._parser.next(max_size)
            if message is not None:
                return message
            if self._drained or not self._receive():
                return None

    def readable(self) -> Waiter:
        """Return what one task is to await until take() is worth another try. It may be woken for nothing."""
        self._watch()
        self._receiver = Waiter(self._loop)
        return self._receiver

    def wake(self) -> None:
        """Have the task that waits for a message look again."""
        self._drained = False
        if self._receiver is not None:
            self._receiver.wake_soon()

    def _receive(self) -> bool:
        """Receive something if there is anything."""
        room = self._parser.room()
        try:
            if room is None:
                return self._add(self._sock.recv(SHORT))
            return self._advance(self._sock.recv_into(room), len(room))
        except BlockingIOError:
            self._drained = True
            return False

    def _add(self, data: bytes) -> bool:
        if not data:
            raise self._ended()
        self._drained = len(data) < SHORT
        self._parser.feed(data)
        return True

    def _advance(self, size: int, room: int) -> bool:
        if not size:
            raise self._ended()
        self._drained = size < room
        self._parser.advance(size)
        return True

    def _ended(self) -> EOFError:
        self._drained = False
        return self._parser.end()

    @abc.abstractmethod
    def _watch(self) -> None:
        """Have the receiver woken."""

    @abc.abstractmethod
    async def writable(self) -> None:
        """Wait until send() is worth another try, or the link is closed."""

    @abc.abstractmethod
    def is_amid_message(self) -> bool:
        """Whether a part of a message has been sent."""

    def send_eof(self) -> None:
        """End the stream in this direction."""
        self._sock.shutdown(socket.SHUT_WR)

    @abc.abstractmethod
    async def close(self) -> None:
        """End what is pending and close the socket."""


class WatchedLink(Link):
    """For loops that say when a socket is ready."""

    __slots__ = ("_handle", "_sender", "_watching", "send")

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: HyperVSocket) -> None:
        super().__init__(loop, sock)
        self.send = sock.send_message
        self._handle = sock.fileno()
        self._watching = False
        self._sender: asyncio.Future[None] | None = None

    # The loop also watches between two messages, which saves two system calls for each. If something arrives that
    # no task waits for, it stops, or it would call again and again.

    def _watch(self) -> None:
        if not self._watching:
            self._loop.add_reader(self._handle, self._on_arrival)
            self._watching = True

    def _unwatch(self) -> None:
        if self._watching:
            self._loop.remove_reader(self._handle)
            self._watching = False

    def _on_arrival(self) -> None:
        self._drained = False
        if self._receiver is None or self._receiver.done:
            self._unwatch()
        else:
            self._receiver.wake()

    async def writable(self) -> None:
        self._sender = self._loop.create_future()
        self._loop.add_writer(self._handle, settle, self._sender)
        try:
            await self._sender
        finally:
            self._sender = None
            if self._sock.fileno() >= 0:
                self._loop.remove_writer(self._handle)

    def is_amid_message(self) -> bool:
        try:
            self._sock.send(b"")
        except RuntimeError:  # only the rest of that message may be sent
            return True
        except OSError:
            pass
        return False

    async def close(self) -> None:
        self._unwatch()
        self.wake()
        if self._sender is not None:
            self._loop.remove_writer(self._handle)
            settle(self._sender)
        self._sock.close()


class OverlappedLink(Link):
    """For the Proactor, which starts transfers and says when they are over.

    A transfer that was started is not cancelled with the task that needs it, since bytes are lost in a cancelled
    one. It is tried without the loop first.
    """

    __slots__ = ("_reading", "_room", "_writing")

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: HyperVSocket) -> None:
        super().__init__(loop, sock)
        self._room = bytearray()
        self._reading: asyncio.Task[int] | None = None  # into the room, or into the parser's
        self._writing: asyncio.Task[None] | None = None

    def _receive(self) -> bool:
        if self._reading is None:
            return super()._receive()
        if not self._reading.done():
            return False
        if self._reading.cancelled():
            raise _cut_off()
        reading, self._reading = self._reading, None
        try:
            got = reading.result()
        finally:
            del reading  # its error leads to this frame: no cycle
        room = self._parser.room()
        return self._add(bytes(self._room[:got])) if room is None else self._advance(got, len(room))

    def _watch(self) -> None:
        if self._reading is None:
            room = self._parser.room()
            if room is None:
                self._room = self._room or bytearray(SHORT)
                room = memoryview(self._room)
            self._reading = self._loop.create_task(self._loop.sock_recv_into(self._sock, room))
            self._reading.add_done_callback(self._on_arrival)

    def _on_arrival(self, reading: asyncio.Task[int]) -> None:
        self._drained = False
        if self._receiver is not None:
            self._receiver.wake()

    def send(self, *buffers: Buffer) -> None:
        if self._writing is not None:
            if not self._writing.done():
                raise BlockingIOError(errno.EAGAIN, "the transfer is not over")
            if self._writing.cancelled():
                raise _cut_off()
            writing, self._writing = self._writing, None
            try:
                return writing.result()
            finally:
                del writing  # as for what is received
        size = sum(memoryview(buffer).nbytes for buffer in buffers)
        if size > LONGEST:
            raise ValueError(f"a message has {LONGEST} bytes at most")
        parts = size.to_bytes(HEADER), *buffers
        try:
            sent = self._sock.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        if sent < HEADER + size:
            rest = memoryview(b"".join(parts))[sent:]
            self._writing = self._loop.create_task(self._send_rest(rest))
            raise BlockingIOError(errno.EAGAIN, "the transfer has been started")
        return None

    async def _send_rest(self, rest: memoryview) -> None:
        """Send it, in parts where the system has no memory for the whole, as the C code does."""
        size = len(rest)
        while rest:
            try:
                await self._loop.sock_sendall(self._sock, rest[:size])
            except OSError as exc:
                if exc.errno != errno.ENOBUFS or size <= _SEND_LEAST:
                    raise
                size = max(size // 2, _SEND_LEAST)
            else:
                rest = rest[size:]

    async def writable(self) -> None:
        if self._writing is not None:
            await asyncio.wait({self._writing})

    def is_amid_message(self) -> bool:
        return self._writing is not None

    async def close(self) -> None:
        self.wake()
        pending = [task for task in (self._reading, self._writing) if task is not None]
        self._reading = self._writing = None
        for task in pending:
            task.cancel()
        try:
            if pending:
                await asyncio.wait(pending)
        finally:
            self._sock.close()
            for task in pending:
                with contextlib.suppress(asyncio.InvalidStateError, asyncio.CancelledError):
                    task.exception()  # it does not matter any more
