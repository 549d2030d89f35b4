"""`hvsock connect` and `hvsock listen`: every byte, both ends of both streams, and what fails."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import utils
from command_line import (
    command,
    ended,
    failure,
    half_close_echo,
    nowhere,
    on_terminal,
    plain,
    posix,
    run,
    service,
    start,
)  # fmt: skip
from utils import Task

import hvsock
from hvsock._cli import stdio
from hvsock._cli.meter import Counts
from hvsock._cli.output import Failure

EVERY_BYTE = bytes(range(256)) + b"\r\n\n\r\x1a\x04\x00" * 3


def dial(transport: str, address: Any) -> hvsock.HyperVSocket:
    return hvsock.create_connection(address, utils.LIMIT, transport=transport, retry_for=utils.LIMIT)


@contextlib.contextmanager
def connected_process(transport: str) -> Iterator[tuple[subprocess.Popen[bytes], hvsock.HyperVSocket]]:
    """Lend a `hvsock connect` that is ended at the end of the block, and the other end of its connection."""
    with utils.listen(transport) as listener:
        process = start("connect", "--transport", transport, str(listener.getsockname()))
        with ended(process), listener.accept()[0] as sock:
            sock.settimeout(utils.LIMIT)
            yield process, sock


def new_address() -> hvsock.HyperVAddress:
    return hvsock.as_address(("loopback", utils.new_service()))


@pytest.mark.parametrize("data", [b"", b"x", EVERY_BYTE, utils.random_bytes(1 << 20)], ids=["none", "x", "all", "MiB"])
def test_connect(transport: str, data: bytes) -> None:
    """The service answers only after the end of stdin, and the answer comes whole."""
    with service(transport, half_close_echo) as address:
        result = run("connect", "--transport", transport, address, input=data)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout_bytes == data[::-1]


def test_listen(served: str) -> None:
    address = new_address()
    client = Task(talk, served, address, EVERY_BYTE)
    result = run("listen", "--transport", served, "--timeout", str(utils.LIMIT), str(address), input=b"hello")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout_bytes == EVERY_BYTE
    assert client.result() == b"hello"


def test_a_client_that_has_gone_again_is_none(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hvsock.HyperVSocket.accept
    gone = [ConnectionAbortedError("gone again")]

    def accept(self: hvsock.HyperVSocket) -> tuple[Any, Any]:
        if gone:
            raise gone.pop()
        return real(self)

    monkeypatch.setattr(hvsock.HyperVSocket, "accept", accept)
    address = new_address()
    client = Task(talk, served, address, b"x")
    result = run("listen", "--transport", served, "--timeout", str(utils.LIMIT), str(address), input=b"hello")
    assert (result.exit_code, result.stdout_bytes) == (0, b"x")
    assert client.result() == b"hello"


def talk(transport: str, address: Any, data: bytes) -> bytes:
    with dial(transport, address) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return utils.receive_all(sock)


def test_verbose_is_on_stderr(served: str) -> None:
    address = new_address()
    client = Task(talk, served, address, b"")
    result = run("listen", "-v", "--transport", served, "--timeout", str(utils.LIMIT), str(address))
    client.result()
    assert re.fullmatch(rf"hvsock: listening on {address}\nhvsock: connection from hvsock://\S+\n", result.stderr)
    with service(served) as text:
        assert run("connect", "-v", "--transport", served, text).stderr == f"hvsock: connected to {text}\n"


def test_connect_tries_again(served: str) -> None:
    address = new_address()

    def late() -> bytes:
        time.sleep(4 * utils.TICK)
        with utils.listen(served, address) as listener, listener.accept()[0] as sock:
            return utils.receive_all(sock)

    serving = Task(late)
    result = run("connect", "--retry-for", str(utils.LIMIT), "--transport", served, str(address), input=b"hello")
    assert (result.exit_code, result.stderr) == (0, "")
    assert serving.result() == b"hello"


def test_what_cannot_be_reached(served: str) -> None:
    assert failure("connect", "--transport", served, nowhere()).startswith("connect to hvsock://loopback/")
    line = failure("listen", "--transport", served, "--timeout", str(utils.TICK), str(new_address()))
    assert re.fullmatch(r"accept on hvsock://loopback/\d+: timed out", line)
    with utils.listen(served) as listener:
        assert failure("listen", "--transport", served, str(listener.getsockname())).startswith("listen on ")


def test_check(served: str) -> None:
    """It tells whether the service is there, which is sent nothing."""
    with utils.listen(served) as listener:
        address = str(listener.getsockname())
        result = run("connect", "-z", "--transport", served, address, input=b"not sent")
        assert (result.exit_code, result.output) == (0, "")
        with listener.accept()[0] as sock:
            assert sock.recv(1) == b""
        result = run("connect", "-v", "--check", "--transport", served, address)
        assert (result.exit_code, result.output) == (0, f"hvsock: connected to {address}\n")
    assert failure("connect", "--check", "--transport", served, nowhere()).startswith("connect to ")


# Again and again, and programs


@contextlib.contextmanager
def listening(transport: str, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], hvsock.HyperVAddress]]:
    """Lend a `hvsock listen --verbose` that listens, and its address."""
    address = new_address()
    with ended(start("listen", "-v", "--transport", transport, *options, str(address))) as process:
        assert process.stderr is not None
        assert process.stderr.readline().strip().decode() == f"hvsock: listening on {address}"
        yield process, address


def python(code: str) -> str:
    """Return what --exec is given to run a program."""
    words = [sys.executable, "-Ic", code]
    return subprocess.list2cmdline(words) if utils.WINDOWS else shlex.join(words)


def test_keep_open(served: str) -> None:
    """One client after the other, and each one whole; stdin is nobody's, and a client that fails ends nothing."""
    with listening(served, "--keep-open") as (process, address):
        with dial(served, address) as first, dial(served, address) as second:
            second.sendall(b"second\n")
            first.sendall(b"fir")
            time.sleep(2 * utils.TICK)
            first.sendall(b"st\n")
            first.shutdown(socket.SHUT_WR)
            assert first.recv(1) == b""
        with dial(served, address) as third:
            third.sendall(b"third\n")
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(3)] == [b"first", b"second", b"third"]
        assert process.poll() is None


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(local: str, number: signal.Signals) -> None:
    with listening(local, "-k") as (process, address), dial(local, address) as sock:
        sock.sendall(b"x")
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        process.send_signal(number)
        assert process.wait(utils.LIMIT) == 0
        assert sock.recv(1) == b""


REVERSE = "import os, sys; sys.stdout.write(sys.stdin.read()[::-1] + os.environ['HVSOCK_PEER'])"


def test_a_program_has_the_connection(served: str) -> None:
    with listening(served, "--exec", python(REVERSE)) as (process, address), dial(served, address) as sock:
        sock.sendall(b"stressed ")
        sock.shutdown(socket.SHUT_WR)
        peer = hvsock.HyperVAddress(hvsock.HV_GUID_LOOPBACK, sock.getsockname().service_id)
        assert utils.receive_all(sock).decode() == f" desserts{peer}"
        assert process.wait(utils.LIMIT) == 0
        out, err = process.communicate()
        assert (out, err.strip().decode()) == (b"", f"hvsock: connection from {peer}")


def test_much_through_a_program(served: str) -> None:
    code = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
    data = utils.random_bytes(5 << 20)
    with listening(served, "--exec", python(code)) as (process, address), dial(served, address) as sock:
        sending = Task(sock.sendall, data)
        assert utils.receive_exactly(sock, len(data)) == data
        sending.result()
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        assert process.wait(utils.LIMIT) == 0


def test_a_program_for_each_client(served: str) -> None:
    """At the same time; how one fails is told, and ends nothing."""
    code = "import sys; line = sys.stdin.buffer.readline(); sys.stdout.buffer.write(line); sys.exit(b'fail' in line)"
    with listening(served, "-k", "--exec", python(code)) as (process, address):
        with dial(served, address) as first, dial(served, address) as second:
            for sock, line in ((second, b"well\n"), (first, b"fail\n")):
                sock.sendall(line)
                assert utils.receive_all(sock) == line
        assert process.stderr is not None
        lines = {process.stderr.readline().strip().decode().partition(": ")[2] for _ in range(4)}
        endings = {line.partition(": ")[2] for line in lines} - {""}
        assert endings == {"ended", "the program ended with exit code 1"}
        assert process.poll() is None


@posix
def test_the_program_s_failure_is_the_command_s(local: str) -> None:
    with listening(local, "--exec", python("raise SystemExit(3)")) as (process, address), dial(local, address):
        assert process.wait(utils.LIMIT) == 1
        assert process.stderr is not None
        assert process.stderr.read().endswith(b"hvsock: the program ended with exit code 3\n")


@posix
def test_programs_end_with_the_service(local: str) -> None:
    """One that does not look at its stdin, whose client has ended its stream."""
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    with listening(local, "-k", "--exec", python(code)) as (process, address), dial(local, address) as sock:
        sock.shutdown(socket.SHUT_WR)
        number = int(sock.recv(100))
        process.send_signal(signal.SIGTERM)
        assert process.wait(utils.LIMIT) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--exec", ""], "there is no program"),
        (["--exec", "'"], "No closing quotation"),
        pytest.param(["--exec", "no-such-program -x"], "there is no program 'no-such-program'", marks=posix),
        (["-k", "-t", "1"], "--timeout is for one connection"),
        (["-k", "--progress"], "--progress is for one connection to stdin and stdout"),
    ],
)
def test_usage(options: list[str], words: str) -> None:
    assert words in failure("listen", *options, "wildcard/5000", code=2)


# Streams that fail


class Tty(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_what_comes_is_escaped(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    with Tty(raw, encoding="latin-1", newline="") as out, utils.connected(served) as (a, b):
        monkeypatch.setattr(sys, "stdout", out)
        b.sendall("é".encode()[:1])
        b.sendall("é中\tx\x1b[31m\r\n".encode()[1:] + b"\xff\xc3")
        b.shutdown(socket.SHUT_WR)
        counts = Counts()
        stdio.receive(a, counts)
        assert counts.received == 16
        assert raw.getvalue() == b"\xe9\\u4e2d\tx\\x1b[31m\n\\xff\\xc3"


def test_the_end_of_the_peer_is_the_end_on_a_terminal(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to press Ctrl-D; a pipe is read to its end."""
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe, open(writer, "wb") as end, utils.connected(served) as (a, b):
        monkeypatch.setattr(sys, "stdin", Tty(io.BufferedReader(pipe.raw)))
        monkeypatch.setattr(sys, "stdout", Tty(io.BytesIO()))
        b.shutdown(socket.SHUT_WR)
        stdio.pump(a, "the peer")
        end.write(b"x")


def test_the_peer_takes_no_more(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had sent is still written, and the loss is an error."""
    with utils.connected(served) as (a, b):
        a.settimeout(utils.LIMIT)
        b.sendall(b"the answer")
        b.close()
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(64 << 20))))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw))
        with pytest.raises(Failure, match=r"^(send to|receive from) the peer: "):
            stdio.pump(a, "the peer")
        if not utils.WINDOWS:  # TCP, of which the bench makes its Hyper-V sockets, drops it when it is reset
            assert raw.getvalue() == b"the answer"


class Failing(io.RawIOBase):
    """A stdin with an error after the first bytes."""

    def __init__(self) -> None:
        self.reads = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self.reads += 1
        if self.reads == 1:
            return b"the beginning"
        raise OSError(5, "Input/output error")


def test_an_error_of_stdin_is_no_end(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with utils.connected(served) as (a, b):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Failing()))  # type: ignore[type-var]
        with pytest.raises(Failure, match=r"^standard input: Input/output error$"):
            stdio.pump(a, "the peer")
        assert a.fileno() == -1
        assert utils.receive_exactly(b, 13) == b"the beginning"


def test_no_stdin_is_an_empty_one(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(sock: socket.socket) -> bytes:
        data = utils.receive_all(sock)
        sock.shutdown(socket.SHUT_WR)
        return data

    with utils.connected(served) as (a, b):
        serving = Task(serve, b)
        monkeypatch.setattr(sys, "stdin", None)
        stdio.pump(a, "the peer")
        assert serving.result() == b""


# As processes


def test_as_processes(served: str) -> None:
    """Each end's stdin comes out of the other's stdout; each ends its stream at another time."""
    address = new_address()
    data = utils.random_bytes(5 << 20)
    with ended(start("listen", "-v", "--transport", served, str(address))) as one:
        assert one.stderr
        assert one.stderr.readline().strip().endswith(str(address).encode())
        with ended(start("connect", "--transport", served, "--retry-for", "10", str(address))) as other:
            talking = Task(one.communicate, data)
            out, err = other.communicate(b"short\r\n\x1a", timeout=utils.LIMIT)
            assert (other.returncode, err) == (0, b"")
            assert out == data
            assert talking.result()[0] == b"short\r\n\x1a"
            assert one.wait(utils.LIMIT) == 0


def test_half_closed_either_way(served: str) -> None:
    """The one whose stdin is still open goes on sending after the other's end of stream."""
    with connected_process(served) as (process, sock):
        assert process.stdin
        assert process.stdout
        sock.sendall(b"all of it")
        sock.shutdown(socket.SHUT_WR)
        # Stdout ends with the stream, although the process goes on.
        assert Task(process.stdout.read).result() == b"all of it"
        for _ in range(3):
            process.stdin.write(b"more")
            process.stdin.flush()
            assert utils.receive_exactly(sock, 4) == b"more"
        assert process.poll() is None
        process.stdin.close()
        assert sock.recv(1) == b""
        assert process.wait(utils.LIMIT) == 0


def test_it_ends_after_the_service_and_a_silence(served: str) -> None:
    """What stdin still has is sent; the time counts from its last bytes."""
    with utils.listen(served) as listener:
        options = ("--transport", served, "--end-after", str(20 * utils.TICK))
        with ended(start("connect", *options, str(listener.getsockname()))) as process, listener.accept()[0] as sock:
            sock.settimeout(utils.LIMIT)
            sock.shutdown(socket.SHUT_WR)
            assert process.stdin
            for _ in range(8):
                time.sleep(5 * utils.TICK)
                process.stdin.write(b"more")
                process.stdin.flush()
                assert utils.receive_exactly(sock, 4) == b"more"
            assert process.wait(utils.LIMIT) == 0
            assert sock.recv(1) == b""
            assert process.stderr
            assert process.stderr.read() == b""


def test_a_closed_service_alone_does_not_end_it(served: str) -> None:
    with connected_process(served) as (process, sock):
        sock.close()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(10 * utils.TICK)
        assert process.stdin
        process.stdin.close()
        assert process.wait(utils.LIMIT) == 0


@posix
def test_ctrl_c(local: str) -> None:
    with connected_process(local) as (process, sock):
        process.send_signal(signal.SIGINT)
        assert process.wait(utils.LIMIT) == 130
        assert sock.recv(1) == b""
        assert process.communicate() == (b"", b"")


@posix
def test_stdin_alone_is_waited_for_asleep(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the end of the peer's stream; nothing has to be looked at then."""
    real = stdio.Sender.join
    calls: list[object] = []

    def join(self: stdio.Sender, timeout: float | None = None) -> None:
        calls.append(timeout)
        real(self, timeout)

    monkeypatch.setattr(stdio.Sender, "join", join)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    reader, writer = os.pipe()
    with open(reader) as stdin, utils.connected(local) as (a, b):
        monkeypatch.setattr(sys, "stdin", stdin)
        b.shutdown(socket.SHUT_WR)
        pumping = Task(stdio.pump, a, "the peer")
        time.sleep(0.6)
        os.close(writer)
        pumping.result()
    assert len(calls) <= 2


@posix
def test_ctrl_c_while_stdin_alone_is_waited_for(local: str) -> None:
    with connected_process(local) as (process, sock):
        sock.shutdown(socket.SHUT_WR)
        assert process.stdout
        assert process.stdout.read() == b""
        time.sleep(utils.TICK)
        process.send_signal(signal.SIGINT)
        assert process.wait(utils.LIMIT) == 130


@posix
def test_connect_on_a_terminal(local: str) -> None:
    def serve(connection: hvsock.HyperVSocket) -> None:
        line = connection.recv(100)
        connection.sendall(b"\x1b]0;title\x07" + line.upper())

    with service(local, serve) as address, on_terminal("connect", "--transport", local, address) as terminal:
        process, shown, leader = terminal
        os.write(leader, b"hello\n")
        text = shown()
        assert process.wait(utils.LIMIT) == 0
    assert plain(text).endswith("\\x1b]0;title\\x07HELLO\r\n")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="a disk that is always full is Linux's /dev/full")
def test_a_full_disk(local: str) -> None:
    with service(local) as address, open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("connect", "--transport", local, address),
            input=b"x",
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=utils.LIMIT,
        )
    assert (done.returncode, done.stderr) == (1, b"hvsock: standard output: No space left on device\n")


@posix
def test_a_stdin_that_does_not_block_is_waited_for(local: str) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(utils.listen(local))
        words = ("connect", "--transport", local, str(listener.getsockname()))
        process = stack.enter_context(ended(start(*words, stdin=reader)))
        os.close(reader)
        sock = stack.enter_context(listener.accept()[0])
        for part in (b"first", b"second"):
            time.sleep(2 * utils.TICK)
            os.write(writer, part)
            assert utils.receive_exactly(sock, len(part)) == part
        os.close(writer)
        assert sock.recv(1) == b""
        sock.close()
        assert process.wait(utils.LIMIT) == 0


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_stdout_that_does_not_block_is_waited_for(local: str, unbuffered: str) -> None:
    """Its writes are short, and Python forgets the rest of an unbuffered one."""
    data = utils.random_bytes(1 << 20)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with service(local, lambda sock: sock.sendall(data)) as address:
        words = ["-P" if word == "-I" else word for word in command("connect", "--transport", local, address)]
        with ended(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=writer, env=environment)) as process:
            os.close(writer)
            time.sleep(10 * utils.TICK)
            with open(reader, "rb") as pipe:
                assert pipe.read() == data
            assert process.wait(utils.LIMIT) == 0


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_does_not_fit_on_a_disk_is_an_error(local: str, unbuffered: str, tmp_path: Path) -> None:
    """The first write is short, as on a disk with little room: here, the process may not write longer files."""
    resource = pytest.importorskip("resource")
    data = utils.random_bytes(100_000)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    with service(local, lambda sock: sock.sendall(data)) as address, (tmp_path / "file").open("wb") as file:
        words = ["-PB" if word == "-I" else word for word in command("connect", "--transport", local, address)]
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=utils.LIMIT,
            preexec_fn=limit,
        )
    assert (done.returncode, done.stderr) == (1, b"hvsock: standard output: File too large\n")
    assert (tmp_path / "file").read_bytes() == data[:1000]


@posix
def test_stdin_is_a_directory(local: str) -> None:
    directory = os.open(tempfile.gettempdir(), os.O_RDONLY)
    try:
        with service(local) as address:
            done = subprocess.run(
                command("connect", "--transport", local, address),
                stdin=directory,
                capture_output=True,
                timeout=utils.LIMIT,
            )
    finally:
        os.close(directory)
    # Python itself may refuse it, before the command starts.
    assert done.returncode == 1
    assert b"directory" in done.stderr.lower()
