"""Hyper-V socket addresses: the GUID constants, ``HyperVAddress``, and how ports, CIDs and container ids become GUIDs.

Pure computation, the same on every platform. The constants and the layout of ``SOCKADDR_HV`` are those of the Windows
SDK's ``hvsocket.h``.
"""

import functools
import re
import struct
import warnings
from typing import Final, NamedTuple, Self, TypeAlias
from uuid import UUID, SafeUUID

from hvsock._grammar import HYPERV_KINDS, Written, read
from hvsock._shown import shown

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
    "as_address",
    "cid_from_vm_id",
    "container_vm_id",
    "port_from_service_id",
    "service_id_from_port",
    "vm_id_from_cid",
]

AF_HYPERV: Final = 34
HV_PROTOCOL_RAW: Final = 1

# Socket options, level HV_PROTOCOL_RAW, each a 4-byte ULONG.
HVSOCKET_CONNECT_TIMEOUT: Final = 0x01  # milliseconds
HVSOCKET_CONNECT_TIMEOUT_MAX: Final = 300_000  # the largest value of the option above
HVSOCKET_CONTAINER_PASSTHRU: Final = 0x02  # in older SDKs; newer ones no longer name it
HVSOCKET_CONNECTED_SUSPEND: Final = 0x04  # non-zero: stay connected while the VM is paused
HVSOCKET_HIGH_VTL: Final = 0x08  # non-zero: connect to the guest's VTL2

HV_GUID_ZERO: Final = UUID("00000000-0000-0000-0000-000000000000")
HV_GUID_WILDCARD: Final = HV_GUID_ZERO  # bind: accept from every partition
HV_GUID_BROADCAST: Final = UUID("ffffffff-ffff-ffff-ffff-ffffffffffff")  # in the SDK, its use undocumented
HV_GUID_CHILDREN: Final = UUID("90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd")  # bind: accept from own children
HV_GUID_LOOPBACK: Final = UUID("e0e16197-dd56-4a10-9195-5ee7a155a838")  # bind or connect: this partition
HV_GUID_PARENT: Final = UUID("a42e7cda-d03f-480c-9cc2-a4de20abb878")  # bind or connect: the host, in a guest
HV_GUID_SILOHOST: Final = UUID("36bd0c5c-7276-4223-88ba-7d03b654c568")  # connect: the host of a container's silo
HV_GUID_VSOCK_TEMPLATE: Final = UUID("00000000-facb-11e6-bd58-64006a7986d3")  # a port's service id, the port first

SEVERAL_VMS: Final = frozenset({HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_BROADCAST})  # to bind to, not to connect to

Address: TypeAlias = tuple[UUID | str, UUID | str | int]
"""Any address argument is such a pair, of a VM (UUID, GUID string, alias) and a service (UUID, GUID string, port)."""

ALIASES: Final = {
    "wildcard": HV_GUID_WILDCARD,
    "children": HV_GUID_CHILDREN,
    "loopback": HV_GUID_LOOPBACK,
    "parent": HV_GUID_PARENT,
    "silohost": HV_GUID_SILOHOST,
}
NO_VM: Final = frozenset({*ALIASES.values(), HV_GUID_BROADCAST})  # what is not the id of one VM
_ALIAS_OF: Final = {vm_id: alias for alias, vm_id in ALIASES.items()}
_CONSTANT_OF: Final = {
    HV_GUID_WILDCARD: "HV_GUID_WILDCARD",
    HV_GUID_BROADCAST: "HV_GUID_BROADCAST",
    HV_GUID_CHILDREN: "HV_GUID_CHILDREN",
    HV_GUID_LOOPBACK: "HV_GUID_LOOPBACK",
    HV_GUID_PARENT: "HV_GUID_PARENT",
    HV_GUID_SILOHOST: "HV_GUID_SILOHOST",
}

_SOCKADDR_HV: Final = struct.Struct("<HH16s16s")
_GUID: Final = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_DIGITS: Final = re.compile(r"[0-9]+")
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,9}")
MAX_HYPERV_PORT: Final = 0x7FFFFFFF  # hvsocket.h: "Valid port mappings are 0-0x7FFFFFFF"
_MAX_U32: Final = 0xFFFFFFFF
_MAX_PORT: Final = _MAX_U32 - 1  # the one above it is VMADDR_PORT_ANY
_FIRST_32_BITS: Final = 96  # shift of a GUID's first field within UUID.int
_OTHER_BITS: Final = (1 << _FIRST_32_BITS) - 1

# linux/vm_sockets.h
VMADDR_CID_LOCAL: Final = 1
VMADDR_CID_HOST: Final = 2
VMADDR_CID_ANY: Final = 0xFFFFFFFF
_VM_ID_OF_CID: Final = {
    VMADDR_CID_LOCAL: HV_GUID_LOOPBACK,
    VMADDR_CID_HOST: HV_GUID_PARENT,
    VMADDR_CID_ANY: HV_GUID_WILDCARD,
}
_CID_OF_VM_ID: Final = {vm_id.int: cid for cid, vm_id in _VM_ID_OF_CID.items()}
# Version 8 is RFC 9562's for formats of one's own, so no id that Windows draws (version 4) has this form. The fixed
# fields spell "cid" and "hvsock" in ASCII.
_CID_TEMPLATE: Final = UUID("00000000-6369-8064-8000-6876736f636b")

# hcsshim, internal/tools/hvsocketaddr/main.go, HCSIDToGUID.
_HCS_NAMESPACE: Final = UUID("cab70344-facb-41e4-b5e5-ab6592283e6e")


class HyperVAddress(NamedTuple):
    """A Hyper-V socket address: which VM, and which service in it.

    The fields are not checked here; `as_address` makes an address from looser input and says what is wrong with it.

    Attributes:
        vm_id: a VM's id, or one of the HV_GUID constants, which may mean several VMs.
        service_id: the service in it.
    """

    vm_id: UUID
    service_id: UUID

    @property
    def port(self) -> int | None:
        """The vsock port (0..0xfffffffe) that the service id stands for, or None if it is not a port's."""
        return port_from_service_id(self.service_id)

    def pack(self) -> bytes:
        """Return the 36-byte ``SOCKADDR_HV``.

        Little-endian u16 family (34), u16 Reserved (0), VM id at offset 4 and service id at 20, both as Windows lays
        out a GUID (``UUID.bytes_le``). Source: ``hvsocket.h``.
        """
        return _SOCKADDR_HV.pack(AF_HYPERV, 0, self.vm_id.bytes_le, self.service_id.bytes_le)

    @classmethod
    def unpack(cls, buffer: bytes | bytearray | memoryview) -> Self:
        """Make an address from a ``SOCKADDR_HV``: the inverse of `pack`.

        Reserved is ignored: it carries no part of the address, and refusing what a kernel left there would lose an
        address that is otherwise good.

        Raises:
            TypeError: `buffer` is not a bytes-like object.
            ValueError: it is not 36 bytes long, or its family is not 34.
        """
        data = bytes(memoryview(buffer))
        if len(data) != _SOCKADDR_HV.size:
            raise ValueError(f"a SOCKADDR_HV has {_SOCKADDR_HV.size} bytes, not {len(data)}")
        family, _reserved, vm_id, service_id = _SOCKADDR_HV.unpack(data)
        if family != AF_HYPERV:
            raise ValueError(f"the address family is {family}, not {AF_HYPERV} (AF_HYPERV)")
        return cls(UUID(bytes_le=vm_id), UUID(bytes_le=service_id))

    def __format__(self, spec: str) -> str:
        """Format the URI, as `str` gives it."""
        return format(str(self), spec)

    def __str__(self) -> str:
        """Return the URI, ``hvsock://VM/SERVICE``: an alias or GUID, and a port or GUID; `parse` is the inverse."""
        vm = _ALIAS_OF.get(self.vm_id, self.vm_id)
        service = self.service_id if self.port is None else self.port
        return f"hvsock://{vm}/{service}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Make an address from text: ``VM/SERVICE`` or ``hvsock://VM/SERVICE``, or ``vsock:CID:PORT``.

        VM is an alias (wildcard, children, loopback, parent, silohost) or a GUID, SERVICE a decimal port without
        leading zeros or a GUID. Aliases, GUIDs and what is before a colon may be in any case, GUIDs may have braces.
        CID is a number; no CID, or -1, is VMADDR_CID_ANY. ``vsock://CID:PORT`` is the same. A VM's name is not looked
        up: `hvsock.vms.find_vm` does that.

        Raises:
            TypeError: `text` is not a string.
            ValueError: it is not such an address; the message says which part is wrong, and what may have been meant.
        """
        written = read(text, HYPERV_KINDS)
        if written.options:
            raise ValueError(f"{shown(text)} names a transport, which is not part of a HyperVAddress")
        return cls(*address_of(written))

    def __repr__(self) -> str:
        """Return an expression for this address, in which well-known ids go by name."""
        vm_id: object = self.vm_id
        service_id: object = self.service_id
        vm = _CONSTANT_OF.get(vm_id, repr(vm_id)) if isinstance(vm_id, UUID) else repr(vm_id)
        port = port_from_service_id(service_id) if isinstance(service_id, UUID) else None
        service = repr(service_id) if port is None else f"service_id_from_port({port})"
        return f"HyperVAddress(vm_id={vm}, service_id={service})"


def as_address(address: Address) -> HyperVAddress:
    """Make a `HyperVAddress` from any (vm, service) pair.

    vm: a UUID, a GUID string, or an alias (wildcard, children, loopback, parent, silohost). service: a UUID, a GUID
    string, or a port (0..0xfffffffe). A GUID string has the form 8-4-4-4-12, braces optional; case does not matter.

    Raises:
        TypeError: `address` is not a tuple, or a member of it has the wrong type.
        ValueError: it does not have two members, or one of them is malformed or out of range.
    """
    if type(address) is HyperVAddress and type(address[0]) is type(address[1]) is UUID:
        return address
    if not isinstance(address, tuple):
        hint = "; HyperVAddress.parse() takes a URI" if isinstance(address, str) else ""
        raise TypeError(f"an address must be a (vm, service) tuple, not {shown(address)}{hint}")
    if len(address) != 2:
        raise ValueError(f"an address must be a (vm, service) pair, not {shown(address)}")
    vm, service = address
    return HyperVAddress(as_vm_id(vm), as_service_id(service))


def address_of(written: Written) -> HyperVAddress:
    """Make an address of what was written: a VM and a service, or a CID and a port.

    Raises:
        ValueError: one of them is malformed or out of range.
    """
    place, service = written.place, written.service
    if written.kind == "vsock":
        cid = VMADDR_CID_ANY if place in ("", "-1") else int(place)
        return HyperVAddress(vm_id_from_cid(cid), service_id_from_port(int(service)))
    is_port = _PORT.fullmatch(service)
    if _DIGITS.fullmatch(service) and not is_port:
        raise ValueError(f"a port is 0 to {_MAX_PORT}, without leading zeros, not {shown(service)}")
    return HyperVAddress(as_vm_id(place), as_service_id(int(service) if is_port else service))


def as_vm_id(vm: UUID | str) -> UUID:
    if isinstance(vm, UUID):
        return vm
    if not isinstance(vm, str):
        raise TypeError(f"a VM must be a UUID or a str, not {shown(vm)}")
    vm_id = ALIASES.get(vm.lower()) if vm.isascii() else None
    vm_id = vm_id or parse_guid(vm)
    if vm_id is None:
        raise ValueError(
            f"{shown(vm)} is neither a GUID nor one of {', '.join(ALIASES)}; "
            "'hvsock vm id NAME' prints the GUID of a VM"
        )
    return vm_id


def as_service_id(service: UUID | str | int) -> UUID:
    if isinstance(service, UUID):
        return service
    if isinstance(service, int):
        return service_id_from_port(service)
    if not isinstance(service, str):
        raise TypeError(f"a service must be a UUID, a str or a port number, not {shown(service)}")
    service_id = parse_guid(service)
    if service_id is None:
        hint = ": a port must be an int" if _DIGITS.fullmatch(service) else ""
        raise ValueError(f"{shown(service)} is neither a GUID nor a port number{hint}")
    return service_id


def as_hyperv_service_id(service: UUID | str | int) -> UUID:
    """Make a service id of one that a Windows host registers: a port is Hyper-V's, 0..0x7fffffff.

    Raises:
        TypeError, ValueError: as `as_address`, and for a higher port.
    """
    service_id = as_service_id(service)
    if isinstance(service, int):
        _checked("port of Hyper-V", service, MAX_HYPERV_PORT)
    return service_id


def parse_guid(text: str) -> UUID | None:
    """Read the 8-4-4-4-12 form, braces optional; not the looser forms that ``UUID()`` takes."""
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    return UUID(text) if _GUID.fullmatch(text) else None


def service_id_from_port(port: int) -> UUID:
    """Return the service id that stands for a vsock port (0..0xfffffffe).

    It is ``HV_GUID_VSOCK_TEMPLATE`` with the port as its first 32 bits. Above 0x7fffffff a port is one of ``AF_VSOCK``
    alone; ``hvsocket.h``: "Valid port mappings are 0-0x7FFFFFFF".

    Raises:
        TypeError: `port` is not an int, or is a bool.
        ValueError: it is out of range.
    """
    return _with_first_32_bits(HV_GUID_VSOCK_TEMPLATE, _checked("port", port, _MAX_PORT))


def port_from_service_id(service_id: UUID) -> int | None:
    """Return the port (0..0xfffffffe) that a service id stands for, or None: the inverse of `service_id_from_port`.

    Raises:
        TypeError: `service_id` is not a UUID.
    """
    port = vsock_port_from_service_id(service_id)
    return port if port is not None and port <= _MAX_PORT else None


def vsock_address(cid: int, port: int) -> HyperVAddress:
    """Return the address of what a Linux kernel reports as (cid, port), each 0..0xffffffff; neither is checked."""
    return tuple.__new__(HyperVAddress, (_vm_id_of(cid), _with_first_32_bits(HV_GUID_VSOCK_TEMPLATE, port)))


def vsock_port_from_service_id(service_id: UUID) -> int | None:
    """Return the 32-bit vsock port of a service id, VMADDR_PORT_ANY too, or None.

    Raises:
        TypeError: `service_id` is not a UUID.
    """
    return _first_32_bits(HV_GUID_VSOCK_TEMPLATE, "service id", service_id)


def warn_of_high_port(address: HyperVAddress) -> None:
    """Warn if the service is a port that Hyper-V does not have, where Hyper-V carries it."""
    port = port_from_service_id(address.service_id)
    if port is not None and port > MAX_HYPERV_PORT:
        warnings.warn(
            f"port {port} is above {MAX_HYPERV_PORT}, Hyper-V's last one: Linux guests with older kernels refuse it",
            RuntimeWarning,
            stacklevel=4,
        )


def vm_id_from_cid(cid: int) -> UUID:
    """Return the VM id that stands for a vsock CID (0..0xffffffff).

    VMADDR_CID_HOST (2) is PARENT and VMADDR_CID_ANY (0xffffffff) is WILDCARD, as in Linux's ``hyperv_transport.c``;
    VMADDR_CID_LOCAL (1) is LOOPBACK. Every other CID, which only Linux/KVM hosts have, becomes the first 32 bits of
    ``xxxxxxxx-6369-8064-8000-6876736f636b``, this library's own form.

    Raises:
        TypeError: `cid` is not an int, or is a bool.
        ValueError: it is out of range.
    """
    _checked("CID", cid, _MAX_U32)
    return _vm_id_of(cid)


@functools.lru_cache(maxsize=128)  # a server has few clients and looks their ids up again and again
def _vm_id_of(cid: int) -> UUID:
    return _VM_ID_OF_CID.get(cid) or _with_first_32_bits(_CID_TEMPLATE, cid)


def cid_from_vm_id(vm_id: UUID) -> int | None:
    """Return the CID that a VM id stands for, or None: the inverse of `vm_id_from_cid`.

    Raises:
        TypeError: `vm_id` is not a UUID.
    """
    cid = _first_32_bits(_CID_TEMPLATE, "VM id", vm_id)
    return _CID_OF_VM_ID.get(vm_id.int) if cid is None or cid in _VM_ID_OF_CID else cid


def container_vm_id(hcs_id: str) -> UUID:
    """Return the VM id under which the host reaches a Windows container, from the container's full HCS id.

    It is the version 5 GUID of the id in upper case and UTF-16LE, in the namespace
    ``cab70344-facb-41e4-b5e5-ab6592283e6e``. Source: hcsshim, ``internal/tools/hvsocketaddr/main.go``.

    Raises:
        TypeError: `hcs_id` is not a string.
        ValueError: it is empty, or cannot be encoded.
    """
    if not isinstance(hcs_id, str):
        raise TypeError(f"a container id must be a str, not {type(hcs_id).__name__}")
    if not hcs_id:
        raise ValueError("the container id is empty")
    # Upper-cased one character at a time, as hcsshim does: "ß" stays one character.
    upper = "".join(c.upper() if len(c.upper()) == 1 else c for c in hcs_id)
    # uuid.uuid5() takes bytes as a name only since 3.12.
    import hashlib  # and with it OpenSSL, which is slow to load

    digest = hashlib.sha1(_HCS_NAMESPACE.bytes + upper.encode("utf-16-le"), usedforsecurity=False).digest()
    return UUID(bytes=digest[:16], version=5)


def _checked(what: str, value: int, maximum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a {what} must be an int, not {shown(value)}")
    if not 0 <= value <= maximum:
        given = str(value) if value.bit_length() <= 64 else f"one of {value.bit_length()} bits"
        raise ValueError(f"a {what} must be in the range 0..{maximum}, not {given}")
    return value


def _with_first_32_bits(template: UUID, value: int) -> UUID:
    """Make the UUID without its __init__, as uuid does itself since Python 3.14.

    A server makes one for each connection. The checks of __init__ would be most of the cost, and the arguments are
    known to be good.
    """
    made = UUID.__new__(UUID)
    object.__setattr__(made, "int", template.int | value << _FIRST_32_BITS)
    object.__setattr__(made, "is_safe", SafeUUID.unknown)
    return made


def _first_32_bits(template: UUID, what: str, guid: UUID) -> int | None:
    if not isinstance(guid, UUID):
        raise TypeError(f"a {what} must be a UUID, not {shown(guid)}")
    number = guid.int
    return number >> _FIRST_32_BITS if number & _OTHER_BITS == template.int else None
