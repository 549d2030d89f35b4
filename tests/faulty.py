"""Operations under faults of the system calls below them: what may come of each, checked byte by byte.

The faults are those of `faults/shim.c`, preloaded, or of the simulated provider on Windows: the same words for both.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import itertools
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import utils
from children import say
from children.blocked import refused
from utils import LIMIT, TICK, WINDOWS, connected, framed, random_bytes

from hvsock._hvsock import Socket

TIMEOUTS = {"none": None, "limit": LIMIT, "zero": 0.0}
#: What a call fails with. What has to be tried again without a word comes as a storm, too.
ERRORS = (
    {"would block": 10035, "reset": 10054, "no buffers": 10055, "network down": 10050, "no reason": 0}
    if WINDOWS
    else {
        "interrupted": errno.EINTR,
        "would block": errno.EAGAIN,
        "reset": errno.ECONNRESET,
        "no buffers": errno.ENOBUFS,
        "no memory": errno.ENOMEM,
    }
)
STORM = 50
GROUPS = {
    "sending": ("send", "WSASend"),
    "receiving": ("recv", "WSARecv"),
    "accepting": ("accept", "AcceptEx"),
    "connecting": ("connect", "ConnectEx"),
}
MARK = b"<the end of it>"


class Faults:
    """A plan for the calls on one socket, and what its owner saw of it."""

    calls: dict[str, int]
    injected: int

    def __init__(self) -> None:
        self.errors: list[OSError] = []

    if sys.platform == "win32":

        @contextlib.contextmanager
        def plan(self, sock: Any, *words: str) -> Iterator[None]:
            import hvsim

            hvsim.reset_counts()
            with hvsim.faults(*words):
                yield
            counts = hvsim.counts()
            self.calls = {group: sum(counts.get(name, 0) for name in names) for group, names in GROUPS.items()}
            self.injected = len(self.errors)

    else:

        @contextlib.contextmanager
        def plan(self, sock: Any, *words: str) -> Iterator[None]:
            shim = ctypes.CDLL(None)
            assert shim.faults_arm(sock.fileno(), " ".join(words).encode()) == 0, words
            try:
                yield
            finally:
                self.calls = {group: shim.faults_calls(group.encode()) for group in (*GROUPS, "polling", "asking")}
                self.injected = shim.faults_injected()
                shim.faults_arm(-1, b"")

    def again(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call until it no longer raises what was injected."""
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                return call(*args)
            except OSError as error:
                code = getattr(error, "winerror", error.errno)
                # PEP 475: an interrupt is nobody's business but the handler's.
                if code not in ERRORS.values() or error.errno == errno.EINTR or time.monotonic() > deadline:
                    raise
                self.errors.append(error)


# Transfers


def in_pieces(send: Callable[[bytes], Any], data: bytes) -> None:
    while data:
        data = data[send(data) :]


def received(receive: Callable[[], bytes], size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = receive()
        assert piece
        data += piece
    return data


def into(again: Callable[..., Any], method: Callable[..., Any], size: int) -> bytes:
    """Receive into a buffer, a new one in each call: what was received before is not in there."""

    def receive() -> bytes:
        buffer = bytearray(size)
        count = method(buffer)
        return bytes(buffer if count is None else buffer[:count])

    return again(receive)  # type: ignore[no-any-return]


#: What the peer has sent before, what is called, what the peer gets, what is returned.
Transfer = tuple[bytes, Callable[[Any, Any], Any], bytes, Any]


@functools.cache
def transfers(size: int) -> dict[str, Transfer]:
    data = random_bytes(size)
    # Nobody receives meanwhile, and AF_UNIX takes no more when a quarter of its buffer is full.
    less = data[:20_000]
    sent = {
        "send": (lambda a, again: in_pieces(lambda rest: again(a.send, rest), less), less),
        "sendmsg": (lambda a, again: in_pieces(lambda rest: again(a.sendmsg, [rest[:3], rest[3:]]), less), less),
        "sendall": (lambda a, again: a.sendall(less), less),
        "send_message": (lambda a, again: again(a.send_message, less[:5], less[5:]), framed(less)),
    }
    taken = {
        "recv": (data, lambda a, again: received(lambda: again(a.recv, size), size)),
        "recv_into": (data, lambda a, again: received(lambda: into(again, a.recv_into, size), size)),
        "recv_exactly": (data, lambda a, again: again(a.recv_exactly, size)),
        "recv_exactly_into": (data, lambda a, again: into(again, a.recv_exactly_into, size)),
        "recv_message": (framed(data), lambda a, again: again(a.recv_message)),
        "recv_message_into": (framed(data), lambda a, again: into(again, a.recv_message_into, size)),
    }
    return {
        **{name: (b"", call, wire, None) for name, (call, wire) in sent.items()},
        **{name: (wire, call, b"", data) for name, (wire, call) in taken.items()},
        "exchange": (framed(data), lambda a, again: again(a.exchange, less), framed(less), data),
    }


def check_transfer(pair: tuple[Any, Any], name: str, size: int, timeout: float | None, *words: str) -> Faults:
    """Make a transfer under a plan; what arrives at both ends must be what was sent, once, in order and whole."""
    a, b = pair
    waiting, call, expected, result = transfers(size)[name]
    faults = Faults()
    b.sendall(waiting)
    a.settimeout(timeout)
    broken = False
    with faults.plan(a, *words):
        try:
            assert call(a, faults.again) == result
        except OSError as error:
            if name != "sendall":
                raise
            faults.errors.append(error)
            broken = True  # how many were sent is not known, but they are the first ones
    a.settimeout(LIMIT)
    a.sendall(MARK)
    sent = b""
    while not sent.endswith(MARK):
        sent += b.recv(1 << 20)
    sent = sent.removesuffix(MARK)
    assert sent == expected or (broken and expected.startswith(sent))
    b.sendall(MARK)
    assert a.recv_exactly(len(MARK)) == MARK
    return faults


# Connections


def check_talk(one: Any, other: Any) -> None:
    """Check that these two are the ends of one connection."""
    for sock in (one, other):
        sock.settimeout(LIMIT)
    one.send_message(MARK)
    assert other.recv_message() == MARK


def check_dial(listener: Any, transport: str) -> None:
    """Check that a new socket connects."""
    with utils.dialler(transport) as client:
        client.settimeout(LIMIT)
        client.connect(listener.getsockname())
        with listener.accept()[0] as accepted:
            check_talk(client, accepted)


def check_nobody(listener: Any) -> None:
    """Check that no connection waits, or that its other end has been closed."""
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            assert accepted.recv(1) == b""


def check_accept(transport: str, timeout: float | None, *words: str) -> Faults:
    """Accept under a plan: a connection is neither lost nor accepted twice."""
    faults = Faults()
    with utils.listen(transport) as listener, utils.dialler(transport) as client:
        client.connect(listener.getsockname())
        listener.settimeout(timeout)
        with faults.plan(listener, *words):
            accepted, _ = faults.again(listener.accept)
        with accepted:
            check_talk(client, accepted)
            check_nobody(listener)
    return faults


def check_connect(transport: str, timeout: float | None, *words: str) -> Faults:
    """Connect under a plan: there is a connection, or an error, after which a new socket connects."""
    faults = Faults()
    with utils.listen(transport) as listener:
        with utils.dialler(transport) as client:
            client.settimeout(timeout)
            with faults.plan(client, *words):
                try:
                    client.connect(listener.getsockname())
                except OSError as error:
                    faults.errors.append(error)
            if not faults.errors:
                with listener.accept()[0] as accepted:
                    check_talk(client, accepted)
        check_nobody(listener)
        listener.settimeout(LIMIT)
        check_dial(listener, transport)
    return faults


# Every fault


def each_fault(check: Callable[..., Faults], weather: list[str]) -> int:
    """Have every system call that `check` makes in this weather fail in turn, for each reason; return how many did."""
    injected = 0
    for timeout in TIMEOUTS.values():
        calls = check(timeout, *weather).calls
        for group, (reason, code) in itertools.product(calls, ERRORS.items()):
            for n in range(calls[group]):
                times = STORM if reason == "interrupted" else 1
                faults = check(timeout, f"{group}={code}@{n}*{times}", *weather)
                # What is sent may be slow to arrive there, for which a receive is tried more often.
                assert faults.injected > 0 or WINDOWS, (timeout, group, reason, n, weather)
                injected += faults.injected
    return injected


#: For each: how many bytes of payload, and how many a system call may transfer. The first are over at once, the others
#: need memory and a release of the GIL.
SIZES = ((11, 3), (11, 100), (70_000, 9_000))
#: Every other call would block, which brings in the waiting.
BLOCKING = [f"{group}={ERRORS['would block']}@{n}" for group in GROUPS if group != "connecting" for n in range(4)]


def try_transfer(transport: str, name: str) -> int:
    """Make a transfer under every fault, and in pieces of every length; return how many faults there were."""
    injected = 0
    with connected(transport) as pair:
        for size, most in SIZES:
            check = functools.partial(check_transfer, pair, name, size)
            short = [f"{group}=short:{most}*0" for group in ("sending", "receiving")]
            injected += each_fault(check, short) + each_fault(check, [*BLOCKING, *short])
        check = functools.partial(check_transfer, pair, name, 11)
        for timeout, length in itertools.product(TIMEOUTS.values(), range(1, 16)):
            check(timeout, f"sending=short:{length}*0", f"receiving=short:{length}*0")
    return injected


def try_connection(transport: str, name: str) -> int:
    """Accept or connect under every fault; return how many there were."""
    check = functools.partial({"accept": check_accept, "connect": check_connect}[name], transport)
    return each_fault(check, []) + each_fault(check, BLOCKING)


FAULTS: dict[str, Callable[[str, str], int]] = {
    **dict.fromkeys(transfers(1), try_transfer),
    **dict.fromkeys(("accept", "connect"), try_connection),
}


# Another thread meanwhile


def take_client(listener: Any) -> None:
    """Be another owner of the listener, which makes it blocking and takes the client that waits."""
    with socket.socket(fileno=os.dup(listener.fileno())) as other:
        other.setblocking(True)
        other.accept()[0].close()


def take_client_in_a_fork(listener: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later warn of a fork beside a thread
        pid = os.fork()
    if pid == 0:
        try:
            take_client(listener)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


RIVALS: dict[str, Callable[[Any], None]] = {
    "accept": take_client,
    "accept, in a fork": take_client_in_a_fork,
    "connect": lambda _: None,  # its listener is full
}


def try_settimeout(transport: str, name: str) -> int:
    """Make the handle blocking when a call is just about to ask the system; close() must end it all the same.

    Another owner of the listener takes the client that poll() has seen.
    """
    operation = name.split(",", maxsplit=1)[0]
    arguments: tuple[Any, ...]
    with contextlib.ExitStack() as stack:
        if operation == "accept":
            sock, arguments = stack.enter_context(utils.listen(transport)), ()
            stack.enter_context(utils.dialler(transport)).connect(sock.getsockname())
        else:
            address = utils.full_listener(transport, stack).getsockname()
            sock, arguments = stack.enter_context(utils.dialler(transport)), (address,)
        sock.settimeout(LIMIT)
        faults = Faults()
        with faults.plan(sock, f"{operation}ing=parked:{LIMIT * 1000:.0f}"):
            call = utils.Task(getattr(sock, operation), *arguments)
            shim = ctypes.CDLL(None)
            utils.wait_for(lambda: shim.faults_calls(f"{operation}ing".encode()))
            RIVALS[name](sock)
            sock.settimeout(None)
            utils.wait_for(shim.faults_let_go)
        assert not call.wait(TICK)
        sock.close()
        error = call.error()
        assert isinstance(error, OSError), repr(error)
        assert error.errno == errno.EBADF
    return faults.injected


SETTIMEOUT = dict.fromkeys(RIVALS, try_settimeout)


def try_signal(transport: str, name: str) -> int:
    """Have a signal come while a connect that tries again and again does not sleep; its handler makes room."""
    with contextlib.ExitStack() as stack:
        listener = utils.full_listener(transport, stack)
        sock = stack.enter_context(utils.dialler(transport))
        sock.settimeout(LIMIT)
        before = signal.signal(signal.SIGALRM, lambda *_: stack.enter_context(listener.accept()[0]))
        stack.callback(signal.signal, signal.SIGALRM, before)
        faults = Faults()
        with faults.plan(sock, f"{name}ing=late:{LIMIT * 1000:.0f}@1"):
            signal.setitimer(signal.ITIMER_REAL, TICK)
            getattr(sock, name)(listener.getsockname())
    return faults.injected


SIGNAL = {"connect": try_signal}


# Other threads of Python


@contextlib.contextmanager
def prepared(transport: str, name: str, size: int) -> Iterator[tuple[Any, Callable[[], Any]]]:
    """Lend a socket and a call on it that has all it needs."""
    with contextlib.ExitStack() as stack:
        if name in ("accept", "connect"):
            listener = stack.enter_context(utils.listen(transport))
            client = stack.enter_context(utils.dialler(transport))
            if name == "accept":
                client.connect(listener.getsockname())
                yield listener, lambda: listener.accept()[0].close()
            else:
                yield client, lambda: client.connect(listener.getsockname())
            return
        waiting, call, _, result = transfers(size)[name]
        a, b = stack.enter_context(connected(transport))
        b.sendall(waiting)

        def check() -> None:
            assert call(a, Faults().again) == result

        yield a, check


def try_release(transport: str, name: str) -> int:
    """Hold the system call of an operation up until another thread has run a statement of Python.

    The first half of an exchange may keep the GIL, and so may what is short and never waits.
    """
    group = f"{name}ing" if name in ("accept", "connect") else "sending" if name.startswith("send") else "receiving"
    library = ctypes.PyDLL(None)  # which keeps the GIL: it cannot end a call that keeps it, too
    injected = 0
    for timeout, size in ((None, 11), (LIMIT, 11), (0.0, 70_000)):
        if timeout == 0.0 and ("message" in name or name == "exchange"):
            continue  # its header is short
        with prepared(transport, name, size) as (sock, call):
            sock.settimeout(timeout)
            faults = Faults()
            with faults.plan(sock, f"{group}=parked:{40 * TICK * 1000:.0f}"):
                task, meanwhile = utils.Task(call), 0
                while task.running:
                    meanwhile += library.faults_let_go()
                    time.sleep(TICK / 50)
            assert meanwhile == 1, f"no other thread ran with timeout {timeout}"
            task.result()
        injected += faults.injected
    return injected


RELEASE = dict.fromkeys((*transfers(1), "accept", "connect"), try_release)


# Calls of many transfers


WHOLE = (
    "sendall",
    "send_message",
    "recv_exactly",
    "recv_exactly_into",
    "recv_message",
    "recv_message_into",
    "exchange",
)
#: Seconds that each transfer takes, of which none waits, and how many bytes it has.
SLOW = 0.02
PIECES = {"sending": 200, "receiving": 500}


def directions(name: str) -> tuple[str, ...]:
    return tuple(PIECES) if name == "exchange" else ("sending" if name.startswith("send") else "receiving",)


@contextlib.contextmanager
def slow_call(transport: str, name: str, group: str, timeout: float | None) -> Iterator[tuple[Faults, Any]]:
    """Lend a call that takes 2 seconds or more, none of which is a wait."""
    with prepared(transport, name, 70_000) as (sock, call):
        sock.settimeout(timeout)
        faults = Faults()
        with faults.plan(sock, f"{group}=held:{SLOW * 1000:.0f}*0", f"{group}=short:{PIECES[group]}*0"):
            yield faults, call


def try_deadline(transport: str, name: str) -> int:
    """The timeout covers all transfers, and is looked at before each."""
    for group in directions(name):
        try:
            with slow_call(transport, name, group, 4 * TICK) as (faults, call):
                call()
        except TimeoutError:
            assert faults.calls[group] <= 4 * TICK / SLOW + 2
        else:
            raise AssertionError(f"{group}: the timeout did not end it")
    return 1


class FromHandlerError(Exception):
    """What a signal handler raises."""


def try_handler(transport: str, name: str) -> int:
    """Without a timeout, a signal handler waits for a few transfers at most, not for all of them."""

    def handler(*_: object) -> None:
        raise FromHandlerError

    def interrupt(group: str) -> int:
        calls = ctypes.CDLL(None).faults_calls
        utils.wait_for(lambda: calls(group.encode()) > 5)
        made: int = calls(group.encode())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
        return made

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for group in directions(name):
            try:
                with slow_call(transport, name, group, None) as (faults, call):
                    task = utils.Task(interrupt, group)
                    call()
            except FromHandlerError:
                assert faults.calls[group] <= task.result() + 30
            else:
                raise AssertionError(f"{group}: the handler did not end it")
    finally:
        signal.signal(signal.SIGALRM, before)
    return 1


def try_length(transport: str, name: str) -> int:
    """No transfer is so long that a fast peer could keep the call in it."""
    data = bytes(10 << 20)
    wire = framed(data) if "message" in name or name == "exchange" else data
    sends, receives = name.startswith("send") or name == "exchange", not name.startswith("send")
    calls: dict[str, Callable[[Any], Any]] = {
        "recv_exactly": lambda a: a.recv_exactly(len(data)),
        "recv_exactly_into": lambda a: a.recv_exactly_into(bytearray(data)),
        "recv_message": lambda a: a.recv_message(),
        "recv_message_into": lambda a: a.recv_message_into(bytearray(data)),
    }
    with connected(transport) as (a, b):
        tasks = [utils.Task(b.recv_exactly, len(wire))] * sends + [utils.Task(b.sendall, wire)] * receives
        with Faults().plan(a):
            calls.get(name, lambda a: getattr(a, name)(data))(a)
            longest = ctypes.CDLL(None).faults_longest()
        for task in tasks:
            task.result()
    assert 1 << 20 <= longest <= 4 << 20, longest
    return 1


DEADLINE = dict.fromkeys(WHOLE, try_deadline)
HANDLER = dict.fromkeys(WHOLE, try_handler)
LENGTH = dict.fromkeys(WHOLE, try_length)


# Spins


def try_spin(transport: str, name: str) -> int:
    """Have a spin lose its core: it ends, there is none for fifty times as long, and then there is again.

    One that was held up together with the whole machine ends as well, and there is another one at once.
    """
    late = TICK / 10

    began = 0.0

    def tries(*words: str) -> int:
        nonlocal began
        began = time.monotonic()
        with faults.plan(sock, *words), contextlib.suppress(TimeoutError):
            call()
        return faults.calls[group]

    with contextlib.ExitStack() as stack:
        if name == "accept":
            sock, group = stack.enter_context(utils.listen(transport)), "polling"
            call = sock.accept
        else:
            (sock, _), group = stack.enter_context(connected(transport)), "receiving"
            call = functools.partial(sock.recv, 1)
        sock.settimeout(TICK)
        faults = Faults()
        sleeping = tries()
        sock.busy_poll = 100
        # Whoever else wants the core has the same effect: then it is tried again.
        utils.wait_for(lambda: tries() > 2 * sleeping + 2)
        held = f"{group}=held:{late * 1000:.0f}@2"
        utils.wait_for(lambda: tries(held) and faults.injected and tries() > 2 * sleeping + 2)
        utils.wait_for(lambda: tries(f"{group}=late:{late * 1000:.0f}@2") and faults.injected)
        assert faults.calls[group] <= 3 + sleeping
        injected, end = faults.injected, began + 50 * late
        while (count := tries()) and time.monotonic() < end:
            assert count == sleeping
        utils.wait_for(lambda: tries() > 2 * sleeping + 2)
    return injected


SPIN = dict.fromkeys(("recv", "accept"), try_spin)


# Memory


def try_without_memory(_transport: str, name: str) -> int:
    """Have the n-th allocation of a call fail, or all from it on, for every n; return how many calls failed."""
    failures = 0
    for once in (True, False):
        for n in itertools.count():
            failed = CALLS[name](n, n + 1 if once else 0)
            failures += failed
            if not failed:
                break
    return failures


def without_memory(start: int, stop: int, call: Callable[..., Any], *args: Any) -> tuple[bool, Any]:
    """Call with allocations failing; return whether there was a MemoryError, and the result. No descriptor is lost."""
    import _testcapi

    before = utils.open_descriptors()
    _testcapi.set_nomemory(start, stop)
    try:
        result = call(*args)
    except MemoryError:
        result = MemoryError
    finally:
        _testcapi.remove_mem_hooks()
    if result is MemoryError and call.__name__ != "close":
        assert utils.open_descriptors() == before
    return result is MemoryError, result


def check_send(method: str, start: int, stop: int) -> bool:
    """How many bytes were sent is not known after an error, but they are the first ones."""
    data = random_bytes(9000)
    with connected("adopted", 0) as (a, b):
        failed, _ = without_memory(start, stop, getattr(a, method), [data] if method == "sendmsg" else data)
        a.send(MARK)
        sent = b.recv(1 << 20).removesuffix(MARK)
        assert sent == data or (failed and data.startswith(sent))
    return failed


def check_receive(into: bool, room: int, start: int, stop: int) -> bool:
    """What was not delivered is still there, or nobody gets what is behind the gap."""
    data, buffer = random_bytes(7000), bytearray(room)
    with connected("adopted", 0) as (a, b):
        b.send(data)
        failed, result = without_memory(start, stop, *((a.recv_into, buffer) if into else (a.recv, room)))
        if not failed:
            assert (bytes(buffer[:result]) if into else result) == data
            return False
        try:
            assert a.recv(room) == data
        except RuntimeError as error:
            assert "lost" in str(error)  # noqa: PT017
            b.send(b"behind the gap")
            for again in (lambda: a.recv(1), lambda: a.recv_into(buffer), a.recv_message, lambda: a.recv_exactly(1)):
                refused(again, RuntimeError)
    return True


def check_timeout(start: int, stop: int) -> bool:
    with connected("adopted", 0) as (a, _):
        failed, _ = without_memory(start, stop, a.settimeout, LIMIT)
        a.settimeout(1)
        assert a.gettimeout() == 1
    return failed


def check_close(start: int, stop: int) -> bool:
    """A close that failed can be repeated, and the descriptor is closed once."""
    with connected("adopted", 0) as (a, b):
        descriptor = a.fileno()
        failed, _ = without_memory(start, stop, a.close)
        check_closed_once(a, b, descriptor)
    return failed


def check_closed_once(a: Any, b: Any, descriptor: int) -> None:
    a.close()
    assert a.fileno() == -1
    assert b.recv(1) == b""
    with socket.socket() as next_one:
        assert next_one.fileno() == descriptor
        a.close()
        del a
        os.fstat(next_one.fileno())


def check_new_connection(method: str, start: int, stop: int) -> bool:
    """Accept or connect, by the C type alone: there is a connection, or none, or one that has been closed."""
    with Socket(socket.AF_UNIX) as listener, Socket(socket.AF_UNIX) as client:
        path = os.path.join(os.environ["HVSOCK_LOCAL_DIR"], "listener")
        listener.bind(path)
        listener.listen()
        try:
            if method == "accept":
                client.connect(path)
                failed, result = without_memory(start, stop, listener.accept)
                accepted = None if failed else result[0]
            else:
                failed, _ = without_memory(start, stop, client.connect, path)
                accepted = None if failed else listener.accept()[0]
            if accepted is not None:
                with accepted:
                    check_talk(client, accepted)
            client.close()
            check_nobody(listener)
        finally:
            os.unlink(path)
    return failed


CALLS: dict[str, Callable[[int, int], bool]] = {
    **{name: functools.partial(check_send, name) for name in ("send", "sendall", "sendmsg")},
    "recv": functools.partial(check_receive, False, 8000),
    "recv large": functools.partial(check_receive, False, 10_000),
    "recv_into": functools.partial(check_receive, True, 8000),
    "settimeout": check_timeout,
    "close": check_close,
    "accept": functools.partial(check_new_connection, "accept"),
    "connect": functools.partial(check_new_connection, "connect"),
}


WITHOUT_MEMORY = dict.fromkeys(CALLS, try_without_memory)


def run(tries: dict[str, Callable[[str, str], int]], transport: str) -> dict[str, int]:
    """Run them all; return how often each was in the way of something."""
    found = {}
    for name, attempt in tries.items():
        try:
            found[name] = attempt(transport, name)
        except BaseException as error:
            error.add_note(f"in {name}")
            raise
    return found


def report(what: str, transport: str) -> None:
    """Print how many faults each operation of the table of that name has met."""
    for name, count in run(globals()[what], transport).items():
        say(name, count, sep="\t")
