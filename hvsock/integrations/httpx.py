"""httpx over Hyper-V sockets: ``httpx.Client(transport=Transport(("parent", 8000)), base_url="http://agent")``.

`AsyncTransport` is for `httpx.AsyncClient`, with asyncio.
"""

from __future__ import annotations

from typing import Any

import httpcore
import httpx

import hvsock
from hvsock.integrations._httpx_models import AsyncStream, Stream, errors, request_of, response_of
from hvsock.integrations.httpcore import AsyncBackend, Backend

__all__ = ["AsyncTransport", "Transport"]


class Transport(httpx.BaseTransport):
    """A transport that sends all requests to the service at `address`, whatever host a URL or a redirect names.

    The host of a URL becomes the ``Host`` header, and is the name that TLS checks the certificate for.

    Args:
        address: any (vm, service) pair that `hvsock.as_address` takes.
        transport: the name of a transport; by default `hvsock.default_transport()`.
        **kwargs: as for `httpcore.ConnectionPool`: ``ssl_context``, ``max_connections``, ``http2`` and others. Without
            ``keepalive_expiry`` an idle connection is kept for 5 s, as httpx does.

    Raises:
        ValueError: a malformed address. Requests raise httpx's errors: `httpx.ConnectError` where the service does not
            listen, and timeouts in seconds.
    """

    def __init__(self, address: hvsock.Address, *, transport: str | None = None, **kwargs: Any) -> None:
        backend = Backend(address, transport=transport)
        self._pool = httpcore.ConnectionPool(network_backend=backend, **{"keepalive_expiry": 5.0, **kwargs})

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its response."""
        with errors():
            response = self._pool.handle_request(request_of(request))
        return response_of(response, Stream)

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


class AsyncTransport(httpx.AsyncBaseTransport):
    """The same as `Transport`, for `httpx.AsyncClient` on asyncio's event loops and uvloop."""

    def __init__(self, address: hvsock.Address, *, transport: str | None = None, **kwargs: Any) -> None:
        backend = AsyncBackend(address, transport=transport)
        self._pool = httpcore.AsyncConnectionPool(network_backend=backend, **{"keepalive_expiry": 5.0, **kwargs})

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its response."""
        with errors():
            response = await self._pool.handle_async_request(request_of(request))
        return response_of(response, AsyncStream)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()
