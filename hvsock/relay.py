"""A relay: what connects to one address is connected to another, of the same or of another kind.

Existing programs speak TCP or ``AF_UNIX``; with a relay beside them they are reached from, or reach, the other side of
a hypervisor. Addresses are URIs:

* ``hvsock://VM/SERVICE``, as `HyperVAddress.parse` takes it; ``?transport=local`` at its end names a transport.
* ``tcp://HOST:PORT``; without HOST it is this machine's loopback, since whoever reaches the port reaches what is
  behind it.
* ``unix:///PATH``; the file is made with the process's umask, and removed at the end.
* ``vsock://CID:PORT``, transport vsock by CID; without CID it is VMADDR_CID_ANY, to listen on.
* ``hybrid:///PATH?port=PORT``: the Unix sockets by which Firecracker and cloud-hypervisor give their host a guest's
  ``AF_VSOCK``. Connecting asks at PATH for the guest's PORT; listening on it serves, at ``PATH_PORT``, the guests that
  connect to the host's PORT.

What may stand for itself in a URI is percent-encoded in a PATH only.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import errno
import functools
import logging
import math
import os
import re
import reprlib
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, Self
from urllib.parse import unquote

from hvsock._addresses import SEVERAL_VMS, HyperVAddress, service_id_from_vsock_port, vm_id_from_cid
from hvsock._hvsock import SUN_PATH_SIZE, Pump, Socket
from hvsock._sockets import HyperVSocket, create_server
from hvsock._transports import default_transport, transport_named
from hvsock._transports.local import bind_path
from hvsock._transports.vsock import VsockTransport

__all__ = ["Counters", "Relay"]

logger = logging.getLogger(__name__)

_BACKLOG: Final = 1024  # connections that may wait to be accepted; systems lower it to their own limit
_FIRST_PAUSE: Final = 0.05  # seconds after an accept that failed, doubled each time
_LONGEST_PAUSE: Final = 1.0
_SLICE: Final = 0.1  # seconds: Ctrl-C does not interrupt the wait for a lock on Windows
_LONGEST_ANSWER: Final = 32  # bytes of an answer to CONNECT; "OK 4294967295\n" has 14
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, 10024})  # 10024: WSAEMFILE
_IN_PROGRESS: Final = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, 10035})  # 10035: WSAEWOULDBLOCK
_LINGER_NOT: Final = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)  # close() resets
_AF_VSOCK: Final = VsockTransport.family
_AF_UNIX: Final = getattr(socket, "AF_UNIX", -2)
_ANY_CID: Final = 0xFFFFFFFF
_MAX_U32: Final = 0xFFFFFFFF

_URI: Final = re.compile(r"([a-z]+)://([^/?#@\s]*)(/[^?#]*)?(?:\?([^?#\s]*))?", re.IGNORECASE)
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9a-f:.]+(?:%[\w.-]+)?\]|[^:\[\]]*):([0-9]{1,10})", re.IGNORECASE | re.ASCII)
_ANSWER: Final = re.compile(rb"OK [0-9]{1,10}\n")

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 100

if sys.platform == "win32":
    _Selector = selectors.SelectSelector
else:
    _Selector = selectors.PollSelector  # select() knows no descriptor above 1023, and epoll needs one of its own


class Counters(NamedTuple):
    """What a relay has done so far."""

    open: int
    """Connections that exist now, those whose target is still being reached included."""
    total: int
    """Connections that were accepted, whatever became of them."""
    refused: int
    """Of these, closed at once, since `max_connections` were open or the system gave no thread."""
    failed: int
    """Of these, closed because the target was not reached."""
    aborted: int
    """Of these, ended by an error, `idle_timeout` or `Relay.stop`, and not by the ends of both streams."""
    bytes_to_target: int
    """Bytes moved from clients to targets."""
    bytes_to_client: int
    """Bytes moved from targets to clients."""


class _State(enum.StrEnum):
    NEW = "new"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Relay:
    """Listens on one address and connects each client to another.

    The end of a stream is passed on by itself, so that a client may end its half and still read the answer. Nothing is
    read from one side before the other has taken what was read before. A reset of one side resets the other, or closes
    it where its kind of socket knows no reset. What happens to a single connection is logged (logger ``hvsock.relay``)
    and counted, and does not end the relay.

    As a context manager it starts, and at the end of the block stops at once. Methods may be called from any thread.
    A connection has two descriptors and a thread, which runs in C without the GIL.

    Args:
        listen: the URI of the address to listen on; TCP's port 0 is any free one.
        connect: the URI of the target.
        connect_timeout: seconds that reaching the target may take, its name's resolution aside; None for the system's
            own limit.
        idle_timeout: seconds without data in either direction after which a connection is closed; None for never.
        max_connections: how many may be open at a time; further ones are closed as soon as they are accepted.

    Raises:
        ValueError: a URI is malformed or of no use there, or another argument is out of range.
    """

    def __init__(
        self,
        listen: str,
        connect: str,
        *,
        connect_timeout: float | None = 10.0,
        idle_timeout: float | None = None,
        max_connections: int = 1000,
    ) -> None:
        self._source = _parse(listen)
        self._target = _parse(connect)
        if (reason := self._target.no_target()) is not None:
            raise ValueError(f"{connect!r} can be listened on, but not connected to: {reason}")
        for name, value in (("connect_timeout", connect_timeout), ("idle_timeout", idle_timeout)):
            if value is not None and not (value > 0.0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a number of seconds above 0, or None, not {value!r}")
        if max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {max_connections!r}")
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._max_connections = max_connections
        self._accounting = threading.Lock()  # held while descriptors change hands
        self._changed = threading.Condition()  # guards what follows
        self._state = _State.NEW
        self._parts: _Parts | None = None  # once started
        self._pump: Pump | None = None  # while running
        self._transferred = (0, 0)  # afterwards
        self._reaching: set[Socket] = set()  # what is connecting, to be closed by stop()
        self._running = 0  # threads at work
        self._done: list[threading.Thread] = []  # threads to be joined
        self._open = self._total = self._refused = self._failed = self._aborted = 0

    def __repr__(self) -> str:
        """Return the two addresses and the state."""
        return f"<Relay {self.address} -> {self.target}, {self._state}>"

    @property
    def address(self) -> str:
        """The URI that is listened on; once started, with the port that was chosen for TCP's port 0."""
        return self._source.text if self._parts is None else self._parts.listener.text

    @property
    def target(self) -> str:
        """The URI that clients are connected to."""
        return self._target.text

    @property
    def counters(self) -> Counters:
        """The numbers so far; they stay after the end."""
        with self._changed:
            numbers = self._open, self._total, self._refused, self._failed, self._aborted
            return Counters(*numbers, *(self._transferred if self._pump is None else self._pump.transferred))

    def start(self) -> None:
        """Listen, and serve in threads of its own.

        Raises:
            OSError: the address is in use, a transport is not available here, or as the system says.
            ValueError: the transport cannot express the address, or a host's name is none.
            RuntimeError: it was started before; a relay runs once.
        """
        with self._changed:
            if self._state is not _State.NEW:
                raise RuntimeError("a relay runs once: make another one")
            for endpoint in (self._source, self._target):
                if (reason := endpoint.unavailable()) is not None:
                    raise OSError(errno.EAFNOSUPPORT, f"{endpoint.text}: {reason}")
            pump = Pump()
            with contextlib.ExitStack() as undo:
                closing = undo.enter_context(_Wake())
                aborting = undo.enter_context(_Wake())
                try:
                    listener = undo.enter_context(self._source.listen(closing))
                except (OSError, ValueError) as exc:
                    exc.add_note(f"listen on {self._source.text}")
                    raise
                thread = threading.Thread(target=self._accept, args=(listener, pump), name="relay-accept", daemon=True)
                thread.start()  # it waits for the lock
                undo.pop_all()
            self._parts = _Parts(listener, closing, aborting)
            self._pump = pump
            self._running = 1
            self._state = _State.RUNNING
        logger.info("listening on %s for %s", self.address, self.target)

    def serve_forever(self) -> None:
        """Start if that was not done, and return when another thread's stop() has ended everything.

        Ctrl-C raises KeyboardInterrupt here and leaves the relay as it is: call stop(), or leave the ``with`` block.

        Raises:
            OSError, ValueError: as start().
        """
        if self._state is _State.NEW:
            self.start()
        if self._parts is not None:
            self._parts.closing.wait()
        self._wait(lambda: self._state is _State.STOPPED, None)

    def stop(self, timeout: float | None = 0.0) -> None:
        """Stop listening, let connections go on for `timeout` seconds, and abort those that have not ended.

        Returns when all threads have ended and all descriptors are closed; the resolution of a name cannot be cut
        short. With None, connections have as long as they take; another call can still cut that short. A relay that
        has stopped stays so, and one that was never started cannot be started any more.

        Raises:
            ValueError: `timeout` is negative.
        """
        if timeout is not None and not timeout >= 0.0:
            raise ValueError(f"timeout must be a number of seconds, at least 0, or None, not {timeout!r}")
        with self._changed:
            parts = self._parts
            if parts is None or self._state is _State.STOPPED:
                self._state = _State.STOPPED
                return
            self._state = _State.STOPPING
            parts.closing.set()
        parts.listener.interrupt()
        if not self._wait(lambda: self._running == 0, timeout):
            with self._changed:
                if self._pump is not None:
                    self._pump.stop()
                parts.aborting.set()
                for sock in self._reaching:
                    sock.close()
            self._wait(lambda: self._running == 0, None)
        self._join()
        with self._changed:
            if self._pump is None:  # another stop() was faster
                return
            self._transferred = self._pump.transferred
            self._pump = None  # and its descriptor
            parts.closing.close()
            parts.aborting.close()
            self._state = _State.STOPPED
            self._changed.notify_all()
        logger.info("stopped listening on %s", self.address)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait for something that `_changed` guards, and return whether it came."""
        deadline = _deadline(timeout)
        with self._changed:
            while not condition():
                left = _left(deadline)
                if left is not None and left <= 0.0:
                    return False
                self._changed.wait(_SLICE if left is None else min(left, _SLICE))
        return True

    def _join(self) -> None:
        with self._changed:
            done, self._done = self._done, []
        for thread in done:
            thread.join()

    # In the threads.

    def _is_running(self) -> bool:
        with self._changed:
            return self._state is _State.RUNNING

    def _leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._done.append(threading.current_thread())
            self._changed.notify_all()

    def _accept(self, listener: _Listener, pump: Pump) -> None:
        pause = _FIRST_PAUSE
        try:
            with listener:
                while self._is_running():
                    running = self._running
                    try:
                        client, name, place = self._next_client(listener)
                    except ConnectionError:
                        pass  # of this peer alone, which has gone already: the next one may be waiting
                    except OSError as exc:
                        if self._is_running():
                            hint = "; ulimit -n allows more" if exc.errno in _NO_DESCRIPTORS else ""
                            logger.warning("%s: cannot accept: %s%s", self.address, _text(exc), hint)
                        self._wait(functools.partial(self._has_news, running), pause)
                        pause = min(2 * pause, _LONGEST_PAUSE)
                    else:
                        self._admit(pump, client, name, place)
                        pause = _FIRST_PAUSE
        finally:
            self._leave()

    def _has_news(self, running: int) -> bool:
        """Whether stop() was called, or a connection has ended, which gives back what the system may lack."""
        return self._state is not _State.RUNNING or self._running < running

    def _next_client(self, listener: _Listener) -> tuple[socket.socket, str, socket.socket]:
        """Accept with a second descriptor in hand, for the target's socket: who cannot have both stays in the backlog.

        What keeps it is a socket of no use, the last item: which kind the target needs may take a name server to know.
        """
        with contextlib.ExitStack() as undo:
            with self._accounting:
                place = undo.enter_context(socket.socket())
                with place.dup(), place.dup():
                    pass  # there is one for the client, and one to look a name up with
            client, name = listener.accept()
            undo.pop_all()
        return client, name, place

    def _admit(self, pump: Pump, client: socket.socket, name: str, place: socket.socket) -> None:
        self._join()  # of threads that are about to end
        with self._changed:
            self._total += 1
            refusal = None if self._open < self._max_connections else f"{self._open} connections are open"
            if refusal is None:
                thread = threading.Thread(
                    target=self._serve, args=(pump, client, name, place), name="relay-connection", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as exc:
                    refusal = str(exc)
            if refusal is None:
                self._open += 1
                self._running += 1
            else:
                self._refused += 1
        if refusal is not None:
            logger.warning("%s: refused: %s", name, refusal)
            _abort(client)
            place.close()

    def _serve(self, pump: Pump, client: socket.socket, name: str, place: socket.socket) -> None:
        try:
            self._connect_and_pump(pump, client, name, place)
        finally:
            self._leave()

    def _connect_and_pump(self, pump: Pump, client: socket.socket, name: str, place: socket.socket) -> None:
        target: socket.socket | None = None
        ended = False
        try:
            target = self._reach(place)
            logger.debug("%s: connected to %s", name, self.target)
            ended = pump.run(client.fileno(), target.fileno(), self._idle_timeout)
            logger.debug("%s: %s", name, "ended" if ended else "aborted by stop()")
        except (OSError, ValueError) as exc:
            if target is None:
                logger.warning("%s: %s was not reached: %s", name, self.target, _text(exc))
            else:
                logger.info("%s: aborted: %s", name, _text(exc))
        finally:
            with self._changed:
                self._open -= 1
                self._failed += target is None
                self._aborted += target is not None and not ended
            for sock in (client, target):
                if sock is not None:
                    _close(sock) if ended else _abort(sock)

    def _reach(self, place: socket.socket) -> socket.socket:
        assert self._parts is not None
        room = functools.partial(self._room, place)
        with place:
            return self._target.connect(
                _Attempt(_deadline(self._connect_timeout), self._parts.aborting, self._abortable, room)
            )

    @contextlib.contextmanager
    def _room(self, place: socket.socket) -> Iterator[None]:
        """Give a descriptor to the socket that the block opens, while nobody makes sure of theirs."""
        with self._accounting:
            place.close()
            yield

    @contextlib.contextmanager
    def _abortable(self, sock: Socket) -> Iterator[None]:
        """Have stop() close the socket, which ends the call that it is in; close it after an error too."""
        with self._changed:
            self._reaching.add(sock)
            if self._parts is not None and self._parts.aborting.is_set:
                sock.close()
        try:
            yield
        except BaseException:
            sock.close()
            raise
        finally:
            with self._changed:
                self._reaching.discard(sock)


# Time and ends


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _text(exc: BaseException) -> str:
    return "; ".join([str(exc) or type(exc).__name__, *getattr(exc, "__notes__", ())])


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.close()


def _abort(sock: socket.socket) -> None:
    """Close the socket with a reset, if its family has one: the peer is not to take this for the end of the stream."""
    if sock.family != _AF_VSOCK:  # it has none, and CPython takes no struct for its options
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    _close(sock)


class _Wake:
    """An event that selectors and Ctrl-C can interrupt the wait for; once set, it stays so."""

    def __init__(self) -> None:
        reader, self._writer = socket.socketpair()
        self.reader = Socket(fileno=reader.detach())
        self.reader.settimeout(None)
        self.is_set = False

    def set(self) -> None:
        self.is_set = True
        self._writer.close()

    def wait(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            self.reader.recv(1)

    def close(self) -> None:
        self._writer.close()
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Attempt(NamedTuple):
    """How long an attempt to reach a target may take, what ends it before, and where its socket has a descriptor."""

    deadline: float | None
    aborting: _Wake
    abortable: Callable[[Socket], AbstractContextManager[None]]
    room: Callable[[], AbstractContextManager[None]]

    def first_of(self, count: int) -> Self:
        """Return the first of so many attempts, which share the time that is left."""
        left = _left(self.deadline)
        return self if left is None else self._replace(deadline=time.monotonic() + left / count)

    def limit(self, sock: socket.socket) -> None:
        """Set the socket's timeout to what is left.

        Raises:
            TimeoutError: nothing.
        """
        left = _left(self.deadline)
        if left is not None and left <= 0.0:
            raise TimeoutError("timed out")
        sock.settimeout(left)


# Listeners


class _Parts(NamedTuple):
    """What a relay that was started has besides threads."""

    listener: _Listener
    closing: _Wake
    aborting: _Wake


class _Listener(abc.ABC):
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


class _OwnListener(_Listener):
    """One whose class knows its family, so that close() ends accept()."""

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


class _TcpListener(_Listener):
    """One that is waited for together with the order to stop."""

    def __init__(self, text: str, sock: socket.socket, closing: _Wake) -> None:
        super().__init__(text, sock)
        self._sock.setblocking(False)
        self._closing = closing

    def accept(self) -> tuple[socket.socket, str]:
        while True:
            _wait_for(self._sock, selectors.EVENT_READ, self._closing, None)
            with contextlib.suppress(BlockingIOError):  # it has gone again
                client, peer = self._sock.accept()
                _tune(client)
                return client, _tcp_text(peer)

    def interrupt(self) -> None:
        pass  # the order to stop does


# Addresses


class _Endpoint(abc.ABC):
    """What a URI names."""

    form: ClassVar[str]

    def __init__(self, text: str) -> None:
        self.text = text

    @abc.abstractmethod
    def listen(self, closing: _Wake) -> _Listener:
        """Listen."""

    @abc.abstractmethod
    def connect(self, attempt: _Attempt) -> socket.socket:
        """Connect."""

    def no_target(self) -> str | None:
        """Say why it can only be listened on, if so."""
        return None

    def unavailable(self) -> str | None:
        """Say why this machine has no such sockets, if so."""
        return None


class _HyperV(_Endpoint):
    form = "hvsock://VM/SERVICE or hvsock://VM/SERVICE?transport=NAME"

    def __init__(self, text: str, address: HyperVAddress, transport: str | None) -> None:
        super().__init__(text)
        self._address = address
        self._transport = transport

    @classmethod
    def parse(cls, text: str, authority: str, path: str, query: dict[str, str]) -> Self:
        transport = query.pop("transport", None)
        if transport is not None:
            transport_named(transport)
        return cls(text, HyperVAddress.parse(f"hvsock://{authority}{path}"), transport)

    def no_target(self) -> str | None:
        return "it names no single VM" if self._address.vm_id in SEVERAL_VMS else None

    def listen(self, closing: _Wake) -> _Listener:
        return _OwnListener(self.text, create_server(self._address, backlog=_BACKLOG, transport=self._transport))

    def connect(self, attempt: _Attempt) -> socket.socket:
        with attempt.room():
            sock = HyperVSocket(transport=self._transport)
        with attempt.abortable(sock):
            attempt.limit(sock)
            sock.connect(self._address)
        return sock

    def unavailable(self) -> str | None:
        transport = default_transport() if self._transport is None else transport_named(self._transport)
        reason = transport.reason
        return None if reason is None else f"transport {transport.name} is not available: {reason}"


class _Vsock(_HyperV):
    form = "vsock://CID:PORT, or vsock://:PORT to listen for every CID"

    @classmethod
    def parse(cls, text: str, authority: str, path: str, query: dict[str, str]) -> Self:
        cid, port = _host_and_port(authority, path)
        if not re.fullmatch(r"[0-9]{0,10}", cid):
            raise ValueError(f"the CID must be a number, not {_shown.repr(cid)}")
        address = HyperVAddress(vm_id_from_cid(int(cid or _ANY_CID)), service_id_from_vsock_port(port))
        return cls(text, address, "vsock")

    def no_target(self) -> str | None:
        return "the CID is missing" if self._address.vm_id == vm_id_from_cid(_ANY_CID) else None


class _Tcp(_Endpoint):
    form = "tcp://HOST:PORT, or tcp://:PORT for the loopback"

    def __init__(self, text: str, host: str, port: int) -> None:
        super().__init__(text)
        self._host = host
        self._port = port

    @classmethod
    def parse(cls, text: str, authority: str, path: str, query: dict[str, str]) -> Self:
        host, port = _host_and_port(authority, path)
        if port > 0xFFFF:
            raise ValueError(f"a TCP port must be in the range 0..65535, not {port}")
        return cls(text, host.strip("[]") or "127.0.0.1", port)

    def no_target(self) -> str | None:
        return "port 0 is none" if self._port == 0 else None

    def listen(self, closing: _Wake) -> _Listener:
        family, kind, proto, _, address = self._resolve()[0]
        sock = socket.socket(family, kind, proto)
        try:
            if sys.platform == "win32":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
            return _TcpListener(f"tcp://{_tcp_text(sock.getsockname())}", sock, closing)
        except BaseException:
            sock.close()
            raise

    def connect(self, attempt: _Attempt) -> socket.socket:
        errors: list[OSError] = []
        addresses = self._resolve()
        for number, (family, kind, proto, _, address) in enumerate(addresses):
            with attempt.room():
                sock = socket.socket(family, kind, proto)
            try:
                _tune(sock)
                self._connect(sock, address, attempt.first_of(len(addresses) - number))
            except OSError as exc:
                sock.close()
                errors.append(exc)
                if attempt.aborting.is_set:
                    break
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        try:
            raise errors[-1]
        finally:
            errors.clear()  # whose traces lead back here, and would keep the pump until the next collection

    def _resolve(self) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]]:
        # typeshed: the address of AF_INET6 has two members more.
        return socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)  # type: ignore[return-value]

    def _connect(self, sock: socket.socket, address: tuple[str, int], attempt: _Attempt) -> None:
        sock.setblocking(False)
        error = sock.connect_ex(address)
        if error in _IN_PROGRESS:
            _wait_for(sock, selectors.EVENT_WRITE, attempt.aborting, attempt.deadline)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise _os_error(error, f"connect to {_tcp_text(address)}")


class _Unix(_Endpoint):
    form = "unix:///PATH"

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self._path = path
        size = len(os.fsencode(path))
        if size >= SUN_PATH_SIZE > 0:
            shown = _shown.repr(str(path))
            raise ValueError(f"the path of a Unix socket must stay below {SUN_PATH_SIZE} bytes; {shown} has {size}")

    @classmethod
    def parse(cls, text: str, authority: str, path: str, query: dict[str, str]) -> Self:
        return cls(text, _path(authority, path))

    def listen(self, closing: _Wake) -> _Listener:
        return self._listen(self._path)

    def _listen(self, path: Path) -> _Listener:
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(Socket(_AF_UNIX, socket.SOCK_STREAM))
            remove = bind_path(sock, str(path))
            undo.callback(remove)
            sock.listen(_BACKLOG)
            undo.pop_all()
        return _OwnListener(self.text, sock, remove)

    def connect(self, attempt: _Attempt) -> socket.socket:
        with attempt.room():
            sock = Socket(_AF_UNIX, socket.SOCK_STREAM)
        with attempt.abortable(sock):
            attempt.limit(sock)
            sock.connect(str(self._path))
            self._greet(sock, attempt)
        return sock

    def _greet(self, sock: Socket, attempt: _Attempt) -> None:
        """Do what comes before the stream."""

    def unavailable(self) -> str | None:
        return None if hasattr(socket, "AF_UNIX") else "Python has no AF_UNIX on this platform"


class _Hybrid(_Unix):
    form = "hybrid:///PATH?port=PORT"

    def __init__(self, text: str, path: Path, port: int) -> None:
        super().__init__(text, path)
        self._port = port

    @classmethod
    def parse(cls, text: str, authority: str, path: str, query: dict[str, str]) -> Self:
        port = query.pop("port", None)
        if port is None:
            raise ValueError("the port is missing")
        if not re.fullmatch(r"[0-9]{1,10}", port) or int(port) > _MAX_U32:
            raise ValueError(f"a vsock port must be in the range 0..{_MAX_U32:#x}, not {_shown.repr(port)}")
        return cls(text, _path(authority, path), int(port))

    def listen(self, closing: _Wake) -> _Listener:
        return self._listen(self._path.with_name(f"{self._path.name}_{self._port}"))

    def _greet(self, sock: Socket, attempt: _Attempt) -> None:
        """Ask for the guest's port: ``CONNECT <port>``, answered by ``OK <the host's port>``, each a line.

        Source: Firecracker, docs/vsock.md.
        """
        attempt.limit(sock)
        sock.sendall(b"CONNECT %d\n" % self._port)
        answer = b""
        while not answer.endswith(b"\n") and len(answer) < _LONGEST_ANSWER:
            attempt.limit(sock)
            byte = sock.recv(1)  # what follows the line is the stream's
            if not byte:
                break
            answer += byte
        if not answer:
            raise ConnectionRefusedError(
                errno.ECONNREFUSED, f"closed instead of an answer: nobody listens on port {self._port} in the guest"
            )
        if not _ANSWER.fullmatch(answer):
            raise OSError(
                errno.EPROTO,
                f"what came is no answer to CONNECT {self._port}: {self._path} is not the socket of a hybrid vsock",
            )


_KINDS: Final[dict[str, type[_HyperV | _Tcp | _Unix]]] = {
    "hvsock": _HyperV,
    "tcp": _Tcp,
    "unix": _Unix,
    "vsock": _Vsock,
    "hybrid": _Hybrid,
}


def _parse(text: str) -> _Endpoint:
    if not isinstance(text, str):
        raise TypeError(f"an address of a relay must be a URI, a str, not {_shown.repr(text)}")
    scheme = text.partition("://")[0].lower()
    kind = _KINDS.get(scheme)
    if kind is None:
        raise ValueError(f"{_shown.repr(text)} does not begin with one of {', '.join(f'{s}://' for s in _KINDS)}")
    try:
        match = _URI.fullmatch(text)
        if match is None:
            raise ValueError("a part is missing or has characters that it cannot have")
        query = _query(match[4])
        endpoint = kind.parse(text, match[2], match[3] or "", query)
        if query:
            raise ValueError(f"there is no option {_shown.repr(min(query))}")
    except ValueError as exc:
        raise ValueError(f"{_shown.repr(text)} is not of the form {kind.form}: {exc}") from None
    return endpoint


def _query(text: str | None) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split("&")] if text is not None else []
    query = {name: value for name, _, value in pairs}
    if len(query) < len(pairs):
        raise ValueError("an option is there twice")
    return query


def _host_and_port(authority: str, path: str) -> tuple[str, int]:
    match = _HOST_AND_PORT.fullmatch(authority)
    if match is None or path:
        raise ValueError("the port is missing, or something follows it")
    return match[1], int(match[2])


def _path(authority: str, path: str) -> Path:
    name = unquote(path, errors="surrogateescape")
    if authority or name.endswith("/") or not name or "\0" in name:
        raise ValueError("three slashes begin the absolute path of a file")
    return Path(name)


# TCP


def _tune(sock: socket.socket) -> None:
    """What the relay sends is all it has, so nothing is gained by waiting for more; vanished peers are noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _os_error(code: int, note: str) -> OSError:
    if sys.platform == "win32":
        import ctypes

        error: OSError = ctypes.WinError(code)
    else:
        error = OSError(code, os.strerror(code))
    error.add_note(note)
    return error


def _tcp_text(address: tuple[str, int]) -> str:
    host, port, *_ = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wait_for(sock: socket.socket, event: int, wake: _Wake, deadline: float | None) -> None:
    """Wait until the socket is ready.

    Raises:
        TimeoutError: the deadline passed.
        OSError: `wake` was set.
    """
    with _Selector() as selector:
        selector.register(sock, event)
        selector.register(wake.reader, selectors.EVENT_READ)
        while True:
            left = _left(deadline)
            if left is not None and left <= 0.0:
                raise TimeoutError("timed out")
            ready = [key.fileobj for key, _ in selector.select(left)]
            if wake.reader in ready:
                raise OSError(errno.ECANCELED, "the relay stops")
            if ready:
                return
