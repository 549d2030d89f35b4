"""Every code block of docs/howto/relay.md is run, with its service or server played."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from utils import LIMIT, dial, receive_exactly

import hvsock
from documentation.pages import code_of

PAGE = "docs/howto/relay.md"


@contextlib.contextmanager
def program(mark: str, directory: Path, port: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Run a block, with a TCP port in place of its own."""
    code = re.sub(r"(tcp://\w*):80[80]0", rf"\1:{port}", code_of(PAGE, mark))
    with subprocess.Popen(
        [sys.executable, "-I", "-u", "-W", "error", "-c", code],
        cwd=directory,
        env={**os.environ, "HVSOCK_TRANSPORT": "local"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def listens_on(process: subprocess.Popen[str], before: str) -> str:
    """Return the address that the process says it listens on."""
    assert process.stdout
    line = process.stdout.readline()
    match = re.search(before + r"(\w+://\S+)", line)
    assert match, line + process.stdout.read()
    return match[1]


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=LIMIT)
    assert "KeyboardInterrupt" in output
    assert "stopped listening on" in output


def test_howto_reaches_a_service(local: str, local_directory: Path) -> None:
    with hvsock.create_server(("loopback", 5000), transport="local") as server:
        server.settimeout(LIMIT)
        with program("file: to_service.py", local_directory) as process:
            with dial(listens_on(process, "listening on ")) as client, server.accept()[0] as accepted:
                client.sendall(b"hello")
                assert receive_exactly(accepted, 5) == b"hello"
            press_ctrl_c(process)


def test_howto_offers_a_server(local: str, local_directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT)
        with program("file: from_service.py", local_directory, server.getsockname()[1]) as process:
            assert listens_on(process, "listening on ") == "hvsock://wildcard/5000"
            with dial("hvsock://loopback/5000?transport=local") as client, server.accept()[0] as accepted:
                client.sendall(b"hello")
                assert receive_exactly(accepted, 5) == b"hello"
            press_ctrl_c(process)


def test_howto_shows_the_errors(local_directory: Path) -> None:
    with program("run: alone", local_directory) as process:
        assert process.communicate(timeout=LIMIT)[0] == code_of(PAGE, "output: alone")


def test_howto_counts(local: str, local_directory: Path) -> None:
    with program("run: beside", local_directory) as process:
        with contextlib.suppress(ConnectionError), dial(listens_on(process, "serving ")) as client:
            client.recv(1)
        output, _ = process.communicate("\n", timeout=LIMIT)
        assert output.endswith("1 connections, 1 did not reach the target\n0 bytes there, 0 bytes back\n"), output


def test_howto_has_a_file_of_relays(tmp_path: Path) -> None:
    relays = pytest.importorskip("hvsock._cli.relays", reason='the command line is an extra: pip install "hvsock[cli]"')
    (tmp_path / "relays.toml").write_text(code_of(PAGE, "file: relays.toml"))
    one, other = relays.read(tmp_path / "relays.toml")
    assert one == relays.Pair("tcp://:8080", "hvsock://parent/5000")
    assert other == relays.Pair("unix:///run/db.sock", "hvsock://parent/5432", 2, 300, 100)


def test_howto_is_started_by_systemd(local: str) -> None:
    """As systemd does it: with the socket of the one unit as descriptor 3 of the other one's command."""
    pytest.importorskip("click", reason='the command line is an extra: pip install "hvsock[cli]"')
    if shutil.which("bash") is None:
        pytest.skip("the descriptor is moved by bash: install it")
    units = configparser.ConfigParser(interpolation=None)
    units.read_string(code_of(PAGE, "unit: web.socket"))
    units.read_string(code_of(PAGE, "unit: web.service"))
    assert units["Socket"]["ListenStream"] == "127.0.0.1:8080"
    _, *command = units["Service"]["ExecStart"].replace("parent", "loopback").split()
    with (
        hvsock.create_server(("loopback", 5000), transport="local") as server,
        socket.create_server(("127.0.0.1", 0)) as web,
    ):
        server.settimeout(LIMIT)
        shell = f'exec 3<&{web.fileno()}; exec "$0" -Im hvsock "$@"'
        with subprocess.Popen(
            ["bash", "-c", shell, sys.executable, *command],
            pass_fds=[web.fileno()],
            env={**os.environ, "HVSOCK_TRANSPORT": "local"},
            stdout=subprocess.DEVNULL,
        ) as process:
            try:
                with dial(f"tcp://127.0.0.1:{web.getsockname()[1]}") as client, server.accept()[0] as accepted:
                    client.sendall(b"hello")
                    assert receive_exactly(accepted, 5) == b"hello"
            finally:
                process.terminate()
