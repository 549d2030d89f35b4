"""What the libraries' modules share.

Each client makes the same checks, by `check` or `acheck`, and prints a line for each that passed:

* ``requests``: 100 requests of up to 1,000 bytes come back as they were;
* ``10 MB``: one of 10 MiB does;
* ``late``: a request that takes `SLOW` seconds ends after `PATIENCE`, by the library's timeout or by cancelling it;
* ``peer VM-ID``: which VM the client is in, as the server's application sees it; ``peer None`` where it does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from children import say
from utils import MIB, TICK, random_bytes

from hvsock import aio

T = TypeVar("T")

REQUESTS = 100
BIG = random_bytes(10 * MIB)
#: Seconds that the server takes to answer the request that is too late, and that the client waits for it.
SLOW = 60 * TICK
PATIENCE = 4 * TICK
#: Seconds that a connect may take.
CONNECT = 200 * TICK


def ready() -> None:
    """Tell the test that the server listens."""
    say("ready")


def vm_of(address: Any) -> str:
    """Return the VM's id of an address as an application gets it from its library: a pair, or `HyperVAddress`."""
    return str(address[0])


def run(main: Coroutine[Any, Any, T], how: str) -> T:
    """Run a coroutine on asyncio's event loop, or on uvloop's."""
    if how == "uvloop":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    return asyncio.run(main)


def run_with_sockets(main: Coroutine[Any, Any, T], how: str) -> T:
    """Run a coroutine on the same loops, whose own functions take a `HyperVSocket`."""
    if how == "uvloop":
        import uvloop

        base = uvloop.Loop
    else:
        base = None
    with asyncio.Runner(loop_factory=lambda: aio.new_event_loop(base)) as runner:
        return runner.run(main)


async def forever() -> None:
    """Serve until the test ends the process."""
    await asyncio.Event().wait()


def bodies() -> list[bytes]:
    """Return what the requests send."""
    return [BIG[size : 2 * size] for size in range(1, 10 * REQUESTS, 10)]


def check(
    echo: Callable[[bytes], bytes],
    who: Callable[[], str | None],
    late: Callable[[], object],
    error: type[BaseException] | tuple[type[BaseException], ...] = TimeoutError,
) -> None:
    """Make the checks with blocking calls; `late` must raise `error`."""
    for body in bodies():
        assert echo(body) == body
    say("requests")
    assert echo(BIG) == BIG
    say("10 MB")
    peer = who()
    began = time.monotonic()
    try:
        late()
    except error:
        assert time.monotonic() - began < SLOW, "the call has waited for the answer"
        say("late")
    else:
        raise AssertionError("the answer came in time")
    say("peer", peer)


async def acheck(
    echo: Callable[[bytes], Awaitable[bytes]],
    who: Callable[[], Awaitable[str | None]],
    late: Callable[[], Awaitable[object]],
    error: type[BaseException] | tuple[type[BaseException], ...] = TimeoutError,
    limit: Callable[[float], AbstractAsyncContextManager[Any]] = asyncio.timeout,
) -> None:
    """Make the checks in a coroutine; `late` is cancelled by `limit`, which must raise `error`, unless it raises it."""
    for body in bodies():
        assert await echo(body) == body
    say("requests")
    assert await echo(BIG) == BIG
    say("10 MB")
    peer = await who()
    began = time.monotonic()
    try:
        async with limit(PATIENCE):
            await late()
    except error:
        assert time.monotonic() - began < SLOW, "the call has waited for the answer"
        say("late")
    else:
        raise AssertionError("the answer came in time")
    say("peer", peer)
