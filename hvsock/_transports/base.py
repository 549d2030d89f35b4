"""What a transport is: a socket family that can carry Hyper-V addresses."""

import abc
import enum
import errno
import socket
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from hvsock._addresses import HyperVAddress
from hvsock._errors import code_of
from hvsock._hvsock import Socket

__all__ = ["Option", "Transport"]

# Of every family.
_SHORTAGES: Final = {
    errno.EMFILE: ("This process has as many descriptors open as it may", "ulimit -n allows more"),
    errno.ENFILE: ("The system has as many files open as it may", "sysctl fs.file-max allows more"),
    errno.ENOBUFS: ("The system has no memory left for a socket", "close some, or end what uses it"),
    errno.ENOMEM: ("The system has no memory left for a socket", "end what uses it"),
    10024: ("This process has as many sockets open as it may", "close some"),
    10055: ("The system has no memory left for a socket", "close some, or end what uses it"),
}


class Option(enum.IntFlag):
    """An option that not every transport has; the values are bits, for a socket to remember which are on."""

    CONNECTED_SUSPEND = enum.auto()
    HIGH_VTL = enum.auto()
    CONTAINER_PASSTHRU = enum.auto()


class Transport(abc.ABC):
    """Carries Hyper-V addresses over one socket family.

    The methods that take a socket implement the `HyperVSocket` methods of the same name; they raise the system's
    errors.

    Attributes:
        name: what `HyperVSocket` and HVSOCK_TRANSPORT call it.
        family: the number of the socket family.
        proto: the protocol of its sockets.
        unsupported: why this platform cannot have it at all, or None.
        causes: what is known to cause an error of bind(), listen() or connect(), by the system's code.
        timed_out: the code among these that a connect() stands for whose timeout has passed.
        refusals: what is known to keep the system from making a socket, and what helps, by the system's code.
        options: level and number of each option that it has.
    """

    name: ClassVar[str]
    family: ClassVar[int]
    proto: ClassVar[int] = 0
    unsupported: ClassVar[str | None]
    causes: ClassVar[Mapping[int, str]] = {}
    timed_out: ClassVar[int] = errno.ETIMEDOUT
    refusals: ClassVar[Mapping[int, tuple[str, str]]] = {}
    options: ClassVar[Mapping[Option, tuple[int, int]]] = {}

    @property
    def available(self) -> bool:
        """Whether sockets of this family can be made here, now."""
        return self.reason is None

    @property
    def reason(self) -> str | None:
        """A sentence that says why the transport is not available; None when it is.

        The check makes a socket and closes it; nothing is bound or connected.
        """
        if self.unsupported is not None:
            return self.unsupported
        try:
            socket.socket(self.family, socket.SOCK_STREAM, self.proto).close()
        except OSError as exc:
            return self._refused(exc)
        return None

    def _refused(self, exc: OSError) -> str:
        """Return why the system did not make a socket: a sentence."""
        code = code_of(exc)
        unknown = f"The system makes no socket of family {self.family}", ""
        what, cure = unknown if code is None else self.refusals.get(code) or _SHORTAGES.get(code, unknown)
        return f"{what} ({exc.strerror}){cure and f': {cure}'}."

    @abc.abstractmethod
    def bind(self, sock: Socket, address: HyperVAddress) -> Callable[[], None] | None:
        """Bind; return a function to call after the socket was closed, or None."""

    def adopt(self, sock: Socket) -> Callable[[], None] | None:
        """Return a function to call after a socket was closed that has come by its handle, or None."""
        return None

    @abc.abstractmethod
    def connect(self, sock: Socket, address: HyperVAddress) -> None:
        """Connect within the socket's timeout."""

    def limit_connect(self, sock: Socket, seconds: float) -> None:  # noqa: B027 - not every system has a limit
        """Replace the system's own time limit for a connect() that is going to be non-blocking.

        On a socket with a timeout, connect() does that by itself.
        """

    @abc.abstractmethod
    def local_address(self, native: Any) -> HyperVAddress:
        """Translate what getsockname() returned."""

    @abc.abstractmethod
    def peer_address(self, native: Any) -> HyperVAddress:
        """Translate what accept() or getpeername() returned."""

    def known_cause(self, exc: OSError) -> str | None:
        """Return the known cause of an error on this transport, or None."""
        code = code_of(exc)
        if code is None and isinstance(exc, TimeoutError):
            code = self.timed_out
        return None if code is None else self.causes.get(code)

    def explain(
        self, exc: OSError, operation: str, *, local: HyperVAddress | None = None, peer: HyperVAddress | None = None
    ) -> None:
        """Add to an error what was being done, between which addresses, and its known cause."""
        parts = [f"{operation} on transport {self.name}"]
        if local is not None:
            parts.append(f"local {local}")
        if peer is not None:
            parts.append(f"peer {peer}")
        exc.add_note(", ".join(parts))
        cause = self.known_cause(exc) if operation in ("bind", "listen", "connect") else None
        if cause is not None and not any(note.startswith("known cause: ") for note in getattr(exc, "__notes__", ())):
            exc.add_note(f"known cause: {cause}")

    def __repr__(self) -> str:
        """Return the name and the state."""
        return f"<transport {self.name}: {self.reason or 'available'}>"
