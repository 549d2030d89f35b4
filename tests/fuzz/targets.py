"""What is fuzzed: for each parser of bytes that others wrote, a function that takes any bytes.

It gives them to the parser and checks what comes of it: the result that the bytes imply, or the error that is
documented. Everything else, an assertion first of all, is a find. `run` has them fuzzed, `tests/test_fuzz.py` runs what
was found.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import hvsock
from hvsock import _addresses as addresses
from hvsock import vms
from hvsock._transports import local
from hvsock.aio._parser import HEADER, SHORT, MessageParser
from hvsock.relay import _endpoints
from hvsock.vms import _hcs

CORPUS = Path(__file__).resolve().parent / "corpus"

#: What a receiver may allow, or ask for: around the sizes where the code changes its way.
SIZES = (0, 1, 5, 100, 8191, 8192, 8193, 65536, 1 << 20)


def inputs(name: str) -> list[bytes]:
    """Return the corpus of a target: a line of hexadecimal digits for each input."""
    return [bytes.fromhex(line) for line in (CORPUS / name).read_text().splitlines()]


# Streams of messages


class Stream:
    """What a peer sends, and how far it has been received. `feed` says how many bytes the wire took."""

    def __init__(self, feed: Callable[[bytes], int], end: Callable[[], object]) -> None:
        self._feed = feed
        self._end = end
        self._bytes = bytearray()
        self._ended = False

    def feed(self, data: bytes) -> None:
        if not self._ended and data:
            self._bytes += data[: self._feed(data)]

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._end()

    @property
    def announced(self) -> int | None:
        return int.from_bytes(self._bytes[:4]) if len(self._bytes) >= 4 else None

    def take_message(self, message: bytes) -> None:
        assert self.announced == len(message)
        del self._bytes[:4]
        self.take(message)

    def take(self, data: bytes) -> None:
        assert self._bytes[: len(data)] == data
        del self._bytes[: len(data)]

    def receive(self, call: Callable[[int], None], limit: int) -> None:
        """Call what receives a message of up to `limit` bytes."""
        try:
            call(limit)
        except BlockingIOError:
            assert not self._ended
            assert self.announced is None or limit >= self.announced > len(self._bytes) - 4
        except hvsock.IncompleteReadError as exc:
            self._check_cut(exc, self._bytes[4:], self.announced)
        except EOFError:
            assert self._ended and not self._bytes
        except OSError as exc:
            assert exc.errno == errno.EMSGSIZE
            assert self.announced is not None and self.announced > limit

    def receive_exactly(self, call: Callable[[int], bytes], size: int) -> None:
        """Call what receives `size` bytes."""
        try:
            data = call(size)
        except BlockingIOError:
            assert not self._ended and len(self._bytes) < size
        except hvsock.IncompleteReadError as exc:
            self._check_cut(exc, self._bytes, size)
        except EOFError:
            assert self._ended and not self._bytes
        else:
            assert len(data) == size
            self.take(data)

    def _check_cut(self, exc: hvsock.IncompleteReadError, partial: bytes | bytearray, expected: int | None) -> None:
        assert self._ended
        if expected is None:
            partial, expected = self._bytes, 4
        assert exc.partial == partial and exc.expected == expected > len(partial)
        self._bytes.clear()


def steps(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Read a script: steps of a kind and an argument, some with bytes, as many as the argument says."""
    at = 0
    while at + 2 <= len(data):
        kind, argument = data[at] % 8, data[at + 1]
        at += 2
        content = data[at : at + argument] if kind == 0 else b""
        at += len(content)
        yield kind, argument, content


def feed(stream: Stream, kind: int, argument: int, content: bytes) -> bool:
    """Take a step of the peer's: bytes as they stand, a message of one of the sizes, or the end."""
    if kind == 0:
        stream.feed(content)
    elif kind == 1:
        size = SIZES[argument % len(SIZES)]
        stream.feed(size.to_bytes(4) + b"x" * size)
    elif kind == 2 and argument == 255:
        stream.end()
    return kind <= 2


def messages(data: bytes) -> None:
    """The C state machine of messages, by all methods that receive, none of which waits."""
    one, other = socket.socketpair()
    with one, hvsock.HyperVSocket(fileno=other.detach()) as sock:
        one.setblocking(False)
        sock.setblocking(False)

        def send(data: bytes) -> int:
            try:
                return one.send(data)
            except BlockingIOError:
                return 0

        stream = Stream(send, lambda: one.shutdown(socket.SHUT_WR))

        def into(limit: int) -> None:
            buffer = bytearray(limit)
            stream.take_message(bytes(buffer[: sock.recv_message_into(buffer)]))

        def exchange(limit: int) -> None:
            try:
                stream.take_message(sock.exchange(b"request", max_size=limit))
            finally:
                with contextlib.suppress(BlockingIOError):
                    one.recv(100)

        calls = {
            3: lambda limit: stream.take_message(sock.recv_message(limit)),
            4: into,
            5: exchange,
        }
        for kind, argument, content in steps(data):
            limit = SIZES[argument % len(SIZES)]
            # RuntimeError: another receive is due before that, which is tested elsewhere.
            with contextlib.suppress(RuntimeError):
                if feed(stream, kind, argument, content):
                    continue
                if kind in calls:
                    stream.receive(calls[kind], limit)
                elif kind == 6:
                    stream.receive_exactly(sock.recv_exactly, limit)


def parser(data: bytes) -> None:
    """The messages of asyncio, which are fed with what the peer sent, in pieces as a socket gives them."""
    messages = MessageParser()
    pieces: list[bytes] = []

    def send(data: bytes) -> int:
        if sum(map(len, pieces)) > 100_000:
            return 0
        pieces.append(data)
        return len(data)

    def receive() -> None:
        piece = pieces.pop(0)
        room = messages.room()
        size = min(len(piece), SHORT if room is None else len(room))
        if room is None:
            messages.feed(piece[:size])
        else:
            room[:size] = piece[:size]
            messages.advance(size)
        if size < len(piece):
            pieces.insert(0, piece[size:])

    def take(limit: int) -> None:
        while (message := messages.next(limit)) is None:
            if not pieces:
                raise messages.end() if stream._ended else BlockingIOError
            receive()
        stream.take_message(message)

    stream = Stream(send, lambda: None)
    for kind, argument, content in steps(data):
        if not feed(stream, kind, argument, content):
            stream.receive(take, SIZES[argument % len(SIZES)])
    assert len(messages._data) < 2 * SHORT + HEADER


# Addresses


def texts(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def address(data: bytes) -> None:
    """Addresses in every form: packed, URIs, pairs, and names of the transport local."""
    text = texts(data)
    with contextlib.suppress(ValueError):
        packed = hvsock.HyperVAddress.unpack(data)
        assert packed.pack() == data[:2] + bytes(2) + data[4:]
    with contextlib.suppress(ValueError):
        parsed = hvsock.HyperVAddress.parse(text)
        assert hvsock.HyperVAddress.parse(str(parsed)) == parsed
    vm, _, service = text.partition("/")
    with contextlib.suppress(ValueError):
        pair = addresses.as_address((vm, int(service) if re.fullmatch("[0-9]{1,20}", service) else service))
        assert hvsock.HyperVAddress.unpack(pair.pack()) == pair
    named = local._parse(data)
    if named is not None:
        owner, pair = named
        assert owner is None or type(owner) is uuid.UUID
        assert hvsock.HyperVAddress.unpack(pair.pack()) == pair


def uri(data: bytes) -> None:
    """A relay's addresses: one that is taken is one that was written, and means one thing."""
    text = texts(data)
    try:
        endpoint = _endpoints.parse(text)
    except ValueError as exc:
        assert len(str(exc)) < 1000
        return
    assert endpoint.text == text
    endpoint.no_target()
    if isinstance(endpoint, _endpoints.Unix):
        assert str(endpoint._path) and "\0" not in str(endpoint._path)
    if isinstance(endpoint, _endpoints.Tcp):
        assert endpoint._port <= 0xFFFF and not re.search(r"[\s/?#@]", endpoint._host, re.ASCII)
    if isinstance(endpoint, _endpoints.HyperV):
        assert hvsock.HyperVAddress.unpack(endpoint._address.pack()) == endpoint._address


class Answer:
    """In place of a socket: what the other end of a hybrid vsock answers."""

    def __init__(self, data: bytes) -> None:
        self.left = data
        self.sent = b""

    def settimeout(self, timeout: float | None) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv(self, size: int) -> bytes:
        data, self.left = self.left[:size], self.left[size:]
        return data


def hybrid(data: bytes) -> None:
    """The handshake of a hybrid vsock: of the stream that follows nothing is taken."""
    endpoint = _endpoints.parse("hybrid:///v.sock?port=52")
    assert isinstance(endpoint, _endpoints.Hybrid)
    answer = Answer(data)
    try:
        endpoint._greet(answer, mock.Mock())  # type: ignore[arg-type]
    except OSError as exc:
        assert not re.match(rb"OK [0-9]{1,10}\n", data) and len(data) - len(answer.left) <= 32
        assert len(str(exc)) < 500
    else:
        line, newline, rest = data.partition(b"\n")
        assert re.fullmatch(rb"OK [0-9]{1,10}", line) and newline and answer.left == rest
    assert answer.sent == b"CONNECT 52\n"


def hcs(data: bytes) -> None:
    """The JSON of the Host Compute Service, where guests' owners choose the names."""
    with mock.patch.object(_hcs, "_enumerate_compute_systems", return_value=data.decode("utf-8", "replace")):
        try:
            found = vms.list_vms("hcs")
        except vms.VMLookupError as exc:
            assert len(str(exc)) < 500
            return
    for vm in found:
        assert type(vm.id) is uuid.UUID and vm.id not in addresses.NO_VM
        assert all(type(field) is str for field in vm[1:])


TARGETS = {function.__name__: function for function in (messages, parser, address, uri, hybrid, hcs)}
