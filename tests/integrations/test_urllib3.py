"""`hvsock.integrations.urllib3`."""

from __future__ import annotations

import pytest
import utils
from certificates import tls_contexts

import hvsock
from integrations.services import BIG, Server, serving

urllib3 = pytest.importorskip("urllib3", reason="pip install 'hvsock[requests]'")
exceptions = pytest.importorskip("urllib3.exceptions")


def manager(server: Server, transport: str, **kwargs: object) -> urllib3.PoolManager:  # type: ignore[name-defined]
    from hvsock.integrations.urllib3 import PoolManager

    return PoolManager(server.address, transport=transport, retries=False, **kwargs)


def test_requests(transport: str) -> None:
    with serving(transport) as server, manager(server, transport) as pools:
        assert pools.request("GET", "http://agent/who").data == b"/who agent " + str(hvsock.HV_GUID_LOOPBACK).encode()
        assert pools.request("POST", "http://agent/", body=BIG).data == BIG
        assert server.connections == 1


def test_a_redirect_stays_at_the_service(transport: str) -> None:
    with serving(transport) as server, manager(server, transport) as pools:
        answer = pools.request("GET", "http://agent/redirect?http://other/who", retries=1)
        assert answer.data.startswith(b"/who other ")


def test_timeout(transport: str) -> None:
    with serving(transport) as server, manager(server, transport) as pools:
        with utils.takes(utils.TICK), pytest.raises(exceptions.ReadTimeoutError):
            pools.request("GET", "http://agent/slow", timeout=utils.TICK)


def test_connect_fails(transport: str) -> None:
    with serving(transport) as server:
        pass
    with manager(server, transport) as pools, pytest.raises(exceptions.NewConnectionError) as caught:
        pools.request("GET", "http://agent/")
    assert isinstance(caught.value.__cause__, OSError)


def test_tls(transport: str) -> None:
    for_server, for_client = tls_contexts("TLS 1.3")
    with serving(transport, for_server) as server, manager(server, transport, ssl_context=for_client) as pools:
        with pytest.warns(exceptions.InsecureRequestWarning):
            assert pools.request("POST", "https://agent/", body=BIG).data == BIG


def test_a_malformed_address() -> None:
    from hvsock.integrations.urllib3 import PoolManager

    with pytest.raises(ValueError, match="'nowhere' is neither a GUID nor one of"):
        PoolManager(("nowhere", 5000))
