"""README.md: its examples, commands and demo."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import utils

import hvsock
from documentation.pages import PAGES, Block, blocks_of, code_of, each_block, run_alone

TEXT = PAGES["README.md"]


def code(mark: str) -> str:
    return code_of("README.md", mark)


needs_bash = pytest.mark.skipif(
    utils.WINDOWS or shutil.which("bash") is None, reason="the sh blocks are checked with bash: install it"
)


@pytest.mark.parametrize("name", ["file: server.py", "file: client.py"])
def test_the_examples_are_about_ten_lines(name: str) -> None:
    assert len(code(name).splitlines()) <= 12


@pytest.mark.parametrize(("page", "block"), each_block("README.md", mark="run: alone"))
def test_python_blocks_run(page: str, block: Block, local: str, tmp_path: Path) -> None:
    output = run_alone(block, tmp_path, HVSOCK_TRANSPORT=local)
    if "except OSError" in block.code:  # a block that shows an error has to meet it
        assert len(output.splitlines()) >= 2
        assert "hvsock://parent/" in output


@needs_bash
def test_the_server_and_the_client_talk(local: str, tmp_path: Path) -> None:
    """Run both files by the very shell lines of the README, the server on the host and the client in a guest."""
    for name in ("server.py", "client.py"):
        (tmp_path / name).write_text(code(f"file: {name}"), encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    env = {**os.environ, "PATH": path}
    server = subprocess.Popen(
        ["bash", "-c", code("run: host")],
        start_new_session=True,  # so that the shell can be killed with its python
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with server:
        try:
            assert server.stdout
            first = server.stdout.readline()
            assert first == "listening on hvsock://wildcard/5000\n", first + server.stdout.read()
            client = subprocess.run(
                ["bash", "-c", code("run: guest")],
                cwd=tmp_path,
                env=env,
                capture_output=True,
                text=True,
                timeout=utils.LIMIT,
            )
            assert (client.returncode, client.stdout, client.stderr) == (0, "hello, host\n", "")
            vm = re.search(r"HVSOCK_LOCAL_VM=(\S+)", code("run: guest"))
            assert vm
            assert server.stdout.readline().startswith(f"connection from hvsock://{vm[1]}/")
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def test_the_demo_prints_what_is_shown(local: str) -> None:
    """But for the numbers and ids, and for the reason of the first line, which is the machine's."""
    pytest.importorskip("click")
    pytest.importorskip("rich")

    def shape(text: str) -> list[str]:
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "GUID", text)
        first, *rest = re.sub(r"[0-9][0-9.,]*", "N", text).splitlines()
        return [first.partition("(")[0], *rest]

    command = [sys.executable, "-I", "-m", "hvsock", "demo", "--transport", "local"]
    output = subprocess.check_output(command, text=True, timeout=utils.LIMIT)
    assert shape(output) == shape(code("output: demo"))


@pytest.mark.parametrize(
    ("mark", "extras", "last"),
    [("ci: demo", "cli", ".venv/bin/hvsock demo"), ("ci: test", "cli,test", ".venv/bin/python -Im pytest")],
)
def test_the_two_commands(mark: str, extras: str, last: str) -> None:
    """One line each, that makes an environment, installs this package into it, and does the one thing."""
    steps = code(mark).strip().split(" && ")
    assert steps == ["python3 -m venv .venv", f".venv/bin/pip install -q '.[{extras}]'", last]


def test_the_two_commands_on_windows_are_the_same() -> None:
    lines = next(
        block.code for block in blocks_of("README.md") if block.language == "powershell" and "venv" in block.code
    ).splitlines()
    posix = [code(mark).strip() for mark in ("ci: demo", "ci: test")]
    expected = [
        line.replace("python3 -m", "py -m").replace(" && ", "; ").replace(".venv/bin/", ".venv\\Scripts\\")
        for line in posix
    ]
    assert lines == expected


def test_public_names_exist() -> None:
    for name in set(re.findall(r"\bhvsock\.([A-Za-z_]\w*)\(", TEXT)):
        assert name in hvsock.__all__, name
