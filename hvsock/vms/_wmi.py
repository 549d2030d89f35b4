"""Source ``wmi``: Hyper-V's own management on a Windows host, asked by PowerShell."""

from __future__ import annotations

from typing import Final

from hvsock.vms import _programs
from hvsock.vms._records import VM, VMLookupError, parse_records, parse_vm_id, text

__all__ = ["list_vms"]

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


def list_vms(timeout: float) -> list[VM]:
    program = _programs.system_program("WindowsPowerShell", "v1.0", "powershell.exe")
    if program is None:
        raise VMLookupError("needs a Windows host, and its PowerShell", "wmi")
    command = [program, "-NoProfile", "-NonInteractive", "-Command", _WMI_SCRIPT]
    done = _programs.run(command, timeout, "wmi")
    if done.status != 0:
        raise VMLookupError(f"needs Hyper-V, and the right to manage it: {done.said()}", "wmi")
    records = list(parse_records(done.output, "wmi"))
    if not records:  # not even the host, which every permitted user sees
        message = "shows this user no VM: needs an administrator or a member of the group Hyper-V Administrators"
        raise VMLookupError(message, "wmi")
    vms = []
    for record in records:
        vm_id = parse_vm_id(record.get("Name"))
        if vm_id is not None:
            state = record.get("EnabledState")
            words = _WMI_STATES.get(state, f"state {state}") if isinstance(state, int) else text(state)
            vms.append(VM(vm_id, text(record.get("ElementName")), words, "VMMS", "wmi"))
    return vms
