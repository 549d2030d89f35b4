"""Connecting a `HyperVSocket` on any event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import socket
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar, cast

from hvsock._addresses import Address, HyperVAddress, as_address
from hvsock._retries import Reconnects, Retries, connect_without_blocking
from hvsock._sockets import HyperVSocket
from hvsock._transports import Transport, default_transport, transport_named, transport_of_family
from hvsock._transports.vsock import VsockTransport

__all__ = ["call_in_thread", "connect", "connect_socket", "connections", "end_with_peer", "settle", "watches_sockets"]

_T = TypeVar("_T")

_AF_VSOCK: Final = VsockTransport.family
_LOOK: Final = 1.0  # seconds between two looks at a peer

_looked_after: Final = weakref.WeakSet[HyperVSocket]()


def watches_sockets(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop says when a socket is ready: all loops but the Proactor."""
    if sys.platform != "win32":
        return True
    return not isinstance(loop, asyncio.ProactorEventLoop)


async def connect(
    address: Address,
    *,
    timeout: float | None = None,
    transport: str | None = None,
    retry_for: float = 0.0,
) -> HyperVSocket:
    """Connect to a service and return the socket, which is non-blocking, for a library that takes a connected one.

    If cancelled, nothing is left pending and no handle is left open. The arguments and errors are `connect_messages`'s.
    """
    to = as_address(address)
    if timeout is not None and not timeout > 0.0:
        raise ValueError(f"timeout must be a positive number of seconds or None, not {timeout!r}")
    retries = Retries(retry_for)
    carrier = default_transport() if transport is None else transport_named(transport)
    while True:
        try:
            return await _attempt(to, carrier, retries.limit(timeout))
        except OSError as exc:
            pause = retries.pause_after(exc)
            if pause is None:
                raise
        await asyncio.sleep(pause)


async def connections(connect: Callable[[], Awaitable[_T]], *, retry_for: float = math.inf) -> AsyncIterator[_T]:
    """Yield a connection, and another one each time the caller asks, for a client that outlives restarts of its VM.

    `connect` is a coroutine function, or returns what `connect_messages`, `open_connection` or `connect` do. All else
    is as for `hvsock.connections`.
    """
    reconnects = Reconnects(retry_for)
    while True:
        try:
            connection = await connect()
        except (OSError, EOFError) as exc:
            pause = reconnects.failed(exc)
            if pause is None:
                raise
        else:
            reconnects.made()
            yield connection
            del connection
            pause = reconnects.lost()
        await asyncio.sleep(pause)


async def _attempt(to: HyperVAddress, carrier: Transport, timeout: float | None) -> HyperVSocket:
    sock = HyperVSocket(transport=carrier.name)
    try:
        await connect_socket(asyncio.get_running_loop(), sock, to, timeout)
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_socket(
    loop: asyncio.AbstractEventLoop, sock: HyperVSocket, to: HyperVAddress, timeout: float | None
) -> None:
    """Connect a socket of a transport, which is non-blocking then. After an error it can only be closed."""
    carrier = cast(Transport, transport_of_family(sock.family))
    if watches_sockets(loop):
        sock.setblocking(False)
        try:
            if timeout is not None:
                carrier.limit_connect(sock, timeout)
            async with asyncio.timeout(timeout):
                start = functools.partial(carrier.connect, sock, to)
                await connect_without_blocking(sock, start, _wait_writable, asyncio.sleep)
        except OSError as exc:
            sock._note(exc, "connect", peer=to)
            raise
    else:
        sock.settimeout(timeout)
        await call_in_thread(loop, sock, lambda: sock.connect(to))
        sock.setblocking(False)
    end_with_peer(loop, sock)


async def _wait_writable(sock: HyperVSocket) -> None:
    loop = asyncio.get_running_loop()
    settled = loop.create_future()
    loop.add_writer(sock, settle, settled)
    try:
        await settled
    finally:
        loop.remove_writer(sock)


def settle(future: asyncio.Future[None]) -> None:
    """Wake the task that waits for the future, unless it was woken before."""
    if not future.done():
        future.set_result(None)


def end_with_peer(loop: asyncio.AbstractEventLoop, sock: HyperVSocket) -> None:
    """Wake what waits to send on the socket once the peer has gone.

    If something was left to read, the poll of AF_VSOCK does not report that; only a send fails. After a shutdown() poll
    reports it, and a socket that cannot send any more loses nothing by that.
    """
    if sock.family == _AF_VSOCK and sock not in _looked_after:
        _looked_after.add(sock)
        loop.call_later(_LOOK, _look, loop, weakref.ref(sock))


def _look(loop: asyncio.AbstractEventLoop, reference: weakref.ref[HyperVSocket]) -> None:
    sock = reference()
    if sock is None or sock.fileno() < 0:
        return
    try:
        socket.socket.send(sock, b"")  # its own send() refuses amid a message
    except OSError:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        return
    loop.call_later(_LOOK, _look, loop, reference)


async def call_in_thread(loop: asyncio.AbstractEventLoop, sock: HyperVSocket, call: Callable[[], None]) -> None:
    """Make a blocking call on `sock` in a thread of its own.

    If cancelled, closes the socket: that ends the call, so that the thread has ended too when this function has.
    """
    ended = loop.create_future()
    error: BaseException | None = None

    def run() -> None:
        nonlocal error
        try:
            call()
        except BaseException as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: no task waits any more
            loop.call_soon_threadsafe(settle, ended)

    thread = threading.Thread(target=run, name="hvsock connect")
    thread.start()
    try:
        await ended
    except BaseException:
        sock.close()
        raise
    finally:
        thread.join()
    if error is not None:
        try:
            raise error
        finally:
            error = None  # it refers to this frame
