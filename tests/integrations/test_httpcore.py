"""`hvsock.integrations.httpcore`, by itself; most is tested through httpx."""

from __future__ import annotations

import asyncio

import pytest

from integrations.services import BIG, serving

httpcore = pytest.importorskip("httpcore", reason="pip install 'hvsock[httpx]'")


def test_a_pool(transport: str) -> None:
    from hvsock.integrations.httpcore import Backend

    with (
        serving(transport) as server,
        httpcore.ConnectionPool(network_backend=Backend(server.address, transport=transport)) as pool,
    ):
        assert pool.request("POST", "http://agent/", content=BIG).content == BIG
        answer = pool.request("GET", "http://agent/who")
        stream = answer.extensions["network_stream"]
        assert stream.get_extra_info("server_addr") == server.address
        assert stream.get_extra_info("client_addr") == stream.get_extra_info("socket").getsockname()
        assert stream.get_extra_info("ssl_object") is None
        assert stream.get_extra_info("nothing") is None


def test_an_asynchronous_pool(transport: str) -> None:
    from hvsock.integrations.httpcore import AsyncBackend

    async def main() -> None:
        backend = AsyncBackend(server.address, transport=transport)
        async with httpcore.AsyncConnectionPool(network_backend=backend, retries=1) as pool:
            assert (await pool.request("POST", "http://agent/", content=BIG)).content == BIG
            answer = await pool.request("GET", "http://agent/who")
            stream = answer.extensions["network_stream"]
            assert stream.get_extra_info("server_addr") == server.address
            assert stream.get_extra_info("ssl_object") is None

    with serving(transport) as server:
        asyncio.run(main())


def test_another_attempt(transport: str) -> None:
    """`retries` of httpcore waits by the backend's sleep()."""
    from hvsock.integrations.httpcore import AsyncBackend

    async def main() -> None:
        backend = AsyncBackend(server.address, transport=transport)
        async with httpcore.AsyncConnectionPool(network_backend=backend, retries=1) as pool:
            with pytest.raises(httpcore.ConnectError):
                await pool.request("GET", "http://agent/")

    with serving(transport) as server:
        pass
    asyncio.run(main())
