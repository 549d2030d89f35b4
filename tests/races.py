"""Threads that call one socket without a pause, and one that closes, detaches, shuts it down or sets its timeout.

It runs in any interpreter, also in one that has a GIL of its own, where there are no daemon threads.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import utils
from utils import LIMIT, TICK, WINDOWS

ENDED = (OSError, EOFError)
TIMEOUTS = (None, LIMIT, 0.0, 0.001)


class Crew:
    """Threads that call until a call fails, until the stream ends or, if they are told so, until it is over."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, call: Callable[[], Any]) -> None:
        self._threads.append(threading.Thread(target=self._keep_calling, args=[call]))
        self._threads[-1].start()

    def _keep_calling(self, call: Callable[[], Any]) -> None:
        while True:
            try:
                result = call()
            except RuntimeError:  # somebody else's message is on its way
                if self.over.is_set():
                    return
                time.sleep(0)
                continue
            except (BlockingIOError, TimeoutError):  # its own may be
                time.sleep(0)
                continue
            except BaseException as error:
                self.errors.append(error)
                return
            if self.over.is_set() or result == 0:
                return

    def join(self) -> None:
        for thread in self._threads:
            thread.join(LIMIT)
            if thread.is_alive():
                raise AssertionError("a call hangs")

    def finish(self) -> None:
        self.over.set()
        self.join()


class Counter:
    """How much there was of things; threads count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def add(self, what: str, number: int) -> int:
        with self._lock:
            self._counts[what] = self._counts.get(what, 0) + number
        return number

    def __getitem__(self, what: str) -> int:
        return self._counts.get(what, 0)


class Work:
    """A socket, the threads that call it, and those at its other end."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.senders, self.receivers = Crew(), Crew()
        self.peer_senders, self.peer_receivers = Crew(), Crew()
        self.counter = Counter()
        self.sock: Any
        self.peer: Any
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def release(self) -> None:
        """Have every call come to an end by what the other end does."""
        self.peer.close()

    def finish(self) -> None:
        """Let all that was begun come to its end, and compare what was sent with what was received."""
        self.senders.finish()
        self.peer_senders.finish()
        self.sock.shutdown(socket.SHUT_WR)
        self.peer_receivers.join()
        self.peer.shutdown(socket.SHUT_WR)
        self.receivers.join()
        self.check()

    def check(self) -> None:
        raise NotImplementedError

    def end(self) -> list[BaseException]:
        """Wait for every thread, and return how those at this end have ended."""
        self.senders.finish()
        self.receivers.finish()
        self.peer.close()
        self.peer_senders.finish()
        self.peer_receivers.finish()
        for error in self.peer_senders.errors + self.peer_receivers.errors:
            assert isinstance(error, ENDED), repr(error)
        return self.senders.errors + self.receivers.errors


class Bytes(Work):
    def open(self) -> None:
        self.sock, self.peer = a, b = utils.make_pair(self.transport)
        count = self.counter.add
        for send in (a.send, lambda data: a.sendall(data) or len(data), lambda data: a.sendmsg([data])):
            self.senders.start(functools.partial(lambda send: count("sent", send(b"ours")), send))
        for receive in (lambda: len(a.recv(100)), lambda: a.recv_into(bytearray(100))):
            self.receivers.start(functools.partial(lambda receive: count("received", receive()), receive))
        self.peer_receivers.start(lambda: count("arrived", len(b.recv(1000))))
        self.peer_senders.start(lambda: count("sent by peer", b.send(b"theirs")))

    def check(self) -> None:
        assert self.counter["sent"] == self.counter["arrived"]
        assert self.counter["sent by peer"] == self.counter["received"]


class Messages(Work):
    """Some messages ask for a reply, which somebody gets."""

    def open(self) -> None:
        self.sock, self.peer = a, b = utils.make_pair(self.transport)
        self.asked = threading.Semaphore(0)
        self.senders.start(lambda: (a.send_message(b"t", b"ell" * 10_000), self.counter.add("told", 1)))
        for number in range(2):
            request = b"ask" + b"%d" % number * 1000
            self.senders.start(functools.partial(lambda request: self.take(a.exchange(request)), request))
        self.receivers.start(lambda: self.take(a.recv_message()))
        self.senders.start(lambda: (a.send(b""), a.recv(0)))  # which look whether a message is on its way
        self.peer_receivers.start(lambda: self.hear(b.recv_message()))
        self.peer_senders.start(self.answer)

    def take(self, message: bytes) -> None:
        assert message == b"reply" * 3000
        self.counter.add("taken", 1)

    def hear(self, message: bytes) -> None:
        if message == b"t" + b"ell" * 10_000:
            self.counter.add("heard", 1)
        else:
            assert message[:3] == b"ask"
            assert message[3:] in (b"0" * 1000, b"1" * 1000)
            self.asked.release()

    def answer(self) -> None:
        # Unasked, too: until a message comes, recv_message() keeps the exchanges waiting.
        self.asked.acquire(timeout=TICK / 50)
        self.peer.send_message(b"reply" * 3000)
        self.counter.add("answered", 1)

    def check(self) -> None:
        assert self.counter["told"] == self.counter["heard"]
        assert self.counter["answered"] == self.counter["taken"]


class Accept(Work):
    def open(self) -> None:
        self.sock = utils.listen(self.transport)
        self.peer = contextlib.ExitStack()
        address = self.sock.getsockname()
        for _ in range(2):
            self.receivers.start(self.accept)
        for _ in range(2):
            self.peer_senders.start(lambda: self.dial(address))

    def accept(self) -> None:
        self.sock.accept()[0].close()
        self.counter.add("accepted", 1)

    def dial(self, address: Any) -> None:
        with utils.dialler(self.transport) as sock:
            sock.settimeout(TICK)  # when nobody accepts any more
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                sock.connect(address)
                self.counter.add("dialled", 1)

    def release(self) -> None:
        pass  # who dials does

    def finish(self) -> None:
        self.peer_senders.finish()
        deadline = time.monotonic() + LIMIT
        while self.counter["accepted"] < self.counter["dialled"]:
            assert time.monotonic() < deadline, "a connection was not accepted"
            time.sleep(0.001)
        self.check()
        self.sock.close()

    def check(self) -> None:
        assert self.counter["accepted"] == self.counter["dialled"]


class Connect(Work):
    """The listener has no room, until there is."""

    def open(self) -> None:
        self.peer = contextlib.ExitStack()
        self.listener = self.peer.enter_context(utils.listen(self.transport, backlog=0))
        address = self.listener.getsockname()
        for _ in range(random.choice((0, 3))):
            waiting = self.peer.enter_context(utils.dialler(self.transport))
            waiting.settimeout(0)
            with contextlib.suppress(OSError):
                waiting.connect(address)
        self.sock = utils.dialler(self.transport)
        self.sock.settimeout(LIMIT)
        self.senders.start(lambda: self.sock.connect(address))

    def release(self) -> None:
        self.peer_receivers.start(lambda: self.listener.accept()[0].close())

    def finish(self) -> None:
        self.release()
        self.senders.finish()

    def end(self) -> list[BaseException]:
        self.senders.finish()
        self.listener.close()
        return super().end()


# What is done to a socket meanwhile


def is_closed(error: BaseException) -> bool:
    return isinstance(error, OSError) and (WINDOWS or error.errno == errno.EBADF)


def close(work: Work) -> None:
    others = [threading.Thread(target=work.sock.close) for _ in range(random.choice((0, 1)))]
    for thread in others:
        thread.start()
    work.sock.close()
    for thread in others:
        thread.join()
    with utils.bystanders(3):
        for error in work.end():
            # What was over before the close is Connect's, and a peer's that has ended is nobody's.
            assert is_closed(error) or isinstance(work, Connect), repr(error)


def detach(work: Work) -> None:
    """Calls inside go on, those to come fail, and the descriptor is nobody's but the caller's."""
    family, kind, proto = work.sock.family, work.sock.type, work.sock.proto
    with socket.socket(family, kind, proto, fileno=work.sock.detach()) as plain:
        work.release()
        for error in work.end():
            assert isinstance(error, ENDED), repr(error)
        plain.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)


def shutdown(work: Work) -> None:
    with contextlib.suppress(OSError):
        work.sock.shutdown(random.choice((socket.SHUT_RDWR, socket.SHUT_RD, socket.SHUT_WR)))
    work.release()
    if isinstance(work, Accept):  # not every family ends an accept by it
        work.sock.close()
    for error in work.end():
        assert isinstance(error, ENDED), repr(error)


def settimeout(work: Work) -> None:
    """Nothing is lost or doubled by it, and no call waits for longer than the last one says."""
    for _ in range(10):
        work.sock.settimeout(random.choice(TIMEOUTS))
        time.sleep(random.choice((0, 0.0001)))
    work.sock.settimeout(LIMIT)
    work.finish()
    for error in work.end():
        assert isinstance(error, ENDED), repr(error)


KINDS: dict[str, type[Work]] = {"bytes": Bytes, "messages": Messages, "accept": Accept, "connect": Connect}
DISTURBANCES: dict[str, Callable[[Work], None]] = {
    "close": close,
    "detach": detach,
    "shutdown": shutdown,
    "settimeout": settimeout,
}


def limit(rounds: int) -> float:
    """Return how long so many rounds of each disturbance may take, in seconds."""
    return LIMIT * (4 + rounds / 50)


def run(transport: str, kind: str, disturbance: str, rounds: int) -> None:
    """Disturb such calls in so many rounds."""
    sys.setswitchinterval(1e-5)
    for index in range(rounds):
        work = KINDS[kind](transport)
        try:
            time.sleep((0, 0.0001, 0.0005)[index % 3])
            DISTURBANCES[disturbance](work)
        finally:
            work.sock.close()
