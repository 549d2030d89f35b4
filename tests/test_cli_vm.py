"""`hvsock vm`: tables and ids over stand-ins for the sources, whose own tests are elsewhere."""

from __future__ import annotations

import json
import subprocess
import uuid
from typing import Any

import pytest
import utils
from command_line import ESCAPED, NASTY, command, failure, run

from hvsock import vms
from hvsock.vms import _registry

ONE = uuid.UUID("6f2a3b7e-51a4-4c0d-9a53-0c5d1e7f8a42")
OTHER = uuid.UUID("75d5a99a-c870-4c8b-9e48-5ae02563c8ba")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have two VMs, of which one has a nasty name, and a source that fails; return who was asked."""
    calls: list[Any] = []

    def list_vms(sources: Any = None, *, timeout: float = 30.0) -> vms.VMs:
        calls.append((sources, timeout))
        found = [vms.VM(ONE, "My VM", "Running", "VMMS", "wmi"), vms.VM(OTHER, NASTY, "", "", "hcs")]
        return vms.VMs(found, [vms.VMLookupError(f"needs {NASTY}", "wsl")])

    for module in (vms, _registry):
        monkeypatch.setattr(module, "list_vms", list_vms)
    return calls


def test_list(asked: list[Any]) -> None:
    result = run("vm", "list")
    assert (result.exit_code, result.stderr) == (0, f"hvsock: wsl: needs {ESCAPED}\n")
    names, first, second = result.stdout.splitlines()
    assert names.split() == ["id", "name", "state", "owner", "source"]
    assert first.split() == [str(ONE), "My", "VM", "Running", "VMMS", "wmi"]
    assert second.startswith(f"{OTHER}  {ESCAPED}  ")
    assert run("vm", "list", "--source", "wmi", "--source", "hcs", "-t", "3").exit_code == 0
    assert asked == [(None, 30.0), (("wmi", "hcs"), 3.0)]


def test_list_as_json(asked: list[Any]) -> None:
    result = run("vm", "list", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {
        "vms": [
            {"id": str(ONE), "name": "My VM", "state": "Running", "owner": "VMMS", "source": "wmi"},
            {"id": str(OTHER), "name": NASTY, "state": "", "owner": "", "source": "hcs"},
        ],
        "failures": [{"source": "wsl", "reason": f"wsl: needs {NASTY}"}],
    }


def test_id(asked: list[Any]) -> None:
    assert run("vm", "id", "my vm").stdout == f"{ONE}\n"
    assert run("vm", "id", str(OTHER).upper()).stdout == f"{OTHER}\n"
    line = failure("vm", "id", "--source", "wmi", "pigeon\x1b")
    assert line.startswith("no VM is called 'pigeon")
    assert ESCAPED in line
    assert line.isprintable()


def test_an_ambiguous_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = [vms.VM(vm_id, "twin", "Off", "", "wmi") for vm_id in (ONE, OTHER)]
    monkeypatch.setattr(_registry, "list_vms", lambda *_, **__: vms.VMs(twins))
    line = failure("vm", "id", "twin")
    assert str(ONE) in line
    assert str(OTHER) in line


def test_no_source_answers() -> None:
    """WSL's program is on no machine that runs these tests."""
    line = failure("vm", "list", "--source", "wsl")
    assert line.startswith("wsl: ")


def test_list_as_a_process() -> None:
    """With the sources that this machine really has; what they know is its own."""
    done = subprocess.run(command("vm", "list", "--json"), capture_output=True, text=True, timeout=utils.LIMIT)
    if done.returncode == 0:
        assert set(json.loads(done.stdout)) == {"vms", "failures"}
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1
