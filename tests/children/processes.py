"""Sockets that are handed over to a process of multiprocessing."""

from __future__ import annotations

from typing import Any

import utils
from utils import LIMIT


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


def use_what_is_handed(given: dict[str, Any], pipe: Any, queue: Any) -> None:
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
            b.busy_poll = 7
        return a, b

    with pipe, utils.listen(implementation, **suspend) as listener:
        a, b = pair()
        process: Any = context.Process(  # type: ignore[attr-defined]
            target=use_what_is_handed, args=({"connection": b, "listener": listener}, other_end, queue)
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
