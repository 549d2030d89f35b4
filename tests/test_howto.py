"""Every code block of docs/howto is run, in the registry, with the VMs and the WSL that it needs, played or real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import registry
import utils
from test_docs import run_command
from test_readme import Block, read_blocks
from vm_sources import HCS, WMI, Program

import hvsock
from hvsock import services, vms

ROOT = utils.TESTS.parent
HOWTO = ROOT / "docs" / "howto"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted(HOWTO.glob("*.md"))}
WSL_ID = uuid.UUID("afd7952d-e55b-5ead-a889-fc7922c6458d")
#: The pages whose blocks are run here, and what their marks may be.
RUN_HERE = ("containers.md", "find-a-vm.md", "register-a-service.md", "wsl2.md")
MARKS = {
    "python": {"run: alone", "run: in the registry", "run: with VMs", "run: with WSL"},
    "powershell": {"", "run: command in the registry", "check: reg"},
    "sh": {""},  # commands, which test_docs checks
}
FILES = ("server.py", "client.py", "guest_server.py", "host_client.py")

if not PAGES:
    pytest.skip("docs/howto is not beside the tests: run them from a clone", allow_module_level=True)


def blocks_of(page: str) -> dict[str, Block]:
    return {f"{page}-{block}": block for block in read_blocks(PAGES[page])}


BLOCKS = {name: block for page in RUN_HERE for name, block in blocks_of(page).items()}


def marked(mark: str) -> Any:
    found = {name: block for name, block in BLOCKS.items() if block.mark == mark}
    assert found, mark
    return pytest.mark.parametrize("block", found.values(), ids=found)


def execute(block: Block) -> None:
    exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})


def test_every_block_is_covered() -> None:
    for name, block in BLOCKS.items():
        files = (
            {f"file: {file}" for file in FILES} if name.startswith("wsl2.md") and block.language == "python" else set()
        )
        assert block.mark in MARKS.get(block.language, set()) | files, f"nothing here tests the block {name}"
        assert block.mark or all(line.startswith("hvsock ") for line in block.code.splitlines()), name


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" not in link:
            assert (HOWTO / link.partition("#")[0]).exists(), link


@marked("run: alone")
def test_blocks_that_need_nothing(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", block.code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=utils.LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")


# Registration


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[registry.Scratch]:
    with registry.scratch(monkeypatch) as scratch:
        monkeypatch.setattr(services, "REGISTRY_KEY", scratch.path)
        yield scratch


@marked("run: in the registry")
def test_blocks_about_registration(block: Block, key: registry.Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    execute(block)
    assert capsys.readouterr().out.startswith(f"{hvsock.service_id_from_port(5000)} 5000 My agent")


@marked("run: command in the registry")
def test_the_command_that_registers(block: Block, key: registry.Scratch) -> None:
    run_command(block.code)
    assert services.list_services() == [(hvsock.service_id_from_port(5000), "My agent", True)]


@marked("check: reg")
def test_the_command_without_python(block: Block) -> None:
    """It is the one that a PermissionError suggests."""
    assert block.code.strip() == services._command_to_register(hvsock.service_id_from_port(5000), "My agent")


def test_the_table_of_sources_has_all_of_them() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\w*) ?\|$", PAGES["find-a-vm.md"], re.MULTILINE)
    assert tuple(name for name, _ in rows) == vms.SOURCES
    assert {name for name, default in rows if default} == {"hcs", "guest", "vsock"}


# VMs


@marked("run: with VMs")
def test_blocks_about_vms(
    block: Block, hcs: Callable[[object], None], program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    hcs(HCS)
    program.prints(json.dumps(WMI))
    execute(block)
    assert HCS[0]["RuntimeId"] in capsys.readouterr().out


@marked("run: with WSL")
def test_the_block_that_asks_wsl(block: Block, program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    program.prints(f"{WSL_ID}\n")
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
    by_name = {block.mark.removeprefix("file: "): block for block in blocks_of("wsl2.md").values()}
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
        return [sys.executable, "-I", "-W", "error", "-c", by_name[name].code]

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
