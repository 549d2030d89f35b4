"""redis-py over Hyper-V sockets: `client` and `async_client`, or the connection classes for pools. Needs redis."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.asyncio.connection import AbstractConnection as AbstractAsyncConnection
from redis.connection import AbstractConnection

from hvsock import Address, HyperVAddress, HyperVSocket, aio, as_address, create_connection

__all__ = ["AsyncConnection", "Connection", "async_client", "client"]


class _Addressed:
    """What a connection has in place of a host and a port."""

    db: Any

    def __init__(self, *, address: Address, **options: Any) -> None:
        self.address: HyperVAddress = as_address(address)
        super().__init__(**options)

    def repr_pieces(self) -> list[tuple[str, Any]]:
        """Return what tells connections apart in a log."""
        return [("address", str(self.address)), ("db", self.db)]

    def _host_error(self) -> str:
        return str(self.address)


class Connection(_Addressed, AbstractConnection):
    """The `connection_class` of a `redis.ConnectionPool`, which is given an `address` too."""

    def _connect(self) -> HyperVSocket:
        sock = create_connection(self.address, self.socket_connect_timeout)
        sock.settimeout(self.socket_timeout)
        return sock


class AsyncConnection(_Addressed, AbstractAsyncConnection):
    """The `connection_class` of a `redis.asyncio.ConnectionPool`, which is given an `address` too."""

    async def _connect(self) -> None:
        timeout = self.socket_connect_timeout
        self._reader, self._writer = await aio.open_connection(self.address, timeout=timeout)


def client(address: Address, **options: Any) -> redis.Redis:
    """Return a client of the server at this address; the options are those of `redis.ConnectionPool`."""
    return redis.Redis.from_pool(redis.ConnectionPool(Connection, address=address, **options))


def async_client(address: Address, **options: Any) -> redis.asyncio.Redis:
    """Return a client for asyncio of the server at this address, on its own pool."""
    return redis.asyncio.Redis.from_pool(redis.asyncio.ConnectionPool(AsyncConnection, address=address, **options))
