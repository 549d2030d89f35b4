"""`hvsock echo`: many clients, what is printed of them, and its end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import threading
import time
from typing import Any

import pytest
import utils
from command_line import ended, failure, posix, run, start
from utils import Task

import hvsock
from hvsock._cli import echo as module
from hvsock._cli.echo import Echoes, echo
from hvsock._cli.output import Failure
from hvsock._cli.timing import round_trip


def dial(transport: str, address: Any) -> hvsock.HyperVSocket:
    return hvsock.create_connection(address, utils.LIMIT, transport=transport, retry_for=utils.LIMIT)


def no_thread_is_left() -> bool:
    """Wait for the threads of connections to end."""
    end = time.monotonic() + utils.LIMIT
    while any("_serve" in thread.name for thread in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(utils.TICK / 10)
    return True


def test_echo_of_one_connection(implementation: str) -> None:
    data = utils.random_bytes(3 << 20)
    with utils.connected(implementation) as (a, b):
        serving = Task(echo, b)
        sending = Task(a.sendall, data)
        assert utils.receive_exactly(a, len(data)) == data
        sending.result()
        a.shutdown(socket.SHUT_WR)
        assert serving.result() == len(data)


def test_echo_as_a_process(served: str) -> None:
    """Two clients at the same time, and one that comes later."""
    address = hvsock.as_address(("loopback", utils.new_service()))
    with ended(start("echo", "--transport", served, str(address))) as process:
        assert process.stdout
        assert process.stdout.readline().strip().decode() == f"listening on {address}"
        with dial(served, address) as one, dial(served, address) as other:
            for number in range(3):
                for sock in (one, other):
                    assert sock.exchange(b"%d" % number) == b"%d" % number
        with dial(served, address) as sock:
            assert round_trip(sock, bytes(1 << 20), utils.LIMIT) > 0
        lines = sorted(process.stdout.readline().strip().decode() for _ in range(6))
    arrivals = [line.removeprefix("connection from ") for line in lines if line.startswith("connection")]
    assert len(set(arrivals)) == 3
    ends = dict(line.split(": ", 1) for line in lines if not line.startswith("connection"))
    assert set(ends) == set(arrivals)
    assert sorted(ends.values()) == ["1,048,580 bytes echoed"] + 2 * ["15 bytes echoed"]


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(local: str, number: signal.Signals) -> None:
    address = hvsock.as_address(("loopback", utils.new_service()))
    with ended(start("echo", "--transport", local, str(address))) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        with dial(local, address) as sock:
            assert sock.exchange(b"x") == b"x"
            process.send_signal(number)
            assert process.wait(utils.LIMIT) == 0
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""
        assert process.stderr.read() == b""
    with pytest.raises(ConnectionRefusedError):
        hvsock.create_connection(address, utils.LIMIT, transport=local)


def test_the_address_is_taken(served: str) -> None:
    with utils.listen(served) as listener:
        address = listener.getsockname()
        line = failure("echo", "--transport", served, str(address))
    assert line.startswith(f"listen on {address}: ")
    assert "known cause" in line


def test_ctrl_c_closes_what_is_open(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In process: the first wait after the first client is interrupted."""
    address = hvsock.as_address(("loopback", utils.new_service()))
    real = hvsock.HyperVSocket.accept
    accepted: list[Any] = []

    def accept(self: hvsock.HyperVSocket) -> Any:
        if accepted:
            raise KeyboardInterrupt
        connection, peer = real(self)
        accepted.append(connection)
        return connection, peer

    monkeypatch.setattr(hvsock.HyperVSocket, "accept", accept)
    client = Task(lambda: dial(served, address))
    result = run("echo", "--transport", served, str(address))
    assert (result.exit_code, result.stderr) == (0, "")
    with client.result() as sock, contextlib.suppress(ConnectionError):
        assert sock.recv(1) == b""
    assert accepted[0].fileno() == -1


def test_a_client_that_resets_is_told_of(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        """A connection that fails."""

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def recv_into(self, _: object) -> int:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset\x1b by peer")

        def close(self) -> None:
            pass

    class Server:
        """A server to which it connects, after one client that was gone."""

        def __init__(self) -> None:
            self.calls = 0

        def settimeout(self, _: float) -> None:
            pass

        def accept(self) -> Any:
            self.calls += 1
            if self.calls == 1:
                raise ConnectionAbortedError
            if self.calls == 2:
                return Broken(), "the peer"
            assert no_thread_is_left()
            raise OSError(errno.EBADF, "Bad file descriptor")

    with pytest.raises(OSError, match="Bad file descriptor"):
        Echoes(Server()).run()  # type: ignore[arg-type]
    assert capsys.readouterr().out == "connection from the peer\nthe peer: Connection reset\\x1b by peer\n"


def test_there_is_room_for_so_many(served: str) -> None:
    """The one more client is served when another one has gone."""
    with utils.listen(served) as listener, contextlib.ExitStack() as stack:
        address = listener.getsockname()
        echoes = Echoes(listener, most=2)
        serving = Task(echoes.run)
        socks = [stack.enter_context(dial(served, address)) for _ in range(3)]
        for sock in socks[:2]:
            assert sock.exchange(b"x") == b"x"
        socks[2].settimeout(2 * utils.TICK)
        with pytest.raises(TimeoutError):
            socks[2].exchange(b"x")
        socks[0].close()
        socks[2].settimeout(utils.LIMIT)
        assert socks[2].exchange(b"x") == b"x"
        socks[1].close()
        listener.close()
        assert isinstance(serving.error(), OSError)
    assert no_thread_is_left()


@posix
def test_out_of_descriptors_it_waits(local: str) -> None:
    """It says so once, imports nothing for that, and serves those who waited when others have gone."""
    address = hvsock.as_address(("loopback", utils.new_service()))
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(ended(start("echo", "--transport", local, str(address))))
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        limit_descriptors(process, 8)
        socks = [stack.enter_context(dial(local, address)) for _ in range(12)]
        line = "hvsock: cannot accept: Too many open files; clients wait until a connection ends\n"
        assert process.stderr.readline().decode() == line
        for sock in socks:
            assert sock.exchange(b"x") == b"x"
            sock.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(utils.LIMIT) == 0
        assert set(process.stderr.read().decode().splitlines(keepends=True)) <= {line}


def limit_descriptors(process: subprocess.Popen[bytes], more: int) -> None:
    """Let a process have so many descriptors more than it has."""
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux sets the limits of another process: run it there")
    number = len(os.listdir(f"/proc/{process.pid}/fd")) + more
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (number, number))


def test_without_a_thread_it_goes_on(
    served: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = threading.Thread.start
    failing = [True]

    def begin(thread: threading.Thread) -> None:
        if "_serve" in thread.name and failing:
            failing.clear()
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", begin)
    with utils.listen(served) as listener:
        serving = Task(Echoes(listener).run)
        with dial(served, listener.getsockname()) as sock, contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b""
        with dial(served, listener.getsockname()) as sock:
            assert sock.exchange(b"x") == b"x"
        listener.close()
        assert isinstance(serving.error(), OSError)
    note = "hvsock: cannot accept: can't start new thread; clients wait until a connection ends\n"
    assert capsys.readouterr().err == note


@posix
def test_idle_it_sleeps(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hvsock.HyperVSocket.accept
    calls: list[object] = []

    def accept(self: hvsock.HyperVSocket) -> Any:
        calls.append(self)
        return real(self)

    monkeypatch.setattr(hvsock.HyperVSocket, "accept", accept)
    with utils.listen(served) as listener:
        serving = Task(Echoes(listener).run)
        time.sleep(0.6)
        listener.close()
        assert isinstance(serving.error(), OSError)
    assert len(calls) <= 2


@posix
def test_nobody_reads_what_it_prints(local: str) -> None:
    """Neither while a connection comes nor while one ends does the service go on unheard."""
    for gone_when in ("comes", "ends"):
        address = hvsock.as_address(("loopback", utils.new_service()))
        with ended(start("echo", "--transport", local, str(address))) as process:
            assert process.stdout
            assert process.stderr
            process.stdout.readline()
            if gone_when == "comes":
                process.stdout.close()
            with dial(local, address) as sock:
                if gone_when == "ends":
                    assert sock.exchange(b"x") == b"x"
                    process.stdout.readline()
                    process.stdout.close()
                sock.shutdown(socket.SHUT_WR)
                assert process.wait(utils.LIMIT) == 1
            assert process.stderr.read() == b"hvsock: standard output: Broken pipe\n"


def test_a_failure_of_a_thread_is_the_commands(monkeypatch: pytest.MonkeyPatch, served: str) -> None:
    def full(*lines: object) -> None:
        if "bytes echoed" in str(lines):
            raise Failure("standard output: No space left on device")

    monkeypatch.setattr(module, "print_lines", full)
    with utils.listen(served) as listener:
        serving = Task(Echoes(listener).run)
        with dial(served, listener.getsockname()):
            pass
        assert str(serving.error()) == "standard output: No space left on device"
