"""The `hvsock` command: `demo` and `info`. The first user of the package's public names.

Whatever did not come from this module is escaped before it is printed, so that neither a peer nor a file name can move
the cursor, change colours or forge a line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from socket import SHUT_WR
from typing import TYPE_CHECKING, Any, TypedDict

import click

import hvsock
from hvsock.transports import local, vsock

if TYPE_CHECKING:
    # Imported where it is used: the demo's client needs none of it, and starts faster without.
    from rich.console import Console
    from rich.text import Text

__all__ = ["cli", "demo_client"]

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports

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


class Failure(Exception):
    """An error that is already in words: what is printed after `hvsock: `, and what is printed under it."""

    def __init__(self, message: str, notes: Sequence[str] = (), trace: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.notes = tuple(notes)
        self.trace = trace

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Put any exception into words; the notes of the package's own errors come along."""
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, Failure):
            error.trace = error.trace or trace
            return error
        message = str(error)
        if isinstance(error, OSError) and error.strerror:
            message = error.strerror + (f": {error.filename}" if error.filename else "")
        if not isinstance(error, OSError | ValueError | EOFError) or not message:
            message = f"{type(error).__name__}: {message}".removesuffix(": ")
        return cls(message, getattr(error, "__notes__", ()), trace)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Say what was being done when an error of the system or of the peer comes out of the block."""
    try:
        yield
    except (OSError, EOFError) as error:
        failure = Failure.of(error)
        failure.message = f"{what}: {failure.message}"
        raise failure from error


# --- printing ---------------------------------------------------------------------------------------------------------


def escaped(text: object) -> str:
    """Return the text on one line, with every character that is not printable as a backslash escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def console(stream: Any) -> Console:
    """Return a console that has colours on a terminal only, and folds lines on a terminal only."""
    from rich.console import Console

    terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        width=None if terminal else 10_000,
        markup=False,
        emoji=False,
        highlight=False,
    )


def cell(text: object, stream: Any, style: str = "") -> Text:
    """Return a text for `stream`, escaped; what the stream's encoding does not have is escaped too."""
    from rich.text import Text

    encoding = getattr(stream, "encoding", None) or "utf-8"
    return Text(escaped(text).encode(encoding, "backslashreplace").decode(encoding), style=style)


def print_rows(rows: Sequence[tuple[object, object]], *, width: int = 0) -> None:
    """Print a name and a value a line on stdout; the names are `width` wide, or as wide as the widest."""
    from rich.table import Table

    stream = sys.stdout
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(min_width=width or None)
    table.add_column()
    for row in rows:
        table.add_row(*(cell(text, stream, "" if column else "bold") for column, text in enumerate(row)))
    out = console(stream)
    if stream.isatty():
        out.print(table)
        return
    with out.capture() as capture:
        out.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def print_failure(failure: Failure, *, debug: bool) -> None:
    """Print one line on stderr, and the notes indented under it; the trace first if asked for."""
    stream = sys.stderr
    err = console(stream)
    if debug:
        for line in failure.trace.splitlines():
            err.print(cell(line, stream, "dim"), soft_wrap=True)
    err.print(cell(f"hvsock: {failure.message}", stream), soft_wrap=True)
    for note in failure.notes:
        for line in note.splitlines():
            err.print(cell(f"    {line}", stream, "dim"), soft_wrap=True)


# --- the command ------------------------------------------------------------------------------------------------------


class Commands(click.Group):
    """A group whose errors are one line each, and whose exit codes are 0, 1, 2 and 130."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command and exit, whatever `standalone_mode` says."""
        try:
            result = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "hvsock"
            print_failure(Failure(f"{error.format_message().rstrip('.')} (see '{command} --help')"), debug=False)
            sys.exit(EXIT_USAGE)
        except click.Abort:  # what click makes of KeyboardInterrupt
            sys.exit(EXIT_INTERRUPTED)
        sys.exit(result if isinstance(result, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand, and put its error into words."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            raise  # nobody reads stdout any more: click ends quietly
        except Exception as error:
            print_failure(Failure.of(error), debug=ctx.params["debug"])
            ctx.exit(EXIT_FAILURE)


def version() -> str:
    """Return the version of the installed package."""
    import importlib.metadata

    return importlib.metadata.version("hvsock")


def print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"hvsock {version()}")
        ctx.exit()


EXAMPLES = """
\b
Examples:
  hvsock demo                      can this machine do it, and how fast?
  hvsock demo --transport local    the same without a hypervisor
  hvsock info                      which transports there are, and why not
  hvsock info --json | jq .transports
"""


@click.group(
    cls=Commands, no_args_is_help=False, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--debug", is_flag=True, help="Print the trace of an error too.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_version,
    help="Show the version and exit.",
)
def cli(debug: bool) -> None:
    """Hyper-V sockets for Python."""


# --- hvsock info ------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def info(as_json: bool) -> None:
    """Print transports, reasons, this machine's ids, and the constants.

    Nothing is connected or bound to find them out.
    """
    facts = gather_info()
    if as_json:
        print_json(facts)
        return
    rows: list[tuple[object, object]] = [(name, facts[name]) for name in ("hvsock", "python", "platform")]
    for transport in facts["transports"]:
        state = "available" if transport["available"] else f"not available: {transport['reason']}"
        rows.append((f"transport {transport['name']}", state))
    rows.append(("default transport", facts["default_transport"] or "none"))
    rows.append(("local CID", describe_cid(facts["local_cid"])))
    rows.append(("local directory", facts["local"]["directory"] or "none"))
    rows.append(("local partition", facts["local"]["partition"] or "none"))
    rows += [("problem", problem) for problem in facts["problems"]]
    rows += facts["constants"].items()
    print_rows(rows)


def gather_info() -> dict[str, Any]:
    """Return what `hvsock info` knows, in JSON's types."""
    problems: list[str] = []

    def ask(question: Callable[[], object]) -> str | None:
        """Return the answer; a wrong setting is a finding here, not a failure."""
        try:
            return str(question())
        except (OSError, ValueError) as error:
            problems.append(Failure.of(error).message)
            return None

    has_local = any(transport.name == "local" and transport.available for transport in hvsock.transports())
    return {
        "hvsock": version(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "transports": [
            {"name": t.name, "available": t.available, "reason": t.reason, "family": t.family}
            for t in hvsock.transports()
        ],
        "default_transport": ask(lambda: hvsock.default_transport().name),
        "local_cid": vsock.local_cid(),
        "local": {
            "directory": ask(local.directory) if has_local else None,
            "partition": ask(lambda: local.partition() or "host") if has_local else None,
        },
        "problems": problems,
        "constants": {
            name: value if isinstance(value, int) else str(value)
            for name in sorted(hvsock.__all__)
            if name.isupper() and isinstance(value := getattr(hvsock, name), int | uuid.UUID)
        },
    }


def describe_cid(cid: int | None) -> str:
    if cid is None:
        return "none"
    return "any (a Hyper-V guest reports this)" if cid == 0xFFFFFFFF else str(cid)


# --- hvsock demo: the choice ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Scene:
    """Where the demo runs: the transport and why, whom the service accepts, and whom the client dials."""

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
        reason = (known[candidate].reason or "").rstrip(".")
        if candidate == "vsock" and not reason and not vsock.has_loopback():
            reason = "the vsock loopback module is not loaded (modprobe vsock_loopback)"
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
    """On `local`: be the host for a while, in a directory of one's own unless HVSOCK_LOCAL_DIR names one."""
    if scene.guest is None:
        yield
        return
    before = {name: os.environ.get(name) for name in ("HVSOCK_LOCAL_DIR", "HVSOCK_LOCAL_VM")}
    own = None if before["HVSOCK_LOCAL_DIR"] else tempfile.mkdtemp(prefix="hvsock-")
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


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block, so that what is made in it has an owner who ends it."""
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


# --- hvsock demo: the service -----------------------------------------------------------------------------------------


class EchoService:
    """Sends back what it receives, one connection after the other, on a thread of its own until it is closed.

    Listens on a random port, so that demos do not meet; clients dial `client_address`. `peer` is the last client's
    address, `first_accepted` the time of the first one, `error` what ended the service before it was closed.
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
        """Wake the thread out of whatever call it is in, and wait for it."""
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
                    self._echo(connection)
        except Exception as error:
            if not self._closing:
                self.error = error

    @staticmethod
    def _echo(connection: hvsock.HyperVSocket) -> None:
        buffer = memoryview(bytearray(CHUNK))
        while size := connection.recv_into(buffer):
            connection.sendall(buffer[:size])


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


# --- hvsock demo: the client ------------------------------------------------------------------------------------------


class Job(TypedDict):
    """What the client process is told."""

    path: list[str]
    transport: str
    address: str
    count: int
    size: int


class Times(TypedDict):
    """How long something took, `count` times."""

    count: int
    p50_us: float
    p99_us: float


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
    click.echo(json.dumps(outcome))


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
    return times(samples[1:]), len(samples) * PAYLOAD


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
    return times(samples[WARM_UP:])


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


def times(samples: list[int]) -> Times:
    """Return the percentiles (nearest rank) of durations in nanoseconds."""
    ranked = sorted(samples)

    def percentile(percent: int) -> float:
        return round(ranked[-(-len(ranked) * percent // 100) - 1] / 1000, 1)

    return {"count": len(ranked), "p50_us": percentile(50), "p99_us": percentile(99)}


# --- hvsock demo: both ------------------------------------------------------------------------------------------------

CLIENT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])["path"]
from hvsock.cli import demo_client
demo_client(sys.argv[1])
"""


def run_client(scene: Scene, service: EchoService, count: int, size: int) -> Result:
    """Run the client in a process of its own (with a GIL of its own), and never leave it behind."""
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
    # Files, not pipes: nobody has to read them for the client to go on.
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
    """Wait for the client to end; in short waits, because on Windows Ctrl-C does not interrupt a long one."""
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
                failure.notes += (f"the service ended: {escaped(reason.message)}", *reason.notes)
            raise
    return {
        "transport": scene.transport,
        "reason": scene.reason,
        "service": str(service.address),
        "client": str(service.client_address),
        "peer": str(service.peer),
        **result,
    }


def check_transport(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
    names = [transport.name for transport in hvsock.transports()]
    if name is not None and name not in names:
        raise click.BadParameter(f"'{name}' is not one of {', '.join(names)}")
    return name


@cli.command()
@click.option(
    "--transport",
    metavar="NAME",
    envvar="HVSOCK_TRANSPORT",
    callback=check_transport,
    help="hyperv, vsock or local; by default the best that can serve here.",
)
@click.option("--count", type=click.IntRange(1, 1_000_000), default=5000, show_default=True, help="Round trips.")
@click.option("--size", type=click.IntRange(1, 65_536), default=256, show_default=True, help="MiB to stream.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def demo(transport: str | None, count: int, size: int, as_json: bool) -> None:
    """Run an echo service and a client of it, and measure.

    The service runs in this process, on the best transport that can serve here: AF_HYPERV loopback on Windows, vsock
    loopback on Linux if its module is loaded, else `local`. The client runs in another process and connects as a guest
    would. Every payload is random and is compared with what comes back. Each measurement ends after a second, whatever
    --count and --size ask for.
    """
    scene = choose_scene(transport)
    width = len("round trip")
    if not as_json:
        print_rows([("transport", f"{scene.transport} ({scene.reason})")], width=width)
    # No progress display: it would take the GIL from the service while it is being measured.
    try:
        report = run_demo(scene, count, size * MIB)
    except OSError as error:
        raise Failure.of(error) from error  # not to be taken for an error of stdout
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
