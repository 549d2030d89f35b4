"""The programs of docs/howto/http.md: each server is asked by each client, from a VM."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

import pytest
import utils

import hvsock
from documentation.pages import GUEST, blocks_of

PAGE = "docs/howto/http.md"
FILES = {block.mark.removeprefix("file: "): block.code for block in blocks_of(PAGE)}
CLIENTS = [name for name in FILES if name.startswith("with_")]
SERVERS = [name for name in FILES if name.startswith("by_")]


def libraries(name: str) -> set[str]:
    """Return what has to be installed for a program."""
    return set(re.findall(r"aiohttp|cheroot|httpx|hypercorn|requests|uvicorn|websockets", FILES[name]))


@pytest.mark.parametrize("server", SERVERS)
def test_server_and_its_clients(server: str, local: str, tmp_path: Path) -> None:
    clients = [name for name in CLIENTS if ("websockets" in name) == ("websockets" in server)]
    for library in sorted(set().union(*map(libraries, (server, *clients)))):
        pytest.importorskip(library, reason=f"pip install 'hvsock[{library}]'")
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    environment = {**os.environ, "HVSOCK_TRANSPORT": local}
    with utils.running([sys.executable, server], tmp_path, environment):
        hvsock.create_connection(("loopback", 8000), transport=local, retry_for=utils.LIMIT).close()
        with contextlib.ExitStack() as stack:
            guest = {**environment, "HVSOCK_LOCAL_VM": GUEST}
            commands = [[sys.executable, "-W", "error", client] for client in clients]
            asking = [stack.enter_context(utils.running(command, tmp_path, guest)) for command in commands]
            for client, process in zip(clients, asking, strict=True):
                output, _ = process.communicate(timeout=utils.LIMIT)
                assert (process.returncode, set(output.splitlines())) == (0, {f"hello, {GUEST}"}), client
