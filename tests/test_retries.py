"""`connections`, blocking and in asyncio: a client that outlives its service."""

from __future__ import annotations

import asyncio
import errno
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import utils

import hvsock
from hvsock import _retries, aio
from hvsock.vms import VMLookupError

#: The breaks after attempts that all fail, and with connections that end at once.
BREAKS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.0, 5.0, 5.0]


class Clock:
    """The time, which passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_retries, "time", clock)
    return clock


def refused() -> OSError:
    return ConnectionRefusedError(errno.ECONNREFUSED, "refused")


def outcomes(*results: Any) -> Callable[[], Any]:
    """Return a function that returns or raises these, one a call."""
    left = iter(results)

    def connect() -> Any:
        result = next(left)
        if isinstance(result, BaseException):
            raise result
        return result

    return connect


def blocking(connect: Callable[[], Any], **options: Any) -> Iterator[Any]:
    return hvsock.connections(connect, **options)


def awaited(connect: Callable[[], Any], **options: Any) -> Iterator[Any]:
    """Iterate over `aio.connections`, whose breaks the loop sleeps no longer than it takes to tell them."""

    async def connect_soon() -> Any:
        return connect()

    connections = aio.connections(connect_soon, **options)
    with asyncio.Runner() as runner:
        while True:
            yield runner.run(anext(connections))  # type: ignore[arg-type]


@pytest.fixture(params=[blocking, awaited])
def connections(request: pytest.FixtureRequest, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param is awaited:
        sleep = asyncio.sleep

        async def pass_time(seconds: float) -> None:
            clock.sleep(seconds)
            await sleep(0)

        monkeypatch.setattr(asyncio, "sleep", pass_time)
    return request.param


def test_breaks_grow_while_attempts_fail(connections: Any, clock: Clock) -> None:
    attempts = connections(outcomes(*[refused() for _ in BREAKS], "made"))
    assert next(attempts) == "made"
    assert clock.slept == BREAKS


def test_breaks_grow_while_connections_end_at_once(connections: Any, clock: Clock) -> None:
    attempts = connections(itertools.count().__next__)
    assert list(itertools.islice(attempts, len(BREAKS) + 1)) == list(range(len(BREAKS) + 1))
    assert clock.slept == BREAKS


def test_breaks_begin_anew_after_a_connection_that_lasted(connections: Any, clock: Clock) -> None:
    attempts = connections(outcomes(refused(), refused(), "one", refused(), "two"))
    assert next(attempts) == "one"
    clock.now += 5.0
    assert next(attempts) == "two"
    assert clock.slept == [0.01, 0.02, 0.01, 0.02]


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), VMLookupError("no VM"), EOFError()])
def test_errors_that_pass_after_a_connection_only(connections: Any, clock: Clock, error: Exception) -> None:
    with pytest.raises(type(error)):
        next(connections(outcomes(error)))
    attempts = connections(outcomes("one", error, "two"))
    assert [next(attempts), next(attempts)] == ["one", "two"]
    assert clock.slept == [0.01, 0.02]


def test_other_errors_are_raised(connections: Any) -> None:
    attempts = connections(outcomes("one", ValueError("address")))
    next(attempts)
    with pytest.raises(ValueError, match=r"^address$"):
        next(attempts)


def test_retry_for(connections: Any, clock: Clock) -> None:
    """It counts from the loss of each connection."""
    attempts = connections(outcomes(refused(), "one", *[refused() for _ in range(7)]), retry_for=1.0)
    assert next(attempts) == "one"
    clock.now += 100.0
    with pytest.raises(ConnectionRefusedError):
        next(attempts)
    assert clock.slept == [0.01, *BREAKS[:6]]


@pytest.mark.parametrize("retry_for", [-1.0, math.nan])
def test_bad_retry_for(connections: Any, retry_for: float) -> None:
    with pytest.raises(ValueError, match="retry_for must be a number of seconds, at least 0, not"):
        next(connections(outcomes("one"), retry_for=retry_for))


def test_a_service_that_comes_back(transport: str) -> None:
    """For real: each connection is closed by the service, which is away in between."""
    address = ("loopback", utils.new_service())
    made: list[Any] = []

    def connect() -> hvsock.HyperVSocket:
        if len(made) % 2:
            made.append(None)
        else:
            made.append(hvsock.create_server(address, transport=transport))
        try:
            return hvsock.create_connection(address, 10, transport=transport)
        finally:
            if made[-1] is not None:
                made[-1].close()

    for number, sock in enumerate(hvsock.connections(connect)):
        sock.close()
        if number == 2:
            break
    assert [server is None for server in made] == [False, True, False, True, False]
