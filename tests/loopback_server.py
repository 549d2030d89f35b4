"""For conftest.py, the fixtures of tests/windows: an address on the loopback, and a server there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from utils import LIMIT, Address

import hvsock


@pytest.fixture
def address() -> Address:
    """An address on the loopback that is free."""
    return "loopback", uuid.uuid4()


@pytest.fixture
def server(address: Address) -> Iterator[hvsock.HyperVSocket]:
    """A server there, of the default transport."""
    with hvsock.create_server(address) as listener:
        listener.settimeout(LIMIT)
        yield listener
