"""Every code block of the how-tos on asyncio, trio, anyio and socketserver is run, over every transport."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import utils
from test_readme import Block, read_blocks

DIRECTORY = utils.TESTS.parent / "docs" / "howto"
NAMES = ("asyncio", "trio", "anyio", "socketserver")

if not DIRECTORY.exists():
    pytest.skip("docs is not beside the tests: run them from a clone", allow_module_level=True)


def text(name: str) -> str:
    return (DIRECTORY / f"{name}.md").read_text(encoding="utf-8")


BLOCKS = [pytest.param(name, block, id=f"{name}-{block}") for name in NAMES for block in read_blocks(text(name))]


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_blocks_run(name: str, block: Block, transport: str, tmp_path: Path) -> None:
    assert (block.language, block.mark) == ("python", "run: alone")
    for module in sorted(set(re.findall(r"\b(anyio|trio)\b", block.code))):
        if utils.WINDOWS:
            pytest.skip(f"{module} over AF_HYPERV is not tested")
        pytest.importorskip(module)
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", block.code],
        cwd=tmp_path,
        env={**os.environ, "HVSOCK_TRANSPORT": transport},
        capture_output=True,
        text=True,
        timeout=utils.LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "b'HELLO" in done.stdout
    if "connection from" in block.code:
        assert re.search(r"^connection from hvsock://loopback/\S+$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_names_exist(name: str) -> None:
    import hvsock
    from hvsock import aio

    for module, attribute in re.findall(r"\b(hvsock|aio)\.([A-Za-z_]\w*)", text(name)):
        assert hasattr({"hvsock": hvsock, "aio": aio}[module], attribute), attribute
