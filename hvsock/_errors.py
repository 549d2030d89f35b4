"""The system's errors: their numbers, and which of them are worth another try."""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

__all__ = ["IncompleteReadError", "code_of", "is_shortage", "is_transient", "os_error"]

# Errors that pass by themselves while a VM or its service starts: go-winio's set (refused, unreachable, timed out, and
# Windows' own 1225 and 1201) and what was seen while VMs reboot (down: moby/vpnkit pull 299; reset: virtsock). A KVM
# host says ENODEV until the VM has taken its CID (Linux drivers/vhost/vsock.c, vhost_transport_send_pkt).
_TRANSIENT: Final = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENODEV,
        errno.ETIMEDOUT,
        *(1201, 1225, 10050, 10051, 10054, 10060, 10061),
    }
)

# What the system may lack for a while, and has again when something else ends; the last two are Winsock's.
_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, 10024, 10055})


class IncompleteReadError(EOFError):
    """The stream ended inside a message, or before as many bytes as were asked for.

    Attributes:
        partial: the bytes that were received, of the payload or of the 4-byte length before it.
        expected: how many bytes were expected.
    """

    def __init__(self, partial: bytes, expected: int) -> None:
        super().__init__(partial, expected)
        self.partial = partial
        self.expected = expected

    def __str__(self) -> str:
        """Say how much is missing."""
        return f"the peer has ended the stream after {len(self.partial)} of {self.expected} bytes"


def os_error(code: int, *notes: str) -> OSError:
    """Return the exception for an error that the system has only given the number of."""
    if sys.platform == "win32":
        import ctypes

        error: OSError = ctypes.WinError(code)
    else:
        error = OSError(code, os.strerror(code))
    for note in notes:
        error.add_note(note)
    return error


def code_of(exc: OSError) -> int | None:
    """Return the system's number of an error: Winsock's on Windows; None if it was not made of one."""
    winerror: int | None = getattr(exc, "winerror", None)
    return exc.errno if winerror is None else winerror


def is_shortage(exc: OSError) -> bool:
    """Whether the system lacked something, descriptors for example: an accept() may succeed when a connection ends."""
    return code_of(exc) in _SHORTAGE


def is_transient(exc: OSError) -> bool:
    """Whether a failed connect may succeed a moment later, as while the VM or its service starts."""
    return isinstance(exc, TimeoutError) or code_of(exc) in _TRANSIENT
