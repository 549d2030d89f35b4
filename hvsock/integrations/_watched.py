"""What trio and anyio share: attempts on a non-blocking socket, and waiting for it between them."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

from hvsock._addresses import Address, as_address
from hvsock._retries import connect_without_blocking
from hvsock._sockets import HyperVSocket
from hvsock._transports import default_transport, transport_named

__all__ = ["LOOK", "accepted", "attempt", "connected", "send_all", "timed_out"]

T = TypeVar("T")
Wait = Callable[[HyperVSocket], Awaitable[object]]

#: Seconds between two looks at a peer that takes nothing: AF_VSOCK does not say that a socket whose peer has gone is
#: writable if something was left to read, and only a send, which may be empty, fails.
LOOK: Final = 1.0


async def attempt(sock: HyperVSocket, call: Callable[[], T], wait: Wait) -> T:
    """Make a call until it does not block, and wait between two attempts."""
    while True:
        try:
            return call()
        except BlockingIOError:
            await wait(sock)


async def send_all(sock: HyperVSocket, data: bytes | bytearray | memoryview, wait: Wait) -> None:
    """Send all of the data; if it is cancelled, it is unknown how much was sent."""
    with memoryview(data) as view, view.cast("B") as octets:
        sent = 0
        while sent < len(octets):
            with octets[sent:] as rest:
                sent += await attempt(sock, partial(sock.send, rest), wait)


async def accepted(listener: HyperVSocket, wait: Wait) -> HyperVSocket:
    """Return the next connection, without those that ended before they were accepted."""
    while True:
        try:
            return (await attempt(listener, listener.accept, wait))[0]
        except ConnectionError:
            continue


async def connected(
    address: Address,
    seconds: float | None,
    transport: str | None,
    wait: Wait,
    sleep: Callable[[float], Awaitable[None]],
) -> HyperVSocket:
    """Return a connected socket, non-blocking; if cancelled, nothing is left pending and no handle open.

    `seconds` only move the system's own limit of about 2 s: the caller ends the connect by then.
    """
    to = as_address(address)
    carrier = default_transport() if transport is None else transport_named(transport)
    sock = HyperVSocket(transport=carrier.name)
    try:
        sock.setblocking(False)
        if seconds is not None:
            carrier.limit_connect(sock, seconds)
        await sleep(0)  # a checkpoint, which trio asks of each call: the connect may be done at once
        await connect_without_blocking(sock, partial(carrier.connect, sock, to), wait, sleep)
    except OSError as exc:
        sock._note(exc, "connect", peer=to)
        sock.close()
        raise
    except BaseException:
        sock.close()
        raise
    return sock


def timed_out(address: Address) -> TimeoutError:
    """Return what a connect raises that has taken all of its time."""
    error = TimeoutError(errno.ETIMEDOUT, "timed out")
    error.add_note(f"connect, peer {as_address(address)}")
    return error
