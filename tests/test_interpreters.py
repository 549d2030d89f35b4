"""Interpreters beside the main one, each with a GIL of its own (3.12 and later)."""

from __future__ import annotations

import sys
import textwrap

import pytest
from interpreters import new_interpreter
from utils import LIMIT, Task

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="3.12+ only: before, interpreters share one GIL")

#: What runs in an interpreter: whole conversations, on both kinds of receive, and the errors that have notes.
CONVERSATION = textwrap.dedent("""
    import socket, threading
    import hvsock

    one, other = (hvsock.HyperVSocket(fileno=sock.detach()) for sock in socket.socketpair())
    with one, other:
        one.settimeout({limit})

        def echo():
            try:
                while True:
                    other.send_message(other.recv_message())
            except EOFError:
                pass

        thread = threading.Thread(target=echo)
        thread.start()
        for size in (0, 1, 9000, 200_000):
            for _ in range(5):
                assert one.exchange(bytes([size % 251]) * size) == bytes([size % 251]) * size
        one.shutdown(socket.SHUT_WR)
        thread.join()
        other.shutdown(socket.SHUT_WR)
        try:
            one.recv_message()
        except EOFError:
            pass
        else:
            raise AssertionError("no end of stream")
        try:
            one.send_message(b"after the end")
        except OSError as error:
            # On Windows the pair is of TCP, which is no transport: there its errors have no notes.
            assert not hasattr(socket, "AF_UNIX") or "send_message" in error.__notes__[0]
    del one, other, thread
""")


def converse() -> None:
    """Hold a conversation in a new interpreter, and end it."""
    module, interpreter = new_interpreter()
    try:
        failure = module.run_string(interpreter, CONVERSATION.format(limit=LIMIT))
        assert failure is None, failure
    finally:
        module.destroy(interpreter)


def test_interpreter_with_a_gil_of_its_own() -> None:
    converse()
    converse()  # the state of the first is gone


def test_interpreters_at_the_same_time() -> None:
    tasks = [Task(converse) for _ in range(3)]
    exec(CONVERSATION.format(limit=LIMIT), {"__name__": "conversation"})
    for task in tasks:
        task.result()
