"""The relay's engine on a completion port: what stays pending, what fails there, and what is left at the end.

tests/test_relay.py has what every system's engine does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import utils
from utils import LIMIT, TICK, Address, receive_all, receive_exactly

if sys.platform != "win32":
    pytest.skip("Windows Python only: tests/windows/run has one", allow_module_level=True)

import hvsock
from hvsock.relay import Relay
from hvsock.relay._native import to_tcp

hvsim = pytest.importorskip("hvsim", reason="the simulated provider only: tests/windows/run has it")

#: What Hyper-V takes each way before the other end reads.
RING = 24576
#: Every word once, so that what is missing, or there twice, is seen.
PAYLOAD = b"".join(index.to_bytes(4, "big") for index in range(128 << 10))


class Rig:
    """A relay between two Hyper-V sockets."""

    def __init__(self, stack: contextlib.ExitStack, address: Address, **options: Any) -> None:
        self.stack = stack
        self.address = address
        self.server = stack.enter_context(hvsock.create_server(address))
        self.server.settimeout(LIMIT)
        source = f"hvsock://loopback/{utils.new_service()}?transport=hyperv"
        self.relay = Relay(source, f"hvsock://loopback/{address[1]}", **options)
        stack.enter_context(self.relay)

    def client(self) -> Any:
        return self.stack.enter_context(utils.dial(self.relay.address))

    def connection(self) -> tuple[Any, hvsock.HyperVSocket]:
        client = self.client()
        server = self.stack.enter_context(self.server.accept()[0])
        server.settimeout(LIMIT)
        return client, server

    def expect(self, *expected: int) -> None:
        """Wait until the first counters have these values."""
        utils.wait_for(lambda: self.relay.counters[: len(expected)] == expected)


@pytest.fixture
def rig(address: Address, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Rig]]:
    caplog.set_level(logging.DEBUG, "hvsock.relay")
    with contextlib.ExitStack() as stack:
        yield lambda **options: Rig(stack, address, **options)


def cut_off(sock: socket.socket) -> bytes:
    """Receive until the stream is cut off. Wine turns a reset into the end now and then."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 16):
            received += data
    return bytes(received)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSIM_RING", str(RING))


def test_idle_connections_have_no_threads(rig: Callable[..., Rig]) -> None:
    threads = threading.active_count()
    it = rig()
    pairs = [it.connection() for _ in range(200)]
    for client, _ in pairs:
        client.sendall(b"x")
    for client, server in pairs:
        assert server.recv(1) == b"x"
        server.sendall(b"y")
        assert client.recv(1) == b"y"
    assert threading.active_count() == threads + min(os.cpu_count() or 1, 16) + 1  # the last is the log's
    for pair in pairs:
        for sock in pair:
            sock.close()
    it.expect(0, 200, 0, 0, 0, 200, 200)


@pytest.mark.usefixtures("ring")
@pytest.mark.parametrize(
    "fault",
    ["", "sending=limit:5000*0", "sending=short:1000*0", "receiving=short:300*0", "send=10035*0", "WSASend=10035@3*2"],
)
def test_transfers(rig: Callable[..., Rig], fault: str) -> None:
    """Both ways at once, whatever the system takes or gives at a time, and whether it waits in it."""
    it = rig()
    client, server = it.connection()
    with hvsim.faults(*fault.split()):
        sending = [utils.Task(sock.sendall, data) for sock, data in ((client, PAYLOAD), (server, PAYLOAD[::-1]))]
        receiving = utils.Task(receive_exactly, server, len(PAYLOAD))
        assert receive_exactly(client, len(PAYLOAD)) == PAYLOAD[::-1]
        assert receiving.result() == PAYLOAD
        for task in sending:
            task.result()
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server) == b""
        server.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""
    it.expect(0, 1, 0, 0, 0, len(PAYLOAD), len(PAYLOAD))


def test_an_end_right_behind_the_data(rig: Callable[..., Rig]) -> None:
    """Of fewer bytes than a pending receive has, as many, and more."""
    it = rig()
    for size in (1, 511, 512, 513, 1024, 131_072, 131_584, 200_000):
        client, server = it.connection()
        client.sendall(PAYLOAD[:size])
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server) == PAYLOAD[:size]
        server.sendall(PAYLOAD[-size:])
        server.close()
        assert receive_all(client) == PAYLOAD[-size:]
        client.close()
    it.expect(0, 8, 0, 0, 0)


@pytest.mark.usefixtures("ring")
def test_an_abort_while_a_send_is_pending(rig: Callable[..., Rig]) -> None:
    it = rig()
    client, server = it.connection()
    hvsim.reset_counts()
    with hvsim.faults("send=10035*0"):
        client.sendall(PAYLOAD[:1000])
        utils.wait_for(lambda: hvsim.counts().get("WSASend", 0) > 1)  # the client's, and the relay's
        assert receive_exactly(server, 1000) == PAYLOAD[:1000]
    sent = utils.fill(client)
    it.relay.stop()
    assert it.relay.counters[:5] == (0, 1, 0, 0, 1)
    received = cut_off(server)
    assert len(received) < sent
    assert set(received) <= {0xAA}


@pytest.mark.parametrize("fault", ["WSARecv=10054", "recv=10054", "WSAGetOverlappedResult=10054"])
def test_a_receive_that_fails(rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture, fault: str) -> None:
    """The next one, the one for what else there is, and the one that is pending."""
    it = rig()
    client, server = it.connection()
    it.expect(1, 1)
    utils.wait_for(lambda: "connected to" in caplog.text)
    with hvsim.faults(fault):
        server.sendall(bytes(512))
        it.expect(0, 1, 0, 0, 1)
    utils.wait_for(lambda: "aborted: [WinError" in caplog.text)
    client.close()


def test_a_send_that_fails(rig: Callable[..., Rig]) -> None:
    """The peer takes no more; what it has sent before still arrives, and then the connection counts as aborted."""
    it = rig()
    client, server = it.connection()
    hvsim.reset_counts()
    with hvsim.faults("send=10054"):
        client.sendall(b"x")
        utils.wait_for(lambda: hvsim.counts().get("send", 0) == 1)  # the client's is a WSASend
    server.sendall(b"answer")
    assert receive_exactly(client, 6) == b"answer"
    server.close()
    assert receive_all(client) == b""
    it.expect(0, 1, 0, 0, 1)


@pytest.mark.parametrize("fault", ["ConnectEx=pending", "ConnectEx=stubborn:200"])
def test_stop_while_connecting(rig: Callable[..., Rig], fault: str) -> None:
    it = rig(connect_timeout=None)
    with hvsim.faults(f"{fault}@1"):  # the first is the client's
        client = it.client()
        it.expect(1, 1)
        time.sleep(2 * TICK)
        it.relay.stop()
    assert it.relay.counters[:5] == (0, 1, 0, 1, 0)
    assert cut_off(client) == b""


def test_connect_timeout(rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    it = rig(connect_timeout=4 * TICK)
    with hvsim.faults("ConnectEx=pending@1"):
        assert cut_off(it.client()) == b""
    it.expect(0, 1, 0, 1, 0)
    utils.wait_for(lambda: "was not reached: timed out" in caplog.text)


@pytest.mark.parametrize("fault", ["ConnectEx=10061@1", "connect-context=10057@1"])
def test_a_connect_that_fails(rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture, fault: str) -> None:
    it = rig()
    with hvsim.faults(fault):
        assert cut_off(it.client()) == b""
    it.expect(0, 1, 0, 1, 0)
    utils.wait_for(lambda: "was not reached: [WinError" in caplog.text)


def test_an_accept_that_fails(rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    """What the system lacks is logged, and tried again; a client that has gone is not mentioned."""
    it = rig()
    with hvsim.faults("AcceptEx=10055", "AcceptEx=10054@1*3", "accept-context=10057"):
        it.client()  # whose context fails, and with whom the next accept does
        utils.wait_for(lambda: "cannot accept: [WinError 10055]" in caplog.text)
        client, server = it.connection()
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    assert it.relay.counters[:5] == (1, 1, 0, 0, 0)
    assert caplog.text.count("cannot accept") == 1


def test_the_client_in_the_log(rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    it = rig()
    client, server = it.connection()
    own = client.getsockname().service_id
    utils.wait_for(lambda: "connected to" in caplog.text)
    assert f"hvsock://loopback/{own}: connected to {it.relay.target}" in caplog.text
    client.close()
    server.close()
    utils.wait_for(lambda: f"/{own}: ended" in caplog.text)


def test_several_addresses_are_not_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows takes 2 s to see that a port refuses: connect() asks the other address meanwhile."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 80)) for host in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert to_tcp("localhost", 80) == ()
    found.pop()
    assert to_tcp("localhost", 80) == ((2, 6, b"\2\0\0\x50\x7f\0\0\2" + bytes(8)),)
