"""What runs in child processes: `python -I children.py NAME ARGUMENT...` calls the function of that name.

Each checks for itself: an assertion that fails is a traceback and exit code 1, which `utils.Child.finish` reports.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import itertools
import os
import random
import signal
import socket
import sys
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import utils
from utils import LIMIT, TICK, Task, bystanders, connected, wait_for


def say(*words: object, sep: str = " ") -> None:
    print(*words, sep=sep, flush=True)


# asyncio


def aio_out_of_descriptors() -> None:
    """A server that has no descriptor left for a connection says so, and serves it when there is one."""
    import asyncio
    import resource

    import hvsock
    from hvsock import aio
    from hvsock.aio import _server

    _server._RETRY_DELAY = TICK  # type: ignore[misc]
    reported: list[dict[str, Any]] = []

    async def handler(stream: aio.MessageStream) -> None:
        async for message in stream:
            await stream.send(message)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with await aio.serve_messages(handler, ("loopback", 5000), transport="local"):
            with hvsock.HyperVSocket(transport="local") as sock:
                resource.setrlimit(resource.RLIMIT_NOFILE, (utils.open_descriptors() + 5, hard))
                with contextlib.ExitStack() as stack:
                    with contextlib.suppress(OSError):
                        while True:
                            stack.callback(os.close, os.dup(0))
                    sock.connect(("loopback", 5000))
                    async with asyncio.timeout(LIMIT):
                        while len(reported) < 2:
                            await asyncio.sleep(TICK)
                assert {context["exception"].errno for context in reported} == {errno.EMFILE}
                async with aio.MessageStream(sock) as stream:
                    assert await stream.exchange(b"now") == b"now"

    asyncio.run(main())


def aio_server_is_not_closed(transport: str) -> None:
    """The thread of a server whose loop has ended closes what it accepts, and does not keep the process."""
    import asyncio
    from unittest import mock

    import hvsock
    from hvsock import aio
    from hvsock.aio import _server

    async def handler(_stream: aio.MessageStream) -> None:
        raise AssertionError("nobody can be served")

    async def main() -> aio.MessageServer:
        return await aio.serve_messages(handler, address, transport=transport)

    address = ("loopback", utils.new_service())
    with mock.patch.object(_server, "watches_sockets", return_value=False):
        server = asyncio.run(main())
        with hvsock.create_connection(address, LIMIT, transport=transport) as sock:
            assert sock.recv(1) == b""
        server.close()
        asyncio.run(main())


def aio_client_that_sleeps(transport: str, vm: str, service: str, sent: str) -> None:
    """A client that sends some bytes and waits to be killed."""
    import hvsock

    with hvsock.create_connection((vm, service), timeout=LIMIT, transport=transport) as sock:
        sock.sendall(b"" if sent == "-" else bytes.fromhex(sent))
        say("sent")
        time.sleep(LIMIT)


# Streams


def many_connections(transport: str, count: str) -> None:
    """`count` connections are open at the same time, and each has its own peer."""
    import hvsock

    number = int(count)
    with contextlib.suppress(ImportError):
        import resource

        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * number + 100
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(hard, wanted), hard))
    with utils.listen(transport) as listener, contextlib.ExitStack() as stack:
        address = listener.getsockname()

        def serve() -> None:
            accepted = [stack.enter_context(listener.accept()[0]) for _ in range(number)]
            for sock in accepted:
                sock.settimeout(LIMIT)
                sock.sendall(b"%8d" % (int(utils.receive_exactly(sock, 8)) + 1))

        def dial() -> hvsock.HyperVSocket:
            return hvsock.create_connection(address, timeout=LIMIT, transport=transport, retry_for=LIMIT)

        def dial_some(share: int) -> None:
            sockets.extend(stack.enter_context(dial()) for _ in range(share))

        serving = Task(serve)
        sockets: list[hvsock.HyperVSocket] = []
        dialling = [Task(dial_some, number // 4) for _ in range(4)]
        for task in dialling:
            task.result()
        for index, sock in enumerate(sockets):
            sock.sendall(b"%8d" % index)
        for index, sock in enumerate(sockets):
            assert int(utils.receive_exactly(sock, 8)) == index + 1
        serving.result()


def wait_for_child(pid: int) -> None:
    """Wait for a forked process and check that it ended well."""
    deadline = time.monotonic() + LIMIT
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError("the forked process hangs")
        time.sleep(TICK / 5)


@contextlib.contextmanager
def forked() -> Iterator[bool]:
    """Fork; the forked process runs the block with True and exits, this one runs it with False and waits."""
    import warnings

    with warnings.catch_warnings():
        # 3.12 and later warn of a fork in a process that has threads, which is what some of this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            yield True
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    yield False
    wait_for_child(pid)


def fork_and_talk(implementation: str) -> None:
    """Both processes use the socket that was there before the fork."""
    with connected(implementation) as (a, b):
        with forked() as in_child:
            if in_child:
                assert utils.receive_exactly(a, 4) == b"ping"
                a.sendall(b"from child")
            else:
                b.sendall(b"ping")
                assert utils.receive_exactly(b, 10) == b"from child"
        a.sendall(b"from parent")
        assert utils.receive_exactly(b, 11) == b"from parent"


def fork_and_close(implementation: str) -> None:
    """A close in the forked process closes its own descriptor, not the connection."""
    with connected(implementation) as (a, b):
        with forked() as in_child:
            if in_child:
                descriptor = a.fileno()
                a.close()
                b.close()
                check_closed(descriptor)
        a.sendall(b"alive")
        assert utils.receive_exactly(b, 5) == b"alive"
        b.sendall(b"and well")
        assert utils.receive_exactly(a, 8) == b"and well"


def check_closed(descriptor: int) -> None:
    """Fail if this process still has the descriptor."""
    try:
        os.fstat(descriptor)
    except OSError:
        pass
    else:
        raise AssertionError("the descriptor is still open")


def fork_while_receiving(implementation: str) -> None:
    """The same where another thread was blocked in a call at the fork: that thread is not in the child."""
    with connected(implementation, None) as (a, b):
        receiving = Task(a.recv, 100)
        time.sleep(2 * TICK)
        with forked() as in_child:
            if in_child:
                descriptor = a.fileno()
                a.close()
                check_closed(descriptor)
        time.sleep(2 * TICK)
        assert receiving.running, "a close in the forked process ended a call in this one"
        b.sendall(b"alive")
        assert receiving.result() == b"alive"


def blocking_call(operation: str, a: socket.socket, size: int = 64 << 20) -> Callable[[], Any]:
    """Return a call that blocks: to receive where nothing comes, or to send more than fits."""
    import hvsock

    data = bytes(size)
    calls: dict[str, Callable[[], Any]] = {
        "recv": lambda: a.recv(5),
        "recv_into": lambda: a.recv_into(bytearray(5)),
        "send": lambda: a.send(b"12345"),
        "sendall": lambda: a.sendall(data),
        "sendmsg": lambda: a.sendmsg([b"12", b"345"]),
        "accept": lambda: a.accept(),
    }
    if isinstance(a, hvsock.HyperVSocket):
        calls |= {
            "send_message": lambda: a.send_message(data),
            "recv_message": lambda: a.recv_message(),
            "recv_message_into": lambda: a.recv_message_into(bytearray(5)),
            "recv_exactly": lambda: a.recv_exactly(5),
            "recv_exactly_into": lambda: a.recv_exactly_into(bytearray(5)),
            "exchange": lambda: a.exchange(b"request"),
        }
    return calls[operation]


def block(operation: str, a: socket.socket) -> int:
    """Make the next send block by filling the buffer, and return the number of bytes in it."""
    if operation not in ("send", "sendmsg"):
        return 0
    timeout = a.gettimeout()
    filled = utils.fill(a)
    a.settimeout(timeout)
    return filled


class FromHandlerError(Exception):
    """What a signal handler raises."""


def signal_handled(implementation: str, operation: str, timeout: str) -> None:
    """Signals interrupt the call several times before it can go on; their handler runs while it waits."""
    with connected(implementation, None if timeout == "none" else LIMIT) as (a, b):
        runs: list[float] = []
        release = threading.Event()

        def handler(*_: object) -> None:
            runs.append(time.monotonic())
            if len(runs) == 5:
                release.set()

        def let_go() -> int:
            assert release.wait(LIMIT), "the signal handler did not run while the call waited"
            if operation.startswith("recv"):
                b.sendall(b"hello")
                return 0
            return len(utils.receive_exactly(b, filled + size))

        filled = block(operation, a)
        size = (16 << 20) if operation == "sendall" else 5
        call = blocking_call(operation, a, size)
        helper = Task(let_go)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        try:
            result = call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        expected = {"recv": b"hello", "recv_into": 5, "send": 5, "sendmsg": 5, "sendall": None}
        assert result == expected[operation], result
        assert len(runs) >= 5
        assert helper.result() == (0 if operation.startswith("recv") else filled + size)


def signal_raises(implementation: str, operation: str, timeout: str) -> None:
    """What the handler raises ends the call."""

    raised = False

    def handler(*_: object) -> None:
        nonlocal raised
        if not raised:  # not in the midst of what follows the call, however late that comes
            raised = True
            raise FromHandlerError

    with contextlib.ExitStack() as stack:
        if operation == "accept":
            a = b = stack.enter_context(utils.listen(implementation))
        else:
            a, b = stack.enter_context(connected(implementation))
        a.settimeout(None if timeout == "none" else LIMIT)
        block(operation, a)
        call = blocking_call(operation, a)
        signal.signal(signal.SIGALRM, handler)
        # More than one: the first could come before the call waits.
        signal.setitimer(signal.ITIMER_REAL, 2 * TICK, 2 * TICK)
        try:
            call()
        except FromHandlerError:
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            raise AssertionError("the call was not interrupted")
        if operation.startswith("recv"):
            b.sendall(b"later")
            assert utils.receive_exactly(a, 5) == b"later"


def signal_during_explanation() -> None:
    """What a handler raises then is not lost, and the error of the call is its context."""
    from unittest import mock

    def handler(*_: object) -> None:
        raise FromHandlerError

    def add_notes(*_args: object, **_kwargs: object) -> None:
        signal.raise_signal(signal.SIGALRM)

    signal.signal(signal.SIGALRM, handler)
    with connected("local", TICK) as (a, b), mock.patch("hvsock.Transport.explain", add_notes):
        for call in (lambda: a.recv(1), a.recv_message, lambda: a.exchange(b"")):
            context = None
            try:
                call()
            except FromHandlerError as error:
                context = error.__context__
            assert isinstance(context, TimeoutError), "the handler was not heard"
        b.sendall(b"\0\0\0\0")
        assert a.exchange(b"") == b""


def signal_in_buffers_in_python(operation: str) -> None:
    class Buffer:
        def __buffer__(self, _flags: int) -> memoryview:
            return memoryview(data)

    def handler(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise FromHandlerError

    data = utils.random_bytes(16 << 20)
    signal.signal(signal.SIGALRM, handler)
    with connected("local") as (a, b):
        call = getattr(a, operation)
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        try:
            call(Buffer())
        except FromHandlerError:
            pass
        else:
            raise AssertionError("the call was not interrupted")
        answering = Task(lambda: (b.recv_message() == data, b.send_message(b"reply")))
        assert call(Buffer()) == (b"reply" if operation == "exchange" else None)
        assert answering.result() == (True, None)


def signals_and_timeout(implementation: str, operation: str) -> None:
    """Signals that come all the time do not make a timeout start again."""
    runs: list[None] = []
    signal.signal(signal.SIGALRM, lambda *_: runs.append(None))
    with connected(implementation, 10 * TICK) as (a, _b):
        call = blocking_call(operation, a)
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        start = time.monotonic()
        try:
            call()
        except TimeoutError:
            elapsed = time.monotonic() - start
        else:
            raise AssertionError("no timeout")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert runs
    assert 10 * TICK * 0.9 <= elapsed <= 100 * TICK, elapsed


# Semantics


def one_call_each(implementation: str, timeout: str, busy_poll: str = "0") -> None:
    """Make every call 100 times where it can proceed; `access` calls in the trace mark where they begin and end."""
    data, buffer = b"x" * 10, bytearray(10)
    with connected(implementation) as (a, b):
        a.busy_poll = int(busy_poll)
        a.settimeout({"limit": LIMIT, "none": None, "zero": 0.0}[timeout])
        calls: dict[str, Callable[[], Any]] = {
            "recv": lambda: a.recv(10),
            "recv_into": lambda: a.recv_into(buffer),
            "send": lambda: a.send(data),
            "sendall": lambda: a.sendall(data),
            "sendmsg": lambda: a.sendmsg([data, data]),
        }
        for name, call in calls.items():
            if name.startswith("recv"):
                b.sendall(bytes(1000))
            os.access(f"hvsock-begin-{name}", os.F_OK)
            for _ in range(100):
                call()
            os.access(f"hvsock-end-{name}", os.F_OK)
            if name.startswith("send"):
                utils.receive_exactly(b, 2000 if name == "sendmsg" else 1000)


def make_blocked(stack: contextlib.ExitStack, implementation: str, operation: str, timeout: str) -> Any:
    """Return a socket and the call on it that blocks."""
    limit = None if timeout == "none" else LIMIT
    if operation == "connect":
        address = utils.full_listener(implementation, stack).getsockname()
        a = stack.enter_context(utils.dialler(implementation))
        a.settimeout(limit)
        return a, lambda: a.connect(address)
    if operation == "accept":
        a = stack.enter_context(utils.listen(implementation))
        a.settimeout(limit)
        return a, a.accept
    a, _ = stack.enter_context(connected(implementation))
    a.settimeout(limit)
    block(operation, a)
    call = blocking_call(operation, a)
    return a, utils.repeated(call) if operation in ("send", "sendmsg") else call


def check_error_of_closed(error: BaseException | None) -> None:
    assert isinstance(error, OSError), repr(error)
    assert not isinstance(error, TimeoutError), repr(error)
    if sys.platform != "win32":
        assert error.errno == errno.EBADF, repr(error)


def close_wakes(implementation: str, operation: str, timeout: str, rounds: str, busy_poll: str = "0") -> None:
    """Close a socket while another thread is blocked in a call on it, or just about to be."""
    for index in range(int(rounds)):
        with contextlib.ExitStack() as stack:
            a, call = make_blocked(stack, implementation, operation, timeout)
            a.busy_poll = int(busy_poll)
            task = Task(call)
            # Mostly while it waits, sometimes at its very start.
            time.sleep((0.2 * TICK, 0, 0.001, 0.02 * TICK)[index % 4])
            a.close()
            assert a.fileno() == -1
            with bystanders():
                check_error_of_closed(task.error())
            with contextlib.suppress(OSError):
                call()
                raise AssertionError("a call on a closed socket succeeded")


def close_beside_sigurg(implementation: str, operation: str, timeout: str, how: str) -> None:
    """Close a socket that a thread waits at, where the program uses, ignores or blocks the signal that wakes it."""
    if how == "ignored":
        signal.signal(signal.SIGURG, signal.SIG_IGN)
    if how in ("handled", "restarted"):
        signal.signal(signal.SIGURG, lambda *_: None)
    if how == "restarted":
        signal.siginterrupt(signal.SIGURG, False)
    mine = signal.getsignal(signal.SIGURG)

    def wait() -> None:
        blocked = {signal.SIGURG} if how == "blocked" else set()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            call()
        finally:
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked

    for delay in (2 * TICK, 0, 0.001):
        with contextlib.ExitStack() as stack:
            a, call = make_blocked(stack, implementation, operation, timeout)
            tasks = [Task(wait) for _ in range(1 if operation == "connect" else 3)]
            time.sleep(delay)
            start = time.monotonic()
            a.close()
            assert time.monotonic() - start < 0.9 * utils.SCALE, "close() gave up"
            for task in tasks:
                check_error_of_closed(task.error())
    assert signal.getsignal(signal.SIGURG) is mine


def close_in_a_forked_twin(implementation: str) -> None:
    """Close a listener in a forked process while a thread of each of the two waits at it; then in this one."""
    with utils.listen(implementation) as listener:
        listener.settimeout(None)
        read_end, write_end = os.pipe()
        with forked() as in_child:  # before there is a thread: ThreadSanitizer knows no other one of its number
            waiting = Task(listener.accept)
            time.sleep(2 * TICK)
            if in_child:
                assert os.read(read_end, 1) == b"x"
                listener.close()
                check_error_of_closed(waiting.error())
            else:
                os.write(write_end, b"x")
        assert waiting.running, "a close in the forked process ended a call in this one"
        with utils.dialler(implementation) as client:
            client.connect(listener.getsockname())
            with waiting.result()[0] as accepted:
                accepted.sendall(b"x")
                assert client.recv(1) == b"x"
        waiting = Task(listener.accept)
        with forked() as in_child:
            if in_child:
                os.close(write_end)
                assert os.read(read_end, 1) == b"", "the listener is open here until the other one has closed it"
            else:
                time.sleep(2 * TICK)
                listener.close()
                check_error_of_closed(waiting.error())
                os.close(write_end)
        os.close(read_end)


@contextlib.contextmanager
def no_descriptor_to_spare() -> Iterator[list[int]]:
    """Have no more descriptors for this process; lend some that it may close."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    held = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        yield held
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def wait_without_descriptors(implementation: str, operation: str) -> None:
    """Wait, time out and close where the process has no descriptor to spare; a client still finds the listener."""
    with contextlib.ExitStack() as stack:
        a, call = make_blocked(stack, implementation, operation, "limit")
        a.settimeout(3 * TICK)
        with no_descriptor_to_spare():
            for _ in range(2):
                start = time.monotonic()
                assert isinstance(Task(call).error(), TimeoutError)
                assert time.monotonic() - start > 2 * TICK
            a.settimeout(LIMIT)
            task = Task(call)
            assert not task.wait(2 * TICK)
            a.close()
            check_error_of_closed(task.error())


def connect_without_descriptors(implementation: str) -> None:
    with contextlib.ExitStack() as stack:
        listener = utils.full_listener(implementation, stack)
        sock = stack.enter_context(utils.dialler(implementation))
        sock.settimeout(LIMIT)
        with no_descriptor_to_spare() as held:
            task = Task(sock.connect, listener.getsockname())
            assert not task.wait(2 * TICK)
            os.close(held.pop())
            with listener.accept()[0]:
                task.result()


def close_without_descriptors() -> None:
    """The address of a listener is free at once."""
    from hvsock._hvsock import Socket

    name = f"\0hvsock-{os.getpid()}"
    for _ in range(50):
        with Socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as next_one:
            listener.bind(name)
            listener.listen()
            task = Task(listener.accept)
            time.sleep(0.002)
            with no_descriptor_to_spare():
                listener.close()
                next_one.bind(name)
            check_error_of_closed(task.error())


def opened_again_beside_settimeout() -> None:
    """Open a closed socket anew again and again while other threads set its timeout: they all go on."""
    import hvsock

    over = threading.Event()
    one, other = socket.socketpair()
    sock = hvsock.HyperVSocket(fileno=one.detach())

    def set_timeout() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                sock.settimeout(1.0)

    tasks = [Task(set_timeout) for _ in range(4)]
    for _ in range(20_000):
        sock.close()
        other.close()
        one, other = socket.socketpair()
        sock.__init__(fileno=one.detach())  # type: ignore[misc]
    over.set()
    for task in tasks:
        task.result()
    sock.settimeout(LIMIT)
    other.sendall(b"x")
    assert sock.recv(1) == b"x"
    sock.close()
    other.close()


def fork_after_close(implementation: str, operation: str) -> None:
    """Close a socket that a thread is blocked at, and fork before that thread can have left it."""
    import stat

    with contextlib.ExitStack() as stack:
        a, call = make_blocked(stack, implementation, operation, "none")
        task = Task(call)
        time.sleep(TICK)
        descriptor = a.fileno()
        a.close()
        with forked() as in_child:
            if in_child:
                with contextlib.suppress(OSError):
                    assert not stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        check_error_of_closed(task.error())


def busy_poll_set_during_receives(implementation: str, timeout: str) -> None:
    """Ask for one packet after another while another thread sets busy_poll without a pause."""
    sys.setswitchinterval(1e-6)
    over = threading.Event()
    with connected(implementation, None if timeout == "none" else LIMIT) as (a, b):

        def toggle() -> None:
            while not over.is_set():
                a.busy_poll = 1
                a.busy_poll = 0

        def answer() -> None:
            for number in range(1000):
                assert b.recv(1) == b"?"
                b.sendall(number.to_bytes(4))

        tasks = [Task(toggle), Task(answer)]
        for number in range(1000):
            a.sendall(b"?")
            assert int.from_bytes(a.recv(4)) == number
        over.set()
        for task in tasks:
            task.result()


def close_races(implementation: str, rounds: str) -> None:
    """Receive and send without a pause in four threads until the socket is closed."""

    def receive(sock: socket.socket) -> None:
        while sock.recv(100):
            pass

    def receive_into(sock: socket.socket) -> None:
        buffer = bytearray(100)
        while sock.recv_into(buffer):
            pass

    def send(sock: socket.socket) -> None:
        while True:
            sock.send(b"ours")

    def send_all(sock: socket.socket) -> None:
        while True:
            sock.sendall(b"ours")

    def echo(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := sock.recv(1000):
                sock.sendall(data)

    for index in range(int(rounds)):
        with connected(implementation, LIMIT if index % 2 else None) as (a, b):
            peer = Task(echo, b)
            tasks = [Task(function, a) for function in (receive, receive_into, send, send_all)]
            time.sleep(0.0005 * (index % 10))
            a.close()
            with bystanders(4):
                for task in tasks:
                    check_error_of_closed(task.error())
            peer.result()


def exit_while_blocked(implementation: str, operation: str) -> None:
    """End with the main thread, while a daemon thread waits."""
    stack = contextlib.ExitStack()
    _, call = make_blocked(stack, implementation, operation, "none")
    task = Task(call)
    time.sleep(2 * TICK)
    assert task.running
    # Keep the sockets from being closed by the stack's own destructor before the interpreter's end.
    globals()["_kept"] = stack, task


def interrupted(implementation: str, operation: str, timeout: str, busy_poll: str = "0") -> None:
    """Wait for Ctrl-C in a blocked call."""

    def raise_signal() -> None:
        sys.stdin.readline()
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        a, call = make_blocked(stack, implementation, operation, timeout)
        a.busy_poll = int(busy_poll)
        if sys.platform == "win32":
            Task(raise_signal)
        try:
            say("waiting")
            call()
        except KeyboardInterrupt:
            say("interrupted")
        else:
            raise AssertionError("the call returned")


def descriptor_leaks(transport: str, what: str) -> None:
    """Count descriptors before and after 2,000 operations."""
    import hvsock

    service = utils.new_service()
    nobody = ("loopback", utils.new_service())
    listener = utils.listen(transport, ("loopback", service))
    listener.settimeout(0)
    bad_addresses: list[Any] = [None, (), ("loopback",), ("nowhere", 1), ("loopback", -1), ("loopback", 1, 2), "text"]

    def errors() -> None:
        sock = hvsock.HyperVSocket(transport=transport)
        with sock:
            attempts: list[Callable[[], Any]] = [
                lambda: sock.connect(nobody),
                lambda: sock.bind(("loopback", service)),
                lambda: sock.recv(1),
                lambda: sock.accept(),
                lambda: listener.accept(),
                lambda: hvsock.create_connection(nobody, timeout=LIMIT, transport=transport),
                lambda: hvsock.create_server(("loopback", service), transport=transport),
                lambda: hvsock.HyperVSocket(socket.AF_UNIX, socket.SOCK_DGRAM, transport=transport),
                lambda: hvsock.HyperVSocket(fileno=1 << 20),
                lambda: hvsock.HyperVSocket(transport="pigeon"),
                *[
                    lambda bad=bad: hvsock.create_connection(bad, transport=transport)  # type: ignore[misc]
                    for bad in bad_addresses
                ],
                *[lambda bad=bad: hvsock.create_server(bad, transport=transport) for bad in bad_addresses],  # type: ignore[misc]
            ]
            for attempt in attempts:
                try:
                    attempt()
                except (OSError, ValueError, TypeError):
                    continue
                raise AssertionError("an operation that must fail did not")

    def connections() -> None:
        with hvsock.create_connection(("loopback", service), timeout=LIMIT, transport=transport) as client:
            listener.settimeout(LIMIT)
            accepted, _ = listener.accept()
            with accepted, accepted.dup() as twin:
                client.sendall(b"x")
                twin.recv(1)
            hvsock.HyperVSocket(fileno=client.detach()).close()

    def adopted() -> None:
        with connected("adopted") as (a, b):
            a.makefile("rwb").close()
            b.sendall(b"x")
            a.close()
            with contextlib.suppress(OSError):
                a.recv(1)

    operation, times = {"errors": (errors, 90), "connections": (connections, 700), "adopted": (adopted, 1000)}[what]
    operation()
    before = utils.open_descriptors()
    files = len(os.listdir(os.environ["HVSOCK_LOCAL_DIR"]))
    for _ in range(times):
        operation()
    assert utils.open_descriptors() == before
    assert len(os.listdir(os.environ["HVSOCK_LOCAL_DIR"])) == files
    listener.close()
    assert utils.open_descriptors() == before - 1
    assert os.listdir(os.environ["HVSOCK_LOCAL_DIR"]) == []


# Messages


MIB = 1 << 20


def framed(payload: bytes) -> bytes:
    """Return what a message is on the wire."""
    return len(payload).to_bytes(4, "big") + payload


def signal_in_message(implementation: str, operation: str, what: str, timeout: str) -> None:
    """Signals arrive at every stage of a message; what their handler does is `what`."""
    reply, large = utils.random_bytes(100_000), utils.random_bytes(8 * MIB)
    wire, buffer = framed(reply), bytearray(100_004)
    handled: list[float] = []  # when
    finishing = threading.Event()
    results: list[Any] = []
    interrupted = 0
    with connected(implementation, None if timeout == "none" else LIMIT) as (a, b):
        calls: dict[str, Callable[[], Any]] = {
            "send_message": lambda: a.send_message(large),
            "recv_message": lambda: a.recv_message(),
            "recv_message_into": lambda: a.recv_message_into(buffer),
            "recv_exactly": lambda: a.recv_exactly(len(wire)),
            "recv_exactly_into": lambda: a.recv_exactly_into(buffer),
            "exchange": lambda: a.exchange(large),
        }
        call = calls[operation]

        def handler(*_: object) -> None:
            handled.append(time.monotonic())
            if finishing.is_set():
                return
            if what == "raises":
                raise FromHandlerError
            if what == "closes" and len(handled) == 3:
                a.close()
            if what == "recurses":
                # It is refused, unless the signal was so early that this is the first call.
                results.append(call())

        def wait_for_signals() -> None:
            count = len(handled)
            wait_for(lambda: len(handled) >= count + 2 or (handled and handled[-1] < time.monotonic() - 20 * TICK))

        def peer() -> None:
            if operation in ("send_message", "exchange"):
                wait_for_signals()
                if operation == "send_message":
                    finishing.set()
                assert b.recv_message() == large
            cuts = (0, 2, 4, 5, 50_000, len(wire) - 1, len(wire))
            for start, end in itertools.pairwise(cuts) if operation != "send_message" else ():
                wait_for_signals()
                if end == len(wire):
                    finishing.set()
                b.sendall(wire[start:end])

        helper = Task(peer) if what != "closes" else None
        signal.signal(signal.SIGALRM, handler)
        while not results:
            # One signal a call where the handler ends it; else they come all the time.
            signal.setitimer(signal.ITIMER_REAL, TICK / 5, 0 if what in ("raises", "recurses") else TICK / 5)
            try:
                results.append(call())
            except FromHandlerError:
                interrupted += 1
            except RuntimeError as error:
                if what != "recurses" or "signal handler" not in str(error):
                    raise
                interrupted += 1
            except OSError as error:
                if what != "closes":
                    raise
                signal.setitimer(signal.ITIMER_REAL, 0)
                check_error_of_closed(error)
                return
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert helper is not None, "close() did not end the call"
        helper.result()
        assert interrupted > 0 or what == "returns"
        expected: dict[str, Any] = {
            "send_message": None,
            "recv_message": reply,
            "recv_message_into": len(reply),
            "recv_exactly": wire,
            "recv_exactly_into": None,
            "exchange": reply,
        }
        assert results == [expected[operation]]
        if operation == "recv_message_into":
            assert buffer[: len(reply)] == reply
        if operation == "recv_exactly_into":
            assert buffer == wire
        # Nothing came twice, and both streams are where they should be.
        a.send_message(b"next")
        assert b.recv_message() == b"next"
        b.send_message(b"previous")
        assert a.recv_message() == b"previous"


def begin_message(operation: str, a: Any, b: Any) -> Task:
    """Have a thread in the middle of such a call, so that it is its turn."""
    task = Task(blocking_call(operation, a))
    if operation == "send_message":
        import select

        assert select.select([b], [], [], LIMIT)[0]
    elif operation == "exchange":
        assert b.recv_message() == b"request"
        b.sendall(framed(b"12345")[:6])
    else:
        b.sendall(framed(b"1")[:4])
    time.sleep(TICK)
    assert task.running
    return task


def close_wakes_the_queue(implementation: str, operation: str, rounds: str) -> None:
    """Close a socket while one thread is in the middle of a message and others wait for their turn."""
    for index in range(int(rounds)):
        with connected(implementation, None if index % 2 else LIMIT) as (a, b):
            tasks = [begin_message(operation, a, b)]
            tasks += [Task(blocking_call(operation, a, 1000)) for _ in range(3)]
            time.sleep((2 * TICK, 0, 0.001, 0.2 * TICK)[index % 4])
            a.close()
            with bystanders():
                for task in tasks:
                    check_error_of_closed(task.error())


def close_races_with_messages(implementation: str, rounds: str) -> None:
    """Exchange, send and receive without a pause in six threads until the socket is closed."""

    def exchange(sock: Any) -> None:
        while True:
            sock.exchange(b"request")

    def send(sock: Any) -> None:
        while True:
            sock.send_message(b"x" * 1000, b"y" * 20_000)

    def receive(sock: Any) -> None:
        while True:
            sock.recv_message()

    def echo(sock: Any) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                sock.send_message(sock.recv_message())

    for index in range(int(rounds)):
        with connected(implementation, LIMIT if index % 2 else None) as (a, b):
            peer = Task(echo, b)
            tasks = [Task(function, a) for function in (exchange, send, receive) * 2]
            time.sleep(0.0007 * (index % 10))
            a.close()
            with bystanders(4):
                for task in tasks:
                    check_error_of_closed(task.error())
            peer.result()


def interrupted_in_the_queue(implementation: str, operation: str) -> None:
    """Wait for Ctrl-C where another thread is in the middle of a message, and go on after it."""

    def raise_signal() -> None:
        sys.stdin.readline()
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with connected(implementation) as (a, b):
        task = begin_message(operation, a, b)
        call = blocking_call(operation, a, 1000)
        if sys.platform == "win32":
            Task(raise_signal)
        say("waiting")
        try:
            call()
        except KeyboardInterrupt:
            say("interrupted")
        else:
            raise AssertionError("the call returned")
        assert task.running
        if operation == "send_message":
            assert b.recv_message(max_size=64 * MIB) == bytes(64 * MIB)
        elif operation == "exchange":
            b.sendall(framed(b"12345")[6:])
        else:
            b.sendall(b"x" if operation.startswith("recv_exactly") else framed(b"1")[4:])
        task.result()
        a.send_message(b"next")
        assert b.recv_message() == b"next"


def fork_in_a_message(implementation: str, case: str) -> None:
    """Fork where a thread, or nobody, is in the middle of a message."""
    large = utils.random_bytes(8 * MIB)
    wire = framed(utils.random_bytes(5000))
    with connected(implementation) as (a, b):
        task = None
        if case == "receiving":
            task = Task(a.recv_message)
        elif case == "partly received":
            b.sendall(wire[:1000])
            task = Task(a.recv_message)
        elif case == "partly received here":
            b.sendall(wire[:1000])
            a.settimeout(TICK)
            refused(a.recv_message, TimeoutError)
            a.settimeout(LIMIT)
        elif case == "sending":
            task = Task(a.send_message, large)
        elif case == "going on":
            a.settimeout(TICK)
            refused(lambda: a.send_message(large), TimeoutError)
            a.settimeout(None)  # blocked in the kernel, which alone knows how much is sent
            task = Task(a.send_message, large)
        time.sleep(2 * TICK)
        with forked() as in_child:
            if in_child:
                use_after_fork(case, a, large, wire)
            elif case == "idle":
                time.sleep(4 * TICK)
                assert b.recv_message() == large
                assert b.recv_message() == b"after it"
            elif case == "partly received here":
                b.sendall(wire[1000:])
        if task is not None:
            assert task.running
        if case in ("receiving", "partly received"):
            b.sendall(wire[1000 if case == "partly received" else 0 :])
            assert task is not None
            assert task.result() == wire[4:]
        elif case in ("sending", "going on"):
            assert b.recv_message() == large
        if case != "partly received here":
            a.send_message(b"still here")
            assert b.recv_message() == b"still here"


def refused(call: Callable[[], object], error: type[Exception]) -> None:
    """Check what the call raises."""
    try:
        result = call()
    except error:
        return
    raise AssertionError(f"the call returned {result!r:.60}")


def use_after_fork(case: str, a: Any, large: bytes, wire: bytes) -> None:
    """What the forked process can do with the socket."""
    if case == "idle":
        # The very first calls of this process: one is in the middle of its message, the other waits for its turn.
        sending = Task(a.send_message, large)
        time.sleep(2 * TICK)
        waiting = Task(a.send_message, b"after it")
        sending.result()
        waiting.result()
    elif case == "receiving":
        # Nothing was received, so nothing is in the middle here.
        a.settimeout(TICK)
        for call in (a.recv_message, lambda: a.recv(1), lambda: a.recv_exactly(3)):
            refused(call, TimeoutError)
        a.settimeout(LIMIT)
    elif case == "partly received":
        # What was received is with a thread that is not here.
        for call in (a.recv_message, lambda: a.recv(1), lambda: a.recv_exactly(3), lambda: a.exchange(b"x")):
            refused(call, RuntimeError)
    elif case == "partly received here":
        assert a.recv_message() == wire[4:]
    else:
        for call in (lambda: a.send(b"x"), lambda: a.send_message(b"x"), lambda: a.send_message(large)):
            refused(call, RuntimeError)
    a.close()


def message_without_memory() -> None:
    """More is announced than the address space has room for."""
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    with connected("adopted") as (a, b):
        a.setblocking(False)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        size = 1 << 28
        for request in (False, True):
            b.sendall(size.to_bytes(4, "big") + b"hello")
            resource.setrlimit(resource.RLIMIT_AS, (now + size // 2, hard))
            try:
                if not request:
                    refused(lambda: a.recv_exactly(size), MemoryError)
                for _ in range(3):
                    call = (lambda: a.exchange(b"x", max_size=size)) if request else (lambda: a.recv_message(size))
                    refused(call, MemoryError)
                    refused(lambda: a.recv(1), RuntimeError)
                    refused(lambda: a.recv_message(), OSError)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            refused(lambda: a.recv_message(size), BlockingIOError)
            b.settimeout(LIMIT)
            sending = Task(b.sendall, bytes(size - 5))
            while True:
                try:
                    message = a.recv_message(size)
                except BlockingIOError:
                    continue
                break
            sending.result()
            assert len(message) == size
            assert message[:6] == b"hello\0"
            assert message.count(0) == size - 5
        assert b.recv_message() == b"x"


def message_leaks() -> None:
    """Print, for every way in which a message call ends, by how many blocks and bytes of memory its rounds grew."""
    import gc
    import tracemalloc
    import warnings

    from test_messages import MESSAGE_LEAK_BLOCKS, MESSAGE_LEAK_ROUNDS, MISUSES

    # Sockets are dropped open here.
    warnings.simplefilter("ignore", ResourceWarning)
    pair = utils.make_pair("adopted")
    payloads = {size: utils.random_bytes(size) for size in (0, 10, 9000, 100_000)}
    operations: dict[str, Callable[[], Any]] = {}

    def expect(call: Callable[[], Any], *errors: type[BaseException]) -> None:
        refused(call, errors)  # type: ignore[arg-type]

    def partly(size: int, close: bool, call: str, more: Callable[[Any, Any], object] | None = None) -> None:
        """Receive a part of a message of that size, and drop or close the socket."""
        a, b = utils.make_pair("adopted", 0)
        b.send(framed(payloads[size])[: 4 + size // 2 if size else 3])
        if call == "exchange":
            expect(lambda: a.exchange(b"request"), BlockingIOError)
        elif call == "recv_exactly":
            expect(lambda: a.recv_exactly(size + 4), BlockingIOError)
        elif call == "recv_message_into":
            expect(lambda: a.recv_message_into(bytearray(size)), BlockingIOError)
        else:
            expect(a.recv_message, BlockingIOError)
        if more is not None:
            more(a, b)
        b.close()
        if close:
            a.close()
            kept.append(a)
            del kept[:-1]

    kept: list[Any] = []

    def ends(a: Any, b: Any) -> None:
        b.close()
        expect(a.recv_message, EOFError)

    def refuses(a: Any, _b: Any) -> None:
        for call in (lambda: a.recv(1), lambda: a.recv_exactly(7), lambda: a.exchange(b"other")):
            expect(call, RuntimeError)
        expect(lambda: a.recv_message(0), OSError)

    for size, payload in payloads.items():

        def whole(payload: bytes = payload) -> None:
            a, b = pair
            a.send_message(payload)
            assert b.recv_message() == payload
            a.send_message(payload)
            b.recv_message_into(bytearray(len(payload)))
            a.send_message(payload)
            assert b.recv_exactly(len(payload) + 4)[4:] == payload
            a.send_message(payload)
            b.recv_exactly_into(bytearray(len(payload) + 4))
            b.send_message(payload)
            assert a.exchange(payload, *[b"x"] * 20) == payload
            b.recv_message()

        operations[f"whole {size}"] = whole
        for close in (False, True):
            for call in ("recv_message", "recv_message_into", "recv_exactly", "exchange"):
                operations[f"partly {size} {call} {close}"] = lambda size=size, close=close, call=call: partly(
                    size, close, call
                )
        operations[f"ends {size}"] = lambda size=size: partly(size, True, "recv_message", ends)
        operations[f"refuses {size}"] = lambda size=size: partly(size, True, "recv_message", refuses)

    def partly_sent() -> None:
        a, b = utils.make_pair("adopted", 0)
        with a, b:
            for _ in range(3):
                expect(lambda: a.send_message(large, *[b"x"] * 20), BlockingIOError)
            expect(lambda: a.send_message(b"x"), RuntimeError)
            expect(lambda: a.exchange(b"x"), RuntimeError)

    large = bytes(8 * MIB)
    operations["partly sent"] = partly_sent
    for name, (error, call) in MISUSES.items():
        operations[name] = lambda error=error, call=call: expect(lambda: call(pair[0]), error)

    def incomplete() -> None:
        a, b = utils.make_pair("adopted")
        with a, b:
            b.sendall(framed(bytes(9000))[:-1])
            b.close()
            expect(a.recv_message, EOFError)
            expect(a.recv_message, EOFError)

    operations["incomplete"] = incomplete

    def opened_again() -> None:
        import hvsock

        a, b = utils.make_pair("adopted", 0)
        with a, b:
            b.send(framed(payloads[9000])[:5000])
            expect(a.recv_message, BlockingIOError)
            a.close()
            one, other = socket.socketpair()
            with other:
                hvsock.HyperVSocket.__init__(a, fileno=one.detach())
                other.send(b"12345")
                assert a.recv(5) == b"12345"

    operations["opened again"] = opened_again
    rounds = MESSAGE_LEAK_ROUNDS
    gc.collect()
    gc.freeze()
    for name, operation in operations.items():
        growth: list[int] = []
        # A free-threaded Windows build sets some 600 blocks aside for the first 700 sockets, then none: a leak goes on.
        while len(growth) < 3 or (len(growth) < 15 and min(growth) > MESSAGE_LEAK_BLOCKS):
            for _ in range(5):
                operation()
            gc.collect()
            before = sys.getallocatedblocks()
            for _ in range(rounds):
                operation()
            gc.collect()
            growth.append(sys.getallocatedblocks() - before)
        tracemalloc.start()
        sizes = []
        for _ in range(3):
            for _ in range(5):
                operation()
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(rounds // 5):
                operation()
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0] - before)
        tracemalloc.stop()
        say(f"{name}\t{min(growth)}\t{min(sizes)}")
    for sock in pair:
        sock.close()


def message_nomemory(operation: str) -> None:
    """Have the n-th allocation of a call fail, or all from it on, for every n; print how many calls failed."""
    import hvsock

    size = {"recv small": 5, "recv into": 5000, "recv heap": 50_000, "recv large": 100_000}.get(operation, 9000)
    payload = utils.random_bytes(size)
    failures, told = 0, 0
    for once in (True, False):
        for number in range(1000):
            with connected("adopted", 0) as (a, b):
                failed, result = nomemory_once(operation, a, b, payload, number, number + 1 if once else 0)
            failures += failed
            told += failed and type(result) is hvsock.IncompleteReadError
            if not failed:
                break
        else:
            raise AssertionError("it never succeeded")
    # The interpreter too allocates on the way of an exception, and lets a MemoryError take its place.
    assert told > 0 or operation != "end", "nothing told that the stream had ended within a message"
    say(failures)


def nomemory_once(operation: str, a: Any, b: Any, payload: bytes, start: int, stop: int) -> tuple[bool, Any]:
    """Make the call, and look what became of the message; return whether it was a MemoryError, and the message."""
    import _testcapi

    import hvsock

    size = len(payload)
    buffer = bytearray(size)
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "recv into": (a.recv_message_into, (buffer,)),
        "recv part into": (a.recv_message_into, (buffer,)),
        "recv exactly": (a.recv_exactly, (size + 4,)),
        "reply": (a.exchange, (payload,)),
        "reply part": (a.exchange, (payload,)),
        "send": (a.send_message, (payload,)),
        "send many": (
            a.send_message,
            (payload[:8000], *[payload[index : index + 50] for index in range(8000, 9000, 50)]),
        ),
        "too long": (a.recv_message, (1000,)),
    }
    call, arguments = calls.get(operation, (a.recv_message, ()))
    first = 4000 if "part" in operation or operation == "end" else size + 4
    if not operation.startswith("send"):
        b.send(framed(payload)[:first])
    if operation == "end":
        b.shutdown(socket.SHUT_WR)
    result: Any = None
    failed = False
    errors = (EOFError, OSError)  # made before there is no memory for it
    _testcapi.set_nomemory(start, stop)
    try:
        result = call(*arguments)
    except MemoryError:
        failed = True
    except errors as error:
        result = error
    finally:
        _testcapi.remove_mem_hooks()

    if operation.startswith("send"):
        if failed:
            a.send_message(payload)
        assert b.recv_message() == payload
        refused(lambda: b.recv(1), BlockingIOError)
        return failed, payload
    if operation.startswith("reply"):
        # The request was sent once, or never if the exchange failed before that.
        try:
            assert b.recv_message() == payload
        except BlockingIOError:
            if not failed:
                raise
        refused(lambda: b.recv(1), BlockingIOError)
    if operation != "end":
        b.send(framed(payload)[first:])
    if failed or isinstance(result, OSError):
        # The same message now, or the word that it is lost.
        try:
            result = a.recv_exactly(size + 4) if operation == "recv exactly" else a.recv_message()
        except EOFError as error:
            result = error
        except RuntimeError as error:
            if "lost" not in str(error):
                raise
            for again in (a.recv_message, lambda: a.recv(1), lambda: a.exchange(b"")):
                refused(again, RuntimeError)
            return failed, None
    if operation == "end":
        assert isinstance(result, EOFError), repr(result)
        assert failed or type(result) is hvsock.IncompleteReadError
        if type(result) is hvsock.IncompleteReadError:
            assert (result.partial, result.expected) == (payload[: first - 4], size)
    elif type(result) is int:
        assert buffer[:result] == payload
    else:
        assert result == (framed(payload) if operation == "recv exactly" else payload)
    return failed, result


def message_calls(implementation: str, timeout: str) -> None:
    """Make every call 100 times where it can proceed; see `one_call_each`."""
    data = b"x" * 10
    many, very_many = [data] * 20, [data] * 2000
    buffer, exact = bytearray(100), bytearray(10)
    with connected(implementation) as (a, b):
        a.settimeout({"limit": LIMIT, "none": None, "zero": 0.0}[timeout])
        calls: dict[str, tuple[bytes, Callable[[], Any], int]] = {
            "send_message": (b"", lambda: a.send_message(data), 14),
            "send_message_of_nothing": (b"", lambda: a.send_message(), 4),
            "send_message_of_20_buffers": (b"", lambda: a.send_message(*many), 204),
            "send_message_of_2000_buffers": (b"", lambda: a.send_message(*very_many), 20_004),
            "recv_message": (framed(data), lambda: a.recv_message(), 0),
            "recv_message_of_nothing": (framed(b""), lambda: a.recv_message(), 0),
            "recv_message_into": (framed(data), lambda: a.recv_message_into(buffer), 0),
            "recv_exactly": (data, lambda: a.recv_exactly(10), 0),
            "recv_exactly_into": (data, lambda: a.recv_exactly_into(exact), 0),
            "exchange": (framed(data), lambda: a.exchange(data), 14),
        }
        for name, (waiting, call, sent) in calls.items():
            rounds, times = (20, 5) if sent > 1000 else (1, 100)
            for _ in range(rounds):
                b.sendall(waiting * times)
                os.access(f"hvsock-begin-{name}", os.F_OK)
                for _ in range(times):
                    call()
                os.access(f"hvsock-end-{name}", os.F_OK)
                utils.receive_exactly(b, sent * times)


# Transports


def listen_and_wait(vm: str, port: str) -> None:
    """Listen, and tell what the first client sends; end when it does, or when told to."""
    import hvsock

    with hvsock.create_server((vm, int(port)), transport="local") as listener:
        listener.settimeout(LIMIT)
        say("listening")
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            say("accepted", accepted.recv(100).decode())


def race_to_listen(vm: str, port: str) -> None:
    """Listen when told to, unless somebody else does, and welcome one client."""
    import hvsock

    say("ready")
    sys.stdin.readline()
    try:
        listener = hvsock.create_server((vm, int(port)), transport="local")
    except OSError as error:
        say("in use" if error.errno == errno.EADDRINUSE else repr(error))
        return
    with listener:
        listener.settimeout(LIMIT)
        say("listening")
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"welcome")


def fight_for_a_name(port: str) -> None:
    """Listen where others want to, for a moment each time; whoever listens is the one that is connected to."""
    import hvsock

    address = ("loopback", int(port))
    while True:
        try:
            listener = hvsock.create_server(address, transport="local")
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            time.sleep(TICK / 50)
            continue
        with listener, hvsock.create_connection(address, timeout=LIMIT, transport="local") as client:
            listener.settimeout(LIMIT)
            with listener.accept()[0] as server:
                assert server.getpeername().service_id == client.getsockname().service_id
        say("won")


# The scene


def payload(seed: int, size: int) -> Iterator[bytes]:
    """Yield the blocks of a random stream."""
    rng = random.Random(seed)
    while size:
        block = rng.randbytes(min(size, rng.randrange(1, 200_000)))
        size -= len(block)
        yield block


def send_payload(sock: socket.socket, seed: int, size: int) -> str:
    import hashlib

    digest = hashlib.sha256()
    for block in payload(seed, size):
        sock.sendall(block)
        digest.update(block)
    return digest.hexdigest()


def receive_payload(sock: socket.socket) -> tuple[int, str]:
    import hashlib

    digest, buffer, size = hashlib.sha256(), bytearray(1 << 17), 0
    while count := sock.recv_into(buffer):
        digest.update(memoryview(buffer)[:count])
        size += count
    return size, digest.hexdigest()


def scene_host(transport: str, vm: str, size: str) -> None:
    """A host service on the wildcard: it says its address, then serves one guest and checks who that is."""
    import hvsock

    service = utils.new_service()
    with hvsock.create_server(("wildcard", service), transport=transport) as listener:
        listener.settimeout(LIMIT)
        assert listener.getsockname() == (hvsock.HV_GUID_WILDCARD, service)
        assert listener.getsockname().port == hvsock.port_from_service_id(service)
        say(listener.getsockname().port)
        sock, guest = listener.accept()
        with sock:
            sock.settimeout(LIMIT)
            assert type(sock) is hvsock.HyperVSocket
            assert type(guest) is hvsock.HyperVAddress
            assert str(guest.vm_id) == vm, guest
            assert sock.getpeername() == guest
            assert hvsock.HyperVAddress.parse(str(guest)) == guest
            if transport != "hyperv":  # go-winio: there it is arbitrary
                assert sock.getsockname().service_id == service
            say(guest.service_id)
            # The guest ends its stream first, and still hears all of the answer.
            say(*receive_payload(sock))
            say(send_payload(sock, 2, int(size)))
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""


def scene_guest(transport: str, target: str, port: str, size: str) -> None:
    """A guest agent: it dials the host's service, checks both addresses, sends, half-closes, and receives."""
    import hvsock

    with hvsock.create_connection((target, int(port)), timeout=LIMIT, transport=transport, retry_for=LIMIT) as sock:
        dialled = hvsock.as_address((target, int(port)))
        assert sock.getpeername() == dialled
        mine = sock.getsockname()
        assert type(mine) is hvsock.HyperVAddress
        assert mine.service_id != dialled.service_id
        say(mine.service_id)
        say(send_payload(sock, 1, int(size)))
        # Linux forgets the peer of an AF_VSOCK socket at its shutdown.
        assert sock.getpeername() == dialled
        sock.shutdown(socket.SHUT_WR)
        say(*receive_payload(sock))


def serve_default() -> None:
    """Serve one client on the default transport."""
    import hvsock

    with hvsock.create_server(("wildcard", utils.new_service())) as listener:
        listener.settimeout(LIMIT)
        say(listener.getsockname().port)
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(LIMIT)
            sock.sendall(utils.receive_all(sock).upper())


def dial_default(port: str) -> None:
    """Dial it."""
    import hvsock

    with hvsock.create_connection(("loopback", int(port)), timeout=LIMIT) as sock:
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        say(utils.receive_all(sock).decode())


# Processes of multiprocessing


def appearance(sock: Any) -> tuple[Any, ...]:
    """Return what must be the same in another process."""
    own = (sock.proto, sock.busy_poll, sock.connected_suspend) if hasattr(sock, "busy_poll") else ()
    return type(sock).__name__, sock.family, sock.type, sock.getsockname(), *own


def show(sock: Any) -> None:
    """Tell the peer what a connection looks like here, and close it."""
    with sock:
        sock.settimeout(LIMIT)
        sock.sendall(repr((*appearance(sock), sock.getpeername())).encode() + b"\n")
        assert sock.recv(1) == b""


def accept_once(listener: Any) -> None:
    listener.settimeout(LIMIT)
    show(listener.accept()[0])


def handed(given: dict[str, Any], pipe: Any, queue: Any) -> None:
    """What the other process does with what it is given."""
    assert given["connection"].gettimeout() is None
    show(given["connection"])
    show(pipe.recv())
    show(queue.get(timeout=LIMIT))
    with given["listener"] as listener:
        accept_once(listener)
    with pipe.recv() as listener:
        pipe.send(appearance(listener))
        accept_once(listener)
    with pipe.recv() as sock:
        pipe.send(sock)
    assert pipe.recv() == "done"


def hand_over(implementation: str, method: str) -> None:
    """Hand connections and a listener to another process in every way, and take one back."""
    import multiprocessing

    context = multiprocessing.get_context(method)
    pipe, other_end = context.Pipe()
    queue = context.Queue()
    suspend = {"connected_suspend": True} if implementation in utils.TRANSPORTS else {}

    def check(sock: Any, near: Any = None) -> None:
        """Check that the other process sees `near`, or what it has accepted, at the other end of `sock`."""
        line = b""
        while not line.endswith(b"\n"):
            part = sock.recv(4096)
            assert part
            line += part
        if near is not None:
            assert line.decode() == repr((*appearance(near), near.getpeername())) + "\n"
        sock.close()

    def pair() -> Any:
        a, b = utils.make_pair(implementation)
        if implementation != "stdlib":
            b.busy_poll = 7  # type: ignore[attr-defined]
        return a, b

    with pipe, utils.listen(implementation, **suspend) as listener:
        a, b = pair()
        process: Any = context.Process(  # type: ignore[attr-defined]
            target=handed, args=({"connection": b, "listener": listener}, other_end, queue)
        )
        process.start()
        other_end.close()
        check(a, b)
        b.close()
        a, b = pair()
        pipe.send(b)
        expected = b.dup()
        b.close()  # it is on its way
        check(a, expected)
        expected.close()
        a, b = pair()
        queue.put(b)
        check(a, b)
        b.close()
        for way in ("argument", "pipe"):
            if way == "pipe":
                pipe.send(listener)
                assert pipe.recv() == appearance(listener)
            with utils.dialler(implementation) as client:
                client.settimeout(LIMIT)
                client.connect(listener.getsockname())
                check(client)
        a, b = pair()
        with a:
            pipe.send(b)
            b.close()
            with pipe.recv() as again:
                assert type(again) is type(b)
                again.sendall(b"x")
                assert a.recv(1) == b"x"
        pipe.send("done")
        process.join(LIMIT)
        assert process.exitcode == 0
    queue.close()
    queue.join_thread()


# CPython's own tests


def cpython_socket(kind: str, index: str, count: str, *names: str) -> None:
    """Run classes or tests of `test.test_socket`, but none whose name follows a "-", with `socket.socket` swapped.

    This is one of `count` processes at the same time, whose ports must not meet.
    """
    import swapped

    test_socket = swapped.load("test_socket")
    socket.socket = socket.SocketType = swapped.socket_class(  # type: ignore[misc]
        kind, swapped.ports(int(index), int(count))
    )
    excluded = {name.removeprefix("-") for name in names if name.startswith("-")}
    loader = unittest.defaultTestLoader
    loaded = unittest.TestSuite(
        loader.loadTestsFromName(name, test_socket)
        for name in names
        # Not every Python has every class.
        if not name.startswith("-") and hasattr(test_socket, name.split(".")[0])
    )
    swapped.run(test for test in swapped.flat(loaded) if swapped.name_of(test) not in excluded)


def cpython_asyncio(kind: str, index: str, count: str, part: str, *names: str) -> None:
    """Run modules or tests of `test.test_asyncio` over sockets of `kind`: those of them that belong to `part`.

    This is one of `count` processes at the same time, whose ports must not meet.
    """
    import swapped
    import test_cpython_asyncio

    modules = {name.partition(".")[0] for name in names}
    loaded = [swapped.load(f"test_asyncio.{module}") for module in sorted(modules)]
    swapped.use_asyncio(kind, swapped.ports(int(index), int(count)))
    tests = swapped.flat(unittest.defaultTestLoader.loadTestsFromModule(module) for module in loaded)
    swapped.run(
        test
        for test, name in ((test, swapped.name_of(test)) for test in tests)
        if (name in names or name.partition(".")[0] in names) and test_cpython_asyncio.part_of(kind, name) == part
    )


def cpython_names(*names: str) -> None:
    """Check that `test.test_socket` has these tests, where it has their classes."""
    import swapped

    test_socket = swapped.load("test_socket")
    for name in names:
        case, _, method = name.partition(".")
        assert not hasattr(test_socket, case) or hasattr(getattr(test_socket, case), method), name


def import_is_light() -> None:
    """Import the package once more, in a fresh interpreter: `utils` has imported it in this one."""
    import subprocess

    code = (
        "import os, sys, threading\n"
        "fds = lambda: len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 0\n"
        "import socket\n"
        "before = fds()\n"
        "import hvsock\n"
        "assert fds() == before\n"
        "assert threading.active_count() == 1\n"
        "assert not {'asyncio', 'click', 'multiprocessing', 'rich', 'ssl', 'subprocess'} & set(sys.modules), 'heavy'\n"
        "assert not os.listdir(os.environ['HVSOCK_LOCAL_DIR'])\n"
    )
    subprocess.run([sys.executable, "-I", "-W", "error", "-c", code], check=True, timeout=LIMIT)


def leaks(transport: str, least: str, total: str) -> None:
    """Print by how much what must not grow has grown, for every call of leaks.py."""
    import warnings

    import leaks

    warnings.simplefilter("ignore", ResourceWarning)  # sockets are dropped open there
    for name, growth in leaks.run(transport, int(least), int(total)):
        say(name, *growth, sep="\t")


# Races


def races(transport: str, kind: str, rounds: str) -> None:
    """Disturb the calls of many threads in every way, and print which; afterwards no descriptor is left."""
    import races

    faulthandler.dump_traceback_later(races.limit(int(rounds)), exit=True)
    before = utils.handles()
    for disturbance in races.DISTURBANCES:
        races.run(transport, kind, disturbance, int(rounds))
        say(disturbance)
    assert utils.handles() <= before + 2 * utils.WINDOWS


def races_in_interpreters(transport: str, kind: str, rounds: str) -> None:
    """The same in this interpreter and in two that have a GIL of their own, at the same time."""
    from test_interpreters import new_interpreter

    def race_elsewhere() -> None:
        module, interpreter = new_interpreter()
        try:
            code = f"""
import sys; sys.path = {sys.path!r}; import races
for disturbance in races.DISTURBANCES: races.run({transport!r}, {kind!r}, disturbance, {rounds})
"""
            failure = module.run_string(interpreter, code)
            assert failure is None, failure
        finally:
            module.destroy(interpreter)

    import races

    faulthandler.dump_traceback_later(races.limit(int(rounds)), exit=True)
    tasks = [Task(race_elsewhere) for _ in range(2)]
    for disturbance in races.DISTURBANCES:
        races.run(transport, kind, disturbance, int(rounds))
        say(disturbance)
    for task in tasks:
        task.result(races.limit(int(rounds)))


# Faults


def faulty(what: str, transport: str) -> None:
    """Print how many faults of `what` each operation has met."""
    import faulty

    for name, count in faulty.run(getattr(faulty, what), transport).items():
        say(name, count, sep="\t")


# Relays


def relay_until_ctrl_c() -> None:
    """Serve until Ctrl-C is pressed."""
    from hvsock.relay import Relay

    def press() -> None:
        sys.stdin.readline()
        if sys.platform == "win32":
            signal.raise_signal(signal.SIGINT)
        else:
            os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    Task(press)
    relay = Relay("tcp://:0", "tcp://:1")
    try:
        with relay:
            say("serving")
            relay.serve_forever()
    except KeyboardInterrupt:
        say("interrupted", relay)


def relay_with_few_descriptors() -> None:
    """Serve with room for a few connections, and print what is logged."""
    import logging
    import resource

    from hvsock.relay import Relay

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "cannot accept" in record.getMessage():
                say(record.getMessage())

    logging.getLogger("hvsock.relay").addHandler(Lines())
    with Relay("tcp://:0", sys.stdin.readline().strip()) as relay:
        resource.setrlimit(resource.RLIMIT_NOFILE, (utils.open_descriptors() + 20,) * 2)
        say(relay.address)
        sys.stdin.readline()


def relay_that_only_an_end_wakes(target: str, room: str) -> None:
    """Serve with few descriptors and endless pauses; print how many were accepted, each time that they are too few."""
    import logging
    import resource

    from hvsock.relay import Relay, _relay

    class Totals(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "cannot accept" in record.getMessage():
                say(it.counters.total)

    logging.getLogger("hvsock.relay").addHandler(Totals())
    _relay._FIRST_PAUSE = _relay._LONGEST_PAUSE = 2 * LIMIT  # type: ignore[misc]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (utils.open_descriptors() + int(room), hard))
    with Relay("tcp://:0", target) as it:
        say(it.address)
        sys.stdin.readline()
        say("refused", it.counters.refused, "failed", it.counters.failed)


# The soak


def soak(role: str, *arguments: str) -> None:
    """One of the processes of `soak.py`."""
    import asyncio
    import inspect

    import soak

    result = getattr(soak, role)(*arguments)
    if inspect.isawaitable(result):
        asyncio.run(result)  # type: ignore[arg-type]


def main(name: str, *arguments: str) -> None:
    # Ends the process, with the stack of every thread, even where the parent is gone.
    faulthandler.dump_traceback_later(5 * LIMIT, exit=True)
    globals()[name](*arguments)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(*sys.argv[1:])
