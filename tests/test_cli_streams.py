"""The standard streams of the commands: nothing is dropped that one of their writes has left."""

from __future__ import annotations

import io
import os
import sys
import time
from typing import Any

import pytest
import utils
from command_line import posix
from utils import Task

from hvsock._cli.output import Failure, print_failure, print_json, print_lines
from hvsock._cli.streams import Whole, read, whole_output


class Short(io.RawIOBase):
    """Takes three bytes at a time, and is full after some."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = b""

    def write(self, data: Any, /) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        part = bytes(data[: min(3, self.room)])
        self.room -= len(part)
        self.taken += part
        return len(part)


def test_a_short_write_is_continued() -> None:
    raw = Short(11)
    whole = Whole(raw)
    assert whole.writable()
    assert whole.write(memoryview(b"12345678").cast("H")) == 8
    with pytest.raises(OSError, match="No space"):
        whole.write(b"abcd")
    assert raw.taken == b"12345678abc"


@posix
@pytest.mark.parametrize("buffering", [0, 100])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_whatever_is_printed(name: str, buffering: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a non-blocking pipe that is full again and again; what stood in the buffer before comes before."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb") as pipe, open(writer, "wb", buffering=buffering) as end:
        stream = io.TextIOWrapper(end, "utf-8", write_through=not buffering)
        monkeypatch.setattr(sys, name, stream)
        stream.write("before ")
        lines = ["é" * 50_000 for _ in range(10)]

        def write() -> None:
            with whole_output():
                assert getattr(sys, name).isatty() is False
                assert getattr(sys, name).fileno() == writer
                if name == "stdout":
                    print_lines(*lines)
                    print_json(lines)
                    sys.stdout.flush()
                else:
                    print_failure(Failure(lines[0]), debug=False)
            assert getattr(sys, name) is stream
            stream.close()

        writing = Task(write)
        time.sleep(2 * utils.TICK)
        text = pipe.read().decode()
        writing.result()
    assert text.count("é") == (500_000 if name == "stdout" else 50_000)
    assert text.count(r"\u00e9") == (500_000 if name == "stdout" else 0)
    assert text.startswith("before é" if name == "stdout" else "before hvsock: é")


def test_streams_that_are_not_the_process_s_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", None)
    with whole_output():
        assert (sys.stdout, sys.stderr) == (stdout, None)


@posix
def test_a_read_waits() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(reader, "rb") as pipe:
        reading = Task(read, pipe, 10)
        assert not reading.wait(2 * utils.TICK)
        os.write(writer, b"x")
        assert reading.result() == b"x"
        os.close(writer)
        assert read(pipe, 10) == b""
