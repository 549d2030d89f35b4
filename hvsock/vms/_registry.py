"""The registry of the sources, and the questions that go to several of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID

from hvsock._addresses import parse_guid
from hvsock._shown import shown
from hvsock.vms import _guest, _hcs, _vsock, _wmi, _wsl
from hvsock.vms._records import VM, VMLookupError

__all__ = ["SOURCES", "VMs", "default_sources", "find_vm", "list_vms"]

_ASK: Final[dict[str, Callable[[float], list[VM]]]] = {
    "hcs": _hcs.list_vms,
    "wmi": _wmi.list_vms,
    "wsl": _wsl.list_vms,
    "guest": _guest.list_vms,
    "vsock": _vsock.list_vms,
}
SOURCES: Final = tuple(_ASK)
"""The sources, in the order in which they are asked."""


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
        raise _with_notes("no source can list VMs here", failures)
    return VMs(found.values(), failures)


def find_vm(name: str | UUID, sources: Iterable[str] | None = None, *, timeout: float = 30.0) -> UUID:
    """Return the id of the VM of that name. A GUID is taken as an id and returned without asking a source.

    Case does not matter, unless two names differ in nothing else: then the exact one is meant. Source ``wsl`` knows its
    VM as ``WSL`` and by the names of the distributions in it. Blocks for `timeout` seconds for each source at most,
    and for ``wsl`` three times as long. By default no program is started, and so a VM of Hyper-V Manager may not be
    known by name: ``find_vm("name", ["hcs", "wmi"])`` asks PowerShell for it too.

    Raises:
        TypeError: `name` is of another type.
        ValueError: it is empty, or a source is unknown.
        VMLookupError: there is no such VM, or more than one: `matches` and the notes have their ids, and the notes what
            each source said.
    """
    if isinstance(name, UUID):
        return name
    if not isinstance(name, str):
        raise TypeError(f"the name of a VM must be a str, not {type(name).__name__}")
    if not name:
        raise ValueError("the name of a VM is empty")
    vm_id = parse_guid(name)
    if vm_id is not None:
        return vm_id
    names = _checked_sources(sources)
    vms, failed = VMs(), None
    try:
        vms = list_vms(names, timeout=timeout)
    except VMLookupError as failure:
        failed = failure
    same = [vm for vm in vms if vm.name == name] or [vm for vm in vms if vm.name.casefold() == name.casefold()]
    if len(same) == 1:
        return same[0].id
    if not same and "wsl" in names:
        vm_id = _wsl.vm_id_of_distribution(name, timeout)
        if vm_id is not None:
            return vm_id
    if failed is not None:
        raise failed
    if same:
        error = _with_notes(f"{len(same)} VMs are called {shown(name)}: name one by its id", vms.failures, same)
        for vm in same:
            error.add_note(f"{vm.id} {shown(vm.name)} {vm.state}".rstrip())
        raise error
    asked = f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} asked"
    error = _with_notes(f"no VM is called {shown(name)} ({asked})", vms.failures)
    if sys.platform == "win32" and "wmi" not in names:
        error.add_note(
            "wmi knows the VMs of Hyper-V Manager by name; it is asked only if named, as it starts PowerShell"
        )
    raise error


def _checked_sources(sources: Iterable[str] | None) -> tuple[str, ...]:
    if sources is None:
        return default_sources()
    chosen = (sources,) if isinstance(sources, str) else tuple(sources)
    for name in chosen:
        if name not in _ASK:
            raise ValueError(f"no source is called {name!r}; use one of {', '.join(SOURCES)}")
    return chosen


def _with_notes(message: str, failures: Iterable[VMLookupError], matches: Iterable[VM] = ()) -> VMLookupError:
    error = VMLookupError(message, matches=matches)
    for failure in failures:
        error.add_note(str(failure))
    return error
