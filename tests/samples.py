"""Buffers and calls, right ones and wrong ones, that several modules try."""

from __future__ import annotations

import array
import ctypes
import mmap
import pickle
import socket
import sys
from collections.abc import Callable
from typing import Any


class Exporter(array.array):  # type: ignore[type-arg]
    """A buffer of another type than the usual ones."""


def buffers_to_send() -> list[tuple[str, Any, bytes]]:
    numbers = array.array("I", [1, 2, 3])
    mapped = mmap.mmap(-1, mmap.PAGESIZE)
    mapped[:4] = b"mmap"
    grid = memoryview(bytes(range(24))).cast("B", (4, 6))
    return [
        ("bytes", b"bytes", b"bytes"),
        ("bytearray", bytearray(b"bytearray"), b"bytearray"),
        ("memoryview", memoryview(b"memoryview")[6:], b"view"),
        ("read-only memoryview", memoryview(bytearray(b"abc")).toreadonly(), b"abc"),
        ("items of four bytes", numbers, numbers.tobytes()),
        ("view of items of four bytes", memoryview(numbers)[1:], numbers.tobytes()[4:]),
        ("two dimensions", grid, bytes(range(24))),
        ("subclass", Exporter("B", b"sub"), b"sub"),
        ("mmap", mapped, b"mmap" + bytes(mmap.PAGESIZE - 4)),
        ("ctypes", ctypes.create_string_buffer(b"cty", 3), b"cty"),
        ("picklebuffer", pickle.PickleBuffer(b"pickle"), b"pickle"),
        ("empty", b"", b""),
        ("empty view", memoryview(b"")[:0], b""),
    ]


class Index:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def released_view() -> memoryview:
    view = memoryview(b"gone")
    view.release()
    return view


def raising_iterator() -> Any:
    yield b"fine"
    raise LookupError("from the iterator")


#: The same on the oracle and on ours: bytes, timeouts and the rest.
OPERATIONS: dict[str, Callable[[socket.socket], object]] = {
    # sizes and counts
    "recv negative": lambda s: s.recv(-1),
    "recv huge": lambda s: s.recv(sys.maxsize),
    "recv too large for a size": lambda s: s.recv(sys.maxsize + 1),
    "recv no size": lambda s: s.recv(),  # type: ignore[call-arg]
    "recv None": lambda s: s.recv(None),  # type: ignore[arg-type]
    "recv float": lambda s: s.recv(1.0),  # type: ignore[arg-type]
    "recv str": lambda s: s.recv("1"),  # type: ignore[arg-type]
    "recv too many arguments": lambda s: s.recv(1, 0, 0),  # type: ignore[call-arg]
    "recv keyword": lambda s: s.recv(bufsize=1),  # type: ignore[call-arg]
    "recv flags as str": lambda s: s.recv(1, "0"),  # type: ignore[arg-type]
    "recv flags too large": lambda s: s.recv(1, 1 << 40),
    "recv bool": lambda s: s.recv(True),
    "recv index": lambda s: s.recv(Index(3)),  # type: ignore[arg-type]
    "recv": lambda s: s.recv(3),
    "recv zero": lambda s: s.recv(0),
    "recv peek": lambda s: s.recv(3, socket.MSG_PEEK),
    # recv_into
    "recv_into nothing": lambda s: s.recv_into(),  # type: ignore[call-arg]
    "recv_into bytes": lambda s: s.recv_into(b"abc"),
    "recv_into str": lambda s: s.recv_into("abc"),  # type: ignore[arg-type]
    "recv_into None": lambda s: s.recv_into(None),  # type: ignore[arg-type]
    "recv_into read-only view": lambda s: s.recv_into(memoryview(bytearray(3)).toreadonly()),
    "recv_into non-contiguous": lambda s: s.recv_into(memoryview(bytearray(6))[::2]),
    "recv_into count negative": lambda s: s.recv_into(bytearray(3), -1),
    "recv_into count too big": lambda s: s.recv_into(bytearray(3), 4),
    "recv_into count huge": lambda s: s.recv_into(bytearray(3), sys.maxsize + 1),
    "recv_into count None": lambda s: s.recv_into(bytearray(3), None),  # type: ignore[arg-type]
    "recv_into count float": lambda s: s.recv_into(bytearray(3), 1.0),  # type: ignore[arg-type]
    "recv_into too many arguments": lambda s: s.recv_into(bytearray(3), 1, 0, 0),  # type: ignore[call-arg]
    "recv_into keywords": lambda s: s.recv_into(buffer=bytearray(3), nbytes=2, flags=socket.MSG_PEEK),
    "recv_into keyword count": lambda s: s.recv_into(bytearray(3), nbytes=2),
    "recv_into keyword flags": lambda s: s.recv_into(bytearray(3), flags=socket.MSG_PEEK),
    "recv_into wrong keyword": lambda s: s.recv_into(bytearray(3), size=1),  # type: ignore[call-arg]
    "recv_into argument twice": lambda s: s.recv_into(bytearray(3), 1, nbytes=1),  # type: ignore[misc]
    "recv_into flags as str": lambda s: s.recv_into(bytearray(3), 1, "0"),  # type: ignore[arg-type]
    "recv_into empty": lambda s: s.recv_into(bytearray(0)),
    "recv_into empty with count": lambda s: s.recv_into(bytearray(0), 1),
    # send
    "send nothing": lambda s: s.send(),  # type: ignore[call-arg]
    "send str": lambda s: s.send("abc"),  # type: ignore[arg-type]
    "send None": lambda s: s.send(None),  # type: ignore[arg-type]
    "send int": lambda s: s.send(3),  # type: ignore[arg-type]
    "send list": lambda s: s.send([1, 2]),  # type: ignore[arg-type]
    "send non-contiguous": lambda s: s.send(memoryview(b"abcdef")[::2]),
    "send too many arguments": lambda s: s.send(b"x", 0, 0),  # type: ignore[call-arg]
    "send keyword": lambda s: s.send(data=b"x"),  # type: ignore[call-arg]
    "send flags as str": lambda s: s.send(b"x", "0"),  # type: ignore[arg-type]
    "send flags too large": lambda s: s.send(b"x", 1 << 40),
    "send flags float": lambda s: s.send(b"x", 0.0),  # type: ignore[arg-type]
    "send": lambda s: s.send(b"abc"),
    "send released view": lambda s: s.send(released_view()),
    # sendall
    "sendall nothing": lambda s: s.sendall(),  # type: ignore[call-arg]
    "sendall str": lambda s: s.sendall("abc"),  # type: ignore[arg-type]
    "sendall non-contiguous": lambda s: s.sendall(memoryview(b"abcdef")[::2]),
    "sendall too many arguments": lambda s: s.sendall(b"x", 0, 0),  # type: ignore[call-arg]
    "sendall keyword": lambda s: s.sendall(data=b"x"),  # type: ignore[call-arg]
    "sendall flags as str": lambda s: s.sendall(b"x", "0"),  # type: ignore[arg-type]
    "sendall": lambda s: s.sendall(b"abc"),
    "sendall empty": lambda s: s.sendall(b""),
    # sendmsg
    "sendmsg nothing": lambda s: s.sendmsg(),  # type: ignore[call-arg]
    "sendmsg None": lambda s: s.sendmsg(None),  # type: ignore[arg-type]
    "sendmsg int": lambda s: s.sendmsg(3),  # type: ignore[arg-type]
    "sendmsg bytes": lambda s: s.sendmsg(b"abc"),  # type: ignore[arg-type]
    "sendmsg str": lambda s: s.sendmsg("abc"),  # type: ignore[arg-type]
    "sendmsg of str": lambda s: s.sendmsg(["abc"]),  # type: ignore[list-item]
    "sendmsg of int": lambda s: s.sendmsg([b"abc", 1]),  # type: ignore[list-item]
    "sendmsg of non-contiguous": lambda s: s.sendmsg([b"x", memoryview(b"abcdef")[::2]]),
    "sendmsg flags as str": lambda s: s.sendmsg([b"x"], [], "0"),  # type: ignore[arg-type]
    "sendmsg raising iterator": lambda s: s.sendmsg(raising_iterator()),
    "sendmsg keyword": lambda s: s.sendmsg(buffers=[b"x"]),  # type: ignore[call-arg]
    "sendmsg ancillary None": lambda s: s.sendmsg([b"x"], None),  # type: ignore[arg-type]
    "sendmsg ancillary int": lambda s: s.sendmsg([b"x"], 1),  # type: ignore[arg-type]
    "sendmsg ancillary item": lambda s: s.sendmsg([b"x"], [1]),  # type: ignore[list-item]
    "sendmsg address None": lambda s: s.sendmsg([b"x"], [], 0, None),
    "sendmsg": lambda s: s.sendmsg([b"abc", b"def"]),
    "sendmsg flags": lambda s: s.sendmsg([b"abc"], [], 0),
    # timeouts
    "settimeout negative": lambda s: s.settimeout(-1),
    "settimeout str": lambda s: s.settimeout("1"),  # type: ignore[arg-type]
    "settimeout nan": lambda s: s.settimeout(float("nan")),
    "settimeout infinite": lambda s: s.settimeout(float("inf")),
    "settimeout huge": lambda s: s.settimeout(1e100),
    "settimeout nothing": lambda s: s.settimeout(),  # type: ignore[call-arg]
    "settimeout": lambda s: (s.settimeout(1.5), s.gettimeout(), s.getblocking()),
    "settimeout int": lambda s: (s.settimeout(2), s.gettimeout()),
    "settimeout zero": lambda s: (s.settimeout(0), s.gettimeout(), s.getblocking()),
    "settimeout None": lambda s: (s.settimeout(None), s.gettimeout(), s.getblocking()),
    "settimeout tiny": lambda s: (s.settimeout(1e-12), s.gettimeout()),
    "setblocking": lambda s: (s.setblocking(False), s.gettimeout(), s.setblocking(True), s.gettimeout()),
    "setblocking object": lambda s: (s.setblocking("yes"), s.gettimeout()),  # type: ignore[arg-type]
    "setblocking nothing": lambda s: s.setblocking(),  # type: ignore[call-arg]
    # the rest
    "listen on a connected socket": lambda s: s.listen(),
    "accept on a connected socket": lambda s: s.accept(),
    "shutdown with a wrong how": lambda s: s.shutdown(99),
    "close with an argument": lambda s: s.close(1),  # type: ignore[call-arg]
    "detach with an argument": lambda s: s.detach(1),  # type: ignore[call-arg]
    "fileno with an argument": lambda s: s.fileno(1),  # type: ignore[call-arg]
}

#: Of messages: wrong arguments and what they raise.
MISUSES: dict[str, tuple[type[Exception], Callable[[Any], object]]] = {
    "send_message str": (TypeError, lambda s: s.send_message("text")),
    "send_message keyword": (TypeError, lambda s: s.send_message(data=b"x")),
    "recv_message two": (TypeError, lambda s: s.recv_message(1, 2)),
    "recv_message None": (TypeError, lambda s: s.recv_message(None)),
    "recv_message float": (TypeError, lambda s: s.recv_message(1.0)),
    "recv_message str": (TypeError, lambda s: s.recv_message(max_size="1")),
    "recv_message negative": (ValueError, lambda s: s.recv_message(-1)),
    "recv_message negative by name": (ValueError, lambda s: s.recv_message(max_size=-1)),
    "recv_message huge": (OverflowError, lambda s: s.recv_message(sys.maxsize + 1)),
    "recv_message unknown keyword": (TypeError, lambda s: s.recv_message(size=1)),
    "recv_message keyword twice": (TypeError, lambda s: s.recv_message(1, max_size=1)),
    "recv_message two keywords": (TypeError, lambda s: s.recv_message(max_size=1, size=1)),
    "recv_message_into nothing": (TypeError, lambda s: s.recv_message_into()),
    "recv_message_into two": (TypeError, lambda s: s.recv_message_into(bytearray(1), 1)),
    "recv_message_into keyword": (TypeError, lambda s: s.recv_message_into(buffer=bytearray(1))),
    "recv_exactly nothing": (TypeError, lambda s: s.recv_exactly()),
    "recv_exactly negative": (ValueError, lambda s: s.recv_exactly(-1)),
    "recv_exactly huge": (OverflowError, lambda s: s.recv_exactly(sys.maxsize + 1)),
    "recv_exactly float": (TypeError, lambda s: s.recv_exactly(1.0)),
    "recv_exactly more than there is memory": (MemoryError, lambda s: s.recv_exactly(sys.maxsize // 2)),
    "recv_exactly_into bytes": (TypeError, lambda s: s.recv_exactly_into(b"x")),
    "exchange positional limit": (TypeError, lambda s: s.exchange(b"x", 5)),
    "exchange unknown keyword": (TypeError, lambda s: s.exchange(b"x", size=5)),
    "exchange None": (TypeError, lambda s: s.exchange(b"x", max_size=None)),
    "exchange negative": (ValueError, lambda s: s.exchange(b"x", max_size=-1)),
}
