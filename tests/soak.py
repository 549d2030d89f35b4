"""The soak: connections that come and go, on both faces, with every message checked.

What happens on a connection follows from its name, which its client sends first. So both ends know each message that is
to come and at which place, and one that is lost, doubled, altered or out of order is noticed by its content. A call
that times out or is cancelled is made again, and must go on where it was; an end that breaks off, or is killed, must
leave the other one with an error behind messages that are all right.

Servers and clients, in threads and on asyncio, are processes of their own. When no connection is left, at the end of
each round, they say what they hold: neither descriptors nor memory may have grown.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import json
import mmap
import os
import random
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import utils
from utils import LIMIT, MIB, TICK, Child, Task

import hvsock
from hvsock import aio

T = TypeVar("T")

FACES = ("threads", "asyncio")
CLIENT, SERVER = ENDS = ("client", "server")
#: What all messages are cut from.
STOCK = memoryview(utils.random_bytes(2 * MIB))
#: A call that has so long is cancelled now and then, and goes on at once.
INSTANT = TICK / 50
#: Connections at work may take longer than single calls.
PATIENCE = 4 * LIMIT


# A connection


class Plan:
    """What is to happen on a connection, and what one of its ends has seen of it."""

    def __init__(self, name: str, end: str) -> None:
        self.name = name
        self.end = end
        self.seen: Counter[str] = Counter()
        dice = random.Random(name)
        self.exchanges = dice.random() < 0.3  # request and reply, else both directions at once
        self.size = dice.randrange(1, 30)  # messages each way
        self.timeout = dice.choice((None, LIMIT, INSTANT))
        breaks_off = dice.choice((None, None, *ENDS))
        self.breaks_off_at = dice.randrange(self.size) if breaks_off == end else None
        self.may_break = breaks_off is not None or name.startswith("mortal")

    def messages(self, sender: str) -> Iterator[memoryview]:
        """What this end of the connection sends: 1 B to 1 MiB, as many small ones as large ones."""
        dice = random.Random(f"{self.name} {sender}")
        for _ in range(self.size):
            size = round(2 ** dice.uniform(0, 20))
            start = dice.randrange(len(STOCK) - size)
            yield STOCK[start : start + size]

    def to_receive(self) -> Iterator[tuple[int, memoryview]]:
        return enumerate(self.messages(CLIENT if self.end == SERVER else SERVER))

    def check(self, number: int, message: bytes, expected: memoryview) -> bool:
        """Check a message; return whether it is time to break off."""
        if message != expected:
            raise AssertionError(
                f"{self.end} of {self.name!r}: message {number} of {self.size} should have {len(expected)} bytes, "
                f"{bytes(expected[:16])!r}..., and has {len(message)}, {message[:16]!r}..."
            )
        self.seen["messages"] += 1
        self.seen["bytes"] += len(message)
        return number == self.breaks_off_at

    def judge(self, errors: list[BaseException | None]) -> None:
        """Raise what is no consequence of an end that broke off."""
        for error in filter(None, errors):
            if not (self.may_break and isinstance(error, (OSError, EOFError))):
                error.add_note(f"{self.end} of {self.name!r}")
                raise error
        self.seen["broken off" if any(errors) else "connections"] += 1


class Tally:
    """What all connections of a process have seen."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, plan: Plan) -> None:
        with self._lock:
            self.seen += plan.seen


# Its ends on blocking sockets


def patiently(plan: Plan, call: Callable[..., T], *args: Any) -> T:
    while True:
        try:
            return call(*args)
        except TimeoutError:
            plan.seen["gone on with"] += 1


def send_all(sock: hvsock.HyperVSocket, plan: Plan) -> None:
    for message in plan.messages(plan.end):
        patiently(plan, sock.send_message, message[:7], message[7:])
    sock.shutdown(socket.SHUT_WR)


def receive_all(sock: hvsock.HyperVSocket, plan: Plan) -> None:
    for number, expected in plan.to_receive():
        if plan.check(number, patiently(plan, sock.recv_message), expected):
            sock.close()
    expect_end(sock, plan)


def expect_end(sock: hvsock.HyperVSocket, plan: Plan) -> None:
    try:
        message = patiently(plan, sock.recv_message)
    except EOFError as exc:
        if type(exc) is EOFError:
            return
        raise
    raise AssertionError(f"one message too many, of {len(message)} bytes")


def exchange_all(sock: hvsock.HyperVSocket, plan: Plan) -> None:
    for (number, expected), message in zip(plan.to_receive(), plan.messages(plan.end), strict=True):
        if plan.end == CLIENT:
            done = plan.check(number, patiently(plan, sock.exchange, message), expected)
        else:
            done = plan.check(number, patiently(plan, sock.recv_message), expected)
            patiently(plan, sock.send_message, message)
        if done:
            sock.close()
    sock.shutdown(socket.SHUT_WR)
    expect_end(sock, plan)


def talk(sock: hvsock.HyperVSocket, plan: Plan) -> None:
    """Be an end of a connection; one thread receives, and if there are no exchanges, another sends."""
    sock.settimeout(plan.timeout)
    sending = None if plan.exchanges else Task(send_all, sock, plan)
    error: BaseException | None = None
    try:
        (exchange_all if sending is None else receive_all)(sock, plan)
    except BaseException as exc:
        error = exc
        sock.close()
    plan.judge([error, sending.error(PATIENCE) if sending else None])


# Its ends on asyncio


async def patiently_aio(plan: Plan, call: Callable[..., Awaitable[T]], *args: Any) -> T:
    while True:
        try:
            async with asyncio.timeout(plan.timeout):
                return await call(*args)
        except TimeoutError:
            plan.seen["gone on with"] += 1


async def send_all_aio(stream: aio.MessageStream, plan: Plan) -> None:
    for message in plan.messages(plan.end):
        await patiently_aio(plan, stream.send, message[:7], message[7:])
    await stream.send_eof()


async def receive_all_aio(stream: aio.MessageStream, plan: Plan) -> None:
    for number, expected in plan.to_receive():
        if plan.check(number, await patiently_aio(plan, stream.recv), expected):
            raise EOFError("enough")
    await expect_end_aio(stream, plan)


async def expect_end_aio(stream: aio.MessageStream, plan: Plan) -> None:
    try:
        message = await patiently_aio(plan, stream.recv)
    except EOFError as exc:
        if type(exc) is EOFError:
            return
        raise
    raise AssertionError(f"one message too many, of {len(message)} bytes")


async def exchange_all_aio(stream: aio.MessageStream, plan: Plan) -> None:
    for (number, expected), message in zip(plan.to_receive(), plan.messages(plan.end), strict=True):
        if plan.end == CLIENT:
            done = plan.check(number, await patiently_aio(plan, stream.exchange, message), expected)
        else:
            done = plan.check(number, await patiently_aio(plan, stream.recv), expected)
            await patiently_aio(plan, stream.send, message)
        if done:
            raise EOFError("enough")
    await stream.send_eof()
    await expect_end_aio(stream, plan)


async def talk_aio(stream: aio.MessageStream, plan: Plan) -> None:
    """Be an end of a connection; who breaks off is cancelled, in the midst of sending too."""
    calls = [exchange_all_aio] if plan.exchanges else [receive_all_aio, send_all_aio]
    tasks = [asyncio.create_task(call(stream, plan)) for call in calls]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    plan.judge([None if task.cancelled() else task.exception() for task in tasks])


# The processes


def begin() -> int:
    """Have every error end the process, and allow many descriptors; return the number of those that are open."""
    import resource

    faulthandler.cancel_dump_traceback_later()
    threading.excepthook = lambda args: fail(args.exc_value)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    return utils.open_descriptors()


def fail(error: BaseException | None) -> None:
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


def report(tally: Tally, descriptors: int) -> None:
    """Say what was seen and is held, once no more descriptors are open than at the beginning."""
    deadline = time.monotonic() + PATIENCE
    while utils.open_descriptors() > descriptors and time.monotonic() < deadline:
        time.sleep(TICK)
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * mmap.PAGESIZE
    leaked = max(0, utils.open_descriptors() - descriptors)
    print(json.dumps({"seen": tally.seen, "resident": resident, "leaked": leaked}), flush=True)


def serve_threads(transport: str, port: str) -> None:
    """Serve in threads, and report for each line of standard input."""
    tally = Tally()

    def serve(sock: hvsock.HyperVSocket) -> None:
        with sock:
            try:
                name = sock.recv_message().decode()
            except (EOFError, OSError):
                return  # killed before it has said it
            plan = Plan(name, SERVER)
            talk(sock, plan)
            tally.add(plan)

    def accept(listener: hvsock.HyperVSocket) -> None:
        while True:
            threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    with hvsock.create_server(("loopback", int(port)), transport=transport, backlog=1000) as listener:
        descriptors = begin() + 1  # accept() has one to be woken by
        threading.Thread(target=accept, args=[listener], daemon=True).start()
        print("ready", flush=True)
        for _ in sys.stdin:
            report(tally, descriptors)
        os._exit(0)


async def serve_asyncio(transport: str, port: str) -> None:
    """The same on asyncio."""
    tally = Tally()

    async def serve(stream: aio.MessageStream) -> None:
        try:
            name = (await stream.recv()).decode()
        except (EOFError, OSError):
            return
        plan = Plan(name, SERVER)
        await talk_aio(stream, plan)
        tally.add(plan)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: fail(context.get("exception") or RuntimeError(context["message"])))
    async with await aio.serve_messages(serve, ("loopback", int(port)), transport=transport, backlog=1000):
        descriptors = begin()
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            await asyncio.to_thread(report, tally, descriptors)


def connect_threads(transport: str, name: str, workers: str, *ports: str) -> None:
    """For each line of standard input, connect again and again for so many seconds, and report."""
    tally = Tally()

    def work(worker: int, deadline: float) -> None:
        for plan, port in connections(f"{name} {worker}", ports, deadline):
            address = "loopback", port
            with hvsock.create_connection(address, timeout=LIMIT, transport=transport, retry_for=LIMIT) as sock:
                sock.send_message(plan.name.encode())
                talk(sock, plan)
            tally.add(plan)

    descriptors = begin()
    print("ready", flush=True)
    for line in sys.stdin:
        deadline = time.monotonic() + float(line)
        tasks = [Task(work, worker, deadline) for worker in range(int(workers))]
        for task in tasks:
            task.result(float(line) + 2 * PATIENCE)
        report(tally, descriptors)


async def connect_asyncio(transport: str, name: str, workers: str, *ports: str) -> None:
    """The same on asyncio."""
    tally = Tally()

    async def work(worker: int, deadline: float) -> None:
        for plan, port in connections(f"{name} {worker}", ports, deadline):
            stream = await aio.connect_messages(("loopback", port), timeout=LIMIT, transport=transport, retry_for=LIMIT)
            async with stream:
                await stream.send(plan.name.encode())
                await talk_aio(stream, plan)
            tally.add(plan)

    descriptors = begin()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        deadline = time.monotonic() + float(line)
        async with asyncio.TaskGroup() as group:
            for worker in range(int(workers)):
                group.create_task(work(worker, deadline))
        await asyncio.to_thread(report, tally, descriptors)


def connections(name: str, ports: tuple[str, ...], deadline: float) -> Iterator[tuple[Plan, int]]:
    """Plan one connection after another until it is late."""
    dice = random.Random()
    while time.monotonic() < deadline:
        yield Plan(f"{name} {dice.getrandbits(64):016x}", CLIENT), int(dice.choice(ports))


# The whole


SERVERS = dict(zip(FACES, (serve_threads, serve_asyncio), strict=True))
CLIENTS = dict(zip(FACES, (connect_threads, connect_asyncio), strict=True))


class Soak:
    """All processes, for a number of rounds."""

    def __init__(self, transport: str, workers: int, say: Callable[[str], None]) -> None:
        self._transport = transport
        self._workers = max(1, -(-workers // (len(FACES) + 1)))  # of a process: two that last, and one to be killed
        self._say = say
        self._stack = contextlib.ExitStack()
        self._ports = {face: hvsock.port_from_service_id(utils.new_service()) for face in FACES}
        self.seen: Counter[str] = Counter()
        self.resident: dict[str, list[int]] = {}

    def run(self, rounds: int, seconds: float) -> None:
        with self._stack:
            servers = {f"server {face}": self._start(self._server(face)) for face in FACES}
            clients = {f"client {face}": self._start(self._client(face, "lasting")) for face in FACES}
            try:
                for number in range(rounds):
                    self._run_round(servers, clients, seconds)
                    self._say(f"round {number + 1} of {rounds}: {self}")
                for child in (*clients.values(), *servers.values()):
                    child.finish()
            except AssertionError as error:  # of one, and maybe for what another one did
                for name, child in {**servers, **clients}.items():
                    error.add_note(f"{name}: {child.errors()}")
                raise

    def _run_round(self, servers: dict[str, Child], clients: dict[str, Child], seconds: float) -> None:
        for client in clients.values():
            client.tell(str(seconds))
        kills = self._kill_until(time.monotonic() + seconds)
        reports = {name: self._ask(client, seconds) for name, client in clients.items()}
        for server in servers.values():
            server.tell("report")
        reports |= {name: self._ask(server, 0) for name, server in servers.items()}
        self._take(reports, kills)

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {sizes[-1] / MIB:.1f}" for name, sizes in self.resident.items())
        return f"{', '.join(f'{value:,} {name}' for name, value in self.seen.items())}; MiB: {sizes}"

    def _server(self, face: str) -> Child:
        return Child(SERVERS[face], self._transport, self._ports[face])

    def _client(self, face: str, name: str) -> Child:
        return Child(CLIENTS[face], self._transport, name, self._workers, *self._ports.values())

    def _start(self, child: Child) -> Child:
        self._stack.enter_context(child)
        assert child.line() == "ready"
        return child

    def _kill_until(self, deadline: float) -> int:
        """Keep clients running, and kill them."""
        kills = 0
        while time.monotonic() < deadline:
            with self._client(random.choice(FACES), "mortal") as client:
                assert client.line() == "ready"
                client.tell("1e6")  # seconds, but at the end of the block it is killed
                time.sleep(random.uniform(0, 10 * TICK))
            kills += 1
        return kills

    def _ask(self, child: Child, seconds: float) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(child.line(seconds + 3 * PATIENCE))
        return report

    def _take(self, reports: dict[str, dict[str, Any]], kills: int) -> None:
        killed = self.seen["killed"] + kills
        self.seen = sum((Counter(report["seen"]) for report in reports.values()), Counter())
        self.seen["killed"] = killed
        assert {name: report["leaked"] for name, report in reports.items()} == dict.fromkeys(reports, 0)
        for name, report in reports.items():
            self.resident.setdefault(name, []).append(report["resident"])

    def growth(self) -> dict[str, int]:
        """Return by how many bytes each process is larger at the least in the second half than at the most before."""
        return {
            name: min(sizes[len(sizes) // 2 :]) - max(sizes[: len(sizes) // 2]) for name, sizes in self.resident.items()
        }
