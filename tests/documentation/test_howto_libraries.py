"""The programs of docs/howto/rpc.md and redis-docker.md are run, where their libraries are installed."""

from __future__ import annotations

import http.server
import json
import os
import re
import socketserver
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import utils
from libraries.servers import Server
from utils import running, wait_for

import hvsock
from documentation.pages import GUEST, Block, code_of, each_block, python, run_alone

RPC, STORES = "docs/howto/rpc.md", "docs/howto/redis-docker.md"
REQUIREMENTS = "pip install -r tests/libraries/requirements.txt"


def require(code: str) -> None:
    for module in re.findall(r"^(?:import|from) (rpyc|Pyro5|grpc|docker)\b", code, re.MULTILINE):
        pytest.importorskip(module, reason=REQUIREMENTS)


def listens(address: hvsock.HyperVAddress) -> bool:
    try:
        hvsock.create_connection(address, utils.LIMIT, transport="local").close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(("page", "block"), each_block(RPC, mark="run: alone"))
def test_rpc(page: str, block: Block, transport: str, tmp_path: Path) -> None:
    require(block.code)
    if utils.WINDOWS and "import grpc" in block.code:
        pytest.skip("Windows has no Unix sockets for gRPC's relays")
    output = run_alone(block, tmp_path, HVSOCK_TRANSPORT=transport)
    assert "HELLO" in output
    if "from" in output:
        assert re.search(r"^(connection|call) from hvsock://loopback/\S+$", output, re.MULTILINE)


def test_manager(local: str, tmp_path: Path) -> None:
    """The page's program is the server; a guest imports it, and is the client."""
    (tmp_path / "manager.py").write_text(code_of(RPC, "file: manager.py"))
    environment = {**os.environ, "HVSOCK_TRANSPORT": local}
    client = """if True:
        import sys
        sys.path.insert(0, ".")
        from manager import Manager
        manager = Manager(("parent", 5000), authkey=b"a secret of both ends")
        manager.connect()
        print(manager.service().shout("hello"))
    """
    with running(python(code_of(RPC, "file: manager.py")), tmp_path, environment):
        address = hvsock.as_address(("loopback", 5000))
        wait_for(lambda: listens(address))
        done = subprocess.run(
            python(client),
            cwd=tmp_path,
            env={**environment, "HVSOCK_LOCAL_VM": GUEST},
            capture_output=True,
            text=True,
            timeout=utils.LIMIT,
        )
    assert (done.returncode, done.stdout) == (0, "HELLO\n"), done.stderr


class Handler(socketserver.StreamRequestHandler):
    """A server of Redis that knows one key."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                words.append(self.rfile.read(int(self.rfile.readline()[1:])))
                self.rfile.readline()
            known = {b"HELLO": b"%1\r\n+proto\r\n:3\r\n", b"SET": b"+OK\r\n", b"GET": b"$5\r\nvalue\r\n"}
            self.wfile.write(known.get(words[0], b"-ERR\r\n"))


class DockerHandler(http.server.BaseHTTPRequestHandler):
    """A server of Docker that knows its version."""

    def do_GET(self) -> None:
        body = json.dumps({"Version": "27.0", "path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("module", "handler", "output"),
    [("redis", Handler, "b'value'\nb'value'\n"), ("docker", DockerHandler, "27.0\n")],
)
def test_clients(module: str, handler: Any, output: str, local: str, tmp_path: Path) -> None:
    """In a guest, with a stand-in for the host's server."""
    pytest.importorskip(module, reason=REQUIREMENTS)
    code = code_of(STORES, f"file: {module}_client.py")
    port = int(re.findall(r'\("parent", (\d+)\)', code)[0])
    with Server(hvsock.as_address(("wildcard", port)), handler, local) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        environment = {**os.environ, "HVSOCK_TRANSPORT": local, "HVSOCK_LOCAL_VM": GUEST}
        done = subprocess.run(
            python(code), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=utils.LIMIT
        )
        server.shutdown()
    assert (done.returncode, done.stdout) == (0, output), done.stderr
