"""The guest's half of the scene; `scene_host.py` is the other. It ends with the machine's power being cut."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import time

import hvsock

# The same in scene_host.py.
SERVICE = hvsock.service_id_from_port(5000)
SIZE = 8 << 20
NAME_SIZE = 16
WAIT = 300.0

NOBODY = hvsock.service_id_from_port(5001)
TAIL = 100_000  # bytes before the half-close: more than fits into one packet


def ok(text: str) -> None:
    print(f"ok    guest: {text}", flush=True)


def receive(conn: hvsock.HyperVSocket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (chunk := conn.recv(min(size - len(data), 1 << 16))):
        data += chunk
    assert len(data) == size, f"the stream ended after {len(data)} of {size} bytes"
    return bytes(data)


def dial(scene: str, retry_for: float = 0.0) -> hvsock.HyperVSocket:
    conn = hvsock.create_connection(("parent", SERVICE), timeout=WAIT, transport="vsock", retry_for=retry_for)
    conn.sendall(scene.encode().ljust(NAME_SIZE))
    return conn


def hello(retry_for: float = 0.0) -> None:
    with dial("hello", retry_for) as conn:
        peer = conn.getpeername()
        assert peer == (hvsock.HV_GUID_PARENT, SERVICE), peer
        assert peer.port == 5000
        conn.sendall(b"anyone there?")
        assert receive(conn, 14) == b"welcome, guest"
    ok(f"asked {peer} and was answered")


def transfer() -> None:
    payload = os.urandom(SIZE)
    with dial("transfer") as conn:
        start = time.monotonic()
        conn.sendall(payload)
        assert receive(conn, 32) == hashlib.sha256(payload).digest(), "the host received something else"
        sent = time.monotonic()
        received = receive(conn, SIZE)
        conn.sendall(hashlib.sha256(received).digest())
        end = time.monotonic()
    ok(f"{SIZE >> 20} MiB to the host arrived whole ({sent - start:.1f} s, and {end - sent:.1f} s back)")


def half_close() -> None:
    with dial("half-close") as conn:
        conn.sendall(bytes(TAIL))
        conn.shutdown(socket.SHUT_WR)
        answer = b"%d bytes" % TAIL
        assert receive(conn, len(answer)) == answer
        assert conn.recv(1) == b""
    ok("after its half-close the guest still received the answer, then the end of the stream")


def nobody_listens() -> None:
    start = time.monotonic()
    try:
        hvsock.create_connection(("parent", NOBODY), timeout=WAIT, transport="vsock").close()
    except OSError as error:
        ok(f"a service that nobody serves: {type(error).__name__} after {time.monotonic() - start:.1f} s")
    else:
        raise AssertionError("connected to a service that nobody serves")


def no_loopback() -> None:
    """This guest has no vsock_loopback: its kernel asks the hypervisor for CID 1, which does not answer."""
    start = time.monotonic()
    caught: OSError | None = None
    try:
        hvsock.create_connection(("loopback", NOBODY), timeout=WAIT, transport="vsock").close()
    except OSError as error:
        caught = error
    assert caught is not None and caught.errno == errno.ENODEV, caught
    assert "known cause: this kernel has no vsock loopback: modprobe vsock_loopback" in caught.__notes__
    ok(f"loopback without its module: {caught.strerror} after {time.monotonic() - start:.1f} s")


def service_is_killed() -> None:
    with dial("kill") as conn:
        try:
            left = conn.recv(1)
            how = "end of stream"
            assert left == b""
        except ConnectionError as error:
            how = type(error).__name__
    ok(f"the host's service was killed: {how}")
    time.sleep(1)  # a dying process closes this connection before its listening socket, which could still take the next
    start = time.monotonic()
    hello(retry_for=WAIT)
    ok(f"connected again by retry_for after {time.monotonic() - start:.1f} s")


def power_goes() -> None:
    # Over the first nothing is sent, and from the second no more is read, so that the host's send blocks.
    with dial("waiting for"), dial("sending to") as sending, dial("receiving from") as conn:
        assert receive(sending, 1 << 16) == bytes(1 << 16)
        ok("streaming until the power goes")
        for number in range(1 << 20):
            conn.sendall(bytes(1 << 16))
            if number == 16:
                subprocess.Popen(["poweroff", "-f"])


if __name__ == "__main__":
    hello(retry_for=WAIT)
    nobody_listens()
    no_loopback()
    transfer()
    half_close()
    service_is_killed()
    power_goes()
