"""Addresses: the SDK's values, the 36 bytes of a SOCKADDR_HV, URIs, and the GUIDs of ports, CIDs and containers."""

from __future__ import annotations

import ast
import enum
import pickle
import re
import socket
import struct
import sys
import uuid
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hvsock import _addresses as addresses
from hvsock import _grammar
from hvsock._addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_VSOCK_TEMPLATE,
    HV_GUID_WILDCARD,
    HV_GUID_ZERO,
    HyperVAddress,
    as_address,
    cid_from_vm_id,
    container_vm_id,
    port_from_service_id,
    service_id_from_port,
    vm_id_from_cid,
    vsock_port_from_service_id,
)

MAX_PORT = 0xFFFFFFFE
HYPERV_PORT = 0x7FFFFFFF  # the largest one of Hyper-V
MAX_U32 = 0xFFFFFFFF

# The GUIDs as the comments of the Windows SDK's hvsocket.h write them.
SDK_GUIDS = {
    "HV_GUID_ZERO": "00000000-0000-0000-0000-000000000000",
    "HV_GUID_WILDCARD": "00000000-0000-0000-0000-000000000000",
    "HV_GUID_BROADCAST": "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
    "HV_GUID_CHILDREN": "90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd",
    "HV_GUID_LOOPBACK": "e0e16197-dd56-4a10-9195-5ee7a155a838",
    "HV_GUID_PARENT": "a42e7cda-d03f-480c-9cc2-a4de20abb878",
    "HV_GUID_SILOHOST": "36bd0c5c-7276-4223-88ba-7d03b654c568",
    "HV_GUID_VSOCK_TEMPLATE": "00000000-facb-11e6-bd58-64006a7986d3",
}
SDK_INTS = {
    "AF_HYPERV": 34,
    "HV_PROTOCOL_RAW": 1,
    "HVSOCKET_CONNECT_TIMEOUT": 0x01,
    "HVSOCKET_CONNECT_TIMEOUT_MAX": 300000,
    "HVSOCKET_CONTAINER_PASSTHRU": 0x02,
    "HVSOCKET_CONNECTED_SUSPEND": 0x04,
    "HVSOCKET_HIGH_VTL": 0x08,
}
ALIASES = {
    "wildcard": HV_GUID_WILDCARD,
    "children": HV_GUID_CHILDREN,
    "loopback": HV_GUID_LOOPBACK,
    "parent": HV_GUID_PARENT,
    "silohost": HV_GUID_SILOHOST,
}
# The table of hvsocket.h, "possible mappings from port to GUID", its largest port, and ports that AF_VSOCK alone has.
PORTS = {
    0: "00000000-facb-11e6-bd58-64006a7986d3",
    1: "00000001-facb-11e6-bd58-64006a7986d3",
    5000: "00001388-facb-11e6-bd58-64006a7986d3",
    HYPERV_PORT: "7fffffff-facb-11e6-bd58-64006a7986d3",
    HYPERV_PORT + 1: "80000000-facb-11e6-bd58-64006a7986d3",
    2714018708: "a1c4a394-facb-11e6-bd58-64006a7986d3",
    MAX_PORT: "fffffffe-facb-11e6-bd58-64006a7986d3",
}

VM = UUID("01234567-89ab-cdef-0123-456789abcdef")
SERVICE = UUID("fedcba98-7654-3210-fedc-ba9876543210")
ADDRESS = HyperVAddress(VM, SERVICE)
# Written out by hand: the first three fields of a GUID are little-endian, the other eight bytes are as they read.
VECTOR = bytes.fromhex(
    "2200"  # family 34
    "0000"  # Reserved
    "67452301 ab89 efcd 0123456789abcdef"  # VM
    "98badcfe 5476 1032 fedcba9876543210"  # SERVICE
)

# Well-known ids and ids of our own making are what the code treats specially, so random GUIDs alone would miss it.
GUIDS = st.one_of(
    st.uuids(),
    st.binary(min_size=16, max_size=16).map(lambda b: UUID(bytes=b)),
    st.sampled_from([*(UUID(text) for text in SDK_GUIDS.values())]),
    st.integers(0, MAX_U32).map(lambda n: UUID(int=HV_GUID_VSOCK_TEMPLATE.int | n << 96)),
    st.integers(0, MAX_U32).map(vm_id_from_cid),
)
ADDRESSES = st.builds(HyperVAddress, GUIDS, GUIDS)
PORT_NUMBERS = st.one_of(st.integers(0, MAX_PORT), st.sampled_from(sorted(PORTS)))

# A busy machine, or an emulated one, may take long over one example, and over making it.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

BAD_GUIDS = [
    "",
    "{}",
    "01234567-89ab-cdef-0123-456789abcde",
    "01234567-89ab-cdef-0123-456789abcdef0",
    "01234567-89ab-cdef-0123-456789abcdeg",
    "0123456789abcdef0123456789abcdef",
    "012345678-9ab-cdef-0123-456789abcdef",
    "urn:uuid:01234567-89ab-cdef-0123-456789abcdef",
    "{01234567-89ab-cdef-0123-456789abcdef",
    "01234567-89ab-cdef-0123-456789abcdef}",
    "{{01234567-89ab-cdef-0123-456789abcdef}}",
    " 01234567-89ab-cdef-0123-456789abcdef",
    "01234567-89ab-cdef-0123-456789abcdef\n",
    "\uff101234567-89ab-cdef-0123-456789abcdef",
]
NOT_PORTS = [True, False, 5000.0, "5000", None, b"\0", 1j]
OUT_OF_RANGE = [-1, MAX_U32 + 1, 2**64, -(2**64)]


def shown(number: int) -> str:
    return str(number) if abs(number) < 2**64 else "one of 65 bits"


class Port(enum.IntEnum):
    AGENT = 5000


# The constants


@pytest.mark.parametrize(("name", "text"), SDK_GUIDS.items())
def test_guid_is_the_sdks(name: str, text: str) -> None:
    guid = getattr(addresses, name)
    assert type(guid) is UUID
    assert str(guid) == text.lower()


@pytest.mark.parametrize(("name", "value"), SDK_INTS.items())
def test_int_is_the_sdks(name: str, value: int) -> None:
    assert getattr(addresses, name) == value
    assert type(getattr(addresses, name)) is int


def test_all_names_exist_and_hold_every_constant() -> None:
    assert all(hasattr(addresses, name) for name in addresses.__all__)
    assert {name for name in addresses.__all__ if name.isupper()} == SDK_GUIDS.keys() | SDK_INTS.keys()


def test_constants_agree_with_the_standard_library() -> None:
    """CPython 3.12 and later have them on Windows, the GUIDs as strings; on FreeBSD AF_HYPERV is another family."""
    if sys.platform != "win32" or not hasattr(socket, "AF_HYPERV"):
        pytest.skip("this Python's socket module has no AF_HYPERV: run on Windows with CPython 3.12 or later")
    for name in [*SDK_INTS, *SDK_GUIDS]:
        if hasattr(socket, name):
            theirs = getattr(socket, name)
            assert getattr(addresses, name) == (UUID(theirs) if isinstance(theirs, str) else theirs), name


# pack and unpack


def test_pack_gives_the_known_vector() -> None:
    assert len(VECTOR) == 36
    assert ADDRESS.pack() == VECTOR


def test_unpack_takes_the_known_vector() -> None:
    address = HyperVAddress.unpack(VECTOR)
    assert address == ADDRESS
    assert type(address) is HyperVAddress
    assert type(address.vm_id) is UUID
    assert type(address.service_id) is UUID


@unhurried
@given(ADDRESSES)
def test_unpack_inverts_pack(address: HyperVAddress) -> None:
    packed = address.pack()
    assert len(packed) == 36
    assert HyperVAddress.unpack(packed) == address


@unhurried
@given(st.binary(min_size=32, max_size=32))
def test_pack_inverts_unpack(guids: bytes) -> None:
    raw = b"\x22\0\0\0" + guids
    assert HyperVAddress.unpack(raw).pack() == raw


@unhurried
@given(st.binary(max_size=64) | st.binary(min_size=34, max_size=34).map(lambda b: b"\x22\0" + b))
def test_unpack_of_arbitrary_bytes(raw: bytes) -> None:
    valid = len(raw) == 36 and raw[:2] == b"\x22\0"
    try:
        address = HyperVAddress.unpack(raw)
    except ValueError:
        assert not valid
    else:
        assert valid
        assert address.pack()[4:] == raw[4:]


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview, lambda b: memoryview(b + b)[:36]])
def test_unpack_takes_any_buffer(convert: Any) -> None:
    assert HyperVAddress.unpack(convert(VECTOR)) == ADDRESS


def test_unpack_takes_a_buffer_of_other_items_and_strides() -> None:
    assert HyperVAddress.unpack(memoryview(VECTOR).cast("I")) == ADDRESS
    spread = bytearray(72)
    spread[::2] = VECTOR
    assert HyperVAddress.unpack(memoryview(spread)[::2]) == ADDRESS


def test_unpack_ignores_reserved_and_pack_clears_it() -> None:
    address = HyperVAddress.unpack(b"\x22\0\xff\xff" + VECTOR[4:])
    assert address == ADDRESS
    assert address.pack() == VECTOR


@pytest.mark.parametrize("size", [0, 1, 2, 16, 28, 35, 37, 72])
def test_unpack_refuses_another_length(size: int) -> None:
    with pytest.raises(ValueError, match=rf"^a SOCKADDR_HV has 36 bytes, not {size}$"):
        HyperVAddress.unpack((VECTOR * 2)[:size])


@pytest.mark.parametrize("family", [0, 1, 2, 23, 40, 0x2200, 0xFFFF])
def test_unpack_refuses_another_family(family: int) -> None:
    with pytest.raises(ValueError, match=rf"^the address family is {family}, not 34 \(AF_HYPERV\)$"):
        HyperVAddress.unpack(struct.pack("<H", family) + VECTOR[2:])


@pytest.mark.parametrize("value", [None, 36, "x" * 36, [0] * 36, ADDRESS])
def test_unpack_refuses_what_is_no_buffer(value: Any) -> None:
    with pytest.raises(TypeError):
        HyperVAddress.unpack(value)


# str and parse


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (HyperVAddress(HV_GUID_PARENT, service_id_from_port(5000)), "hvsock://parent/5000"),
        (HyperVAddress(HV_GUID_ZERO, service_id_from_port(0)), "hvsock://wildcard/0"),
        (HyperVAddress(HV_GUID_CHILDREN, service_id_from_port(MAX_PORT)), "hvsock://children/4294967294"),
        (HyperVAddress(HV_GUID_LOOPBACK, HV_GUID_ZERO), "hvsock://loopback/00000000-0000-0000-0000-000000000000"),
        (HyperVAddress(HV_GUID_SILOHOST, HV_GUID_PARENT), "hvsock://silohost/a42e7cda-d03f-480c-9cc2-a4de20abb878"),
        (HyperVAddress(HV_GUID_BROADCAST, service_id_from_port(1)), "hvsock://ffffffff-ffff-ffff-ffff-ffffffffffff/1"),
        (ADDRESS, "hvsock://01234567-89ab-cdef-0123-456789abcdef/fedcba98-7654-3210-fedc-ba9876543210"),
        (
            HyperVAddress(VM, UUID("ffffffff-facb-11e6-bd58-64006a7986d3")),
            "hvsock://01234567-89ab-cdef-0123-456789abcdef/ffffffff-facb-11e6-bd58-64006a7986d3",
        ),
    ],
)
def test_str_and_parse(address: HyperVAddress, text: str) -> None:
    assert str(address) == f"{address}" == text
    assert HyperVAddress.parse(text) == address
    assert type(HyperVAddress.parse(text)) is HyperVAddress


def test_format_is_of_the_text() -> None:
    assert f"{HyperVAddress(HV_GUID_PARENT, service_id_from_port(5000)):>25}" == "     hvsock://parent/5000"


@unhurried
@given(ADDRESSES)
def test_parse_inverts_str(address: HyperVAddress) -> None:
    assert HyperVAddress.parse(str(address)) == address


@unhurried
@given(ADDRESSES)
def test_parse_takes_any_case_and_braces(address: HyperVAddress) -> None:
    text = str(address)
    assert HyperVAddress.parse(text.upper()) == address
    assert HyperVAddress.parse(f"HvSock://{{{address.vm_id}}}/{{{address.service_id}}}") == address


@unhurried
@given(st.text() | st.text(alphabet="hvsock:/parent0123456789abcdef-{}").map("hvsock://".__add__))
@example("hvsock://parent/5000")
def test_parse_of_arbitrary_text(text: str) -> None:
    try:
        address = HyperVAddress.parse(text)
    except ValueError:
        return
    assert HyperVAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("parent/5000", ("parent", 5000)),
        ("{01234567-89AB-CDEF-0123-456789ABCDEF}/5000", (VM, 5000)),
        ("hvsock://%70arent/5000", ("parent", 5000)),
        ("vsock:2:5000", ("parent", 5000)),
        ("vsock://2:5000", ("parent", 5000)),
        ("VSOCK:1:5000", ("loopback", 5000)),
        ("vsock:-1:5000", ("wildcard", 5000)),
        ("vsock:4294967295:5000", ("wildcard", 5000)),
        ("vsock://:5000", ("wildcard", 5000)),
        ("vsock:77:2714018708", (vm_id_from_cid(77), 2714018708)),
    ],
)
def test_parse_takes_the_other_forms(text: str, address: Any) -> None:
    assert HyperVAddress.parse(text) == as_address(address)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tcp:localhost:80", ": only a relay takes tcp:"),
        ("unix:/run/a", ": only a relay takes unix:"),
        ("hybrid:/run/a:5", ": only a relay takes hybrid:"),
        ("parent:5000", "; did you mean 'parent/5000'?"),
        ("hvsock:parent/5000", "; did you mean 'hvsock://parent/5000'?"),
        ("2:5000", "; did you mean 'vsock:2:5000'?"),
    ],
)
def test_parse_says_what_was_meant(text: str, message: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^{re.escape(repr(text))} is not of the form VM/SERVICE.*{re.escape(message)}$"
    ):
        HyperVAddress.parse(text)


@pytest.mark.parametrize("text", ["parent/5000?transport=local", "vsock:2:5000?transport=vsock"])
def test_parse_refuses_a_transport(text: str) -> None:
    with pytest.raises(ValueError, match=r" names a transport, which is not part of a HyperVAddress$"):
        HyperVAddress.parse(text)


@pytest.mark.parametrize("text", ["vsock:4294967296:5", "vsock:2:4294967295"])
def test_parse_refuses_a_number_out_of_range(text: str) -> None:
    with pytest.raises(ValueError, match=r" must be in the range 0\.\."):
        HyperVAddress.parse(text)


@pytest.mark.parametrize(
    "vm", [*BAD_GUIDS, "5000", "host", "broadcast", "parent:1", "loopbac\u212a", "parent ", "user@parent"]
)
def test_parse_refuses_a_bad_vm(vm: str) -> None:
    with pytest.raises(ValueError, match=r" is neither a GUID nor one of wildcard, ") as caught:
        HyperVAddress.parse(f"hvsock://{vm}/5000")
    assert repr(vm) in str(caught.value)


@pytest.mark.parametrize(
    "service",
    [*BAD_GUIDS, "parent", "05000", "00", "+1", "-1", "1_0", "0x10", "5000 ", "5000\n", "1.0", "\u0665", "99999999999"],
)
def test_parse_refuses_a_bad_service(service: str) -> None:
    message = (
        f"^a port is 0 to {MAX_PORT}, without leading"
        if service.isdecimal() and service.isascii()
        else r" is neither a GUID nor a port number$"
    )
    with pytest.raises(ValueError, match=message) as caught:
        HyperVAddress.parse(f"hvsock://parent/{service}")
    assert repr(service) in str(caught.value)


@pytest.mark.parametrize("port", [MAX_U32, MAX_U32 + 1, 9999999999])
def test_parse_refuses_a_port_out_of_range(port: int) -> None:
    with pytest.raises(ValueError, match=rf"^a port must be in the range 0\.\.4294967294, not {port}$"):
        HyperVAddress.parse(f"hvsock://parent/{port}")


@pytest.mark.parametrize("value", [None, 5000, b"hvsock://parent/5000", ADDRESS])
def test_parse_refuses_what_is_no_string(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^an address must be a str, not "):
        HyperVAddress.parse(value)


def test_errors_escape_and_shorten_the_value() -> None:
    with pytest.raises(ValueError) as caught:
        HyperVAddress.parse("\x1b[2J" + "x" * 10_000)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 200


# The tuple


def test_address_is_a_pair() -> None:
    vm_id, service_id = ADDRESS
    assert (vm_id, service_id) == ADDRESS == (VM, SERVICE)
    assert hash(ADDRESS) == hash((VM, SERVICE))
    assert ADDRESS._fields == ("vm_id", "service_id")


@pytest.mark.parametrize("port", PORTS)
def test_port_of_an_address(port: int) -> None:
    assert HyperVAddress(VM, UUID(PORTS[port])).port == port


@pytest.mark.parametrize("service_id", [SERVICE, HV_GUID_ZERO, UUID("ffffffff-facb-11e6-bd58-64006a7986d3")])
def test_address_without_a_port(service_id: UUID) -> None:
    assert HyperVAddress(VM, service_id).port is None


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (
            HyperVAddress(HV_GUID_PARENT, service_id_from_port(5000)),
            "HyperVAddress(vm_id=HV_GUID_PARENT, service_id=service_id_from_port(5000))",
        ),
        (
            HyperVAddress(HV_GUID_BROADCAST, SERVICE),
            "HyperVAddress(vm_id=HV_GUID_BROADCAST, service_id=UUID('fedcba98-7654-3210-fedc-ba9876543210'))",
        ),
    ],
)
def test_repr(address: HyperVAddress, text: str) -> None:
    assert repr(address) == text


@unhurried
@given(ADDRESSES)
def test_repr_is_an_expression_for_the_address(address: HyperVAddress) -> None:
    assert eval(repr(address), {**vars(addresses)}) == address


@pytest.mark.parametrize("vm_id", SDK_GUIDS)
def test_repr_names_well_known_vm_ids(vm_id: str) -> None:
    text = repr(HyperVAddress(getattr(addresses, vm_id), SERVICE))
    expected = {"HV_GUID_ZERO": "HV_GUID_WILDCARD", "HV_GUID_VSOCK_TEMPLATE": repr(HV_GUID_VSOCK_TEMPLATE)}
    assert f"vm_id={expected.get(vm_id, vm_id)}," in text


@pytest.mark.parametrize("value", [None, "parent", 5000, []])
def test_repr_of_unchecked_fields_never_fails(value: Any) -> None:
    text = repr(HyperVAddress(value, value))
    assert text == f"HyperVAddress(vm_id={value!r}, service_id={value!r})"


# as_address


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("convert", [str.lower, str.upper, str.title])
def test_as_address_takes_aliases(alias: str, convert: Any) -> None:
    assert as_address((convert(alias), SERVICE)) == (ALIASES[alias], SERVICE)


@unhurried
@given(GUIDS, GUIDS)
def test_as_address_takes_guids_in_every_form(vm: UUID, service: UUID) -> None:
    expected = HyperVAddress(vm, service)
    for form in ("{}", "{{{}}}"):
        texts = form.format(vm), form.format(service)
        assert as_address(texts) == as_address((texts[0].upper(), texts[1].upper())) == expected
    for pair in ((vm, service), (str(vm), service), (vm, str(service))):
        address = as_address(pair)
        assert address == expected
        assert type(address) is HyperVAddress


@unhurried
@given(PORT_NUMBERS)
def test_as_address_takes_ports(port: int) -> None:
    address = as_address((VM, port))
    assert address == HyperVAddress(VM, service_id_from_port(port))
    assert address.port == port


def test_as_address_takes_an_int_enum() -> None:
    address = as_address(("parent", Port.AGENT))
    assert address.port == 5000
    assert str(address) == "hvsock://parent/5000"


@unhurried
@given(ADDRESSES)
def test_as_address_of_an_address_is_that_address(address: HyperVAddress) -> None:
    assert as_address(address) == address


def test_as_address_checks_a_hand_made_address_too() -> None:
    assert as_address(HyperVAddress("parent", 5000)) == as_address(("parent", 5000))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        as_address(HyperVAddress(None, 5000))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 5000, VM, b"ab", ["parent", 5000], {"parent": 5000}, iter(("parent", 5000))])
def test_as_address_refuses_what_is_no_tuple(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^an address must be a \(vm, service\) tuple, not "):
        as_address(value)


@pytest.mark.parametrize("value", ["hvsock://parent/5000", "ab", ""])
def test_as_address_of_a_string_names_parse(value: Any) -> None:
    with pytest.raises(TypeError, match=r"HyperVAddress\.parse\(\) takes a URI$") as caught:
        as_address(value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [(), ("parent",), ("parent", 5000, 0), ("parent", 5000, 0, 0)])
def test_as_address_refuses_another_arity(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^an address must be a \(vm, service\) pair, not ") as caught:
        as_address(value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("vm", [None, 2, True, b"parent", 1.5, VM.bytes, ("parent",)])
def test_as_address_refuses_a_vm_of_another_type(vm: Any) -> None:
    with pytest.raises(TypeError, match=r"^a VM must be a UUID or a str, not ") as caught:
        as_address((vm, 5000))
    assert repr(vm) in str(caught.value)


@pytest.mark.parametrize("vm", [*BAD_GUIDS, "host", "broadcast", "zero", "parent ", "loopbac\u212a", "hvsock://parent"])
def test_as_address_refuses_a_malformed_vm(vm: str) -> None:
    with pytest.raises(ValueError, match=r", parent, silohost; 'hvsock vm id NAME' prints the GUID of a VM$") as caught:
        as_address((vm, 5000))
    assert repr(vm) in str(caught.value)


@pytest.mark.parametrize("service", [None, 5000.0, b"5000", SERVICE.bytes, (5000,)])
def test_as_address_refuses_a_service_of_another_type(service: Any) -> None:
    with pytest.raises(TypeError, match=r"^a service must be a UUID, a str or a port number, not ") as caught:
        as_address(("parent", service))
    assert repr(service) in str(caught.value)


@pytest.mark.parametrize("service", [True, False])
def test_as_address_refuses_a_bool_as_a_port(service: bool) -> None:
    with pytest.raises(TypeError, match=rf"^a port must be an int, not {service}$"):
        as_address(("parent", service))


@pytest.mark.parametrize("service", [*BAD_GUIDS, "parent", "vsock:5000"])
def test_as_address_refuses_a_malformed_service(service: str) -> None:
    with pytest.raises(ValueError, match=r" is neither a GUID nor a port number$") as caught:
        as_address(("parent", service))
    assert repr(service) in str(caught.value)


def test_as_address_says_that_a_port_is_an_int() -> None:
    with pytest.raises(ValueError, match=r"^'5000' is neither a GUID nor a port number: a port must be an int$"):
        as_address(("parent", "5000"))


@pytest.mark.parametrize("service", [*OUT_OF_RANGE, MAX_PORT + 1])
def test_as_address_refuses_a_port_out_of_range(service: int) -> None:
    with pytest.raises(ValueError, match=rf"^a port must be in the range 0\.\.4294967294, not {shown(service)}$"):
        as_address(("parent", service))


@unhurried
@given(st.tuples(st.text() | st.integers() | st.uuids(), st.text() | st.integers() | st.uuids() | st.booleans()))
def test_as_address_of_arbitrary_pairs(pair: Any) -> None:
    try:
        address = as_address(pair)
    except (TypeError, ValueError):
        return
    assert isinstance(address.vm_id, UUID)
    assert isinstance(address.service_id, UUID)


# Ports


@pytest.mark.parametrize(("port", "text"), PORTS.items())
def test_service_id_of_a_port_is_the_sdks(port: int, text: str) -> None:
    assert service_id_from_port(port) == UUID(text)
    assert port_from_service_id(UUID(text)) == port


@unhurried
@given(PORT_NUMBERS)
def test_port_round_trip(port: int) -> None:
    assert port_from_service_id(service_id_from_port(port)) == port
    assert vsock_port_from_service_id(service_id_from_port(port)) == port


def test_the_port_of_an_unbound_socket_is_none() -> None:
    """VMADDR_PORT_ANY, which the kernel takes as well, in the family's own form."""
    service_id = UUID("ffffffff-facb-11e6-bd58-64006a7986d3")
    assert vsock_port_from_service_id(service_id) == MAX_U32
    assert port_from_service_id(service_id) is None
    assert addresses.vsock_address(1, MAX_U32) == HyperVAddress(HV_GUID_LOOPBACK, service_id)


@pytest.mark.parametrize("port", [HYPERV_PORT + 1, MAX_PORT])
def test_a_port_that_hyperv_lacks_is_warned_of(port: int) -> None:
    with pytest.warns(RuntimeWarning, match=rf"^port {port} is above 2147483647, Hyper-V's last one: "):
        addresses.warn_of_high_port(as_address(("parent", port)))


@pytest.mark.parametrize("service", [HYPERV_PORT, SERVICE, UUID("ffffffff-facb-11e6-bd58-64006a7986d3")])
def test_other_services_are_not_warned_of(service: Any) -> None:
    addresses.warn_of_high_port(as_address(("parent", service)))


@unhurried
@given(GUIDS)
def test_port_of_arbitrary_service_ids(service_id: UUID) -> None:
    port = port_from_service_id(service_id)
    follows = str(service_id)[8:] == "-facb-11e6-bd58-64006a7986d3"
    assert (port is not None) == (follows and service_id.int >> 96 <= MAX_PORT)
    assert port is None or service_id_from_port(port) == service_id


@pytest.mark.parametrize("bit", range(96))
def test_a_service_id_one_bit_off_the_template_has_no_port(bit: int) -> None:
    service_id = UUID(int=service_id_from_port(5000).int ^ 1 << bit)
    assert port_from_service_id(service_id) is None
    assert vsock_port_from_service_id(service_id) is None


@pytest.mark.parametrize("function", [service_id_from_port, vm_id_from_cid])
@pytest.mark.parametrize("value", NOT_PORTS)
def test_numbers_of_another_type_are_refused(function: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=rf" must be an int, not {re.escape(repr(value))}$"):
        function(value)


@pytest.mark.parametrize(
    ("function", "values", "limit"),
    [
        (service_id_from_port, [*OUT_OF_RANGE, MAX_U32], "4294967294"),
        (vm_id_from_cid, OUT_OF_RANGE, "4294967295"),
    ],
)
def test_numbers_out_of_range_are_refused(function: Any, values: list[int], limit: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf" must be in the range 0\.\.{limit}, not {shown(value)}$"):
            function(value)


def test_a_number_of_a_million_digits_is_refused_as_out_of_range() -> None:
    """CPython refuses to print such an int in decimal; the message must not trip over that."""
    with pytest.raises(ValueError, match=r"^a port must be in the range"):
        as_address(("parent", 1 << 4_000_000))


@pytest.mark.parametrize("function", [port_from_service_id, vsock_port_from_service_id, cid_from_vm_id])
@pytest.mark.parametrize("value", [None, 0, str(SERVICE), SERVICE.bytes])
def test_ids_of_another_type_are_refused(function: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=rf" must be a UUID, not {re.escape(repr(value))}$"):
        function(value)


# CIDs


@pytest.mark.parametrize(
    ("cid", "vm_id"),
    [
        (0, UUID("00000000-6369-8064-8000-6876736f636b")),
        (1, HV_GUID_LOOPBACK),
        (2, HV_GUID_PARENT),
        (3, UUID("00000003-6369-8064-8000-6876736f636b")),
        (MAX_U32 - 1, UUID("fffffffe-6369-8064-8000-6876736f636b")),
        (MAX_U32, HV_GUID_WILDCARD),
    ],
)
def test_vm_id_of_a_cid(cid: int, vm_id: UUID) -> None:
    assert vm_id_from_cid(cid) == vm_id
    assert cid_from_vm_id(vm_id) == cid


@unhurried
@given(st.integers(0, MAX_U32))
def test_cid_round_trip(cid: int) -> None:
    vm_id = vm_id_from_cid(cid)
    assert cid_from_vm_id(vm_id) == cid
    assert port_from_service_id(vm_id) is None


@unhurried
@given(GUIDS)
def test_cid_of_arbitrary_vm_ids(vm_id: UUID) -> None:
    cid = cid_from_vm_id(vm_id)
    assert cid is None or vm_id_from_cid(cid) == vm_id


@pytest.mark.parametrize("vm_id", [HV_GUID_CHILDREN, HV_GUID_SILOHOST, HV_GUID_BROADCAST, HV_GUID_VSOCK_TEMPLATE, VM])
def test_vm_ids_without_a_cid(vm_id: UUID) -> None:
    assert cid_from_vm_id(vm_id) is None


@pytest.mark.parametrize("cid", [1, 2, MAX_U32])
def test_a_cid_with_an_id_of_its_own_has_no_second_one(cid: int) -> None:
    """Otherwise two unequal addresses would mean the same VM."""
    assert cid_from_vm_id(UUID(f"{cid:08x}-6369-8064-8000-6876736f636b")) is None


def test_made_up_vm_ids_are_of_version_8() -> None:
    vm_id = vm_id_from_cid(7)
    assert vm_id.version == 8
    assert vm_id.variant == uuid.RFC_4122
    assert b"cid" in vm_id.bytes.replace(b"\x80", b"")
    assert vm_id.bytes.endswith(b"hvsock")


# Containers


def test_container_vm_id_is_pinned() -> None:
    """The SHA-1 of the namespace's 16 bytes and "41004200..." (UTF-16LE), computed apart from this library."""
    assert container_vm_id("abc") == UUID("0985f900-fb06-5ed7-be5f-c3d2ed10d4cd")
    full = "cbd5f4a4e7b7a5d0b9f3c1e2d4a6b8c0d2e4f6a8b0c2d4e6f8a0b2c4d6e8f0a1"
    assert container_vm_id(full) == UUID("786c4fb3-b61c-540d-971d-e123a7dd77f9")


@unhurried
@given(st.text(min_size=1, alphabet=st.characters(codec="ascii")))
def test_container_vm_id_is_a_version_5_guid_whatever_the_case(hcs_id: str) -> None:
    vm_id = container_vm_id(hcs_id)
    assert vm_id.version == 5
    assert vm_id.variant == uuid.RFC_4122
    assert container_vm_id(hcs_id.upper()) == container_vm_id(hcs_id.lower()) == vm_id


@pytest.mark.skipif(sys.version_info < (3, 12), reason="uuid.uuid5() takes bytes since 3.12: run on that or later")
@unhurried
@given(st.text(min_size=1, alphabet=st.characters(codec="ascii")))
def test_container_vm_id_agrees_with_uuid5(hcs_id: str) -> None:
    namespace = UUID("cab70344-facb-41e4-b5e5-ab6592283e6e")
    assert container_vm_id(hcs_id) == uuid.uuid5(namespace, hcs_id.upper().encode("utf-16-le"))  # type: ignore[arg-type, unused-ignore]


def test_container_vm_id_maps_one_character_to_one() -> None:
    assert container_vm_id("é") == container_vm_id("É")
    assert container_vm_id("straße") == container_vm_id("STRAßE")
    assert container_vm_id("straße") != container_vm_id("STRASSE")


@pytest.mark.parametrize("value", [None, 5, b"abc", VM])
def test_container_vm_id_refuses_what_is_no_string(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^a container id must be a str, not {type(value).__name__}$"):
        container_vm_id(value)


@pytest.mark.parametrize("value", ["", "\ud800"])
def test_container_vm_id_refuses_what_has_no_encoding(value: str) -> None:
    with pytest.raises(ValueError, match=r"^the container id is empty$|surrogates not allowed"):
        container_vm_id(value)


# The module


def test_module_does_no_io() -> None:
    """It may import only what computes, so that every layer above can import it."""
    imported: set[str] = set()
    for module in (addresses, _grammar):
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    standard = {"collections.abc", "functools", "hashlib", "re", "struct", "typing", "urllib.parse", "uuid", "warnings"}
    assert imported <= {"__future__", "hvsock._grammar", "hvsock._shown"} | standard


@pytest.mark.parametrize("cid", [0, 1, 2, 3, 77, 0xFFFFFFFF])
@pytest.mark.parametrize("port", [0, 5000, 0xFFFFFFFF])
def test_vsock_address(cid: int, port: int) -> None:
    """What a kernel reports; its UUIDs, made without __init__, are as any other."""
    address = addresses.vsock_address(cid, port)
    service = UUID(f"{port:08x}-facb-11e6-bd58-64006a7986d3")
    assert address == (addresses.vm_id_from_cid(cid), service)
    assert type(address) is addresses.HyperVAddress
    assert (hash(address.service_id), repr(address.service_id)) == (hash(service), repr(service))
    assert pickle.loads(pickle.dumps(address)) == address
    assert address.service_id.is_safe is service.is_safe
    assert addresses.as_address(address) is address
