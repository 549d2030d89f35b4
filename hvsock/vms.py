r"""Finding the ids of virtual machines.

There is no one place to ask, so there are sources, each with needs of its own:

* ``hcs``: the Host Compute Service of a Windows host. Knows every VM that runs, WSL's and containers' too, but not
  every one's name. Needs an administrator, or a member of the group Hyper-V Administrators.
* ``wmi``: Hyper-V's own management on a Windows host. Knows the VMs of Hyper-V Manager by name, also those that are
  off. Needs the same, and starts PowerShell.
* ``wsl``: ``wslinfo --vm-id``, on the Windows side and in WSL itself. Needs no rights, but WSL 2.5.10, and starts the
  distribution if it does not run.
* ``guest``: what the host tells its guest about itself. Needs the data exchange integration service, on Linux
  ``hv_kvp_daemon``.
* ``vsock``: this machine's own CID on Linux. A Hyper-V guest's kernel does not know it; a KVM guest's does.

Sources that start a program are asked only if they are named. Nothing is connected or bound.
"""

from __future__ import annotations

import json
import os
import reprlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple
from uuid import UUID

from hvsock._addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_ZERO,
    as_address,
    container_vm_id,
    vm_id_from_cid,
)
from hvsock._transports.vsock import VMADDR_CID_ANY, local_cid

__all__ = [
    "SOURCES",
    "VM",
    "VMLookupError",
    "VMs",
    "container_vm_id",
    "default_sources",
    "find_vm",
    "list_vms",
    "wsl_vm_id",
]

SOURCES: Final = ("hcs", "wmi", "wsl", "guest", "vsock")
"""The sources, in the order in which they are asked."""

_NO_VM: Final = frozenset(
    {HV_GUID_ZERO, HV_GUID_BROADCAST, HV_GUID_CHILDREN, HV_GUID_LOOPBACK, HV_GUID_PARENT, HV_GUID_SILOHOST}
)
_MAX_OUTPUT: Final = 16 << 20  # bytes that are read from a program: thousands of VMs
_MAX_WAIT: Final = 0xFFFFFFFE  # milliseconds; the next one is INFINITE

# winerror.h
_HCS_REASONS: Final = {
    0x80070005: "access denied: needs an administrator or a member of the group Hyper-V Administrators",
    0x8037011B: "access denied: needs an administrator or a member of the group Hyper-V Administrators",
    0x80370114: "the service does not answer: enable Hyper-V or the Virtual Machine Platform, and start vmcompute",
    0x80370118: "no answer in time",
}
_LOAD_LIBRARY_SEARCH_SYSTEM32: Final = 0x800  # libloaderapi.h

# Only what has a GUID as its name is a VM: the host is in this list too, with its computer's name. ASCII only, since
# powershell.exe reads its arguments in the console's code page.
_WMI_SCRIPT: Final = (
    "$ErrorActionPreference = 'Stop'; [Console]::OutputEncoding = New-Object System.Text.UTF8Encoding $false; "
    "$found = @(Get-CimInstance -Namespace root/virtualization/v2 -ClassName Msvm_ComputerSystem "
    "| Select-Object -Property Name, ElementName, EnabledState); ConvertTo-Json -Compress -InputObject $found"
)
# Msvm_ComputerSystem.EnabledState, in the words of Hyper-V Manager.
_WMI_STATES: Final = {
    2: "Running",
    3: "Off",
    4: "Stopping",
    6: "Saved",
    9: "Paused",
    10: "Starting",
    32773: "Saving",
    32776: "Pausing",
    32777: "Resuming",
}

_GUEST_KEY: Final = r"SOFTWARE\Microsoft\Virtual Machine\Guest\Parameters"
_KVP_POOL: Final = Path("/var/lib/hyperv/.kvp_pool_3")  # what that key is on Linux: tools/hv/hv_kvp_daemon.c
_KVP_KEY_SIZE: Final = 512  # linux/hyperv.h, HV_KVP_EXCHANGE_MAX_KEY_SIZE
_KVP_VALUE_SIZE: Final = 2048  # and HV_KVP_EXCHANGE_MAX_VALUE_SIZE
_VMBUS: Final = Path("/sys/bus/vmbus")

_shown = reprlib.Repr()
_shown.maxstring = 200


class VMLookupError(OSError):
    """A VM was not found, or a source could not be asked: the message says what it needs.

    `source` is the source's name, or None when the question went to several; the notes then say what each one said.
    """

    def __init__(self, message: str, source: str | None = None) -> None:
        super().__init__(message if source is None else f"{source}: {message}")
        self.source = source


class VM(NamedTuple):
    """A virtual machine, as a source describes it. What a source does not know is empty."""

    id: UUID
    """The VM id of its addresses."""
    name: str
    """What its owner calls it; any text, and not unique."""
    state: str
    """``Running``, ``Off`` and so on; any text, perhaps in the language of the system."""
    owner: str
    """The program that runs it, such as ``VMMS`` (Hyper-V Manager's) or ``WSL``."""
    source: str
    """The source that reported it first."""


class VMs(list[VM]):
    """The VMs that were found, and in `failures` one `VMLookupError` for each source that could not be asked."""

    def __init__(self, vms: Iterable[VM] = (), failures: Iterable[VMLookupError] = ()) -> None:
        super().__init__(vms)
        self.failures = tuple(failures)


def default_sources() -> tuple[str, ...]:
    """Return the sources that are asked when none is named: those of this platform that start no program."""
    return {"win32": ("hcs", "guest"), "linux": ("guest", "vsock")}.get(sys.platform, ())


def list_vms(sources: Iterable[str] | None = None, *, timeout: float = 30.0) -> VMs:
    """Return the VMs that the sources know, each VM once, and the failures of the sources that could not be asked.

    Blocks for `timeout` seconds for each source at most. On a host these are its VMs, in a guest it is the guest.

    Raises:
        ValueError: an unknown source.
        VMLookupError: none of the sources could be asked; the notes say why.
    """
    names = _checked_sources(sources)
    found: dict[UUID, VM] = {}
    failures = []
    for name in names:
        try:
            vms = _ASK[name](timeout)
        except VMLookupError as failure:
            failures.append(failure)
            continue
        for vm in vms:
            known = found.setdefault(vm.id, vm)
            found[vm.id] = known._replace(
                name=known.name or vm.name, state=known.state or vm.state, owner=known.owner or vm.owner
            )
    if len(names) == len(failures) == 1:
        raise failures[0]
    if len(names) == len(failures):
        raise _with_notes("no source can tell of VMs here", failures)
    return VMs(found.values(), failures)


def find_vm(name: str | UUID, sources: Iterable[str] | None = None, *, timeout: float = 30.0) -> UUID:
    """Return the id of the VM of that name. A GUID is taken for an id, and returned unasked.

    Case does not matter, unless two names differ in nothing else: then the exact one is meant. Blocks for `timeout`
    seconds for each source at most. By default no program is started, and so a VM of Hyper-V Manager may not be known
    by name: ``find_vm("name", ["hcs", "wmi"])`` asks PowerShell for it too.

    Raises:
        TypeError: `name` is of another type.
        ValueError: it is empty, or a source is unknown.
        VMLookupError: there is no such VM, or more than one; the notes have their ids, and what each source said.
    """
    if isinstance(name, UUID):
        return name
    if not isinstance(name, str):
        raise TypeError(f"the name of a VM must be a str, not {type(name).__name__}")
    if not name:
        raise ValueError("the name of a VM is empty")
    vm_id = _parse_guid(name)
    if vm_id is not None:
        return vm_id
    names = _checked_sources(sources)
    vms = list_vms(names, timeout=timeout)
    same = [vm for vm in vms if vm.name == name] or [vm for vm in vms if vm.name.casefold() == name.casefold()]
    if len(same) == 1:
        return same[0].id
    if same:
        error = _with_notes(f"{len(same)} VMs are called {_shown.repr(name)}: name one by its id", vms.failures)
        for vm in same:
            error.add_note(f"{vm.id} {_shown.repr(vm.name)} {vm.state}".rstrip())
        raise error
    asked = f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} asked"
    error = _with_notes(f"no VM is called {_shown.repr(name)} ({asked})", vms.failures)
    if sys.platform == "win32" and "wmi" not in names:
        error.add_note(
            "wmi knows the VMs of Hyper-V Manager by name; it is asked only if named, as it starts PowerShell"
        )
    raise error


def wsl_vm_id(distribution: str | None = None, *, timeout: float = 30.0) -> UUID:
    """Return the id of the VM that WSL 2 runs in: on the Windows side this user's, in WSL the own one.

    The id changes each time that VM starts. On the Windows side ``wsl.exe`` is asked, which starts the distribution
    (the default one if none is named) if it does not run; a WSL too old to know is looked up in the Host Compute
    Service. Blocks for `timeout` seconds for each of the two at most.

    Raises:
        ValueError: `distribution` is empty.
        VMLookupError: there is no such VM, or nobody can tell; the message and notes say what is needed.
    """
    if distribution == "":
        raise ValueError("the name of the distribution is empty")
    try:
        return _ask_wslinfo(distribution, timeout)
    except VMLookupError as failure:
        if sys.platform != "win32" or distribution is not None:
            raise
        try:
            vms = [vm for vm in _list_from_hcs(timeout) if vm.owner.casefold() == "wsl"]
        except VMLookupError as other:
            failure.add_note(str(other))
            raise failure from None
        if len(vms) == 1:
            return vms[0].id
        # Each user of the machine who runs WSL has a VM.
        failure.add_note(f"hcs: {len(vms)} VMs of WSL run" + "".join(f", {vm.id}" for vm in vms))
        raise


def _checked_sources(sources: Iterable[str] | None) -> tuple[str, ...]:
    if sources is None:
        return default_sources()
    chosen = (sources,) if isinstance(sources, str) else tuple(sources)
    for name in chosen:
        if name not in _ASK:
            raise ValueError(f"no source is called {name!r}; there are {', '.join(SOURCES)}")
    return chosen


def _with_notes(message: str, failures: Iterable[VMLookupError]) -> VMLookupError:
    error = VMLookupError(message)
    for failure in failures:
        error.add_note(str(failure))
    return error


# What came from a program or a guest


def _parse_guid(text: object) -> UUID | None:
    try:
        # As a service, for which there are no aliases: "parent" may be a VM's name.
        return as_address((HV_GUID_ZERO, text)).service_id if isinstance(text, str) else None
    except ValueError:
        return None


def _parse_vm_id(text: object) -> UUID | None:
    """Read the id of one VM: no other text, and no GUID that means something else, as that of zeros means everyone."""
    vm_id = _parse_guid(text)
    return None if vm_id in _NO_VM else vm_id


def _parse_records(document: str, source: str) -> Iterator[dict[str, object]]:
    """Read a JSON array of objects, or the one object that PowerShell makes of an array of one."""
    try:
        records = json.loads(document)
    except (ValueError, RecursionError):
        raise VMLookupError(f"the answer is no JSON: {_shown.repr(document)}", source) from None
    if isinstance(records, dict):
        records = [records]
    if not isinstance(records, list):
        raise VMLookupError(f"the answer is no list: {_shown.repr(document)}", source)
    return (record for record in records if isinstance(record, dict))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


# Host Compute Service


def _list_from_hcs(timeout: float) -> list[VM]:
    vms = []
    for record in _parse_records(_enumerate_compute_systems(timeout) or "[]", "hcs"):
        if record.get("SystemType", "VirtualMachine") != "VirtualMachine":
            continue  # a container, whose address is container_vm_id()'s
        own_id = _text(record.get("Id"))
        # Id is whatever its owner chose, and a GUID only for some.
        vm_id = _parse_vm_id(record.get("RuntimeId")) or _parse_vm_id(own_id)
        if vm_id is not None:
            name = _text(record.get("Name")) or ("" if _parse_guid(own_id) else own_id)
            vms.append(VM(vm_id, name, _text(record.get("State")), _text(record.get("Owner")), "hcs"))
    return vms


def _enumerate_compute_systems(timeout: float) -> str:
    """Return the JSON that the service answers: an array of Properties, HCS's SchemaReference; empty for none."""
    if sys.platform != "win32":
        raise VMLookupError("needs a Windows host", "hcs")
    import ctypes
    from ctypes import wintypes

    try:
        library = ctypes.WinDLL("computecore.dll", winmode=_LOAD_LIBRARY_SEARCH_SYSTEM32)
        create, enumerate_systems = library.HcsCreateOperation, library.HcsEnumerateComputeSystems
        wait, close = library.HcsWaitForOperationResult, library.HcsCloseOperation
    except (OSError, AttributeError):
        message = "needs computecore.dll: Windows 10 1809 or later with Hyper-V or the Virtual Machine Platform enabled"
        raise VMLookupError(message, "hcs") from None
    handle, pointer, result_code = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32  # the last is HRESULT
    create.argtypes, create.restype = (pointer, pointer), handle
    enumerate_systems.argtypes, enumerate_systems.restype = (wintypes.LPCWSTR, handle), result_code
    wait.argtypes, wait.restype = (handle, wintypes.DWORD, ctypes.POINTER(pointer)), result_code
    close.argtypes, close.restype = (handle,), None
    free = ctypes.WinDLL("kernel32").LocalFree
    free.argtypes, free.restype = (pointer,), pointer

    operation = create(None, None)
    if not operation:
        raise VMLookupError("Windows has no memory for an operation", "hcs")
    try:
        document = pointer()
        code = enumerate_systems(None, operation)
        if code >= 0:
            code = wait(operation, min(int(timeout * 1000), _MAX_WAIT), ctypes.byref(document))
        try:
            text = ctypes.wstring_at(document.value) if code >= 0 and document.value else ""
        finally:
            free(document)
    finally:
        close(operation)  # which cancels it if it has not ended
    if code < 0:
        unsigned = code & 0xFFFFFFFF
        reason = _HCS_REASONS.get(unsigned) or ctypes.FormatError(code).strip() or "failed"
        raise VMLookupError(f"{reason} (0x{unsigned:08X})", "hcs")
    return text


# WMI


def _list_from_wmi(timeout: float) -> list[VM]:
    program = _system_program("WindowsPowerShell", "v1.0", "powershell.exe")
    if program is None:
        raise VMLookupError("needs a Windows host, and its PowerShell", "wmi")
    command = [program, "-NoProfile", "-NonInteractive", "-Command", _WMI_SCRIPT]
    done = _run(command, timeout, "wmi")
    if done.status != 0:
        raise VMLookupError(f"needs Hyper-V, and the right to manage it: {done.said()}", "wmi")
    records = list(_parse_records(done.output, "wmi"))
    if not records:  # not even the host, which everybody sees who sees anything
        message = "tells this user nothing: needs an administrator or a member of the group Hyper-V Administrators"
        raise VMLookupError(message, "wmi")
    vms = []
    for record in records:
        vm_id = _parse_vm_id(record.get("Name"))
        if vm_id is not None:
            state = record.get("EnabledState")
            words = _WMI_STATES.get(state, f"state {state}") if isinstance(state, int) else _text(state)
            vms.append(VM(vm_id, _text(record.get("ElementName")), words, "VMMS", "wmi"))
    return vms


# WSL


def _list_from_wsl(timeout: float) -> list[VM]:
    return [VM(_ask_wslinfo(None, timeout), "WSL", "Running", "WSL", "wsl")]


def _ask_wslinfo(distribution: str | None, timeout: float) -> UUID:
    if sys.platform == "win32":
        program = _system_program("wsl.exe")
        if program is None:
            raise VMLookupError("needs WSL: wsl.exe --install", "wsl")
        chosen = () if distribution is None else ("--distribution", distribution)
        # --exec: by no shell of the distribution.
        command = [program, *chosen, "--exec", "wslinfo", "--vm-id"]
    else:
        program = shutil.which("wslinfo")
        if program is None:
            raise VMLookupError("wslinfo is not on PATH: this is not WSL, or one older than 2.5.10", "wsl")
        command = [program, "--vm-id"]
    done = _run(command, timeout, "wsl")
    answer = done.output.strip()
    if done.status == 0 and answer == "wsl1":
        raise VMLookupError("the distribution runs in WSL 1, which has no VM: name one of WSL 2", "wsl")
    vm_id = _parse_vm_id(answer) if done.status == 0 else None
    if vm_id is None:
        raise VMLookupError(f"needs WSL 2.5.10 or later (wsl.exe --update) and a distribution: {done.said()}", "wsl")
    return vm_id


# The guest itself


def _list_from_guest(timeout: float) -> list[VM]:
    del timeout  # nothing blocks
    parameters = _guest_parameters()
    if parameters is None:
        return []
    vm_id = _parse_vm_id(parameters.get("VirtualMachineId"))
    if vm_id is None:
        raise VMLookupError("the host has not told this guest its id: needs its data exchange service", "guest")
    return [VM(vm_id, parameters.get("VirtualMachineName", ""), "Running", "", "guest")]


def _guest_parameters() -> dict[str, str] | None:
    """Return what the host has told its guest; None if this is no guest of Hyper-V's."""
    try:
        if sys.platform == "win32":
            import winreg

            access = winreg.KEY_QUERY_VALUE | winreg.KEY_WOW64_64KEY
            with winreg.OpenKeyEx(winreg.HKEY_LOCAL_MACHINE, _GUEST_KEY, 0, access) as key:
                count = winreg.QueryInfoKey(key)[1]
                values = [winreg.EnumValue(key, index)[:2] for index in range(count)]
                return {name: value for name, value in values if isinstance(value, str)}
        size = _KVP_KEY_SIZE + _KVP_VALUE_SIZE
        pool = _KVP_POOL.read_bytes()
        records = [pool[start : start + size] for start in range(0, len(pool) - size + 1, size)]
        return {_c_string(record[:_KVP_KEY_SIZE]): _c_string(record[_KVP_KEY_SIZE:]) for record in records}
    except FileNotFoundError:
        if _VMBUS.exists():
            raise VMLookupError("needs hv_kvp_daemon to run in this guest; WSL has wsl_vm_id()", "guest") from None
        return None
    except OSError as exc:
        raise VMLookupError(f"cannot be read: {exc}", "guest") from None


def _c_string(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _list_from_vsock(timeout: float) -> list[VM]:
    del timeout  # nothing blocks
    cid = local_cid()
    if cid is None or cid <= 2 or cid == VMADDR_CID_ANY:  # 0 to 2: the hypervisor, loopback alone, the host
        return []
    return [VM(vm_id_from_cid(cid), "", "Running", "", "vsock")]


_ASK: Final[dict[str, Callable[[float], list[VM]]]] = {
    "hcs": _list_from_hcs,
    "wmi": _list_from_wmi,
    "wsl": _list_from_wsl,
    "guest": _list_from_guest,
    "vsock": _list_from_vsock,
}


# Programs


class _Done(NamedTuple):
    status: int
    output: str
    errors: str

    def said(self) -> str:
        """Return the first line of its complaint, for a message."""
        lines = [line.strip() for line in f"{self.errors}\n{self.output}".splitlines() if line.strip()]
        return _shown.repr(lines[0]) if lines else f"it said nothing (status {self.status})"


def _system_program(*parts: str) -> str | None:
    """Return the path of a program of Windows' own: searched for nowhere else, where it could be somebody's."""
    root = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"))
    # A 32-bit process has another System32, and reaches the real one by that other name.
    for directory in ("Sysnative", "System32"):
        path = root.joinpath(directory, *parts)
        if path.is_file():
            return str(path)
    return None


def _run(command: Sequence[str], timeout: float, source: str) -> _Done:
    """Run a program to its end, without a window or a shell, and return what it printed.

    Its output is read by threads: what it may have started can hold the pipes open for longer than it lives.
    """
    import subprocess
    from threading import Thread

    deadline = time.monotonic() + timeout
    printed: dict[str, bytes] = {}

    def read(name: str, pipe: IO[bytes]) -> None:
        with pipe:
            printed[name] = pipe.read(_MAX_OUTPUT + 1)

    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "WSL_UTF8": "1"},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as exc:
        raise VMLookupError(f"{command[0]} does not start: {exc}", source) from None
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = {"output": process.stdout, "errors": process.stderr}
    readers = [Thread(target=read, args=item, name=f"hvsock {source}", daemon=True) for item in pipes.items()]
    try:
        for reader in readers:
            reader.start()
        # In short sleeps: on Windows Ctrl-C ends neither a wait for a process nor one for a thread.
        while process.poll() is None or any(reader.is_alive() for reader in readers):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        status = process.poll()
    finally:
        process.kill()
        process.wait()
    if any(len(text) > _MAX_OUTPUT for text in printed.values()):
        raise VMLookupError(f"{command[0]} printed more than {_MAX_OUTPUT:,} bytes", source)
    if status is None or len(printed) < len(pipes):
        raise VMLookupError(f"{command[0]} did not end within {timeout:g} s", source)
    return _Done(status, _decoded(printed["output"]), _decoded(printed["errors"]))


def _decoded(text: bytes) -> str:
    # wsl.exe before 0.64 knows no WSL_UTF8, and writes UTF-16.
    return text.decode("utf-16-le" if b"\0" in text else "utf-8-sig", "replace")
