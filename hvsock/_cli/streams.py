"""The standard streams as the commands use them: a write writes everything, and a read waits for something.

Python itself drops what a short write has left when its streams are unbuffered (PYTHONUNBUFFERED, usual in containers),
and takes a non-blocking stream for a broken one. That another process may have made it so: a terminal and a pipe are
shared with all that have them open.
"""

from __future__ import annotations

import contextlib
import io
import select
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["read", "whole_output"]

_PAUSE: Final = 0.01  # seconds; nothing can be waited for on Windows, whose standard streams are not non-blocking


class Whole(io.RawIOBase):
    """An unbuffered stream to write to, over one whose writes may be short."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def writable(self) -> bool:
        """Return that it is."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._raw.fileno()

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return self._raw.isatty()

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of it; wait for room where the stream is non-blocking."""
        with memoryview(data).cast("B") as view:
            size, done = len(view), 0
            while done < size:
                count = self._raw.write(view[done:])
                if count is None:
                    _wait(self._raw, writing=True)
                else:
                    done += count
        return size


def read(stream: Any, size: int) -> bytes:
    """Return up to `size` bytes of a standard stream as soon as there are some; none at its end.

    Unbuffered: a thread that waits in a buffer keeps its lock, and then the interpreter cannot shut down.
    """
    raw: io.RawIOBase = getattr(stream, "raw", stream)
    while (data := raw.read(size)) is None:
        _wait(raw, writing=False)
    return data


def _wait(raw: io.RawIOBase, *, writing: bool) -> None:
    if sys.platform == "win32":
        time.sleep(_PAUSE)
        return
    waiting = select.poll()
    waiting.register(raw.fileno(), select.POLLOUT if writing else select.POLLIN)
    waiting.poll()


@contextlib.contextmanager
def whole_output() -> Iterator[None]:
    """Have what the block writes to stdout and stderr written whole, or raise an error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_whole(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _whole(stream: Any) -> Any:
    buffer: Any = getattr(stream, "buffer", None)
    raw: Any = getattr(buffer, "raw", buffer)
    if not isinstance(raw, io.FileIO) and type(raw).__name__ != "_WindowsConsoleIO":
        return stream  # none at all, or not the process's own: a test's
    stream.flush()
    whole = Whole(raw)
    return io.TextIOWrapper(
        whole if buffer is raw else io.BufferedWriter(whole),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
