"""A host and a guest, each a process."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import utils
from utils import LIMIT

import hvsock
from children import say


def payload(seed: int, size: int) -> Iterator[bytes]:
    """Yield the blocks of a random stream."""
    rng = random.Random(seed)
    while size:
        block = rng.randbytes(min(size, rng.randrange(1, 200_000)))
        size -= len(block)
        yield block


def send_payload(sock: socket.socket, seed: int, size: int) -> str:
    import hashlib

    digest = hashlib.sha256()
    for block in payload(seed, size):
        sock.sendall(block)
        digest.update(block)
    return digest.hexdigest()


def receive_payload(sock: socket.socket) -> tuple[int, str]:
    import hashlib

    digest, buffer, size = hashlib.sha256(), bytearray(1 << 17), 0
    while count := sock.recv_into(buffer):
        digest.update(memoryview(buffer)[:count])
        size += count
    return size, digest.hexdigest()


def host(transport: str, vm: str, size: str) -> None:
    """A host service on the wildcard: it says its address, then serves one guest and checks who that is."""
    service = utils.new_service()
    with hvsock.create_server(("wildcard", service), transport=transport) as listener:
        listener.settimeout(LIMIT)
        assert listener.getsockname() == (hvsock.HV_GUID_WILDCARD, service)
        assert listener.getsockname().port == hvsock.port_from_service_id(service)
        say(listener.getsockname().port)
        sock, guest = listener.accept()
        with sock:
            sock.settimeout(LIMIT)
            assert type(sock) is hvsock.HyperVSocket
            assert type(guest) is hvsock.HyperVAddress
            assert str(guest.vm_id) == vm, guest
            assert sock.getpeername() == guest
            assert hvsock.HyperVAddress.parse(str(guest)) == guest
            if transport != "hyperv":  # go-winio: there it is arbitrary
                assert sock.getsockname().service_id == service
            say(guest.service_id)
            # The guest ends its stream first, and still hears all of the answer.
            say(*receive_payload(sock))
            say(send_payload(sock, 2, int(size)))
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""


def guest(transport: str, target: str, port: str, size: str) -> None:
    """A guest agent: it dials the host's service, checks both addresses, sends, half-closes, and receives."""
    with hvsock.create_connection((target, int(port)), timeout=LIMIT, transport=transport, retry_for=LIMIT) as sock:
        dialled = hvsock.as_address((target, int(port)))
        assert sock.getpeername() == dialled
        mine = sock.getsockname()
        assert type(mine) is hvsock.HyperVAddress
        assert mine.service_id != dialled.service_id
        say(mine.service_id)
        say(send_payload(sock, 1, int(size)))
        # Linux forgets the peer of an AF_VSOCK socket at its shutdown.
        assert sock.getpeername() == dialled
        sock.shutdown(socket.SHUT_WR)
        say(*receive_payload(sock))


def serve_default() -> None:
    """Serve one client on the default transport."""
    with hvsock.create_server(("wildcard", utils.new_service())) as listener:
        listener.settimeout(LIMIT)
        say(listener.getsockname().port)
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(LIMIT)
            sock.sendall(utils.receive_all(sock).upper())


def dial_default(port: str) -> None:
    """Dial it."""
    with hvsock.create_connection(("loopback", int(port)), timeout=LIMIT) as sock:
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        say(utils.receive_all(sock).decode())
