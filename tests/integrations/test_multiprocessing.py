"""`hvsock.integrations.multiprocessing`."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import utils
from utils import LIMIT, TICK, Task

import hvsock
from hvsock.integrations.multiprocessing import BaseManager, Client, Listener

KEY = b"a secret"


@pytest.fixture
def address(transport: str, monkeypatch: pytest.MonkeyPatch) -> hvsock.HyperVAddress:
    monkeypatch.setenv("HVSOCK_TRANSPORT", transport)
    return hvsock.as_address(("loopback", utils.new_service()))


def test_connections(address: hvsock.HyperVAddress) -> None:
    """Objects of any size, there and back; a poll that times out; the end."""
    with Listener(address, authkey=KEY) as listener:
        assert listener.address == address
        accepting = Task(listener.accept)
        with Client(address, KEY, timeout=LIMIT) as client, accepting.result() as server:
            assert listener.last_accepted is not None
            assert listener.last_accepted.vm_id == hvsock.HV_GUID_LOOPBACK
            big = utils.random_bytes(utils.MIB)
            sending = Task(client.send, {"big": big})
            assert server.recv() == {"big": big}
            sending.result()
            with utils.takes(TICK):
                assert not client.poll(TICK)
            server.send_bytes(b"hello")
            assert client.poll(LIMIT)
            assert client.recv_bytes() == b"hello"
            server.close()
            with pytest.raises(EOFError):
                client.recv()


def test_another_key(address: hvsock.HyperVAddress) -> None:
    """Neither end gets a connection, and none stays open."""
    with Listener(address, authkey=KEY) as listener:
        before = utils.handles()
        accepting = Task(listener.accept)
        with pytest.raises((multiprocessing.AuthenticationError, EOFError, ConnectionError)):
            Client(address, b"another", timeout=LIMIT)
        assert isinstance(accepting.error(), multiprocessing.AuthenticationError)
        assert utils.handles() == before


def test_without_a_key(address: hvsock.HyperVAddress) -> None:
    with Listener(address) as listener:
        accepting = Task(listener.accept)
        with Client(address, timeout=LIMIT) as client, accepting.result() as server:
            client.send("hello")
            assert server.recv() == "hello"


class Service:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def note(self, what: Any) -> int:
        self.seen.append(what)
        return len(self.seen)


class Manager(BaseManager):
    """A service for both ends."""


Manager.register("service", Service)


def test_managers(address: hvsock.HyperVAddress) -> None:
    """An object in a server's process, for two clients; in between come one that ends and one with another key."""
    context = multiprocessing.get_context("spawn")
    big = utils.random_bytes(utils.MIB)
    manager: Any = Manager(address, KEY, ctx=context)
    with manager:
        service = manager.service()
        assert service.note(big) == 1
        hvsock.create_connection(address, LIMIT).close()
        with pytest.raises((multiprocessing.AuthenticationError, EOFError, ConnectionError)):
            Client(address, b"another", timeout=LIMIT)
        other: Any = Manager(address, KEY)
        other.connect()
        assert service.note(other.service()) == 2
