"""CPython's own tests, with `socket.socket` swapped."""

from __future__ import annotations

import json
import socket
import unittest
from fnmatch import fnmatchcase


def run_sockets(kind: str, index: str, count: str, *names: str) -> None:
    """Run classes or tests of `test.test_socket`, but none whose name follows a "-", with `socket.socket` swapped.

    This is one of `count` processes at the same time, whose ports must not meet.
    """
    import swapped

    test_socket = swapped.load("test_socket")
    socket.socket = socket.SocketType = swapped.socket_class(  # type: ignore[misc]
        kind, swapped.ports(int(index), int(count))
    )
    excluded = {name.removeprefix("-") for name in names if name.startswith("-")}
    loader = unittest.defaultTestLoader
    loaded = unittest.TestSuite(
        loader.loadTestsFromName(name, test_socket)
        for name in names
        # Not every Python has every class.
        if not name.startswith("-") and hasattr(test_socket, name.split(".")[0])
    )
    swapped.run(test for test in swapped.flat(loaded) if swapped.name_of(test) not in excluded)


def run_asyncio(kind: str, index: str, count: str, part: str, patterns: str, *names: str) -> None:
    """Run modules or tests of `test.test_asyncio` over sockets of `kind`: those of them that belong to `part`.

    That is "left-out" or "not-tried", whose patterns are two lists in JSON, or "run", the rest. This is one of `count`
    processes at the same time, whose ports must not meet.
    """
    import swapped

    left_out, not_tried = json.loads(patterns)
    modules = {name.partition(".")[0] for name in names}
    loaded = [swapped.load(f"test_asyncio.{module}") for module in sorted(modules)]
    swapped.use_asyncio(kind, swapped.ports(int(index), int(count)))
    tests = swapped.flat(unittest.defaultTestLoader.loadTestsFromModule(module) for module in loaded)
    swapped.run(
        test
        for test, name in ((test, swapped.name_of(test)) for test in tests)
        if (name in names or name.partition(".")[0] in names) and part_of(name, left_out, not_tried) == part
    )


def part_of(name: str, left_out: list[str], not_tried: list[str]) -> str:
    if any(fnmatchcase(name, pattern) for pattern in not_tried):
        return "not-tried"
    return "left-out" if any(fnmatchcase(name, pattern) for pattern in left_out) else "run"


def check_names(*names: str) -> None:
    """Check that `test.test_socket` has these tests, where it has their classes."""
    import swapped

    test_socket = swapped.load("test_socket")
    for name in names:
        case, _, method = name.partition(".")
        assert not hasattr(test_socket, case) or hasattr(getattr(test_socket, case), method), name
