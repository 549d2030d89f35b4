"""Errors: the platform's own code, and notes that say what was done, between whom, and why it may have failed."""

from __future__ import annotations

import errno
import os
import socket

import pytest
import utils
from utils import LIMIT, TICK, WINDOWS, connected

import hvsock
from hvsock import _errors as errors
from hvsock._transports import transport_named

HYPERV_TRANSIENT = (10050, 10051, 10054, 10060, 10061, 1201, 1225)


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


def windows_error(code: int) -> OSError:
    """Return what Windows raises for `code`; elsewhere an error that has the attribute all the same."""
    if WINDOWS:
        return OSError(0, "message", None, code)
    error = OSError(code, "message")
    error.winerror = code  # type: ignore[attr-defined,unused-ignore]
    return error


# Notes on what sockets raise


def test_refused(transport: str) -> None:
    """Nobody listens: the system's own error, with the operation, the address dialled and a known cause."""
    address = hvsock.HyperVAddress(hvsock.HV_GUID_LOOPBACK, utils.new_service())
    with pytest.raises(OSError) as info:
        hvsock.create_connection(address, timeout=LIMIT, transport=transport)
    assert isinstance(info.value, ConnectionError | TimeoutError)
    if transport == "local":
        assert type(info.value) is ConnectionRefusedError
        assert info.value.errno == errno.ECONNREFUSED
        assert info.value.strerror == os.strerror(errno.ECONNREFUSED)
    text = notes(info.value)
    assert "connect" in text
    assert transport in text
    assert str(address) in text
    assert "nothing listens" in text


def test_in_use(transport: str) -> None:
    with utils.listen(transport) as listener:
        with pytest.raises(OSError) as info:
            hvsock.create_server(listener.getsockname(), transport=transport)
        assert info.value.errno == errno.EADDRINUSE or getattr(info.value, "winerror", None) == 10048
        assert str(listener.getsockname()) in notes(info.value)
        assert "bind" in notes(info.value) or "listen" in notes(info.value)


def test_timeout(transport: str) -> None:
    with connected(transport, TICK) as (a, b), utils.listen(transport) as listener:
        with pytest.raises(TimeoutError) as info:
            a.recv(1)
        assert "recv" in notes(info.value)
        assert str(a.getsockname()) in notes(info.value)
        assert str(a.getpeername()) in notes(info.value)
        with pytest.raises(TimeoutError) as info:
            b.sendall(bytes(64 << 20))
        assert "sendall" in notes(info.value)
        assert str(b.getpeername()) in notes(info.value)
        listener.settimeout(TICK)
        with pytest.raises(TimeoutError) as info:
            listener.accept()
        assert "accept" in notes(info.value)
        assert str(listener.getsockname()) in notes(info.value)


@pytest.mark.parametrize("operation", ["send", "sendall", "sendmsg"])
def test_peer_is_gone(transport: str, operation: str) -> None:
    with connected(transport) as (a, b):
        b.close()
        data = [b"x" * 65536] if operation == "sendmsg" else b"x" * 65536
        with pytest.raises(ConnectionError) as info:
            for _ in range(1000):
                getattr(a, operation)(data)
        assert operation in notes(info.value)
        assert len(info.value.__notes__) < 5


def test_would_block_has_no_notes(transport: str) -> None:
    """It is part of normal work, not a failure."""
    with connected(transport, 0) as (a, _), utils.listen(transport) as listener:
        listener.settimeout(0)
        for call in (lambda: a.recv(1), lambda: a.recv_into(bytearray(1)), listener.accept, lambda: fill_up(a)):
            with pytest.raises(BlockingIOError) as info:
                call()
            assert not hasattr(info.value, "__notes__")


def fill_up(sock: socket.socket) -> None:
    while True:
        sock.send(bytes(65536))


def test_closed_socket(transport: str) -> None:
    """The notes are about a socket that has no addresses any more: they must not fail for it."""
    sock = hvsock.HyperVSocket(transport=transport)
    sock.close()
    for call in (
        lambda: sock.recv(1),
        lambda: sock.send(b"x"),
        lambda: sock.listen(),
        lambda: sock.accept(),
        lambda: sock.bind(("loopback", 1)),
        lambda: sock.connect(("loopback", 1)),
    ):
        with pytest.raises(OSError) as info:
            call()
        assert info.value.errno == errno.EBADF or getattr(info.value, "winerror", None) == 10038
    assert "connect" in notes(info.value)


def test_errors_of_other_families_have_no_notes() -> None:
    """A socket that carries no Hyper-V addresses has none to tell."""
    with hvsock.HyperVSocket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(TICK)
        with pytest.raises(OSError) as info:
            sock.recv(1)
        assert "hvsock://" not in notes(info.value)


def test_notes_appear_in_a_traceback(served: str) -> None:
    import traceback

    with pytest.raises(ConnectionRefusedError) as info:
        hvsock.create_connection(("loopback", 5000), transport=served)
    text = "".join(traceback.format_exception(info.value))
    assert "hvsock://loopback/5000" in text


def test_notes_that_fail(served: str) -> None:
    """As anywhere in Python, what is raised while an error is looked at has that error as its context."""

    class Broken(hvsock.HyperVSocket):
        def _explain(self, exception: OSError, operation: str, /) -> None:
            raise LookupError("no notes today")

    a, b = utils.make_pair("adopted")
    with b, Broken(fileno=a.detach()) as broken:
        broken.settimeout(TICK)
        with pytest.raises(LookupError) as info:
            broken.recv(1)
        assert isinstance(info.value.__context__, TimeoutError)


def test_notes_of_a_subclass_with_addresses_of_its_own(served: str) -> None:
    """A subclass may show addresses in another form; the error is the system's all the same."""

    class Named(hvsock.HyperVSocket):
        def getsockname(self) -> str:
            return str(super().getsockname())

        def getpeername(self) -> str:
            return str(super().getpeername())

    with Named(transport=served) as sock:
        sock.settimeout(TICK)
        with pytest.raises(ConnectionRefusedError) as info:
            sock.connect(("loopback", 5000))
        assert "hvsock://loopback/5000" in notes(info.value)
    a, b = utils.make_pair(served)
    with b, Named(fileno=a.detach()) as sock:
        sock.settimeout(TICK)
        with pytest.raises(TimeoutError) as timeout:
            sock.recv(1)
        assert "recv" in notes(timeout.value)


# The table


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        OSError(errno.ENETUNREACH, "unreachable"),
        OSError(errno.ENETDOWN, "down"),
        OSError(errno.ENODEV, "no device"),
        OSError(errno.ETIMEDOUT, "timed out"),
        TimeoutError("timed out"),
        *map(windows_error, HYPERV_TRANSIENT),
    ],
    ids=str,
)
def test_transient(error: OSError) -> None:
    assert errors.is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "denied"),
        OSError(errno.EINVAL, "invalid"),
        OSError(errno.EADDRNOTAVAIL, "not available"),
        OSError(errno.EADDRINUSE, "in use"),
        OSError(errno.EBADF, "closed"),
        OSError(errno.EMFILE, "too many"),
        OSError(errno.EPROTOTYPE, "prototype"),
        FileNotFoundError(errno.ENOENT, "none"),
        OSError("no code at all"),
        *map(windows_error, (10013, 10022, 10049, 10041, 10048, 10038, 5)),
    ],
    ids=str,
)
def test_not_transient(error: OSError) -> None:
    assert not errors.is_transient(error)


@pytest.mark.parametrize("code", [10013, 10022, 10041, 10048, 10049, 10050, 10051, 10054, 10060, 10061])
def test_causes_on_hyperv(code: int) -> None:
    """Every error that was seen on real Hyper-V (hcsshim, go-winio, wsld, vpnkit) has its causes."""
    cause = transport_named("hyperv").known_cause(windows_error(code))
    assert cause
    error = windows_error(code)
    transport_named("hyperv").explain(error, "connect", peer=hvsock.HyperVAddress.parse("hvsock://parent/5000"))
    assert cause in notes(error)
    assert "hvsock://parent/5000" in notes(error)
    assert "connect" in notes(error)


def test_permission_denied_names_the_three_causes() -> None:
    """10013 without a hint is what users of other libraries ask about most."""
    cause = transport_named("hyperv").known_cause(windows_error(10013)) or ""
    for word in ("not registered", "security descriptor", "WSL"):
        assert word in cause


def test_no_device_names_the_three_causes() -> None:
    """A KVM host answers so until the VM has taken its CID."""
    cause = transport_named("vsock").known_cause(OSError(errno.ENODEV, "no device")) or ""
    for word in ("vsock_loopback", "needs a hypervisor", "on a KVM host, no VM with that CID runs"):
        assert word in cause


@pytest.mark.parametrize("transport", ["hyperv", "vsock", "local"])
def test_unknown_cause(transport: str) -> None:
    assert transport_named(transport).known_cause(OSError(errno.EPERM, "no idea")) is None
    assert transport_named(transport).known_cause(OSError("no code")) is None
    error = OSError(errno.EPERM, "no idea")
    transport_named(transport).explain(error, "bind")
    assert len(error.__notes__) == 1


@pytest.mark.parametrize("transport", ["hyperv", "vsock"])
def test_timeout_has_causes_where_nobody_refuses(transport: str) -> None:
    """A Windows host does not refuse a Linux guest, it says nothing: a timeout is all that there is to see."""
    assert "registered" in (transport_named(transport).known_cause(TimeoutError("timed out")) or "")
    assert transport_named("vsock").known_cause(TimeoutError(errno.ETIMEDOUT, "timed out"))
