"""`hvsock.integrations.cheroot`."""

from __future__ import annotations

import pytest
import utils

from integrations import servers

pytest.importorskip("cheroot", reason="pip install 'hvsock[cheroot]'")


def test_serve(transport: str) -> None:
    # On Windows cheroot looks for a further request on a connection each 50 ms only.
    servers.check(servers.cheroot, transport, requests=20 if utils.WINDOWS else servers.REQUESTS)


def test_the_address_is_in_use(transport: str) -> None:
    from hvsock.integrations.cheroot import serve

    with utils.listen(transport) as listener, pytest.raises(OSError):
        serve(servers.wsgi_app, listener.getsockname(), transport=transport)


def test_a_malformed_address() -> None:
    from hvsock.integrations.cheroot import Server

    with pytest.raises(ValueError, match="'nowhere' is neither a GUID nor one of"):
        Server(("nowhere", 5000), servers.wsgi_app)
