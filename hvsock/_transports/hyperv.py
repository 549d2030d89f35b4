"""The transport of Windows hosts and guests: ``AF_HYPERV``."""

from __future__ import annotations

import sys
from typing import Any, Final

from hvsock._addresses import (
    AF_HYPERV,
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECT_TIMEOUT_MAX,
    HVSOCKET_CONNECTED_SUSPEND,
    HVSOCKET_CONTAINER_PASSTHRU,
    HVSOCKET_HIGH_VTL,
    HyperVAddress,
    warn_of_high_port,
)
from hvsock._hvsock import Socket
from hvsock._transports.base import Option, Transport

__all__ = ["HyperVTransport"]

# Winsock's codes. Where a meaning was seen: microsoft/go-winio hvsock_test.go, microsoft/hcsshim
# test/functional/hvsock_test.go, nbdd0121/wsld issues 5, 8 and 28.
_CAUSES: Final = {
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
    10061: "nothing listens on this service, or its backlog is full; or, in a guest, it is not registered on the host, "
    "or its listener is bound to another VM id; "
    "a wildcard listener is never reached from WSL or where AllowWildcardBinds is off",
}
# 10106 is what a program sees that was started with an empty environment.
_REFUSALS: Final = {
    10013: ("This process may not make such sockets", "an AppContainer or a policy of this machine forbids it"),
    10047: ("Windows has no AF_HYPERV here", "enable Hyper-V or the Virtual Machine Platform"),
    10106: ("Windows cannot load what makes sockets", "the process needs the environment variable SystemRoot"),
}
_OPTIONS: Final = {
    Option.CONNECTED_SUSPEND: (HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND),
    Option.HIGH_VTL: (HV_PROTOCOL_RAW, HVSOCKET_HIGH_VTL),
    Option.CONTAINER_PASSTHRU: (HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU),
}


class HyperVTransport(Transport):
    """``AF_HYPERV``: the system's addresses are ours, packed."""

    name = "hyperv"
    family = AF_HYPERV
    proto = HV_PROTOCOL_RAW
    # Not by socket.AF_HYPERV, which FreeBSD has too: there it is 43, with other addresses.
    unsupported = None if sys.platform == "win32" else "AF_HYPERV exists on Windows only."
    causes = _CAUSES
    timed_out = 10060
    refusals = _REFUSALS
    options = _OPTIONS

    def bind(self, sock: Socket, address: HyperVAddress) -> None:
        """Bind. A duplicate is refused by listen(), not here."""
        warn_of_high_port(address)
        Socket.bind(sock, address.pack())

    def connect(self, sock: Socket, address: HyperVAddress) -> None:
        """Connect."""
        warn_of_high_port(address)
        Socket.connect(sock, address.pack())

    def limit_connect(self, sock: Socket, seconds: float) -> None:
        """Set HVSOCKET_CONNECT_TIMEOUT."""
        milliseconds = min(int(seconds * 1000) + 1, HVSOCKET_CONNECT_TIMEOUT_MAX)
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, milliseconds)

    def local_address(self, native: Any) -> HyperVAddress:
        """Unpack."""
        return HyperVAddress.unpack(native)

    def peer_address(self, native: Any) -> HyperVAddress:
        """Unpack."""
        return HyperVAddress.unpack(native)
