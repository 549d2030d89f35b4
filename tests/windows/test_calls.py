"""What hvsock asks of Winsock: how many calls, and what it makes of the answers. Over the simulated provider only."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
import utils
from utils import LIMIT, Address, Pair

if sys.platform != "win32":
    pytest.skip("Windows Python only: tests/windows/run has one", allow_module_level=True)

import hvsock

hvsim = pytest.importorskip("hvsim", reason="the simulated provider only: tests/windows/run has it")

#: How long the kernel lets a connect be pending when nobody tells it otherwise, in seconds.
KERNEL_TIMEOUT = 2.0


@pytest.fixture(params=[None, LIMIT], ids=["no timeout", "timeout"])
def pair(address: Address, request: pytest.FixtureRequest) -> Iterator[Pair]:
    with hvsock.create_server(address) as server, hvsock.create_connection(address, timeout=LIMIT) as client:
        server.settimeout(LIMIT)
        accepted, _ = server.accept()
        with accepted:
            client.settimeout(request.param)
            accepted.settimeout(request.param)
            yield client, accepted


def transfers() -> int:
    """The calls since the last reset, if they were data calls and nothing else."""
    counts = hvsim.counts()
    assert set(counts) <= {"send", "recv", "WSASend", "WSARecv"}, counts
    return sum(counts.values())


@pytest.mark.parametrize("operation", ["recv", "recv_exactly", "accept"])
def test_cancelled_with_another_threads_call(pair: Pair, operation: str) -> None:
    """Where Windows cancels one receive of a socket it cancels all: the others go on."""
    sock, peer = pair
    with contextlib.ExitStack() as stack:
        if operation == "accept":
            address = "loopback", uuid.uuid4()
            sock = stack.enter_context(hvsock.create_server(address))
            sock.settimeout(pair[0].gettimeout())
            call = utils.Task(lambda: sock.accept()[0].close())
        else:
            call = utils.Task(getattr(sock, operation), 4)
        assert not call.wait(utils.TICK)
        kernel32 = ctypes.WinDLL("kernel32")
        assert kernel32.CancelIoEx(ctypes.c_void_p(sock.fileno()), None)
        assert not call.wait(2 * utils.TICK)
        if operation == "accept":
            hvsock.create_connection(address, timeout=LIMIT).close()
            call.result()
        else:
            peer.sendall(b"data")
            assert call.result() == b"data"


@pytest.mark.parametrize(
    ("send", "receive"),
    [
        (lambda s: s.send(b"data"), lambda s: s.recv(4)),
        (lambda s: s.sendall(b"data"), lambda s: s.recv_into(bytearray(4))),
        (lambda s: s.sendmsg([b"da", b"ta"]), lambda s: s.recv(4)),
    ],
    ids=["send", "sendall", "sendmsg"],
)
def test_one_call_each(
    pair: Pair,
    send: Callable[[hvsock.HyperVSocket], object],
    receive: Callable[[hvsock.HyperVSocket], object],
) -> None:
    client, accepted = pair
    send(client)
    receive(accepted)
    hvsim.reset_counts()
    send(client)
    assert transfers() == 1
    time.sleep(0.05)  # the data is there: what is counted now did not have to wait
    hvsim.reset_counts()
    receive(accepted)
    assert transfers() == 1


def test_would_block_is_no_end_of_stream(pair: Pair) -> None:
    """A call that would have waited, but is refused even that (too many are pending), is tried again or fails."""
    client, accepted = pair
    with hvsim.faults("sending=10035", "receiving=10035"):
        with contextlib.suppress(BlockingIOError):
            assert client.send(b"data") == 4
        client.sendall(b"data")
        with contextlib.suppress(BlockingIOError):
            assert accepted.recv(4) == b"data"


def test_short_sends_are_continued(pair: Pair) -> None:
    client, accepted = pair
    with hvsim.faults("sending=short:3*0"):
        client.sendall(b"abcdefgh")
    received = b""
    while len(received) < 8:
        received += accepted.recv(8)
    assert received == b"abcdefgh"


@pytest.mark.parametrize(("code", "kind"), [(10054, ConnectionResetError), (10050, OSError)])
def test_errors(pair: Pair, code: int, kind: type[OSError]) -> None:
    client, accepted = pair
    with hvsim.faults(f"sending={code}", f"receiving={code}"):
        with pytest.raises(kind) as caught:
            client.send(b"data")
        assert caught.value.winerror == code
        with pytest.raises(kind) as caught:
            accepted.recv(1)
        assert caught.value.winerror == code


def test_failure_without_a_reason(pair: Pair) -> None:
    """SOCKET_ERROR with no last error, as vpnkit has seen it: it must not pass for success, nor be tried for ever."""
    client, _ = pair
    with hvsim.faults("sending=0"), pytest.raises(OSError):
        client.send(b"data")


def test_connect_waits_longer_than_the_kernel(address: tuple[str, uuid.UUID]) -> None:
    start = time.monotonic()
    with hvsim.faults("connecting=pending"), pytest.raises(TimeoutError):
        hvsock.create_connection(address, timeout=KERNEL_TIMEOUT + 1)
    assert KERNEL_TIMEOUT + 1 - 0.1 < time.monotonic() - start < KERNEL_TIMEOUT + 3


def test_connect_waits_shorter_than_the_kernel(address: tuple[str, uuid.UUID]) -> None:
    with hvsock.HyperVSocket() as sock:
        sock.settimeout(0.2)
        start = time.monotonic()
        with hvsim.faults("connecting=pending"), pytest.raises(TimeoutError):
            sock.connect(address)
        assert 0.15 < time.monotonic() - start < KERNEL_TIMEOUT - 0.5


def test_close_ends_a_pending_connect(address: tuple[str, uuid.UUID]) -> None:
    sock = hvsock.HyperVSocket()
    sock.settimeout(LIMIT)
    closer = threading.Timer(0.2, sock.close)
    start = time.monotonic()
    with hvsim.faults("connecting=pending"), pytest.raises(OSError):
        closer.start()
        sock.connect(address)
    closer.join()
    assert time.monotonic() - start < KERNEL_TIMEOUT


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["no timeout", "timeout"])
def test_ctrl_c_ends_a_pending_connect(address: tuple[str, uuid.UUID], timeout: float | None) -> None:
    """And nothing of it is left: the same socket can wait again."""
    presser = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with hvsock.HyperVSocket() as sock, hvsim.faults("connecting=pending*0"):
            sock.settimeout(timeout)
            start = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                presser.start()
                sock.connect(address)
            assert time.monotonic() - start < KERNEL_TIMEOUT - 0.5
            sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                sock.connect(address)
    finally:
        presser.join()
        signal.signal(signal.SIGINT, before)


def test_host_and_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    vm, service = uuid.uuid4(), uuid.uuid4()
    with hvsock.create_server(("wildcard", service)) as server:
        server.settimeout(LIMIT)
        monkeypatch.setenv("HVSIM_PARTITION", str(vm))
        with hvsock.create_connection(("parent", service), timeout=LIMIT) as client:
            accepted, peer = server.accept()
            with accepted:
                assert peer.vm_id == vm
                assert peer.service_id == client.getsockname().service_id
                assert client.getpeername() == (hvsock.HV_GUID_PARENT, service)
                client.sendall(b"data")
                assert accepted.recv(4) == b"data"


@pytest.mark.parametrize(
    ("policy", "code"), [("deny-bind", 10013), ("disabled", 10022)], ids=["access denied", "service disabled"]
)
def test_refused_by_the_host(policy: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSIM_POLICY", f"*={policy}")
    with pytest.raises(OSError) as caught:
        hvsock.create_server((uuid.uuid4(), uuid.uuid4()))
    assert caught.value.winerror == code


def test_service_in_use(address: tuple[str, uuid.UUID]) -> None:
    with hvsock.create_server(address), pytest.raises(OSError) as caught:
        hvsock.create_server(address)
    assert caught.value.winerror == 10048
