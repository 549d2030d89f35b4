"""The Windows SDK's hvsocket.h, read where there is one: every constant and the layout of SOCKADDR_HV beside hvsock's.

HVSOCK_SDK_HEADER names one. On Windows an installed SDK has one, elsewhere mingw-w64 has its own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from uuid import UUID

import pytest
import utils

from hvsock import _addresses as addresses

SDKS = Path("C:/Program Files (x86)/Windows Kits/10/Include")
PLACES = [*sorted(SDKS.glob("*/shared/hvsocket.h")), Path("/usr/share/mingw-w64/include/hvsocket.h")]
# Of the query that tells a container from its VM, which hvsock has not.
UNUSED = {"HVSOCKET_ADDRESS_FLAG_PASSTHRU"}
BYTES_OF = {"ADDRESS_FAMILY": 2, "USHORT": 2, "GUID": 16}


def header() -> str:
    """Return the text of hvsocket.h, without its comments."""
    named = os.environ.get("HVSOCK_SDK_HEADER")
    for path in [Path(named)] if named else PLACES:
        if named or path.is_file():
            return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    pytest.skip("no hvsocket.h: install the Windows SDK or mingw-w64, or set HVSOCK_SDK_HEADER to one")


def numbers(text: str, prefix: str = "") -> dict[str, int]:
    """Return the numbers that a header defines under names of hvsocket.h, which have `prefix` before them."""
    found = re.findall(rf"^#define {prefix}(HVSOCKET_\w+|HV_PROTOCOL_\w+)\s+(\w+)\s*$", text, re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


def guids(text: str) -> dict[str, UUID]:
    """Return the GUIDs that a header defines, and other names of them."""
    found: dict[str, UUID] = {}
    for name, fields in re.findall(r"DEFINE_GUID\s*\((\w+)\s*,([^)]*)\)", text):
        first, second, third, *rest = (int(field, 0) for field in fields.split(","))
        found[name] = UUID(fields=(first, second, third, rest[0], rest[1], int.from_bytes(rest[2:], "big")))
    for name, other in re.findall(r"^#define (HV_GUID_\w+)\s+(HV_GUID_\w+)\s*$", text, re.MULTILINE):
        found[name] = found[other]
    return found


def test_numbers() -> None:
    theirs = {name: value for name, value in numbers(header()).items() if name not in UNUSED}
    names = {name for name in addresses.__all__ if name.startswith(("HVSOCKET_", "HV_PROTOCOL_"))}
    # A header has one of these two: newer ones the second.
    assert names - theirs.keys() in ({"HVSOCKET_HIGH_VTL"}, {"HVSOCKET_CONTAINER_PASSTHRU"})
    assert theirs == {name: getattr(addresses, name, None) for name in theirs}


def test_guids() -> None:
    ours = {name: getattr(addresses, name) for name in addresses.__all__ if name.startswith("HV_GUID_")}
    assert guids(header()) == ours


def test_socket_address() -> None:
    struct = re.search(r"struct _?SOCKADDR_HV\s*\{([^}]*)\}", header())
    assert struct
    fields = {name: BYTES_OF[type_] for type_, name in re.findall(r"(\w+)\s+(\w+)\s*;", struct[1])}
    assert list(fields) == ["Family", "Reserved", "VmId", "ServiceId"]
    address = addresses.HyperVAddress(UUID(int=0x11 << 120 | 0x22), UUID(int=0x33 << 120 | 0x44))
    # No field has padding before it: the largest alignment is a GUID's, 4.
    values = {
        "Family": addresses.AF_HYPERV.to_bytes(2, "little"),
        "Reserved": bytes(2),
        "VmId": address.vm_id.bytes_le,
        "ServiceId": address.service_id.bytes_le,
    }
    assert {name: len(value) for name, value in values.items()} == fields
    assert address.pack() == b"".join(values[name] for name in fields)


def test_numbers_in_c() -> None:
    source = utils.TESTS.parent / "src" / "hv_windows.h"
    if not source.exists():
        pytest.skip("src is not beside the tests: run them from a clone")
    ours = numbers(source.read_text(encoding="utf-8"), prefix="HV_")
    assert ours.keys() == {"HVSOCKET_CONNECT_TIMEOUT", "HVSOCKET_CONNECT_TIMEOUT_MAX", "HVSOCKET_CONNECTED_SUSPEND"}
    theirs = numbers(header())
    assert ours == {name: theirs[name] for name in ours}
