"""Hyper-V sockets for Python.

Hyper-V sockets connect a host and its virtual machines through shared memory, without a network. `HyperVSocket` is a
`socket.socket` that speaks them on Windows (``AF_HYPERV``), in Linux guests (``AF_VSOCK``) and, for development, on any
POSIX machine (``AF_UNIX``).
"""

try:
    from hvsock import addresses, sockets
except ModuleNotFoundError as error:
    if error.name != "hvsock._hvsock":
        raise
    raise ImportError(
        f"{__path__[0]} is hvsock's source, which is not compiled and hides the installed package: "
        "change to another directory"
    ) from None
from hvsock.addresses import *  # noqa: F403
from hvsock.errors import IncompleteReadError
from hvsock.sockets import *  # noqa: F403
from hvsock.transports import default_transport, transports

__all__ = [*addresses.__all__, *sockets.__all__, "IncompleteReadError", "default_transport", "transports"]  # noqa: PLE0604

__version__ = "0.1.0"
