"""`hvsock.integrations.redis`; tests/libraries runs both its clients against a server that answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import utils
from utils import LIMIT, TICK, Task

import hvsock

redis: Any = pytest.importorskip("redis", reason="pip install 'hvsock[redis]'")


@pytest.fixture
def address(served: str, monkeypatch: pytest.MonkeyPatch) -> hvsock.HyperVAddress:
    monkeypatch.setenv("HVSOCK_TRANSPORT", served)
    return hvsock.as_address(("loopback", utils.new_service()))


def test_no_server(address: hvsock.HyperVAddress) -> None:
    """The error is redis-py's own, and has the address."""
    from hvsock.integrations.redis import async_client, client

    with client(address, retry=None) as blocking, pytest.raises(redis.ConnectionError, match=str(address)):
        blocking.ping()

    async def main() -> None:
        async with async_client(address, retry=None) as it:
            with pytest.raises(redis.ConnectionError, match=str(address)):
                await it.ping()

    asyncio.run(main())


def test_a_silent_server(address: hvsock.HyperVAddress) -> None:
    """`socket_timeout` is that of an answer."""
    from hvsock.integrations.redis import async_client, client

    with hvsock.create_server(address):
        with client(address, retry=None, socket_timeout=TICK) as blocking:
            with utils.takes(TICK), pytest.raises(redis.TimeoutError):
                blocking.ping()

        async def main() -> None:
            async with async_client(address, retry=None, socket_timeout=TICK) as it:
                with utils.takes(TICK), pytest.raises(redis.TimeoutError):
                    await it.ping()

        asyncio.run(main())


def test_it_connects_again(address: hvsock.HyperVAddress) -> None:
    """A pool closes what its server has closed, and takes another connection; its options are redis-py's."""
    from hvsock.integrations.redis import client

    def serve(listener: hvsock.HyperVSocket) -> list[bytes]:
        seen = []
        for _ in range(2):
            sock, _ = listener.accept()
            sock.settimeout(LIMIT)
            with sock:
                seen.append(sock.recv(1 << 16))
                sock.sendall(b"+PONG\r\n")
        return seen

    with hvsock.create_server(address) as listener, client(address, protocol=2, driver_info=None) as it:
        listener.settimeout(LIMIT)
        serving = Task(serve, listener)
        assert it.ping() is True
        assert it.ping() is True
        assert serving.result() == [b"*1\r\n$4\r\nPING\r\n"] * 2
