"""The wire format of messages without I/O: bytes that have arrived go in, messages come out."""

from __future__ import annotations

import errno
from typing import Final

from hvsock._errors import IncompleteReadError

__all__ = ["HEADER", "LONGEST", "SHORT", "MessageParser"]

HEADER: Final = 4  # bytes: the length that goes before a message, big-endian
LONGEST: Final = 2**32 - 1
SHORT: Final = 2**13  # bytes; a longer message is received into memory of its own
_FIRST_ROOM: Final = 2**16  # bytes of that memory: a peer gets none for what it only announces
_GROWTH: Final = 4


class MessageParser:
    """The messages of one stream. What arrives goes to feed(), or, if there is a room(), into that and to advance()."""

    __slots__ = ("_at", "_content", "_data", "_got", "_size")

    def __init__(self) -> None:
        self._data = b""  # messages from `_at` on, but for the content of a long one
        self._at = 0
        self._content: bytearray | None = None  # of a long message; at its end it has `_size` bytes
        self._size = 0
        self._got = 0  # how many of these have arrived

    def next(self, max_size: int) -> bytes | None:
        """Return the next message, or None if not all of it has arrived.

        Raises:
            OSError: EMSGSIZE, it is longer than `max_size`; a call with a larger one returns it.
        """
        if self._content is not None:
            if self._size > max_size:
                raise _too_long(self._size, max_size)
            if self._got < self._size:
                return None
            message, self._content = bytes(self._content), None
            return message
        data, start = self._data, self._at + HEADER
        if start > len(data):
            return None
        size = int.from_bytes(data[self._at : start])
        if size > max_size:
            raise _too_long(size, max_size)
        end = start + size
        if end > len(data):
            return None
        if end == len(data):
            self._data, self._at = b"", 0
        else:
            self._at = end
        return data[start:end]

    def feed(self, data: bytes) -> None:
        """Take what has arrived. The caller had no room() for it."""
        self._data = self._data[self._at :] + data
        self._at = 0

    def room(self) -> memoryview | None:
        """Return where the next bytes go if a long message has begun: at least one byte."""
        if self._content is None:
            data, start = self._data, self._at + HEADER
            size = int.from_bytes(data[self._at : start]) if start <= len(data) else 0
            if size <= SHORT or size <= len(data) - start:
                return None
            self._content, self._size, self._got = bytearray(min(size, _FIRST_ROOM)), size, len(data) - start
            self._content[: self._got] = data[start:]
            self._data, self._at = b"", 0
        elif self._got == self._size:
            return None
        elif self._got == len(self._content):
            content = bytearray(min(self._size, self._got * _GROWTH))  # a transfer may still have the old one
            content[: self._got] = self._content
            self._content = content
        return memoryview(self._content)[self._got :]

    def advance(self, size: int) -> None:
        """Take the number of bytes that were put into the room()."""
        self._got += size

    def end(self) -> EOFError:
        """Return the error that says where the stream has ended; what there was of a message is dropped."""
        data, content = self._data[self._at :], self._content
        self._data, self._at, self._content = b"", 0, None
        if content is not None:
            return IncompleteReadError(bytes(content[: self._got]), self._size)
        if not data:
            return EOFError("the peer has ended the stream")
        if len(data) < HEADER:
            return IncompleteReadError(data, HEADER)
        return IncompleteReadError(data[HEADER:], int.from_bytes(data[:HEADER]))


def _too_long(size: int, limit: int) -> OSError:
    return OSError(errno.EMSGSIZE, f"a message of {size} bytes is announced, and the limit is {limit}")
