"""Calls of many threads on a socket that another thread closes, detaches, shuts down, or whose timeout it sets.

HVSOCK_RACE_ROUNDS=10000 is the long form.
"""

from __future__ import annotations

import os
import sys

import pytest
import races
from children import contention
from utils import FREE_THREADED, WINE, run_child

ROUNDS = int(os.environ.get("HVSOCK_RACE_ROUNDS", "1" if WINE else "10"))


@pytest.fixture(params=races.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_races(served: str, kind: str) -> None:
    """Every call ends as it should, nothing is lost or doubled, and no other socket is touched."""
    lines = run_child(contention.race, served, kind, ROUNDS, timeout=races.limit(ROUNDS))
    assert lines == list(races.DISTURBANCES)


@pytest.mark.skipif(
    sys.version_info < (3, 13) or WINE or FREE_THREADED,
    reason="needs a GIL for each interpreter, ctypes in each (3.13+), and more time than Wine has",
)
def test_races_in_interpreters(served: str, kind: str) -> None:
    lines = run_child(contention.race_in_interpreters, served, kind, ROUNDS, timeout=races.limit(ROUNDS))
    assert lines == list(races.DISTURBANCES)
