"""Durations and their statistics; one message to an echo service and back."""

from __future__ import annotations

import errno
import math
import select
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypedDict

import hvsock
from hvsock._cli.output import Failure

__all__ = ["FITS", "NO_ECHO", "Bucket", "Durations", "Intervals", "Span", "Times", "in_words", "round_trip"]

BITS: Final = 12  # significant bits that are kept of a duration: it is exact to 0.05 %
#: The bounds of a histogram's buckets: these, times powers of ten, in ns.
STEPS: Final = (10, 15, 20, 30, 40, 50, 70)
#: Fits into the buffers between two partitions even if the receiver does not read: rings of 24 KiB on Hyper-V.
FITS: Final = 4096
NO_ECHO: Final = "the reply is not what was sent; the address must be that of an echo service, such as hvsock echo"


class Times(TypedDict):
    """How long something took, `count` times."""

    count: int
    min_us: float
    mean_us: float
    deviation_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


#: From which second to which.
Span = tuple[float, float]


@dataclass(frozen=True)
class Bucket:
    """How many durations were at least `start` and below `end`, both in ns."""

    start: int
    end: int
    count: int


class Durations:
    """Any number of durations in nanoseconds, in bounded memory."""

    def __init__(self, durations: Iterable[int] = ()) -> None:
        self._counts: Counter[int] = Counter()
        self._sum = self._squares = 0
        self._min = self._max = 0
        self.count = 0
        for duration in durations:
            self.add(duration)

    def add(self, duration: int) -> None:
        """Add one."""
        shift = max(duration.bit_length() - BITS, 0)
        self._counts[duration >> shift << shift] += 1
        self._sum += duration
        self._squares += duration * duration
        self._min = min(self._min, duration) if self.count else duration
        self._max = max(self._max, duration)
        self.count += 1

    def percentile(self, permille: int) -> int:
        """Return the shortest duration such that `permille` of a thousand are not longer (nearest rank)."""
        rank = -(-self.count * permille // 1000)
        for duration in sorted(self._counts):
            rank -= self._counts[duration]
            if rank <= 0:
                return min(max(duration, self._min), self._max)
        raise ValueError("there are no durations")

    def deviation(self) -> float:
        """Return the standard deviation of these durations, as `ping` computes its mdev."""
        # In whole numbers until the end: the difference of two floats this large would be none.
        return math.sqrt(self.count * self._squares - self._sum * self._sum) / self.count

    def times(self) -> Times:
        """Return the numbers, in microseconds."""

        def us(duration: float) -> float:
            return round(duration / 1000, 1)

        return {
            "count": self.count,
            "min_us": us(self._min),
            "mean_us": us(self._sum / self.count),
            "deviation_us": us(self.deviation()),
            "p50_us": us(self.percentile(500)),
            "p99_us": us(self.percentile(990)),
            "p999_us": us(self.percentile(999)),
            "max_us": us(self._max),
        }

    def histogram(self) -> list[Bucket]:
        """Return the buckets from the one of the shortest duration to that of the longest."""
        buckets: list[Bucket] = []
        for start, end in _bounds():
            count = sum(count for duration, count in self._counts.items() if start <= duration < end)
            if count or buckets:
                buckets.append(Bucket(start, end, count))
            if sum(bucket.count for bucket in buckets) == self.count:
                return buckets
        raise AssertionError("not reached")


def _bounds() -> Iterator[tuple[int, int]]:
    start, scale = 0, 1
    while True:
        for step in STEPS:
            yield start, step * scale
            start = step * scale
        scale *= 10


class Intervals:
    """The parts of a measurement of `duration` seconds: each `length` seconds long, the last up to half as long again.

    Times are of any one clock, in seconds; the spans count from `start`. Without a length there are no parts.
    """

    def __init__(self, length: float | None, duration: float, start: float) -> None:
        self._length = length
        self._duration = duration
        self._start = start
        self._from = 0.0
        self._due = self._next(0.0)

    def left(self, now: float) -> float:
        """Return the seconds until the next part but the last is over."""
        return self._start + self._due - now

    def cut(self, now: float) -> Span | None:
        """Return the span of a part that is over, but not the last."""
        passed = now - self._start
        if passed < self._due:
            return None
        span = self._from, passed
        self._from, self._due = passed, self._next(passed)
        return span

    def rest(self, now: float) -> Span | None:
        """Return the span of the last part."""
        passed = now - self._start
        return None if self._length is None or passed <= self._from else (self._from, passed)

    def _next(self, passed: float) -> float:
        if self._length is None:
            return math.inf
        due = (passed // self._length + 1) * self._length
        return due if due <= self._duration - self._length / 2 else math.inf


def in_words(microseconds: float) -> str:
    """Return a duration with its unit."""
    if microseconds < 1000:
        return f"{microseconds:.1f} us"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.2f} ms"
    return f"{microseconds / 1_000_000:.2f} s"


def round_trip(connection: hvsock.HyperVSocket, message: bytes, timeout: float) -> int:
    """Send a message to an echo service and wait for it to come back; return the duration in ns.

    Afterwards the connection's timeout is `timeout`, or 0 where the message was long: then it sends and receives at the
    same time, because a service that echoes bytes reads the end of a message only after its beginning was received.

    Raises:
        TimeoutError: it did not come back within `timeout` seconds; the connection cannot be used any more.
        EOFError: the service has ended the connection.
        OSError: the connection failed.
        Failure: the reply differs.
    """
    try:
        if len(message) <= FITS:
            connection.settimeout(timeout)
            start = time.perf_counter_ns()
            answer = connection.exchange(message, max_size=len(message))
        else:
            connection.setblocking(False)
            start = time.perf_counter_ns()
            answer = _exchange_both_ways(connection, message, time.monotonic() + timeout)
        duration = time.perf_counter_ns() - start
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        answer = b""  # the reply is longer
    if answer != message:
        raise Failure(NO_ECHO)
    return duration


def _exchange_both_ways(connection: hvsock.HyperVSocket, message: bytes, deadline: float) -> bytes:
    to_send = [connection]
    while True:
        if to_send:
            try:
                connection.send_message(message)
                to_send = []
            except BlockingIOError:
                pass
        try:
            return connection.recv_message(max_size=len(message))
        except BlockingIOError:
            pass
        left = deadline - time.monotonic()
        if left <= 0 or not _wait(connection, to_send, left):
            raise TimeoutError("timed out")


def _wait(connection: hvsock.HyperVSocket, to_send: list[hvsock.HyperVSocket], seconds: float) -> bool:
    """Wait until a transfer is worth an attempt, and return whether it is.

    Some builds of Windows are said to have no select() for these sockets (mirage/ocaml-hvsock, README): try after 1 ms.
    What else is wrong with the connection, the attempt says.
    """
    try:
        return any(select.select([connection], to_send, [], seconds))
    except OSError:
        time.sleep(0.001)
        return True
