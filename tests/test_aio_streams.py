"""Connecting, accepting, transports and streams of hvsock.aio, on every event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import re
import socket
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import utils
from aio_loops import KINDS, Bed, allow_descriptors, eventually, pending_connects, ticks
from certificates import tls_contexts
from children import aio_servers
from conftest import require_backlog
from interpreters import new_interpreter
from utils import LIMIT, TICK, WINDOWS, random_bytes

import hvsock
from hvsock import aio
from hvsock._transports import transport_named
from hvsock.aio import _connect, _server, _uvloop

MIB = 1 << 20


@pytest.fixture(params=[name for name in KINDS if name != "winloop"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of event loop that has transports for other sockets than TCP's."""
    return str(request.param)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def expect_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Check that the server has closed the connection, or does so, with or without a reset; then close this end."""
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    await close(writer)


class Recorder(asyncio.Protocol):
    """Notes what a transport tells it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.eof = False
        self.transport: Any = None
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.eof = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


# Streams


def test_streams(bed: Bed) -> None:
    """Data goes both ways, and both ends know each other by Hyper-V addresses."""
    seen: list[Any] = []

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend((writer.get_extra_info("peername"), writer.get_extra_info("sockname")))
        await echo(reader, writer)

    async def main() -> None:
        payload = random_bytes(MIB + 1)
        async with await bed.start_server(callback) as server:
            assert isinstance(server, asyncio.AbstractServer)
            reader, writer = await bed.open_connection()
            own, peer = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
            for address in (own, peer):
                assert type(address) is hvsock.HyperVAddress
            assert peer == server.sockets[0].getsockname()
            assert writer.get_extra_info("nothing", "default") == "default"
            assert writer.get_extra_info("socket").fileno() >= 0
            assert writer.get_extra_info("socket").getpeername() == peer
            sending = asyncio.create_task(write_all(writer, payload))
            assert await reader.readexactly(len(payload)) == payload
            await sending
            assert writer.can_write_eof()
            writer.write_eof()
            assert await reader.read() == b""
            await close(writer)
            assert type(seen[0]) is hvsock.HyperVAddress
            assert seen[0].service_id == own.service_id

    async def write_all(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.writelines([data[:100], data[100:]])
        await writer.drain()

    bed.run(main)


async def test_half_close(bed: Bed) -> None:
    """After one end has sent all, the other may still answer."""

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read()
        writer.write(request[::-1])
        await writer.drain()
        await close(writer)

    async with await bed.start_server(callback):
        reader, writer = await bed.open_connection()
        writer.write(b"all of it")
        writer.write_eof()
        assert await reader.read() == b"ti fo lla"
        await close(writer)


async def test_limit_of_a_reader(bed: Bed) -> None:
    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with pytest.raises(ValueError, match="limit"):
            await reader.readline()
        writer.write(b"far too long\n")
        await close(writer)

    async with await bed.start_server(callback, limit=8):
        reader, writer = await bed.open_connection(limit=8)
        writer.write(b"x" * 100)
        with pytest.raises(ValueError, match="limit"):
            await reader.readline()
        await close(writer)


async def test_slow_reader(bed: Bed) -> None:
    """drain() waits for the peer."""
    chunk = random_bytes(1 << 16)
    go = asyncio.Event()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        total = 0
        while data := await reader.read(1 << 16):
            total += len(data)
        writer.write(b"%d" % total)
        await close(writer)

    async with await bed.start_server(callback):
        reader, writer = await bed.open_connection()
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 64 * MIB:
                writer.write(chunk)
                sent += len(chunk)
                async with asyncio.timeout(2 * TICK):
                    await writer.drain()
        assert sent < 64 * MIB
        go.set()
        writer.write_eof()
        assert int(await reader.read()) == sent
        await close(writer)


def test_debug_mode(bed: Bed) -> None:
    """The loop's own checks find nothing."""

    async def main() -> None:
        async with await bed.start_server(echo):
            reader, writer = await bed.open_connection()
            writer.write(b"line\n")
            assert await reader.readline() == b"line\n"
            await close(writer)

    bed.run(main, debug=True)


@pytest.mark.skipif("winloop" not in KINDS, reason="winloop is Windows': tests/windows/run has it")
def test_winloop_has_transports_for_tcp_only(transport: str) -> None:
    """That is said at once, and not by the loop in the middle of it."""
    bed_ = Bed("winloop", transport)

    async def main() -> None:
        with pytest.raises(NotImplementedError, match=r"^winloop makes transports for TCP only: use connect_messages"):
            await bed_.open_connection()
        with pytest.raises(NotImplementedError, match="serve_messages"):
            await bed_.start_server(echo)

    bed_.run(main)


# Protocols


async def test_protocols(bed: Bed) -> None:
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    async with await bed.create_server(factory):
        transport, protocol = await bed.create_connection(Recorder)
        assert type(protocol) is Recorder
        assert protocol.transport is transport
        assert transport.get_protocol() is protocol
        assert type(transport.get_extra_info("peername")) is hvsock.HyperVAddress
        await eventually(lambda: made and made[0].transport)
        other = made[0]
        assert type(other.transport.get_extra_info("peername")) is hvsock.HyperVAddress
        transport.write(b"ab")
        transport.writelines([b"c", bytearray(b"d")])
        await eventually(lambda: other.data == b"abcd")
        other.transport.pause_reading()
        assert not other.transport.is_reading()
        other.transport.resume_reading()
        assert other.transport.is_reading()
        transport.set_write_buffer_limits(high=100, low=10)
        assert transport.get_write_buffer_limits() == (10, 100)
        assert transport.get_write_buffer_size() == 0
        assert transport.can_write_eof()
        transport.write_eof()
        await eventually(lambda: other.eof)
        other.transport.write(b"reply")
        await eventually(lambda: protocol.data == b"reply")
        replacement = Recorder()
        other.transport.set_protocol(replacement)
        assert other.transport.get_protocol() is replacement
        assert not transport.is_closing()
        transport.close()
        assert transport.is_closing()
        assert await protocol.lost is None
        other.transport.abort()
        assert await replacement.lost is None


async def test_buffered_protocol(bed: Bed) -> None:
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.room = bytearray(10)
            self.data = bytearray()

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.room

        def buffer_updated(self, nbytes: int) -> None:
            self.data += self.room[:nbytes]

    async with await bed.start_server(echo):
        transport, protocol = await bed.create_connection(Buffered)
        transport.write(bytes(range(100)))
        await eventually(lambda: protocol.data == bytes(range(100)))
        transport.close()


def test_protocol_factory_that_fails(bed: Bed) -> None:
    """The connection is closed, and the server goes on."""
    fails = True
    made: list[Recorder] = []

    def factory() -> Recorder:
        if fails:
            raise ZeroDivisionError
        made.append(Recorder())
        return made[-1]

    async def main() -> None:
        nonlocal fails
        async with await bed.create_server(factory):
            transport, protocol = await bed.create_connection(Recorder)
            await eventually(lambda: protocol.eof)
            transport.close()
            assert [type(context["exception"]) for context in bed.reported] == [ZeroDivisionError]
            bed.reported.clear()
            with pytest.raises(ZeroDivisionError):
                await bed.create_connection(factory)
            await eventually(lambda: bed.reported)
            bed.reported.clear()
            await ticks(10)
            fails = False
            await bed.create_connection(factory)
            await eventually(lambda: len(made) == 2 and made[0].transport and made[1].transport)
            for recorder in made:
                assert not recorder.lost.done()
                recorder.transport.abort()

    bed.run(main)


@pytest.mark.parametrize("version", ["TLS 1.2, anonymous", "TLS 1.3"])
def test_tls(bed: Bed, version: str) -> None:
    server_context, client_context = tls_contexts(version)

    async def main() -> None:
        payload = random_bytes(MIB)
        async with await bed.start_server(echo, ssl=server_context):
            reader, writer = await bed.open_connection(ssl=client_context)
            assert type(writer.get_extra_info("peername")) is hvsock.HyperVAddress
            assert writer.get_extra_info("cipher")
            sending = asyncio.create_task(write(writer, payload))
            assert await reader.readexactly(len(payload)) == payload
            await sending
            await close(writer)

    async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    bed.run(main)


async def test_start_tls(bed: Bed) -> None:
    """The streams go on with TLS, and still know their addresses."""
    server_context, client_context = tls_contexts("TLS 1.3")
    seen: list[Any] = []

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.start_tls(server_context)
        seen.append(writer.get_extra_info("peername"))
        await echo(reader, writer)

    async with await bed.start_server(callback) as server:
        reader, writer = await bed.open_connection()
        writer.write(b"start\n")
        assert await reader.readline() == b"start\n"
        await writer.start_tls(client_context, server_hostname="")
        assert writer.get_extra_info("cipher")
        assert writer.get_extra_info("peername") == server.sockets[0].getsockname()
        # After start_tls(), asyncio's own streams of 3.14 may not resume reading once they have paused, on AF_UNIX too.
        payload = random_bytes(MIB if sys.version_info < (3, 14) else 100_000)
        writer.write(payload)
        assert await reader.readexactly(len(payload)) == payload
        assert [type(peer) for peer in seen] == [hvsock.HyperVAddress]
        await close(writer)


@pytest.mark.parametrize("name", ["server_hostname", "ssl_handshake_timeout", "ssl_shutdown_timeout"])
async def test_arguments_about_tls_without_it(bed: Bed, name: str) -> None:
    """They are refused, as asyncio does: a name that is not checked would seem to be."""
    value: Any = "guest" if name == "server_hostname" else 1.0
    with pytest.raises(ValueError, match=rf"^{name} is only meaningful with ssl$"):
        await bed.open_connection(**{name: value})
    if name != "server_hostname":
        with pytest.raises(ValueError, match=rf"^{name} is only meaningful with ssl$"):
            await bed.start_server(echo, **{name: value})


def test_coroutine_that_is_left_behind(transport: str) -> None:
    """A call that waits when its loop is closed has its socket closed when it is forgotten."""

    async def make(*_: Any) -> Any:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        attaching.send(None)

    with hvsock.HyperVSocket(transport=transport) as sock:
        attaching = _uvloop.attach(make, asyncio.Protocol, sock)
        with asyncio.Runner() as runner:
            runner.run(main())
        assert sock.fileno() >= 0
        attaching.close()
        assert sock.fileno() == -1


@pytest.mark.parametrize("debug", [False, True])
def test_tls_with_a_peer_that_speaks_none(bed: Bed, debug: bool) -> None:
    """The handshake fails, its connection is closed, and the server goes on; only who debugs is told."""
    server_context, client_context = tls_contexts("TLS 1.2, anonymous")

    async def main() -> None:
        async with await bed.start_server(echo, ssl=server_context):
            reader, writer = await bed.open_connection()
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            await reader.read()
            await close(writer)
            reader, writer = await bed.open_connection(ssl=client_context)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            await close(writer)
            assert [isinstance(context["exception"], OSError) for context in bed.reported] == [True] * debug
            bed.reported.clear()

    bed.run(main, debug=debug)


@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
async def test_clients_are_closed_in_their_handshake(bed: Bed, method: str) -> None:
    server_context, _ = tls_contexts("TLS 1.2, anonymous")
    server = await bed.start_server(echo, ssl=server_context)
    reader, writer = await bed.open_connection()
    await asyncio.sleep(TICK)
    began = time.monotonic()
    server.close()
    getattr(server, method)()
    await server.wait_closed()
    assert time.monotonic() - began < LIMIT / 2
    await expect_end(reader, writer)


async def test_protocol_that_fails_at_its_connection(bed: Bed) -> None:
    """It is reported, and the connection ends with its client at the latest."""

    class Failing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ZeroDivisionError

    server = await bed.create_server(Failing)
    _, writer = await bed.open_connection()
    await eventually(lambda: bed.reported)
    writer.transport.abort()
    server.close()
    async with asyncio.timeout(LIMIT):
        await server.wait_closed()
    assert [type(context["exception"]) for context in bed.reported] == [ZeroDivisionError]
    bed.reported.clear()


def test_cancelled_as_the_handshake_ends(bed: Bed) -> None:
    """The transport says goodbye in TLS before it closes the handle; nobody takes the handle from under it."""
    server_context, client_context = tls_contexts("TLS 1.2, anonymous")

    class Client(asyncio.Protocol):
        lost = False

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            connecting.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost = True

    connecting: asyncio.Task[Any]

    async def main() -> None:
        nonlocal connecting
        client = Client()
        async with await bed.start_server(echo, ssl=server_context):
            connecting = asyncio.create_task(bed.create_connection(lambda: client, ssl=client_context))
            with pytest.raises(asyncio.CancelledError):
                await connecting
            sock = client.transport.get_extra_info("socket")
            await asyncio.sleep(0)
            assert client.lost or sock.fileno() != -1
            await eventually(lambda: client.lost and sock.fileno() == -1)

    bed.run(main)


async def test_tls_is_a_context(bed: Bed) -> None:
    with pytest.raises(TypeError, match=r"ssl must be an .*SSLContext, not True"):
        await bed.open_connection(ssl=True)


async def test_tls_needs_a_name_to_check(bed: Bed) -> None:
    _, context = tls_contexts("TLS 1.2, anonymous")
    context.check_hostname = True
    async with await bed.start_server(echo):
        with pytest.raises(ValueError, match="hostname"):
            await bed.open_connection(ssl=context)


# Connecting


def notes_of_connect(error: BaseException) -> list[str]:
    return [note for note in error.__notes__ if note.startswith("connect on transport")]


async def test_refused(bed: Bed) -> None:
    with pytest.raises(OSError) as info:
        await bed.open_connection()
    assert isinstance(info.value, ConnectionError)
    assert len(notes_of_connect(info.value)) == 1
    assert any("known cause" in note for note in info.value.__notes__)


def test_timeout(bed: Bed) -> None:
    with pending_connects(bed.transport, bed.address) as address:

        async def main() -> None:
            began = time.monotonic()
            with pytest.raises(TimeoutError) as info:
                await aio.open_connection(address, transport=bed.transport, timeout=3 * TICK)
            assert 2.9 * TICK <= time.monotonic() - began < LIMIT / 2
            assert len(notes_of_connect(info.value)) == 1

        bed.run(main)


def test_cancelled_connect(bed: Bed) -> None:
    """Nothing is left of it, wherever the cancellation strikes."""
    with pending_connects(bed.transport, bed.address) as address:

        async def main() -> None:
            for turns in range(12):
                task = asyncio.create_task(aio.open_connection(address, transport=bed.transport, timeout=LIMIT))
                await ticks(turns)
                if turns > 8:
                    await asyncio.sleep(TICK / 2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(TICK):
                    await aio.connect_messages(address, transport=bed.transport, timeout=LIMIT)

        bed.run(main)


async def test_cancelled_connect_that_would_succeed(bed: Bed) -> None:
    async with await bed.start_server(echo):
        for turns in range(40):
            task = asyncio.create_task(bed.open_connection())
            await ticks(turns)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                _, writer = await task
                await close(writer)


def test_many_pending_connects_are_cancelled(bed: Bed) -> None:
    with pending_connects(bed.transport, bed.address) as address:

        async def main() -> None:
            tasks = [
                asyncio.create_task(aio.open_connection(address, transport=bed.transport, timeout=LIMIT))
                for _ in range(50)
            ]
            await asyncio.sleep(TICK)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} == {asyncio.CancelledError}

        bed.run(main)


def test_full_backlog_is_waited_for(local: str, kind: str) -> None:
    """On AF_UNIX nothing is pending while the backlog is full; a connect is made as soon as there is room."""
    bed_ = Bed(kind, local)
    with contextlib.ExitStack() as stack:
        listener = utils.full_listener(local, stack)

        async def main() -> None:
            task = asyncio.create_task(aio.open_connection(listener.getsockname(), transport=local, timeout=LIMIT))
            await asyncio.sleep(TICK)
            assert not task.done()
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
            _, writer = await task
            await close(writer)

        bed_.run(main)


async def test_retry_for(bed: Bed) -> None:
    """The server may come later."""
    task = asyncio.create_task(bed.open_connection(retry_for=LIMIT))
    await asyncio.sleep(2 * TICK)
    assert not task.done()
    async with await bed.start_server(echo):
        _, writer = await task
        await close(writer)
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        await bed.open_connection(retry_for=3 * TICK)
    assert time.monotonic() - began < LIMIT / 2


def test_limit_of_an_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in time for another one, also where a system would go on for all of `retry_for`."""
    limits: list[float] = []

    async def fail(_to: object, _carrier: object, limit: float) -> Any:
        limits.append(limit)
        raise TimeoutError if len(limits) < 3 else ZeroDivisionError

    async def attempts(**kwargs: Any) -> list[float]:
        limits.clear()
        with pytest.raises(ZeroDivisionError):
            await aio.open_connection(("loopback", 5000), **kwargs)
        return limits

    async def main() -> None:
        assert await attempts(retry_for=2 * LIMIT) == [2.0] * 3
        assert await attempts(retry_for=2 * LIMIT, timeout=LIMIT) == [LIMIT] * 3
        assert max(await attempts(retry_for=LIMIT, timeout=2 * LIMIT)) <= LIMIT

    monkeypatch.setattr(_connect, "_attempt", fail)
    asyncio.run(main())


def test_limit_of_the_system(transport: str) -> None:
    """Both kernels would end a connect after 2 s by themselves."""
    with hvsock.HyperVSocket(transport=transport) as sock:
        transport_named(transport).limit_connect(sock, 12.5)
        if transport == "hyperv":
            limit = sock.getsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT)
            assert limit == 12501  # milliseconds
        elif transport == "vsock":
            option = 6  # SO_VM_SOCKETS_CONNECT_TIMEOUT, of linux/vm_sockets.h
            with socket.socket(socket.AF_UNIX, fileno=os.dup(sock.fileno())) as twin:  # which reads it as bytes
                assert twin.getsockopt(sock.family, option, 16) == struct.pack("ll", 12, 500_000)


async def test_bad_arguments(bed: Bed) -> None:
    for timeout in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            await aio.open_connection(bed.address, transport=bed.transport, timeout=timeout)
    for retry_for in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="retry_for"):
            await aio.open_connection(bed.address, transport=bed.transport, retry_for=retry_for)
    for call in (aio.open_connection, aio.connect_messages):
        with pytest.raises(ValueError, match="no transport is called"):
            await call(bed.address, transport="pigeon")
        with pytest.raises(TypeError):
            await call("loopback", transport=bed.transport)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no transport is called"):
        await aio.start_server(echo, bed.address, transport="pigeon")
    for number in (0, -1):
        with pytest.raises(ValueError, match="max_connections"):
            await bed.serve_messages(echo, max_connections=number)


async def test_address_in_use(bed: Bed) -> None:
    async with await bed.start_server(echo):
        with pytest.raises(OSError) as info:
            await bed.start_server(echo)
        assert info.value.errno == errno.EADDRINUSE


# Servers


async def test_server_life(bed: Bed) -> None:
    """start_serving, serve_forever, close and wait_closed are those of asyncio.Server."""
    server = await bed.start_server(echo, start_serving=False)
    assert not server.is_serving()
    assert server.get_loop() is asyncio.get_running_loop()
    assert [type(sock) for sock in server.sockets] == [hvsock.HyperVSocket]
    assert "sockets" in repr(server)
    with pytest.raises(OSError):
        await bed.open_connection()
    await server.start_serving()
    await server.start_serving()
    assert server.is_serving()
    reader, writer = await bed.open_connection()
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"  # it is accepted: what waits for that would end with the server
    forever = asyncio.create_task(server.serve_forever())
    await ticks(3)
    with pytest.raises(RuntimeError, match="serve_forever"):
        await server.serve_forever()
    waiting = asyncio.create_task(server.wait_closed())
    server.close()
    server.close()
    assert not server.is_serving()
    assert server.sockets == ()
    # The connection goes on.
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    assert not waiting.done()
    with pytest.raises(OSError):
        await bed.open_connection()
    await close(writer)
    await waiting
    await server.wait_closed()
    with pytest.raises(asyncio.CancelledError):
        await forever
    with pytest.raises(RuntimeError, match="closed"):
        await server.serve_forever()
    # The address is free again.
    async with await bed.start_server(echo):
        pass


async def test_serve_forever_is_cancelled(bed: Bed) -> None:
    server = await bed.start_server(echo)
    task = asyncio.create_task(server.serve_forever())
    _, writer = await bed.open_connection()
    await close(writer)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not server.is_serving()


#: A server with a client that is silent, and Ctrl-C. Its grace has no end, so that the client has to be closed.
CTRL_C = textwrap.dedent("""
    import asyncio, signal
    from hvsock import aio

    async def talk(reader, writer):
        accepted.set()
        assert await reader.read() == b""
        print("the stream has ended")
        writer.close()

    async def converse(stream):
        async for message in stream:
            raise AssertionError(message)
        print("the stream has ended")

    async def main():
        global accepted
        accepted = asyncio.Event()
        async with await {serve} as server:
            client = await aio.connect_messages(("loopback", 5000), transport="local")
            asyncio.get_running_loop().call_later({tick}, signal.raise_signal, signal.SIGINT)
            await {wait}

    aio.Server.shutdown.__defaults__ = (None,)
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("interrupted")
""")


@pytest.mark.parametrize(
    ("handler", "wait"),
    [
        ("start_server(talk", "server.serve_forever()"),
        ("start_server(talk", "asyncio.Event().wait()"),
        ("start_server(talk", "accepted.wait()"),  # and then for the client
        ("serve_messages(converse", "server.serve_forever()"),
        ("serve_messages(converse", "asyncio.Event().wait()"),
    ],
)
@pytest.mark.usefixtures("local")
def test_ctrl_c_beside_a_silent_client(handler: str, wait: str) -> None:
    """The first one ends the server, whether it waits in serve_forever() or elsewhere in its `async with`, or after."""
    serve = f'aio.{handler}, ("loopback", 5000), transport="local")'
    code = CTRL_C.format(serve=serve, tick=TICK, wait=wait)
    done = subprocess.run([sys.executable, "-Ic", code], capture_output=True, text=True, timeout=LIMIT)
    assert (done.stdout.split("\n"), done.stderr) == (["the stream has ended", "interrupted", ""], "")


async def test_serve_forever_is_cancelled_while_something_is_sent(bed: Bed) -> None:
    """It is sent to its end."""
    answer = random_bytes(4 * MIB)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()
        writer.close()

    server = await bed.start_server(handler)
    task = asyncio.create_task(server.serve_forever())
    reader, writer = await bed.open_connection()
    received = await reader.readexactly(1)
    task.cancel()
    assert received + await reader.read() == answer
    await close(writer)
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("again", [False, True])
def test_serve_forever_is_cancelled_beside_a_client_that_does_not_read(
    bed: Bed, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is aborted after the grace, or at once when the task is cancelled again."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(64 * MIB))
        await reader.read()
        writer.close()

    async def main() -> None:
        server = await bed.start_server(handler)
        task = asyncio.create_task(server.serve_forever())
        with hvsock.HyperVSocket(transport=bed.transport) as client:
            await asyncio.to_thread(client.connect, bed.address)
            await asyncio.sleep(TICK)
            task.cancel()
            if again:
                await asyncio.sleep(TICK)
                assert not task.done()
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.wait_closed()

    monkeypatch.setattr(aio.Server.shutdown, "__defaults__", (LIMIT if again else TICK,))
    bed.run(main)


async def test_the_end_of_a_server_waits_for_its_clients(bed: Bed) -> None:
    """As with asyncio's, where nothing has failed in its block."""
    async with await bed.start_server(echo) as server:
        reader, writer = await bed.open_connection()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        leaving = asyncio.create_task(server.__aexit__(None, None, None))
        await asyncio.sleep(TICK)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        assert not leaving.done()
        await close(writer)
        await leaving


async def test_shutdown(bed: Bed) -> None:
    """It can give the clients another time than serve_forever() does."""
    server = await bed.start_server(echo)
    pairs = [await bed.open_connection() for _ in range(3)]
    for reader, writer in pairs:
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
    await server.shutdown(LIMIT)
    assert server.sockets == ()
    for reader, writer in pairs:
        await expect_end(reader, writer)


@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
async def test_clients_are_closed(bed: Bed, method: str) -> None:
    async with await bed.start_server(echo) as server:
        pairs = [await bed.open_connection() for _ in range(3)]
        for reader, writer in pairs:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        getattr(server, method)()
        for reader, writer in pairs:
            await expect_end(reader, writer)


@pytest.mark.parametrize("tls", [False, True])
def test_clients_are_closed_as_they_are_made(bed: Bed, tls: bool) -> None:
    """What is written arrives first, however short a time there has been a transport."""
    server_context, client_context = tls_contexts("TLS 1.3") if tls else (None, None)
    answer = random_bytes(4 * MIB)
    server: aio.Server

    class Answering(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            made.append(self)
            self.transport.write(answer)
            server.close_clients()

    made: list[Answering] = []

    async def main() -> None:
        nonlocal server
        async with await bed.create_server(Answering, ssl=server_context) as server:
            reader, writer = await bed.open_connection(ssl=client_context)
            assert await reader.read() == answer
            await close(writer)
            assert await made[0].lost is None

    bed.run(main)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
async def test_clients_are_closed_at_every_turn(bed: Bed, method: str, tls: bool) -> None:
    """One that is closed gets all that was written to it or nothing; none that is aborted is waited for."""
    server_context, client_context = tls_contexts("TLS 1.3") if tls else (None, None)
    answer = random_bytes(2 * MIB)

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(answer)

    async def receive(gone: asyncio.Event) -> None:
        with contextlib.suppress(OSError):  # refused, or reset before there was anything
            reader, writer = await bed.open_connection(ssl=client_context)
            if method == "abort_clients":
                await gone.wait()
            received = await reader.read()
            writer.close()
            assert method == "abort_clients" or received in (b"", answer)
            await writer.wait_closed()

    for turns in range(24):
        server = await bed.create_server(Answering, ssl=server_context)
        gone = asyncio.Event()
        receiving = asyncio.create_task(receive(gone))
        await ticks(turns)
        server.close()
        getattr(server, method)()
        async with asyncio.timeout(LIMIT / 2):
            await server.wait_closed()
        gone.set()
        await receiving


@pytest.mark.parametrize("tls", [False, True])
async def test_clients_are_closed_whose_transport_nobody_keeps(bed: Bed, tls: bool) -> None:
    server_context, client_context = tls_contexts("TLS 1.3") if tls else (None, None)
    server = await bed.create_server(asyncio.Protocol, ssl=server_context)
    reader, writer = await bed.open_connection(ssl=client_context)
    await asyncio.sleep(TICK)
    gc.collect()
    server.close()
    server.abort_clients()
    await server.wait_closed()
    await expect_end(reader, writer)


async def test_a_burst_of_clients_fits_into_the_backlog(bed: Bed) -> None:
    """Without a turn of the loop, in which they would be accepted."""
    require_backlog(200)
    async with await bed.start_server(echo):
        for _ in range(200):
            hvsock.create_connection(bed.address, LIMIT, transport=bed.transport).close()


async def test_backlog_of_none(bed: Bed) -> None:
    async with await bed.start_server(echo, backlog=0):
        reader, writer = await bed.open_connection()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await close(writer)


async def test_close_while_connections_are_waiting(bed: Bed) -> None:
    """Those that were not accepted end with the listener; nothing is left of those that were."""
    server = await bed.start_server(echo, start_serving=False)
    await server.start_serving()
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            sock = hvsock.HyperVSocket(transport=bed.transport)
            stack.enter_context(sock)
            sock.settimeout(LIMIT)
            await asyncio.to_thread(sock.connect, bed.address)
        server.close()
    await server.wait_closed()


def test_accept_errors(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are reported, and the server goes on: at once when the peer has gone, else after a pause."""
    monkeypatch.setattr(_server, "_RETRY_DELAY", 2 * TICK)
    accept = hvsock.HyperVSocket.accept
    errors = [OSError(errno.EMFILE, "too many"), ConnectionAbortedError(errno.ECONNABORTED, "gone")]
    delays: list[float] = []
    failed = 0.0

    def fail(sock: hvsock.HyperVSocket) -> Any:
        nonlocal failed
        if failed:
            delays.append(time.monotonic() - failed)
            failed = 0.0
        if errors:
            failed = time.monotonic()
            raise errors.pop(0)
        return accept(sock)

    async def main() -> None:
        monkeypatch.setattr(hvsock.HyperVSocket, "accept", fail)
        async with await bed.start_server(echo):
            for _ in range(2):
                reader, writer = await bed.open_connection()
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                await close(writer)
            assert [type(context["exception"]) for context in bed.reported] == [OSError, ConnectionAbortedError]
            assert all(isinstance(context["socket"], hvsock.HyperVSocket) for context in bed.reported)
            bed.reported.clear()
        assert delays[0] >= 1.9 * TICK

    bed.run(main)


def test_server_is_closed_during_the_pause(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server, "_RETRY_DELAY", LIMIT)

    def fail(_sock: hvsock.HyperVSocket) -> Any:
        raise OSError(errno.EMFILE, "too many")

    async def main() -> None:
        monkeypatch.setattr(hvsock.HyperVSocket, "accept", fail)
        async with await bed.start_server(echo):
            with hvsock.HyperVSocket(transport=bed.transport) as sock:
                sock.settimeout(LIMIT)
                await asyncio.to_thread(sock.connect, bed.address)
                await eventually(lambda: bed.reported)
        bed.reported.clear()

    bed.run(main)


def test_server_that_is_not_closed(served: str) -> None:
    """It does not keep the process, even if it has a thread."""
    utils.run_child(aio_servers.server_is_not_closed, served)


#: What runs in an interpreter that allows no daemon threads: a server that needs a thread.
SERVER_WITH_A_THREAD = textwrap.dedent("""
    import asyncio
    from hvsock import aio
    from hvsock.aio import _server

    _server.watches_sockets = lambda loop: False

    async def echo(stream):
        async for message in stream:
            await stream.send(message)

    async def main():
        async with await aio.serve_messages(echo, ("loopback", 5000), transport="local"):
            async with await aio.connect_messages(("loopback", 5000), transport="local") as stream:
                assert await stream.exchange(b"x") == b"x"

    asyncio.run(main())
""")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="3.12+ only: before, interpreters share one GIL")
@pytest.mark.usefixtures("local")
def test_server_in_an_interpreter_of_its_own() -> None:
    module, interpreter = new_interpreter()
    try:
        failure = module.run_string(interpreter, SERVER_WITH_A_THREAD)
        assert failure is None, failure
    finally:
        module.destroy(interpreter)


@pytest.mark.skipif(WINDOWS, reason="a limit of descriptors is POSIX's")
def test_descriptors_run_out(local: str) -> None:
    utils.run_child(aio_servers.out_of_descriptors)


def test_many_clients(bed: Bed) -> None:
    """They are there at the same time, each with its own peer."""
    number = 200 if WINDOWS and bed.kind == "selector" else 500  # select() takes 512 sockets there

    async def main() -> None:
        async with await bed.start_server(echo, backlog=number):
            gate = asyncio.Barrier(number)

            async def client(index: int) -> None:
                reader, writer = await bed.open_connection(retry_for=LIMIT)
                await gate.wait()
                writer.write(b"%8d" % index)
                assert int(await reader.readexactly(8)) == index
                await close(writer)

            async with asyncio.TaskGroup() as group:
                for index in range(number):
                    group.create_task(client(index))

    allow_descriptors(4 * number + 100)  # uvloop has two for each end
    bed.run(main, debug=False)


def test_no_private_attribute_of_asyncio() -> None:
    sources = list(Path(aio.__file__).parent.glob("*.py"))
    assert len(sources) > 4
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"\b(?:asyncio|loop|_loop|transport|reader|writer|protocol)\._(?!_)\w+", text) == [], path
        assert "_overlapped" not in text
        assert "asyncio.windows" not in text


@pytest.mark.skipif(sys.platform != "win32", reason="only Windows has the Proactor")
def test_watches_sockets() -> None:
    from hvsock.aio._connect import watches_sockets

    if sys.platform == "win32":
        for kind_, expected in ((asyncio.ProactorEventLoop, False), (asyncio.SelectorEventLoop, True)):
            with contextlib.closing(kind_()) as loop:
                assert watches_sockets(loop) is expected
