"""`hvsock.integrations.hypercorn`."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import utils
from aio_loops import Bed
from certificates import own_certificate

import hvsock
from integrations import servers

hypercorn = pytest.importorskip("hypercorn", reason="pip install 'hvsock[hypercorn]'")


VM = str(hvsock.HV_GUID_LOOPBACK)


def test_serve(transport: str, loop: str) -> None:
    servers.check(servers.hypercorn, transport, loop)


@contextlib.asynccontextmanager
async def serving(
    bed: Bed, app: Any = servers.asgi_app, client_tls: ssl.SSLContext | None = None, **settings: Any
) -> AsyncIterator[None]:
    from hvsock.integrations.hypercorn import serve_in_loop

    config = hypercorn.Config.from_mapping(loglevel="ERROR", **settings)
    task = asyncio.create_task(serve_in_loop(app, bed.address, config=config, transport=bed.transport))
    while True:
        try:
            _, writer = await bed.open_connection(ssl=client_tls)
        except OSError:
            await asyncio.sleep(utils.TICK / 10)
        else:
            break
    writer.close()
    await writer.wait_closed()
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def ask(bed: Bed, path: bytes = b"/who", **kwargs: Any) -> list[bytes]:
    """Return the first and the last line of an answer."""
    reader, writer = await bed.open_connection(**kwargs)
    writer.write(b"GET %s HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n" % path)
    answer = (await reader.read()).splitlines()
    writer.close()
    await writer.wait_closed()
    return [answer[0].strip(), answer[-1]]


async def test_in_a_loop(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(bed):
        status, client = await ask(bed)
        assert status == b"HTTP/1.1 200"
        assert client.startswith(VM.encode() + b" ")
    assert capsys.readouterr().out == "shut down\n"


async def test_wsgi(bed: Bed) -> None:
    async with serving(bed, servers.wsgi_app):
        assert await ask(bed) == [b"HTTP/1.1 200", f"{VM} None".encode()]


async def test_tls(bed: Bed) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with serving(bed, client_tls=context, certfile=str(own_certificate()), keyfile=str(own_certificate())):
        status, _ = await ask(bed, ssl=context)
        assert status == b"HTTP/1.1 200"


async def test_websockets(bed: Bed) -> None:
    pytest.importorskip("websockets", reason="pip install 'hvsock[websockets]'")
    from hvsock.integrations.websockets import connect

    async with serving(bed):
        async with connect("ws://agent/", bed.address, transport=bed.transport) as it:
            assert str(await it.recv()).startswith(f"{VM} ")


async def test_requests_under_way_are_answered(bed: Bed) -> None:
    async with serving(bed, graceful_timeout=utils.LIMIT):
        answer = asyncio.create_task(ask(bed, b"/slow"))
        await asyncio.sleep(4 * utils.TICK)
    assert (await answer)[0] == b"HTTP/1.1 200"


async def test_the_address_is_in_use(bed: Bed) -> None:
    from hvsock.integrations.hypercorn import serve_in_loop

    with utils.listen(bed.transport, bed.address), pytest.raises((OSError, ExceptionGroup)):
        await serve_in_loop(servers.asgi_app, bed.address, transport=bed.transport)


def test_a_peer_that_has_gone() -> None:
    """hypercorn ends the connection, as where a socket says so."""
    from hvsock.integrations._pairs import presented

    class Writer:
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return default

    with pytest.raises(OSError, match="gone"):
        presented(Writer()).get_extra_info("socket").getpeername()  # type: ignore[arg-type]
