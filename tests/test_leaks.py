"""Nothing grows, however often a function in C is called, and however its calls end.

HVSOCK_LEAK_CALLS=1000000 is the long form, a million calls of each function; HVSOCK_TEST_SCALE=20 gives it the time.
"""

from __future__ import annotations

import os

import leaks
from utils import LIMIT, WINE, run_child

#: How often each way to call a function is tried, and how often, at least, a function is called.
LEAST = 100 if WINE else 200
TOTAL = int(os.environ.get("HVSOCK_LEAK_CALLS", "0"))


def test_every_function_is_called() -> None:
    assert leaks.names() == set(leaks.CALLS)


def test_nothing_grows(served: str) -> None:
    """Neither memory, Python's and malloc()'s, nor descriptors, nor references to the types."""
    lines = run_child(leaks.report, served, LEAST, TOTAL, timeout=4 * LIMIT)
    assert len(lines) == sum(map(len, leaks.CALLS.values()))
    assert [line for line in lines if leaks.Growth(*map(int, line.split("\t")[1:])).is_leak] == []
