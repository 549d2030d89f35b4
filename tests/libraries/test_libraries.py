"""Each library's server and client, in two processes, in each way in which docs/reference/libraries.md says it works.

On `local`, run it with HVSOCK_TEST_FAMILY=vsock too: libraries know AF_UNIX, and may treat the real families otherwise.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest
import utils
from utils import Child

import hvsock
from libraries import catalogue, roles
from libraries.catalogue import LIBRARIES

INSTALL = "pip install -r tests/libraries/requirements.txt"
#: With HVSOCK_REQUIRE_LIBRARIES=1, a library that is not installed fails the tests.
REQUIRED = os.environ.get("HVSOCK_REQUIRE_LIBRARIES") == "1"
#: The VM that the client is in, where one machine can play a host and a guest.
GUEST = "6f2a3b7e-51a4-4c0d-9a53-0c5d1e7f8a42"


class Place(NamedTuple):
    """Where a transport's server listens, and where its client connects to, from which VM."""

    listen: str
    connect: str
    environment: dict[str, str]
    peer: str


PLACES = {
    "local": Place("wildcard", "parent", {"HVSOCK_LOCAL_VM": GUEST}, GUEST),
    "vsock": Place("loopback", "loopback", {}, str(hvsock.HV_GUID_LOOPBACK)),
    "hyperv": Place("wildcard", "parent", {"HVSIM_PARTITION": GUEST}, GUEST),
}
TESTED = [name for name in utils.tested() if name in PLACES]
CASES = [
    pytest.param(transport, key, how, id=f"{transport}-{key}-{how}")
    for transport in TESTED
    for key, how in catalogue.cases(transport)
    if REQUIRED or catalogue.missing(key, how) is None
]


@pytest.mark.parametrize(("transport", "key", "how"), CASES)
def test_server_and_client(transport: str, key: str, how: str) -> None:
    place, service = PLACES[transport], utils.new_service()
    words = (key, how)
    environment = {"HVSOCK_TRANSPORT": transport}
    with Child(roles.run, "server", *words, f"hvsock://{place.listen}/{service}", env=environment) as server:
        assert server.line() == "ready"
        with Child(
            roles.run,
            "client",
            *words,
            f"hvsock://{place.connect}/{service}",
            env={**environment, **place.environment},
        ) as client:
            try:
                lines = client.finish()
            except AssertionError as error:
                error.add_note(f"the server's errors:\n{server.errors()}")
                raise
    peer = place.peer if LIBRARIES[key].peer else None
    assert lines == ["requests", "10 MB", "late", f"peer {peer}"]


@pytest.mark.parametrize("transport", TESTED)
def test_every_library_is_installed(transport: str) -> None:
    missing = sorted({str(it) for case in catalogue.cases(transport) if (it := catalogue.missing(*case))})
    if missing and not REQUIRED:
        pytest.skip(f"not installed, so not tested: {', '.join(missing)}; {INSTALL}")
    assert missing == []
