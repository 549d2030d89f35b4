"""The sockets that a relay listens on."""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from hvsock._addresses import vsock_address
from hvsock._hvsock import Socket
from hvsock._transports.vsock import VsockTransport
from hvsock.relay._attempt import Wake, wait_for
from hvsock.relay._native import text_of
from hvsock.relay._pipes import ClientWait, PipeEnd, make_pipe
from hvsock.relay._tcp import FAMILIES, tcp_text, tune

__all__ = ["InheritedListener", "Listener", "OwnListener", "PipeListener", "TcpListener"]


class Listener(abc.ABC):
    """Sockets that listen. Their thread accepts and closes; interrupt() is for another one."""

    def __init__(self, text: str) -> None:
        self.text = text

    @abc.abstractmethod
    def accept(self) -> tuple[socket.socket | PipeEnd, str]:
        """Wait for a connection; return it and its name for the log."""

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Make accept() raise, now and from now on."""

    @abc.abstractmethod
    def sockets(self) -> Sequence[socket.socket]:
        """Return the sockets, non-blocking: an `Engine` accepts on them in place of accept()."""

    def name_of(self, client: bytes) -> str:
        """Return a client's name for the log, from the bytes of its sockaddr, as many as there are."""
        return text_of(client) or f"a client of {self.text}"

    @abc.abstractmethod
    def close(self) -> None:
        """Close the sockets."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OwnListener(Listener):
    """A listener whose class knows its family, so that close() ends accept()."""

    def __init__(self, text: str, sock: Socket, remove: Callable[[], None] | None = None) -> None:
        super().__init__(text)
        self._sock = sock
        self._sock.settimeout(None)
        self._remove = remove

    def accept(self) -> tuple[socket.socket, str]:
        client, peer = self._sock.accept()
        return client, str(peer) or f"a client of {self.text}"

    def interrupt(self) -> None:
        self.close()

    def sockets(self) -> Sequence[socket.socket]:
        self._sock.setblocking(False)
        return (self._sock,)

    def close(self) -> None:
        self._sock.close()
        if self._remove is not None:
            self._remove()


class TcpListener(Listener):
    """The listeners on every address of a host, which are waited for together with the order to stop."""

    def __init__(self, text: str, socks: Sequence[socket.socket], closing: Wake) -> None:
        super().__init__(text)
        self._socks = socks
        for sock in socks:
            sock.setblocking(False)
        self._ready: list[socket.socket] = []  # each of them once, before any of them again
        self._closing = closing

    def accept(self) -> tuple[socket.socket, str]:
        while True:
            if not self._ready:
                self._ready += wait_for(self._socks, selectors.EVENT_READ, self._closing, None)
            with contextlib.suppress(BlockingIOError):  # it has gone again
                client, peer = self._ready.pop().accept()
                tune(client)
                return client, self._name(client, peer)

    def _name(self, client: socket.socket, peer: Any) -> str:
        return tcp_text(peer)

    def interrupt(self) -> None:
        pass  # the order to stop does

    def sockets(self) -> Sequence[socket.socket]:
        for sock in self._socks:
            tune(sock)  # those that are accepted inherit it
        return self._socks

    def close(self) -> None:
        for sock in self._socks:
            sock.close()


class InheritedListener(TcpListener):
    """A copy of a listener that the process was started with, of any family; the original stays as it is.

    Raises:
        OSError: the process has no such descriptor, or it does not listen.
    """

    def __init__(self, text: str, number: int, closing: Wake) -> None:
        super().__init__(text, [_copy_of_listener(number)], closing)

    def _name(self, client: socket.socket, peer: Any) -> str:
        if client.family in FAMILIES:
            return tcp_text(peer)
        return str(vsock_address(*peer)) if client.family == VsockTransport.family else f"a client of {self.text}"


def _copy_of_listener(number: int) -> socket.socket:
    try:
        sock = _copy_of_socket(number)
    except OSError as exc:
        exc.add_note(f"the process was not started with a socket as descriptor {number}; systemd's first is 3")
        raise
    if not _listens(sock):
        sock.close()
        raise OSError(errno.EINVAL, f"descriptor {number} is a socket that does not listen")
    return sock


def _copy_of_socket(number: int) -> socket.socket:
    copy = os.dup(number)
    try:
        return socket.socket(fileno=copy)
    except BaseException:
        os.close(copy)
        raise


def _listens(sock: socket.socket) -> bool:
    if sock.type != socket.SOCK_STREAM:
        return False
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as exc:
        if exc.errno != errno.ENOPROTOOPT:
            raise
        return True  # macOS does not tell


class PipeListener(Listener):
    """Instances of a named pipe of Windows: one for each client, and one for the next.

    Raises:
        OSError: another program listens on it, or as the system says.
    """

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text)
        self._path = path
        self._next: PipeEnd | None = make_pipe(path, first=True)  # belongs to the thread that accepts
        self._lock = threading.Lock()  # guards what follows
        self._is_over = False
        self._waiting: ClientWait | None = None

    def accept(self) -> tuple[PipeEnd, str]:
        instance = self._next or make_pipe(self._path, first=False)
        self._next = None
        try:
            self._wait(instance)
        except OSError:  # its client has gone already, or the relay stops
            instance.close()
            raise
        with contextlib.suppress(OSError):  # another try is due with the next accept()
            self._next = make_pipe(self._path, first=False)
        return instance, f"a client of {self.text}"

    def _wait(self, instance: PipeEnd) -> None:
        with self._lock:
            if self._is_over:
                raise OSError(errno.ECANCELED, "the relay stops")
            waiting = self._waiting = ClientWait(instance)
        if not waiting.result():
            raise OSError(errno.ECANCELED, "the relay stops")

    def interrupt(self) -> None:
        with self._lock:
            self._is_over = True
            if self._waiting is not None:
                self._waiting.cancel()

    def sockets(self) -> Sequence[socket.socket]:
        return ()

    def close(self) -> None:
        if self._next is not None:
            self._next.close()
