"""Signals while a call waits."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import utils
from utils import LIMIT, MIB, SLACK, TICK, Task, connected, framed, wait_for

from children import say
from children.blocked import (
    FromHandlerError,
    begin_message,
    block,
    blocking_call,
    check_error_of_closed,
    make_blocked,
)


def handled(implementation: str, operation: str, timeout: str) -> None:
    """Signals interrupt the call several times before it can go on; their handler runs while it waits."""
    with connected(implementation, None if timeout == "none" else LIMIT) as (a, b):
        runs: list[float] = []
        release = threading.Event()

        def handler(*_: object) -> None:
            runs.append(time.monotonic())
            if len(runs) == 5:
                release.set()

        def let_go() -> int:
            assert release.wait(LIMIT), "the signal handler did not run while the call waited"
            if operation.startswith("recv"):
                b.sendall(b"hello")
                return 0
            return len(utils.receive_exactly(b, filled + size))

        filled = block(operation, a)
        size = (16 << 20) if operation == "sendall" else 5
        call = blocking_call(operation, a, size)
        helper = Task(let_go)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        try:
            result = call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        expected = {"recv": b"hello", "recv_into": 5, "send": 5, "sendmsg": 5, "sendall": None}
        assert result == expected[operation], result
        assert len(runs) >= 5
        assert helper.result() == (0 if operation.startswith("recv") else filled + size)


def raises(implementation: str, operation: str, timeout: str) -> None:
    """What the handler raises ends the call."""

    raised = False

    def handler(*_: object) -> None:
        nonlocal raised
        if not raised:  # not in the midst of what follows the call, however late that comes
            raised = True
            raise FromHandlerError

    with contextlib.ExitStack() as stack:
        if operation == "accept":
            a = b = stack.enter_context(utils.listen(implementation))
        else:
            a, b = stack.enter_context(connected(implementation))
        a.settimeout(None if timeout == "none" else LIMIT)
        block(operation, a)
        call = blocking_call(operation, a)
        signal.signal(signal.SIGALRM, handler)
        # More than one: the first could come before the call waits.
        signal.setitimer(signal.ITIMER_REAL, 2 * TICK, 2 * TICK)
        try:
            call()
        except FromHandlerError:
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            raise AssertionError("the call was not interrupted")
        if operation.startswith("recv"):
            b.sendall(b"later")
            assert utils.receive_exactly(a, 5) == b"later"


def during_explanation() -> None:
    """What a handler raises then is not lost, and the error of the call is its context."""
    from unittest import mock  # which imports asyncio

    def handler(*_: object) -> None:
        raise FromHandlerError

    def add_notes(*_args: object, **_kwargs: object) -> None:
        signal.raise_signal(signal.SIGALRM)

    signal.signal(signal.SIGALRM, handler)
    with connected("local", TICK) as (a, b), mock.patch("hvsock.Transport.explain", add_notes):
        calls: list[Callable[[], object]] = [lambda: a.recv(1), a.recv_message, lambda: a.exchange(b"")]
        for call in calls:
            context = None
            try:
                call()
            except FromHandlerError as error:
                context = error.__context__
            assert isinstance(context, TimeoutError), "the handler was not heard"
        b.sendall(b"\0\0\0\0")
        assert a.exchange(b"") == b""


def in_buffers_in_python(operation: str) -> None:
    class Buffer:
        def __buffer__(self, _flags: int) -> memoryview:
            return memoryview(data)

    def handler(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise FromHandlerError

    data = utils.random_bytes(16 << 20)
    signal.signal(signal.SIGALRM, handler)
    with connected("local") as (a, b):
        call = getattr(a, operation)
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        try:
            call(Buffer())
        except FromHandlerError:
            pass
        else:
            raise AssertionError("the call was not interrupted")
        answering = Task(lambda: (b.recv_message() == data, b.send_message(b"reply")))
        assert call(Buffer()) == (b"reply" if operation == "exchange" else None)
        assert answering.result() == (True, None)


def timeout_goes_on(implementation: str, operation: str) -> None:
    """Signals that come all the time do not make a timeout start again."""
    runs: list[None] = []
    signal.signal(signal.SIGALRM, lambda *_: runs.append(None))
    with connected(implementation, 10 * TICK) as (a, _b):
        call = blocking_call(operation, a)
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        start = time.monotonic()
        try:
            call()
        except TimeoutError:
            elapsed = time.monotonic() - start
        else:
            raise AssertionError("no timeout")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert runs
    assert 10 * TICK * 0.9 <= elapsed <= SLACK, elapsed


def in_message(implementation: str, operation: str, what: str, timeout: str) -> None:
    """Signals arrive at every stage of a message; what their handler does is `what`."""
    reply, large = utils.random_bytes(100_000), utils.random_bytes(8 * MIB)
    wire, buffer = framed(reply), bytearray(100_004)
    handled: list[float] = []  # when
    finishing = threading.Event()
    results: list[Any] = []
    interrupted = 0
    with connected(implementation, None if timeout == "none" else LIMIT) as (a, b):
        calls: dict[str, Callable[[], Any]] = {
            "send_message": lambda: a.send_message(large),
            "recv_message": lambda: a.recv_message(),
            "recv_message_into": lambda: a.recv_message_into(buffer),
            "recv_exactly": lambda: a.recv_exactly(len(wire)),
            "recv_exactly_into": lambda: a.recv_exactly_into(buffer),
            "exchange": lambda: a.exchange(large),
        }
        call = calls[operation]

        def handler(*_: object) -> None:
            handled.append(time.monotonic())
            if finishing.is_set():
                return
            if what == "raises":
                raise FromHandlerError
            if what == "closes" and len(handled) == 3:
                a.close()
            if what == "recurses":
                # It is refused, unless the signal was so early that this is the first call.
                results.append(call())

        def wait_for_signals() -> None:
            count = len(handled)
            wait_for(lambda: len(handled) >= count + 2 or (handled and handled[-1] < time.monotonic() - 20 * TICK))

        def peer() -> None:
            if operation in ("send_message", "exchange"):
                wait_for_signals()
                if operation == "send_message":
                    finishing.set()
                assert b.recv_message() == large
            cuts = (0, 2, 4, 5, 50_000, len(wire) - 1, len(wire))
            for start, end in itertools.pairwise(cuts) if operation != "send_message" else ():
                wait_for_signals()
                if end == len(wire):
                    finishing.set()
                b.sendall(wire[start:end])

        helper = Task(peer) if what != "closes" else None
        signal.signal(signal.SIGALRM, handler)
        while not results:
            try:
                # One signal a call where the handler ends it; else they come all the time.
                signal.setitimer(signal.ITIMER_REAL, TICK / 5, 0 if what in ("raises", "recurses") else TICK / 5)
                results.append(call())
            except FromHandlerError:
                interrupted += 1
            except RuntimeError as error:
                if what != "recurses" or "signal handler" not in str(error):
                    raise
                interrupted += 1
            except OSError as error:
                if what != "closes":
                    raise
                signal.setitimer(signal.ITIMER_REAL, 0)
                check_error_of_closed(error)
                return
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert helper is not None, "close() did not end the call"
        helper.result()
        assert interrupted > 0 or what == "returns"
        expected: dict[str, Any] = {
            "send_message": None,
            "recv_message": reply,
            "recv_message_into": len(reply),
            "recv_exactly": wire,
            "recv_exactly_into": None,
            "exchange": reply,
        }
        assert results == [expected[operation]]
        if operation == "recv_message_into":
            assert buffer[: len(reply)] == reply
        if operation == "recv_exactly_into":
            assert buffer == wire
        # Nothing came twice, and both streams are where they should be.
        a.send_message(b"next")
        assert b.recv_message() == b"next"
        b.send_message(b"previous")
        assert a.recv_message() == b"previous"


def expect_ctrl_c() -> None:
    """Have Ctrl-C raise KeyboardInterrupt; on Windows, where no other process can press it, a line on stdin does."""

    def raise_signal() -> None:
        sys.stdin.readline()
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "win32":
        Task(raise_signal)


def interrupted(implementation: str, operation: str, timeout: str, busy_poll: str = "0") -> None:
    """Wait for Ctrl-C in a blocked call."""
    expect_ctrl_c()
    with contextlib.ExitStack() as stack:
        a, call = make_blocked(stack, implementation, operation, timeout)
        a.busy_poll = int(busy_poll)
        try:
            say("waiting")
            call()
        except KeyboardInterrupt:
            say("interrupted")
        else:
            raise AssertionError("the call returned")


def interrupted_in_the_queue(implementation: str, operation: str) -> None:
    """Wait for Ctrl-C where another thread is in the middle of a message, and go on after it."""
    expect_ctrl_c()
    with connected(implementation) as (a, b):
        task = begin_message(operation, a, b)
        call = blocking_call(operation, a, 1000)
        say("waiting")
        try:
            call()
        except KeyboardInterrupt:
            say("interrupted")
        else:
            raise AssertionError("the call returned")
        assert task.running
        if operation == "send_message":
            assert b.recv_message(max_size=64 * MIB) == bytes(64 * MIB)
        elif operation == "exchange":
            b.sendall(framed(b"12345")[6:])
        else:
            b.sendall(b"x" if operation.startswith("recv_exactly") else framed(b"1")[4:])
        task.result()
        a.send_message(b"next")
        assert b.recv_message() == b"next"
