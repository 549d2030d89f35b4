"""The transport of Linux guests and Linux/KVM hosts: ``AF_VSOCK``."""

from __future__ import annotations

import errno
import functools
import os
import platform
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from hvsock._addresses import (
    HV_GUID_CHILDREN,
    VMADDR_CID_ANY,
    HyperVAddress,
    cid_from_vm_id,
    vsock_address,
    vsock_port_from_service_id,
)
from hvsock._hvsock import Socket
from hvsock._transports.base import Transport

__all__ = ["VsockTransport", "has_loopback", "local_cid"]

# linux/vm_sockets.h; the socket module names them only where its build saw that header.
_AF_VSOCK: Final = 40
_SO_VM_SOCKETS_CONNECT_TIMEOUT: Final = 6
_IOCTL_VM_SOCKETS_GET_LOCAL_CID: Final = 0x7B9
_DEVICE: Final = Path("/dev/vsock")

# Where a meaning was seen: Linux net/vmw_vsock, nbdd0121/wsld issues 5, 8 and 28.
_CAUSES: Final = {
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
    errno.EADDRINUSE: "another socket has this port",
    errno.EADDRNOTAVAIL: "parent and other VMs' ids are not addresses of this machine; a guest binds to wildcard",
    errno.ECONNREFUSED: "nothing listens on this port",
    errno.ECONNRESET: "nothing listens on this port, or the peer ended",
    errno.ENETUNREACH: "no transport to that CID: loopback needs the module vsock_loopback",
    errno.ENODEV: "no transport to that CID: loopback needs the module vsock_loopback, "
    "a parent needs a hypervisor; or, on a KVM host, no VM with that CID runs",
    errno.ETIMEDOUT: "nothing listens, or the service is not registered on a Windows host, which refuses silently",
}


class VsockTransport(Transport):
    """``AF_VSOCK``: a VM id is a CID, a service id is a port."""

    name = "vsock"
    family = _AF_VSOCK
    # Not by socket.AF_VSOCK, which some builds of Python lack on Linux. On FreeBSD 40 is another family, and macOS has
    # another struct sockaddr_vm.
    unsupported = None if sys.platform == "linux" else "AF_VSOCK exists on Linux only."
    causes = _CAUSES

    def _refused(self, exc: OSError) -> str:
        return (
            f"This kernel has no AF_VSOCK ({exc.strerror}): load its module, in a Hyper-V guest by modprobe hv_sock, "
            "in a guest of KVM by modprobe vmw_vsock_virtio_transport."
        )

    def bind(self, sock: Socket, address: HyperVAddress) -> None:
        """Bind to the CID, which in a Hyper-V guest can only be VMADDR_CID_ANY: wildcard or children."""
        cid = VMADDR_CID_ANY if address.vm_id == HV_GUID_CHILDREN else _cid(address)
        Socket.bind(sock, (cid, _port(address)))

    def connect(self, sock: Socket, address: HyperVAddress) -> None:
        """Connect to the CID and port."""
        Socket.connect(sock, _cid_and_port(address.vm_id.int, address.service_id.int))

    def limit_connect(self, sock: Socket, seconds: float) -> None:
        """Set SO_VM_SOCKETS_CONNECT_TIMEOUT."""
        if sys.platform == "win32":
            raise NotImplementedError(self.unsupported)
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        # CPython takes an option of an AF_VSOCK socket as a 64-bit integer only; other families take bytes too.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(sock.fileno())) as twin:
            twin.setsockopt(_AF_VSOCK, _SO_VM_SOCKETS_CONNECT_TIMEOUT, limit)

    def local_address(self, native: Any) -> HyperVAddress:
        """Translate (cid, port)."""
        return vsock_address(*native)

    def peer_address(self, native: Any) -> HyperVAddress:
        """Translate (cid, port)."""
        return vsock_address(*native)


@functools.lru_cache(maxsize=128)  # a client connects to few services again and again; Python would hash a UUID
def _cid_and_port(vm_id: int, service_id: int) -> tuple[int, int]:
    address = HyperVAddress(UUID(int=vm_id), UUID(int=service_id))
    return _cid(address), _port(address)


def _cid(address: HyperVAddress) -> int:
    cid = cid_from_vm_id(address.vm_id)
    if cid is None:
        raise ValueError(
            f"{address}: AF_VSOCK has no CID for this VM id; a Linux guest reaches its parent and itself (loopback), "
            "a KVM host the ids that vm_id_from_cid() makes"
        )
    return cid


def _port(address: HyperVAddress) -> int:
    port = vsock_port_from_service_id(address.service_id)
    if port is None:
        raise ValueError(
            f"{address}: AF_VSOCK has ports only, and this service id is not a port's; "
            "use a port, or a service id made by service_id_from_port(), at both ends"
        )
    return port


def local_cid() -> int | None:
    """Return this machine's own CID, or None if the kernel does not report one.

    Read from /dev/vsock, without a socket. A Hyper-V guest reports VMADDR_CID_ANY (0xffffffff), since only the host
    knows its id: `hvs_get_local_cid` in the kernel's ``hyperv_transport.c``.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        with _DEVICE.open("rb", buffering=0) as device:
            answer = fcntl.ioctl(device, _IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4))
    except OSError:
        return None
    return int.from_bytes(answer, sys.byteorder)


def has_loopback() -> bool:
    """Whether the kernel has CID 1 (VMADDR_CID_LOCAL): the module ``vsock_loopback`` is loaded or built in.

    It looks at the kernel's files and connects nothing.
    """
    if Path("/sys/module/vsock_loopback").exists():
        return True
    try:
        built_in = Path("/lib/modules", platform.release(), "modules.builtin").read_text(encoding="utf-8")
    except OSError:
        return False
    return "/vsock_loopback.ko" in built_in
