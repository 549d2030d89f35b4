"""`hvsock ping`: does a service answer, and how fast?"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

import hvsock
from hvsock._cli.options import EXIT_FAILURE, Seconds, address_argument, as_json, examples, transport_option
from hvsock._cli.output import Failure, cell, console, doing, print_json, print_lines, stdout, writing
from hvsock._cli.timing import Bucket, Durations, in_words, round_trip
from hvsock._errors import is_transient

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["command"]

LARGEST: Final = 1 << 20
BAR: Final = 40  # characters of the histogram's longest bar
PAUSE: Final = 0.1  # seconds after a loss, at least, to spare a VM that is starting
GRACE: Final = 0.1  # seconds that the last ping has at least, or a deadline would make a loss of most
REFRESH: Final = 0.1  # seconds between two updates of the progress

EXAMPLES = """
  hvsock ping parent/5000                     until Ctrl-C, one a second
  hvsock ping --count 1 --quiet parent/5000   is it there? (exit code 0 or 1)
  hvsock ping -w 60 --count 1 parent/5000     wait up to a minute for it
  hvsock ping --count 10000 --interval 0 parent/5000
  hvsock ping --count 100 --json parent/5000 | jq .round_trip.p99_us
  hvsock ping --json-lines parent/5000 > pings.jsonl
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a ping ended, at `time` by the system's clock: with a reply after `duration` ns, or with a `loss`, a reason.

    The duration of a loss is 0.
    """

    sequence: int
    time: float
    duration: int = 0
    loss: str = ""


class Display(Protocol):
    """Shows the pings as they happen."""

    def show(self, outcome: Outcome) -> None:
        """Show a ping."""

    def count(self, pings: Pings) -> None:
        """Show the progress."""


class Pings:
    """Pings of one service over one connection, which is made again after a loss."""

    def __init__(self, address: hvsock.HyperVAddress, size: int, timeout: float, transport: str | None) -> None:
        self.address = address
        self.size = size
        self.sent = 0
        self.connects = Durations()
        self.replies = Durations()
        self._timeout = timeout
        self._end = math.inf
        self._transport = transport
        self._connection: hvsock.HyperVSocket | None = None

    def run(self, count: int | None, interval: float, deadline: float | None, display: Display) -> None:
        """Send `count` pings, or without end, `interval` seconds apart.

        With a deadline, end after that many seconds, or when `count` pings came back.

        Raises:
            Failure: an error that does not pass by itself, or a reply that differs from what was sent.
        """
        due = time.monotonic()
        if deadline is not None:
            self._end = due + deadline
        while due < self._end:
            time.sleep(max(due - time.monotonic(), 0))
            outcome = self._ping()
            display.show(outcome)
            display.count(self)
            if count == (self.sent if deadline is None else self.replies.count):
                return
            due = max(due + (max(interval, PAUSE) if outcome.loss else interval), time.monotonic())

    def _ping(self) -> Outcome:
        sequence = self.sent + 1
        try:
            duration = self._once()
        except Failure as failure:
            if not _passes(failure.__cause__):
                raise
            outcome = Outcome(sequence, time.time(), loss=str(failure))
        else:
            self.replies.add(duration)
            outcome = Outcome(sequence, time.time(), duration)
        self.sent = sequence  # one that Ctrl-C interrupts does not count
        return outcome

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _once(self) -> int:
        """Ping, and return the round trip in ns; connect before, if there is no connection."""
        if self._connection is None:
            with doing(f"connect to {self.address}"):
                start = time.perf_counter_ns()
                self._connection = hvsock.create_connection(self.address, self._left(), transport=self._transport)
                self.connects.add(time.perf_counter_ns() - start)
        try:
            with doing(f"exchange with {self.address}"):
                return round_trip(self._connection, os.urandom(self.size), self._left())
        except BaseException:
            self.close()  # a late reply must not be taken for that of the next ping
            raise

    def _left(self) -> float:
        """Return how long an operation may take that starts now."""
        return min(self._timeout, max(self._end - time.monotonic(), GRACE))

    def report(self, seconds: float) -> dict[str, Any]:
        """Return what `hvsock ping` prints at the end, in JSON's types."""
        lost = self.sent - self.replies.count
        return {
            "address": str(self.address),
            "size": self.size,
            "sent": self.sent,
            "received": self.replies.count,
            "lost_percent": round(100 * lost / self.sent, 1) if self.sent else 0.0,
            "seconds": round(seconds, 3),
            "connect": self.connects.times() if self.connects.count else None,
            "round_trip": self.replies.times() if self.replies.count else None,
            "histogram": [
                {"from_us": bucket.start / 1000, "to_us": bucket.end / 1000, "count": bucket.count}
                for bucket in (self.replies.histogram() if self.replies.count else [])
            ],
        }


def _passes(cause: BaseException | None) -> bool:
    """Whether a failed ping counts as lost and the next may succeed: the service or its VM is starting or ending."""
    return isinstance(cause, EOFError | ConnectionError) or (isinstance(cause, OSError) and is_transient(cause))


def in_a_line(outcome: Outcome, pings: Pings, *, timestamps: bool) -> str:
    """Return the line of a ping for people; a timestamp is that of `ping -D`."""
    begin = f"[{outcome.time:.6f}] " if timestamps else ""
    if outcome.loss:
        return f"{begin}seq={outcome.sequence}: {outcome.loss}"
    took = in_words(outcome.duration / 1000)
    return f"{begin}{pings.size} bytes from {pings.address}: seq={outcome.sequence} time={took}"


def in_json(outcome: Outcome) -> str:
    """Return the line of a ping for programs."""
    begin = {"type": "loss" if outcome.loss else "reply", "seq": outcome.sequence, "time": round(outcome.time, 6)}
    end = {"reason": outcome.loss} if outcome.loss else {"round_trip_us": round(outcome.duration / 1000, 1)}
    return json.dumps({**begin, **end})


class Silent:
    """Shows nothing."""

    def show(self, outcome: Outcome) -> None:
        """Show nothing."""

    def count(self, pings: Pings) -> None:
        """Show nothing."""


class Lines(Silent):
    """Prints a line a ping on stdout, or a lost ping if `quiet`."""

    def __init__(self, line_of: Callable[[Outcome], str], *, quiet: bool) -> None:
        self._line_of = line_of
        self._quiet = quiet

    def show(self, outcome: Outcome) -> None:
        """Print it."""
        if outcome.loss or not self._quiet:
            print_lines(self._line_of(outcome))


class OnTerminal:
    """Prints a line a ping, with a progress line below."""

    def __init__(self, progress: Progress, task: TaskID, line_of: Callable[[Outcome], str], *, quiet: bool) -> None:
        self._progress = progress
        self._task = task
        self._line_of = line_of
        self._quiet = quiet
        self._next = 0.0

    def show(self, outcome: Outcome) -> None:
        """Print it, a loss in another colour."""
        if outcome.loss or not self._quiet:
            line = cell(self._line_of(outcome), sys.stdout, "yellow" if outcome.loss else "")
            with writing():
                self._progress.console.print(line)

    def count(self, pings: Pings) -> None:
        """Update the progress, not too often: that takes longer than a ping."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + REFRESH
        state = f"{pings.replies.count:,} of {pings.sent:,} came back"
        if pings.replies.count:
            p50, p99 = (in_words(pings.replies.percentile(permille) / 1000) for permille in (500, 990))
            state += f", p50 {p50}, p99 {p99}"
        with writing():
            self._progress.update(self._task, completed=pings.sent, description=state, refresh=True)


@contextlib.contextmanager
def show(count: int | None, line_of: Callable[[Outcome], str], *, quiet: bool) -> Iterator[Display]:
    """Show what happens, on a terminal with the progress."""
    if not stdout().isatty():
        yield Lines(line_of, quiet=quiet)
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn

    end: list[ProgressColumn] = [SpinnerColumn()] if count is None else [BarColumn()]
    columns = [*end, TextColumn("{task.description}", markup=False)]
    with writing(), Progress(*columns, console=console(stdout()), transient=True, auto_refresh=False) as progress:
        yield OnTerminal(progress, progress.add_task("", total=count), line_of, quiet=quiet)


@click.command("ping", epilog=examples(EXAMPLES))
@address_argument
@click.option("-c", "--count", type=click.IntRange(1), help="Pings to send; no limit by default.")
@click.option(
    "-i", "--interval", type=Seconds(positive=False), default=1.0, show_default=True, help="Seconds between two pings."
)
@click.option(
    "-s", "--size", type=click.IntRange(1, LARGEST), default=64, show_default=True, help="Payload size, random bytes."
)
@click.option(
    "-t",
    "--timeout",
    type=Seconds(),
    default=5.0,
    show_default=True,
    help="Give up on a connection, or on a reply, after this many seconds.",
)
@click.option(
    "-w",
    "--deadline",
    type=Seconds(),
    help="End after this many seconds, or once --count pings came back.",
)
@click.option("-D", "--timestamps", is_flag=True, help="Begin each line with the seconds since 1970.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the pings that were lost; --interval 0 implies it.")
@as_json
@click.option("--json-lines", is_flag=True, help="Print a line of JSON for each ping, and one for the statistics.")
@transport_option()
def command(
    address: hvsock.HyperVAddress,
    count: int | None,
    interval: float,
    size: int,
    timeout: float,
    deadline: float | None,
    timestamps: bool,
    quiet: bool,
    as_json: bool,
    json_lines: bool,
    transport: str | None,
) -> int:
    """Measure how fast an echo service answers.

    ADDRESS must be an echo service: `hvsock echo`, or any other that sends back what it receives. All pings use one
    connection, which is made again after a loss. Statistics are printed at the end, or on Ctrl-C. The exit code is 0
    if a ping came back, 1 if none did, or with --count and --deadline fewer than --count.
    """
    if as_json and json_lines:
        raise click.UsageError("--json and --json-lines exclude each other")
    pings = Pings(address, size, timeout, transport)
    line_of = functools.partial(in_a_line, pings=pings, timestamps=timestamps)
    display: contextlib.AbstractContextManager[Display]
    if as_json:
        display = contextlib.nullcontext(Silent())
    elif json_lines:
        display = contextlib.nullcontext(Lines(in_json, quiet=quiet))
    else:
        display = show(count if deadline is None else None, line_of, quiet=quiet or interval == 0.0)
    start = time.monotonic()
    try:
        with display as it:
            pings.run(count, interval, deadline, it)
    except KeyboardInterrupt:
        pass  # the usual end
    finally:
        pings.close()
    report = pings.report(time.monotonic() - start)
    if as_json:
        print_json(report)
    elif json_lines:
        print_lines(json.dumps({"type": "statistics", **report}))
    else:
        print_lines(*statistics(report, pings.replies))
    enough = count if count is not None and deadline is not None else 1
    return 0 if pings.replies.count >= enough else EXIT_FAILURE


def statistics(report: dict[str, Any], replies: Durations) -> Iterator[str]:
    """Yield the lines at the end."""
    yield f"--- {report['address']}: {report['size']} bytes ---"
    yield (
        f"{report['sent']:,} sent, {report['received']:,} came back, {report['lost_percent']:g} % lost "
        f"in {report['seconds']:.2f} s"
    )
    if (connect := report["connect"]) is not None:
        p50, longest = in_words(connect["p50_us"]), in_words(connect["max_us"])
        yield f"connect     p50 {p50}, max {longest}, {connect['count']:,} times"
    if (times := report["round_trip"]) is not None:
        names = ("min", "p50", "p99", "max")
        yield "round trip  " + ", ".join(f"{name} {in_words(times[f'{name}_us'])}" for name in names)
        yield f"            average {in_words(times['mean_us'])}, deviation {in_words(times['deviation_us'])}"
        yield from draw(replies.histogram())


def draw(histogram: list[Bucket]) -> Iterator[str]:
    """Yield a line with a bar for each bucket; the last one holds the slowest hundredth, and a gap is one line."""
    rest = sum(bucket.count for bucket in histogram) // 100
    tail = len(histogram)
    while rest >= histogram[tail - 1].count:
        tail -= 1
        rest -= histogram[tail].count
    buckets = histogram[:tail]
    if slowest := histogram[tail:]:
        count = sum(bucket.count for bucket in slowest)
        buckets.append(Bucket(slowest[0].start, slowest[-1].end, count))
    most = max(bucket.count for bucket in buckets)
    bounds = [(in_words(bucket.start / 1000), in_words(bucket.end / 1000)) for bucket in buckets]
    width = max(len(bound) for pair in bounds for bound in pair)
    empty = False
    for bucket, (start, end) in zip(buckets, bounds, strict=True):
        if bucket.count:
            bar = "#" * -(-bucket.count * BAR // most)
            yield f"{start:>{width}} - {end:>{width}}  {bar:<{BAR}}  {bucket.count:,}"
        elif not empty:
            yield f"{'...':>{width}}"
        empty = not bucket.count
