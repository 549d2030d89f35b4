"""`hvsock ping`: what it counts, shows and returns; losses; Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import types
from typing import Any

import pytest
import utils
from command_line import (
    NASTY,
    ended,
    failure,
    nowhere,
    on_terminal,
    plain,
    posix,
    run,
    service,
    start,
)  # fmt: skip

import hvsock
from hvsock._cli import ping
from hvsock._cli.timing import Durations, round_trip

REPLY = r"64 bytes from hvsock://loopback/\d+: seq=(\d+) time=[\d.]+ (us|ms|s)"


def test_ping(transport: str) -> None:
    with service(transport) as address:
        result = run("ping", "-c", "3", "-i", "0.01", "--transport", transport, address)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    lines = result.stdout.splitlines()
    for number, line in enumerate(lines[:3], 1):
        match = re.fullmatch(REPLY, line)
        assert match
        assert int(match[1]) == number
    assert lines[3] == f"--- {address}: 64 bytes ---"
    assert re.fullmatch(r"3 sent, 3 came back, 0 % lost in \d+\.\d\d s", lines[4])
    assert re.fullmatch(r"connect     p50 \S+ \S+, max \S+ \S+, 1 times", lines[5])
    assert re.fullmatch(r"round trip  min \S+ \S+, p50 \S+ \S+, p99 \S+ \S+, max \S+ \S+", lines[6])
    assert re.fullmatch(r"            average \S+ \S+, deviation \S+ \S+", lines[7])
    bars = [re.fullmatch(r" *\S+ \S+ - +\S+ \S+  (#+) +([\d,]+)", line) for line in lines[8:] if line.strip() != "..."]
    assert all(bars)
    assert sum(int(bar[2]) for bar in bars if bar) == 3
    assert max(len(bar[1]) for bar in bars if bar) == ping.BAR
    assert result.stdout.isascii()


def test_the_histogram_has_a_tail_and_no_long_gaps() -> None:
    histogram = Durations([10_000] * 980 + [15_000] * 10 + [900_000] * 5 + [5_500_000] * 5).histogram()
    assert list(ping.draw(histogram)) == [
        f"10.0 us - 15.0 us  {'#' * 40}  980",
        f"15.0 us - 20.0 us  #{' ' * 39}  10",
        f"20.0 us - 7.00 ms  #{' ' * 39}  10",
    ]
    assert list(ping.draw(Durations([10_000, 10_000, 90_000]).histogram())) == [
        f" 10.0 us -  15.0 us  {'#' * 40}  2",
        "     ...",
        f" 70.0 us - 100.0 us  {'#' * 20}{' ' * 20}  1",
    ]
    assert len(list(ping.draw(Durations([7]).histogram()))) == 1


def test_quiet(served: str) -> None:
    for options in (("--quiet", "-i", "0.01"), ("-i", "0")):
        with service(served) as address:
            result = run("ping", "-c", "20", *options, "--transport", served, address)
        assert result.exit_code == 0
        assert result.stdout.startswith(f"--- {address}: 64 bytes ---\n20 sent, 20 came back, 0 % lost")


def test_ping_as_json(served: str) -> None:
    with service(served) as address:
        result = run("ping", "-c", "20", "-i", "0", "-s", "100000", "--json", "--transport", served, address)
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["address"] == address
    assert (report["size"], report["sent"], report["received"], report["lost_percent"]) == (100_000, 20, 20, 0.0)
    assert report["connect"]["count"] == 1
    times = report["round_trip"]
    assert times["count"] == 20
    assert 0 < times["min_us"] <= times["p50_us"] <= times["p99_us"] <= times["p999_us"] <= times["max_us"]
    assert sum(bucket["count"] for bucket in report["histogram"]) == 20
    assert all(bucket["from_us"] < bucket["to_us"] for bucket in report["histogram"])


def test_the_average_and_the_deviation(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([10_000, 20_000, 60_000])
    monkeypatch.setattr(ping, "round_trip", lambda *args: next(durations))
    with service(served) as address:
        result = run("ping", "-c", "3", "-i", "0", "--transport", served, address)
    assert "            average 30.0 us, deviation 21.6 us\n" in result.stdout


def test_json_lines(served: str) -> None:
    before = time.time()
    with service(served) as address:
        result = run("ping", "-c", "3", "-i", "0", "--json-lines", "--transport", served, address)
        quiet = run("ping", "-c", "3", "-i", "0", "--quiet", "--json-lines", "--transport", served, address)
    assert (result.exit_code, result.stderr) == (0, "")
    *replies, statistics = map(json.loads, result.stdout.splitlines())
    assert [(reply["type"], reply["seq"]) for reply in replies] == [("reply", 1), ("reply", 2), ("reply", 3)]
    assert before <= replies[0]["time"] <= replies[1]["time"] <= replies[2]["time"] <= time.time()
    assert max(reply["round_trip_us"] for reply in replies) == statistics["round_trip"]["max_us"]
    assert (statistics["type"], statistics["sent"], statistics["received"]) == ("statistics", 3, 3)
    (line,) = quiet.stdout.splitlines()
    assert json.loads(line)["type"] == "statistics"


def test_a_loss_in_a_json_line(served: str) -> None:
    result = run("ping", "-c", "1", "--json-lines", "--transport", served, nowhere())
    loss, statistics = map(json.loads, result.stdout.splitlines())
    assert (result.exit_code, loss["type"], loss["seq"]) == (1, "loss", 1)
    assert re.match(r"connect to hvsock://loopback/\d+: .*nothing listens", loss["reason"])
    assert statistics["lost_percent"] == 100.0


def test_timestamps(served: str) -> None:
    before = time.time()
    with service(served) as address:
        result = run("ping", "-c", "1", "-D", "--transport", served, address)
    lost = run("ping", "-c", "1", "-D", "--transport", served, nowhere())
    match = re.match(rf"\[(\d+\.\d{{6}})\] {REPLY}\n", result.stdout)
    assert match
    assert before - 0.001 <= float(match[1]) <= time.time()
    assert re.match(r"\[\d+\.\d{6}\] seq=1: connect to ", lost.stdout)


class Clock:
    """A clock that moves only by what is slept, and by `step` seconds a round trip."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: float) -> None:
        self.now = 1000.0
        self.step = step
        self.timeouts: list[float] = []
        clocks = {"monotonic": lambda: self.now, "sleep": self.sleep}
        monkeypatch.setattr(ping, "time", types.SimpleNamespace(**{**vars(time), **clocks}))
        monkeypatch.setattr(ping, "round_trip", self.round_trip)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def round_trip(self, connection: object, message: bytes, timeout: float) -> int:
        self.timeouts.append(round(timeout, 6))
        self.now += min(self.step, timeout)
        if self.step > timeout:
            raise TimeoutError("timed out")
        return round(self.step * 1e9)


@pytest.mark.parametrize(
    ("options", "step", "timeouts", "counts", "code"),
    [
        (["-w", "3"], 0.25, [3, 2, 1], (3, 3), 0),  # none is sent at the deadline
        (["-w", "2.5"], 0.25, [2.5, 1.5, 0.5], (3, 3), 0),
        (["-w", "1.05"], 0.25, [1.05, 0.1], (2, 1), 0),  # a last one has little time, but some
        (["-w", "9", "-c", "2"], 0.25, [5, 5], (2, 2), 0),
        (["-w", "1.5", "-c", "3"], 0.25, [1.5, 0.5], (2, 2), 1),  # fewer came back
        (["-w", "12"], 7.0, [5, 5, 2], (3, 0), 1),
    ],
)
def test_a_deadline(
    served: str,
    options: list[str],
    step: float,
    timeouts: list[float],
    counts: tuple[int, int],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with service(served) as address, monkeypatch.context() as patch:
        clock = Clock(patch, step)
        result = run("ping", *options, "--json", "--transport", served, address)
    report = json.loads(result.stdout)
    assert clock.timeouts == timeouts
    assert ((report["sent"], report["received"]), result.exit_code) == (counts, code)


def test_with_a_deadline_the_count_is_of_replies(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a service that is starting can be waited for."""
    real = hvsock.create_connection
    tries = []

    def refuse_twice(*args: Any, **kwargs: Any) -> hvsock.HyperVSocket:
        tries.append(args)
        if len(tries) < 3:
            raise ConnectionRefusedError("not yet")
        return real(*args, **kwargs)

    monkeypatch.setattr(hvsock, "create_connection", refuse_twice)
    with service(served) as address:
        result = run("ping", "-w", str(utils.LIMIT), "-c", "1", "-i", "0", "--json", "--transport", served, address)
    report = json.loads(result.stdout)
    assert (result.exit_code, report["sent"], report["received"]) == (0, 3, 1)


def test_nobody_listens(served: str) -> None:
    result = run("ping", "-c", "2", "-i", "0", "--transport", served, nowhere())
    assert (result.exit_code, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert re.match(r"seq=1: connect to hvsock://loopback/\d+: .*nothing listens", lines[0])
    assert lines[1].startswith("seq=2: connect to ")
    assert re.fullmatch(r"2 sent, 0 came back, 100 % lost in .*", lines[3])
    assert len(lines) == 4
    result = run("ping", "-c", "1", "--json", "--transport", served, nowhere())
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["connect"], report["round_trip"], report["histogram"]) == (None, None, [])


def test_a_loss_is_not_the_end(served: str) -> None:
    """The service closes each connection after its second message; the next ping makes another one."""

    def serve(connection: hvsock.HyperVSocket) -> None:
        connection.send_message(connection.recv_message())
        connection.recv_message()

    with service(served, serve) as address:
        result = run("ping", "-c", "4", "-i", "0", "--json", "--transport", served, address)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["sent"], report["received"], report["lost_percent"]) == (4, 2, 50.0)
    assert report["connect"]["count"] == 2


def test_a_reply_that_is_late_is_lost_and_not_the_next_ones(served: str) -> None:
    served_before: list[object] = []

    def serve(connection: hvsock.HyperVSocket) -> None:
        served_before.append(connection)
        message = connection.recv_message()
        if len(served_before) == 1:
            connection.recv(1)  # until the client has given up
        connection.send_message(message)

    with service(served, serve) as address:
        result = run("ping", "-c", "2", "-i", "0", "-t", str(20 * utils.TICK), "--transport", served, address)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"seq=1: exchange with {address}: timed out\n--- ")
    assert "2 sent, 1 came back, 50 % lost" in result.stdout


def test_no_echo_service_is_an_error(served: str) -> None:
    def serve(connection: hvsock.HyperVSocket) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        utils.receive_all(connection)

    with service(served, serve) as address:
        line = failure("ping", "-c", "5", "--transport", served, address)
    assert line == "the reply is not what was sent; the address must be that of an echo service, such as hvsock echo"


@posix
def test_an_error_that_does_not_pass_is_not_repeated(local: str, local_directory: Any, monkeypatch: Any) -> None:
    (local_directory / "file").touch()
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", str(local_directory / "file"))
    assert failure("ping", "--transport", "local", "loopback/1").startswith("connect to hvsock://loopback/1: ")


def test_text_of_the_system_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, NASTY)

    monkeypatch.setattr(hvsock, "create_connection", refuse)
    result = run("ping", "-c", "1", "parent/1")
    assert result.exit_code == 1
    assert all(line.isprintable() for line in result.stdout.splitlines())
    assert "\\x1b[31mb\\r\\n" in result.stdout


@pytest.mark.parametrize("replies", [0, 2])
def test_ctrl_c_ends_with_the_statistics(served: str, replies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = round_trip
    count = 0

    def interrupted(*args: Any) -> int:
        nonlocal count
        count += 1
        if count > replies:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(ping, "round_trip", interrupted)
    with service(served) as address:
        result = run("ping", "-i", "0.01", "--transport", served, address)
    assert (result.exit_code, result.stderr) == (0 if replies else 1, "")
    assert f"{replies} sent, {replies} came back, 0 % lost" in result.stdout


# As a process


def test_ping_as_a_process(served: str) -> None:
    with (
        service(served) as address,
        ended(start("ping", "-c", "2", "-i", "0.01", "--transport", served, address)) as it,
    ):
        out, err = it.communicate(timeout=utils.LIMIT)
    assert (it.returncode, err) == (0, b"")
    assert len(re.findall(REPLY, out.decode())) == 2
    assert b"\x1b" not in out


@posix
def test_a_real_ctrl_c(local: str) -> None:
    with service(local) as address, ended(start("ping", "-i", "0.05", "--transport", local, address)) as it:
        assert it.stdout
        assert re.match(REPLY, it.stdout.readline().decode())
        it.send_signal(signal.SIGINT)
        out, err = it.communicate(timeout=utils.LIMIT)
    assert (it.returncode, err) == (0, b"")
    assert b"% lost in" in out


@posix
def test_ping_on_a_terminal(local: str) -> None:
    with (
        service(local) as address,
        on_terminal("ping", "-c", "20", "-i", "0.02", "--transport", local, address) as (process, shown, _),
    ):
        text = shown()
        assert process.wait(utils.LIMIT) == 0
    assert "\x1b[2K" in text  # the progress was shown, and removed
    assert re.search(r"\d+ of \d+ came back, p50 ", plain(text))
    assert len(re.findall(REPLY, plain(text))) == 20
    assert "20 sent, 20 came back" in plain(text)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is back


@posix
def test_the_options_of_ping_on_a_terminal(local: str) -> None:
    options = ("-w", str(utils.LIMIT), "-c", "2", "-i", "0.01")
    with (
        service(local) as address,
        on_terminal("ping", *options, "-D", "--transport", local, address) as (process, shown, _),
    ):
        text = plain(shown())
        assert process.wait(utils.LIMIT) == 0
    assert len(re.findall(rf"\[\d+\.\d{{6}}\] {REPLY}", text)) == 2
    assert re.search(r"average \S+ \S+, deviation \S+ \S+", text)
    with (
        service(local) as address,
        on_terminal("ping", *options, "--json-lines", "--transport", local, address) as (process, shown, _),
    ):
        lines = shown().splitlines()
        assert process.wait(utils.LIMIT) == 0
    assert [json.loads(line)["type"] for line in lines] == ["reply", "reply", "statistics"]


@posix
def test_ctrl_c_on_a_terminal(local: str) -> None:
    with service(local) as address, on_terminal("ping", "--transport", local, address) as (process, shown, leader):
        first = os.read(leader, 65536)
        while b"seq=1 " not in first:
            first += os.read(leader, 65536)
        time.sleep(utils.TICK)
        os.write(leader, b"\x03")
        text = first.decode() + shown()
        assert process.wait(utils.LIMIT) == 0
    assert "1 sent, 1 came back, 0 % lost" in plain(text)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")


@posix
def test_nobody_reads_any_more(local: str) -> None:
    with service(local) as address, ended(start("ping", "-i", "0.01", "--transport", local, address)) as it:
        assert it.stdout
        assert it.stderr
        it.stdout.readline()
        it.stdout.close()
        assert it.wait(utils.LIMIT) == 1
        assert it.stderr.read() == b"hvsock: standard output: Broken pipe\n"
