"""What tells of VMs, simulated: the Host Compute Service, and the programs that are asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hvsock.vms import _hcs, _programs

#: As `hcsdiag list` shows them in public reports: a VM of Hyper-V Manager's, and one of WSL with an id of another form.
VMMS_ID = uuid.UUID("ad289d34-3da4-479f-af67-7dba64bc6eaf")
WSL_ID = uuid.UUID("afd7952d-e55b-5ead-a889-fc7922c6458d")
HCS = [
    {
        "Id": "AD289D34-3DA4-479F-AF67-7DBA64BC6EAF",
        "SystemType": "VirtualMachine",
        "Name": "Build agent",
        "Owner": "VMMS",
        "RuntimeId": "ad289d34-3da4-479f-af67-7dba64bc6eaf",
        "State": "Running",
    },
    {
        "Id": "WSL-E71D44E4-9F21-4AC9-92E1-77F8AF8A2DB9",
        "SystemType": "VirtualMachine",
        "Owner": "WSL",
        "RuntimeId": "afd7952d-e55b-5ead-a889-fc7922c6458d",
        "State": "Running",
    },
    {
        "Id": "1126e8d7d279c707a666972a15976371d365eaf622c02cea2c442b84f6f550a3",
        "SystemType": "Container",
        "RuntimeOsType": "Linux",
        "RuntimeId": "00000000-0000-0000-0000-000000000000",
        "State": "Running",
    },
]
#: Msvm_ComputerSystem: the host, then its VMs; ElementName is what Hyper-V Manager shows.
WMI = [
    {"Name": "HOST1", "ElementName": "HOST1", "EnabledState": 2},
    {"Name": "AD289D34-3DA4-479F-AF67-7DBA64BC6EAF", "ElementName": "Build agent", "EnabledState": 2},
    {"Name": "0B3A2F9C-4E57-4B0C-9E4B-0C6E1C1B2A11", "ElementName": "Größe 日本", "EnabledState": 3},
]
WMI_ID = uuid.UUID("0b3a2f9c-4e57-4b0c-9e4b-0c6e1c1b2a11")


@pytest.fixture
def hcs(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Have the Host Compute Service answer with a document, or with a failure."""

    def answer(document: object) -> None:
        def enumerate_systems(timeout: float) -> str:
            assert timeout > 0
            if isinstance(document, BaseException):
                raise document
            return document if isinstance(document, str) else json.dumps(document)

        monkeypatch.setattr(_hcs, "_enumerate_compute_systems", enumerate_systems)

    return answer


class Program:
    """Python in place of the program that is started: `code` is what it runs, `calls` the commands it was asked for."""

    def __init__(self) -> None:
        self.code = ""
        self.calls: list[list[str]] = []
        self.started: list[subprocess.Popen[bytes]] = []

    def prints(self, text: str | bytes, *, status: int = 0, errors: str | bytes = "") -> None:
        """Print a text, and one on stderr, and end with this status."""
        out, err = (part.encode() if isinstance(part, str) else part for part in (text, errors))
        self.code = (
            f"import sys; sys.stdout.buffer.write({out!r}); sys.stderr.buffer.write({err!r}); sys.exit({status})"
        )


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """Play the programs that are started. In the end none runs any more."""
    played = Program()
    really_start = subprocess.Popen

    def start(command: list[str], **kwargs: Any) -> subprocess.Popen[bytes]:
        assert isinstance(command, list)
        assert "shell" not in kwargs
        assert kwargs["stdin"] == subprocess.DEVNULL
        played.calls.append(command)
        played.started.append(really_start([sys.executable, "-I", "-c", played.code], **kwargs))
        return played.started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(_programs, "system_program", lambda *parts: "\\".join(parts))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    yield played
    assert all(process.returncode is not None for process in played.started)
