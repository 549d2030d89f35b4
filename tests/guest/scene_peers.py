"""Programs of others at the other end of a connection, over loopback: what is seen is compared with README.md's tables.

`scene_peers.py COUNT NAME...` runs the checks of these peers, where many connections are COUNT; one line a check, exit
status 0 when each saw what its cell says. Most peers join a connection to their standard input and output, so that a
check has hold of both ends: `conn` is hvsock's, `peer` the process.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import hvsock

README = Path(__file__).with_name("README.md")
PROGRAMS = Path(__file__).with_name("programs")

# Bytes. A tail fits into the kernel's buffer of a connection, so that it can be sent and stay unread.
SIZE = 10 << 20
TAIL = 100_000
CHUNK = 1 << 16
COUNT = int(sys.argv[1])
# Seconds: for a call that should return, for a process that should end by itself, and for what may leave no trace.
WAIT = 60.0
LIFE = 180.0
SETTLE = 2.0

OURS = os.urandom(SIZE)
THEIRS = os.urandom(SIZE)
PORTS = itertools.count(5000)
POOL = ThreadPoolExecutor(max_workers=COUNT + 8)


# --- both ends ---


class Peer:
    """A process at the other end; if it is still there after LIFE, it is killed, which ends what waits for it."""

    def __init__(self, command: list[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (__exit__ closes it)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin: IO[bytes] = self.process.stdin
        self.stdout: IO[bytes] = self.process.stdout
        self._limit = threading.Timer(LIFE, self.process.kill)
        self._limit.start()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self._errors.close()

    def kill(self) -> None:
        self._limit.cancel()
        self.process.kill()
        self.process.wait()

    def write(self, data: bytes, *, and_end: bool = False) -> None:
        """Write all to its standard input, or as much as it takes before it ends."""
        view = memoryview(data)
        with contextlib.suppress(BrokenPipeError):
            while view:
                view = view[self.stdin.write(view) :]
            if and_end:
                self.stdin.close()

    def read(self, size: int = sys.maxsize) -> bytes:
        """Read `size` bytes of its standard output, or to its end."""
        data = bytearray()
        while len(data) < size and (chunk := self.stdout.read(min(size - len(data), CHUNK))):
            data += chunk
        return bytes(data)

    def said(self) -> list[str]:
        """What it has written to standard error, without socat's time and process id."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        return [re.sub(r"^\S+ \S+ \S+\[\d+\] [A-Z] ", "", line) for line in lines]


def dial(port: int, retry_for: float = 0.0) -> hvsock.HyperVSocket:
    return hvsock.create_connection(("loopback", port), timeout=WAIT, transport="vsock", retry_for=retry_for)


def listen(port: int) -> hvsock.HyperVSocket:
    server = hvsock.create_server(("wildcard", port), transport="vsock", backlog=COUNT)
    server.settimeout(WAIT)
    return server


def receive(conn: hvsock.HyperVSocket, size: int = sys.maxsize) -> tuple[bytes, str]:
    """Receive `size` bytes, or to the end of the stream; return how it ended too."""
    data = bytearray()
    while len(data) < size:
        try:
            chunk = conn.recv(min(size - len(data), CHUNK))
        except OSError as error:
            return bytes(data), type(error).__name__
        if not chunk:
            return bytes(data), "end"
        data += chunk
    return bytes(data), "open"


def error_of(call: Callable[..., object], *args: Any) -> str:
    try:
        call(*args)
    except OSError as error:
        return type(error).__name__
    return "no error"


def after_its_end(conn: hvsock.HyperVSocket) -> str:
    """What a receive sees of a process that has gone, and the send after it."""
    _, how = receive(conn)
    return f"{how}, then {error_of(conn.sendall, b'more')}"


# --- those that join a connection to their standard input and output ---


class Program(NamedTuple):
    """How a peer is started; `many` opens COUNT connections, if it can in one process."""

    connect: str
    listen: str
    echo: str
    many: str = ""

    def command(self, template: str, port: int) -> list[str]:
        return [word.format(port=port, count=COUNT, python=sys.executable) for word in template.split()]


def ours(command: str) -> Program:
    """One of programs/, which have the same arguments."""
    return Program(
        f"{command} connect 1 {{port}}",
        f"{command} listen {{port}}",
        f"{command} echo {{port}}",
        f"{command} many 1 {{port}} {{count}}",
    )


PEERS = {
    # -t: after one direction's end socat waits so long for the other's
    "socat": Program(
        "socat -d -d -t 60 STDIO VSOCK-CONNECT:1:{port}",
        "socat -d -d -t 60 VSOCK-LISTEN:{port} STDIO",
        "socat VSOCK-LISTEN:{port},fork PIPE",
    ),
    "ncat": Program(
        "ncat -v --vsock 1 {port}",
        "ncat -v --vsock -l {port}",
        "ncat --vsock -l {port} --keep-open --max-conns 300 --exec /bin/cat",
    ),
    "CPython": ours(f"{{python}} -I -S {PROGRAMS}/peer.py"),
    "Go": ours(f"{PROGRAMS}/peer-go"),
    "Rust": ours(f"{PROGRAMS}/peer-rust"),
}
CONNECTS, SERVES = ROLES = ("it connects", "it serves")


@contextlib.contextmanager
def joined(program: Program, role: str) -> Iterator[tuple[hvsock.HyperVSocket, Peer]]:
    """A connection and the peer at its other end."""
    port = next(PORTS)
    if role == CONNECTS:
        with listen(port) as server, Peer(program.command(program.connect, port)) as peer:
            conn, _ = server.accept()
            with conn:
                conn.settimeout(WAIT)
                yield conn, peer
    else:
        with Peer(program.command(program.listen, port)) as peer, dial(port, WAIT) as conn:
            yield conn, peer


def both_ways(conn: hvsock.HyperVSocket, peer: Peer) -> str:
    """Send 10 MiB each way at the same time; nothing is shut down before all has arrived."""
    tasks: list[Future[Any]] = [POOL.submit(conn.sendall, OURS), POOL.submit(peer.write, THEIRS)]
    there = POOL.submit(peer.read, SIZE)
    here, _ = receive(conn, SIZE)
    for task in tasks:
        task.result(WAIT)
    return compared(here, THEIRS) + ", " + compared(there.result(WAIT), OURS)


def compared(data: bytes | bytearray, sent: bytes) -> str:
    if hashlib.sha256(data).digest() == hashlib.sha256(sent).digest():
        return "whole"
    return f"{len(data)} of {len(sent)} bytes" if sent.startswith(data) else "altered"


def we_half_close(conn: hvsock.HyperVSocket, peer: Peer) -> str:
    conn.sendall(OURS[:TAIL])
    conn.shutdown(socket.SHUT_WR)
    there = compared(peer.read(TAIL), OURS[:TAIL])
    select.select([peer.stdout], [], [], SETTLE)  # most pass on the end that they have seen, or are gone by then
    peer.write(THEIRS[:TAIL], and_end=True)
    answer, how = receive(conn)
    return f"{there}, answer {compared(answer, THEIRS[:TAIL])}, {how}"


def it_half_closes(conn: hvsock.HyperVSocket, peer: Peer) -> str:
    peer.write(THEIRS[:TAIL], and_end=True)
    data, how = receive(conn)
    error = error_of(conn.sendall, OURS[:TAIL])
    conn.close()
    answer = compared(peer.read(), OURS[:TAIL]) if error == "no error" else error
    return f"{compared(data, THEIRS[:TAIL])}, {how}, answer {answer}, exit {peer.process.wait(WAIT)}"


def meet(conn: hvsock.HyperVSocket, peer: Peer) -> None:
    """See that the connection is there, both ways."""
    conn.sendall(b"hello\n")
    assert peer.read(6) == b"hello\n"
    peer.write(b"hello\n")
    assert receive(conn, 6)[0] == b"hello\n"


def killed_idle(conn: hvsock.HyperVSocket, peer: Peer) -> str:
    meet(conn, peer)
    peer.kill()
    return receive(conn)[1]


def killed_as_it_sends(conn: hvsock.HyperVSocket, peer: Peer) -> str:
    """Kill it in its 10 MiB."""
    POOL.submit(peer.write, THEIRS)
    data, _ = receive(conn, 1 << 20)
    peer.kill()
    rest, how = receive(conn)
    assert len(data + rest) < SIZE, "it was killed too late"
    assert THEIRS.startswith(data + rest), "altered"
    return how


def killed_as_we_send(conn: hvsock.HyperVSocket, peer: Peer) -> str:
    """Kill it when it has long taken nothing, since its output is not read."""
    sent = 0

    def send() -> None:
        nonlocal sent
        while sent < SIZE:
            sent += conn.send(OURS[sent : sent + CHUNK])

    sending = POOL.submit(error_of, send)
    before = -1
    while sent != before:
        before = sent
        time.sleep(SETTLE)
    assert not sending.done(), "it took all"
    peer.kill()
    return sending.result(WAIT)


def killed_with_ours_unread(conn: hvsock.HyperVSocket, peer: Peer) -> str:
    meet(conn, peer)
    peer.process.send_signal(signal.SIGSTOP)
    conn.sendall(OURS[:TAIL])
    peer.kill()
    return after_its_end(conn)


def killed_with_its_unread(conn: hvsock.HyperVSocket, peer: Peer) -> str:
    peer.write(THEIRS[:TAIL])
    deadline = time.monotonic() + WAIT
    while len(conn.recv(TAIL, socket.MSG_PEEK)) < TAIL and time.monotonic() < deadline:
        time.sleep(0.01)
    peer.kill()
    data, how = receive(conn)
    return f"{compared(data, THEIRS[:TAIL])}, {how}"


def addresses(conn: hvsock.HyperVSocket, peer: Peer) -> str:
    """What its lines with a port say, C being the client's and S the service's, and what hvsock says of the same."""
    meet(conn, peer)
    ends = (conn.getsockname(), conn.getpeername())
    (service, client) = sorted(end.service_id.fields[0] for end in ends)
    text = "; ".join(line for line in peer.said() if re.search(rf"\b({client}|{service})\b|Connected", line))
    here, there = (str(end).split("/")[2] for end in ends)
    return f"{text or 'nothing'} (hvsock: {here}, {there})".replace(str(client), "C").replace(str(service), "S")


def no_listener(program: Program, role: str) -> str:
    port = next(PORTS)
    if role == SERVES:
        with Peer(program.command(program.listen, port)), dial(port, WAIT):
            pass
        return error_of(dial, port)
    with Peer(program.command(program.connect, port)) as peer:
        status = peer.process.wait(WAIT)
        text = re.search(r"[Cc]onnection \w+ by peer", " ".join(peer.said()))
        return f"{text and text[0].capitalize()}, exit {status}"


def many(program: Program, role: str) -> str:
    """Have COUNT connections at once."""
    port = next(PORTS)
    if role == SERVES:
        with Peer(program.command(program.echo, port)):
            return all_of(echoed_at_once(port))
    with listen(port) as server:
        serving = POOL.submit(serve_echo, server)
        with contextlib.ExitStack() as stack:
            if program.many:
                status = stack.enter_context(Peer(program.command(program.many, port))).process.wait(LIFE)
                assert status == 0, status
            else:
                command = program.command(program.connect, port)
                speak_at_once([stack.enter_context(Peer(command)) for _ in range(COUNT)])
        return all_of(serving.result(WAIT))


def all_of(count: int) -> str:
    return "all" if count == COUNT else f"{count} of {COUNT}"


def speak_at_once(peers: list[Peer]) -> None:
    for number, peer in enumerate(peers):
        peer.write(b"%4d\n" % number)
    for number, peer in enumerate(peers):
        assert peer.read(5) == b"%4d\n" % number


def echoed_at_once(port: int) -> int:
    with contextlib.ExitStack() as stack:
        # Again and again: where the backlog is full, the kernel resets the next at once.
        conns = [stack.enter_context(dial(port, WAIT)) for _ in range(COUNT)]
        for number, conn in enumerate(conns):
            conn.sendall(b"%4d\n" % number)
        return sum(receive(conn, 5)[0] == b"%4d\n" % number for number, conn in enumerate(conns))


def serve_echo(server: hvsock.HyperVSocket) -> int:
    """Return how many of COUNT clients came and left."""

    def serve(conn: hvsock.HyperVSocket) -> None:
        with conn:
            conn.settimeout(LIFE)
            while data := conn.recv(CHUNK):
                conn.sendall(data)

    tasks = [POOL.submit(serve, server.accept()[0]) for _ in range(COUNT)]
    return sum(task.exception(WAIT) is None for task in tasks)


JOINED: dict[str, Callable[[hvsock.HyperVSocket, Peer], str]] = {
    "10 MiB both ways": both_ways,
    "we half-close first": we_half_close,
    "it half-closes first": it_half_closes,
    "killed while idle": killed_idle,
    "killed while it sends": killed_as_it_sends,
    "killed while we send": killed_as_we_send,
    "killed, our data unread": killed_with_ours_unread,
    "killed, its data unread": killed_with_its_unread,
}
STARTED: dict[str, Callable[[Program, str], str]] = {"no listener": no_listener, "many connections": many}
ADDRESSES = "addresses"


class Check(NamedTuple):
    """What sees something, and the cell with what it should see: table, row and column."""

    title: str
    cell: tuple[str, str, str]
    see: Callable[[], str]


def program_checks(name: str) -> Iterator[Check]:
    program = PEERS[name]

    def over(role: str, check: Callable[[hvsock.HyperVSocket, Peer], str]) -> str:
        with joined(program, role) as (conn, peer):
            return check(conn, peer)

    for role in ROLES:
        title = f"{name}, {role}"
        for row, check in JOINED.items():
            yield Check(f"{title}, {row}", (role, row, name), functools.partial(over, role, check))
        for row, start in STARTED.items():
            yield Check(f"{title}, {row}", (role, row, name), functools.partial(start, program, role))
        yield Check(f"{title}, addresses", (ADDRESSES, name, role), functools.partial(over, role, addresses))


# --- systemd-socket-activate: a process for each connection, or the listener handed over ---

OTHERS = "others"
ECHO_AT_3 = """
import hvsock
with hvsock.HyperVSocket(fileno=3) as server:
    while True:
        conn, _ = server.accept()
        with conn:
            while data := conn.recv(65536):
                conn.sendall(data)
"""


@contextlib.contextmanager
def activated(*words: str) -> Iterator[tuple[hvsock.HyperVSocket, Peer]]:
    port = next(PORTS)
    with Peer(["systemd-socket-activate", f"--listen=vsock::{port}", *words]) as peer, dial(port, WAIT) as conn:
        yield conn, peer


@contextlib.contextmanager
def activated_cat() -> Iterator[tuple[hvsock.HyperVSocket, int]]:
    """A cat for each connection, which first says its process id."""
    with activated("--accept", "--inetd", "--setenv=PATH", "/bin/sh", "-c", "echo $$; exec cat") as (conn, _):
        with conn.makefile("rb", buffering=0) as file:
            pid = int(file.readline())
        yield conn, pid


def echoed(conn: hvsock.HyperVSocket) -> str:
    sending = POOL.submit(conn.sendall, OURS)
    data, _ = receive(conn, SIZE)
    sending.result(WAIT)
    return compared(data, OURS)


def activate_both_ways() -> str:
    with activated_cat() as (conn, _):
        return echoed(conn)


def activate_half_close() -> str:
    with activated_cat() as (conn, _):
        conn.sendall(OURS[:TAIL])
        conn.shutdown(socket.SHUT_WR)
        data, how = receive(conn)
        return f"{compared(data, OURS[:TAIL])}, {how}"


def activate_killed() -> str:
    with activated_cat() as (conn, pid):
        os.kill(pid, signal.SIGKILL)
        return receive(conn)[1]


def activate_killed_unread() -> str:
    with activated_cat() as (conn, pid):
        os.kill(pid, signal.SIGSTOP)
        conn.sendall(OURS[:TAIL])
        os.kill(pid, signal.SIGKILL)
        return after_its_end(conn)


def activate_addresses() -> str:
    with activated("--accept", "--inetd", "--setenv=PATH", "/bin/cat") as (conn, peer):
        conn.sendall(b"x")
        assert conn.recv(1) == b"x"
        client, service = conn.getsockname().service_id.fields[0], conn.getpeername().port
        text = "; ".join(line for line in peer.said() if str(client) in line)
        return text.replace(str(client), "C").replace(str(service), "S")


def activate_many() -> str:
    with activated("--accept", "--inetd", "--setenv=PATH", "/bin/cat") as (conn, _):
        return all_of(echoed_at_once(conn.getpeername().port))


def activate_ours() -> str:
    """Take over the listener that it hands to a program of ours."""
    with activated(sys.executable, "-I", "-c", ECHO_AT_3) as (conn, _):
        return echoed(conn)


# --- qemu-ga: JSON, a line a message ---


@contextlib.contextmanager
def agent() -> Iterator[tuple[hvsock.HyperVSocket, Peer]]:
    port = next(PORTS)
    with tempfile.TemporaryDirectory() as state:
        command = ["qemu-ga", "-m", "vsock-listen", "-p", f"1:{port}", "-t", state, "-f", f"{state}/pid"]
        with Peer(command) as peer, dial(port, WAIT) as conn:
            yield conn, peer


def ask(conn: hvsock.HyperVSocket, execute: str, **arguments: Any) -> Any:
    conn.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")
    with conn.makefile("rb") as file:
        return json.loads(file.readline())["return"]


def agent_both_ways() -> str:
    """Write a file through it, and read that again."""
    with agent() as (conn, _), tempfile.NamedTemporaryFile() as file:
        handle = ask(conn, "guest-file-open", path=file.name, mode="r+")
        for start in range(0, SIZE, SIZE // 10):
            part = base64.b64encode(OURS[start : start + SIZE // 10]).decode()
            ask(conn, "guest-file-write", handle=handle, **{"buf-b64": part})
        ask(conn, "guest-file-seek", handle=handle, offset=0, whence=0)
        data = bytearray()
        while not (answer := ask(conn, "guest-file-read", handle=handle, count=SIZE // 10))["eof"]:
            data += base64.b64decode(answer["buf-b64"])
        data += base64.b64decode(answer["buf-b64"])
        return f"{compared(Path(file.name).read_bytes(), OURS)}, {compared(data, OURS)}"


def agent_half_close() -> str:
    """Shut down behind a request."""
    with agent() as (conn, _):
        conn.sendall(b'{"execute": "guest-ping"}\n')
        conn.shutdown(socket.SHUT_WR)
        data, how = receive(conn)
        return f"{data.decode().strip()}, {how}"


def agent_killed() -> str:
    with agent() as (conn, peer):
        ask(conn, "guest-ping")
        peer.kill()
        return receive(conn)[1]


def agent_killed_unread() -> str:
    with agent() as (conn, peer):
        ask(conn, "guest-ping")
        peer.process.send_signal(signal.SIGSTOP)
        conn.sendall(bytes(TAIL))
        peer.kill()
        return after_its_end(conn)


def agent_many() -> str:
    """Connect again and again, one after the other: it serves one client at a time."""
    with agent() as (conn, _):
        port = conn.getpeername().port
        ask(conn, "guest-ping")
        conn.close()
        answers = 0
        for _ in range(COUNT):
            with dial(port, WAIT) as next_conn:
                answers += ask(next_conn, "guest-sync", id=answers) == answers
        return all_of(answers)


# --- Go's own suite ---


def nettest() -> str:
    """Run mdlayher/vsock's tests of Go's nettest, over loopback without hvsock: what this kernel's sockets do."""
    command = [str(PROGRAMS / "vsock.test"), "-test.v", "-test.run", "TestIntegrationNettest", "-test.timeout", "170s"]
    with Peer(command) as peer:
        printed = peer.read().decode()
        status = peer.process.wait(WAIT)
    verdicts = re.findall(r"--- (PASS|FAIL|SKIP): (\S+/\S+)", printed)
    failed = [name for verdict, name in verdicts if verdict != "PASS"]
    return f"{len(verdicts) - len(failed)} passed, exit {status}" + "".join(f", {name}" for name in failed)


OTHER_CHECKS: dict[str, dict[str, Callable[[], str]]] = {
    "systemd-socket-activate": {
        "10 MiB both ways": activate_both_ways,
        "we half-close first": activate_half_close,
        "killed while idle": activate_killed,
        "killed, our data unread": activate_killed_unread,
        "many connections": activate_many,
        "addresses": activate_addresses,
        "a listener handed to hvsock": activate_ours,
    },
    "qemu-ga": {
        "10 MiB both ways": agent_both_ways,
        "we half-close first": agent_half_close,
        "killed while idle": agent_killed,
        "killed, our data unread": agent_killed_unread,
        "many connections": agent_many,
    },
    "nettest": {"its own tests": nettest},
}


def other_checks(name: str) -> Iterator[Check]:
    for row, check in OTHER_CHECKS[name].items():
        yield Check(f"{name}, {row}", (OTHERS, row, name), check)


# --- the tables ---


def read_table(name: str) -> dict[tuple[str, str], str]:
    """Return the cells of README.md's table behind the mark, by the first cells of their row and column."""
    page = README.read_text(encoding="utf-8")
    _, found, rest = page.partition(f"<!-- peers: {name} -->\n")
    assert found, f"README.md has no table {name}"
    lines = itertools.takewhile(lambda line: line.startswith("|"), rest.splitlines())
    (_, *columns), _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row, column): cell for row, *cells in rows for column, cell in zip(columns, cells, strict=True)}


def run(check: Check, cell: str) -> bool:
    """Print a check's line; a cell may have several answers, with " or " between them."""
    start = time.monotonic()
    try:
        seen = check.see()
    except Exception as error:
        seen = f"{type(error).__name__}: {error}"
    passed = seen in cell.split(" or ")
    print(f"{'ok   ' if passed else 'FAILED'} {check.title}: {seen} ({time.monotonic() - start:.1f} s)", flush=True)
    if not passed:
        print(f"       README.md says: {cell}", flush=True)
    return passed


def main(names: list[str]) -> int:
    checks = dict.fromkeys(PEERS, program_checks) | dict.fromkeys(OTHER_CHECKS, other_checks)
    tables = {name: read_table(name) for name in (*ROLES, ADDRESSES, OTHERS)}
    failed = 0
    for name in names:
        for check in checks[name](name):
            table, row, column = check.cell
            failed += not run(check, tables[table][row, column])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
