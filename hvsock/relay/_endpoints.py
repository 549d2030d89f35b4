"""The addresses of a relay: what each kind names, and how it is listened on and connected to."""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final, Self

from hvsock._addresses import SEVERAL_VMS, HyperVAddress, address_of, service_id_from_port
from hvsock._grammar import Written, read
from hvsock._hvsock import SUN_PATH_SIZE, Socket
from hvsock._shown import shown
from hvsock._sockets import HyperVSocket, create_server
from hvsock._transports import Transport, default_transport, transport_named
from hvsock._transports.local import bind_path
from hvsock.relay._access import DEFAULT_ACCESS, Access
from hvsock.relay._attempt import Attempt, Wake
from hvsock.relay._listeners import InheritedListener, Listener, OwnListener, PipeListener, TcpListener
from hvsock.relay._native import Native, to_abstract, to_hyperv, to_tcp, to_unix, to_vsock
from hvsock.relay._pipes import PipeEnd, connect_pipe
from hvsock.relay._tcp import connect, listen, tcp_text

__all__ = ["Abstract", "Endpoint", "Hybrid", "HyperV", "Inherited", "Pipe", "Tcp", "Unix", "parse"]

_BACKLOG: Final = 1024  # connections that may wait to be accepted; systems lower it to their own limit
_LONGEST_PIPE: Final = 256  # characters of a path: CreateNamedPipe
_LONGEST_ANSWER: Final = 32  # bytes of an answer to CONNECT; "OK 4294967295\n" has 14
_AF_UNIX: Final = getattr(socket, "AF_UNIX", -2)
_NATIVE: Final[dict[str, Callable[[HyperVAddress], Native | None]]] = {"hyperv": to_hyperv, "vsock": to_vsock}
_ANSWER: Final = re.compile(rb"OK [0-9]{1,10}\n")


class Endpoint(abc.ABC):
    """The endpoint that an address names."""

    hold: ClassVar[float | None] = None
    """Seconds for which a client's end is kept from a silent target, whose answer it would end; or None."""

    def __init__(self, text: str) -> None:
        self.text = text

    @abc.abstractmethod
    def listen(self, closing: Wake) -> Listener:
        """Listen."""

    @abc.abstractmethod
    def connect(self, attempt: Attempt) -> socket.socket | PipeEnd:
        """Connect."""

    def addresses(self) -> tuple[Native, ...]:
        """Return where an `Engine` can connect by itself, in order; nothing if connect() has to do more than that."""
        return ()

    def explain(self, exc: OSError) -> None:  # noqa: B027 - not every kind knows more
        """Add to the error of an engine's connect what is known about it."""

    @property
    def is_plain(self) -> bool:
        """Whether its connections are nothing but their handles, which an `Engine` can have."""
        return True

    def no_target(self) -> str | None:
        """Return why clients cannot be connected to it, or None."""
        return None

    def unavailable(self) -> str | None:
        """Return why this machine lacks such sockets, or None."""
        return None


class HyperV(Endpoint):
    def __init__(self, text: str, address: HyperVAddress, transport: str | None) -> None:
        super().__init__(text)
        self._address = address
        self._transport = transport

    @classmethod
    def of(cls, text: str, written: Written) -> Self:
        transport = written.transport
        if transport is not None:
            transport_named(transport)
        return cls(text, address_of(written), transport)

    def no_target(self) -> str | None:
        return "it names several VMs; use loopback, parent or a VM's id" if self._address.vm_id in SEVERAL_VMS else None

    def listen(self, closing: Wake) -> Listener:
        sock = create_server(self._address, backlog=_BACKLOG, transport=self._transport)
        return OwnListener(self.text, sock)

    @property
    def is_plain(self) -> bool:
        return self._carrier.name in _NATIVE

    @property
    def _carrier(self) -> Transport:
        return default_transport() if self._transport is None else transport_named(self._transport)

    def addresses(self) -> tuple[Native, ...]:
        native = _NATIVE[self._carrier.name](self._address) if self.is_plain else None
        return () if native is None else (native,)

    def explain(self, exc: OSError) -> None:
        self._carrier.explain(exc, "connect", peer=self._address)

    def connect(self, attempt: Attempt) -> socket.socket:
        with attempt.room():
            sock = HyperVSocket(transport=self._transport)
        with attempt.abortable(sock):
            attempt.limit(sock)
            sock.connect(self._address)
        return sock

    def unavailable(self) -> str | None:
        reason = self._carrier.reason
        return None if reason is None else f"transport {self._carrier.name} is not available: {reason}"


class Tcp(Endpoint):
    def __init__(self, text: str, host: str, port: int) -> None:
        super().__init__(text)
        self._host = host
        self._port = port

    @classmethod
    def of(cls, text: str, written: Written) -> Self:
        port = int(written.service)
        if port > 0xFFFF:
            raise ValueError(f"a TCP port must be in the range 0..65535, not {port}")
        return cls(text, written.place.strip("[]") or "127.0.0.1", port)

    def no_target(self) -> str | None:
        return "port 0 only means any free port to listen on" if self._port == 0 else None

    def listen(self, closing: Wake) -> Listener:
        socks = listen(self._host, self._port)
        address = socks[0].getsockname()
        text = tcp_text(address if len(socks) == 1 else (self._host, address[1]))
        return TcpListener(f"tcp://{text}", socks, closing)

    def connect(self, attempt: Attempt) -> socket.socket:
        return connect(self._host, self._port, attempt)

    def addresses(self) -> tuple[Native, ...]:
        return to_tcp(self._host, self._port)


class Inherited(Endpoint):
    """A listener that the process was started with: ``fd:3``."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self._number = number

    @classmethod
    def of(cls, text: str, written: Written) -> Self:
        return cls(text, int(written.place))

    def no_target(self) -> str | None:
        return "it is a listener"

    def listen(self, closing: Wake) -> Listener:
        return InheritedListener(self.text, self._number, closing)

    def connect(self, attempt: Attempt) -> socket.socket:
        raise AssertionError("no_target() says why")

    def unavailable(self) -> str | None:
        return "a process is not started with sockets on this platform" if sys.platform == "win32" else None


class Abstract(Endpoint):
    """A Unix socket whose name is not a file, which only Linux has: ``unix:@NAME``."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self._address = f"\0{name}"
        size = len(os.fsencode(self._address))
        if size > SUN_PATH_SIZE > 0:
            raise ValueError(f"an abstract name must stay below {SUN_PATH_SIZE} bytes; {shown(name)} has {size - 1}")

    def listen(self, closing: Wake) -> Listener:
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(Socket(_AF_UNIX, socket.SOCK_STREAM))
            sock.bind(self._address)
            sock.listen(_BACKLOG)
            undo.pop_all()
        return OwnListener(self.text, sock)

    def connect(self, attempt: Attempt) -> socket.socket:
        with attempt.room():
            sock = Socket(_AF_UNIX, socket.SOCK_STREAM)
        with attempt.abortable(sock):
            attempt.limit(sock)
            sock.connect(self._address)
        return sock

    def addresses(self) -> tuple[Native, ...]:
        return (to_abstract(self._address),)

    def unavailable(self) -> str | None:
        return None if sys.platform == "linux" else "only Linux has Unix sockets with abstract names"


class Unix(Endpoint):
    def __init__(self, text: str, path: Path, access: Access = DEFAULT_ACCESS) -> None:
        super().__init__(text)
        self._path = path
        self._access = access
        size = len(os.fsencode(path))
        if size >= SUN_PATH_SIZE > 0:
            raise ValueError(
                f"the path of a Unix socket must stay below {SUN_PATH_SIZE} bytes; {shown(str(path))} has {size}"
            )

    @classmethod
    def of(cls, text: str, written: Written) -> Unix | Abstract:
        access = Access.of(written.options)
        if not written.place.startswith("@"):
            return cls(text, Path(written.place), access)
        if access != DEFAULT_ACCESS:
            raise ValueError("a socket with an abstract name has neither mode nor group")
        return Abstract(text, written.place[1:])

    def no_target(self) -> str | None:
        return None if self._access == DEFAULT_ACCESS else "mode and group are those of a socket that the relay makes"

    def listen(self, closing: Wake) -> Listener:
        return self._listen(self._path)

    def _listen(self, path: Path) -> Listener:
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(Socket(_AF_UNIX, socket.SOCK_STREAM))
            listener = undo.enter_context(OwnListener(self.text, sock, bind_path(sock, str(path))))
            self._access.grant(path)  # before anyone can connect
            sock.listen(_BACKLOG)
            undo.pop_all()
        return listener

    def connect(self, attempt: Attempt) -> socket.socket:
        with attempt.room():
            sock = Socket(_AF_UNIX, socket.SOCK_STREAM)
        with attempt.abortable(sock):
            attempt.limit(sock)
            sock.connect(str(self._path))
            self._greet(sock, attempt)
        return sock

    def addresses(self) -> tuple[Native, ...]:
        return (to_unix(self._path),)

    def _greet(self, sock: Socket, attempt: Attempt) -> None:
        """Do the handshake before the stream, if there is one."""

    def unavailable(self) -> str | None:
        return None if hasattr(socket, "AF_UNIX") else "Python has no AF_UNIX on this platform"


class Hybrid(Unix):
    # Seen with Firecracker 1.12, and cloud-hypervisor has the same code: the end of the host's stream is a
    # VSOCK_OP_SHUTDOWN of both to the guest (csm/connection.rs), and what the guest sends after it is dropped.
    hold = 5.0
    is_plain = False

    def __init__(self, text: str, path: Path, port: int) -> None:
        super().__init__(text, path)
        self._port = port

    @classmethod
    def of(cls, text: str, written: Written) -> Self:
        service_id_from_port(int(written.service))  # checks it
        return cls(text, Path(written.place), int(written.service))

    def listen(self, closing: Wake) -> Listener:
        return self._listen(self._path.with_name(f"{self._path.name}_{self._port}"))

    def _greet(self, sock: Socket, attempt: Attempt) -> None:
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
                errno.ECONNREFUSED, f"closed instead of an answer: nothing listens on port {self._port} in the guest"
            )
        if not _ANSWER.fullmatch(answer):
            raise OSError(
                errno.EPROTO,
                f"the answer to CONNECT {self._port} is not a hybrid vsock's: {self._path} must be the socket of one",
            )


class Pipe(Endpoint):
    """A named pipe of Windows: ``npipe:NAME``."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self._path = "\\\\.\\pipe\\" + name.replace("/", "\\")
        if len(self._path) > _LONGEST_PIPE:
            raise ValueError(
                f"the path of a pipe has {_LONGEST_PIPE} characters at most; {shown(self._path)} is longer"
            )

    @classmethod
    def of(cls, text: str, written: Written) -> Self:
        return cls(text, written.place)

    def listen(self, closing: Wake) -> Listener:
        return PipeListener(self.text, self._path)

    def connect(self, attempt: Attempt) -> PipeEnd:
        return connect_pipe(self._path, attempt)

    def unavailable(self) -> str | None:
        return None if sys.platform == "win32" else "only Windows has such pipes"


_KINDS: Final[dict[str, type[HyperV | Tcp | Unix | Inherited | Pipe]]] = {
    "hvsock": HyperV,
    "vsock": HyperV,
    "tcp": Tcp,
    "unix": Unix,
    "hybrid": Hybrid,
    "fd": Inherited,
    "npipe": Pipe,
}


def parse(text: str) -> Endpoint:
    written = read(text, _KINDS)
    try:
        return _KINDS[written.kind].of(text, written)
    except ValueError as exc:
        raise ValueError(f"{shown(text)}: {exc}") from None
