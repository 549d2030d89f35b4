"""An event loop that takes a `HyperVSocket` wherever it takes a socket."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, Final, cast

from hvsock._addresses import as_address
from hvsock._sockets import HyperVSocket
from hvsock._transports import transport_of_family
from hvsock.aio._connect import call_in_thread, connect_socket, end_with_peer, watches_sockets
from hvsock.aio._streams import create_server
from hvsock.aio._uvloop import NamedTransport, attach

__all__ = ["new_event_loop"]

if sys.platform == "win32":
    _DEFAULT: type[asyncio.AbstractEventLoop] = asyncio.ProactorEventLoop
else:
    _DEFAULT = asyncio.SelectorEventLoop
_OF_NEW_SOCKETS: Final = {"family", "flags", "keep_alive", "reuse_address", "reuse_port"}

_Factory = Callable[[], asyncio.BaseProtocol]


def _has_transport(sock: Any) -> bool:
    """Whether it is a `HyperVSocket` with Hyper-V addresses."""
    return isinstance(sock, HyperVSocket) and transport_of_family(sock.family) is not None


async def _accept_in_thread(loop: asyncio.AbstractEventLoop, sock: HyperVSocket) -> tuple[HyperVSocket, Any]:
    accepted: list[Any] = []
    with sock.dup() as listening:  # which is closed to end the call
        listening.settimeout(None)
        try:
            await call_in_thread(loop, listening, lambda: accepted.extend(listening.accept()))
        except BaseException:
            for made in accepted[:1]:
                made.close()
            raise
    made, address = accepted
    made.setblocking(False)
    return made, address


class _TakesHyperVSockets(asyncio.AbstractEventLoop):
    """The methods that an event loop lacks for a `HyperVSocket`, with the loop's own for all other sockets.

    The Proactor connects and accepts the internet's families only; uvloop makes transports of these and of AF_UNIX.
    """

    async def sock_connect(self, sock: Any, address: Any) -> None:
        if _has_transport(sock):
            await connect_socket(self, sock, as_address(address), None)
        else:
            await super().sock_connect(sock, address)

    async def sock_accept(self, sock: Any) -> tuple[Any, Any]:
        if not _has_transport(sock):
            return await super().sock_accept(sock)
        accepted = await (super().sock_accept(sock) if watches_sockets(self) else _accept_in_thread(self, sock))
        end_with_peer(self, cast(HyperVSocket, accepted[0]))
        return accepted

    async def create_connection(self, protocol_factory: _Factory, *args: Any, sock: Any = None, **kwargs: Any) -> Any:
        make = super().create_connection
        if not _has_transport(sock):
            return await make(protocol_factory, *args, sock=sock, **kwargs)
        return await attach(lambda factory, lent: make(factory, *args, sock=lent, **kwargs), protocol_factory, sock)

    async def connect_accepted_socket(self, protocol_factory: _Factory, sock: Any, **kwargs: Any) -> Any:
        make = super().connect_accepted_socket
        if not _has_transport(sock):
            return await make(protocol_factory, sock, **kwargs)
        return await attach(lambda factory, lent: make(factory, lent, **kwargs), protocol_factory, sock)

    async def create_server(
        self,
        protocol_factory: _Factory,
        host: Any = None,
        port: Any = None,
        *,
        sock: Any = None,
        backlog: int = 100,
        start_serving: bool = True,
        **kwargs: Any,
    ) -> Any:
        kwargs.update(sock=sock, backlog=backlog, start_serving=start_serving)
        if host is None and port is None and _has_transport(sock):
            kept = {name: value for name, value in kwargs.items() if name not in _OF_NEW_SOCKETS}
            return await create_server(protocol_factory, **kept)
        return await super().create_server(protocol_factory, host, port, **kwargs)

    async def start_tls(self, transport: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(transport, NamedTransport):
            return await super().start_tls(transport, *args, **kwargs)
        over = cast(asyncio.Transport, await super().start_tls(transport.inner, *args, **kwargs))
        return transport.over(over)


def new_event_loop(base: type[asyncio.AbstractEventLoop] | None = None) -> asyncio.AbstractEventLoop:
    """Return a new event loop whose methods take a `HyperVSocket` as any other socket.

    It is a loop factory, for `asyncio.Runner`, for `asyncio.run` from Python 3.12 on, and for servers that take one.

    Args:
        base: the class of the loop, as `uvloop.Loop`. By default asyncio's: on Windows the Proactor, which connects and
            accepts these sockets in threads, elsewhere the selector loop.
    """
    base = base or _DEFAULT
    loop: asyncio.AbstractEventLoop = type(base.__name__, (_TakesHyperVSockets, base), {})()
    return loop
