"""Calls that block: made, begun in a thread, and how they end when another thread closes their socket."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import utils
from utils import LIMIT, TICK, Task, connected, framed

import hvsock


class FromHandlerError(Exception):
    """What a signal handler raises."""


def blocking_call(operation: str, a: socket.socket, size: int = 64 << 20) -> Callable[[], Any]:
    """Return a call that blocks: to receive where nothing comes, or to send more than fits."""
    data = bytes(size)
    calls: dict[str, Callable[[], Any]] = {
        "recv": lambda: a.recv(5),
        "recv_into": lambda: a.recv_into(bytearray(5)),
        "send": lambda: a.send(b"12345"),
        "sendall": lambda: a.sendall(data),
        "sendmsg": lambda: a.sendmsg([b"12", b"345"]),
        "accept": lambda: a.accept(),
    }
    if isinstance(a, hvsock.HyperVSocket):
        calls |= {
            "send_message": lambda: a.send_message(data),
            "recv_message": lambda: a.recv_message(),
            "recv_message_into": lambda: a.recv_message_into(bytearray(5)),
            "recv_exactly": lambda: a.recv_exactly(5),
            "recv_exactly_into": lambda: a.recv_exactly_into(bytearray(5)),
            "exchange": lambda: a.exchange(b"request"),
        }
    return calls[operation]


def block(operation: str, a: socket.socket) -> int:
    """Make the next send block by filling the buffer, and return the number of bytes in it."""
    if operation not in ("send", "sendmsg"):
        return 0
    timeout = a.gettimeout()
    filled = utils.fill(a)
    a.settimeout(timeout)
    return filled


def make_blocked(stack: contextlib.ExitStack, implementation: str, operation: str, timeout: str) -> Any:
    """Return a socket and the call on it that blocks."""
    limit = None if timeout == "none" else LIMIT
    if operation == "connect":
        address = utils.full_listener(implementation, stack).getsockname()
        a = stack.enter_context(utils.dialler(implementation))
        a.settimeout(limit)
        return a, lambda: a.connect(address)
    if operation == "accept":
        a = stack.enter_context(utils.listen(implementation))
        a.settimeout(limit)
        return a, a.accept
    a, _ = stack.enter_context(connected(implementation))
    a.settimeout(limit)
    block(operation, a)
    call = blocking_call(operation, a)
    return a, utils.repeated(call) if operation in ("send", "sendmsg") else call


def begin_message(operation: str, a: Any, b: Any) -> Task:
    """Have a thread in the middle of such a call, so that it is its turn."""
    task = Task(blocking_call(operation, a))
    if operation == "send_message":
        import select

        assert select.select([b], [], [], LIMIT)[0]
    elif operation == "exchange":
        assert b.recv_message() == b"request"
        b.sendall(framed(b"12345")[:6])
    else:
        b.sendall(framed(b"1")[:4])
    time.sleep(TICK)
    assert task.running
    return task


def check_error_of_closed(error: BaseException | None) -> None:
    assert isinstance(error, OSError), repr(error)
    assert not isinstance(error, TimeoutError), repr(error)
    if sys.platform != "win32":
        assert error.errno == errno.EBADF, repr(error)


def refused(call: Callable[[], object], error: type[Exception]) -> None:
    """Check what the call raises."""
    try:
        result = call()
    except error:
        return
    raise AssertionError(f"the call returned {result!r:.60}")
