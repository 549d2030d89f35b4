"""Every code block of the how-tos on asyncio, trio, anyio and socketserver is run, over every transport."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import utils

from documentation.pages import PAGES, Block, each_block, run_alone

HOWTOS = [f"docs/howto/{name}.md" for name in ("asyncio", "trio", "anyio", "socketserver")]


@pytest.mark.parametrize(("page", "block"), each_block(*HOWTOS))
def test_blocks_run(page: str, block: Block, transport: str, tmp_path: Path) -> None:
    for module in sorted(set(re.findall(r"\b(anyio|trio)\b", block.code))):
        if utils.WINDOWS:
            pytest.skip(f"{module} over AF_HYPERV is not tested")
        pytest.importorskip(module)
    output = run_alone(block, tmp_path, HVSOCK_TRANSPORT=transport)
    assert "b'HELLO" in output
    if "connection from" in block.code:
        assert re.search(r"^connection from hvsock://loopback/\S+$", output, re.MULTILINE)


@pytest.mark.parametrize("page", HOWTOS)
def test_names_exist(page: str) -> None:
    import hvsock.integrations
    from hvsock import aio

    for module, attribute in re.findall(r"\b(hvsock|aio)\.([A-Za-z_]\w*)", PAGES[page]):
        assert hasattr({"hvsock": hvsock, "aio": aio}[module], attribute), attribute
