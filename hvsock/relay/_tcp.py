"""TCP in a relay: a host's name stands for every address of it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import selectors
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final, TypeAlias

from hvsock._errors import os_error
from hvsock.relay._attempt import Attempt, time_left, wait_for

__all__ = ["FAMILIES", "connect", "listen", "tcp_text", "tune"]

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)

# typeshed: the address of AF_INET6 has two members more.
Address: TypeAlias = tuple[str, int]
_Resolved: TypeAlias = tuple[socket.AddressFamily, socket.SocketKind, int, str, Address]

_BACKLOG: Final = 1024  # connections that may wait to be accepted; systems lower it to their own limit
_TRIES: Final = 10  # for a port that is free on every address of a host
_HEAD_START: Final = 0.25  # seconds before the next address is tried too: RFC 8305, section 5
_IN_PROGRESS: Final = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, 10035})  # 10035: WSAEWOULDBLOCK
_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of a host that this machine has, on the same port; port 0 is any that is free.

    A machine without IPv6 may still have a name for ::1.

    Raises:
        OSError: the port is in use on one of the addresses, this machine has none of them, or as the system says.
    """
    addresses = _resolve(host, port)
    tries = _TRIES if port == 0 and len(addresses) > 1 else 1
    while True:
        tries -= 1
        try:
            return _listen_on_all(addresses)
        except OSError:
            if tries == 0:
                raise


def _listen_on_all(addresses: Sequence[_Resolved]) -> list[socket.socket]:
    missing: OSError | None = None
    with contextlib.ExitStack() as undo:
        socks: list[socket.socket] = []
        for family, kind, proto, _, address in addresses:
            port = socks[0].getsockname()[1] if socks else address[1]
            try:
                sock = _listener(family, kind, proto, (address[0], port, *address[2:]))
            except OSError as exc:
                if exc.errno not in _NOT_HERE:
                    raise
                missing = exc
            else:
                socks.append(undo.enter_context(sock))
        if not socks and missing is not None:
            raise missing
        undo.pop_all()
    return socks


def _listener(family: int, kind: int, proto: int, address: tuple[object, ...]) -> socket.socket:
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(family, kind, proto))
        if sys.platform == "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        undo.pop_all()
    return sock


def connect(host: str, port: int, attempt: Attempt) -> socket.socket:
    """Connect to the address of a host that answers first.

    They are tried in the system's order, IPv6 and IPv4 by turns. Each has a head start over the next one, unless it
    fails before: "Happy Eyeballs", RFC 8305.

    Raises:
        TimeoutError: none has answered by the attempt's deadline.
        OSError: all of them have failed, and this is the last one's; or the relay stops.
    """
    waiting = _by_turns(_resolve(host, port))
    racing: dict[socket.socket, Address] = {}
    failure: OSError | None = None
    try:
        while waiting or racing:
            if waiting:
                failure = _begin(racing, waiting.pop(0), attempt) or failure
            if not racing:
                continue
            for sock in wait_for(racing, selectors.EVENT_WRITE, attempt.aborting, _until(attempt, bool(waiting))):
                address = racing[sock]
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error == 0:
                    del racing[sock]
                    return sock
                _drop(racing, sock)
                failure = os_error(error, f"connect to {tcp_text(address)}")
            if _is_over(attempt):
                raise TimeoutError("timed out")
        assert failure is not None
        raise failure
    finally:
        del failure  # its traceback refers to this frame and would keep the pump until the next collection
        for sock in list(racing):
            _drop(racing, sock)


def _begin(racing: dict[socket.socket, Address], resolved: _Resolved, attempt: Attempt) -> OSError | None:
    """Begin to connect to an address; return why it failed at once."""
    family, kind, proto, _, address = resolved
    try:
        with attempt.room():
            sock = socket.socket(family, kind, proto)
    except OSError as exc:
        return exc
    racing[sock] = address
    try:
        tune(sock)
        sock.setblocking(False)
        error = sock.connect_ex(address)
    except OSError as exc:
        _drop(racing, sock)
        return exc
    if error in (0, *_IN_PROGRESS):
        return None
    _drop(racing, sock)
    return os_error(error, f"connect to {tcp_text(address)}")


def _drop(racing: dict[socket.socket, Address], sock: socket.socket) -> None:
    del racing[sock]
    sock.close()


def _until(attempt: Attempt, others_wait: bool) -> float | None:
    """Return when to look again: at the deadline, or when the next address gets its turn."""
    turn = time.monotonic() + _HEAD_START
    if not others_wait:
        return attempt.deadline
    return turn if attempt.deadline is None else min(turn, attempt.deadline)


def _is_over(attempt: Attempt) -> bool:
    left = time_left(attempt.deadline)
    return left is not None and left <= 0.0


def _by_turns(addresses: Sequence[_Resolved]) -> list[_Resolved]:
    """Return the addresses with their families by turns: a family that leads nowhere costs one head start only."""
    first = addresses[0][0]
    queues = [a for a in addresses if a[0] == first], [a for a in addresses if a[0] != first]
    return [address for turn in itertools.zip_longest(*queues) for address in turn if address is not None]


def _resolve(host: str, port: int) -> list[_Resolved]:
    # A name may be in the hosts file twice. typeshed knows addresses that TCP does not have.
    return list(dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))  # type: ignore[arg-type]


def tune(sock: socket.socket) -> None:
    """Send at once, since the relay has no more to add to a packet, and detect vanished peers, if it is TCP."""
    if sock.family in FAMILIES:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def tcp_text(address: tuple[str, int]) -> str:
    host, port, *_ = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
