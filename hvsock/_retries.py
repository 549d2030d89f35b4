"""When a connect that failed is tried again, and how long each attempt may take; connecting again and again."""

from __future__ import annotations

import errno
import math
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any, Final, TypeVar

from hvsock._errors import code_of, is_transient, os_error

__all__ = ["Reconnects", "Retries", "connect_without_blocking", "connections"]

_T = TypeVar("_T")

_FIRST_PAUSE: Final = 0.01  # seconds between two attempts, doubled each time
_LONGEST_PAUSE: Final = 0.5
_LONGEST_ATTEMPT: Final = 2.0  # seconds, where no timeout says otherwise: about what both systems allow by themselves
_SHORTEST_ATTEMPT: Final = 0.001
_FIRST_POLL: Final = 0.001  # seconds between two looks at a full backlog, doubled each time
_LONGEST_POLL: Final = 0.016
_LONGEST_BREAK: Final = 5.0  # seconds between two connections, the first of these breaks being _FIRST_PAUSE


class Retries:
    """The attempts of one call to connect: as many as fit into `retry_for` seconds from now, but at least one.

    Raises:
        ValueError: `retry_for` is negative, or not finite.
    """

    def __init__(self, retry_for: float) -> None:
        if not (retry_for >= 0.0 and math.isfinite(retry_for)):
            raise ValueError(f"retry_for must be a finite number of seconds, at least 0, not {retry_for!r}")
        self._limited = retry_for > 0.0
        self._deadline = time.monotonic() + retry_for
        self._pause = _FIRST_PAUSE

    def limit(self, timeout: float | None) -> float | None:
        """Return the timeout of the next attempt, where the caller allows each `timeout` seconds."""
        if not self._limited or timeout == 0.0:
            return timeout
        left = self._deadline - time.monotonic()
        return max(min(_LONGEST_ATTEMPT if timeout is None else timeout, left), _SHORTEST_ATTEMPT)

    def pause_after(self, error: OSError, *, also: Collection[int] = ()) -> float | None:
        """Return the seconds to wait before the next attempt, or None if this error is the call's.

        Errors in `also` pass too.
        """
        pause = self._pause
        if time.monotonic() + pause >= self._deadline or not (is_transient(error) or code_of(error) in also):
            return None
        self._pause = min(2 * pause, _LONGEST_PAUSE)
        return pause


async def connect_without_blocking(
    sock: socket.socket,
    start: Callable[[], None],
    wait_writable: Callable[[Any], Awaitable[object]],
    sleep: Callable[[float], Awaitable[object]],
) -> None:
    """Connect a non-blocking socket on any kind of event loop; `start` calls its connect().

    Raises:
        OSError: as the system says.
    """
    pause = _FIRST_POLL
    while True:
        try:
            return start()
        except BlockingIOError as exc:
            if exc.errno != errno.EAGAIN or sys.platform == "win32":
                break
        # AF_UNIX, the backlog is full: nothing is pending, and nothing tells when there is room.
        await sleep(pause)
        pause = min(2 * pause, _LONGEST_POLL)
    await wait_writable(sock)
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise os_error(code)
    return None


class Reconnects:
    """The breaks between the connections of one client, which wants to have one at any time.

    Raises:
        ValueError: `retry_for` is negative, or not a number.
    """

    def __init__(self, retry_for: float) -> None:
        if not retry_for >= 0.0:
            raise ValueError(f"retry_for must be a number of seconds, at least 0, not {retry_for!r}")
        self._retry_for = retry_for
        self._since = time.monotonic()  # when the connection was made, or when there was none any more
        self._has_worked = False
        self._break = _FIRST_PAUSE / 2

    def made(self) -> None:
        """Note that there is a connection."""
        self._since = time.monotonic()
        self._has_worked = True

    def lost(self) -> float:
        """Note that it has ended, and return the seconds to wait: few again if it has lasted."""
        now = time.monotonic()
        if now - self._since >= _LONGEST_BREAK:
            self._break = _FIRST_PAUSE / 2
        self._since = now
        return self._next()

    def failed(self, error: OSError | EOFError) -> float | None:
        """Return the seconds to wait after an attempt, or None if this error is the client's."""
        passes = self._has_worked or (isinstance(error, OSError) and is_transient(error))
        pause = self._next()
        return pause if passes and time.monotonic() + pause < self._since + self._retry_for else None

    def _next(self) -> float:
        self._break = min(2 * self._break, _LONGEST_BREAK)
        return self._break


def connections(connect: Callable[[], _T], *, retry_for: float = math.inf) -> Iterator[_T]:
    """Yield a connection, and another one each time the caller asks, for a client that outlives restarts of its VM.

    An attempt that fails is followed by another one, after a break that grows from 10 ms to 5 s. So is a connection
    that did not last 5 s, so that a service which fails at once is not asked again and again. The caller closes each
    connection.

    Args:
        connect: makes a connection, as `create_connection` does. It is called anew each time: if it looks up the id of
            a VM, a new id is found.
        retry_for: seconds without a connection after which the error of the last attempt is raised.

    Raises:
        OSError, EOFError: of `connect`, after `retry_for` seconds. Before there was a connection, an error that does
            not pass by itself is raised at once; later, every error may.
        ValueError: a negative `retry_for`.
    """
    reconnects = Reconnects(retry_for)
    while True:
        try:
            connection = connect()
        except (OSError, EOFError) as exc:
            pause = reconnects.failed(exc)
            if pause is None:
                raise
        else:
            reconnects.made()
            yield connection
            del connection
            pause = reconnects.lost()
        time.sleep(pause)
