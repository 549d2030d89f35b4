"""Calls of everything that is written in C, as it should be called and as it should not, to be made very often.

Each leaves the scene as it was, so that what has grown after many rounds has leaked.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import utils
from children import say
from samples import MISUSES, OPERATIONS
from utils import LIMIT, WINDOWS, framed, patiently

import hvsock
from hvsock import _hvsock
from hvsock._hvsock import RelayEngine, Socket, own_data_path
from hvsock.relay._native import to_tcp

DATA = utils.random_bytes(300)
LARGE = utils.random_bytes(100_000)


class Scene:
    """Sockets in every state that a call may meet."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.a, self.b = utils.make_pair(transport)
        #: Never waits; what `peer` sends arrives.
        self.idle, self.peer = utils.make_pair(transport, 0)
        #: The same, for what may leave bytes behind.
        self.odd, self.odd_peer = utils.make_pair(transport, 0)
        #: Whose deadline is always over.
        self.slow, self.slow_peer = utils.make_pair(transport, 1e-9)
        self.full, self.unread = utils.make_pair(transport, 0)
        utils.fill(self.full)
        self.dead, dead_peer = utils.make_pair(transport)
        dead_peer.close()
        self.closed, other = utils.make_pair(transport)
        self.closed.close()
        other.close()
        self.listener = utils.listen(transport)
        self.address = self.listener.getsockname()
        self.service, self.nobody = utils.new_service(), ("loopback", utils.new_service())
        for sock in (self.peer, self.odd_peer):
            sock.settimeout(LIMIT)

    def new(self) -> Any:
        return utils.dialler(self.transport)

    def close(self) -> None:
        for value in vars(self).values():
            if isinstance(value, socket.socket):
                value.close()


def sends(call: Callable[[Any], object], size: int) -> list[Callable[[Scene], object]]:
    """Return ways to make a call that sends so many bytes."""

    def delivered(s: Scene) -> None:
        call(s.a)
        assert len(utils.receive_exactly(s.b, size)) == size

    return [
        delivered,
        *(lambda s, which=which: call(getattr(s, which)) for which in ("full", "dead", "closed")),
    ]


def receives(call: Callable[[Any], object], wire: bytes, whole: bool = True) -> list[Callable[[Scene], object]]:
    """Return ways to make a call that receives these bytes; `whole`: all of them or none."""

    def taken(s: Scene) -> None:
        s.b.sendall(wire)
        call(s.a)

    def in_two_parts(s: Scene) -> None:
        s.peer.sendall(wire[: len(wire) // 2])
        with contextlib.suppress(BlockingIOError):
            call(s.idle)
            raise AssertionError("half of it was enough")
        with contextlib.suppress(RuntimeError):
            s.idle.recv(1)
            raise AssertionError("a part of it was to be had")
        s.peer.sendall(wire[len(wire) // 2 :])
        patiently(call, s.idle)

    return [
        taken,
        *([in_two_parts] if whole else []),
        *(lambda s, which=which: call(getattr(s, which)) for which in ("idle", "dead", "closed")),
    ]


def too_long(s: Scene) -> None:
    s.peer.sendall(framed(DATA))
    for call in (lambda: s.idle.recv_message(10), lambda: s.idle.recv_message_into(bytearray(10))):
        with contextlib.suppress(OSError):
            patiently(call)
    patiently(s.idle.recv_message)


def request_and_reply(s: Scene) -> None:
    with contextlib.suppress(BlockingIOError):
        s.idle.exchange(DATA, DATA)
    with contextlib.suppress(RuntimeError):
        s.idle.exchange(DATA)
    s.peer.send_message(s.peer.recv_message())
    patiently(s.idle.exchange, DATA, DATA)


def cut_short(s: Scene) -> None:
    """The stream ends within a message in, and within one out."""
    one, other = utils.make_pair("adopted", 0)
    with one, other:
        with contextlib.suppress(BlockingIOError):
            one.send_message(LARGE, LARGE, LARGE, LARGE)
        other.send(framed(LARGE)[:50_000])
        other.close()
        for call in (one.recv_message, one.recv_message, lambda: one.send_message(DATA), lambda: one.exchange(DATA)):
            with contextlib.suppress(OSError, EOFError, RuntimeError):
                call()


def bind(s: Scene) -> None:
    with s.new() as sock:
        sock.bind(("loopback", s.service))
        with s.new() as other, contextlib.suppress(OSError):
            other.bind(("loopback", s.service))


def connection(s: Scene, connect: Callable[[Any], object]) -> None:
    with s.new() as sock:
        connect(sock)
        s.listener.accept()[0].close()


def refused(s: Scene, connect: Callable[[Any], object]) -> None:
    with s.new() as sock:
        connect(sock)


def accept_nobody(s: Scene) -> None:
    s.listener.setblocking(False)
    try:
        s.listener.accept()
    finally:
        s.listener.settimeout(LIMIT)


def detach(s: Scene) -> None:
    sock = s.new()
    socket.close(sock.detach())
    sock.detach()


def real_close(s: Scene) -> None:
    sock = s.new()
    sock._real_close()
    sock._real_close()


def after_close(s: Scene) -> None:
    sock = s.new()
    sock._after_close(int)
    sock.close()
    sock = s.new()
    sock._after_close(list)
    socket.close(sock.detach())


class Subclass(hvsock.HyperVSocket):
    pass


#: Every function in C and every way for it to end; a test compares the names.
CALLS: dict[str, list[Callable[[Scene], object]]] = {
    "Socket.send": sends(lambda s: s.send(DATA), 300),
    "Socket.sendall": sends(lambda s: s.sendall(DATA), 300),
    "Socket.sendmsg": [
        *sends(lambda s: s.sendmsg([DATA, DATA], [], 0), 600),
        *sends(lambda s: s.sendmsg([DATA] * 20), 6000),
        lambda s: s.a.sendmsg([DATA, 3]),  # type: ignore[list-item]
        lambda s: s.a.sendmsg([DATA], [(1, 2, 3)], 0, 4),
    ],
    "Socket.recv": [
        *receives(lambda s: s.recv(300), DATA, whole=False),
        *receives(lambda s: s.recv(9000), DATA, whole=False),
        lambda s: s.slow.recv(1),
    ],
    "Socket.recv_into": receives(lambda s: s.recv_into(bytearray(300)), DATA, whole=False),
    "Socket.send_message": [
        *sends(lambda s: s.send_message(DATA[:100], DATA[100:]), 304),
        *sends(lambda s: s.send_message(*[DATA] * 20), 6004),
        lambda s: s.a.send_message(*[DATA] * 20, 3),  # type: ignore[arg-type]
    ],
    "Socket.recv_message": [
        *receives(lambda s: s.recv_message(), framed(DATA)),
        *receives(lambda s: s.recv_message(max_size=1 << 20), framed(LARGE)),
        too_long,
    ],
    "Socket.recv_message_into": receives(lambda s: s.recv_message_into(bytearray(500)), framed(DATA)),
    "Socket.recv_exactly": [
        *receives(lambda s: s.recv_exactly(300), DATA),
        *receives(lambda s: s.recv_exactly(100_000), LARGE),
    ],
    "Socket.recv_exactly_into": receives(lambda s: s.recv_exactly_into(bytearray(300)), DATA),
    "Socket.exchange": [
        *(lambda s, which=which: getattr(s, which).exchange(DATA) for which in ("full", "dead", "closed")),
        request_and_reply,
    ],
    "Socket.bind": [bind, lambda s: s.a.bind(3), lambda s: Socket.bind(s.a, 3), lambda s: s.closed.bind(s.address)],
    "Socket.connect": [
        lambda s: connection(s, lambda sock: sock.connect(s.address)),
        lambda s: refused(s, lambda sock: sock.connect(s.nobody)),
        lambda s: refused(s, lambda sock: Socket.connect(sock, 3)),
        lambda s: s.a.connect(s.address),
        lambda s: s.closed.connect(s.address),
    ],
    "Socket.connect_ex": [
        lambda s: connection(s, lambda sock: sock.connect_ex(s.address)),
        lambda s: refused(s, lambda sock: sock.connect_ex(s.nobody)),
        lambda s: refused(s, lambda sock: Socket.connect_ex(sock, 3)),
    ],
    "Socket.accept": [
        lambda s: connection(s, lambda sock: sock.connect(s.address)),
        accept_nobody,
        lambda s: s.idle.accept(),
        lambda s: s.closed.accept(),
    ],
    "Socket._accept_plain": [
        lambda s: connection(s, lambda sock: sock.connect(s.address)),
        lambda s: s.listener._accept_plain(int),
        lambda s: s.idle._accept_plain(Socket),
    ],
    "Socket._after_close": [
        lambda s: s.a._after_close(list),
        lambda s: s.a._after_close(None),
        lambda s: s.closed._after_close(list),
        after_close,
    ],
    "Socket._family": [lambda s: s.a._family],
    "Socket._options": [
        lambda s: setattr(s.a, "_options", s.b._options),
        lambda s: setattr(s.a, "_options", None),
        lambda s: delattr(s.a, "_options"),
    ],
    "Socket.getsockname": [lambda s: s.a.getsockname(), lambda s: s.closed.getsockname()],
    "Socket.getpeername": [lambda s: s.a.getpeername(), lambda s: s.listener.getpeername()],
    "Socket.gettimeout": [lambda s: s.a.gettimeout()],
    "Socket.timeout": [lambda s: s.a.timeout],
    "Socket.settimeout": [
        lambda s: s.a.settimeout(LIMIT),
        lambda s: s.a.settimeout("x"),  # type: ignore[arg-type]
        lambda s: s.a.settimeout(-1),
    ],
    "Socket.setblocking": [lambda s: s.odd.setblocking(False), lambda s: s.closed.setblocking(True)],
    "Socket.busy_poll": [
        lambda s: setattr(s.a, "busy_poll", s.b.busy_poll),
        lambda s: setattr(s.a, "busy_poll", -1),
        lambda s: setattr(s.a, "busy_poll", None),
        lambda s: delattr(s.a, "busy_poll"),
    ],
    "Socket.detach": [detach, lambda s: s.closed.detach()],
    "Socket._real_close": [real_close, lambda s: s.closed._real_close()],
    "Socket._explain": [lambda s: Socket._explain(s.a, OSError(), "send")],
    "Socket.__init__": [
        lambda s: s.new().close(),
        lambda s: s.a.__init__(),  # type: ignore[misc]
        lambda s: Socket("family"),  # type: ignore[arg-type]
        lambda s: Socket(fileno=-3),
        lambda s: Socket(fileno=1 << 20),
    ],
    "Socket.__del__": [lambda s: s.new() and None, cut_short],
    "own_data_path": [
        lambda s: own_data_path(Subclass),
        lambda s: own_data_path(int),  # type: ignore[type-var]
        lambda s: own_data_path(3),  # type: ignore[type-var]
    ],
}

KINDS: list[type[Any]] = [Socket, RelayEngine]

if sys.platform != "win32":
    from hvsock._hvsock import Pump

    def pump(s: Scene) -> None:
        with utils.connected("adopted") as (a, one), utils.connected("adopted") as (b, other):
            stopped, mover = Pump(), Pump()
            stopped.stop()
            assert not stopped.run(one.fileno(), other.fileno(), 1.0, None)
            a.send(DATA)
            for sock in (a, b):
                sock.shutdown(socket.SHUT_WR)
            assert mover.run(one.fileno(), other.fileno(), None, 1.0)
            assert mover.transferred == (len(DATA), 0)

    KINDS.append(Pump)
    CALLS |= {
        "Pump": [lambda s: Pump(), lambda s: Pump(1)],  # type: ignore[call-arg]
        "Pump.run": [
            pump,
            lambda s: Pump().run(-1, -1, None, None),
            lambda s: Pump().run(-1, -1, 0, None),
            lambda s: Pump().run("a", -1, None, None),  # type: ignore[arg-type]
            lambda s: Pump().run(),  # type: ignore[call-arg]
        ],
        "Pump.stop": [lambda s: Pump().stop()],
        "Pump.transferred": [lambda s: Pump().transferred],
    }


def new_engine() -> RelayEngine:
    return RelayEngine((), (), 1.0, 1.0, 10, False)


def ended_engine() -> RelayEngine:
    engine = new_engine()
    engine.end()
    return engine


def engine(s: Scene) -> None:
    """Relay a connection that is accepted, and one that is adopted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        source = socket.create_server(("127.0.0.1", 0))
        source.setblocking(False)
        moving = RelayEngine((source.fileno(),), to_tcp(*listener.getsockname()), 1.0, 1.0, 10, True)
        running = utils.Task(moving.run)
        with socket.create_connection(source.getsockname(), LIMIT) as client, listener.accept()[0] as server:
            client.sendall(DATA)
            assert utils.receive_exactly(server, len(DATA)) == DATA
        one, other = socket.socketpair()
        moving.adopt(one.detach(), other.detach(), b"name")
        moving.stop_listening()
        source.close()
        moving.abort()
        assert moving.wait(0, LIMIT)
        moving.end()
        running.result()
        while moving.next_log() is not None:
            pass


CALLS |= {
    "RelayEngine": [
        engine,
        lambda s: RelayEngine((), (), 0, None, 1, False),
        lambda s: RelayEngine(1),  # type: ignore[arg-type, call-arg]
    ],
    "RelayEngine.run": [lambda s: ended_engine().run()],
    "RelayEngine.adopt": [
        lambda s: new_engine().adopt(-1, -1, b"x"),
        lambda s: new_engine().adopt(1),  # type: ignore[call-arg]
    ],
    "RelayEngine.stop_listening": [lambda s: new_engine().stop_listening()],
    "RelayEngine.abort": [lambda s: new_engine().abort()],
    "RelayEngine.end": [lambda s: new_engine().end()],
    "RelayEngine.wait": [lambda s: new_engine().wait(0, 0.0), lambda s: new_engine().wait(1, 0.0)],
    "RelayEngine.next_log": [lambda s: ended_engine().next_log()],
    "RelayEngine.counters": [lambda s: new_engine().counters],
}


def misuse(call: Callable[[Any], object]) -> Callable[[Scene], object]:
    """Return a call that may leave the socket in another mode, or bytes on their way."""

    def once(s: Scene) -> None:
        try:
            call(s.odd)
        finally:
            s.odd.setblocking(False)
            s.odd_peer.setblocking(False)
            with contextlib.suppress(OSError):
                s.odd_peer.recv(10_000)

    return once


for table in (OPERATIONS, {name: call for name, (_, call) in MISUSES.items()}):
    for name, call in table.items():
        if f"Socket.{name.split()[0]}" in CALLS and name not in ("detach with an argument", "recv huge"):
            CALLS[f"Socket.{name.split()[0]}"].append(misuse(call))


def names() -> set[str]:
    """Return what is written in C, by name."""
    found = {name for name in vars(_hvsock) if not name.startswith("__")} - {"Socket", "SUN_PATH_SIZE"}
    for kind in KINDS:
        found |= {f"{kind.__name__}.{name}" for name in vars(kind) if not name.startswith("__")}
        found |= {f"{kind.__name__}.{name}" for name in ("__init__", "__del__") if name in vars(kind)}
    return found


# What may not grow


def heap() -> int:
    """Return how many bytes malloc() has given away, which Python cannot tell; 0 where nobody does."""

    class Mallinfo2(ctypes.Structure):
        _fields_ = tuple((f"n{index}", ctypes.c_size_t) for index in range(10))

    mallinfo = None if WINDOWS else getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = Mallinfo2
    info = mallinfo()
    return int(info.n7 + info.n4)  # uordblks, hblkhd


class Growth(NamedTuple):
    """By how much the process has grown in so many rounds."""

    rounds: int
    blocks: int
    size: int
    handles: int
    types: int

    @property
    def is_leak(self) -> bool:
        """Whether each round may have left something: caches, too, fill up, and Wine has threads of its own."""
        size = 12 * self.rounds  # malloc() gives 24 bytes or more
        return (
            self.blocks > min(500, self.rounds * 3 // 4)
            or self.size > size
            or self.handles > 2 * WINDOWS
            or self.types > 0
        )


def count() -> tuple[int, ...]:
    gc.collect()
    types = sum(sys.getrefcount(kind) for kind in (*KINDS, hvsock.HyperVSocket))
    return sys.getallocatedblocks(), heap(), utils.handles(), types


def growth(call: Callable[[Scene], object], scene: Scene, rounds: int) -> Growth:
    """Make a call so many times."""
    before = count()
    for _ in range(rounds):
        try:
            call(scene)
        except AssertionError:
            raise
        except Exception:
            pass
    return Growth(rounds, *(now - then for now, then in zip(count(), before, strict=True)))


def run(transport: str, least: int, total: int) -> Iterator[tuple[str, Growth]]:
    """Make every call, `least` times or more, and those of a function `total` times together; yield what has grown."""
    scene = Scene(transport)
    gc.collect()
    gc.freeze()
    for name, calls in CALLS.items():
        for call in calls:
            growth(call, scene, least)
            for _ in range(3):
                grown = growth(call, scene, max(least, total // len(calls)))
                if not grown.is_leak:
                    break
            yield name, grown
    scene.close()


def report(transport: str, least: str, total: str) -> None:
    """Print by how much what must not grow has grown, for every call."""
    warnings.simplefilter("ignore", ResourceWarning)  # sockets are dropped open here
    for name, grown in run(transport, int(least), int(total)):
        say(name, *grown, sep="\t")
