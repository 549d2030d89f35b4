"""The pages, the one reader of their blocks of code, and what runs them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import utils

import hvsock

ROOT = utils.TESTS.parent
if not (ROOT / "docs").exists() or not (ROOT / "README.md").exists():
    pytest.skip("README.md and docs are not beside the tests: run them from a clone", allow_module_level=True)

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md")))
}
TUTORIAL = "docs/tutorial.md"
#: The VM of the pages' examples.
GUEST = "6f2a3b7e-51a4-4c0d-9a53-0c5d1e7f8a42"


class Block(NamedTuple):
    """A fenced code block, and what the HTML comment before it says is to be done with it."""

    line: int
    mark: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"line-{self.line}"


def read_blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a page; a directive of the site (```{name}) is no code."""
    lines = iter(enumerate(text.splitlines(), 1))
    mark = ""
    for number, line in lines:
        if comment := re.fullmatch(r"<!-- (.+) -->", line):
            mark = comment[1]
            continue
        if fence := re.fullmatch(r"```(\w*|\{.*)", line):
            code = []
            for _, inner in lines:
                if inner == "```":
                    break
                code.append(inner)
            else:
                raise AssertionError(f"the block of line {number} has no end")
            if not fence[1].startswith("{"):
                yield Block(number, mark, fence[1], "\n".join(code) + "\n")
        else:
            assert "```" not in line, f"a fence of another form in line {number}"
        mark = ""


def blocks_of(page: str) -> list[Block]:
    return list(read_blocks(PAGES[page]))


def code_of(page: str, mark: str) -> str:
    """Return the code of the one block of a page that has this mark."""
    (code,) = (block.code for block in blocks_of(page) if block.mark == mark)
    return code


def each_block(*pages: str, mark: str | None = None) -> list[Any]:
    """Return the blocks of these pages, or those that have this mark, as parameters `page` and `block` of a test."""
    found = [
        pytest.param(page, block, id=f"{page.removeprefix('docs/')}-{block}")
        for page in pages
        for block in blocks_of(page)
        if mark in (None, block.mark)
    ]
    assert found, mark
    return found


def python(code: str) -> list[str]:
    """Return the command that runs a program, warnings being errors."""
    return [sys.executable, "-I", "-W", "error", "-c", code]


def run_alone(block: Block, directory: Path, **environment: str) -> str:
    """Run a program that needs nothing to its end and return what it prints, which is no error."""
    done = subprocess.run(
        python(block.code),
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=utils.LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def click_command() -> Any:
    """Return `hvsock` as click has it."""
    pytest.importorskip("click")
    pytest.importorskip("rich")
    from hvsock._cli import cli

    return cli


def run_command(line: str) -> str:
    """Run a line of `hvsock` here and return what it prints."""
    from click.testing import CliRunner

    program_name, *arguments = shlex.split(line)
    assert program_name == "hvsock"
    done = CliRunner().invoke(click_command(), arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def shape(text: str) -> list[str]:
    """Return the lines that the tutorial's service prints, without what is another VM's or moment's."""
    text = re.sub(r"reports '.*?' ", "reports NAME ", text)
    return re.sub(r"[0-9]+\.[0-9]+$", "N", text, flags=re.MULTILINE).splitlines()


def is_closed(connection: hvsock.HyperVSocket) -> bool:
    """Whether the peer ends the stream; what it has not received makes that a reset."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
