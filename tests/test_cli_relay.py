"""`hvsock relay`: its line at the beginning, its numbers at the end, and its ends."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import utils
from command_line import NASTY, ended, failure, posix, run, service, start
from utils import Task

import hvsock
from hvsock._cli.relay import Orders
from hvsock.relay import Counters, Relay

TO_CLIENT = b"from the service"


def through(port: int, data: bytes) -> bytes:
    """Send through a relay that listens on TCP, and return the answer."""
    with socket.create_connection(("127.0.0.1", port), utils.LIMIT) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return utils.receive_all(sock)


def serve(connection: hvsock.HyperVSocket) -> None:
    utils.receive_all(connection)
    connection.sendall(TO_CLIENT)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the relay end, as by Ctrl-C, after some work that is done in place of its waiting."""

    def set_work(work: Any) -> None:
        began = []
        begin = Relay.start

        def start(self: Any) -> None:
            begin(self)
            began.append(self)

        def carry_out(self: Any) -> None:
            (it,) = began
            work(int(it.address.rpartition(":")[2]))
            end = time.monotonic() + utils.LIMIT
            while it.counters.open and time.monotonic() < end:
                time.sleep(utils.TICK / 10)
            raise KeyboardInterrupt

        monkeypatch.setattr(Relay, "start", start)
        monkeypatch.setattr(Orders, "carry_out", carry_out)

    return set_work


def test_relay(served: str, in_process: Any) -> None:
    answers: list[bytes] = []
    in_process(lambda port: answers.extend(through(port, data) for data in (b"hello", b"again")))
    with service(served, serve) as address:
        result = run("relay", "tcp://:0", f"{address}?transport={served}")
    assert (result.exit_code, result.stderr) == (0, "")
    assert answers == [TO_CLIENT, TO_CLIENT]
    first, *rows = result.stdout.splitlines()
    assert re.fullmatch(rf"listening on tcp://127\.0\.0\.1:\d+ for {re.escape(address)}\?transport={served}", first)
    assert dict(re.split(r" {2,}", row) for row in rows) == {
        "connections": "2",
        "open": "0",
        "refused": "0",
        "target not reached": "0",
        "aborted": "0",
        "bytes to target": "10",
        "bytes to client": "32",
    }


def test_relay_as_json(served: str, in_process: Any) -> None:
    in_process(lambda port: through(port, b"hello"))
    with service(served, serve) as address:
        result = run("relay", "--json", "tcp://:0", f"{address}?transport={served}")
    assert (result.exit_code, result.stderr) == (0, "")
    numbers = json.loads(result.stdout)
    assert (numbers["total"], numbers["bytes_to_target"], numbers["bytes_to_client"]) == (1, 5, 16)


def test_what_happens_is_said_on_stderr(served: str, in_process: Any) -> None:
    logger = logging.getLogger("hvsock.relay")
    before = logger.level, list(logger.handlers)

    def work(port: int) -> None:
        with contextlib.suppress(ConnectionError):
            assert through(port, b"hello") == b""
        logger.warning("%s", NASTY)

    in_process(work)
    nobody = f"hvsock://loopback/{hvsock.port_from_service_id(utils.new_service())}?transport={served}"
    result = run("relay", "tcp://:0", nobody)
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert any("was not reached" in line for line in lines)
    assert all(re.match(r"hvsock: \d\d:\d\d:\d\d\.\d{3} ", line) and line.isprintable() for line in lines)
    assert any(re.match(r"hvsock: [\d:.]{12} 127\.0\.0\.1:\d+: ", line) for line in lines), "the peer"
    assert re.search(r"^target not reached +1$", result.stdout, re.MULTILINE)
    assert (logger.level, list(logger.handlers)) == before


def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = failure("relay", f"tcp://:{taken.getsockname()[1]}", "tcp://:1")
    assert line.startswith("relay tcp://:")


def listening_port(process: Any) -> int:
    line = process.stdout.readline().decode()
    match = re.match(r"listening on tcp://127\.0\.0\.1:(\d+) for ", line)
    assert match, line
    return int(match[1])


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(local: str, number: signal.Signals) -> None:
    with service(local, serve) as address, ended(start("relay", "tcp://:0", f"{address}?transport=local")) as process:
        assert through(listening_port(process), b"hello") == TO_CLIENT
        process.send_signal(number)
        out, err = process.communicate(timeout=utils.LIMIT)
    assert (process.returncode, err) == (0, b"")
    assert re.search(rb"^bytes to client +16$", out, re.MULTILINE)


def next_row(process: Any) -> list[str]:
    return re.split(r" {2,}", process.stdout.readline().decode().rstrip())


@posix
def test_a_signal_prints_the_counters(local: str) -> None:
    """And changes nothing: the connection continues, and the signal is heard again."""
    with service(local) as address, ended(start("relay", "tcp://:0", f"{address}?transport=local")) as process:
        with socket.create_connection(("127.0.0.1", listening_port(process)), utils.LIMIT) as sock:
            for number in (1, 2):
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
                process.send_signal(signal.SIGUSR1)
                *rows, (name, last) = [next_row(process) for _ in range(7)]
                assert rows == [
                    ["connections", "1"],
                    ["open", "1"],
                    ["refused", "0"],
                    ["target not reached", "0"],
                    ["aborted", "0"],
                    ["bytes to target", f"{number}"],
                ]
                assert name == "bytes to client"
                assert int(last) in (number - 1, number), (
                    "they are counted once they are sent: the client may be sooner"
                )
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=utils.LIMIT)
    assert (process.returncode, err) == (0, b"")


@posix
def test_a_signal_prints_the_counters_as_json(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with ended(start("relay", "--json", f"unix://{path}", "tcp://:1")) as process:
        utils.wait_for(path.exists)
        process.send_signal(signal.SIGUSR1)
        assert process.stdout
        lines = iter(process.stdout.readline, b"}\n")
        assert json.loads(b"".join(lines) + b"}") == dict.fromkeys(Counters._fields, 0)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=utils.LIMIT)
    assert json.loads(out) == dict.fromkeys(Counters._fields, 0)


@posix
def test_retry_for(tmp_path: Path) -> None:
    """The target starts after its client."""
    path = tmp_path / "s"
    with (
        ended(start("relay", "--retry-for", str(utils.LIMIT), "tcp://:0", f"unix://{path}")) as process,
        socket.create_connection(("127.0.0.1", listening_port(process)), utils.LIMIT) as client,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        time.sleep(2 * utils.TICK)
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(utils.LIMIT)
        with listener.accept()[0] as server:
            server.sendall(b"x")
            assert client.recv(1) == b"x"


@posix
def test_grace(local: str) -> None:
    """A connection that is open at the end may go on for as long as it was told."""
    arguments = ("relay", "--grace", str(utils.LIMIT), "tcp://:0")
    with service(local) as address, ended(start(*arguments, f"{address}?transport=local")) as process:
        port = listening_port(process)
        with socket.create_connection(("127.0.0.1", port), utils.LIMIT) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            process.send_signal(signal.SIGINT)
            ending = Task(process.wait)
            assert not ending.wait(4 * utils.TICK)
            sock.sendall(b"y")
            assert sock.recv(1) == b"y"
        assert ending.result() == 0


@posix
def test_nobody_reads_what_it_prints() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with ended(start("relay", "tcp://:0", "tcp://:1", stdout=writer)) as process:
        os.close(writer)
        assert process.communicate(timeout=utils.LIMIT) == (None, b"hvsock: standard output: Broken pipe\n")  # type: ignore[comparison-overlap]
        assert process.returncode == 1
