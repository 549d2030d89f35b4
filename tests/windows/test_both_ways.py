"""hvsock, whichever way Windows answers what is marked ? in test_facts.py: a test for each, with each of the ways.

Over the simulated provider, which has a switch for each way; over the real AF_HYPERV the tests run in its own way.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator

import pytest
import utils
from utils import LIMIT, TICK, Address, Pair, takes

if sys.platform != "win32":
    pytest.skip("Windows Python only: tests/windows/run has one", allow_module_level=True)

import facts
from facts import hvsim

import hvsock
from hvsock import aio
from hvsock._cli.timing import round_trip

#: What Hyper-V takes each way before the other end reads.
RING = 24576
#: Every word once, so that what is missing, or there twice, is seen.
PAYLOAD = b"".join(index.to_bytes(4, "big") for index in range(64 << 10))
VM = "11111111-2222-4333-8444-555555555555"


@pytest.fixture(autouse=True)
def way(request: pytest.FixtureRequest, hyperv: None) -> Iterator[None]:
    """Set the switches that the test names; the machine's own way has none."""
    with facts.switched(request.param):
        yield


@pytest.fixture
def hyperv() -> None:
    if reason := utils.reason_to_skip("hyperv"):
        pytest.skip(reason)


def ways(*switches: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("way", switches if hvsim else [""], indirect=True)


@pytest.fixture
def pair(server: hvsock.HyperVSocket, address: Address) -> Iterator[Pair]:
    with hvsock.create_connection(address, timeout=LIMIT) as client, server.accept()[0] as accepted:
        accepted.settimeout(LIMIT)
        yield client, accepted


def check_exchange(client: socket.socket, accepted: socket.socket) -> None:
    client.sendall(b"there")
    assert utils.receive_exactly(accepted, 5) == b"there"
    accepted.sendall(b"back")
    assert utils.receive_exactly(client, 4) == b"back"


# What a VM id means, and the addresses (c3, c4)


@ways("HVSIM_PARTITION=parent", f"HVSIM_PARTITION={VM}")
def test_parent_on_this_machine() -> None:
    """It listens, or is an error at once."""
    error = utils.Task(lambda: hvsock.create_server(("parent", uuid.uuid4())).close()).error()
    assert getattr(error, "winerror", None) in {None, 10022, 10047, 10049}, error


@ways("", "HVSIM_ODD_ACCEPT=1", "HVSIM_EXACT_NAME=1")
def test_addresses_of_an_accepted_socket(address: Address, server: hvsock.HyperVSocket) -> None:
    with hvsock.create_connection(address, timeout=LIMIT) as client:
        accepted, peer = server.accept()
        with accepted:
            assert peer == accepted.getpeername() == (hvsock.HV_GUID_LOOPBACK, client.getsockname().service_id)
            assert client.getpeername() == (hvsock.HV_GUID_LOOPBACK, address[1])
            assert server.getsockname() == (hvsock.HV_GUID_LOOPBACK, address[1])
            assert isinstance(accepted.getsockname(), hvsock.HyperVAddress)


# Which calls work (c5)


@ways(*(f"HVSIM_RING={RING} {way}" for way in ("", "select=10045*0", "WSAPoll=10045*0", "HVSIM_SILENT_POLL=1")))
@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["no timeout", "timeout"])
def test_without_select_and_poll(timeout: float | None, address: Address, server: hvsock.HyperVSocket) -> None:
    """What waits needs neither: connects made and refused, accepts, sends that fill the ring, receives."""
    server.settimeout(timeout)
    accepting = utils.Task(server.accept)
    with hvsock.HyperVSocket() as client:
        client.settimeout(timeout)
        client.connect(address)
        with accepting.result()[0] as accepted:
            accepted.settimeout(timeout)
            check_exchange(client, accepted)
            sending = utils.Task(client.sendall, PAYLOAD)
            assert not sending.wait(2 * TICK)
            assert utils.receive_exactly(accepted, len(PAYLOAD)) == PAYLOAD
            sending.result()
    with hvsock.HyperVSocket() as client:
        client.settimeout(timeout)
        with pytest.raises(ConnectionRefusedError):
            client.connect(("loopback", uuid.uuid4()))


@ways("", "select=10045*0", "WSAPoll=10045*0", "HVSIM_SILENT_POLL=1")
def test_non_blocking_connect(address: Address, server: hvsock.HyperVSocket) -> None:
    """It has begun; how it ends is select's to say, where there is select, and SO_ERROR's."""
    with hvsock.HyperVSocket() as made, hvsock.HyperVSocket() as refused:
        for sock, to in ((made, address), (refused, ("loopback", uuid.uuid4()))):
            sock.setblocking(False)
            assert sock.connect_ex(to) in {0, 10035}
        server.accept()[0].close()
        utils.wait_for(lambda: refused.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 10061)
        with contextlib.suppress(OSError):
            assert select.select([], [made], [], LIMIT) == ([], [made], [])
            assert select.select([], [refused], [refused], LIMIT) == ([], [], [refused])
        made.settimeout(LIMIT)
        assert made.recv(1) == b""


@ways(f"HVSIM_RING={RING}", f"HVSIM_RING={RING} select=10045*0")
def test_long_round_trip_of_the_command_line(pair: Pair) -> None:
    """Which waits for room and for data at once."""
    client, accepted = pair
    message = 2 * PAYLOAD

    def echo() -> None:
        while data := accepted.recv(8192):
            accepted.sendall(data)

    echoing = utils.Task(echo)
    assert round_trip(client, message, LIMIT) > 0
    client.close()
    echoing.result()


@ways("", "TransmitFile=10045*0", "DisconnectEx=10045*0")
def test_sendfile(pair: Pair) -> None:
    client, accepted = pair
    with tempfile.TemporaryFile() as file:
        file.write(PAYLOAD)
        file.seek(0)
        sending = utils.Task(client.sendfile, file)
        assert utils.receive_exactly(accepted, len(PAYLOAD)) == PAYLOAD
        assert sending.result() == len(PAYLOAD)
    client.close()
    assert accepted.recv(1) == b""


@ways("", "HVSIM_STRICT_BIND=1", "reuse-option=10042*0")
def test_taken_name(address: Address, server: hvsock.HyperVSocket) -> None:
    """Whichever call refuses it, the error is the same, and the name is free with its listener's end."""
    with pytest.raises(OSError) as caught:
        hvsock.create_server(address)
    assert caught.value.winerror == 10048
    server.close()
    hvsock.create_server(address).close()


@ways("", "HVSIM_ANY_SERVICE=1")
def test_server_without_a_service() -> None:
    """It is refused, or has a name that a client can reach."""
    creating = utils.Task(hvsock.create_server, ("loopback", uuid.UUID(int=0)))
    if error := creating.error():
        assert getattr(error, "winerror", None) == 10022, error
        return
    with creating.result() as server:
        name = server.getsockname()
        assert name.service_id.int != 0
        with hvsock.create_connection(name, timeout=LIMIT) as client, server.accept()[0] as accepted:
            check_exchange(client, accepted)


@ways(f"HVSIM_RING={RING}", f"HVSIM_RING={RING} HVSIM_LOSSY_CANCEL=1")
def test_message_that_timeouts_interrupt(pair: Pair) -> None:
    """What has gone of it is known, though a cancelled send may not tell."""
    client, accepted = pair
    client.settimeout(TICK)
    with pytest.raises(TimeoutError):
        client.send_message(PAYLOAD)
    receiving = utils.Task(accepted.recv_message)
    client.settimeout(LIMIT)
    client.send_message(PAYLOAD)
    assert receiving.result() == PAYLOAD


@ways("", "sending=limit:65536*0", "sending=limit:4096*0")
def test_largest_send(pair: Pair) -> None:
    client, accepted = pair
    data = 8 * PAYLOAD
    sending = utils.Task(client.sendall, data)
    assert utils.receive_exactly(accepted, len(data)) == data
    sending.result()


@ways("", "accept-context=10057*1", "accept-context=10054*1", "getpeername=10057*1")
@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["no timeout", "timeout"])
def test_client_that_has_gone(timeout: float | None, address: Address, server: hvsock.HyperVSocket) -> None:
    """It is accepted and at its end, or passed over; the next one is served."""
    server.settimeout(timeout)
    hvsock.create_connection(address, timeout=LIMIT).close()
    with hvsock.create_connection(address, timeout=LIMIT) as client:
        accepted, peer = server.accept()
        if peer.service_id != client.getsockname().service_id:
            accepted.settimeout(LIMIT)
            assert accepted.recv(1) == b""
            accepted.close()
            accepted, peer = server.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            check_exchange(client, accepted)


@ways("connecting=pending", "connecting=stubborn:1500", "connecting=pending HVSIM_DEFAULT_TIMEOUT=60000")
def test_timeout_of_a_connect(address: Address, server: hvsock.HyperVSocket) -> None:
    """It ends then, whether the system lets go of the connect or not, and whatever limit that has of itself."""
    if not hvsim:
        pytest.skip("no connect is known to stay pending over the real AF_HYPERV")
    with hvsock.HyperVSocket() as sock:
        sock.settimeout(4 * TICK)
        with takes(0, 1.5), pytest.raises(TimeoutError):
            sock.connect(address)
        deadline = time.monotonic() + LIMIT
        sock.settimeout(LIMIT)
        while code := sock.connect_ex(address):
            assert code == 10037  # WSAEALREADY, until the system has let go
            assert time.monotonic() < deadline
            time.sleep(TICK)
        with server.accept()[0] as accepted:
            check_exchange(sock, accepted)


@ways("connecting=pending HVSIM_DEFAULT_TIMEOUT=300", "connecting=pending HVSIM_DEFAULT_TIMEOUT=60000")
@pytest.mark.parametrize("ends", ["itself", "close"])
def test_connect_without_a_timeout(ends: str, request: pytest.FixtureRequest, address: Address) -> None:
    """It ends with the system's own limit, and with close()."""
    if not hvsim:
        pytest.skip("no connect is known to stay pending over the real AF_HYPERV")
    with hvsock.HyperVSocket() as sock:
        sock.settimeout(None)
        connecting = utils.Task(sock.connect, address)
        if ends == "itself" and "=300" in request.node.name:
            assert isinstance(connecting.error(), TimeoutError)
        elif ends == "close":
            assert not connecting.wait(2 * TICK)
            sock.close()
            assert isinstance(connecting.error(), OSError)


@ways("", "HVSIM_OWN_MODE=1")
@pytest.mark.parametrize("other_mode", [False, True], ids=["other non-blocking", "other blocking"])
def test_modes_of_duplicates(other_mode: bool, pair: Pair) -> None:
    """Each object keeps its own timeout, whether the handles share a mode or not."""
    client, accepted = pair
    with client.dup() as twin:
        twin.setblocking(other_mode)
        client.setblocking(False)
        with takes(0, 1.5), pytest.raises(BlockingIOError):
            client.recv(1)
        client.settimeout(2 * TICK)
        with takes(0, 1.5), pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(None)
        twin.setblocking(False)
        receiving = utils.Task(client.recv, 1)
        assert not receiving.wait(2 * TICK)
        with pytest.raises(BlockingIOError):
            twin.recv(1)
        accepted.sendall(b"x")
        assert receiving.result() == b"x"
        twin.settimeout(LIMIT)
        check_exchange(twin, accepted)


@ways(
    "",
    "select=10045*0",
    "WSAPoll=10045*0",
    "HVSIM_SILENT_POLL=1",
    "HVSIM_ODD_ACCEPT=1",
    "HVSIM_OWN_MODE=1",
    "TransmitFile=10045*0",
)
def test_asyncio(address: Address) -> None:
    """On Windows' own loop; the other one is made of select."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with asyncio.timeout(LIMIT), await aio.start_server(echo, address):
            reader, writer = await aio.open_connection(address)
            writer.write(PAYLOAD)
            writer.write_eof()
            assert await reader.read() == PAYLOAD
            writer.close()
            with pytest.raises(ConnectionRefusedError):
                await aio.open_connection(("loopback", uuid.uuid4()))

    with asyncio.Runner(loop_factory=asyncio.ProactorEventLoop) as runner:
        runner.run(main())


@ways("", "HVSIM_LOSSY_CANCEL=1", "sending=limit:4096*0", "select=10045*0", "WSAPoll=10045*0")
def test_asyncio_messages(pair: Pair) -> None:
    """Sent in parts where one send takes no more, and continued after their task was cancelled."""

    async def main() -> None:
        async with aio.MessageStream(pair[0]) as client, aio.MessageStream(pair[1]) as accepted:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await client.send(8 * PAYLOAD)
                    await client.send(b"the end")
            async with asyncio.timeout(LIMIT):
                receiving = asyncio.create_task(accepted.recv())
                await client.send(8 * PAYLOAD)
                assert await receiving == 8 * PAYLOAD

    with asyncio.Runner(loop_factory=asyncio.ProactorEventLoop) as runner:
        runner.run(main())


# What fails, and how (c6)


@ways("", "connecting=pending")
def test_nothing_listens_in_a_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, or there is no answer; both pass when the service starts."""
    if not hvsim:
        pytest.skip("needs a virtual machine on this host")
    service = uuid.uuid4()
    monkeypatch.setenv("HVSIM_PARTITION", VM)
    hvsock.HyperVSocket().close()  # now it runs
    monkeypatch.delenv("HVSIM_PARTITION")
    with pytest.raises((ConnectionRefusedError, TimeoutError)):
        hvsock.create_connection((VM, service), timeout=4 * TICK)
    connecting = utils.Task(hvsock.create_connection, (VM, service), retry_for=LIMIT)
    assert not connecting.wait(TICK)
    monkeypatch.setenv("HVSIM_PARTITION", VM)
    with hvsock.create_server(("parent", service)) as server:
        server.settimeout(LIMIT)
        monkeypatch.delenv("HVSIM_PARTITION")
        with connecting.result() as client, server.accept()[0] as accepted:
            check_exchange(client, accepted)


#: What was seen of VMs that start, and what IOCP makes of some.
PASSING = (1201, 1225, 10050, 10051, 10054, 10060, 10061)


@ways("", *(f"connecting={code}*3" for code in PASSING), "connecting=0*3")
def test_error_that_passes(address: Address, server: hvsock.HyperVSocket) -> None:
    with pytest.raises(OSError):
        hvsock.create_connection(("loopback", uuid.uuid4()), timeout=LIMIT)
    with hvsock.create_connection(address, retry_for=LIMIT) as client, server.accept()[0] as accepted:
        check_exchange(client, accepted)
