"""The simulated provider, tested with CPython's own ``socket.AF_HYPERV``, and without hvsock.

What Windows does (the project's facts, and CPython's BasicHyperVTest) is what these tests demand;
so a test of hvsock that passes over the provider has been measured with a straight ruler.
"""

# ruff: noqa: E402 (what comes after the skips is not there on other platforms)

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

if sys.platform != "win32":
    pytest.skip("Windows Python only: tests/windows/run has one", allow_module_level=True)
if sys.version_info < (3, 12):
    pytest.skip("CPython's socket.AF_HYPERV is new in 3.12", allow_module_level=True)

hvsim = pytest.importorskip("hvsim", reason="the simulated provider only: tests/windows/run has it")

import _overlapped
import _winapi
import winreg
from socket import (
    AF_HYPERV,
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_WILDCARD,
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECT_TIMEOUT_MAX,
    HVSOCKET_CONNECTED_SUSPEND,
)

import winsock
from winsock import refused

HV_GUID_SILOHOST = "36bd0c5c-7276-4223-88ba-7d03b654c568"
VM = "11111111-2222-4333-8444-555555555555"
OTHER_VM = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
HOST = "parent"
#: How long a connect may be pending by default, in seconds.
DEFAULT_TIMEOUT = 2.0
#: For what must happen; only a hang reaches it.
LIMIT = 30.0

EACCES, EFAULT, EINVAL, EWOULDBLOCK = 10013, 10014, 10022, 10035
EPROTOTYPE, EPROTONOSUPPORT, ESOCKTNOSUPPORT = 10041, 10043, 10044
EADDRINUSE, EADDRNOTAVAIL, ENETDOWN, ENETUNREACH = 10048, 10049, 10050, 10051
ECONNRESET, ENOBUFS, EISCONN, ENOTCONN, ESHUTDOWN, ETIMEDOUT, ECONNREFUSED = (
    10054,
    10055,
    10056,
    10057,
    10058,
    10060,
    10061,
)
OPERATION_ABORTED, IO_INCOMPLETE = 995, 996


@pytest.fixture
def service() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``inside(VM)``: from here on this process makes its sockets in that partition."""
    return lambda partition: monkeypatch.setenv("HVSIM_PARTITION", partition)


@contextlib.contextmanager
def new() -> Iterator[socket.socket]:
    with socket.socket(AF_HYPERV, socket.SOCK_STREAM, HV_PROTOCOL_RAW) as sock:
        sock.settimeout(LIMIT)
        yield sock


@contextlib.contextmanager
def listening(vm: str, service: str) -> Iterator[socket.socket]:
    with new() as sock:
        sock.bind((vm, service))
        sock.listen()
        yield sock


@contextlib.contextmanager
def connected(vm: str, service: str) -> Iterator[socket.socket]:
    with new() as sock:
        sock.connect((vm, service))
        yield sock


@pytest.fixture
def pair(service: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    with listening(HV_GUID_LOOPBACK, service) as server, connected(HV_GUID_LOOPBACK, service) as client:
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            yield client, accepted


def uuids(address: tuple[str, str]) -> tuple[uuid.UUID, uuid.UUID]:
    """Of an address as the socket module gives it: the case of its text is not to be relied on."""
    return uuid.UUID(address[0]), uuid.UUID(address[1])


@contextlib.contextmanager
def child(code: str, partition: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, with pipes, that has imported socket and sys."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import socket, sys\n{code}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HVSIM_PARTITION": partition} | environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# Making a socket


def test_no_protocol() -> None:
    with refused(EPROTOTYPE):
        socket.socket(AF_HYPERV)


@pytest.mark.parametrize(
    ("kind", "protocol", "error"),
    [(socket.SOCK_STREAM, 2, EPROTONOSUPPORT), (socket.SOCK_DGRAM, 1, ESOCKTNOSUPPORT)],
)
def test_wrong_kind(kind: int, protocol: int, error: int) -> None:
    with refused(error):
        socket.socket(AF_HYPERV, kind, protocol)


@pytest.mark.parametrize(
    "address",
    [
        (1, "x"),
        ("x",),
        (None, None),
        ("{00000000-0000-0000-0000-000000000000}", HV_GUID_WILDCARD),
        ("not a guid", "not a guid"),
    ],
)
def test_address_argument(address: object) -> None:
    with new() as sock:
        for method in (sock.bind, sock.connect):
            with pytest.raises((OSError, TypeError, ValueError)):
                method(address)  # type: ignore[arg-type]


def test_other_families_pass_by() -> None:
    hvsim.reset_counts()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, peer = server.accept()
        with accepted:
            assert peer == client.getsockname()
            client.sendall(b"tcp")
            assert accepted.recv(10) == b"tcp"
    assert hvsim.counts() == {}


# Names


def test_bind_twice(service: str) -> None:
    with new() as sock:
        sock.bind((HV_GUID_WILDCARD, service))
        with refused(EINVAL):
            sock.bind((HV_GUID_WILDCARD, service))


@pytest.mark.parametrize("vm", [HV_GUID_BROADCAST, HV_GUID_SILOHOST, HV_GUID_PARENT])
def test_bind_on_the_host_refuses(vm: str, service: str) -> None:
    with new() as sock, refused(EADDRNOTAVAIL):
        sock.bind((vm, service))


def test_listen_unbound() -> None:
    with new() as sock, refused(EINVAL):
        sock.listen()


def test_listen_without_a_service() -> None:
    with new() as sock:
        sock.bind((HV_GUID_WILDCARD, HV_GUID_WILDCARD))
        with refused(EINVAL):
            sock.listen()


def test_listen_refuses_a_duplicate(service: str) -> None:
    with new() as second:
        with listening(HV_GUID_WILDCARD, service):
            second.bind((HV_GUID_WILDCARD, service))
            with refused(EADDRINUSE):
                second.listen()
        with new() as third:
            third.bind((HV_GUID_WILDCARD, service))
            third.listen()


def test_listen_twice_changes_the_backlog_only(service: str) -> None:
    with listening(HV_GUID_WILDCARD, service) as server:
        server.listen(5)


def test_killed_listener_frees_its_name(service: str) -> None:
    code = (
        "s = socket.socket(socket.AF_HYPERV, 1, 1); s.bind((socket.HV_GUID_WILDCARD, sys.argv[1])); s.listen();"
        "print('ready', flush=True); sys.stdin.read()"
    ).replace("sys.argv[1]", repr(service))
    with child(code, HOST) as other:
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        with new() as sock:
            sock.bind((HV_GUID_WILDCARD, service))
            with refused(EADDRINUSE):
                sock.listen()
            other.kill()
            other.wait(LIMIT)
            sock.listen()


def test_duplicate_keeps_the_name(service: str) -> None:
    with listening(HV_GUID_LOOPBACK, service) as server:
        copy = server.dup()
    with copy:
        copy.settimeout(LIMIT)
        with new() as late:
            late.bind((HV_GUID_LOOPBACK, service))
            with refused(EADDRINUSE):
                late.listen()
        with connected(HV_GUID_LOOPBACK, service):
            copy.accept()[0].close()
    with refused(ECONNREFUSED), connected(HV_GUID_LOOPBACK, service):
        pass


# Data


def test_data(pair: tuple[socket.socket, socket.socket]) -> None:
    client, accepted = pair
    payload = bytes(range(256)) * 4096
    sender = threading.Thread(target=client.sendall, args=(payload,))
    sender.start()
    received = bytearray()
    while len(received) < len(payload):
        received += accepted.recv(65536)
    sender.join()
    assert received == payload
    accepted.send(b"back")
    assert client.recv(10) == b"back"


def test_shutdown(pair: tuple[socket.socket, socket.socket]) -> None:
    client, accepted = pair
    client.shutdown(socket.SHUT_WR)
    client.shutdown(socket.SHUT_WR)
    with refused(ESHUTDOWN):
        client.send(b"x")
    assert accepted.recv(1) == b""
    accepted.send(b"still open this way")
    assert client.recv(5) == b"still"


def test_peer_that_has_gone_keeps_its_address(pair: tuple[socket.socket, socket.socket], service: str) -> None:
    client, accepted = pair
    accepted.close()
    assert client.recv(1) == b""
    client.shutdown(socket.SHUT_WR)
    assert uuids(client.getpeername()) == uuids((HV_GUID_LOOPBACK, service))


def test_host_and_guest(service: str) -> None:
    code = f"""
with socket.socket(socket.AF_HYPERV, 1, 1) as s:
    s.connect((socket.HV_GUID_PARENT, "{service}"))
    s.sendall(b"from the guest")
    print(s.getpeername()[0], s.recv(100).decode(), flush=True)
"""
    with listening(HV_GUID_WILDCARD, service) as server, child(code, VM) as guest:
        accepted, peer = server.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            assert accepted.recv(100) == b"from the guest"
            accepted.sendall(b"from the host")
            output, _ = guest.communicate(timeout=LIMIT)
    assert uuid.UUID(peer[0]) == uuid.UUID(VM)
    dialled, data = output.split(None, 1)
    assert uuid.UUID(dialled) == uuid.UUID(HV_GUID_PARENT)
    assert data == "from the host\n"


def test_client_that_has_gone_has_an_address(service: str) -> None:
    code = f"""
with socket.socket(socket.AF_HYPERV, 1, 1) as s:
    s.connect((socket.HV_GUID_PARENT, "{service}"))
    s.sendall(b"bye")
"""
    with listening(HV_GUID_WILDCARD, service) as server:
        with child(code, VM) as guest:
            assert guest.wait(LIMIT) == 0
        accepted, peer = server.accept()
        with accepted:
            assert accepted.recv(10) == b"bye"
    assert uuid.UUID(peer[0]) == uuid.UUID(VM)


def test_proactor(pair: tuple[socket.socket, socket.socket]) -> None:
    client, accepted = pair

    async def exchange() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, asyncio.ProactorEventLoop)
        client.setblocking(False)
        accepted.setblocking(False)
        waiting = asyncio.ensure_future(loop.sock_recv(accepted, 100))
        await asyncio.sleep(0.05)
        await loop.sock_sendall(client, b"late")
        assert await waiting == b"late"
        waiting = asyncio.ensure_future(loop.sock_recv(accepted, 100))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        reader, writer = await asyncio.open_connection(sock=client)
        await loop.sock_sendall(accepted, b"line\n")
        assert await reader.readline() == b"line\n"
        writer.close()
        await writer.wait_closed()

    asyncio.run(exchange())


# Who reaches whom


@pytest.mark.parametrize(
    ("client", "dials", "server", "bound", "reaches"),
    [
        (HOST, "loopback", HOST, "wildcard", True),
        (HOST, "loopback", HOST, "loopback", True),
        (HOST, "loopback", HOST, "children", False),
        (HOST, "loopback", HOST, VM, False),
        (VM, "parent", HOST, "wildcard", True),
        (VM, "parent", HOST, "children", True),
        (VM, "parent", HOST, VM, True),
        (VM, "parent", HOST, OTHER_VM, False),
        (VM, "parent", HOST, "loopback", False),
        (HOST, VM, VM, "wildcard", True),
        (HOST, VM, VM, "parent", True),
        (HOST, VM, VM, "loopback", False),
        (HOST, VM, VM, "children", False),
        (HOST, VM, OTHER_VM, "wildcard", False),
        (VM, "loopback", VM, "wildcard", True),
        (VM, "loopback", VM, "loopback", True),
        (VM, "loopback", VM, "parent", False),
        (VM, "loopback", OTHER_VM, "wildcard", False),
        (VM, "loopback", HOST, "wildcard", False),
    ],
)
def test_reach(
    client: str, dials: str, server: str, bound: str, reaches: bool, service: str, inside: Callable[[str], None]
) -> None:
    ids = {
        "wildcard": HV_GUID_WILDCARD,
        "children": HV_GUID_CHILDREN,
        "loopback": HV_GUID_LOOPBACK,
        "parent": HV_GUID_PARENT,
    }
    inside(VM)
    new().__enter__().close()  # now that VM runs
    inside(server)
    with listening(ids.get(bound, bound), service) as listener:
        inside(client)
        if not reaches:
            with refused(ECONNREFUSED), connected(ids.get(dials, dials), service):
                pass
            return
        with connected(ids.get(dials, dials), service):
            accepted, peer = listener.accept()
            accepted.close()
    seen = {(HOST, HOST): "loopback", (VM, VM): "loopback", (VM, HOST): VM, (HOST, VM): "parent"}[client, server]
    assert uuid.UUID(peer[0]) == uuid.UUID(ids.get(seen, seen))


def test_most_specific_listener(service: str, inside: Callable[[str], None]) -> None:
    with contextlib.ExitStack() as stack:
        open_servers = {
            vm: stack.enter_context(listening(vm, service)) for vm in (HV_GUID_WILDCARD, HV_GUID_CHILDREN, VM)
        }
        inside(VM)
        for vm in (VM, HV_GUID_CHILDREN, HV_GUID_WILDCARD):
            with connected(HV_GUID_PARENT, service):
                open_servers[vm].accept()[0].close()
            open_servers[vm].close()
        with refused(ECONNREFUSED), connected(HV_GUID_PARENT, service):
            pass


@pytest.mark.parametrize("partition", [HOST, VM])
@pytest.mark.parametrize("vm", [HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_BROADCAST])
def test_connect_to_no_address(vm: str, partition: str, service: str, inside: Callable[[str], None]) -> None:
    inside(partition)
    with refused(EADDRNOTAVAIL), connected(vm, service):
        pass


def test_unreachable(service: str, inside: Callable[[str], None]) -> None:
    with refused(ENETUNREACH), connected(str(uuid.uuid4()), service):
        pass  # no such VM
    with refused(ENETUNREACH), connected(HV_GUID_PARENT, service):
        pass  # the host has no parent
    inside(OTHER_VM)
    with listening(HV_GUID_WILDCARD, service):
        inside(VM)
        with refused(ENETUNREACH), connected(OTHER_VM, service):
            pass  # a sibling


def test_connect_twice(pair: tuple[socket.socket, socket.socket], service: str) -> None:
    with refused(EISCONN):
        pair[0].connect((HV_GUID_LOOPBACK, service))


def test_connect_a_listener(service: str) -> None:
    with listening(HV_GUID_LOOPBACK, service) as server, refused(EINVAL):
        server.connect((HV_GUID_LOOPBACK, service))


# What the host's configuration forbids


def test_denied(service: str, monkeypatch: pytest.MonkeyPatch, inside: Callable[[str], None]) -> None:
    monkeypatch.setenv("HVSIM_POLICY", f"{service}=deny-bind,deny-connect")
    with new() as sock, refused(EACCES):
        sock.bind((VM, service))
    inside(VM)
    with listening(HV_GUID_PARENT, service):
        inside(HOST)
        with refused(EACCES), connected(VM, service):
            pass


def test_disabled(service: str, monkeypatch: pytest.MonkeyPatch, inside: Callable[[str], None]) -> None:
    monkeypatch.setenv("HVSIM_POLICY", f"{uuid.uuid4()}=deny-bind;*=disabled")
    with new() as sock:
        sock.bind((VM, service))
        with refused(EINVAL):
            sock.listen()
    with listening(HV_GUID_WILDCARD, service), connected(HV_GUID_LOOPBACK, service):
        inside(VM)
        with refused(ECONNREFUSED), connected(HV_GUID_PARENT, service):
            pass
        inside(HOST)
        with refused(EINVAL), connected(VM, service):
            pass


def test_no_wildcard(service: str, monkeypatch: pytest.MonkeyPatch, inside: Callable[[str], None]) -> None:
    monkeypatch.setenv("HVSIM_POLICY", "*=no-wildcard")
    with listening(HV_GUID_WILDCARD, service), listening(HV_GUID_CHILDREN, service):
        inside(VM)
        with refused(ECONNREFUSED), connected(HV_GUID_PARENT, service):
            pass
        inside(HOST)
        with listening(VM, service) as server:
            inside(VM)
            with connected(HV_GUID_PARENT, service):
                server.accept()[0].close()


def test_registry(service: str, monkeypatch: pytest.MonkeyPatch, inside: Callable[[str], None]) -> None:
    path = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices"
    monkeypatch.setenv("HVSIM_REGISTRY", "1")
    with listening(HV_GUID_WILDCARD, service) as server:
        with connected(HV_GUID_LOOPBACK, service):  # needs no registration
            server.accept()[0].close()
        inside(VM)
        with refused(ECONNREFUSED), connected(HV_GUID_PARENT, service):
            pass
        with winreg.CreateKey(winreg.HKEY_LOCAL_MACHINE, rf"{path}\{service}"):
            pass
        try:
            with connected(HV_GUID_PARENT, service):
                server.accept()[0].close()
        finally:
            winreg.DeleteKey(winreg.HKEY_LOCAL_MACHINE, rf"{path}\{service}")


# Addresses


def test_addresses_on_loopback(service: str) -> None:
    with listening(HV_GUID_WILDCARD, service) as server:
        assert uuids(server.getsockname()) == uuids((HV_GUID_WILDCARD, service))
        with refused(ENOTCONN):
            server.getpeername()
        with connected(HV_GUID_LOOPBACK, service) as client:
            accepted, peer = server.accept()
            with accepted:
                vm, own_service = uuids(client.getsockname())
                assert vm == uuid.UUID(HV_GUID_CHILDREN)
                assert own_service not in (uuid.UUID(int=0), uuid.UUID(service))
                assert uuids(client.getpeername()) == uuids((HV_GUID_LOOPBACK, service))
                assert uuids(accepted.getpeername()) == uuids(peer)
                assert uuids(peer) == (uuid.UUID(HV_GUID_LOOPBACK), own_service)
                assert uuids(accepted.getsockname())[0] == uuid.UUID(HV_GUID_CHILDREN)


def test_addresses_between_host_and_guest(service: str, inside: Callable[[str], None]) -> None:
    with listening(HV_GUID_WILDCARD, service) as server:
        inside(VM)
        with connected(HV_GUID_PARENT, service) as client:
            accepted, peer = server.accept()
            with accepted:
                assert uuids(client.getpeername()) == uuids((HV_GUID_PARENT, service))
                assert uuids(peer) == (uuid.UUID(VM), uuids(client.getsockname())[1])
                assert uuids(accepted.getsockname())[0] == uuid.UUID(VM)


def test_address_of_a_new_socket() -> None:
    with new() as sock:
        with refused(EINVAL):
            sock.getsockname()
        with refused(ENOTCONN):
            sock.getpeername()


# Options


def test_options(pair: tuple[socket.socket, socket.socket]) -> None:
    with new() as sock:
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 1234)
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, 1)
        assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT) == 1234
        assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND) == 1
        with refused(EINVAL):
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, HVSOCKET_CONNECT_TIMEOUT_MAX + 1)
        with refused(10042):
            sock.setsockopt(HV_PROTOCOL_RAW, 0x40, 1)
    # Connected, the option is set, and reading it says so without saying what it is.
    pair[1].setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, 7)
    assert pair[1].getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND) == 0


# ConnectEx and AcceptEx


def test_extensions(service: str) -> None:
    with listening(HV_GUID_WILDCARD, service) as server, new() as client, new() as accepted:
        with refused(EINVAL):  # ConnectEx wants a bound socket
            winsock.connect_ex(client, HV_GUID_LOOPBACK, service)
        client.bind((HV_GUID_WILDCARD, HV_GUID_WILDCARD))
        with refused(EFAULT):  # what asyncio reserves for an IPv6 address is too little
            winsock.Accept(server, accepted, 44)
        accept = winsock.Accept(server, accepted)
        connect = winsock.connect_ex(client, HV_GUID_LOOPBACK, service)
        assert connect.wait(LIMIT)
        connect.result()
        assert accept.wait(LIMIT)
        accept.result()
        for sock in (client, accepted):
            with refused(ENOTCONN):
                sock.getpeername()
            with refused(ENOTCONN):
                sock.shutdown(socket.SHUT_WR)
        client.setsockopt(socket.SOL_SOCKET, winsock.SO_UPDATE_CONNECT_CONTEXT, b"")
        accept.update_context()
        own = uuids(client.getsockname())
        assert own[0] == uuid.UUID(HV_GUID_CHILDREN)
        local, remote = accept.addresses()
        assert local == uuids((HV_GUID_CHILDREN, service))
        assert remote == (uuid.UUID(HV_GUID_LOOPBACK), own[1]) == uuids(accepted.getpeername())
        assert uuids(client.getpeername()) == uuids((HV_GUID_LOOPBACK, service))
        client.send(b"data")
        assert accepted.recv(10) == b"data"


def test_odd_accept(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSIM_ODD_ACCEPT", "1")
    with extended(service) as (_, accept):
        accept.update_context()
        _, remote = accept.addresses(winsock.ADDRESS_SIZE + 16)
        assert remote == uuids(accept.accepted.getpeername())


@contextlib.contextmanager
def extended(service: str) -> Iterator[tuple[socket.socket, winsock.Accept]]:
    """A client by ConnectEx and the AcceptEx that took it, both without their contexts."""
    with listening(HV_GUID_WILDCARD, service) as server, new() as client, new() as accepted:
        client.bind((HV_GUID_WILDCARD, HV_GUID_WILDCARD))
        accept = winsock.Accept(server, accepted)
        connect = winsock.connect_ex(client, HV_GUID_LOOPBACK, service)
        assert connect.wait(LIMIT)
        assert accept.wait(LIMIT)
        connect.result()
        accept.result()
        yield client, accept


@pytest.mark.parametrize("error", [ECONNRESET, ENOTCONN])
def test_context_fault(error: int, service: str) -> None:
    with extended(service) as (client, accept), hvsim.faults(f"accept-context={error}", f"connect-context={error}"):
        for sock in (client, accept.accepted):
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, 1)  # any other option goes well
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        with refused(error):
            accept.update_context()
        with refused(error):
            client.setsockopt(socket.SOL_SOCKET, winsock.SO_UPDATE_CONNECT_CONTEXT, b"")
        for sock in (client, accept.accepted):
            with refused(ENOTCONN):
                sock.getpeername()
        accept.update_context()
        client.setsockopt(socket.SOL_SOCKET, winsock.SO_UPDATE_CONNECT_CONTEXT, b"")
        for sock in (client, accept.accepted):
            sock.getpeername()


def test_context_faults_are_two(service: str) -> None:
    with extended(service) as (client, accept), hvsim.faults(f"accept-context={ENOTCONN}@1"):
        client.setsockopt(socket.SOL_SOCKET, winsock.SO_UPDATE_CONNECT_CONTEXT, b"")
        accept.update_context()
        with refused(ENOTCONN):
            accept.update_context()


@pytest.mark.parametrize("hide_from_port", [False, True])
def test_connect_ex_refused(service: str, hide_from_port: bool) -> None:
    with new() as client:
        client.bind((HV_GUID_WILDCARD, HV_GUID_WILDCARD))
        connect = winsock.connect_ex(client, HV_GUID_LOOPBACK, service, hide_from_port=hide_from_port)
        assert connect.wait(LIMIT)
        with refused(ECONNREFUSED):
            connect.result()


def test_accept_ex_cancelled(service: str) -> None:
    with listening(HV_GUID_WILDCARD, service) as server, new() as accepted:
        accept = winsock.Accept(server, accepted)
        assert not accept.wait(0.05)
        assert accept.cancel()
        assert accept.wait(LIMIT)
        with refused(OPERATION_ABORTED):
            accept.result()
        again = winsock.Accept(server, accepted)
        with connected(HV_GUID_LOOPBACK, service):
            assert again.wait(LIMIT)
            again.result()


# A connect that stays pending


def elapsed(since: float) -> float:
    return time.monotonic() - since


@pytest.mark.parametrize("milliseconds", [None, 200, 3000])
@pytest.mark.parametrize("blocking", [True, False])
def test_pending_connect(milliseconds: int | None, blocking: bool, service: str) -> None:
    expected = DEFAULT_TIMEOUT if milliseconds is None else milliseconds / 1000
    with listening(HV_GUID_LOOPBACK, service), new() as sock, hvsim.faults("connecting=pending"):
        # With a timeout the socket module connects without blocking, and waits with select.
        sock.settimeout(None if blocking else LIMIT)
        if milliseconds is not None:
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, milliseconds)
        start = time.monotonic()
        with refused(ETIMEDOUT):
            sock.connect((HV_GUID_LOOPBACK, service))
    assert expected - 0.05 <= elapsed(start) < expected + 1


def test_pending_connect_seen_by_select(service: str) -> None:
    with new() as sock, hvsim.faults("connecting=pending"):
        sock.setblocking(False)
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 300)
        with refused(EWOULDBLOCK):
            sock.connect((HV_GUID_LOOPBACK, service))
        assert sock.connect_ex((HV_GUID_LOOPBACK, service)) == 10037  # WSAEALREADY
        assert select.select([], [sock], [sock], 0.1) == ([], [], [])
        assert select.select([], [sock], [sock], LIMIT) == ([], [], [sock])
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == ETIMEDOUT


def test_refused_connect_seen_by_select(service: str) -> None:
    with new() as sock:
        sock.setblocking(False)
        with refused(EWOULDBLOCK):
            sock.connect((HV_GUID_LOOPBACK, service))
        assert select.select([], [sock], [sock], LIMIT) == ([], [], [sock])
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == ECONNREFUSED


@pytest.mark.parametrize("hide_from_port", [False, True])
def test_pending_connect_ex_times_out(service: str, hide_from_port: bool) -> None:
    with new() as sock, hvsim.faults("connecting=pending"):
        sock.bind((HV_GUID_WILDCARD, HV_GUID_WILDCARD))
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 300)
        connect = winsock.connect_ex(sock, HV_GUID_LOOPBACK, service, hide_from_port=hide_from_port)
        assert not connect.wait(0.1)
        assert connect.wait(LIMIT)
        with refused(ETIMEDOUT):
            connect.result()


def test_pending_connect_ex_cancelled(service: str) -> None:
    with new() as sock, hvsim.faults("connecting=pending"):
        sock.bind((HV_GUID_WILDCARD, HV_GUID_WILDCARD))
        connect = winsock.connect_ex(sock, HV_GUID_LOOPBACK, service)
        assert not connect.wait(0.05)
        with refused(IO_INCOMPLETE):
            connect.result()
        assert connect.cancel()
        assert connect.wait(LIMIT)
        with refused(OPERATION_ABORTED):
            connect.result()
        # Nothing is left pending: the same socket may connect.
        with listening(HV_GUID_LOOPBACK, service):
            connect = winsock.connect_ex(sock, HV_GUID_LOOPBACK, service)
            assert connect.wait(LIMIT)
            connect.result()


def stubborn_connect(sock: socket.socket, service: str) -> winsock.Operation:
    """One that is pending, and was cancelled just now."""
    sock.bind((HV_GUID_WILDCARD, HV_GUID_WILDCARD))
    connect = winsock.connect_ex(sock, HV_GUID_LOOPBACK, service)
    assert not connect.wait(0.05)
    assert connect.cancel()
    return connect


def test_stubborn_connect_ex(service: str) -> None:
    with new() as sock, hvsim.faults("connecting=stubborn:1000"):
        start = time.monotonic()
        connect = stubborn_connect(sock, service)
        assert not connect.wait(0.7)
        assert connect.cancel()  # this does not begin the time anew
        with refused(IO_INCOMPLETE):
            connect.result()
        with refused(OPERATION_ABORTED):
            connect.result(wait=True)
        assert 1.0 <= elapsed(start) < 1.7
        # Nothing is left pending, and other operations are cancelled at once.
        with listening(HV_GUID_LOOPBACK, service) as server:
            connect = winsock.connect_ex(sock, HV_GUID_LOOPBACK, service)
            assert connect.wait(LIMIT)
            connect.result()
            server.accept()[0].close()
            with new() as accepted:
                accept = winsock.Accept(server, accepted)
                assert accept.cancel()
                assert accept.wait(0.7)
            with new() as third, hvsim.faults("connecting=pending"):
                assert stubborn_connect(third, service).wait(0.7)


def test_stubborn_connect_ex_outlasts_its_time(service: str) -> None:
    with new() as sock, hvsim.faults("connecting=stubborn:600*2"):
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 200)
        start = time.monotonic()
        connect = stubborn_connect(sock, service)
        with refused(OPERATION_ABORTED):
            connect.result(wait=True)
        assert elapsed(start) >= 0.6
        # One that is not cancelled ends by its time, as late.
        start = time.monotonic()
        connect = winsock.connect_ex(sock, HV_GUID_LOOPBACK, service)
        with refused(ETIMEDOUT):
            connect.result(wait=True)
        assert elapsed(start) >= 0.8


def test_stubborn_connect_ex_and_a_completion_port(service: str) -> None:
    port = _overlapped.CreateIoCompletionPort(_overlapped.INVALID_HANDLE_VALUE, 0, 0, 1)
    with new() as sock, hvsim.faults("connecting=stubborn:300"):
        _overlapped.CreateIoCompletionPort(sock.fileno(), port, 7, 0)
        connect = stubborn_connect(sock, service)
        assert _overlapped.GetQueuedCompletionStatus(port, 100) is None
        address = ctypes.addressof(connect.overlapped)
        milliseconds = int(LIMIT * 1000)
        assert _overlapped.GetQueuedCompletionStatus(port, milliseconds) == (OPERATION_ABORTED, 0, 7, address)
    _winapi.CloseHandle(port)


def test_stubborn_connect_ex_ends_with_close(service: str) -> None:
    with new() as sock, hvsim.faults("connecting=stubborn:60000"):
        connect = stubborn_connect(sock, service)
        sock.close()
        assert connect.wait(LIMIT)


@pytest.mark.parametrize("blocking", [True, False])
def test_stubborn_is_pending_for_other_connects(blocking: bool, service: str) -> None:
    with new() as sock, hvsim.faults("connecting=stubborn:60000"):
        sock.settimeout(None if blocking else LIMIT)
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 200)
        with refused(ETIMEDOUT):
            sock.connect((HV_GUID_LOOPBACK, service))


def test_pending_connect_ends_with_close(service: str) -> None:
    with new() as sock, hvsim.faults("connecting=pending"):
        sock.settimeout(None)
        threading.Timer(0.2, lambda: socket.close(sock.detach())).start()
        start = time.monotonic()
        with pytest.raises(OSError):
            sock.connect((HV_GUID_LOOPBACK, service))
        assert elapsed(start) < DEFAULT_TIMEOUT


# Faults and counts


@pytest.mark.parametrize("error", [ECONNRESET, ENETDOWN, EFAULT])
def test_fault(error: int, pair: tuple[socket.socket, socket.socket]) -> None:
    client, accepted = pair
    with hvsim.faults(f"sending={error}", f"receiving={error}@1*2"):
        with refused(error):
            client.send(b"lost")
        client.send(b"12345")
        assert accepted.recv(1) == b"1"
        for _ in range(2):
            with refused(error):
                accepted.recv(1)
        assert accepted.recv(1) == b"2"


def test_failure_without_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    client, _ = pair
    with hvsim.faults("sending=0"), pytest.raises(OSError) as caught:
        client.send(b"x")
    assert caught.value.errno == 0


def test_would_block_is_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    client, accepted = pair
    with hvsim.faults(f"sending={EWOULDBLOCK}"):
        assert client.send(b"x") == 1
    with hvsim.faults(f"receiving={EWOULDBLOCK}"):
        assert accepted.recv(1) == b"x"


def test_short_transfers(pair: tuple[socket.socket, socket.socket]) -> None:
    client, accepted = pair
    with hvsim.faults("sending=short:3", "receiving=short:1*2"):
        assert client.send(b"abcdef") == 3
        assert [accepted.recv(10) for _ in range(3)] == [b"a", b"b", b"c"]
    with hvsim.faults("sending=short:1*0"):
        hvsim.reset_counts()
        client.sendall(b"abcdef")
        assert hvsim.counts()["send"] == 6


def test_short_wsasend(pair: tuple[socket.socket, socket.socket]) -> None:
    client, accepted = pair
    parts = (b"ab", b"", b"cdef", b"gh")
    with hvsim.faults("sending=short:5*0"):
        for _ in range(3):
            assert winsock.send(client, *parts) == 5
            assert accepted.recv(100) == b"abcde"
            pending = winsock.Send(client, *parts)
            assert pending.wait(LIMIT)
            assert pending.result() == pending.overlapped.internal_high == 5
            assert accepted.recv(100) == b"abcde"
    assert winsock.send(client, *parts) == 8


def test_send_limit(pair: tuple[socket.socket, socket.socket]) -> None:
    client, accepted = pair
    with hvsim.faults("sending=limit:8*0"):
        for _ in range(2):
            for send in (client.send, lambda data: winsock.send(client, data[:5], data[5:])):
                with refused(ENOBUFS):
                    send(b"123456789")
                assert send(b"12345678") == 8
            with refused(ENOBUFS):
                winsock.Send(client, b"12345", b"6789")
            taken = winsock.Send(client, b"12345", b"678")
            assert taken.wait(LIMIT)
            assert taken.result() == 8
        accepted.setblocking(False)
        assert accepted.recv(100) == b"12345678" * 6
    assert client.send(b"123456789") == 9


def test_fault_at_connect(service: str) -> None:
    with hvsim.faults(f"connecting={ENETDOWN}"), refused(ENETDOWN), connected(HV_GUID_LOOPBACK, service):
        pass


def test_fault_in_a_child(service: str) -> None:
    code = """
try:
    socket.socket(socket.AF_HYPERV, 1, 1).bind((socket.HV_GUID_WILDCARD, socket.HV_GUID_LOOPBACK))
except OSError as error:
    print(error.winerror)
"""
    with child(code, HOST, HVSIM_FAULTS=f"bind={ENETDOWN}") as other:
        assert other.communicate(timeout=LIMIT)[0] == f"{ENETDOWN}\n"


@pytest.mark.parametrize(
    "plan",
    [
        "send",
        "send=",
        "send=x",
        "nosuch=1",
        "send=short:0",
        "send=1@x",
        "send=1 x",
        "send=short:1x",
        "send=limit:",
        "send-x=1",
    ],
)
def test_malformed_faults(plan: str) -> None:
    with pytest.raises(ValueError), hvsim.faults(plan):
        pass


def test_counts(pair: tuple[socket.socket, socket.socket]) -> None:
    client, accepted = pair
    client.settimeout(None)
    accepted.settimeout(None)
    hvsim.reset_counts()
    client.send(b"12")
    accepted.recv(1)
    accepted.recv(1)
    assert hvsim.counts() == {"send": 1, "recv": 2}
    # With a timeout the socket module asks whether it may before each call.
    client.settimeout(LIMIT)
    hvsim.reset_counts()
    client.send(b"1")
    assert hvsim.counts() == {"send": 1, "select": 1}


# A send that is cancelled, and a small ring


def received(sock: socket.socket) -> int:
    """Bytes until the peer's end."""
    return sum(iter(lambda: len(sock.recv(1 << 16)), 0))


@pytest.mark.parametrize("lossy", [False, True])
def test_cancelled_send(
    lossy: bool, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    if lossy:
        monkeypatch.setenv("HVSIM_LOSSY_CANCEL", "1")
    client, accepted = pair
    whole = winsock.Send(client, b"abc")
    assert whole.wait(LIMIT)
    assert whole.result() == 3  # a send that ends well tells its count always
    send = winsock.Send(client, bytes(64 << 20))
    assert not send.wait(0.2)
    assert send.cancel()
    assert send.wait(LIMIT)
    with refused(OPERATION_ABORTED):
        send.result()
    client.shutdown(socket.SHUT_WR)
    went = received(accepted) - 3
    assert went > 0
    assert (send.told, send.overlapped.internal_high) == ((0, 0) if lossy else (went, went))


RING = 24 << 10


def fill(sock: socket.socket, data: bytes) -> int:
    """How many bytes the system takes in sends of this, until it takes none for a while."""
    sock.setblocking(False)
    size, quiet = 0, 0
    while quiet < 50:  # TCP may acknowledge after 0.2 s only, and make room then
        try:
            size += sock.send(data)
            quiet = 0
        except BlockingIOError:
            quiet += 1
            time.sleep(0.01)
    sock.settimeout(LIMIT)
    return size


def drain(sock: socket.socket, size: int) -> None:
    while size > 0:
        size -= len(sock.recv(size))


@pytest.mark.parametrize("size", [64, 4096, 65536])
def test_ring(size: int, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSIM_RING", str(RING))
    with listening(HV_GUID_LOOPBACK, service) as server, connected(HV_GUID_LOOPBACK, service) as client:
        accepted, _ = server.accept()
        with accepted:
            for sender, receiver in ((client, accepted), (accepted, client)):
                taken = fill(sender, bytes(size))
                assert 0.7 * RING < taken < 1.3 * RING
                pending = winsock.Send(sender, bytes(RING // 2))
                assert not pending.wait(0.1)
                drain(receiver, taken)
                assert pending.wait(LIMIT)
                assert pending.result() == RING // 2
                drain(receiver, RING // 2)
                assert fill(sender, bytes(size)) > 0.7 * RING  # and again


def test_ring_of_extended(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSIM_RING", str(RING))
    with extended(service) as (client, accept):
        for sock in (client, accept.accepted):
            assert 0.7 * RING < fill(sock, bytes(4096)) < 1.3 * RING


def test_without_a_ring(pair: tuple[socket.socket, socket.socket]) -> None:
    assert fill(pair[0], bytes(4096)) > 4 * RING


# CPython's own tests


def test_cpythons_own() -> None:
    """Not one of them fails, and not one is skipped because there is no AF_HYPERV."""
    done = subprocess.run(
        [sys.executable, "-m", "unittest", "-v", "test.test_socket.BasicHyperVTest"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("... ok") >= 7, done.stdout
