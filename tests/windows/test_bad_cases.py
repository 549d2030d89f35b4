"""What Windows may do at its worst, and what hvsock makes of it. Over the simulated provider only, which does it.

The sends, whose count Windows does not tell if they are cancelled; errors that are of a client and not of its listener;
handles whose mode another owner changes; connects that the system does not let go of.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from ctypes import wintypes
from typing import Any

import pytest
import utils
from utils import LIMIT, SLACK, TICK, Address, Pair, takes

if sys.platform != "win32":
    pytest.skip("Windows Python only: tests/windows/run has one", allow_module_level=True)

import hvsock
from hvsock import aio

hvsim = pytest.importorskip("hvsim", reason="the simulated provider only: tests/windows/run has it")


#: What Hyper-V takes each way before the other end reads.
RING = 24576
#: Every word once, so that what is missing, or there twice, is seen.
PAYLOAD = b"".join(index.to_bytes(4, "big") for index in range(128 << 10))
HEADER = len(PAYLOAD).to_bytes(4, "big")


@pytest.fixture
def pair(address: Address, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Two ends with a ring as Hyper-V's between them; a cancelled send tells no count."""
    monkeypatch.setenv("HVSIM_RING", str(RING))
    monkeypatch.setenv("HVSIM_LOSSY_CANCEL", "1")
    with hvsock.create_server(address) as server:
        server.settimeout(LIMIT)
        with hvsock.create_connection(address, timeout=LIMIT) as client, server.accept()[0] as accepted:
            client.settimeout(LIMIT)
            accepted.settimeout(LIMIT)
            yield client, accepted


class Reader:
    """Receives in a thread, a little at a time, until the stream has ended."""

    def __init__(self, sock: hvsock.HyperVSocket, pause: float = 0.002) -> None:
        self._sock = sock
        self._pause = pause
        self._received = bytearray()
        self._task = utils.Task(self._run)

    def _run(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self._sock.recv(16384):
                self._received += data
                time.sleep(self._pause)

    def result(self) -> bytes:
        self._task.result()
        return bytes(self._received)


@contextlib.contextmanager
def sigint(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def pressed(after: float) -> Iterator[None]:
    """Ctrl-C is pressed while the block runs."""
    presser = threading.Timer(after, signal.raise_signal, [signal.SIGINT])
    presser.start()
    try:
        yield
    finally:
        presser.join()


# A send is never cancelled


@pytest.mark.parametrize("timeout", [None, LIMIT, 0], ids=["no timeout", "timeout", "non-blocking"])
def test_send_returns_what_fits(pair: Pair, timeout: float | None) -> None:
    client, accepted = pair
    client.settimeout(timeout)
    send: Callable[[], int]
    for send in (lambda: client.send(PAYLOAD), lambda: client.sendmsg([PAYLOAD[:7], PAYLOAD[7:]])):
        hvsim.reset_counts()
        sent = send()
        assert 0 < sent < 2 * RING
        assert hvsim.counts()["WSASend"] == 1
        assert utils.receive_exactly(accepted, sent) == PAYLOAD[:sent]


@pytest.mark.parametrize("call", ["sendall", "send_message"])
def test_sends_end_with_their_timeout(pair: Pair, call: str) -> None:
    """A peer that goes on receiving does not prolong it, and nothing of the call is left pending."""
    client, accepted = pair
    reader = Reader(accepted)
    client.settimeout(4 * TICK)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        getattr(client, call)(16 * PAYLOAD)
    assert 4 * TICK - 0.02 <= time.monotonic() - start < 4 * TICK + SLACK
    client.shutdown(socket.SHUT_WR)
    prefix = b"" if call == "sendall" else (16 * len(PAYLOAD)).to_bytes(4, "big")
    received = reader.result()
    assert received == (prefix + 16 * PAYLOAD)[: len(received)]


def test_message_is_continued_after_timeouts(pair: Pair) -> None:
    client, accepted = pair
    reader = Reader(accepted)
    client.settimeout(TICK / 2)
    timeouts = 0
    while True:
        try:
            client.send_message(PAYLOAD)
            break
        except TimeoutError:
            timeouts += 1
    assert timeouts > 0
    client.shutdown(socket.SHUT_WR)
    assert reader.result() == HEADER + PAYLOAD


def check_message_arrives(pair: Pair) -> None:
    """The whole message, once, and nothing else."""
    client, accepted = pair
    reader = Reader(accepted)
    client.send_message(PAYLOAD)
    client.shutdown(socket.SHUT_WR)
    assert reader.result() == HEADER + PAYLOAD


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["no timeout", "timeout"])
def test_ctrl_c_of_long_ago(pair: Pair, timeout: float | None) -> None:
    """It has left CPython's event set, which cancels nothing."""
    pair[0].settimeout(timeout)
    with sigint(lambda *_: None):
        signal.raise_signal(signal.SIGINT)
        check_message_arrives(pair)


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["no timeout", "timeout"])
def test_ctrl_c_ends_a_send_that_waits(pair: Pair, timeout: float | None) -> None:
    """And the message is continued by the same call."""
    pair[0].settimeout(timeout)
    with sigint(signal.default_int_handler), takes(0, SLACK), pytest.raises(KeyboardInterrupt), pressed(2 * TICK):
        pair[0].send_message(PAYLOAD)
    check_message_arrives(pair)


def test_ctrl_c_that_is_handled_amid_a_send(pair: Pair) -> None:
    client, accepted = pair
    client.settimeout(None)
    handled: list[int] = []
    readers: list[Reader] = []

    def handle(number: int, _frame: object) -> None:
        handled.append(number)
        readers.append(Reader(accepted))

    with sigint(handle), pressed(2 * TICK):
        client.sendall(PAYLOAD)
    client.shutdown(socket.SHUT_WR)
    assert readers[0].result() == PAYLOAD
    assert handled == [signal.SIGINT]


def test_close_ends_a_send_that_waits(pair: Pair) -> None:
    client, _ = pair
    client.settimeout(None)
    sending = utils.Task(client.sendall, PAYLOAD)
    assert not sending.wait(2 * TICK)
    with takes(0, 0.9):
        client.close()
        assert isinstance(sending.error(), OSError)


# A handle that is taken over, and may be in blocking mode: its sends wait in the system


@pytest.fixture
def adopted(pair: Pair) -> Iterator[Pair]:
    client, accepted = pair
    client.settimeout(None)  # detach() makes the handle blocking
    with hvsock.HyperVSocket(fileno=client.detach()) as sock:
        assert sock.gettimeout() is None
        yield sock, accepted


def test_adopted_sends(adopted: Pair) -> None:
    sock, accepted = adopted
    reader = Reader(accepted)
    sock.send_message(PAYLOAD)
    assert sock.sendmsg([b"ab", b"cd"]) == 4
    sock.sendall(PAYLOAD)
    sock.shutdown(socket.SHUT_WR)
    assert reader.result() == HEADER + PAYLOAD + b"abcd" + PAYLOAD


def test_ctrl_c_of_long_ago_and_an_adopted_send(adopted: Pair) -> None:
    sock, accepted = adopted
    with sigint(lambda *_: None):
        signal.raise_signal(signal.SIGINT)
        reader = Reader(accepted)
        sock.sendall(PAYLOAD)
    sock.shutdown(socket.SHUT_WR)
    assert reader.result() == PAYLOAD


def test_ctrl_c_loses_an_adopted_stream(adopted: Pair) -> None:
    """How much of it was sent is not known: nothing may follow."""
    sock, accepted = adopted
    with sigint(signal.default_int_handler), takes(0, SLACK), pytest.raises(KeyboardInterrupt), pressed(2 * TICK):
        sock.sendall(16 * PAYLOAD)
    for send in (sock.send, sock.sendall, sock.send_message, lambda data: sock.sendmsg([data])):
        with pytest.raises(RuntimeError, match="close the socket"):
            send(b"more")
    reader = Reader(accepted)
    sock.close()
    received = reader.result()
    assert received == (16 * PAYLOAD)[: len(received)]


def test_close_ends_an_adopted_send(adopted: Pair) -> None:
    sock, _ = adopted
    sending = utils.Task(sock.sendall, 16 * PAYLOAD)
    assert not sending.wait(2 * TICK)
    with takes(0, 0.9):
        sock.close()
        assert isinstance(sending.error(), OSError)


# No memory for a large send, and short ones


@pytest.mark.parametrize("fault", ["limit:65536", "limit:4096", "short:1000", "short:1"])
@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["no timeout", "timeout"])
def test_large_sends_in_parts(pair: Pair, fault: str, timeout: float | None) -> None:
    client, accepted = pair
    client.settimeout(timeout)
    data = PAYLOAD[: 2000 if fault == "short:1" else 200_000]
    reader = Reader(accepted, 0)
    with hvsim.faults(f"sending={fault}*0"):
        client.sendall(data)
        client.send_message(data[:1000], data[1000:])
    client.shutdown(socket.SHUT_WR)
    assert reader.result() == data + len(data).to_bytes(4, "big") + data


def test_no_memory_for_a_small_send(pair: Pair) -> None:
    client, accepted = pair
    with hvsim.faults("sending=limit:4095*0"):
        for size in (4096, 100_000):
            with pytest.raises(OSError) as caught:
                client.send(bytes(size))
            assert caught.value.winerror == 10055
        assert client.send(bytes(4095)) == 4095
    utils.receive_exactly(accepted, 4095)


def test_no_room_where_room_is_announced(pair: Pair) -> None:
    """WSAPoll says that a send will do, and it does not: the thread does not spin meanwhile."""
    client, accepted = pair
    with hvsim.faults("sending=10035*8"):
        hvsim.reset_counts()
        start = time.monotonic()
        client.sendall(b"data")
        assert time.monotonic() - start > 0.012  # pauses of 1, 2, 4 and 8 ms
        assert hvsim.counts()["WSASend"] == 9
    assert utils.receive_exactly(accepted, 4) == b"data"


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["no timeout", "timeout"])
def test_room_is_not_announced(pair: Pair, timeout: float | None) -> None:
    """WSAPoll fails: the send is tried again all the same."""
    client, accepted = pair
    client.settimeout(timeout)
    reader = Reader(accepted)
    with hvsim.faults("WSAPoll=10045*0"):
        client.sendall(PAYLOAD[:100_000])
    client.shutdown(socket.SHUT_WR)
    assert reader.result() == PAYLOAD[:100_000]


# accept and connect


@pytest.mark.parametrize("timeout", [None, LIMIT, 0], ids=["no timeout", "timeout", "non-blocking"])
def test_accepted_address_is_the_peers(
    address: Address, server: hvsock.HyperVSocket, monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    """It comes from getpeername(), whatever size GetAcceptExSockaddrs speaks of."""
    monkeypatch.setenv("HVSIM_ODD_ACCEPT", "1")
    server.settimeout(timeout)
    with hvsock.create_connection(address, timeout=LIMIT) as client:
        accepted, peer = accept(server)
        with accepted:
            assert peer == accepted.getpeername()
            assert peer.service_id == client.getsockname().service_id


def accept(server: hvsock.HyperVSocket) -> tuple[hvsock.HyperVSocket, Any]:
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return server.accept()
        except BlockingIOError:
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "fault", ["accept-context=10054", "accept-context=10057", "accept-context=10050", "getpeername=10057"]
)
@pytest.mark.parametrize("timeout", [None, LIMIT, 0], ids=["no timeout", "timeout", "non-blocking"])
def test_client_that_has_gone_already(
    address: Address, server: hvsock.HyperVSocket, fault: str, timeout: float | None
) -> None:
    """The next one is accepted."""
    server.settimeout(timeout)
    with contextlib.ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(hvsock.create_connection(address, timeout=LIMIT))
        last = clients.enter_context(hvsock.HyperVSocket())
        last.settimeout(LIMIT)
        last.connect(address)
        with hvsim.faults(f"{fault}*3"):
            accepted, peer = accept(server)
        with accepted:
            assert peer.service_id == last.getsockname().service_id
            accepted.sendall(b"x")
            assert last.recv(1) == b"x"


def test_clients_that_have_gone_do_not_prolong_the_timeout(address: Address, server: hvsock.HyperVSocket) -> None:
    server.settimeout(4 * TICK)
    with hvsim.faults("accept-context=10054*0"), contextlib.ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(hvsock.create_connection(address, timeout=LIMIT))
        with takes(0, 4 * TICK + SLACK), pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["no timeout", "timeout"])
def test_peer_has_reset_a_connection_at_once(
    address: Address, server: hvsock.HyperVSocket, timeout: float | None
) -> None:
    """SO_UPDATE_CONNECT_CONTEXT says that there is none; it is a reset, which is worth another try."""
    for code in (10054, 10057):
        with hvsock.HyperVSocket() as sock, hvsim.faults(f"connect-context={code}"):
            sock.settimeout(timeout)
            with pytest.raises(ConnectionResetError) as caught:
                sock.connect(address)
            assert caught.value.winerror == 10054
        with hvsim.faults(f"connect-context={code}"):
            hvsock.create_connection(address, timeout=LIMIT, retry_for=LIMIT).close()


def test_extension_functions_are_asked_for_once(address: Address, server: hvsock.HyperVSocket) -> None:
    for attempt in range(3):
        hvsim.reset_counts()
        with hvsock.create_connection(address, timeout=LIMIT), server.accept()[0]:
            assert attempt == 0 or "WSAIoctl" not in hvsim.counts()
            assert "GetAcceptExSockaddrs" not in hvsim.counts()


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["no timeout", "timeout"])
@pytest.mark.parametrize("call", ["accept", "connect"])
def test_no_extension_functions(call: str, timeout: float | None) -> None:
    """A provider without them: an error, and no handle more. In a process that has not found them yet."""
    code = f"""
import hvsim, hvsock, uuid
address = "loopback", uuid.uuid4()
with hvsock.create_server(address) as server, hvsim.faults("WSAIoctl=10045*0"):
    server.settimeout({timeout})
    try:
        server.accept() if {call!r} == "accept" else hvsock.create_connection(address, timeout={timeout})
    except OSError as exc:
        print(exc.winerror)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert done.stdout == "10045\n"


# The mode of a handle that others may change


@pytest.mark.parametrize("call", ["recv", "recv_into", "recv_exactly", "recv_message", "accept"])
def test_another_owner_makes_the_handle_blocking(pair: Pair, call: str) -> None:
    """A non-blocking call stays one."""
    with contextlib.ExitStack() as stack:
        sock = pair[1]
        if call == "accept":
            sock = stack.enter_context(hvsock.create_server(("loopback", uuid.uuid4())))
        sock.setblocking(False)
        other = stack.enter_context(contextlib.closing(socket.socket(fileno=sock.dup().detach())))
        other.settimeout(None)
        arguments = {"recv": (1,), "recv_into": (bytearray(1),), "recv_exactly": (1,)}.get(call, ())
        task = utils.Task(getattr(sock, call), *arguments)
        assert isinstance(task.error(), BlockingIOError)


@pytest.mark.parametrize("timeout", [None, LIMIT, 0], ids=["no timeout", "timeout", "non-blocking"])
def test_close_ends_a_send_in_the_system(pair: Pair, timeout: float | None) -> None:
    """It sleeps there since another owner has made the handle blocking; the other's connection survives."""
    sock, accepted = pair
    sock.settimeout(timeout)
    with contextlib.closing(socket.socket(fileno=sock.dup().detach())) as other:
        other.settimeout(None)
        sending = utils.Task(sock.sendall, 16 * PAYLOAD)
        assert not sending.wait(2 * TICK)
        with takes(0, 0.9):
            sock.close()
            assert isinstance(sending.error(), OSError)
        accepted.sendall(b"x")
        assert other.recv(1) == b"x"


def test_close_spares_what_others_have_pending(pair: Pair) -> None:
    """On the same handle, as long as no call is in the system."""
    sock, accepted = pair
    with sock.dup() as twin:
        twin.settimeout(LIMIT)
        waiting = utils.Task(twin.recv, 1)
        closed = utils.Task(sock.recv, 1)
        assert not closed.wait(2 * TICK)
        hvsim.reset_counts()
        sock.close()
        assert isinstance(closed.error(), OSError)
        assert not waiting.wait(2 * TICK)
        assert "WSARecv" not in hvsim.counts()  # it was not cancelled and begun anew
        accepted.sendall(b"x")
        assert waiting.result() == b"x"


def test_nothing_is_lost_without_waiting(pair: Pair) -> None:
    """A receive that finds nothing is cancelled at once, whatever arrives meanwhile."""
    client, accepted = pair
    accepted.setblocking(False)
    data = PAYLOAD[:4096]

    def trickle() -> None:
        for index in range(0, len(data), 4):
            client.sendall(data[index : index + 4])

    sending = utils.Task(trickle)
    received = b""
    empty = 0
    while len(received) < len(data):
        try:
            received += accepted.recv(3)
        except BlockingIOError:
            empty += 1
    sending.result()
    assert received == data
    assert empty > 0


# Handles without WSA_FLAG_OVERLAPPED

_winsock = ctypes.WinDLL("ws2_32", use_last_error=True)
_winsock.WSASocketW.restype = ctypes.c_size_t
OVERLAPPED_FLAG = 1


def new_handle(flags: int) -> int:
    handle: int = _winsock.WSASocketW(34, 1, 1, None, wintypes.DWORD(0), wintypes.DWORD(flags))
    return handle


def test_handle_that_is_not_overlapped() -> None:
    """The system would make each call wait where nothing ends it. The handle stays its owner's."""
    handle = new_handle(0)
    with pytest.raises(ValueError, match="WSA_FLAG_OVERLAPPED"):
        hvsock.HyperVSocket(34, 1, 1, handle)
    socket.socket(34, 1, 1, handle).close()


def test_handle_that_is_overlapped(address: Address, server: hvsock.HyperVSocket) -> None:
    with hvsock.HyperVSocket(34, 1, 1, new_handle(OVERLAPPED_FLAG)) as sock:
        sock.connect(address)
        server.accept()[0].close()
        assert sock.recv(1) == b""


# Connects that the system holds on to

STUBBORN = "connecting=stubborn:60000"
EALREADY = 10037


def test_timeout_of_a_stubborn_connect(address: Address) -> None:
    with hvsock.HyperVSocket() as sock, hvsim.faults(STUBBORN):
        sock.settimeout(2 * TICK)
        with takes(0, 1.5), pytest.raises(TimeoutError):
            sock.connect(address)
        for timeout in (2 * TICK, None, 0):
            sock.settimeout(timeout)
            with takes(0, 1.5), pytest.raises(OSError) as caught:
                sock.connect(address)
            assert caught.value.winerror == EALREADY


def test_socket_after_a_stubborn_connect(address: Address, server: hvsock.HyperVSocket) -> None:
    """It works again once that has ended; and what the system writes then is its own."""
    with hvsock.HyperVSocket() as sock:
        sock.settimeout(2 * TICK)
        with hvsim.faults("connecting=stubborn:500"), pytest.raises(TimeoutError):
            sock.connect(address)
        sock.settimeout(LIMIT)
        deadline = time.monotonic() + LIMIT
        while code := sock.connect_ex(address):
            assert code == EALREADY
            assert time.monotonic() < deadline
            with hvsock.create_connection(address, timeout=LIMIT), server.accept()[0]:
                pass  # this thread's other calls do not mind
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"x")
            assert sock.recv(1) == b"x"


def test_close_ends_a_stubborn_connect(address: Address) -> None:
    with hvsock.HyperVSocket() as sock, hvsim.faults(STUBBORN):
        sock.settimeout(LIMIT)
        connecting = utils.Task(sock.connect, address)
        assert not connecting.wait(2 * TICK)
        with takes(0, 1.5):
            sock.close()
            assert isinstance(connecting.error(), OSError)


def test_ctrl_c_ends_a_stubborn_connect(address: Address) -> None:
    with hvsock.HyperVSocket() as sock, hvsim.faults(STUBBORN):
        sock.settimeout(None)
        with sigint(signal.default_int_handler), takes(0, 1.5), pytest.raises(KeyboardInterrupt), pressed(2 * TICK):
            sock.connect(address)


# asyncio


@pytest.mark.parametrize("loop", ["ProactorEventLoop", "SelectorEventLoop"])
def test_cancelled_tasks_send_whole_messages(pair: Pair, loop: str) -> None:
    """The transfer goes on, and the next call with the same message with it."""
    client, accepted = pair

    async def send() -> int:
        cancelled = 0
        async with aio.MessageStream(client) as stream:
            while True:
                try:
                    async with asyncio.timeout(TICK / 2):
                        await stream.send(PAYLOAD)
                    break
                except TimeoutError:
                    cancelled += 1
            await stream.send(b"the end")
            await stream.send_eof()
        return cancelled

    reader = Reader(accepted)
    with asyncio.Runner(loop_factory=getattr(asyncio, loop)) as runner:
        assert runner.run(send()) > 0
    assert reader.result() == HEADER + PAYLOAD + b"\0\0\0\7the end"


@pytest.mark.parametrize("call", ["send", "recv"])
def test_cancelled_transfer(pair: Pair, call: str) -> None:
    """A loop that comes to its end cancels every task, the link's own transfer too: no message may follow."""
    client, accepted = pair

    async def main() -> None:
        stream = aio.MessageStream(client)
        task = asyncio.create_task(stream.send(PAYLOAD) if call == "send" else stream.recv())
        await asyncio.sleep(2 * TICK)
        others = asyncio.all_tasks() - {asyncio.current_task(), task}
        assert others
        for other in others | {task}:
            other.cancel()
        await asyncio.wait(others | {task})
        for _ in range(2):
            with pytest.raises(ConnectionAbortedError):
                await (stream.send(b"more") if call == "send" else stream.recv())
        await stream.aclose()

    with asyncio.Runner(loop_factory=asyncio.ProactorEventLoop) as runner:
        runner.run(main())
    if call == "send":
        received = Reader(accepted).result()
        assert received == (HEADER + PAYLOAD)[: len(received)]
