"""`new_event_loop`: asyncio's own methods with a `HyperVSocket`; the parts for the Proactor run on every platform."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any

import pytest
import utils
from aio_loops import Bed, pending_connects
from certificates import tls_contexts
from utils import LIMIT, TICK, WINDOWS, random_bytes

import hvsock
from hvsock import aio


@pytest.fixture(params=["own"] if WINDOWS else ["own", "own overlapped", "own uvloop"])
def kind(request: pytest.FixtureRequest) -> str:
    """The loops that users get, and the parts for the Proactor."""
    return str(request.param)


def listen(bed: Bed) -> hvsock.HyperVSocket:
    """Return a listening socket, non-blocking as asyncio wants it."""
    sock: hvsock.HyperVSocket = utils.listen(bed.transport, bed.address)
    sock.setblocking(False)
    return sock


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def dial(bed: Bed) -> hvsock.HyperVSocket:
    sock = hvsock.HyperVSocket(transport=bed.transport)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, bed.address)
    return sock


def test_it_is_asyncios_own() -> None:
    loop = aio.new_event_loop()
    loop.close()
    assert isinstance(loop, asyncio.ProactorEventLoop if WINDOWS else asyncio.SelectorEventLoop)  # type: ignore[attr-defined,unused-ignore]


async def test_streams(bed: Bed) -> None:
    peers: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("peername"))
        await echo(reader, writer)

    async with await asyncio.start_server(serve, sock=listen(bed)) as server:
        reader, writer = await asyncio.open_connection(sock=await dial(bed))
        assert writer.get_extra_info("peername") == server.sockets[0].getsockname()
        payload = random_bytes(1 << 20)
        writer.write(payload)
        writer.write_eof()
        assert await reader.read() == payload
        assert [type(peer) for peer in peers] == [hvsock.HyperVAddress]
        writer.close()
        await writer.wait_closed()


async def test_sockets(bed: Bed) -> None:
    loop = asyncio.get_running_loop()
    with listen(bed) as listening:
        accepting = asyncio.create_task(loop.sock_accept(listening))
        with await dial(bed) as client, (await accepting)[0] as server:
            assert type(server) is hvsock.HyperVSocket
            assert type(accepting.result()[1]) is hvsock.HyperVAddress
            assert (client.gettimeout(), server.gettimeout()) == (0.0, 0.0)
            await loop.sock_sendall(client, b"hello")
            assert await loop.sock_recv(server, 5) == b"hello"


async def test_cancelled_accept(bed: Bed) -> None:
    """The listening socket accepts the next one."""
    loop = asyncio.get_running_loop()
    with listen(bed) as listening:
        accepting = asyncio.create_task(loop.sock_accept(listening))
        await asyncio.sleep(TICK)
        accepting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await accepting
        if bed.kind == "own overlapped":
            return  # on POSIX, the end of the call ends the listening for all that have the handle
        accepting = asyncio.create_task(loop.sock_accept(listening))
        with await dial(bed), (await accepting)[0]:
            pass


async def test_cancelled_connect(bed: Bed) -> None:
    loop = asyncio.get_running_loop()
    with pending_connects(bed.transport, bed.address) as address:
        sock = hvsock.HyperVSocket(transport=bed.transport)
        sock.setblocking(False)
        connecting = asyncio.create_task(loop.sock_connect(sock, address))
        await asyncio.sleep(TICK)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        sock.close()


async def test_refused_connect(bed: Bed) -> None:
    with hvsock.HyperVSocket(transport=bed.transport) as sock:
        sock.setblocking(False)
        with pytest.raises(OSError, match=r"refused|reset") as refusal:
            await asyncio.get_running_loop().sock_connect(sock, bed.address)
        assert refusal.value.__notes__[0].startswith(f"connect on transport {bed.transport}, ")


async def test_failing_factory(bed: Bed) -> None:
    """It ends its connection only, as CPython's own Proactor does not: gh-156365."""
    loop = asyncio.get_running_loop()
    failures = [ZeroDivisionError()]

    def factory() -> asyncio.Protocol:
        if failures:
            raise failures.pop()
        reader = asyncio.StreamReader()
        return asyncio.StreamReaderProtocol(reader, echo)

    async with await loop.create_server(factory, sock=listen(bed)):
        with await dial(bed) as bad, contextlib.suppress(ConnectionError):
            assert await loop.sock_recv(bad, 1) == b""
        with await dial(bed) as good:
            await loop.sock_sendall(good, b"hello")
            assert await loop.sock_recv(good, 5) == b"hello"
    [context] = bed.reported
    bed.reported.clear()
    assert type(context["exception"]) is ZeroDivisionError


async def test_failing_tls(bed: Bed) -> None:
    loop = asyncio.get_running_loop()
    serving, dialling = tls_contexts("TLS 1.3")
    async with await asyncio.start_server(echo, sock=listen(bed), ssl=serving):
        with await dial(bed) as bad:
            await loop.sock_sendall(bad, b"this is not TLS\r\n")
            with contextlib.suppress(ConnectionError):
                while await loop.sock_recv(bad, 100):
                    pass
        reader, writer = await asyncio.open_connection(sock=await dial(bed), ssl=dialling, server_hostname="")
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


async def test_start_tls(bed: Bed) -> None:
    serving, dialling = tls_contexts("TLS 1.3")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"start\n")
        await writer.start_tls(serving)
        writer.write(str(writer.get_extra_info("sockname")).encode())
        writer.close()

    async with await asyncio.start_server(serve, sock=listen(bed)) as server:
        reader, writer = await asyncio.open_connection(sock=await dial(bed))
        assert await reader.readline() == b"start\n"
        await writer.start_tls(dialling, server_hostname="")
        assert await reader.read() == str(server.sockets[0].getsockname()).encode()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("make", [socket.socket, hvsock.HyperVSocket])
async def test_other_sockets(bed: Bed, make: type[socket.socket]) -> None:
    """What has other addresses than Hyper-V's is the loop's own business."""
    loop = asyncio.get_running_loop()
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        address: Any = server.sockets[0].getsockname()
        with make(socket.AF_INET) as client:
            client.setblocking(False)
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, b"hello")
            assert await loop.sock_recv(client, 5) == b"hello"
    with socket.create_server(("127.0.0.1", 0)) as listening, make(socket.AF_INET) as client:
        listening.setblocking(False)
        client.setblocking(False)
        accepting = asyncio.create_task(loop.sock_accept(listening))
        await loop.sock_connect(client, listening.getsockname())
        async with asyncio.timeout(LIMIT):
            (await accepting)[0].close()
