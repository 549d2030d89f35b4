"""httpx's requests, responses and errors as httpcore's, and back; httpx has no public functions for that."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpcore
import httpx

__all__ = ["AsyncStream", "Stream", "errors", "request_of", "response_of"]


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Raise httpx's exceptions for httpcore's, which have the same names."""
    try:
        yield
    except Exception as exc:
        if type(exc).__module__.partition(".")[0] != "httpcore" or not hasattr(httpx, type(exc).__name__):
            raise
        raise getattr(httpx, type(exc).__name__)(str(exc)) from exc


def request_of(request: httpx.Request) -> httpcore.Request:
    """Return httpcore's request for httpx's."""
    url = request.url
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


def response_of(response: httpcore.Response, stream: type[Stream] | type[AsyncStream]) -> httpx.Response:
    """Return httpx's response for httpcore's."""
    return httpx.Response(
        response.status, headers=response.headers, stream=stream(response.stream), extensions=response.extensions
    )


class Stream(httpx.SyncByteStream):
    """The body of a response."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        with errors():
            yield from self._stream

    def close(self) -> None:
        """End it; what is left is not received."""
        self._stream.close()


class AsyncStream(httpx.AsyncByteStream):
    """The same, for `httpx.AsyncClient`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with errors():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        """End it; what is left is not received."""
        await self._stream.aclose()
