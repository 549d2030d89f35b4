"""`hvsock.integrations.uvicorn`."""

from __future__ import annotations

import pytest
from aio_loops import KINDS

from integrations import servers

pytest.importorskip("uvicorn", reason="pip install 'hvsock[uvicorn]'")


@pytest.mark.parametrize("loop", ["asyncio", *(kind for kind in KINDS if kind == "uvloop")])
def test_serve(transport: str, loop: str) -> None:
    servers.check(servers.uvicorn, transport, loop)
