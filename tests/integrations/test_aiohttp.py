"""`hvsock.integrations.aiohttp`."""

from __future__ import annotations

import asyncio
import contextlib
import io
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import utils
from aio_loops import Bed
from certificates import tls_contexts

import hvsock
from integrations import servers
from integrations.services import BIG, Server

aiohttp = pytest.importorskip("aiohttp", reason="pip install 'hvsock[aiohttp]'")

VM = str(hvsock.HV_GUID_LOOPBACK)


@contextlib.asynccontextmanager
async def session(server: Server, bed: Bed, base_url: str = "http://agent") -> AsyncIterator[Any]:
    from hvsock.integrations.aiohttp import Connector

    connector = Connector(server.address, transport=bed.transport)
    async with aiohttp.ClientSession(base_url, connector=connector) as it:
        yield it
    await server.settle()


async def text(request: Any) -> str:
    async with request as answer:
        content: str = await answer.text()
        return content


async def test_requests(server: Server, bed: Bed) -> None:
    async with session(server, bed) as it:
        assert await text(it.get("/who")) == f"/who agent {VM}"
        async with it.post("/", data=io.BytesIO(BIG)) as answer:
            assert await answer.read() == BIG
        assert server.connections == 1
        answers = await asyncio.gather(*(text(it.get(f"/{number}")) for number in range(20)))
        assert answers == [f"/{number} agent {VM}" for number in range(20)]


async def test_timeout(server: Server, bed: Bed) -> None:
    async with session(server, bed) as it:
        with utils.takes(utils.TICK), pytest.raises(TimeoutError):
            await text(it.get("/slow", timeout=aiohttp.ClientTimeout(total=utils.TICK)))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(utils.TICK):
                await text(it.get("/slow"))
        assert await text(it.get("/who")) == f"/who agent {VM}"


async def test_connect_fails(bed: Bed) -> None:
    from hvsock.integrations.aiohttp import Connector

    async with aiohttp.ClientSession(connector=Connector(bed.address, transport=bed.transport)) as it:
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await it.get("http://agent/")
    assert isinstance(caught.value.os_error, OSError)


async def test_connect_takes_too_long(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp has its own error for the timeout."""
    from hvsock import aio
    from hvsock.integrations.aiohttp import Connector

    async def create_connection(*_: object, **options: object) -> None:
        assert options["timeout"] == utils.TICK
        raise TimeoutError("no answer in time")

    monkeypatch.setattr(aio, "create_connection", create_connection)
    async with aiohttp.ClientSession(connector=Connector(bed.address, transport=bed.transport)) as it:
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await it.get("http://agent/", timeout=aiohttp.ClientTimeout(sock_connect=utils.TICK))


async def test_tls(secure: tuple[Server, ssl.SSLContext], bed: Bed) -> None:
    async with session(secure[0], bed, "https://agent") as it:
        assert await text(it.get("/who", ssl=secure[1])) == f"/who agent {VM}"
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await text(it.get("/who"))
    await asyncio.sleep(5 * utils.TICK)  # aiohttp's sessions do not wait for the end of TLS


async def test_a_site_with_tls(bed: Bed) -> None:
    from aiohttp import web

    from hvsock.integrations.aiohttp import Connector, Site

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"{request.scheme} {request.remote}")

    for_server, for_client = tls_contexts("TLS 1.3")
    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = Site(runner, bed.address, transport=bed.transport, ssl=for_server)
    await site.start()
    assert site.name == str(hvsock.as_address(bed.address))
    async with aiohttp.ClientSession(connector=Connector(bed.address, transport=bed.transport)) as it:
        assert await text(it.get("https://agent/", ssl=for_client)) == f"https {VM}"
    await asyncio.sleep(5 * utils.TICK)  # the same
    await runner.cleanup()
    utils.listen(bed.transport, bed.address).close()  # the address is free again


def test_serve(transport: str, loop: str) -> None:
    servers.check(servers.aiohttp, transport, loop)
