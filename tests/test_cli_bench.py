"""`hvsock bench`: what it measures and verifies."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import utils
from command_line import ended, failure, nowhere, on_terminal, plain, posix, run, service, start

import hvsock
from hvsock._cli import bench
from hvsock._cli.echo import echo

QUICK = ("--duration", "0.02")


def test_bench_as_json(transport: str) -> None:
    with service(transport) as address:
        result = run("bench", *QUICK, "--busy-poll", "20", "--json", "--transport", transport, address)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    report = json.loads(result.stdout)
    assert (report["address"], report["seconds"], report["busy_poll_us"]) == (address, 0.02, 20)
    assert 0 < report["connect"]["count"] <= 100
    assert [row["size"] for row in report["round_trip"]] == [1, 64, 4096, 65536]
    for row in report["round_trip"]:
        assert row["count"] > 0
        assert 0 < row["min_us"] <= row["p50_us"] <= row["p99_us"] <= row["p999_us"] <= row["max_us"]
    assert [row["size"] for row in report["throughput"]] == [65536, 1 << 20]
    for row in report["throughput"]:
        assert row["count"] > 0
        assert row["mib_per_second"] > 0


def test_bench_in_a_table(served: str) -> None:
    with service(served) as address:
        result = run("bench", *QUICK, "-s", "100", "-s", "3145728", "--transport", served, address)
    assert (result.exit_code, result.stderr) == (0, "")
    names, *rows = result.stdout.splitlines()
    assert names.split() == ["message", "p50", "p99", "p99.9", "max", "times"]
    cells = [re.split(r" {2,}", row.strip()) for row in rows]
    assert [row[:-1][:2] for row in cells[1:]] == [
        ["round trip", "100 B"],
        ["round trip", "3 MiB"],
        ["throughput", "64 KiB"],
        ["throughput", "1 MiB"],
    ]
    assert cells[0][0] == "connect"
    assert all(re.fullmatch(r"[\d,]+ MiB/s", row[2]) for row in cells[3:])
    assert len({len(row.rstrip()) for row in [names, *rows]}) == 1


def test_the_json_says_where_and_when(served: str) -> None:
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    with service(served) as address:
        report = json.loads(run("bench", *QUICK, "-s", "1", "--json", "--transport", served, address).stdout)
    assert before <= datetime.datetime.fromisoformat(report["date"]) <= datetime.datetime.now(datetime.UTC)
    assert (report["host"], report["platform"], report["cpus"]) == (
        platform.node(), platform.platform(), os.cpu_count(),
    )  # fmt: skip
    assert (report["hvsock"], report["transport"], report["complete"]) == (hvsock.__version__, served, True)
    assert (report["direction"], report["streams"]) == ("both", 1)


# one direction, several streams, intervals


class Sink:
    """A service that only reads; `bytes` is how much from all, after `together` clients are there."""

    def __init__(self, together: int) -> None:
        self.bytes = 0
        self._lock = threading.Lock()
        self._all_there = threading.Barrier(together)

    def __call__(self, connection: hvsock.HyperVSocket) -> None:
        self._all_there.wait(utils.LIMIT)
        while data := connection.recv(65536):
            with self._lock:
                self.bytes += len(data)


@pytest.mark.parametrize("parallel", [1, 3])
def test_only_sending(transport: str, parallel: int) -> None:
    sink = Sink(parallel)
    options = ("--direction", "send", "-P", str(parallel), "-s", "50000", "--json")
    with service(transport, sink) as address:
        result = run("bench", *QUICK, *options, "--transport", transport, address)
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["direction"], report["streams"]) == ("send", parallel)
    assert (report["connect"], report["round_trip"]) == (None, [])
    (row,) = report["throughput"]
    assert row["size"] == 50_000
    assert row["bytes"] == sink.bytes == 50_000 * row["count"]
    assert row["count"] >= parallel


def test_only_receiving(transport: str) -> None:
    def source(connection: hvsock.HyperVSocket) -> None:
        while True:
            connection.sendall(bytes(65536))

    with service(transport, source) as address:
        result = run("bench", *QUICK, "--direction", "receive", "--json", "--transport", transport, address)
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    (row,) = report["throughput"]  # one connection by default, since hvsock listen accepts one
    assert row["size"] == 65536
    assert row["bytes"] > 0


def test_a_source_that_ends_is_measured_until_then(served: str) -> None:
    with service(served, lambda connection: connection.sendall(bytes(100_000))) as address:
        options = ("--direction", "receive", "--duration", "600", "-s", "1000", "--json")
        report = json.loads(run("bench", *options, "--transport", served, address).stdout)
    assert [(row["bytes"], row["count"]) for row in report["throughput"]] == [(100_000, 100)]


def test_one_direction_in_a_table(served: str) -> None:
    with service(served, Sink(2)) as address:
        options = ("--direction", "send", "-P", "2")
        result = run("bench", *QUICK, *options, "--transport", served, address)
    rows = [re.split(r" {2,}", row)[:2] for row in result.stdout.splitlines()[1:]]
    assert rows == [["throughput, sent", "2 x 64 KiB"]]


@pytest.mark.parametrize("size", ["1", "4194304"])
def test_sending_to_a_service_that_sends_back(served: str, size: str) -> None:
    """Whether all of it has room on the way back or not."""
    options = ("--direction", "send", "-s", size, "-t", str(20 * utils.TICK))
    with service(served) as address:
        line = failure("bench", "--duration", "1e-9", *options, "--transport", served, address)
    assert line.startswith("the service sends something back; --direction send needs one that only reads")


def test_sending_to_a_service_that_does_not_end(served: str) -> None:
    def hold(connection: hvsock.HyperVSocket) -> None:
        utils.receive_all(connection)
        held.wait(utils.LIMIT)

    held = threading.Event()
    with service(served, hold) as address:
        options = ("--direction", "send", "-t", str(20 * utils.TICK))
        line = failure("bench", *QUICK, *options, "--transport", served, address)
        held.set()
    assert line == f"exchange with {address}: timed out"


def test_receiving_nothing(served: str) -> None:
    with service(served, lambda connection: None) as address:
        line = failure("bench", *QUICK, "--direction", "receive", "--transport", served, address)
    assert line == f"exchange with {address}: the service ended without sending anything"


def check_intervals(row: Mapping[str, Any], name: str) -> None:
    parts = row["intervals"]
    assert parts[0]["from_seconds"] == 0
    assert all(one["to_seconds"] == after["from_seconds"] for one, after in itertools.pairwise(parts))
    assert sum(part[name] for part in parts) == row[name]


def test_intervals(served: str) -> None:
    options = ("--duration", "0.1", "-i", "0.025", "-s", "64", "--transport", served)
    with service(served) as address:
        report = json.loads(run("bench", *options, "--json", address).stdout)
        lines = run("bench", *options, address).stdout.splitlines()
    check_intervals(report["round_trip"][0], "count")
    for row in report["throughput"]:
        check_intervals(row, "bytes")
        assert row["intervals"][-1]["to_seconds"] == pytest.approx(row["seconds"], abs=0.001)
    span = r" +\d+\.\d - +\d+\.\d s  "
    table = next(number for number, line in enumerate(lines) if line.split()[0] == "message")
    trips, streams = lines[: table - 1], []
    while trips and trips[-1].startswith("throughput"):
        streams.append(trips.pop())
    assert all(re.fullmatch(rf"round trip      64 B{span}p50 \S+ \S+, p99 \S+ \S+", line) for line in trips)
    assert all(re.fullmatch(rf"throughput  (  64 K|   1 M)iB{span}[\d,]+ MiB/s", line) for line in streams)
    assert trips
    assert len(streams) >= 2


# Ctrl-C


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Press Ctrl-C in the second measurement of round trips."""
    real = bench.Bench.round_trips

    def round_trips(it: bench.Bench, size: int) -> dict[str, Any]:
        if size == 64:
            signal.raise_signal(signal.SIGINT)
        return real(it, size)

    monkeypatch.setattr(bench.Bench, "round_trips", round_trips)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_prints_the_rows_that_there_are(served: str, interrupted: None) -> None:
    with service(served) as address:
        result = run("bench", *QUICK, "--transport", served, address)
        as_json = run("bench", *QUICK, "--json", "--transport", served, address)
    assert (result.exit_code, result.stderr) == (130, "")
    assert [line[:10] for line in result.stdout.splitlines()[1:]] == ["connect   ", "round trip"]
    report = json.loads(as_json.stdout)
    assert (as_json.exit_code, report["complete"]) == (130, False)
    assert [row["size"] for row in report["round_trip"]] == [1]
    assert report["throughput"] == []


def test_ctrl_c_before_the_first_row(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.Bench, "connect", lambda it: signal.raise_signal(signal.SIGINT))
    result = run("bench", "--transport", served, nowhere())
    assert (result.exit_code, result.output) == (130, "")


@posix
def test_ctrl_c_in_a_stream_on_a_terminal(local: str) -> None:
    """The progress is gone, and the terminal has the rows."""
    streaming, finished = threading.Event(), threading.Event()

    def echo_until_a_stream(connection: hvsock.HyperVSocket) -> None:
        while len(data := connection.recv(65536)) in range(1, 1000):
            connection.sendall(data)
        if data:
            streaming.set()
            finished.wait(utils.LIMIT)

    arguments = ("bench", *QUICK, "-s", "64", "-t", str(utils.LIMIT), "--transport", local)
    with (
        service(local, echo_until_a_stream) as address,
        on_terminal(*arguments, address) as (process, shown, leader),
    ):
        assert streaming.wait(utils.LIMIT)
        os.write(leader, b"\x03")
        text = shown()
        assert process.wait(utils.LIMIT) == 130
        finished.set()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")
    *_, names, connect, trips = plain(text).splitlines()
    assert [names.split()[0], connect.split()[0], trips.split()[:2]] == ["message", "connect", ["round", "trip"]]


@posix
def test_a_second_ctrl_c_ends_at_once(local: str) -> None:
    """Also where the first waits: stdout is a pipe that is full."""
    connected = threading.Event()

    def hold(connection: hvsock.HyperVSocket) -> None:
        connection.send_message(connection.recv_message())
        if connected.is_set():
            utils.receive_all(connection)
        connected.set()

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    with service(local, hold) as address:
        arguments = ("bench", "--duration", "1e-9", "--json", "--transport", local, address)
        with ended(start(*arguments, stdout=writer)) as process:
            os.close(writer)
            assert connected.wait(utils.LIMIT)
            end = time.monotonic() + utils.LIMIT
            while process.poll() is None and time.monotonic() < end:
                process.send_signal(signal.SIGINT)
                time.sleep(utils.TICK)
            assert process.poll() == -signal.SIGINT
    os.close(reader)


def test_throughput_is_not_of_the_connect(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, dial = time.perf_counter, bench.Bench._dial
    slept = [0]

    def dial_for_long(it: bench.Bench) -> hvsock.HyperVSocket:
        slept[0] += 1_000_000
        return dial(it)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + slept[0])
    monkeypatch.setattr(bench.Bench, "_dial", dial_for_long)
    with service(served) as address:
        report = json.loads(run("bench", *QUICK, "--json", "--transport", served, address).stdout)
    assert all(row["seconds"] < 1_000_000 for row in report["throughput"])


def test_nobody_listens(served: str) -> None:
    assert failure("bench", "--transport", served, nowhere()).startswith("connect to hvsock://loopback/")


@pytest.mark.parametrize("good", [0, 70_000])
def test_what_comes_back_changed_is_an_error(served: str, good: int) -> None:
    """Changed from the start, or in the stream."""

    def flip(connection: hvsock.HyperVSocket) -> None:
        total = 0
        while data := connection.recv(65536):
            total += len(data)
            connection.sendall(data if total < good else data[:-1] + bytes([data[-1] ^ 1]))

    with service(served, flip) as address:
        line = failure("bench", *QUICK, "-s", "64", "--transport", served, address)
    assert line == "the reply is not what was sent; the address must be that of an echo service, such as hvsock echo"


def test_what_does_not_come_back_is_an_error(served: str) -> None:
    def swallow(connection: hvsock.HyperVSocket) -> None:
        while len(data := connection.recv(65536)) in range(1, 1000):
            connection.sendall(data)
        utils.receive_all(connection)

    with service(served, swallow) as address:
        line = failure("bench", *QUICK, "-s", "64", "--transport", served, address)
    assert re.match(rf"exchange with {re.escape(address)}: ", line)


def test_a_service_that_breaks_in_the_stream(served: str) -> None:
    def leave(connection: hvsock.HyperVSocket) -> None:
        while data := connection.recv(1000):
            connection.sendall(data)
            if len(data) == 1000:
                return

    with service(served, leave) as address:
        line = failure("bench", *QUICK, "-s", "64", "--transport", served, address)
    assert re.match(rf"exchange with {re.escape(address)}: ", line)


@posix
def test_the_options_of_bench_on_a_terminal(local: str) -> None:
    options = ("--direction", "send", "-P", "2", "-i", "0.05", "--duration", "0.2", "-s", "65536")
    with (
        service(local, Sink(2)) as address,
        on_terminal("bench", *options, "--transport", local, address, columns=80) as (process, shown, _),
    ):
        lines = plain(shown()).splitlines()
        assert process.wait(utils.LIMIT) == 0
    assert all(re.fullmatch(r"throughput    64 KiB +\S+ - \S+ s  [\d,]+ MiB/s", line) for line in lines[:-2])
    assert len(lines) > 2
    assert re.match(r"throughput, sent +2 x 64 KiB +[\d,]+ MiB/s", lines[-1])


@posix
def test_bench_on_a_terminal(local: str, tmp_path: Path) -> None:
    """The progress is on stderr, so stdout can go to a file."""
    with (tmp_path / "out").open("wb") as out, service(local, echo) as address:
        arguments = ("bench", *QUICK, "-s", "64", "--json", "--transport", local, address)
        with on_terminal(*arguments, stdout=out) as (process, shown, _):
            text = shown()
            assert process.wait(utils.LIMIT) == 0
    assert "measuring" in plain(text)
    assert json.loads((tmp_path / "out").read_text())["round_trip"][0]["size"] == 64
