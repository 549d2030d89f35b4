"""The socket families that can carry Hyper-V addresses, and which of them is used here."""

from __future__ import annotations

import os
import sys
from typing import Final

from hvsock._shown import shown
from hvsock._transports.base import Option, Transport
from hvsock._transports.hyperv import HyperVTransport
from hvsock._transports.local import LocalTransport
from hvsock._transports.vsock import VsockTransport

__all__ = [
    "CARRIERS",
    "Option",
    "Transport",
    "add",
    "default_transport",
    "transport_named",
    "transport_of_family",
    "transports",
]

_BY_NAME: Final[dict[str, Transport]] = {}
_BY_FAMILY: Final[dict[int, Transport]] = {}
CARRIERS: Final[dict[int, Transport]] = {}
"""The transport of a socket's family. Where the platform does not have a transport, its number is another family's."""


def add(transport: Transport) -> None:
    """Have the package know a transport, by its name and its family."""
    _BY_NAME[transport.name] = transport
    _BY_FAMILY[transport.family] = transport
    if transport.unsupported is None:
        CARRIERS[transport.family] = transport


add(HyperVTransport())
add(VsockTransport())
add(LocalTransport())


def transports() -> tuple[Transport, ...]:
    """Return every transport: each has a `name`, and is `available` or gives a `reason`."""
    return tuple(_BY_NAME.values())


def transport_named(name: str) -> Transport:
    """Return the transport with that name.

    Raises:
        ValueError: there is no such transport.
    """
    transport = _BY_NAME.get(name)
    if transport is None:
        raise ValueError(f"no transport is called {shown(name)}; use one of {', '.join(_BY_NAME)}")
    return transport


def transport_of_family(family: int) -> Transport | None:
    """Return the transport over a socket family, or None when it carries no Hyper-V addresses."""
    return _BY_FAMILY.get(family)


def default_transport() -> Transport:
    """Return the transport that is used when none is named, available or not.

    It is the one named by HVSOCK_TRANSPORT in the environment, else ``hyperv`` on Windows and ``vsock`` elsewhere.

    Raises:
        ValueError: HVSOCK_TRANSPORT names no transport.
    """
    name = os.environ.get("HVSOCK_TRANSPORT")
    if name:
        try:
            return transport_named(name)
        except ValueError as exc:
            raise ValueError(f"HVSOCK_TRANSPORT: {exc}") from None
    return transport_named("hyperv" if sys.platform == "win32" else "vsock")
