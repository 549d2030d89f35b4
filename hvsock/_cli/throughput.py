"""Streams over connections, for `hvsock bench`: both ways through an echo service, or one way."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from socket import SHUT_WR
from typing import Final

import hvsock
from hvsock._cli.output import Failure
from hvsock._cli.timing import NO_ECHO
from hvsock._errors import IncompleteReadError

__all__ = ["DIRECTIONS", "total_of", "waits"]

# Seconds between two looks at the streams: Ctrl-C does not end the wait for a lock on Windows, and a signal that comes
# just before a wait starts does not end that anywhere.
TICK: Final = 0.1 if sys.platform == "win32" else 1.0
NOT_SILENT: Final = (
    "the service sends something back; --direction send needs one that only reads, such as hvsock listen"
)


def waits(running: Sequence[futures.Future[None]], seconds: float) -> bool:
    """Wait until the tasks or the seconds are over, but not for long; return whether tasks are running.

    Raises:
        Exception: that of a task which failed, in their order.
    """
    futures.wait(running, min(max(seconds, 0), TICK), futures.FIRST_EXCEPTION)
    for task in running:
        if task.done():
            task.result()
    return not all(task.done() for task in running)


class Stream:
    """Sends a message over and over until `end`, and receives it as often; `bytes` is how much that was, `ended` when.

    `end` is of time.monotonic(), `ended` of time.perf_counter().
    """

    def __init__(self, connection: hvsock.HyperVSocket, message: bytes, end: float) -> None:
        self.bytes = 0
        self.ended = 0.0
        self._sent = 0
        self._connection = connection
        self._message = message
        self._end = end

    def tasks(self) -> tuple[Callable[[], None], ...]:
        """Return what to run at the same time."""
        return self._send, self._receive

    def check(self) -> None:
        """Compare both ends of the stream, after the tasks have ended.

        Raises:
            EOFError: the service ended too early.
        """
        if self.bytes != self._sent:
            size = len(self._message)
            raise EOFError(f"the service ended after {self.bytes // size:,} of {self._sent // size:,} messages")

    def _send(self) -> None:
        while not self._sent or time.monotonic() < self._end:
            self._connection.send_message(self._message)
            self._sent += len(self._message)
        self._connection.shutdown(SHUT_WR)

    def _receive(self) -> None:
        buffer = bytearray(len(self._message))
        while _receive(self._connection, buffer):
            if buffer != self._message:
                raise Failure(NO_ECHO)
            self.bytes += len(buffer)
        self.ended = time.perf_counter()


class SendingStream(Stream):
    """Only sends, bytes without lengths; it has ended when the service has read all of them and closed."""

    def tasks(self) -> tuple[Callable[[], None], ...]:
        """Return what to run."""
        return (self._send,)

    def check(self) -> None:
        """Find nothing wrong: the end came after all the bytes."""

    def _send(self) -> None:
        try:
            while not self.bytes or time.monotonic() < self._end:
                self._connection.sendall(self._message)
                self.bytes += len(self._message)
            self._connection.shutdown(SHUT_WR)
            back = self._connection.recv(1)
        except TimeoutError:
            if not self._has_answer():
                raise
            back = b"?"
        if back:
            raise Failure(NOT_SILENT)
        self.ended = time.perf_counter()

    def _has_answer(self) -> bool:
        """Whether the service waits because what it sends is not read."""
        self._connection.setblocking(False)
        with contextlib.suppress(OSError):
            return bool(self._connection.recv(1))
        return False


class ReceivingStream(Stream):
    """Only receives, whatever comes, until its time or the stream ends."""

    def tasks(self) -> tuple[Callable[[], None], ...]:
        """Return what to run."""
        return (self._receive,)

    def check(self) -> None:
        """Check that something came."""
        if not self.bytes:
            raise EOFError("the service ended without sending anything")

    def _receive(self) -> None:
        buffer = bytearray(len(self._message))
        while size := self._connection.recv_into(buffer):
            self.bytes += size
            if time.monotonic() >= self._end:
                break
        self.ended = time.perf_counter()


def _receive(connection: hvsock.HyperVSocket, buffer: bytearray) -> bool:
    """Receive a message that fills the buffer; return False at the end of the stream."""
    try:
        size = connection.recv_message_into(buffer)
    except IncompleteReadError:
        raise
    except EOFError:
        return False
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        size = 0  # the message is longer than the buffer
    if size != len(buffer):
        raise Failure(NO_ECHO)
    return True


DIRECTIONS: Final = {"both": Stream, "send": SendingStream, "receive": ReceivingStream}


def total_of(streams: Sequence[Stream]) -> int:
    """Return the number of bytes of all of them until now."""
    return sum(stream.bytes for stream in streams)
