"""Sockets that are closed while other threads call them."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from typing import Any

import utils
from utils import LIMIT, TICK, Task, bystanders, connected

from children.blocked import begin_message, blocking_call, check_error_of_closed, make_blocked


def close_wakes(implementation: str, operation: str, timeout: str, rounds: str, busy_poll: str = "0") -> None:
    """Close a socket while another thread is blocked in a call on it, or just about to be."""
    for index in range(int(rounds)):
        with contextlib.ExitStack() as stack:
            a, call = make_blocked(stack, implementation, operation, timeout)
            a.busy_poll = int(busy_poll)
            task = Task(call)
            # Mostly while it waits, sometimes at its very start.
            time.sleep((0.2 * TICK, 0, 0.001, 0.02 * TICK)[index % 4])
            a.close()
            assert a.fileno() == -1
            with bystanders():
                check_error_of_closed(task.error())
            with contextlib.suppress(OSError):
                call()
                raise AssertionError("a call on a closed socket succeeded")


def close_beside_sigurg(implementation: str, operation: str, timeout: str, how: str) -> None:
    """Close a socket that a thread waits at, where the program uses, ignores or blocks the signal that wakes it."""
    if how == "ignored":
        signal.signal(signal.SIGURG, signal.SIG_IGN)
    if how in ("handled", "restarted"):
        signal.signal(signal.SIGURG, lambda *_: None)
    if how == "restarted":
        signal.siginterrupt(signal.SIGURG, False)
    mine = signal.getsignal(signal.SIGURG)

    def wait() -> None:
        blocked = {signal.SIGURG} if how == "blocked" else set()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            call()
        finally:
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked

    for delay in (2 * TICK, 0, 0.001):
        with contextlib.ExitStack() as stack:
            a, call = make_blocked(stack, implementation, operation, timeout)
            tasks = [Task(wait) for _ in range(1 if operation == "connect" else 3)]
            time.sleep(delay)
            start = time.monotonic()
            a.close()
            assert time.monotonic() - start < 0.9 * utils.SCALE, "close() gave up"
            for task in tasks:
                check_error_of_closed(task.error())
    assert signal.getsignal(signal.SIGURG) is mine


def close_races(implementation: str, rounds: str) -> None:
    """Receive and send without a pause in four threads until the socket is closed."""

    def receive(sock: socket.socket) -> None:
        while sock.recv(100):
            pass

    def receive_into(sock: socket.socket) -> None:
        buffer = bytearray(100)
        while sock.recv_into(buffer):
            pass

    def send(sock: socket.socket) -> None:
        while True:
            sock.send(b"ours")

    def send_all(sock: socket.socket) -> None:
        while True:
            sock.sendall(b"ours")

    def echo(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := sock.recv(1000):
                sock.sendall(data)

    for index in range(int(rounds)):
        with connected(implementation, LIMIT if index % 2 else None) as (a, b):
            peer = Task(echo, b)
            tasks = [Task(function, a) for function in (receive, receive_into, send, send_all)]
            time.sleep(0.0005 * (index % 10))
            a.close()
            with bystanders(4):
                for task in tasks:
                    check_error_of_closed(task.error())
            peer.result()


def close_wakes_the_queue(implementation: str, operation: str, rounds: str) -> None:
    """Close a socket while one thread is in the middle of a message and others wait for their turn."""
    for index in range(int(rounds)):
        with connected(implementation, None if index % 2 else LIMIT) as (a, b):
            tasks = [begin_message(operation, a, b)]
            tasks += [Task(blocking_call(operation, a, 1000)) for _ in range(3)]
            time.sleep((2 * TICK, 0, 0.001, 0.2 * TICK)[index % 4])
            a.close()
            with bystanders():
                for task in tasks:
                    check_error_of_closed(task.error())


def close_races_with_messages(implementation: str, rounds: str) -> None:
    """Exchange, send and receive without a pause in six threads until the socket is closed."""

    def exchange(sock: Any) -> None:
        while True:
            sock.exchange(b"request")

    def send(sock: Any) -> None:
        while True:
            sock.send_message(b"x" * 1000, b"y" * 20_000)

    def receive(sock: Any) -> None:
        while True:
            sock.recv_message()

    def echo(sock: Any) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                sock.send_message(sock.recv_message())

    for index in range(int(rounds)):
        with connected(implementation, LIMIT if index % 2 else None) as (a, b):
            peer = Task(echo, b)
            tasks = [Task(function, a) for function in (exchange, send, receive) * 2]
            time.sleep(0.0007 * (index % 10))
            a.close()
            with bystanders(4):
                for task in tasks:
                    check_error_of_closed(task.error())
            peer.result()


def exit_while_blocked(implementation: str, operation: str) -> None:
    """End with the main thread, while a daemon thread waits."""
    stack = contextlib.ExitStack()
    _, call = make_blocked(stack, implementation, operation, "none")
    task = Task(call)
    time.sleep(2 * TICK)
    assert task.running
    # Keep the sockets from being closed by the stack's own destructor before the interpreter's end.
    globals()["_kept"] = stack, task
