"""Measure hvsock.relay beside socat and beside no relay at all, on Linux: see README.md.

The contenders relay from the same kind of socket to the same server and take turns within each round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from run import machine, number

HOST: Final = "127.0.0.1"
LIMIT: Final = 120.0  # seconds that anything may take
CHUNK: Final = 256 << 10
REQUEST: Final = 64

RELAY: Final = """
import sys
from hvsock.relay import Relay
Relay(sys.argv[1], sys.argv[2], max_connections=5000).serve_forever()
"""


class Effort(NamedTuple):
    """How much is measured."""

    rounds: int
    volume: int  # bytes of a throughput round
    trips: int
    connections: int


FULL: Final = Effort(rounds=15, volume=512 << 20, trips=2000, connections=1000)
QUICK: Final = Effort(rounds=3, volume=128 << 20, trips=500, connections=200)


class Address(NamedTuple):
    """An address on this machine: a TCP port or a path."""

    place: int | str

    @property
    def uri(self) -> str:
        """What the relay calls it."""
        return f"tcp://{HOST}:{self.place}" if isinstance(self.place, int) else f"unix://{self.place}"

    def socat(self, *, listens: bool) -> str:
        """Return what socat calls it."""
        if isinstance(self.place, int):
            return (
                f"TCP4-LISTEN:{self.place},bind={HOST},reuseaddr,backlog=1024,fork"
                if listens
                else f"TCP4:{HOST}:{self.place}"
            )
        return f"UNIX-LISTEN:{self.place},backlog=1024,fork" if listens else f"UNIX-CONNECT:{self.place}"

    def connect(self) -> socket.socket:
        """Connect."""
        if isinstance(self.place, int):
            sock = socket.create_connection((HOST, self.place), LIMIT)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(LIMIT)
            sock.connect(self.place)
        return sock


# The server, in a process of its own: the first byte of a connection says what it does.


def receive(sock: socket.socket, room: memoryview) -> None:
    """Fill the buffer."""
    while room:
        got = sock.recv_into(room)
        if not got:
            raise EOFError
        room = room[got:]


def serve_one(sock: socket.socket) -> None:
    """Serve one connection."""
    with sock, contextlib.suppress(EOFError, ConnectionError):
        if not (command := sock.recv(1)):
            return
        if command == b"e":
            room = memoryview(bytearray(REQUEST))
            while True:
                receive(sock, room)
                sock.sendall(room)
        room = memoryview(bytearray(CHUNK))
        while True:  # a transfer is announced by its number of chunks
            head = bytearray(8)
            receive(sock, memoryview(head))
            for _ in range(int.from_bytes(head)):
                if command == b"u":
                    receive(sock, room)
                else:
                    sock.sendall(room)
            sock.sendall(b"k")


def serve(place: str) -> None:
    """Serve for ever, with a thread for each connection."""
    if place.isdecimal():
        listener = socket.create_server((HOST, int(place)), backlog=1024)
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(place)
        listener.listen(1024)
    while True:
        sock, _ = listener.accept()
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve_one, args=(sock,), daemon=True).start()


# The contenders


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[int]:
    """Run a process meanwhile; lend its id."""
    with subprocess.Popen(command) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


def wait_until_served(address: Address) -> None:
    """Wait until somebody listens."""
    end = time.monotonic() + LIMIT
    while True:
        try:
            address.connect().close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server((HOST, 0)) as sock:
        return int(sock.getsockname()[1])


class Contender(NamedTuple):
    """Where its clients connect, and its process."""

    address: Address
    pid: int | None

    def processes(self) -> list[int]:
        """Return its process and its children's."""
        found = [] if self.pid is None else [self.pid]
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
                found.extend(map(int, children.split()))
        return found

    def cpu(self) -> float:
        """Return the seconds of CPU that its living threads have used."""
        total = 0
        for pid in self.processes():
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        return total / 1e9

    def memory(self) -> float:
        """Return the MiB that it uses, shared pages counted in parts."""
        total = 0
        for pid in self.processes():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            total += int(rollup.partition("\nPss:")[2].split()[0])
        return total / 1024


DIRECT: Final = "no relay"
OURS: Final = "hvsock"
SOCAT: Final = "socat"
LARGE: Final = "socat -b131072"


def start(stack: contextlib.ExitStack, kind: str, directory: str) -> dict[str, Contender]:
    """Start a server and every contender for a pair of kinds, ``tcp-unix`` or another."""
    source, _, target = kind.partition("-")
    paths = iter(range(100))

    def new(what: str) -> Address:
        return Address(free_port() if what == "tcp" else f"{directory}/{kind}-{next(paths)}")

    server = new(target)
    stack.enter_context(running([sys.executable, __file__, "--serve", str(server.place)]))
    wait_until_served(server)
    contenders = {DIRECT: Contender(server, None)}
    for name, options in ((OURS, []), (SOCAT, []), (LARGE, ["-b131072"])):
        address = new(source)
        command = (
            [sys.executable, "-c", RELAY, address.uri, server.uri]
            if name == OURS
            else ["socat", *options, address.socat(listens=True), server.socat(listens=False)]
        )
        contenders[name] = Contender(address, stack.enter_context(running(command)))
        wait_until_served(address)
    return contenders


# The measures: each returns numbers by what they are.


def transfer(contender: Contender, effort: Effort, command: bytes) -> dict[str, float]:
    """Move the volume in one direction over one connection."""
    chunks = effort.volume // CHUNK
    room = memoryview(bytearray(CHUNK))

    def move(sock: socket.socket, count: int) -> None:
        sock.sendall(count.to_bytes(8))
        for _ in range(count):
            if command == b"u":
                sock.sendall(room)
            else:
                receive(sock, room)
        receive(sock, memoryview(bytearray(1)))

    with contender.address.connect() as sock:
        sock.sendall(command)
        move(sock, 16)
        cpu, began = contender.cpu(), time.perf_counter()
        move(sock, chunks)
        seconds, used = time.perf_counter() - began, contender.cpu() - cpu
    volume = chunks * CHUNK
    numbers = {"MiB/s": volume / (1 << 20) / seconds}
    return numbers if contender.pid is None else numbers | {"CPU s/GiB": used / (volume / (1 << 30))}


def upload(contender: Contender, effort: Effort) -> dict[str, float]:
    """From the client to the server."""
    return transfer(contender, effort, b"u")


def download(contender: Contender, effort: Effort) -> dict[str, float]:
    """From the server to the client."""
    return transfer(contender, effort, b"d")


def round_trip(contender: Contender, effort: Effort) -> dict[str, float]:
    """Send a request and wait for a reply as long."""
    request, room = b"\xaa" * REQUEST, memoryview(bytearray(REQUEST))
    samples = []
    with contender.address.connect() as sock:
        sock.sendall(b"e")
        for _ in range(effort.trips):
            began = time.perf_counter_ns()
            sock.sendall(request)
            receive(sock, room)
            samples.append(time.perf_counter_ns() - began)
    return {"p50 us": statistics.median(samples) / 1e3}


def concurrent(contender: Contender, effort: Effort) -> dict[str, float]:
    """Open many connections, and have round trips on each while all are open."""
    request, room = b"\xaa" * REQUEST, memoryview(bytearray(REQUEST))
    with contextlib.ExitStack() as stack:
        began = time.perf_counter()
        socks = [stack.enter_context(contender.address.connect()) for _ in range(effort.connections)]
        for sock in socks:
            sock.sendall(b"e" + request)
        for sock in socks:
            receive(sock, room)
        opened = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(5):
            for sock in socks:
                sock.sendall(request)
            for sock in socks:
                receive(sock, room)
        trips = 5 * len(socks) / (time.perf_counter() - began)
        numbers = {"open ms": opened * 1e3, "replies/s": trips}
        if contender.pid is not None:
            numbers["MiB"] = contender.memory()
    settle(contender)
    return numbers


def settle(contender: Contender) -> None:
    """Wait until the processes of the last round's connections have ended."""
    end = time.monotonic() + LIMIT
    while len(contender.processes()) > 1 and time.monotonic() < end:
        time.sleep(0.05)


MEASURES: Final[dict[str, Callable[[Contender, Effort], dict[str, float]]]] = {
    "upload": upload,
    "download": download,
    "round trip": round_trip,
    "concurrent": concurrent,
}
#: What the relay is to be compared to socat: the number, its limit, and whether more is better.
BARS: Final = {
    "MiB/s": (1.0, True),
    "CPU s/GiB": (1.0, False),
    "added p50 us": (1.2, False),
}


def measure(contenders: dict[str, Contender], name: str, effort: Effort) -> dict[str, dict[str, list[float]]]:
    """Return the rounds of each number by contender."""
    found: dict[str, dict[str, list[float]]] = {}
    names = list(contenders)
    for turn in range(effort.rounds):
        now: dict[str, dict[str, float]] = {}
        for step in range(len(names)):
            who = names[(turn + step) % len(names)]
            now[who] = MEASURES[name](contenders[who], effort)
        for who, numbers in now.items():
            if "p50 us" in numbers and who != DIRECT:
                numbers["added p50 us"] = numbers["p50 us"] - now[DIRECT]["p50 us"]
            for what, value in numbers.items():
                found.setdefault(what, {}).setdefault(who, []).append(value)
    return found


def show(case: str, found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Print the numbers of a case, and return them for the JSON."""
    rows: dict[str, Any] = {}
    for what, rounds in found.items():
        medians = {who: statistics.median(values) for who, values in rounds.items()}
        ratios = {
            other: statistics.median(a / b for a, b in zip(rounds[OURS], rounds[other], strict=True))
            for other in (SOCAT, LARGE)
        }
        line = "  ".join(f"{who} {number(value) if value >= 10 else f'{value:.3f}'}" for who, value in medians.items())
        text = f"{case:24} {what:13} {line}  | {OURS}/{SOCAT} {ratios[SOCAT]:.2f}, /{LARGE} {ratios[LARGE]:.2f}"
        if what in BARS:
            limit, more = BARS[what]
            kept = ratios[SOCAT] >= limit if more else ratios[SOCAT] <= limit
            text += f"  bar {'>=' if more else '<='} {limit:.1f}: {'reached' if kept else 'NOT reached'}"
        print(text, flush=True)
        rows[what] = {"medians": medians, "ratios": ratios, "rounds": rounds}
    return rows


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, to see that it runs")
    parser.add_argument("--only", metavar="NAME", choices=MEASURES, help=f"one measure: {', '.join(MEASURES)}")
    parser.add_argument("--pair", metavar="A-B", choices=("tcp-unix", "unix-tcp", "tcp-tcp", "unix-unix"))
    parser.add_argument("--json", metavar="FILE", help="write the numbers of every round")
    parser.add_argument("--serve", metavar="PLACE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
    if sys.platform != "linux" or shutil.which("socat") is None:
        parser.error("this needs Linux and socat: apt-get install socat")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    effort = QUICK if options.quick else FULL
    report: dict[str, Any] = {"machine": machine(), "effort": effort._asdict(), "cases": {}}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    with tempfile.TemporaryDirectory(prefix="hvsock-bench-") as directory:
        for pair in [options.pair] if options.pair else ["tcp-unix", "unix-tcp"]:
            with contextlib.ExitStack() as stack:
                contenders = start(stack, pair, directory)
                for name in MEASURES:
                    if options.only in (None, name):
                        found = measure(contenders, name, effort)
                        report["cases"][f"{pair} {name}"] = show(f"{pair} {name}", found)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
