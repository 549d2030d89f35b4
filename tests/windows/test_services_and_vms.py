"""Registration as the provider sees it, and VM ids from a stand-in for the Host Compute Service. In the bench only."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from ctypes import wintypes
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "win32":
    pytest.skip("Windows Python only: tests/windows/run has one", allow_module_level=True)

import hvsock
from hvsock import services, vms

pytest.importorskip("hvsim", reason="the simulated provider only: tests/windows/run has it")

LIMIT = 30.0
VM = uuid.UUID("ad289d34-3da4-479f-af67-7dba64bc6eaf")
DOCUMENT = [
    {
        "Id": str(VM).upper(),
        "SystemType": "VirtualMachine",
        "Name": "Größe 日本 😀",
        "Owner": "VMMS",
        "State": "Running",
    },
    {"Id": "WSL-1", "SystemType": "VirtualMachine", "Owner": "WSL", "RuntimeId": str(uuid.uuid4())},
    {"Id": "c0ffee", "SystemType": "Container", "RuntimeId": str(uuid.UUID(int=0))},
]
HCS = ctypes.WinDLL("computecore.dll", winmode=0x800)  # LOAD_LIBRARY_SEARCH_SYSTEM32


# Services


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[uuid.UUID]:
    """A service of a host where only registered ones may be reached, in the key that Hyper-V has."""
    import winreg

    monkeypatch.setenv("HVSIM_REGISTRY", "1")
    winreg.CreateKeyEx(winreg.HKEY_LOCAL_MACHINE, services.REGISTRY_KEY, 0, winreg.KEY_READ).Close()
    service_id = uuid.uuid4()
    yield service_id
    services.unregister(service_id, missing_ok=True, force=True)


def connect_from_a_guest(service: uuid.UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect a guest to a server of the host, and say something."""
    with hvsock.create_server(("wildcard", service)) as server, pytest.MonkeyPatch.context() as guest:
        server.settimeout(LIMIT)
        guest.setenv("HVSIM_PARTITION", str(VM))
        with hvsock.create_connection(("parent", service), timeout=LIMIT) as client:
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"data")
                assert accepted.recv(4) == b"data"


def test_a_registered_service_is_reached(service: uuid.UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectionRefusedError):
        connect_from_a_guest(service, monkeypatch)
    services.register(service, "My agent")
    connect_from_a_guest(service, monkeypatch)
    services.unregister(service)
    with pytest.raises(ConnectionRefusedError):
        connect_from_a_guest(service, monkeypatch)


def test_an_exported_service_is_reached(service: uuid.UUID, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "services.reg"
    file.write_bytes(services.reg_file({service: "My agent"}))
    subprocess.run(["reg", "import", str(file), "/reg:64"], check=True, timeout=LIMIT)
    connect_from_a_guest(service, monkeypatch)
    services.unregister(service)


# VMs


@pytest.fixture
def document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The file with the answer; every test ends with no operation open."""
    path = tmp_path / "hcs.json"
    path.write_text(json.dumps(DOCUMENT, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setenv("HCSIM_DOCUMENT", str(path))
    yield path
    assert HCS.hcsim_operations() == 0


def test_list(document: Path) -> None:
    found = vms.list_vms("hcs")
    assert [vm[1:] for vm in found] == [
        ("Größe 日本 😀", "Running", "VMMS", "hcs"),
        ("WSL-1", "", "WSL", "hcs"),
    ]
    assert found[0].id == VM
    assert vms.find_vm("GRÖSSE 日本 😀") == VM  # by default it is asked


def test_an_answer_without_a_document(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HCSIM_DOCUMENT")
    assert vms.list_vms("hcs") == []


@pytest.mark.parametrize("text", ["", "[", '{"Error": 1', "[]]", "\ufffd"])
def test_malformed_documents(document: Path, text: str) -> None:
    document.write_text(text, encoding="utf-8")
    if not text:
        assert vms.list_vms("hcs") == []
        return
    with pytest.raises(vms.VMLookupError, match="hcs: the answer is not JSON"):
        vms.list_vms("hcs")


@pytest.mark.parametrize("call", ["enumerate", "wait"])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("8037011B", r"access denied.*Hyper-V Administrators.* \(0x8037011B\)"),
        ("80070005", r"access denied.*Hyper-V Administrators.* \(0x80070005\)"),
        ("80370114", r"enable Hyper-V.* \(0x80370114\)"),
        ("8000FFFF", r"\(0x8000FFFF\)"),
    ],
)
def test_failures(document: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: str, reason: str) -> None:
    monkeypatch.setenv("HCSIM_FAULTS", f"{call}={code}")
    with pytest.raises(vms.VMLookupError, match=f"hcs: .*{reason}"):
        vms.list_vms("hcs")
    found = vms.list_vms(["hcs", "guest"])
    assert found == []
    assert [failure.source for failure in found.failures] == ["hcs"]


def test_no_operation(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCSIM_FAULTS", "create=8007000E")
    with pytest.raises(vms.VMLookupError, match=r"hcs: .*memory"):
        vms.list_vms("hcs")


def test_timeout(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCSIM_FAULTS", "wait=pending")
    start = time.monotonic()
    with pytest.raises(vms.VMLookupError, match="hcs: no answer in time"):
        vms.list_vms("hcs", timeout=0.2)
    assert 0.15 < time.monotonic() - start < LIMIT


@pytest.mark.parametrize("other", ["no-such.dll", "kernel32.dll"], ids=["missing", "too old"])
def test_without_the_library(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    load = ctypes.WinDLL
    monkeypatch.setattr(
        ctypes, "WinDLL", lambda name, **kwargs: load(other if name == "computecore.dll" else name, **kwargs)
    )
    with pytest.raises(vms.VMLookupError, match=r"hcs: needs computecore\.dll"):
        vms.list_vms("hcs")


class MemoryRegion(ctypes.Structure):
    """MEMORY_BASIC_INFORMATION."""

    _fields_ = (
        ("base", ctypes.c_size_t),
        ("allocation", ctypes.c_size_t),
        ("allocation_protection", wintypes.DWORD),
        ("partition", wintypes.DWORD),
        ("size", ctypes.c_size_t),
        ("state", wintypes.DWORD),
        ("protection", wintypes.DWORD),
        ("kind", wintypes.DWORD),
    )


def committed_bytes() -> int:
    """Return how much memory this process has, by its address space: Wine's counters do not know."""
    query: Any = ctypes.WinDLL("kernel32").VirtualQuery
    query.argtypes, query.restype = (ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_size_t
    region = MemoryRegion()
    address = total = 0
    while query(address, ctypes.byref(region), ctypes.sizeof(region)):
        if region.state == 0x1000 and region.kind == 0x20000:  # MEM_COMMIT, MEM_PRIVATE
            total += region.size
        address = region.base + region.size
    return total


@pytest.mark.parametrize("fault", ["", "wait=8037011B"], ids=["success", "failure"])
def test_documents_are_freed(document: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Those of failures too."""
    size = 8 << 20
    document.write_text("[" + " " * (size // 2) + "]", encoding="utf-8")  # UTF-16: twice that
    monkeypatch.setenv("HCSIM_FAULTS", fault)

    def ask(times: int) -> None:
        for _ in range(times):
            try:
                assert vms.list_vms("hcs") == []
            except vms.VMLookupError:
                assert fault

    ask(3)
    before = committed_bytes()
    ask(20)
    assert committed_bytes() - before < 5 * size
