"""Threads that set an attribute of a socket, or open it anew, while others use it."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

from utils import LIMIT, Task, connected

import hvsock


def busy_poll_set_during_receives(implementation: str, timeout: str) -> None:
    """Ask for one packet after another while another thread sets busy_poll without a pause."""
    sys.setswitchinterval(1e-6)
    over = threading.Event()
    with connected(implementation, None if timeout == "none" else LIMIT) as (a, b):

        def toggle() -> None:
            while not over.is_set():
                a.busy_poll = 1
                a.busy_poll = 0

        def answer() -> None:
            for number in range(1000):
                assert b.recv(1) == b"?"
                b.sendall(number.to_bytes(4))

        tasks = [Task(toggle), Task(answer)]
        for number in range(1000):
            a.sendall(b"?")
            assert int.from_bytes(a.recv(4)) == number
        over.set()
        for task in tasks:
            task.result()


def opened_again_beside_settimeout() -> None:
    """Open a closed socket anew again and again while other threads set its timeout: they all go on."""
    over = threading.Event()
    one, other = socket.socketpair()
    sock = hvsock.HyperVSocket(fileno=one.detach())

    def set_timeout() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                sock.settimeout(1.0)

    tasks = [Task(set_timeout) for _ in range(4)]
    for _ in range(20_000):
        sock.close()
        other.close()
        one, other = socket.socketpair()
        sock.__init__(fileno=one.detach())  # type: ignore[misc]
    over.set()
    for task in tasks:
        task.result()
    sock.settimeout(LIMIT)
    other.sendall(b"x")
    assert sock.recv(1) == b"x"
    sock.close()
    other.close()
