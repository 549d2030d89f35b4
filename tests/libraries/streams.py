"""A small protocol for libraries that have streams and no requests: a line WORD SIZE and SIZE bytes, both ways.

The answer to ``echo`` is the body, to ``who`` the VM's id, and to ``slow`` nothing, after `SLOW` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from libraries.harness import SLOW


class File(Protocol):
    """What `makefile` of a socket returns, for binary data and both ways."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...

    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...


class Ends(Exception):
    """The stream has ended."""


def answer(file: File, peer: str) -> None:
    """Answer the requests of a blocking stream until it ends."""
    while line := file.readline():
        word, size = line.split()
        body = file.read(int(size))
        if word == b"who":
            body = peer.encode()
        elif word == b"slow":
            time.sleep(SLOW)
        file.write(b"%d\n" % len(body) + body)
        file.flush()


class Client:
    """Requests over a blocking stream."""

    def __init__(self, file: File) -> None:
        self._file = file

    def request(self, word: bytes, body: bytes = b"") -> bytes:
        self._file.write(b"%s %d\n" % (word, len(body)) + body)
        self._file.flush()
        return self._file.read(int(self._file.readline()))

    def echo(self, body: bytes) -> bytes:
        return self.request(b"echo", body)

    def who(self) -> str:
        return self.request(b"who").decode()

    def slow(self) -> bytes:
        return self.request(b"slow")


class Buffered:
    """Lines and whole bodies of an asynchronous stream, of which `receive` returns some bytes, or b"" at its end."""

    def __init__(self, receive: Callable[[], Awaitable[bytes]], send: Callable[[bytes], Awaitable[Any]]) -> None:
        self._receive = receive
        self._send = send
        self._data = bytearray()

    async def _more(self) -> None:
        data = await self._receive()
        if not data:
            raise Ends
        self._data += data

    async def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            await self._more()
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken

    async def _line(self) -> bytes:
        while (end := self._data.find(b"\n")) < 0:
            await self._more()
        return await self._take(end + 1)

    async def request(self, word: bytes, body: bytes = b"") -> bytes:
        await self._send(b"%s %d\n" % (word, len(body)) + body)
        return await self._take(int(await self._line()))

    async def echo(self, body: bytes) -> bytes:
        return await self.request(b"echo", body)

    async def who(self) -> str:
        return (await self.request(b"who")).decode()

    async def slow(self) -> bytes:
        return await self.request(b"slow")

    async def answer(self, peer: str, sleep: Callable[[float], Awaitable[Any]]) -> None:
        """Answer the requests until the stream ends."""
        while True:
            try:
                word, size = (await self._line()).split()
                body = await self._take(int(size))
            except Ends:
                return
            if word == b"who":
                body = peer.encode()
            elif word == b"slow":
                await sleep(SLOW)
            await self._send(b"%d\n" % len(body) + body)
