"""Hyper-V sockets for Python.

Hyper-V sockets connect a host and its virtual machines through shared memory, without a network. `HyperVSocket` is a
`socket.socket` that speaks them on Windows (``AF_HYPERV``), in Linux guests (``AF_VSOCK``) and, for development, on any
POSIX machine (``AF_UNIX``).
"""

from hvsock import addresses, sockets
from hvsock.addresses import *  # noqa: F403
from hvsock.errors import IncompleteReadError
from hvsock.sockets import *  # noqa: F403
from hvsock.transports import default_transport, transports

__all__ = [*addresses.__all__, *sockets.__all__, "IncompleteReadError", "default_transport", "transports"]  # noqa: PLE0604

__version__ = "0.1.0"
