"""Durations in limited memory, and one message to an echo service and back."""

from __future__ import annotations

import random

import pytest
import utils
from command_line import service

import hvsock
from hvsock._cli.output import Failure
from hvsock._cli.timing import FITS, Bucket, Durations, Intervals, in_words, round_trip


def test_percentiles_are_nearest_rank() -> None:
    durations = Durations(1000 * n for n in range(100, 0, -1))
    assert durations.times() == {
        "count": 100,
        "min_us": 1.0,
        "mean_us": 50.5,
        "deviation_us": 28.9,
        "p50_us": 50.0,
        "p99_us": 99.0,
        "p999_us": 100.0,
        "max_us": 100.0,
    }
    assert set(Durations([7000]).times().values()) == {0.0, 1, 7.0}
    with pytest.raises(ValueError, match="no durations"):
        Durations().percentile(500)


def test_the_deviation_is_exact_however_long_the_durations_are() -> None:
    assert Durations([1, 3]).deviation() == 1.0
    assert Durations([10**17 + 1, 10**17 + 3]).deviation() == 1.0
    assert Durations([5]).times()["deviation_us"] == 0.0


def test_percentiles_are_nearly_exact() -> None:
    rng = random.Random(1)
    samples = [int(rng.lognormvariate(10, 2)) for _ in range(10_000)]
    durations = Durations(samples)
    ranked = sorted(samples)
    for permille in (1, 500, 990, 999, 1000):
        exact = ranked[-(-len(ranked) * permille // 1000) - 1]
        assert durations.percentile(permille) == pytest.approx(exact, rel=0.0005, abs=0.5)


def test_memory_is_limited() -> None:
    durations = Durations(range(1, 1 << 20))
    assert durations.count == (1 << 20) - 1
    assert len(durations._counts) < 1 << 15


def test_histogram() -> None:
    durations = Durations([8_000, 9_999, 10_000, 25_000])
    assert durations.histogram() == [
        Bucket(7_000, 10_000, 2),
        Bucket(10_000, 15_000, 1),
        Bucket(15_000, 20_000, 0),
        Bucket(20_000, 30_000, 1),
    ]
    assert Durations([0]).histogram() == [Bucket(0, 10, 1)]
    assert sum(bucket.count for bucket in Durations(range(1, 10**6, 7)).histogram()) == len(range(1, 10**6, 7))


@pytest.mark.parametrize(
    ("microseconds", "words"),
    [(0.04, "0.0 us"), (11.25, "11.2 us"), (999.9, "999.9 us"), (1500, "1.50 ms"), (2_500_000, "2.50 s")],
)
def test_durations_in_words(microseconds: float, words: str) -> None:
    assert in_words(microseconds) == words


def test_intervals() -> None:
    """The end of the last one is that of the measurement, which nothing is left to follow."""
    intervals = Intervals(1.0, 3.2, 100.0)
    assert intervals.left(100.25) == 0.75
    assert intervals.cut(100.5) is None
    assert intervals.cut(101.25) == (0.0, 1.25)
    assert intervals.cut(101.5) is None
    assert intervals.cut(102.0) == (1.25, 2.0)
    assert intervals.cut(103.1) is None
    assert intervals.rest(103.5) == (2.0, 3.5)


def test_intervals_that_were_missed_are_one() -> None:
    intervals = Intervals(1.0, 9.0, 0.0)
    assert intervals.cut(4.5) == (0.0, 4.5)
    assert intervals.left(4.5) == 0.5


def test_no_intervals() -> None:
    intervals = Intervals(None, 3.0, 0.0)
    assert intervals.left(2.0) == float("inf")
    assert intervals.cut(10.0) is None
    assert intervals.rest(10.0) is None


# A round trip


@pytest.mark.parametrize("size", [1, 64, FITS, FITS + 1, 3 << 20])
def test_a_round_trip(transport: str, size: int) -> None:
    """Above FITS both directions go on at the same time, or an echo of bytes would not take the rest."""
    message = utils.random_bytes(size)
    with service(transport) as address:
        to = hvsock.HyperVAddress.parse(address)
        with hvsock.create_connection(to, utils.LIMIT, transport=transport) as connection:
            for _ in range(3):
                assert round_trip(connection, message, utils.LIMIT) > 0


def talk(transport: str, serve: object, size: int, timeout: float = utils.LIMIT) -> int:
    with service(transport, serve) as address:  # type: ignore[arg-type]
        to = hvsock.HyperVAddress.parse(address)
        with hvsock.create_connection(to, utils.LIMIT, transport=transport) as connection:
            return round_trip(connection, utils.random_bytes(size), timeout)


@pytest.mark.parametrize("size", [64, FITS + 1])
@pytest.mark.parametrize(
    "answer",
    [b"\0\0\0\x02no", b"\0\0\0\x40" + bytes(64), b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"\0\0\0\0"],
)
def test_no_echo(served: str, size: int, answer: bytes) -> None:
    def serve(connection: hvsock.HyperVSocket) -> None:
        connection.sendall(answer)
        utils.receive_all(connection)

    with pytest.raises(Failure, match="such as hvsock echo"):
        talk(served, serve, size)


@pytest.mark.parametrize("size", [64, FITS + 1])
def test_a_silent_service_times_out(served: str, size: int) -> None:
    with pytest.raises(TimeoutError):
        talk(served, utils.receive_all, size, 2 * utils.TICK)


@pytest.mark.parametrize("size", [64, FITS + 1])
def test_a_service_that_hangs_up(served: str, size: int) -> None:
    def serve(connection: hvsock.HyperVSocket) -> None:
        connection.recv(1)
        connection.sendall(b"\0\0")

    with pytest.raises((EOFError, ConnectionError)):
        talk(served, serve, size)


def test_an_echo_of_messages_will_do(served: str) -> None:
    def serve(connection: hvsock.HyperVSocket) -> None:
        while True:
            try:
                connection.send_message(connection.recv_message())
            except EOFError:
                return

    for size in (1, FITS + 1, 1 << 20):
        assert talk(served, serve, size) > 0
