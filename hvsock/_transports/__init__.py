"""The socket families that can carry Hyper-V addresses, and which of them is used here."""

from __future__ import annotations

import os
import sys
from typing import Final

from hvsock._shown import shown
from hvsock._transports.base import Transport
from hvsock._transports.hyperv import HyperVTransport
from hvsock._transports.local import LocalTransport
from hvsock._transports.vsock import VsockTransport

__all__ = ["Transport", "default_transport", "transport_named", "transport_of_family", "transports"]

_TRANSPORTS: Final[tuple[Transport, ...]] = (HyperVTransport(), VsockTransport(), LocalTransport())
_OF_FAMILY: Final = {transport.family: transport for transport in _TRANSPORTS}


def transports() -> tuple[Transport, ...]:
    """Return every transport: each has a `name`, and is `available` or gives a `reason`."""
    return _TRANSPORTS


def transport_named(name: str) -> Transport:
    """Return the transport with that name.

    Raises:
        ValueError: there is no such transport.
    """
    for transport in _TRANSPORTS:
        if transport.name == name:
            return transport
    raise ValueError(f"no transport is called {shown(name)}; use one of {', '.join(t.name for t in _TRANSPORTS)}")


def transport_of_family(family: int) -> Transport | None:
    """Return the transport over a socket family, or None when it carries no Hyper-V addresses."""
    return _OF_FAMILY.get(family)


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
