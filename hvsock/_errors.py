"""What the system's errors mean on a Hyper-V socket: known causes, and which errors are worth another try."""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

from hvsock._addresses import HyperVAddress

__all__ = ["IncompleteReadError", "add_notes", "is_transient", "known_cause", "os_error"]

# Winsock codes for hyperv, errno values for the others. Where a meaning was seen: microsoft/go-winio hvsock_test.go,
# microsoft/hcsshim test/functional/hvsock_test.go, nbdd0121/wsld issues 5, 8 and 28, Linux net/vmw_vsock.
_CAUSES: Final[dict[str, dict[int, str]]] = {
    "hyperv": {
        10013: "on the host, the service of a VM's id is not registered; or its security descriptor denies this user, "
        "or the VM belongs to another user (WSL)",
        10022: "the service is disabled for this VM, or the socket is in the wrong state (listen() before bind())",
        10041: "a Hyper-V socket needs the protocol HV_PROTOCOL_RAW (1)",
        10048: "another socket listens on this service",
        10049: "wildcard and children can be bound, not connected to; a VM id must be one that this side knows",
        10050: "the VM is starting, stopping or rebooting",
        10051: "the VM is not running, its id is unknown here, or this machine has no parent",
        10054: "the peer's process or VM ended",
        10060: "nothing listens, the service is not registered on the host, or the VM is still starting",
        10061: "nothing listens on this service, or, in a guest, it is not registered on the host, "
        "or its listener is bound to another VM id; "
        "a wildcard listener is never reached from WSL or where AllowWildcardBinds is off",
    },
    "vsock": {
        errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
        errno.EADDRINUSE: "another socket has this port",
        errno.EADDRNOTAVAIL: "parent and other VMs' ids are not addresses of this machine; a guest binds to wildcard",
        errno.ECONNREFUSED: "nothing listens on this port",
        errno.ECONNRESET: "nothing listens on this port, or the peer ended",
        errno.ENETUNREACH: "no transport to that CID: loopback needs the module vsock_loopback",
        errno.ENODEV: "no transport to that CID: loopback needs the module vsock_loopback, "
        "a parent needs a hypervisor; or, on a KVM host, no VM with that CID runs",
        errno.ETIMEDOUT: "nothing listens, or the service is not registered on a Windows host, which refuses silently",
    },
    "local": {
        errno.EADDRINUSE: "another socket listens on this address",
        errno.EADDRNOTAVAIL: "wildcard and children can be bound, not connected to; the host has no parent to bind to",
        errno.ECONNREFUSED: "nothing listens there, or only with a VM id that does not let this process in",
        errno.ENETUNREACH: "the host has no parent: set HVSOCK_LOCAL_VM=<GUID> to play a guest, or use loopback; "
        "a guest reaches only its parent and itself",
    },
}

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


def _code(exc: OSError) -> int | None:
    winerror: int | None = getattr(exc, "winerror", None)
    return exc.errno if winerror is None else winerror


def is_transient(exc: OSError) -> bool:
    """Whether a failed connect may succeed a moment later, as while the VM or its service starts."""
    return isinstance(exc, TimeoutError) or _code(exc) in _TRANSIENT


def known_cause(exc: OSError, transport: str) -> str | None:
    """Return the known cause of this error on the transport with that name, or None."""
    code = _code(exc)
    if code is None and isinstance(exc, TimeoutError):
        code = 10060 if transport == "hyperv" else errno.ETIMEDOUT
    return None if code is None else _CAUSES[transport].get(code)


def add_notes(
    exc: OSError,
    operation: str,
    transport: str,
    *,
    local: HyperVAddress | None = None,
    peer: HyperVAddress | None = None,
) -> None:
    """Add to an error what was being done, between which addresses, and its known cause."""
    parts = [f"{operation} on transport {transport}"]
    if local is not None:
        parts.append(f"local {local}")
    if peer is not None:
        parts.append(f"peer {peer}")
    exc.add_note(", ".join(parts))
    cause = known_cause(exc, transport) if operation in ("bind", "listen", "connect") else None
    if cause is not None:
        exc.add_note(f"known cause: {cause}")
