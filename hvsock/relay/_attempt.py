"""What waits in a relay: for an order, for a socket, and for a target until a deadline."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import sys
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import NamedTuple, Self

from hvsock._hvsock import Socket

__all__ = ["Attempt", "Wake", "deadline_after", "time_left", "wait_for"]

if sys.platform == "win32":
    _Selector = selectors.SelectSelector
else:
    _Selector = selectors.PollSelector  # select() knows no descriptor above 1023, and epoll needs one of its own


def deadline_after(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def time_left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


class Wake:
    """An event that selectors and Ctrl-C can interrupt the wait for; once set, it stays so."""

    def __init__(self) -> None:
        reader, self._writer = socket.socketpair()
        self.reader = Socket(fileno=reader.detach())
        self.reader.settimeout(None)
        self.is_set = False

    def set(self) -> None:
        self.is_set = True
        self._writer.close()

    def wait(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            self.reader.recv(1)

    def close(self) -> None:
        self._writer.close()
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Attempt(NamedTuple):
    """How long an attempt to reach a target may take, what ends it before, and where its socket has a descriptor."""

    deadline: float | None
    aborting: Wake
    abortable: Callable[[Socket], AbstractContextManager[None]]
    room: Callable[[], AbstractContextManager[None]]

    def limit(self, sock: socket.socket) -> None:
        """Set the socket's timeout to what is left.

        Raises:
            TimeoutError: nothing.
        """
        left = time_left(self.deadline)
        if left is not None and left <= 0.0:
            raise TimeoutError("timed out")
        sock.settimeout(left)


def wait_for(
    socks: Collection[socket.socket], event: int, wake: Wake, deadline: float | None
) -> Collection[socket.socket]:
    """Wait until some of the sockets are ready and return them; none of them once the deadline has passed.

    Raises:
        OSError: `wake` was set.
    """
    with _Selector() as selector:
        for sock in socks:
            selector.register(sock, event)
        selector.register(wake.reader, selectors.EVENT_READ)
        while True:
            left = time_left(deadline)
            if left is not None and left <= 0.0:
                return ()
            ready = {key.fileobj for key, _ in selector.select(left)}
            if wake.reader in ready:
                raise OSError(errno.ECANCELED, "the relay stops")
            if ready:
                return [sock for sock in socks if sock in ready]
