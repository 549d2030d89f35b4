"""busy_poll: a receive or accept tries for a while before it sleeps, and does everything else as without it."""

from __future__ import annotations

import contextlib
import gc
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import utils
from children import closing, signals, threads, traced
from strace import system_calls
from utils import LIMIT, SLACK, TICK, WINDOWS, Child, Task, connected, run_child, takes

import hvsock

Pair = tuple[hvsock.HyperVSocket, hvsock.HyperVSocket]

posix_only = pytest.mark.skipif(WINDOWS, reason="POSIX only: Windows has no such call, flag or signal")

LONGEST = 1_000_000
RECEIVES = ["recv", "recv_into", "recv_message", "recv_message_into", "recv_exactly", "recv_exactly_into", "exchange"]


def receive(sock: hvsock.HyperVSocket, operation: str) -> bytes:
    """Receive the message b"hello", or as bytes what it is on the wire."""
    buffer = bytearray(9)
    calls: dict[str, Callable[[], Any]] = {
        "recv": lambda: sock.recv(9),
        "recv_into": lambda: buffer[: sock.recv_into(buffer)],
        "recv_message": lambda: b"\0\0\0\5" + sock.recv_message(),
        "recv_message_into": lambda: b"\0\0\0\5" + buffer[: sock.recv_message_into(buffer)],
        "recv_exactly": lambda: sock.recv_exactly(9),
        "recv_exactly_into": lambda: buffer[: sock.recv_exactly_into(buffer)],
        "exchange": lambda: b"\0\0\0\5" + sock.exchange(b"request"),
    }
    return bytes(calls[operation]())


HELLO = b"\0\0\0\5hello"


# The property


@pytest.mark.parametrize("timeout", ["none", "limit"])
def test_set_during_receives(ours: str, timeout: str) -> None:
    """Another thread may do it at any moment: nothing is lost or received twice."""
    run_child(threads.busy_poll_set_during_receives, ours, timeout)


def test_values(ours: str) -> None:
    with connected(ours) as (a, _):
        assert a.busy_poll == 0
        for value in (1, 50, LONGEST, 0, True):
            a.busy_poll = value
            assert a.busy_poll == value
            assert type(a.busy_poll) is int
        a.busy_poll = 7
        for wrong, error in (
            (-1, ValueError),
            (LONGEST + 1, ValueError),
            (1 << 100, OverflowError),
            (-(1 << 100), OverflowError),
            (1.0, TypeError),
            ("1", TypeError),
            (None, TypeError),
        ):
            with pytest.raises(error) as info:
                a.busy_poll = wrong  # type: ignore[assignment]
            assert str(info.value)
            assert a.busy_poll == 7
        with pytest.raises(AttributeError):
            del a.busy_poll
        a.close()
        assert a.busy_poll == 7


def test_accepted_sockets_and_copies_inherit_it(ours: str) -> None:
    with utils.listen(ours) as listener, utils.dialler(ours) as client:
        listener.busy_poll = 33
        client.settimeout(LIMIT)
        connecting = Task(client.connect, listener.getsockname())
        with listener.accept()[0] as accepted, accepted.dup() as copy:
            connecting.result()
            assert accepted.busy_poll == copy.busy_poll == 33
            accepted.busy_poll = 1
            assert (listener.busy_poll, copy.busy_poll, client.busy_poll) == (33, 33, 0)
        with listener.dup() as copy:
            assert copy.busy_poll == 33


# A call with it


@pytest.mark.parametrize("operation", RECEIVES)
@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["blocking", "timeout"])
@pytest.mark.parametrize("spin", [1000, LONGEST], ids=["after", "during"])
def test_receives(ours: str, operation: str, timeout: float | None, spin: int) -> None:
    """What arrives before, during or after the spin is received."""
    with connected(ours, timeout) as (a, b):
        a.busy_poll = spin
        if operation != "recv_message":
            b.sendall(HELLO)
            assert receive(a, operation) == HELLO
        task = Task(receive, a, operation)
        assert not task.wait(2 * TICK)
        b.sendall(HELLO)
        assert task.result() == HELLO
        if operation not in ("recv", "recv_into"):
            task = Task(receive, a, operation)
            for byte in HELLO:
                assert not task.wait(TICK / 5)
                b.sendall(bytes([byte]))
            assert task.result() == HELLO


@pytest.mark.parametrize("operation", RECEIVES)
@pytest.mark.parametrize("spin", [1000, LONGEST], ids=["shorter", "longer"])
def test_timeout_holds(ours: str, operation: str, spin: int) -> None:
    """Whether the spin is shorter or longer than the timeout."""
    with connected(ours, 3 * TICK) as (a, b):
        a.busy_poll = spin
        for _ in range(2):
            with takes(3 * TICK, SLACK), pytest.raises(TimeoutError):
                Task(receive, a, operation).result()
        b.sendall(HELLO)
        a.settimeout(LIMIT)
        assert receive(a, operation) == HELLO


@pytest.mark.parametrize("spin", [1000, LONGEST], ids=["shorter", "longer"])
def test_accept(transport: str, spin: int) -> None:
    with utils.listen(transport) as listener:
        listener.busy_poll = spin
        listener.settimeout(3 * TICK)
        with takes(3 * TICK, SLACK), pytest.raises(TimeoutError):
            Task(listener.accept).result()
        for timeout in (None, LIMIT):
            listener.settimeout(timeout)
            accepting = Task(listener.accept)
            assert not accepting.wait(2 * TICK)
            with hvsock.create_connection(listener.getsockname(), timeout=LIMIT, transport=transport) as client:
                accepted, address = accepting.result()
                with accepted:
                    assert address.service_id == client.getsockname().service_id
                    client.sendall(b"x")
                    assert accepted.recv(1) == b"x"


def test_nonblocking_calls_do_not_spin(ours: str) -> None:
    """Twenty spins would take twenty seconds."""
    with connected(ours, 0) as (a, b):
        a.busy_poll = LONGEST
        with takes(0, max(15.0, SLACK)):
            for operation in RECEIVES[:-1]:
                for _ in range(3):
                    with pytest.raises(BlockingIOError):
                        receive(a, operation)
            for size in (100_000,):
                with pytest.raises(BlockingIOError):
                    a.recv(size)
                with pytest.raises(BlockingIOError):
                    a.recv_exactly(size)
            with pytest.raises(BlockingIOError):
                receive(a, "exchange")
        b.settimeout(LIMIT)
        assert b.recv_message() == b"request"


def test_nonblocking_accept_does_not_spin(transport: str) -> None:
    with utils.listen(transport) as listener:
        listener.busy_poll = LONGEST
        listener.settimeout(0)
        with takes(0, max(15.0, SLACK)):
            for _ in range(20):
                with pytest.raises(BlockingIOError):
                    listener.accept()


def test_sends_and_connects_do_not_spin(transport: str) -> None:
    with utils.listen(transport) as listener, hvsock.HyperVSocket(transport=transport) as client:
        client.busy_poll = LONGEST
        client.settimeout(LIMIT)
        with takes(0, max(15.0, SLACK)):
            client.connect(listener.getsockname())
            with listener.accept()[0] as accepted:
                for _ in range(20):
                    client.send(b"x")
                    client.send_message(b"x")
                    client.getpeername()
                assert len(utils.receive_exactly(accepted, 120)) == 120


def test_others_run_while_it_spins(ours: str) -> None:
    """The interpreter is free for other threads."""
    with connected(ours, LONGEST / 1e6) as (a, _):
        a.busy_poll = LONGEST
        spinning = Task(a.recv, 1)
        turns = 0
        while spinning.running:
            turns += 1
            time.sleep(0.001)
        assert type(spinning.error()) is TimeoutError
    assert turns > 5


@pytest.mark.skipif(not WINDOWS, reason="Windows only: elsewhere test_faults.test_spin counts the tries")
def test_it_spins(ours: str) -> None:
    """The processor works; whoever else wants the core ends a spin, so there are several."""
    with connected(ours, LONGEST / 1e6) as (a, _):
        a.busy_poll = LONGEST
        start, deadline = time.thread_time(), time.monotonic() + LIMIT
        # Waiting asleep takes a fifth of a millisecond of it.
        while time.thread_time() - start < 0.02:
            assert time.monotonic() < deadline
            with pytest.raises(TimeoutError):
                a.recv(1)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: sleeps of a single thread are counted")
def test_message_spins_for_each_part(ours: str) -> None:
    """It is busy_poll for each wait, not for the message."""
    import resource

    with connected(ours, LIMIT) as (a, b):
        a.busy_poll = LONGEST

        def receive() -> int:
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
            assert a.recv_message() == b"hello"
            return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before

        def sleeps() -> int:
            receiving = Task(receive)
            time.sleep(TICK / 10)
            b.sendall(HELLO[:6])
            time.sleep(TICK / 10)
            b.sendall(HELLO[6:])
            slept: int = receiving.result()
            return slept

        # Whoever else wants the core sends it to sleep: then it is tried again.
        utils.wait_for(lambda: sleeps() == 0)


@posix_only
def test_no_spin_where_data_is_ready(ours: str, tmp_path: Path) -> None:
    """Then it is the one system call that it always is."""
    calls = system_calls(traced.streams, ours, tmp_path, "limit", LONGEST)
    assert set(calls) == {"recv", "recv_into", "send", "sendall", "sendmsg"}
    for operation, made in calls.items():
        assert len(made) == 100, operation


# Ends


@pytest.mark.parametrize("operation", ["recv", "recv_message", "exchange", "accept"])
@pytest.mark.parametrize("spin", [1000, LONGEST], ids=["after", "during"])
def test_close_wakes(ours: str, operation: str, spin: int) -> None:
    """A close ends the call, while it spins or after that."""
    if operation == "accept" and ours == "adopted":
        pytest.skip("accept has its test on transports: elsewhere it is the standard library's")
    run_child(closing.close_wakes, ours, operation, "none" if spin < LONGEST else "limit", 8, spin)


@pytest.mark.parametrize("operation", ["recv", "recv_message", "exchange"])
def test_end_of_stream(ours: str, operation: str) -> None:
    with connected(ours) as (a, b):
        a.busy_poll = LONGEST
        task = Task(receive, a, operation)
        assert not task.wait(2 * TICK)
        b.shutdown(socket.SHUT_WR)
        if operation == "recv":
            assert task.result() == b""
        else:
            assert type(task.error()) is EOFError


@pytest.mark.parametrize("operation", ["recv", "recv_message", "exchange", "accept"])
@pytest.mark.parametrize("spin", [1000, LONGEST], ids=["after", "during"])
def test_ctrl_c(ours: str, operation: str, spin: int) -> None:
    """At the latest when the spin is over."""
    if operation == "accept" and ours == "adopted":
        pytest.skip("accept has its test on transports: elsewhere it is the standard library's")
    with Child(signals.interrupted, ours, operation, "none", spin) as child:
        assert child.line() == "waiting"
        time.sleep(2 * TICK)
        start = time.monotonic()
        if WINDOWS:
            child.tell("raise")
        else:
            child.process.send_signal(2)
        assert child.line() == "interrupted"
        assert time.monotonic() - start < LONGEST / 1e6 + SLACK
        child.finish()


def test_threads(ours: str) -> None:
    """Several threads that exchange, all of which would spin, still take turns."""

    def echo(sock: hvsock.HyperVSocket) -> None:
        with contextlib.suppress(EOFError):
            while True:
                sock.send_message(sock.recv_message())

    def talk(sock: hvsock.HyperVSocket, thread: int) -> None:
        for number in range(20):
            request = b"%d %d" % (thread, number)
            assert sock.exchange(request) == request

    with connected(ours) as (a, b):
        a.busy_poll = b.busy_poll = 200
        echoing = Task(echo, b)
        for task in [Task(talk, a, thread) for thread in range(4)]:
            task.result()
        a.shutdown(socket.SHUT_WR)
        echoing.result()


def test_collected_while_it_spins(ours: str) -> None:
    """The call holds the socket: dropping the last name of it takes nothing from under the spin."""
    pair = utils.make_pair(ours, 4 * TICK)
    pair[0].busy_poll = LONGEST

    def spin(sockets: list[socket.socket]) -> None:
        with pytest.raises(TimeoutError):
            sockets.pop().recv(1)

    sockets = [pair[0]]
    with pair[1]:
        del pair
        with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031
            task = Task(spin, sockets)
            while sockets:
                time.sleep(TICK / 10)
            gc.collect()
            task.result()
            del task
            gc.collect()
