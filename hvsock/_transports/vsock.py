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
    MAX_HYPERV_PORT,
    VMADDR_CID_ANY,
    VMADDR_CID_LOCAL,
    HyperVAddress,
    cid_from_vm_id,
    vsock_address,
    vsock_port_from_service_id,
    warn_of_high_port,
)
from hvsock._errors import os_error
from hvsock._hvsock import Socket
from hvsock._transports.base import Transport

__all__ = ["VsockTransport", "has_loopback", "local_cid"]

# linux/vm_sockets.h; the socket module names them only where its build saw that header.
_VMADDR_PORT_ANY: Final = 0xFFFFFFFF
_AF_VSOCK: Final = 40
_SO_VM_SOCKETS_CONNECT_TIMEOUT: Final = 6
_IOCTL_VM_SOCKETS_GET_LOCAL_CID: Final = 0x7B9
_DEVICE: Final = Path("/dev/vsock")
_PROTOCOLS: Final = Path("/proc/net/protocols")
_HYPERV_MODULE: Final = Path("/sys/module/hv_sock")

# Where a meaning was seen: Linux net/vmw_vsock, nbdd0121/wsld issues 5, 8 and 28.
_CAUSES: Final = {
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
    errno.EADDRINUSE: "another socket has this port",
    errno.EADDRNOTAVAIL: "parent and other VMs' ids are not addresses of this machine; a guest binds to wildcard",
    errno.ECONNREFUSED: "nothing listens on this port",
    errno.ECONNRESET: "nothing listens on this port, its backlog is full, or the peer ended",
    errno.ENETUNREACH: "no transport to that CID: loopback needs the module vsock_loopback",
    errno.ENODEV: "no transport to that CID: loopback needs the module vsock_loopback, "
    "a parent needs a hypervisor; or, on a KVM host, no VM with that CID runs",
    errno.ETIMEDOUT: "nothing listens, or the service is not registered on a Windows host, which refuses silently",
}

_REFUSALS: Final = {
    errno.EAFNOSUPPORT: (
        "This kernel has no AF_VSOCK",
        "load its module: modprobe hv_sock in a Hyper-V guest, modprobe vmw_vsock_virtio_transport in one of KVM",
    ),
    errno.EPERM: (
        "A seccomp filter denies AF_VSOCK to this process",
        "Docker, containerd and podman have one by default; --security-opt seccomp=profile.json can permit family 40",
    ),
    errno.EACCES: (
        "A security policy denies AF_VSOCK to this process",
        "journalctl -k and ausearch -m avc show what SELinux or AppArmor has denied",
    ),
}


class VsockTransport(Transport):
    """``AF_VSOCK``: a VM id is a CID, a service id is a port."""

    name = "vsock"
    family = _AF_VSOCK
    # Not by socket.AF_VSOCK, which some builds of Python lack on Linux. On FreeBSD 40 is another family, and macOS has
    # another struct sockaddr_vm.
    unsupported = None if sys.platform == "linux" else "AF_VSOCK exists on Linux only."
    causes = _CAUSES
    refusals = _REFUSALS
    _has_had_loopback = False  # a module that is in use is not unloaded

    def _refused(self, exc: OSError) -> str:
        if exc.errno == errno.EAFNOSUPPORT and _kernel_has_vsock():
            return (
                f"This kernel has AF_VSOCK, and a filter denies it to this process ({exc.strerror}): "
                "a unit of systemd needs AF_VSOCK in RestrictAddressFamilies=."
            )
        return super()._refused(exc)

    def bind(self, sock: Socket, address: HyperVAddress) -> None:
        """Bind to the CID, which in a Hyper-V guest can only be VMADDR_CID_ANY: wildcard or children."""
        cid = VMADDR_CID_ANY if address.vm_id == HV_GUID_CHILDREN else _cid(address)
        Socket.bind(sock, (cid, _port(address)))

    def connect(self, sock: Socket, address: HyperVAddress) -> None:
        """Connect to the CID and port.

        Without a loopback the kernel asks the hypervisor for CID 1 too, which does not answer: that is ENODEV, at once.
        """
        to = _cid_and_port(address.vm_id.int, address.service_id.int)
        if to[0] == VMADDR_CID_LOCAL and not self._has_had_loopback:
            if _lacks_loopback():
                raise os_error(errno.ENODEV, "known cause: this kernel has no vsock loopback: modprobe vsock_loopback")
            self._has_had_loopback = True
        Socket.connect(sock, to)

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
    if port > MAX_HYPERV_PORT and _HYPERV_MODULE.exists():
        warn_of_high_port(address)
    return port


def _kernel_has_vsock() -> bool:
    try:
        return "AF_VSOCK" in _PROTOCOLS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def _lacks_loopback() -> bool:
    """Whether the kernel has no CID 1 now.

    A socket can be bound to a CID that a transport has, and to no other: `__vsock_bind` in the kernel's af_vsock.c.
    Files tell less: a module that is built in need not be in them.
    """
    try:
        with Socket(_AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.bind((VMADDR_CID_LOCAL, _VMADDR_PORT_ANY))
    except OSError as exc:
        return exc.errno == errno.EADDRNOTAVAIL
    return False


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
