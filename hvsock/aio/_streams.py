"""asyncio's transports, protocols and streams over Hyper-V sockets, with asyncio's own names and arguments."""

from __future__ import annotations

import asyncio
import socket
import ssl as ssl_module
import sys
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict, TypeVar, Unpack, cast

from hvsock._addresses import Address
from hvsock._sockets import HyperVSocket
from hvsock.aio._connect import connect
from hvsock.aio._server import BaseServer, listener
from hvsock.aio._uvloop import attach, loop_of_streams

__all__ = ["Server", "create_connection", "create_server", "open_connection", "start_server"]

_Protocol = TypeVar("_Protocol", bound=asyncio.BaseProtocol)


class _TLS(TypedDict, total=False):
    ssl: ssl_module.SSLContext | None
    ssl_handshake_timeout: float | None
    ssl_shutdown_timeout: float | None


class _ClientTLS(_TLS, total=False):
    server_hostname: str | None


class _ServerOptions(_TLS, total=False):
    sock: socket.socket | None
    backlog: int | None
    transport: str | None
    connected_suspend: bool
    start_serving: bool


async def create_connection(
    protocol_factory: Callable[[], _Protocol],
    address: Address,
    *,
    timeout: float | None = None,
    transport: str | None = None,
    retry_for: float = 0.0,
    ssl: ssl_module.SSLContext | None = None,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
) -> tuple[asyncio.Transport, _Protocol]:
    """Connect to a service, and return the transport and the protocol, as `loop.create_connection` does.

    Args:
        protocol_factory: makes the protocol.
        address: any (vm, service) pair that `as_address` takes.
        timeout: seconds that an attempt to connect may take, None for the system's limit.
        transport: the name of a transport; by default `default_transport()`.
        retry_for: seconds in which errors that pass by themselves are met with another attempt, as in
            `hvsock.create_connection`.
        ssl: speak TLS in this context.
        server_hostname: the name that the server's certificate is checked for. A VM has none of its own: without it,
            the context must have `check_hostname` switched off.
        ssl_handshake_timeout: as in `loop.create_connection`.
        ssl_shutdown_timeout: the same.

    Raises:
        TimeoutError: no answer in time.
        OSError: as the system says.
        ValueError: an unknown transport, an address that it cannot express, a number out of range, or an argument about
            TLS without `ssl`.
        NotImplementedError: the loop is winloop, whose transports are TCP only.
    """
    loop = _loop_with_transports()
    timeouts = {"ssl_handshake_timeout": ssl_handshake_timeout, "ssl_shutdown_timeout": ssl_shutdown_timeout}
    tls = _tls(ssl, server_hostname=server_hostname, **timeouts)
    if ssl is not None:
        if ssl.check_hostname and not server_hostname:
            raise ValueError("the TLS context has check_hostname set, which needs a server_hostname to check for")
        tls["server_hostname"] = server_hostname or ""
    sock = await connect(address, timeout=timeout, transport=transport, retry_for=retry_for)

    async def make(factory: Callable[[], asyncio.BaseProtocol], sock: Any) -> Any:
        return await loop.create_connection(factory, sock=sock, **tls)

    made, protocol = await attach(make, protocol_factory, sock)
    return made, cast(_Protocol, protocol)


def _loop_with_transports() -> asyncio.AbstractEventLoop:
    """Return the running loop if it can make a transport for a socket that is not TCP."""
    loop = asyncio.get_running_loop()
    if sys.platform == "win32" and not isinstance(loop, asyncio.BaseEventLoop):
        raise NotImplementedError(
            f"{type(loop).__module__} makes transports for TCP only: use connect_messages and serve_messages, "
            "or one of asyncio's own event loops"
        )
    return loop


def _tls(context: ssl_module.SSLContext | None, **others: Any) -> dict[str, Any]:
    """Return the keywords about TLS, which are refused where there is none."""
    if context is None:
        for name, value in others.items():
            if value is not None:
                raise ValueError(f"{name} is only meaningful with ssl")
        return {}
    if not isinstance(context, ssl_module.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext, not {context!r}")
    return {"ssl": context, **others}


async def open_connection(
    address: Address,
    *,
    timeout: float | None = None,
    transport: str | None = None,
    retry_for: float = 0.0,
    limit: int = 2**16,
    **kwargs: Unpack[_ClientTLS],
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a service, and return a reader and a writer, as `asyncio.open_connection` does.

    `limit` bounds the reader's buffer, in bytes. The other arguments and the errors are `create_connection`'s.
    """
    loop = loop_of_streams(asyncio.get_running_loop())
    reader = asyncio.StreamReader(limit, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    made, _ = await create_connection(
        lambda: protocol, address, timeout=timeout, transport=transport, retry_for=retry_for, **kwargs
    )
    return reader, asyncio.StreamWriter(made, protocol, reader, loop)


class _Introduction(asyncio.Protocol):
    """The first protocol of an accepted connection: presents the transport, and puts the real one in its place.

    asyncio and uvloop tell of a transport a turn of the loop or two after its protocol has got to know it.
    """

    def __init__(self, protocol: asyncio.BaseProtocol, present: Callable[[asyncio.Transport], bool]) -> None:
        self._protocol = protocol
        self._present = present

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand over, unless the transport is not wanted any more."""
        real = cast(asyncio.Transport, transport)
        if self._present(real):
            real.set_protocol(self._protocol)
            self._protocol.connection_made(real)
        else:
            real.abort()


class Server(BaseServer):
    """What `create_server` and `start_server` return: `asyncio.Server`'s methods, on every event loop."""

    _failure = "error on transport creation for incoming connection"

    def __init__(
        self,
        sock: HyperVSocket,
        backlog: int | None,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        tls: dict[str, Any],
    ) -> None:
        super().__init__(sock, backlog)
        self._protocol_factory = protocol_factory
        self._tls = tls
        # Weak, so that a transport that was forgotten unclosed still warns of that.
        self._transports = weakref.WeakSet[asyncio.Transport]()

    def close_clients(self) -> None:
        """Close the transports of all connections, after what they have to send."""
        for transport in tuple(self._transports):
            transport.close()
        self._cancel_tasks()  # of those that have no transport yet: the handshake of TLS may take its time

    def abort_clients(self) -> None:
        """Close the transports of all connections at once."""
        for transport in tuple(self._transports):
            transport.abort()
        self._cancel_tasks()

    async def _serve(self, sock: HyperVSocket) -> None:
        async def make(factory: Callable[[], Any], sock: Any) -> Any:
            return await self._loop.connect_accepted_socket(factory, sock, **self._tls)

        def present(transport: asyncio.Transport) -> bool:
            if task.cancelling():  # by a caller that did not know of the transport yet
                return False
            self._tasks.discard(task)
            self._transports.add(transport)
            return True

        task = cast(asyncio.Task[None], asyncio.current_task())
        try:
            await attach(make, lambda: _Introduction(self._protocol_factory(), present), sock)
        except OSError:
            if self._loop.get_debug():  # as in asyncio: a peer that speaks no TLS could fill a log otherwise
                raise


async def create_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    address: Address | None = None,
    *,
    sock: socket.socket | None = None,
    backlog: int | None = None,
    transport: str | None = None,
    connected_suspend: bool = False,
    ssl: ssl_module.SSLContext | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
) -> Server:
    """Serve a service with protocols, as `loop.create_server` does.

    Args:
        protocol_factory: makes the protocol of a connection.
        address: any (vm, service) pair that `as_address` takes; a host's service usually binds to ``wildcard``.
        sock: instead of an address, a bound or listening socket, which the server takes over: any stream socket.
        backlog: connections that may wait to be accepted; by default as many as the system allows.
        transport: the name of a transport; by default `default_transport()`.
        connected_suspend: as in `hvsock.create_server`.
        ssl: speak TLS in this context.
        ssl_handshake_timeout: as in `loop.create_server`.
        ssl_shutdown_timeout: the same.
        start_serving: False waits for the server's start_serving() or serve_forever().

    Raises:
        OSError: the address is in use, or as the system says.
        ValueError: an unknown transport, an address that it cannot express, or both an address and a socket or neither,
            or an argument about TLS without `ssl`.
        NotImplementedError: the loop is winloop, whose transports are TCP only.
    """
    _loop_with_transports()
    tls = _tls(ssl, ssl_handshake_timeout=ssl_handshake_timeout, ssl_shutdown_timeout=ssl_shutdown_timeout)
    taken = listener(address, sock, transport, connected_suspend)
    server = Server(taken, backlog, protocol_factory, tls)
    return await server._started(start_serving)


async def start_server(
    client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None],
    address: Address | None = None,
    *,
    limit: int = 2**16,
    **kwargs: Unpack[_ServerOptions],
) -> Server:
    """Serve a service with streams, as `asyncio.start_server` does.

    Args:
        client_connected_cb: called with a reader and a writer for each connection; a coroutine is run as a task.
        address: any (vm, service) pair that `as_address` takes; a host's service usually binds to ``wildcard``.
        limit: of the readers' buffers, in bytes.
        **kwargs: as for `create_server`.
    """
    loop = loop_of_streams(asyncio.get_running_loop())

    def factory() -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit, loop)
        return asyncio.StreamReaderProtocol(reader, client_connected_cb, loop=loop)

    return await create_server(factory, address, **kwargs)
