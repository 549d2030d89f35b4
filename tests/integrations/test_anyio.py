"""`hvsock.integrations.anyio`, on every event loop that anyio has."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import utils
from certificates import tls_contexts
from utils import LIMIT, TICK

import hvsock

anyio: Any = pytest.importorskip("anyio", reason="pip install 'hvsock[anyio]'")

BIG = utils.random_bytes(utils.MIB)
LOOPS = ["asyncio", *(name for name in ("trio", "uvloop") if importlib.util.find_spec(name))]
Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine function on each loop."""

    def on_the_loop(main: Callable[[], Awaitable[None]]) -> None:
        if request.param == "trio":
            anyio.run(main, backend="trio")
        else:
            anyio.run(main, backend="asyncio", backend_options={"use_uvloop": request.param == "uvloop"})

    return on_the_loop


async def connected(transport: str) -> tuple[Any, Any]:
    from hvsock.integrations.anyio import Listener, connect

    async with Listener(utils.listen(transport)) as listener:
        client = await connect(listener.socket.getsockname(), timeout=LIMIT, transport=transport)
        return client, await listener.accept()


def test_serve(transport: str, run: Run) -> None:
    from hvsock.integrations.anyio import Listener, connect

    async def answer(stream: Any) -> None:
        received = bytearray()
        async for data in stream:
            received += data
        await stream.send(bytes(received))
        await stream.send(str(stream.extra(anyio.abc.SocketAttribute.remote_address).vm_id).encode())
        await stream.aclose()

    async def main() -> None:
        async with Listener(utils.listen(transport)) as listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, answer)
            for _ in range(2):
                address = listener.socket.getsockname()
                async with await connect(address, timeout=LIMIT, transport=transport) as stream:
                    assert stream.extra(anyio.abc.SocketAttribute.remote_address) == address
                    await stream.send(BIG)
                    await stream.send_eof()
                    received = b"".join([data async for data in stream])
                assert received == BIG + str(hvsock.HV_GUID_LOOPBACK).encode()
            group.cancel_scope.cancel()

    run(main)


def test_tls(transport: str, run: Run) -> None:
    from anyio.streams.tls import TLSStream

    server, client = tls_contexts("TLS 1.2, anonymous")

    async def main() -> None:
        one, other = await connected(transport)
        received = bytearray()

        async def receive() -> None:
            async with await TLSStream.wrap(other, server_side=True, ssl_context=server) as stream:
                while len(received) < len(BIG):
                    received.extend(await stream.receive())

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            async with await TLSStream.wrap(one, server_side=False, ssl_context=client) as stream:
                await stream.send(BIG)
        assert received == BIG

    run(main)


def test_cancelled_connect(local: str, run: Run) -> None:
    """It ends at once, with no thread, and its socket is closed."""
    from hvsock.integrations.anyio import connect

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            address = utils.full_listener(local, stack).getsockname()
            before = utils.handles()
            with utils.takes(TICK, LIMIT / 4), anyio.move_on_after(TICK) as scope:
                await connect(address, transport=local)
            assert scope.cancelled_caught
            assert utils.handles() == before
            assert threading.active_count() == 1

    run(main)


def test_timeout(local: str, run: Run) -> None:
    from hvsock.integrations.anyio import connect

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            address = utils.full_listener(local, stack).getsockname()
            with utils.takes(TICK, LIMIT / 4), pytest.raises(TimeoutError, match="timed out"):
                await connect(address, timeout=TICK, transport=local)

    run(main)


def test_cancelled_receive_loses_nothing(transport: str, run: Run) -> None:
    async def main() -> None:
        one, other = await connected(transport)
        async with one, other:
            with anyio.move_on_after(TICK) as scope:
                await one.receive()
            assert scope.cancelled_caught
            await other.send(b"hello")
            assert await one.receive(2) == b"he"
            assert await one.receive() == b"llo"

    run(main)


def test_a_peer_that_vanishes(transport: str, run: Run) -> None:
    """A send that waits for room ends, also where the peer has left something to read."""

    async def main() -> None:
        one, other = await connected(transport)
        await other.send(b"unread")

        async def send() -> None:
            with pytest.raises(anyio.BrokenResourceError):
                while True:
                    await one.send(BIG)

        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as group:
                group.start_soon(send)
                await anyio.wait_all_tasks_blocked()
                await other.aclose()
        await one.aclose()

    run(main)


def test_ends(transport: str, run: Run) -> None:
    """The end of the stream, a stream that this end has closed, and one that the peer has."""

    async def main() -> None:
        one, other = await connected(transport)
        await other.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await one.receive()

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await other.receive()

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await other.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await other.send(b"x")
        with pytest.raises(anyio.BrokenResourceError):
            while True:
                await one.send(BIG)
        await one.aclose()

    run(main)
