"""The mission's scene: a host service bound to the wildcard, a guest that connects to the parent, in two processes."""

from __future__ import annotations

import uuid

import pytest
import utils
from children import scene
from utils import SCALE, WINDOWS, Child

import hvsock

GUEST = uuid.UUID("5d5f3c0e-0d7c-4a2e-9b0e-3a4d5c6b7a89")
SIZE = int((16 << 20) / max(1.0, SCALE))


def play(transport: str, target: str, vm_seen: uuid.UUID, guest_env: dict[str, str]) -> None:
    """Run both ends to their end and compare what they say."""
    with Child(scene.host, transport, vm_seen, SIZE) as host:
        port = host.line()
        with Child(scene.guest, transport, target, port, SIZE, env=guest_env) as guest:
            assert guest.line() == host.line(), "the guest's own service id is the one that the host sees"
            sent = guest.line()
            assert host.line() == f"{SIZE} {sent}"
            sent = host.line()
            assert guest.line() == f"{SIZE} {sent}"
            guest.finish()
        host.finish()


def test_host_and_guest(transport: str) -> None:
    """Over `local` the guest is a guest; where only loopback is to be had, it plays one."""
    if transport == "local":
        play(transport, "parent", GUEST, {"HVSOCK_LOCAL_VM": str(GUEST)})
    else:
        play(transport, "loopback", hvsock.HV_GUID_LOOPBACK, {})


@pytest.mark.parametrize("name", ["local", "vsock", "hyperv"])
def test_transport_chosen_by_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same programs run unchanged on any transport: only HVSOCK_TRANSPORT differs."""
    if reason := utils.reason_to_skip(name):
        pytest.skip(reason)
    if name == "local" and WINDOWS:
        pytest.skip("Python has no AF_UNIX on Windows")
    monkeypatch.setenv("HVSOCK_TRANSPORT", name)
    with Child(scene.serve_default) as server, Child(scene.dial_default, server.line()) as client:
        assert client.line() == "HELLO"
        client.finish()
        server.finish()
