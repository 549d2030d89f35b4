"""Every method of `HyperVSocket` beside the same method of `socket.socket`, in every situation a socket can be in.

Both classes take over handles that were made alike, on AF_UNIX and on TCP, and are given the same calls. What a call
returns or raises, what it leaves in the socket, and what the peer gets of it must be the same. `DIFFERENCES` lists what
is not, with the reason. The test fails if there is another difference, and if one that is listed has gone.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import os
import pickle
import select
import socket
import struct
import sys
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import utils
from shown_family import SHOWN_FAMILY
from utils import LIMIT, TICK

import hvsock
from hvsock._hvsock import Socket

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="Linux only: which errors differ is the kernel's choice"
)

#: The timeout of the sockets that have one: what has to wait takes this long, once for each class.
SHORT: Final = TICK / 10
FAMILIES: Final = ("unix", "tcp")
LARGE: Final = bytes(8 << 20)  # more than the buffers of a connection hold
DATA: Final = b"ready"


class Bench:
    """Makes the sockets of one situation, for one class, on one family."""

    def __init__(self, family: str, cls: type[socket.socket], stack: contextlib.ExitStack) -> None:
        self.family = family
        self.number = socket.AF_INET if family == "tcp" else socket.AF_UNIX
        self.cls = cls
        self.stack = stack
        self.peer: socket.socket | None = None  # always of the standard library
        self.file: Any = None
        self._natively = family == "tcp" or cls is socket.socket

    def wrap(self, plain: socket.socket) -> Any:
        """Have the class take over a handle."""
        family, kind, proto = plain.family, plain.type, plain.proto
        return self.stack.enter_context(self.cls(family, kind, proto, fileno=plain.detach()))

    def new(self) -> Any:
        return self.wrap(socket.socket(self.number))

    def bound(self) -> Any:
        plain = socket.socket(self.number)
        plain.bind(("127.0.0.1", 0) if self.family == "tcp" else self._path())
        return self.wrap(plain)

    def listening(self, timeout: float | None = SHORT) -> Any:
        sock = self.bound()
        socket.socket.listen(sock)
        sock.settimeout(timeout)
        return sock

    def connected(self, timeout: float | None = SHORT, data: bytes = b"") -> Any:
        """Return one end of a connection, whose other end has sent `data`."""
        with socket.socket(self.number) as listener:
            listener.bind(("127.0.0.1", 0) if self.family == "tcp" else self._path())
            listener.listen()
            near = socket.socket(self.number)
            near.connect(listener.getsockname())
            self.peer, _ = listener.accept()
        self.stack.enter_context(self.peer)
        sock = self.wrap(near)
        sock.settimeout(timeout)
        self.peer.settimeout(LIMIT)
        if data:
            self.peer.sendall(data)
            while len(socket.socket.recv(sock, 100, socket.MSG_PEEK)) < len(data):
                pass
        return sock

    def noticed(self, sock: Any) -> Any:
        """Wait until the socket knows of what its peer has done."""
        assert select.select([sock], [], [], LIMIT)[0]
        return sock

    def free_address(self) -> Any:
        """Return an address to bind to, as the class takes it."""
        if self.family == "tcp":
            return ("127.0.0.1", 0)
        return self._path() if self._natively else ("loopback", utils.new_service())

    def target(self) -> Any:
        """Return the address of a listener to connect to, as the class takes it."""
        if self.family == "tcp":
            return self.stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()
        listener = self.stack.enter_context(utils.listen("local"))
        return Socket.getsockname(listener) if self._natively else listener.getsockname()

    def refusing(self) -> Any:
        """Return the address of a listener that is gone."""
        if self.family == "tcp":
            with socket.create_server(("127.0.0.1", 0)) as listener:
                return listener.getsockname()
        if not self._natively:
            return ("loopback", utils.new_service())
        with socket.socket(self.number) as plain:
            path = self._path()
            plain.bind(path)
        return path

    def _path(self) -> str:
        return f"{os.environ['HVSOCK_LOCAL_DIR']}/{next(numbers)}"


numbers = itertools.count()


# Situations


def shut(how: int) -> Callable[[Bench], Any]:
    def situation(bench: Bench) -> Any:
        sock = bench.connected(data=DATA)
        socket.socket.shutdown(sock, how)
        return sock

    return situation


def full(timeout: float) -> Callable[[Bench], Any]:
    def situation(bench: Bench) -> Any:
        sock = bench.connected()
        utils.fill(sock)
        sock.settimeout(timeout)
        return sock

    return situation


def peer_shut(bench: Bench) -> Any:
    sock = bench.connected()
    assert bench.peer
    bench.peer.shutdown(socket.SHUT_WR)
    return bench.noticed(sock)


def peer_closed(bench: Bench) -> Any:
    sock = bench.connected()
    assert bench.peer
    bench.peer.close()
    return bench.noticed(sock)


def peer_closed_after_data(bench: Bench) -> Any:
    sock = bench.connected(data=DATA)
    assert bench.peer
    bench.peer.close()
    return bench.noticed(sock)


def peer_reset(bench: Bench) -> Any:
    """Leave what was sent unread (AF_UNIX), and close with a linger of 0 (TCP)."""
    sock = bench.connected()
    assert bench.peer
    socket.socket.send(sock, b"unread")
    bench.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    bench.peer.close()
    return bench.noticed(sock)


def client_waits(bench: Bench) -> Any:
    sock = bench.listening()
    bench.peer = bench.stack.enter_context(socket.socket(bench.number))
    bench.peer.connect(socket.socket.getsockname(sock))
    return sock


def closed(bench: Bench) -> Any:
    sock = bench.connected(data=DATA)
    sock.close()
    return sock


def detached(bench: Bench) -> Any:
    sock = bench.connected(data=DATA)
    socket.close(sock.detach())
    return sock


def closed_with_a_file(bench: Bench) -> Any:
    """Closed by the user, but not by the system: a file of makefile() is open."""
    sock = bench.connected(data=DATA)
    bench.file = bench.stack.enter_context(sock.makefile("rb"))
    sock.close()
    return sock


def copied(bench: Bench) -> Any:
    """What dup() returns, while the original is closed."""
    sock = bench.connected(data=DATA)
    twin = bench.stack.enter_context(sock.dup())
    sock.close()
    return twin


SITUATIONS: dict[str, Callable[[Bench], Any]] = {
    "new": Bench.new,
    "bound": Bench.bound,
    "listening": Bench.listening,
    "listening, non-blocking": lambda bench: bench.listening(0.0),
    "listening, a client waits": client_waits,
    "connected": Bench.connected,
    "connected, data has come": lambda bench: bench.connected(data=DATA),
    "non-blocking": lambda bench: bench.connected(0.0),
    "non-blocking, data has come": lambda bench: bench.connected(0.0, DATA),
    "blocking, data has come": lambda bench: bench.connected(None, DATA),
    "full": full(SHORT),
    "full, non-blocking": full(0.0),
    "shut for reading": shut(socket.SHUT_RD),
    "shut for writing": shut(socket.SHUT_WR),
    "shut for both": shut(socket.SHUT_RDWR),
    "peer has shut": peer_shut,
    "peer has closed": peer_closed,
    "peer has closed after data": peer_closed_after_data,
    "peer has reset": peer_reset,
    "closed": closed,
    "closed, a file is open": closed_with_a_file,
    "detached": detached,
    "duplicate": copied,
    "not initialised": lambda bench: bench.cls.__new__(bench.cls),
}


# Calls


def address(value: Any) -> Any:
    """Return what must be the same of an address: on AF_UNIX, ours are those of Hyper-V."""
    if isinstance(value, tuple) and not isinstance(value, hvsock.HyperVAddress):
        return value[0]
    return "address"


def descriptor(value: int, *, close: bool = False) -> Any:
    """Return whether a descriptor is one, and of what type."""
    if close and value >= 0:
        socket.close(value)
    return type(value), value if value < 0 else "open"


def look(sock: Any) -> tuple[Any, ...]:
    """Return what must be the same of a new socket, and close it."""
    with sock:
        return sock.family, sock.type, sock.proto, sock.gettimeout(), sock.get_inheritable()


def accepted(sock: Any) -> tuple[Any, ...]:
    connection, peer = sock.accept()
    return isinstance(connection, type(sock)), look(connection), address(peer)


def duplicated(sock: Any) -> tuple[Any, ...]:
    twin = sock.dup()
    return type(twin) is type(sock), look(twin)


def in_file(sock: Any, *args: Any, do: Callable[[Any], Any] = lambda _: None, **kwargs: Any) -> Any:
    """Open a file of a socket, do something with it, and close it."""
    file = sock.makefile(*args, **kwargs)
    try:
        return type(file), file.name, getattr(file, "mode", None), do(file)
    finally:
        with contextlib.suppress(OSError):  # what cannot be written before it is closed
            file.close()


def into(sock: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """Receive into a buffer; return the result and what is in the buffer."""
    buffer = bytearray(8)
    return getattr(sock, method)(buffer, *args, **kwargs), bytes(buffer)


def into_several(sock: Any, *args: Any) -> Any:
    buffers = bytearray(2), bytearray(8)
    return sock.recvmsg_into(buffers, *args), *map(bytes, buffers)


class Plain:
    """A file without a descriptor, and without positions if it is not `seekable`."""

    def __init__(self, data: bytes, seekable: bool) -> None:
        file = io.BytesIO(data)
        self.read = file.read
        if seekable:
            self.seek, self.tell = file.seek, file.tell


def send_file(sock: Any, kind: str, position: int, *args: Any, **kwargs: Any) -> Any:
    """Send a file with bytes 0 to 99; return the result and the position afterwards."""
    content = b"" if kind == "empty" else bytes(range(100))
    with contextlib.ExitStack() as stack:
        file: Any
        if kind in ("file", "empty", "raw", "read and write"):
            path = Path(os.environ["HVSOCK_LOCAL_DIR"]) / "content"
            path.write_bytes(content)
            mode = "r+b" if kind == "read and write" else "rb"
            file = stack.enter_context(path.open(mode, buffering=0 if kind == "raw" else -1))
        elif kind == "pipe":
            reader, writer = os.pipe()
            file = stack.enter_context(os.fdopen(reader, "rb"))
            os.write(writer, content)
            os.close(writer)
        elif kind == "memory":
            file = io.BytesIO(content)
        else:
            file = Plain(content, seekable=kind == "plain, seekable")
        if position:
            file.seek(position)
        try:
            sent: Any = sock.sendfile(file, *args, **kwargs)
        except Exception as error:
            sent = type(error), getattr(error, "errno", None)
        return sent, file.tell() if kind not in ("pipe", "plain") else None


def refused_pickle(sock: Any) -> Any:
    with pytest.raises(TypeError):
        pickle.dumps(sock)
    with pytest.raises(TypeError):
        copy.copy(sock)


def shown(sock: Any) -> str:
    """Return the repr() without what must differ: the class, the number of the handle, and addresses."""
    text = repr(sock).replace("hvsock.HyperVSocket", "socket.socket")
    for part in ("fd=", "laddr=", "raddr="):
        if part in text and not text.partition(part)[2].startswith("-1"):
            before, _, after = text.partition(part)
            rest = after[after.index(", ") :] if part == "fd=" else ", raddr=..." if ", raddr=" in after else ">"
            text = f"{before}{part}...{rest}"
    return text


def entered(sock: Any) -> Any:
    with sock as same:
        assert same is sock


Call = Callable[[Any], Any]
#: The first word of each is the method or attribute that it is about.
CALLS: dict[str, Call] = {
    # life
    "fileno": lambda s: descriptor(s.fileno()),
    "fileno, too many arguments": lambda s: s.fileno(1),
    "close": lambda s: s.close(),
    "close, too many arguments": lambda s: s.close(1),
    "close twice": lambda s: (s.close(), s.close()),
    "detach": lambda s: descriptor(s.detach(), close=True),
    "detach twice": lambda s: (descriptor(s.detach(), close=True), s.detach()),
    "detach and close": lambda s: (descriptor(s.detach(), close=True), s.close()),
    "detach, too many arguments": lambda s: s.detach(1),
    "dup": duplicated,
    "dup, too many arguments": lambda s: s.dup(1),
    "__enter__": entered,
    "__init__ with a wrong family": lambda s: s.__init__("1"),
    "__repr__": shown,
    "__hash__": lambda s: hash(s) == object.__hash__(s),
    "__eq__": lambda s: (s == s, s != s, s == 1),  # noqa: PLR0124
    "__bool__": bool,
    "__weakref__": lambda s: weakref.ref(s)() is s,
    "__dict__": lambda s: setattr(s, "attribute", 1),
    "__reduce__": refused_pickle,
    "family": lambda s: s.family,
    "type": lambda s: s.type,
    "proto": lambda s: s.proto,
    "timeout": lambda s: s.timeout,
    "family set": lambda s: setattr(s, "family", 1),
    "type set": lambda s: setattr(s, "type", 1),
    "proto set": lambda s: setattr(s, "proto", 1),
    "timeout set": lambda s: setattr(s, "timeout", 1),
    # names
    "getsockname": lambda s: address(s.getsockname()),
    "getsockname, too many arguments": lambda s: s.getsockname(1),
    "getpeername": lambda s: address(s.getpeername()),
    "getpeername, too many arguments": lambda s: s.getpeername(1),
    # modes
    "settimeout None": lambda s: (s.settimeout(None), s.gettimeout(), s.getblocking()),
    "settimeout 0": lambda s: (s.settimeout(0), s.gettimeout(), s.getblocking()),
    "settimeout 1.5": lambda s: (s.settimeout(1.5), s.gettimeout(), s.getblocking()),
    "settimeout True": lambda s: (s.settimeout(True), s.gettimeout()),
    "settimeout tiny": lambda s: (s.settimeout(1e-12), s.gettimeout()),
    "settimeout -1": lambda s: s.settimeout(-1),
    "settimeout nan": lambda s: s.settimeout(float("nan")),
    "settimeout infinite": lambda s: s.settimeout(float("inf")),
    "settimeout huge": lambda s: s.settimeout(1e300),
    "settimeout too large an int": lambda s: s.settimeout(1 << 200),
    "settimeout str": lambda s: s.settimeout("1"),
    "settimeout nothing": lambda s: s.settimeout(),
    "settimeout keyword": lambda s: s.settimeout(value=1),
    "gettimeout": lambda s: s.gettimeout(),
    "gettimeout, too many arguments": lambda s: s.gettimeout(1),
    "setblocking True": lambda s: (s.setblocking(True), s.gettimeout(), s.getblocking()),
    "setblocking False": lambda s: (s.setblocking(False), s.gettimeout(), s.getblocking()),
    "setblocking 2": lambda s: (s.setblocking(2), s.gettimeout()),
    "setblocking None": lambda s: (s.setblocking(None), s.gettimeout()),
    "setblocking str": lambda s: s.setblocking("yes"),
    "setblocking float": lambda s: (s.setblocking(0.5), s.gettimeout()),
    "setblocking nothing": lambda s: s.setblocking(),
    "getblocking": lambda s: s.getblocking(),
    "set_inheritable": lambda s: (s.set_inheritable(True), s.get_inheritable()),
    "set_inheritable str": lambda s: s.set_inheritable("1"),
    "get_inheritable": lambda s: s.get_inheritable(),
    # options
    "getsockopt": lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    "getsockopt bytes": lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, 4),
    "getsockopt too many bytes": lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, 1 << 20),
    "getsockopt -1 bytes": lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, -1),
    "getsockopt unknown": lambda s: s.getsockopt(socket.IPPROTO_TCP, 9999),
    "getsockopt nothing": lambda s: s.getsockopt(),
    "getsockopt str": lambda s: s.getsockopt("1", 2),
    "getsockopt keyword": lambda s: s.getsockopt(level=1, optname=2),
    "getsockopt too many arguments": lambda s: s.getsockopt(1, 2, 3, 4),
    "getsockopt TCP_NODELAY": lambda s: s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
    "getsockopt SO_ERROR": lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    "setsockopt": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "setsockopt bytes": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, struct.pack("i", 1)),
    "setsockopt None": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, None, 4),
    "setsockopt unknown": lambda s: s.setsockopt(socket.IPPROTO_TCP, 9999, 1),
    "setsockopt nothing": lambda s: s.setsockopt(),
    "setsockopt no value": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "setsockopt str": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, "1"),
    "setsockopt float": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1.0),
    "setsockopt too large": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1 << 40),
    "setsockopt keyword": lambda s: s.setsockopt(level=1, optname=2, value=3),
    "setsockopt too many arguments": lambda s: s.setsockopt(1, 2, 3, 4, 5),
    "setsockopt TCP_NODELAY": lambda s: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    "setsockopt TCP_NODELAY str": lambda s: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, "1"),
    # listening
    "listen": lambda s: s.listen(),
    "listen 0": lambda s: s.listen(0),
    "listen -1": lambda s: s.listen(-1),
    "listen None": lambda s: s.listen(None),
    "listen str": lambda s: s.listen("1"),
    "listen float": lambda s: s.listen(1.0),
    "listen too large": lambda s: s.listen(1 << 40),
    "listen too many arguments": lambda s: s.listen(1, 2),
    "listen keyword": lambda s: s.listen(backlog=1),
    "accept": accepted,
    "accept, too many arguments": lambda s: s.accept(1),
    # shutdown
    "shutdown RD": lambda s: s.shutdown(socket.SHUT_RD),
    "shutdown WR": lambda s: s.shutdown(socket.SHUT_WR),
    "shutdown RDWR": lambda s: s.shutdown(socket.SHUT_RDWR),
    "shutdown twice": lambda s: (s.shutdown(socket.SHUT_WR), s.shutdown(socket.SHUT_WR)),
    "shutdown and recv": lambda s: (s.shutdown(socket.SHUT_RD), s.recv(10), s.recv(10)),
    "shutdown and send": lambda s: (s.shutdown(socket.SHUT_WR), s.send(b"x")),
    "shutdown 99": lambda s: s.shutdown(99),
    "shutdown str": lambda s: s.shutdown("1"),
    "shutdown nothing": lambda s: s.shutdown(),
    # receiving
    "recv": lambda s: s.recv(3),
    "recv all": lambda s: s.recv(100),
    "recv much": lambda s: s.recv(100_000),
    "recv twice": lambda s: (s.recv(100), s.recv(100)),
    "recv 0": lambda s: s.recv(0),
    "recv -1": lambda s: s.recv(-1),
    "recv None": lambda s: s.recv(None),
    "recv nothing": lambda s: s.recv(),
    "recv float": lambda s: s.recv(1.0),
    "recv too large": lambda s: s.recv(1 << 70),
    "recv keyword": lambda s: s.recv(bufsize=1),
    "recv too many arguments": lambda s: s.recv(1, 0, 0),
    "recv flags": lambda s: s.recv(3, socket.MSG_PEEK),
    "recv flags str": lambda s: s.recv(3, "0"),
    "recv flags too large": lambda s: s.recv(3, 1 << 40),
    "recv flags unknown": lambda s: s.recv(3, 1 << 30),
    "recv flags OOB": lambda s: s.recv(3, socket.MSG_OOB),
    "recv_into": lambda s: into(s, "recv_into"),
    "recv_into with a count": lambda s: into(s, "recv_into", 3),
    "recv_into with a count of 0": lambda s: into(s, "recv_into", 0),
    "recv_into with a count of -1": lambda s: into(s, "recv_into", -1),
    "recv_into with too large a count": lambda s: into(s, "recv_into", 9),
    "recv_into with keywords": lambda s: into(s, "recv_into", nbytes=3, flags=socket.MSG_PEEK),
    "recv_into with a wrong keyword": lambda s: into(s, "recv_into", size=3),
    "recv_into nothing": lambda s: s.recv_into(),
    "recv_into bytes": lambda s: s.recv_into(b"abc"),
    "recv_into an empty buffer": lambda s: s.recv_into(bytearray()),
    "recv_into None": lambda s: s.recv_into(None),
    "recv_into a view": lambda s: s.recv_into(memoryview(bytearray(8))[2:5]),
    "recvfrom": lambda s: s.recvfrom(3)[0],
    "recvfrom 0": lambda s: s.recvfrom(0)[0],
    "recvfrom -1": lambda s: s.recvfrom(-1),
    "recvfrom nothing": lambda s: s.recvfrom(),
    "recvfrom flags": lambda s: s.recvfrom(3, socket.MSG_PEEK)[0],
    "recvfrom_into": lambda s: into(s, "recvfrom_into")[1],
    "recvfrom_into with a count": lambda s: into(s, "recvfrom_into", 3)[1],
    "recvfrom_into with a count of -1": lambda s: into(s, "recvfrom_into", -1),
    "recvfrom_into bytes": lambda s: s.recvfrom_into(b"abc"),
    # sending
    "send": lambda s: s.send(b"abc"),
    "send nothing": lambda s: s.send(),
    "send empty": lambda s: s.send(b""),
    "send much": lambda s: s.send(LARGE) > 0,
    "send str": lambda s: s.send("abc"),
    "send None": lambda s: s.send(None),
    "send int": lambda s: s.send(3),
    "send view": lambda s: s.send(memoryview(b"abcdef")[2:5]),
    "send every other byte": lambda s: s.send(memoryview(b"abcdef")[::2]),
    "send keyword": lambda s: s.send(data=b"abc"),
    "send too many arguments": lambda s: s.send(b"abc", 0, 0),
    "send flags str": lambda s: s.send(b"abc", "0"),
    "send flags too large": lambda s: s.send(b"abc", 1 << 40),
    "send flags unknown": lambda s: s.send(b"abc", 1 << 30),
    "send until an error": lambda s: [s.send(b"x") for _ in range(3)],
    "sendall": lambda s: s.sendall(b"abc"),
    "sendall nothing": lambda s: s.sendall(),
    "sendall empty": lambda s: s.sendall(b""),
    "sendall much": lambda s: s.sendall(LARGE),
    "sendall str": lambda s: s.sendall("abc"),
    "sendall keyword": lambda s: s.sendall(data=b"abc"),
    "sendall flags": lambda s: s.sendall(b"abc", 0),
    "sendall flags str": lambda s: s.sendall(b"abc", "0"),
    "sendall too many arguments": lambda s: s.sendall(b"abc", 0, 0),
    "sendto nothing": lambda s: s.sendto(),
    "sendto without an address": lambda s: s.sendto(b"abc"),
    "sendto None": lambda s: s.sendto(b"abc", None),
    "sendto with too many arguments": lambda s: s.sendto(b"abc", 0, ("127.0.0.1", 1), 0),
    # files
    "makefile": lambda s: in_file(s),
    "makefile rb": lambda s: in_file(s, "rb"),
    "makefile rwb": lambda s: in_file(s, "rwb"),
    "makefile w": lambda s: in_file(s, "w", encoding="ascii"),
    "makefile unbuffered": lambda s: in_file(s, "rb", buffering=0),
    "makefile unbuffered text": lambda s: in_file(s, "r", buffering=0),
    "makefile wrong mode": lambda s: in_file(s, "a"),
    "makefile read": lambda s: in_file(s, "rb", do=lambda file: file.read(5)),
    "makefile read1": lambda s: in_file(s, "rb", do=lambda file: file.read1(5)),
    "makefile read unbuffered": lambda s: in_file(s, "rb", buffering=0, do=lambda file: file.read(5)),
    "makefile readinto": lambda s: in_file(s, "rb", do=lambda file: file.readinto(bytearray(5))),
    "makefile text": lambda s: in_file(s, "r", encoding="ascii", do=lambda file: file.read(5)),
    "makefile write": lambda s: in_file(s, "wb", do=lambda file: (file.write(b"abc"), file.flush())),
    "makefile write unbuffered": lambda s: in_file(s, "wb", buffering=0, do=lambda file: file.write(b"abc")),
    "makefile seek": lambda s: in_file(s, "rb", do=lambda file: file.seek(0)),
    "makefile fileno": lambda s: in_file(s, "rb", do=lambda file: descriptor(file.fileno())),
    "makefile and close": lambda s: in_file(s, "rb", do=lambda file: (s.close(), file.read(5))),
    # sendfile
    "sendfile": lambda s: send_file(s, "file", 0),
    "sendfile from a position": lambda s: send_file(s, "file", 50),
    "sendfile from an offset": lambda s: send_file(s, "file", 0, 20),
    "sendfile from an offset and a position": lambda s: send_file(s, "file", 50, 20),
    "sendfile with a count": lambda s: send_file(s, "file", 50, 0, 10),
    "sendfile with an offset and a count": lambda s: send_file(s, "file", 50, 20, 10),
    "sendfile with too large a count": lambda s: send_file(s, "file", 50, 20, 1000),
    "sendfile from behind the end": lambda s: send_file(s, "file", 50, 1000),
    "sendfile from a position behind the end": lambda s: send_file(s, "file", 1000),
    "sendfile with keywords": lambda s: send_file(s, "file", 50, offset=20, count=10),
    "sendfile with a wrong keyword": lambda s: send_file(s, "file", 50, start=20),
    "sendfile with too many arguments": lambda s: send_file(s, "file", 50, 20, 10, 0),
    "sendfile with a count of 0": lambda s: send_file(s, "file", 50, 0, 0),
    "sendfile with a count of -1": lambda s: send_file(s, "file", 50, 0, -1),
    "sendfile with a float count": lambda s: send_file(s, "file", 50, 0, 1.0),
    "sendfile from offset -1": lambda s: send_file(s, "file", 50, -1),
    "sendfile from a float offset": lambda s: send_file(s, "file", 50, 1.0),
    "sendfile, raw": lambda s: send_file(s, "raw", 50),
    "sendfile, read and write": lambda s: send_file(s, "read and write", 50),
    "sendfile, empty": lambda s: send_file(s, "empty", 0),
    "sendfile, pipe": lambda s: send_file(s, "pipe", 0),
    "sendfile, memory": lambda s: send_file(s, "memory", 0),
    "sendfile, memory from a position": lambda s: send_file(s, "memory", 50),
    "sendfile, memory from an offset": lambda s: send_file(s, "memory", 50, 20),
    "sendfile, memory with a count": lambda s: send_file(s, "memory", 50, 20, 10),
    "sendfile, memory from behind the end": lambda s: send_file(s, "memory", 50, 1000),
    "sendfile, memory from offset -1": lambda s: send_file(s, "memory", 50, -1),
    "sendfile, plain": lambda s: send_file(s, "plain", 0),
    "sendfile, plain from an offset": lambda s: send_file(s, "plain", 0, 20),
    "sendfile, plain and seekable": lambda s: send_file(s, "plain, seekable", 50, 20, 10),
    "sendfile, text": lambda s: s.sendfile(Path(__file__).open()),  # noqa: SIM115
    "sendfile, no file": lambda s: s.sendfile(None),
    "sendfile, nothing": lambda s: s.sendfile(),
}
if hasattr(socket.socket, "sendmsg"):
    CALLS |= {
        "recvmsg": lambda s: s.recvmsg(3)[:3],
        "recvmsg 0": lambda s: s.recvmsg(0)[:3],
        "recvmsg -1": lambda s: s.recvmsg(-1),
        "recvmsg with ancillary data": lambda s: s.recvmsg(3, 100, socket.MSG_PEEK)[:3],
        "recvmsg_into": lambda s: into_several(s)[1:],
        "recvmsg_into nothing": lambda s: s.recvmsg_into([])[:3],
        "recvmsg_into bytes": lambda s: s.recvmsg_into([b"abc"]),
        "sendmsg": lambda s: s.sendmsg([b"abc", b"", b"def"]),
        "sendmsg nothing": lambda s: s.sendmsg(),
        "sendmsg empty": lambda s: s.sendmsg([]),
        "sendmsg bytes": lambda s: s.sendmsg(b"abc"),
        "sendmsg None": lambda s: s.sendmsg(None),
        "sendmsg of str": lambda s: s.sendmsg(["abc"]),
        "sendmsg keyword": lambda s: s.sendmsg(buffers=[b"abc"]),
        "sendmsg flags": lambda s: s.sendmsg([b"abc"], [], 0),
        "sendmsg flags str": lambda s: s.sendmsg([b"abc"], [], "0"),
        "sendmsg address None": lambda s: s.sendmsg([b"abc"], [], 0, None),
        "sendmsg ancillary None": lambda s: s.sendmsg([b"abc"], None),
        "sendmsg wrong ancillary data": lambda s: s.sendmsg([b"abc"], [(socket.SOL_SOCKET, 9999, b"x")]),
        "sendmsg too many arguments": lambda s: s.sendmsg([b"abc"], [], 0, None, 0),
    }

#: What needs an address, which the class takes in its own form.
CALLS_WITH_ADDRESS: dict[str, Callable[[Any, Bench], Any]] = {
    "bind": lambda s, bench: s.bind(bench.free_address()),
    "bind twice": lambda s, bench: (s.bind(bench.free_address()), s.bind(bench.free_address())),
    "bind and getsockname": lambda s, bench: (s.bind(bench.free_address()), address(s.getsockname())),
    "bind None": lambda s, _: s.bind(None),
    "bind nothing": lambda s, _: s.bind(),
    "bind int": lambda s, _: s.bind(5),
    "bind empty tuple": lambda s, _: s.bind(()),
    "bind too many arguments": lambda s, bench: s.bind(bench.free_address(), 1),
    "bind keyword": lambda s, bench: s.bind(address=bench.free_address()),
    "connect": lambda s, bench: s.connect(bench.target()),
    "connect and names": lambda s, bench: (
        s.connect(bench.target()),
        address(s.getsockname()),
        address(s.getpeername()),
    ),
    "connect twice": lambda s, bench: (s.connect(bench.target()), s.connect(bench.target())),
    "connect and listen": lambda s, bench: (s.connect(bench.target()), s.listen()),
    "connect refused": lambda s, bench: s.connect(bench.refusing()),
    "connect None": lambda s, _: s.connect(None),
    "connect nothing": lambda s, _: s.connect(),
    "connect int": lambda s, _: s.connect(5),
    "connect too many arguments": lambda s, bench: s.connect(bench.target(), 1),
    "connect_ex": lambda s, bench: s.connect_ex(bench.target()),
    "connect_ex twice": lambda s, bench: (s.connect_ex(bench.target()), s.connect_ex(bench.target())),
    "connect_ex refused": lambda s, bench: s.connect_ex(bench.refusing()),
    "connect_ex None": lambda s, _: s.connect_ex(None),
    "connect_ex nothing": lambda s, _: s.connect_ex(),
}

#: Without a timeout they would wait for ever.
ENDLESS: Final = {"send much", "sendall much", "recv twice"}
#: Methods of other platforms and families.
NOT_HERE: Final = {"ioctl", "share", "sendmsg_afalg"}


def attempt(call: Callable[[], Any]) -> tuple[Any, ...]:
    """Return what a call returned or raised: of an `OSError` its number and text too."""
    try:
        return "returned", call()
    except OSError as error:
        return "raised", type(error), *error.args
    except Exception as error:
        return "raised", type(error)


def outcome(family: str, cls: type[socket.socket], situation: str, name: str) -> tuple[Any, ...]:
    """Make the call; return what came of it, the state of the socket afterwards, and what the peer has received."""
    with contextlib.ExitStack() as stack, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bench = Bench(family, cls, stack)
        sock = SITUATIONS[situation](bench)
        if name in CALLS_WITH_ADDRESS:
            result = attempt(lambda: CALLS_WITH_ADDRESS[name](sock, bench))
        else:
            result = attempt(lambda: CALLS[name](sock))
        state = attempt(lambda: descriptor(sock.fileno())), attempt(sock.gettimeout)
        with contextlib.suppress(AttributeError):  # not initialised
            sock.close()
        if bench.file:
            bench.file.close()
        counts = not situation.startswith("full") and "much" not in name
        return result, state, received(bench.peer) if counts else b"", [warning.category for warning in caught]


def received(peer: socket.socket | None) -> bytes:
    """Return what a peer receives until the end of the stream."""
    data = b""
    if peer is not None and peer.fileno() != -1:
        with contextlib.suppress(ConnectionResetError):
            while part := peer.recv(1000):
                data += part
    return data


# Differences


@dataclass
class Difference:
    """Calls that differ in each of these situations."""

    reason: str
    calls: set[str]
    situations: set[str]
    families: tuple[str, ...] = FAMILIES


def named(*beginnings: str, but: tuple[str, ...] = ()) -> set[str]:
    """Return the calls whose names begin so."""
    return {name for name in (*CALLS, *CALLS_WITH_ADDRESS) if name.startswith(beginnings)} - {*but}


def situations(*but: str) -> set[str]:
    """Return all situations but those."""
    return set(SITUATIONS) - {*but}


NON_BLOCKING = {name for name in SITUATIONS if "non-blocking" in name}
GONE = {"closed", "detached"}
LISTENING = {"listening", "listening, a client waits"}
UNSENDABLE = {"new", "bound", "shut for writing", "shut for both", "peer has reset"}
PEER_GONE = {"peer has closed", "peer has closed after data"}
SENDABLE = situations(*GONE, *LISTENING, *UNSENDABLE, *PEER_GONE, *NON_BLOCKING, "not initialised", "full")

WRONG_RECEIVES = (
    *("recv 0", "recv -1", "recv None", "recv nothing", "recv float", "recv too large", "recv keyword"),
    *("recv too many arguments", "recv flags str", "recv flags too large", "recv_into with a count of -1"),
    *("recv_into with too large a count", "recv_into with a wrong keyword", "recv_into nothing", "recv_into bytes"),
    *("recv_into an empty buffer", "recv_into None"),
)
RECEIVES = named("recv ", "recv_into ", but=WRONG_RECEIVES) | {"recv", "recv_into", "makefile and close"}
RECEIVES |= named("makefile read", "makefile text")
EMPTY_SENDS = {"send empty", "sendall empty", "sendmsg empty"}
SENDS = EMPTY_SENDS | {
    *("send", "send much", "send view", "send flags unknown", "send until an error", "sendall", "sendall flags"),
    *("sendall much", "sendmsg", "sendmsg flags", "sendmsg address None", "shutdown and send"),
    *("makefile write", "makefile write unbuffered", "sendfile, plain"),
}
BAD_OFFSETS = {"sendfile from behind the end", "sendfile from offset -1", "sendfile from a float offset"}
FROM_MEMORY = {
    *("sendfile, memory", "sendfile, memory from a position", "sendfile, memory from an offset"),
    *("sendfile, memory with a count", "sendfile, plain and seekable"),
}
FROM_A_FILE = {
    *("sendfile", "sendfile from a position", "sendfile from an offset", "sendfile from an offset and a position"),
    *("sendfile with a count", "sendfile with an offset and a count", "sendfile with too large a count"),
    *("sendfile from a position behind the end", "sendfile with keywords", "sendfile, raw"),
    "sendfile, read and write",
}

AT_ONCE = "socket.socket with a timeout waits first; ours tries first, and then an error or a result comes at once"
POSITION = "socket.socket leaves the position behind what it has read; ours, behind what was sent"
NODELAY = "Hyper-V sockets delay nothing, which is TCP_NODELAY"
DIFFERENCES = (
    Difference(AT_ONCE, RECEIVES, {"listening"}),
    Difference(AT_ONCE, SENDS | FROM_MEMORY | FROM_A_FILE | BAD_OFFSETS, LISTENING),
    Difference(AT_ONCE, EMPTY_SENDS | {"shutdown and send"} | BAD_OFFSETS, {"full"}, ("unix",)),
    Difference(AT_ONCE, {"recv flags OOB"}, {"connected"}),
    Difference(AT_ONCE, {"recv flags OOB"}, {"full"}, ("unix",)),
    Difference(POSITION, FROM_MEMORY | FROM_A_FILE, UNSENDABLE),
    Difference(POSITION, FROM_MEMORY | FROM_A_FILE, PEER_GONE, ("unix",)),
    Difference(POSITION, FROM_MEMORY, GONE),
    Difference(POSITION, FROM_MEMORY, {"full"}, ("unix",)),
    Difference(
        "socket.socket takes it that the file was at its start: the position says otherwise than what was sent",
        {"sendfile, memory from a position"},
        SENDABLE,
    ),
    Difference(
        "the same, where TCP takes what is sent too late",
        {"sendfile, memory from a position"},
        PEER_GONE,
        ("tcp",),
    ),
    Difference(
        "socket.socket asks a selector, which raises ValueError for a closed socket; ours raises EBADF, as send() does",
        FROM_A_FILE | BAD_OFFSETS,
        GONE,
    ),
    Difference(
        "socket.socket sends nothing of a file without a size; ours sends it as it does other files",
        {"sendfile, pipe"},
        situations("not initialised"),
    ),
    Difference(
        "a non-blocking socket is refused whatever the file has; by socket.socket, not with an empty file",
        {"sendfile, empty"},
        NON_BLOCKING,
    ),
    Difference(
        "a second __init__ of an open socket is refused; socket.socket's would lose the handle",
        {"__init__ with a wrong family"},
        situations(*GONE, "not initialised"),
    ),
    Difference("listen(None) is listen(): create_server() passes it on", {"listen None"}, situations()),
    Difference(
        "a Hyper-V address is never empty, so that repr() shows one of a socket without a name",
        {"__repr__"},
        situations(*GONE, *LISTENING, "bound", "listening, non-blocking", "closed, a file is open", "not initialised"),
        ("unix",),
    ),
    Difference(
        "an address that is not a pair is a ValueError",
        {"bind empty tuple"},
        situations("not initialised"),
        ("unix",),
    ),
    Difference(
        NODELAY,
        {"getsockopt TCP_NODELAY", "setsockopt TCP_NODELAY"},
        situations(*GONE, "not initialised"),
        ("unix",),
    ),
)


def expected(family: str, situation: str) -> dict[str, str]:
    """Return which calls differ, and why."""
    return {
        call: difference.reason
        for difference in DIFFERENCES
        if family in difference.families and situation in difference.situations
        for call in difference.calls
    }


def applies(family: str, situation: str) -> bool:
    """Return whether the situation can be made: how much TCP's buffers hold changes while they are looked at."""
    return family == "unix" or not situation.startswith("full")


def is_comparable(situation: str, call: str) -> bool:
    """Return whether the call comes to an end, and leaves nothing behind that a finalizer complains of."""
    if situation == "not initialised":
        return not call.startswith("makefile")
    return not (situation == "blocking, data has come" and call in ENDLESS)


@pytest.mark.parametrize(
    ("family", "situation"), [(family, name) for family in FAMILIES for name in SITUATIONS if applies(family, name)]
)
def test_as_socket(family: str, situation: str) -> None:
    """Every call has the same outcome on both classes, but for those that are listed, which have not."""
    if family == "unix" and SHOWN_FAMILY:
        pytest.skip("about the family itself, which the reprs have: run without HVSOCK_TEST_FAMILY")
    reasons = expected(family, situation)
    found, wrong = set(), []
    for call in filter(lambda call: is_comparable(situation, call), (*CALLS, *CALLS_WITH_ADDRESS)):
        theirs, ours = (outcome(family, cls, situation, call) for cls in (socket.socket, hvsock.HyperVSocket))
        if theirs != ours:
            found.add(call)
            if call not in reasons:
                wrong.append(f"{call}: socket.socket {theirs}, ours {ours}")
    wrong += [f"{call}: no longer differs ({reasons[call]})" for call in sorted(reasons.keys() - found)]
    assert not wrong, "\n".join(wrong)


def test_every_method_is_compared() -> None:
    """Every public method and attribute of socket.socket is in the table."""
    compared = {name.split()[0].rstrip(",") for name in (*CALLS, *CALLS_WITH_ADDRESS)}
    public = {name for name in dir(socket.socket) if not name.startswith("_")}
    assert public - NOT_HERE <= compared


def test_differences_are_about_something() -> None:
    """A difference that names a call or a situation that does not exist would never be noticed."""
    for difference in DIFFERENCES:
        assert difference.calls and difference.situations
        assert difference.calls <= {*CALLS, *CALLS_WITH_ADDRESS}
        assert difference.situations <= {*SITUATIONS}
