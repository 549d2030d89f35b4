"""What the tests share: the time unit, connected pairs, threads and child processes with a time limit.

It imports no pytest, so that `children`, which runs in the child processes, starts fast and can use it too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import shown_family  # noqa: F401 - where the environment asks for it

import hvsock

TESTS = Path(__file__).resolve().parent
WINDOWS = sys.platform == "win32"
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
WINE = sys.platform == "win32" and hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")

#: `HVSOCK_TEST_SCALE=10` gives a slow machine (an emulated one) ten times as long for everything.
SCALE = float(os.environ.get("HVSOCK_TEST_SCALE", "1"))
#: The one unit of time: long enough for another thread to run, short enough to wait for many times. Longer where clocks
#: have steps of 16 ms, and where the scale says that the machine is slow.
TICK = 0.02 if sys.platform == "linux" and SCALE == 1 else 0.05 * SCALE
#: How long a thing may take that must happen; only a hang reaches it.
LIMIT = 30 * SCALE
#: A wait that was to end after a timeout may end this much later on a loaded machine. Only a hang takes longer.
SLACK = 5 * SCALE
MIB = 1 << 20

#: The oracle, then our type over what the oracle is made of, then the transports.
IMPLEMENTATIONS = ("stdlib", "adopted", "local", "vsock", "hyperv")
TRANSPORTS = IMPLEMENTATIONS[2:]

Address: TypeAlias = tuple[str, uuid.UUID]
Pair: TypeAlias = tuple[hvsock.HyperVSocket, hvsock.HyperVSocket]


def required() -> frozenset[str]:
    """Return the transports that must not be skipped: `HVSOCK_REQUIRE=vsock,hyperv,local`."""
    names = os.environ.get("HVSOCK_REQUIRE", "").replace(",", " ").split()
    if unknown := set(names) - set(TRANSPORTS):
        raise ValueError(f"HVSOCK_REQUIRE names unknown transports: {sorted(unknown)}")
    return frozenset(names)


def reason_to_skip(implementation: str) -> str | None:
    """Say in a sentence why `implementation` cannot be tested here and what would change that, or return None."""
    if implementation not in TRANSPORTS:
        return None
    if implementation == "vsock" and "vsock" not in required():
        # The machine's own AF_VSOCK may lead to a hypervisor: never touch it unasked.
        return "vsock is tested in a guest kernel: run tests/guest/loopback (it sets HVSOCK_REQUIRE=vsock)"
    for transport in hvsock.transports():
        if transport.name == implementation:
            if transport.available:
                return None
            return f"{implementation}: {transport.reason}; HVSOCK_REQUIRE={implementation} makes this a failure"
    return f"hvsock.transports() does not know {implementation}"


def tested() -> tuple[str, ...]:
    """Return the implementations that can be tested here, and those that must be.

    The others would only fill the report with skips: `test_is_tested` in each transport's module has the one that
    says why.
    """
    return tuple(name for name in IMPLEMENTATIONS if name in required() or not reason_to_skip(name))


# Streams


def new_service() -> uuid.UUID:
    """Return a service id that every transport can serve: a random port's."""
    return hvsock.service_id_from_port(random.SystemRandom().randrange(0x10000, 0x7FFFFFFF))


def new_vm() -> uuid.UUID:
    """Return the id of a virtual machine that does not exist."""
    return uuid.uuid4()


def listen(implementation: str, address: Any = None, **kwargs: Any) -> Any:
    """Return a socket that listens on `address`, which is a free one of the loopback by default.

    What no transport made, but the standard library, listens on TCP.
    """
    listener: socket.socket
    if implementation == "stdlib":
        listener = socket.create_server(("127.0.0.1", 0), **kwargs)
    elif implementation == "adopted":
        listener = hvsock.HyperVSocket(fileno=socket.create_server(("127.0.0.1", 0), **kwargs).detach())
    else:
        address = address or ("loopback", new_service())
        listener = hvsock.create_server(address, transport=implementation, **kwargs)
    listener.settimeout(LIMIT)
    return listener


def full_listener(implementation: str, stack: contextlib.ExitStack) -> Any:
    """Return a listener of AF_UNIX or TCP whose backlog is full, so that a connect to it waits."""
    listener = stack.enter_context(listen(implementation, backlog=0))
    for _ in range(10):
        sock = stack.enter_context(dialler(implementation))
        sock.settimeout(2 * TICK)
        try:
            sock.connect(listener.getsockname())
        except TimeoutError:
            return listener
    raise AssertionError("ten connections fit into a backlog of none")


def dialler(implementation: str) -> hvsock.HyperVSocket:
    """Return a socket that can connect to what `listen` returned; the oracle's is typed as ours."""
    if implementation == "stdlib":
        return cast("hvsock.HyperVSocket", socket.socket())
    if implementation == "adopted":
        return hvsock.HyperVSocket(socket.AF_INET, socket.SOCK_STREAM)
    return hvsock.HyperVSocket(transport=implementation)


def dial(uri: str) -> socket.socket:
    """Connect as a client of a relay does, to tcp://...:PORT, unix://PATH or hvsock://VM/SERVICE?transport=NAME."""
    scheme, _, rest = uri.partition("://")
    if scheme == "tcp":
        sock = socket.create_connection(("127.0.0.1", int(rest.rpartition(":")[2])), LIMIT)
    elif scheme == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(LIMIT)
        try:
            sock.connect(rest)
        except OSError:
            sock.close()
            raise
    else:
        address, _, transport = uri.partition("?transport=")
        sock = hvsock.create_connection(hvsock.HyperVAddress.parse(address), LIMIT, transport=transport)
    return sock


def far_addresses() -> tuple[Any, Any]:
    """Return where a relay in another kernel listens, and where it connects to here; two of None without one.

    HVSOCK_TEST_FAR is CID:PORT:PORT, of tests/guest/host_guest --streams.
    """
    if "HVSOCK_TEST_FAR" not in os.environ:
        return None, None
    cid, there, here = map(int, os.environ["HVSOCK_TEST_FAR"].split(":"))
    return (hvsock.vm_id_from_cid(cid), there), ("wildcard", here)


def make_pair(implementation: str, timeout: float | None = LIMIT) -> Pair:
    """Return two connected sockets of `implementation`; on a transport the first is the one that dialled.

    The oracle's pair is typed as ours: the fixture `pair` has the type that all implementations share.
    """
    pair: Pair
    if implementation == "stdlib":
        pair = cast("Pair", socket.socketpair())
    elif implementation == "adopted":
        one, other = socket.socketpair()
        pair = hvsock.HyperVSocket(fileno=one.detach()), hvsock.HyperVSocket(fileno=other.detach())
    else:
        there, here = far_addresses() if implementation == "vsock" else (None, None)
        with listen(implementation, here) as listener:
            to = there or listener.getsockname()
            client = hvsock.create_connection(to, timeout=LIMIT, transport=implementation)
            pair = client, listener.accept()[0]
    for sock in pair:
        sock.settimeout(timeout)
    return pair


@contextlib.contextmanager
def connected(implementation: str, timeout: float | None = LIMIT) -> Iterator[Pair]:
    """Lend a connected pair."""
    pair = make_pair(implementation, timeout)
    with pair[0], pair[1]:
        yield pair


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Receive `size` bytes, or what came before the end of the stream."""
    chunks = []
    while size and (chunk := sock.recv(min(size, 1 << 20))):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def receive_all(sock: socket.socket) -> bytes:
    """Receive until the end of the stream."""
    return b"".join(iter(functools.partial(sock.recv, 1 << 16), b""))


def framed(payload: bytes | bytearray) -> bytes:
    """Return what a message is on the wire."""
    return len(payload).to_bytes(4, "big") + payload


def patiently(call: Callable[..., Any], *args: Any) -> Any:
    """Call until it no longer would block: what the peer has sent may take its time to arrive."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return call(*args)
        except BlockingIOError:
            assert time.monotonic() < deadline, "it did not arrive"
            time.sleep(0.001)


def fill(sock: socket.socket) -> int:
    """Send until a send would block and return the number of bytes; the socket stays non-blocking."""
    sock.setblocking(False)
    sent = 0
    while more := _send_what_fits(sock, 65536):
        sent += more
        if not WINDOWS:  # AF_UNIX takes all of 64 KiB or nothing
            return sent + _send_what_fits(sock, 1)
        time.sleep(2 * TICK)  # TCP, which carries the simulated sockets, finds room for some more until then
    return sent


def _send_what_fits(sock: socket.socket, size: int) -> int:
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(b"\xaa" * size)
    return sent


def repeated(call: Callable[[], object]) -> Callable[[], object]:
    """Return a call that blocks at last: TCP, which carries the simulated sockets, may find room for some more."""

    def repeat() -> None:
        while True:
            call()

    return repeat if WINE else call


def random_bytes(size: int, seed: int = 0) -> bytes:
    """Return `size` bytes that are the same in every process."""
    return random.Random(seed).randbytes(size)


def open_descriptors() -> int:
    """Count this process's open descriptors."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(directory))
    raise NotImplementedError("this platform does not list a process's descriptors")


def handles() -> int:
    """Count the process's descriptors, on Windows its handles."""
    if sys.platform != "win32":
        return open_descriptors()
    count = ctypes.c_ulong()
    kernel = ctypes.WinDLL("kernel32")
    kernel.GetProcessHandleCount(kernel.GetCurrentProcess(), ctypes.byref(count))
    return count.value


@contextlib.contextmanager
def bystanders(number: int = 8) -> Iterator[None]:
    """Open sockets that take the descriptors just freed, and check that nobody else touches their bytes."""
    pairs = [socket.socketpair() for _ in range(number)]
    for index, (one, _) in enumerate(pairs):
        one.sendall(b"%8d" % index)
    yield
    for index, (one, other) in enumerate(pairs):
        other.settimeout(LIMIT)
        assert receive_exactly(other, 8) == b"%8d" % index
        for sock in (one, other):
            sock.setblocking(False)
            try:
                stray = sock.recv(100)
            except BlockingIOError:
                continue
            raise AssertionError(f"stray bytes or a stray end of stream: {stray!r}")
    for one, other in pairs:
        one.close()
        other.close()


# Threads and child processes


class Task:
    """A call in a daemon thread, whose result or exception the test collects within a time limit."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._call = functools.partial(function, *args, **kwargs)
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, timeout: float) -> bool:
        """Wait, and return whether the call has ended."""
        self._thread.join(timeout)
        return not self.running

    def error(self, timeout: float = LIMIT) -> BaseException | None:
        """Return what the call raised, once it has ended."""
        if not self.wait(timeout):
            frame = sys._current_frames().get(self._thread.ident or 0)
            raise AssertionError(f"still running after {timeout:g} s:\n" + "".join(traceback.format_stack(frame)))
        return self._error

    def result(self, timeout: float = LIMIT) -> Any:
        """Return what the call returned, once it has ended, or raise what it raised."""
        if error := self.error(timeout):
            raise error
        return self._value


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(TICK / 10)


@contextlib.contextmanager
def takes(at_least: float, at_most: float = LIMIT) -> Iterator[None]:
    """Check how long the block takes: no less than the timeout (clocks are coarse), and not for ever."""
    start = time.monotonic()
    yield
    elapsed = time.monotonic() - start
    assert at_least * 0.95 - 0.02 <= elapsed <= at_most, elapsed


@contextlib.contextmanager
def running(
    command: list[str], directory: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a program of the documentation until the end of the block; its errors are part of its output."""
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that such a program prints."""
    assert process.stdout
    line: str = Task(process.stdout.readline).result()
    return line


class Child:
    """A function of a module of the tests in a process of its own, spoken to line by line; most are in `children`.

    It is called with each argument as a str; a coroutine runs in an event loop. The interpreter runs isolated, as the
    tests do, and with warnings as errors. `under` is a command to run it under.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *args: object,
        env: Mapping[str, str] | None = None,
        under: tuple[str, ...] = (),
    ) -> None:
        self.name = f"{function.__module__}.{function.__qualname__}"
        flags = ("-I", "-B", "-X", "faulthandler", "-W", "error")
        words = (TESTS / "children" / "__main__.py", function.__module__, function.__qualname__, *args)
        self.process = subprocess.Popen(
            [*under, sys.executable, *flags, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            encoding="utf-8",
            errors="replace",
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=reader, daemon=True) for reader in (self._read, self._read_errors)]
        for thread in self._readers:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\r\n"))
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr
        self._errors.extend(self.process.stderr)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for thread in self._readers:
            thread.join(LIMIT)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def kill(self) -> None:
        """Kill it as `kill -9` does."""
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait(LIMIT)

    def stacks(self) -> str:
        """End it, and return its errors with the stack of every thread, which faulthandler prints for SIGABRT."""
        if not WINDOWS:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self.process.send_signal(signal.SIGABRT)
                self.process.wait(20 * TICK)
        self.kill()
        self._readers[1].join(LIMIT)
        return self.errors()

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def line(self, timeout: float = LIMIT) -> str:
        """Return the next line it printed."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"{self.name} printed nothing for {timeout:g} s\n{self.stacks()}") from None
        if line is None:
            self.process.wait(LIMIT)
            raise AssertionError(f"{self.name} ended ({self.process.returncode})\n{self.errors()}")
        return line

    def errors(self) -> str:
        """Return what it has written to its standard error."""
        return "".join(self._errors)

    def finish(self, timeout: float = LIMIT, code: int = 0) -> list[str]:
        """Wait for its end, check the exit code and that nothing was warned of, and return the lines left."""
        assert self.process.stdin
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} was still running after {timeout:g} s\n{self.stacks()}") from None
        for thread in self._readers:
            thread.join(LIMIT)
        assert self.process.returncode == code, f"{self.name} ended ({self.process.returncode})\n{self.errors()}"
        for word in ("Exception ignored", "Fatal Python error"):
            assert word not in self.errors(), self.errors()
        return list(iter(self._lines.get_nowait, None))


def run_child(
    function: Callable[..., object],
    *args: object,
    timeout: float = LIMIT,
    env: Mapping[str, str] | None = None,
    under: tuple[str, ...] = (),
) -> list[str]:
    """Run a function to its end in a process of its own and return the lines that it printed."""
    with Child(function, *args, env=env, under=under) as child:
        return child.finish(timeout)
