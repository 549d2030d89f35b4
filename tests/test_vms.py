"""VM ids: what is made of the answers of each source, and of their failures.

The answers are of the shape that was recorded on Windows; the programs that give them are played by Python. The Host
Compute Service's own library is played by one of its exports, in tests/windows.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import registry
import utils
from hypothesis import given, settings
from hypothesis import strategies as st
from vm_sources import HCS, VMMS_ID, WMI, WMI_ID, WSL_ID, Program

import hvsock
from hvsock import vms
from hvsock.vms import _guest, _hcs, _programs, _vsock, _wmi

WELL_KNOWN = ["ZERO", "BROADCAST", "CHILDREN", "LOOPBACK", "PARENT", "SILOHOST"]
not_a_vm = pytest.mark.parametrize(
    "text",
    [
        "",
        "agent",
        "WSL-E71D44E4-9F21-4AC9-92E1-77F8AF8A2DB9",
        "parent",
        "0",
        *(str(getattr(hvsock, f"HV_GUID_{name}")) for name in WELL_KNOWN),
    ],
)


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


# Host Compute Service


def test_hcs(hcs: Callable[[object], None]) -> None:
    """A container is no VM; an id that is no GUID is a name, the VM's own id then the RuntimeId."""
    hcs(HCS)
    found = vms.list_vms("hcs")
    assert found == [
        (VMMS_ID, "Build agent", "Running", "VMMS", "hcs"),
        (WSL_ID, "WSL-E71D44E4-9F21-4AC9-92E1-77F8AF8A2DB9", "Running", "WSL", "hcs"),
    ]
    assert found.failures == ()
    assert all(type(vm.id) is uuid.UUID for vm in found)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"Id": str(VMMS_ID)}, (VMMS_ID, "", "", "", "hcs")),
        ({"Id": f"{{{VMMS_ID}}}"}, (VMMS_ID, "", "", "", "hcs")),
        ({"RuntimeId": str(VMMS_ID)}, (VMMS_ID, "", "", "", "hcs")),
        ({"Id": "x", "RuntimeId": str(VMMS_ID), "State": "Läuft"}, (VMMS_ID, "x", "Läuft", "", "hcs")),
        ({"Id": str(VMMS_ID), "RuntimeId": "odd", "Name": "a\0\x1b[31m"}, (VMMS_ID, "a\0\x1b[31m", "", "", "hcs")),
        ({"Id": str(VMMS_ID), "State": 5, "Owner": None, "Name": ["x"]}, (VMMS_ID, "", "", "", "hcs")),
        ({"Id": str(VMMS_ID), "Unknown": {"Field": [1, 2]}}, (VMMS_ID, "", "", "", "hcs")),
    ],
)
def test_hcs_is_read_tolerantly(hcs: Callable[[object], None], record: object, expected: object) -> None:
    hcs([None, 7, "text", [], record])
    assert vms.list_vms("hcs") == [expected]


@not_a_vm
def test_what_is_no_vm_is_passed_over(hcs: Callable[[object], None], text: str) -> None:
    """Above all the wildcard: who binds to it lets every VM in."""
    hcs([{"Id": text, "RuntimeId": text}, {"Id": text}, {"RuntimeId": text}, {"Id": 5, "RuntimeId": None}, {}])
    assert vms.list_vms("hcs") == []


@pytest.mark.parametrize("document", ["", "[]"])
def test_no_vms(hcs: Callable[[object], None], document: str) -> None:
    hcs(document)
    assert vms.list_vms("hcs") == []


@pytest.mark.parametrize("document", ["{", "nonsense", "[" * 100_000, '"text"', "7", "null", "\x00"])
def test_malformed_answers(hcs: Callable[[object], None], document: str) -> None:
    hcs(document)
    with pytest.raises(vms.VMLookupError, match="hcs: the answer is no") as caught:
        vms.list_vms("hcs")
    assert caught.value.source == "hcs"
    assert len(str(caught.value)) < 500


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["Id", "RuntimeId", "SystemType", "Name", "State", "Owner", "EnabledState"])
                | st.text(),
                inner,
            )
        ),
    )
)
def test_any_json_gives_vms_or_a_failure(value: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_hcs, "_enumerate_compute_systems", lambda timeout: json.dumps(value))
        try:
            found = vms.list_vms("hcs")
        except vms.VMLookupError:
            assert not isinstance(value, list | dict)
        else:
            assert all(isinstance(field, str) for vm in found for field in vm[1:])


@pytest.mark.skipif(utils.WINDOWS, reason="Windows has the Host Compute Service: tests/windows has its tests")
def test_hcs_is_windows() -> None:
    with pytest.raises(vms.VMLookupError, match="hcs: needs a Windows host"):
        vms.list_vms("hcs")


# WMI


def test_wmi(program: Program) -> None:
    program.prints(json.dumps(WMI, ensure_ascii=False))
    assert vms.list_vms("wmi") == [
        (VMMS_ID, "Build agent", "Running", "VMMS", "wmi"),
        (WMI_ID, "Größe 日本", "Off", "VMMS", "wmi"),
    ]
    ((path, *arguments),) = program.calls
    assert path == r"WindowsPowerShell\v1.0\powershell.exe"
    assert arguments[:3] == ["-NoProfile", "-NonInteractive", "-Command"]
    (script,) = arguments[3:]
    assert script.isascii()
    assert '"' not in script  # it would need quoting, which Windows leaves to each program


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (2, "Running"),
        (3, "Off"),
        (6, "Saved"),
        (9, "Paused"),
        (4711, "state 4711"),
        ("Läuft", "Läuft"),
        (None, ""),
        ([], ""),
    ],
)
def test_wmi_states(program: Program, state: object, words: str) -> None:
    """And the one object that PowerShell makes of a list of one, behind a byte order mark."""
    program.prints("\ufeff" + json.dumps({"Name": str(VMMS_ID), "EnabledState": state}))
    assert vms.list_vms("wmi") == [(VMMS_ID, "", words, "VMMS", "wmi")]


def test_wmi_on_a_host_without_vms(program: Program) -> None:
    program.prints(json.dumps(WMI[:1]))
    assert vms.list_vms("wmi") == []
    program.prints("[]")
    with pytest.raises(vms.VMLookupError, match="Hyper-V Administrators"):
        vms.list_vms("wmi")


def test_wmi_fails(program: Program) -> None:
    program.prints("", status=1, errors="\r\nGet-CimInstance : Invalid namespace \r\nAt line:1\r\n")
    with pytest.raises(vms.VMLookupError, match=r"wmi: needs Hyper-V.*: 'Get-CimInstance : Invalid namespace'"):
        vms.list_vms("wmi")
    program.prints("", status=1)
    with pytest.raises(vms.VMLookupError, match="status 1"):
        vms.list_vms("wmi")
    program.prints("PowerShell greets you")
    with pytest.raises(vms.VMLookupError, match="not JSON"):
        vms.list_vms("wmi")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_script_in_a_real_powershell(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """With a function in place of the cmdlet that asks Hyper-V: JSON in UTF-8, a list however many there are."""
    powershell = None if utils.WINE else shutil.which("powershell") or shutil.which("pwsh")
    if powershell is None:
        pytest.skip("PowerShell is not here: install pwsh")
    fields = "ElementName = [string][char]0x65e5; EnabledState = [uint16]3; More = 1"
    ids = [uuid.uuid4() for _ in range(count)]
    objects = "; ".join(f"New-Object PSObject -Property @{{ Name = '{vm_id}'; {fields} }}" for vm_id in ids)
    played = f"function Get-CimInstance {{ {objects} }}; "
    monkeypatch.setattr(_programs, "system_program", lambda *parts: powershell)
    monkeypatch.setattr(_wmi, "_WMI_SCRIPT", played + _wmi._WMI_SCRIPT)
    if count:
        assert vms.list_vms("wmi", timeout=utils.LIMIT) == [(vm_id, "日", "Off", "VMMS", "wmi") for vm_id in ids]
    else:
        with pytest.raises(vms.VMLookupError, match="shows this user no VM"):
            vms.list_vms("wmi", timeout=utils.LIMIT)


@pytest.mark.skipif(utils.WINDOWS, reason="Windows has PowerShell")
def test_wmi_is_windows() -> None:
    with pytest.raises(vms.VMLookupError, match="wmi: needs a Windows host"):
        vms.list_vms("wmi")


# Programs


def test_a_program_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_programs, "system_program", lambda *parts: str(tmp_path / parts[-1]))
    with pytest.raises(vms.VMLookupError, match=r"wmi: .*does not start"):
        vms.list_vms("wmi")


@pytest.mark.parametrize(
    "code",
    ["import time; time.sleep(1000)", "import os, time; os.close(1); os.close(2); time.sleep(1000)"],
    ids=["silent", "closed"],
)
def test_a_program_that_hangs(program: Program, code: str) -> None:
    program.code = code
    with pytest.raises(vms.VMLookupError, match="did not end within"):
        vms.list_vms("wmi", timeout=10 * utils.TICK)
    assert [process.poll() for process in program.started] != [None]


def test_a_program_whose_child_holds_the_pipes(program: Program) -> None:
    """Waiting for the end of its output would take as long as that child lives."""
    lives = 100 * utils.TICK
    child = f"import time; time.sleep({lives})"
    program.code = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-I', '-c', {child!r}], stdout=sys.stdout)"
    )
    with pytest.raises(vms.VMLookupError, match="did not end within"):
        vms.list_vms("wmi", timeout=50 * utils.TICK)
    time.sleep(lives)  # it must not outlive the test


def test_a_program_that_prints_without_end(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_programs, "_MAX_OUTPUT", 1000)
    program.code = "import sys\nwhile True: sys.stdout.buffer.write(b'x' * 65536)"
    with pytest.raises(vms.VMLookupError, match="printed more than 1,000 bytes"):
        vms.list_vms("wmi", timeout=utils.LIMIT)


@pytest.mark.skipif(utils.WINE, reason="Wine ends the whole console's processes")
def test_ctrl_c_ends_the_wait_and_the_program(program: Program) -> None:
    program.code = "import time; time.sleep(1000)"
    presser = threading.Timer(4 * utils.TICK, signal.raise_signal, [signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            presser.start()
            vms.list_vms("wmi", timeout=utils.LIMIT)
    finally:
        presser.join()
        signal.signal(signal.SIGINT, before)


# WSL


@pytest.mark.parametrize("text", [f"{WSL_ID}\n", str(WSL_ID).upper(), f"{{{WSL_ID}}}\r\n", f"\ufeff{WSL_ID}\r\n"])
def test_wsl(program: Program, text: str) -> None:
    """Warnings on stderr are none of the answer."""
    program.prints(text, errors="wsl: A localhost proxy configuration was detected\n")
    assert vms.wsl_vm_id() == WSL_ID
    assert vms.list_vms("wsl") == [(WSL_ID, "WSL", "Running", "WSL", "wsl")]
    expected = ["wsl.exe", "--exec", "wslinfo", "--vm-id"] if utils.WINDOWS else ["/usr/bin/wslinfo", "--vm-id"]
    assert program.calls == [expected, expected]


@pytest.mark.skipif(not utils.WINDOWS, reason="on the Windows side only: tests/windows/run has one")
def test_wsl_asks_a_distribution(program: Program) -> None:
    program.prints(str(WSL_ID))
    assert vms.wsl_vm_id("Ubuntu & calc") == WSL_ID
    assert program.calls == [["wsl.exe", "--distribution", "Ubuntu & calc", "--exec", "wslinfo", "--vm-id"]]


@pytest.fixture
def distributions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Have two distributions of WSL, on the Windows side; return the commands that are asked."""
    calls: list[list[str]] = []

    def run(command: list[str], timeout: float, source: str) -> _programs.Done:
        calls.append(command[1:])
        return _programs.Done(0, "Ubuntu\r\nDebian GNU\r\n" if "--list" in command else f"{WSL_ID}\n", "")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(_programs, "system_program", lambda *parts: "\\".join(parts))
    monkeypatch.setattr(_programs, "run", run)
    return calls


def test_a_distribution_is_a_name_of_its_vm(distributions: list[list[str]], hcs: Callable[[object], None]) -> None:
    assert vms.find_vm("debian gnu", "wsl") == WSL_ID
    assert distributions == [
        ["--exec", "wslinfo", "--vm-id"],
        ["--list", "--quiet"],
        ["--distribution", "Debian GNU", "--exec", "wslinfo", "--vm-id"],
    ]
    with pytest.raises(vms.VMLookupError, match=r"no VM is called 'Arch' \(wsl was asked\)"):
        vms.find_vm("Arch", "wsl")
    hcs([{"Id": str(VMMS_ID), "Name": "Ubuntu"}])
    assert vms.find_vm("Ubuntu", ["hcs", "wsl"]) == VMMS_ID
    distributions.clear()
    with pytest.raises(vms.VMLookupError, match=r"no VM is called 'Debian GNU' \(hcs was asked\)"):
        vms.find_vm("Debian GNU", "hcs")
    assert distributions == []


def test_the_own_distribution_in_wsl(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("WSL_DISTRO_NAME", "Ubuntu")
    program.prints(str(WSL_ID))
    assert vms.find_vm("ubuntu", "wsl") == WSL_ID
    with pytest.raises(vms.VMLookupError, match="no VM is called 'Debian'"):
        vms.find_vm("Debian", "wsl")


@not_a_vm
def test_wsl_gives_no_id(program: Program, hcs: Callable[[object], None], text: str) -> None:
    """The guest has a say in what wslinfo prints: nothing but the id of a VM is taken."""
    hcs([])
    program.prints(text)
    with pytest.raises(vms.VMLookupError, match=r"wsl: needs WSL 2\.5\.10"):
        vms.wsl_vm_id()


def test_wsl_1(program: Program, hcs: Callable[[object], None]) -> None:
    hcs([])
    program.prints("wsl1\n")
    with pytest.raises(vms.VMLookupError, match="WSL 1"):
        vms.wsl_vm_id()


def test_wsl_too_old(program: Program, hcs: Callable[[object], None]) -> None:
    """Its complaint is quoted, in UTF-16 too, as wsl.exe of old writes; an id next to an error does not count."""
    hcs([])
    program.prints(
        str(WSL_ID), status=1, errors="Invalid command line argument: --vm-id\nPlease use…".encode("utf-16-le")
    )
    with pytest.raises(vms.VMLookupError, match="'Invalid command line argument: --vm-id'") as caught:
        vms.wsl_vm_id()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not utils.WINDOWS, reason="on the Windows side only: tests/windows/run has one")
def test_wsl_falls_back_to_hcs(program: Program, hcs: Callable[[object], None]) -> None:
    program.prints("", status=1)
    hcs(HCS)
    assert vms.wsl_vm_id() == WSL_ID
    with pytest.raises(vms.VMLookupError, match="wsl"):
        vms.wsl_vm_id("Ubuntu")  # nobody but that distribution can tell whether it is in a VM
    hcs(vms.VMLookupError("access denied", "hcs"))
    with pytest.raises(vms.VMLookupError) as caught:
        vms.wsl_vm_id()
    assert caught.value.source == "wsl"
    assert notes(caught.value) == ["hcs: access denied"]
    other = {**HCS[1], "RuntimeId": str(WMI_ID)}
    hcs([*HCS, other])
    with pytest.raises(vms.VMLookupError) as caught:
        vms.wsl_vm_id()
    assert notes(caught.value) == [f"hcs: 2 VMs of WSL run, {WSL_ID}, {WMI_ID}"]


def test_wsl_is_not_here(monkeypatch: pytest.MonkeyPatch, hcs: Callable[[object], None]) -> None:
    hcs([])
    monkeypatch.setattr(_programs, "system_program", lambda *parts: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(vms.VMLookupError, match=r"wsl: .*WSL"):
        vms.wsl_vm_id()


@pytest.mark.skipif(utils.WINDOWS, reason="a script on PATH: POSIX only")
def test_wslinfo_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "wslinfo"
    script.write_text(f'#!/bin/sh\n[ "$*" = --vm-id ] && echo {WSL_ID}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert vms.wsl_vm_id() == WSL_ID


def test_wsl_refuses_an_empty_name(program: Program) -> None:
    with pytest.raises(ValueError, match="empty"):
        vms.wsl_vm_id("")
    assert program.calls == []


# The guest itself

PARAMETERS = {
    "HostName": "HOST1",
    "PhysicalHostNameFullyQualified": "host1.example.com",
    "VirtualMachineId": str(VMMS_ID).upper(),
    "VirtualMachineName": "Build agent",
}


def pool_of(parameters: dict[str, str]) -> bytes:
    """Return the file that hv_kvp_daemon keeps: fields of 512 and 2,048 bytes."""
    return b"".join(
        key.encode().ljust(512, b"\0") + value.encode().ljust(2048, b"\0") for key, value in parameters.items()
    )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[dict[str, str]], object]]:
    """Let the host tell this guest something, in the way of the platform."""
    if utils.WINDOWS:
        with registry.scratch(monkeypatch) as key:
            monkeypatch.setattr(_guest, "_GUEST_KEY", rf"{key.path}\Parameters")
            yield lambda parameters: key.make("Parameters", **parameters, Number=7)
    else:
        pool = tmp_path / ".kvp_pool_3"
        monkeypatch.setattr(_guest, "_KVP_POOL", pool)
        monkeypatch.setattr(_guest, "_VMBUS", tmp_path / "vmbus")
        yield lambda parameters: pool.write_bytes(pool_of(parameters))


def test_guest(told: Callable[[dict[str, str]], object]) -> None:
    assert vms.list_vms("guest") == []  # this is no guest
    told(PARAMETERS)
    assert vms.list_vms("guest") == [(VMMS_ID, "Build agent", "Running", "", "guest")]


@pytest.mark.parametrize("text", [None, "", "agent", str(uuid.UUID(int=0))])
def test_guest_that_was_not_told_its_id(told: Callable[[dict[str, str]], object], text: str | None) -> None:
    told({key: value for key, value in {**PARAMETERS, "VirtualMachineId": text}.items() if value is not None})
    with pytest.raises(vms.VMLookupError, match=r"guest: .*data exchange"):
        vms.list_vms("guest")


@pytest.mark.skipif(utils.WINDOWS, reason="the daemon is Linux'")
def test_guest_without_its_daemon(told: Callable[[dict[str, str]], object], tmp_path: Path) -> None:
    (tmp_path / "vmbus").mkdir()
    with pytest.raises(vms.VMLookupError, match="guest: needs hv_kvp_daemon"):
        vms.list_vms("guest")
    (tmp_path / ".kvp_pool_3").mkdir()
    with pytest.raises(vms.VMLookupError, match="guest: cannot be read"):
        vms.list_vms("guest")


@pytest.mark.skipif(utils.WINDOWS, reason="the file is Linux'")
@settings(deadline=None)
@given(st.binary(max_size=100) | st.binary(min_size=2560, max_size=6000))
def test_any_pool_gives_a_guest_or_a_failure(pool: bytes) -> None:
    class Pool:
        def read_bytes(self) -> bytes:
            return pool

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_guest, "_KVP_POOL", Pool())
        with pytest.raises(vms.VMLookupError, match="data exchange"):
            vms.list_vms("guest")


@pytest.mark.parametrize("cid", [None, 0, 1, 2, 3, 77, 0xFFFFFFFE, 0xFFFFFFFF])
def test_vsock(monkeypatch: pytest.MonkeyPatch, cid: int | None) -> None:
    """Only a guest of KVM's knows what others call it."""
    monkeypatch.setattr(_vsock, "local_cid", lambda: cid)
    known = cid in (3, 77, 0xFFFFFFFE)
    assert vms.list_vms("vsock") == (
        [(hvsock.vm_id_from_cid(cid), "", "Running", "", "vsock")] if known and cid else []
    )


# Several sources


def test_default_sources_start_nothing(program: Program) -> None:
    """Here and now, whatever machine this is, they give VMs or say what they need, and no program is started."""
    assert set(vms.default_sources()) <= set(vms.SOURCES) - {"wmi", "wsl"}
    try:
        found = vms.list_vms(timeout=utils.LIMIT)
    except vms.VMLookupError as error:
        reasons = notes(error)
    else:
        assert all(vm.source in vms.default_sources() for vm in found)
        reasons = [str(failure) for failure in found.failures]
    assert all(re.match(r"(hcs|guest|vsock): ", reason) for reason in reasons)
    assert program.calls == []


@pytest.mark.parametrize(
    ("platform", "expected"), [("win32", ("hcs", "guest")), ("linux", ("guest", "vsock")), ("darwin", ())]
)
def test_default_sources(monkeypatch: pytest.MonkeyPatch, platform: str, expected: tuple[str, ...]) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert vms.default_sources() == expected


def test_each_vm_is_listed_once(hcs: Callable[[object], None], program: Program) -> None:
    """What the first source does not know, the next one adds."""
    hcs([{"Id": str(VMMS_ID), "Owner": "VMMS", "State": "Running"}])
    program.prints(json.dumps([*WMI, {"Name": str(VMMS_ID), "ElementName": "other"}]))
    assert vms.list_vms(["hcs", "wmi"]) == [
        (VMMS_ID, "Build agent", "Running", "VMMS", "hcs"),
        (WMI_ID, "Größe 日本", "Off", "VMMS", "wmi"),
    ]


def test_failures_are_reported(hcs: Callable[[object], None], program: Program) -> None:
    hcs(vms.VMLookupError("access denied", "hcs"))
    program.prints(json.dumps(WMI))
    found = vms.list_vms(["hcs", "wmi"])
    assert [vm.source for vm in found] == ["wmi", "wmi"]
    assert [(failure.source, str(failure)) for failure in found.failures] == [("hcs", "hcs: access denied")]
    program.prints("", status=1, errors="no")
    with pytest.raises(vms.VMLookupError) as caught:
        vms.list_vms(iter(["hcs", "wmi"]))
    assert caught.value.source is None
    assert [note.partition(":")[0] for note in notes(caught.value)] == ["hcs", "wmi"]


def test_no_sources() -> None:
    with pytest.raises(vms.VMLookupError, match="no source"):
        vms.list_vms([])


@pytest.mark.parametrize("sources", ["hsc", ["hcs", ""], [None]])
def test_unknown_sources(sources: Any) -> None:
    with pytest.raises(ValueError, match="use one of hcs, wmi, wsl, guest, vsock"):
        vms.list_vms(sources)
    with pytest.raises(ValueError, match="use one of"):
        vms.find_vm("name", sources)


def test_a_failure_survives_pickling() -> None:
    error = vms.VMLookupError("access denied", "hcs")
    error.add_note("a note")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.source, notes(copy)) == ("hcs: access denied", "hcs", ["a note"])
    assert isinstance(copy, OSError)


# find_vm


def named(*names: str) -> list[dict[str, str]]:
    return [
        {"Id": str(uuid.UUID(int=number)), "Name": name, "State": "Running"} for number, name in enumerate(names, 1)
    ]


@pytest.mark.parametrize(
    ("name", "number"), [("dev", 1), ("DEV", 2), ("Dev", None), ("größe", 3), ("GRÖSSE", 3), ("last", 4), ("LAST", 4)]
)
def test_find_vm(hcs: Callable[[object], None], name: str, number: int | None) -> None:
    """In any case, but the exact name before one in another case."""
    hcs(named("dev", "DEV", "Größe", "last"))
    if number is not None:
        assert vms.find_vm(name, "hcs") == uuid.UUID(int=number)
        return
    with pytest.raises(vms.VMLookupError, match="2 VMs are called 'Dev'") as caught:
        vms.find_vm(name, "hcs")
    assert notes(caught.value) == [f"{uuid.UUID(int=1)} 'dev' Running", f"{uuid.UUID(int=2)} 'DEV' Running"]


def test_find_vm_that_two_have(hcs: Callable[[object], None]) -> None:
    hcs(named("dev", "dev", "\x1b[31m"))
    with pytest.raises(vms.VMLookupError, match="2 VMs") as caught:
        vms.find_vm("dev", "hcs")
    assert [note.split()[0] for note in notes(caught.value)] == [str(uuid.UUID(int=1)), str(uuid.UUID(int=2))]
    assert [vm.id for vm in caught.value.matches] == [uuid.UUID(int=1), uuid.UUID(int=2)]


def test_find_vm_that_nobody_has(hcs: Callable[[object], None], program: Program) -> None:
    hcs(vms.VMLookupError("access denied", "hcs"))
    program.prints(json.dumps(WMI))
    with pytest.raises(vms.VMLookupError, match=r"no VM is called 'dev' \(hcs, wmi were asked\)") as caught:
        vms.find_vm("dev", ["hcs", "wmi"])
    assert notes(caught.value) == ["hcs: access denied"]
    hcs(named("", "other"))
    with pytest.raises(vms.VMLookupError, match=r"\(hcs was asked\)") as caught:
        vms.find_vm("dev", "hcs")
    assert ["wmi" in note for note in notes(caught.value)] == ([True] if utils.WINDOWS else [])


@pytest.mark.parametrize("name", [VMMS_ID, str(VMMS_ID), f"{{{str(VMMS_ID).upper()}}}"], ids=repr)
def test_find_vm_by_id_asks_nobody(hcs: Callable[[object], None], name: Any) -> None:
    hcs(AssertionError("asked"))
    assert vms.find_vm(name) == VMMS_ID


@pytest.mark.parametrize(("name", "kind"), [("", ValueError), (None, TypeError), (b"dev", TypeError), (5, TypeError)])
def test_find_vm_refuses(name: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="name of a VM"):
        vms.find_vm(name)


def test_container_vm_id_is_the_addresses_own() -> None:
    assert vms.container_vm_id is hvsock.container_vm_id
