"""`hvsock bench`: the short form of benchmarks/, against any echo service."""

from __future__ import annotations

import errno
import functools
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from socket import SHUT_WR
from typing import Any, Final, TypedDict

import click

import hvsock
from hvsock._cli.options import Seconds, address_argument, as_json, examples, transport_option
from hvsock._cli.output import Failure, console, doing, print_json, print_table
from hvsock._cli.timing import FITS, NO_ECHO, Durations, Times, in_words, round_trip
from hvsock._errors import IncompleteReadError

__all__ = ["command"]

MIB: Final = 1 << 20
SIZES: Final = (1, 64, 4 << 10, 64 << 10)  # bytes of the round trips' messages
STREAMED: Final = (64 << 10, 1 << 20)  # bytes of the stream's messages
CONNECTIONS: Final = 100
WARM_UP: Final = 20  # round trips that are not counted
LARGEST: Final = 8 << 20

EXAMPLES = """
  hvsock bench parent/5000
  hvsock bench --size 512 --duration 10 parent/5000
  hvsock bench --busy-poll 50 parent/5000          spin before sleeping: faster, for a busy core
  hvsock bench --json parent/5000 > today.json
"""


class Throughput(TypedDict):
    """How many messages went there and came back, in how many seconds."""

    count: int
    seconds: float
    mib_per_second: float


class Bench:
    """The measures, each over connections of its own. Each ends after `duration` seconds."""

    def __init__(
        self, address: hvsock.HyperVAddress, duration: float, timeout: float, busy_poll: int, transport: str | None
    ) -> None:
        self._address = address
        self._duration = duration
        self._timeout = timeout
        self._busy_poll = busy_poll
        self._transport = transport

    def connect(self) -> Times:
        """Connect, exchange one message, and disconnect, up to CONNECTIONS times; connecting is what is measured."""
        durations = Durations()
        end = time.monotonic() + self._duration
        while True:
            start = time.perf_counter_ns()
            connection = self._dial()
            durations.add(time.perf_counter_ns() - start)
            with connection, doing(f"exchange with {self._address}"):
                round_trip(connection, b"?", self._timeout)
            if durations.count == CONNECTIONS or time.monotonic() > end:
                return durations.times()

    def round_trips(self, size: int) -> Times:
        """Exchange random messages of `size` bytes, one after the other."""
        durations = Durations()
        message = secrets.token_bytes(size)
        with self._dial() as connection, doing(f"exchange with {self._address}"):
            for _ in range(WARM_UP):
                round_trip(connection, message, self._timeout)
            end = time.monotonic() + self._duration
            while True:
                durations.add(round_trip(connection, message, self._timeout))
                if time.monotonic() > end:
                    return durations.times()

    def stream(self, size: int) -> Throughput:
        """Send messages of `size` bytes, and receive them at the same time."""
        message = secrets.token_bytes(size)
        buffer = bytearray(size)
        received = 0
        with self._dial() as connection, doing(f"exchange with {self._address}"):
            start = time.perf_counter()
            sender = Sender(connection, message, self._duration)
            try:
                while _receive(connection, buffer):
                    if buffer != message:
                        raise Failure(NO_ECHO)
                    received += 1
            except OSError:
                if sender.error is not None:
                    raise sender.error from None
                raise
            seconds = time.perf_counter() - start
            sender.join(self._timeout)
            if sender.error is not None:
                raise sender.error
            if received != sender.sent:
                raise EOFError(f"the service ended after {received:,} of {sender.sent:,} messages")
        return {
            "count": received,
            "seconds": round(seconds, 6),
            "mib_per_second": round(received * size / MIB / seconds, 1),
        }

    def _dial(self) -> hvsock.HyperVSocket:
        with doing(f"connect to {self._address}"):
            connection = hvsock.create_connection(self._address, self._timeout, transport=self._transport)
            connection.busy_poll = self._busy_poll
            return connection


class Sender(threading.Thread):
    """Sends a message over and over for some seconds, then ends the stream. `sent` counts them; `error` ended it."""

    def __init__(self, connection: hvsock.HyperVSocket, message: bytes, duration: float) -> None:
        super().__init__(name="hvsock bench sender", daemon=True)
        self.sent = 0
        self.error: Exception | None = None
        self._connection = connection
        self._message = message
        self._end = time.monotonic() + duration
        self.start()

    def run(self) -> None:
        """Send at least one message."""
        try:
            while not self.sent or time.monotonic() < self._end:
                self._connection.send_message(self._message)
                self.sent += 1
            self._connection.shutdown(SHUT_WR)
        except Exception as error:
            self.error = error


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


@click.command("bench", epilog=examples(EXAMPLES))
@address_argument
@click.option(
    "-s",
    "--size",
    "sizes",
    type=click.IntRange(1, LARGEST),
    multiple=True,
    help="Message size of a round trip in bytes; may be repeated. Default: 1, 64, 4096 and 65536.",
)
@click.option("--duration", type=Seconds(), default=1.0, show_default=True, help="Seconds that each measurement takes.")
@click.option(
    "--busy-poll",
    type=click.IntRange(0, 1_000_000),
    default=0,
    help=f"Microseconds to spin before a receive of up to {FITS} bytes sleeps.",
)
@click.option(
    "-t",
    "--timeout",
    type=Seconds(),
    default=5.0,
    show_default=True,
    help="Give up on an operation after this many seconds.",
)
@as_json
@transport_option()
def command(
    address: hvsock.HyperVAddress,
    sizes: tuple[int, ...],
    duration: float,
    busy_poll: int,
    timeout: float,
    as_json: bool,
    transport: str | None,
) -> None:
    """Measure an echo service: round trips and throughput.

    ADDRESS must be an echo service: `hvsock echo`, or any other that sends back what it receives. Every message is
    random and is compared with its reply. The throughput is that of each direction while both are busy. The speed of
    the service counts too, and `hvsock echo` is written in Python.
    """
    bench = Bench(address, duration, timeout, busy_poll, transport)
    trips = sizes or SIZES
    steps: list[Callable[[], Any]] = [
        bench.connect,
        *(functools.partial(bench.round_trips, size) for size in trips),
        *(functools.partial(bench.stream, size) for size in STREAMED),
    ]
    connect, *rest = with_progress(steps)
    report = {
        "address": str(address),
        "seconds": duration,
        "busy_poll_us": busy_poll,
        "connect": connect,
        "round_trip": [{"size": size, **times} for size, times in zip(trips, rest, strict=False)],
        "throughput": [{"size": size, **stream} for size, stream in zip(STREAMED, rest[len(trips) :], strict=True)],
    }
    if as_json:
        print_json(report)
        return
    rows = [("connect", "", connect)] + [("round trip", in_bytes(row["size"]), row) for row in report["round_trip"]]
    shown = ("p50_us", "p99_us", "p999_us", "max_us")
    print_table(
        ("", "message", "p50", "p99", "p99.9", "max", "times"),
        [(name, size, *(in_words(row[key]) for key in shown), f"{row['count']:,}") for name, size, row in rows]
        + [
            (
                "throughput",
                in_bytes(row["size"]),
                f"{row['mib_per_second']:,.0f} MiB/s",
                "",
                "",
                "",
                f"{row['count']:,}",
            )
            for row in report["throughput"]
        ],
        numbers=("message", "p50", "p99", "p99.9", "max", "times"),
    )


def in_bytes(size: int) -> str:
    """Return a size with its unit."""
    for unit, name in ((MIB, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def with_progress(steps: Sequence[Callable[[], Any]]) -> list[Any]:
    """Take the steps, with a bar on stderr if that is a terminal; it moves only between them."""
    if sys.stderr is None or not sys.stderr.isatty():
        return [step() for step in steps]
    from rich.progress import track

    return [
        step() for step in track(steps, "measuring", console=console(sys.stderr), transient=True, auto_refresh=False)
    ]
