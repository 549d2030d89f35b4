"""hvsock's sockets with other users of the same sockets: CPython's own AF_HYPERV, asyncio's loops, another process.

Over the simulated provider only. A peer is a process of its own that plays the host or the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import queue
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from utils import LIMIT, Address, Pair

if sys.platform != "win32":
    pytest.skip("Windows Python only: tests/windows/run has one", allow_module_level=True)

import hvsock

hvsim = pytest.importorskip("hvsim", reason="the simulated provider only: tests/windows/run has it")

SHORT = 0.05
SIZE = 1 << 20
VM = "11111111-2222-4333-8444-555555555555"
HOST = "parent"

with_cpythons_own = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="CPython's socket.AF_HYPERV is new in 3.12: Windows CPython 3.13 runs this"
)


def data_of(seed: int) -> bytes:
    return random.Random(seed).randbytes(SIZE)


def hash_of(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def receive_all(sock: socket.socket) -> bytes:
    return b"".join(iter(functools.partial(sock.recv, 1 << 16), b""))


# What every peer can do. `new()` makes its socket, and is appended.
PEER = """
import faulthandler, functools, hashlib, random, socket, sys, time, uuid
faulthandler.dump_traceback_later(60, exit=True)

def say(*words):
    print(*words, flush=True)

def receive_all(sock):
    data = b"".join(iter(functools.partial(sock.recv, 1 << 16), b""))
    return hashlib.sha256(data).hexdigest()

def send_all(sock, seed):
    sock.sendall(random.Random(seed).randbytes(1 << 20))
    sock.shutdown(socket.SHUT_WR)

def listening(vm, service):
    listener = new()
    listener.bind((vm, service))
    listener.listen()
    say(*listener.getsockname())
    return listener

def serve(vm, service):
    with listening(vm, service) as listener:
        sock, peer = listener.accept()
        with sock:
            sock.settimeout(30)
            say(*peer)
            say(*sock.getpeername())
            say(receive_all(sock))
            send_all(sock, 2)

def dial(vm, service):
    with new() as sock:
        sock.connect((vm, service))
        say(*sock.getsockname())
        say(*sock.getpeername())
        send_all(sock, 1)
        say(receive_all(sock))

def stop_amid(sock):
    # Send what fits, receive nothing, and wait to be killed; not in a call on the socket: Wine keeps the
    # connections of a process that is killed in one open for ever.
    say("connected")
    sock.settimeout(0)
    try:
        while True:
            sock.send(bytes(10000))
    except BlockingIOError:
        say("full")
    time.sleep(60)

def stream(vm, service):
    with new() as sock:
        sock.connect((vm, service))
        stop_amid(sock)

def serve_stream(vm, service):
    with listening(vm, service) as listener:
        sock, _ = listener.accept()
        stop_amid(sock)

def given():
    return bytes.fromhex(sys.stdin.readline())
"""
CPYTHON = """
def new():
    sock = socket.socket(socket.AF_HYPERV, socket.SOCK_STREAM, socket.HV_PROTOCOL_RAW)
    sock.settimeout(30)
    return sock
"""
HVSOCK = """
import hvsock

def new():
    sock = hvsock.HyperVSocket()
    sock.settimeout(30)
    return sock
"""
KINDS = [pytest.param(CPYTHON, id="CPython", marks=with_cpythons_own), pytest.param(HVSOCK, id="hvsock")]


class Peer:
    """A process that runs a line of code, and is listened to line by line."""

    def __init__(self, kind: str, code: str, *arguments: object, partition: str = HOST) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", PEER + kind + code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"HVSIM_PARTITION": partition},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line.rstrip())
        self._lines.put("(the end)")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reader.join(LIMIT)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with contextlib.suppress(OSError):
                pipe.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT)

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def line(self) -> str:
        return self._lines.get(timeout=LIMIT)

    def address(self) -> tuple[uuid.UUID, uuid.UUID]:
        """Read the next line as an address: GUIDs in text, of whichever case."""
        line = self.line()
        try:
            vm, service = map(uuid.UUID, line.split())
        except ValueError:
            pytest.fail("not an address: " + "\n".join([line, *iter(self._lines.get_nowait, "(the end)")]))
        return vm, service

    def finish(self) -> None:
        """Wait for its end, which must be a good one, with nothing more to say."""
        assert self.line() == "(the end)"
        assert self.process.wait(LIMIT) == 0


@pytest.fixture
def pair(address: Address) -> Iterator[Pair]:
    with hvsock.create_server(address) as server, hvsock.create_connection(address, timeout=LIMIT) as client:
        server.settimeout(LIMIT)
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            yield client, accepted


# A peer in another process


def other(partition: str) -> str:
    return HOST if partition == VM else VM


def seen_from(partition: str) -> str:
    """Return the VM id that means the other partition, in this one."""
    return VM if partition == HOST else str(hvsock.HV_GUID_PARENT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("partition", [HOST, VM], ids=["host", "guest"])
def test_hvsock_serves(partition: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = uuid.uuid4()
    monkeypatch.setenv("HVSIM_PARTITION", partition)
    with hvsock.create_server(("wildcard", service)) as server:
        server.settimeout(LIMIT)
        dialled = seen_from(other(partition))
        with Peer(kind, "dial(*sys.argv[1:])", dialled, service, partition=other(partition)) as peer:
            accepted, caller = server.accept()
            with accepted:
                accepted.settimeout(LIMIT)
                name = peer.address()
                assert peer.address() == (uuid.UUID(dialled), service)
                assert caller == (uuid.UUID(seen_from(partition)), name[1])
                assert accepted.getpeername() == caller
                # The peer has ended its stream and hears the answer nevertheless.
                assert hash_of(receive_all(accepted)) == hash_of(data_of(1))
                accepted.sendall(data_of(2))
                accepted.shutdown(socket.SHUT_WR)
                assert peer.line() == hash_of(data_of(2))
                peer.finish()
                assert accepted.recv(1) == b""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("partition", [HOST, VM], ids=["host", "guest"])
def test_hvsock_dials(partition: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = uuid.uuid4()
    monkeypatch.setenv("HVSIM_PARTITION", partition)
    wildcard = str(hvsock.HV_GUID_WILDCARD)
    with Peer(kind, "serve(*sys.argv[1:])", wildcard, service, partition=other(partition)) as peer:
        assert peer.address() == (hvsock.HV_GUID_WILDCARD, service)
        with hvsock.create_connection((seen_from(partition), service), timeout=LIMIT) as sock:
            assert sock.getpeername() == (uuid.UUID(seen_from(partition)), service)
            caller = uuid.UUID(seen_from(other(partition))), sock.getsockname().service_id
            assert [peer.address(), peer.address()] == [caller, caller]
            sock.sendall(data_of(1))
            sock.shutdown(socket.SHUT_WR)
            assert peer.line() == hash_of(data_of(1))
            assert hash_of(receive_all(sock)) == hash_of(data_of(2))
            peer.finish()
            assert sock.getpeername() == (uuid.UUID(seen_from(partition)), service)


@contextlib.contextmanager
def streaming_peer(kind: str, role: str) -> Iterator[tuple[Peer, hvsock.HyperVSocket]]:
    """A guest amid its stream: it has sent all that fits, has not ended, and receives nothing."""
    service = uuid.uuid4()
    with contextlib.ExitStack() as stack:
        if role == "dials":
            server = stack.enter_context(hvsock.create_server(("wildcard", service)))
            server.settimeout(LIMIT)
            code, vm = "stream(*sys.argv[1:])", hvsock.HV_GUID_PARENT
            peer = stack.enter_context(Peer(kind, code, vm, service, partition=VM))
            sock = stack.enter_context(server.accept()[0])
            sock.settimeout(LIMIT)
        else:
            code, vm = "serve_stream(*sys.argv[1:])", hvsock.HV_GUID_WILDCARD
            peer = stack.enter_context(Peer(kind, code, vm, service, partition=VM))
            peer.address()
            sock = stack.enter_context(hvsock.create_connection((VM, service), timeout=LIMIT))
        assert [peer.line(), peer.line()] == ["connected", "full"]
        yield peer, sock


def until_the_end(call: Callable[[], object]) -> None:
    """Call until nothing comes (end of stream) or an error other than a timeout does."""
    start = time.monotonic()
    try:
        while call() not in (b"", 0):
            assert time.monotonic() - start < LIMIT
    except TimeoutError:
        raise
    except OSError:
        pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["dials", "serves"])
@pytest.mark.parametrize("when", ["blocked", "before"])
def test_receiving_from_a_killed_peer(kind: str, role: str, when: str) -> None:
    with streaming_peer(kind, role) as (peer, sock):
        assert sock.recv(1000)
        if when == "before":
            peer.kill()
        killer = threading.Timer(5 * SHORT, peer.kill)
        killer.start()
        until_the_end(lambda: sock.recv(1 << 16))
        killer.join(LIMIT)
        # And now that it is known.
        until_the_end(lambda: sock.recv(1000))
        until_the_end(lambda: sock.send(bytes(1000)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["dials", "serves"])
def test_sending_to_a_killed_peer(kind: str, role: str) -> None:
    """The send is blocked when it is killed, since it receives nothing."""
    with streaming_peer(kind, role) as (peer, sock):
        killer = threading.Timer(5 * SHORT, peer.kill)
        killer.start()
        until_the_end(lambda: sock.send(bytes(1 << 20)))
        killer.join(LIMIT)


# asyncio: connected sockets on both of Windows' loops


def run_on(loop: str, main: Coroutine[Any, Any, None]) -> list[dict[str, Any]]:
    """Run it on a loop of this name, in debug mode, within the limit; return what the loop complained of."""
    complaints: list[dict[str, Any]] = []

    async def limited() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await asyncio.wait_for(main, LIMIT)

    # Debug mode, since the Proactor keeps quiet about unexpected completions without it.
    with asyncio.Runner(debug=True, loop_factory=getattr(asyncio, loop)) as runner:
        runner.run(limited())
    return complaints


@pytest.fixture(params=["SelectorEventLoop", "ProactorEventLoop"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_streams(loop: str, pair: Pair) -> None:
    async def end(sock: socket.socket, seed: int) -> str:
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
        assert writer.get_extra_info("peername") == sock.getpeername()
        writer.write(b"line %d\n" % seed)
        assert (await reader.readline()).startswith(b"line ")
        writer.write(data_of(seed))
        writer.write_eof()
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
        return hash_of(received)

    async def main() -> None:
        client, accepted = pair
        found: list[str] = list(await asyncio.gather(end(client, 1), end(accepted, 2)))
        assert found == [hash_of(data_of(2)), hash_of(data_of(1))]

    assert run_on(loop, main()) == []


def test_loop_methods(loop: str, pair: Pair) -> None:
    async def main() -> None:
        client, accepted = pair
        client.setblocking(False)
        accepted.setblocking(False)
        running = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(running.sock_recv(accepted, 100))
        await asyncio.sleep(SHORT)
        await running.sock_sendall(client, b"late")
        assert await waiting == b"late"
        cancelled = asyncio.ensure_future(running.sock_recv(accepted, 100))
        await asyncio.sleep(SHORT)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        sending = asyncio.ensure_future(running.sock_sendall(client, data_of(1)))
        buffer, received = bytearray(50_000), bytearray()
        while len(received) < SIZE:
            received += buffer[: await running.sock_recv_into(accepted, buffer)]
        await sending
        assert hash_of(received) == hash_of(data_of(1))

    assert run_on(loop, main()) == []


def test_transport_of_a_killed_peer(loop: str) -> None:
    """The protocol is told, by an error or by the end."""

    async def main() -> None:
        with streaming_peer(HVSOCK, "dials") as (peer, sock):
            sock.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=sock)
            await reader.readexactly(1000)
            await asyncio.to_thread(peer.kill)
            with contextlib.suppress(OSError):
                await reader.read()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    assert run_on(loop, main()) == []


def blocking_calls(client: hvsock.HyperVSocket, accepted: hvsock.HyperVSocket) -> None:
    """Every way a call of ours can go: at once, after waiting, by the timeout."""
    client.settimeout(LIMIT)
    for number in range(50):
        data = b"%d" % number
        for timeout in (None, LIMIT):
            accepted.settimeout(timeout)
            client.sendall(data)
            assert accepted.recv(100) == data
        sender = threading.Timer(0.002, client.sendmsg, args=([data, data],))
        sender.start()
        assert accepted.recv(2 * len(data)) == 2 * data
        sender.join(LIMIT)
    accepted.settimeout(SHORT)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        accepted.recv(1)
    assert time.monotonic() - start < LIMIT
    accepted.settimeout(0)
    with pytest.raises(BlockingIOError):
        accepted.recv(1)


def test_blocking_calls_on_a_completion_port(pair: Pair) -> None:
    """What the Proactor has used stays tied to its port: our calls must not leave completions there."""
    client, accepted = pair

    async def exchange() -> None:
        running = asyncio.get_running_loop()
        for one, other in ((client, accepted), (accepted, client)):
            one.setblocking(False)
            other.setblocking(False)
            receiving = asyncio.ensure_future(running.sock_recv(other, 100))
            await running.sock_sendall(one, b"data")
            assert await receiving == b"data"

    async def main() -> None:
        await exchange()
        await asyncio.to_thread(blocking_calls, client, accepted)
        await asyncio.sleep(SHORT)  # whatever came to the port is taken from it now
        await exchange()

    assert run_on("ProactorEventLoop", main()) == []
    # The loop is closed, and with it the port.
    blocking_calls(client, accepted)
    accepted.settimeout(LIMIT)
    closer = threading.Timer(SHORT, accepted.close)
    closer.start()
    with pytest.raises(OSError) as caught:
        accepted.recv(1)
    assert not isinstance(caught.value, TimeoutError)
    closer.join(LIMIT)
    # And another loop has the other end.
    client.setblocking(False)

    async def end() -> None:
        with contextlib.suppress(ConnectionError):
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""

    assert run_on("SelectorEventLoop", end()) == []


def test_accept_and_connect_on_a_completion_port(address: Address) -> None:
    """The Proactor cannot accept or connect for this family, but ties the sockets to its port before it finds out."""

    def accept(server: hvsock.HyperVSocket) -> None:
        with hvsock.HyperVSocket() as client:
            client.settimeout(LIMIT)
            dialling = threading.Timer(SHORT, client.connect, args=(address,))
            dialling.start()
            accepted, _ = server.accept()
            dialling.join(LIMIT)
            with accepted:
                accepted.sendall(b"data")
                assert client.recv(4) == b"data"

    def connect(sock: hvsock.HyperVSocket, server: hvsock.HyperVSocket) -> None:
        sock.settimeout(LIMIT)
        sock.connect(address)
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"data")
            assert sock.recv(4) == b"data"

    async def main() -> None:
        running = asyncio.get_running_loop()
        with hvsock.create_server(address) as server, hvsock.HyperVSocket() as client:
            server.setblocking(False)
            client.setblocking(False)
            with contextlib.suppress(OSError, ValueError):
                await asyncio.wait_for(running.sock_accept(server), SHORT)
            with contextlib.suppress(OSError, ValueError, TypeError):
                await asyncio.wait_for(running.sock_connect(client, ("loopback", uuid.uuid4())), SHORT)
            server.settimeout(LIMIT)
            await asyncio.to_thread(accept, server)
            await asyncio.to_thread(connect, client, server)
            server.settimeout(SHORT)
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(server.accept)
            await asyncio.sleep(SHORT)

    assert run_on("ProactorEventLoop", main()) == []


# A socket that another process is given


@pytest.mark.parametrize(
    "adopt",
    [
        "hvsock.HyperVSocket(fileno=given())",
        "hvsock.HyperVSocket(fileno=socket.fromshare(given()).detach())",
        "socket.fromshare(given())",
    ],
    ids=["HyperVSocket", "HyperVSocket of a detached socket", "socket"],
)
@pytest.mark.parametrize("end", [0, 1], ids=["client", "accepted"])
def test_shared_connection(pair: Pair, adopt: str, end: int) -> None:
    mine, other_end = pair[end], pair[1 - end]
    code = f"""
with {adopt} as sock:
    sock.settimeout(30)
    if isinstance(sock, hvsock.HyperVSocket):
        assert sock.proto == hvsock.HV_PROTOCOL_RAW
        say(*sock.getpeername())
    else:
        say("socket")
    assert not sock.get_inheritable()
    say(receive_all(sock))
    send_all(sock, 2)
"""
    with Peer(HVSOCK, code) as peer:
        peer.tell(mine.share(peer.process.pid).hex())
        if adopt.startswith("hvsock"):
            assert peer.address() == mine.getpeername()
        else:
            assert peer.line() == "socket"
        mine.close()  # the connection is the other process's now
        other_end.sendall(data_of(1))
        other_end.shutdown(socket.SHUT_WR)
        assert peer.line() == hash_of(data_of(1))
        assert hash_of(receive_all(other_end)) == hash_of(data_of(2))
        peer.finish()


def test_shared_listener(address: Address) -> None:
    code = """
with hvsock.HyperVSocket(fileno=given()) as listener:
    listener.settimeout(30)
    say(*listener.getsockname())
    sock, peer = listener.accept()
    with sock:
        say(*peer)
        sock.settimeout(30)
        send_all(sock, 1)
"""
    with Peer(HVSOCK, code) as peer:
        with hvsock.create_server(address) as server:
            peer.tell(server.share(peer.process.pid).hex())
            assert peer.address() == server.getsockname()
        with hvsock.create_connection(address, timeout=LIMIT) as client:
            assert peer.address() == (hvsock.HV_GUID_LOOPBACK, client.getsockname().service_id)
            assert hash_of(receive_all(client)) == hash_of(data_of(1))
            peer.finish()


def test_close_in_one_of_two_processes(pair: Pair) -> None:
    """The connection lasts until the last of the owners has closed it."""
    client, accepted = pair
    code = """
with hvsock.HyperVSocket(fileno=given()) as sock:
    sock.settimeout(30)
    sock.sendall(b"from the other process")
"""
    with Peer(HVSOCK, code) as peer:
        peer.tell(accepted.share(peer.process.pid).hex())
        assert client.recv(100) == b"from the other process"
        peer.finish()
    accepted.sendall(b"and from here")
    assert client.recv(100) == b"and from here"
    accepted.close()
    assert client.recv(1) == b""


# Options


@pytest.mark.parametrize("suspend", [False, True])
@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["no timeout", "timeout"])
def test_connected_suspend_is_inherited(address: Address, suspend: bool, timeout: float | None) -> None:
    """It is set on the new socket before AcceptEx; once connected, Windows does not tell, nor does the provider."""
    with hvsock.create_server(address, connected_suspend=suspend) as server:
        server.settimeout(timeout)
        assert server.connected_suspend is suspend
        assert server.getsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECTED_SUSPEND) == int(suspend)

        def accept() -> None:
            accepted, _ = server.accept()
            with accepted:
                assert accepted.connected_suspend is suspend
                with accepted.dup() as copy:
                    assert copy.connected_suspend is suspend
            assert server.connected_suspend is suspend

        with hvsock.create_connection(address, timeout=LIMIT):
            hvsim.reset_counts()
            accept()
            # The other one is SO_UPDATE_ACCEPT_CONTEXT.
            assert hvsim.counts()["setsockopt"] == (2 if suspend else 1)
        if suspend:
            # It is the first of the two, and a kernel that does not know it is no reason to refuse the connection.
            with hvsock.create_connection(address, timeout=LIMIT), hvsim.faults("setsockopt=10042"):
                accept()
            # Before AcceptEx: it is set even where that fails.
            with hvsim.faults("AcceptEx=10050"), pytest.raises(OSError):
                hvsim.reset_counts()
                server.accept()
            assert hvsim.counts()["setsockopt"] == 1


@pytest.mark.parametrize("name", ["connected_suspend", "high_vtl", "container_passthru"])
def test_flags(address: Address, name: str) -> None:
    option = getattr(hvsock, f"HVSOCKET_{name.upper()}")
    with hvsock.create_server(address) as server, hvsock.HyperVSocket() as sock:
        sock.settimeout(LIMIT)
        for value in (True, False, True):
            setattr(sock, name, value)
            assert getattr(sock, name) is value
            assert sock.getsockopt(hvsock.HV_PROTOCOL_RAW, option) == int(value)
        sock.connect(address)
        server.settimeout(LIMIT)
        accepted, _ = server.accept()
        with accepted:
            # Connected, the system's answer is wrong, and ours is not.
            assert sock.getsockopt(hvsock.HV_PROTOCOL_RAW, option) == 0
            assert getattr(sock, name) is True
            assert getattr(accepted, name) is False
            with sock.dup() as copy:
                assert getattr(copy, name) is True
        with hvsim.faults("setsockopt=10042"), pytest.raises(OSError) as caught:
            setattr(sock, name, False)
        assert caught.value.winerror == 10042
        assert getattr(sock, name) is True


@pytest.mark.parametrize(
    ("timeout", "milliseconds"),
    [(None, 0), (0, 0), (0.0005, 0), (0.25, 250), (7.5, 7500), (299.999, 299_999), (300, 300_000), (86_400, 300_000)],
)
def test_connect_timeout_is_the_kernels_too(address: Address, timeout: float | None, milliseconds: int) -> None:
    """The kernel must wait no shorter than we do, and not longer than it can (HVSOCKET_CONNECT_TIMEOUT_MAX)."""
    with hvsock.HyperVSocket() as sock:
        sock.settimeout(timeout)
        # A connect that is refused leaves the option to be read.
        with pytest.raises(OSError):
            sock.connect(address)
        set_to = sock.getsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT)
        if timeout:
            assert milliseconds <= set_to <= min(milliseconds + 1, 300_000)
        else:
            assert set_to == 0
