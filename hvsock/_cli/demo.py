"""`hvsock demo`: an echo service and a client of it on this machine, measured."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from socket import SHUT_WR
from typing import Any, TypedDict

import click

import hvsock
from hvsock._cli.echo import echo
from hvsock._cli.info import no_loopback
from hvsock._cli.options import as_json, examples, transport_option
from hvsock._cli.output import Failure, doing, print_json, print_rows
from hvsock._cli.timing import Durations, Times

__all__ = ["command", "demo_client"]

MIB = 1 << 20
CHUNK = 256 << 10
PAYLOAD = 64  # bytes of one round trip
CONNECTIONS = 100
WARM_UP = 100  # round trips that are not counted
BUDGET = 1.0  # seconds that each of the three measurements may take
PATIENCE = 5.0  # seconds after which a single socket operation is given up
START_LIMIT = 60.0  # seconds in which the client has to connect: an emulated machine takes many to start Python
RUN_LIMIT = 20.0  # seconds in which it then has to finish
PORT_TRIES = 5


# --- the choice -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Scene:
    """Where the demo runs: the transport and why, and the VMs that the service binds to and the client dials."""

    transport: str
    reason: str
    serve: str
    dial: str
    guest: uuid.UUID | None  # the client's partition on `local`


def choose_scene(name: str | None) -> Scene:
    """Return the scene for a transport, or for the best one that can serve here.

    Raises:
        Failure: the transport asked for cannot serve here.
    """
    known = {transport.name: transport for transport in hvsock.transports()}
    missing = []
    for candidate, good in (("hyperv", "AF_HYPERV loopback"), ("vsock", "the vsock loopback module is loaded")):
        if name not in (None, candidate):
            continue
        reason = (known[candidate].reason or no_loopback(candidate) or "").rstrip(".")
        if not reason:
            return Scene(candidate, good if name is None else f"asked for; {good}", "loopback", "loopback", None)
        if name is not None:
            raise Failure(f"the demo cannot run on {candidate}: {reason}")
        missing.append(f"{candidate}: {reason}")
    if not known["local"].available:
        raise Failure(f"the demo cannot run on local: {known['local'].reason}", missing)
    return Scene("local", "; ".join(missing) or "asked for", "wildcard", "parent", uuid.uuid4())


@contextlib.contextmanager
def local_host(scene: Scene) -> Iterator[None]:
    """On `local`: play the host during the block, in a new directory unless HVSOCK_LOCAL_DIR names one."""
    if scene.guest is None:
        yield
        return
    before = {name: os.environ.get(name) for name in ("HVSOCK_LOCAL_DIR", "HVSOCK_LOCAL_VM")}
    own = None if before["HVSOCK_LOCAL_DIR"] else tempfile.mkdtemp(prefix="hvsock-", dir=short_directory())
    try:
        os.environ.pop("HVSOCK_LOCAL_VM", None)
        if own:
            os.environ["HVSOCK_LOCAL_DIR"] = own
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if own:
            shutil.rmtree(own, ignore_errors=True)


def short_directory() -> str:
    """Return where the transport has its own directory, since TMPDIR may be too long for the address of a socket."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return runtime if os.access(runtime, os.W_OK) else "/tmp"


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block, so that what the block makes is also cleaned up."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield  # nothing is raised here
        return
    came = False

    def remember(_number: int, _frame: object) -> None:
        nonlocal came
        came = True

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            signal.raise_signal(signal.SIGINT)


# --- the service ------------------------------------------------------------------------------------------------------


class EchoService:
    """Sends back what it receives, one connection at a time, on its own thread until it is closed.

    Listens on a random port, so that two demos do not collide; clients dial `client_address`. `peer` is the last
    client's address, `first_accepted` the time of the first one, `error` what ended the service before it was closed.
    """

    def __init__(self, scene: Scene) -> None:
        self.peer: hvsock.HyperVAddress | None = None
        self.first_accepted = math.inf
        self.error: Exception | None = None
        self._server, self.address = listen(scene)
        self.client_address = hvsock.as_address((scene.dial, self.address.service_id))
        self._server.settimeout(START_LIMIT + RUN_LIMIT)
        self._connection: hvsock.HyperVSocket | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="hvsock demo service", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wake the thread from any blocked call, and wait for it."""
        self._closing = True
        self._server.close()
        if (connection := self._connection) is not None:
            connection.close()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        try:
            while not self._closing:
                connection, self.peer = self._server.accept()
                self._connection = connection
                self.first_accepted = min(self.first_accepted, time.monotonic())
                with connection:
                    connection.settimeout(PATIENCE)
                    echo(connection)
        except Exception as error:
            if not self._closing:
                self.error = error


def listen(scene: Scene) -> tuple[hvsock.HyperVSocket, hvsock.HyperVAddress]:
    """Listen on a random port, and on another one if that is taken."""
    for tries in range(1, PORT_TRIES + 1):
        address = hvsock.as_address((scene.serve, 0x10000 + secrets.randbelow(0x7FFF0000)))
        with doing(f"listen on {address}"):
            try:
                server = hvsock.create_server(address, transport=scene.transport)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or tries == PORT_TRIES:
                    raise
            else:
                return server, address
    raise AssertionError("not reached")


# --- the client -------------------------------------------------------------------------------------------------------


class Job(TypedDict):
    """The arguments of the client process."""

    path: list[str]
    transport: str
    address: str
    count: int
    size: int


class Throughput(TypedDict):
    """How many bytes went there and came back, in how many seconds."""

    bytes: int
    seconds: float
    mib_per_second: float


class Result(TypedDict):
    """What the client process reports."""

    connect: Times
    round_trip: Times
    throughput: Throughput
    verified_bytes: int


def demo_client(argument: str) -> None:
    """Run in the client process: measure, and print the result or the error as JSON."""
    job: Job = json.loads(argument)
    try:
        outcome: dict[str, Any] = {"result": measure(job)}
    except Exception as error:
        failure = Failure.of(error)
        outcome = {"error": {"message": failure.message, "notes": failure.notes, "trace": failure.trace}}
    print(json.dumps(outcome))


def measure(job: Job) -> Result:
    """Connect, ping and stream; every payload is random and is compared with what comes back."""
    pool = secrets.token_bytes(MIB)
    connects, verified = measure_connects(job, pool)
    with dial(job) as connection, doing(f"exchange with {job['address']}"):
        round_trips = measure_round_trips(connection, pool, job["count"])
        verified += round_trips["count"] * PAYLOAD
        throughput = measure_throughput(connection, pool, job["size"])
    verified += throughput["bytes"]
    return {
        "connect": connects,
        "round_trip": round_trips,
        "throughput": throughput,
        "verified_bytes": verified,
    }


def dial(job: Job) -> hvsock.HyperVSocket:
    address = hvsock.HyperVAddress.parse(job["address"])
    with doing(f"connect to {address}"):
        return hvsock.create_connection(address, timeout=PATIENCE, transport=job["transport"])


def measure_connects(job: Job, pool: bytes) -> tuple[Times, int]:
    samples: list[int] = []
    buffer = bytearray(PAYLOAD)
    end = time.monotonic() + BUDGET
    for index in range(1 + CONNECTIONS):  # the first one is not counted
        payload = pool[index * PAYLOAD :][:PAYLOAD]
        start = time.perf_counter_ns()
        connection = dial(job)
        samples.append(time.perf_counter_ns() - start)
        with connection, doing(f"exchange with {job['address']}"):
            connection.sendall(payload)
            receive(connection, buffer)
        check(buffer == payload)
        if time.monotonic() > end and index:
            break
    return Durations(samples[1:]).times(), len(samples) * PAYLOAD


def measure_round_trips(connection: hvsock.HyperVSocket, pool: bytes, count: int) -> Times:
    samples: list[int] = []
    buffer = bytearray(PAYLOAD)
    clock = time.perf_counter_ns
    end = time.monotonic() + BUDGET
    for index in range(WARM_UP + count):
        offset = index * PAYLOAD % len(pool)
        payload = pool[offset : offset + PAYLOAD]
        start = clock()
        connection.sendall(payload)
        receive(connection, buffer)
        samples.append(clock() - start)
        check(buffer == payload)
        if time.monotonic() > end and index > WARM_UP:
            break
    return Durations(samples[WARM_UP:]).times()


def measure_throughput(connection: hvsock.HyperVSocket, pool: bytes, size: int) -> Throughput:
    """Send the pool over and over from one thread, and compare what comes back in this one."""
    sent = 0
    trouble: list[Exception] = []

    def send() -> None:
        nonlocal sent
        view = memoryview(pool)
        end = time.monotonic() + BUDGET
        try:
            while sent < size and time.monotonic() < end:
                offset = sent % len(pool)
                chunk = view[offset : offset + min(CHUNK, size - sent)]
                connection.sendall(chunk)
                sent += len(chunk)
            connection.shutdown(SHUT_WR)
        except Exception as error:
            trouble.append(error)
            connection.close()

    sender = threading.Thread(target=send, name="hvsock demo sender", daemon=True)
    buffer = bytearray(len(pool))
    view = memoryview(buffer)
    received = filled = 0
    start = time.perf_counter()
    sender.start()
    try:
        while n := connection.recv_into(view[filled:]):
            filled += n
            received += n
            if filled == len(pool):
                check(buffer == pool)
                filled = 0
    except Exception:
        if trouble:
            raise trouble[0] from None
        raise
    seconds = time.perf_counter() - start
    sender.join(PATIENCE)
    if trouble:
        raise trouble[0]
    check(received == sent and buffer[:filled] == pool[:filled])
    return {
        "bytes": received,
        "seconds": round(seconds, 6),
        "mib_per_second": round(received / MIB / seconds, 1) if received else 0.0,
    }


def receive(connection: hvsock.HyperVSocket, buffer: bytearray) -> None:
    """Fill the buffer."""
    size = connection.recv_into(buffer)
    while size < len(buffer):
        more = connection.recv_into(memoryview(buffer)[size:])
        if not size or not more:
            raise EOFError("the echo service closed the connection")
        size += more


def check(equal: bool) -> None:
    if not equal:
        raise Failure("what came back is not what was sent")


# --- both -------------------------------------------------------------------------------------------------------------

CLIENT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])["path"]
from hvsock._cli.demo import demo_client
demo_client(sys.argv[1])
"""


def run_client(scene: Scene, service: EchoService, count: int, size: int) -> Result:
    """Run the client in its own process, which has its own GIL, and end that process in any case."""
    job: Job = {
        "path": sys.path,  # the same modules as here, wherever this process has found them
        "transport": scene.transport,
        "address": str(service.client_address),
        "count": count,
        "size": size,
    }
    environment = dict(os.environ)
    if scene.guest is not None:
        environment["HVSOCK_LOCAL_VM"] = str(scene.guest)
    # Files, not pipes, which the client could fill while nothing reads them.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = [sys.executable, "-P", "-c", CLIENT, json.dumps(job)]
        with contextlib.ExitStack() as cleanup:
            with uninterrupted():
                client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
                cleanup.callback(client.wait)
                cleanup.callback(client.kill)
            wait(client, service)
        out.seek(0)
        err.seek(0)
        return read_outcome(out.read().decode(errors="replace"), err.read().decode(errors="replace"), client.returncode)


def wait(client: subprocess.Popen[bytes], service: EchoService) -> None:
    """Wait for the client to end; in short steps, because on Windows Ctrl-C does not interrupt a long wait."""
    start = time.monotonic()
    while True:
        try:
            client.wait(0.05)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if now > service.first_accepted + RUN_LIMIT:
                raise Failure(f"the client did not finish within {RUN_LIMIT:g} s") from None
            if now > start + START_LIMIT and service.first_accepted == math.inf:
                raise Failure(f"the client did not connect within {START_LIMIT:g} s") from None
        else:
            return


def read_outcome(out: str, err: str, code: int) -> Result:
    """Return what the client process has measured, or raise what it has reported."""
    try:
        outcome = json.loads(out)
    except ValueError:
        raise Failure(f"the client ended with exit code {code}", err.splitlines()[-1:], err) from None
    if "error" in outcome:
        error = outcome["error"]
        raise Failure(error["message"], error["notes"], error["trace"])
    result: Result = outcome["result"]
    return result


def run_demo(scene: Scene, count: int, size: int) -> dict[str, Any]:
    """Serve, run the client against it, clean up, and return the report."""
    with local_host(scene), contextlib.ExitStack() as cleanup:
        with uninterrupted():
            service = EchoService(scene)
            cleanup.callback(service.close)
        try:
            result = run_client(scene, service, count, size)
        except Failure as failure:
            if service.error is not None:
                reason = Failure.of(service.error)
                failure.notes += (f"the service ended: {reason.message}", *reason.notes)
            raise
    return {
        "transport": scene.transport,
        "reason": scene.reason,
        "service": str(service.address),
        "client": str(service.client_address),
        "peer": str(service.peer),
        **result,
    }


EXAMPLES = """
  hvsock demo
  hvsock demo --transport local      without a hypervisor
  hvsock demo --json | jq .round_trip
"""


@click.command("demo", epilog=examples(EXAMPLES))
@transport_option("the best one that works here")
@click.option(
    "--count", type=click.IntRange(1, 1_000_000), default=5000, show_default=True, help="Round trips to measure."
)
@click.option("--size", type=click.IntRange(1, 65_536), default=256, show_default=True, help="MiB to stream.")
@as_json
def command(transport: str | None, count: int, size: int, as_json: bool) -> None:
    """Run a service and a client of it, and measure.

    The service runs in this process, on the best transport that works here: AF_HYPERV loopback on Windows, vsock
    loopback on Linux if its module is loaded, else `local`. The client runs in another process and connects as a guest
    would. Every payload is random and is compared with its reply. Each measurement ends after one second, even if
    --count and --size ask for more.
    """
    scene = choose_scene(transport)
    width = len("round trip")
    if not as_json:
        print_rows([("transport", f"{scene.transport} ({scene.reason})")], width=width)
    # No progress display: it would take the GIL from the service while it is being measured.
    report = run_demo(scene, count, size * MIB)
    if as_json:
        print_json(report)
        return
    throughput = report["throughput"]
    streamed = f"{throughput['bytes'] / MIB:,.0f} MiB in {throughput['seconds']:.2f} s"
    rows = [
        ("service", f"{report['service']} in this process"),
        ("client", f"{report['client']} in another process, seen here as {report['peer']}"),
        ("payloads", f"{report['verified_bytes']:,} random bytes came back unchanged"),
        ("connect", describe_times(report["connect"])),
        ("round trip", f"{describe_times(report['round_trip'])} of {PAYLOAD} bytes"),
        ("throughput", f"{throughput['mib_per_second']:,.0f} MiB/s each way at the same time ({streamed})"),
    ]
    print_rows(rows, width=width)


def describe_times(measured: Times) -> str:
    return f"p50 {measured['p50_us']:,.1f} us, p99 {measured['p99_us']:,.1f} us, {measured['count']:,} times"
