"""No operation leaves a handle behind, over thousands of them, and none makes a handle that a child would inherit.

Over the simulated provider only: the handles are Wine's, but who opens and closes them is our code.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import gc
import os
import queue
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from ctypes import wintypes
from typing import Any

import pytest
from utils import LIMIT, Address, Pair

if sys.platform != "win32":
    pytest.skip("Windows Python only: tests/windows/run has one", allow_module_level=True)

import hvsock
from hvsock import aio

hvsim = pytest.importorskip("hvsim", reason="the simulated provider only: tests/windows/run has it")

#: Calls that do not wait take 0.03 to 2 ms under Wine, connections included.
MANY = 10_000
#: Calls that wait for a timeout or for another thread take a few ms.
SOME = 1_000
#: A coroutine's connection takes 5 ms.
FEW = 200
#: Before the handles are counted first: Python, Wine and the provider open some at the first use of a thing.
WARM_UP = 50
#: Handles that something else may open meanwhile, as Wine's own threads do. It is far below one for each operation.
TOLERANCE = 2
SHORT = 0.001
#: How long the number of handles may take to come down again, in seconds.
SETTLED = 5.0

_kernel = ctypes.WinDLL("kernel32", use_last_error=True)
_native = ctypes.WinDLL("ntdll")
_kernel.CreateEventW.restype = wintypes.HANDLE
HANDLE_FLAG_INHERIT = 1
SYSTEM_EXTENDED_HANDLE_INFORMATION = 64
STATUS_INFO_LENGTH_MISMATCH = 0xC0000004


class HandleEntry(ctypes.Structure):
    _fields_ = (
        ("object", ctypes.c_void_p),
        ("process", ctypes.c_size_t),
        ("handle", ctypes.c_size_t),
        ("access", wintypes.DWORD),
        ("trace", wintypes.WORD),
        ("type", wintypes.WORD),
        ("attributes", wintypes.DWORD),
        ("reserved", wintypes.DWORD),
    )


def open_handles() -> dict[int, int]:
    """Return the handles of this process, each with the number of its type.

    The system's list is taken, since GetProcessHandleCount always says 0 under Wine.
    """
    size = 1 << 16
    while True:
        buffer = ctypes.create_string_buffer(size)
        needed = wintypes.ULONG()
        status = _native.NtQuerySystemInformation(
            SYSTEM_EXTENDED_HANDLE_INFORMATION, buffer, size, ctypes.byref(needed)
        )
        if status & 0xFFFFFFFF != STATUS_INFO_LENGTH_MISMATCH:
            break
        size = 2 * max(size, needed.value)
    assert status == 0, hex(status & 0xFFFFFFFF)
    number = ctypes.c_size_t.from_buffer(buffer).value
    entries = (HandleEntry * number).from_buffer(buffer, 2 * ctypes.sizeof(ctypes.c_size_t))
    return {entry.handle: entry.type for entry in entries if entry.process == os.getpid()}


def count_handles() -> collections.Counter[int]:
    """Count the handles of this process by the number of their type, which says what leaks if something does."""
    return collections.Counter(open_handles().values())


def check_flat(operation: Callable[[], object], times: int) -> None:
    """Run it, first to warm up, and then `times` times: the number of handles must not have grown."""
    for _ in range(min(WARM_UP, times)):
        operation()
    gc.collect()  # the locks of 3.11 have a semaphore each, and those of a loop's servers are in cycles
    before = count_handles()
    for _ in range(times):
        operation()
    gc.collect()
    # The provider's own threads close their handles a moment after what they served has ended.
    deadline = time.monotonic() + SETTLED
    while (after := count_handles()).total() > before.total() + TOLERANCE:
        if time.monotonic() > deadline:
            pytest.fail(f"{after.total() - before.total()} handles more after {times} times, by type: {after - before}")
        time.sleep(0.05)


@pytest.fixture
def pair(address: Address, server: hvsock.HyperVSocket) -> Iterator[Pair]:
    with hvsock.create_connection(address, timeout=LIMIT) as client:
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            yield client, accepted


@contextlib.contextmanager
def failing(code: int) -> Iterator[None]:
    """Expect an OSError with this Winsock error; cheaper than pytest.raises, which keeps what it caught."""
    try:
        yield
    except OSError as error:
        assert error.winerror == code, error  # noqa: PT017
    else:
        raise AssertionError(f"no error {code}")


class Worker:
    """A thread that makes the calls that it is given, one after the other; their errors are OSErrors."""

    def __init__(self) -> None:
        self._calls: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self._results: queue.Queue[object] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while call := self._calls.get():
            try:
                self._results.put(call())
            except OSError as error:
                self._results.put(error.with_traceback(None))

    def start(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def result(self) -> object:
        return self._results.get(timeout=LIMIT)

    def stop(self) -> None:
        self._calls.put(None)
        self._thread.join(LIMIT)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()


def test_handles_are_counted() -> None:
    """Events and sockets are among those that are counted: without this, the tests below would prove nothing.

    What else the process opens and closes meanwhile, as threads do that earlier tests have left, is not looked at; such
    a handle may have the number of one that was closed here.
    """
    events = {_kernel.CreateEventW(None, True, False, None) for _ in range(100)}
    assert events <= open_handles().keys()
    for event in events:
        _kernel.CloseHandle(wintypes.HANDLE(event))
    assert len(events & open_handles().keys()) < 50
    before = len(open_handles())
    with contextlib.ExitStack() as stack:
        sockets = {stack.enter_context(hvsock.HyperVSocket()).fileno() for _ in range(100)}
        opened = open_handles()
        assert sockets <= opened.keys()
        assert len(opened) < before + 150  # a second one for each socket would be 100 more
    assert len(sockets & open_handles().keys()) < 50


# Data


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["no timeout", "timeout"])
@pytest.mark.parametrize(
    ("send", "receive"),
    [
        (lambda s: s.send(b"data"), lambda s: s.recv(4)),
        (lambda s: s.sendall(b"data"), lambda s: s.recv_into(bytearray(4))),
        (lambda s: s.sendmsg([b"da", b"ta"]), lambda s: s.recv(20_000)),
    ],
    ids=["send, recv", "sendall, recv_into", "sendmsg, recv more than fits the stack"],
)
def test_data(
    pair: Pair, timeout: float | None, send: Callable[[Any], object], receive: Callable[[Any], object]
) -> None:
    client, accepted = pair
    client.settimeout(timeout)
    accepted.settimeout(timeout)

    def exchange() -> None:
        send(client)
        receive(accepted)

    check_flat(exchange, MANY)


def test_data_without_waiting(pair: Pair) -> None:
    client, accepted = pair
    client.settimeout(0)
    accepted.settimeout(0)

    def exchange() -> None:
        try:
            accepted.recv(1000)
        except BlockingIOError:
            client.send(b"data")

    check_flat(exchange, MANY)


def test_would_block(pair: Pair, server: hvsock.HyperVSocket) -> None:
    client, _ = pair
    client.settimeout(0)
    server.settimeout(0)

    def fail() -> None:
        for call in (lambda: client.recv(10), lambda: client.recv_into(bytearray(10)), server.accept):
            with failing(10035):
                call()

    check_flat(fail, MANY // 3)


def test_receives_that_time_out(pair: Pair) -> None:
    client, _ = pair
    client.settimeout(SHORT)

    def fail() -> None:
        with contextlib.suppress(TimeoutError):
            client.recv(10)
            raise AssertionError("something was received")

    check_flat(fail, SOME)


def test_data_that_is_waited_for(pair: Pair, worker: Worker) -> None:
    client, accepted = pair

    def exchange() -> None:
        worker.start(lambda: accepted.recv(10))
        client.send(b"data")
        assert worker.result() == b"data"

    check_flat(exchange, MANY)


@pytest.mark.parametrize("timeout", [LIMIT, 0], ids=["overlapped", "non-blocking"])
def test_data_errors(pair: Pair, timeout: float) -> None:
    client, _ = pair
    client.settimeout(timeout)

    def fail() -> None:
        for call in (lambda: client.send(b"data"), lambda: client.recv(10)):
            with failing(10054):
                call()

    with hvsim.faults("sending=10054*0", "receiving=10054*0"):
        check_flat(fail, MANY // 2)


def test_error_at_the_end_of_an_overlapped_call(pair: Pair, worker: Worker) -> None:
    """The call is pending first, and fails when its end is asked for."""
    client, accepted = pair

    def fail() -> None:
        worker.start(lambda: accepted.recv(10))
        client.send(b"data")
        result = worker.result()
        # Where the data was there at once, there was nothing to ask for.
        assert result == b"data" or (isinstance(result, OSError) and result.winerror == 10054), result

    with hvsim.faults("WSAGetOverlappedResult=10054*0"):
        check_flat(fail, SOME)


def test_threads_that_end(pair: Pair) -> None:
    """Each thread has an event of its own for what it waits for; it goes with the thread."""
    client, accepted = pair
    received = []

    def receive() -> None:
        received.append(accepted.recv(4))

    def exchange() -> None:
        thread = threading.Thread(target=receive)
        thread.start()
        client.send(b"data")
        thread.join(LIMIT)

    check_flat(exchange, MANY // 2)
    assert set(received) == {b"data"}


# Connections


def test_connections(address: Address, server: hvsock.HyperVSocket) -> None:
    def cycle() -> None:
        with hvsock.create_connection(address, timeout=LIMIT):
            # It is closed first: whoever is, keeps its TCP port for a minute, and the listener has one only.
            server.accept()[0].close()

    check_flat(cycle, MANY // 2)


def test_connections_without_waiting(address: Address, server: hvsock.HyperVSocket) -> None:
    server.settimeout(0)

    def cycle() -> None:
        with hvsock.HyperVSocket() as client:
            client.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                client.connect(address)
            while True:
                try:
                    accepted, _ = server.accept()
                except BlockingIOError:
                    continue
                accepted.close()
                return

    check_flat(cycle, MANY // 2)


def test_accepts_that_are_waited_for(address: Address, server: hvsock.HyperVSocket, worker: Worker) -> None:
    def cycle() -> None:
        worker.start(server.accept)
        with hvsock.create_connection(address, timeout=LIMIT):
            worker.result()[0].close()  # type: ignore[index]

    check_flat(cycle, MANY // 2)


def test_copies(address: Address, server: hvsock.HyperVSocket) -> None:
    def cycle() -> None:
        with hvsock.create_connection(address, timeout=LIMIT) as client:
            accepted, _ = server.accept()
            with accepted, accepted.dup() as twin:
                hvsock.HyperVSocket(fileno=twin.detach()).close()
                client.makefile("rwb").close()
                shared = hvsock.HyperVSocket(fileno=socket.fromshare(client.share(os.getpid())).detach())
                shared.close()

    check_flat(cycle, SOME)


def test_sockets_that_are_forgotten(address: Address, server: hvsock.HyperVSocket) -> None:
    """What nobody has closed is closed with its object, which warns of it."""

    def cycle() -> None:
        client = hvsock.HyperVSocket()
        client.settimeout(LIMIT)
        client.connect(address)
        accepted, _ = server.accept()
        with pytest.warns(ResourceWarning):
            del accepted
        with pytest.warns(ResourceWarning):
            del client

    check_flat(cycle, SOME)


def test_servers(address: Address) -> None:
    check_flat(lambda: hvsock.create_server(address).close(), MANY)


def test_refused_connects(address: Address) -> None:
    def fail() -> None:
        with failing(10061):
            hvsock.create_connection(address, timeout=LIMIT)

    check_flat(fail, MANY)


def test_accepts_that_time_out(server: hvsock.HyperVSocket) -> None:
    server.settimeout(SHORT)

    def fail() -> None:
        with contextlib.suppress(TimeoutError):
            server.accept()
            raise AssertionError("something was accepted")

    check_flat(fail, SOME)


def test_connects_that_time_out(address: Address) -> None:
    def fail() -> None:
        with contextlib.suppress(TimeoutError):
            hvsock.create_connection(address, timeout=SHORT)
            raise AssertionError("it connected")

    with hvsim.faults("connecting=pending*0"):
        check_flat(fail, SOME)


@pytest.mark.parametrize("pause", [0, SHORT], ids=["at its start", "waiting"])
def test_connects_that_close_ends(address: Address, worker: Worker, pause: float) -> None:
    def fail() -> None:
        with hvsock.HyperVSocket() as sock:
            sock.settimeout(LIMIT)
            worker.start(lambda: sock.connect(address))
            time.sleep(pause)
        assert isinstance(worker.result(), OSError)

    with hvsim.faults("connecting=pending*0"):
        check_flat(fail, SOME)


@pytest.mark.parametrize("operation", ["recv", "accept"])
def test_waiting_calls_that_close_ends(address: Address, worker: Worker, operation: str) -> None:
    with hvsock.create_server(address) as listener:
        listener.settimeout(LIMIT)

        def fail() -> None:
            with contextlib.ExitStack() as stack:
                sock = stack.enter_context(hvsock.create_connection(address, timeout=LIMIT))
                stack.enter_context(listener.accept()[0])
                worker.start(lambda: sock.recv(1))
                time.sleep(SHORT)
                sock.close()
                assert isinstance(worker.result(), OSError)

        def fail_to_accept() -> None:
            with hvsock.create_server(("loopback", uuid.uuid4())) as other:
                other.settimeout(LIMIT)
                worker.start(other.accept)
                time.sleep(SHORT)
                other.close()
                assert isinstance(worker.result(), OSError)

        check_flat(fail if operation == "recv" else fail_to_accept, SOME)


# Errors


@pytest.mark.parametrize(
    "fault",
    [
        "ConnectEx=10050",
        "bind=10013",
        "setsockopt=10042",  # the kernel's own timeout
        "connect-context=10050",
        "WSAGetOverlappedResult=10054",
    ],
)
def test_connect_errors(address: Address, server: hvsock.HyperVSocket, fault: str) -> None:
    code = int(fault.partition("=")[2].partition("@")[0])
    server.settimeout(0)

    def fail() -> None:
        with hvsim.faults(fault), failing(code):
            hvsock.create_connection(address, timeout=LIMIT)
        with contextlib.suppress(BlockingIOError):
            server.accept()[0].close()

    check_flat(fail, 2 * SOME)


@pytest.mark.parametrize(
    "fault",
    [
        "AcceptEx=10050",
        "WSAGetOverlappedResult=10050",
    ],
)
def test_accept_errors(address: Address, server: hvsock.HyperVSocket, fault: str) -> None:
    code = int(fault.partition("=")[2].partition("@")[0])

    def fail() -> None:
        with hvsock.create_connection(address, timeout=LIMIT):
            with hvsim.faults(fault), failing(code):
                server.accept()
            # Some of these faults come before the connection was taken: it waits still.
            server.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                server.accept()[0].close()
            server.settimeout(LIMIT)

    check_flat(fail, SOME)


@pytest.mark.parametrize("code", [10053, 10054, 64])
@pytest.mark.parametrize("call", ["AcceptEx", "accept-context", "getpeername", "WSAGetOverlappedResult"])
def test_clients_that_are_gone_before_they_are_accepted(
    address: Address, server: hvsock.HyperVSocket, call: str, code: int
) -> None:
    """It is no error of the listener, which accepts the next one."""

    def accept() -> None:
        with contextlib.ExitStack() as clients:
            for _ in range(4):
                clients.enter_context(hvsock.create_connection(address, timeout=LIMIT))
            with hvsim.faults(f"{call}={code}*3"):
                server.accept()[0].close()
            # The first of these faults comes before a connection is taken, the others after it.
            server.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    server.accept()[0].close()
            server.settimeout(LIMIT)

    check_flat(accept, SOME)


def test_accept_error_without_waiting(address: Address, server: hvsock.HyperVSocket) -> None:
    server.settimeout(0)

    def fail() -> None:
        with failing(10050):
            server.accept()

    with hvsock.create_connection(address, timeout=LIMIT), hvsim.faults("AcceptEx=10050*0"):
        check_flat(fail, SOME)


def test_accepts_that_find_nothing(server: hvsock.HyperVSocket) -> None:
    server.settimeout(0)

    def fail() -> None:
        with contextlib.suppress(BlockingIOError):
            server.accept()
            raise AssertionError("something was accepted")

    check_flat(fail, MANY)


def test_accepts_that_find_nothing_where_something_is_announced(server: hvsock.HyperVSocket) -> None:
    """As if another thread or process had taken it: AcceptEx is cancelled."""
    server.settimeout(0)

    def fail() -> None:
        with contextlib.suppress(BlockingIOError):
            server.accept()
            raise AssertionError("something was accepted")

    with hvsim.faults("WSAPoll=10045*0"):
        check_flat(fail, SOME)


def test_receives_that_find_nothing(pair: Pair) -> None:
    client, _ = pair
    client.settimeout(0)

    def fail() -> None:
        with contextlib.suppress(BlockingIOError):
            client.recv(1)
            raise AssertionError("something was received")

    check_flat(fail, SOME)


def test_stubborn_connects(address: Address) -> None:
    """Connects that outlive their call: their memory and events are freed with the next one."""

    def fail() -> None:
        with contextlib.suppress(TimeoutError):
            hvsock.create_connection(address, timeout=SHORT)
            raise AssertionError("it connected")

    with hvsim.faults("connecting=stubborn:60000*0"):
        check_flat(fail, 60)


def test_accepts_that_cannot_be_wrapped(address: Address, server: hvsock.HyperVSocket) -> None:
    """The handle of a new connection is closed if no object can be made for it."""

    class Picky(hvsock.HyperVSocket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if len(args) == 3:  # as accept() calls it
                raise ZeroDivisionError
            super().__init__(*args, **kwargs)

    with Picky(fileno=server.detach()) as picky:
        picky.settimeout(LIMIT)

        def fail() -> None:
            with hvsock.create_connection(address, timeout=LIMIT), contextlib.suppress(ZeroDivisionError):
                picky.accept()
                raise AssertionError("no error")

        check_flat(fail, SOME)


def test_bad_arguments(pair: Pair, server: hvsock.HyperVSocket, address: Address) -> None:
    client, _ = pair
    bad_addresses: list[Any] = [None, (), ("loopback",), ("nowhere", 1), ("loopback", -1), ("loopback", 1, 2), "text"]
    calls: list[Callable[[], object]] = [
        lambda: client.send("text"),  # type: ignore[arg-type]
        lambda: client.send(b"", 1 << 40),
        lambda: client.sendall(None),  # type: ignore[arg-type]
        lambda: client.sendmsg([b"a", 1]),  # type: ignore[list-item]
        lambda: client.recv(-1),
        lambda: client.recv("1"),  # type: ignore[arg-type]
        lambda: client.recv_into(b"read-only"),
        lambda: client.recv_into(bytearray(1), 2),
        lambda: client.settimeout(-1),
        lambda: client.connect(address),  # connected already
        lambda: client.listen(),
        lambda: client.accept(),
        lambda: server.bind(address),  # bound already
        lambda: server.connect(address),
        lambda: hvsock.create_server(address),  # in use
        lambda: hvsock.HyperVSocket(type=socket.SOCK_DGRAM),
        lambda: hvsock.HyperVSocket(proto=7),
        lambda: hvsock.HyperVSocket(fileno=1 << 20),
        lambda: hvsock.HyperVSocket(transport="pigeon"),
        *[lambda bad=bad: hvsock.create_connection(bad) for bad in bad_addresses],
        *[lambda bad=bad: hvsock.create_server(bad) for bad in bad_addresses],
    ]

    def fail() -> None:
        for index, call in enumerate(calls):
            with contextlib.suppress(OSError, TypeError, ValueError, OverflowError):
                call()
                pytest.fail(f"call {index} of the list did not fail")

    check_flat(fail, MANY // len(calls))


# Inheritance


def is_inheritable(handle: int) -> bool:
    flags = wintypes.DWORD()
    if not _kernel.GetHandleInformation(wintypes.HANDLE(handle), ctypes.byref(flags)):
        raise ctypes.WinError(ctypes.get_last_error())
    return bool(flags.value & HANDLE_FLAG_INHERIT)


def test_nothing_is_inheritable(address: Address, server: hvsock.HyperVSocket) -> None:
    with contextlib.ExitStack() as stack:
        sockets = {"server": server, "new": stack.enter_context(hvsock.HyperVSocket())}
        for timeout in (None, LIMIT, 0):
            server.settimeout(timeout)
            sockets[f"client, {timeout}"] = stack.enter_context(hvsock.create_connection(address, timeout=LIMIT))
            deadline = time.monotonic() + LIMIT
            while f"accepted, {timeout}" not in sockets:
                assert time.monotonic() < deadline
                with contextlib.suppress(BlockingIOError):
                    sockets[f"accepted, {timeout}"] = stack.enter_context(server.accept()[0])
        for name, sock in list(sockets.items()):
            sockets[f"dup of {name}"] = stack.enter_context(sock.dup())
        client = sockets["client, None"]
        shared = hvsock.HyperVSocket(fileno=socket.fromshare(client.share(os.getpid())).detach())
        sockets["shared"] = stack.enter_context(shared)
        assert [name for name, sock in sockets.items() if is_inheritable(sock.fileno())] == []
        assert not any(sock.get_inheritable() for sock in sockets.values())
        # And this is how it would look.
        client.set_inheritable(True)
        assert is_inheritable(client.fileno())


# Event loops


@pytest.fixture(params=["ProactorEventLoop", "SelectorEventLoop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=getattr(asyncio, request.param)) as runner:
        yield runner


async def echo(stream: aio.MessageStream) -> None:
    async for message in stream:
        await stream.send(message)


def test_message_streams(runner: asyncio.Runner, address: Address) -> None:
    """Connections are made, accepted, used and closed, ten at a time."""

    async def connect() -> None:
        async with await aio.connect_messages(address, timeout=LIMIT) as stream:
            assert await stream.exchange(b"x") == b"x"

    async def cycle() -> None:
        await asyncio.gather(*[connect() for _ in range(10)])

    server = runner.run(aio.serve_messages(echo, address))
    check_flat(lambda: runner.run(cycle()), FEW // 10)
    runner.run(server.shutdown())


def test_asyncio_streams(runner: asyncio.Runner, address: Address) -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    async def cycle() -> None:
        reader, writer = await aio.open_connection(address, timeout=LIMIT)
        writer.write(b"x\n")
        assert await reader.read() == b"X\n"
        writer.close()
        await writer.wait_closed()

    async def end() -> None:
        server.close()
        await server.wait_closed()

    server = runner.run(aio.start_server(upper, address))
    check_flat(lambda: runner.run(cycle()), FEW)
    runner.run(end())


def test_servers_of_a_loop(runner: asyncio.Runner, address: Address) -> None:
    async def cycle() -> None:
        async with await aio.serve_messages(echo, address), await aio.connect_messages(address, timeout=LIMIT):
            pass

    check_flat(lambda: runner.run(cycle()), FEW)


def test_refused_connects_of_a_loop(runner: asyncio.Runner, address: Address) -> None:
    async def fail() -> None:
        with failing(10061):
            await aio.connect_messages(address, timeout=LIMIT)

    check_flat(lambda: runner.run(fail()), FEW)


@pytest.mark.parametrize("turns", [0, 1, 2, 10])
def test_cancelled_connects(runner: asyncio.Runner, address: Address, turns: int) -> None:
    """Wherever the cancellation strikes."""

    async def fail() -> None:
        task = asyncio.create_task(aio.connect_messages(address, timeout=LIMIT))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
            raise AssertionError("it connected")

    with hvsim.faults("connecting=pending*0"):
        check_flat(lambda: runner.run(fail()), FEW)


def test_cancelled_receives(runner: asyncio.Runner, address: Address) -> None:
    async def fail() -> None:
        async with await aio.connect_messages(address, timeout=LIMIT) as stream:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHORT):
                    await stream.recv()

    server = runner.run(aio.serve_messages(echo, address))
    check_flat(lambda: runner.run(fail()), FEW)
    runner.run(server.shutdown())
