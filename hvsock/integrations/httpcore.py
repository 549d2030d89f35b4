"""httpcore over Hyper-V sockets: ``httpcore.ConnectionPool(network_backend=Backend(("parent", 8000)))``.

`AsyncBackend` is for `httpcore.AsyncConnectionPool`, with asyncio.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpcore

import hvsock
from hvsock import aio
from hvsock.integrations._httpcore_asyncio import AsyncStream
from hvsock.integrations._httpcore_sync import Stream, errors

__all__ = ["AsyncBackend", "Backend"]


class Backend(httpcore.NetworkBackend):
    """The backend of a pool: it opens all connections to the service at `address`, whatever host a URL names.

    `address` is any (vm, service) pair that `hvsock.as_address` takes, `transport` the name of a transport, by default
    `hvsock.default_transport()`. Timeouts and errors are httpcore's, in seconds: `httpcore.ConnectError` where the
    service does not listen. A malformed address is a `ValueError`.
    """

    def __init__(self, address: hvsock.Address, *, transport: str | None = None) -> None:
        self._address = hvsock.as_address(address)
        self._transport = transport

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: Any, **__: Any) -> Stream:
        """Connect to the service."""
        with errors(httpcore.ConnectTimeout, httpcore.ConnectError):
            return Stream(hvsock.create_connection(self._address, timeout, transport=self._transport))


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """The same as `Backend`, on asyncio's event loops and uvloop."""

    def __init__(self, address: hvsock.Address, *, transport: str | None = None) -> None:
        self._address = hvsock.as_address(address)
        self._transport = transport

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: Any, **__: Any) -> AsyncStream:
        """Connect to the service."""
        with errors(httpcore.ConnectTimeout, httpcore.ConnectError):
            return AsyncStream(*await aio.open_connection(self._address, timeout=timeout, transport=self._transport))

    async def sleep(self, seconds: float) -> None:
        """Wait between two attempts."""
        await asyncio.sleep(seconds)
