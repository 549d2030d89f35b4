"""Source ``guest``: what the host tells its guest about itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from hvsock.vms._records import VM, VMLookupError, parse_vm_id

__all__ = ["list_vms"]

_GUEST_KEY: Final = r"SOFTWARE\Microsoft\Virtual Machine\Guest\Parameters"
_KVP_POOL: Final = Path("/var/lib/hyperv/.kvp_pool_3")  # what that key is on Linux: tools/hv/hv_kvp_daemon.c
_KVP_KEY_SIZE: Final = 512  # linux/hyperv.h, HV_KVP_EXCHANGE_MAX_KEY_SIZE
_KVP_VALUE_SIZE: Final = 2048  # and HV_KVP_EXCHANGE_MAX_VALUE_SIZE
_VMBUS: Final = Path("/sys/bus/vmbus")


def list_vms(timeout: float) -> list[VM]:
    del timeout  # nothing blocks
    parameters = _guest_parameters()
    if parameters is None:
        return []
    vm_id = parse_vm_id(parameters.get("VirtualMachineId"))
    if vm_id is None:
        raise VMLookupError("the host has not told this guest its id: needs its data exchange service", "guest")
    return [VM(vm_id, parameters.get("VirtualMachineName", ""), "Running", "", "guest")]


def _guest_parameters() -> dict[str, str] | None:
    """Return what the host has told its guest; None if this is not a Hyper-V guest."""
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
