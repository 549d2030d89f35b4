"""CPython's own tests over our sockets: what they take for the standard library's, and how they are run.

It is used in child processes, which the swap stays in.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import itertools
import os
import re
import socket
import sys
import tempfile
import types
import unittest
import warnings
from asyncio import base_events
from collections.abc import Iterable, Iterator
from typing import Any

import hvsock
from hvsock import aio
from hvsock._hvsock import Socket

STDLIB = socket.socket


def ports(index: int, count: int) -> Iterator[int]:
    """Return free ports of the transport: those of the process `index` of `count`.

    They have 16 bits, as getaddrinfo takes them on the way of create_connection: random ones would meet now and then.
    """
    return itertools.count(0x2000 + index, count)


def socket_class(kind: str, free: Iterator[int]) -> type[socket.socket]:
    """Return the class that CPython's tests shall take for `socket.socket`."""
    if kind == "stdlib":
        return STDLIB
    if kind == "_hvsock.Socket":
        return Socket
    if kind == "HyperVSocket":

        class OurSocket(hvsock.HyperVSocket):
            """Without arguments it is a TCP socket, as the original."""

            def __init__(self, family: int = -1, *args: Any, **kwargs: Any) -> None:
                if family == -1 and kwargs.get("fileno") is None and len(args) < 3:
                    family = socket.AF_INET
                super().__init__(family, *args, **kwargs)

        return OurSocket

    class TransportSocket(hvsock.HyperVSocket):
        """A socket of a transport that passes for TCP: 127.0.0.1 is the loopback, and ports are ports."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            # The transports themselves make sockets of AF_UNIX, to look whether a listener lives.
            if "transports" in sys._getframe(1).f_globals["__name__"]:
                return STDLIB(*args, **kwargs)
            return super().__new__(cls)

        def __init__(
            self,
            family: int = -1,
            type: int = -1,  # noqa: A002 - the original's name
            proto: int = -1,
            fileno: int | None = None,
        ) -> None:
            del proto
            if family not in (-1, socket.AF_INET) and fileno is None:
                raise OSError(errno.EAFNOSUPPORT, f"no sockets of family {family} over a transport")
            # A handle's own family tells: it may be an end of a socketpair. Windows tells none of an unbound one.
            own = family if fileno is not None and family == hvsock.AF_HYPERV else -1
            super().__init__(own, type, -1, fileno, transport=kind if fileno is None else None)

        def bind(self, address: Any, /) -> None:
            host, port = address
            super().bind(to_hyperv((host, port or next(free))))

        def connect(self, address: Any, /) -> None:
            super().connect(to_hyperv(address))

        def accept(self) -> Any:
            sock, address = super().accept()
            return sock, to_inet(address)

        def getsockname(self) -> Any:
            return to_inet(super().getsockname())

        def getpeername(self) -> Any:
            return to_inet(super().getpeername())

    return TransportSocket


def to_hyperv(address: Any) -> Any:
    """Return the address of a transport for which one of TCP stands."""
    host, port = address
    if not isinstance(host, str):
        raise TypeError("a host is a str")
    return "wildcard" if host == "0.0.0.0" else "loopback", port


def to_inet(address: Any) -> Any:
    """Return the address of TCP that stands for one of a transport."""
    if not isinstance(address, hvsock.HyperVAddress):
        return address
    host = "0.0.0.0" if address.vm_id == hvsock.HV_GUID_WILDCARD else "127.0.0.1"
    return host, address.service_id.int >> 96


# asyncio


def use_asyncio(kind: str, free: Iterator[int]) -> None:
    """Have asyncio, and the peers in its tests, use sockets of `kind`, and over a transport hvsock.aio's functions."""
    if sys.platform == "win32":
        # It compares addresses, which differ at the two ends over AF_HYPERV: asyncio needs one for each loop.
        plain = {**vars(socket), "socket": STDLIB}
        socket.socketpair = types.FunctionType(
            socket.socketpair.__code__, plain, argdefs=socket.socketpair.__defaults__
        )
    socket.socket = socket.SocketType = socket_class(kind, free)  # type: ignore[misc]
    if kind in (transport.name for transport in hvsock.transports()):
        _use_aio(kind, free)


def _use_aio(kind: str, free: Iterator[int]) -> None:
    """Put hvsock.aio's functions in the place of asyncio's, for addresses without a socket of the caller's own.

    With such a socket, its event loop does what the Proactor cannot.
    """
    for name in ("getsockname", "getpeername"):
        method = getattr(hvsock.HyperVSocket, name)
        setattr(hvsock.HyperVSocket, name, lambda sock, method=method: to_inet(method(sock)))
    for owner, name in (
        (base_events.BaseEventLoop, "create_connection"),
        (base_events.BaseEventLoop, "create_server"),
        (asyncio, "open_connection"),
        (asyncio, "start_server"),
    ):
        setattr(owner, name, _ours(getattr(aio, name), getattr(owner, name), kind, free))
    if sys.platform == "win32":
        asyncio.ProactorEventLoop = asyncio.new_event_loop = aio.new_event_loop  # type: ignore[assignment,misc]


def _ours(ours: Any, original: Any, kind: str, free: Iterator[int]) -> Any:
    """Return a function with asyncio's signature that calls ours where that can take the arguments."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        given = dict(kwargs)
        host, port = given.pop("host", None), given.pop("port", None)
        first = list(args)
        if first and isinstance(first[0], asyncio.AbstractEventLoop):
            del first[0]
        if first and isinstance(first[-1], int):
            port = first.pop()
        if first and isinstance(first[-1], str):
            host = first.pop()
        if given.pop("family", 0) not in (0, socket.AF_INET) or host not in ("127.0.0.1", "0.0.0.0", "localhost"):
            return await original(*args, **kwargs)
        if given.keys() & {"local_addr", "sock"}:
            return await original(*args, **kwargs)
        if "ssl" in given and "connection" in ours.__name__:
            given.setdefault("server_hostname", host)
        address = to_hyperv((host, port or next(free)))
        return await ours(*first, address, transport=kind, **given)

    return call


# Running them


def load(name: str) -> Any:
    """Import a module of CPython's `test` package, before the swap: classes like SSLSocket derive from the original."""
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    return importlib.import_module(f"test.{name}")


def name_of(test: Any) -> str:
    """Return the name of a test of test_socket from its class on, of one of test_asyncio from its module on."""
    return re.sub(r"^.*\btest\.test_(?:socket|asyncio)\.", "", test.id())


def flat(tests: Iterable[Any]) -> Iterator[unittest.TestCase]:
    """Return the tests of suites, one by one."""
    for test in tests:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


def run(tests: Iterable[unittest.TestCase]) -> None:
    """Run tests and print what became of each: a word, its name, and an error or why it was skipped."""
    suite = unittest.TestSuite(tests)
    outcomes = dict.fromkeys(map(name_of, suite), "passed")
    # They make sockets and files in the current directory.
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        result = unittest.TextTestRunner(stream=sys.stderr, verbosity=2).run(suite)
        os.chdir("/")
    for test, reason in result.skipped:
        outcomes[name_of(test)] = f"skipped {reason}"
    for test, text in [*result.failures, *result.errors]:
        # Behind the line that names the exception there may be a comparison, and notes.
        errors = re.findall(r"^[\w.]+(?:: .*)?$", text, re.MULTILINE)
        outcomes[name_of(getattr(test, "test_case", test))] = f"failed {errors[-1] if errors else 'for no reason'}"
    for name, outcome in outcomes.items():
        word, _, rest = outcome.partition(" ")
        print(word, name, " ".join(rest.split()))
