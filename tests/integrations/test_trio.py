"""`hvsock.integrations.trio`."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import utils
from certificates import tls_contexts
from utils import LIMIT, TICK

import hvsock

trio: Any = pytest.importorskip("trio", reason="pip install 'hvsock[trio]'")
testing: Any = pytest.importorskip("trio.testing")
if utils.WINDOWS:
    pytest.skip("trio over AF_HYPERV is not tested", allow_module_level=True)

BIG = utils.random_bytes(utils.MIB)


async def connected(transport: str) -> tuple[Any, Any]:
    from hvsock.integrations.trio import Listener, connect

    async with Listener(utils.listen(transport)) as listener:
        client = await connect(listener.socket.getsockname(), timeout=LIMIT, transport=transport)
        return client, await listener.accept()


async def clogged(transport: str) -> tuple[Any, Any]:
    """Return a pair whose both ends have no room left."""
    pair = await connected(transport)
    for stream in pair:
        utils.fill(stream.socket)
    return pair


def test_it_is_a_stream_of_trio(transport: str) -> None:
    """By trio's own checks of what a stream has to do, with cancelled calls, closed and broken ones among them."""

    async def main() -> None:
        with trio.fail_after(LIMIT):
            await testing.check_half_closeable_stream(lambda: connected(transport), lambda: clogged(transport))

    trio.run(main)


def test_serve_listeners(transport: str) -> None:
    from hvsock.integrations.trio import Listener, connect

    async def answer(stream: Any) -> None:
        received = bytearray()
        async for data in stream:
            received += data
        await stream.send_all(received)
        await stream.send_all(str(stream.socket.getpeername().vm_id).encode())
        await stream.aclose()

    async def main() -> None:
        listener = Listener(utils.listen(transport))
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, answer, [listener])
            for _ in range(2):
                address = listener.socket.getsockname()
                async with await connect(address, timeout=LIMIT, transport=transport) as stream:
                    await stream.send_all(BIG)
                    await stream.send_eof()
                    received = b"".join([data async for data in stream])
                assert received == BIG + str(hvsock.HV_GUID_LOOPBACK).encode()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_tls(transport: str) -> None:
    server, client = tls_contexts("TLS 1.2, anonymous")

    async def main() -> None:
        one, other = await connected(transport)
        dialled, accepted = trio.SSLStream(one, client), trio.SSLStream(other, server, server_side=True)
        received = bytearray()
        async with dialled, accepted, trio.open_nursery() as nursery:
            nursery.start_soon(dialled.send_all, BIG)
            while len(received) < len(BIG):
                received += await accepted.receive_some()
        assert received == BIG

    trio.run(main)


def test_cancelled_connect(local: str) -> None:
    """It ends at once, with no thread, and its socket is closed."""
    from hvsock.integrations.trio import connect

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            address = utils.full_listener(local, stack).getsockname()
            before = utils.handles()
            with utils.takes(TICK, LIMIT / 4), trio.move_on_after(TICK) as scope:
                await connect(address, transport=local)
            assert scope.cancelled_caught
            assert utils.handles() == before
            assert threading.active_count() == 1

    trio.run(main)


def test_timeout(local: str) -> None:
    from hvsock.integrations.trio import connect

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            address = utils.full_listener(local, stack).getsockname()
            before = utils.handles()
            with utils.takes(TICK, LIMIT / 4), pytest.raises(TimeoutError, match="timed out") as caught:
                await connect(address, timeout=TICK, transport=local)
            assert caught.value.__notes__ == [f"connect, peer {address}"]
            assert utils.handles() == before

    trio.run(main)


def test_no_listener(transport: str) -> None:
    from hvsock.integrations.trio import connect

    async def main() -> None:
        address = hvsock.as_address(("loopback", utils.new_service()))
        before = utils.handles()
        with pytest.raises(ConnectionError) as caught:
            await connect(address, timeout=LIMIT, transport=transport)
        assert caught.value.__notes__[0].startswith(f"connect on transport {transport}, ")
        assert utils.handles() == before

    trio.run(main)


def test_closed_listener(transport: str) -> None:
    """The task that waits for a client, and a later one, are told."""
    from hvsock.integrations.trio import Listener

    async def main() -> None:
        listener = Listener(utils.listen(transport))

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await testing.wait_all_tasks_blocked()
            await listener.aclose()
        await accept()

    trio.run(main)
