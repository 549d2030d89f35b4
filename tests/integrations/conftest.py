"""The event loops that the libraries are run on."""

from __future__ import annotations

import pytest
from aio_loops import KINDS


@pytest.fixture(params=[name for name in KINDS if name != "winloop"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of event loop whose transports are not for TCP only."""
    return str(request.param)


@pytest.fixture(params=[name for name in ("selector", "proactor", "uvloop") if name in KINDS])
def loop(request: pytest.FixtureRequest) -> str:
    """The loops of servers that Ctrl-C is to end: on Windows it does not wake a selector."""
    if request.param == "selector" and "proactor" in KINDS:
        pytest.skip("asyncio's selector loop is not woken by Ctrl-C on Windows")
    return str(request.param)
