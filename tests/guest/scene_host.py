"""The host's half of the scene: a service that a virtual machine connects to, and the machine itself.

`scene_host.py COMMAND...` starts the service in a process of its own, then COMMAND, which boots the machine (CID 7)
that runs `scene_guest.py`, and starts the service again when it has been killed. Exit status 0: every check of both
halves passed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hvsock

# The same in scene_guest.py.
SERVICE = hvsock.service_id_from_port(5000)
SIZE = 8 << 20
NAME_SIZE = 16  # a connection begins with the name of its scene, filled up with spaces
GUEST = hvsock.vm_id_from_cid(7)

# Seconds. A machine in an emulated machine is slow, slower still when the real one is busy; the bed has its own limit.
BOOT = 3600.0
WAIT = 300.0  # for what happens once it runs
GRACE = 60.0  # for noticing that it is gone
DOWN = 3.0  # the service stays away after it was killed
# What the machine writes: its kernel's messages, and the exit status of scene_guest.py if that came to its end.
CONSOLE = Path("/tmp/console")
STATUS = Path("/tmp/status")


def ok(text: str) -> None:
    print(f"ok    host: {text}", flush=True)


def chunks(conn: hvsock.HyperVSocket, size: int = sys.maxsize) -> Iterator[bytes]:
    """What arrives, until `size` bytes or the end of the stream."""
    while size and (data := conn.recv(min(size, 1 << 16))):
        yield data
        size -= len(data)


def receive(conn: hvsock.HyperVSocket, size: int) -> bytes:
    data = b"".join(chunks(conn, size))
    assert len(data) == size, f"the stream ended after {len(data)} of {size} bytes"
    return data


# --- the service: what it does depends on the name that a connection begins with ---


def hello(conn: hvsock.HyperVSocket) -> None:
    assert receive(conn, 13) == b"anyone there?"
    conn.sendall(b"welcome, guest")
    ok("answered the guest")


def transfer(conn: hvsock.HyperVSocket) -> None:
    digest = hashlib.sha256()
    for data in chunks(conn, SIZE):
        digest.update(data)
    conn.sendall(digest.digest())
    payload = os.urandom(SIZE)
    conn.sendall(payload)
    assert receive(conn, digest.digest_size) == hashlib.sha256(payload).digest(), "the guest received something else"
    ok(f"{SIZE >> 20} MiB to the guest arrived whole")


def half_close(conn: hvsock.HyperVSocket) -> None:
    received = sum(map(len, chunks(conn)))
    conn.sendall(b"%d bytes" % received)
    ok(f"the guest shut down its half after {received} bytes and was answered")


def kill_yourself(conn: hvsock.HyperVSocket) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ends(name: str, conn: hvsock.HyperVSocket, loop: Callable[[hvsock.HyperVSocket], int], ended: list[str]) -> None:
    """Run a loop that only the machine's end can stop, and tell how it ended."""
    conn.settimeout(None)
    try:
        how = f"end of stream after {loop(conn)} bytes"
    except OSError as error:
        how = f"{type(error).__name__} ({error})"
    ok(f"the guest was powered off; {name} it ended with {how}")
    ended.append(name)


def drain(conn: hvsock.HyperVSocket) -> int:
    return sum(map(len, chunks(conn)))


def flood(conn: hvsock.HyperVSocket) -> int:
    while True:
        conn.sendall(bytes(1 << 16))


SCENES = {"hello": hello, "transfer": transfer, "half-close": half_close, "kill": kill_yourself}
LAST_SCENE = {"receiving from": drain, "waiting for": drain, "sending to": flood}


def serve() -> int:
    """Accept connections until the last scene is over."""
    last: list[threading.Thread] = []
    ended: list[str] = []
    with hvsock.create_server(("wildcard", SERVICE), transport="vsock") as server:
        server.settimeout(BOOT)
        ok(f"listening on {server.getsockname()}")
        while len(last) < len(LAST_SCENE):
            conn, address = server.accept()
            assert address.vm_id == conn.getpeername().vm_id == GUEST, f"{address} is not the guest"
            conn.settimeout(WAIT)
            name = receive(conn, NAME_SIZE).decode().strip()
            if name in SCENES:
                print(f"      host: {address} begins {name}", flush=True)
                with conn:
                    SCENES[name](conn)
            else:
                thread = threading.Thread(target=ends, args=(name, conn, LAST_SCENE[name], ended))
                thread.start()
                last.append(thread)
    for thread in last:
        thread.join()
    return len(last) - len(ended)


# --- the supervisor ---


def relay(machine: subprocess.Popen[bytes]) -> None:
    assert machine.stdout
    for line in machine.stdout:
        print(line.decode(errors="replace").rstrip(), flush=True)


def main(command: list[str]) -> int:
    """Run the machine to its end and the service to its own."""
    start = time.monotonic()
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    threading.Thread(target=relay, args=(machine,), daemon=True).start()
    gone: float | None = None
    kills = 0
    service = subprocess.Popen([sys.executable, "-B", "-I", __file__, "serve"])
    try:
        while (status := service.poll()) is None or status == -signal.SIGKILL:
            if status is not None:
                kills += 1
                ok(f"the service was killed; starting it again in {DOWN:g} s")
                time.sleep(DOWN)
                service = subprocess.Popen([sys.executable, "-B", "-I", __file__, "serve"])
            if gone is None and machine.poll() is not None:
                gone = time.monotonic()
                print(f"      host: the machine has ended ({machine.returncode})", flush=True)
            if gone and time.monotonic() - gone > GRACE:
                print(f"FAILED host: the machine went {GRACE:g} s ago and the service has not noticed", flush=True)
                return 1
            time.sleep(0.1)
        if status or kills != 1:
            print(f"FAILED host: the service ended with status {status} after {kills} kills", flush=True)
            return 1
        machine.wait(GRACE)
        if left := STATUS.read_text().strip():
            print(f"FAILED host: scene_guest.py ended by itself, with status {left}", flush=True)
            return 1
        print(f"passed in {time.monotonic() - start:.0f} s", flush=True)
        return 0
    finally:
        if machine.poll() is None:
            machine.kill()
        if service.poll() is None:
            service.kill()
        if CONSOLE.exists():
            for line in CONSOLE.read_text(errors="replace").splitlines()[-5:]:
                print(f"      console: {line}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        sys.exit(serve())
    sys.exit(main(sys.argv[1:]))
