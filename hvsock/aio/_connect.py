"""Connecting a `HyperVSocket` on any event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
import threading
from collections.abc import Callable
from typing import Final

from hvsock._addresses import Address, HyperVAddress, as_address
from hvsock._errors import os_error
from hvsock._retries import Retries
from hvsock._sockets import HyperVSocket
from hvsock._transports import Transport, default_transport, transport_named

__all__ = ["call_in_thread", "connect", "connect_watched", "settle", "watches_sockets"]

_FIRST_POLL: Final = 0.001  # seconds between two looks at a full backlog, doubled each time
_LONGEST_POLL: Final = 0.016


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


async def _attempt(to: HyperVAddress, carrier: Transport, timeout: float | None) -> HyperVSocket:
    loop = asyncio.get_running_loop()
    sock = HyperVSocket(transport=carrier.name)
    try:
        sock.settimeout(timeout)
        if watches_sockets(loop):
            sock.setblocking(False)
            try:
                if timeout is not None:
                    carrier.limit_connect(sock, timeout)
                async with asyncio.timeout(timeout):
                    await connect_watched(loop, sock, lambda: carrier.connect(sock, to))
            except OSError as exc:
                sock._note(exc, "connect", peer=to)
                raise
        else:
            await call_in_thread(loop, sock, lambda: sock.connect(to))
            sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_watched(loop: asyncio.AbstractEventLoop, sock: HyperVSocket, start: Callable[[], None]) -> None:
    """Connect a non-blocking socket, which `start` does or begins to do."""
    pause = _FIRST_POLL
    while True:
        try:
            return start()
        except BlockingIOError as exc:
            if exc.errno != errno.EAGAIN or sys.platform == "win32":
                break
        # AF_UNIX, the backlog is full: nothing is pending, and nothing tells when there is room.
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_POLL)
    settled = loop.create_future()
    loop.add_writer(sock, settle, settled)
    try:
        await settled
    finally:
        loop.remove_writer(sock)
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise os_error(code)
    return None


def settle(future: asyncio.Future[None]) -> None:
    """Wake the task that waits for the future, unless it was woken."""
    if not future.done():
        future.set_result(None)


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
