"""`hvsock.integrations.requests`."""

from __future__ import annotations

from typing import Any

import pytest
import utils
from certificates import tls_contexts

import hvsock
from integrations.services import BIG, Server, serving

requests = pytest.importorskip("requests", reason="pip install 'hvsock[requests]'")

VM = str(hvsock.HV_GUID_LOOPBACK)


def session(server: Server, transport: str) -> Any:
    """Return a session that knows the server by name, and any by its URI."""
    from hvsock.integrations.requests import Adapter, URLAdapter

    made = requests.Session()
    made.mount("http://agent", Adapter(server.address, transport=transport))
    made.mount("https://agent", Adapter(server.address, transport=transport))
    made.mount("hvsock://", URLAdapter(transport=transport))
    return made


def test_by_name(transport: str) -> None:
    with serving(transport) as server, session(server, transport) as it:
        assert it.get("http://agent/who", params={"a": "b"}).text == f"/who agent {VM}"
        assert it.post("http://agent/", data=BIG).content == BIG
        assert it.get("http://agent/redirect?http://agent/who").text == f"/who agent {VM}"
        assert server.connections == 1


def test_by_uri(transport: str) -> None:
    with serving(transport) as server, session(server, transport) as it:
        answer = it.get(f"{server.address}/a/b?c#d")
        assert answer.text == f"/a/b loopback {VM}"
        assert answer.url == answer.request.url == f"{server.address}/a/b?c#d"
        assert it.get(str(server.address)).text == f"/ loopback {VM}"
        assert it.post(f"{server.address}/", data=BIG).content == BIG
        assert server.connections == 1


@pytest.mark.parametrize("location", ["/who", "who", "http://loopback/who"])
def test_redirects_within_the_service(transport: str, location: str) -> None:
    with serving(transport) as server, session(server, transport) as it:
        answer = it.get(f"{server.address}/redirect?{location}")
        assert (answer.text, answer.url) == (f"/who loopback {VM}", f"{server.address}/who")


def test_a_redirect_elsewhere(transport: str) -> None:
    with serving(transport) as server, session(server, transport) as it:
        assert it.get(f"{server.address}/redirect?http://agent/who").text == f"/who agent {VM}"


@pytest.mark.parametrize("uri", ["hvsock://nowhere/5000/", "hvsock://loopback/", "hvsock://loopback/05/x"])
def test_a_malformed_uri(uri: str, transport: str) -> None:
    with serving(transport) as server, session(server, transport) as it:
        with pytest.raises(requests.exceptions.InvalidURL):
            it.get(uri)


def test_proxies_are_ignored(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with serving(transport) as server, session(server, transport) as it:
        assert it.get("http://agent/who").text == f"/who agent {VM}"
        assert it.get(f"{server.address}/who").text == f"/who loopback {VM}"


def test_timeout(transport: str) -> None:
    with serving(transport) as server, session(server, transport) as it:
        with utils.takes(utils.TICK), pytest.raises(requests.exceptions.ReadTimeout):
            it.get("http://agent/slow", timeout=utils.TICK)


def test_connect_fails(transport: str) -> None:
    with serving(transport) as server:
        pass
    with session(server, transport) as it:
        for uri in ("http://agent/", f"{server.address}/"):
            with pytest.raises(requests.exceptions.ConnectionError):
                it.get(uri)


def test_tls(transport: str) -> None:
    for_server, _ = tls_contexts("TLS 1.3")
    with serving(transport, for_server) as server, session(server, transport) as it:
        with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            it.get("https://agent/who")
