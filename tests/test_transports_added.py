"""A transport of one's own: one class, and one line that has the package know it."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from command_line import run

import hvsock
from hvsock import _transports
from hvsock._hvsock import Socket
from hvsock._transports import Option

REFUSED = "nothing listens on this port of the loopback"
LEVEL, NUMBER = socket.SOL_SOCKET, socket.SO_KEEPALIVE


class TcpTransport(hvsock.Transport):
    """A service is a TCP port of the loopback."""

    name = "tcp"
    family = socket.AF_INET
    unsupported = None
    causes = {errno.ECONNREFUSED: REFUSED, 10061: REFUSED}  # noqa: RUF012
    options = {Option.HIGH_VTL: (LEVEL, NUMBER)}  # noqa: RUF012

    def _refused(self, exc: OSError) -> str:
        return f"no TCP here ({exc.strerror})"

    def bind(self, sock: Socket, address: hvsock.HyperVAddress) -> None:
        Socket.bind(sock, ("127.0.0.1", address.port))

    def connect(self, sock: Socket, address: hvsock.HyperVAddress) -> None:
        Socket.connect(sock, ("127.0.0.1", address.port))

    def local_address(self, native: Any) -> hvsock.HyperVAddress:
        return hvsock.as_address(("loopback", native[1]))

    peer_address = local_address


@pytest.fixture(autouse=True)
def tcp() -> Iterator[hvsock.Transport]:
    transport = TcpTransport()
    _transports.add(transport)
    yield transport
    del _transports._BY_NAME[transport.name]
    for table in (_transports._BY_FAMILY, _transports.CARRIERS):
        del table[transport.family]


def test_it_is_known(tcp: hvsock.Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hvsock.transports()[-1] is tcp
    assert tcp.available
    monkeypatch.setenv("HVSOCK_TRANSPORT", "tcp")
    assert hvsock.default_transport() is tcp
    shown = json.loads(run("info", "--json").stdout)["transports"][-1]
    assert (shown["name"], shown["available"], shown["reason"]) == ("tcp", True, None)


def test_it_connects() -> None:
    with hvsock.create_server(("loopback", 0), transport="tcp") as server:
        address = server.getsockname()
        assert type(address) is hvsock.HyperVAddress
        with hvsock.create_connection(address, transport="tcp") as client, server.accept()[0] as peer:
            assert client.getpeername() == address
            assert peer.getpeername() == client.getsockname()
            client.send_message(b"over it")
            assert peer.recv_message() == b"over it"


def test_its_errors_have_its_causes() -> None:
    with hvsock.HyperVSocket(transport="tcp") as sock:
        sock.bind(("loopback", 0))
        address = sock.getsockname()  # nothing listens there
        with pytest.raises(ConnectionRefusedError) as caught:
            hvsock.create_connection(address, transport="tcp")
    assert caught.value.__notes__[-1] == f"known cause: {REFUSED}"
    assert f"peer {address}" in caught.value.__notes__[0]
    with hvsock.create_server(("loopback", 0), transport="tcp") as server:
        with hvsock.HyperVSocket(transport="tcp") as sock, pytest.raises(OSError) as other:
            sock.bind(server.getsockname())
        assert other.value.__notes__ == [f"bind on transport tcp, local {server.getsockname()}"]  # no cause is known


def test_its_options_are_its_own() -> None:
    with hvsock.HyperVSocket(transport="tcp") as sock:
        assert sock.getsockopt(LEVEL, NUMBER) == 0
        sock.high_vtl = True
        assert sock.high_vtl
        assert sock.getsockopt(LEVEL, NUMBER) != 0
        sock.high_vtl = False
        assert (sock.high_vtl, sock.getsockopt(LEVEL, NUMBER)) == (False, 0)
        with pytest.raises(
            OSError, match="transport tcp does not have this option; only transport hyperv has it"
        ) as no:
            sock.connected_suspend = True
        assert no.value.errno == errno.ENOPROTOOPT
    if hasattr(socket, "AF_UNIX"):
        with (
            hvsock.HyperVSocket(transport="local") as sock,
            pytest.raises(OSError, match=r"transport local .*; only transport hyperv and tcp has it"),
        ):
            sock.high_vtl = True
