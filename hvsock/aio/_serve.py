"""Serving with the accepted sockets themselves, for libraries that take one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections.abc import Awaitable, Callable

from hvsock._addresses import Address
from hvsock._sockets import HyperVSocket
from hvsock.aio._connect import watches_sockets
from hvsock.aio._server import BaseServer, check_most, listener

__all__ = ["SocketServer", "serve"]


class SocketServer(BaseServer):
    """What `serve` returns: `asyncio.Server`'s methods. A connection lasts until its socket is closed or forgotten."""

    _failure = "error in the handler of a socket"

    def __init__(
        self,
        sock: HyperVSocket,
        backlog: int | None,
        handler: Callable[[HyperVSocket], Awaitable[None]],
        max_connections: int | None,
    ) -> None:
        super().__init__(sock, backlog, max_connections)
        self._handler = handler

    def close_clients(self) -> None:
        """Cancel the handlers. Sockets that a handler has passed on stay open."""
        self._cancel_tasks()

    def abort_clients(self) -> None:
        """Cancel the handlers, and end the connections that they have passed on."""
        self._cancel_tasks()
        for connection in tuple(self._open):
            if (sock := connection()) is not None:
                _end(self._loop, sock)

    async def _serve(self, sock: HyperVSocket) -> None:
        await self._handler(sock)

    def _ended(self, connection: weakref.ref[HyperVSocket]) -> None:
        """Note it in the loop: a library may close the socket in a thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed before
            self._loop.call_soon_threadsafe(super()._ended, connection)


def _end(loop: asyncio.AbstractEventLoop, sock: HyperVSocket) -> None:
    """End a connection whose socket is in use elsewhere."""
    if watches_sockets(loop):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # a loop that watches it would miss that it was closed
    else:
        sock.close()  # ends a transfer that is under way, which shutdown() does not


async def serve(
    handler: Callable[[HyperVSocket], Awaitable[None]],
    address: Address | None = None,
    *,
    sock: socket.socket | None = None,
    max_connections: int | None = None,
    backlog: int | None = None,
    transport: str | None = None,
    connected_suspend: bool = False,
    start_serving: bool = True,
) -> SocketServer:
    """Serve a service with the accepted sockets, for a library that takes a connected one.

    The arguments and errors are `serve_messages`'s, but for the handler. It is called with a non-blocking
    `HyperVSocket` for each connection, as a task of its own, and closes the socket or passes it on. If it raises or is
    cancelled, the socket is closed; an error goes to the event loop's exception handler, and ends that connection only.
    """
    check_most(max_connections)
    taken = listener(address, sock, transport, connected_suspend)
    return await SocketServer(taken, backlog, handler, max_connections)._started(start_serving)
