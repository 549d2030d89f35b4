"""docs/tutorial.md: its commands and programs, host and guest on the local transport."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import registry
import utils
from utils import Task, next_line
from vm_sources import WMI, Program

import hvsock
from documentation.pages import GUEST, PAGES, TUTORIAL, blocks_of, click_command, code_of, is_closed, run_command, shape
from hvsock import services


def environment(side: str) -> dict[str, str]:
    """Return what the tutorial has a reader without a hypervisor set, on the host or in the guest."""
    python = str(Path(sys.executable).parent)
    settings = dict(re.findall(r"(HVSOCK_\w+)=(\S+)", code_of(TUTORIAL, f"environment: {side}")))
    return {**os.environ, **settings, "PATH": os.pathsep.join([python, os.environ.get("PATH", os.defpath)])}


def running(line: str, side: str, directory: Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Run a shell line of the tutorial until the end of the block."""
    return utils.running(shlex.split(line), directory, environment(side))


def run(line: str, side: str, directory: Path) -> str:
    done = subprocess.run(
        shlex.split(line),
        cwd=directory,
        env=environment(side),
        capture_output=True,
        text=True,
        timeout=utils.LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def tutorial(local: str, tmp_path: Path) -> Path:
    """Give a directory with the programs of the tutorial."""
    click_command()
    for name in ("service.py", "agent.py"):
        (tmp_path / name).write_text(code_of(TUTORIAL, f"file: {name}"), encoding="utf-8")
    return tmp_path


def test_the_tutorials_commands(tutorial: Path) -> None:
    assert "local" in run(code_of(TUTORIAL, "run: any"), "host", tutorial)
    with running(code_of(TUTORIAL, "run: host, echo"), "host", tutorial) as echo:
        assert "hvsock://wildcard/5000" in next_line(echo)
        assert "3" in run(code_of(TUTORIAL, "run: guest, ping"), "guest", tutorial)
    with running("hvsock echo wildcard/5001", "guest", tutorial) as echo:
        next_line(echo)
        assert "3 sent, 3 came back" in run(code_of(TUTORIAL, "run: host, ping"), "host", tutorial)


@pytest.mark.parametrize("agent_first", [False, True])
def test_the_tutorials_programs(tutorial: Path, agent_first: bool) -> None:
    """They print what is shown, whichever starts first."""
    service_line, agent_line = (code_of(TUTORIAL, f"run: {name}") for name in ("host, service.py", "guest, agent.py"))
    with contextlib.ExitStack() as stack:
        if agent_first:
            agent = stack.enter_context(running(agent_line, "guest", tutorial))
        service = stack.enter_context(running(service_line, "host", tutorial))
        assert next_line(service) == "listening on hvsock://wildcard/5000\n"
        if not agent_first:
            agent = stack.enter_context(running(agent_line, "guest", tutorial))
        assert Task(agent.communicate).result()[0] == code_of(TUTORIAL, "output: agent.py")
        shown = shape(code_of(TUTORIAL, "output: service.py"))
        assert shape("".join(next_line(service) for _ in shown[1:])) == shown[1:]
        assert GUEST in "".join(shown)


@pytest.mark.parametrize("message", [b"[]", b'{"name": 1}', b"\xff", b"x" * 10_001, b'{"name": "x", "load": "y"}'])
def test_the_tutorials_service_drops_nonsense(tutorial: Path, message: bytes) -> None:
    with running(code_of(TUTORIAL, "run: host, service.py"), "host", tutorial) as service:
        next_line(service)
        with hvsock.create_connection(("loopback", 5000), timeout=utils.LIMIT, transport="local") as connection:
            connection.send_message(message)
            assert is_closed(connection)
        assert "is dropped: " in next_line(service)
        assert service.poll() is None


def test_the_tutorials_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [block.code.splitlines() for block in blocks_of(TUTORIAL) if block.mark == "run: in the registry"]
    with registry.scratch(monkeypatch) as scratch:
        monkeypatch.setattr(services, "REGISTRY_KEY", scratch.path)
        (host,), (guest,), clean_up = commands
        run_command(host)
        assert services.list_services() == [(hvsock.service_id_from_port(5000), "Tutorial", True)]
        run_command(guest)
        assert hvsock.service_id_from_port(5001) in [service.id for service in services.list_services()]
        for command in clean_up:
            run_command(command)
        assert services.list_services() == []


def test_the_tutorials_way_to_a_vms_id(program: Program) -> None:
    program.prints(json.dumps(WMI))
    (inner,) = re.findall(r"\$\((hvsock vm id [^)]+)\)", PAGES[TUTORIAL])
    vm = WMI[-1]
    assert run_command(inner.replace("My VM", str(vm["ElementName"]))).strip() == str(vm["Name"]).lower()
