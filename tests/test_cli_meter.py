"""The progress of `hvsock connect` and `hvsock listen`: when it is shown, what it says, and what it leaves."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import utils
from command_line import on_terminal, posix, service

import hvsock
from hvsock._cli import meter
from hvsock._cli.meter import Sample

#: More than is shown nothing of.
MUCH = 300_000


@pytest.mark.parametrize(
    ("now", "size", "columns", "line"),
    [
        (Sample(7.5, 0, 0), None, 79, "0:07  received 0 B 0 B/s"),
        (Sample(10.0, 0, 5000), None, 79, "0:10  received 4.9 KiB 1000 B/s"),
        (Sample(10.0, 5 << 20, 0), None, 79, "0:10  sent 5.0 MiB 1.0 MiB/s"),
        (Sample(605.0, 6 << 30, 1023), None, 79, "10:05  sent 6.0 GiB 10.2 MiB/s  received 1023 B 2 B/s"),
        (Sample(10.0, 50, 0), 100, 79, f"0:10  sent 50 B of 100 B  50% [{'#' * 15}{'.' * 15}] 10 B/s"),
        (Sample(10.0, 50, 0), 100, 45, "0:10  sent 50 B of 100 B  50% [###...] 10 B/s"),
        (Sample(10.0, 50, 0), 100, 40, "0:10  sent 50 B of 100 B  50% 10 B/s"),
        (Sample(10.0, 50, 0), 100, 9, "0:10  sen"),
        (Sample(10.0, 300, 50), 100, 60, "0:10  sent 300 B of 100 B 100% 60 B/s  received 50 B 10 B/s"),
    ],
)
def test_what_it_says(now: Sample, size: int | None, columns: int, line: str) -> None:
    began = Sample(0.0, 0, 0)
    assert meter._line(now, Sample(5.0, 0, 0), began, size, columns) == line


@contextlib.contextmanager
def stream(kind: str, directory: Path) -> Iterator[Any]:
    """Lend a text stream of that kind."""
    with contextlib.ExitStack() as stack:
        if kind == "none":
            yield None
            return
        if kind == "terminal":
            import pty

            leader, number = pty.openpty()
            stack.callback(os.close, leader)
        elif kind == "pipe":
            number, writer = os.pipe()
            stack.callback(os.close, writer)
        elif kind == "socket":
            one, other = socket.socketpair()
            stack.enter_context(other)
            number = one.detach()
        else:
            path = os.devnull if kind == "null" else directory / "file"
            number = os.open(path, os.O_RDWR | os.O_CREAT)
        yield stack.enter_context(open(number, encoding="ascii"))


@posix
@pytest.mark.parametrize(
    ("stdin", "stdout", "wanted"),
    [
        ("terminal", "file", True),
        ("terminal", "pipe", True),
        ("terminal", "null", True),
        ("file", "file", True),
        ("file", "pipe", True),
        ("pipe", "file", True),
        ("none", "pipe", True),
        ("file", "terminal", True),  # until there is an answer
        ("pipe", "terminal", False),
        ("terminal", "terminal", False),
        ("pipe", "pipe", False),
        ("socket", "socket", False),
    ],
)
def test_when_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdin: str, stdout: str, wanted: bool
) -> None:
    with stream(stdin, tmp_path) as source, stream(stdout, tmp_path) as sink, stream("terminal", tmp_path) as errors:
        for name, it in (("stdin", source), ("stdout", sink), ("stderr", errors)):
            monkeypatch.setattr(sys, name, it)
        assert [meter.is_wanted(asked) for asked in (None, True, False)] == [wanted, True, False]
        with stream("file", tmp_path) as file:
            for no_terminal in (file, None):
                monkeypatch.setattr(sys, "stderr", no_terminal)
                assert not meter.is_wanted(True)


def screen(shown: str) -> list[str]:
    """Return the lines that a terminal shows, without spaces at their ends; it must be sent nothing but text."""
    assert not re.search(r"[^\x20-\x7e\r\n]", shown)
    lines: list[str] = []
    for line in shown.replace("\r\n", "\n").split("\n"):
        text = ""
        for part in line.split("\r"):
            text = part + text[len(part) :]
        lines.append(text.rstrip())
    return lines


@pytest.fixture
def request_file(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "request").write_bytes(bytes(MUCH))
    with (tmp_path / "request").open("rb") as file:
        yield file


@pytest.fixture
def reply_file(tmp_path: Path) -> Iterator[Any]:
    with (tmp_path / "reply").open("wb") as file:
        yield file


def slowly(connection: hvsock.HyperVSocket) -> None:
    """Receive all, then wait for as long as the meter needs to be shown."""
    utils.receive_all(connection)
    time.sleep(1.0)


def parts(*data: bytes) -> Callable[[hvsock.HyperVSocket], None]:
    """Return what sends the parts, with time between them for the meter to be shown."""

    def serve(connection: hvsock.HyperVSocket) -> None:
        for number, part in enumerate(data):
            time.sleep(1.0 if number else 0.0)
            connection.sendall(part)

    return serve


@posix
def test_a_reply_to_a_file(local: str, tmp_path: Path, reply_file: Any) -> None:
    """With a terminal at stdin: the end of the service is the end."""
    with (
        service(local, parts(bytes(MUCH), bytes(MUCH))) as address,
        on_terminal("connect", "--transport", local, address, stdout=reply_file) as (process, shown, _),
    ):
        text = shown()
        assert process.wait(utils.LIMIT) == 0
    line, end = screen(text)
    assert re.fullmatch(r"0:0\d  received 585\.9 KiB \d+\.\d KiB/s", line)
    assert end == ""
    assert len((tmp_path / "reply").read_bytes()) == 2 * MUCH
    assert "received 293.0 KiB" in text


@posix
def test_a_request_from_a_file(local: str, request_file: Any) -> None:
    """Stdout is the terminal, but no answer comes. What was read of the file before is not sent."""
    request_file.seek(MUCH // 3)
    with (
        service(local, slowly) as address,
        on_terminal("connect", "--transport", local, address, stdin=request_file) as (process, shown, _),
    ):
        line, end = screen(shown())
        assert process.wait(utils.LIMIT) == 0
    assert re.fullmatch(r"0:0\d  sent 195\.3 KiB of 195\.3 KiB 100% \[#{30}\] \d+\.\d KiB/s", line)
    assert end == ""


@posix
def test_an_answer_on_the_terminal_takes_its_place(local: str, request_file: Any) -> None:
    def serve(connection: hvsock.HyperVSocket) -> None:
        slowly(connection)
        connection.sendall(b"the ")
        time.sleep(2 * utils.TICK)
        connection.sendall(b"answer\n")

    with (
        service(local, serve) as address,
        on_terminal("connect", "--transport", local, address, stdin=request_file) as (process, shown, _),
    ):
        text = shown()
        assert process.wait(utils.LIMIT) == 0
    assert "sent 293.0 KiB of 293.0 KiB 100%" in text
    assert screen(text) == ["the answer", ""]


@posix
def test_ctrl_c_leaves_a_line(local: str, reply_file: Any) -> None:
    with (
        service(local, parts(bytes(MUCH), *(b"" for _ in range(int(utils.LIMIT))))) as address,
        on_terminal("connect", "--transport", local, address, stdout=reply_file) as (process, shown, leader),
    ):
        text = ""
        while "received" not in text:
            text += os.read(leader, 1000).decode()
        os.write(leader, b"\x03")
        text += shown()
        assert process.wait(utils.LIMIT) == 130
    line, end = screen(text)
    assert re.fullmatch(r"0:0\d  received 293\.0 KiB \d+\.\d KiB/s", line)
    assert end == ""


@posix
def test_an_error_has_a_line_of_its_own(local: str, tmp_path: Path, reply_file: Any) -> None:
    (tmp_path / "request").write_bytes(bytes(10_000_000))

    def serve(connection: hvsock.HyperVSocket) -> None:
        utils.receive_exactly(connection, 100_000)
        time.sleep(1.0)

    with (
        (tmp_path / "request").open("rb") as file,
        service(local, serve) as address,
        on_terminal("connect", "--transport", local, address, stdin=file, stdout=reply_file) as (process, shown, _),
    ):
        line, error, end = screen(shown())
        assert process.wait(utils.LIMIT) == 1
    assert re.match(r"0:0\d  sent \d+\.\d KiB of 9\.5 MiB   [1-9]% \[", line)
    assert re.match(r"hvsock: (send to|receive from) ", error)
    assert end == ""


@posix
def test_nothing_is_shown_of_what_is_over_at_once(local: str, request_file: Any, reply_file: Any) -> None:
    with (
        service(local) as address,
        on_terminal("connect", "--progress", "--transport", local, address, stdin=request_file, stdout=reply_file) as (
            process,
            shown,
            _,
        ),
    ):
        assert shown() == ""
        assert process.wait(utils.LIMIT) == 0


@posix
@pytest.mark.parametrize("asked", [False, True])
def test_a_conversation_is_not_disturbed(local: str, reply_file: Any, asked: bool) -> None:
    """As through `| cat`, on the same terminal."""
    with (
        service(local, parts(b"hello", b"")) as address,
        on_terminal(
            "connect", *(["--progress"] if asked else []), "--transport", local, address, stdout=reply_file
        ) as (process, shown, _),
    ):
        lines = screen(shown())
        assert process.wait(utils.LIMIT) == 0
    assert [re.sub(r"\d+:\d\d|\d B/s", "...", line) for line in lines[:-1]] == asked * ["...  received 5 B ..."]
    assert lines[-1] == ""
