"""The transport of Windows hosts and guests: ``AF_HYPERV``."""

from __future__ import annotations

import sys
from typing import Any

from hvsock._addresses import (
    AF_HYPERV,
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECT_TIMEOUT_MAX,
    HyperVAddress,
)
from hvsock._hvsock import Socket
from hvsock._transports.base import Transport

__all__ = ["HyperVTransport"]


class HyperVTransport(Transport):
    """``AF_HYPERV``: the system's addresses are ours, packed."""

    name = "hyperv"
    family = AF_HYPERV
    proto = HV_PROTOCOL_RAW
    # Not by socket.AF_HYPERV, which FreeBSD has too: there it is 43, with other addresses.
    unsupported = None if sys.platform == "win32" else "AF_HYPERV exists on Windows only."

    def _refused(self, exc: OSError) -> str:
        return f"Windows has no AF_HYPERV here ({exc.strerror}): enable Hyper-V or the Virtual Machine Platform."

    def bind(self, sock: Socket, address: HyperVAddress) -> None:
        """Bind. A duplicate is refused by listen(), not here."""
        Socket.bind(sock, address.pack())

    def connect(self, sock: Socket, address: HyperVAddress) -> None:
        """Connect."""
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
