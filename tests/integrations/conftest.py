"""The event loops that the libraries are run on, and a server that their clients ask."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
from aio_loops import KINDS
from certificates import tls_contexts

from integrations.services import Server, serving


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


@pytest.fixture
def server(transport: str) -> Iterator[Server]:
    """A server of HTTP."""
    with serving(transport) as it:
        yield it


@pytest.fixture
def secure(transport: str) -> Iterator[tuple[Server, ssl.SSLContext]]:
    """The same with TLS, and the context for its clients."""
    for_server, for_client = tls_contexts("TLS 1.3")
    with serving(transport, for_server) as it:
        yield it, for_client
