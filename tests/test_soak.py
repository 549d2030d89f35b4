"""Connections that come and go on every face, with every message checked: `soak.py` says how.

A few seconds by default; an hour, or some minutes in a guest kernel, with a line for each half minute, like this:

    python -Im pytest -s -o faulthandler_timeout=0 tests/test_soak.py --soak-minutes 60 --soak-connections 200
    tests/guest/loopback -s -o faulthandler_timeout=0 tests/test_soak.py -k vsock --soak-minutes 5 --soak-connections 30
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import pytest
import relay_soak
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


def test_relay_soak(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The same idea with a relay between, whose process is looked at."""
    it = relay_soak.Soak(tmp_path, pytestconfig.getoption("soak_connections"))
    first, *_, last = it.run(60 * pytestconfig.getoption("soak_minutes"))
    print(dict(it.seen), first, last)
    for end in ("client", "server"):
        for what in ("whole", "broken off"):
            assert it.seen[f"{end}: {what}"] > 0
    assert last["refused"] == 0
    # A thread of the relay may have a socket for its next client, or not yet.
    assert abs(last["descriptors"] - first["descriptors"]) <= (os.cpu_count() or 1)
    if "LD_PRELOAD" not in os.environ:
        assert last["resident"] - first["resident"] < TOLERATED
