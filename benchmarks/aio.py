"""Measure hvsock's streams of messages beside asyncio's streams on this machine: see README.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import hvsock
from hvsock import aio

PORTS: Final = {"streams": 5001, "hvsock": 5002}
CONNECTIONS: Final = 200
DEPTH: Final = 16  # messages under way on a connection
IDLE: Final = 1000
SIZE: Final = 64
BARS: Final = {
    "round trip": "at most 0.60, aim 0.45",
    "in one loop": "no bar",
    "pipelined": "at least 1.30",
    "idle memory": "at most 1.00",
}


class Stream(Protocol):
    """What both contenders can do."""

    async def send(self, message: bytes, /) -> None:
        """Send a message."""

    async def recv(self) -> bytes:
        """Receive a message."""

    async def exchange(self, message: bytes, /) -> bytes:
        """Send a message and receive one."""

    async def aclose(self) -> None:
        """Close."""


class Streams:
    """The same messages on asyncio's StreamReader and StreamWriter, as one would write them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, message: bytes) -> None:
        """Send a message; the length and the content in one write."""
        self.writer.write(len(message).to_bytes(4) + message)
        await self.writer.drain()

    async def recv(self) -> bytes:
        """Receive a message."""
        size = int.from_bytes(await self.reader.readexactly(4))
        return await self.reader.readexactly(size)

    async def exchange(self, message: bytes) -> bytes:
        """Send a message and receive one."""
        await self.send(message)
        return await self.recv()

    async def aclose(self) -> None:
        """Close."""
        self.writer.close()
        await self.writer.wait_closed()


def family_address(transport: str) -> tuple[int, Any]:
    """Return the family of a transport, and an address in it for the standard library's sockets."""
    if transport == "local":
        return socket.AF_UNIX, os.path.join(os.environ["HVSOCK_LOCAL_DIR"], "streams")
    return socket.AF_VSOCK, (1, PORTS["streams"])


async def connect_streams(transport: str) -> Streams:
    """Connect a socket of the standard library."""
    family, address = family_address(transport)
    sock = socket.socket(family)
    sock.connect(address)
    return Streams(*await asyncio.open_connection(sock=sock))


async def connect_hvsock(transport: str) -> Stream:
    """Connect a MessageStream."""
    return await aio.connect_messages(("loopback", PORTS["hvsock"]), transport=transport)


CONTENDERS: Final[dict[str, Callable[[str], Awaitable[Stream]]]] = {
    "streams": connect_streams,
    "hvsock": connect_hvsock,
}


async def echo(stream: Stream) -> None:
    """Send every message back."""
    with contextlib.suppress(EOFError):
        while True:
            await stream.send(await stream.recv())


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def serve(name: str, transport: str) -> None:
    """Be the server of a contender; answer each line on standard input with the resident memory, until it ends."""
    if name == "hvsock":
        server: Any = await aio.serve_messages(echo, ("loopback", PORTS[name]), transport=transport)
    else:
        family, address = family_address(transport)
        sock = socket.socket(family)
        sock.bind(address)

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stream = Streams(reader, writer)
            await echo(stream)
            await stream.aclose()

        server = await asyncio.start_server(talk, sock=sock)
    print("ready", flush=True)
    async with server:
        while await asyncio.to_thread(sys.stdin.readline):
            print(resident(), flush=True)


class Server:
    """The process of a contender's server."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--serve", name, "--transport", options.transport, "--loop", options.loop]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the server has ended")
        return line

    async def resident(self) -> int:
        """Ask for its resident memory."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(await asyncio.to_thread(self._line))

    def end(self) -> None:
        """End it."""
        self.process.communicate()


class Work(NamedTuple):
    """How much is done."""

    rounds: int
    trips: int  # in a round
    bursts: int  # of DEPTH messages on each connection in a round


FULL: Final = Work(rounds=25, trips=2000, bursts=10)
QUICK: Final = Work(rounds=5, trips=300, bursts=2)


@contextlib.asynccontextmanager
async def connected(name: str, transport: str, count: int) -> AsyncIterator[list[Stream]]:
    """Lend connections to a contender's server."""
    streams = [await CONTENDERS[name](transport) for _ in range(count)]
    try:
        yield streams
    finally:
        for stream in streams:
            await stream.aclose()


async def round_trip(stream: Stream, work: Work) -> float:
    """Return the microseconds of an exchange."""
    message = bytes(SIZE)
    start = time.perf_counter()
    for _ in range(work.trips):
        await stream.exchange(message)
    return (time.perf_counter() - start) / work.trips * 1e6


@contextlib.asynccontextmanager
async def one_loop() -> AsyncIterator[dict[str, Stream]]:
    """Lend a connection of each contender to an echo in this event loop: no other process has to be scheduled."""
    ends: dict[str, list[Stream]] = {"streams": [], "hvsock": []}
    for sock in socket.socketpair():
        ends["streams"].append(Streams(*await asyncio.open_connection(sock=sock)))
    for sock in socket.socketpair():
        ends["hvsock"].append(aio.MessageStream(hvsock.HyperVSocket(fileno=sock.detach())))
    async with asyncio.TaskGroup() as group:
        for _, far in ends.values():
            group.create_task(echo(far))
        yield {name: near for name, (near, _) in ends.items()}
        for near, _ in ends.values():
            await near.aclose()
    for _, far in ends.values():
        await far.aclose()


async def pipeline(stream: Stream, work: Work) -> None:
    """Keep DEPTH messages under way."""
    message = bytes(SIZE)
    for _ in range(work.bursts):
        for _ in range(DEPTH):
            await stream.send(message)
        for _ in range(DEPTH):
            await stream.recv()


async def pipelined(streams: list[Stream], work: Work) -> float:
    """Return the messages a second that came back on all connections."""
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for stream in streams:
            group.create_task(pipeline(stream, work))
    return len(streams) * work.bursts * DEPTH / (time.perf_counter() - start)


def show(measure: str, unit: str, rounds: list[dict[str, float]]) -> None:
    """Print the medians, and the median of the ratios."""
    medians = {name: statistics.median(values[name] for values in rounds) for name in CONTENDERS}
    ratio = statistics.median(values["hvsock"] / values["streams"] for values in rounds)
    numbers = "  ".join(f"{name} {value:,.1f}" for name, value in medians.items())
    print(f"{measure:<12} {unit:<15} {numbers}  ratio {ratio:.2f} ({BARS[measure]})", flush=True)


async def take_turns(work: Work, measured: Callable[[str], Awaitable[float]]) -> list[dict[str, float]]:
    """Measure the contenders in turn, in an order that changes from round to round; the first round warms up."""
    rounds = []
    for k in range(work.rounds + 1):
        values = {}
        for name in list(CONTENDERS)[:: 1 if k % 2 else -1]:
            values[name] = await measured(name)
        rounds.append(values)
    return rounds[1:]


async def measure(options: argparse.Namespace, servers: dict[str, Server]) -> None:
    """Run all measures."""
    work = QUICK if options.quick else FULL
    transport = options.transport
    async with contextlib.AsyncExitStack() as stack:
        one = {name: (await stack.enter_async_context(connected(name, transport, 1)))[0] for name in CONTENDERS}
        show("round trip", "us", await take_turns(work, lambda name: round_trip(one[name], work)))
    async with one_loop() as one:
        show("in one loop", "us", await take_turns(work, lambda name: round_trip(one[name], work)))
    async with contextlib.AsyncExitStack() as stack:
        many = {name: await stack.enter_async_context(connected(name, transport, CONNECTIONS)) for name in CONTENDERS}
        show("pipelined", "messages/s", await take_turns(work, lambda name: pipelined(many[name], work)))
    memory = {}
    for name, server in servers.items():
        before = await server.resident()
        async with connected(name, options.transport, IDLE) as streams:
            for stream in streams:  # each has been used once
                await stream.exchange(bytes(SIZE))
            memory[name] = (await server.resident() - before) / IDLE
    show("idle memory", "bytes each", [memory])


def run(coroutine: Any, loop: str) -> None:
    """Run a coroutine in the kind of event loop that was asked for."""
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(coroutine)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, to see that it runs")
    parser.add_argument("--transport", choices=("local", "vsock"), default="local", help="vsock: only in a guest")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.serve:
        run(serve(options.serve, options.transport), options.loop)
        return
    print(
        f"hvsock {hvsock.__version__}, Python {platform.python_version()}, {options.loop}, {options.transport}", end=""
    )
    print(f", load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="hvsock-bench-") as directory:
        os.environ["HVSOCK_LOCAL_DIR"] = directory
        servers = {name: Server(name, options) for name in CONTENDERS}
        try:
            run(measure(options, servers), options.loop)
        finally:
            for server in servers.values():
                server.end()


if __name__ == "__main__":
    main()
