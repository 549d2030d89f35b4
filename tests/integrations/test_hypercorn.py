"""`hvsock.integrations.hypercorn`."""

from __future__ import annotations

import pytest
from aio_loops import KINDS

from integrations import servers

pytest.importorskip("hypercorn", reason="pip install 'hvsock[hypercorn]'")


@pytest.mark.parametrize("loop", [kind for kind in ("selector", "proactor", "uvloop") if kind in KINDS])
def test_serve(transport: str, loop: str) -> None:
    servers.check(servers.hypercorn, transport, loop)
