"""Timeouts, close from another thread, Ctrl-C, descriptors: what a call does besides moving bytes."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import socket
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import utils
from children import closing, descriptors, forks, signals, threads, traced
from strace import system_calls
from utils import LIMIT, SLACK, TICK, WINDOWS, Child, Task, connected, run_child, takes

import hvsock
from hvsock._hvsock import Socket

posix_only = pytest.mark.skipif(WINDOWS, reason="POSIX only: Windows has no such call, flag or signal")

CALLS = ["recv", "recv_into", "send", "sendall", "sendmsg"]


def blocked_call(a: socket.socket, operation: str) -> Callable[[], object]:
    """Return a call that cannot proceed: nothing comes, or the buffer is full."""
    timeout = a.gettimeout()
    if operation.startswith("send"):
        utils.fill(a)
        a.settimeout(timeout)
    calls: dict[str, Callable[[], object]] = {
        "recv": lambda: a.recv(1),
        "recv_into": lambda: a.recv_into(bytearray(1)),
        "send": lambda: a.send(b"xy"),
        "sendall": lambda: a.sendall(bytes(1 << 20)),
        "sendmsg": lambda: a.sendmsg([b"x", b"y"]),
    }
    return calls[operation]


def skip_without_sendmsg(implementation: str, operation: str) -> None:
    if implementation == "stdlib" and operation == "sendmsg" and not hasattr(socket.socket, "sendmsg"):
        pytest.skip("the oracle has no sendmsg on Windows; ours has")


# Timeouts


@pytest.mark.parametrize("operation", CALLS)
def test_timeout_holds(implementation: str, operation: str) -> None:
    skip_without_sendmsg(implementation, operation)
    with connected(implementation, 3 * TICK) as (a, b):
        for _ in range(2):
            call = blocked_call(a, operation)  # TCP finds room for a few bytes more from time to time
            with takes(3 * TICK, SLACK), pytest.raises(TimeoutError) as info:
                Task(call).result()
            assert type(info.value) is TimeoutError
            assert str(info.value) == "timed out"
            assert info.value.errno is None
        assert a.gettimeout() == pytest.approx(3 * TICK)
        # Nothing was lost, and nothing is left over.
        if operation.startswith("recv"):
            b.sendall(b"later")
            assert utils.receive_exactly(a, 5) == b"later"


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["blocking", "timeout"])
def test_call_waits(implementation: str, operation: str, timeout: float | None) -> None:
    """Without a timeout, or within it, a call waits for as long as it takes."""
    skip_without_sendmsg(implementation, operation)
    with connected(implementation, timeout) as (a, b):
        task = Task(blocked_call(a, operation))
        assert not task.wait(4 * TICK)
        if operation.startswith("recv"):
            b.sendall(b"x")
        else:
            a_ends = Task(utils.receive_all, b)
        assert task.result() in (b"x", 1, 2, None)
        if not operation.startswith("recv"):
            a.shutdown(socket.SHUT_WR)
            a_ends.result()


def test_sendall_has_one_deadline(implementation: str) -> None:
    """A peer that reads a little now and then does not prolong the timeout of sendall."""
    with connected(implementation, 8 * TICK) as (a, b):
        done = False

        def trickle() -> None:
            b.settimeout(LIMIT)
            while not done:
                b.recv(20_000)
                time.sleep(TICK)

        trickling = Task(trickle)
        with takes(8 * TICK, SLACK), pytest.raises(TimeoutError):
            Task(a.sendall, bytes(64 << 20)).result()
        done = True
        trickling.result()


def test_each_receive_has_its_own_timeout(implementation: str) -> None:
    """Many receives together take longer than the timeout; each has much more time than it needs."""
    with connected(implementation, 20 * TICK) as (a, b):

        def trickle() -> None:
            for _ in range(8):
                time.sleep(3 * TICK)
                b.sendall(b"drop")

        trickling = Task(trickle)
        assert utils.receive_exactly(a, 32) == b"drop" * 8
        trickling.result()


def test_timeout_can_change(our_pair: tuple[socket.socket, socket.socket]) -> None:
    """Every change of the timeout, by whatever method, is the one that the next call has."""
    a, b = our_pair
    for _ in range(2):
        a.settimeout(0)
        with pytest.raises(BlockingIOError):
            a.recv(1)
        a.settimeout(TICK)
        with pytest.raises(TimeoutError):
            a.recv(1)
        a.setblocking(False)
        with pytest.raises(BlockingIOError):
            a.recv(1)
        a.setblocking(True)
        assert a.gettimeout() is None
        task = Task(a.recv, 1)
        assert not task.wait(2 * TICK)
        b.sendall(b"x")
        assert task.result() == b"x"
        socket.socket.settimeout(a, None)


def test_tiny_timeout(our_pair: tuple[socket.socket, socket.socket]) -> None:
    """The smallest timeout is a timeout: it neither blocks for ever nor makes the socket non-blocking."""
    a, b = our_pair
    a.settimeout(1e-9)
    with takes(0, SLACK), pytest.raises(TimeoutError):
        Task(a.recv, 1).result()
    b.sendall(b"x")
    time.sleep(TICK)
    assert a.recv(1) == b"x"


def test_huge_timeout(our_pair: tuple[socket.socket, socket.socket]) -> None:
    """A timeout of years does not overflow into none at all."""
    a, b = our_pair
    # On Windows, settimeout() takes no more milliseconds than fit an int.
    for timeout in (2**31 / 1000 - 1,) if WINDOWS else (2**31 / 1000 + 1, 2**32 / 1000, 1e9):
        a.settimeout(timeout)
        task = Task(a.recv, 1)
        assert not task.wait(2 * TICK)
        b.sendall(b"x")
        assert task.result() == b"x"


def test_accept_timeout(transport: str) -> None:
    with utils.listen(transport) as listener:
        listener.settimeout(3 * TICK)
        with takes(3 * TICK, SLACK), pytest.raises(TimeoutError):
            Task(listener.accept).result()
        listener.settimeout(0)
        with pytest.raises(BlockingIOError) as info:
            listener.accept()
        assert not getattr(info.value, "__notes__", None)
        listener.settimeout(LIMIT)
        with hvsock.create_connection(listener.getsockname(), timeout=LIMIT, transport=transport) as client:
            accepted, address = listener.accept()
            with accepted:
                assert address.service_id == client.getsockname().service_id


@posix_only
@pytest.mark.parametrize("timeout", [3 * TICK, 0.0])
def test_accept_timeout_beside_a_blocking_owner(transport: str, timeout: float) -> None:
    """Another object on the same handle, here or in another process, has made it blocking."""
    with utils.listen(transport) as listener:
        listener.settimeout(timeout)
        with socket.socket(fileno=os.dup(listener.fileno())) as other:
            other.setblocking(True)
            task = Task(listener.accept)
            assert isinstance(task.error(), TimeoutError if timeout else BlockingIOError)
            listener.settimeout(LIMIT)
            other.setblocking(True)
            task = Task(listener.accept)
            assert not task.wait(TICK)
            listener.close()
            error = task.error()
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF


@contextlib.contextmanager
def full_listener() -> Iterator[hvsock.HyperVSocket]:
    """A listener whose backlog is full: on `local`, as on AF_UNIX, one more connect waits."""
    with contextlib.ExitStack() as stack:
        yield utils.full_listener("local", stack)


def accept_all(listener: hvsock.HyperVSocket) -> int:
    """Accept and close what is in the backlog, and return how many there were."""
    listener.settimeout(4 * TICK)
    count = 0
    with contextlib.suppress(TimeoutError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


def test_connect_timeout(local: str) -> None:
    """The deadline of a connect holds, and no connection comes of it later."""
    with full_listener() as listener, hvsock.HyperVSocket(transport=local) as sock:
        address = listener.getsockname()
        sock.settimeout(3 * TICK)
        with takes(3 * TICK, SLACK), pytest.raises(TimeoutError) as info:
            Task(sock.connect, address).result()
        assert any("connect" in note for note in info.value.__notes__)
        with takes(3 * TICK, SLACK), pytest.raises(TimeoutError):
            Task(hvsock.create_connection, address, timeout=3 * TICK, transport=local).result()
        waiting = accept_all(listener)
        assert waiting >= 1
        assert accept_all(listener) == 0
        # The same socket can dial again.
        listener.settimeout(LIMIT)
        sock.settimeout(LIMIT)
        sock.connect(address)
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"x")
            assert sock.recv(1) == b"x"


def test_connect_timeout_beside_a_blocking_owner(local: str) -> None:
    with full_listener() as listener, hvsock.HyperVSocket(transport=local) as sock:
        sock.settimeout(3 * TICK)
        with socket.socket(fileno=os.dup(sock.fileno())) as other:
            other.setblocking(True)
            assert isinstance(Task(sock.connect, listener.getsockname()).error(), TimeoutError)


def test_connect_waits_for_room(local: str) -> None:
    """A connect without a timeout, or within it, goes on when the backlog has room."""
    for timeout in (None, LIMIT):
        with full_listener() as listener, hvsock.HyperVSocket(transport=local) as sock:
            sock.settimeout(timeout)
            task = Task(sock.connect, listener.getsockname())
            assert not task.wait(4 * TICK)
            listener.accept()[0].close()
            task.result()


def test_nonblocking_connect(local: str) -> None:
    with full_listener() as listener, hvsock.HyperVSocket(transport=local) as sock:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError) as info:
            sock.connect(listener.getsockname())
        assert not getattr(info.value, "__notes__", None)
        assert sock.connect_ex(listener.getsockname()) in (errno.EAGAIN, errno.EINPROGRESS, errno.EALREADY)
    with utils.listen(local) as listener, hvsock.HyperVSocket(transport=local) as sock:
        sock.setblocking(False)
        assert sock.connect_ex(listener.getsockname()) == 0
        assert sock.gettimeout() == 0
        listener.accept()[0].close()


# The mode of a handle, which other owners share


#: Calls of an object that has just taken a handle over, on which it has no timeout.
TAKEN_OVER: dict[str, Callable[[Any, str], object]] = {
    "nothing": lambda sock, name: None,
    "detach": lambda sock, name: os.close(sock.detach()),
    "close": lambda sock, name: sock.close(),
    "send": lambda sock, name: sock.send(b"x"),
    "recv": lambda sock, name: (sock.shutdown(socket.SHUT_RD), sock.recv(1)),
    "accept": lambda sock, name: sock.accept()[0].close(),
    "accept refused": lambda sock, name: refused(sock.accept),
    "connect": lambda sock, name: sock.connect(name),
    "connect refused": lambda sock, name: refused(sock.connect, name + "-that-is-not-there"),
}


def refused(call: Callable[..., object], *args: object) -> None:
    with pytest.raises(OSError):
        call(*args)


@posix_only
@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
@pytest.mark.parametrize("cls", [socket.socket, Socket])
@pytest.mark.parametrize("what", TAKEN_OVER)
def test_mode_is_its_owners(what: str, cls: type[socket.socket], blocking: bool) -> None:
    """No call of an object that has taken a handle over changes it, whatever comes of the call."""
    name = os.path.join(os.environ["HVSOCK_LOCAL_DIR"], "mode")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(name)
        listener.listen()
        if what in ("accept", "send", "recv"):
            client.connect(name)
        owner = listener if what == "accept" else client
        owner.setblocking(blocking)
        with cls(fileno=os.dup(owner.fileno())) as sock:
            assert sock.gettimeout() is None
            TAKEN_OVER[what](sock, name)
        assert os.get_blocking(owner.fileno()) is blocking
        os.unlink(name)


@posix_only
@pytest.mark.parametrize("timeout", [None, LIMIT, 0.0], ids=["blocking", "timeout", "non-blocking"])
def test_mode_of_a_detached_handle(implementation: str, timeout: float | None) -> None:
    """It is what the last settimeout() has made of it, as with `socket.socket`."""
    with connected(implementation, timeout) as (a, _), socket.socket(fileno=a.detach()) as owner:
        assert os.get_blocking(owner.fileno()) is (timeout is None)
        assert owner.gettimeout() is None


@posix_only
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
@pytest.mark.parametrize("timeout", [LIMIT, TICK, 0.0])
def test_mode_of_a_listener_is_its_owners(transport: str, timeout: float, blocking: bool) -> None:
    """accept() with a timeout, or without waiting, keeps to that all the same; it leaves the mode alone."""
    with utils.listen(transport) as listener, utils.dialler(transport) as client:
        client.settimeout(LIMIT)
        if timeout != TICK:
            client.connect(listener.getsockname())
            utils.wait_for(lambda: select.select([listener], [], [], 0)[0])
        listener.settimeout(timeout)
        os.set_blocking(listener.fileno(), blocking)
        if timeout == TICK:
            assert isinstance(Task(listener.accept).error(), TimeoutError)
        else:
            Task(listener.accept).result()[0].close()
        assert os.get_blocking(listener.fileno()) is blocking


# One system call


@posix_only
@pytest.mark.parametrize("timeout", ["limit", "none", "zero"])
def test_one_system_call_when_ready(ours: str, tmp_path: Path, timeout: str) -> None:
    """With or without a timeout, an operation that can proceed is one system call, 100 times in a row."""
    calls = system_calls(traced.streams, ours, tmp_path, timeout)
    assert set(calls) == {"recv", "recv_into", "send", "sendall", "sendmsg"}
    for operation, made in calls.items():
        assert len(made) == 100, (operation, {call: made.count(call) for call in made})
        expected = {"read", "readv", "recvfrom", "recvmsg"} if "recv" in operation else {"write", "writev", "sendto"}
        assert set(made) <= expected | {"sendmsg"}, operation


# Close from another thread


@pytest.mark.parametrize("operation", [*CALLS, "accept", "connect"])
@pytest.mark.parametrize("timeout", ["none", "limit"])
def test_close_wakes(ours: str, operation: str, timeout: str) -> None:
    """A close from another thread ends a blocked call with an OSError, and no byte of another socket goes astray."""
    if operation == "accept" and ours == "adopted":
        pytest.skip("accept has its test on transports: elsewhere it is the standard library's")
    if operation == "connect" and ours != "local":
        pytest.skip("only on `local` does a full backlog make a connect wait that is not the standard library's")
    run_child(closing.close_wakes, ours, operation, timeout, 8 if operation == "connect" else 40)


def test_close_races_with_calls(ours: str) -> None:
    """Threads that call all the time meet the close at every point of a call."""
    run_child(closing.close_races, ours, 60)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only: names that are no files")
@pytest.mark.parametrize("descriptors_left", ["some", "none"])
def test_address_is_free_after_close(descriptors_left: str) -> None:
    """That of a listener at which a thread waits, before that thread has run again."""
    run_child(descriptors.address_after_close, descriptors_left)


@posix_only
@pytest.mark.parametrize("how", ["ignored", "handled", "restarted", "blocked"])
@pytest.mark.parametrize("timeout", ["none", "limit"])
@pytest.mark.parametrize("operation", ["recv", "accept", "connect"])
def test_close_beside_a_use_of_sigurg(ours: str, operation: str, timeout: str, how: str) -> None:
    """The signal with which close() ends a wait may be the program's, too, or one that it does not want."""
    if operation != "recv" and ours == "adopted":
        pytest.skip("accept and connect have their test on transports: elsewhere they are the standard library's")
    if operation == "connect" and ours != "local":
        pytest.skip("only on `local` does a full backlog make a connect wait that is not the standard library's")
    run_child(closing.close_beside_sigurg, ours, operation, timeout, how)


@posix_only
def test_close_in_a_forked_twin(transport: str) -> None:
    run_child(forks.close_listeners, transport)


@posix_only
@pytest.mark.parametrize("operation", ["recv", "send", "accept", "connect"])
def test_waiting_needs_no_descriptor(ours: str, operation: str) -> None:
    if operation in ("accept", "connect") and ours == "adopted":
        pytest.skip("accept and connect have their test on transports: elsewhere they are the standard library's")
    if operation == "connect" and ours != "local":
        pytest.skip("only on `local` does a full backlog make a connect wait that is not the standard library's")
    run_child(descriptors.wait_without, ours, operation)


def test_connect_that_waits_needs_no_descriptor(local: str) -> None:
    run_child(descriptors.connect_without, local)


@posix_only
def test_opened_again_beside_settimeout() -> None:
    run_child(threads.opened_again_beside_settimeout)


@posix_only
def test_send_goes_on_after_detach(our_pair: tuple[socket.socket, socket.socket]) -> None:
    """For longer than until it tries again by itself, after a second."""
    a, b = our_pair
    filled = utils.fill(a)
    a.settimeout(LIMIT)
    task = Task(a.send, b"12345")
    assert not task.wait(TICK)
    with socket.socket(fileno=a.detach()):
        assert not task.wait(1 + 5 * TICK)
        assert utils.receive_exactly(b, filled + 5).endswith(b"\xaa12345")
        assert task.result() == 5


@posix_only
@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["blocking", "timeout"])
def test_accept_goes_on_after_detach(transport: str, timeout: float | None) -> None:
    """It gets the client that it waits for, and leaves the mode of the handle to its new owner."""
    with utils.listen(transport) as listener, utils.dialler(transport) as client:
        listener.settimeout(timeout)
        address = listener.getsockname()
        task = Task(listener.accept)
        assert not task.wait(TICK)
        with socket.socket(fileno=listener.detach()) as owner:
            client.settimeout(LIMIT)
            client.connect(address)
            accepted, _ = task.result()
            with accepted:
                accepted.sendall(b"x")
                assert client.recv(1) == b"x"
            assert os.get_blocking(owner.fileno()) == (timeout is None)


def test_connect_goes_on_after_detach(local: str) -> None:
    with full_listener() as listener, hvsock.HyperVSocket(transport=local) as sock:
        sock.settimeout(LIMIT)
        task = Task(sock.connect, listener.getsockname())
        assert not task.wait(TICK)
        with socket.socket(fileno=sock.detach()):
            assert not task.wait(TICK)
            listener.accept()[0].close()
            task.result()


def test_close_during_detach(our_pair: tuple[socket.socket, socket.socket]) -> None:
    """It leaves the handle to detach(), and so to the calls that are inside."""
    a, b = our_pair
    receiving = Task(a.recv, 5)
    assert not receiving.wait(TICK)
    inside, closed = threading.Event(), threading.Event()

    def pause(frame: types.FrameType, event: str, _: object) -> None:
        if frame.f_code is socket.socket.detach.__code__ and event == "call":
            inside.set()
            closed.wait(LIMIT)

    def detach() -> int:
        sys.settrace(pause)
        try:
            return a.detach()
        finally:
            sys.settrace(None)

    detaching = Task(detach)
    assert inside.wait(LIMIT)
    a.close()
    closed.set()
    with socket.socket(fileno=detaching.result()):
        assert receiving.running
        b.sendall(b"hello")
        assert receiving.result() == b"hello"


@posix_only
@pytest.mark.parametrize("operation", ["recv", "accept"])
def test_fork_after_close(ours: str, operation: str) -> None:
    """A child forked right after a close has no part of the socket, even if calls in the parent have yet to leave."""
    if operation == "accept" and ours == "adopted":
        pytest.skip("accept has its test on transports: elsewhere it is the standard library's")
    run_child(forks.after_close, ours, operation)


@pytest.mark.parametrize("operation", ["recv", "accept"])
def test_process_ends_while_a_thread_waits(ours: str, operation: str) -> None:
    """A daemon thread in a blocked call does not keep the interpreter from ending, nor crash it."""
    run_child(closing.exit_while_blocked, ours, operation)


def test_close_with_a_file_open_wakes_nothing(our_pair: tuple[socket.socket, socket.socket]) -> None:
    """The socket lives until the last file made from it is closed, and so do the calls on it."""
    a, b = our_pair
    with a.makefile("rb", buffering=0) as file:
        task = Task(file.read, 1)
        assert not task.wait(2 * TICK)
        a.close()
        assert not task.wait(2 * TICK)
        b.sendall(b"x")
        assert task.result() == b"x"


@posix_only
def test_shutdown_wakes(our_pair: tuple[socket.socket, socket.socket]) -> None:
    a, _ = our_pair
    a.settimeout(None)
    task = Task(a.recv, 1)
    assert not task.wait(2 * TICK)
    a.shutdown(socket.SHUT_RDWR)
    assert task.result() == b""


# Ctrl-C


@pytest.mark.parametrize("operation", ["recv", "recv_into", "send", "sendall", "sendmsg", "accept", "connect"])
@pytest.mark.parametrize("timeout", ["none", "limit"])
def test_ctrl_c(ours: str, operation: str, timeout: str) -> None:
    """SIGINT ends a blocked call with a KeyboardInterrupt, soon."""
    if operation == "connect" and (WINDOWS or ours not in ("adopted", "local")):
        pytest.skip("only on AF_UNIX and Linux' TCP does a full backlog make a connect wait")
    if operation == "accept" and WINDOWS and ours == "adopted":
        pytest.skip("the accept of TCP is the standard library's, which Ctrl-C does not end on Windows")
    with Child(signals.interrupted, ours, operation, timeout) as child:
        assert child.line() == "waiting"
        time.sleep(2 * TICK)
        start = time.monotonic()
        if not WINDOWS:
            os.kill(child.process.pid, 2)
        else:
            child.tell("raise")  # a thread of the child's raises the signal: there is no console to press keys on
        assert child.line() == "interrupted"
        assert time.monotonic() - start < SLACK
        child.finish()


# Descriptors and the life of a socket


def test_detach(our_pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = our_pair
    descriptor = a.detach()
    assert a.fileno() == a.detach() == -1
    for call in (lambda: a.recv(1), lambda: a.send(b"x"), lambda: a.sendmsg([b"x"])):
        with pytest.raises(OSError) as info:
            call()
        assert info.value.errno == errno.EBADF or WINDOWS
    a.close()
    with socket.socket(a.family, a.type, a.proto, fileno=descriptor) as plain:
        plain.settimeout(LIMIT)
        plain.sendall(b"still open")
        assert utils.receive_exactly(b, 10) == b"still open"
        # And back again.
        with hvsock.HyperVSocket(fileno=plain.detach()) as again:
            again.settimeout(LIMIT)
            b.sendall(b"hello")
            assert utils.receive_exactly(again, 5) == b"hello"
            assert again.family == b.family


def test_dup(our_pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = our_pair
    with a.dup() as twin:
        assert type(twin) is type(a)
        assert twin.fileno() != a.fileno()
        assert twin.gettimeout() == a.gettimeout()
        assert twin.get_inheritable() is False
        assert (twin.family, twin.type, twin.proto) == (a.family, a.type, a.proto)
        assert twin.getsockname() == a.getsockname()
        assert twin.getpeername() == a.getpeername()
        assert getattr(twin, "transport", None) == getattr(a, "transport", None)
        a.close()
        twin.sendall(b"from the twin")
        assert utils.receive_exactly(b, 13) == b"from the twin"
        b.sendall(b"hello")
        assert twin.recv(5) == b"hello"
    assert b.recv(1) == b""


def test_dup_of_listener(transport: str) -> None:
    """A listener's twin accepts; the service lasts until the object that bound it is closed."""
    with (
        utils.listen(transport) as listener,
        listener.dup() as twin,
        hvsock.create_connection(listener.getsockname(), timeout=LIMIT, transport=transport) as client,
    ):
        accepted, address = twin.accept()
        with accepted:
            assert address.service_id == client.getsockname().service_id
            assert isinstance(accepted, hvsock.HyperVSocket)


@pytest.mark.skipif(not WINDOWS, reason="Windows only: share() and fromshare() exist nowhere else")
def test_share(our_pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = our_pair
    info = a.share(os.getpid())  # type: ignore[attr-defined,unused-ignore]
    with socket.fromshare(info) as twin:  # type: ignore[attr-defined,unused-ignore]
        a.close()
        twin.sendall(b"shared")
        assert utils.receive_exactly(b, 6) == b"shared"


def test_not_inheritable(our_pair: tuple[socket.socket, socket.socket]) -> None:
    for sock in our_pair:
        assert sock.get_inheritable() is False
        sock.set_inheritable(True)
        assert sock.get_inheritable() is True


def test_new_sockets_are_not_inheritable(transport: str) -> None:
    with utils.listen(transport) as listener, hvsock.HyperVSocket(transport=transport) as client:
        client.settimeout(LIMIT)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            for sock in (listener, client, accepted):
                assert sock.get_inheritable() is False


def test_default_timeout(transport: str) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(3 * TICK)
    try:
        with hvsock.HyperVSocket(transport=transport) as sock:
            assert sock.gettimeout() == pytest.approx(3 * TICK)
        with hvsock.create_server(("loopback", utils.new_service()), transport=transport) as listener:
            assert listener.gettimeout() == pytest.approx(3 * TICK)
            with hvsock.create_connection(listener.getsockname(), transport=transport) as client:
                assert client.gettimeout() == pytest.approx(3 * TICK)
                with listener.accept()[0] as accepted:
                    assert accepted.gettimeout() == pytest.approx(3 * TICK)
                    with takes(3 * TICK, SLACK), pytest.raises(TimeoutError):
                        Task(accepted.recv, 1).result()
            with hvsock.create_connection(listener.getsockname(), timeout=None, transport=transport) as client:
                assert client.gettimeout() is None
            with hvsock.create_connection(listener.getsockname(), timeout=LIMIT, transport=transport) as client:
                assert client.gettimeout() == LIMIT
    finally:
        socket.setdefaulttimeout(before)


@pytest.mark.parametrize("listening", [None, LIMIT, 0.0], ids=["blocking", "timeout", "non-blocking"])
@pytest.mark.parametrize("default", [None, LIMIT, 0.0], ids=["no default", "default", "default non-blocking"])
def test_accepted_socket_has_the_default_timeout(
    transport: str, listening: float | None, default: float | None
) -> None:
    """As with `socket.socket.accept`: the default timeout, never the listener's; the kernel's flag agrees."""
    with (
        utils.listen(transport) as listener,
        hvsock.create_connection(listener.getsockname(), timeout=LIMIT, transport=transport),
    ):
        deadline = time.monotonic() + LIMIT
        listener.settimeout(listening)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(default)
        try:
            while True:
                try:
                    accepted, _ = listener.accept()
                    break
                except BlockingIOError:
                    assert time.monotonic() < deadline
                    time.sleep(TICK / 5)
        finally:
            socket.setdefaulttimeout(before)
        with accepted:
            assert accepted.gettimeout() == default
            if not WINDOWS and default is None:
                task = Task(accepted.recv, 1)
                assert not task.wait(2 * TICK)
                accepted.shutdown(socket.SHUT_RDWR)
                task.result()


def test_leaked_socket_is_warned_of(ours: str) -> None:
    a, b = utils.make_pair(ours)
    with pytest.warns(ResourceWarning, match="unclosed .*HyperVSocket"):  # noqa: PT031
        del a
        gc.collect()
    # It was closed all the same.
    assert b.recv(1) == b""
    b.close()
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031
        listener = utils.listen(ours)
        del listener
        gc.collect()


def test_leaked_socket_that_is_kept(ours: str) -> None:
    """Who hears the warning may keep the object: it is closed, and what has its number now is not its own."""
    a, b = utils.make_pair(ours)
    b.close()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        del a
        gc.collect()
    kept: Any = heard[0].source
    assert isinstance(kept, hvsock.HyperVSocket)
    del heard
    with socket.socket() as next_one:
        assert kept.fileno() == -1
        for call in (lambda: kept.send(b"x"), lambda: kept.recv(1), kept.recv_message, kept.getpeername):
            with pytest.raises(OSError) as info:
                call()
            assert info.value.errno == errno.EBADF or WINDOWS
        kept.close()
        next_one.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)


def test_subclass_and_cycle(ours: str) -> None:
    """A subclass with attributes works, and a socket in a reference cycle is collected."""

    class Counting(hvsock.HyperVSocket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.count = 0
            self.me = self

        def recv(self, *args: Any) -> bytes:
            data = super().recv(*args)
            self.count += len(data)
            return data

    a, b = utils.make_pair(ours)
    counting = Counting(fileno=a.detach())
    with b:
        b.sendall(b"12345")
        assert counting.recv(100) == b"12345"
        assert counting.count == 5
        counting.close()
        assert b.recv(1) == b""


@posix_only
@pytest.mark.parametrize("what", ["errors", "connections", "adopted"])
def test_no_descriptor_leaks(what: str, local: str) -> None:
    """After 2,000 operations, most of which fail, as many descriptors are open as before."""
    run_child(descriptors.leaks, local, what, timeout=2 * LIMIT)
