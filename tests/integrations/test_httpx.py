"""`hvsock.integrations.httpx`."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import utils
from aio_loops import Bed

import hvsock
from integrations.services import BIG, Server, serving

httpx = pytest.importorskip("httpx", reason="pip install 'hvsock[httpx]'")

VM = str(hvsock.HV_GUID_LOOPBACK)


def client(server: Server, transport: str, **kwargs: Any) -> Any:
    from hvsock.integrations.httpx import Transport

    return httpx.Client(transport=Transport(server.address, transport=transport, **kwargs), base_url="http://agent")


@contextlib.asynccontextmanager
async def async_client(server: Server, bed: Bed, **kwargs: Any) -> AsyncIterator[Any]:
    from hvsock.integrations.httpx import AsyncTransport

    carrier = AsyncTransport(server.address, transport=bed.transport, **kwargs)
    async with httpx.AsyncClient(transport=carrier, base_url="http://agent") as it:
        yield it
    await server.settle()


def test_requests(server: Server, transport: str) -> None:
    with client(server, transport) as it:
        assert it.get("/who").text == f"/who agent {VM}"
        assert it.post("/", content=BIG, timeout=utils.LIMIT).content == BIG
        with it.stream("POST", "/", content=BIG, timeout=utils.LIMIT) as answer:
            assert b"".join(answer.iter_raw()) == BIG
        assert server.connections == 1


def test_timeout(server: Server, transport: str) -> None:
    with client(server, transport) as it, utils.takes(utils.TICK), pytest.raises(httpx.ReadTimeout):
        it.get("/slow", timeout=utils.TICK)


def test_connect_fails(transport: str) -> None:
    with serving(transport) as server:
        pass
    with client(server, transport) as it, pytest.raises(httpx.ConnectError):
        it.get("/who")


def test_an_idle_connection_that_the_server_has_closed(server: Server, transport: str) -> None:
    with client(server, transport) as it:
        assert it.get("/close").text == "closing"
        time.sleep(2 * utils.TICK)
        assert it.get("/who").text == f"/who agent {VM}"
        assert server.connections == 2


def test_a_body_that_fails(server: Server, transport: str) -> None:
    """An error of the request itself is not httpcore's."""

    def body() -> Iterator[bytes]:
        yield b"a"
        raise KeyError("b")

    with client(server, transport) as it, pytest.raises(KeyError):
        it.post("/", content=body(), headers={"Content-Length": "2"})


def test_tls(secure: tuple[Server, ssl.SSLContext], transport: str) -> None:
    with client(secure[0], transport, ssl_context=secure[1]) as it:
        assert it.get("https://agent/who").text == f"/who agent {VM}"
        assert it.post("https://agent/", content=BIG, timeout=utils.LIMIT).content == BIG
    with client(secure[0], transport) as it, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        it.get("https://agent/who")


async def test_asynchronous_requests(server: Server, bed: Bed) -> None:
    async with async_client(server, bed) as it:
        assert (await it.get("/who")).text == f"/who agent {VM}"
        assert (await it.post("/", content=BIG, timeout=utils.LIMIT)).content == BIG
        async with it.stream("POST", "/", content=BIG, timeout=utils.LIMIT) as answer:
            assert b"".join([part async for part in answer.aiter_raw()]) == BIG
        assert server.connections == 1
        answers = await asyncio.gather(*(it.get(f"/{number}") for number in range(20)))
        assert [answer.text.split()[0] for answer in answers] == [f"/{number}" for number in range(20)]


async def test_asynchronous_timeout(server: Server, bed: Bed) -> None:
    async with async_client(server, bed) as it:
        with utils.takes(utils.TICK), pytest.raises(httpx.ReadTimeout):
            await it.get("/slow", timeout=utils.TICK)


async def test_cancelled(server: Server, bed: Bed) -> None:
    async with async_client(server, bed) as it:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(utils.TICK):
                await it.get("/slow")
        assert (await it.get("/who")).text == f"/who agent {VM}"


async def test_asynchronous_connect_fails(bed: Bed) -> None:
    from hvsock.integrations.httpx import AsyncTransport

    async with httpx.AsyncClient(transport=AsyncTransport(bed.address, transport=bed.transport)) as it:
        with pytest.raises(httpx.ConnectError):
            await it.get("http://agent/")


async def test_an_idle_asynchronous_connection_that_the_server_has_closed(server: Server, bed: Bed) -> None:
    async with async_client(server, bed) as it:
        assert (await it.get("/close")).text == "closing"
        await asyncio.sleep(2 * utils.TICK)
        assert (await it.get("/who")).text == f"/who agent {VM}"
        assert server.connections == 2


async def test_asynchronous_tls(secure: tuple[Server, ssl.SSLContext], bed: Bed) -> None:
    async with async_client(secure[0], bed, ssl_context=secure[1]) as it:
        assert (await it.get("https://agent/who")).text == f"/who agent {VM}"
        assert (await it.post("https://agent/", content=BIG, timeout=utils.LIMIT)).content == BIG
    async with async_client(secure[0], bed) as it:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await it.get("https://agent/who")
