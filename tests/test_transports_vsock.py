"""AF_VSOCK: how Hyper-V addresses become CIDs and ports, and what its kernel does, where it may be tried.

Nothing here connects or binds an AF_VSOCK socket unless HVSOCK_REQUIRE names it: the machine's own may lead to a
hypervisor. `tests/guest/loopback` runs the suite where it leads nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import runpy
import socket
import struct
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import utils
from children import denied
from conftest import Recorder, record_native_calls, require
from utils import LIMIT, SLACK, TICK, Child, Task

import hvsock
from hvsock import aio
from hvsock._transports import vsock

if sys.platform != "win32":
    from hvsock._hvsock import Pump

TRANSPORT = vsock.VsockTransport()
ANY, LOCAL, HOST = 0xFFFFFFFF, 1, 2


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    monkeypatch.setattr(vsock, "_lacks_loopback", lambda: False)
    return record_native_calls(monkeypatch, vsock)


def address(vm: Any, service: Any = 5000) -> hvsock.HyperVAddress:
    return hvsock.as_address((vm, service))


def test_is_tested() -> None:
    """The one skip that says how to have the streams of every other module run over vsock too."""
    require("vsock")


@pytest.mark.parametrize("platform", ["darwin", "freebsd14", "win32"])
def test_on_linux_only(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has an AF_VSOCK of that number with other addresses; on FreeBSD the number is another family's."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(socket, "AF_VSOCK", 40, raising=False)
    transport = runpy.run_path(vsock.__file__)["VsockTransport"]()
    assert transport.reason == "AF_VSOCK exists on Linux only."


def test_python_without_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that was built without linux/vm_sockets.h: the number is all that is needed."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delattr(socket, "AF_VSOCK", raising=False)
    transport = runpy.run_path(vsock.__file__)["VsockTransport"]
    assert (transport.family, transport.unsupported) == (40, None)


# Mapping


@pytest.mark.parametrize(
    ("vm", "cid"),
    [
        ("wildcard", ANY),
        ("children", ANY),
        ("loopback", LOCAL),
        ("parent", HOST),
        (hvsock.vm_id_from_cid(3), 3),
        (hvsock.vm_id_from_cid(77), 77),
    ],
)
@pytest.mark.parametrize("port", [0, 1, 5000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE])
def test_bind(recorded: list[tuple[Any, ...]], vm: Any, cid: int, port: int) -> None:
    TRANSPORT.bind(Recorder(), address(vm, port))  # type: ignore[arg-type]
    assert recorded == [("bind", (cid, port))]


@pytest.mark.parametrize(
    ("vm", "cid"), [("loopback", LOCAL), ("parent", HOST), (hvsock.vm_id_from_cid(3), 3), (hvsock.vm_id_from_cid(0), 0)]
)
def test_connect(recorded: list[tuple[Any, ...]], vm: Any, cid: int) -> None:
    TRANSPORT.connect(Recorder(), address(vm))  # type: ignore[arg-type]
    assert recorded == [("connect", (cid, 5000))]


@pytest.mark.parametrize("operation", ["bind", "connect"])
def test_a_hyperv_guest_is_warned_of_high_ports(
    recorded: list[tuple[Any, ...]], operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the module of Hyper-V's own sockets is loaded; a guest of KVM has all ports."""
    high = address("parent", 0x80000001)
    monkeypatch.setattr(vsock, "_HYPERV_MODULE", tmp_path / "none")
    vsock._cid_and_port.cache_clear()
    getattr(TRANSPORT, operation)(Recorder(), high)
    monkeypatch.setattr(vsock, "_HYPERV_MODULE", tmp_path)
    vsock._cid_and_port.cache_clear()
    with pytest.warns(RuntimeWarning, match="^port 2147483649 is above 2147483647"):
        getattr(TRANSPORT, operation)(Recorder(), high)
    getattr(TRANSPORT, operation)(Recorder(), address("parent", 0x7FFFFFFF))
    assert recorded == [(operation, (HOST, port)) for port in (0x80000001, 0x80000001, 0x7FFFFFFF)]


@pytest.mark.parametrize("service", [uuid.UUID(int=0), uuid.UUID(int=5000), uuid.uuid4()], ids=str)
@pytest.mark.parametrize("operation", ["bind", "connect"])
def test_service_that_is_no_port(recorded: list[tuple[Any, ...]], operation: str, service: uuid.UUID) -> None:
    with pytest.raises(ValueError, match="port") as info:
        getattr(TRANSPORT, operation)(Recorder(), address("loopback", service))
    assert str(service) in str(info.value)
    assert recorded == []


@pytest.mark.parametrize("vm", [uuid.uuid4(), hvsock.HV_GUID_SILOHOST, hvsock.HV_GUID_BROADCAST], ids=str)
@pytest.mark.parametrize("operation", ["bind", "connect"])
def test_vm_that_is_no_cid(recorded: list[tuple[Any, ...]], operation: str, vm: uuid.UUID) -> None:
    with pytest.raises(ValueError, match="VM"):
        getattr(TRANSPORT, operation)(Recorder(), address(vm))
    assert recorded == []


@pytest.mark.parametrize("cid", [0, LOCAL, HOST, 3, 77, 0x7FFFFFFF, 0xFFFFFFFE, ANY])
@pytest.mark.parametrize("port", [0, 1024, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_native_addresses_come_back(recorded: list[tuple[Any, ...]], cid: int, port: int) -> None:
    """Whatever the kernel reports is an address, and the address is that CID and port again: peers too, above 2**31."""
    local, peer = TRANSPORT.local_address((cid, port)), TRANSPORT.peer_address((cid, port))
    assert type(local) is type(peer) is hvsock.HyperVAddress
    TRANSPORT.bind(Recorder(), local)  # type: ignore[arg-type]
    TRANSPORT.connect(Recorder(), peer)  # type: ignore[arg-type]
    assert recorded == [("bind", (cid, port)), ("connect", (cid, port))]


@pytest.mark.parametrize(
    ("cid", "vm"),
    [(LOCAL, hvsock.HV_GUID_LOOPBACK), (HOST, hvsock.HV_GUID_PARENT), (ANY, hvsock.HV_GUID_WILDCARD)],
)
def test_well_known_cids(cid: int, vm: uuid.UUID) -> None:
    assert TRANSPORT.peer_address((cid, 5000)) == (vm, hvsock.service_id_from_port(5000))


@pytest.mark.parametrize(
    ("code", "protocols", "reason"),
    [
        (errno.EAFNOSUPPORT, "TCP\nUNIX\n", r"This kernel has no AF_VSOCK \(.+\): load its module: modprobe .+\."),
        (
            errno.EAFNOSUPPORT,
            "AF_VSOCK 1400\n",
            r"This kernel has AF_VSOCK, and a filter denies it .+ RestrictAddress.+=\.",
        ),
        (errno.EAFNOSUPPORT, None, r"This kernel has no AF_VSOCK .+"),
        (errno.EPERM, None, r"A seccomp filter denies AF_VSOCK to this process \(.+\): Docker.+--security-opt.+ 40\."),
        (errno.EACCES, None, r"A security policy denies AF_VSOCK to this process \(.+\): journalctl -k .+\."),
        (errno.EMFILE, None, r"This process has as many descriptors open as it may \(.+\): ulimit -n allows more\."),
        (errno.ENFILE, None, r"The system has as many files open as it may \(.+\): .+\."),
        (errno.ENOMEM, None, r"The system has no memory left for a socket \(.+\): .+\."),
        (errno.EINVAL, None, r"The system makes no socket of family 40 \(Invalid argument\)\."),
    ],
)
def test_reason(code: int, protocols: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "_PROTOCOLS", tmp_path / "protocols")
    if protocols is not None:
        (tmp_path / "protocols").write_text(protocols)
    assert re.fullmatch(reason, TRANSPORT._refused(OSError(code, os.strerror(code))), re.DOTALL)


@pytest.mark.skipif(sys.platform != "linux", reason="it is seccomp that denies: run it on Linux")
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("vsock", errno.EPERM, "A seccomp filter denies AF_VSOCK"),
        ("vsock", errno.EACCES, "A security policy denies AF_VSOCK"),
        ("local", errno.EPERM, "A seccomp filter denies AF_UNIX"),
        ("local", errno.EAFNOSUPPORT, "RestrictAddressFamilies="),
    ],
)
def test_a_family_that_is_denied(name: str, code: int, words: str) -> None:
    with Child(denied.reason, name, code) as child:
        [text] = child.finish()
    assert words in text
    assert "modprobe" not in text
    assert ("HVSOCK_TRANSPORT=local" in text) is (name == "vsock")


def test_local_cid_needs_no_socket() -> None:
    """It is read from a device file; where there is none, it is None."""
    cid = vsock.local_cid()
    assert cid is None or 0 <= cid <= ANY


@pytest.mark.skipif(utils.WINDOWS, reason="AF_VSOCK is Linux only, and its errors have POSIX's numbers")
def test_no_loopback_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would ask the hypervisor for CID 1, which does not answer. Other CIDs are not asked about."""

    class Probe(Recorder):
        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> Probe:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def bind(self, address: object) -> None:
            assert address == (LOCAL, ANY)
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(vsock, "Socket", Probe)
    monkeypatch.setattr(TRANSPORT, "_has_had_loopback", False)
    with pytest.raises(OSError) as info:
        TRANSPORT.connect(Recorder(), hvsock.as_address(("loopback", 5000)))  # type: ignore[arg-type]
    assert info.value.errno == errno.ENODEV
    TRANSPORT.explain(info.value, "connect")
    causes = [note for note in info.value.__notes__ if note.startswith("known cause: ")]
    assert causes == ["known cause: this kernel has no vsock loopback: modprobe vsock_loopback"]


def test_loopback_is_seen_by_file() -> None:
    assert isinstance(vsock.has_loopback(), bool)


# In a kernel


@pytest.fixture
def kernel() -> None:
    """Only where HVSOCK_REQUIRE names vsock."""
    if "vsock" not in utils.required():
        pytest.skip(utils.reason_to_skip("vsock") or "")
    require("vsock")


@pytest.mark.usefixtures("kernel")
class TestKernel:
    def test_wildcard_and_children_accept_loopback(self) -> None:
        for bound in ("wildcard", "children"):
            service = utils.new_service()
            with utils.listen("vsock", (bound, service)) as listener:
                assert listener.getsockname() == (hvsock.HV_GUID_WILDCARD, service)
                with hvsock.create_connection(("loopback", service), timeout=LIMIT, transport="vsock") as client:
                    accepted, peer = listener.accept()
                    with accepted:
                        assert peer.vm_id == hvsock.HV_GUID_LOOPBACK
                        assert peer == accepted.getpeername()
                        assert client.getpeername() == (hvsock.HV_GUID_LOOPBACK, service)
                        assert client.getsockname().service_id == peer.service_id

    def test_nobody_listens(self) -> None:
        start = time.monotonic()
        with pytest.raises(OSError) as info:
            hvsock.create_connection(("loopback", utils.new_service()), timeout=LIMIT, transport="vsock")
        assert info.value.errno in (errno.ECONNRESET, errno.ECONNREFUSED)
        assert time.monotonic() - start < LIMIT / 2
        assert "nothing listens" in "\n".join(info.value.__notes__)

    def test_a_full_backlog_resets(self) -> None:
        """The reason why the default one is as large as the system allows."""
        with utils.listen("vsock", backlog=2) as listener, contextlib.ExitStack() as stack:
            with pytest.raises(ConnectionResetError) as info:
                for _ in range(10):
                    stack.enter_context(hvsock.create_connection(listener.getsockname(), LIMIT, transport="vsock"))
            assert "its backlog is full" in "\n".join(info.value.__notes__)

    def test_no_host(self) -> None:
        """A guest without a hypervisor that answers: an error, and within the timeout."""
        with pytest.raises(OSError) as info:
            Task(hvsock.create_connection, ("parent", 5000), 10 * TICK, transport="vsock").result(SLACK)
        assert info.value.errno in (None, errno.ECONNRESET, errno.ENODEV, errno.ENETUNREACH, errno.ETIMEDOUT)

    @pytest.mark.parametrize("timeout", [0.1, 1.0, 2.5, 30.0, 1e-9, 1e6])
    def test_connect_timeout_is_the_kernels_too(self, timeout: float) -> None:
        """SO_VM_SOCKETS_CONNECT_TIMEOUT (6) at level AF_VSOCK: the kernel's own limit of 2 s is moved, either way."""
        with hvsock.HyperVSocket(transport="vsock") as sock:
            sock.settimeout(timeout)
            with pytest.raises(OSError):
                sock.connect(("loopback", utils.new_service()))
            # CPython's getsockopt reads integers only on AF_VSOCK, so it must not know the family.
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=os.dup(sock.fileno())) as plain:
                seconds, microseconds = struct.unpack("@ll", plain.getsockopt(40, 6, struct.calcsize("@ll")))
        # The kernel counts in jiffies, of at most 10 ms, and knows no zero.
        assert max(timeout - 0.01, 1e-6) <= seconds + microseconds / 1e6 <= timeout + 0.02

    def test_connect_timeout_holds(self) -> None:
        """No answer at all, which here only a peer gives that does not exist, ends in time as well."""
        start = time.monotonic()
        with pytest.raises(OSError):
            hvsock.create_connection((hvsock.vm_id_from_cid(77), 5000), timeout=4 * TICK, transport="vsock")
        assert time.monotonic() - start < SLACK

    def test_service_that_is_no_port(self) -> None:
        with hvsock.HyperVSocket(transport="vsock") as sock:
            for operation in (sock.bind, sock.connect):
                with pytest.raises(ValueError, match="port"):
                    operation(("loopback", uuid.uuid4()))

    def test_duplicate(self) -> None:
        with utils.listen("vsock") as listener:
            with pytest.raises(OSError) as info:
                hvsock.create_server(listener.getsockname(), transport="vsock")
            assert info.value.errno == errno.EADDRINUSE


@pytest.mark.usefixtures("kernel")
class TestPeerIsGone:
    """A peer that has ended while there was something left to read: virtio's poll never says that a send would fail."""

    CLOSED = 10.0  # seconds; the kernel says it after 8 (VSOCK_CLOSE_TIMEOUT)

    def test_send(self) -> None:
        a, b = utils.make_pair("vsock")
        with a:
            b.sendall(b"something")
            utils.fill(a)
            a.settimeout(LIMIT)
            sending = Task(a.sendall, b"nobody reads it")
            b.close()
            time.sleep(self.CLOSED)
            assert a.recv(100) == b"something"
            error = sending.error()
            assert isinstance(error, OSError)
            assert error.errno in (errno.EPIPE, errno.ECONNRESET)

    def test_message_of_asyncio(self) -> None:
        async def main() -> None:
            with utils.listen("vsock") as listener:
                address = listener.getsockname()
                async with await aio.connect_messages(address, timeout=LIMIT, transport="vsock") as stream:
                    peer, _ = listener.accept()
                    with peer:
                        peer.settimeout(LIMIT)
                        peer.send_message(b"something")
                        sending = asyncio.create_task(stream.send(bytes(16 << 20)))
                        await asyncio.sleep(TICK)
                    await asyncio.sleep(self.CLOSED)
                    assert await stream.recv() == b"something"
                    with pytest.raises(OSError) as info:
                        await asyncio.wait_for(asyncio.shield(sending), LIMIT)
                    assert info.value.errno in (errno.EPIPE, errno.ECONNRESET)

        asyncio.run(main())

    def test_pump(self) -> None:
        client, a = utils.make_pair("stdlib")
        b, server = utils.make_pair("vsock")
        with client, a, b:
            pumping = Task(Pump().run, a.fileno(), b.fileno(), None, None)
            with server:
                for sock in (client, server):
                    while utils.fill(sock):
                        time.sleep(TICK)
            time.sleep(self.CLOSED)
            client.settimeout(LIMIT)
            assert set(utils.receive_all(client)) == {0xAA}
            assert pumping.wait(LIMIT)
