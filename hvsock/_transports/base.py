"""What a transport is: a socket family that can carry Hyper-V addresses."""

import abc
import socket
from collections.abc import Callable
from typing import Any, ClassVar

from hvsock._addresses import HyperVAddress
from hvsock._hvsock import Socket

__all__ = ["Transport"]


class Transport(abc.ABC):
    """Carries Hyper-V addresses over one socket family.

    The methods that take a socket implement the `HyperVSocket` methods of the same name; they raise the system's
    errors.

    Attributes:
        name: what `HyperVSocket` and HVSOCK_TRANSPORT call it.
        family: the number of the socket family.
        proto: the protocol of its sockets.
        unsupported: why this platform cannot have it at all, or None.
    """

    name: ClassVar[str]
    family: ClassVar[int]
    proto: ClassVar[int] = 0
    unsupported: ClassVar[str | None]

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

    @abc.abstractmethod
    def _refused(self, exc: OSError) -> str:
        """Return why the system did not make a socket."""

    @abc.abstractmethod
    def bind(self, sock: Socket, address: HyperVAddress) -> Callable[[], None] | None:
        """Bind; return a function to call before the socket is closed, or None."""

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

    def __repr__(self) -> str:
        """Return the name and the state."""
        return f"<transport {self.name}: {self.reason or 'available'}>"
