"""A connected socket as httpcore's `NetworkStream`; httpcore has no public one that takes a socket."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import sys
from collections.abc import Iterator
from typing import Any

import httpcore

__all__ = ["Stream", "errors"]


@contextlib.contextmanager
def errors(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """Raise httpcore's exceptions: `late` for a timeout, `failed` for another error of the system."""
    try:
        yield
    except TimeoutError as exc:
        raise late(exc) from exc
    except OSError as exc:
        raise failed(exc) from exc


def _is_readable(sock: socket.socket) -> bool:
    if sys.platform == "win32":
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


class Stream(httpcore.NetworkStream):
    """A stream over a socket, which it closes. Timeouts are in seconds, None for no limit."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return at most `max_bytes`, none at the end of the stream."""
        with errors(httpcore.ReadTimeout, httpcore.ReadError):
            self._sock.settimeout(timeout)
            return self._sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it; the timeout is for a step, as a buffer may have any length."""
        with errors(httpcore.WriteTimeout, httpcore.WriteError), memoryview(buffer) as view:
            self._sock.settimeout(timeout)
            sent = 0
            while sent < len(view):
                sent += self._sock.send(view[sent:])

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Stream:
        """Speak TLS, and return the stream that does; on failure, close."""
        with errors(httpcore.ConnectTimeout, httpcore.ConnectError), contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            self._sock.settimeout(timeout)
            stream = Stream(ssl_context.wrap_socket(self._sock, server_hostname=server_hostname))
            on_error.pop_all()
            return stream

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks for; an idle connection is readable once the service has closed it."""
        if info == "is_readable":
            return _is_readable(self._sock)
        if info == "ssl_object":
            return self._sock if isinstance(self._sock, ssl.SSLSocket) else None
        names = {"client_addr": "getsockname", "server_addr": "getpeername"}
        return self._sock if info == "socket" else getattr(self._sock, names[info])() if info in names else None
