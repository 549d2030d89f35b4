"""websockets over Hyper-V sockets, with asyncio, on every event loop; for threads there is `websockets_sync`.

``async with connect("ws://agent/", ("parent", 8000))`` and ``async with await serve(handler, ("wildcard", 8000))``.
"""

from __future__ import annotations

import ssl as ssl_module
from typing import Any, cast

from websockets.asyncio import client, server
from websockets.extensions.permessage_deflate import enable_server_permessage_deflate
from websockets.server import ServerProtocol

import hvsock
from hvsock import aio

__all__ = ["connect", "serve"]


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
        tls: dict[str, Any] = {}
        if self.ws_uri.secure:
            tls = {"ssl": self._ssl or ssl_module.create_default_context(), "server_hostname": self.ws_uri.host}
        tls["transport"] = self._transport
        _, made = await aio.create_connection(lambda: self.factory(self.ws_uri), self._address, **tls)
        return made


async def serve(
    handler: Any, address: hvsock.Address, *, ssl: Any = None, transport: str | None = None, **kwargs: Any
) -> server.Server:
    """Serve as `websockets.asyncio.server.serve` does, with its arguments; raise what `hvsock.aio.create_server` does.

    ``remote_address`` of a connection is the client's `hvsock.HyperVAddress`.
    """
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

    options: Any = {"ssl": ssl, "transport": transport, "start_serving": False}
    made.create_server = lambda: cast(Any, aio.create_server(factory, address, **options))
    await made
    await made.start_serving()  # not before: what websockets writes to its log knows the names of IP and Unix only
    return made
