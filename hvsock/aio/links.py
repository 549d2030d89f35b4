"""What a `MessageStream` needs of its event loop: messages over a socket that is ready, or overlapped transfers."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Final

from hvsock.aio.connecting import settle
from hvsock.errors import IncompleteReadError
from hvsock.sockets import HyperVSocket

__all__ = ["Buffer", "Link", "OverlappedLink", "WatchedLink", "message_too_long"]

Buffer = bytes | bytearray | memoryview

_HEADER: Final = 4  # bytes, the length that goes before a message
_LONGEST: Final = 2**32 - 1
_MOST_BUFFERS: Final = 64  # of one system call; the systems' own limits are higher
_ROOM: Final = 2**14  # bytes that one overlapped receive may take, but for the content of longer messages


def message_too_long(size: int, limit: int) -> OSError:
    """Return the error of a message that is longer than the receiver allows."""
    return OSError(errno.EMSGSIZE, f"a message of {size} bytes is announced, and the limit is {limit}")


class Link(abc.ABC):
    """Transfers messages over a connected socket, one at a time in each direction, without waiting.

    `arrived` is called when take() is worth a try after watch().
    """

    __slots__ = ("_arrived", "_loop", "_sock", "send", "take")

    send: Callable[..., None]
    """Send a message, the concatenation of the buffers that are the arguments.

    BlockingIOError: call it again with the same buffers when the link is writable(); no other message until then.
    """

    take: Callable[[int], bytes]
    """Return the next message, of the size given at most. BlockingIOError: it has not arrived, and what has is kept."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: HyperVSocket, arrived: Callable[[], None]) -> None:
        self._loop = loop
        self._sock = sock
        self._arrived = arrived

    @property
    @abc.abstractmethod
    def holds_data(self) -> bool:
        """Whether something was received that take() has not returned: watch() does not tell of it."""

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


class WatchedLink(Link):
    """For loops that say when a socket is ready: the messages are the socket's own."""

    __slots__ = ("_handle", "_watching", "_writable")

    holds_data = False

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: HyperVSocket, arrived: Callable[[], None]) -> None:
        super().__init__(loop, sock, arrived)
        self.send = sock.send_message
        self.take = sock.recv_message
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

    async def writable(self) -> None:
        self._writable = self._loop.create_future()
        self._loop.add_writer(self._handle, settle, self._writable)
        try:
            await self._writable
        finally:
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
        self._sock.close()


class OverlappedLink(Link):
    """For the Proactor, which starts transfers and says when they are over.

    A transfer that was started goes on when the task that needs it is cancelled, since bytes are lost in a cancelled
    one. It is tried without the loop first.
    """

    __slots__ = ("_content", "_end", "_got", "_reading", "_room", "_start", "_writing")

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: HyperVSocket, arrived: Callable[[], None]) -> None:
        super().__init__(loop, sock, arrived)
        self.send = self._send
        self.take = self._take
        self._room = bytearray(_ROOM)
        self._start = self._end = 0  # of what has arrived in the room
        self._content: bytearray | None = None  # of a message that the room is too small for
        self._got = 0  # bytes of it
        self._reading: asyncio.Task[int] | None = None
        self._writing: asyncio.Task[None] | None = None

    @property
    def holds_data(self) -> bool:
        arrived = self._reading is not None and self._reading.done()
        return arrived or self._end > self._start or self._content is not None

    def _take(self, max_size: int) -> bytes:
        if max_size < 0:
            raise ValueError("negative size of a message")
        while True:
            message = self._whole(max_size)
            if message is not None:
                return message
            self._add(self._receive())

    def _whole(self, max_size: int) -> bytes | None:
        """Return the message that comes first, if all of it has arrived."""
        size = self._announced()
        if size is None:
            return None
        if size > max_size:
            raise message_too_long(size, max_size)
        if self._content is not None:
            if self._got < size:
                return None
            message, self._content = bytes(self._content), None
            return message
        first = self._start + _HEADER
        if self._end < first + size:
            return None
        self._start = first + size
        return bytes(self._room[first : self._start])

    def _announced(self) -> int | None:
        """Return the size of the message that comes first, if its header has arrived."""
        if self._content is not None:
            return len(self._content)
        if self._end - self._start < _HEADER:
            return None
        return int.from_bytes(self._room[self._start : self._start + _HEADER])

    def _free(self) -> memoryview:
        """Return where the next bytes go: in the room, or in the content of a message that the room is too small for.

        Nothing is moved while a transfer is under way.
        """
        if self._content is None:
            arrived = self._room[self._start : self._end]
            size = self._announced()
            if size is None or _HEADER + size <= _ROOM:
                self._room[: len(arrived)] = arrived
                self._start, self._end = 0, len(arrived)
                return memoryview(self._room)[self._end :]
            self._content = bytearray(size)
            self._got = len(arrived) - _HEADER
            self._content[: self._got] = arrived[_HEADER:]
            self._start = self._end = 0
        return memoryview(self._content)[self._got :]

    def _receive(self) -> int:
        """Return how many bytes have arrived, 0 at the end of the stream; or raise BlockingIOError."""
        if self._reading is None:
            return self._sock.recv_into(self._free())
        if not self._reading.done():
            raise BlockingIOError(errno.EAGAIN, "the transfer is not over")
        reading, self._reading = self._reading, None
        return reading.result()

    def _add(self, size: int) -> None:
        if self._content is not None:
            if size == 0:
                partial, expected = bytes(self._content[: self._got]), len(self._content)
                self._content = None
                raise IncompleteReadError(partial, expected)
            self._got += size
            return
        if size == 0:
            raise self._ended()
        self._end += size

    def _ended(self) -> EOFError:
        arrived = bytes(self._room[self._start : self._end])
        self._start = self._end = 0
        if not arrived:
            return EOFError("the peer has ended the stream")
        if len(arrived) < _HEADER:
            return IncompleteReadError(arrived, _HEADER)
        return IncompleteReadError(arrived[_HEADER:], int.from_bytes(arrived[:_HEADER]))

    def watch(self) -> None:
        if self._reading is None:
            self._reading = self._loop.create_task(self._loop.sock_recv_into(self._sock, self._free()))
            self._reading.add_done_callback(self._on_read)

    def _on_read(self, reading: asyncio.Task[int]) -> None:
        if self._reading is reading:
            self._arrived()

    def unwatch(self) -> None:
        pass  # what was received stays in the room until somebody takes it

    def _send(self, *buffers: Buffer) -> None:
        if self._writing is not None:
            if not self._writing.done():
                raise BlockingIOError(errno.EAGAIN, "the transfer is not over")
            writing, self._writing = self._writing, None
            return writing.result()
        size = sum(memoryview(buffer).nbytes for buffer in buffers)
        if size > _LONGEST:
            raise ValueError(f"a message has {_LONGEST} bytes at most")
        if len(buffers) > _MOST_BUFFERS:
            buffers = (b"".join(buffers),)
        parts = size.to_bytes(_HEADER), *buffers
        try:
            sent = self._sock.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        if sent < _HEADER + size:
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
            self._sock.close()
            for task in pending:
                with contextlib.suppress(asyncio.InvalidStateError, asyncio.CancelledError):
                    task.exception()  # it does not matter any more
