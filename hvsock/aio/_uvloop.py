"""Handing a `HyperVSocket` to an event loop, which may make its transports below Python: uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, cast

from hvsock._sockets import HyperVSocket
from hvsock.aio._connect import end_with_peer

__all__ = ["NamedTransport", "attach", "loop_of_streams"]


async def attach(
    make: Callable[..., Awaitable[tuple[asyncio.BaseTransport, asyncio.BaseProtocol]]],
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    sock: HyperVSocket,
) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
    """Have the loop make a transport for a connected socket; on failure, close it."""
    loop = asyncio.get_running_loop()
    is_asyncio = isinstance(loop, asyncio.BaseEventLoop)
    end_with_peer(loop, sock)
    try:
        if is_asyncio:
            transport, protocol = await make(protocol_factory, sock)
            return cast(asyncio.Transport, transport), protocol
        presenter = _Presenter(protocol_factory(), sock)
        await make(lambda: presenter, _LentSocket(sock, presenter))
        return cast(asyncio.Transport, presenter.transport), presenter.protocol
    except BaseException as exc:
        # asyncio has closed the transport of a cancelled call, which may have to end TLS before it closes the handle.
        if not (is_asyncio and isinstance(exc, asyncio.CancelledError)):
            loop.call_soon(sock.close)  # after the transport, if there was one, has ended its transfers and closed it
        raise


class _LentSocket:
    """What the loop is shown of a socket: a stream of AF_UNIX, which it reads and writes as such.

    It refuses other families, or sets options of TCP on them. Some loops close the handle when
    something goes wrong, so each gets a duplicate, and the socket is closed when the loop forgets about it.
    """

    family: Final = getattr(socket, "AF_UNIX", -1)
    type: Final = socket.SOCK_STREAM
    proto: Final = 0

    def __init__(self, sock: HyperVSocket, presenter: _Presenter) -> None:
        self._sock = sock
        self._presenter = presenter  # has the transport, which may be all that a server knows of, and only weakly

    def fileno(self) -> int:
        """Return a handle that the caller owns."""
        return self._sock.dup().detach()

    def setblocking(self, flag: bool) -> None:
        """Set the mode of the handle."""
        self._sock.setblocking(flag)

    def close(self) -> None:
        """Close the socket: the loop has closed its handle."""
        self._sock.close()

    def detach(self) -> None:
        """Do the same."""
        self._sock.close()


class _Presenter(asyncio.Protocol):
    """The first protocol of a lent socket: puts the real one in its place, with a transport that knows its names."""

    def __init__(self, protocol: asyncio.BaseProtocol, sock: HyperVSocket) -> None:
        self.protocol = protocol
        self.transport: asyncio.BaseTransport | None = None
        self._names: dict[str, Any] = {"sockname": sock.getsockname()}
        with contextlib.suppress(OSError):  # the peer has gone already
            self._names["peername"] = sock.getpeername()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand over."""
        real = cast(asyncio.Transport, transport)
        real.set_protocol(self.protocol)
        self.transport = NamedTransport(real, self._names)
        try:
            self.protocol.connection_made(self.transport)
        except BaseException:
            real.abort()  # uvloop would neither read from it nor close it
            raise


class NamedTransport(asyncio.Transport):
    """The loop's transport (`inner`), but for "sockname" and "peername"."""

    def __init__(self, transport: asyncio.Transport, names: dict[str, Any]) -> None:
        super().__init__(names)
        self.inner = transport
        self._names = names

    def over(self, transport: asyncio.Transport) -> NamedTransport:
        """Return the same for another transport of this connection, as of TLS."""
        return NamedTransport(transport, self._names)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        own = super().get_extra_info(name)
        return self.inner.get_extra_info(name, default) if own is None else own

    def abort(self) -> None:
        self.inner.abort()

    def can_write_eof(self) -> bool:
        return self.inner.can_write_eof()

    def close(self) -> None:
        self.inner.close()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.inner.get_protocol()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.inner.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        return self.inner.get_write_buffer_size()

    def is_closing(self) -> bool:
        return self.inner.is_closing()

    def is_reading(self) -> bool:
        return self.inner.is_reading()

    def pause_reading(self) -> None:
        self.inner.pause_reading()

    def resume_reading(self) -> None:
        self.inner.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.inner.set_protocol(protocol)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.inner.set_write_buffer_limits(high, low)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.inner.write(data)

    def write_eof(self) -> None:
        self.inner.write_eof()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        self.inner.writelines(list_of_data)


class _LoopOfStreams:
    """The loop, but for start_tls(), which takes a `NamedTransport` for its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def start_tls(self, transport: NamedTransport, *args: Any, **kwargs: Any) -> asyncio.Transport:
        over = await self._loop.start_tls(transport.inner, *args, **kwargs)
        return transport.over(cast(asyncio.Transport, over))


def loop_of_streams(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Return the loop as a `StreamWriter` needs it, which starts TLS by calling the loop."""
    if isinstance(loop, asyncio.BaseEventLoop):
        return loop
    return cast(asyncio.AbstractEventLoop, _LoopOfStreams(loop))
