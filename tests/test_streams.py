"""Streams: the same tests over a stdlib socketpair (the oracle), our type on a socketpair, and every transport.

What a socket returns or raises must be what `socket.socket` would; `outcome` compares the two.
"""

from __future__ import annotations

import array
import contextlib
import copy
import ctypes
import hashlib
import io
import mmap
import os
import pickle
import random
import selectors
import socket
import socketserver
import struct
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import utils
from certificates import tls_contexts
from children import descriptors, forks, signals
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import OPERATIONS, buffers_to_send
from shown_family import NO_TLS, SHOWN_FAMILY
from utils import LIMIT, MIB, SCALE, TICK, WINDOWS, WINE, Task, connected, random_bytes, run_child

import hvsock

Pair = tuple[socket.socket, socket.socket]

posix_only = pytest.mark.skipif(WINDOWS, reason="POSIX only: Windows has no such call, flag or signal")

SIZES = (0, 1, 4095, 4096, 4097, 4098, 4099, 65536, MIB - 1, MIB, MIB + 1)
#: Sizes of the buffers that the payloads are received in, crossed with the sizes of the payloads.
BUFFERS = (4095, 4096, 65537, MIB + 1) if SCALE <= 1 else (4097, MIB + 1)
#: 64 MiB, and less where the machine is slow.
STREAM_SIZE = int(64 * MIB / max(1.0, SCALE))


# Ways to send and to receive


def send_in_parts(sock: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[sock.send(view) :]


def send_all(sock: socket.socket, data: bytes) -> None:
    assert sock.sendall(data) is None


def send_gathered(sock: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        third = len(view) // 3
        view = view[sock.sendmsg([view[:third], b"", bytearray(view[third : 2 * third]), view[2 * third :]]) :]


def receive_new(sock: socket.socket, size: int, buffer_size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(min(buffer_size, size - len(data)))
        assert isinstance(chunk, bytes)
        assert chunk, "the stream ended early"
        data += chunk
    return bytes(data)


def receive_into(sock: socket.socket, size: int, buffer_size: int) -> bytes:
    buffer, data = bytearray(buffer_size), bytearray()
    while len(data) < size:
        count = sock.recv_into(buffer, min(buffer_size, size - len(data)))
        assert count, "the stream ended early"
        data += memoryview(buffer)[:count]
    return bytes(data)


def receive_into_rest(sock: socket.socket, size: int, buffer_size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view[:buffer_size])
        assert count, "the stream ended early"
        view = view[count:]
    return bytes(data)


SENDERS = [send_in_parts, send_all, send_gathered]
RECEIVERS = [receive_new, receive_into, receive_into_rest]


def skip_without_sendmsg(implementation: str) -> None:
    if implementation == "stdlib" and not hasattr(socket.socket, "sendmsg"):
        pytest.skip("the oracle has no sendmsg on Windows; ours has")


@pytest.mark.parametrize("receive", RECEIVERS)
@pytest.mark.parametrize("send", SENDERS)
def test_sizes_crossed(implementation: str, send: Callable[..., None], receive: Callable[..., bytes]) -> None:
    """Every size of payload arrives whole through every size of buffer."""
    if send is send_gathered:
        skip_without_sendmsg(implementation)
    payload = random_bytes(MIB + 1)
    # Blocking sockets and sockets with a timeout take different ways through the C.
    for timeout in (None, LIMIT):
        with connected(implementation, timeout) as (a, b):
            for size in SIZES:
                for buffer_size in BUFFERS:
                    sending = Task(send, a, payload[:size])
                    data = Task(receive, b, size, buffer_size).result()
                    sending.result()
                    assert data == payload[:size], (size, buffer_size)
            a.shutdown(socket.SHUT_WR)
            assert b.recv(1) == b""


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["blocking", "timeout"])
def test_random_streams_hashed_at_both_ends(implementation: str, timeout: float | None) -> None:
    """64 MiB each way at the same time, in pieces of random sizes, have the same hash at both ends."""

    def send(sock: socket.socket, seed: int) -> str:
        rng, digest, left = random.Random(seed), hashlib.sha256(), STREAM_SIZE
        block = rng.randbytes(MIB)
        while left:
            start = rng.randrange(MIB)
            chunk = block[start : start + min(left, rng.choice((1, 4097, 70_000, MIB)))]
            sock.sendall(chunk)
            digest.update(chunk)
            left -= len(chunk)
        sock.shutdown(socket.SHUT_WR)
        return digest.hexdigest()

    def receive(sock: socket.socket, seed: int) -> str:
        rng, digest, buffer, size = random.Random(seed), hashlib.sha256(), bytearray(300_000), 0
        while True:
            if rng.random() < 0.5:
                chunk = sock.recv(rng.choice((1, 4095, 65536, 300_000)))
                digest.update(chunk)
                count = len(chunk)
            else:
                count = sock.recv_into(buffer, rng.choice((0, 1, 4096, 299_999)))
                digest.update(memoryview(buffer)[:count])
            if not count:
                assert size == STREAM_SIZE
                return digest.hexdigest()
            size += count

    with connected(implementation, timeout) as (a, b):
        sent = [Task(send, a, 1), Task(send, b, 2)]
        received = [Task(receive, b, 3), Task(receive, a, 4)]
        assert [task.result(4 * LIMIT) for task in sent] == [task.result(4 * LIMIT) for task in received]


@settings(deadline=None, max_examples=10 if WINE or SCALE > 1 else 30, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_chunking(implementation: str, data: st.DataObject) -> None:
    """However a stream is cut by its sender and its receiver, it stays the same."""
    payload = random_bytes(data.draw(st.integers(0, 200_000), label="size"))
    cuts = data.draw(st.lists(st.integers(1, 70_000), min_size=1, max_size=20), label="sent in")
    reads = data.draw(st.lists(st.integers(1, 70_000), min_size=1, max_size=20), label="received in")
    gather = implementation != "stdlib" or hasattr(socket.socket, "sendmsg")

    def send(sock: socket.socket) -> None:
        start = index = 0
        while start < len(payload):
            chunk = payload[start : start + cuts[index % len(cuts)]]
            if index % 3 == 0:
                start += sock.send(chunk)
            elif index % 3 == 1 or not gather:
                sock.sendall(chunk)
                start += len(chunk)
            else:
                half = len(chunk) // 2
                start += sock.sendmsg([chunk[:half], chunk[half:]])
            index += 1
        sock.shutdown(socket.SHUT_WR)

    with connected(implementation) as (a, b):
        sending = Task(send, a)
        received, index = bytearray(), 0
        while True:
            size = reads[index % len(reads)]
            if index % 2:
                chunk = b.recv(size)
            else:
                buffer = bytearray(size)
                chunk = bytes(buffer[: b.recv_into(buffer)])
            if not chunk:
                break
            received += chunk
            index += 1
        sending.result()
        assert received == payload


# The end of a stream


@pytest.mark.parametrize("first", [0, 1], ids=["dialler first", "acceptor first"])
def test_half_close(pair: Pair, first: int) -> None:
    """One side ends its stream and still receives all of the other's."""
    one, other = pair[first], pair[1 - first]
    question, answer = random_bytes(100_000, 1), random_bytes(300_001, 2)

    def reply() -> bytes:
        heard = utils.receive_all(other)
        other.sendall(answer)
        other.shutdown(socket.SHUT_WR)
        return heard

    replying = Task(reply)
    one.sendall(question)
    one.shutdown(socket.SHUT_WR)
    assert utils.receive_all(one) == answer
    assert replying.result() == question
    assert one.recv(1) == other.recv(1) == b""


def test_shutdown_twice(pair: Pair) -> None:
    a, b = pair
    a.sendall(b"tail")
    for _ in range(3):
        a.shutdown(socket.SHUT_WR)
    assert utils.receive_all(b) == b"tail"
    b.sendall(b"reply")
    assert a.recv(5) == b"reply"


def test_send_after_shutdown(pair: Pair) -> None:
    a, _ = pair
    a.shutdown(socket.SHUT_WR)
    sends: list[Callable[[], object]] = [lambda: a.send(b"x"), lambda: a.sendall(b"x")]
    if hasattr(a, "sendmsg"):
        sends.append(lambda: a.sendmsg([b"x"]))
    for send in sends:
        with pytest.raises(OSError) as info:
            send()
        if sys.platform == "win32":
            assert info.value.winerror == 10058  # WSAESHUTDOWN
        else:
            assert type(info.value) is BrokenPipeError


def test_end_of_stream(pair: Pair) -> None:
    """What was sent before the close arrives; from then on, every receive returns nothing."""
    a, b = pair
    a.sendall(b"last words")
    a.close()
    assert b.recv(4) == b"last"
    buffer = bytearray(20)
    assert b.recv_into(buffer) == 6
    assert buffer[:6] == b" words"
    for _ in range(3):
        assert b.recv(10) == b""
        assert b.recv_into(buffer) == 0


def test_peer_is_gone(implementation: str) -> None:
    """Sending to a peer that has closed fails with a ConnectionError, at the latest after a few sends."""
    with connected(implementation) as (a, b):
        b.close()
        with pytest.raises(ConnectionError) as info:
            for _ in range(1000):
                a.sendall(bytes(65536))
    if implementation in ("adopted", "local") and not WINDOWS:
        assert type(info.value) is BrokenPipeError


def test_closed_socket(pair: Pair) -> None:
    """Every call on a closed socket is an OSError; closing again is not."""
    a, _ = pair
    a.close()
    a.close()
    assert a.fileno() == -1
    assert repr(a).startswith("<") and "closed" in repr(a)
    calls: list[Callable[[], object]] = [
        lambda: a.recv(1),
        lambda: a.recv_into(bytearray(1)),
        lambda: a.send(b"x"),
        lambda: a.sendall(b"x"),
        lambda: a.getsockname(),
        lambda: a.getpeername(),
        lambda: a.accept(),
        lambda: a.shutdown(socket.SHUT_WR),
        lambda: a.setblocking(False),
        lambda: a.settimeout(1),
    ]
    if hasattr(a, "sendmsg"):
        calls.append(lambda: a.sendmsg([b"x"]))
    for call in calls:
        with pytest.raises(OSError) as info:
            call()
        assert info.value.errno == 9 or getattr(info.value, "winerror", None) == 10038  # EBADF, WSAENOTSOCK


# The standard library on top


def test_makefile(pair: Pair) -> None:
    a, b = pair
    with a.makefile("rwb") as file, b.makefile("rw", encoding="utf-8", newline="\n") as text:
        file.write("zażółć\n".encode())
        file.flush()
        assert text.readline() == "zażółć\n"
        text.write("gęślą\njaźń\n")
        text.flush()
        assert file.readline() == "gęślą\n".encode()
        assert file.read(len("jaźń\n".encode())) == "jaźń\n".encode()
        assert file.closed is False
    assert a.fileno() != -1


def test_makefile_outlives_close(pair: Pair) -> None:
    """As with any socket, the connection ends when the socket and the last file made from it are closed."""
    a, b = pair
    file = a.makefile("wb", buffering=0)
    a.close()
    file.write(b"still open")
    assert b.recv(100) == b"still open"
    file.close()
    assert b.recv(1) == b""
    assert a.fileno() == -1


def test_makefile_reads_large(pair: Pair) -> None:
    a, b = pair
    payload = random_bytes(MIB + 1)
    sending = Task(lambda: (a.sendall(payload), a.shutdown(socket.SHUT_WR)))
    with b.makefile("rb") as file:
        assert file.read() == payload
    sending.result()


def test_sendfile(pair: Pair, tmp_path: Path) -> None:
    a, b = pair
    payload = random_bytes(MIB + 1)
    path = tmp_path / "payload"
    path.write_bytes(payload)
    with path.open("rb") as file:
        sending = Task(a.sendfile, file, 1, MIB)
        assert utils.receive_exactly(b, MIB) == payload[1:]
        assert sending.result() == MIB


def test_sendfile_ends_with_close(our_pair: Pair, tmp_path: Path) -> None:
    """Not a byte of the file reaches whoever has the descriptor's number afterwards."""
    a, _ = our_pair
    path = tmp_path / "payload"
    path.write_bytes(bytes(64 * MIB))
    with path.open("rb") as file:
        sending = Task(a.sendfile, file)
        assert not sending.wait(2 * TICK)
        a.close()
        with utils.bystanders():
            assert isinstance(sending.error(), OSError)


def test_ssl_wraps_connected_sockets_only(transport: str) -> None:
    """An SSLSocket is a socket.socket, which knows a family's own addresses at most."""
    if transport == "hyperv" and sys.version_info < (3, 12):
        pytest.skip("the ssl module of CPython 3.11 fails before that, and leaves a socket unclosed")
    if SHOWN_FAMILY == "hyperv":
        pytest.skip(NO_TLS)
    _, context = tls_contexts("TLS 1.3")
    with utils.listen(transport) as listener, utils.dialler(transport) as sock:
        with pytest.raises(OSError if transport == "hyperv" else TypeError), context.wrap_socket(sock) as tls:
            tls.connect(listener.getsockname())
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("kind", ["TLS 1.2, anonymous", "TLS 1.3"])
def test_ssl(pair: Pair, kind: str) -> None:
    if pair[0].family == hvsock.AF_HYPERV and sys.version_info < (3, 12):
        pytest.skip("the ssl module of CPython 3.11 asks for the peer's address in a way that knows no AF_HYPERV")
    if SHOWN_FAMILY == "hyperv" and isinstance(pair[0], hvsock.HyperVSocket):
        pytest.skip(NO_TLS)
    server_context, client_context = tls_contexts(kind)
    a, b = pair
    payload = random_bytes(MIB + 1)

    def serve() -> None:
        with server_context.wrap_socket(b, server_side=True) as tls:
            assert b.fileno() == -1  # it was detached
            tls.sendall(utils.receive_exactly(tls, len(payload)))
            assert tls.recv(1) == b""
            tls.unwrap().close()

    serving = Task(serve)
    with client_context.wrap_socket(a) as tls:
        assert tls.version() == {"TLS 1.2, anonymous": "TLSv1.2", "TLS 1.3": "TLSv1.3"}[kind]
        # One after the other: an OpenSSL connection is not for two threads at once.
        tls.sendall(payload)
        assert utils.receive_exactly(tls, len(payload)) == payload
        tls.unwrap().close()
    serving.result()
    a.close()
    b.close()


def test_selectors(pair: Pair) -> None:
    a, b = pair
    for sock in pair:
        sock.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(a, selectors.EVENT_READ)
        selector.register(b, selectors.EVENT_READ | selectors.EVENT_WRITE)
        assert {key.fileobj: events for key, events in selector.select(LIMIT)} == {b: selectors.EVENT_WRITE}
        b.send(b"x")
        ready = {key.fileobj: events for key, events in selector.select(LIMIT)}
        assert ready.get(a) == selectors.EVENT_READ or selector.select(LIMIT)
        assert a.recv(10) == b"x"
        utils.fill(b)
        assert {key.fileobj: events for key, events in selector.select(LIMIT)} == {a: selectors.EVENT_READ}
        b.close()


def test_nonblocking(pair: Pair) -> None:
    a, b = pair
    a.setblocking(False)
    receives: list[Callable[[], object]] = [lambda: a.recv(1), lambda: a.recv_into(bytearray(1))]
    for receive in receives:
        with pytest.raises(BlockingIOError) as info:
            receive()
        assert not getattr(info.value, "__notes__", None)
    sent = utils.fill(a)
    sends: list[Callable[[], object]] = [lambda: a.send(b"xy"), lambda: a.sendall(b"xy")]
    if hasattr(a, "sendmsg"):
        sends.append(lambda: a.sendmsg([b"x", b"y"]))
    for send in sends:
        with pytest.raises(BlockingIOError) as info:
            send()
        assert not getattr(info.value, "__notes__", None)
    assert utils.receive_exactly(b, sent).count(b"\xaa") == sent


class Shout(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class ThreadingServer(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """socketserver over a listening socket of ours."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 5

    def __init__(self, listener: hvsock.HyperVSocket, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(listener.getsockname(), handler)
        self.socket = listener

    fileno = socketserver.TCPServer.fileno
    get_request = socketserver.TCPServer.get_request
    shutdown_request = socketserver.TCPServer.shutdown_request
    close_request = socketserver.TCPServer.close_request
    server_close = socketserver.TCPServer.server_close


def test_socketserver(transport: str) -> None:
    with utils.listen(transport) as listener, ThreadingServer(listener, Shout) as server:
        serving = Task(server.serve_forever, poll_interval=TICK)
        address: Any = server.server_address
        for word in (b"one\n", b"two\n"):
            with hvsock.create_connection(address, timeout=LIMIT, transport=transport) as client:
                client.sendall(word * 1000)
                client.shutdown(socket.SHUT_WR)
                assert utils.receive_all(client) == word.upper() * 1000
        server.shutdown()
        serving.result()


def test_pickling_is_refused(pair: Pair) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(pair[0], protocol)
    with pytest.raises(TypeError):
        copy.copy(pair[0])


def test_500_connections_at_once(transport: str) -> None:
    run_child(descriptors.many_connections, transport, 500 if SCALE <= 1 else 100)


def test_duplex_in_threads(pair: Pair) -> None:
    """Two threads a side, one sends and one receives on the same socket."""
    payload = random_bytes(4 * MIB if SCALE <= 1 else MIB)

    def send(sock: socket.socket) -> None:
        for start in range(0, len(payload), 10_007):
            sock.sendall(payload[start : start + 10_007])

    sending = [Task(send, sock) for sock in pair]
    receiving = [Task(utils.receive_exactly, sock, len(payload)) for sock in pair]
    for task in sending:
        task.result()
    for task in receiving:
        assert task.result() == payload


@posix_only
@pytest.mark.parametrize("case", [forks.talk, forks.close, forks.close_while_receiving])
def test_fork(implementation: str, case: Callable[..., None]) -> None:
    run_child(case, implementation)


# Signals


@posix_only
@pytest.mark.parametrize("operation", ["recv", "recv_into", "send", "sendall", "sendmsg"])
@pytest.mark.parametrize("timeout", ["none", "limit"])
def test_signal_handler_runs_and_call_goes_on(implementation: str, operation: str, timeout: str) -> None:
    """PEP 475: the handler runs while the call waits, and the call is made again."""
    run_child(signals.handled, implementation, operation, timeout)


@posix_only
@pytest.mark.parametrize("operation", ["recv", "recv_into", "send", "sendall", "sendmsg", "accept"])
@pytest.mark.parametrize("timeout", ["none", "limit"])
def test_signal_handler_raises(implementation: str, operation: str, timeout: str) -> None:
    """The handler's exception ends the call, and the socket still works."""
    run_child(signals.raises, implementation, operation, timeout)


@posix_only
def test_signal_handler_raises_while_an_error_is_explained() -> None:
    run_child(signals.during_explanation)


@posix_only
@pytest.mark.parametrize("operation", ["recv", "sendall"])
def test_signals_do_not_prolong_a_timeout(implementation: str, operation: str) -> None:
    run_child(signals.timeout_goes_on, implementation, operation)


# Flags


@pytest.mark.parametrize("into", [False, True], ids=["recv", "recv_into"])
def test_peek(pair: Pair, into: bool) -> None:
    a, b = pair
    b.sendall(b"peekaboo")
    buffer = bytearray(100)
    for _ in range(3):
        if into:
            count = a.recv_into(buffer, 4, socket.MSG_PEEK)
            assert buffer[:count] == b"peek"
        else:
            assert a.recv(4, socket.MSG_PEEK) == b"peek"
    assert utils.receive_exactly(a, 8) == b"peekaboo"


def receive_all_of(sock: socket.socket, size: int, into: bool) -> bytes:
    """Receive with MSG_WAITALL, by either method."""
    if not into:
        return sock.recv(size, socket.MSG_WAITALL)
    buffer = bytearray(size)
    return bytes(buffer[: sock.recv_into(buffer, 0, socket.MSG_WAITALL)])


@pytest.mark.parametrize("into", [False, True], ids=["recv", "recv_into"])
def test_waitall(implementation: str, into: bool) -> None:
    if utils.WINE and implementation in ("stdlib", "adopted"):
        pytest.skip("Wine does not honour MSG_WAITALL, not for the standard library either")
    with connected(implementation, None) as (a, b):

        def send() -> None:
            for byte in b"patience":
                b.sendall(bytes([byte]))
                threading.Event().wait(TICK / 5)

        sending = Task(send)
        assert Task(receive_all_of, a, 8, into).result() == b"patience"
        sending.result()


@pytest.mark.parametrize("into", [False, True], ids=["recv", "recv_into"])
@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["blocking", "timeout"])
@pytest.mark.parametrize("size", [8193, 1 << 20, 10_000_000])
def test_waitall_of_more_than_the_buffers_hold(transport: str, timeout: float | None, size: int, into: bool) -> None:
    data = utils.random_bytes(size)
    with connected(transport, timeout) as (a, b):
        sending = Task(b.sendall, data)
        assert Task(receive_all_of, a, size, into).result() == data
        sending.result()


@pytest.mark.parametrize("into", [False, True], ids=["recv", "recv_into"])
@pytest.mark.parametrize("size", [8, 10_000])
def test_waitall_returns_what_has_come(transport: str, size: int, into: bool) -> None:
    """At the end of the timeout, or of the stream, or when nothing more is there for a call that does not wait."""
    with connected(transport) as (a, b):
        for timeout in (2 * TICK, 0, None):
            b.sendall(b"part")
            utils.wait_for(lambda: a.recv(4, socket.MSG_PEEK) == b"part")
            if timeout is None:
                b.shutdown(socket.SHUT_WR)
            a.settimeout(timeout)
            assert Task(receive_all_of, a, size, into).result() == b"part"
            a.settimeout(LIMIT)
        assert receive_all_of(a, size, into) == b""


def test_waitall_without_anything(transport: str) -> None:
    with connected(transport) as (a, b):
        for timeout, error in ((2 * TICK, TimeoutError), (0, BlockingIOError)):
            a.settimeout(timeout)
            for into in (False, True):
                with pytest.raises(error):
                    receive_all_of(a, 10_000, into)
        a.settimeout(LIMIT)
        b.sendall(b"whole")
        assert receive_all_of(a, 5, into=False) == b"whole"


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="AF_UNIX only: the other transports have streams alone")
def test_waitall_of_datagrams() -> None:
    """One datagram is all, as for socket.socket."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with hvsock.HyperVSocket(fileno=one.detach()) as sock, other:
        for timeout in (None, LIMIT):
            sock.settimeout(timeout)
            other.send(b"first")
            other.send(b"second")
            assert [receive_all_of(sock, 100, into) for into in (False, True)] == [b"first", b"second"]


@posix_only
def test_waitall_with_busy_poll() -> None:
    with connected("adopted", None) as (a, b):
        a.busy_poll = 1000
        b.sendall(b"pati")
        task = Task(a.recv, 8, socket.MSG_WAITALL)
        assert not task.wait(TICK)
        b.sendall(b"ence")
        assert task.result() == b"patience"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: it has MSG_TRUNC for receives")
@pytest.mark.parametrize("size", [10, 10_000])
def test_trunc(size: int) -> None:
    """The kernel says how much there was, which is more than has been received."""
    with hvsock.HyperVSocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(LIMIT)
        data = utils.random_bytes(60_000)
        sock.sendto(data, sock.getsockname())
        assert sock.recv(size, socket.MSG_TRUNC) == data[:size]


@posix_only
def test_dontwait(implementation: str) -> None:
    """MSG_DONTWAIT makes one call non-blocking on a blocking socket."""
    with connected(implementation, None) as (a, b):
        for call in (lambda: a.recv(1, socket.MSG_DONTWAIT), lambda: a.recv_into(bytearray(1), 0, socket.MSG_DONTWAIT)):
            with pytest.raises(BlockingIOError):
                Task(call).result()
        assert Task(a.send, b"x", socket.MSG_DONTWAIT).result() == 1
        assert b.recv(1) == b"x"
        with pytest.raises(BlockingIOError):
            while True:
                Task(a.send, bytes(65536), socket.MSG_DONTWAIT).result()
        assert a.gettimeout() is None


@posix_only
def test_ancillary_data_still_works(implementation: str) -> None:
    """sendmsg and recvmsg with ancillary data are the base class's, and pass descriptors over AF_UNIX."""
    with connected(implementation) as (a, b):
        if a.family != socket.AF_UNIX:
            pytest.skip("only AF_UNIX passes descriptors")
        with open(__file__, "rb") as file:
            assert (
                a.sendmsg([b"x", b"y"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file.fileno()))]) == 2
            )
            data, ancillary, _flags, _address = b.recvmsg(10, socket.CMSG_SPACE(4))
            assert data == b"xy"
            [(level, kind, content)] = ancillary
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            [descriptor] = struct.unpack("i", content)
            with open(descriptor, "rb") as same:
                assert os.path.sameopenfile(same.fileno(), file.fileno())


# Buffers


def test_buffers_to_send(implementation: str) -> None:
    with connected(implementation) as (a, b):
        for name, buffer, content in buffers_to_send():
            assert a.send(buffer) == len(content), name
            assert a.sendall(buffer) is None, name
            total = 2
            if hasattr(a, "sendmsg"):
                assert a.sendmsg([buffer, b"+", buffer]) == 2 * len(content) + 1, name
                assert utils.receive_exactly(b, 2 * len(content)) == content * 2, name
                assert utils.receive_exactly(b, 2 * len(content) + 1) == content + b"+" + content, name
            else:
                assert utils.receive_exactly(b, total * len(content)) == content * total, name


def test_buffers_to_receive_into(implementation: str) -> None:
    with connected(implementation) as (a, b):
        view = memoryview(bytearray(10))
        numbers = array.array("I", [0, 0, 0])
        mapped = mmap.mmap(-1, mmap.PAGESIZE)
        chars = (ctypes.c_char * 12)()
        for buffer in (bytearray(12), view[3:], numbers, memoryview(numbers)[1:], mapped, chars):
            b.sendall(b"abcdef")
            assert a.recv_into(buffer, 6) == 6
            assert bytes(buffer)[:6] == b"abcdef"
            # A count of zero is the whole buffer.
            b.sendall(b"ghi")
            assert a.recv_into(buffer) == 3
            assert bytes(buffer)[:6] == b"ghidef"
            b.sendall(b"jk")
            assert a.recv_into(buffer, 0) == 2
            assert bytes(buffer)[:6] == b"jkidef"
        # Without room nothing is received, without a system call: the stream is empty, and nothing blocks.
        assert a.recv_into(bytearray(0)) == 0
        assert a.recv(0) == b""


def test_buffer_is_released(our_pair: Pair) -> None:
    """A buffer is exported only while the call runs, whether it succeeds or fails."""
    a, b = our_pair
    buffer = bytearray(b"data")
    a.send(buffer)
    a.sendall(buffer)
    a.sendmsg([buffer, buffer])
    b.recv_into(buffer)
    buffer.append(0)
    a.close()
    calls: list[Callable[[], object]] = [
        lambda: a.send(buffer),
        lambda: a.sendall(buffer),
        lambda: a.sendmsg([buffer]),
        lambda: a.sendmsg([buffer, 1]),  # type: ignore[list-item]
        lambda: a.recv_into(buffer),
        lambda: a.recv_into(buffer, len(buffer) + 1),
        lambda: a.recv_into(buffer, -1),
        lambda: a.send(buffer, "flags"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises((OSError, TypeError, ValueError)):
            call()
        buffer.append(0)


def test_received_bytes_have_their_own_size(our_pair: Pair) -> None:
    """A large buffer that received little is cut down, not kept."""
    a, b = our_pair
    b.sendall(b"little")
    data = a.recv(10 * MIB)
    assert data == b"little"
    assert sys.getsizeof(data) < 1000


def test_sendmsg_of_many_buffers(implementation: str) -> None:
    """More buffers than one system call takes are not an error that the oracle does not have."""
    skip_without_sendmsg(implementation)
    buffers = [bytes([index % 251]) * 3 for index in range(1000)]
    with connected(implementation) as (a, b):
        assert a.sendmsg(buffers) == 3000
        assert a.sendmsg(iter(buffers)) == 3000
        assert a.sendmsg(tuple(buffers)) == 3000
        assert utils.receive_exactly(b, 9000) == b"".join(buffers) * 3
        assert a.sendmsg([]) == 0
        assert a.sendmsg([b"", b""]) == 0
        assert a.sendmsg(()) == 0


# The same operation on the oracle and on ours

#: Where not the kernel but the arguments are at fault, or nothing is: the same on every family.
SAME_ON_EVERY_FAMILY = set(OPERATIONS) - {
    "listen on a connected socket",
    "accept on a connected socket",
    "shutdown with a wrong how",
    "recv flags too large",
    "send flags too large",
}

#: The message is part of what a user reads: these are word for word the oracle's.
SAME_MESSAGE = {
    "recv negative",
    "recv_into count negative",
    "recv_into count too big",
    "settimeout negative",
    "settimeout nan",
    "settimeout infinite",
    "settimeout huge",
    "sendmsg raising iterator",
    "send non-contiguous",
    "sendall non-contiguous",
    "send released view",
    "send str",
    "sendall str",
    "recv str",
    "recv None",
}


def outcome(implementation: str, operation: Callable[[socket.socket], object]) -> tuple[object, ...]:
    """Run `operation` where data is ready to be received; return its result, or its error, and what became of both."""
    with connected(implementation) as (a, b), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        b.sendall(b"ready")
        result: tuple[object, ...]
        message = ""
        try:
            result = ("returned", Task(operation, a).result())
        except (AttributeError, TypeError, ValueError, BufferError, OverflowError, MemoryError, LookupError) as error:
            result = ("raised", type(error))
            message = str(error)
        except OSError as error:
            result = ("raised", type(error), error.errno, getattr(error, "winerror", None), error.strerror)
        a.settimeout(LIMIT)
        left = a.recv(100) if result != ("returned", b"ready") else b""
        a.close()
        return *result, left, b.recv(100), [warning.category for warning in caught], message


@pytest.mark.parametrize("name", OPERATIONS)
def test_as_the_oracle(ours: str, name: str) -> None:
    """The same operation has the same result, or the same exception, as on the standard library's socket."""
    if name.startswith("sendmsg"):
        skip_without_sendmsg("stdlib")
    if name == "sendmsg raising iterator" and sys.version_info >= (3, 14):
        pytest.skip("the oracle hides the iterator's error behind a TypeError of its own")
    if ours not in ("adopted", "local") and name not in SAME_ON_EVERY_FAMILY:
        pytest.skip("this error is the kernel's, and differs between address families")
    *expected, message = outcome("stdlib", OPERATIONS[name])
    *got, our_message = outcome(ours, OPERATIONS[name])
    assert got == expected
    if name in SAME_MESSAGE:
        assert our_message == message
    elif message:
        assert our_message, "an error without a message"


@pytest.mark.parametrize("method", ["recv", "recv_into", "send", "sendall", "sendmsg"])
def test_methods_describe_themselves(method: str) -> None:
    ours = getattr(hvsock.HyperVSocket, method)
    assert ours.__name__ == method
    assert ours.__doc__
    assert ours.__qualname__.endswith(f".{method}")


def test_receive_of_more_than_an_int_holds(implementation: str) -> None:
    """A size over INT_MAX is no error: what is there is returned."""
    with connected(implementation) as (a, b):
        b.sendall(b"ready")
        try:
            data = a.recv((1 << 31) + 5)
        except MemoryError:
            pytest.skip("this machine cannot spare 2 GiB of address space")
        assert data == b"ready"


@pytest.mark.skipif(sys.maxsize < 1 << 32, reason="64-bit only: it takes a buffer over 2 GiB")
@pytest.mark.skipif(WINDOWS, reason="POSIX only: it maps a sparse file of over 2 GiB")
def test_send_of_more_than_an_int_holds(implementation: str, tmp_path: Path) -> None:
    """A buffer over INT_MAX is sent in part by send, and none of its length is lost."""
    path = tmp_path / "sparse"
    with path.open("wb+") as file:
        try:
            file.truncate((1 << 31) + 4096)
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            pytest.skip(f"this machine cannot map a file of 2 GiB: {error}")
        with view, connected(implementation) as (a, b):
            a.setblocking(False)
            sent = a.send(view)
            assert 0 < sent < len(view)
            with contextlib.suppress(BlockingIOError):
                sent += a.send(memoryview(view)[sent:])
            assert len(utils.receive_exactly(b, sent)) == sent


def test_buffered_reader_over_our_socket(our_pair: Pair) -> None:
    """SocketIO, which makefile uses, turns would-block into None and a timeout into an error for good."""
    a, b = our_pair
    with a.makefile("rb", buffering=0) as raw:
        assert isinstance(raw, io.RawIOBase)
        a.setblocking(False)
        assert raw.read(1) is None
        a.settimeout(TICK)
        with pytest.raises(TimeoutError):
            raw.read(1)
        with pytest.raises(OSError, match="timed out"):
            raw.read(1)
    b.close()
