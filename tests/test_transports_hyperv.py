"""AF_HYPERV: what the transport asks of Windows, tried with a recorder everywhere and for real on Windows."""

from __future__ import annotations

import errno
import os
import runpy
import socket
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import utils
from conftest import Recorder, record_native_calls, require
from utils import LIMIT, WINDOWS, connected

import hvsock
from hvsock._transports import hyperv

TRANSPORT = hyperv.HyperVTransport()
ADDRESS = hvsock.HyperVAddress(hvsock.HV_GUID_PARENT, hvsock.service_id_from_port(5000))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    return record_native_calls(monkeypatch, hyperv)


def test_is_tested() -> None:
    """The one skip that says how to have the streams of every other module run over hyperv too."""
    require("hyperv")


def test_constants() -> None:
    assert TRANSPORT.name == "hyperv"
    assert (TRANSPORT.family, TRANSPORT.proto) == (34, 1)


@pytest.mark.skipif(WINDOWS, reason="not on Windows: it is about every other platform")
def test_not_on_this_platform() -> None:
    """It imports everywhere, and every entry says the same clear thing."""
    assert not TRANSPORT.available
    assert "Windows" in (TRANSPORT.reason or "")
    make: Callable[[], object]
    for make in (
        lambda: hvsock.HyperVSocket(transport="hyperv"),
        lambda: hvsock.HyperVSocket(hvsock.AF_HYPERV),
        lambda: hvsock.create_connection(ADDRESS, transport="hyperv"),
        lambda: hvsock.create_server(("wildcard", 5000), transport="hyperv"),
    ):
        with pytest.raises(OSError, match="Windows") as info:
            make()
        assert info.value.errno == errno.EAFNOSUPPORT


@pytest.mark.parametrize("platform", ["darwin", "freebsd14", "linux"])
def test_on_windows_only(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FreeBSD's AF_HYPERV, which Python has too, is 43 with addresses of its own."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(socket, "AF_HYPERV", 43, raising=False)
    transport = runpy.run_path(hyperv.__file__)["HyperVTransport"]()
    assert transport.reason == "AF_HYPERV exists on Windows only."


def test_addresses_are_packed(recorded: list[tuple[Any, ...]]) -> None:
    TRANSPORT.bind(Recorder(), ADDRESS)  # type: ignore[arg-type]
    TRANSPORT.connect(Recorder(), ADDRESS)  # type: ignore[arg-type]
    assert recorded == [("bind", ADDRESS.pack()), ("connect", ADDRESS.pack())]
    assert TRANSPORT.local_address(ADDRESS.pack()) == ADDRESS
    assert TRANSPORT.peer_address(ADDRESS.pack()) == ADDRESS


def test_reason_is_a_sentence() -> None:
    reason = TRANSPORT._refused(OSError(10047, "not supported"))
    assert reason.endswith(".") and "Hyper-V" in reason


# On Windows


@pytest.fixture
def windows() -> None:
    """Only where there is AF_HYPERV; loopback is all that it takes."""
    require("hyperv")


@pytest.mark.usefixtures("windows")
class TestWindows:
    def test_addresses(self) -> None:
        """As go-winio's TestHvSockAddresses found them; the accepted socket's own service id is arbitrary."""
        service = uuid.uuid4()
        with utils.listen("hyperv", ("loopback", service)) as listener:
            assert listener.getsockname() == (hvsock.HV_GUID_LOOPBACK, service)
            with hvsock.create_connection(("loopback", service), timeout=LIMIT, transport="hyperv") as client:
                accepted, peer = listener.accept()
                with accepted:
                    mine = client.getsockname()
                    assert mine.vm_id == hvsock.HV_GUID_CHILDREN
                    assert client.getpeername() == (hvsock.HV_GUID_LOOPBACK, service)
                    assert peer == accepted.getpeername() == (hvsock.HV_GUID_LOOPBACK, mine.service_id)
                    assert type(accepted.getsockname()) is hvsock.HyperVAddress

    def test_protocol(self) -> None:
        with connected("hyperv") as (a, b):
            for sock in (a, b):
                assert (sock.family, sock.proto) == (34, 1)
                with sock.dup() as twin:
                    assert twin.proto == 1

    @pytest.mark.parametrize("option", ["connected_suspend", "high_vtl", "container_passthru"])
    def test_options(self, option: str) -> None:
        """Set, cached, and whatever the system answers of a connected socket, what was set is what is read."""
        with hvsock.HyperVSocket(transport="hyperv") as sock:
            assert getattr(sock, option) is False
            try:
                setattr(sock, option, True)
            except OSError as error:
                # An SDK's option that this Windows does not have: nothing was set.
                assert getattr(sock, option) is False
                pytest.skip(f"this Windows has no {option}: {error}")
            assert getattr(sock, option) is True
            setattr(sock, option, False)
            assert getattr(sock, option) is False

    def test_connected_suspend_is_inherited(self) -> None:
        address = ("loopback", utils.new_service())
        with hvsock.create_server(address, transport="hyperv", connected_suspend=True) as listener:
            assert listener.connected_suspend is True
            listener.settimeout(LIMIT)
            with hvsock.create_connection(address, timeout=LIMIT, transport="hyperv"):
                accepted, _ = listener.accept()
                with accepted:
                    assert accepted.connected_suspend is True

    def test_nobody_listens(self) -> None:
        with pytest.raises(ConnectionRefusedError) as info:
            hvsock.create_connection(("loopback", uuid.uuid4()), timeout=LIMIT, transport="hyperv")
        assert info.value.winerror == 10061  # type: ignore[attr-defined,unused-ignore]
        assert "nothing listens" in "\n".join(info.value.__notes__)

    @pytest.mark.parametrize("vm", ["wildcard", "children"])
    def test_what_cannot_be_dialled(self, vm: str) -> None:
        with pytest.raises(OSError) as info:
            hvsock.create_connection((vm, uuid.uuid4()), timeout=LIMIT, transport="hyperv")
        assert info.value.winerror == 10049  # type: ignore[attr-defined,unused-ignore]
        assert "known cause" in "\n".join(info.value.__notes__)

    def test_duplicate(self) -> None:
        """bind() takes it, listen() does not."""
        with utils.listen("hyperv") as listener, pytest.raises(OSError) as info:
            hvsock.create_server(listener.getsockname(), transport="hyperv")
        assert info.value.winerror == 10048  # type: ignore[attr-defined,unused-ignore]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="3.12+ only: before, socket has no AF_HYPERV addresses")
    def test_against_the_standard_library(self) -> None:
        """CPython's own AF_HYPERV at the other end, both ways."""
        service = uuid.uuid4()
        with socket.socket(34, socket.SOCK_STREAM, 1) as listener:
            listener.bind((str(hvsock.HV_GUID_LOOPBACK), str(service)))
            listener.listen()
            with hvsock.create_connection(("loopback", service), timeout=LIMIT, transport="hyperv") as client:
                accepted, address = listener.accept()
                with accepted:
                    assert uuid.UUID(address[0]) == hvsock.HV_GUID_LOOPBACK
                    client.sendall(b"ours")
                    assert accepted.recv(4) == b"ours"
        with utils.listen("hyperv") as listener, socket.socket(34, socket.SOCK_STREAM, 1) as client:
            name = listener.getsockname()
            client.connect((str(name.vm_id), str(name.service_id)))
            accepted, peer = listener.accept()
            with accepted:
                assert str(peer.service_id).lower() == client.getsockname()[1].lower()
                client.sendall(b"theirs")
                assert utils.receive_exactly(accepted, 6) == b"theirs"

    def test_share_with_another_process(self) -> None:
        with connected("hyperv") as (a, b):
            data = a.share(os.getpid())  # type: ignore[attr-defined]
            with socket.fromshare(data) as twin:  # type: ignore[attr-defined]
                twin.sendall(b"x")
                assert b.recv(1) == b"x"
