"""`hvsock bench`: what it measures and verifies."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import utils
from command_line import failure, nowhere, on_terminal, plain, posix, run, service

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
        total = 0
        while data := connection.recv(65536):
            total += len(data)
            if total < 66_000:
                connection.sendall(data)

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
def test_bench_on_a_terminal(local: str, tmp_path: Path) -> None:
    """The progress is on stderr, so stdout can go to a file."""
    with (tmp_path / "out").open("wb") as out, service(local, echo) as address:
        arguments = ("bench", *QUICK, "-s", "64", "--json", "--transport", local, address)
        with on_terminal(*arguments, stdout=out) as (process, shown, _):
            text = shown()
            assert process.wait(utils.LIMIT) == 0
    assert "measuring" in plain(text)
    assert json.loads((tmp_path / "out").read_text())["round_trip"][0]["size"] == 64
