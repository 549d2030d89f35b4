"""Named pipes in a relay, of messages and of bytes, as what is listened on and as the target."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ctypes import wintypes
from typing import Self

import pytest
import utils
from utils import LIMIT, TICK, Task, receive_all, receive_exactly

if sys.platform != "win32":
    pytest.skip("Windows Python only: tests/windows/run has one", allow_module_level=True)

import _winapi

from hvsock.relay import Relay

NUMBERS = itertools.count()
PAYLOAD = b"".join(index.to_bytes(4, "big") for index in range(80_000))
MESSAGES = _winapi.PIPE_TYPE_MESSAGE
BYTES = 0
HOLD = 5.0  # src/hv_relay.h: HV_HOLD


@pytest.fixture
def name() -> str:
    return f"hvsock-test-{os.getpid()}-{next(NUMBERS)}"


class End:
    """One end of a pipe, which waits in each call."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def fileno(self) -> int:
        return self._handle

    def send(self, data: bytes) -> None:
        _winapi.WriteFile(self._handle, data)

    def send_empty(self) -> None:
        """End the stream as go-winio does: when all is read, by a message without bytes."""
        assert ctypes.WinDLL("kernel32").FlushFileBuffers(wintypes.HANDLE(self._handle))
        _winapi.WriteFile(self._handle, b"")

    def receive(self, size: int = 1 << 16) -> bytes:
        """Receive some bytes; none at the end."""
        try:
            return bytes(_winapi.ReadFile(self._handle, size)[0])
        except BrokenPipeError:
            return b""

    def receive_exactly(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            data = self.receive(size - len(received))
            assert data
            received += data
        return bytes(received)

    def close(self) -> None:
        if self._handle != -1:
            _winapi.CloseHandle(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server(End):
    """An instance of a pipe."""

    def __init__(self, name: str, kind: int) -> None:
        handle = _winapi.CreateNamedPipe(
            rf"\\.\pipe\{name}", _winapi.PIPE_ACCESS_DUPLEX, kind, 2, 4096, 4096, 0, _winapi.NULL
        )
        super().__init__(handle)

    def wait(self) -> None:
        with contextlib.suppress(OSError):  # the client was sooner
            _winapi.ConnectNamedPipe(self._handle)


def open_pipe(name: str) -> End:
    access = _winapi.GENERIC_READ | _winapi.GENERIC_WRITE
    return End(_winapi.CreateFile(rf"\\.\pipe\{name}", access, 0, 0, _winapi.OPEN_EXISTING, 0, 0))


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        yield listener


def uri(listener: socket.socket) -> str:
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def connected(relay: Relay, server: Server) -> Iterator[socket.socket]:
    """Connect through a relay that listens on TCP to a pipe."""
    with utils.dial(relay.address) as client:
        server.wait()
        yield client


def expect(relay: Relay, *expected: int) -> None:
    utils.wait_for(lambda: relay.counters[: len(expected)] == expected)


def test_a_pipe_to_listen_on(name: str, tcp: socket.socket) -> None:
    with Relay(f"npipe:{name}", uri(tcp)) as relay, open_pipe(name) as client, tcp.accept()[0] as server:
        server.settimeout(LIMIT)
        sending = Task(server.sendall, PAYLOAD[::-1])
        assert client.receive_exactly(len(PAYLOAD)) == PAYLOAD[::-1]
        sending.result()
        client.send(PAYLOAD)
        assert receive_exactly(server, len(PAYLOAD)) == PAYLOAD
        client.send_empty()
        assert receive_all(server) == b""
        server.sendall(b"answer")
        server.close()
        assert client.receive_exactly(6) == b"answer"
        assert client.receive() == b""
        expect(relay, 0, 1, 0, 0, 0, len(PAYLOAD), len(PAYLOAD) + 6)
    with pytest.raises(FileNotFoundError):
        open_pipe(name)


@pytest.mark.parametrize("form", ["npipe:////./pipe/{}", "npipe://./pipe/{}", r"npipe:\\.\pipe\{}"])
def test_a_pipe_of_messages(name: str, form: str) -> None:
    """The end is an empty message, which a reader notices that takes more than it at a time, and late."""
    with Server(name, MESSAGES) as server, Relay("tcp://:0", form.format(name)) as relay:
        with connected(relay, server) as client:
            client.sendall(b"request")
            client.shutdown(socket.SHUT_WR)
            time.sleep(4 * TICK)
            assert server.receive() == b"request"
            assert server.receive() == b""
            server.send(b"answer")
            assert receive_exactly(client, 6) == b"answer"
            server.send(b"!")
            server.close()
            assert receive_all(client) == b"!"
        expect(relay, 0, 1, 0, 0, 0, 7, 7)


def test_an_empty_message_of_the_target(name: str) -> None:
    with Server(name, MESSAGES) as server, Relay("tcp://:0", f"npipe:{name}") as relay:
        with connected(relay, server) as client:
            server.send(b"hello")
            server.send_empty()
            assert receive_all(client) == b"hello"
            client.sendall(b"still there")
            assert server.receive_exactly(11) == b"still there"
        assert server.receive() == b""
        expect(relay, 0, 1, 0, 0, 0, 11, 5)


def test_a_pipe_of_bytes(name: str) -> None:
    """An answer after the end of the request arrives; empty writes mean nothing."""
    with Server(name, BYTES) as server, Relay("tcp://:0", f"npipe:{name}") as relay:
        with connected(relay, server) as client:
            client.sendall(PAYLOAD[:3000])
            client.shutdown(socket.SHUT_WR)
            assert server.receive_exactly(3000) == PAYLOAD[:3000]
            time.sleep(4 * TICK)
            server.send(b"ans")
            server.send(b"")
            server.send(b"wer")
            assert receive_exactly(client, 6) == b"answer"
            server.close()
            assert receive_all(client) == b""
        expect(relay, 0, 1, 0, 0, 0, 3000, 6)


def test_a_silent_pipe_of_bytes_is_closed(name: str) -> None:
    with Server(name, BYTES) as server, Relay("tcp://:0", f"npipe:{name}") as relay:
        with connected(relay, server) as client:
            began = time.monotonic()
            client.shutdown(socket.SHUT_WR)
            assert server.receive() == b""
            assert time.monotonic() - began > HOLD - 0.1
        expect(relay, 0, 1, 0, 0, 0)


@pytest.mark.parametrize("kind", [MESSAGES, BYTES])
def test_backpressure_and_large_data(name: str, kind: int) -> None:
    with Server(name, kind) as server, Relay("tcp://:0", f"npipe:{name}") as relay:
        with connected(relay, server) as client:
            sending = Task(client.sendall, PAYLOAD)
            time.sleep(2 * TICK)
            assert server.receive_exactly(len(PAYLOAD)) == PAYLOAD
            sending.result()
            sending = Task(server.send, PAYLOAD[::-1])
            assert receive_exactly(client, len(PAYLOAD)) == PAYLOAD[::-1]
            sending.result()
        server.close()
        expect(relay, 0, 1, 0, 0, 0, len(PAYLOAD), len(PAYLOAD))


def test_from_pipe_to_pipe(name: str, tcp: socket.socket) -> None:
    with (
        Relay(f"npipe:{name}", uri(tcp)) as inner,
        Relay(f"npipe:{name}-2", f"npipe:{name}") as outer,
        open_pipe(f"{name}-2") as client,
        tcp.accept()[0] as server,
    ):
        server.settimeout(LIMIT)
        client.send(b"request")
        assert receive_exactly(server, 7) == b"request"
        client.send_empty()
        assert receive_all(server) == b""
        server.sendall(b"answer")
        server.close()
        assert client.receive_exactly(6) == b"answer"
        assert client.receive() == b""
        for relay in (inner, outer):
            expect(relay, 0, 1, 0, 0, 0, 7, 6)


def test_who_may_open_it(name: str, tcp: socket.socket) -> None:
    """Neither Everyone (WD) nor an anonymous user (AN), who may read from a pipe of no special access."""
    advapi = ctypes.WinDLL("advapi32")
    descriptor, text = ctypes.c_void_p(), wintypes.LPWSTR()
    with Relay(f"npipe:{name}", uri(tcp)), open_pipe(name) as client:
        handle = wintypes.HANDLE(client.fileno())
        assert advapi.GetSecurityInfo(handle, 6, 4, None, None, None, None, ctypes.byref(descriptor)) == 0
    convert = advapi.ConvertSecurityDescriptorToStringSecurityDescriptorW
    assert convert(descriptor, 1, 4, ctypes.byref(text), None)
    assert text.value is not None
    assert sorted(entry.rpartition(";")[2] for entry in text.value.split(")")[:-1]) == ["BA", "OW", "SY"]


def test_clients_one_after_the_other(name: str, tcp: socket.socket) -> None:
    """And several at a time: there is always an instance for the next one."""
    threads = threading.active_count()
    with Relay(f"npipe:{name}", uri(tcp)) as relay, contextlib.ExitStack() as stack:
        clients: list[End] = []
        for number in range(20):
            utils.wait_for(functools.partial(is_there, name, clients, stack))
            clients[-1].send(b"%d" % number)
            server = stack.enter_context(tcp.accept()[0])
            server.settimeout(LIMIT)
            assert server.recv(10) == b"%d" % number
            server.sendall(b"y")
            assert clients[-1].receive() == b"y"
        assert relay.counters.open == 20
        utils.wait_for(lambda: threading.active_count() <= threads + min(os.cpu_count() or 1, 16) + 2)
        relay.stop()
        assert relay.counters[:5] == (0, 20, 0, 0, 20)
        assert [client.receive() for client in clients] == [b""] * 20


def is_there(name: str, clients: list[End], stack: contextlib.ExitStack) -> bool:
    """Connect if there is an instance: between two, for a moment, there may be none."""
    with contextlib.suppress(OSError):
        clients.append(stack.enter_context(open_pipe(name)))
        return True
    return False


def test_a_busy_pipe_is_waited_for(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with Server(name, MESSAGES) as server, Relay("tcp://:0", f"npipe:{name}") as relay:
        with connected(relay, server) as first, utils.dial(relay.address) as second:
            first.sendall(b"1")
            assert server.receive() == b"1"
            second.sendall(b"2")
            time.sleep(4 * TICK)
            assert relay.counters.failed == 0
            with Server(name, MESSAGES) as other:
                other.wait()
                assert other.receive() == b"2"
        assert caplog.text == ""


def test_a_busy_pipe_is_not_waited_for_for_ever(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with Server(name, MESSAGES) as server, Relay("tcp://:0", f"npipe:{name}", connect_timeout=4 * TICK) as relay:
        with connected(relay, server), utils.dial(relay.address) as second:
            cut_off(second)
        utils.wait_for(lambda: "was not reached: timed out: all instances of the pipe have clients" in caplog.text)


def cut_off(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        assert receive_all(sock) == b""


def test_a_pipe_that_is_missing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with Relay("tcp://:0", f"npipe:{name}") as relay:
        with utils.dial(relay.address) as client:
            cut_off(client)
        expect(relay, 0, 1, 0, 1)
    assert f"npipe:{name} was not reached: [WinError 2]" in caplog.text


def test_a_pipe_that_comes_later(name: str) -> None:
    with Relay("tcp://:0", f"npipe:{name}", retry_for=LIMIT) as relay, utils.dial(relay.address) as client:
        client.sendall(b"early")
        time.sleep(2 * TICK)
        with Server(name, BYTES) as server:
            server.wait()
            assert server.receive() == b"early"


@pytest.mark.skipif(utils.WINE, reason="Wine lets a second program make instances: run it on Windows")
def test_a_name_that_is_taken(name: str) -> None:
    with Server(name, MESSAGES), pytest.raises(PermissionError) as caught:
        Relay(f"npipe:{name}", "tcp://:1").start()
    assert caught.value.__notes__[-1] == f"listen on npipe:{name}"


@pytest.mark.parametrize("kind", [MESSAGES, BYTES])
def test_stop_while_a_send_is_pending(name: str, kind: int) -> None:
    with Server(name, kind) as server, Relay("tcp://:0", f"npipe:{name}") as relay, connected(relay, server) as client:
        utils.fill(client)
        relay.stop()
        assert relay.counters[:5] == (0, 1, 0, 0, 1)


def test_stop_while_the_end_waits_for_the_reader(name: str) -> None:
    with (
        Server(name, MESSAGES) as server,
        Relay("tcp://:0", f"npipe:{name}") as relay,
        connected(relay, server) as client,
    ):
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)
        expect(relay, 1, 1, 0, 0, 0, 1)
        time.sleep(2 * TICK)
        relay.stop()
        assert relay.counters[:5] == (0, 1, 0, 0, 1)


def test_a_server_that_has_gone(name: str) -> None:
    """A pipe knows no reset: it has ended."""
    with Server(name, BYTES) as server, Relay("tcp://:0", f"npipe:{name}") as relay:
        with connected(relay, server) as client:
            server.close()
            assert receive_all(client) == b""
        expect(relay, 0, 1, 0, 0, 0)


def test_handles() -> None:
    """Neither a relay nor its connections leave one."""
    test_handles = pytest.importorskip("test_handles")
    name = f"hvsock-test-{os.getpid()}-{next(NUMBERS)}"

    def cycle() -> None:
        with (
            Server(name, MESSAGES) as server,
            Relay("tcp://:0", f"npipe:{name}") as relay,
            connected(relay, server) as client,
        ):
            client.sendall(b"x")
            client.shutdown(socket.SHUT_WR)
            assert server.receive() == b"x"
            assert server.receive() == b""

    check: Callable[..., None] = test_handles.check_flat
    check(cycle, 20)
