"""Source ``hcs``: the Host Compute Service of a Windows host."""

from __future__ import annotations

import sys
from typing import Final

from hvsock._addresses import parse_guid
from hvsock.vms._records import VM, VMLookupError, parse_records, parse_vm_id, text

__all__ = ["list_vms"]

_MAX_WAIT: Final = 0xFFFFFFFE  # milliseconds; the next one is INFINITE

# winerror.h
_HCS_REASONS: Final = {
    0x80070005: "access denied: needs an administrator or a member of the group Hyper-V Administrators",
    0x8037011B: "access denied: needs an administrator or a member of the group Hyper-V Administrators",
    0x80370114: "the service does not answer: enable Hyper-V or the Virtual Machine Platform, and start vmcompute",
    0x80370118: "no answer in time",
}
_LOAD_LIBRARY_SEARCH_SYSTEM32: Final = 0x800  # libloaderapi.h


def list_vms(timeout: float) -> list[VM]:
    vms = []
    for record in parse_records(_enumerate_compute_systems(timeout) or "[]", "hcs"):
        if record.get("SystemType", "VirtualMachine") != "VirtualMachine":
            continue  # a container, whose address is container_vm_id()'s
        own_id = text(record.get("Id"))
        # The owner chooses Id, which is a GUID only for some.
        vm_id = parse_vm_id(record.get("RuntimeId")) or parse_vm_id(own_id)
        if vm_id is not None:
            name = text(record.get("Name")) or ("" if parse_guid(own_id) else own_id)
            vms.append(VM(vm_id, name, text(record.get("State")), text(record.get("Owner")), "hcs"))
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
            answer = ctypes.wstring_at(document.value) if code >= 0 and document.value else ""
        finally:
            free(document)
    finally:
        close(operation)  # which cancels it if it has not ended
    if code < 0:
        unsigned = code & 0xFFFFFFFF
        reason = _HCS_REASONS.get(unsigned) or ctypes.FormatError(code).strip() or "failed"
        raise VMLookupError(f"{reason} (0x{unsigned:08X})", "hcs")
    return answer
