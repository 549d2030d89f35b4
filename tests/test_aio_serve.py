"""Sockets of hvsock.aio: connect() and serve(), on every event loop; servers that adopt a listening socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
import utils
from aio_loops import Bed, eventually, pending_connects
from utils import LIMIT, TICK, WINDOWS, random_bytes

import hvsock
from hvsock import aio
from hvsock.aio import _connect


async def recv_exactly(sock: hvsock.HyperVSocket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size and (part := await loop.sock_recv(sock, size - len(data))):
        data += part
    return bytes(data)


async def echo(sock: hvsock.HyperVSocket) -> None:
    loop = asyncio.get_running_loop()
    with sock:
        while data := await loop.sock_recv(sock, 1 << 16):
            await loop.sock_sendall(sock, data)


async def connect(bed: Bed) -> hvsock.HyperVSocket:
    return await aio.connect(bed.address, transport=bed.transport, timeout=LIMIT)


async def serve(bed: Bed, handler: Any, **kwargs: Any) -> aio.SocketServer:
    return await aio.serve(handler, bed.address, transport=bed.transport, **kwargs)


async def test_sockets(bed: Bed) -> None:
    """Both ends have a non-blocking `HyperVSocket`, which the loop's own methods take."""
    accepted: list[hvsock.HyperVSocket] = []

    async def handler(sock: hvsock.HyperVSocket) -> None:
        accepted.append(sock)
        await echo(sock)

    loop = asyncio.get_running_loop()
    async with await serve(bed, handler) as server:
        assert isinstance(server, asyncio.AbstractServer)
        with await connect(bed) as sock:
            assert sock.getpeername() == server.sockets[0].getsockname()
            payload = random_bytes(1 << 20)
            sending = asyncio.create_task(loop.sock_sendall(sock, payload))
            assert await recv_exactly(sock, len(payload)) == payload
            await sending
            assert {type(end) for end in (sock, *accepted)} == {hvsock.HyperVSocket}
            assert [end.gettimeout() for end in (sock, *accepted)] == [0.0, 0.0]
    assert server.sockets == ()
    assert accepted[0].fileno() == -1


async def test_cancelled_connect(bed: Bed) -> None:
    with pending_connects(bed.transport, bed.address) as address:
        connecting = asyncio.create_task(aio.connect(address, transport=bed.transport))
        await asyncio.sleep(TICK)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting


async def test_error_of_a_handler_ends_its_connection_only(bed: Bed) -> None:
    async def handler(sock: hvsock.HyperVSocket) -> None:
        if await asyncio.get_running_loop().sock_recv(sock, 1) == b"!":
            raise ZeroDivisionError
        await echo(sock)

    async with await serve(bed, handler):
        with await connect(bed) as bad, await connect(bed) as good:
            bad.send(b"!")
            assert await recv_exactly(bad, 1) == b""
            good.send(b"1234")
            assert await recv_exactly(good, 3) == b"234"
    [context] = bed.reported
    bed.reported.clear()
    assert type(context["exception"]) is ZeroDivisionError
    assert context["message"] == "error in the handler of a socket"
    assert context["socket"].fileno() == -1


async def test_passed_on_to_the_loop(bed: Bed) -> None:
    """The connection lasts as long as what the handler has made of it, and shutdown() ends that."""
    if bed.kind in ("uvloop", "winloop") and bed.transport != "local":
        pytest.skip("the loop makes transports of its own families only")
    if WINDOWS and not bed.completes:
        pytest.skip("select() does not tell of a shutdown by this end: the connection lasts until the peer ends it")
    made: list[asyncio.BaseTransport] = []
    lost = asyncio.Event()

    class Greeter(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(b"hello")  # type: ignore[attr-defined]

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    async def handler(sock: hvsock.HyperVSocket) -> None:
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(Greeter, sock)
        made.append(transport)

    server = await serve(bed, handler)
    with await connect(bed) as sock:
        assert await recv_exactly(sock, 5) == b"hello"
        await eventually(lambda: made)
        assert not made[0].is_closing()
        await server.shutdown(TICK)
        await lost.wait()
        with contextlib.suppress(ConnectionError):
            assert await recv_exactly(sock, 1) == b""


async def test_closed_in_a_thread(bed: Bed) -> None:
    """As a library with threads does."""
    threads: list[threading.Thread] = []

    async def handler(sock: hvsock.HyperVSocket) -> None:
        def answer() -> None:
            with sock:
                sock.settimeout(LIMIT)
                sock.sendall(sock.recv(5).upper())

        threads.append(threading.Thread(target=answer))
        threads[-1].start()

    async with await serve(bed, handler, max_connections=1):
        with await connect(bed) as sock, await connect(bed) as waiting:
            sock.send(b"hello")
            assert await recv_exactly(sock, 5) == b"HELLO"
            assert await recv_exactly(sock, 1) == b""
            threads.pop(0).join()
            waiting.send(b"world")
            assert await recv_exactly(waiting, 5) == b"WORLD"
    threads.pop().join()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_forgotten_socket(bed: Bed) -> None:
    """It is closed, as any, and the server does not wait for it."""

    async def handler(sock: hvsock.HyperVSocket) -> None:
        pass

    async with await serve(bed, handler):
        with await connect(bed) as sock:
            assert await recv_exactly(sock, 1) == b""
            gc.collect()


async def test_shutdown_cancels_handlers(bed: Bed) -> None:
    ended: list[str] = []

    async def handler(sock: hvsock.HyperVSocket) -> None:
        try:
            await echo(sock)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    server = await serve(bed, handler)
    with await connect(bed) as sock:
        sock.send(b"x")
        assert await recv_exactly(sock, 1) == b"x"
        await server.shutdown()
        assert ended == ["cancelled"]
        with contextlib.suppress(ConnectionError):
            assert await recv_exactly(sock, 1) == b""


async def test_max_connections_below_one(bed: Bed) -> None:
    with pytest.raises(ValueError, match="max_connections must be at least 1, not 0"):
        await serve(bed, echo, max_connections=0)


# Adopting a listening socket


@pytest.mark.parametrize("is_listening", [True, False])
async def test_adopted_socket(bed: Bed, is_listening: bool) -> None:
    sock = utils.listen(bed.transport, bed.address) if is_listening else hvsock.HyperVSocket(transport=bed.transport)
    if not is_listening:
        sock.bind(bed.address)
    async with await aio.serve(echo, sock=sock) as server:
        assert server.sockets == (sock,)
        with await connect(bed) as client:
            client.send(b"hello")
            assert await recv_exactly(client, 5) == b"hello"
    assert sock.fileno() == -1


async def test_adopted_descriptor(bed: Bed) -> None:
    """As systemd gives it: `socket.socket(fileno=3)` is taken over, too."""
    listening = utils.listen(bed.transport, bed.address)
    plain = socket.socket(listening.family, listening.type, listening.proto, fileno=listening.detach())

    async def answer(stream: aio.MessageStream) -> None:
        async for message in stream:
            await stream.send(message.upper())

    async with await aio.serve_messages(answer, sock=plain) as server:
        assert plain.fileno() == -1
        assert type(server.sockets[0]) is hvsock.HyperVSocket
        async with await bed.connect_messages() as stream:
            assert await stream.exchange(b"hello") == b"HELLO"


async def test_adopting_is_instead_of_an_address(bed: Bed) -> None:
    needed = "a server needs either an address or a socket to listen on, as sock"
    with utils.listen(bed.transport, bed.address) as sock:
        for function in (aio.serve, aio.serve_messages):
            with pytest.raises(ValueError, match=needed):
                await function(echo)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=needed):
                await function(echo, bed.address, sock=sock)  # type: ignore[arg-type]
        for options in ({"transport": bed.transport}, {"connected_suspend": True}):
            with pytest.raises(ValueError, match="transport and connected_suspend are for a new socket"):
                await aio.serve(echo, sock=sock, **options)
        assert sock.fileno() >= 0
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(ValueError, match="a server needs a stream socket"):
            await aio.serve(echo, sock=datagrams)
        assert datagrams.fileno() >= 0


# A peer that vanishes

SENDER = """
import sys, time, hvsock
with hvsock.create_connection(("loopback", sys.argv[2]), transport=sys.argv[1]) as sock:
    sock.settimeout(0.5)
    try:
        while True:
            sock.send(bytes(65536))
    except TimeoutError:
        print("sent", flush=True)
        time.sleep(1000)
"""


@pytest.mark.parametrize("with_transports", [True, False], ids=["streams", "sockets"])
async def test_peer_that_vanishes(bed: Bed, with_transports: bool) -> None:
    """What is sent to it fails, also if it has left something unread: of that, AF_VSOCK's poll says nothing."""
    if bed.kind == "winloop" and with_transports:
        pytest.skip("winloop has transports for TCP only")
    ended: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
        except OSError as exc:
            writer.transport.abort()
            ended.set_result(exc)

    async def sockets(sock: hvsock.HyperVSocket) -> None:
        with sock:
            try:
                while True:
                    await asyncio.get_running_loop().sock_sendall(sock, bytes(1 << 16))
            except OSError as exc:
                ended.set_result(exc)

    async with await (bed.start_server(streams, limit=100) if with_transports else serve(bed, sockets)):
        arguments = sys.executable, "-Ic", SENDER, bed.transport, str(bed.address[1])
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as peer:  # noqa: ASYNC220 - its start is not waited for
            assert peer.stdout is not None
            assert (await asyncio.to_thread(peer.stdout.readline)).strip() == b"sent"
            await asyncio.sleep(2 * TICK)  # until sending has to wait
            peer.kill()
        assert isinstance(await ended, ConnectionError)


class NotesShutdowns(hvsock.HyperVSocket):
    """A socket that notes how it is shut down."""

    shutdowns: list[int]

    def shutdown(self, how: int) -> None:
        self.shutdowns.append(how)
        super().shutdown(how)


@pytest.mark.skipif(utils.WINDOWS, reason="POSIX only: the looks are for Linux' AF_VSOCK")
@pytest.mark.parametrize("amid_message", [False, True])
async def test_gone_peer_of_vsock(bed: Bed, amid_message: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look in each second, until the socket cannot send any more: then shutdown() wakes what waits for it."""
    monkeypatch.setattr(_connect, "_LOOK", TICK / 100)
    loop = asyncio.get_running_loop()
    one, peer = utils.make_pair(bed.transport)
    monkeypatch.setattr(_connect, "_AF_VSOCK", one.family)
    with peer, NotesShutdowns(fileno=one.detach()) as sock, hvsock.HyperVSocket(transport=bed.transport) as closed:
        sock.setblocking(False)
        sock.shutdowns = []
        stream = aio.MessageStream(sock)  # looks, too
        sending = asyncio.create_task(stream.send(bytes(1 << 24)) if amid_message else asyncio.sleep(0))
        _connect.end_with_peer(loop, sock)
        _connect.end_with_peer(loop, closed)
        closed.close()
        await asyncio.sleep(TICK / 5)
        assert sock.shutdowns == []
        peer.close()
        await eventually(lambda: sock.shutdowns)
        await asyncio.wait([sending])
        assert isinstance(sending.exception(), ConnectionError) == amid_message
        await asyncio.sleep(TICK / 10)
        assert sock.shutdowns == [socket.SHUT_WR]
        await stream.aclose()
