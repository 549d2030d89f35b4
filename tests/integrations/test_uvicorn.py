"""`hvsock.integrations.uvicorn`."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import utils
from aio_loops import Bed, eventually
from certificates import own_certificate

import hvsock
from integrations import servers

uvicorn = pytest.importorskip("uvicorn", reason="pip install 'hvsock[uvicorn]'")

VM = str(hvsock.HV_GUID_LOOPBACK)


def test_serve(transport: str, loop: str) -> None:
    servers.check(servers.uvicorn, transport, "uvloop" if loop == "uvloop" else "hvsock.aio:new_event_loop")


def test_without_an_adapter(transport: str) -> None:
    """Its own way to take a listening socket; the client's service is a number then."""
    servers.check(servers.uvicorn_itself, transport, number=True)


@contextlib.asynccontextmanager
async def serving(bed: Bed, **settings: Any) -> AsyncIterator[None]:
    from hvsock.integrations.uvicorn import Server

    config = uvicorn.Config(servers.asgi_app, log_config=None, **settings)
    server = Server(config, bed.address, transport=bed.transport)
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started and server.servers)
    yield
    server.should_exit = True
    await task


async def ask(bed: Bed, **kwargs: Any) -> list[bytes]:
    """Return the first and the last line of an answer."""
    reader, writer = await bed.open_connection(**kwargs)
    writer.write(b"GET /who HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
    answer = (await reader.read()).splitlines()
    writer.close()
    await writer.wait_closed()
    return [answer[0], answer[-1]]


async def test_in_a_loop(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(bed):
        status, client = await ask(bed)
        assert status == b"HTTP/1.1 200 OK"
        assert client.startswith(VM.encode() + b" ")
    assert capsys.readouterr().out == "shut down\n"


async def test_tls(bed: Bed) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with serving(bed, ssl_certfile=str(own_certificate())):
        status, _ = await ask(bed, ssl=context)
        assert status == b"HTTP/1.1 200 OK"


async def test_websockets(bed: Bed) -> None:
    pytest.importorskip("websockets", reason="pip install 'hvsock[websockets]'")
    from hvsock.integrations.websockets import connect

    async with serving(bed):
        async with connect("ws://agent/", bed.address, transport=bed.transport) as it:
            assert str(await it.recv()).startswith(f"{VM} ")


async def test_the_address_is_in_use(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether bind() or listen() says so, the application has ended by then, if it was started."""
    from hvsock.integrations.uvicorn import Server

    with utils.listen(bed.transport, bed.address):
        server = Server(uvicorn.Config(servers.asgi_app, log_config=None), bed.address, transport=bed.transport)
        with pytest.raises(OSError) as caught:
            await server.serve()
    assert caught.value.errno is not None
    assert capsys.readouterr().out in ("", "shut down\n")
