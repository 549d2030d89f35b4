"""How much `hvsock connect` and `hvsock listen` have moved, and how fast: a line of stderr, on a terminal."""

from __future__ import annotations

import collections
import contextlib
import os
import stat
import sys
import threading
import time
from typing import Any, Final, NamedTuple, Self

__all__ = ["Counts", "Meter", "is_wanted"]

BEGIN: Final = 0.5  # seconds: what is over sooner needs no meter
LEAST: Final = 64 << 10  # bytes: nor does what people type and read, as through `| cat`
PERIOD: Final = 0.25  # seconds between two updates
SAMPLES: Final = 12  # updates that the rate is the average of
WIDEST: Final = 30  # characters of the bar
NARROWEST: Final = 5
UNITS: Final = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


class Counts:
    """Bytes moved so far."""

    sent = received = 0


class Sample(NamedTuple):
    """What was moved until a time."""

    time: float  # monotonic seconds
    sent: int
    received: int


def is_wanted(asked: bool | None) -> bool:
    """Whether there is to be a meter: as asked, or None for where it disturbs nothing on that terminal.

    With stdin and stdout both pipes, the command is a part of something else, such as the ProxyCommand of ssh, whose
    terminal it is.
    """
    if asked is False or sys.stderr is None or not sys.stderr.isatty():
        return False
    if asked:
        return True
    source, sink = _mode(sys.stdin), _mode(sys.stdout)
    if _is_terminal(sys.stdout):
        return stat.S_ISREG(source)
    return not (_is_pipe(source) and _is_pipe(sink))


def _mode(stream: Any) -> int:
    with contextlib.suppress(AttributeError, OSError):  # there is none, or it is not a file: a test's
        return os.fstat(stream.fileno()).st_mode
    return 0


def _is_terminal(stream: Any) -> bool:
    return stream is not None and bool(stream.isatty())


def _is_pipe(mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class Meter:
    """A context in which stderr shows what was moved; its last line, with the average rate, stays.

    It has a thread and little work: text without colours, and nothing that has to be imported during a transfer.
    """

    def __init__(self, counts: Counts, asked: bool | None = None) -> None:
        self._counts = counts
        self._least = 0 if asked else LEAST
        self._size = _size_of_stdin()
        self._samples: collections.deque[Sample] = collections.deque(maxlen=SAMPLES + 1)
        self._ended = threading.Event()
        self._removed = False
        self._thread: threading.Thread | None = None
        if is_wanted(asked):
            self._thread = threading.Thread(target=self._run, name="hvsock progress", daemon=True)

    def __enter__(self) -> Self:
        self._samples.append(self._sample())
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def make_room(self) -> None:
        """Remove it for good if stdout is a terminal too, to which something is about to be written."""
        if self._thread is not None and not self._removed and _is_terminal(sys.stdout):
            self._removed = True
            self._ended.set()
            self._thread.join()

    def _sample(self) -> Sample:
        return Sample(time.monotonic(), self._counts.sent, self._counts.received)

    def _run(self) -> None:
        if self._ended.wait(BEGIN):
            return
        while self._counts.sent + self._counts.received < self._least:
            if self._ended.wait(PERIOD):
                return
        with contextlib.suppress(OSError, ValueError):  # stderr has failed, or is closed
            self._show()

    def _show(self) -> None:
        began = self._samples[0]
        while True:
            self._samples.append(self._sample())
            self._draw(self._samples[0], began)
            if self._ended.wait(PERIOD):
                break
        if self._removed:
            self._write(f"\r{'':{_columns()}}\r")
        else:
            self._samples.append(self._sample())
            self._draw(began, began, end="\n")

    def _draw(self, since: Sample, began: Sample, end: str = "\r") -> None:
        """Draw it from the beginning of the line, and leave the cursor there: what is typed is drawn over next time."""
        columns = _columns()
        self._write(f"\r{_line(self._samples[-1], since, began, self._size, columns):{columns}}{end}")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _columns() -> int:
    """Return how many characters a line may have: in the last column, some terminals begin another one."""
    with contextlib.suppress(OSError):
        if (columns := os.get_terminal_size(sys.stderr.fileno()).columns) > 1:
            return columns - 1
    return 79


def _size_of_stdin() -> int | None:
    """Return how much there is to be sent, if stdin is a file."""
    with contextlib.suppress(AttributeError, OSError):
        number = sys.stdin.fileno()
        status = os.fstat(number)
        if stat.S_ISREG(status.st_mode):
            return max(0, status.st_size - os.lseek(number, 0, os.SEEK_CUR)) or None
    return None


def _line(now: Sample, since: Sample, began: Sample, size: int | None, columns: int) -> str:
    """Return what was moved until now, and the rates since another time; with a bar if there is room for it."""
    seconds = int(now.time - began.time)
    span = max(now.time - since.time, 0.001)
    left, right = f"{seconds // 60}:{seconds % 60:02}", ""
    part = 0.0
    if size is not None:
        part = min(now.sent / size, 1.0)
        left += f"  sent {_amount(now.sent)} of {_amount(size)} {part:4.0%}"
        right = f" {_amount((now.sent - since.sent) / span)}/s"
    elif now.sent:
        left += f"  sent {_amount(now.sent)} {_amount((now.sent - since.sent) / span)}/s"
    if now.received or (size is None and not now.sent):
        right += f"  received {_amount(now.received)} {_amount((now.received - since.received) / span)}/s"
    width = min(columns - len(left) - len(right) - len(" []"), WIDEST)
    bar = "" if size is None or width < NARROWEST else f" [{'#' * int(width * part):.<{width}}]"
    return (left + bar + right)[:columns]


def _amount(count: float) -> str:
    for name, size in UNITS:
        if count >= size:
            return f"{count / size:.1f} {name}"
    return f"{count:.0f} B"
