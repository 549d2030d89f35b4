"""Accepting connections on any event loop: what all servers have in common."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import socket
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final, Self, cast

from hvsock._addresses import Address
from hvsock._sockets import HyperVSocket, _bind_server
from hvsock.aio._connect import end_with_peer, watches_sockets

__all__ = ["BaseServer", "check_most", "listener"]

_BURST: Final = 100  # connections accepted in one turn of the loop, unless the server has a limit of its own
_RETRY_DELAY: Final = 1.0  # seconds without accepting after an error that is not the peer's, as in asyncio


def listener(
    address: Address | None, sock: socket.socket | None, transport: str | None, connected_suspend: bool
) -> HyperVSocket:
    """Return the socket of a server: bound to the address, or `sock`, which the server takes over."""
    if (address is None) == (sock is None):
        raise ValueError("a server needs either an address or a socket to listen on, as sock")
    if sock is None:
        return _bind_server(cast(Address, address), transport, connected_suspend)
    if transport is not None or connected_suspend:
        raise ValueError("transport and connected_suspend are for a new socket: sock has its own already")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"a server needs a stream socket, not {sock!r}")
    if isinstance(sock, HyperVSocket):
        return sock
    taken = HyperVSocket(sock.family, sock.type, sock.proto, fileno=sock.fileno())
    sock.detach()
    return taken


def check_most(max_connections: int | None) -> None:
    """Refuse a number of connections that would let none in."""
    if max_connections is not None and max_connections < 1:
        raise ValueError(f"max_connections must be at least 1, not {max_connections!r}")


class BaseServer(asyncio.AbstractServer):
    """One listening socket, and its connections from accept() until their sockets are closed.

    The methods are those of `asyncio.Server`, on every version of Python as on the newest.
    """

    _failure: ClassVar[str]
    """What the loop's exception handler is told of an error that `_serve` raises."""

    def __init__(self, sock: HyperVSocket, backlog: int | None, max_connections: int | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._backlog = backlog
        self._max_connections = max_connections
        self._acceptor: _Acceptor | None = None
        self._closed = False
        self._open: set[weakref.ref[HyperVSocket]] = set()  # one for each connection
        self._over = asyncio.Event()  # set once the server is closed and the last connection has ended
        self._forever: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._shutdowns: set[asyncio.Future[None]] = set()  # that are not over

    def __repr__(self) -> str:
        return f"<{type(self).__name__} sockets={self.sockets!r}>"

    @abc.abstractmethod
    def _serve(self, sock: HyperVSocket) -> Coroutine[Any, Any, None]:
        """Take care of a connection.

        The task is one of `_tasks` until it ends. The socket is closed if it fails, and otherwise later.
        """

    @abc.abstractmethod
    def close_clients(self) -> None:
        """Have the connections end by themselves."""

    @abc.abstractmethod
    def abort_clients(self) -> None:
        """End all connections at once."""

    def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _served(self, sock: HyperVSocket, connection: weakref.ref[HyperVSocket], task: asyncio.Task[None]) -> None:
        """End a task of `_serve`."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:  # maybe before it began
            sock.close()
        if isinstance(error, Exception):
            self._loop.call_exception_handler({"message": self._failure, "exception": error, "socket": sock})
        if sock.fileno() < 0:  # or it was detached, of which there is no notice
            self._ended(connection)

    @property
    def sockets(self) -> tuple[HyperVSocket, ...]:
        """The listening socket; nothing once the server is closed."""
        return () if self._closed else (self._sock,)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop of the server."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether the server accepts connections."""
        return self._acceptor is not None and not self._closed

    async def start_serving(self) -> None:
        """Start accepting connections; nothing happens if the server does already."""
        self._start_serving()
        await asyncio.sleep(0)

    async def _started(self, start_serving: bool) -> Self:
        """Return the server, which was just made, after start_serving() if that is wanted."""
        try:
            if start_serving:
                await self.start_serving()
        except BaseException:
            self.close()
            raise
        return self

    def _start_serving(self) -> None:
        if self._closed:
            raise RuntimeError(f"server {self!r} is closed")
        if self._acceptor is None:
            self._sock.listen(self._backlog)
            kind = _WatchingAcceptor if watches_sockets(self._loop) else _ThreadAcceptor
            acceptor = kind(self._loop, self._sock, self._accepted)
            acceptor.start(self._max_connections or max(_BURST if self._backlog is None else self._backlog, 1))
            self._acceptor = acceptor

    async def serve_forever(self) -> None:
        """Accept connections until cancelled, as by Ctrl-C under `asyncio.run`; then shut the server down."""
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        self._start_serving()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            await self._finish(failed=not self._closed)
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Stop accepting connections, and close the listening socket. Open ones continue."""
        if self._closed:
            return
        self._closed = True
        if self._acceptor is not None:
            self._acceptor.close()
        self._sock.close()
        if self._forever is not None:
            self._forever.cancel()
        self._note_end()

    async def wait_closed(self) -> None:
        """Wait until the server is closed and the last connection has ended."""
        await self._over.wait()

    async def shutdown(self, timeout: float | None = 10.0) -> None:
        """Close the server and its clients, as close_clients() does, and abort those that have not ended in time.

        Args:
            timeout: seconds; None aborts none.
        """
        over = self._loop.create_future()
        self._shutdowns.add(over)
        try:
            self.close()
            self.close_clients()
            try:
                async with asyncio.timeout(timeout):
                    await self._connections_ended()
            except TimeoutError:
                self.abort_clients()
                await self._connections_ended()
        finally:
            self._shutdowns.remove(over)
            over.set_result(None)

    async def _connections_ended(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.wait_closed()

    async def _finish(self, *, failed: bool) -> None:
        """End the server, whose block or serve_forever() has ended: wait for the clients, or shut down."""
        try:
            if not failed:
                self.close()
                return await self.wait_closed()
        except asyncio.CancelledError:
            await self._end()
            raise
        return await self._end()

    async def _end(self) -> None:
        """Shut down. If cancelled, as by another Ctrl-C, abort the clients."""
        try:
            while self._shutdowns:  # which may give the clients more time
                await asyncio.wait(self._shutdowns)
            await self.shutdown()
        except BaseException:
            self.abort_clients()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._finish(failed=error[0] is not None)

    def _accepted(self, sock: HyperVSocket) -> None:
        connection = weakref.ref(sock, self._ended)  # a socket that was forgotten is closed, too
        self._open.add(connection)
        sock._at_close(functools.partial(self._ended, connection))
        if self._max_connections is None:
            self._release()
        end_with_peer(self._loop, sock)
        task = self._loop.create_task(self._serve(sock))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._served, sock, connection))

    def _ended(self, connection: weakref.ref[HyperVSocket]) -> None:
        if connection in self._open:
            self._open.remove(connection)
            if self._max_connections is not None:
                self._release()
            self._note_end()

    def _release(self) -> None:
        if self._acceptor is not None and not self._closed:
            self._acceptor.release()

    def _note_end(self) -> None:
        if self._closed and not self._open:
            self._over.set()


class _Acceptor(abc.ABC):
    """Accepts connections and hands them over in the loop, as long as it has permits.

    Each connection takes one; `release` gives it back.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: HyperVSocket, accepted: Callable[[HyperVSocket], None]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._accepted = accepted

    @abc.abstractmethod
    def start(self, permits: int) -> None:
        """Begin to accept."""

    @abc.abstractmethod
    def release(self) -> None:
        """Give a permit back."""

    @abc.abstractmethod
    def close(self) -> None:
        """End it; what was accepted but not handed over is closed."""

    def _report(self, exc: OSError) -> None:
        """Hand an error that has no caller to the loop's exception handler."""
        context: dict[str, Any] = {"message": "accepting a connection failed", "exception": exc, "socket": self._sock}
        self._loop.call_exception_handler(context)


def _is_of_peer(exc: OSError) -> bool:
    """Whether accept() failed because of the connection alone: its peer has gone already."""
    return isinstance(exc, ConnectionError)


class _WatchingAcceptor(_Acceptor):
    """For loops that say when a socket is ready."""

    def start(self, permits: int) -> None:
        self._permits = permits
        self._burst = permits  # accepted in one turn of the loop
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False
        self._sock.setblocking(False)
        self._watch()

    def _watch(self) -> None:
        self._retry = None
        self._loop.add_reader(self._sock, self._accept_burst)

    def release(self) -> None:
        self._permits += 1
        if self._permits == 1 and self._retry is None:
            self._watch()

    def close(self) -> None:
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._sock)

    def _accept_burst(self) -> None:
        for _ in range(self._burst):
            if self._closed:  # by what was done with the last connection
                return
            if self._permits == 0:
                self._loop.remove_reader(self._sock)
                return
            try:
                sock, _address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                self._report(exc)
                if not _is_of_peer(exc) and not self._closed:
                    self._loop.remove_reader(self._sock)
                    self._retry = self._loop.call_later(_RETRY_DELAY, self._watch)
                    return
            else:
                sock.setblocking(False)
                self._permits -= 1
                self._accepted(sock)


class _ThreadAcceptor(_Acceptor):
    """For the Proactor, whose own accept knows the internet's families only: a thread that blocks in accept()."""

    def start(self, permits: int) -> None:
        self._permits = threading.Semaphore(permits)
        self._closed = threading.Event()
        self._sock.setblocking(True)
        self._thread = threading.Thread(target=self._run, name="hvsock accept")
        with contextlib.suppress(RuntimeError):  # an isolated subinterpreter allows no daemon
            self._thread.daemon = True  # or a server that was not closed would keep the process
        self._thread.start()

    def release(self) -> None:
        self._permits.release()

    def close(self) -> None:
        self._closed.set()
        self._sock.close()  # ends accept()
        self._permits.release()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed before the server
            while self._permits.acquire() and not self._closed.is_set():
                try:
                    sock, _address = self._sock.accept()
                except OSError as exc:
                    self._permits.release()
                    if not self._closed.is_set():
                        self._loop.call_soon_threadsafe(self._report, exc)
                        self._closed.wait(0 if _is_of_peer(exc) else _RETRY_DELAY)
                else:
                    sock.setblocking(False)
                    self._hand_over(sock)
                    del sock  # or it would be kept from being forgotten until the next one comes

    def _hand_over(self, sock: HyperVSocket) -> None:
        try:
            self._loop.call_soon_threadsafe(self._take, sock)
        except RuntimeError:
            sock.close()
            raise

    def _take(self, sock: HyperVSocket) -> None:
        if self._closed.is_set():
            sock.close()
        else:
            self._accepted(sock)
