"""The relay's soak: connections that come and go through a relay in a process of its own, with every byte checked.

What happens on a connection follows from its number, which its client sends first. So both ends know each byte that is
to come, and one that is lost, doubled, altered or out of order is noticed. An end that breaks off must leave the other
one with bytes that are all right, and then with an end or an error.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import utils
from children import relays
from utils import LIMIT, Child

#: What all streams are cut from.
STOCK = memoryview(utils.random_bytes(1 << 20))
ROUNDS = 3
RESET = struct.pack("ii", 1, 0)


@contextlib.contextmanager
def gone() -> Iterator[None]:
    """Expect that the other end may have broken off."""
    try:
        yield
    except ConnectionError:
        pass
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:
            raise


class Plan:
    """What is to happen on a connection: how much each end sends, and whether one of them breaks off."""

    def __init__(self, number: int) -> None:
        dice = random.Random(number)
        self.offset = dice.randrange(1000)
        self.sizes = [dice.choice((0, 1, 200, 5000, 200_000, 1_000_000)) for _ in ("client", "server")]
        self.takes_turns = dice.random() < 0.5
        self.breaks_off = dice.choice((None, None, None, "client", "server"))

    def sent_by(self, end: str) -> memoryview:
        size = self.sizes[end == "server"]
        return STOCK[self.offset : self.offset + size]


def send(sock: socket.socket, plan: Plan, end: str) -> None:
    data = plan.sent_by(end)
    if plan.breaks_off == end:
        sock.sendall(data[: len(data) // 2])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.shutdown(socket.SHUT_RD)
        raise ConnectionAbortedError
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def receive(sock: socket.socket, plan: Plan, end: str) -> bool:
    """Receive what the other end sends; return whether all of it has come."""
    expected = plan.sent_by("server" if end == "client" else "client")
    at = 0
    with gone():
        while data := sock.recv(65536):
            assert data == expected[at : at + len(data)], f"{plan.__dict__}: wrong after {at} bytes"
            at += len(data)
    assert at <= len(expected)
    return at == len(expected)


def talk(sock: socket.socket, plan: Plan, end: str) -> bool:
    """Play an end's part; return whether all has come. A client sends first if they take turns."""
    whole = True
    with gone():
        if plan.takes_turns and end == "server":
            whole = receive(sock, plan, end)
            send(sock, plan, end)
        elif plan.takes_turns:
            send(sock, plan, end)
            whole = receive(sock, plan, end)
        else:
            sending = utils.Task(send, sock, plan, end)
            whole = receive(sock, plan, end)
            with gone():
                sending.result()
    return whole


class Soak:
    """Clients and a server in this process, TCP to a Unix socket and back to TCP by two relays in another one."""

    def __init__(self, directory: Path, connections: int) -> None:
        self.seen: collections.Counter[str] = collections.Counter()
        self._connections = connections
        self._lock = threading.Lock()
        self._next = 0
        self._errors: list[BaseException] = []
        self._directory = directory

    def run(self, seconds: float) -> list[dict[str, int]]:
        """Run for so long, in rounds; return what the relays hold at the end of each, when no connection is left."""
        held = []
        with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
            target = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
            with Child(relays.of_a_soak, target, self._directory, str(2 * self._connections)) as child:
                port = int(child.line())
                threading.Thread(target=self._accept, args=[listener], daemon=True).start()
                for _ in range(ROUNDS):
                    deadline = time.monotonic() + seconds / ROUNDS
                    clients = [utils.Task(self._work, port, deadline) for _ in range(self._connections)]
                    for client in clients:
                        client.result(seconds + 2 * LIMIT)
                    child.tell("rest")
                    held.append(json.loads(child.line()))
                child.tell("stop")
                child.finish()
        if self._errors:
            raise self._errors[0]
        return held

    def _work(self, port: int, deadline: float) -> None:
        while time.monotonic() < deadline and not self._errors:
            with self._lock:
                self._next += 1
                number = self._next
            plan = Plan(number)
            with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
                sock.sendall(number.to_bytes(8))
                self._judge(plan, talk(sock, plan, "client"), "client")

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=self._serve, args=[sock], daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(LIMIT)
        try:
            with sock:
                try:
                    number = utils.receive_exactly(sock, 8)
                except (EOFError, ConnectionError, AssertionError):
                    self._count("never served")
                    return
                plan = Plan(int.from_bytes(number))
                self._judge(plan, talk(sock, plan, "server"), "server")
        except BaseException as exc:
            self._errors.append(exc)

    def _judge(self, plan: Plan, whole: bool, end: str) -> None:
        if plan.breaks_off is None:
            assert whole, f"{plan.__dict__}: the {end} has not got all"
        self._count(f"{end}: {'broken off' if plan.breaks_off else 'whole'}")

    def _count(self, what: str) -> None:
        with self._lock:
            self.seen[what] += 1
