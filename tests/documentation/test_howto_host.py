"""The pages on what a host has: its registry, its VMs and WSL, played or real."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import registry
import utils
from vm_sources import HCS, WMI, WSL_ID, Program

import hvsock
from documentation.pages import PAGES, Block, blocks_of, code_of, each_block, python, run_alone, run_command
from hvsock import services, vms

FIND, REGISTER, WSL = (f"docs/howto/{name}.md" for name in ("find-a-vm", "register-a-service", "wsl2"))


def marked(page: str, mark: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("page", "block"), each_block(page, mark=mark))


def execute(block: Block) -> None:
    exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("page", "block"), each_block("docs/howto/containers.md", REGISTER, mark="run: alone"))
def test_blocks_that_need_nothing(page: str, block: Block, tmp_path: Path) -> None:
    run_alone(block, tmp_path)


# Registration


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[registry.Scratch]:
    with registry.scratch(monkeypatch) as scratch:
        monkeypatch.setattr(services, "REGISTRY_KEY", scratch.path)
        yield scratch


@marked(REGISTER, "run: in the registry")
def test_blocks_about_registration(
    page: str, block: Block, key: registry.Scratch, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(block)
    assert capsys.readouterr().out.startswith(f"{hvsock.service_id_from_port(5000)} 5000 My agent")


def test_the_command_that_registers(key: registry.Scratch) -> None:
    run_command(code_of(REGISTER, "run: command in the registry"))
    assert services.list_services() == [(hvsock.service_id_from_port(5000), "My agent", True)]


def test_the_command_without_python() -> None:
    """It is the one that a PermissionError suggests."""
    command = code_of(REGISTER, "check: reg").strip()
    assert command == services._command_to_register(hvsock.service_id_from_port(5000), "My agent")


def test_the_table_of_sources_has_all_of_them() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\w*) ?\|$", PAGES[FIND], re.MULTILINE)
    assert tuple(name for name, _ in rows) == vms.SOURCES
    assert {name for name, default in rows if default} == {"hcs", "guest", "vsock"}


# VMs


@marked(FIND, "run: with VMs")
def test_blocks_about_vms(
    page: str, block: Block, hcs: Callable[[object], None], program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    hcs(HCS)
    program.prints(json.dumps(WMI))
    execute(block)
    assert HCS[0]["RuntimeId"] in capsys.readouterr().out


def test_the_block_that_asks_wsl(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    program.prints(f"{WSL_ID}\n")
    (block,) = (block for block in blocks_of(WSL) if block.mark == "run: with WSL")
    execute(block)
    assert capsys.readouterr().out == f"{WSL_ID}\n"


@pytest.mark.skipif(utils.WINDOWS, reason="wslinfo is played by a script: POSIX only")
@pytest.mark.parametrize(
    ("server", "client", "on_windows", "reply"),
    [
        ("server.py", "client.py", "server.py", "hello, Windows\n"),
        ("guest_server.py", "host_client.py", "host_client.py", "hello from WSL\n"),
    ],
)
def test_both_directions_of_wsl2(
    local: str, tmp_path: Path, server: str, client: str, on_windows: str, reply: str
) -> None:
    """Over the local transport, one end as the host and one as the VM of WSL's id, by the files of the page."""
    script = tmp_path / "wslinfo"
    script.write_text(f"#!/bin/sh\necho {WSL_ID}\n")
    script.chmod(0o755)
    env = {
        **os.environ,
        "HVSOCK_TRANSPORT": "local",
        "PATH": f"{tmp_path}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }

    def environment(name: str) -> dict[str, str]:
        return env if name == on_windows else {**env, "HVSOCK_LOCAL_VM": str(WSL_ID)}

    def command(name: str) -> list[str]:
        return python(code_of(WSL, f"file: {name}"))

    with subprocess.Popen(command(server), env=environment(server), stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            vm = WSL_ID if server == on_windows else "wildcard"
            assert serving.stdout.readline().startswith(f"listening on hvsock://{vm}/")
            done = subprocess.run(
                command(client), env=environment(client), capture_output=True, text=True, timeout=utils.LIMIT
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, reply, "")
        finally:
            serving.kill()
