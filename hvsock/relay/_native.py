"""Addresses as the bytes of the system's struct sockaddr, as the engine takes and returns them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Final

from hvsock._addresses import (
    AF_HYPERV,
    HV_PROTOCOL_RAW,
    HyperVAddress,
    cid_from_vm_id,
    vsock_address,
    vsock_port_from_service_id,
    warn_of_high_port,
)
from hvsock._transports.vsock import VsockTransport
from hvsock.relay._tcp import tcp_text

__all__ = ["Native", "text_of", "to_abstract", "to_hyperv", "to_tcp", "to_unix", "to_vsock"]

Native = tuple[int, int, bytes]  # family, protocol, struct sockaddr

_AF_UNIX: Final = 1
_HEAD_SIZE: Final = 2  # the family; on macOS and the BSDs the whole length, a byte, and the family, another one
_HAS_LENGTH: Final = sys.platform == "darwin" or "bsd" in sys.platform
_IN: Final = struct.Struct("!H4s8x")  # port, address
_IN6: Final = struct.Struct("!HI16s")  # port, flow information, address; the scope follows, in the machine's order
_SCOPE: Final = struct.Struct("=I")
_VM: Final = struct.Struct("=HII4x")  # reserved, port, CID


def to_tcp(host: str, port: int) -> tuple[Native, ...]:
    """Return the addresses of a number or of localhost; nothing for what connect() has to be asked for.

    Those are other names, which may change their meaning, and several addresses on Windows.
    """
    if host != "localhost" and not _is_number(host):
        return ()
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = tuple(
        (family, proto, _pack_tcp(family, address)) for family, _, proto, _, address in found if _is_usable(family)
    )
    # Windows asks a port that refuses again and again, for 2 s: connect() tries the next address meanwhile.
    return () if sys.platform == "win32" and len(addresses) > 1 else addresses


def _is_number(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host.partition("%")[0])
            return True
    return False


def _pack_tcp(family: int, address: Sequence[Any]) -> bytes:
    host, port, *rest = address
    number = socket.inet_pton(family, host.partition("%")[0])
    if family == socket.AF_INET:
        return _pack(family, _IN.pack(port, number))
    flow, scope = rest
    return _pack(family, _IN6.pack(port, flow, number) + _SCOPE.pack(scope))


def _pack(family: int, rest: bytes) -> bytes:
    head = bytes((_HEAD_SIZE + len(rest), family)) if _HAS_LENGTH else family.to_bytes(_HEAD_SIZE, sys.byteorder)
    return head + rest


def _family_of(native: bytes) -> int:
    return int.from_bytes(native[_HAS_LENGTH:_HEAD_SIZE], sys.byteorder)  # of nothing: AF_UNSPEC


def _is_usable(family: int) -> bool:
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def to_unix(path: PurePath) -> Native:
    """Return the address of a Unix socket."""
    return _AF_UNIX, 0, _pack(_AF_UNIX, os.fsencode(path) + b"\0")


def to_abstract(name: str) -> Native:
    """Return the address of a Unix socket with an abstract name, whose first character is NUL."""
    return _AF_UNIX, 0, _pack(_AF_UNIX, os.fsencode(name))


def to_vsock(address: HyperVAddress) -> Native | None:
    """Return the address on AF_VSOCK, or None if it cannot be expressed there."""
    cid, port = cid_from_vm_id(address.vm_id), vsock_port_from_service_id(address.service_id)
    if cid is None or port is None:
        return None
    family = VsockTransport.family
    return family, 0, _pack(family, _VM.pack(0, port, cid))


def to_hyperv(address: HyperVAddress) -> Native:
    """Return the address on AF_HYPERV."""
    warn_of_high_port(address)
    return AF_HYPERV, HV_PROTOCOL_RAW, address.pack()


def text_of(native: bytes) -> str | None:
    """Return a client's address for the log, or None if it has none."""
    family = _family_of(native)
    rest = native[_HEAD_SIZE:]
    if family == socket.AF_INET and len(rest) >= _IN.size:
        port, number = _IN.unpack_from(rest)
        return tcp_text((socket.inet_ntop(family, number), port))
    if family == socket.AF_INET6 and len(rest) >= _IN6.size:
        port, _flow, number = _IN6.unpack_from(rest)
        return tcp_text((socket.inet_ntop(family, number), port))
    if family == VsockTransport.family and len(rest) >= _VM.size:
        _reserved, port, cid = _VM.unpack_from(rest)
        return str(vsock_address(cid, port))
    if family == AF_HYPERV:
        with contextlib.suppress(ValueError):
            return str(HyperVAddress.unpack(native))
    return None
