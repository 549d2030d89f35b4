"""`hvsock bench`: the short form of benchmarks/, against any echo service, or in one direction."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import platform
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import click

import hvsock
from hvsock._cli.options import Seconds, address_argument, as_json, examples, transport_option
from hvsock._cli.output import console, doing, print_json, print_lines, print_table
from hvsock._cli.throughput import DIRECTIONS, total_of, waits
from hvsock._cli.timing import FITS, Durations, Intervals, Span, Times, in_words, round_trip

__all__ = ["command"]

MIB: Final = 1 << 20
SIZES: Final = (1, 64, 4 << 10, 64 << 10)  # bytes of the round trips' messages
STREAMED: Final = (64 << 10, 1 << 20)  # bytes of the streams' messages
CONNECTIONS: Final = 100
WARM_UP: Final = 20  # round trips that are not counted
LARGEST: Final = 8 << 20
MOST_STREAMS: Final = 128

EXAMPLES = """
  hvsock bench parent/5000
  hvsock bench --size 512 --duration 10 --interval 1 parent/5000
  hvsock bench -P 4 parent/5000             four streams at a time
  hvsock bench --busy-poll 50 parent/5000   spin before sleeping: a busy core
  hvsock bench --json parent/5000 > today.json
  hvsock bench --direction send parent/5000
                   the service: hvsock listen wildcard/5000 > /dev/null
"""


@dataclasses.dataclass(frozen=True)
class Step:
    """One measurement, which becomes a row: its kind, the size of its messages, and how to take it."""

    kind: str
    size: int
    take: Callable[[], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Bench:
    """The measurements, each over connections of its own. Each ends after `duration` seconds.

    With an `interval`, the round trips and the streams are also reported in parts of that many seconds: a line of each
    is given to `tell`, and the numbers are in the results.
    """

    address: hvsock.HyperVAddress
    transport: str
    duration: float
    timeout: float
    busy_poll: int = 0
    direction: str = "both"
    streams: int = 1
    interval: float | None = None
    tell: Callable[[str], None] = print_lines

    def steps(self, sizes: Sequence[int]) -> list[Step]:
        """Return what to measure; the sizes are those of the round trips, or of the streams if these go one way."""
        if self.direction != "both":
            sizes = sizes or STREAMED[:1]  # one connection: hvsock listen accepts no other
            return [Step("throughput", size, functools.partial(self.stream, size)) for size in sizes]
        return [
            Step("connect", 0, self.connect),
            *(Step("round_trip", size, functools.partial(self.round_trips, size)) for size in sizes or SIZES),
            *(Step("throughput", size, functools.partial(self.stream, size)) for size in STREAMED),
        ]

    def connect(self) -> Times:
        """Connect, exchange one message, and disconnect, up to CONNECTIONS times; connecting is what is measured."""
        durations = Durations()
        end = time.monotonic() + self.duration
        while True:
            start = time.perf_counter_ns()
            connection = self._dial()
            durations.add(time.perf_counter_ns() - start)
            with connection, doing(f"exchange with {self.address}"):
                round_trip(connection, b"?", self.timeout)
            if durations.count == CONNECTIONS or time.monotonic() > end:
                return durations.times()

    def round_trips(self, size: int) -> dict[str, Any]:
        """Exchange random messages of `size` bytes, one after the other."""
        durations, part = Durations(), Durations()
        message = secrets.token_bytes(size)
        parts: list[dict[str, Any]] = []
        with self._dial() as connection, doing(f"exchange with {self.address}"):
            for _ in range(WARM_UP):
                round_trip(connection, message, self.timeout)
            now = start = time.monotonic()
            intervals = Intervals(self.interval, self.duration, start)
            while now <= start + self.duration:
                duration = round_trip(connection, message, self.timeout)
                durations.add(duration)
                part.add(duration)
                now = time.monotonic()
                if span := intervals.cut(now):
                    self._round_trip_part(parts, size, span, part.times())
                    part = Durations()
            if part.count and (span := intervals.rest(now)):
                self._round_trip_part(parts, size, span, part.times())
        return self._with_parts(durations.times(), parts)

    def stream(self, size: int) -> dict[str, Any]:
        """Send messages of `size` bytes over each stream, and receive them at the same time, or only one of these."""
        message = secrets.token_bytes(size)
        parts: list[dict[str, Any]] = []
        with contextlib.ExitStack() as stack, doing(f"exchange with {self.address}"):
            # The connections are closed first, which ends the threads, however this block is left.
            pool = stack.enter_context(ThreadPoolExecutor(2 * self.streams, "hvsock bench"))
            connections = [stack.enter_context(self._dial()) for _ in range(self.streams)]
            start, end = time.perf_counter(), time.monotonic() + self.duration
            streams = [DIRECTIONS[self.direction](connection, message, end) for connection in connections]
            running = [pool.submit(task) for stream in streams for task in stream.tasks()]
            intervals = Intervals(self.interval, self.duration, start)
            before = 0
            while waits(running, intervals.left(time.perf_counter())):
                if span := intervals.cut(time.perf_counter()):
                    before += self._stream_part(parts, size, span, total_of(streams) - before)
            for stream in streams:
                stream.check()
            ended = max(stream.ended for stream in streams)
            total = total_of(streams)
            if span := intervals.rest(ended):
                self._stream_part(parts, size, span, total - before)
        seconds = ended - start
        return self._with_parts(
            {
                "count": total // size,
                "bytes": total,
                "seconds": round(seconds, 6),
                "mib_per_second": round(total / MIB / seconds, 1),
            },
            parts,
        )

    def _round_trip_part(self, parts: list[dict[str, Any]], size: int, span: Span, times: Times) -> None:
        p50, p99 = in_words(times["p50_us"]), in_words(times["p99_us"])
        self._part(parts, "round trip", size, span, f"p50 {p50}, p99 {p99}", times)

    def _stream_part(self, parts: list[dict[str, Any]], size: int, span: Span, count: int) -> int:
        """Report the bytes of a part, and return their number."""
        rate = count / MIB / (span[1] - span[0])
        self._part(
            parts,
            "throughput",
            size,
            span,
            f"{rate:,.0f} MiB/s",
            {"bytes": count, "mib_per_second": round(rate, 1)},
        )
        return count

    def _part(
        self, parts: list[dict[str, Any]], name: str, size: int, span: Span, words: str, facts: Mapping[str, Any]
    ) -> None:
        start, end = span
        parts.append({"from_seconds": round(start, 3), "to_seconds": round(end, 3), **facts})
        self.tell(f"{name:<10}  {in_bytes(size):>8}  {f'{start:.1f} - {end:.1f} s':>15}  {words}")

    def _with_parts(self, facts: Mapping[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {**facts, **({} if self.interval is None else {"intervals": parts})}

    def _dial(self) -> hvsock.HyperVSocket:
        with doing(f"connect to {self.address}"):
            connection = hvsock.create_connection(self.address, self.timeout, transport=self.transport)
            connection.busy_poll = self.busy_poll
            return connection


SHOWN: Final = {"both": "throughput", "send": "throughput, sent", "receive": "throughput, received"}


@contextlib.contextmanager
def interrupted_once() -> Iterator[None]:
    """In the block, Ctrl-C raises KeyboardInterrupt once; a later one ends the process at once, as the system does."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield  # nothing is raised here
        return

    def interrupt(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@click.command("bench", epilog=examples(EXAMPLES))
@address_argument
@click.option(
    "-s",
    "--size",
    "sizes",
    type=click.IntRange(1, LARGEST),
    multiple=True,
    help="Message size of a round trip in bytes; may be repeated. Default: 1, 64, 4096 and 65536. "
    "With --direction send or receive, that of the stream; 65536.",
)
@click.option("--duration", type=Seconds(), default=1.0, show_default=True, help="Seconds that each measurement takes.")
@click.option(
    "--direction",
    type=click.Choice(list(DIRECTIONS)),
    default="both",
    show_default=True,
    help="send: to a service that only reads; receive: from one that only sends. Both measure throughput alone.",
)
@click.option(
    "-P",
    "--parallel",
    type=click.IntRange(1, MOST_STREAMS),
    default=1,
    show_default=True,
    help="Stream over this many connections at the same time.",
)
@click.option("-i", "--interval", type=Seconds(), help="Also print a line each time this many seconds have passed.")
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
    direction: str,
    parallel: int,
    interval: float | None,
    busy_poll: int,
    timeout: float,
    as_json: bool,
    transport: str | None,
) -> None:
    """Measure an echo service: round trips and throughput.

    ADDRESS must be an echo service: `hvsock echo`, or any other that sends back what it receives. Every message is
    random and is compared with its reply. The throughput is that of each direction while both are busy. The speed of
    the service counts too, and `hvsock echo` is written in Python.

    Ctrl-C ends with the rows that are complete; another one ends at once.
    """
    bench = Bench(
        address,
        hvsock.default_transport().name if transport is None else transport,
        duration,
        timeout,
        busy_poll,
        direction,
        parallel,
        interval,
        (lambda line: None) if as_json else print_lines,
    )
    date = datetime.datetime.now(datetime.UTC)
    rows: list[tuple[Step, Mapping[str, Any]]] = []

    def show(*, complete: bool) -> None:
        if as_json:
            print_json(report(bench, date, rows, complete=complete))
        elif rows:
            show_table(bench, rows)

    with interrupted_once():
        try:
            with progress(bench.steps(sizes), shown=interval is None) as steps:
                for step in steps:
                    result = step.take()
                    rows.append((step, result))
        except KeyboardInterrupt:
            show(complete=False)
            raise
        show(complete=True)


def report(
    bench: Bench, date: datetime.datetime, rows: Sequence[tuple[Step, Mapping[str, Any]]], *, complete: bool
) -> dict[str, Any]:
    """Return what `hvsock bench --json` prints: where, when and how it was measured, and the rows by their kind."""

    def of(kind: str) -> list[dict[str, Any]]:
        return [{"size": step.size, **result} for step, result in rows if step.kind == kind]

    return {
        "hvsock": hvsock.__version__,
        "date": date.isoformat(timespec="seconds"),
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "transport": bench.transport,
        "address": str(bench.address),
        "seconds": bench.duration,
        "busy_poll_us": bench.busy_poll,
        "direction": bench.direction,
        "streams": bench.streams,
        "complete": complete,
        "connect": next((result for step, result in rows if step.kind == "connect"), None),
        "round_trip": of("round_trip"),
        "throughput": of("throughput"),
    }


def show_table(bench: Bench, rows: Sequence[tuple[Step, Mapping[str, Any]]]) -> None:
    """Print a row for each measurement."""
    print_table(
        ("", "message", "p50", "p99", "p99.9", "max", "times"),
        [row_of(bench, step, result) for step, result in rows],
        numbers=("message", "p50", "p99", "p99.9", "max", "times"),
    )


def row_of(bench: Bench, step: Step, result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row; a throughput is in the column of the median."""
    times = f"{result['count']:,}"
    if step.kind == "throughput":
        streams = "" if bench.streams == 1 else f"{bench.streams} x "
        rate = f"{result['mib_per_second']:,.0f} MiB/s"
        return SHOWN[bench.direction], streams + in_bytes(step.size), rate, "", "", "", times
    cells = (in_words(result[key]) for key in ("p50_us", "p99_us", "p999_us", "max_us"))
    return step.kind.replace("_", " "), in_bytes(step.size) if step.size else "", *cells, times


def in_bytes(size: int) -> str:
    """Return a size with its unit."""
    for unit, name in ((MIB, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


@contextlib.contextmanager
def progress(steps: Sequence[Step], *, shown: bool) -> Iterator[Iterator[Step]]:
    """Lend the steps, with a bar on stderr if `shown` and that is a terminal; it moves only between them."""
    if not shown or sys.stderr is None or not sys.stderr.isatty():
        yield iter(steps)
        return
    from rich.progress import Progress

    with Progress(console=console(sys.stderr), transient=True, auto_refresh=False) as bar:
        yield iter(bar.track(steps, description="measuring"))
