"""Measure hvsock.relay beside haproxy, nginx and socat, on Linux: see README.md.

The contenders relay from the same kind of socket to the same server and take turns within each round.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import resource
import selectors
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
TICKS: Final = os.sysconf("SC_CLK_TCK")
CPUCLOCK_SCHED: Final = 2
PROGRAMS: Final = ("haproxy", "nginx", "socat", "redis-server", "redis-benchmark", "wrk")
STREAM_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

RELAY: Final = """
import sys
from hvsock.relay import Relay
Relay(sys.argv[1], sys.argv[2], max_connections=int(sys.argv[3])).serve_forever()
"""

HAPROXY: Final = """
global
    maxconn {most}
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen relay
    maxconn {most}
    bind {source}
    server target {target}
"""

NGINX: Final = """
daemon off;
{head}
pid {directory}/{name}.pid;
error_log stderr crit;
worker_processes auto;
worker_rlimit_nofile {files};
events {{ worker_connections {files}; }}
{body}
"""

NGINX_STREAM: Final = """
stream {{
    server {{ listen {source} backlog=4096; proxy_pass {target}; proxy_timeout 1h; }}
}}
"""

NGINX_HTTP: Final = """
http {{
    access_log off;
    keepalive_requests 1000000000;
    sendfile on;
    {temporary}
    server {{ listen {listen} backlog=4096; root {directory}/files; }}
}}
"""


class Effort(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: int  # of a round of HTTP
    requests: int  # of a round of Redis
    volume: int  # bytes of a round of a stream
    idle: int  # connections


FULL: Final = Effort(rounds=7, seconds=2, requests=20_000, volume=512 << 20, idle=10_000)
QUICK: Final = Effort(rounds=1, seconds=1, requests=2_000, volume=64 << 20, idle=1_000)


class Address(NamedTuple):
    """An address on this machine: a TCP port or a path."""

    place: int | str

    @property
    def uri(self) -> str:
        """What the relay calls it."""
        return f"tcp://{HOST}:{self.place}" if isinstance(self.place, int) else f"unix://{self.place}"

    @property
    def nginx(self) -> str:
        """What nginx calls it."""
        return f"{HOST}:{self.place}" if isinstance(self.place, int) else f"unix:{self.place}"

    @property
    def haproxy(self) -> str:
        """What haproxy calls it."""
        return f"{HOST}:{self.place}" if isinstance(self.place, int) else f"unix@{self.place}"

    def socat(self, *, listens: bool) -> str:
        """Return what socat calls it."""
        if isinstance(self.place, int):
            options = f"{self.place},bind={HOST},reuseaddr,backlog=4096,fork,nodelay"
            return f"TCP4-LISTEN:{options}" if listens else f"TCP4:{HOST}:{self.place},nodelay"
        return f"UNIX-LISTEN:{self.place},backlog=4096,fork" if listens else f"UNIX-CONNECT:{self.place}"

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


# The servers that are not other people's, each in a process of its own.


def receive(sock: socket.socket, room: memoryview) -> None:
    """Fill the buffer."""
    while room:
        got = sock.recv_into(room)
        if not got:
            raise EOFError
        room = room[got:]


def serve_stream(sock: socket.socket) -> None:
    """Serve one connection, whose first byte says in which direction it transfers."""
    with sock, contextlib.suppress(EOFError, ConnectionError):
        command = sock.recv(1)
        room = memoryview(bytearray(CHUNK))
        while command:  # a transfer is announced by its number of chunks
            head = bytearray(8)
            receive(sock, memoryview(head))
            for _ in range(int.from_bytes(head)):
                if command == b"u":
                    receive(sock, room)
                else:
                    sock.sendall(room)
            sock.sendall(b"k")


def listen(place: str) -> socket.socket:
    """Listen as a server of this file."""
    if place.isdecimal():
        return socket.create_server((HOST, int(place)), backlog=4096)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(4096)
    return listener


def serve_streams(place: str) -> None:
    """Serve for ever, with a thread for each connection."""
    listener = listen(place)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve_stream, args=(sock,), daemon=True).start()


def hold(place: str) -> None:
    """Accept for ever, say a byte to each client, and wait until it ends."""
    listener = listen(place)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is listener:
                    client, _ = listener.accept()
                    client.sendall(b"k")
                    selector.register(client, selectors.EVENT_READ)
                else:
                    selector.unregister(sock)
                    sock.close()


# The contenders


def most_connections() -> int:
    """Return how many connections the limit of descriptors allows a relay."""
    return (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 2


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[int]:
    """Run a process meanwhile; lend its id."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


def wait_until_served(address: Address) -> None:
    """Wait until a connection can be made."""
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
    """Return a port that nothing listens on."""
    with socket.create_server((HOST, 0)) as sock:
        return int(sock.getsockname()[1])


class Contender(NamedTuple):
    """Where its clients connect, and its process."""

    address: Address
    pid: int

    def processes(self) -> list[int]:
        """Return its process and its children's."""
        found = [self.pid]
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
                found.extend(map(int, children.split()))
        return found

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used, threads and children that have ended among them."""
        ended = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[13:15]
        total = sum(map(int, ended)) / TICKS
        for pid in self.processes():
            with contextlib.suppress(OSError):  # it has just ended
                total += time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)
        return total

    def memory(self) -> float:
        """Return the KiB that it uses, shared pages counted in parts."""
        total = 0
        for pid in self.processes():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            total += int(rollup.partition("\nPss:")[2].split()[0])
        return total

    def threads(self) -> int:
        """Return how many threads it has."""
        return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in self.processes())


OURS: Final = "hvsock"
HAPROXY_NAME: Final = "haproxy"
NGINX_NAME: Final = "nginx"
SOCAT: Final = "socat"
OTHERS: Final = (HAPROXY_NAME, NGINX_NAME, SOCAT)


class Bench:
    """The servers and contenders of a pair of kinds, ``tcp-unix`` or another, as far as they were needed."""

    def __init__(self, stack: contextlib.ExitStack, kind: str, directory: str) -> None:
        self._stack = stack
        self._source, _, self._target = kind.partition("-")
        self._directory = directory
        self._numbers = iter(range(1000))
        self._contenders: dict[str, dict[str, Contender]] = {}
        self.taken: set[str] = {OURS, *OTHERS}

    def _new(self, what: str) -> Address:
        return Address(free_port() if what == "tcp" else f"{self._directory}/{next(self._numbers)}")

    def _file(self, text: str) -> str:
        path = Path(self._directory, f"{next(self._numbers)}.conf")
        path.write_text(text, encoding="ascii")
        return str(path)

    def _nginx(self, body: str, head: str = "") -> list[str]:
        user = "user root;" if os.geteuid() == 0 else ""  # whose the directory is
        text = NGINX.format(
            head=f"{user} {head}",
            directory=self._directory,
            name=next(self._numbers),
            files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            body=body,
        )
        return ["nginx", "-e", "stderr", "-p", self._directory, "-c", self._file(text)]

    def _http(self, server: Address) -> list[str]:
        files = Path(self._directory, "files")
        files.mkdir(exist_ok=True)
        for name, size in (("1k", 1 << 10), ("1m", 1 << 20)):
            (files / name).write_bytes(bytes(size))
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {self._directory}/{kind};" for kind in kinds)
        return self._nginx(NGINX_HTTP.format(listen=server.nginx, directory=self._directory, temporary=temporary))

    def _redis(self, server: Address) -> list[str]:
        listens = (
            ["--port", str(server.place), "--bind", HOST]
            if isinstance(server.place, int)
            else ["--port", "0", "--unixsocket", server.place]
        )
        return ["redis-server", *listens, "--save", "", "--appendonly", "no", "--maxclients", "10000"]

    def _server(self, name: str, server: Address) -> list[str]:
        if name == "http":
            return self._http(server)
        if name == "redis":
            return self._redis(server)
        return [sys.executable, __file__, f"--{name}", str(server.place)]

    def _command(self, who: str, source: Address, target: Address) -> list[str]:
        if who == OURS:
            return [sys.executable, "-c", RELAY, source.uri, target.uri, str(most_connections())]
        if who == HAPROXY_NAME:
            text = HAPROXY.format(source=source.haproxy, target=target.haproxy, most=most_connections())
            return ["haproxy", "-q", "-f", self._file(text)]
        if who == NGINX_NAME:
            stream = NGINX_STREAM.format(source=source.nginx, target=target.nginx)
            return self._nginx(stream, f"load_module {STREAM_MODULE};")
        return ["socat", "-lf/dev/null", source.socat(listens=True), target.socat(listens=False)]

    def contenders(self, server: str) -> dict[str, Contender]:
        """Start a server by its name, and every contender in front of it; or return those that run."""
        if server in self._contenders:
            return self._contenders[server]
        target = self._new(self._target)
        self._stack.enter_context(running(self._server(server, target)))
        wait_until_served(target)
        found: dict[str, Contender] = {}
        for who in (OURS, *OTHERS):
            if who in self.taken:
                source = self._new(self._source)
                pid = self._stack.enter_context(running(self._command(who, source, target)))
                wait_until_served(source)
                found[who] = Contender(source, pid)
        self._contenders[server] = found
        return found


# The measures: each returns numbers by what they are.

Numbers = dict[str, float]
Measure = Callable[[Contender, Effort], Numbers]

_WRK: Final = {"us": 1.0, "ms": 1e3, "s": 1e6}


def per_operation(contender: Contender, work: Callable[[], tuple[int, float]]) -> Numbers:
    """Do the work, which returns how many operations it had and the seconds they took."""
    before = contender.cpu()
    count, seconds = work()
    return {"a second": count / seconds, "CPU us": (contender.cpu() - before) / count * 1e6}


def http(path: str, connections: int, *headers: str) -> Measure:
    """Return a measure of HTTP requests."""

    def measure(contender: Contender, effort: Effort) -> Numbers:
        output = ""

        def work() -> tuple[int, float]:
            nonlocal output
            options = ["-t1", f"-c{connections}", f"-d{effort.seconds}s", "--latency", "--timeout", "30s"]
            url = f"http://{HOST}:{contender.address.place}/{path}"
            output = subprocess.run(
                ["wrk", *options, *(part for header in headers for part in ("-H", header)), url],
                check=True,
                capture_output=True,
                text=True,
                timeout=LIMIT,
            ).stdout
            done = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m),", output)
            assert done, output
            return int(done[1]), float(done[2]) * (60.0 if done[3] == "m" else _WRK[done[3]] / 1e6)

        numbers = per_operation(contender, work)
        p99 = re.search(r" 99% +([\d.]+)(us|ms|s)\s", output)
        assert p99, output
        wrong = re.search(r"(?:Non-2xx|Socket errors).*", output)
        assert wrong is None, output
        return numbers | {"p99 us": float(p99[1]) * _WRK[p99[2]]}

    return measure


def redis(clients: int, pipelined: int = 1) -> Measure:
    """Return a measure of Redis' GET."""

    def measure(contender: Contender, effort: Effort) -> Numbers:
        count = effort.requests * pipelined
        row: dict[str, str] = {}

        def work() -> tuple[int, float]:
            nonlocal row
            options = ["-c", str(clients), "-n", str(count), "-P", str(pipelined), "-t", "get", "--csv"]
            output = subprocess.run(
                ["redis-benchmark", "-h", HOST, "-p", str(contender.address.place), *options],
                check=True,
                capture_output=True,
                text=True,
                timeout=LIMIT,
            ).stdout
            row = next(csv.DictReader(output.splitlines()))
            return count, count / float(row["rps"])

        return per_operation(contender, work) | {"p99 us": float(row["p99_latency_ms"]) * 1e3}

    return measure


def stream(command: bytes) -> Measure:
    """Return a measure of one connection that transfers in one direction; operations are MiB."""

    def move(sock: socket.socket, count: int) -> None:
        room = memoryview(bytearray(CHUNK))
        sock.sendall(count.to_bytes(8))
        for _ in range(count):
            if command == b"u":
                sock.sendall(room)
            else:
                receive(sock, room)
        receive(sock, memoryview(bytearray(1)))

    def measure(contender: Contender, effort: Effort) -> Numbers:
        def work() -> tuple[int, float]:
            began = time.perf_counter()
            move(sock, effort.volume // CHUNK)
            return effort.volume >> 20, time.perf_counter() - began

        with contender.address.connect() as sock:
            sock.sendall(command)
            move(sock, 16)
            return per_operation(contender, work)

    return measure


MEASURES: Final[dict[str, tuple[str, Measure]]] = {
    "HTTP 1 KiB, kept": ("http", http("1k", 64)),
    "HTTP 1 KiB, a connection each": ("http", http("1k", 64, "Connection: close")),
    "HTTP 1 MiB": ("http", http("1m", 16)),
    "stream to the target": ("streams", stream(b"u")),
    "stream to the client": ("streams", stream(b"d")),
    "redis, 1 client": ("redis", redis(1)),
    "redis, 50 clients": ("redis", redis(50)),
    "redis, 50 clients, pipelined": ("redis", redis(50, 16)),
}
IDLE: Final = "idle"
#: What the relay's numbers are to be, divided by haproxy's: the limit, and whether more is better.
BARS: Final = {"a second": (1.0, True), "CPU us": (1.1, False), "p99 us": (1.2, False)}
IDLE_BARS: Final = {"KiB each": 4.0, "threads": 6}

Rounds = dict[str, dict[str, list[float]]]


def measure(contenders: dict[str, Contender], what: Measure, effort: Effort) -> Rounds:
    """Return the rounds of each number by contender."""
    found: Rounds = {}
    names = list(contenders)
    for turn in range(effort.rounds):
        for step in range(len(names)):
            who = names[(turn + step) % len(names)]
            for name, value in what(contenders[who], effort).items():
                found.setdefault(name, {}).setdefault(who, []).append(value)
    return found


def show(case: str, found: Rounds) -> dict[str, Any]:
    """Print the numbers of a case, and return them for the JSON."""
    rows: dict[str, Any] = {}
    for what, rounds in found.items():
        medians = {who: statistics.median(values) for who, values in rounds.items()}
        ratios = {
            other: statistics.median(a / b for a, b in zip(rounds[OURS], rounds[other], strict=True))
            for other in rounds
            if other != OURS
        }
        line = "  ".join(f"{who} {number(value) if value >= 10 else f'{value:.2f}'}" for who, value in medians.items())
        text = f"{case:39} {what:9} {line}  | of {', '.join(f'{who} {ratio:.2f}' for who, ratio in ratios.items())}"
        if HAPROXY_NAME in ratios:
            limit, more = BARS[what]
            ratio = ratios[HAPROXY_NAME]
            text += f"  bar {'>=' if more else '<='} {limit}: {reached(ratio >= limit if more else ratio <= limit)}"
        print(text, flush=True)
        rows[what] = {"medians": medians, "ratios": ratios, "rounds": rounds}
    return rows


def reached(kept: bool) -> str:
    """Return what is said of a bar."""
    return "reached" if kept else "NOT reached"


def idle(bench: Bench, case: str, effort: Effort) -> dict[str, Any]:
    """Open connections that stay silent after their first byte, one contender after another; print what each costs."""
    bench.taken -= {SOCAT}  # a process for each
    rows: dict[str, Any] = {}
    for who, contender in bench.contenders("hold").items():
        before = contender.memory()
        count = min(effort.idle, most_connections() - 10)  # some were made before, to see that it listens
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                sock = stack.enter_context(contender.address.connect())
                receive(sock, memoryview(bytearray(1)))
            numbers = {
                "KiB each": (contender.memory() - before) / count,
                "connections": float(count),
                "threads": float(contender.threads()),
            }
        text = "  ".join(f"{what} {value:.2f}" for what, value in numbers.items())
        if who == OURS:
            bars = (f"{what} <= {limit:.0f}: {reached(numbers[what] <= limit)}" for what, limit in IDLE_BARS.items())
            text += f"  bar {', '.join(bars)}"
        print(f"{case:39} {who:9} {text}", flush=True)
        rows[who] = numbers
    return rows


def missing() -> list[str]:
    """Return the programs that this machine lacks."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return lacking if STREAM_MODULE.exists() else [*lacking, STREAM_MODULE.name]


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*MEASURES, IDLE]
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, to see that it runs")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help=f"measures with it in their name: {'; '.join(names)}"
    )
    parser.add_argument("--pair", metavar="A-B", choices=("tcp-tcp", "tcp-unix"), help="one pair: tcp-tcp or tcp-unix")
    parser.add_argument("--rounds", type=int, help="how often each contender has its turn")
    parser.add_argument("--json", metavar="FILE", help="write the numbers of every round")
    for server in ("streams", "hold"):
        parser.add_argument(f"--{server}", metavar="PLACE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.streams:
        serve_streams(options.streams)
    if options.hold:
        hold(options.hold)
    if sys.platform != "linux" or missing():
        parser.error(f"this needs Linux and {', '.join(missing())}: see README.md")
    effort = QUICK if options.quick else FULL
    effort = effort if options.rounds is None else effort._replace(rounds=options.rounds)
    report: dict[str, Any] = {"machine": machine(), "effort": effort._asdict(), "cases": {}}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    cases = report["cases"]
    for pair in [options.pair] if options.pair else ["tcp-tcp", "tcp-unix"]:
        for name in names:
            if options.only not in name:
                continue
            case = f"{pair} {name}"
            with tempfile.TemporaryDirectory(prefix="hvsock-bench-") as directory, contextlib.ExitStack() as stack:
                bench = Bench(stack, pair, directory)
                if name == IDLE:
                    cases[case] = idle(bench, case, effort)
                else:
                    server, what = MEASURES[name]
                    cases[case] = show(case, measure(bench.contenders(server), what, effort))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
