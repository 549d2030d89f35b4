"""`local` with the family of a real transport: `HVSOCK_TEST_FAMILY=vsock` or `hyperv`, for a whole run of the tests.

Everyone outside of hvsock, asyncio and `ssl` among them, is shown that family on the sockets of `local`, and treats
them as it will treat the real ones. hvsock itself, and `socket`, which makes sockets of the number, see AF_UNIX.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import hvsock

#: The modules that have to know what a socket is: `multiprocessing` makes one of the number, in another process.
INSIDE = {"hvsock", "multiprocessing", "socket"}

NO_TLS = "CPython has sockets of AF_HYPERV on Windows only, and TLS makes one of the family shown to it"

SHOWN_FAMILY = os.environ.get("HVSOCK_TEST_FAMILY")


def show(name: str) -> None:
    """Have the sockets of `local` show the family of the transport of that name."""
    number = {transport.name: transport.family for transport in hvsock.transports()}[name]
    real: Any = socket.socket.family

    def family(sock: socket.socket) -> int:
        true: int = real.fget(sock)
        inside = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] in INSIDE
        if true != socket.AF_UNIX or inside or not isinstance(sock, hvsock.HyperVSocket):
            return true
        try:
            return socket.AddressFamily(number)
        except ValueError:  # AF_HYPERV, which Python names on Windows only
            return number

    socket.socket.family = property(family, doc=real.__doc__)  # type: ignore[assignment]


if SHOWN_FAMILY:
    show(SHOWN_FAMILY)
