"""Faults below the C code: whatever fails, and wherever, nothing is lost, delivered twice or left behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable

import faulty
import pytest
import utils
from utils import WINDOWS, run_child

Run = Callable[[str, str], dict[str, int]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return what runs a table of faulty.py where its faults can be injected."""
    if WINDOWS:
        pytest.importorskip("hvsim", reason="the simulated provider only: tests/windows/run has it")
        return lambda what, transport: faulty.run(getattr(faulty, what), transport)
    if not sys.platform.startswith("linux"):
        pytest.skip("Linux and Windows only: tests/faults/shim.c stands in for Linux' system calls")
    if not (gcc := shutil.which("gcc")):
        pytest.skip("needs gcc, to compile tests/faults/shim.c: install it and run again")
    shim = tmp_path_factory.mktemp("faults") / "shim.so"
    source = utils.TESTS / "faults" / "shim.c"
    subprocess.run([gcc, "-Wall", "-Wextra", "-shared", "-fPIC", source, "-o", shim, "-ldl"], check=True)

    def run(what: str, transport: str) -> dict[str, int]:
        # After a sanitizer's library, which must be the first.
        preload = ":".join(filter(None, (os.environ.get("LD_PRELOAD"), str(shim))))
        lines = run_child(faulty.report, what, transport, env={"LD_PRELOAD": preload})
        return {name: int(count) for name, count in (line.split("\t") for line in lines)}

    return run


def test_system_calls(run: Run, transport: str) -> None:
    """Every system call of every operation fails in turn, for each reason, with every timeout, in pieces."""
    injected = run("FAULTS", transport)
    assert injected.keys() == faulty.FAULTS.keys()
    assert min(injected.values()) > 0


@pytest.mark.skipif(WINDOWS, reason="POSIX only: calls that overlap have no mode that another thread could change")
def test_settimeout_at_the_worst_moment(run: Run) -> None:
    assert run("SETTIMEOUT", "local") == dict.fromkeys(faulty.SETTIMEOUT, 1)


@pytest.mark.skipif(WINDOWS, reason="POSIX only: system calls that can be held up")
@pytest.mark.parametrize("what", ["RELEASE", "DEADLINE", "HANDLER", "LENGTH"])
def test_held_up(run: Run, transport: str, what: str) -> None:
    """Other threads run meanwhile, the timeout is that of the whole call, and a signal handler is not kept waiting."""
    found = run(what, transport)
    assert found.keys() == getattr(faulty, what).keys()
    assert min(found.values()) > 0


@pytest.mark.skipif(WINDOWS, reason="POSIX only: a signal that comes between two tries")
def test_signal_between_two_tries(run: Run) -> None:
    assert run("SIGNAL", "local") == dict.fromkeys(faulty.SIGNAL, 1)


@pytest.mark.skipif(WINDOWS, reason="POSIX only: tries that can be counted and delayed")
def test_spin(run: Run) -> None:
    assert run("SPIN", "local") == dict.fromkeys(faulty.SPIN, 1)


@pytest.mark.skipif(WINDOWS, reason="POSIX only: the descriptors are counted and named")
@pytest.mark.usefixtures("failing_allocations")
def test_no_memory() -> None:
    """Every allocation of every operation fails in turn; messages have their own test."""
    failures = dict(line.split("\t") for line in run_child(faulty.report, "WITHOUT_MEMORY", "local"))
    assert failures.keys() == faulty.WITHOUT_MEMORY.keys()
    assert int(failures["recv"]) > 0


def test_close_at_the_recursion_limit() -> None:
    """A close that fails for it can be repeated, and the descriptor is closed once, not its next owner's."""

    def close_at(depth: int, sock: socket.socket) -> None:
        if depth:
            close_at(depth - 1, sock)
        else:
            sock.close()

    limit = sys.getrecursionlimit()
    failures = 0
    for depth in range(limit - 100, limit):
        a, b = utils.make_pair("adopted")
        with b:
            descriptor = a.fileno()
            try:
                close_at(depth, a)
            except RecursionError:
                failures += 1
            a.close()
            assert a.fileno() == socket.socket.fileno(a) == -1
            assert b.recv(1) == b""
            with socket.socket() as next_one:
                assert next_one.fileno() == descriptor or WINDOWS
                a.close()
                del a
                next_one.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    assert failures > 0
