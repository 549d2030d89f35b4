"""docs/tutorial.md, walked through from nothing to a running service, in the Windows Pythons.

A host that lets VMs reach registered services only, and a guest, both played over the simulated provider. Each command
is a process. What they print is shown by `pytest -rP`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import utils
from documentation.pages import GUEST, PAGES, TUTORIAL, blocks_of, code_of, shape
from utils import Task

if sys.platform != "win32":
    pytest.skip("Windows Python only: tests/windows/run has one", allow_module_level=True)

from hvsock import services

pytest.importorskip("hvsim", reason="the simulated provider only: tests/windows/run has it")

PORTS = (5000, 5001)


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Be a host with Hyper-V and one VM, without the service."""
    import winreg

    winreg.CreateKeyEx(winreg.HKEY_LOCAL_MACHINE, services.REGISTRY_KEY, 0, winreg.KEY_READ).Close()
    for port in PORTS:
        services.unregister(port, missing_ok=True, force=True)
    vm = {"Id": GUEST, "SystemType": "VirtualMachine", "Name": "My VM", "Owner": "VMMS", "State": "Running"}
    document = tmp_path / "hcs.json"
    document.write_text(json.dumps([vm]), encoding="utf-8")
    monkeypatch.setenv("HVSIM_REGISTRY", "1")
    monkeypatch.setenv("HCSIM_DOCUMENT", str(document))
    yield
    for port in PORTS:
        services.unregister(port, missing_ok=True, force=True)


def running(line: str, side: str, directory: Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Run a line of the page until the end of the block."""
    print(f"{side}> {line.strip()}")
    program, *arguments = shlex.split(line)
    python = [sys.executable, "-P", "-W", "error"]
    words = {"hvsock": [*python, "-m", "hvsock"], "python": python}[program]
    partition = {"HVSIM_PARTITION": GUEST} if side == "guest" else {}
    return utils.running([*words, *arguments], directory, {**os.environ, **partition})


def next_line(process: subprocess.Popen[str]) -> str:
    line = utils.next_line(process)
    print(f"    {line.rstrip()}")
    return line


def run(line: str, side: str, directory: Path, code: int = 0) -> str:
    """Run it to its end."""
    with running(line, side, directory) as process:
        printed: str = Task(process.communicate).result()[0]
        print("".join(f"    {line}\n" for line in printed.splitlines()), end="")
        assert process.wait(utils.LIMIT) == code, printed
    return printed


def test_the_tutorial(tmp_path: Path) -> None:
    for side in ("host", "guest"):
        assert re.search(r"transport hyperv +available", run(code_of(TUTORIAL, "run: any"), side, tmp_path))
    ping = code_of(TUTORIAL, "run: guest, ping")
    in_the_registry = [block.code.splitlines() for block in blocks_of(TUTORIAL) if block.mark == "run: in the registry"]
    (register,), (register_guests,), unregister = in_the_registry

    with running(code_of(TUTORIAL, "run: host, echo"), "host", tmp_path) as echo:
        assert next_line(echo) == "listening on hvsock://wildcard/5000\n"
        assert "3 sent, 0 came back" in run(ping, "guest", tmp_path, code=1)  # the door is closed
        run(register, "host", tmp_path)
        assert re.search(r"5000 +here +Tutorial$", run("hvsock service list", "host", tmp_path), re.MULTILINE)
        assert "3 sent, 3 came back, 0 % lost" in run(ping, "guest", tmp_path)
        assert next_line(echo).startswith(f"connection from hvsock://{GUEST}/")

    for name in ("service.py", "agent.py"):
        (tmp_path / name).write_text(code_of(TUTORIAL, f"file: {name}"), encoding="utf-8")
    # The guest is a Linux machine, which has a load average.
    prelude = "import os; os.getloadavg = lambda: (0.31, 0.2, 0.1)\n"
    agent = tmp_path / "agent.py"
    agent.write_text(prelude + agent.read_text(encoding="utf-8"), encoding="utf-8")
    with running(code_of(TUTORIAL, "run: host, service.py"), "host", tmp_path) as service:
        printed = next_line(service)
        answered = run(code_of(TUTORIAL, "run: guest, agent.py"), "guest", tmp_path)
        assert answered == code_of(TUTORIAL, "output: agent.py")
        shown = code_of(TUTORIAL, "output: service.py")
        printed += "".join(next_line(service) for _ in shown.splitlines()[1:])
        assert shape(printed) == shape(shown)

    (line,) = re.findall(r"^hvsock ping .*\$\(hvsock vm id.*$", PAGES[TUTORIAL], re.MULTILINE)
    with running("hvsock echo wildcard/5001", "guest", tmp_path) as echo:
        next_line(echo)
        run(register_guests, "host", tmp_path)
        find = re.findall(r"\$\((hvsock vm id [^)]+)\)", line)[0]
        # By the Host Compute Service: there is no PowerShell here.
        vm_id = run(find.replace("--source wmi", "--source hcs"), "host", tmp_path).strip()
        assert vm_id == GUEST
        assert "3 sent, 3 came back, 0 % lost" in run(re.sub(r"\$\(.*?\)", vm_id, line), "host", tmp_path)

    for command in unregister:
        run(command, "host", tmp_path)
    assert "Tutorial" not in run("hvsock service list", "host", tmp_path)
