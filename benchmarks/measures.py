"""The measures: each starts its contenders as child processes, lets them take turns, and returns a `Table`."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from worker import MODES

import hvsock

T = TypeVar("T")

HERE: Final = Path(__file__).resolve().parent
LIMIT: Final = 600.0  # seconds that a child may live
ENVIRONMENT: Final = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}

RAW: Final = "raw C"
RAW_MESSAGES: Final = "raw C, same calls"
RAW_KINDS: Final = {RAW: "stream", RAW_MESSAGES: "messages"}
PEERS: Final = ("CPython", "hvsock")
ENDS: Final = (RAW, *PEERS)
TRIPS: Final = (*ENDS, "hvsock, busy_poll")
IDIOMS: Final = ("stdlib idiom", "exchange", "exchange, busy_poll")
MESSAGES: Final = (RAW_MESSAGES, *IDIOMS)
CLASSES: Final = (*PEERS, "C type")
NAMED: Final = "hvsock, address rules"
#: The ratios that are shown, where a measure has both: the first to the second.
COMPARED: Final = (
    ("hvsock", "CPython"),
    ("hvsock", RAW),
    ("C type", "CPython"),
    ("exchange", "stdlib idiom"),
    ("exchange", RAW_MESSAGES),
    ("exchange, busy_poll", RAW_MESSAGES),
    ("exchange, busy_poll", "exchange"),
    ("2 at once", "1 alone"),
)

SIZES: Final = {"1 B": 1, "64 B": 64, "4 KiB": 4 << 10, "64 KiB": 64 << 10}
BUFFERS: Final = {
    "4 KiB": 4 << 10,
    "16 KiB": 16 << 10,
    "64 KiB": 64 << 10,
    "256 KiB": 256 << 10,
    "1 MiB": 1 << 20,
    "4 MiB": 4 << 20,
}
PERCENTILES: Final = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}


class Effort(NamedTuple):
    """How much is measured."""

    rounds: int  # turns of each contender; odd, so that the median is one of them
    loops: int  # iterations of the shorter of two programs whose counts are subtracted
    trips: int  # of a round
    trips_beside: int  # the same beside a busy thread, where one takes milliseconds
    volume: int  # bytes of a round
    connections: int  # of a round
    naps: int  # ms that a thread sleeps again and again in a round


FULL: Final = Effort(rounds=41, loops=5000, trips=1000, trips_beside=50, volume=64 << 20, connections=500, naps=200)
QUICK: Final = Effort(rounds=3, loops=500, trips=300, trips_beside=20, volume=16 << 20, connections=100, naps=80)


class Bar(NamedTuple):
    """What is to be reached: a limit for a ratio or for a contender's value, and the aim beyond it."""

    of: str
    limit: float
    aim: float
    at_least: bool = False

    def is_kept(self, value: float) -> bool:
        """Whether a value keeps it, as exactly as the value is shown."""
        return round(value, 2) >= self.limit if self.at_least else round(value, 2) <= self.limit


@dataclass
class Row:
    """One case: what each contender said in each round. A note is printed below it."""

    case: str
    rounds: dict[str, list[float]]
    bars: tuple[Bar, ...] = ()
    note: str = ""

    @property
    def medians(self) -> dict[str, float]:
        """The median round of each contender."""
        return {name: statistics.median(values) for name, values in self.rounds.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """The median of the ratios of rounds that followed each other."""
        return {
            f"{one} / {other}": statistics.median(
                a / b for a, b in zip(self.rounds[one], self.rounds[other], strict=True)
            )
            for one, other in COMPARED
            if one in self.rounds and other in self.rounds
        }

    def measured(self, bar: Bar) -> float:
        """Return the value that a bar is about."""
        return (self.medians | self.ratios)[bar.of]


@dataclass
class Table:
    """What a measure found. `reason` says why there are no rows; the picture shows `samples`."""

    title: str
    unit: str
    rows: list[Row] = field(default_factory=list)
    reason: str = ""
    samples: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # by case and contender, sorted, ns


# Child processes


@contextlib.contextmanager
def _child(command: Sequence[str], descriptors: Sequence[int] = ()) -> Iterator[subprocess.Popen[str]]:
    """Run a child in a session of its own. It, and what it started, is killed at the end, or after LIMIT."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        text=True,
        pass_fds=descriptors,
        start_new_session=True,
        env=os.environ | ENVIRONMENT,
    ) as process:

        def kill() -> None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

        alarm = threading.Timer(LIMIT, kill)
        alarm.start()
        try:
            yield process
        finally:
            alarm.cancel()
            kill()


def _worker(contender: str, mode: str, transport: str, raw: Path | None = None) -> list[str]:
    """Return the command of a worker, to which descriptors are added."""
    if contender in RAW_KINDS:
        return [str(raw), RAW_KINDS[contender], mode]
    return [sys.executable, str(HERE / "worker.py"), contender, mode, transport]


def _tell(process: subprocess.Popen[str], command: str, *numbers: int) -> None:
    assert process.stdin
    print(command, *numbers, file=process.stdin, flush=True)


def _answer(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a child ended, or was ended after {LIMIT:g} s: {process.args!r}")
    return [int(word) for word in line.split()]


@contextlib.contextmanager
def _connection(transport: str) -> Iterator[tuple[hvsock.HyperVSocket, hvsock.HyperVSocket]]:
    """Lend both ends of a connection of this machine to itself."""
    address = ("loopback", 0x10000 + secrets.randbelow(1 << 24))
    with hvsock.create_server(address, transport=transport) as server:
        client = hvsock.create_connection(address, timeout=10, transport=transport)
        with client, server.accept()[0] as accepted:
            yield client, accepted


def _run_once(worker: Sequence[str], transport: str, commands: Iterable[str]) -> None:
    """Run a worker, which may be under a tool, for some commands; it has both ends of a connection."""
    with _connection(transport) as pair:
        descriptors = [sock.fileno() for sock in pair]
        line = [*worker, *map(str, descriptors)]
        with _child(line, descriptors) as process:
            for command in commands:
                _tell(process, command)
                _answer(process)
            assert process.stdin
            process.stdin.close()
            if process.wait() != 0:
                raise RuntimeError(f"exit status {process.returncode}: {line}")


@contextlib.contextmanager
def _busy_cores() -> Iterator[None]:
    """Keep each core busy with a process until the end of the block."""
    with contextlib.ExitStack() as stack:
        for core in os.sched_getaffinity(0):
            process = stack.enter_context(_child([sys.executable, "-c", "while True: pass"]))
            os.sched_setaffinity(process.pid, [core])
        yield


class _Link:
    """Two processes of one contender, with an end of a connection each."""

    def __init__(self, stack: contextlib.ExitStack, contender: str, mode: str, transport: str, raw: Path) -> None:
        with _connection(transport) as pair:
            command = _worker(contender, mode, transport, raw)
            self._client, self._server = (
                stack.enter_context(_child([*command, str(sock.fileno())], [sock.fileno()])) for sock in pair
            )

    def place(self, cores: int | None = None) -> None:
        """Keep both processes on one core, or each on a core of its own, or leave them to the scheduler."""
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(self._client.pid, allowed if cores is None else allowed[:1])
        os.sched_setaffinity(self._server.pid, allowed if cores is None else allowed[cores - 1 : cores])

    def run(self, client: str, server: str, size: int, count: int) -> list[int]:
        """Let the server and then the client do a command, and return the client's answer."""
        _tell(self._server, server, size, count)
        _tell(self._client, client, size, count)
        answer = _answer(self._client)
        _answer(self._server)
        return answer


def _buildable(names: Sequence[str]) -> list[str]:
    """Return the contenders that can take part: raw C needs a compiler."""
    return [name for name in names if name not in RAW_KINDS or shutil.which("cc")]


@contextlib.contextmanager
def _links(names: Sequence[str], modes: Sequence[str], transport: str) -> Iterator[dict[tuple[str, str], _Link]]:
    """Lend a link for each mode and contender."""
    with contextlib.ExitStack() as stack:
        raw = Path(os.environ["HVSOCK_LOCAL_DIR"], "raw-c")
        if not RAW_KINDS.keys().isdisjoint(names):
            line: list[str | Path] = ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", raw, HERE / "raw.c"]
            subprocess.run(line, check=True, timeout=60)
        yield {(mode, name): _Link(stack, name, mode, transport, raw) for mode in modes for name in names}


def _take_turns(
    rounds: int, cases: Iterable[str], names: Sequence[str], run: Callable[[str, str], T]
) -> dict[str, dict[str, list[T]]]:
    """Return, by case and name, what run(case, name) returned in each round.

    The contenders of a case follow each other at once, in an order that moves on with each round; all cases are part of
    each round, so that a busy minute of the machine spoils a few rounds of every case and not all of one.
    """
    results: dict[str, dict[str, list[T]]] = {case: {name: [] for name in names} for case in cases}
    for number in range(rounds):
        first = number % len(names)
        for case, by_name in results.items():
            for name in (*names[first:], *names[:first]):
                by_name[name].append(run(case, name))
    return results


# The measures


CONNECT: Final = "connect + accept + close"


def _count_instructions(contender: str, transport: str, jobs: Sequence[tuple[str, str, int]]) -> list[int]:
    """Return what callgrind counted of each (mode, command, count), which one process does in turn."""
    parts = Path(os.environ["HVSOCK_LOCAL_DIR"], f"callgrind-{contender}")
    tool = ["valgrind", "-q", "--tool=callgrind", "--dump-before=getloadavg", f"--callgrind-out-file={parts}"]
    commands = []
    for mode, command, count in jobs:
        commands += [f"set_mode {list(MODES).index(mode)}", "mark", f"{command} {count}", "mark"]
    # AF_UNIX: on vsock, data may arrive after the send has returned, and a non-blocking receive would find none.
    _run_once([*tool, *_worker(contender, "blocking", transport)], "local", commands)

    def total(part: int) -> int:
        match = re.search(r"^totals: (\d+)", Path(f"{parts}.{part}").read_text(encoding="utf-8"), re.MULTILINE)
        assert match
        return int(match[1])

    return [total(2 * k + 2) for k in range(len(jobs))]  # the part before the second mark of each


def instructions(effort: Effort, transport: str) -> Table:
    """User-space instructions of a pair of calls and of making a connection, counted by valgrind."""
    table = Table("instructions in user space (callgrind): send + recv_into of 1 byte; a connection", "instructions")
    if shutil.which("valgrind") is None:
        table.reason = "valgrind is not installed"
        return table
    programs = [("blocking", "empty"), *((mode, "pair") for mode in MODES)]
    programs += [(mode, "connect") for mode in ("blocking", "timeout")]

    def count(name: str) -> dict[tuple[str, str], float]:
        loops = {program: effort.loops // (10 if program[1] == "connect" else 1) for program in programs}
        jobs = [(*program, loops[program] * times) for program in programs for times in (1, 10)]
        counts = iter(_count_instructions(name, transport, jobs))
        costs = {program: (-next(counts) + next(counts)) / (9 * loops[program]) for program in programs}
        empty = costs.pop(("blocking", "empty"))
        return {program: cost - empty for program, cost in costs.items()}

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # it counts, so it may share the machine
        cost = dict(zip(CLASSES, pool.map(count, CLASSES), strict=True))
    bars = {
        ("blocking", "pair"): (0.50, 0.45),
        ("timeout", "pair"): (0.36, 0.32),
        ("non-blocking", "pair"): (0.50, 0.45),
        ("blocking", "connect"): (1.0, 0.8),
        ("timeout", "connect"): (1.0, 0.8),
    }
    table.rows = [
        Row(
            f"{CONNECT}, {mode}" if command == "connect" else mode,
            {name: [cost[name][mode, command]] for name in CLASSES},
            (Bar("hvsock / CPython", *limits),),
        )
        for (mode, command), limits in bars.items()
    ]
    return table


def system_calls(effort: Effort, transport: str) -> Table:
    """System calls of one operation, counted by strace."""
    table = Table("system calls of an operation that need not wait (strace)", "calls an operation")
    if shutil.which("strace") is None:
        table.reason = "strace is not installed"
        return table
    loops = (5, 50)  # AF_UNIX: after some seventy sends of one byte poll() says that there is no room

    def calls(contender: str, mode: str, command: str, count: int) -> dict[str, int]:
        log = Path(os.environ["HVSOCK_LOCAL_DIR"], f"strace-{contender}-{mode}-{command}-{count}")
        tool = ["strace", "-f", "-c", "-o", str(log)]
        _run_once([*tool, *_worker(contender, mode, transport)], transport, [f"{command} {count}"])
        # % time, seconds, usecs/call, calls, perhaps errors, syscall
        lines = (line.split() for line in log.read_text(encoding="utf-8").splitlines())
        return {words[-1]: int(words[3]) for words in lines if len(words) >= 5 and words[3].isdigit()}

    def used(program: tuple[str, str, str]) -> dict[str, float]:
        short, long = (calls(*program, n) for n in loops)
        each = {call: (long[call] - short.get(call, 0)) / (loops[1] - loops[0]) for call in sorted(long)}
        # The clock is a system call only where the kernel cannot let user space read it, as in an emulator.
        return {call: n for call, n in each.items() if n >= 0.1 and call not in ("total", "clock_gettime")}

    cases = [(command, mode) for command in ("send", "recv_into") for mode in MODES]
    cases += [("connect", mode) for mode in ("blocking", "timeout")]
    names = {"send": PEERS, "recv_into": PEERS, "connect": _connecting(transport)}
    programs = [(name, mode, command) for command, mode in cases for name in names[command]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(programs, pool.map(used, programs), strict=True))
    for command, mode in cases:
        each = {name: found[name, mode, command] for name in names[command]}
        bars: tuple[Bar, ...] = ()
        if command == "connect":
            bars = (Bar("hvsock / CPython", 1.0, 1.0),)
        elif (command, mode) == ("recv_into", "timeout"):
            bars = (Bar("hvsock", 1.0, 1.0),)
        what = CONNECT if command == "connect" else command
        note = "; ".join(
            f"{name}: " + ", ".join(f"{call} {n:.3g}" for call, n in by.items()) for name, by in each.items()
        )
        totals = {name: [sum(by.values())] for name, by in each.items()}
        table.rows.append(Row(f"{what}, {mode}", totals, bars, note))
    return table


def _connecting(transport: str) -> Sequence[str]:
    """Return the contenders that connect: the addresses of `local` have rules that take most of the time."""
    return (*CLASSES, NAMED) if transport == "local" else CLASSES


def _percentiles(samples: Iterable[int]) -> dict[str, float]:
    """Return some percentiles of times in ns, in us."""
    ordered = sorted(samples)
    return {p: ordered[min(int(len(ordered) * n / 100), len(ordered) - 1)] / 1e3 for p, n in PERCENTILES.items()}


def _trip_rows(case: str, by_name: dict[str, list[list[int]]], bars: dict[str, tuple[Bar, ...]]) -> list[Row]:
    """Return a row for each percentile of a case's rounds."""
    turns_of = {name: [_percentiles(samples) for samples in turns] for name, turns in by_name.items()}
    return [
        Row(
            f"{case}, {p}",
            {name: [turn[p] for turn in turns] for name, turns in turns_of.items()},
            bars.get(f"{case}, {p}", ()),
        )
        for p in PERCENTILES
    ]


def _beside_rows(case: str, by_name: dict[str, list[list[int]]], bars: dict[str, tuple[Bar, ...]]) -> list[Row]:
    """Return a row for the median and one for the mean of a case's rounds beside something busy."""
    return [
        Row(
            f"{case}, {statistic}",
            {name: [of(samples) / 1e3 for samples in turns] for name, turns in by_name.items()},
            bars.get(f"{case}, {statistic}", ()),
        )
        for statistic, of in (("p50", statistics.median), ("mean", statistics.fmean))
    ]


BESIDE: Final = {"64 B beside a busy thread": "answer", "the same, reply after 0.2 ms": "answer_late"}
CROWDED: Final = "64 B, a core each, with a busy process on it"


def _trips(
    table: Table,
    effort: Effort,
    transport: str,
    names: Sequence[str],
    names_beside: Sequence[str],
    bars: dict[str, tuple[Bar, ...]],
) -> Table:
    """Fill the table with round trips of all sizes in all modes, then beside a busy thread and busy processes."""
    names = _buildable(names)
    settings = {"blocking": ("blocking", 1), "timeout": ("timeout", 1)}
    has_cores = len(os.sched_getaffinity(0)) > 1
    if has_cores:
        settings |= {f"{mode}, a core each": (mode, 2) for mode in ("blocking", "timeout")}
    cases = {f"{size}, {setting}": (settings[setting], SIZES[size]) for setting in settings for size in SIZES}
    with _links(names, ("blocking", "timeout"), transport) as links:

        def alone(case: str, name: str) -> list[int]:
            (mode, cores), size = cases[case]
            warm_up = effort.trips // 10
            links[mode, name].place(cores)
            return links[mode, name].run("ask", "answer", size, warm_up + effort.trips)[warm_up:]

        def beside(case: str, name: str) -> list[int]:
            links["blocking", name].place()
            return links["blocking", name].run("ask_beside", BESIDE[case], 64, effort.trips_beside)

        def crowded(_case: str, name: str) -> list[int]:
            links["blocking", name].place(2)
            return links["blocking", name].run("ask", "answer", 64, 4 * effort.trips)

        results = _take_turns(effort.rounds, cases, names, alone)
        busy = _take_turns((effort.rounds + 1) // 2, BESIDE, names_beside, beside)
        if has_cores:
            with _busy_cores():
                busy |= _take_turns((effort.rounds + 1) // 2, [CROWDED], names, crowded)
    for case, by_name in results.items():
        table.rows += _trip_rows(case, by_name, bars)
        table.samples[case] = {name: sorted(itertools.chain(*turns)) for name, turns in by_name.items()}
    for case, by_name in busy.items():
        table.rows += _beside_rows(case, by_name, bars)
    return table


def round_trip(effort: Effort, transport: str) -> Table:
    """Times of a request and a reply of the same size."""
    table = Table("round trip between two processes, each with the same kind of socket", "us")
    return _trips(table, effort, transport, TRIPS, PEERS, {})


def messages(effort: Effort, transport: str) -> Table:
    """Times of a message and its reply: a length of 4 bytes, then the payload."""
    table = Table("a message and its reply between two processes, both ends written in the same way", "us")
    sleeping = Bar(f"exchange / {RAW_MESSAGES}", 1.15, 1.05)
    polling = Bar(f"exchange, busy_poll / {RAW_MESSAGES}", 0.30, 0.10)
    bars: dict[str, tuple[Bar, ...]] = {
        "64 B, blocking, p50": (sleeping,),
        "64 B, timeout, p50": (sleeping,),
        "64 B, blocking, a core each, p50": (sleeping, polling),
        "64 B, timeout, a core each, p50": (sleeping, polling),
        f"{CROWDED}, mean": (Bar("exchange, busy_poll / exchange", 1.0, 0.9),),
    }
    if RAW_MESSAGES not in _buildable(MESSAGES):
        bars = {case: tuple(bar for bar in wanted if RAW_MESSAGES not in bar.of) for case, wanted in bars.items()}
    return _trips(table, effort, transport, MESSAGES, IDIOMS, bars)


FAIR: Final = {
    "blocking": ("blocking", "CPython", "hvsock"),
    "timeout": ("timeout", "CPython", "hvsock"),
    "messages": ("blocking", "stdlib idiom", "exchange"),
    "asyncio": ("non-blocking", "asyncio streams", "asyncio streams, hvsock"),
    "asyncio, messages": ("non-blocking", "asyncio messages", "MessageStream"),
}


def fairness(effort: Effort, transport: str) -> Table:
    """How late a thread wakes that sleeps for 1 ms again and again, beside transfers without a pause."""
    table = Table(
        "fairness: a thread that sleeps 1 ms again and again beside n threads (asyncio: n connections in a loop), "
        "each with 64 B from one end of a socketpair to the other",
        "ms that it wakes late, pairs a second",
    )
    cases = {f"{kind}, n = {n}": (kind, n) for kind in FAIR for n in (1, 4, 8)}
    with contextlib.ExitStack() as stack:
        workers = {
            (kind, name): stack.enter_context(_child(_worker(contender, mode, transport)))
            for kind, (mode, *contenders) in FAIR.items()
            for name, contender in zip(PEERS, contenders, strict=True)
        }

        def run(case: str, name: str) -> tuple[float, float, float]:
            kind, number = cases[case]
            _tell(workers[kind, name], "fairness", number, effort.naps)
            done, elapsed, *late = _answer(workers[kind, name])
            return statistics.median(late) / 1e6, _percentiles(late)["p99"] / 1e3, done / (elapsed / 1e9)

        results = _take_turns((effort.rounds + 1) // 2, cases, PEERS, run)
    bars = {"median": (1.2, 1.0), "p99": (1.2, 1.0), "pairs a second": (1.0, 1.2)}
    table.rows = [
        Row(
            f"{case}, {what}",
            {name: [turn[k] for turn in turns] for name, turns in by_name.items()},
            (Bar("hvsock / CPython", *limits, at_least=what == "pairs a second"),),
        )
        for case, by_name in results.items()
        for k, (what, limits) in enumerate(bars.items())
    ]
    return table


def throughput(effort: Effort, transport: str) -> Table:
    """Bytes a second in one direction."""
    table = Table("throughput from one process to another: sendall and recv_into, by the size of the buffer", "MiB/s")
    names = _buildable(ENDS)
    with _links(names, ("blocking",), transport) as links:

        def run(case: str, name: str) -> float:
            size = BUFFERS[case]
            count = effort.volume // size
            (elapsed,) = links["blocking", name].run("push", "pull", size, count)
            return size * count / (1 << 20) / (elapsed / 1e9)

        results = _take_turns(effort.rounds, BUFFERS, names, run)
    bars = {}
    if RAW in names:
        bars = {"1 MiB": (Bar(f"hvsock / {RAW}", 0.97, 1.0, at_least=True),)}
    table.rows = [Row(case, by_name, bars.get(case, ())) for case, by_name in results.items()]
    return table


def threads(effort: Effort, transport: str) -> Table:
    """Requests a second that several threads make on one connection."""
    table = Table(
        "64 B and a reply in several threads on one connection, the idiom's under a threading.Lock", "requests a second"
    )
    numbers = {"1 thread": 1, "4 threads": 4, "16 threads": 16, "64 threads": 64}
    names = ("stdlib idiom", "exchange")
    with _links(names, ("blocking",), transport) as links:

        def run(case: str, name: str) -> float:
            number = numbers[case]
            count = 4 * effort.trips // number * number
            (elapsed,) = links["blocking", name].run("ask_at_once", "answer", number, count)
            return count / (elapsed / 1e9)

        results = _take_turns((effort.rounds + 1) // 2, numbers, names, run)
    table.rows = [Row(case, by_name) for case, by_name in results.items()]
    return table


def connections(effort: Effort, transport: str) -> Table:
    """Connections a second, made and closed in one process."""
    table = Table(f"{CONNECT} in one process", "connections a second")
    modes, names = ("blocking", "timeout"), _connecting(transport)
    with contextlib.ExitStack() as stack:
        workers = {
            (mode, name): stack.enter_context(_child(_worker(name, mode, transport)))
            for mode in modes
            for name in names
        }

        def run(mode: str, name: str) -> float:
            _tell(workers[mode, name], "connect", effort.connections)
            (elapsed,) = _answer(workers[mode, name])
            return effort.connections / (elapsed / 1e9)

        results = _take_turns(effort.rounds, modes, names, run)
    bars = (Bar("C type / CPython", 1.0, 1.1, at_least=True),)
    table.rows = [Row(mode, by_name, bars) for mode, by_name in results.items()]
    return table


def accept(effort: Effort, transport: str) -> Table:
    """Microseconds of a connection that one of several threads accepts."""
    threads = 16
    table = Table(f"{threads} threads in accept() on one listener, a client that waits until it is closed", "us")
    modes = ("blocking", "timeout")
    with contextlib.ExitStack() as stack:
        workers = {
            (mode, name): stack.enter_context(_child(_worker(name, mode, transport)))
            for mode in modes
            for name in PEERS
        }

        def run(mode: str, name: str) -> float:
            _tell(workers[mode, name], "accept_at_once", threads, effort.connections)
            (elapsed,) = _answer(workers[mode, name])
            return elapsed / 1e3 / effort.connections

        results = _take_turns(effort.rounds, modes, PEERS, run)
    bars = (Bar("hvsock / CPython", 1.2, 1.0),)
    table.rows = [Row(mode, by_name, bars) for mode, by_name in results.items()]
    return table


def scaling(effort: Effort, transport: str) -> Table:
    """Pairs of calls a second in one worker and in two at once."""
    table = Table("scaling: send + recv_into of 1 byte in one process, each worker with a connection", "pairs a second")
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        table.reason = "needs two cores"
        return table
    kinds = {"threads": "scale_threads"}
    if sys.version_info >= (3, 12):
        kinds["interpreters, a GIL each"] = "scale_interpreters"
    workers = {"1 alone": 1, "2 at once": 2}
    with _child(_worker("hvsock", "blocking", transport)) as process:

        def run(kind: str, name: str) -> float:
            count = 30 * effort.trips
            _tell(process, kinds[kind], workers[name], count)
            (elapsed,) = _answer(process)
            return workers[name] * count / (elapsed / 1e9)

        results = _take_turns(effort.rounds, kinds, tuple(workers), run)
    table.rows = [Row(kind, by_name) for kind, by_name in results.items()]
    return table


MEASURES: Final[dict[str, Callable[[Effort, str], Table]]] = {
    "instructions": instructions,
    "system-calls": system_calls,
    "round-trip": round_trip,
    "messages": messages,
    "fairness": fairness,
    "threads": threads,
    "throughput": throughput,
    "connections": connections,
    "accept": accept,
    "scaling": scaling,
}
