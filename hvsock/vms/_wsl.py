"""Source ``wsl``: ``wslinfo``, on the Windows side and in WSL itself."""

from __future__ import annotations

import os
import shutil
import sys
from uuid import UUID

from hvsock.vms import _hcs, _programs
from hvsock.vms._records import VM, VMLookupError, parse_vm_id

__all__ = ["list_vms", "vm_id_of_distribution", "wsl_vm_id"]


def list_vms(timeout: float) -> list[VM]:
    return [VM(_ask_wslinfo(None, timeout), "WSL", "Running", "WSL", "wsl")]


def wsl_vm_id(distribution: str | None = None, *, timeout: float = 30.0) -> UUID:
    """Return the id of the VM that WSL 2 runs in: on the Windows side this user's, in WSL the own one.

    The id changes each time that VM starts. On the Windows side ``wsl.exe`` is asked, which starts the distribution
    (the default one if none is named) if it does not run; a WSL too old to know is looked up in the Host Compute
    Service. Blocks for `timeout` seconds for each of the two at most.

    Raises:
        ValueError: `distribution` is empty.
        VMLookupError: there is no such VM, or no source can tell; the message and notes say what is needed.
    """
    if distribution == "":
        raise ValueError("the name of the distribution is empty")
    try:
        return _ask_wslinfo(distribution, timeout)
    except VMLookupError as failure:
        if sys.platform != "win32" or distribution is not None:
            raise
        try:
            vms = [vm for vm in _hcs.list_vms(timeout) if vm.owner.casefold() == "wsl"]
        except VMLookupError as other:
            failure.add_note(str(other))
            raise failure from None
        if len(vms) == 1:
            return vms[0].id
        # Each user that runs WSL has a VM.
        failure.add_note(f"hcs: {len(vms)} VMs of WSL run" + "".join(f", {vm.id}" for vm in vms))
        raise


def vm_id_of_distribution(name: str, timeout: float) -> UUID | None:
    """Return the id of the VM of a distribution, which starts if it does not run; None if there is none of that name.

    In WSL itself only the own one is known.
    """
    for distribution in _distributions(timeout):
        if distribution.casefold() == name.casefold():
            return _ask_wslinfo(distribution, timeout)
    return None


def _distributions(timeout: float) -> list[str]:
    if sys.platform != "win32":
        return [os.environ.get("WSL_DISTRO_NAME", "")]
    program = _programs.system_program("wsl.exe")
    if program is None:
        return []
    done = _programs.run([program, "--list", "--quiet"], timeout, "wsl")  # starts none of them
    return [line.strip() for line in done.output.splitlines()] if done.status == 0 else []


def _ask_wslinfo(distribution: str | None, timeout: float) -> UUID:
    if sys.platform == "win32":
        program = _programs.system_program("wsl.exe")
        if program is None:
            raise VMLookupError("needs WSL: wsl.exe --install", "wsl")
        chosen = () if distribution is None else ("--distribution", distribution)
        # --exec: without a shell of the distribution.
        command = [program, *chosen, "--exec", "wslinfo", "--vm-id"]
    else:
        program = shutil.which("wslinfo")
        if program is None:
            raise VMLookupError("wslinfo is not on PATH: this is not WSL, or one older than 2.5.10", "wsl")
        command = [program, "--vm-id"]
    done = _programs.run(command, timeout, "wsl")
    answer = done.output.strip()
    if done.status == 0 and answer == "wsl1":
        raise VMLookupError("the distribution runs in WSL 1, which has no VM: name one of WSL 2", "wsl")
    vm_id = parse_vm_id(answer) if done.status == 0 else None
    if vm_id is None:
        raise VMLookupError(f"needs WSL 2.5.10 or later (wsl.exe --update) and a distribution: {done.said()}", "wsl")
    return vm_id
