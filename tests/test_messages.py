"""Messages: whole ones arrive whole and once, whatever cuts them short, and whoever else uses the socket."""

from __future__ import annotations

import array
import contextlib
import copy
import ctypes
import errno
import itertools
import mmap
import os
import pickle
import random
import selectors
import socket
import struct
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import utils
from children import closing, forks, memory, signals, traced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import MISUSES, buffers_to_send, released_view
from strace import system_calls
from utils import (
    LIMIT,
    MIB,
    SCALE,
    SLACK,
    TICK,
    WINDOWS,
    Child,
    Task,
    connected,
    framed,
    patiently,
    random_bytes,
    run_child,
    takes,
)

import hvsock

Pair = tuple[hvsock.HyperVSocket, hvsock.HyperVSocket]

posix_only = pytest.mark.skipif(WINDOWS, reason="POSIX only: Windows has no such call, flag or signal")

#: Where the C changes its ways: the stack, the heap, the GIL kept, one transfer or several.
SIZES = (0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 16383, 16384, 16385, 65535, 65536, 65537, MIB - 1, MIB, MIB + 1)
DEFAULT_LIMIT = 16 * MIB
LARGEST = 0xFFFFFFFF


# Ways to receive what a peer sends as framed()


def into(sock: hvsock.HyperVSocket, size: int) -> bytes:
    buffer = bytearray(b"\xcc" * (size + 3))
    count = sock.recv_message_into(buffer)
    assert count == size
    # The order of what lies behind is nobody's business but its content is.
    assert buffer[size:] == b"\xcc" * 3
    return bytes(buffer[:size])


def exactly(sock: hvsock.HyperVSocket, size: int) -> bytes:
    data = sock.recv_exactly(size + 4)
    assert data[:4] == struct.pack("!I", size)
    return data[4:]


def exactly_into(sock: hvsock.HyperVSocket, size: int) -> bytes:
    buffer = bytearray(size + 4)
    assert sock.recv_exactly_into(buffer) is None
    assert buffer[:4] == struct.pack("!I", size)
    return bytes(buffer[4:])


#: Each receives the message of that size.
RECEIVERS: dict[str, Callable[[hvsock.HyperVSocket, int], bytes]] = {
    "recv_message": lambda sock, size: sock.recv_message(),
    "recv_message_into": into,
    "recv_exactly": exactly,
    "recv_exactly_into": exactly_into,
}


@pytest.fixture(params=RECEIVERS)
def receive(request: pytest.FixtureRequest) -> Callable[[hvsock.HyperVSocket, int], bytes]:
    return RECEIVERS[request.param]


def is_readable(sock: socket.socket, within: float) -> bool:
    """Whether there are bytes, or the end of the stream, within so many seconds; they are not touched."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(within))


def wait_until_readable(sock: socket.socket) -> None:
    assert is_readable(sock, LIMIT)


def is_partly_sent(sock: hvsock.HyperVSocket) -> bool:
    """Whether a message is: a send of nothing is refused then."""
    try:
        sock.send(b"")
    except BlockingIOError:
        return False
    except RuntimeError:
        return True
    return False


def send_partly(sock: hvsock.HyperVSocket, size: int = 16 * MIB) -> tuple[int, bytes]:
    """Send, non-blocking, until a part of a message is in the peer's buffer; return how many whole ones are before it,
    and that message. They are all the same but for their first and last 8 bytes, which are their number.
    """
    sock.setblocking(False)
    for number in range(64):
        message = numbered(number, size)
        try:
            sock.send_message(message)
        except BlockingIOError:
            if is_partly_sent(sock):
                return number, message
            break
    pytest.skip("a send takes all or nothing here")


def numbered(number: int, size: int) -> bytes:
    return b"%8d" % number + bytes(size - 16) + b"%8d" % number


# Whole messages


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["blocking", "timeout"])
def test_sizes(ours: str, timeout: float | None, receive: Callable[[hvsock.HyperVSocket, int], bytes]) -> None:
    """Messages of every size, one after the other, arrive as they were sent."""
    payload = random_bytes(MIB + 1)
    with connected(ours, timeout) as (a, b):
        sending = Task(lambda: [a.send_message(payload[:size]) for size in SIZES])
        for size in SIZES:
            assert Task(receive, b, size).result() == payload[:size], size
        assert sending.result() == [None] * len(SIZES)
        a.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            b.recv_message()


def test_wire_format(our_pair: Pair) -> None:
    """A length of four bytes, the most significant first, and the payload: nothing else, either way."""
    a, b = our_pair
    for size in (0, 1, 255, 256, 65536):
        payload = random_bytes(size)
        a.send_message(payload)
        assert utils.receive_exactly(b, 4 + size) == framed(payload)
        b.sendall(framed(payload))
        assert a.recv_message() == payload
    b.sendall(b"\x00\x00\x01\x02" + bytes(0x102) + b"tail")
    assert a.recv_message() == bytes(0x102)
    assert a.recv(10) == b"tail"
    a.sendall(b"head")
    a.send_message()
    assert utils.receive_exactly(b, 8) == b"head" + bytes(4)


def test_several_messages_in_one_segment(our_pair: Pair) -> None:
    """A call takes its own message, and leaves what follows to the next one."""
    a, b = our_pair
    payloads = [random_bytes(size, size) for size in (0, 3, 70_000, 0, 9000, 1)]
    sending = Task(a.sendall, b"".join(map(framed, payloads)) + b"raw")
    for payload, receive in zip(payloads, [*RECEIVERS.values()] * 2, strict=False):
        assert receive(b, len(payload)) == payload
    sending.result()
    assert utils.receive_exactly(b, 3) == b"raw"


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 10, 1022, 1023, 1024, 1025, 2000])
def test_buffers_are_concatenated(our_pair: Pair, count: int) -> None:
    """Any number of buffers, some of them empty: few have room on the stack, and a system call takes 1024."""
    a, b = our_pair
    rng = random.Random(count)
    buffers = [rng.randbytes(rng.choice((0, 1, 2, 50))) for _ in range(count)]
    a.send_message(*buffers)
    assert b.recv_message() == b"".join(buffers)
    a.send_message(*[b""] * count)
    assert b.recv_message() == b""
    a.send_message(*[b""] * count, b"last")
    assert b.recv_message() == b"last"
    b.send_message(b"reply")
    assert a.exchange(*buffers) == b"reply"
    assert b.recv_message() == b"".join(buffers)


def test_large_buffers_are_concatenated(ours: str) -> None:
    with connected(ours) as (a, b):
        buffers = [random_bytes(size, size) for size in (MIB, 0, 1, 300_000, 65537)] + [b"x"] * 20
        sending = Task(a.send_message, *buffers)
        assert b.recv_message() == b"".join(buffers)
        sending.result()


def test_kinds_of_buffers(our_pair: Pair) -> None:
    """Whatever send() takes, alone or among others."""
    a, b = our_pair
    for name, buffer, content in buffers_to_send():
        a.send_message(buffer)
        assert b.recv_message() == content, name
        a.send_message(b"<", buffer, b">")
        assert b.recv_message() == b"<" + content + b">", name


def bad_buffers() -> list[Any]:
    return [None, 3, 1.5, "text", [1, 2], (b"x",), memoryview(b"abcdef")[::2], released_view()]


def test_what_is_no_buffer_is_refused(our_pair: Pair) -> None:
    """As send() refuses it; no other buffer stays exported, and nothing is sent."""
    a, b = our_pair
    good = bytearray(b"good")
    for bad in bad_buffers():
        with pytest.raises((TypeError, BufferError, ValueError)) as as_send:
            a.send(bad)
        for call in (
            lambda bad=bad: a.send_message(bad),
            lambda bad=bad: a.send_message(good, bad, good),
            lambda bad=bad: a.send_message(*[good] * 20, bad),
            lambda bad=bad: a.exchange(good, bad),
        ):
            with pytest.raises(as_send.type) as info:
                call()
            assert str(info.value) == str(as_send.value)
            good.append(0)
    a.send_message(b"next")
    assert b.recv_message() == b"next"


def test_targets(our_pair: Pair) -> None:
    """Whatever recv_into() takes is received into; the message comes first, and the rest stays as it was."""
    a, b = our_pair
    mapped = mmap.mmap(-1, mmap.PAGESIZE)
    numbers = array.array("I", [0] * 3)
    for buffer in (bytearray(12), memoryview(bytearray(20))[3:], numbers, mapped, (ctypes.c_char * 12)()):
        a.send_message(b"abcdefgh")
        assert b.recv_message_into(buffer) == 8
        assert bytes(buffer)[:8] == b"abcdefgh"
        a.send_message(b"AB")
        assert b.recv_message_into(buffer) == 2
        assert bytes(buffer)[:8] == b"ABcdefgh"
        size = memoryview(buffer).nbytes
        a.sendall(bytes([7]) * size)
        assert b.recv_exactly_into(buffer) is None
        assert bytes(buffer) == bytes([7]) * size
    a.send_message()
    assert b.recv_message_into(bytearray()) == 0
    assert b.recv_exactly_into(bytearray()) is None
    assert b.recv_exactly(0) == b""


def test_what_is_no_target_is_refused(our_pair: Pair) -> None:
    a, b = our_pair
    a.sendall(framed(b"abc"))
    bad: Any
    for bad in (b"abc", "abc", None, 3, memoryview(b"abc"), memoryview(bytearray(6))[::2]):
        with pytest.raises((TypeError, BufferError)) as as_recv_into:
            b.recv_into(bad)
        for method in (b.recv_message_into, b.recv_exactly_into):
            with pytest.raises(as_recv_into.type):
                method(bad)
    assert b.recv_message() == b"abc"


@pytest.mark.parametrize("name", MISUSES)
def test_wrong_arguments(our_pair: Pair, name: str) -> None:
    """They are refused at once, with a message, and the socket is as it was."""
    a, b = our_pair
    error, call = MISUSES[name]
    b.send_message(b"waiting")
    with pytest.raises(error) as info:
        Task(call, a).result()
    assert str(info.value) or error is MemoryError
    assert a.recv_message() == b"waiting"
    a.send_message(b"unharmed")
    assert b.recv_message() == b"unharmed"


def check_is_closed(call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as info:
        call()
    assert info.value.errno == errno.EBADF or getattr(info.value, "winerror", None) == 10038, repr(info.value)


def calls_of(sock: Any) -> dict[str, Callable[[], object]]:
    return {
        "send_message": lambda: sock.send_message(b"x"),
        "recv_message": lambda: sock.recv_message(),
        "recv_message_into": lambda: sock.recv_message_into(bytearray(5)),
        "recv_exactly": lambda: sock.recv_exactly(5),
        "recv_exactly_into": lambda: sock.recv_exactly_into(bytearray(5)),
        "exchange": lambda: sock.exchange(b"x"),
        "send": lambda: sock.send(b"x"),
        "sendall": lambda: sock.sendall(b"x"),
        "sendmsg": lambda: sock.sendmsg([b"x"]),
        "recv": lambda: sock.recv(5),
        "recv_into": lambda: sock.recv_into(bytearray(5)),
    }


@pytest.mark.parametrize("state", ["idle", "partly received", "partly sent", "reply due", "detached"])
def test_closed_socket(our_pair: Pair, state: str) -> None:
    """Every call is an OSError that says so, whatever the socket was in the middle of."""
    a, b = our_pair
    if state == "partly received":
        a.settimeout(TICK)
        b.sendall(framed(b"12345")[:6])
        with pytest.raises(TimeoutError):
            a.recv_message()
    elif state == "partly sent":
        send_partly(a)
    elif state == "reply due":
        a.settimeout(TICK)
        with pytest.raises(TimeoutError):
            a.exchange(b"request")
    if state == "detached":
        with socket.socket(a.family, a.type, a.proto, fileno=a.detach()):
            for call in calls_of(a).values():
                check_is_closed(call)
    a.close()
    for call in calls_of(a).values():
        check_is_closed(call)


# Limits


@pytest.mark.skipif(sys.maxsize < 1 << 32, reason="64-bit only: a message of 4 GiB")
def test_largest_message(our_pair: Pair) -> None:
    """A length of four bytes is the limit; one more byte is refused before anything is sent."""
    a, b = our_pair
    block = bytes(64 * MIB)
    buffers = [block] * 63 + [memoryview(block)[:-1]]
    for too_many in ([*buffers, b"x"], [block] * 64, [b"x", *buffers]):
        for call in (a.send_message, a.exchange):
            with pytest.raises(ValueError, match=str(LARGEST)):
                call(*too_many)
    a.setblocking(False)
    with pytest.raises(BlockingIOError):
        a.send_message(*buffers)
    assert utils.receive_exactly(b, 4) == b"\xff\xff\xff\xff"
    assert utils.receive_exactly(b, 100_000) == bytes(100_000)
    with contextlib.suppress(BlockingIOError):
        a.send_message(*buffers)
    assert utils.receive_exactly(b, 100_000) == bytes(100_000)


@pytest.mark.skipif(sys.maxsize < 1 << 32, reason="64-bit only: a buffer of over 4 GiB")
@posix_only
def test_buffer_larger_than_a_message(our_pair: Pair) -> None:
    """Of bytes, which cannot change, a partly sent message keeps no copy: these zeros never take any memory."""
    a, b = our_pair
    a.setblocking(False)
    try:
        with pytest.raises(ValueError, match=str(LARGEST)):
            a.send_message(bytes(LARGEST + 1))
        with pytest.raises(BlockingIOError):
            a.send_message(bytes(LARGEST))
    except MemoryError:
        pytest.skip("this machine cannot spare 4 GiB of address space")
    assert utils.receive_exactly(b, 1000) == b"\xff" * 4 + bytes(996)


def peek(sock: hvsock.HyperVSocket, size: int) -> bytes:
    """Look at the stream past what the socket itself keeps of it."""
    with sock.dup() as twin:
        return twin.recv(size, socket.MSG_PEEK)


@pytest.mark.parametrize("size", [1, 5, 8193, 70_000])
def test_too_long(our_pair: Pair, size: int) -> None:
    """Nothing of a message over the limit is taken from the stream, and a larger limit gets it."""
    a, b = our_pair
    payload = random_bytes(size, 7)
    a.sendall(framed(payload) + framed(b"next"))
    for call in (
        lambda: b.recv_message(size - 1),
        lambda: b.recv_message(max_size=0),
        lambda: b.recv_message_into(bytearray(size - 1)),
        lambda: b.recv_message(max_size=size - 1),
    ):
        with pytest.raises(OSError, match=str(size)) as info:
            call()
        assert info.value.errno == errno.EMSGSIZE
        if b._transport is not None:
            assert any("recv_message" in note for note in info.value.__notes__)
        assert peek(b, 1) == payload[:1]
        raw: Callable[[], bytes]
        for raw in (lambda: b.recv(1), lambda: b.recv_exactly(1), lambda: b.exchange(b"x")):
            with pytest.raises(RuntimeError, match="recv_message"):
                raw()
    assert b.recv_message(size) == payload
    assert b.recv_message() == b"next"


def test_limits_by_default(our_pair: Pair) -> None:
    a, b = our_pair
    payload = bytes(DEFAULT_LIMIT)
    sending = Task(a.send_message, payload)
    assert b.recv_message() == payload
    sending.result()
    a.sendall(struct.pack("!I", DEFAULT_LIMIT + 1))
    with pytest.raises(OSError) as info:
        b.recv_message()
    assert info.value.errno == errno.EMSGSIZE
    with pytest.raises(OSError) as info:
        b.recv_message(max_size=DEFAULT_LIMIT)
    assert info.value.errno == errno.EMSGSIZE


@pytest.mark.parametrize("size", [DEFAULT_LIMIT + 1, 0x7FFFFFFF, 0x80000000, LARGEST])
def test_nothing_is_allocated_for_what_is_too_long(our_pair: Pair, size: int) -> None:
    a, b = our_pair
    a.sendall(struct.pack("!I", size) + b"payload")
    buffer = bytearray(100)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for call in (lambda: b.recv_message(), lambda: b.recv_message_into(buffer), lambda: b.recv_message(size - 1)):
            with pytest.raises(OSError) as info:
                call()
            assert info.value.errno == errno.EMSGSIZE
            assert str(size) in str(info.value)
        assert tracemalloc.get_traced_memory()[1] - before < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or "LD_PRELOAD" in os.environ,
    reason="Linux only, for /proc/self/statm, and without a sanitizer, which uses memory of its own",
)
def test_memory_of_what_is_only_announced() -> None:
    """Whoever announces 16 MiB and sends little has made no page of them used."""
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(connected("adopted", 0)) for _ in range(20)]
        before = resident()
        for a, b in pairs:
            a.sendall(struct.pack("!I", DEFAULT_LIMIT) + b"content")
            with pytest.raises(BlockingIOError):
                b.recv_message()
        assert resident() - before < 20 * DEFAULT_LIMIT // 4


def resident() -> int:
    """Return the bytes of memory that this process really has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@posix_only
@pytest.mark.skipif(utils.FREE_THREADED, reason="its allocator has reserved room in the address space: none is missing")
def test_no_memory_for_what_is_announced() -> None:
    """MemoryError, where the limit allowed it but the system has none, loses nothing."""
    run_child(memory.announced_too_much)


# Going on


@pytest.mark.parametrize("size", [0, 1, 7])
def test_every_prefix_would_block(
    our_pair: Pair, size: int, receive: Callable[[hvsock.HyperVSocket, int], bytes]
) -> None:
    """Byte by byte: the call would block until the message is complete, and then has it."""
    a, b = our_pair
    b.setblocking(False)
    payload = random_bytes(size)
    for _ in range(2):
        for byte in framed(payload):
            with pytest.raises(BlockingIOError) as info:
                receive(b, size)
            assert not getattr(info.value, "__notes__", None)
            a.sendall(bytes([byte]))
            wait_until_readable(b)
        assert receive(b, size) == payload


@pytest.mark.parametrize("size", [100, 10_000, 100_000])
def test_cut_anywhere(our_pair: Pair, size: int, receive: Callable[[hvsock.HyperVSocket, int], bytes]) -> None:
    """Whatever part of it has arrived, in the room on the stack, on the heap or in an object, the rest follows."""
    a, b = our_pair
    b.setblocking(False)
    wire = framed(random_bytes(size))
    for cut in (1, 3, 4, 5, size // 2, size - 1, size, size + 3):
        a.sendall(wire[:cut])
        wait_until_readable(b)
        for _ in range(2):
            with pytest.raises(BlockingIOError):
                receive(b, size)
        a.sendall(wire[cut:])
        assert patiently(receive, b, size) == wire[4:]


@pytest.mark.parametrize("first", ["recv_message", "recv_message_into"])
def test_another_method_goes_on(our_pair: Pair, first: str) -> None:
    """What recv_message has begun, recv_message_into may finish, and the other way around."""
    a, b = our_pair
    b.setblocking(False)
    for size in (5, 9000, 100_000):
        wire = framed(random_bytes(size))
        a.sendall(wire[: size // 2 + 4])
        wait_until_readable(b)
        with pytest.raises(BlockingIOError):
            RECEIVERS[first](b, size)
        a.sendall(wire[size // 2 + 4 :])
        second = ({"recv_message", "recv_message_into"} - {first}).pop()
        assert patiently(RECEIVERS[second], b, size) == wire[4:]
    a.sendall(b"12")
    wait_until_readable(b)
    with pytest.raises(BlockingIOError):
        b.recv_exactly(5)
    a.sendall(b"345")
    buffer = bytearray(5)
    patiently(b.recv_exactly_into, buffer)
    assert buffer == b"12345"


def test_a_larger_or_smaller_buffer_goes_on(our_pair: Pair) -> None:
    """The message is received where the last call wants it, whatever the first one was given."""
    a, b = our_pair
    b.setblocking(False)
    a.sendall(framed(b"0123456789")[:9])
    wait_until_readable(b)
    first = bytearray(20)
    with pytest.raises(BlockingIOError):
        b.recv_message_into(first)
    first.extend(b"it is not exported any more")
    for small in (9, 0):
        with pytest.raises(OSError) as info:
            b.recv_message_into(bytearray(small))
        assert info.value.errno == errno.EMSGSIZE
        with pytest.raises(OSError) as info:
            b.recv_message(small)
        assert info.value.errno == errno.EMSGSIZE
    a.sendall(b"56789")
    last = bytearray(10)
    assert patiently(b.recv_message_into, last) == 10
    assert last == b"0123456789"


def test_timeout_in_the_middle(our_pair: Pair, receive: Callable[[hvsock.HyperVSocket, int], bytes]) -> None:
    """TimeoutError loses nothing, and every call has a timeout of its own."""
    a, b = our_pair
    wire = framed(random_bytes(10))
    b.settimeout(2 * TICK)
    for cut in range(0, len(wire), 2):
        with takes(2 * TICK, SLACK), pytest.raises(TimeoutError) as info:
            receive(b, 10)
        assert str(info.value) == "timed out"
        a.sendall(wire[cut : cut + 2])
    b.settimeout(LIMIT)
    assert receive(b, 10) == wire[4:]


def test_a_message_has_one_deadline(our_pair: Pair) -> None:
    """A peer that sends a byte now and then does not prolong it."""
    a, b = our_pair
    b.settimeout(6 * TICK)
    done = False

    def trickle() -> int:
        a.sendall(struct.pack("!I", 1 << 20))
        count = 0
        while not done:
            a.sendall(b"x")
            count += 1
            time.sleep(TICK)
        return count

    trickling = Task(trickle)
    with takes(6 * TICK, SLACK), pytest.raises(TimeoutError):
        Task(b.recv_message).result()
    done = True
    count = trickling.result()
    sending = Task(a.sendall, b"y" * (MIB - count))
    b.settimeout(LIMIT)
    assert b.recv_message() == b"x" * count + b"y" * (MIB - count)
    sending.result()


def test_one_call_at_a_time_begins_a_receive(our_pair: Pair) -> None:
    """In the middle of a message, whatever else would receive is refused, and takes nothing."""
    a, b = our_pair
    b.setblocking(False)
    wire = framed(b"0123456789")
    others: dict[str, Callable[[], object]] = {
        "recv": lambda: b.recv(1),
        "recv zero": lambda: b.recv(0),
        "recv_into": lambda: b.recv_into(bytearray(1)),
        "peek": lambda: b.recv(1, socket.MSG_PEEK),
        "recv_exactly": lambda: b.recv_exactly(1),
        "recv_exactly of the rest": lambda: b.recv_exactly(8),
        "recv_exactly_into": lambda: b.recv_exactly_into(bytearray(1)),
        "exchange": lambda: b.exchange(b"request"),
    }
    for cut in (1, 4, 7):
        a.sendall(wire[:cut])
        wait_until_readable(b)
        with pytest.raises(BlockingIOError):
            b.recv_message()
        for call in others.values():
            with pytest.raises(RuntimeError, match="recv_message"):
                call()
        a.sendall(wire[cut:])
        assert patiently(b.recv_message) == b"0123456789"
    a.sendall(b"01234")
    wait_until_readable(b)
    with pytest.raises(BlockingIOError):
        b.recv_exactly(10)
    others |= {
        "recv_exactly of more": lambda: b.recv_exactly(11),
        "recv_exactly_into less": lambda: b.recv_exactly_into(bytearray(9)),
        "recv_message": lambda: b.recv_message(),
        "recv_message_into": lambda: b.recv_message_into(bytearray(10)),
    }
    for call in others.values():
        with pytest.raises(RuntimeError, match="recv_exactly"):
            call()
    # Sending is another matter.
    b.send(b"raw")
    b.send_message(b"whole")
    a.sendall(b"56789")
    assert patiently(b.recv_exactly, 10) == b"0123456789"
    # Nothing was sent by the exchanges that were refused.
    assert utils.receive_exactly(a, 12) == b"raw" + framed(b"whole")
    a.setblocking(False)
    with pytest.raises(BlockingIOError):
        a.recv(1)


def test_nothing_received_begins_nothing(our_pair: Pair) -> None:
    """A call that received no byte leaves the next one free to be of another kind."""
    a, b = our_pair
    b.setblocking(False)
    calls = calls_of(b)
    for name in ("recv_message", "recv_message_into", "recv_exactly", "recv_exactly_into", "recv", "recv_into"):
        with pytest.raises(BlockingIOError):
            calls[name]()
    with pytest.raises(BlockingIOError):
        b.recv_exactly(70_000)
    a.sendall(b"raw")
    wait_until_readable(b)
    assert b.recv(3) == b"raw"


def test_large_message_nonblocking(our_pair: Pair) -> None:
    """16 MiB and more through sockets that never wait, at both ends, in parts as large as the system takes."""
    a, b = our_pair
    a.setblocking(False)
    b.setblocking(False)
    size = 20 * MIB
    message = random_bytes(size)
    rounds, received, sent = 0, None, False
    deadline = time.monotonic() + LIMIT
    while received is None:
        assert time.monotonic() < deadline
        rounds += 1
        if not sent:
            with contextlib.suppress(BlockingIOError):
                a.send_message(message)
                sent = True
        with contextlib.suppress(BlockingIOError):
            received = b.recv_message(max_size=size)
    assert sent
    assert received == message
    if not WINDOWS:
        assert rounds > 5, "nothing was in parts"


def test_partly_received_message_is_not_copied_by_every_call(our_pair: Pair) -> None:
    """Going on takes no memory: the message has its room from the first call on."""
    a, b = our_pair
    b.setblocking(False)
    size = 16 * MIB
    a.sendall(struct.pack("!I", size) + bytes(1000))
    wait_until_readable(b)
    tracemalloc.start()
    try:
        with pytest.raises(BlockingIOError):
            b.recv_message()
        before = tracemalloc.get_traced_memory()[0]
        assert before >= size
        tracemalloc.reset_peak()
        for _ in range(200):
            a.sendall(bytes(1000))
            with contextlib.suppress(BlockingIOError):
                b.recv_message()
        assert tracemalloc.get_traced_memory()[1] - before < 100_000
        # Whatever was received is given back with the socket.
        b.close()
        assert before - tracemalloc.get_traced_memory()[0] > size // 2
    finally:
        tracemalloc.stop()


def receive_numbered(sock: hvsock.HyperVSocket, whole: int, size: int) -> None:
    """Receive the messages of send_partly()."""
    for number in range(whole + 1):
        assert sock.recv_message(max_size=size) == numbered(number, size), number


@pytest.mark.parametrize("mode", ["non-blocking", "timeout", "blocking"])
def test_partly_sent_message_goes_on(our_pair: Pair, mode: str) -> None:
    """The same call, made again until it is done, sends a message once and whole."""
    a, b = our_pair
    whole, message = send_partly(a)
    a.settimeout({"non-blocking": 0, "timeout": 2 * TICK, "blocking": None}[mode])
    for _ in range(0 if mode == "blocking" else 2):
        with pytest.raises(BlockingIOError if mode == "non-blocking" else TimeoutError):
            a.send_message(message)
    receiving = Task(receive_numbered, b, whole, len(message))
    if mode == "blocking":
        assert a.send_message(message) is None
    deadline = time.monotonic() + LIMIT
    while mode != "blocking" and is_partly_sent(a):
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError, TimeoutError):
            # What counts is the content, not the object.
            assert a.send_message(bytearray(message)) is None
            break
    receiving.result()
    a.settimeout(LIMIT)
    a.send_message(b"next")
    assert b.recv_message() == b"next"


def test_nothing_else_is_sent_in_the_middle(our_pair: Pair) -> None:
    """Bytes between those of a message would end up in it: every other send is refused."""
    a, b = our_pair
    whole, message = send_partly(a)
    view = memoryview(message)
    others: dict[str, Callable[[], object]] = {
        "send": lambda: a.send(b"x"),
        "sendall": lambda: a.sendall(b"x"),
        "sendmsg": lambda: a.sendmsg([b"x"]),
        "shorter": lambda: a.send_message(view[:-1]),
        "longer": lambda: a.send_message(message, b"x"),
        "empty": lambda: a.send_message(),
        "other": lambda: a.send_message(numbered(99, len(message))),
        "other first byte": lambda: a.send_message(b"x" + message[1:]),
        "exchange": lambda: a.exchange(b"x"),
    }
    if not WINDOWS:
        others["sendmsg with ancillary data"] = lambda: a.sendmsg([b"x"], [(socket.SOL_SOCKET, 99, b"")])
    for call in others.values():
        with pytest.raises(RuntimeError, match="send_message"):
            call()
    receiving = Task(receive_numbered, b, whole, len(message))
    # Receiving is another matter.
    b.send_message(b"backwards")
    a.settimeout(LIMIT)
    assert a.recv_message() == b"backwards"
    a.send_message(message)
    receiving.result()
    a.send(b"raw")
    assert utils.receive_exactly(b, 3) == b"raw"


@pytest.mark.parametrize("at", [8, 12, 100, 65_537, MIB, -9])
def test_other_message_of_the_same_size(our_pair: Pair, at: int) -> None:
    """A single byte, wherever it is, makes it another message."""
    a, _ = our_pair
    _, message = send_partly(a, 4 * MIB)
    other = bytearray(message)
    other[at] ^= 1
    with pytest.raises(RuntimeError, match="send_message"):
        a.send_message(other)


def test_nothing_sent_begins_nothing(our_pair: Pair) -> None:
    """A message of which not a byte was sent is not in the way of the next one."""
    a, b = our_pair
    filled = utils.fill(a)
    for message in (b"one", b"two"):
        with pytest.raises(BlockingIOError):
            a.send_message(message)
    with pytest.raises(BlockingIOError):
        a.exchange(b"three")
    a.settimeout(TICK)
    with pytest.raises(TimeoutError):
        a.send_message(b"four")
    assert utils.receive_exactly(b, filled).count(b"\xaa") == filled
    a.settimeout(LIMIT)
    a.send_message(b"five")
    assert b.recv_message() == b"five"


@posix_only
@pytest.mark.parametrize("operation", ["send_message", *RECEIVERS, "exchange"])
@pytest.mark.parametrize("what", ["raises", "returns", "closes", "recurses"])
@pytest.mark.parametrize("timeout", ["none", "limit"])
def test_signal_in_the_middle(ours: str, operation: str, what: str, timeout: str) -> None:
    """A handler's exception ends the call, which then goes on; else the call itself goes on, unless it was closed."""
    run_child(signals.in_message, ours, operation, what, timeout)


@posix_only
@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ is 3.12's")
@pytest.mark.parametrize("operation", ["send_message", "exchange"])
def test_signal_in_the_middle_of_buffers_in_python(operation: str) -> None:
    """What is kept of them to go on is asked of Python code, while the handler's exception is on its way."""
    run_child(signals.in_buffers_in_python, operation)


# The end of the stream


def check_incomplete(error: BaseException | None, partial: bytes, expected: int) -> None:
    assert type(error) is hvsock.IncompleteReadError, repr(error)
    assert error.partial == partial
    assert type(error.partial) is bytes
    assert error.expected == expected
    assert isinstance(error, EOFError)
    assert f"{len(partial)} of {expected} bytes" in str(error)
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is hvsock.IncompleteReadError
        assert (twin.partial, twin.expected, str(twin)) == (partial, expected, str(error))


@pytest.mark.parametrize("how", ["at once", "non-blocking"])
@pytest.mark.parametrize("method", ["recv_message", "recv_message_into", "exchange"])
@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5, 9000, 9003])
def test_end_of_stream_in_a_message(ours: str, method: str, cut: int, how: str) -> None:
    """On a boundary it is EOFError; inside it says what there was, of the header or of the payload."""
    wire = framed(random_bytes(9000))
    with connected(ours) as (a, b):
        call: dict[str, Callable[[], object]] = {
            "recv_message": lambda: b.recv_message(),
            "recv_message_into": lambda: b.recv_message_into(bytearray(10_000)),
            "exchange": lambda: b.exchange(b"request"),
        }
        a.sendall(wire[:cut])
        if how == "non-blocking" and cut:
            wait_until_readable(b)
            b.setblocking(False)
            with pytest.raises(BlockingIOError):
                call[method]()
        if method == "exchange":
            b.settimeout(2 * TICK)
            with pytest.raises(TimeoutError):
                call[method]()
        a.shutdown(socket.SHUT_WR)
        b.settimeout(LIMIT)
        with pytest.raises(EOFError) as info:
            call[method]()
        if cut == 0:
            assert type(info.value) is EOFError
            assert str(info.value)
        else:
            check_incomplete(info.value, wire[4:cut] if cut >= 4 else wire[:cut], 9000 if cut >= 4 else 4)
        # It has been said: from then on the stream is at its end, for every method.
        for again in (*RECEIVERS.values(),):
            with pytest.raises(EOFError) as info:
                again(b, 5)
            assert type(info.value) is EOFError
        assert b.recv(10) == b""


@pytest.mark.parametrize("how", ["at once", "non-blocking"])
@pytest.mark.parametrize("method", ["recv_exactly", "recv_exactly_into"])
@pytest.mark.parametrize("size", [10, 10_000, 100_000])
def test_end_of_stream_before_enough_bytes(ours: str, method: str, size: int, how: str) -> None:
    payload = random_bytes(size)
    for got in (0, 1, size - 1):
        with connected(ours) as (a, b):

            def call(b: hvsock.HyperVSocket = b) -> object:
                return b.recv_exactly(size) if method == "recv_exactly" else b.recv_exactly_into(bytearray(size))

            a.sendall(payload[:got])
            if how == "non-blocking":
                b.setblocking(False)
                if got:
                    wait_until_readable(b)
                with pytest.raises(BlockingIOError):
                    call()
                b.settimeout(LIMIT)
            a.shutdown(socket.SHUT_WR)
            with pytest.raises(EOFError) as info:
                call()
            if got:
                check_incomplete(info.value, payload[:got], size)
            else:
                assert type(info.value) is EOFError
            assert b.recv_exactly(0) == b""
            with pytest.raises(EOFError):
                call()


def test_end_of_stream_after_whole_messages(our_pair: Pair) -> None:
    a, b = our_pair
    for payload in (b"", b"one", b""):
        a.send_message(payload)
    a.close()
    assert [b.recv_message(), b.recv_message(), b.recv_message()] == [b"", b"one", b""]
    with pytest.raises(EOFError) as info:
        b.recv_message()
    assert type(info.value) is EOFError


def test_peer_is_gone(our_pair: Pair) -> None:
    """Sending to it is the ConnectionError that it is for every send, at the latest after a few messages."""
    a, b = our_pair
    b.close()
    with pytest.raises(ConnectionError):
        for _ in range(1000):
            a.send_message(bytes(65536))


# Requests and replies


def echo(sock: hvsock.HyperVSocket, requests: list[bytes] | None = None) -> int:
    """Answer every message with itself until the stream ends, and return how many there were."""
    count = 0
    with contextlib.suppress(EOFError):
        while True:
            message = sock.recv_message(max_size=64 * MIB)
            count += 1
            if requests is not None:
                requests.append(message)
            sock.send_message(b"re: ", message)
    return count


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["blocking", "timeout"])
def test_exchange(ours: str, timeout: float | None) -> None:
    payload = random_bytes(MIB + 1)
    with connected(ours, timeout) as (a, b):
        echoing = Task(echo, b)
        for size in SIZES:
            assert Task(a.exchange, payload[:size]).result() == b"re: " + payload[:size], size
        assert a.exchange() == b"re: "
        assert a.exchange(b"a", b"", bytearray(b"b"), max_size=6) == b"re: ab"
        a.shutdown(socket.SHUT_WR)
        assert echoing.result() == len(SIZES) + 2


def test_exchange_of_large_messages(our_pair: Pair) -> None:
    """Larger both ways than any buffer: the request is sent before the reply is received."""
    a, b = our_pair
    echoing = Task(echo, b)
    request = random_bytes(20 * MIB)
    assert a.exchange(request, max_size=21 * MIB) == b"re: " + request
    a.shutdown(socket.SHUT_WR)
    assert echoing.result() == 1


def test_exchange_goes_on_after_a_timeout(our_pair: Pair) -> None:
    """The request is sent once, however often the call is made."""
    a, b = our_pair
    a.settimeout(TICK)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            a.exchange(b"request", b" one")
    other: Callable[[], object]
    for other in (lambda: a.exchange(b"request two"), lambda: a.exchange(), lambda: a.exchange(b"request one")):
        # The parts count too: "the same call".
        with pytest.raises(RuntimeError, match="recv_message"):
            other()
    for other in (lambda: a.recv(1), lambda: a.recv_exactly(1), lambda: a.recv_into(bytearray(1))):
        with pytest.raises(RuntimeError, match="recv_message"):
            other()
    assert b.recv_message() == b"request one"
    b.sendall(framed(b"reply")[:6])
    with pytest.raises(TimeoutError):
        a.exchange(b"request", b" one")
    with pytest.raises(RuntimeError, match="recv_message"):
        a.exchange(b"request two")
    b.sendall(framed(b"reply")[6:])
    a.settimeout(LIMIT)
    assert a.exchange(b"request", b" one") == b"reply"
    # From here on the same request is a new one.
    answering = Task(lambda: (b.recv_message(), b.send_message(b"second")))
    assert a.exchange(b"request", b" one") == b"second"
    assert answering.result() == (b"request one", None)


@pytest.mark.parametrize("take", ["recv_message", "recv_message_into"])
@pytest.mark.parametrize("part", [0, 2, 7])
def test_recv_message_takes_the_reply(our_pair: Pair, take: str, part: int) -> None:
    """Then any request may follow."""
    a, b = our_pair
    wire = framed(b"reply")
    b.sendall(wire[:part])
    a.settimeout(TICK)
    with pytest.raises(TimeoutError):
        a.exchange(b"first")
    with pytest.raises(RuntimeError, match="recv_message"):
        a.exchange(b"second")
    assert b.recv_message() == b"first"
    b.sendall(wire[part:])
    a.settimeout(LIMIT)
    assert RECEIVERS[take](a, 5) == b"reply"
    b.send_message(b"another")
    assert a.exchange(b"second") == b"another"
    assert b.recv_message() == b"second"


def test_exchange_is_refused_while_a_message_is_partly_received(our_pair: Pair) -> None:
    """That message may be anything, but it is not the reply."""
    a, b = our_pair
    for part in (1, 4, 6):
        a.setblocking(False)
        b.sendall(framed(b"notice")[:part])
        wait_until_readable(a)
        with pytest.raises(BlockingIOError):
            a.recv_message()
        with pytest.raises(RuntimeError, match="recv_message"):
            a.exchange(b"request")
        b.sendall(framed(b"notice")[part:])
        a.settimeout(LIMIT)
        assert a.recv_message() == b"notice"
        b.setblocking(False)
        with pytest.raises(BlockingIOError):
            b.recv_message()
        b.settimeout(LIMIT)


def test_exchange_goes_on_in_the_middle_of_its_request(our_pair: Pair) -> None:
    """It is the request that send_message has begun, or an exchange, and either goes on with it."""
    a, b = our_pair
    for begin in ("send_message", "exchange"):
        for finish in ("send_message", "exchange"):
            a.settimeout(TICK)
            request = random_bytes(40 * MIB)
            with pytest.raises(TimeoutError):
                getattr(a, begin)(request)
            if not is_partly_sent(a):
                pytest.skip("a send takes all or nothing here")
            # No reply is due before the request was sent.
            with pytest.raises(TimeoutError):
                a.recv_message()
            with pytest.raises(RuntimeError, match="send_message"):
                a.exchange(b"another")
            answering = Task(lambda request=request: (b.recv_message(64 * MIB) == request, b.send_message(b"reply")))
            a.settimeout(LIMIT)
            result = getattr(a, finish)(request)
            assert answering.result() == (True, None)
            assert (a.recv_message() if finish == "send_message" else result) == b"reply"


def test_exchange_nonblocking(our_pair: Pair) -> None:
    """The request goes out at once; the same call has the reply when it has come."""
    a, b = our_pair
    a.setblocking(False)
    for request in (b"one", b"two"):
        for _ in range(3):
            with pytest.raises(BlockingIOError) as info:
                a.exchange(request)
            assert not getattr(info.value, "__notes__", None)
        assert b.recv_message() == request
        b.send_message(b"re: ", request)
        assert patiently(a.exchange, request) == b"re: " + request
    b.setblocking(False)
    with pytest.raises(BlockingIOError):
        b.recv(1)


def test_exchange_with_a_reply_over_the_limit(our_pair: Pair) -> None:
    a, b = our_pair
    b.send_message(b"too long")
    b.send_message(b"next")
    for _ in range(2):
        with pytest.raises(OSError) as info:
            a.exchange(b"request", max_size=7)
        assert info.value.errno == errno.EMSGSIZE
    assert a.exchange(b"request", max_size=8) == b"too long"
    assert a.recv_message() == b"next"
    assert b.recv_message() == b"request"
    b.setblocking(False)
    with pytest.raises(BlockingIOError):
        b.recv_message()


def test_exchange_has_one_deadline(our_pair: Pair) -> None:
    """It covers the wait to send, and the wait for the reply."""
    a, b = our_pair
    filled = utils.fill(a)
    timeout = 50 * TICK
    a.settimeout(timeout)

    def make_room() -> None:
        time.sleep(timeout * 0.7)
        utils.receive_exactly(b, filled)

    making = Task(make_room)
    with takes(timeout, timeout + SLACK), pytest.raises(TimeoutError):
        Task(a.exchange, b"request").result()
    making.result()
    assert b.recv_message() == b"request"
    b.send_message(b"reply")
    a.settimeout(LIMIT)
    assert a.exchange(b"request") == b"reply"


# Threads


MESSAGES = int(60 / max(1.0, SCALE / 2)) if not utils.WINE else 25


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["blocking", "timeout"])
def test_threads_send_and_receive(ours: str, timeout: float | None) -> None:
    """Eight send and four receive, over one connection: every message arrives whole, and once."""

    def make(thread: int, number: int) -> bytes:
        seed = thread << 16 | number
        size = random.Random(seed).choice((0, 1, 100, 5000, 9000, 60_000, 200_000))
        return struct.pack("!I", seed) + random_bytes(size, seed)

    def send(sock: hvsock.HyperVSocket, thread: int) -> None:
        for number in range(MESSAGES):
            message = make(thread, number)
            sock.send_message(message[:4], message[4:])

    def receive(sock: hvsock.HyperVSocket, thread: int) -> list[int]:
        seeds, buffer = [], bytearray(300_000)
        with contextlib.suppress(EOFError):
            while True:
                message = sock.recv_message() if thread % 2 else bytes(buffer[: sock.recv_message_into(buffer)])
                [seed] = struct.unpack("!I", message[:4])
                assert message == make(seed >> 16, seed & 0xFFFF)
                seeds.append(seed)
        return seeds

    with connected(ours, timeout) as (a, b):
        receiving = [Task(receive, b, thread) for thread in range(4)]
        sending = [Task(send, a, thread) for thread in range(8)]
        for task in sending:
            task.result(2 * LIMIT)
        a.shutdown(socket.SHUT_WR)
        seeds = [task.result(2 * LIMIT) for task in receiving]
    assert sorted(itertools.chain(*seeds)) == [thread << 16 | n for thread in range(8) for n in range(MESSAGES)]
    for own in seeds:
        for thread in range(8):
            mine = [seed for seed in own if seed >> 16 == thread]
            assert mine == sorted(mine), "messages of one thread overtook each other"


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["blocking", "timeout"])
def test_threads_exchange(ours: str, timeout: float | None) -> None:
    """Each gets the reply to its own request."""

    def talk(sock: hvsock.HyperVSocket, thread: int) -> None:
        rng = random.Random(thread)
        for _ in range(MESSAGES):
            request = rng.randbytes(rng.choice((1, 10, 10_000, 100_000)))
            assert sock.exchange(request) == b"re: " + request

    with connected(ours, timeout) as (a, b):
        echoing = Task(echo, b)
        talking = [Task(talk, a, thread) for thread in range(8)]
        for task in talking:
            task.result(2 * LIMIT)
        a.shutdown(socket.SHUT_WR)
        assert echoing.result() == 8 * MESSAGES


def test_send_beside_exchanges(our_pair: Pair) -> None:
    """Messages without a reply go out between requests, and while a reply is awaited."""
    a, b = our_pair
    waiting = Task(a.exchange, b"request")
    assert b.recv_message() == b"request"
    a.send_message(b"notice")
    assert b.recv_message() == b"notice"
    second = Task(a.exchange, b"second")
    assert not second.wait(2 * TICK)
    b.send_message(b"reply")
    assert waiting.result() == b"reply"
    assert b.recv_message() == b"second"
    b.send_message(b"reply to the second")
    assert second.result() == b"reply to the second"


def test_send_beside_an_exchange_that_went_on(our_pair: Pair) -> None:
    """Its request, too, is in nobody's way once it has been sent."""
    a, b = our_pair
    request = random_bytes(40 * MIB)
    a.settimeout(TICK)
    with pytest.raises(TimeoutError):
        a.exchange(request)
    if not is_partly_sent(a):
        pytest.skip("a send takes all or nothing here")
    a.settimeout(LIMIT)
    waiting = Task(a.exchange, request)
    assert b.recv_message(64 * MIB) == request
    notice = Task(a.send_message, b"notice")
    assert b.recv_message() == b"notice"
    notice.result()
    b.send_message(b"reply")
    assert waiting.result() == b"reply"
    a.send(b"raw")
    assert utils.receive_exactly(b, 3) == b"raw"


@pytest.mark.parametrize("operation", ["send_message", *RECEIVERS, "exchange"])
@pytest.mark.parametrize("timeout", ["none", "limit"])
def test_close_wakes(ours: str, operation: str, timeout: str) -> None:
    """A close from another thread ends a message call, and no byte of another socket goes astray."""
    run_child(closing.close_wakes, ours, operation, timeout, 20)


@pytest.mark.parametrize("operation", ["send_message", "recv_message", "recv_exactly", "exchange"])
def test_close_wakes_those_who_wait_for_their_turn(ours: str, operation: str) -> None:
    run_child(closing.close_wakes_the_queue, ours, operation, 10)


def test_close_races_with_messages(ours: str) -> None:
    """Threads that exchange, send and receive all the time meet the close at every point."""
    run_child(closing.close_races_with_messages, ours, 40)


@pytest.mark.parametrize("operation", ["send_message", "recv_message", "exchange"])
def test_process_ends_while_a_thread_waits(ours: str, operation: str) -> None:
    run_child(closing.exit_while_blocked, ours, operation)


@contextlib.contextmanager
def taken(a: hvsock.HyperVSocket, b: hvsock.HyperVSocket, what: str) -> Iterator[Task]:
    """Have another thread in the middle of a message, so that it is that thread's turn."""
    a.settimeout(LIMIT)
    message = bytes(64 * MIB)
    task = Task(a.send_message, message) if what == "send" else Task(a.recv_message)
    if what == "send":
        wait_until_readable(b)
    else:
        b.sendall(framed(b"12345")[:6])
    assert not task.wait(2 * TICK)
    yield task
    if what == "send":
        assert b.recv_message(max_size=len(message)) == message
    else:
        b.sendall(framed(b"12345")[6:])
    task.result()


@pytest.mark.parametrize(
    ("what", "operation"),
    [("send", "send_message"), ("send", "exchange"), *(("receive", name) for name in (*RECEIVERS, "exchange"))],
)
def test_timeout_of_a_turn(our_pair: Pair, what: str, operation: str) -> None:
    """Who waits for another thread's message waits for the timeout at most; a non-blocking socket not at all."""
    a, b = our_pair
    with taken(a, b, what):
        call = calls_of(a)[operation]
        a.settimeout(3 * TICK)
        with takes(3 * TICK, SLACK), pytest.raises(TimeoutError):
            Task(call).result()
        a.setblocking(False)
        with takes(0, SLACK), pytest.raises(BlockingIOError):
            Task(call).result()
        a.settimeout(LIMIT)
    # Nothing of it was sent.
    b.setblocking(False)
    with pytest.raises(BlockingIOError):
        b.recv(1)


def test_turn_comes_to_whoever_waits(our_pair: Pair) -> None:
    """A thread that takes one turn after another does not keep the others from theirs."""
    a, b = our_pair
    greedy = Task(lambda: sum(1 for _ in iter(a.recv_message, b"end")))
    for _ in range(3):
        time.sleep(TICK)  # the receiver has its turn again
        waiting = Task(a.exchange, b"request")
        assert not waiting.wait(TICK)
        for _ in range(5):
            b.send_message(b"notice")
            if is_readable(b, TICK):
                break
        b.settimeout(0)
        assert b.recv_message() == b"request"
        b.settimeout(LIMIT)
        b.send_message(b"reply")
        assert waiting.result() in (b"reply", b"notice")
    b.send_message(b"end")
    greedy.result()


@posix_only
def test_end_of_a_turn_wakes_one_thread(our_pair: Pair) -> None:
    """Of the many that wait for it: all of them would use the processor for nothing."""
    import resource

    a, b = our_pair
    threads, messages = 32, 400
    received = threading.Semaphore(0)

    def receive() -> None:
        with contextlib.suppress(EOFError):
            while True:
                a.recv_message()
                received.release()

    tasks = [Task(receive) for _ in range(threads)]
    time.sleep(TICK)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    for _ in range(messages):
        b.send_message(b"message")
        assert received.acquire(timeout=LIMIT)
    slept = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before
    b.shutdown(socket.SHUT_WR)
    for task in tasks:
        task.result()
    assert slept < messages * threads / 2, slept


def test_exchange_has_one_deadline_for_both_turns(our_pair: Pair) -> None:
    """First the turn to receive is long in coming, then the turn to send does not come at all."""
    a, b = our_pair
    timeout = 60 * TICK
    with taken(a, b, "send"):
        receiving = Task(a.recv_message)
        assert not receiving.wait(TICK)
        a.settimeout(timeout)
        start = time.monotonic()
        waiting = Task(a.exchange, b"request")
        assert not waiting.wait(timeout * 0.9)
        b.send_message(b"for the other thread")
        assert receiving.result() == b"for the other thread"
        assert type(waiting.error()) is TimeoutError
        elapsed = time.monotonic() - start
        a.settimeout(LIMIT)
    assert timeout * 0.95 <= elapsed < timeout * 1.6


@pytest.mark.parametrize("operation", ["send_message", "recv_message", "recv_exactly", "exchange"])
def test_ctrl_c_while_waiting_for_a_turn(ours: str, operation: str) -> None:
    with Child(signals.interrupted_in_the_queue, ours, operation) as child:
        assert child.line() == "waiting"
        time.sleep(2 * TICK)
        start = time.monotonic()
        if WINDOWS:
            child.tell("raise")
        else:
            child.process.send_signal(2)
        assert child.line() == "interrupted"
        assert time.monotonic() - start < SLACK
        child.finish()


@pytest.mark.parametrize("operation", ["send_message", *RECEIVERS, "exchange"])
@pytest.mark.parametrize("timeout", ["none", "limit"])
def test_ctrl_c(ours: str, operation: str, timeout: str) -> None:
    with Child(signals.interrupted, ours, operation, timeout) as child:
        assert child.line() == "waiting"
        time.sleep(2 * TICK)
        start = time.monotonic()
        if WINDOWS:
            child.tell("raise")
        else:
            child.process.send_signal(2)
        assert child.line() == "interrupted"
        assert time.monotonic() - start < SLACK
        child.finish()


@posix_only
@pytest.mark.parametrize(
    "case", ["idle", "receiving", "partly received", "partly received here", "sending", "going on"]
)
def test_fork(ours: str, case: str) -> None:
    """A forked process has the connection, but neither the threads nor what they were in the middle of."""
    run_child(forks.in_a_message, ours, case)


# Memory


LEAK_ROUNDS = 45 if utils.WINE else 100
#: Fewer than a leak of one block in each round, since caches fluctuate.
LEAK_BLOCKS = LEAK_ROUNDS * 3 // 4


def test_no_memory_leaks() -> None:
    """Every way for a call to end leaves no object and no memory behind, and no buffer exported."""
    lines = run_child(memory.leaks, LEAK_ROUNDS, LEAK_BLOCKS, timeout=4 * LIMIT)
    assert len(lines) > 30
    grown = {name: (int(blocks), int(size)) for name, blocks, size in (line.split("\t") for line in lines)}
    leaks = {name: growth for name, growth in grown.items() if growth[0] > LEAK_BLOCKS or growth[1] > 20_000}
    assert leaks == {}


def test_buffers_are_released(our_pair: Pair) -> None:
    """Neither references nor exports of buffers outlive the call, however it ends."""
    a, b = our_pair
    buffer, target = bytearray(b"x" * 100), bytearray(100)
    ends: list[Callable[[], object]] = [
        lambda: a.send_message(buffer, buffer),
        lambda: a.send_message(*[buffer] * 20),
        lambda: a.send_message(buffer, 1),  # type: ignore[arg-type]
        lambda: a.exchange(buffer, max_size=-1),
        lambda: a.exchange(buffer, max_size="1"),  # type: ignore[arg-type]
        lambda: a.exchange(buffer),
        lambda: a.exchange(buffer, b"other"),
        lambda: a.exchange(buffer),
        lambda: a.recv_message_into(target),
        lambda: a.recv_exactly_into(target),
        lambda: a.recv_exactly_into(target[:5]),
        lambda: (b.send_message(b"reply"), patiently(a.exchange, buffer)),
        lambda: (b.send_message(bytes(101)), wait_until_readable(a), a.recv_message_into(target)),
        lambda: a.recv_message(),
        lambda: (b.send_message(bytes(100)), wait_until_readable(a), a.recv_message_into(target)),
        lambda: (b.sendall(framed(target)[:50]), wait_until_readable(a), a.recv_message_into(target)),
        lambda: a.recv_exactly_into(target),
        lambda: (b.shutdown(socket.SHUT_WR), wait_until_readable(a), a.recv_message_into(target)),
        lambda: a.recv_message_into(target),
        lambda: [a.send_message(buffer * 100_000) for _ in range(100)],
        lambda: a.send_message(buffer),
        lambda: (a.close(), a.send_message(buffer)),
        lambda: a.exchange(buffer),
        lambda: a.recv_message_into(target),
    ]
    a.setblocking(False)
    counts = sys.getrefcount(buffer), sys.getrefcount(target)
    errors = set()
    for end in ends:
        try:
            end()
        except (OSError, EOFError, TypeError, ValueError, RuntimeError) as error:
            errors.add(type(error))
        assert (sys.getrefcount(buffer), sys.getrefcount(target)) == counts
        # A bytearray that is exported cannot be resized.
        buffer.append(0)
        target.append(0)
        del buffer[-1], target[-1]
    assert {BlockingIOError, TypeError, ValueError, RuntimeError, hvsock.IncompleteReadError} <= errors


@pytest.mark.usefixtures("failing_allocations")
@pytest.mark.parametrize("what", ["small", "heap", "large", "into", "part", "part into", "exactly"])
def test_no_memory_to_receive(what: str) -> None:
    check_without_memory(f"recv {what}")


@pytest.mark.usefixtures("failing_allocations")
@pytest.mark.parametrize("operation", ["reply", "reply part", "send", "send many", "end", "too long"])
def test_no_memory(operation: str) -> None:
    check_without_memory(operation)


def check_without_memory(operation: str) -> None:
    """Whichever allocation fails, the message is there afterwards, or the socket says that it is lost."""
    lines = run_child(memory.no_allocation, operation)
    failures = int(lines[-1])
    # A message of a few buffers is sent without any memory but the stack's; CPython 3.14 has kept room for the number
    # that recv_message_into() returns.
    frugal = {"send", "recv into"} if sys.version_info >= (3, 14) else {"send"}
    assert failures == 0 if operation in frugal else failures > 0


# Any order of things


MESSAGE = st.binary(max_size=40) | st.integers(0, 70_000).map(lambda size: random_bytes(size, size))


@settings(deadline=None, max_examples=60 if SCALE <= 1 else 15, suppress_health_check=list(HealthCheck))
@given(messages=st.lists(st.tuples(MESSAGE, st.sampled_from(sorted(RECEIVERS))), max_size=12), data=st.data())
def test_any_chunks(ours: str, messages: list[tuple[bytes, str]], data: st.DataObject) -> None:
    """However a stream of messages is cut, a receiver that never waits gets each of them, in order."""
    wire = b"".join(framed(payload) for payload, _ in messages)
    cuts = data.draw(st.lists(st.integers(0, len(wire)) | st.integers(0, min(len(wire), 60)), max_size=30))
    bounds = [0, *sorted(cuts), len(wire)]
    received: list[bytes] = []

    def receive() -> None:
        with contextlib.suppress(BlockingIOError):
            while len(received) < len(messages):
                payload, kind = messages[len(received)]
                received.append(RECEIVERS[kind](b, len(payload)))

    with connected(ours) as (a, b):
        b.setblocking(False)
        for start, end in itertools.pairwise(bounds):
            sending = Task(a.sendall, wire[start:end]) if end - start > 10_000 else a.sendall(wire[start:end])
            receive()
            while sending is not None and sending.running:
                receive()
        a.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + LIMIT
        while len(received) < len(messages):
            assert time.monotonic() < deadline
            receive()
        with pytest.raises(EOFError):
            patiently(b.recv_message)
    assert received == [payload for payload, _ in messages]


class End:
    """One end of a connection that never waits, and what must be known of it for every call's outcome to be certain."""

    def __init__(self, sock: hvsock.HyperVSocket, *, delivers_at_once: bool) -> None:
        self.sock = sock
        self.delivers_at_once = delivers_at_once
        self.sent: list[bytes] = []  # all of each
        self.pending: bytes | None = None  # partly sent
        self.due: bytes | None = None  # the request whose reply is
        self.midway = False  # a message is partly received
        self.taken = 0  # how many of the other end's have been received
        self.other: End
        sock.setblocking(False)

    def check(self) -> None:
        assert is_partly_sent(self.sock) == (self.pending is not None)
        assert self.is_receiving() == (self.midway or self.due is not None)

    def is_receiving(self) -> bool:
        """Whether something that arrives as a whole is on its way: a raw receive is refused then."""
        try:
            self.sock.recv(0)
        except RuntimeError:
            return True
        return False

    def send(self, message: bytes) -> None:
        is_allowed = self.pending in (None, message)
        try:
            self.sock.send_message(message)
        except BlockingIOError:
            assert is_allowed
            assert self.pending is None or is_partly_sent(self.sock)
            self.pending = message if is_partly_sent(self.sock) else None
        except RuntimeError:
            assert not is_allowed
        else:
            assert is_allowed
            self.pending = None
            self.sent.append(message)

    def take(self, message: bytes) -> None:
        assert message == self.other.sent[self.taken]
        self.taken += 1
        self.midway, self.due = False, None

    def receive(self, limit: int, into: bool) -> None:
        buffer = bytearray(limit)
        try:
            if into:
                self.take(bytes(buffer[: self.sock.recv_message_into(buffer)]))
            else:
                self.take(self.sock.recv_message(max_size=limit))
        except BlockingIOError:
            assert not self.delivers_at_once or self.taken == len(self.other.sent)
            self.midway = self.due is None and self.is_receiving()
        except OSError as error:
            is_too_long = error.errno == errno.EMSGSIZE
            whole = self.other.sent[self.taken :]
            assert is_too_long and len(whole[0] if whole else self.other.pending or b"") > limit
            self.midway = self.due is None

    def exchange(self, request: bytes) -> None:
        if self.due is not None:
            is_allowed = request == self.due
        else:
            is_allowed = not self.midway and self.pending in (None, request)
        try:
            reply = self.sock.exchange(request)
        except BlockingIOError:
            assert is_allowed
            if self.due is None and is_partly_sent(self.sock):
                self.pending = request
            elif self.due is None:
                assert self.is_receiving() or self.pending is None
                if self.is_receiving():
                    self.sent.append(request)
                    self.pending, self.due = None, request
        except RuntimeError:
            assert not is_allowed
        else:
            assert is_allowed
            if self.due is None:
                self.sent.append(request)
                self.pending = None
            self.take(reply)

    def try_raw(self) -> None:
        """Whatever would tear a message apart is refused."""
        receives: list[Callable[[], object]] = [lambda: self.sock.recv(1), lambda: self.sock.recv_exactly(3)]
        sends: list[Callable[[], object]] = [lambda: self.sock.sendall(b"x"), lambda: self.sock.sendmsg([b"x"])]
        for call in (receives if self.is_receiving() else []) + (sends if self.pending is not None else []):
            with pytest.raises(RuntimeError):
                call()


STEPS = ["send", "send again", "exchange", "exchange again", "receive", "receive into", "receive small", "raw"]


@settings(deadline=None, max_examples=80 if SCALE <= 1 else 15, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from(STEPS), st.sampled_from([0, 5, 9000, 3 * MIB])), max_size=40)
)
def test_any_order_of_calls(ours: str, steps: list[tuple[int, str, int]]) -> None:
    """Calls of all kinds at both ends, none of which waits: each has the outcome that the calls before it imply, and
    what arrives is what was sent, in order and once.
    """
    with connected(ours) as pair:
        ends = [End(sock, delivers_at_once=pair[0].family == getattr(socket, "AF_UNIX", None)) for sock in pair]
        ends[0].other, ends[1].other = ends[1], ends[0]
        for number, (side, step, size) in enumerate(steps):
            end = ends[side]
            message = b"%d:" % number + bytes(size)
            match step:
                case "send":
                    end.send(message)
                case "send again":
                    end.send(end.pending or message)
                case "exchange":
                    end.exchange(message)
                case "exchange again":
                    end.exchange(end.due or end.pending or message)
                case "raw":
                    end.try_raw()
                case _:
                    end.receive(1000 if step == "receive small" else 4 * MIB, step == "receive into")
            end.check()
        deadline = time.monotonic() + LIMIT
        while any(end.pending is not None or end.taken < len(end.other.sent) for end in ends):
            assert time.monotonic() < deadline
            for end in ends:
                if end.pending is not None:
                    end.send(end.pending)
                end.receive(4 * MIB, False)
                end.check()


# System calls


@posix_only
@pytest.mark.parametrize("timeout", ["limit", "none", "zero"])
def test_system_calls(ours: str, tmp_path: Path, timeout: str) -> None:
    """One to send, two to receive what is there: the header and the payload; one more to wait for a reply."""
    calls = system_calls(traced.messages, ours, tmp_path, timeout)
    send, receive = ["sendmsg"], ["recvfrom"]
    expected = {
        "send_message": send,
        "send_message_of_nothing": send,
        "send_message_of_20_buffers": send,
        "send_message_of_2000_buffers": send * 2,
        "recv_message": receive * 2,
        "recv_message_of_nothing": receive,
        "recv_message_into": receive * 2,
        "recv_exactly": receive,
        "recv_exactly_into": receive,
        "exchange": send + (["poll"] if timeout == "limit" else []) + receive * 2,
    }
    assert set(calls) == set(expected)
    for operation, made in calls.items():
        assert made == expected[operation] * 100, (operation, {call: made.count(call) for call in made})
