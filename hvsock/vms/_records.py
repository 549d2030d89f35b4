"""What a source reports of a VM, and what came from a program or a guest, read with care."""

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from uuid import UUID

from hvsock._addresses import NO_VM, parse_guid
from hvsock._shown import shown

__all__ = ["VM", "VMLookupError", "parse_records", "parse_vm_id", "text"]


class VMLookupError(OSError):
    """A VM was not found, or a source could not be asked: the message says what it needs.

    `source` is the source's name, or None when the question went to several; the notes then say what each one said.
    `matches` has the VMs of a name that more than one VM has.
    """

    def __init__(self, message: str, source: str | None = None, matches: "Iterable[VM]" = ()) -> None:
        super().__init__(message if source is None else f"{source}: {message}")
        self.source = source
        self.matches = tuple(matches)


class VM(NamedTuple):
    """A virtual machine, as a source describes it. What a source does not know is empty."""

    id: UUID
    """The VM id of its addresses."""
    name: str
    """Its name; any text, and not unique."""
    state: str
    """``Running``, ``Off`` and so on; any text, perhaps in the language of the system."""
    owner: str
    """The program that runs it, such as ``VMMS`` (Hyper-V Manager's) or ``WSL``."""
    source: str
    """The source that reported it first."""


def parse_vm_id(text: object) -> UUID | None:
    """Read the id of one VM: no other text, and no GUID that means something else, as that of zeros means every VM."""
    vm_id = parse_guid(text) if isinstance(text, str) else None
    return None if vm_id in NO_VM else vm_id


def parse_records(document: str, source: str) -> Iterator[dict[str, object]]:
    """Read a JSON array of objects, or the one object that PowerShell makes of an array of one."""
    try:
        records = json.loads(document)
    except (ValueError, RecursionError):
        raise VMLookupError(f"the answer is not JSON: {shown(document)}", source) from None
    if isinstance(records, dict):
        records = [records]
    if not isinstance(records, list):
        raise VMLookupError(f"the answer is not a list: {shown(document)}", source)
    return (record for record in records if isinstance(record, dict))


def text(value: object) -> str:
    return value if isinstance(value, str) else ""
