"""Readiness and completion links: messages over a socket, on loops that say it is ready and on those that transfer."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Final

from hvsock._errors import IncompleteReadError
from hvsock._sockets import HyperVSocket
from hvsock._transports.vsock import VsockTransport
from hvsock.aio._connect import settle

__all__ = ["HEADER", "Buffer", "Link", "OverlappedLink", "WatchedLink", "message_too_long", "to_be_repeated"]

Buffer = bytes | bytearray | memoryview

HEADER: Final = 4  # bytes, the length that goes before a message
_LONGEST: Final = 2**32 - 1
_MOST_BUFFERS: Final = 64  # of one system call; the systems' own limits are higher
_LARGE: Final = 2**18  # bytes; what a system takes of a message at once is less as a rule
_ROOM: Final = 2**13  # bytes that one receive may take, but for the content of longer messages
_FIRST_ROOM: Final = 2**16  # bytes for the content of one of these: a peer gets no memory for what it only announces
_GROWTH: Final = 4
_AF_VSOCK: Final = VsockTransport.family  # does not always say that its peer is gone, only a send does
_SEND_RETRY: Final = 1.0  # seconds


def message_too_long(size: int, limit: int) -> OSError:
    """Return the error of a message that is longer than the receiver allows."""
    return OSError(errno.EMSGSIZE, f"a message of {size} bytes is announced, and the limit is {limit}")


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
        errno.ECONNABORTED, "a transfer was cancelled, and how much it has moved is not known"
    )


class Link(abc.ABC):
    """Transfers messages over a connected socket, one at a time in each direction, without waiting.

    It receives as much as there is, so that many short messages cost one system call, but keeps less than `_ROOM` bytes
    that nobody has asked for. `arrived` is called when take() is worth a try after watch().
    """

    __slots__ = ("_arrived", "_at", "_content", "_data", "_drained", "_got", "_loop", "_size", "_sock", "send")

    send: Callable[..., None]
    """Send a message, the concatenation of the buffers that are the arguments: those of `to_be_repeated`.

    BlockingIOError: call it again with the same ones when the link is writable(); no other message until then.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: HyperVSocket, arrived: Callable[[], None]) -> None:
        self._loop = loop
        self._sock = sock
        self._arrived = arrived
        self._data = b""  # has arrived: messages, from `_at` on
        self._at = 0
        self._content: bytearray | None = None  # of a long message; at its end it has `_size` bytes
        self._size = 0
        self._got = 0  # how many of these have arrived
        self._drained = False  # the last receive got less than it asked for, and nothing is known to have come since

    @property
    def may_have_message(self) -> bool:
        """Whether take() is worth a try without watch(), which does not tell of what was received already."""
        return not self._drained or self._at < len(self._data) or self._content is not None

    def take(self, max_size: int) -> bytes:
        """Return the next message. BlockingIOError: it has not arrived, and what has is kept.

        Raises:
            EOFError, IncompleteReadError: the peer has ended the stream.
            OSError: EMSGSIZE, it is longer than `max_size`.
        """
        while True:
            if self._content is None:
                data, start = self._data, self._at + HEADER
                if start <= len(data):
                    size = int.from_bytes(data[self._at : start])
                    if size > max_size:
                        raise message_too_long(size, max_size)
                    self._at = start + size
                    if self._at < len(data):
                        return data[start : self._at]
                    if self._at == len(data):
                        self._data, self._at = b"", 0
                        return data[start:]
                    self._at = start - HEADER
            elif self._size > max_size:
                raise message_too_long(self._size, max_size)
            elif self._got == self._size:
                message, self._content = bytes(self._content), None
                return message
            self._receive()

    def _receive(self) -> None:
        """Receive something, or raise BlockingIOError."""
        content = self._rest_of_long_message() if self._data or self._content is not None else None
        if content is None:
            self._add(self._sock.recv(_ROOM))
        else:
            self._advance(self._sock.recv_into(content), len(content))

    def _rest_of_long_message(self) -> memoryview | None:
        """Return where the next bytes go if a long message has begun."""
        if self._content is None:
            data, start = self._data, self._at + HEADER
            size = int.from_bytes(data[self._at : start]) if start <= len(data) else 0
            if size <= _ROOM:
                return None
            self._content, self._size, self._got = bytearray(min(size, _FIRST_ROOM)), size, len(data) - start
            self._content[: self._got] = data[start:]
            self._data, self._at = b"", 0
        elif self._got == len(self._content):
            # A new one: the old one may still be lent to somebody.
            content = bytearray(min(self._size, self._got * _GROWTH))
            content[: self._got] = self._content
            self._content = content
        return memoryview(self._content)[self._got :]

    def _add(self, data: bytes) -> None:
        if not data:
            raise self._ended()
        self._data = self._data[self._at :] + data
        self._at = 0
        self._drained = len(data) < _ROOM

    def _advance(self, size: int, room: int) -> None:
        if not size:
            raise self._ended()
        self._got += size
        self._drained = size < room

    def _ended(self) -> EOFError:
        """Say where the stream has ended; what there was of a message is gone then."""
        data, content = self._data[self._at :], self._content
        self._data, self._at, self._content, self._drained = b"", 0, None, False
        if content is not None:
            return IncompleteReadError(bytes(content[: self._got]), self._size)
        if not data:
            return EOFError("the peer has ended the stream")
        if len(data) < HEADER:
            return IncompleteReadError(data, HEADER)
        return IncompleteReadError(data[HEADER:], int.from_bytes(data[:HEADER]))

    @abc.abstractmethod
    def watch(self) -> None:
        """Have `arrived` called, at least once."""

    @abc.abstractmethod
    def unwatch(self) -> None:
        """Nobody waits any longer."""

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

    def _close_socket(self) -> None:
        """Close the socket, and leave no cycle: who is told of arrivals has the link."""
        self._sock.close()
        del self._arrived, self.send


class WatchedLink(Link):
    """For loops that say when a socket is ready."""

    __slots__ = ("_handle", "_watching", "_writable")

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: HyperVSocket, arrived: Callable[[], None]) -> None:
        super().__init__(loop, sock, arrived)
        self.send = sock.send_message
        self._handle = sock.fileno()
        self._watching = False
        self._writable: asyncio.Future[None] | None = None

    # The loop goes on watching between two messages, which saves two system calls for each. If something arrives that
    # nobody waits for, it stops, or it would call again and again.

    def watch(self) -> None:
        if not self._watching:
            self._loop.add_reader(self._handle, self._arrived)
            self._watching = True

    def unwatch(self) -> None:
        if self._watching:
            self._loop.remove_reader(self._handle)
            self._watching = False
            self._drained = False

    async def writable(self) -> None:
        self._writable = self._loop.create_future()
        self._loop.add_writer(self._handle, settle, self._writable)
        retry = None
        if self._sock.family == _AF_VSOCK:
            retry = self._loop.call_later(_SEND_RETRY, settle, self._writable)
        try:
            await self._writable
        finally:
            if retry is not None:
                retry.cancel()
            self._writable = None
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
        self.unwatch()
        if self._writable is not None:
            self._loop.remove_writer(self._handle)
            settle(self._writable)
        self._close_socket()


class OverlappedLink(Link):
    """For the Proactor, which starts transfers and says when they are over.

    A transfer that was started goes on when the task that needs it is cancelled, since bytes are lost in a cancelled
    one. It is tried without the loop first.
    """

    __slots__ = ("_reading", "_room", "_writing")

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: HyperVSocket, arrived: Callable[[], None]) -> None:
        super().__init__(loop, sock, arrived)
        self.send = self._send
        self._room = bytearray()
        self._reading: asyncio.Task[int] | None = None  # into the room, or into the content of a long message
        self._writing: asyncio.Task[None] | None = None

    @property
    def may_have_message(self) -> bool:
        return super().may_have_message or (self._reading is not None and self._reading.done())

    def _receive(self) -> None:
        if self._reading is None:
            return super()._receive()
        if not self._reading.done():
            raise BlockingIOError(errno.EAGAIN, "the transfer is not over")
        if self._reading.cancelled():
            raise _cut_off()
        reading, self._reading = self._reading, None
        try:
            got = reading.result()
        finally:
            del reading  # its error leads to this frame: no cycle
        if self._content is None:
            self._add(bytes(self._room[:got]))
        else:
            self._advance(got, len(self._content) - self._got)
        return None

    def watch(self) -> None:
        if self._reading is None:
            room = self._rest_of_long_message()
            if room is None:
                self._room = self._room or bytearray(_ROOM)
                room = memoryview(self._room)
            self._reading = self._loop.create_task(self._loop.sock_recv_into(self._sock, room))
            self._reading.add_done_callback(self._on_read)

    def _on_read(self, reading: asyncio.Task[int]) -> None:
        if self._reading is reading:
            self._arrived()

    def unwatch(self) -> None:
        pass  # what is received is kept until somebody takes it

    def _send(self, *buffers: Buffer) -> None:
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
        if size > _LONGEST:
            raise ValueError(f"a message has {_LONGEST} bytes at most")
        parts = size.to_bytes(HEADER), *buffers
        try:
            sent = self._sock.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        if sent < HEADER + size:
            rest = memoryview(b"".join(parts))[sent:]
            self._writing = self._loop.create_task(self._loop.sock_sendall(self._sock, rest))
            raise BlockingIOError(errno.EAGAIN, "the transfer has been started")
        return None

    async def writable(self) -> None:
        if self._writing is not None:
            await asyncio.wait({self._writing})

    def is_amid_message(self) -> bool:
        return self._writing is not None

    async def close(self) -> None:
        pending = [task for task in (self._reading, self._writing) if task is not None]
        self._reading = self._writing = None
        for task in pending:
            task.cancel()
        try:
            if pending:
                await asyncio.wait(pending)
        finally:
            self._close_socket()
            for task in pending:
                with contextlib.suppress(asyncio.InvalidStateError, asyncio.CancelledError):
                    task.exception()  # it does not matter any more
