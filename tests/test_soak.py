"""Connections that come and go on every face, with every message checked: `soak.py` says how.

A few seconds by default; an hour, or some minutes in a guest kernel, with a line for each half minute, like this:

    python -Im pytest -s -o faulthandler_timeout=0 tests/test_soak.py --soak-minutes 60 --soak-connections 200
    tests/guest/loopback -s -o faulthandler_timeout=0 tests/test_soak.py -k vsock --soak-minutes 5 --soak-connections 30
"""

from __future__ import annotations

import functools
import os
import sys

import pytest
from soak import Soak
from utils import MIB

#: Bytes by which a process may be larger in the second half: what is made once, and the allocator's gaps.
TOLERATED = 16 * MIB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only: it looks into /proc")


def test_soak(transport: str, pytestconfig: pytest.Config) -> None:
    minutes = pytestconfig.getoption("soak_minutes")
    rounds = max(3, round(2 * minutes))
    it = Soak(transport, pytestconfig.getoption("soak_connections"), functools.partial(print, flush=True))
    it.run(rounds, 60 * minutes / rounds)
    for what in ("messages", "connections", "broken off", "gone on with", "killed"):
        assert it.seen[what] > 0, what
    if "LD_PRELOAD" not in os.environ:  # sanitizers keep what was freed
        assert {name: grown for name, grown in it.growth().items() if grown > TOLERATED} == {}
