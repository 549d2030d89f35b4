"""Fixtures: a local directory of its own for every test, and the same streams over every implementation."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import utils
from aio_loops import bed, kind, pytest_pyfunc_call  # noqa: F401 - fixtures, a hook
from loopback_server import address, server  # noqa: F401 - fixtures
from reruns import pytest_terminal_summary  # noqa: F401 - a hook
from vm_sources import hcs, program  # noqa: F401 - fixtures


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("soak", "test_soak.py")
    group.addoption("--soak-minutes", type=float, default=0.1, help="how long it takes")
    group.addoption("--soak-connections", type=int, default=12, help="how many there are at a time")


def pytest_report_header() -> list[str]:
    reasons = {name: utils.reason_to_skip(name) for name in utils.TRANSPORTS}
    return [f"hvsock {name}: {reason or 'tested'}" for name, reason in reasons.items()]


def pytest_collection_finish() -> None:
    """Leave what collecting has made out of later collections of garbage: tests ask for many, and each took 0.1 s."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Undo it: hypothesis asks the collector for references to what its plugins have made."""
    gc.unfreeze()


def require_backlog(number: int) -> None:
    """Skip the test unless the system lets so many connections wait to be accepted."""
    limit = Path("/proc/sys/net/core/somaxconn")
    if not limit.exists() or int(limit.read_text(encoding="ascii")) < number:
        pytest.skip(f"the system allows a backlog of less than {number}: run it on Linux, with a larger somaxconn")


def require(implementation: str) -> None:
    """Skip the test where `implementation` cannot be tested, or fail it where HVSOCK_REQUIRE says so."""
    reason = utils.reason_to_skip(implementation)
    if reason and implementation in utils.required():
        pytest.fail(f"required, but {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def local_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give every test, and its children, an empty HVSOCK_LOCAL_DIR and no other setting of the environment."""
    for name in ("HVSOCK_TRANSPORT", "HVSOCK_LOCAL_VM"):
        monkeypatch.delenv(name, raising=False)
    # Directly under a short directory: a socket's path has 104 to 108 bytes, and pytest's own tmp_path is long.
    parent = "/tmp" if os.name == "posix" and os.access("/tmp", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="hv", dir=parent))
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", str(directory))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


TESTED = utils.tested()


@pytest.fixture(params=TESTED)
def implementation(request: pytest.FixtureRequest) -> str:
    """Every implementation of a stream, the standard library's as the oracle first."""
    require(request.param)
    return str(request.param)


@pytest.fixture(params=[name for name in TESTED if name != "stdlib"])
def ours(request: pytest.FixtureRequest) -> str:
    """Every implementation of a stream by HyperVSocket."""
    require(request.param)
    return str(request.param)


@pytest.fixture(params=[name for name in TESTED if name in utils.TRANSPORTS])
def transport(request: pytest.FixtureRequest) -> str:
    """Every transport."""
    require(request.param)
    return str(request.param)


@pytest.fixture
def failing_allocations() -> None:
    """The means to make CPython's allocations fail."""
    pytest.importorskip("_testcapi", reason="needs CPython's own _testcapi, which makes allocations fail")
    if utils.FREE_THREADED:
        pytest.skip("CPython 3.13t itself crashes without memory, in PyList_New")


@pytest.fixture
def local() -> str:
    """The local transport."""
    require("local")
    return "local"


@pytest.fixture
def served() -> str:
    """A transport on which this machine may serve and connect to itself."""
    name = "hyperv" if utils.WINDOWS else "local"
    require(name)
    return name


@pytest.fixture
def pair(implementation: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected pair of every implementation; a call that hangs ends with a TimeoutError."""
    with utils.connected(implementation) as sockets:
        yield sockets


@pytest.fixture
def our_pair(ours: str) -> Iterator[utils.Pair]:
    """A connected pair of every implementation by HyperVSocket."""
    with utils.connected(ours) as sockets:
        yield sockets


# Transports without a kernel


class Recorder:
    """In place of a socket: nothing is asked of it."""


def record_native_calls(monkeypatch: pytest.MonkeyPatch, transport: ModuleType) -> list[tuple[Any, ...]]:
    """Have the calls that a transport makes on its native socket recorded instead of made."""
    calls: list[tuple[Any, ...]] = []

    class Socket:
        @staticmethod
        def bind(_sock: object, to: object) -> None:
            calls.append(("bind", to))

        @staticmethod
        def connect(_sock: object, to: object) -> None:
            calls.append(("connect", to))

    monkeypatch.setattr(transport, "Socket", Socket)
    return calls
