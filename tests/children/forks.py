"""Processes that fork."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import utils
from utils import LIMIT, MIB, TICK, Task, connected, framed

from children.blocked import check_error_of_closed, make_blocked, refused


def wait_for_child(pid: int) -> None:
    """Wait for a forked process and check that it ended well."""
    deadline = time.monotonic() + LIMIT
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError("the forked process hangs")
        time.sleep(TICK / 5)


@contextlib.contextmanager
def forked() -> Iterator[bool]:
    """Fork; the forked process runs the block with True and exits, this one runs it with False and waits."""
    import warnings

    with warnings.catch_warnings():
        # 3.12 and later warn of a fork in a process that has threads, which is what some of this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            yield True
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    yield False
    wait_for_child(pid)


def check_closed(descriptor: int) -> None:
    """Fail if this process still has the descriptor."""
    try:
        os.fstat(descriptor)
    except OSError:
        pass
    else:
        raise AssertionError("the descriptor is still open")


def talk(implementation: str) -> None:
    """Both processes use the socket that was there before the fork."""
    with connected(implementation) as (a, b):
        with forked() as in_child:
            if in_child:
                assert utils.receive_exactly(a, 4) == b"ping"
                a.sendall(b"from child")
            else:
                b.sendall(b"ping")
                assert utils.receive_exactly(b, 10) == b"from child"
        a.sendall(b"from parent")
        assert utils.receive_exactly(b, 11) == b"from parent"


def close(implementation: str) -> None:
    """A close in the forked process closes its own descriptor, not the connection."""
    with connected(implementation) as (a, b):
        with forked() as in_child:
            if in_child:
                descriptor = a.fileno()
                a.close()
                b.close()
                check_closed(descriptor)
        a.sendall(b"alive")
        assert utils.receive_exactly(b, 5) == b"alive"
        b.sendall(b"and well")
        assert utils.receive_exactly(a, 8) == b"and well"


def close_while_receiving(implementation: str) -> None:
    """The same where another thread was blocked in a call at the fork: that thread is not in the child."""
    with connected(implementation, None) as (a, b):
        receiving = Task(a.recv, 100)
        time.sleep(2 * TICK)
        with forked() as in_child:
            if in_child:
                descriptor = a.fileno()
                a.close()
                check_closed(descriptor)
        time.sleep(2 * TICK)
        assert receiving.running, "a close in the forked process ended a call in this one"
        b.sendall(b"alive")
        assert receiving.result() == b"alive"


def close_listeners(implementation: str) -> None:
    """Close a listener in a forked process while a thread of each of the two waits at it; then in this one."""
    with utils.listen(implementation) as listener:
        listener.settimeout(None)
        read_end, write_end = os.pipe()
        with forked() as in_child:  # before there is a thread: ThreadSanitizer knows no other one of its number
            waiting = Task(listener.accept)
            time.sleep(2 * TICK)
            if in_child:
                assert os.read(read_end, 1) == b"x"
                listener.close()
                check_error_of_closed(waiting.error())
            else:
                os.write(write_end, b"x")
        assert waiting.running, "a close in the forked process ended a call in this one"
        with utils.dialler(implementation) as client:
            client.connect(listener.getsockname())
            with waiting.result()[0] as accepted:
                accepted.sendall(b"x")
                assert client.recv(1) == b"x"
        waiting = Task(listener.accept)
        with forked() as in_child:
            if in_child:
                os.close(write_end)
                assert os.read(read_end, 1) == b"", "the listener is open here until the other one has closed it"
            else:
                time.sleep(2 * TICK)
                listener.close()
                check_error_of_closed(waiting.error())
                os.close(write_end)
        os.close(read_end)


def after_close(implementation: str, operation: str) -> None:
    """Close a socket that a thread is blocked at, and fork before that thread can have left it."""
    import stat

    with contextlib.ExitStack() as stack:
        a, call = make_blocked(stack, implementation, operation, "none")
        task = Task(call)
        time.sleep(TICK)
        descriptor = a.fileno()
        a.close()
        with forked() as in_child:
            if in_child:
                with contextlib.suppress(OSError):
                    assert not stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        check_error_of_closed(task.error())


def in_a_message(implementation: str, case: str) -> None:
    """Fork where a thread, or nobody, is in the middle of a message."""
    large = utils.random_bytes(8 * MIB)
    wire = framed(utils.random_bytes(5000))
    with connected(implementation) as (a, b):
        task = None
        if case == "receiving":
            task = Task(a.recv_message)
        elif case == "partly received":
            b.sendall(wire[:1000])
            task = Task(a.recv_message)
        elif case == "partly received here":
            b.sendall(wire[:1000])
            a.settimeout(TICK)
            refused(a.recv_message, TimeoutError)
            a.settimeout(LIMIT)
        elif case == "sending":
            task = Task(a.send_message, large)
        elif case == "going on":
            a.settimeout(TICK)
            refused(lambda: a.send_message(large), TimeoutError)
            a.settimeout(None)  # blocked in the kernel, which alone knows how much is sent
            task = Task(a.send_message, large)
        time.sleep(2 * TICK)
        with forked() as in_child:
            if in_child:
                use_after_fork(case, a, large, wire)
            elif case == "idle":
                time.sleep(4 * TICK)
                assert b.recv_message() == large
                assert b.recv_message() == b"after it"
            elif case == "partly received here":
                b.sendall(wire[1000:])
        if task is not None:
            assert task.running
        if case in ("receiving", "partly received"):
            b.sendall(wire[1000 if case == "partly received" else 0 :])
            assert task is not None
            assert task.result() == wire[4:]
        elif case in ("sending", "going on"):
            assert b.recv_message() == large
        if case != "partly received here":
            a.send_message(b"still here")
            assert b.recv_message() == b"still here"


def use_after_fork(case: str, a: Any, large: bytes, wire: bytes) -> None:
    """What the forked process can do with the socket."""
    if case == "idle":
        # The very first calls of this process: one is in the middle of its message, the other waits for its turn.
        sending = Task(a.send_message, large)
        time.sleep(2 * TICK)
        waiting = Task(a.send_message, b"after it")
        sending.result()
        waiting.result()
    elif case == "receiving":
        # Nothing was received, so nothing is in the middle here.
        a.settimeout(TICK)
        for call in (a.recv_message, lambda: a.recv(1), lambda: a.recv_exactly(3)):
            refused(call, TimeoutError)
        a.settimeout(LIMIT)
    elif case == "partly received":
        # What was received is with a thread that is not here.
        for call in (a.recv_message, lambda: a.recv(1), lambda: a.recv_exactly(3), lambda: a.exchange(b"x")):
            refused(call, RuntimeError)
    elif case == "partly received here":
        assert a.recv_message() == wire[4:]
    else:
        for call in (lambda: a.send(b"x"), lambda: a.send_message(b"x"), lambda: a.send_message(large)):
            refused(call, RuntimeError)
    a.close()
