"""Streams of messages of hvsock.aio, on every event loop."""

from __future__ import annotations

import array
import asyncio
import contextlib
import contextvars
import errno
import gc
import socket
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from types import FrameType
from typing import Any

import pytest
import utils
from aio_loops import Bed, allow_descriptors, eventually, ticks
from children import aio_servers
from utils import LIMIT, TICK, WINDOWS, Child, random_bytes

import hvsock
from hvsock import aio
from hvsock.aio._turns import Turn

MIB = 1 << 20
SIZES = (0, 1, 3, 4, 5, 4095, 4096, 16379, 16380, 16381, 65536, 65537, MIB + 1)


async def echo(stream: aio.MessageStream) -> None:
    with contextlib.suppress(EOFError, ConnectionError):  # clients that go in the midst of a message
        async for message in stream:
            await stream.send(message)


async def patience(awaitable: Awaitable[Any], ticks_: float = 2) -> Any:
    """Wait, but not for long."""
    async with asyncio.timeout(ticks_ * TICK):
        return await awaitable


async def fill(stream: aio.MessageStream, message: bytes) -> int:
    """Send until it blocks, in the middle of a message as a rule; return how many were sent or begun."""
    count = 0
    with contextlib.suppress(TimeoutError):
        while True:
            count += 1
            await patience(stream.send(message))
    return count


def raw(stream: aio.MessageStream) -> hvsock.HyperVSocket:
    """Return the socket of a stream that is not used as one."""
    sock: hvsock.HyperVSocket = stream.get_extra_info("socket")
    return sock


async def send_raw(stream: aio.MessageStream, data: bytes) -> None:
    """Send bytes past the stream."""
    assert raw(stream).send(data) == len(data)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return what the sockets of streams are given to send from now on: the buffers of each call."""
    calls: list[tuple[Any, ...]] = []
    send_message, sendmsg = hvsock.HyperVSocket.send_message, hvsock.HyperVSocket.sendmsg

    def note_message(sock: hvsock.HyperVSocket, *buffers: Any) -> None:
        calls.append(buffers)
        send_message(sock, *buffers)

    def note_parts(sock: hvsock.HyperVSocket, parts: tuple[Any, ...]) -> int:
        calls.append(parts[1:])  # without the header
        return sendmsg(sock, parts)

    monkeypatch.setattr(hvsock.HyperVSocket, "send_message", note_message)
    monkeypatch.setattr(hvsock.HyperVSocket, "sendmsg", note_parts)
    return calls


# Messages


async def test_every_size(bed: Bed) -> None:
    async with await bed.serve_messages(echo), await bed.connect_messages() as stream:
        for size in SIZES:
            message = random_bytes(size, size)
            assert await stream.exchange(message) == message
            await stream.send(message)
            reply = await stream.recv()
            assert type(reply) is bytes
            assert reply == message


async def test_sent_before_they_are_received(bed: Bed) -> None:
    """Messages of every size, one behind the other."""
    messages = [random_bytes(size, size) for size in SIZES * 3]

    async def send() -> None:
        for message in messages:
            await stream.send(message)
        await stream.send_eof()

    async with await bed.serve_messages(echo), await bed.connect_messages() as stream, asyncio.TaskGroup() as group:
        group.create_task(send())
        assert [message async for message in stream] == messages


async def test_buffers(bed: Bed) -> None:
    """A message is the concatenation of buffers of any kind."""
    async with await bed.serve_messages(echo), await bed.connect_messages() as stream:
        numbers = array.array("I", [1, 2, 3])
        assert await stream.exchange(b"ab", bytearray(b"cd"), memoryview(b"ef")) == b"abcdef"
        assert await stream.exchange(memoryview(numbers), b"!") == numbers.tobytes() + b"!"
        assert await stream.exchange() == b""
        many = [bytes([k % 256]) for k in range(1500)]
        assert await stream.exchange(*many) == b"".join(many)
        for wrong in ("text", 5, None):
            with pytest.raises(TypeError):
                await stream.send(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await stream.recv("1")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="negative"):
            await stream.recv(-1)
        assert await stream.exchange(b"still good") == b"still good"


async def test_wire_format(bed: Bed) -> None:
    """The peer may be a HyperVSocket without an event loop."""

    def serve(listener: hvsock.HyperVSocket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(LIMIT)
            for _ in range(3):
                sock.send_message(sock.recv_message()[::-1])
            assert utils.receive_exactly(sock, 6) == b"\0\0\0\2hi"
            sock.sendall(b"\0\0\0\5there")
            with pytest.raises(EOFError):
                sock.recv_message()

    with utils.listen(bed.transport, bed.address) as listener:
        serving = asyncio.create_task(asyncio.to_thread(serve, listener))
        async with await bed.connect_messages() as stream:
            assert type(stream.get_extra_info("peername")) is hvsock.HyperVAddress
            assert type(stream.get_extra_info("sockname")) is hvsock.HyperVAddress
            assert type(stream.get_extra_info("socket")) is hvsock.HyperVSocket
            assert stream.get_extra_info("other", 5) == 5
            assert "MessageStream" in repr(stream)
            for message in (b"abc", b"", random_bytes(MIB)):
                assert await stream.exchange(message) == message[::-1]
            await stream.send(b"hi")
            assert await stream.recv() == b"there"
        assert stream.get_extra_info("peername", "gone") == "gone"
        await serving


async def test_end_of_the_stream(bed: Bed) -> None:
    async with bed.message_pair() as (one, other):
        await one.send(b"last")
        await one.send_eof()
        assert [message async for message in other] == [b"last"]
        for _ in range(2):
            with pytest.raises(EOFError) as info:
                await other.recv()
            assert type(info.value) is EOFError
        # The other direction is open.
        await other.send(b"answer")
        assert await one.recv() == b"answer"
        with pytest.raises(OSError):
            await one.send(b"x")
        await other.aclose()
        with pytest.raises(EOFError):
            await one.recv()


@pytest.mark.parametrize(
    ("data", "partial", "expected"),
    [(b"\0\0", b"\0\0", 4), (b"\0\0\0\5", b"", 5), (b"\0\0\0\5abc", b"abc", 5), (b"\0\1\0\0abc", b"abc", 65536)],
)
@pytest.mark.parametrize("waits", [False, True])
async def test_end_inside_a_message(bed: Bed, data: bytes, partial: bytes, expected: int, waits: bool) -> None:
    async with bed.message_pair() as (one, other):
        task = asyncio.create_task(anext(other)) if waits else None
        await asyncio.sleep(TICK)
        await send_raw(one, data)
        await asyncio.sleep(TICK)
        raw(one).shutdown(1)
        await asyncio.sleep(TICK)
        with pytest.raises(hvsock.IncompleteReadError) as info:
            await (task or anext(other))
        assert (info.value.partial, info.value.expected) == (partial, expected)
        with pytest.raises(EOFError) as end:
            await other.recv()
        assert type(end.value) is EOFError


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("size", [100, 100_000])
async def test_too_long(bed: Bed, waits: bool, size: int) -> None:
    """It is refused before it is received, and can be received with another limit."""
    async with bed.message_pair() as (one, other):
        task = asyncio.create_task(other.recv(size - 1)) if waits else None
        await asyncio.sleep(TICK)
        await one.send(b"x" * size)
        await asyncio.sleep(TICK)
        with pytest.raises(OSError) as info:
            await (task or other.recv(size - 1))
        assert info.value.errno == errno.EMSGSIZE
        with pytest.raises(OSError) as info:
            await other.recv(max_size=10)
        assert info.value.errno == errno.EMSGSIZE
        assert await other.recv(max_size=size) == b"x" * size
        await one.send(b"next")
        assert await other.recv(4) == b"next"


async def test_garbage(bed: Bed) -> None:
    """A peer that speaks something else is refused, and the server goes on."""
    async with await bed.serve_messages(echo):
        async with await bed.connect_messages() as stranger:
            await send_raw(stranger, b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionError), pytest.raises(EOFError):
                await stranger.recv()
        await eventually(lambda: bed.reported)
        assert [context["exception"].errno for context in bed.reported] == [errno.EMSGSIZE]
        bed.reported.clear()
        async with await bed.connect_messages() as stream:
            assert await stream.exchange(b"x") == b"x"


def test_debug_mode(bed: Bed) -> None:
    """The loop's own checks find nothing."""

    async def main() -> None:
        async with await bed.serve_messages(echo), await bed.connect_messages() as stream:
            assert await stream.exchange(b"x" * 100_000) == b"x" * 100_000

    bed.run(main, debug=True)


# Flow control, fairness, readiness


def test_slow_reader(bed: Bed) -> None:
    """send() waits for the peer; all arrives, in order."""

    async def main() -> None:
        chunk = random_bytes(1 << 16)
        async with bed.message_pair() as (one, other):
            began = await fill(one, chunk)
            assert began < 1000  # 64 MiB
            receiving = asyncio.create_task(collect(other))
            await one.send(b"last")
            await one.send_eof()
            received = await receiving
            assert received[-1] == b"last"
            assert all(message == chunk for message in received[:-1])
            assert began <= len(received) <= began + 1

    async def collect(stream: aio.MessageStream) -> list[bytes]:
        return [message async for message in stream]

    bed.run(main)


@pytest.mark.parametrize(
    "buffers",
    [
        [bytearray(4 * MIB)],
        [memoryview(bytearray(4 * MIB)), b"x"],
        [memoryview(array.array("I", bytes(4 * MIB)))],
        [b"x" * 1000] * 4000,
        [bytearray(100)] * 40_000,
    ],
    ids=["bytearray", "memoryview", "array", "many", "many bytearrays"],
)
async def test_a_message_that_is_sent_in_many_parts(bed: Bed, buffers: list[Any], given: list[tuple[Any, ...]]) -> None:
    """The socket is given the same few objects each time: it need not look at all that is in them."""
    async with bed.message_pair() as (one, other):
        sending = asyncio.create_task(one.send(*buffers))
        assert await other.recv() == b"".join(buffers)
        await sending
        assert len(given) > 1 or bed.completes or WINDOWS  # which may take all of it at once
        assert all(type(buffer) is bytes for buffer in given[0])
        assert {tuple(map(id, parts)) for parts in given} == {(id(given[0][0]),)}


async def test_a_send_that_waits_sleeps(bed: Bed, given: list[tuple[Any, ...]]) -> None:
    async with bed.message_pair() as (one, _):
        sending = asyncio.create_task(one.send(b"x" * (1 << 24)))
        await asyncio.sleep(TICK)
        given.clear()
        await asyncio.sleep(TICK)
        assert len(given) <= 1
        sending.cancel()
        await asyncio.wait([sending])


async def test_what_is_sent_at_once_is_not_copied(bed: Bed, given: list[tuple[Any, ...]]) -> None:
    async with bed.message_pair() as (one, other):
        buffers = bytearray(10_000), memoryview(b"ef"), b"gh"
        await one.send(*buffers)
        assert await other.recv() == b"".join(buffers)
        assert [[*map(id, parts)] for parts in given] == [[*map(id, buffers)]]


async def test_slow_sender(bed: Bed) -> None:
    """A message that arrives byte by byte."""
    async with bed.message_pair() as (one, other):
        task = asyncio.create_task(other.recv())
        for byte in b"\0\0\0\x06slowly":
            await send_raw(one, bytes([byte]))
            await ticks(5)
        assert await task == b"slowly"


async def test_memory_of_what_is_only_announced(bed: Bed) -> None:
    """Whoever announces 16 MiB and sends little does not cost 16 MiB."""
    async with bed.message_pair() as (one, other):
        receiving = asyncio.create_task(other.recv())
        tracemalloc.start()
        try:
            await send_raw(one, (16 * MIB).to_bytes(4) + b"content")
            await ticks(20)
            assert not receiving.done()
            assert tracemalloc.get_traced_memory()[1] < MIB
        finally:
            tracemalloc.stop()
        await one.aclose()
        with pytest.raises(hvsock.IncompleteReadError) as info:
            await receiving
        assert (info.value.partial, info.value.expected) == (b"content", 16 * MIB)


async def test_others_run(bed: Bed) -> None:
    """Tasks that never have to wait for the peer do not keep the loop for themselves."""
    async with counted_turns() as turns, bed.message_pair() as (one, other):
        for _ in range(10):
            for _ in range(50):
                await one.send(b"x")
            for _ in range(50):
                await other.recv()
        before = turns()
        for _ in range(200):
            await one.send(b"x")
        assert turns() > before
        await asyncio.sleep(TICK)
        before = turns()
        for _ in range(200):
            await other.recv()
        assert turns() > before


@contextlib.asynccontextmanager
async def counted_turns() -> AsyncIterator[Callable[[], int]]:
    """Lend what tells how many turns the loop has had since the beginning of the block."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    try:
        yield lambda: turns
    finally:
        counting.cancel()
        await asyncio.wait([counting])


async def expect_idle_loop() -> None:
    """Check that the loop sleeps for a while: one that is told of something again and again takes all time it gets."""
    await ticks(3)
    began, used = time.monotonic(), time.thread_time()
    await asyncio.sleep(4 * TICK)
    assert time.thread_time() - used < (time.monotonic() - began) / 2


async def test_what_no_task_reads_does_not_keep_the_loop_busy(bed: Bed) -> None:
    async with bed.message_pair() as (one, other):
        with pytest.raises(TimeoutError):
            await patience(other.recv())
        for _ in range(3):
            await one.send(b"x")
            await asyncio.sleep(TICK)
        await expect_idle_loop()
        assert [await other.recv() for _ in range(3)] == [b"x"] * 3


@pytest.mark.parametrize("size", [2, 14, 9000])
async def test_a_message_that_does_not_end_does_not_keep_the_loop_busy(bed: Bed, size: int) -> None:
    """Its header, its first bytes, or those of a long one have arrived, and a task waits for the rest."""
    async with bed.message_pair() as (one, other):
        message = random_bytes(size + 50_000 if size > 1000 else 100)
        wire = len(message).to_bytes(4) + message
        receiving = asyncio.create_task(other.recv())
        await send_raw(one, wire[:size])
        await expect_idle_loop()
        await send_raw(one, wire[size:])
        assert await receiving == message


# Many tasks


async def test_concurrent_senders(bed: Bed) -> None:
    """Messages are not mixed, and each task's keep their order."""

    async def send(stream: aio.MessageStream, name: int) -> None:
        for number in range(20):
            await stream.send(bytes([name, number]), bytes([name]) * (1 + name * 20_000))

    async with bed.message_pair() as (one, other), asyncio.TaskGroup() as group:
        for name in range(5):
            group.create_task(send(one, name))
        numbers = dict.fromkeys(range(5), 0)
        for _ in range(100):
            message = await other.recv()
            name, number = message[:2]
            assert message[2:] == bytes([name]) * (1 + name * 20_000)
            assert number == numbers[name]
            numbers[name] += 1


async def test_order_of_sends(bed: Bed) -> None:
    """A send that comes while others wait is not served first."""
    async with bed.message_pair() as (one, other):
        await fill(one, b"x" * (1 << 16))
        expected = [b"%d" % number for number in range(200)]  # enough for one of them to let others run
        tasks = [asyncio.create_task(one.send(message)) for message in expected]
        received: list[bytes] = []
        while len(received) < len(expected):
            message = await other.recv()
            if message[:1] != b"x":
                received.append(message)
        assert received == expected
        await asyncio.gather(*tasks)


async def test_tasks_that_send_again_and_again(bed: Bed) -> None:
    """They come to wait for each other, which does not cost a turn of the loop for each message."""
    number = 1000

    async def send(stream: aio.MessageStream) -> None:
        for _ in range(number):
            await stream.send(b"x")

    async with bed.message_pair() as (one, other), counted_turns() as turns:
        sending = [asyncio.create_task(send(one)) for _ in range(3)]
        for _ in range(3 * number):
            assert await other.recv() == b"x"
        await asyncio.gather(*sending)
        assert turns() < number


async def test_turn_to_send(bed: Bed) -> None:
    """It goes to those who wait, in their order, whoever is cancelled, and others run in between."""
    turn = Turn(asyncio.get_running_loop())
    had: list[int] = []
    number = 1000

    async def take(name: int) -> None:
        async with turn:
            had.append(name)
            if name == 200:
                await ticks(3)

    async with turn:
        tasks = [asyncio.create_task(take(name)) for name in range(number)]
        await ticks(2)
        for task in tasks[1::2]:
            task.cancel()
        assert not turn.is_free
    most = 0
    while not turn.is_free:
        before = len(had)
        await asyncio.sleep(0)
        most = max(most, len(had) - before)
        if had and had[-1] == 200:
            tasks[200].cancel()  # has it
            tasks[202].cancel()  # is next
    await asyncio.wait(tasks)
    assert had == [name for name in range(0, number, 2) if name != 202]
    assert 8 < most < number // 4
    async with turn:
        assert not turn.is_free
    assert turn.is_free


def test_turn_to_send_after_an_interruption() -> None:
    """Ctrl-C in a task that has the turn leaves it to the others."""
    loop = asyncio.new_event_loop()

    async def take(turn: Turn, error: type[BaseException] | None = None) -> None:
        async with turn:
            if error:
                raise error

    async def main() -> None:
        turn = Turn(loop)
        async with turn:
            tasks.append(loop.create_task(take(turn, KeyboardInterrupt)))
            tasks.append(loop.create_task(take(turn)))
            await asyncio.sleep(0)
        await asyncio.wait(tasks)

    tasks: list[asyncio.Task[None]] = []
    with contextlib.closing(loop):
        waiting = loop.create_task(main())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(waiting)
        loop.run_until_complete(asyncio.wait_for(waiting, LIMIT))
        assert isinstance(tasks[0].exception(), KeyboardInterrupt)
        assert tasks[1].exception() is None


async def test_concurrent_receivers(bed: Bed) -> None:
    """Each message goes to one of them."""
    received: list[bytes] = []

    async def receive(stream: aio.MessageStream) -> None:
        async for message in stream:
            received.append(message)
            await asyncio.sleep(0)

    async with bed.message_pair() as (one, other), asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(receive(other))
        for number in range(100):
            await one.send(b"%d" % number)
            if number % 7 == 0:
                await asyncio.sleep(0)
        await one.send_eof()
    assert sorted(map(int, received)) == list(range(100))


async def test_concurrent_exchanges(bed: Bed) -> None:
    """Each gets its own reply."""
    async with await bed.serve_messages(echo), await bed.connect_messages() as stream:
        messages = [b"%d" % number * (1 + number * 1000) for number in range(50)]
        assert await asyncio.gather(*map(stream.exchange, messages)) == messages


async def test_both_directions_at_once(bed: Bed) -> None:
    """Two peers that send before they receive do not wait for each other, if each has a task for it."""
    chunk = random_bytes(MIB)

    async def send(stream: aio.MessageStream) -> None:
        for _ in range(5):
            await stream.send(chunk)

    async def receive(stream: aio.MessageStream) -> None:
        for _ in range(5):
            assert await stream.recv() == chunk

    async with bed.message_pair() as pair, asyncio.TaskGroup() as group:
        for stream in pair:
            group.create_task(send(stream))
            group.create_task(receive(stream))


# Cancellation


async def test_cancelled_recv_keeps_what_has_arrived(bed: Bed) -> None:
    """At every byte of a message, and of a long one in its midst."""
    async with bed.message_pair() as (one, other):
        for byte in b"\0\0\0\x03abc"[:-1]:
            await send_raw(one, bytes([byte]))
            with pytest.raises(TimeoutError):
                await patience(other.recv(), 0.5)
        await send_raw(one, b"c")
        assert await other.recv() == b"abc"
        content = random_bytes(100_000)
        await send_raw(one, len(content).to_bytes(4) + content[:30_000])
        for start in range(30_000, 100_000, 10_000):
            with pytest.raises(TimeoutError):
                await patience(other.recv(), 0.5)
            await send_raw(one, content[start : start + 10_000])
        assert await other.recv() == content


async def test_recv_cancelled_at_every_turn(bed: Bed) -> None:
    """Not a message is lost, nor received twice, wherever the cancellation strikes."""
    async with bed.message_pair() as (one, other):
        for number in range(60):
            task = asyncio.create_task(other.recv())
            await ticks(number % 4)
            await one.send(b"%d" % number)
            await ticks(number // 4 % 7)
            task.cancel()
            late = asyncio.create_task(other.recv())  # may run before the cancelled task does
            results = await asyncio.gather(task, return_exceptions=True)
            if isinstance(results[0], bytes):
                assert results[0] == b"%d" % number
                late.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await late
            else:
                assert await late == b"%d" % number
        with pytest.raises(TimeoutError):
            await patience(other.recv())


async def test_a_receiver_that_has_cancelled_itself(bed: Bed) -> None:
    """It does not come to wait, and leaves the message to the next one."""
    async with bed.message_pair() as (one, other):

        async def receive() -> None:
            task = asyncio.current_task()
            assert task
            task.cancel("why")
            await other.recv()

        with pytest.raises(asyncio.CancelledError, match="why"):
            await asyncio.create_task(receive())
        await one.send(b"x")
        assert await other.recv() == b"x"


async def test_a_receiver_goes_on_in_its_own_context(bed: Bed) -> None:
    """With its variables and as the current task, whoever has sent; what it raises is its own."""
    variable = contextvars.ContextVar("variable", default="none")
    async with bed.message_pair() as (one, other):

        async def receive(name: str) -> None:
            variable.set(name)
            with contextlib.suppress(EOFError):
                while True:
                    await other.recv()
                    assert variable.get() == name
                    assert asyncio.current_task() in tasks
            raise ZeroDivisionError(name)

        tasks = [asyncio.create_task(receive(name)) for name in ("first", "second")]
        variable.set("sender")
        for turns in range(10):
            await one.send(b"x")
            await ticks(turns)
            assert variable.get() == "sender"
        await one.send_eof()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [(type(result), str(result)) for result in results] == [
            (ZeroDivisionError, "first"),
            (ZeroDivisionError, "second"),
        ]


def test_nothing_is_kept_of_receivers_that_were_cancelled(bed: Bed) -> None:
    """As of a task that asks with a timeout again and again, while another one waits for a message."""

    async def main() -> None:
        async with bed.message_pair() as (one, other):
            first = asyncio.create_task(other.recv())

            async def ask_in_vain(times: int) -> None:
                for _ in range(times):
                    task = asyncio.create_task(other.recv())
                    await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])

            await ask_in_vain(10)
            tracemalloc.start()
            try:
                await ask_in_vain(1000)
                assert tracemalloc.get_traced_memory()[0] < 50_000
            finally:
                tracemalloc.stop()
            await one.send(b"x")
            assert await first == b"x"

    bed.run(main, debug=False)


async def test_cancelled_receiver_passes_the_message_on(bed: Bed) -> None:
    """One that was woken and cancelled in the same turn leaves the message to the next in line."""
    async with bed.message_pair() as (one, other):
        for turns in range(8):
            first = asyncio.create_task(other.recv())
            second = asyncio.create_task(other.recv())
            await ticks(2)
            await one.send(b"x")
            await ticks(turns)
            first.cancel()
            results = await asyncio.gather(first, patience(asyncio.shield(second)), return_exceptions=True)
            if isinstance(results[0], bytes):
                await one.send(b"x")
            assert await second == b"x"


async def test_cancelled_send_is_finished_by_the_next(bed: Bed) -> None:
    chunk = random_bytes(1 << 17)
    async with bed.message_pair() as (one, other):
        for round_ in range(3):
            began = await fill(one, chunk)
            sending = asyncio.create_task(one.send(b"end %d" % round_))
            received = []
            while (message := await other.recv()) != b"end %d" % round_:
                received.append(message)
            await sending
            assert set(received) == {chunk}
            assert began - 1 <= len(received) <= began


def test_cancelled_send_is_repeated(bed: Bed) -> None:
    """The same message goes on: it is sent once. A changed buffer of the caller changes nothing."""

    async def main() -> None:
        async with bed.message_pair() as (one, other):
            await fill(one, random_bytes(1 << 17, 1))
            # What is under way now is something else; it ends with this.
            marker = b"m" * (4 * MIB)
            parts = bytearray(marker[:MIB]), marker[MIB:]
            sending = asyncio.create_task(one.send(*parts))
            while not sending.done():
                with contextlib.suppress(TimeoutError):
                    first = await patience(other.recv(), 0.5)
                    assert first[:1] != b"m"
                await asyncio.sleep(TICK / 5)
                if await begun(one):
                    sending.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await sending
            parts[0][:] = b"z" * MIB
            sending = asyncio.create_task(one.send(marker))
            received = await other.recv()
            while received[:1] != b"m":
                received = await other.recv()
            assert received == marker
            await sending
            with pytest.raises(TimeoutError):
                await patience(other.recv())

    async def begun(stream: aio.MessageStream) -> bool:
        return stream._unsent is None and stream._link.is_amid_message()

    bed.run(main)


@pytest.mark.parametrize("eof", [False, True])
async def test_sends_cancelled_at_every_turn(bed: Bed, eof: bool) -> None:
    """The peer sees whole messages only, in order, none twice."""
    size = 300_000
    async with bed.message_pair() as (one, other):
        received: list[int] = []

        async def receive() -> None:
            async for message in other:
                number = message[0]
                assert message == bytes([number]) * size
                received.append(number)
                await ticks(3)

        receiving = asyncio.create_task(receive())
        sent = []
        for number in range(40):
            task = asyncio.create_task(one.send(bytes([number]) * size))
            await ticks(number % 20)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                continue
            sent.append(number)
        if eof:
            await one.send_eof()
        else:
            await one.send(bytes([200]) * size)
            sent.append(200)
            await one.send_eof()
        await receiving
        assert received == sorted(set(received))
        assert set(sent) <= set(received)


async def test_cancelled_exchange(bed: Bed) -> None:
    """The reply stays due: the same exchange goes on, another one is refused, recv() takes it."""
    async with bed.message_pair() as (one, other):
        with pytest.raises(TimeoutError):
            await patience(one.exchange(b"requ", b"est"))
        with pytest.raises(TimeoutError):
            await patience(one.recv())  # which has not got the reply
        with pytest.raises(RuntimeError, match="due"):
            await one.exchange(b"another")
        assert await other.recv() == b"request"
        task = asyncio.create_task(one.exchange(b"request"))
        with pytest.raises(TimeoutError):
            await patience(other.recv())  # it was not sent twice
        await other.send(b"reply")
        assert await task == b"reply"
        with pytest.raises(TimeoutError):
            await patience(one.exchange(b"second"))
        assert await other.recv() == b"second"
        await other.send(b"its reply")
        assert await one.recv() == b"its reply"
        task = asyncio.create_task(one.exchange(b"third"))
        assert await other.recv() == b"third"
        await other.send(b"a longer reply")
        assert await task == b"a longer reply"
        task = asyncio.create_task(one.exchange(b"fourth", max_size=5))
        assert await other.recv() == b"fourth"
        await other.send(b"too long")
        with pytest.raises(OSError) as info:
            await task
        assert info.value.errno == errno.EMSGSIZE
        assert await one.exchange(b"fourth") == b"too long"


async def check_exchange_goes_on(one: aio.MessageStream, other: aio.MessageStream, request: bytes) -> None:
    """Exchange once more: the request arrives, once, and its reply comes back."""
    asking = asyncio.create_task(one.exchange(request))
    assert await other.recv() == request
    await other.send(b"reply")
    assert await asking == b"reply"


async def test_exchange_cancelled_in_the_midst_of_its_request(bed: Bed) -> None:
    """There is no reply to receive yet: only its rest can be next."""
    async with bed.message_pair() as (one, other):
        request = random_bytes(16 * MIB)
        with pytest.raises(TimeoutError):
            await patience(one.exchange(request))
        with pytest.raises(RuntimeError, match=r"partly sent; call exchange\(\) again with the same message"):
            await one.exchange(b"another")
        await check_exchange_goes_on(one, other, request)


async def test_exchange_waits_for_its_turn_to_receive(bed: Bed) -> None:
    """What a task receives that called before is not the reply: the request is not sent until it has its message."""
    async with bed.message_pair() as (one, other):
        first = asyncio.create_task(one.recv())
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await patience(one.exchange(b"not sent"))
        asking = asyncio.create_task(one.exchange(b"request"))
        await asyncio.sleep(0)
        second = asyncio.create_task(one.recv())
        with pytest.raises(TimeoutError):
            await patience(other.recv())
        await other.send(b"for the first")
        assert await other.recv() == b"request"
        assert await first == b"for the first"
        await other.send(b"reply")
        await other.send(b"for the second")
        assert [await asking, await second] == [b"reply", b"for the second"]


async def test_message_received_before_the_rest_of_a_request_is_not_its_reply(bed: Bed) -> None:
    async with bed.message_pair() as (one, other):
        request = random_bytes(16 * MIB)
        with pytest.raises(TimeoutError):
            await patience(one.exchange(request))
        await other.send(b"notice")
        assert await one.recv() == b"notice"
        with pytest.raises(RuntimeError, match="partly sent"):
            await one.exchange(b"another")
        await check_exchange_goes_on(one, other, request)


@pytest.mark.parametrize("how", ["aclose", "end"])
async def test_exchanges_at_the_end_of_the_stream(bed: Bed, how: str) -> None:
    """No reply can come any more, so none is due."""
    async with bed.message_pair() as (one, other):
        tasks = [asyncio.create_task(one.exchange(b"request")) for _ in range(3)]
        assert await other.recv() == b"request"
        await (one if how == "aclose" else other).aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, (OSError, EOFError)) for result in results), results
        with pytest.raises((OSError, EOFError)):
            await one.exchange(b"later")


async def test_cancelled_exchange_behind_a_cancelled_send(bed: Bed) -> None:
    """What was sent in part after the request is finished; the request is not sent again."""
    async with bed.message_pair() as (one, other):
        with pytest.raises(TimeoutError):
            await patience(one.exchange(b"request"))
        notice = random_bytes(16 * MIB)
        with pytest.raises(TimeoutError):
            await patience(one.send(notice))
        asking = asyncio.create_task(one.exchange(b"request"))
        assert await other.recv() == b"request"
        assert await other.recv() == notice
        with pytest.raises(TimeoutError):
            await patience(other.recv())
        await other.send(b"reply")
        assert await asking == b"reply"


async def test_exchange_cancelled_at_every_turn(bed: Bed) -> None:
    """Called again, it goes on, wherever the cancellation has struck; also in the midst of the request."""
    async with await bed.serve_messages(echo), await bed.connect_messages() as stream:
        for size in (10, 1_000_000):
            for turns in range(25):
                message = bytes([turns]) * size
                task = asyncio.create_task(stream.exchange(message))
                await ticks(turns)
                task.cancel()
                try:
                    reply = await task
                except asyncio.CancelledError:
                    reply = await stream.exchange(message)
                assert reply == message


@pytest.mark.parametrize("action", ["recv", "send", "exchange", "aclose", "send_eof", "connect", "serve", "shutdown"])
async def test_nothing_is_left_of_a_cancelled_call(bed: Bed, action: str) -> None:
    """No task, thread or descriptor; the bed looks."""
    for turns in range(10):
        async with contextlib.AsyncExitStack() as stack:
            if action in ("connect", "serve"):
                server = None
                if action == "connect":
                    server = await stack.enter_async_context(await bed.serve_messages(echo))
                call: Callable[[], Any] = bed.connect_messages if server else lambda: bed.serve_messages(echo)
                task = asyncio.create_task(call())
                await ticks(turns)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    made = await task
                    await (made.aclose() if server else made.shutdown())
                continue
            server = await stack.enter_async_context(await bed.serve_messages(echo))
            stream = await stack.enter_async_context(await bed.connect_messages())
            arguments = {"send": [b"x" * 10_000_000], "exchange": [b"x" * 1_000_000]}.get(action, [])
            on = server if action == "shutdown" else stream
            task = asyncio.create_task(getattr(on, action)(*arguments))
            await ticks(turns)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


# The end


async def test_aclose_ends_pending_calls(bed: Bed) -> None:
    async with bed.message_pair() as (one, other):
        await fill(other, b"x" * (1 << 24))  # its rest is more than TCP's buffers may come to take
        tasks = [
            asyncio.create_task(other.recv()),
            asyncio.create_task(other.recv()),
            asyncio.create_task(other.send(b"x")),
            asyncio.create_task(other.send(b"y")),
            asyncio.create_task(other.exchange(b"z")),
        ]
        await asyncio.sleep(TICK)
        assert not any(task.done() for task in tasks)
        await other.aclose()
        await other.aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, OSError) and result.errno == errno.EBADF for result in results), results
        for call in (other.recv, other.send, other.exchange, other.send_eof):
            with pytest.raises(OSError) as info:
                await call()
            assert info.value.errno == errno.EBADF
        with pytest.raises(OSError):
            await anext(other)
        with contextlib.suppress(EOFError, ConnectionError):  # what was sent arrives, or the system says it does not
            while True:
                await one.recv()


async def test_what_was_sent_arrives_after_aclose(bed: Bed) -> None:
    async with bed.message_pair() as (one, other):
        await one.send(b"last words")
        await one.aclose()
        assert [message async for message in other] == [b"last words"]


def test_unclosed_stream_is_warned_of(local: str) -> None:
    bed_ = Bed("selector", local)

    async def main() -> None:
        async with await bed_.serve_messages(echo):
            with pytest.warns(ResourceWarning, match="unclosed"):
                await bed_.connect_messages()  # and forgets it

    bed_.run(main)


async def left_for_the_collector(operation: Callable[[], Awaitable[None]]) -> list[object]:
    """Return the objects of hvsock, frames among them, that only the garbage collector finds after the operation."""
    await operation()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            await operation()
        gc.collect()
        return [found for found in gc.garbage if module_of(found).startswith("hvsock")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def module_of(found: object) -> str:
    return str(found.f_globals["__name__"] if isinstance(found, FrameType) else type(found).__module__)


@pytest.mark.parametrize("how", ["timeout", "cancelled", "too long", "end"])
async def test_no_cycle_of_a_call_that_ends_early(bed: Bed, how: str) -> None:
    async with bed.message_pair() as (one, other):

        async def receive() -> None:
            with pytest.raises((OSError, EOFError)):  # TimeoutError is one of the first
                await patience(other.recv(3), 0.01 if how == "timeout" else LIMIT / TICK)

        async def operation() -> None:
            task = asyncio.create_task(receive())
            await ticks(3)
            if how == "cancelled":
                task.cancel()
            elif how == "too long":
                await one.send(b"long")
            elif how == "end":
                raw(one).shutdown(socket.SHUT_WR)
            await asyncio.wait([task])
            assert task.cancelled() or not task.exception()
            if how == "too long":
                assert await other.recv() == b"long"

        assert await left_for_the_collector(operation) == []


@pytest.mark.parametrize("how", ["send", "exchange", "several"])
async def test_no_cycle_of_a_connection(bed: Bed, how: str) -> None:
    """At neither end, and with calls that are cancelled or end with an error."""
    if how == "send" and bed.completes and sys.version_info >= (3, 14):
        pytest.skip("asyncio.wait() itself refers to the task that was cancelled in it")
    async with await bed.serve_messages(echo) as server:

        async def operation() -> None:
            async with await bed.connect_messages() as stream:
                assert await stream.exchange(b"x") == b"x"
                tasks: list[asyncio.Task[Any]]
                if how == "several":
                    tasks = [asyncio.create_task(stream.send(bytes(16 * MIB))) for _ in range(4)]
                    tasks += [asyncio.create_task(stream.recv()) for _ in range(4)]
                    await ticks(5)
                    tasks[2].cancel()
                    tasks[5].cancel()
                elif how == "send":
                    tasks = [asyncio.create_task(stream.send(bytes(16 * MIB)))]
                    await ticks(5)
                    tasks[0].cancel()
                else:
                    tasks = []
            if tasks:
                await asyncio.wait(tasks)
                assert all(task.cancelled() or isinstance(task.exception(), OSError) or WINDOWS for task in tasks)
            await eventually(lambda: not server._streams)

        assert await left_for_the_collector(operation) == []


@pytest.mark.parametrize("sent", [b"\0\0", b"\0\0\0\5ab", b""])
async def test_client_is_killed(bed: Bed, sent: bytes) -> None:
    """In the middle of a message, or between two: its handler hears of it, and the server goes on."""
    ends: list[BaseException] = []

    async def handler(stream: aio.MessageStream) -> None:
        try:
            while True:
                await stream.send(await stream.recv())
        except (EOFError, ConnectionError) as exc:
            ends.append(exc)

    async with await bed.serve_messages(handler) as server:
        vm, service = server.sockets[0].getsockname()
        arguments = (bed.transport, vm, service, sent.hex() or "-")
        with await asyncio.to_thread(Child, aio_servers.client_that_sleeps, *arguments) as child:
            assert await asyncio.to_thread(child.line) == "sent"
            await asyncio.sleep(TICK)
            await asyncio.to_thread(child.kill)
        await eventually(lambda: ends)
        if isinstance(ends[0], EOFError) and sent:
            assert isinstance(ends[0], hvsock.IncompleteReadError)
        async with await bed.connect_messages() as stream:
            assert await stream.exchange(b"x") == b"x"


# Servers


async def test_handler_that_fails(bed: Bed) -> None:
    async def handler(stream: aio.MessageStream) -> None:
        async for message in stream:
            await stream.send(b"%d" % (1 // int(message)))

    async with await bed.serve_messages(handler) as server:
        assert isinstance(server, aio.MessageServer)
        for _ in range(2):
            async with await bed.connect_messages() as stream:
                assert await stream.exchange(b"1") == b"1"
                with pytest.raises((EOFError, ConnectionError)):
                    await stream.exchange(b"0")
        assert [type(context["exception"]) for context in bed.reported] == [ZeroDivisionError] * 2
        bed.reported.clear()


async def test_handler_that_takes_its_socket_away(bed: Bed) -> None:
    """Its connection ends with it all the same: for the next client, and for the server that shuts down."""

    async def handler(stream: aio.MessageStream) -> None:
        assert await stream.recv() == b"x"
        socket.close(raw(stream).detach())

    server = await bed.serve_messages(handler, max_connections=1)
    for _ in range(3):
        async with await bed.connect_messages() as stream:
            await stream.send(b"x")
            with pytest.raises((EOFError, ConnectionError)):
                await stream.recv()
    await server.shutdown()


async def test_max_connections(bed: Bed) -> None:
    """Further clients wait until another one has gone."""
    open_at_once = most = 0

    async def handler(stream: aio.MessageStream) -> None:
        nonlocal open_at_once, most
        open_at_once += 1
        most = max(most, open_at_once)
        try:
            await echo(stream)
        finally:
            open_at_once -= 1

    async def client(number: int) -> None:
        async with await bed.connect_messages() as stream:
            assert await stream.exchange(b"%d" % number) == b"%d" % number
            await asyncio.sleep(TICK / 5)

    async with await bed.serve_messages(handler, max_connections=3):
        streams = [await bed.connect_messages() for _ in range(4)]
        for stream in streams[:3]:
            await stream.exchange(b"x")
        with pytest.raises(TimeoutError):
            await patience(streams[3].exchange(b"x"))
        await streams[0].aclose()
        assert await streams[3].exchange(b"x") == b"x"
        for stream in streams:
            await stream.aclose()
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(client(number))
    assert most == 3


@pytest.mark.parametrize("attack", [b"", b"\0", b"\xff\xff\xff\xff", b"\0\xff\xff\xffx", None], ids=repr)
async def test_hostile_clients(bed: Bed, attack: bytes | None) -> None:
    """Many at once, which go, or stay and send nothing, too little, or without end: with a limit of connections and a
    handler that does not wait for ever, others are served.
    """
    open_at_once = most = 0

    async def handler(stream: aio.MessageStream) -> None:
        nonlocal open_at_once, most
        open_at_once += 1
        most = max(most, open_at_once)
        with contextlib.suppress(TimeoutError, EOFError, OSError):
            async with asyncio.timeout(4 * TICK):
                await stream.send(await stream.recv())
        open_at_once -= 1

    async def attacker() -> None:
        async with await bed.connect_messages() as stream:
            with contextlib.suppress(OSError):
                while attack is not None:
                    raw(stream).send(attack)
                    await asyncio.sleep(TICK / 2)

    async with await bed.serve_messages(handler, max_connections=3), asyncio.timeout(LIMIT):
        attackers = [asyncio.create_task(attacker()) for _ in range(8)]
        while True:
            with contextlib.suppress(EOFError, OSError):  # a slow machine may be too slow for the handler
                async with await bed.connect_messages() as stream:
                    if await stream.exchange(b"please") == b"please":
                        break
        for task in attackers:
            task.cancel()
        await asyncio.wait(attackers)
    assert 0 < most <= 3
    assert open_at_once == 0


async def test_shutdown(bed: Bed) -> None:
    """Idle handlers end, busy ones finish, those that do not are cancelled at the deadline."""
    ended: list[str] = []

    async def handler(stream: aio.MessageStream) -> None:
        name = "idle"
        try:
            async for message in stream:
                name = message.decode()
                if name == "slow":
                    await asyncio.sleep(3 * TICK)
                    await stream.send(message)
                elif name == "asks":
                    await asyncio.sleep(2 * TICK)
                    await stream.send(await stream.exchange(b"question"))
                elif name == "stuck":
                    await asyncio.Event().wait()
        finally:
            ended.append(name)

    server = await bed.serve_messages(handler)
    idle, slow, asks, stuck = streams = [await bed.connect_messages() for _ in range(4)]
    await slow.send(b"slow")
    await asyncio.sleep(TICK)
    await slow.send(b"slow")  # arrives by itself
    await asks.send(b"asks")
    await stuck.send(b"stuck")
    await asyncio.sleep(TICK)
    began = time.monotonic()
    shutdown = asyncio.create_task(server.shutdown(40 * TICK))
    assert [message async for message in idle] == []
    with pytest.raises(OSError):
        await bed.connect_messages()
    assert await asks.recv() == b"question"
    await asks.send(b"answer")
    assert [message async for message in asks] == [b"answer"]
    assert [message async for message in slow] == [b"slow", b"slow"]
    await shutdown
    assert time.monotonic() - began >= 39 * TICK
    assert ended == ["idle", "asks", "slow", "stuck"]
    for stream in streams:
        await stream.aclose()


@contextlib.asynccontextmanager
async def just_connected(bed: Bed, turns: int) -> AsyncIterator[aio.MessageServer]:
    """Lend a server with a client that has connected so many turns of the loop before."""
    server = await bed.serve_messages(echo)
    with hvsock.HyperVSocket(transport=bed.transport) as client:
        client.settimeout(LIMIT)
        await asyncio.to_thread(client.connect, bed.address)
        await ticks(turns)
        yield server


def test_shutdown_beside_serve_forever(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives the handlers the time that it was told to, though serve_forever() ends the server, too."""
    ended: list[str] = []

    async def handler(stream: aio.MessageStream) -> None:
        await stream.recv()
        await asyncio.sleep(4 * TICK)
        ended.append("at its end")

    async def serve(server: aio.MessageServer) -> None:
        async with server:
            with contextlib.suppress(asyncio.CancelledError):
                await server.serve_forever()

    async def main() -> None:
        server = await bed.serve_messages(handler)
        serving = asyncio.create_task(serve(server))
        async with await bed.connect_messages() as stream:
            await stream.send(b"begin")
            await asyncio.sleep(TICK)
            await server.shutdown(LIMIT)
            await serving
        assert ended == ["at its end"]

    monkeypatch.setattr(aio.MessageServer.shutdown, "__defaults__", (TICK,))
    bed.run(main)


async def test_shutdown_beside_a_connection_that_has_just_come(bed: Bed) -> None:
    """Its handler ends, too, however far its task has come."""
    for turns in range(8):
        async with just_connected(bed, turns) as server:
            began = time.monotonic()
            await server.shutdown(LIMIT / 2)
            assert time.monotonic() - began < LIMIT / 4


async def test_abort_beside_a_connection_that_has_just_come(bed: Bed) -> None:
    for turns in range(8):
        async with just_connected(bed, turns) as server:
            server.close()
            server.abort_clients()
            await server.wait_closed()


async def test_shutdown_beside_a_peer_that_goes_on(bed: Bed) -> None:
    """What has arrived is received, and not what it sends without an end."""

    async def receive(stream: aio.MessageStream) -> None:
        with pytest.raises(EOFError, match="shutting down"):
            while True:
                await stream.recv()

    server = await bed.serve_messages(receive)
    async with await bed.connect_messages() as stream:

        async def send() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await stream.send(bytes(50_000))

        sending = asyncio.create_task(send())
        await asyncio.sleep(TICK)
        began = time.monotonic()
        await server.shutdown(LIMIT / 2)
        assert time.monotonic() - began < LIMIT / 4
        await sending


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are 3.12's")
def test_a_handler_that_closes_the_server_at_once(bed: Bed) -> None:
    """It runs in the midst of accepting, where tasks are eager."""
    if bed.kind == "uvloop":
        pytest.skip("uvloop calls 3.13's eager task factory with an argument that it does not take")

    async def handler(_stream: aio.MessageStream) -> None:
        server.close()

    server: aio.MessageServer

    async def main() -> None:
        nonlocal server
        server = await bed.serve_messages(handler)
        if sys.version_info >= (3, 12):
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        with contextlib.ExitStack() as stack:
            for _ in range(3):  # while the loop does not run
                stack.enter_context(hvsock.create_connection(bed.address, LIMIT, transport=bed.transport))
            await server.wait_closed()

    bed.run(main)


async def test_shutdown_is_cancelled(bed: Bed) -> None:
    """The handlers go on, and a second one ends them."""

    async def handler(_stream: aio.MessageStream) -> None:
        await asyncio.Event().wait()

    server = await bed.serve_messages(handler)
    async with await bed.connect_messages() as stream:
        await asyncio.sleep(TICK)
        with pytest.raises(TimeoutError):
            await patience(server.shutdown())
        await server.shutdown(0)
        with pytest.raises(EOFError):
            await stream.recv()


@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
async def test_clients_are_closed(bed: Bed, method: str) -> None:
    async with await bed.serve_messages(echo) as server:
        streams = [await bed.connect_messages() for _ in range(3)]
        for stream in streams:
            await stream.exchange(b"x")
        getattr(server, method)()
        for stream in streams:
            with pytest.raises(EOFError):
                await stream.recv()
            await stream.aclose()


async def test_serve_forever_is_cancelled(bed: Bed) -> None:
    """As by Ctrl-C under asyncio.run: it shuts down."""
    server = await bed.serve_messages(echo)
    task = asyncio.create_task(server.serve_forever())
    async with await bed.connect_messages() as stream:
        assert await stream.exchange(b"x") == b"x"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(EOFError):
            await stream.recv()


async def test_serve_forever_is_cancelled_at_its_start(bed: Bed) -> None:
    """It shuts down as well."""
    for turns in range(1, 5):
        server = await bed.serve_messages(echo)
        task = asyncio.create_task(server.serve_forever())
        await ticks(turns)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not server.is_serving()


def test_many_clients(bed: Bed) -> None:
    """They are there at the same time."""
    number = 200 if WINDOWS and bed.kind == "selector" else 500  # select() takes 512 sockets there
    allow_descriptors(2 * number + 100)

    async def main() -> None:
        async with await bed.serve_messages(echo, backlog=number):
            gate = asyncio.Barrier(number)

            async def client(index: int) -> None:
                async with await bed.connect_messages(retry_for=LIMIT) as stream:
                    await gate.wait()
                    for repeat in range(3):
                        message = b"%d" % (index + repeat)
                        assert await stream.exchange(message) == message

            async with asyncio.TaskGroup() as group:
                for index in range(number):
                    group.create_task(client(index))

    bed.run(main, debug=False)


async def test_a_socket_that_was_connected_elsewhere(bed: Bed) -> None:
    """The stream takes it over, whatever its timeout was."""
    one, other = await asyncio.to_thread(utils.make_pair, bed.transport)
    assert isinstance(one, hvsock.HyperVSocket)
    assert isinstance(other, hvsock.HyperVSocket)
    with other:
        async with aio.MessageStream(one) as stream:
            assert one.gettimeout() == 0.0
            await stream.send(b"hello")
            assert other.recv_message() == b"hello"
        assert one.fileno() == -1
