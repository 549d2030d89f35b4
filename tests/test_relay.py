"""The relay between every two kinds of sockets, and its pump in C."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import logging
import os
import re
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import utils
from children import relays
from conftest import TESTED, require
from hypothesis import given
from hypothesis import strategies as st
from utils import (
    LIMIT,
    SLACK,
    TICK,
    WINDOWS,
    WINE,
    Child,
    Task,
    dial,
    open_descriptors,
    random_bytes,
    receive_all,
    receive_exactly,
)

import hvsock
from hvsock.relay import Counters, Relay, _tcp
from hvsock.relay._endpoints import Hybrid
from hvsock.relay._engine import Engine
from hvsock.relay._listeners import TcpListener

if sys.platform != "win32":
    from hvsock._hvsock import Pump

TRANSPORTS = [name for name in TESTED if name in utils.TRANSPORTS]
KINDS = ["tcp", *([] if WINDOWS else ["unix"]), *TRANSPORTS]
PAIRS = [(one, other) for one in KINDS for other in KINDS]

#: How a stream ends that the relay cuts off. Wine turns an abortive close into an orderly one.
CUT = "end" if WINE else "reset"

pumped = pytest.mark.skipif(WINDOWS, reason="on Windows there is the engine alone: run it on POSIX")
posix_only = pytest.mark.skipif(WINDOWS, reason="Python has no AF_UNIX on Windows: run it on POSIX")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that says so: run it there")
no_reset = pytest.mark.skipif(WINE, reason="Wine turns an abortive close into an orderly one: run it on Windows")


def free_address(kind: str, directory: Path) -> str:
    """Return a URI to listen on."""
    if kind == "tcp":
        return "tcp://:0"
    if kind == "unix":
        return f"unix://{directory}/u{next(NUMBERS)}"
    port = hvsock.port_from_service_id(utils.new_service())
    return f"hvsock://loopback/{port}?transport={kind}"


NUMBERS = itertools.count()


def serve(kind: str, directory: Path) -> tuple[str, Any]:
    """Listen as a server behind the relay does; return the URI and the listener."""
    if kind == "unix":
        path = f"{directory}/s{next(NUMBERS)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listener.settimeout(LIMIT)
        return f"unix://{path}", listener
    listener = utils.listen("stdlib" if kind == "tcp" else kind)
    if kind == "tcp":
        return f"tcp://127.0.0.1:{listener.getsockname()[1]}", listener
    return f"{hvsock.HyperVAddress(*listener.getsockname())}?transport={kind}", listener


class Rig:
    """A relay in front of a server, and clients of it."""

    def __init__(self, stack: contextlib.ExitStack, source: str, target: str, directory: Path, **options: Any) -> None:
        self._stack = stack
        self.target, self.listener = serve(target, directory)
        stack.callback(self.listener.close)
        self.relay = Relay(free_address(source, directory), self.target, **options)
        stack.enter_context(self.relay)

    def client(self) -> socket.socket:
        return self._stack.enter_context(dial(self.relay.address))

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a connection through the relay."""
        client = self.client()
        server = self._stack.enter_context(self.listener.accept()[0])
        server.settimeout(LIMIT)
        return client, server

    def used(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a connection that has moved data."""
        client, server = self.connection()
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        return client, server

    def turned_away(self) -> bool:
        """Connect, and return whether the connection is closed again as it should."""
        try:
            with dial(self.relay.address) as client:
                return end_of(client) == CUT
        except ConnectionError:  # before it was looked at
            return True

    def expect(self, **expected: int) -> None:
        """Wait for counters."""
        end = time.monotonic() + LIMIT
        while True:
            now = {name: getattr(self.relay.counters, name) for name in expected}
            if now == expected:
                return
            assert time.monotonic() < end, (now, expected)
            time.sleep(TICK / 10)


@pytest.fixture
def rig(local_directory: Path) -> Iterator[Callable[..., Rig]]:
    """Make a rig of any two kinds; at the end no thread and no descriptor is left."""
    gc.collect()  # an exception that was caught keeps what its frames had
    before = (threading.active_count(), None if WINDOWS else open_descriptors())
    with contextlib.ExitStack() as stack:

        def make(source: str = "tcp", target: str = "tcp", **options: Any) -> Rig:
            return Rig(stack, source, target, local_directory, **options)

        yield make
    gc.collect()
    assert (threading.active_count(), None if WINDOWS else open_descriptors()) == before


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("HH" if WINDOWS else "ii", 1, 0))
    sock.close()


def end_of(sock: socket.socket) -> str:
    """Say how the stream ends."""
    try:
        return "end" if receive_all(sock) == b"" else "data"
    except ConnectionError:
        return "reset"


def fill(sock: socket.socket) -> int:
    """Send until nothing more is taken, for longer than a relay needs to move it."""
    sent = 0
    while more := utils.fill(sock):
        sent += more
        time.sleep(4 * TICK)
    sock.settimeout(LIMIT)
    return sent


# Streams


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_both_directions_at_once(rig: Callable[..., Rig], source: str, target: str) -> None:
    it = rig(source, target)
    client, server = it.connection()
    up, down = random_bytes(3 << 20, 1), random_bytes(2 << 20, 2)
    tasks = [Task(client.sendall, up), Task(server.sendall, down), Task(receive_exactly, server, len(up))]
    assert receive_exactly(client, len(down)) == down
    assert tasks[2].result() == up
    for task in tasks:
        task.result()
    client.close()
    assert end_of(server) == "end"
    server.close()
    it.expect(open=0)
    assert it.relay.counters == Counters(0, 1, 0, 0, 0, len(up), len(down))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_half_close(rig: Callable[..., Rig], source: str, target: str) -> None:
    """The end of one direction is passed on, and the other goes on; from either side."""
    it = rig(source, target)
    for swap in (False, True):
        first, second = reversed(it.connection()) if swap else it.connection()
        first.sendall(b"request")
        first.shutdown(socket.SHUT_WR)
        assert receive_all(second) == b"request"
        second.sendall(b"re")
        assert receive_exactly(first, 2) == b"re"
        second.sendall(b"ply")
        second.close()
        assert receive_all(first) == b"ply"
        first.close()
        it.expect(open=0, aborted=0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_the_end(rig: Callable[..., Rig], kind: str) -> None:
    it = rig(kind, kind)
    client, server = it.connection()
    client.close()
    assert receive_all(server) == b""
    server.close()
    it.expect(open=0)
    assert it.relay.counters == Counters(0, 1, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ends_at_once(rig: Callable[..., Rig], kind: str) -> None:
    it = rig(kind, kind)
    pairs = [it.connection() for _ in range(20)]
    for client, server in pairs:
        client.close()
        server.close()
    it.expect(open=0)
    assert it.relay.counters.aborted == 0


def test_data_before_the_target_is_reached(rig: Callable[..., Rig]) -> None:
    it = rig()
    client = it.client()
    client.sendall(b"early")
    client.shutdown(socket.SHUT_WR)
    with it.listener.accept()[0] as server:
        assert receive_all(server) == b"early"


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if pair[0] == "tcp" or pair[1] == "tcp"])
def test_backpressure(rig: Callable[..., Rig], source: str, target: str) -> None:
    """A reader that does not read stops the sender, and nothing is lost; the other direction is not held up."""
    it = rig(source, target)
    client, server = it.connection()
    sent = fill(client)
    server.sendall(b"meanwhile")
    assert receive_exactly(client, 9) == b"meanwhile"
    client.shutdown(socket.SHUT_WR)
    assert len(receive_all(server)) == sent


def test_slow_reader(rig: Callable[..., Rig]) -> None:
    """Small receive buffers make every send of the relay a partial one."""
    it = rig()
    it.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client, server = it.connection()
    data = random_bytes(1 << 20)
    task = Task(client.sendall, data)
    assert receive_exactly(server, len(data)) == data
    task.result()


def test_many_connections(rig: Callable[..., Rig]) -> None:
    it = rig()
    pairs = [it.connection() for _ in range(50)]
    for turn in range(3):
        for number, (client, _) in enumerate(pairs):
            client.sendall(b"%d %d" % (turn, number))
        for number, (_, server) in enumerate(pairs):
            assert server.recv(100) == b"%d %d" % (turn, number)
    assert it.relay.counters.open == 50
    for client, server in pairs:
        client.close()
        server.close()
    it.expect(open=0, total=50, aborted=0)


def epolls() -> dict[str, int]:
    """Return how many descriptors each epoll of this process waits for."""
    found = {}
    for path in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(OSError):  # it is the directory's own
            if watched := path.read_text(encoding="ascii").count("tfd:"):
                found[path.name] = watched
    return found


@linux_only
def test_every_thread_has_its_share(rig: Callable[..., Rig]) -> None:
    """The system may wake the same thread for each client, which would leave the other processors idle."""
    it = rig()
    before = epolls()
    for _ in range(50):
        it.used()
    watched = {name: count - before.get(name, 0) for name, count in epolls().items()}
    shares = [count // 2 for count in watched.values() if count >= 2]  # two sockets a connection
    assert (sum(shares), len(shares)) == (50, min(os.cpu_count() or 1, 16))
    assert 4 * max(shares) <= 5 * min(shares) + 4


# Ends that are none


@no_reset
@pytest.mark.parametrize("swap", [False, True])
def test_reset(rig: Callable[..., Rig], swap: bool) -> None:
    it = rig()
    first, second = reversed(it.used()) if swap else it.used()
    reset(first)
    assert end_of(second) == "reset"
    it.expect(open=0, aborted=1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tcp"])
@no_reset
def test_reset_to_what_knows_none(rig: Callable[..., Rig], kind: str) -> None:
    it = rig("tcp", kind)
    client, server = it.used()
    reset(client)
    assert end_of(server) in ("end", "reset")
    it.expect(open=0, aborted=1)


@linux_only
@pytest.mark.parametrize("half_closed", [False, True])
def test_reset_is_noticed_while_nothing_is_wanted_from_that_side(rig: Callable[..., Rig], half_closed: bool) -> None:
    """The server does not read, so the relay does not read from the client either."""
    it = rig()
    client, server = it.used()
    if half_closed:
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server) == b""
    else:
        fill(client)
    reset(client)
    it.expect(open=0, aborted=1)
    if half_closed:
        with pytest.raises(ConnectionError):
            while True:
                server.sendall(b"x")


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_before_the_request_has_ended(rig: Callable[..., Rig], kind: str) -> None:
    """What a server that closes early has said arrives, though the client can send no more."""
    if kind == "hyperv" or WINDOWS:
        pytest.skip("there, closing with unread data may destroy what was sent: run it on POSIX")
    it = rig(kind, "unix")
    client, server = it.used()
    server.sendall(b"no")
    server.close()
    with contextlib.suppress(OSError):
        client.sendall(bytes(1 << 20))
    assert receive_exactly(client, 2) == b"no"
    client.close()
    it.expect(open=0)


def test_idle_timeout(rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hvsock.relay")
    it = rig(idle_timeout=8 * TICK)
    client, server = it.connection()
    start = time.monotonic()
    assert end_of(client) == CUT
    assert time.monotonic() - start > TICK
    assert end_of(server) == CUT
    it.expect(open=0, aborted=1, failed=0)
    utils.wait_for(lambda: "idle timeout" in caplog.text)


def test_one_direction_keeps_a_connection_alive(rig: Callable[..., Rig]) -> None:
    it = rig(idle_timeout=40 * TICK)
    client, server = it.used()
    for _ in range(8):
        time.sleep(8 * TICK)
        server.sendall(b"x")
        assert client.recv(1) == b"x"
    assert it.relay.counters.open == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_refuses(
    rig: Callable[..., Rig], kind: str, local_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    it = rig("tcp", kind)
    it.listener.close()
    assert it.turned_away()
    it.expect(open=0, failed=1, aborted=0)
    utils.wait_for(lambda: f"{it.target} was not reached: " in caplog.text)
    assert it.turned_away()  # and it goes on
    it.expect(open=0, total=2, failed=2)


@pytest.mark.skipif(WINDOWS, reason="POSIX only: the descriptors are counted")
def test_stop_leaves_nothing_to_the_garbage_collector() -> None:
    """Not even after a target with two addresses that both refuse, whose errors have traces."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        target = f"tcp://localhost:{reserved.getsockname()[1]}"
        gc.collect()
        gc.disable()
        try:
            before = open_descriptors()
            with (
                Relay("tcp://:0", target) as relay,
                contextlib.suppress(ConnectionError),  # cut before it was looked at
                dial(relay.address) as client,
            ):
                assert end_of(client) == CUT
            assert open_descriptors() == before
        finally:
            gc.enable()
    assert relay.counters.failed == 1


def test_a_target_that_comes_back(rig: Callable[..., Rig]) -> None:
    it = rig()
    address = it.listener.getsockname()
    it.listener.close()
    assert it.turned_away()
    it.expect(failed=1, open=0)
    with socket.create_server(address) as it.listener:
        it.listener.settimeout(LIMIT)
        client, server = it.used()
        client.sendall(b"x")
        assert server.recv(1) == b"x"


@pytest.mark.parametrize("kind", [kind for kind in ("tcp", "unix", "local") if kind in KINDS])
def test_a_client_waits_for_a_target_that_starts(
    rig: Callable[..., Rig], kind: str, local_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    it = rig("tcp", kind, retry_for=LIMIT)
    address = it.listener.getsockname()
    it.listener.close()
    if kind == "unix":
        Path(address).unlink()
    client = it.client()
    client.sendall(b"early")
    time.sleep(4 * TICK)
    it.expect(open=1, total=1, failed=0)
    if kind == "tcp":
        it.listener = socket.create_server(address)
    elif kind == "local":
        it.listener = hvsock.create_server(address, transport=kind)
    else:
        it.listener = socket.socket(socket.AF_UNIX)
        it.listener.bind(address)
        it.listener.listen()
    with it.listener, it.listener.accept()[0] as server:
        server.settimeout(LIMIT)
        assert receive_exactly(server, 5) == b"early"
        server.sendall(b"late")
        assert receive_exactly(client, 4) == b"late"
    client.close()
    it.expect(open=0, failed=0, aborted=0)
    assert "was not reached" not in caplog.text


def test_a_client_does_not_wait_for_ever(rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    it = rig(retry_for=4 * TICK)
    it.listener.close()
    start = time.monotonic()
    assert end_of(it.client()) == CUT
    assert time.monotonic() - start > 2 * TICK
    it.expect(open=0, failed=1)
    assert "was not reached" in caplog.text


def test_stop_while_a_client_waits_for_a_target(rig: Callable[..., Rig]) -> None:
    it = rig(retry_for=1000 * LIMIT)
    it.listener.close()
    client = it.client()
    it.expect(open=1)
    time.sleep(4 * TICK)  # the pauses become longer
    it.relay.stop()
    assert it.relay.counters[:5] == (0, 1, 0, 1, 0)
    assert end_of(client) == CUT


@linux_only
@pytest.mark.parametrize("kind", ["tcp", "local"])
def test_connect_timeout(kind: str, local_directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.ExitStack() as stack:
        relay = stalled(stack, kind, connect_timeout=2 * TICK)
        with dial(relay.address) as client:
            assert end_of(client) == "reset"
        utils.wait_for(lambda: "was not reached: timed out" in caplog.text)
        assert relay.counters.failed == 1


def stalled(stack: contextlib.ExitStack, kind: str, **options: Any) -> Relay:
    """Return a relay whose target does not take connections."""
    require("local")
    listener = utils.full_listener("stdlib" if kind == "tcp" else kind, stack)
    address = listener.getsockname()
    target = f"tcp://127.0.0.1:{address[1]}" if kind == "tcp" else f"{hvsock.HyperVAddress(*address)}?transport=local"
    return stack.enter_context(Relay("tcp://:0", target, **options))


#: Refused before anybody is asked for it: a label has 63 characters at most.
NO_NAME = 64 * "a"


def test_a_name_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    with Relay("tcp://:0", f"tcp://{NO_NAME}:1") as relay:
        with contextlib.suppress(ConnectionError), dial(relay.address) as client:  # cut before it was looked at
            assert end_of(client) == CUT
        utils.wait_for(lambda: "was not reached" in caplog.text)
    assert relay.counters.failed == 1


@pytest.mark.parametrize("retry_for", [0.0, LIMIT])
def test_max_connections(rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture, retry_for: float) -> None:
    """Whether the engine connects by itself or not."""
    it = rig(max_connections=2, retry_for=retry_for)
    first, second = it.used(), it.used()
    assert it.turned_away()
    assert it.relay.counters[:4] == (2, 3, 1, 0)
    utils.wait_for(lambda: "refused: 2 connections are open" in caplog.text)
    for sock in first:
        sock.close()
    it.expect(open=1)
    third = it.used()
    for client, server in (second, third):
        client.sendall(b"x")
        assert server.recv(1) == b"x"


@pytest.mark.parametrize("kind", KINDS)
def test_flood(rig: Callable[..., Rig], kind: str) -> None:
    """Clients that say nothing have no more connections and threads than they are allowed, and not for ever."""
    it = rig(source=kind, target=kind, max_connections=3, idle_timeout=4 * TICK)
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            with contextlib.suppress(ConnectionError):  # turned away before it was looked at
                stack.enter_context(dial(it.relay.address))
            assert it.relay.counters.open <= 3
            assert threading.active_count() <= threads + 2 * 3  # some may be at their end
        it.expect(total=50, open=0)
    counters = it.relay.counters
    assert counters.aborted == counters.total - counters.refused - counters.failed > 0
    assert counters.refused > 0
    with dial(it.relay.address):
        it.expect(total=counters.total + 1, refused=counters.refused)


@posix_only
def test_no_descriptors_left() -> None:
    """The relay waits for better times, says so, and goes on."""
    with Child(relays.with_few_descriptors) as child, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        child.tell(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        address = child.line()
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(dial(address))
            assert "ulimit -n" in child.line()
        deadline = time.monotonic() + LIMIT
        listener.settimeout(TICK)
        while True:  # those that were given up may still come first
            with dial(address) as client, contextlib.suppress(OSError):
                client.sendall(b"x")
                with listener.accept()[0] as server:
                    server.settimeout(LIMIT)
                    if server.recv(1) == b"x":
                        break
            assert time.monotonic() < deadline
        child.tell("stop")
        child.finish()


def serve_one_of(clients: list[socket.socket], listener: socket.socket) -> None:
    """Answer the client that comes first, not always the first one that asked, and have it go."""
    with listener.accept()[0] as server:
        server.sendall(b"x")
        (client,), _, _ = select.select(clients, [], [], LIMIT)
        clients.remove(client)
        assert client.recv(1) == b"x"
        client.close()
        assert server.recv(1) == b""


@posix_only
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vsock"])
@pytest.mark.parametrize("room", [20, 21])
def test_clients_wait_for_descriptors(kind: str, room: int, local_directory: Path) -> None:
    """Who cannot have two stays in the backlog, and is served when another one has gone: nobody is turned away."""
    uri, listener = serve(kind, local_directory)
    with listener, contextlib.ExitStack() as stack, Child(relays.that_only_an_end_wakes, uri, room) as child:
        address = child.line()
        clients = [stack.enter_context(dial(address)) for _ in range(20)]
        fit = int(child.line())
        assert 4 <= fit <= 10
        for total in range(fit + 1, 20 + fit + 1):
            serve_one_of(clients, listener)
            if total <= 20:
                assert int(child.line()) == total
        child.tell("stop")
        *_, last = child.finish()
        assert last == "refused 0 failed 0"


@linux_only
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vsock"])
@pytest.mark.parametrize("room", [8, 9])
def test_clients_of_the_engine_wait_for_descriptors(kind: str, room: int, local_directory: Path) -> None:
    """As above; which thread of the engine serves a client is not known."""
    uri, listener = serve(kind, local_directory)
    with listener, contextlib.ExitStack() as stack, Child(relays.whose_clients_wait, uri, room) as child:
        address = child.line()
        clients = [stack.enter_context(dial(address)) for _ in range(20)]
        for _ in range(20):
            serve_one_of(clients, listener)
        child.tell("stop")
        assert child.finish() == ["20 accepted, refused 0 failed 0"]


@pumped
@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        (ConnectionAbortedError(errno.ECONNABORTED, "aborted"), []),
        (ConnectionResetError(errno.ECONNRESET, "reset"), []),
        (OSError(errno.ENOBUFS, "no buffers"), [0.05, 0.1, 0.2]),
    ],
    ids=str,
)
def test_pauses_after_an_accept_that_failed(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, error: OSError, pauses: list[float]
) -> None:
    """A peer that has gone already holds up nobody else; what the system lacks may take time."""
    monkeypatch.setattr(Engine, "serves", lambda *_: False)
    accept, wait = TcpListener.accept, Relay._wait
    left = 3
    taken: list[float | None] = []

    def failing(listener: Any) -> Any:
        nonlocal left
        if left == 0:
            return accept(listener)
        left -= 1
        raise type(error)(*error.args)

    def noting(it: Relay, condition: Callable[[], bool], timeout: float | None) -> bool:
        taken.append(timeout)
        return wait(it, condition, timeout)

    monkeypatch.setattr(TcpListener, "accept", failing)
    monkeypatch.setattr(Relay, "_wait", noting)
    rig().used()
    assert (left, taken) == (0, pauses)


# Starting and stopping


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_stop_ends_everything(rig: Callable[..., Rig], source: str, target: str) -> None:
    it = rig(source, target)
    client, server = it.connection()
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    it.relay.stop()
    assert it.relay.counters == Counters(0, 1, 0, 0, 1, 1, 0)
    assert end_of(client) in ("end", "reset")
    assert end_of(server) in ("end", "reset")
    with pytest.raises(OSError):
        dial(it.relay.address)
    it.relay.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_graceful_stop(rig: Callable[..., Rig], kind: str) -> None:
    """Nobody new is let in; who is in may finish."""
    it = rig(kind, kind)
    client, server = it.connection()
    stopping = Task(it.relay.stop, LIMIT)
    with contextlib.suppress(OSError):
        while True:
            dial(it.relay.address).close()
            assert stopping.running
            time.sleep(TICK / 10)
    it.listener.close()  # which ends those that were let in before
    client.sendall(b"still")
    assert receive_exactly(server, 5) == b"still"
    assert stopping.running
    client.close()
    server.close()
    stopping.result()
    assert it.relay.counters.aborted == 0 or it.relay.counters.total > 1


def test_a_patient_stop_is_cut_short_by_another(rig: Callable[..., Rig]) -> None:
    it = rig()
    client, _ = it.connection()
    patient = Task(it.relay.stop, None)
    assert not patient.wait(4 * TICK)
    it.relay.stop(TICK)
    patient.result()
    assert end_of(client) == CUT


@linux_only
@pytest.mark.parametrize("kind", ["tcp", "local"])
def test_stop_while_a_target_is_being_reached(
    kind: str, local_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        relay = stalled(stack, kind, connect_timeout=None)
        client = stack.enter_context(dial(relay.address))
        while relay.counters.open == 0:
            time.sleep(TICK / 10)
        time.sleep(2 * TICK)
        relay.stop()
        assert relay.counters[:5] == (0, 1, 0, 1, 0)
        assert caplog.text.endswith(f"{relay.target} was not reached: the relay stops\n")
        assert end_of(client) == "reset"
    assert threading.active_count() == before


def connects_by(way: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Have the engine do all, only what has a target, or nothing; return the options for that."""
    if way == "threads":
        monkeypatch.setattr(Engine, "serves", lambda *_: False)
    return {"retry_for": LIMIT} if way == "both" else {}


WAYS = pytest.mark.parametrize("way", ["engine", "both", pytest.param("threads", marks=pumped)])


@WAYS
@pytest.mark.parametrize("kind", KINDS)
def test_stop_listening(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, way: str, kind: str) -> None:
    """Who is in continues, nobody else comes in, and the address is another relay's at once."""
    it = rig(kind, kind, **connects_by(way, monkeypatch))
    client, server = it.used()
    it.relay.stop_listening()
    assert repr(it.relay) == f"<Relay {it.relay.address} -> {it.target}, no longer listening>"
    with pytest.raises(OSError):
        dial(it.relay.address)
    if not (WINDOWS and kind == "tcp"):
        with Relay(it.relay.address, it.target) as other:
            it.relay.stop_listening()  # which does nothing to the other one
            with dial(other.address) as late, it.listener.accept()[0] as there:
                late.sendall(b"x")
                assert there.recv(1) == b"x"
    server.sendall(b"still")
    assert receive_exactly(client, 5) == b"still"
    it.expect(open=1, bytes_to_client=5)
    client.close()
    server.close()
    it.relay.stop(None)
    it.relay.stop_listening()
    assert it.relay.counters == Counters(0, 1, 0, 0, 0, 1, 5)


def test_stop_listening_while_a_target_is_waited_for(rig: Callable[..., Rig]) -> None:
    """Who was accepted is connected to it nevertheless."""
    it = rig(retry_for=LIMIT)
    address = it.listener.getsockname()
    it.listener.close()
    client = it.client()
    it.expect(open=1)
    it.relay.stop_listening()
    with socket.create_server(address) as it.listener:
        it.listener.settimeout(LIMIT)
        with it.listener.accept()[0] as server:
            server.sendall(b"late")
            assert receive_exactly(client, 4) == b"late"
    assert it.relay.counters[:4] == (1, 1, 0, 0)
    client.close()


@WAYS
def test_stop_listening_from_threads(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Each returns when the listener is closed, also while another one stops the relay patiently."""
    it = rig(**connects_by(way, monkeypatch))
    client, _ = it.used()
    patient = Task(it.relay.stop, None)
    for task in [Task(it.relay.stop_listening) for _ in range(4)]:
        task.result()
        with pytest.raises(ConnectionRefusedError):
            dial(it.relay.address)
    assert not patient.wait(2 * TICK)
    assert repr(it.relay).endswith(", stopping>")
    client.close()
    it.relay.stop()
    patient.result()


def waits() -> dict[int, int]:
    """Return how often each thread but this one has waited for something, by the system's number."""
    threads = [thread.native_id for thread in threading.enumerate() if thread is not threading.current_thread()]
    states = {number: Path(f"/proc/self/task/{number}/status").read_text() for number in threads if number}
    return {number: int(state.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for number, state in states.items()}


@linux_only
@pytest.mark.parametrize(("way", "stops"), [("engine", False), ("engine", True), ("threads", True)])
def test_nothing_wakes_a_relay_that_has_nothing_to_do(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, way: str, stops: bool
) -> None:
    """Not even once in a second, and with a connection that is idle, whose end is waited for or not."""
    it = rig(**connects_by(way, monkeypatch))
    client, server = it.used()
    stopping = Task(it.relay.stop, None) if stops else None
    time.sleep(4 * TICK)
    before = waits()
    time.sleep(1.1)
    assert waits() == before
    assert len(before) > 1
    client.close()
    server.close()
    if stopping is not None:
        stopping.result()


def test_serve_forever_continues_without_a_listener(rig: Callable[..., Rig]) -> None:
    it = rig()
    it.used()
    serving = Task(it.relay.serve_forever)
    it.relay.stop_listening()
    assert not serving.wait(4 * TICK)
    it.relay.stop()
    serving.result()


def test_serve_forever_returns_after_stop(rig: Callable[..., Rig]) -> None:
    it = rig()
    serving = Task(it.relay.serve_forever)
    assert not serving.wait(2 * TICK)
    it.relay.stop()
    serving.result()
    it.relay.serve_forever()  # it has stopped: nothing to wait for


def test_ctrl_c() -> None:
    with Child(relays.until_ctrl_c) as child:
        assert child.line() == "serving"
        time.sleep(4 * TICK)
        child.tell("press")
        start = time.monotonic()
        assert re.fullmatch("interrupted <Relay tcp:.+ -> tcp://:1, stopped>", child.line())
        assert time.monotonic() - start < SLACK
        child.finish()


def test_a_relay_runs_once(rig: Callable[..., Rig]) -> None:
    it = rig()
    with pytest.raises(RuntimeError, match="runs once"):
        it.relay.start()
    it.relay.stop()
    with pytest.raises(RuntimeError, match="runs once"):
        it.relay.start()
    never = Relay("tcp://:0", "tcp://:1")
    never.stop()
    never.serve_forever()
    with pytest.raises(RuntimeError):
        never.start()
    never = Relay("tcp://:0", "tcp://:1")
    never.stop_listening()
    with pytest.raises(RuntimeError):
        never.start()


def test_an_address_in_use(rig: Callable[..., Rig]) -> None:
    it = rig()
    other = Relay(it.relay.address, "tcp://:1")
    descriptors = None if WINDOWS else open_descriptors()
    with pytest.raises(OSError) as caught:
        other.start()
    assert descriptors is None or open_descriptors() == descriptors  # though the error has a trace
    assert any(it.relay.address in note for note in caught.value.__notes__)
    assert other.counters == Counters(0, 0, 0, 0, 0, 0, 0)


def test_a_name_that_cannot_be_listened_on() -> None:
    with pytest.raises(ValueError) as caught:
        Relay(f"tcp://{NO_NAME}:0", "tcp://:1").start()
    assert caught.value.__notes__[-1] == f"listen on tcp://{NO_NAME}:0"


@pytest.mark.parametrize("kind", TRANSPORTS)
def test_a_service_in_use(rig: Callable[..., Rig], kind: str) -> None:
    it = rig(kind)
    with pytest.raises(OSError):
        Relay(it.relay.address, "tcp://:1").start()


def test_a_transport_that_is_not_available() -> None:
    missing = next((transport for transport in hvsock.transports() if transport.unsupported), None)
    assert missing is not None  # hyperv and local exclude each other
    uri = f"hvsock://parent/1?transport={missing.name}"
    for addresses in ((uri, "tcp://:1"), ("tcp://:0", uri)):
        with pytest.raises(OSError, match="is not available: "):
            Relay(*addresses).start()


def test_tcp_is_for_this_machine_alone(rig: Callable[..., Rig]) -> None:
    it = rig()
    assert re.fullmatch(r"tcp://127\.0\.0\.1:[1-9][0-9]*", it.relay.address)
    assert it.relay.target == it.target
    assert repr(it.relay) == f"<Relay {it.relay.address} -> {it.target}, running>"


def test_ipv6(rig: Callable[..., Rig]) -> None:
    it = rig()
    relay = Relay("tcp://[::1]:0", it.target)
    try:
        relay.start()
    except OSError as exc:
        pytest.skip(f"this machine has no IPv6 loopback ({exc})")
    try:
        assert re.fullmatch(r"tcp://\[::1\]:[0-9]+", relay.address)
        port = int(relay.address.rpartition(":")[2])
        with socket.create_connection(("::1", port), LIMIT) as client, it.listener.accept()[0] as server:
            server.sendall(b"x")
            assert client.recv(1) == b"x"
    finally:
        relay.stop()


def test_vsock_by_cid() -> None:
    """Two relays, so that one listens and one connects; CID 1 is the loopback."""
    require("vsock")
    port = hvsock.port_from_service_id(utils.new_service())
    listener = utils.listen("stdlib")
    with (
        listener,
        Relay(f"vsock://:{port}", f"tcp://:{listener.getsockname()[1]}") as inner,
        Relay("tcp://:0", f"vsock://1:{port}") as outer,
        dial(outer.address) as client,
    ):
        client.sendall(b"x")
        with listener.accept()[0] as server:
            assert server.recv(1) == b"x"
        assert receive_all(client) == b""
    assert (inner.counters.total, outer.counters.total) == (1, 1)


# Unix sockets


@posix_only
def test_a_unix_socket_is_removed_and_replaced(local_directory: Path) -> None:
    path = local_directory / "a b?c"
    uri = f"unix://{local_directory}/a%20b%3Fc"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    assert path.is_socket()
    with Relay(uri, "tcp://:1"):
        with pytest.raises(OSError, match="in use"):
            Relay(uri, "tcp://:1").start()
        assert path.is_socket()
    assert not path.exists()
    path.write_text("a file of somebody's")
    with pytest.raises(OSError, match="in use"):
        Relay(uri, "tcp://:1").start()
    assert path.read_text() == "a file of somebody's"


@posix_only
def test_a_unix_socket_in_the_current_directory_is_removed(
    local_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(local_directory)
    with Relay("unix:name", "tcp://:1"):
        assert (local_directory / "name").is_socket()
    assert not (local_directory / "name").exists()


# Hybrid vsock


class Guest:
    """What a hypervisor does at the Unix socket of a hybrid vsock, for one connection."""

    def __init__(self, directory: Path, answer: Callable[[socket.socket], object]) -> None:
        self.path = directory / "v.sock"
        self.request = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._listener.settimeout(LIMIT)
        self._answer = answer
        self._task = Task(self._run)

    def _run(self) -> None:
        with self._listener, self._listener.accept()[0] as sock:
            sock.settimeout(LIMIT)
            while not self.request.endswith(b"\n"):
                self.request += sock.recv(1)
            self._answer(sock)

    def wait(self) -> None:
        self._task.result()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


@posix_only
def test_hybrid_connect(local_directory: Path) -> None:
    """The answer is taken off the stream, and not a byte more."""

    def answer(sock: socket.socket) -> None:
        sock.sendall(b"OK 10737")
        time.sleep(TICK)
        sock.sendall(b"41824\nOK 2\n")
        assert receive_all(sock) == b"CONNECT 3\n"

    with (
        Guest(local_directory, answer) as guest,
        Relay("tcp://:0", f"hybrid://{guest.path}?port=52") as relay,
        dial(relay.address) as client,
    ):
        client.sendall(b"CONNECT 3\n")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"OK 2\n"
        assert guest.request == b"CONNECT 52\n"
    assert relay.counters == Counters(0, 1, 0, 0, 0, 10, 5)


def drip(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"O")
            time.sleep(TICK)


@posix_only
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda sock: None, "nothing listens on port 7 in the guest"),
        (lambda sock: sock.sendall(b"OK 1"), "to CONNECT 7 is not a hybrid vsock"),
        (lambda sock: sock.sendall(b"OK\n"), "to CONNECT 7 is not a hybrid vsock"),
        (lambda sock: sock.sendall(b"OK -1\n"), "to CONNECT 7 is not a hybrid vsock"),
        (
            lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            "to CONNECT 7 is not a hybrid vsock",
        ),
        (lambda sock: sock.sendall(b"O" * 1000), "to CONNECT 7 is not a hybrid vsock"),
        (lambda sock: receive_all(sock), "timed out"),
        (drip, "timed out|is not a hybrid vsock"),
    ],
)
def test_hybrid_answers_that_are_none(
    local_directory: Path, caplog: pytest.LogCaptureFixture, answer: Callable[[socket.socket], None], message: str
) -> None:
    with (
        Guest(local_directory, answer) as guest,
        Relay("tcp://:0", f"hybrid://{guest.path}?port=7", connect_timeout=20 * TICK) as relay,
        contextlib.suppress(ConnectionError),  # cut before it was looked at
        dial(relay.address) as client,
    ):
        assert end_of(client) == "reset"
    assert relay.counters[:5] == (0, 1, 0, 1, 0)
    assert re.search(f"was not reached: .*{message}", caplog.text), caplog.text
    assert not re.search("OK|HTTP|OO", caplog.text), "what the other side has sent is not logged"


@posix_only
def test_stop_during_the_handshake(local_directory: Path) -> None:
    with Guest(local_directory, receive_all) as guest:
        relay = Relay("tcp://:0", f"hybrid://{guest.path}?port=7", connect_timeout=None)
        with relay, dial(relay.address) as client:
            while not guest.request.endswith(b"\n"):
                time.sleep(TICK / 10)
            relay.stop()
            assert end_of(client) == "reset"
    assert relay.counters.failed == 1


def firecracker(answer: bytes, after: float) -> Callable[[socket.socket], None]:
    """Return what Firecracker 1.12 does: the end of the host's stream is the end of both, and drops the answer."""

    def serve_guest(sock: socket.socket) -> None:
        sock.sendall(b"OK 1024\n")
        assert receive_exactly(sock, 7) == b"request"
        end = time.monotonic() + after
        while (left := end - time.monotonic()) > 0:
            if select.select([sock], [], [], left)[0] and not sock.recv(1):
                return
        sock.sendall(answer)

    return serve_guest


def to_the_end(got: list[bytes]) -> Callable[[socket.socket], None]:
    """Return what a guest does that receives a file."""

    def serve_guest(sock: socket.socket) -> None:
        sock.sendall(b"OK 1024\n")
        got.append(receive_all(sock))

    return serve_guest


@posix_only
@pytest.mark.parametrize("source", ["tcp", "unix"])
def test_a_half_close_does_not_cost_the_answer_of_a_hybrid_vsock(local_directory: Path, source: str) -> None:
    with (
        Guest(local_directory, firecracker(b"answer", 8 * TICK)) as guest,
        Relay(free_address(source, local_directory), f"hybrid://{guest.path}?port=7") as relay,
        dial(relay.address) as client,
    ):
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"answer"
    assert relay.counters[:5] == (0, 1, 0, 0, 0)


@posix_only
def test_a_silent_guest_sees_the_end(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what reads to the end, as a file's receiver, would wait for ever."""
    monkeypatch.setattr(Hybrid, "hold", 4 * TICK)
    got: list[bytes] = []
    with (
        Guest(local_directory, to_the_end(got)) as guest,
        Relay("tcp://:0", f"hybrid://{guest.path}?port=7") as relay,
        dial(relay.address) as client,
    ):
        client.sendall(b"a file")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""
    assert got == [b"a file"]
    assert relay.counters[:5] == (0, 1, 0, 0, 0)


@posix_only
def test_a_client_that_has_gone_ends_a_hybrid_vsock_at_once(
    local_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hybrid, "hold", 10 * LIMIT)
    got: list[bytes] = []
    with (
        Guest(local_directory, to_the_end(got)) as guest,
        Relay(free_address("unix", local_directory), f"hybrid://{guest.path}?port=7") as relay,
        dial(relay.address) as client,
    ):
        client.sendall(b"all")
        client.close()
        guest.wait()
    assert got == [b"all"]


@posix_only
def test_hybrid_listen(local_directory: Path) -> None:
    """The guest's connections come without a word before the stream."""
    target, listener = serve("tcp", local_directory)
    with listener, Relay(f"hybrid://{local_directory}/v.sock?port=1024", target) as relay:
        path = local_directory / "v.sock_1024"
        with dial(f"unix://{path}") as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            with listener.accept()[0] as server:
                assert receive_all(server) == b"hello"
        assert relay.address == f"hybrid://{local_directory}/v.sock?port=1024"
    assert not path.exists()


# Addresses


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "",
            "is not of the form VM/SERVICE, vsock:CID:PORT, tcp:HOST:PORT, unix:PATH, hybrid:PATH:PORT, fd:NUMBER or ",
        ),
        ("npipe:", "of the form npipe:NAME"),
        ("npipe:////server/pipe/a", "of the form npipe:NAME"),
        ("npipe:a?b=1", "no option 'b'"),
        (r"\\.\pipe\a", r"; did you mean 'npipe:\\\\.\\pipe\\a'?"),
        ("//./pipe/a", "; did you mean 'npipe://./pipe/a'?"),
        (f"npipe:{'a' * 248}", "the path of a pipe has 256 characters at most"),
        ("localhost:80", "; did you mean 'tcp:localhost:80'?"),
        ("wildcard:5000", "; did you mean 'wildcard/5000'?"),
        ("/run/a", "; did you mean 'unix:/run/a'?"),
        ("udp://:80", "is not of the form VM/SERVICE"),
        ("tcp:80", "; did you mean 'tcp::80'?"),
        ("tcp://", "of the form tcp:HOST:PORT"),
        ("tcp://localhost", "of the form tcp:HOST:PORT"),
        ("tcp://localhost:http", "of the form tcp:HOST:PORT"),
        ("tcp://localhost:65536", "in the range 0..65535, not 65536"),
        ("tcp://localhost:-1", "of the form tcp:HOST:PORT"),
        ("tcp://::1:80", "of the form tcp:HOST:PORT"),
        ("tcp://[::1:80", "of the form tcp:HOST:PORT"),
        ("tcp://user@host:80", "of the form tcp:HOST:PORT"),
        ("tcp://host:80/", "; did you mean 'tcp:host:80'?"),
        ("tcp://host:80?nodelay=1", "no option 'nodelay'"),
        ("tcp://ho st:80", "of the form tcp:HOST:PORT"),
        ("tcp://host:80\n", "of the form tcp:HOST:PORT"),
        ("tcp://host:٨٠", "of the form tcp:HOST:PORT"),
        ("unix://", "of the form unix:PATH"),
        ("unix://run/a", "; did you mean 'unix:run/a'?"),
        ("unix:///run/a/", "; did you mean 'unix:/run/a'?"),
        ("unix:///a%00b", "NUL character"),
        ("unix:///run/a?owner=1", "no option 'owner'"),
        ("hvsock://parent", "VM/SERVICE"),
        ("hvsock://parent/", "neither a GUID nor a port number"),
        ("hvsock://nowhere/5000", "neither a GUID nor one of"),
        ("My VM/5000", "neither a GUID nor one of"),
        ("hvsock://parent/5000?transport=pigeon", "no transport is called 'pigeon'"),
        ("hvsock://parent/5000?transport=local&transport=vsock", "an option is given twice"),
        ("hvsock://parent/5000?", "no option ''"),
        ("vsock://host:5000", "of the form vsock:CID:PORT; did you mean 'hvsock://host/5000'?"),
        ("vsock://2", "of the form vsock:CID:PORT"),
        ("vsock:2/5000", "; did you mean 'vsock:2:5000'?"),
        ("vsock://2:4294967295", "port must be in the range"),
        ("vsock://4294967296:1", "CID must be in the range"),
        ("hybrid:///v.sock", "the port is missing"),
        ("hybrid:///v.sock?port=", "the port is missing"),
        ("hybrid:///v.sock?port=4294967295", "port must be in the range 0..4294967294"),
        ("hybrid:///v.sock?port=5&x=1", "no option 'x'"),
    ],
)
def test_malformed_addresses(uri: str, message: str) -> None:
    for listen, connect in ((uri, "tcp://:1"), ("tcp://:0", uri)):
        with pytest.raises(ValueError, match=re.escape(message)):
            Relay(listen, connect)


@pytest.mark.parametrize(
    "uri",
    [
        "tcp://:0",
        "tcp::0",
        "wildcard/5000",
        "vsock::5000",
        "vsock:-1:5000",
        "vsock://:5000",
        "vsock://4294967295:5000",
        "hvsock://wildcard/5000",
        "hvsock://children/5000",
        "hvsock://ffffffff-ffff-ffff-ffff-ffffffffffff/5000",
    ],
)
def test_addresses_to_listen_on_only(uri: str) -> None:
    assert Relay(uri, "tcp://:1").address == uri
    with pytest.raises(ValueError, match="can be listened on, but not connected to"):
        Relay("tcp://:0", uri)


@pytest.mark.parametrize(
    "uri",
    [
        "tcp://localhost:80",
        "TCP://[fe80::1%eth0]:80",
        "hvsock://parent/5000",
        "hvsock://loopback/00001388-facb-11e6-bd58-64006a7986d3?transport=hyperv",
        "parent/5000",
        "loopback/5000?transport=local",
        "vsock:2:2714018708",
        "vsock://2:4294967294?transport=local",
        "unix:run/a",
        "unix:///run/a%2520b",
        "hybrid:/v.sock:4294967294",
        "hybrid:///v.sock?port=0",
        "npipe:a b.c",
        "npipe:////./pipe/docker_engine",
        "npipe://./pipe/docker_engine",
        r"npipe:\\.\pipe\ProtectedPrefix\a",
        f"npipe:{'a' * 247}",
    ],
)
def test_addresses(uri: str) -> None:
    relay = Relay(uri, uri)
    assert (relay.address, relay.target) == (uri, uri)


# A host with several addresses


Resolved = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


@pytest.fixture
def name_service(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Resolved]], None]:
    """Play the system's: a.host and localhost have these addresses; else localhost is ::1 and 127.0.0.1, as mostly."""
    resolve = socket.getaddrinfo

    def ask(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        if known and host in ("a.host", "localhost"):
            return known
        hosts = ("::1", "127.0.0.1") if host == "localhost" else (host,)
        return [answer for host in hosts for answer in resolve(host, port, *args, **kwargs)]

    known: list[Resolved] = []
    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return known.extend


def on_loopback(port: int, host: str = "127.0.0.1") -> Resolved:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (host, port, 0, 0) if ":" in host else (host, port))


def test_it_listens_on_every_address_of_a_name(rig: Callable[..., Rig], name_service: object) -> None:
    if not has_ipv6_loopback():
        pytest.skip("this machine has no IPv6 loopback: run it on one that has")
    it = rig()
    with Relay("tcp://localhost:0", it.target) as relay:
        port = int(relay.address.removeprefix("tcp://localhost:"))
        for _ in range(2):
            for host in ("::1", "127.0.0.1"):
                with socket.create_connection((host, port), LIMIT) as client, it.listener.accept()[0] as server:
                    server.sendall(b"x")
                    assert client.recv(1) == b"x"
        for host in ("::1", "127.0.0.1"):
            other = Relay(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}", it.target)
            with pytest.raises(OSError) as caught:
                other.start()
            assert caught.value.errno == errno.EADDRINUSE
    assert relay.counters.total == 4


def has_ipv6_loopback() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_an_address_that_this_machine_lacks_is_not_listened_on(
    rig: Callable[..., Rig], name_service: Callable[[list[Resolved]], None]
) -> None:
    """As ::1 without IPv6. 192.0.2.1 is for documentation only."""
    it = rig()
    name_service([on_loopback(0, "192.0.2.1"), on_loopback(0), on_loopback(0)])
    with Relay("tcp://a.host:0", it.target) as relay:
        assert re.fullmatch(r"tcp://127\.0\.0\.1:[0-9]+", relay.address)
        with dial(relay.address), it.listener.accept()[0]:
            pass


def test_a_host_that_is_elsewhere_cannot_be_listened_on(name_service: Callable[[list[Resolved]], None]) -> None:
    name_service([on_loopback(0, "192.0.2.1")])
    with pytest.raises(OSError) as caught:
        Relay("tcp://a.host:0", "tcp://:1").start()
    assert caught.value.errno in (errno.EADDRNOTAVAIL, 10049)


def test_a_port_that_one_address_has_not_free(
    rig: Callable[..., Rig], name_service: Callable[[list[Resolved]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With port 0 another one is tried; nothing stays open of the first."""
    if not has_ipv6_loopback():
        pytest.skip("this machine has no IPv6 loopback: run it on one that has")
    it = rig()
    listener, tried = _tcp._listener, list[Any]()

    def taken_once(family: int, kind: int, proto: int, address: Any) -> socket.socket:
        tried.append(address[:2])
        if len(tried) == 2:
            raise OSError(errno.EADDRINUSE, "taken")
        return listener(family, kind, proto, address)

    monkeypatch.setattr(_tcp, "_listener", taken_once)
    with Relay("tcp://localhost:0", it.target) as relay:
        port = int(relay.address.rpartition(":")[2])
    assert tried == [("::1", 0), ("127.0.0.1", tried[1][1]), ("::1", 0), ("127.0.0.1", port)]


def test_addresses_of_two_families_are_tried_by_turns() -> None:
    six, four = [on_loopback(port, "::1") for port in (1, 2, 3)], [on_loopback(port) for port in (4,)]
    assert _tcp._by_turns([*six, *four]) == [six[0], four[0], six[1], six[2]]
    assert _tcp._by_turns([*four, *six]) == [four[0], six[0], six[1], six[2]]


@linux_only
def test_an_address_that_does_not_answer_costs_a_head_start(
    rig: Callable[..., Rig], name_service: Callable[[list[Resolved]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not its share of the time; and what it was tried with is closed."""
    monkeypatch.setattr(_tcp, "_HEAD_START", 2 * TICK)
    it = rig(connect_timeout=None)
    with contextlib.ExitStack() as stack:
        silent = utils.full_listener("stdlib", stack)
        name_service([on_loopback(silent.getsockname()[1]), on_loopback(it.listener.getsockname()[1])])
        relay = stack.enter_context(Relay("tcp://:0", "tcp://a.host:80", connect_timeout=None))
        with dial(relay.address) as client, it.listener.accept()[0] as server:
            server.sendall(b"x")
            assert client.recv(1) == b"x"
            open_now = open_descriptors()
        with dial(relay.address), it.listener.accept()[0]:
            assert open_descriptors() <= open_now + 1  # the one before may still have its own


def test_an_address_that_refuses_costs_nothing(
    rig: Callable[..., Rig], name_service: Callable[[list[Resolved]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tcp, "_HEAD_START", 2 * LIMIT)
    it = rig()
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        name_service([on_loopback(sock.getsockname()[1]) for sock in (reserved, it.listener)])
        relay = Relay("tcp://:0", "tcp://a.host:80")
        with relay, dial(relay.address) as client, it.listener.accept()[0] as server:
            server.sendall(b"x")
            assert client.recv(1) == b"x"


@linux_only
def test_what_is_late_about_one_address_says_nothing_about_the_next(
    name_service: Callable[[list[Resolved]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The first one refuses, the second one stays silent."""
    with contextlib.ExitStack() as stack:
        reserved = stack.enter_context(socket.socket())
        reserved.bind(("127.0.0.1", 0))
        silent = utils.full_listener("stdlib", stack)
        name_service([on_loopback(sock.getsockname()[1]) for sock in (reserved, silent)])
        relay = stack.enter_context(Relay("tcp://:0", "tcp://localhost:80", connect_timeout=4 * TICK))
        with dial(relay.address) as client:
            assert end_of(client) == "reset"
        utils.wait_for(lambda: "localhost:80 was not reached: timed out" in caplog.text)
        assert relay.counters[:5] == (0, 1, 0, 1, 0)


def test_an_address_of_localhost_that_fails_at_once(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """As ::1 without IPv6: the next one is tried by the engine too."""
    it = rig()
    port = it.listener.getsockname()[1]
    resolve, found = socket.getaddrinfo, [on_loopback(port, host) for host in ("255.255.255.255", "127.0.0.1")]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *args, **kw: found if host == "localhost" else resolve(host, *args, **kw)
    )
    relay = Relay("tcp://:0", f"tcp://localhost:{port}")
    with relay, dial(relay.address) as client, it.listener.accept()[0] as server:
        server.sendall(b"x")
        assert client.recv(1) == b"x"


@linux_only
def test_addresses_that_all_stay_silent_time_out_together(
    name_service: Callable[[list[Resolved]], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tcp, "_HEAD_START", TICK)
    with contextlib.ExitStack() as stack:
        silent = [utils.full_listener("stdlib", stack) for _ in range(2)]
        name_service([on_loopback(sock.getsockname()[1]) for sock in silent])
        relay = stack.enter_context(Relay("tcp://:0", "tcp://a.host:80", connect_timeout=4 * TICK))
        with contextlib.suppress(ConnectionError), dial(relay.address) as client:  # cut before it was looked at
            assert end_of(client) == "reset"
    assert "a.host:80 was not reached: timed out" in caplog.text
    assert relay.counters[:5] == (0, 1, 0, 1, 0)


# Families


@pytest.mark.skipif(sys.platform != "linux", reason="it is seccomp that denies: run it on Linux")
def test_no_family_that_was_not_asked_for(local_directory: Path) -> None:
    """Under systemd's RestrictAddressFamilies=AF_VSOCK AF_UNIX, as docs/howto/systemd.md has it."""
    require("local")
    target, listener = serve("local", local_directory)
    with listener, Child(relays.with_two_families, target, local_directory) as child:
        with dial(child.line()) as client, listener.accept()[0] as server:
            server.sendall(b"x")
            assert client.recv(1) == b"x"
        child.tell("stop")
        assert child.finish() == [str(Counters(0, 1, 0, 0, 0, 0, 1))]


@posix_only
def test_a_path_that_is_too_long() -> None:
    with pytest.raises(ValueError, match=r"must stay below [0-9]+ bytes"):
        Relay("tcp://:0", "unix:///" + 200 * "a")


@pytest.mark.parametrize(
    "uri",
    [
        pytest.param("unix:///{}", marks=posix_only),
        pytest.param("hybrid:///{}?port=1", marks=posix_only),
        "tcp://{}",
        "vsock://{}:1",
        "hvsock://{}/5",
        "hvsock://parent/{}",
        "hvsock://parent/5?transport={}",
        "hvsock://parent/5?{}=x",
        "{}",
    ],
)
def test_errors_shorten_what_is_wrong(uri: str) -> None:
    with pytest.raises(ValueError) as info:
        Relay("tcp://:0", uri.format("a" * 10_000))
    assert len(str(info.value)) < 1000


@given(
    st.one_of(
        st.text(), st.builds("{}://{}".format, st.sampled_from(["tcp", "unix", "hvsock", "vsock", "hybrid"]), st.text())
    )
)
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert Relay(text, "tcp://:1").address == text


@pytest.mark.parametrize("name", ["connect_timeout", "idle_timeout"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_malformed_timeouts(name: str, value: float) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be a number of seconds above 0, or None"):
        Relay("tcp://:0", "tcp://:1", **arguments)


def test_other_malformed_arguments() -> None:
    with pytest.raises(ValueError, match="max_connections must be at least 1, not 0"):
        Relay("tcp://:0", "tcp://:1", max_connections=0)
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="retry_for must be a finite number of seconds, at least 0, not"):
            Relay("tcp://:0", "tcp://:1", retry_for=value)
    with pytest.raises(TypeError, match="an address must be a str, not 80"):
        Relay(80, "tcp://:1")  # type: ignore[arg-type]
    for value in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="timeout must be"):
            Relay("tcp://:0", "tcp://:1").stop(value)


# The pump


class Ends(NamedTuple):
    """A pump between two pairs of sockets."""

    pump: Pump
    client: socket.socket
    a: socket.socket
    b: socket.socket
    server: socket.socket


@pytest.fixture
def ends() -> Iterator[Ends]:
    client, a = socket.socketpair()
    b, server = socket.socketpair()
    with client, a, b, server:
        for sock in (client, server):
            sock.settimeout(LIMIT)
        yield Ends(Pump(), client, a, b, server)


@pumped
def test_pump_counts_while_it_runs(ends: Ends) -> None:
    task = Task(ends.pump.run, ends.a.fileno(), ends.b.fileno(), None, None)
    ends.client.sendall(b"12345")
    assert receive_exactly(ends.server, 5) == b"12345"
    ends.server.sendall(b"123")
    assert receive_exactly(ends.client, 3) == b"123"
    end = time.monotonic() + LIMIT
    while ends.pump.transferred != (5, 3):  # counted once they are sent: the receiver may be sooner
        assert time.monotonic() < end, ends.pump.transferred
    ends.client.close()
    ends.server.close()
    assert task.result() is True


@pumped
def test_pump_that_was_stopped(ends: Ends) -> None:
    task = Task(ends.pump.run, ends.a.fileno(), ends.b.fileno(), None, None)
    assert not task.wait(2 * TICK)
    ends.pump.stop()
    assert task.result() is False
    ends.pump.stop()
    assert ends.pump.run(ends.a.fileno(), ends.b.fileno(), None, None) is False
    ends.client.sendall(b"x")
    assert ends.a.recv(1) == b"x"  # the handles are still open


@pumped
def test_pump_keeps_an_end(ends: Ends) -> None:
    """For less time once an answer has begun, and not while a slow reader is what holds it up."""
    task = Task(ends.pump.run, ends.a.fileno(), ends.b.fileno(), None, 80 * TICK)
    ends.client.sendall(b"request")
    ends.client.shutdown(socket.SHUT_WR)
    assert receive_exactly(ends.server, 7) == b"request"
    assert select.select([ends.server], [], [], 12 * TICK)[0] == []
    sent = fill(ends.server)
    assert select.select([ends.server], [], [], 12 * TICK)[0] == []
    began = time.monotonic()
    assert len(receive_exactly(ends.client, sent)) == sent
    assert ends.server.recv(1) == b""
    assert time.monotonic() - began < 60 * TICK
    ends.server.close()
    assert task.result() is True


@pumped
def test_pump_sleeps(ends: Ends) -> None:
    """It uses no processor while it can do nothing, whatever the sockets' states."""
    task = Task(ends.pump.run, ends.a.fileno(), ends.b.fileno(), None, None)

    def rest() -> None:
        time.sleep(2 * TICK)
        began, used = time.monotonic(), time.process_time()
        time.sleep(10 * TICK)
        assert time.process_time() - used < (time.monotonic() - began) / 2
        assert task.running

    rest()
    fill(ends.client)  # nobody reads
    rest()
    ends.client.shutdown(socket.SHUT_WR)
    rest()
    ends.server.shutdown(socket.SHUT_WR)
    assert receive_all(ends.client) == b""
    rest()
    ends.client.close()  # which hangs up, while its data still waits for the reader
    rest()
    receive_all(ends.server)
    task.result()


@pumped
@pytest.mark.parametrize("direction", [0, 1])
def test_pump_of_a_closed_descriptor(ends: Ends, direction: int) -> None:
    number = ends.a.fileno()
    ends.a.close()
    pair = (number, ends.b.fileno())
    with pytest.raises(OSError):
        ends.pump.run(*(pair if direction == 0 else pair[::-1]), None, None)


@pumped
def test_pump_times_out(ends: Ends) -> None:
    with pytest.raises(TimeoutError, match="idle timeout"):
        ends.pump.run(ends.a.fileno(), ends.b.fileno(), TICK, None)


@pumped
def test_pump_arguments(ends: Ends) -> None:
    run: Any = ends.pump.run
    a, b = ends.a.fileno(), ends.b.fileno()
    for wrong in ((), (a, b), (a, b, None), (a, b, None, None, 1), ("a", b, None, None), (a, None, None, None)):
        with pytest.raises(TypeError):
            run(*wrong)
    for name, limits in (("idle timeout", lambda x: (x, None)), ("hold", lambda x: (None, x))):
        with pytest.raises(TypeError):
            run(a, b, *limits("1"))
        for seconds in (0.0, -1.0, -2, float("nan")):
            with pytest.raises(ValueError, match=f"the {name} must be above zero"):
                run(a, b, *limits(seconds))
    with pytest.raises(OverflowError):
        run(1 << 70, b, None, None)
    with pytest.raises(TypeError):
        Pump(1)  # type: ignore[call-arg]


@pumped
def test_pump_is_stopped_as_often_as_one_likes(ends: Ends) -> None:
    """It never waits for room to say so, with or without a run that could hear it."""
    task = Task(lambda: [ends.pump.stop() for _ in range(100_000)])
    assert task.result() == [None] * 100_000
    assert ends.pump.run(ends.a.fileno(), ends.b.fileno(), None, None) is False


@pumped
def test_pumps_leave_nothing() -> None:
    before = open_descriptors()
    for _ in range(100):
        Pump().stop()
    assert open_descriptors() == before
