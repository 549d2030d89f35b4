"""websockets over Hyper-V sockets, with asyncio, on every event loop; for threads there is `websockets_sync`.

``async with connect("ws://agent/", ("parent", 8000))`` and ``async with await serve(handler, ("wildcard", 8000))``.
"""

from __future__ import annotations

import inspect
import ssl as ssl_module
from collections.abc import Awaitable, Callable
from typing import Any, cast

from websockets.asyncio import client, server
from websockets.extensions.permessage_deflate import enable_server_permessage_deflate
from websockets.server import ServerProtocol

import hvsock
from hvsock import aio

__all__ = ["connect", "serve"]

_Handler = Callable[[server.ServerConnection], Awaitable[None]]


class connect(client.connect):  # noqa: N801 - as websockets' own, which is called like a function
    """What `websockets.asyncio.client.connect` is, ``async for`` included, for the service at `address`.

    Args:
        uri: ``ws://NAME/PATH`` or ``wss://NAME/PATH``. NAME is for the ``Host`` header and the check of a certificate.
        address: any (vm, service) pair that `hvsock.as_address` takes, else a `ValueError`.
        ssl: the context for ``wss``, by default `ssl.create_default_context()`.
        transport: the name of a transport; by default `hvsock.default_transport()`.
        **kwargs: as for `websockets.asyncio.client.connect`. `open_timeout`, in seconds, is for the connect too.
    """

    def __init__(
        self, uri: str, address: hvsock.Address, *, ssl: Any = None, transport: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(uri, **kwargs)
        self._address = hvsock.as_address(address)
        self._transport = transport
        self._ssl = ssl

    async def open_tcp_connection(self) -> client.ClientConnection:
        """Connect to the service."""
        options: dict[str, Any] = {"transport": self._transport}
        if self.ws_uri.secure:
            options["ssl"] = self._ssl or ssl_module.create_default_context()
            options["server_hostname"] = self.ws_uri.host
        _, made = await aio.create_connection(lambda: self.factory(self.ws_uri), self._address, **options)
        return made


async def serve(handler: _Handler, address: hvsock.Address, **kwargs: Any) -> server.Server:
    """Serve as `websockets.asyncio.server.serve` does; ``remote_address`` is the client's `hvsock.HyperVAddress`.

    The other arguments are those of that function and of `hvsock.aio.create_server`, as ``ssl``; and so are the errors.
    """
    others = {name: kwargs.pop(name) for name in set(kwargs) - set(inspect.signature(server.serve).parameters)}
    made = server.serve(handler, **kwargs)
    select = kwargs.get("select_subprotocol")

    def given(*names: str) -> dict[str, Any]:
        return {name: kwargs[name] for name in names if name in kwargs}

    def factory() -> server.ServerConnection:
        known = given("origins", "subprotocols", "max_size", "logger", "extensions")
        if kwargs.get("compression", "deflate"):
            known["extensions"] = enable_server_permessage_deflate(known.get("extensions"))
        protocol = ServerProtocol(**known, select_subprotocol=select and (lambda _, names: select(connection, names)))
        limits = given("ping_interval", "ping_timeout", "close_timeout", "max_queue", "write_limit")
        make = kwargs.get("create_connection") or server.ServerConnection
        connection: server.ServerConnection = make(protocol, made, **limits)
        return connection

    made.create_server = lambda: cast(Any, aio.create_server(factory, address, start_serving=False, **others))
    await made
    await made.start_serving()  # not before: what websockets writes to its log knows the names of IP and Unix only
    return made
