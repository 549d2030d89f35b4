"""asyncio's streams as httpcore's `AsyncNetworkStream`, on every event loop that `hvsock.aio` works on."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import httpcore

from hvsock.integrations._httpcore_sync import errors

__all__ = ["AsyncStream"]


class AsyncStream(httpcore.AsyncNetworkStream):
    """A stream over asyncio's reader and writer. Timeouts are in seconds, None for no limit."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return at most `max_bytes`, none at the end of the stream."""
        with errors(httpcore.ReadTimeout, httpcore.ReadError):
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send it, and wait until there is room for more."""
        with errors(httpcore.WriteTimeout, httpcore.WriteError):
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()

    async def aclose(self) -> None:
        """Close the connection without sending more: the response has been read, or is not wanted."""
        self._writer.close()
        await asyncio.sleep(0)  # TLS sends its closing alert
        self._writer.transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncStream:
        """Speak TLS from now on; on failure, close."""
        with errors(httpcore.ConnectTimeout, httpcore.ConnectError):
            try:
                async with asyncio.timeout(timeout):
                    await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
            except BaseException:
                self._writer.transport.abort()
                raise
        return self

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks for; an idle connection is readable once the service has closed it."""
        if info == "is_readable":
            return self._reader.at_eof() or self._reader.exception() is not None
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._writer.get_extra_info(names.get(info, info))
