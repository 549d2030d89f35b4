"""Every code block of README.md is run, or at least checked, and every link to a file leads to one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import utils

import hvsock

ROOT = utils.TESTS.parent
README = ROOT / "README.md"

if not README.exists():
    pytest.skip("README.md is not beside the tests: run them from a clone", allow_module_level=True)


class Block(NamedTuple):
    """A fenced code block, and what the HTML comment before it says is to be done with it."""

    line: int
    mark: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"line-{self.line}"


def read_blocks(text: str) -> Iterator[Block]:
    lines = iter(enumerate(text.splitlines(), 1))
    mark = ""
    for number, line in lines:
        if comment := re.fullmatch(r"<!-- (.+) -->", line):
            mark = comment[1]
            continue
        if fence := re.fullmatch(r"```(\w*)", line):
            code = []
            for _, inner in lines:
                if inner == "```":
                    break
                code.append(inner)
            else:
                raise AssertionError(f"the block of line {number} has no end")
            yield Block(number, mark, fence[1], "\n".join(code) + "\n")
        else:
            assert "```" not in line, f"a fence of another form in line {number}"
        mark = ""


TEXT = README.read_text(encoding="utf-8")
BLOCKS = list(read_blocks(TEXT))
BY_MARK = {block.mark: block for block in BLOCKS if block.mark}


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


needs_bash = pytest.mark.skipif(
    utils.WINDOWS or shutil.which("bash") is None, reason="the sh blocks are checked with bash: install it"
)


def test_every_block_is_covered() -> None:
    assert BLOCKS
    marks = {
        "python": {"file: server.py", "file: client.py", "run: alone"},
        "sh": {"", "ci: demo", "ci: test", "run: host", "run: guest"},
        "powershell": {""},
        "text": {"output: demo"},
    }
    for block in BLOCKS:
        assert block.language in marks, f"nothing here tests a {block.language or 'plain'} block: line {block.line}"
        assert block.mark in marks[block.language], f"nothing here tests the block of line {block.line}"
    once = [
        block.mark for block in BLOCKS if block.mark.startswith(("ci:", "file:", "output:", "run: host", "run: guest"))
    ]
    assert sorted(once) == sorted(
        ["ci: demo", "ci: test", "file: client.py", "file: server.py", "output: demo", "run: guest", "run: host"]
    )


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_blocks_compile(block: Block) -> None:
    compile(block.code, str(block), "exec")


@pytest.mark.parametrize("name", ["file: server.py", "file: client.py"])
def test_the_examples_are_about_ten_lines(name: str) -> None:
    assert len(BY_MARK[name].code.splitlines()) <= 12


@pytest.mark.parametrize("block", [block for block in blocks("python") if block.mark == "run: alone"], ids=str)
def test_python_blocks_run(block: Block, local: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", block.code],
        cwd=tmp_path,
        env={**os.environ, "HVSOCK_TRANSPORT": "local"},
        capture_output=True,
        text=True,
        timeout=utils.LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if "except OSError" in block.code:  # a block that shows an error has to meet it
        assert len(done.stdout.splitlines()) >= 2
        assert "hvsock://parent/" in done.stdout


@needs_bash
def test_the_server_and_the_client_talk(local: str, tmp_path: Path) -> None:
    """Run both files by the very shell lines of the README, the server on the host and the client in a guest."""
    for name in ("server.py", "client.py"):
        (tmp_path / name).write_text(BY_MARK[f"file: {name}"].code, encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    env = {**os.environ, "PATH": path}
    server = subprocess.Popen(
        ["bash", "-c", BY_MARK["run: host"].code],
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
                ["bash", "-c", BY_MARK["run: guest"].code],
                cwd=tmp_path,
                env=env,
                capture_output=True,
                text=True,
                timeout=utils.LIMIT,
            )
            assert (client.returncode, client.stdout, client.stderr) == (0, "hello, host\n", "")
            vm = re.search(r"HVSOCK_LOCAL_VM=(\S+)", BY_MARK["run: guest"].code)
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
    assert shape(output) == shape(BY_MARK["output: demo"].code)


@needs_bash
@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_shell_blocks_are_shell(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True, timeout=utils.LIMIT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("mark", "extras", "last"),
    [("ci: demo", "cli", ".venv/bin/hvsock demo"), ("ci: test", "cli,test", ".venv/bin/python -Im pytest")],
)
def test_the_two_commands(mark: str, extras: str, last: str) -> None:
    """One line each, that makes an environment, installs this package into it, and does the one thing."""
    steps = BY_MARK[mark].code.strip().split(" && ")
    assert steps == ["python3 -m venv .venv", f".venv/bin/pip install -q '.[{extras}]'", last]


def test_the_two_commands_on_windows_are_the_same() -> None:
    lines = next(block for block in blocks("powershell") if "venv" in block.code).code.splitlines()
    posix = [BY_MARK[mark].code.strip() for mark in ("ci: demo", "ci: test")]
    expected = [
        line.replace("python3 -m", "py -m").replace(" && ", "; ").replace(".venv/bin/", ".venv\\Scripts\\")
        for line in posix
    ]
    assert lines == expected


@pytest.mark.parametrize("block", blocks("powershell"), ids=str)
def test_powershell_blocks_parse(block: Block) -> None:
    powershell = shutil.which("pwsh") or shutil.which("powershell")
    if powershell is None:
        pytest.skip("PowerShell is not here: install pwsh")
    parse = (
        "$errors = $null; $tokens = $null; $text = [Console]::In.ReadToEnd(); "
        "[void][System.Management.Automation.Language.Parser]::ParseInput($text, [ref]$tokens, [ref]$errors); "
        "$errors | ForEach-Object { $_.Message }; exit $errors.Count"
    )
    command = [powershell, "-NoProfile", "-NonInteractive", "-Command", parse]
    done = subprocess.run(command, input=block.code, capture_output=True, text=True, timeout=utils.LIMIT)
    assert (done.returncode, done.stdout) == (0, "")


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    assert {"CONTRIBUTING.md", "CHANGELOG.md"} <= set(links)
    for link in links:
        if "://" not in link:
            assert (ROOT / link.partition("#")[0]).exists(), link


def test_public_names_exist() -> None:
    for name in set(re.findall(r"\bhvsock\.([A-Za-z_]\w*)\(", TEXT)):
        assert name in hvsock.__all__, name
