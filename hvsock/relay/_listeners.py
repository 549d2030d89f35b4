"""The sockets that a relay listens on."""

from __future__ import annotations

import abc
import contextlib
import selectors
import socket
from collections.abc import Callable
from typing import Self

from hvsock._hvsock import Socket
from hvsock.relay._attempt import Wake, wait_for

__all__ = ["Listener", "OwnListener", "TcpListener", "tcp_text", "tune"]


class Listener(abc.ABC):
    """A socket that listens. Its thread accepts and closes; interrupt() is for another one."""

    def __init__(self, text: str, sock: socket.socket) -> None:
        self.text = text
        self._sock = sock

    @abc.abstractmethod
    def accept(self) -> tuple[socket.socket, str]:
        """Wait for a connection; return it and its name for the log."""

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Make accept() raise, now and from now on."""

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OwnListener(Listener):
    """A listener whose class knows its family, so that close() ends accept()."""

    def __init__(self, text: str, sock: Socket, remove: Callable[[], None] | None = None) -> None:
        super().__init__(text, sock)
        self._sock.settimeout(None)
        self._remove = remove

    def accept(self) -> tuple[socket.socket, str]:
        client, peer = self._sock.accept()
        return client, str(peer) or f"a client of {self.text}"

    def interrupt(self) -> None:
        self.close()

    def close(self) -> None:
        if self._remove is not None:
            self._remove()
        self._sock.close()


class TcpListener(Listener):
    """A listener that is waited for together with the order to stop."""

    def __init__(self, text: str, sock: socket.socket, closing: Wake) -> None:
        super().__init__(text, sock)
        self._sock.setblocking(False)
        self._closing = closing

    def accept(self) -> tuple[socket.socket, str]:
        while True:
            wait_for(self._sock, selectors.EVENT_READ, self._closing, None)
            with contextlib.suppress(BlockingIOError):  # it has gone again
                client, peer = self._sock.accept()
                tune(client)
                return client, tcp_text(peer)

    def interrupt(self) -> None:
        pass  # the order to stop does


def tune(sock: socket.socket) -> None:
    """Send at once, since the relay has no more to add to a packet, and detect vanished peers."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def tcp_text(address: tuple[str, int]) -> str:
    host, port, *_ = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
