"""`hvsock.integrations.websockets`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import utils
from aio_loops import Bed
from certificates import tls_contexts

import hvsock
from integrations import servers
from integrations.services import BIG

websockets = pytest.importorskip("websockets", minversion="17", reason="pip install 'hvsock[websockets]'")


async def echo(connection: Any) -> None:
    async for message in connection:
        await connection.send(message)


async def test_both_roles(bed: Bed) -> None:
    from hvsock.integrations.websockets import connect, serve

    async with await serve(echo, bed.address, transport=bed.transport, max_size=None) as server:
        async with connect("ws://agent/", bed.address, transport=bed.transport, max_size=None) as it:
            assert it.remote_address == hvsock.as_address(bed.address)
            assert it.response is not None
            assert it.response.headers["Sec-WebSocket-Extensions"].startswith("permessage-deflate")
            for body in ("a", BIG):
                await it.send(body)
                assert await it.recv() == body
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(utils.TICK):
                    await it.recv()
            await (await it.ping())
            (there,) = server.connections
            assert there.remote_address.vm_id == hvsock.HV_GUID_LOOPBACK


async def test_options(bed: Bed) -> None:
    """Those that go to the protocol and to the connection reach them."""
    from hvsock.integrations.websockets import connect, serve

    def select(connection: Any, offered: Any) -> str:
        assert isinstance(connection, websockets.asyncio.server.ServerConnection)
        return str(min(offered))

    options = {"subprotocols": ["a", "b"], "select_subprotocol": select, "compression": None, "ping_interval": None}
    async with await serve(echo, bed.address, transport=bed.transport, max_size=10, **options) as server:
        async with connect("ws://agent/", bed.address, transport=bed.transport, subprotocols=["b", "a"]) as it:
            assert it.subprotocol == "a"
            assert it.response is not None
            assert "Sec-WebSocket-Extensions" not in it.response.headers
            (there,) = server.connections
            assert there.ping_interval is None
            await it.send(bytes(11))
            with pytest.raises(websockets.exceptions.ConnectionClosedError, match="1009"):
                await it.recv()


async def test_connecting_again(bed: Bed) -> None:
    from hvsock.integrations.websockets import connect, serve

    async def once(connection: Any) -> None:
        await connection.send(f"hello {len(seen)}")

    seen: list[str | bytes] = []
    async with await serve(once, bed.address, transport=bed.transport):
        async for connection in connect("ws://agent/", bed.address, transport=bed.transport):
            seen.append(await connection.recv())
            if len(seen) == 3:
                break
        await connection.close()
    assert seen == ["hello 0", "hello 1", "hello 2"]


async def test_connect_fails(bed: Bed) -> None:
    from hvsock.integrations.websockets import connect

    with pytest.raises(OSError) as caught:
        await connect("ws://agent/", bed.address, transport=bed.transport)
    assert caught.value.errno is not None


async def test_tls(bed: Bed) -> None:
    from hvsock.integrations.websockets import connect, serve

    for_server, for_client = tls_contexts("TLS 1.3")
    async with await serve(echo, bed.address, transport=bed.transport, ssl=for_server):
        async with connect("wss://agent/", bed.address, transport=bed.transport, ssl=for_client) as it:
            await it.send("a")
            assert await it.recv() == "a"


def test_ctrl_c(transport: str, loop: str) -> None:
    servers.check_websockets(servers.websockets, transport, loop)


def test_without_an_adapter(transport: str) -> None:
    """Its own way to take a listening socket."""
    servers.check_websockets(servers.websockets_itself, transport)


async def test_an_unknown_argument(bed: Bed) -> None:
    from hvsock.integrations.websockets import serve

    with pytest.raises(TypeError, match="max_sise"):
        await serve(echo, bed.address, transport=bed.transport, max_sise=10)
