"""HyperVSocket, create_connection and create_server, and the choice of a transport."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import io
import os
import socket
import sys
import time
import uuid
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import utils
from conftest import require_backlog
from shown_family import SHOWN_FAMILY
from utils import LIMIT, SLACK, TICK, WINDOWS, Task, connected

import hvsock
from hvsock._hvsock import Socket, own_data_path
from hvsock._transports import CARRIERS, transport_named

OPTIONS = ["connected_suspend", "high_vtl", "container_passthru"]

tcp = (socket.AF_INET, socket.SOCK_STREAM)


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


# What it is


def test_is_a_socket(our_pair: tuple[socket.socket, socket.socket]) -> None:
    for sock in our_pair:
        assert isinstance(sock, socket.socket)
        assert isinstance(sock, hvsock.HyperVSocket)
        assert sock.type == socket.SOCK_STREAM
        assert isinstance(sock.fileno(), int)


@pytest.mark.skipif(SHOWN_FAMILY is not None, reason="about the family itself: run without HVSOCK_TEST_FAMILY")
def test_new_socket(transport: str) -> None:
    family = {"local": 1, "vsock": 40, "hyperv": 34}[transport]
    with hvsock.HyperVSocket(transport=transport) as sock:
        assert isinstance(sock, socket.socket)
        assert sock.family == family
        assert sock.type == socket.SOCK_STREAM
        assert sock.gettimeout() is None
        if transport == "hyperv":
            assert sock.proto == hvsock.HV_PROTOCOL_RAW
    with hvsock.HyperVSocket(family, transport=transport) as sock:
        assert sock.family == family
    with hvsock.HyperVSocket(family, socket.SOCK_STREAM) as sock:
        assert sock.family == family
    if transport == "hyperv":
        with hvsock.HyperVSocket(family, socket.SOCK_STREAM, 1) as sock:
            assert sock.proto == 1


def test_repr(transport: str) -> None:
    with connected(transport) as (a, b):
        for sock in (a, b):
            text = repr(sock)
            assert text.startswith("<hvsock.") and text.endswith(">")
            assert "HyperVSocket" in text
            assert f"fd={sock.fileno()}" in text
            # Addresses in a form that one can read: not tuples of UUIDs, and not paths.
            assert "hvsock://" in text
            assert "UUID(" not in text
        assert str(a.getpeername()) in repr(a)
        a.close()
        assert "closed" in repr(a)
    with hvsock.HyperVSocket(transport=transport) as sock:
        assert "HyperVSocket" in repr(sock)


@pytest.mark.skipif(WINDOWS, reason="POSIX only: it is about AF_UNIX")
def test_repr_of_a_socket_without_addresses() -> None:
    """A socketpair has none; inventing some would mislead."""
    with connected("adopted") as (a, _):
        assert "HyperVSocket" in repr(a)


def test_weak_reference_and_hash(our_pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = our_pair
    assert weakref.ref(a)() is a
    assert {a: 1, b: 2}[a] == 1
    assert a != b


def test_context_manager(ours: str) -> None:
    a, b = utils.make_pair(ours)
    with b, a as same:
        assert same is a
    assert a.fileno() == -1


def test_uninitialised_object() -> None:
    """An object whose __init__ has not run, or has failed, is a closed socket, and no crash."""
    sock = hvsock.HyperVSocket.__new__(hvsock.HyperVSocket)
    calls: list[Callable[[], object]] = [
        lambda: sock.recv(1),
        lambda: sock.recv_into(bytearray(1)),
        lambda: sock.send(b"x"),
        lambda: sock.sendall(b"x"),
        lambda: sock.sendmsg([b"x"]),
        lambda: sock.accept(),
        lambda: sock.connect(("loopback", 1)),
        lambda: sock.connect_ex(("loopback", 1)),
        lambda: sock.bind(("loopback", 1)),
        lambda: sock.getsockname(),
        lambda: sock.getpeername(),
        lambda: sock.settimeout(1),
        lambda: sock.detach(),
    ]
    for call in calls:
        with contextlib.suppress(OSError):
            call()
    with contextlib.suppress(AttributeError):  # socket.socket's own: it counts files from __init__ on
        sock.close()
    assert "HyperVSocket" in repr(sock)


def test_initialised_twice(ours: str) -> None:
    """A second __init__ on an open socket neither leaks nor swaps the descriptor under it."""
    a, b = utils.make_pair(ours)
    with a, b:
        descriptor = a.fileno()
        with pytest.raises(RuntimeError):
            a.__init__(*tcp)  # type: ignore[misc]
        assert a.fileno() == descriptor
        a.sendall(b"x")
        assert b.recv(1) == b"x"


# Families


def test_other_family_behaves_as_socket(local: str) -> None:
    """A family that carries no Hyper-V addresses keeps its own, and has the data path all the same."""
    with hvsock.HyperVSocket(*tcp) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(LIMIT)
        with hvsock.HyperVSocket(*tcp) as client:
            client.settimeout(LIMIT)
            client.connect(listener.getsockname())
            accepted, address = listener.accept()
            with accepted:
                assert type(accepted) is hvsock.HyperVSocket
                assert address == client.getsockname() == accepted.getpeername()
                assert accepted.getsockname() == client.getpeername() == listener.getsockname()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                assert client.sendmsg([b"da", b"ta"]) == 4
                assert accepted.recv(10) == b"data"
        with hvsock.HyperVSocket(*tcp) as client:
            assert client.connect_ex(listener.getsockname()) == 0
    with hvsock.HyperVSocket(*tcp) as client, pytest.raises(TypeError):
        client.connect(("loopback", 5000, 1, 2, 3))


def test_adopts_any_family() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as plain:
        name = plain.getsockname()
        with hvsock.HyperVSocket(fileno=plain.detach()) as sock:
            assert sock.family == socket.AF_INET
            assert sock.getsockname() == name
            assert sock.getpeername() == listener.getsockname()


def test_adopts_a_transports_socket(transport: str) -> None:
    """A descriptor of a transport's family is that transport's socket, addresses included, in another object."""
    with connected(transport) as (a, b):
        mine, peer = a.getsockname(), a.getpeername()
        with hvsock.HyperVSocket(fileno=a.detach()) as again:
            assert again.getsockname() == mine
            assert again.getpeername() == peer
            again.sendall(b"x")
            assert b.recv(1) == b"x"


def test_adopts_for_a_transport_only_its_own(transport: str) -> None:
    """A handle of another family, or no stream, is refused at once and stays open; no descriptor is left behind."""
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(socket.create_server(("127.0.0.1", 0)))]
        if transport == "local":
            others += map(stack.enter_context, socket.socketpair(type=socket.SOCK_DGRAM))
        for other in others:
            before = utils.handles()
            with pytest.raises(ValueError, match=transport) as info:
                hvsock.HyperVSocket(fileno=other.fileno(), transport=transport)
            assert f"handle {other.fileno()} " in str(info.value)
            del info
            assert utils.handles() == before
            assert other.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == other.type
    with connected(transport) as (a, b), hvsock.HyperVSocket(fileno=a.detach(), transport=transport) as again:
        again.sendall(b"x")
        assert b.recv(1) == b"x"


def test_explicit_family_is_believed(local: str) -> None:
    """As by the standard library, which does not look at a handle whose family it is told."""
    one, other = socket.socketpair()
    with other, hvsock.HyperVSocket(socket.AF_INET, fileno=one.detach()) as sock:
        assert sock.family == socket.AF_INET
        sock.sendall(b"x")
        assert other.recv(1) == b"x"
    with socket.socket(*tcp) as plain:
        with pytest.raises(ValueError, match="family"):
            hvsock.HyperVSocket(socket.AF_INET, fileno=plain.fileno(), transport=local)
        assert plain.getsockname() == ("0.0.0.0", 0)


def test_adopts_a_familys_number_where_it_means_another(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """34 and 40 are other families on other platforms: what has that number has its own addresses."""
    with connected(transport) as (a, b):
        name = Socket.getsockname(a)
        monkeypatch.delitem(CARRIERS, transport_named(transport).family)
        with hvsock.HyperVSocket(fileno=a.detach()) as again:
            assert again.getsockname() == name
            again.sendall(b"x")
            assert b.recv(1) == b"x"


@pytest.mark.parametrize("fileno", [-1, 1 << 20, "1", 1.0, b"1"], ids=repr)
def test_bad_fileno(fileno: Any) -> None:
    """The same exception as the standard library's."""
    with pytest.raises((OSError, TypeError, ValueError)) as expected:
        socket.socket(fileno=fileno)
    with pytest.raises(expected.type) as info:
        hvsock.HyperVSocket(fileno=fileno)
    assert str(info.value) == str(expected.value)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_RAW, 5])
@pytest.mark.parametrize("name", ["local", "vsock", "hyperv"])
def test_only_streams(kind: int, name: str) -> None:
    """Hyper-V has streams only, which is said before the system is asked."""
    with pytest.raises(ValueError, match=r"(?i)stream"):
        hvsock.HyperVSocket(type=kind, transport=name)


@pytest.mark.skipif(not hasattr(socket, "SOCK_NONBLOCK"), reason="Linux only: flags in the type of a socket")
def test_flags_in_the_type(local: str) -> None:
    """SOCK_NONBLOCK and SOCK_CLOEXEC are no types, and mean what they mean to the standard library."""
    for flags in (socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC):
        with hvsock.HyperVSocket(type=socket.SOCK_STREAM | flags, transport=local) as sock:
            assert sock.type == socket.SOCK_STREAM
            assert sock.gettimeout() == (0.0 if flags & socket.SOCK_NONBLOCK else None)
            assert sock.get_inheritable() is False
    with pytest.raises(ValueError, match=r"(?i)stream"):
        hvsock.HyperVSocket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, transport=local)


def test_family_and_transport_that_differ() -> None:
    with pytest.raises(ValueError, match="family"):
        hvsock.HyperVSocket(*tcp, transport="local")


def test_unknown_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    makers: list[Callable[..., Any]] = [
        hvsock.HyperVSocket,
        lambda **kwargs: hvsock.create_connection(("loopback", 1), **kwargs),
        lambda **kwargs: hvsock.create_server(("loopback", 1), **kwargs),
    ]
    for make in makers:
        for name in ("pigeon", "", "LOCAL", "local "):
            with pytest.raises(ValueError, match="local") as info:
                make(transport=name)
            assert repr(name) in str(info.value)
        with pytest.raises((TypeError, ValueError)):
            make(transport=1)
        with pytest.raises(TypeError):
            make(pigeon=True)
    monkeypatch.setenv("HVSOCK_TRANSPORT", "pigeon")
    with pytest.raises(ValueError, match="pigeon"):
        hvsock.HyperVSocket()
    with pytest.raises(ValueError, match="pigeon"):
        hvsock.default_transport()


# Transports


def test_transports() -> None:
    assert [transport.name for transport in hvsock.transports()] == ["hyperv", "vsock", "local"]
    for transport in hvsock.transports():
        assert isinstance(transport.available, bool)
        if transport.available:
            assert transport.reason is None
        else:
            # A sentence.
            reason = transport.reason
            assert isinstance(reason, str)
            assert " " in reason
            assert reason[0].isupper() and reason.endswith(".")
        assert transport.name in repr(transport)


def test_default_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform's own unless the environment names another; `local` is never chosen silently."""
    assert hvsock.default_transport().name == ("hyperv" if WINDOWS else "vsock")
    for name in ("local", "vsock", "hyperv"):
        monkeypatch.setenv("HVSOCK_TRANSPORT", name)
        assert hvsock.default_transport().name == name
    monkeypatch.setenv("HVSOCK_TRANSPORT", "")
    assert hvsock.default_transport().name != "local"


def test_transport_from_the_environment(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what every call uses that names none; an argument overrides it."""
    monkeypatch.setenv("HVSOCK_TRANSPORT", transport)
    with hvsock.create_server(("loopback", utils.new_service())) as listener:
        listener.settimeout(LIMIT)
        with hvsock.create_connection(listener.getsockname(), timeout=LIMIT) as client:
            accepted, _ = listener.accept()
            with accepted, hvsock.HyperVSocket() as other:
                assert accepted.family == client.family == other.family
    monkeypatch.setenv("HVSOCK_TRANSPORT", "pigeon")
    with hvsock.HyperVSocket(transport=transport):
        pass


@pytest.mark.parametrize("name", ["hyperv", "vsock", "local"])
def test_missing_transport(name: str) -> None:
    """What cannot be had here is an OSError that says how to get one, whoever asks."""
    state = next(transport for transport in hvsock.transports() if transport.name == name)
    if state.available:
        pytest.skip(f"{name} is available: this is about a machine that lacks it")
    makers: list[Callable[[], Any]] = [
        lambda: hvsock.HyperVSocket(transport=name),
        lambda: hvsock.create_connection(("loopback", 5000), transport=name),
        lambda: hvsock.create_server(("loopback", 5000), transport=name),
    ]
    for make in makers:
        with pytest.raises(OSError) as info:
            make()
        assert str(state.reason) in notes(info.value) or str(state.reason) in str(info.value)
        if name != "local":
            assert "local" in notes(info.value)


# Addresses


def test_address_forms(transport: str) -> None:
    """Any pair of VM and service is an address, and what comes back is a HyperVAddress."""
    service = utils.new_service()
    port = hvsock.port_from_service_id(service)
    assert port is not None
    for bound in (("loopback", port), (hvsock.HV_GUID_LOOPBACK, str(service).upper()), ("LOOPBACK", f"{{{service}}}")):
        with hvsock.create_server(bound, transport=transport) as listener:
            name = listener.getsockname()
            assert type(name) is hvsock.HyperVAddress
            assert name == (hvsock.HV_GUID_LOOPBACK, service)
            assert name.port == port
            dialled: list[Any] = [name, ("loopback", port), (str(hvsock.HV_GUID_LOOPBACK), service), tuple(name)]
            for address in dialled:
                with hvsock.create_connection(address, timeout=LIMIT, transport=transport) as client:
                    listener.settimeout(LIMIT)
                    accepted, peer = listener.accept()
                    with accepted:
                        assert type(peer) is hvsock.HyperVAddress
                        assert peer == accepted.getpeername()
                        assert type(client.getsockname()) is hvsock.HyperVAddress
                        assert client.getpeername() == name


BAD_ADDRESSES: list[Any] = [
    None,
    5000,
    "loopback",
    "hvsock://loopback/5000",
    b"loopback",
    (),
    ("loopback",),
    ("loopback", 1, 2),
    ("nowhere", 1),
    ("loopback", -1),
    ("loopback", (1 << 32) - 1),
    ("loopback", 1.5),
    ("loopback", None),
    ("loopback", True),
    (1, 1),
    (None, 1),
    ("loopback", "1"),
    ("loopback", "ssh"),
    ("127.0.0.1", 80),
]


@pytest.mark.parametrize("address", BAD_ADDRESSES, ids=repr)
def test_bad_address(transport: str, address: Any) -> None:
    """TypeError or ValueError, without a call on the system, and the socket can still be used."""
    service = utils.new_service()
    with hvsock.HyperVSocket(transport=transport) as sock:
        calls: list[Callable[[], Any]] = [
            lambda: sock.bind(address),
            lambda: sock.connect(address),
            lambda: sock.connect_ex(address),
            lambda: hvsock.create_connection(address, transport=transport),
            lambda: hvsock.create_server(address, transport=transport),
        ]
        for call in calls:
            with pytest.raises((TypeError, ValueError)) as info:
                call()
            assert str(info.value)
        sock.bind(("loopback", service))
        assert sock.getsockname() == (hvsock.HV_GUID_LOOPBACK, service)


def test_address_of_an_unbound_socket(transport: str) -> None:
    """It has none: the zero address or the system's error, and never an exception of another kind."""
    with hvsock.HyperVSocket(transport=transport) as sock:
        try:
            name = sock.getsockname()
        except OSError:
            assert WINDOWS
        else:
            assert type(name) is hvsock.HyperVAddress
        with pytest.raises(OSError) as info:
            sock.getpeername()
        assert info.value.errno == errno.ENOTCONN or getattr(info.value, "winerror", None) == 10057


def test_connect_ex(transport: str) -> None:
    with utils.listen(transport) as listener, hvsock.HyperVSocket(transport=transport) as sock:
        sock.settimeout(LIMIT)
        assert sock.connect_ex(listener.getsockname()) == 0
        listener.accept()[0].close()
    with hvsock.HyperVSocket(transport=transport) as sock:
        sock.settimeout(LIMIT)
        code = sock.connect_ex(("loopback", utils.new_service()))
        if transport == "local":
            assert code == errno.ECONNREFUSED
        assert code != 0


def test_connect_again(transport: str) -> None:
    """A connected socket is not connected a second time."""
    with utils.listen(transport) as listener, hvsock.HyperVSocket(transport=transport) as sock:
        sock.settimeout(LIMIT)
        sock.connect(listener.getsockname())
        with pytest.raises(OSError) as info:
            sock.connect(listener.getsockname())
        assert info.value.errno == errno.EISCONN or getattr(info.value, "winerror", None) == 10056
        accepted, _ = listener.accept()
        with accepted:
            sock.sendall(b"still")
            assert utils.receive_exactly(accepted, 5) == b"still"


# Options


@pytest.mark.parametrize("option", OPTIONS)
def test_option_of_another_transport(ours: str, option: str) -> None:
    """They are Hyper-V's own; elsewhere they read False, and setting one says why it cannot be."""
    if ours == "hyperv":
        pytest.skip("hyperv has them: test_transports_hyperv sets them")
    with connected(ours) as (a, _):
        assert getattr(a, option) is False
        with pytest.raises(OSError, match="hyperv") as info:
            setattr(a, option, True)
        assert info.value.errno == errno.ENOPROTOOPT
        assert getattr(a, option) is False


def test_option_values_are_cached_and_inherited(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is what was set, on the accepted socket and the duplicate too: shown with a system that is deaf."""
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(hvsock.HyperVSocket, "setsockopt", lambda self, *args: asked.append(args), raising=False)
    monkeypatch.setattr(
        hvsock.HyperVSocket, "getsockopt", lambda *_: pytest.fail("it cannot be trusted"), raising=False
    )
    with utils.listen(local) as listener:
        monkeypatch.setattr(type(transport_named("local")), "options", transport_named("hyperv").options)
        listener.connected_suspend = True
        listener.high_vtl = True
        listener.high_vtl = False
        with hvsock.create_connection(listener.getsockname(), transport=local) as client:
            accepted, _ = listener.accept()
            with accepted, accepted.dup() as twin:
                for sock in (listener, accepted, twin):
                    assert sock.connected_suspend is True
                    assert sock.high_vtl is False
                    assert sock.container_passthru is False
                assert client.connected_suspend is False
    values = [
        (hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECTED_SUSPEND, 1),
        (hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_HIGH_VTL, 1),
        (hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_HIGH_VTL, 0),
    ]
    assert [args for args in asked if args in values] == values


def test_no_delay(transport: str) -> None:
    """What servers set on every connection: no such option is there, and it is as if it were always set."""
    one = (1).to_bytes(4, sys.byteorder)
    with connected(transport) as (a, b), utils.listen(transport) as listener, utils.dialler(transport) as unconnected:
        for sock in (a, b, listener, unconnected):
            for value in (1, 0, True):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, value)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        if transport != "vsock":  # for which CPython has no options in bytes
            a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, bytes(4))
            assert a.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 4) == one
            assert a.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) == one[:1]
        for wrong in ((), (1, 2, 3), ("1",), (1.0,), (None,)):
            with pytest.raises(TypeError):
                a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, *wrong)
        with pytest.raises(OSError, match=r"buflen|buffer"):
            a.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1 << 20)
        a.close()
        for call in (a.getsockopt, lambda *option: a.setsockopt(*option, 1)):
            with pytest.raises(OSError) as info:
                call(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert info.value.errno in (errno.EBADF, errno.ENOTSOCK)


def test_other_options_are_the_systems(ours: str) -> None:
    """No other option is accepted and ignored, and elsewhere TCP_NODELAY is what was set."""
    with connected(ours) as (a, _):
        a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        assert a.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 50_000
        for option in ((socket.IPPROTO_TCP, 9999), (9999, socket.TCP_NODELAY)):
            with pytest.raises(OSError):
                a.setsockopt(*option, 1)
            with pytest.raises(OSError):
                a.getsockopt(*option)
    with hvsock.HyperVSocket(*tcp) as sock:
        for value in (0, 1, 0):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, value)
            assert bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is bool(value)
    with hvsock.HyperVSocket(*tcp) as sock:
        sock.close()
        with pytest.raises(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# Files


class Reads(io.BytesIO):
    """A file that notes how much is asked of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.sizes: list[int] = []

    def read(self, size: int | None = -1, /) -> bytes:
        self.sizes.append(-1 if size is None else size)
        return super().read(size)


@pytest.mark.parametrize(("offset", "count"), [(0, None), (7, None), (0, 300_000), (7, 9), (7, 1 << 30), (1 << 30, 1)])
def test_sendfile_reads_large_blocks(ours: str, offset: int, count: int | None) -> None:
    payload = utils.random_bytes((1 << 20) + 1)
    expected = payload[offset:] if count is None else payload[offset : offset + count]
    file = Reads(payload)
    with connected(ours) as (a, b):
        receiving = Task(utils.receive_all, b)
        sent = a.sendfile(file, offset, count)
        a.shutdown(socket.SHUT_WR)
        assert receiving.result() == expected
    assert sent == len(expected)
    assert file.tell() == offset + sent
    assert len(file.sizes) <= 10
    assert sum(file.sizes) <= sent + (256 << 10)


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("offset", [0, 3])
def test_sendfile_after_an_error(ours: str, tmp_path: Path, where: str, offset: int) -> None:
    """The file's position says how much was sent, the partial send that came last included."""
    payload = utils.random_bytes(64 << 20)
    path = tmp_path / "file"
    path.write_bytes(payload if where == "file" else b"")
    with path.open("rb") if where == "file" else io.BytesIO(payload) as file, connected(ours) as (a, b):
        file.seek(100)
        start = offset or (100 if where == "memory" or WINDOWS else 0)
        a.settimeout(2 * TICK)
        with pytest.raises(TimeoutError):
            a.sendfile(file, offset)
        a.close()
        assert utils.receive_all(b) == payload[start : file.tell()]
        assert file.tell() > 100


@pytest.mark.parametrize("count", [0, -1, 1.0, "1", b""])
def test_sendfile_of_no_count(ours: str, count: Any) -> None:
    with connected(ours) as (a, b), connected("stdlib") as (oracle, _):
        errors = []
        for sock in (a, oracle):
            with pytest.raises((TypeError, ValueError)) as caught:
                sock.sendfile(io.BytesIO(b"x"), 0, count)
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1]
        assert a.sendfile(io.BytesIO(b"x"), 0, True) == 1
        assert b.recv(2) == b"x"


def test_sendfile_that_is_refused(ours: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with connected(ours) as (a, b):
        with path.open() as text, pytest.raises(ValueError, match="binary mode"):
            a.sendfile(text)
        a.setblocking(False)
        with path.open("rb") as file, pytest.raises(ValueError, match="non-blocking"):
            a.sendfile(file)
        a.settimeout(LIMIT)
        assert a.sendfile(io.BytesIO(b"")) == 0
        a.close()
        assert b.recv(1) == b""
    with hvsock.HyperVSocket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="SOCK_STREAM"):
        sock.sendfile(io.BytesIO(b"x"))


class NotYet(io.RawIOBase):
    """A non-blocking file with some bytes, and later perhaps more."""

    def __init__(self) -> None:
        self._left = b"some"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        size, self._left = len(self._left), b""
        buffer[:size] = b"some"[:size]
        return size or None


def test_sendfile_of_what_is_not_there_yet(ours: str) -> None:
    """It is no end of the file."""
    with connected(ours) as (a, b), NotYet() as file:
        with pytest.raises(TypeError):
            a.sendfile(file)
        assert b.recv(10) == b"some"


# create_server


def test_create_server(transport: str) -> None:
    service = utils.new_service()
    for kwargs in ({}, {"backlog": 1}, {"backlog": 0}, {"backlog": None}, {"connected_suspend": True}):
        with hvsock.create_server(("wildcard", service), transport=transport, **kwargs) as listener:
            assert listener.getsockname() == (hvsock.HV_GUID_WILDCARD, service)
            assert listener.gettimeout() is None
            listener.settimeout(LIMIT)
            with hvsock.create_connection(("loopback", service), timeout=LIMIT, transport=transport) as client:
                accepted, address = listener.accept()
                with accepted:
                    assert type(accepted) is hvsock.HyperVSocket
                    assert address.service_id == client.getsockname().service_id
                    accepted.sendall(b"hello")
                    assert utils.receive_exactly(client, 5) == b"hello"


def test_create_server_twice(transport: str) -> None:
    """A second listener is refused while the first lives, and takes over when it is gone."""
    with utils.listen(transport) as listener:
        name = listener.getsockname()
        for _ in range(2):
            with pytest.raises(OSError) as info:
                hvsock.create_server(name, transport=transport)
            assert info.value.errno == errno.EADDRINUSE or getattr(info.value, "winerror", None) == 10048
        with hvsock.create_connection(name, timeout=LIMIT, transport=transport):
            listener.accept()[0].close()
    with utils.listen(transport, name) as listener:
        assert listener.getsockname() == name


@pytest.mark.parametrize("how", ["create_server", "listen"])
def test_a_burst_of_clients_fits_into_the_backlog(served: str, how: str) -> None:
    """Of none that is accepted meanwhile; 128, the most that socket.listen allows, lost some on AF_VSOCK."""
    require_backlog(300)
    address = hvsock.as_address(("loopback", utils.new_service()))
    with contextlib.ExitStack() as stack:
        if how == "create_server":
            listener = stack.enter_context(hvsock.create_server(address, transport=served))
        else:
            listener = stack.enter_context(hvsock.HyperVSocket(transport=served))
            listener.bind(address)
            listener.listen()
        for _ in range(300):
            stack.enter_context(hvsock.create_connection(address, LIMIT, transport=served))
        listener.settimeout(LIMIT)
        for _ in range(300):
            listener.accept()[0].close()


@pytest.mark.parametrize("backlog", ["1", 1.5, 1 << 40], ids=repr)
def test_bad_backlog(transport: str, backlog: Any) -> None:
    with pytest.raises((TypeError, OverflowError)):
        hvsock.create_server(("loopback", utils.new_service()), backlog=backlog, transport=transport)


def test_arguments_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        hvsock.create_server(("loopback", 5000), 5)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        hvsock.create_connection(("loopback", 5000), 1.0, "local")  # type: ignore[call-arg]


# create_connection


def test_create_connection(transport: str) -> None:
    with utils.listen(transport) as listener:
        with hvsock.create_connection(listener.getsockname(), transport=transport) as client:
            assert client.gettimeout() is None
            listener.accept()[0].close()
        with hvsock.create_connection(listener.getsockname(), LIMIT, transport=transport) as client:
            assert client.gettimeout() == pytest.approx(LIMIT)
            listener.accept()[0].close()
        with hvsock.create_connection(listener.getsockname(), None, transport=transport, retry_for=LIMIT) as client:
            assert client.gettimeout() is None
            listener.accept()[0].close()
        with hvsock.create_connection(listener.getsockname(), LIMIT, transport=transport, retry_for=TICK) as client:
            assert client.gettimeout() == pytest.approx(LIMIT)
            listener.accept()[0].close()


def test_nobody_listens(transport: str) -> None:
    """Without retry_for there is one attempt, which fails soon."""
    start = time.monotonic()
    with pytest.raises(OSError):
        hvsock.create_connection(("loopback", utils.new_service()), timeout=LIMIT, transport=transport)
    assert time.monotonic() - start < LIMIT / 2


@pytest.mark.parametrize("timeout", [None, LIMIT, TICK], ids=["blocking", "timeout", "short timeout"])
def test_retry_until_the_server_starts(transport: str, timeout: float | None) -> None:
    address = hvsock.HyperVAddress(hvsock.HV_GUID_LOOPBACK, utils.new_service())
    task = Task(hvsock.create_connection, address, timeout, transport=transport, retry_for=LIMIT)
    assert not task.wait(6 * TICK)
    with utils.listen(transport, address) as listener, task.result() as client:
        assert client.gettimeout() == (None if timeout is None else pytest.approx(timeout))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            client.sendall(b"at last")
            assert utils.receive_exactly(accepted, 7) == b"at last"


def test_retry_gives_up(transport: str) -> None:
    """The last error is raised, when the time is over and not long after it."""
    start = time.monotonic()
    with pytest.raises(OSError) as info:
        hvsock.create_connection(("loopback", utils.new_service()), transport=transport, retry_for=8 * TICK)
    elapsed = time.monotonic() - start
    # An attempt that could not end in time is not begun.
    assert 4 * TICK <= elapsed < SLACK
    if transport == "local":
        assert type(info.value) is ConnectionRefusedError
    assert "connect" in notes(info.value)


class Clock:
    """In place of the system's: it moves only while somebody sleeps, so that a loaded machine does not move it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


class Attempts:
    """A connect that fails with the given errors in turn, the last one for ever, or succeeds for None."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: BaseException | None) -> None:
        self.errors = list(errors)
        self.times: list[float] = []
        self.timeouts: list[float | None] = []
        monkeypatch.setattr(hvsock.HyperVSocket, "connect", lambda sock, _address: self.attempt(sock))

    def attempt(self, sock: socket.socket) -> None:
        self.times.append(time.monotonic())
        self.timeouts.append(sock.gettimeout())
        error = self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
        if error is not None:
            raise error


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "denied"),
        OSError(errno.EINVAL, "disabled"),
        OSError(errno.EADDRNOTAVAIL, "wildcard"),
        ValueError("an address that the transport cannot express"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_no_retry_of_lasting_errors(served: str, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    attempts = Attempts(monkeypatch, error)
    with pytest.raises(type(error)) as info:
        hvsock.create_connection(("loopback", 5000), transport=served, retry_for=LIMIT)
    assert info.value is error
    assert len(attempts.times) == 1


def test_retry_of_passing_errors(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETUNREACH, errno.ENETDOWN, errno.ETIMEDOUT)
    clock = Clock(monkeypatch)
    attempts = Attempts(monkeypatch, *(OSError(code, "passing") for code in codes), TimeoutError("timed out"), None)
    hvsock.create_connection(("loopback", 5000), 1.5, transport=served, retry_for=LIMIT).close()
    assert len(attempts.times) == len(codes) + 2
    assert attempts.timeouts[0] == pytest.approx(1.5)
    # It backs off: the wait doubles.
    assert clock.sleeps == [clock.sleeps[0] * 2**n for n in range(len(codes) + 1)]


def test_lasting_error_ends_the_retries(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lasting = PermissionError(errno.EACCES, "denied")
    attempts = Attempts(monkeypatch, ConnectionRefusedError(errno.ECONNREFUSED, "refused"), lasting)
    with pytest.raises(PermissionError):
        hvsock.create_connection(("loopback", 5000), transport=served, retry_for=LIMIT)
    assert len(attempts.times) == 2


def test_retry_has_one_deadline(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt may take its timeout, but no longer than what is left of retry_for."""
    clock = Clock(monkeypatch)
    attempts = Attempts(monkeypatch, ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    with pytest.raises(ConnectionRefusedError):
        hvsock.create_connection(("loopback", 5000), 8, transport=served, retry_for=10)
    assert len(attempts.times) > 10
    assert attempts.timeouts == [pytest.approx(min(8, 10 - began)) for began in attempts.times]
    assert 9 < clock.now < 10


def test_retry_without_a_timeout(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may never come, as to a Linux guest of Hyper-V: no attempt waits longer than the system would."""
    Clock(monkeypatch)
    attempts = Attempts(monkeypatch, TimeoutError("timed out"))
    with pytest.raises(TimeoutError):
        hvsock.create_connection(("loopback", 5000), None, transport=served, retry_for=10)
    assert attempts.timeouts[0] == 2
    assert attempts.timeouts == [pytest.approx(min(2, 10 - began)) for began in attempts.times]


def test_retry_against_a_full_backlog(local: str) -> None:
    """Attempts that get no answer end by the deadline too, whatever their own timeout."""
    with contextlib.ExitStack() as stack:
        listener = utils.full_listener(local, stack)
        for timeout in (None, LIMIT, TICK):
            start = time.monotonic()
            with pytest.raises(TimeoutError):
                Task(
                    hvsock.create_connection, listener.getsockname(), timeout, transport=local, retry_for=4 * TICK
                ).result()
            assert time.monotonic() - start < SLACK


@pytest.mark.parametrize("retry_for", [-1, float("nan"), float("inf")], ids=repr)
def test_bad_retry_for(served: str, retry_for: float) -> None:
    with pytest.raises(ValueError, match="retry_for"):
        hvsock.create_connection(("loopback", 5000), transport=served, retry_for=retry_for)


@pytest.mark.parametrize("timeout", [-1, "1", float("nan")], ids=repr)
def test_bad_timeout(served: str, timeout: Any) -> None:
    """As `settimeout` says, and no socket is left open."""
    with pytest.raises((TypeError, ValueError)):
        hvsock.create_connection(("loopback", 5000), timeout, transport=served)
    gc.collect()


def test_failed_attempts_close_their_sockets(served: str) -> None:
    """Which a warning of an unclosed socket would show."""
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            hvsock.create_connection(("loopback", 5000), transport=served, retry_for=TICK)
        with pytest.raises(ConnectionRefusedError) as info:
            hvsock.create_connection(("loopback", 5000), transport=served)
        del info
    gc.collect()


@pytest.mark.parametrize("how", ["half made", "closed", "given up"])
def test_accept_whose_init_fails(local: str, how: str) -> None:
    """The accepted descriptor is closed once, whoever has it by then, and never its next owner's."""
    taken: list[int] = []

    class Refusing(hvsock.HyperVSocket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if "fileno" not in kwargs:  # the server
                super().__init__(*args, **kwargs)
                return
            if how == "half made":
                socket.socket.__init__(self, *args, **kwargs)
            else:
                super().__init__(*args, **kwargs)
                self.close() if how == "closed" else os.close(self.detach())
                taken.append(os.open(os.devnull, os.O_RDONLY))
                assert taken[0] == kwargs["fileno"]
            raise ZeroDivisionError

    with Refusing(transport=local) as server:
        server.bind(("loopback", 5000))
        server.listen()
        with hvsock.create_connection(("loopback", 5000), transport=local) as client:
            before = utils.open_descriptors()
            with pytest.raises(ZeroDivisionError):
                server.accept()
            gc.collect()
            assert client.recv(1) == b""
            for descriptor in taken:
                os.close(descriptor)
            assert utils.open_descriptors() == before


class Takes(hvsock.HyperVSocket):
    """A subclass whose constructor takes what HyperVSocket's does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made = True


class Named(hvsock.HyperVSocket):
    """A subclass whose constructor takes other arguments."""

    def __init__(self, name: str, *, transport: str) -> None:
        super().__init__(transport=transport)
        self.name = name


class NamedByNew(hvsock.HyperVSocket):
    """A subclass whose __new__ takes other arguments."""

    def __new__(cls, name: str, **_kwargs: Any) -> NamedByNew:
        return super().__new__(cls)

    def __init__(self, _name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Ignoring(hvsock.HyperVSocket):
    """A subclass whose constructor takes a handle, and opens another one."""

    def __init__(self, *_args: Any, fileno: int | None = None, transport: str = "local") -> None:
        super().__init__(transport=transport)


class Another(hvsock.HyperVSocket):
    """A subclass whose __new__ may make something else."""

    def __new__(cls, *_args: Any, fileno: int | None = None, **_kwargs: Any) -> Any:
        return super().__new__(cls) if fileno is None else []


@pytest.mark.parametrize(
    ("make", "of"),
    [
        (hvsock.HyperVSocket, hvsock.HyperVSocket),
        (Takes, Takes),
        (functools.partial(Named, "a"), hvsock.HyperVSocket),
        (functools.partial(NamedByNew, "a"), hvsock.HyperVSocket),
        (Ignoring, hvsock.HyperVSocket),
        (Another, hvsock.HyperVSocket),
    ],
    ids=["plain", "takes", "named", "named by new", "ignoring", "another"],
)
def test_class_of_accepted_socket(
    make: Callable[..., hvsock.HyperVSocket], of: type[hvsock.HyperVSocket], local: str
) -> None:
    """The listener's, where its constructor takes the handle; else HyperVSocket: a client is never lost by it."""
    with make(transport=local) as server:
        server.busy_poll = 7
        server._options = 5
        server.bind(("loopback", 5000))
        server.listen()
        with hvsock.create_connection(("loopback", 5000), transport=local) as client:
            before = utils.open_descriptors()
            accepted, address = server.accept()
            with accepted:
                assert type(accepted) is of
                assert getattr(accepted, "made", False) == (of is Takes)
                assert address == client.getsockname()._replace(vm_id=hvsock.HV_GUID_LOOPBACK)
                assert accepted.getsockname().port == 5000
                assert (accepted.busy_poll, accepted._options, accepted.gettimeout()) == (7, 5, None)
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"
            assert client.recv(1) == b""
            gc.collect()
            assert utils.open_descriptors() == before


def test_accepted_socket_is_set_up_as_by_the_base(served: str) -> None:
    """accept() does in C what socket.socket.__init__ does in Python."""
    with connected(served) as (_, accepted), socket.socket() as plain:
        for name in set(socket.socket.__slots__) - {"__weakref__"}:
            assert getattr(accepted, name) == getattr(plain, name)
            assert type(getattr(accepted, name)) is type(getattr(plain, name))


def test_accept_whose_class_has_a_fault(served: str) -> None:
    """A TypeError after the handle was taken is no matter of the arguments, and is raised."""

    class Faulty(hvsock.HyperVSocket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if "fileno" in kwargs:
                raise TypeError("a fault")

    with Faulty(transport=served) as server:
        server.bind(("loopback", 5000))
        server.listen()
        with hvsock.create_connection(("loopback", 5000), transport=served) as client:
            with pytest.raises(TypeError, match="a fault"):
                server.accept()
            assert client.recv(1) == b""


def test_accepts_as_its_own_subclasses_only(served: str) -> None:
    with hvsock.HyperVSocket(transport=served) as sock:
        for wrong in (socket.socket, int, 3):
            with pytest.raises(TypeError, match="subclass of Socket"):
                sock._accept_plain(wrong)  # type: ignore[arg-type]


def test_after_close(served: str) -> None:
    """It is called once and after the handle is closed; its error is close()'s; detach() forgets it."""
    seen: list[str] = []

    with connected(served) as (a, b):

        def after() -> None:
            seen.append("after")
            assert b.recv(1) == b""
            assert a.fileno() == -1
            raise ZeroDivisionError

        a._after_close(lambda: seen.append("replaced"))
        a._after_close(after)
        with pytest.raises(ZeroDivisionError):
            a.close()
        a.close()
        with pytest.raises(OSError) as info:
            a._after_close(None)
        assert info.value.errno == (10038 if WINDOWS else errno.EBADF)
        b._after_close(lambda: seen.append("taken back"))
        b._after_close(None)
    with hvsock.HyperVSocket(transport=served) as detached:
        detached._after_close(lambda: seen.append("detached"))
        socket.close(detached.detach())
    assert seen == ["after"]


def test_after_close_is_collected(served: str) -> None:
    """What it refers to may refer to the socket."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        sock = hvsock.HyperVSocket(transport=served)
        sock._after_close(functools.partial(id, sock))
        gone = weakref.ref(sock)
        del sock
        gc.collect()
    assert gone() is None


@pytest.mark.skipif(WINDOWS, reason="POSIX only: descriptors are passed over AF_UNIX")
def test_descriptor_passed_to_another_object(local: str) -> None:
    """socket.send_fds and recv_fds take ours, and HyperVSocket(fileno=) the descriptor that arrives."""
    with connected(local) as (a, b), connected(local) as (c, d):
        socket.send_fds(a, [b"one"], [c.fileno()])
        data, [descriptor], _flags, _address = socket.recv_fds(b, 10, 1)
        assert data == b"one"
        with hvsock.HyperVSocket(fileno=descriptor) as same:
            assert same.getpeername() == c.getpeername()
            same.sendall(b"x")
            assert d.recv(1) == b"x"


def test_service_ids_need_not_be_ports(transport: str) -> None:
    """Any GUID is a service, except on vsock."""
    if transport == "vsock":
        pytest.skip("AF_VSOCK has ports only: test_transports_vsock has the error")
    service = uuid.uuid4()
    with hvsock.create_server(("wildcard", service), transport=transport) as listener:
        assert listener.getsockname() == (hvsock.HV_GUID_WILDCARD, service)
        assert listener.getsockname().port is None
        with hvsock.create_connection(("loopback", service), timeout=LIMIT, transport=transport) as client:
            assert client.getpeername().service_id == service


def test_audit_events() -> None:
    """What CPython tells its audit hooks of sockets, it tells of ours: it is the base class that makes them."""
    events: list[str] = []
    active = [True]
    sys.addaudithook(lambda event, _args: events.append(event) if active and event.startswith("socket.") else None)
    hvsock.HyperVSocket(*tcp).close()
    active.clear()
    assert "socket.__new__" in events


def test_path_of_the_test_directory_is_short(local: str) -> None:
    assert len(os.environ["HVSOCK_LOCAL_DIR"]) < 30


@pytest.mark.parametrize("name", ["send", "sendall", "sendmsg", "recv", "recv_into"])
def test_data_methods_are_the_classs_own(name: str) -> None:
    """The interpreter calls a method of C directly only if the object is of the type that the method was made for."""
    assert vars(hvsock.HyperVSocket)[name].__objclass__ is hvsock.HyperVSocket


@pytest.mark.parametrize("wrong", [int, socket.socket, 5, None])
def test_data_methods_are_for_subclasses_only(wrong: Any) -> None:
    with pytest.raises(TypeError):
        own_data_path(wrong)
    with pytest.raises(TypeError):
        hvsock.HyperVSocket.send(socket.socket, b"x")  # type: ignore[arg-type]
