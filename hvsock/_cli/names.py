"""Names of VMs, which the commands take wherever a VM's id may stand."""

from __future__ import annotations

import difflib
import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

from hvsock._addresses import ALIASES, HyperVAddress, address_of, as_vm_id
from hvsock._cli.output import print_note
from hvsock._grammar import Written, read
from hvsock._shown import shown

if TYPE_CHECKING:
    # Imported where a name is looked up: a command that is given an id, as most are, starts faster.
    from hvsock import vms

__all__ = ["address_by_name", "find", "is_name", "with_id"]


def is_name(vm: str) -> bool:
    """Whether a VM is given by a name: not by its id, nor as one of wildcard, parent and so on."""
    try:
        as_vm_id(vm)
    except ValueError:
        return True
    return False


def address_by_name(written: Written, *, verbose: bool = False) -> HyperVAddress:
    """Return the address that was written, its VM looked up if it is given by its name.

    Raises:
        ValueError: a part of it is malformed.
        VMLookupError: as `find`.
    """
    if written.kind == "hvsock" and is_name(written.place):
        written = written._replace(place=str(find(written.place, verbose=verbose)))
    return address_of(written)


def with_id(text: str, *, verbose: bool = False) -> str:
    """Return an address, of any kind, with the id of its VM if that is given by its name.

    Raises:
        ValueError: it is malformed.
        VMLookupError: as `find`.
    """
    written = read(text)
    if written.kind != "hvsock" or not is_name(written.place):
        return text
    options = "".join(f"?{name}={value}" for name, value in written.options.items())
    return f"hvsock://{find(written.place, verbose=verbose)}/{written.service}{options}"


def find(name: str, *, timeout: float = 30.0, verbose: bool = False) -> UUID:
    """Return the id of the VM that the first source knows by this name; if `verbose`, say on stderr what each one says.

    Raises:
        ValueError: the name is empty.
        VMLookupError: no source knows it, or one knows several VMs of that name.
    """
    from hvsock import vms

    order = _order()
    if verbose:
        print_note(f"looking for VM {shown(name)}: {', '.join(order)}")
    failures = []
    for source in order:
        try:
            vm_id = vms.find_vm(name, source, timeout=timeout)
        except vms.VMLookupError as error:
            if error.matches:
                raise
            failures.append(error)
            if verbose:
                print_note(f"{source} does not know {shown(name)}" if error.source is None else str(error))
        else:
            if verbose:
                print_note(f"{source}: {shown(name)} is {vm_id}")
            return vm_id
    raise _not_found(name, order, failures)


def _order() -> tuple[str, ...]:
    """Return the sources of this platform, those that start a program last."""
    from hvsock import vms

    if sys.platform == "win32":
        return (*vms.default_sources(), "wmi", "wsl")
    return (*vms.default_sources(), "wsl") if shutil.which("wslinfo") else vms.default_sources()


def _not_found(name: str, order: Iterable[str], failures: Iterable[vms.VMLookupError]) -> vms.VMLookupError:
    from hvsock import vms

    error = vms.VMLookupError(f"no VM is called {shown(name)}; asked: {', '.join(order) or 'nothing'}")
    if alike := difflib.get_close_matches(name.lower(), ALIASES, 1, 0.8):
        error.add_note(f"did you mean {alike[0]}?")
    for failure in failures:
        if failure.source is not None:  # it could not be asked
            error.add_note(str(failure))
    return error
