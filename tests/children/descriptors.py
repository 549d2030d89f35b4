"""Descriptors: none left, very many, and none that leaks."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import utils
from utils import LIMIT, TICK, Task, connected

import hvsock
from children.blocked import check_error_of_closed, make_blocked
from hvsock._hvsock import Socket


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


def wait_without(implementation: str, operation: str) -> None:
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


def connect_without(implementation: str) -> None:
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


def address_after_close(left: str) -> None:
    """The address of a listener is free at once, with "some" descriptors left and with "none"."""
    name = f"\0hvsock-{os.getpid()}"
    for _ in range(50):
        with Socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as next_one:
            listener.bind(name)
            listener.listen()
            task = Task(listener.accept)
            time.sleep(0.002)
            with no_descriptor_to_spare() if left == "none" else contextlib.nullcontext():
                listener.close()
                next_one.bind(name)
            check_error_of_closed(task.error())


def many_connections(transport: str, count: str) -> None:
    """`count` connections are open at the same time, and each has its own peer."""
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


def leaks(transport: str, what: str) -> None:
    """Count descriptors before and after 2,000 operations."""
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
                *[lambda bad=bad: hvsock.create_connection(bad, transport=transport) for bad in bad_addresses],
                *[lambda bad=bad: hvsock.create_server(bad, transport=transport) for bad in bad_addresses],
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
