"""A child process of the benchmarks: one contender, its sockets, and commands that come line by line.

    worker.py CONTENDER MODE TRANSPORT [DESCRIPTOR...]

A command is the name of a method of `Worker` and its integers; the answer is one line of integers, times in ns. The
program `raw.c` takes the commands of the two ends of a connection too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from aio import Stream, Streams

import hvsock
from hvsock import aio
from hvsock._hvsock import Socket
from hvsock._transports import transport_named

LATE: Final = 0.0002  # seconds: longer than a thread takes to wake
NAP: Final = 0.001  # seconds that the sleeper of fairness() asks for
BATCH: Final = 20  # transfers between two looks at whether to stop
SMALL: Final = 64  # bytes of a transfer or a message
MODES: Final = {"blocking": None, "timeout": 30.0, "non-blocking": 0.0}

HEADER: Final = struct.Struct(">I")

Call = Callable[[], None]


def stream(sock: socket.socket, size: int) -> tuple[Call, Call]:
    """Round trips of `size` bytes with sendall() and recv_into()."""
    request, room = new_buffer(size), new_buffer(size)
    sendall, recv_into = sock.sendall, sock.recv_into

    def receive() -> None:
        got = recv_into(room)
        while got < size:
            more = recv_into(room[got:])
            if not more:
                raise EOFError
            got += more

    def ask() -> None:
        sendall(request)
        receive()

    def answer() -> None:
        receive()
        sendall(request)

    return ask, answer


def stdlib_idiom(sock: socket.socket, size: int) -> tuple[Call, Call]:
    """Round trips of messages, the way that programs on the standard library write them."""
    request, receive = bytes(new_buffer(size)), idiom_receiver(sock)

    def ask() -> None:
        sock.sendall(HEADER.pack(len(request)) + request)
        receive()

    def answer() -> None:
        message = receive()
        sock.sendall(HEADER.pack(len(message)) + message)

    return ask, answer


def idiom_receiver(sock: socket.socket) -> Callable[[], bytes]:
    """Return what receives a message that way."""

    def receive_exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = sock.recv(count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data

    def receive() -> bytes:
        (length,) = HEADER.unpack(receive_exactly(HEADER.size))
        return receive_exactly(length)

    return receive


def exchange(sock: hvsock.HyperVSocket, size: int) -> tuple[Call, Call]:
    """Round trips of messages with the methods for that; the server receives and sends."""
    request = bytes(new_buffer(size))

    def ask() -> None:
        sock.exchange(request)

    def answer() -> None:
        sock.send_message(sock.recv_message())

    return ask, answer


def bytes_transfer(sender: socket.socket, receiver: socket.socket) -> Call:
    """Bytes from one end to the other: send() and recv_into()."""
    data, room = bytes(SMALL), bytearray(SMALL)
    send, recv_into = sender.send, receiver.recv_into

    def transfer() -> None:
        send(data)
        recv_into(room)

    return transfer


def idiom_transfer(sender: socket.socket, receiver: socket.socket) -> Call:
    """Do the same with a message, as programs on the standard library write it."""
    message, receive = bytes(SMALL), idiom_receiver(receiver)

    def transfer() -> None:
        sender.sendall(HEADER.pack(len(message)) + message)
        receive()

    return transfer


def message_transfer(sender: hvsock.HyperVSocket, receiver: hvsock.HyperVSocket) -> Call:
    """Do the same with the methods for that."""
    message = bytes(SMALL)
    send, receive = sender.send_message, receiver.recv_message

    def transfer() -> None:
        send(message)
        receive()

    return transfer


class Unframed(Streams):
    """Bytes on asyncio's streams, without the length of a message."""

    async def send(self, message: bytes) -> None:
        """Send bytes."""
        self.writer.write(message)
        await self.writer.drain()

    async def recv(self) -> bytes:
        """Receive as many as a message has here."""
        return await self.reader.readexactly(SMALL)


async def unframed(sock: socket.socket) -> Stream:
    """Bytes with asyncio."""
    return Unframed(*await asyncio.open_connection(sock=sock))


async def streams(sock: socket.socket) -> Stream:
    """Messages with asyncio, as programs on the standard library write them."""
    return Streams(*await asyncio.open_connection(sock=sock))


async def message_stream(sock: hvsock.HyperVSocket) -> Stream:
    """Messages with hvsock.aio."""
    return aio.MessageStream(sock)


class Contender(NamedTuple):
    """A class of sockets, and what one round trip is on it: the client's call and the server's."""

    type: type[socket.socket]
    round_trip: Callable[[Any, int], tuple[Call, Call]] = stream
    busy_poll: int = 0  # microseconds
    takes_turns: bool = False  # several threads may do round trips at once
    transfer: Callable[[Any, Any], Call] = bytes_transfer  # from one end of a connection to the other
    open_stream: Callable[[Any], Awaitable[Stream]] | None = None  # the same in an event loop
    has_names: bool = False  # connects by the addresses of `local` too


#: Another contender is one more function like `stream`, a line here, and its name in a measure of measures.py.
CONTENDERS: Final = {
    "CPython": Contender(socket.socket),
    "hvsock": Contender(hvsock.HyperVSocket),
    "hvsock, busy_poll": Contender(hvsock.HyperVSocket, busy_poll=50),
    "C type": Contender(Socket),
    "hvsock, address rules": Contender(hvsock.HyperVSocket, has_names=True),
    "stdlib idiom": Contender(socket.socket, stdlib_idiom, transfer=idiom_transfer),
    "exchange": Contender(hvsock.HyperVSocket, exchange, takes_turns=True, transfer=message_transfer),
    "exchange, busy_poll": Contender(hvsock.HyperVSocket, exchange, busy_poll=50, takes_turns=True),
    "asyncio streams": Contender(socket.socket, open_stream=unframed),
    "asyncio streams, hvsock": Contender(hvsock.HyperVSocket, open_stream=unframed),
    "asyncio messages": Contender(socket.socket, open_stream=streams),
    "MessageStream": Contender(hvsock.HyperVSocket, open_stream=message_stream),
}


def new_buffer(size: int) -> memoryview:
    """Return a buffer whose pages are there before the clock starts, and lie as malloc's do, as in raw.c."""
    return memoryview(bytearray(b"\xaa") * size)


#: What the workers of scale_threads() and scale_interpreters() run, each with a connection to itself.
OPEN_PAIR: Final = """
import hvsock
one, other = (hvsock.HyperVSocket(fileno=fileno) for fileno in {filenos})
byte, room = b"x", bytearray(1)
"""
USE_PAIR: Final = """
for _ in range({count}):
    one.send(byte)
    other.recv_into(room)
"""


def new_interpreter() -> Callable[[str], object]:
    """Return what runs code in a new interpreter that has a GIL of its own."""
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    module = importlib.import_module(name)
    interpreter = module.create("isolated") if sys.version_info >= (3, 13) else module.create(isolated=True)

    def run(code: str) -> None:
        failure = module.run_string(interpreter, code)
        if failure is not None:
            raise RuntimeError(failure)

    return run


def run_at_once(jobs: Sequence[Callable[[], object]]) -> int:
    """Run each in a thread of its own, all at once, and return the time until the last is ready."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(time.sleep, [0.001] * len(jobs)))  # its threads are there before the clock starts
        start = time.perf_counter_ns()
        list(pool.map(lambda job: job(), jobs))
        return time.perf_counter_ns() - start


def scale(runners: Sequence[Callable[[str], object]], count: int) -> int:
    """Let each runner use a connection `count` times, all at once, and return the time until the last is ready."""
    for run in runners:
        run(OPEN_PAIR.format(filenos=[sock.detach() for sock in socket.socketpair()]))
    elapsed = run_at_once([functools.partial(run, USE_PAIR.format(count=count)) for run in runners])
    for run in runners:
        run("one.close(); other.close()")
    return elapsed


class Load:
    """Transfers without a pause on socketpairs, `number` of them, each with a thread of its own or in one event loop.

    `counts` says how many each has done; they go on until `stopped` is set.
    """

    def __init__(self, contender: Contender, timeout: float | None, number: int) -> None:
        self._contender = contender
        self._timeout = timeout
        self.counts = [0] * number
        self.stopped = False
        self._pool = ThreadPoolExecutor(number)
        if contender.open_stream is None:
            self.jobs: list[Future[None]] = [self._pool.submit(self._use_pair, i) for i in range(number)]
        else:
            self.jobs = [self._pool.submit(asyncio.run, self._use_pairs())]

    def end(self) -> None:
        """Stop, and raise the error of a thread that had one."""
        self.stopped = True
        for job in self.jobs:
            job.result()
        self._pool.shutdown()

    def _open_pair(self) -> list[socket.socket]:
        pair = [self._contender.type(fileno=sock.detach()) for sock in socket.socketpair()]
        for sock in pair:
            sock.settimeout(self._timeout)
        return pair

    def _use_pair(self, i: int) -> None:
        sender, receiver = self._open_pair()
        with sender, receiver:
            transfer = self._contender.transfer(sender, receiver)
            while not self.stopped:
                for _ in range(BATCH):
                    transfer()
                self.counts[i] += BATCH

    async def _use_pairs(self) -> None:
        async with asyncio.TaskGroup() as group:
            for i in range(len(self.counts)):
                group.create_task(self._use_streams(i))

    async def _use_streams(self, i: int) -> None:
        assert self._contender.open_stream
        sender, receiver = [await self._contender.open_stream(sock) for sock in self._open_pair()]
        message = bytes(SMALL)
        while not self.stopped:
            for _ in range(BATCH):
                await sender.send(message)
                await receiver.recv()
            self.counts[i] += BATCH
        for end in (sender, receiver):
            await end.aclose()


class Worker:
    """The commands."""

    def __init__(self, contender: Contender, mode: str, transport: str, descriptors: Sequence[int]) -> None:
        self._contender = contender
        self._timeout = MODES[mode]
        self._transport = transport
        self._interpreters: list[Callable[[str], object]] = []
        self._socks = [contender.type(fileno=descriptor) for descriptor in descriptors]
        for sock in self._socks:
            sock.settimeout(self._timeout)
            if contender.busy_poll:
                assert isinstance(sock, Socket)
                sock.busy_poll = contender.busy_poll

    # Between two processes; each has one end of the connection.

    def ask(self, size: int, count: int) -> list[int]:
        """Do round trips and return how long each took."""
        ask, _ = self._contender.round_trip(self._socks[0], size)
        clock = time.perf_counter_ns
        samples = [0] * count
        for i in range(count):
            start = clock()
            ask()
            samples[i] = clock() - start
        return samples

    def ask_beside(self, size: int, count: int) -> list[int]:
        """Do the same beside a thread that runs Python code all the time."""
        stop: list[bool] = []

        def spin() -> None:
            while not stop:
                pass

        thread = threading.Thread(target=spin, daemon=True)
        thread.start()
        try:
            return self.ask(size, count)
        finally:
            stop.append(True)
            thread.join()

    def ask_at_once(self, threads: int, count: int) -> list[int]:
        """Do `count` round trips of 64 bytes in some threads on the one socket; return the time for all of them."""
        ask, _ = self._contender.round_trip(self._socks[0], SMALL)
        turn = contextlib.nullcontext() if self._contender.takes_turns else threading.Lock()

        def ask_in_turn() -> None:
            for _ in range(count // threads):
                with turn:
                    ask()

        return [run_at_once([ask_in_turn] * threads)]

    def answer(self, size: int, count: int) -> list[int]:
        """Do the server's part of ask()."""
        _, answer = self._contender.round_trip(self._socks[0], size)
        for _ in range(count):
            answer()
        return []

    def answer_late(self, size: int, count: int) -> list[int]:
        """Do the same after a pause, as a server that has something to do first."""
        answer, peek = self._contender.round_trip(self._socks[0], size)[1], bytearray(1)
        for _ in range(count):
            self._socks[0].recv_into(peek, 1, socket.MSG_PEEK)
            time.sleep(LATE)
            answer()
        return []

    def push(self, size: int, count: int) -> list[int]:
        """Send `count` buffers, and return the time until the other end has all of them."""
        sock, buffer, signal = self._socks[0], new_buffer(size), bytearray(1)
        sock.recv_into(signal)
        start = time.perf_counter_ns()
        for _ in range(count):
            sock.sendall(buffer)
        sock.recv_into(signal)
        return [time.perf_counter_ns() - start]

    def pull(self, size: int, count: int) -> list[int]:
        """Do the receiver's part of push()."""
        sock, buffer, left = self._socks[0], new_buffer(size), size * count
        sock.sendall(b"r")
        while left > 0:
            got = sock.recv_into(buffer)
            if not got:
                raise EOFError
            left -= got
        sock.sendall(b"f")
        return []

    # In one process, which has both ends, so that whatever is received is there already.

    def mark(self) -> list[int]:
        """Have callgrind write what it has counted, and begin anew: it does so before this function of C."""
        os.getloadavg()
        return []

    def set_mode(self, number: int) -> list[int]:
        """Go on in another mode of MODES."""
        self._timeout = list(MODES.values())[number]
        for sock in self._socks:
            sock.settimeout(self._timeout)
        return []

    def empty(self, count: int) -> list[int]:
        """Do nothing `count` times: what the loop of pair() costs."""
        for _ in range(count):
            pass
        return []

    def pair(self, count: int) -> list[int]:
        """Send and receive one byte."""
        sender, receiver = self._socks
        byte, room = b"x", bytearray(1)
        for _ in range(count):
            sender.send(byte)
            receiver.recv_into(room)
        return []

    def send(self, count: int) -> list[int]:
        """Send one byte; nobody receives it."""
        sender = self._socks[0]
        for _ in range(count):
            sender.send(b"x")
        return []

    def recv_into(self, count: int) -> list[int]:
        """Receive one byte of many that are there."""
        sender, receiver = self._socks
        room = bytearray(1)
        sender.sendall(bytes(count))
        for _ in range(count):
            receiver.recv_into(room)
        return []

    def scale_threads(self, workers: int, count: int) -> list[int]:
        """Send and receive one byte in each of some threads."""
        spaces: list[dict[str, object]] = [{} for _ in range(workers)]
        return [scale([functools.partial(lambda space, code: exec(code, space), space) for space in spaces], count)]

    def scale_interpreters(self, workers: int, count: int) -> list[int]:
        """Do the same in each of some interpreters."""
        while len(self._interpreters) < workers:
            self._interpreters.append(new_interpreter())
        return [scale(self._interpreters[:workers], count)]

    def fairness(self, number: int, milliseconds: int) -> list[int]:
        """Sleep NAP again and again beside a `Load`.

        Return its transfers in that time, the time, and how much later than asked for each sleep ended.
        """
        load, clock, late = Load(self._contender, self._timeout, number), time.perf_counter_ns, []
        while not all(load.counts) and not any(job.done() for job in load.jobs):
            time.sleep(NAP)
        before, began = sum(load.counts), clock()
        while (start := clock()) < began + milliseconds * 1_000_000:
            time.sleep(NAP)
            late.append(clock() - start - int(NAP * 1e9))
        done, elapsed = sum(load.counts) - before, clock() - began
        load.end()
        return [done, elapsed, *late]

    def connect(self, count: int) -> list[int]:
        """Connect, accept and close both ends; return the time for all of them."""
        kind, family = self._contender.type, transport_named(self._transport).family
        connect: Any
        with self._listener() as listener:
            if kind is hvsock.HyperVSocket and not self._is_plain:
                connect, address = kind.connect, listener.getsockname()
            else:  # the family's own address
                connect = Socket.connect if kind is hvsock.HyperVSocket else kind.connect
                address = socket.socket.getsockname(listener)
            start = time.perf_counter_ns()
            for _ in range(count):
                with kind(family, socket.SOCK_STREAM) as dialler:
                    if self._timeout is not None:
                        dialler.settimeout(self._timeout)
                    connect(dialler, address)
                    listener.accept()[0].close()
            return [time.perf_counter_ns() - start]

    def accept_at_once(self, threads: int, count: int) -> list[int]:
        """Connect `count` times to a listener that some threads accept at and close; return the time for all."""
        family = transport_named(self._transport).family
        stopped: list[bool] = []
        with self._listener() as listener, ThreadPoolExecutor(threads) as pool:

            def accept() -> None:
                while not stopped:
                    listener.accept()[0].close()

            def connect() -> None:
                with socket.socket(family) as dialler:
                    dialler.connect(address)
                    dialler.recv(1)

            address = socket.socket.getsockname(listener)
            for _ in range(threads):
                pool.submit(accept)
            for _ in range(threads):  # they have all started before the clock does
                connect()
            start = time.perf_counter_ns()
            for _ in range(count):
                connect()
            elapsed = time.perf_counter_ns() - start
            stopped.append(True)
            diallers = [socket.socket(family) for _ in range(threads)]
            for dialler in diallers:  # each thread takes one at most
                dialler.connect(address)
        for dialler in diallers:
            dialler.close()
        return [elapsed]

    @property
    def _is_plain(self) -> bool:
        """Whether connections are made on plain AF_UNIX sockets, which are not at addresses of `local`."""
        return self._transport == "local" and not self._contender.has_names

    def _listener(self) -> Any:
        """Return a listener of the contender's type."""
        if self._is_plain:
            bound = socket.socket(socket.AF_UNIX)
            bound.bind(b"")  # an abstract name that the system chooses
            bound.listen()
        else:
            service = int.from_bytes(os.urandom(3)) + 0x10000
            bound = hvsock.create_server(("loopback", service), transport=self._transport)
        listener = self._contender.type(fileno=bound.detach())
        listener.settimeout(self._timeout)
        return listener


def main() -> None:
    """Answer commands until there are no more."""
    name, mode, transport, *descriptors = sys.argv[1:]
    worker = Worker(CONTENDERS[name], mode, transport, [int(text) for text in descriptors])
    for line in sys.stdin:
        command, *numbers = line.split()
        print(*getattr(worker, command)(*map(int, numbers)), flush=True)


if __name__ == "__main__":
    main()
