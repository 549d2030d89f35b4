"""Hyper-V sockets for Python.

Hyper-V sockets connect a host and its virtual machines through shared memory, without a network. `HyperVSocket` is a
`socket.socket` that speaks them on Windows (``AF_HYPERV``), in Linux guests (``AF_VSOCK``) and, for development, on any
POSIX machine (``AF_UNIX``).
"""

from hvsock import _names
from hvsock._addresses import *
from hvsock._errors import IncompleteReadError
from hvsock._retries import connections

try:
    from hvsock._sockets import *
except ModuleNotFoundError as error:
    if error.name != "hvsock._hvsock":
        raise
    raise ImportError(
        f"{__path__[0]} is hvsock's source, which is not compiled and hides the installed package: "
        "change to another directory"
    ) from None
from hvsock._transports import Transport, default_transport, transports

__all__ = [
    "AF_HYPERV",
    "HVSOCKET_CONNECTED_SUSPEND",
    "HVSOCKET_CONNECT_TIMEOUT",
    "HVSOCKET_CONNECT_TIMEOUT_MAX",
    "HVSOCKET_CONTAINER_PASSTHRU",
    "HVSOCKET_HIGH_VTL",
    "HV_GUID_BROADCAST",
    "HV_GUID_CHILDREN",
    "HV_GUID_LOOPBACK",
    "HV_GUID_PARENT",
    "HV_GUID_SILOHOST",
    "HV_GUID_VSOCK_TEMPLATE",
    "HV_GUID_WILDCARD",
    "HV_GUID_ZERO",
    "HV_PROTOCOL_RAW",
    "Address",
    "HyperVAddress",
    "HyperVSocket",
    "IncompleteReadError",
    "Transport",
    "as_address",
    "cid_from_vm_id",
    "connections",
    "container_vm_id",
    "create_connection",
    "create_server",
    "default_transport",
    "port_from_service_id",
    "service_id_from_port",
    "transports",
    "vm_id_from_cid",
]

__version__ = "0.1.0"

_names.publish(globals())
