"""Relays."""

from __future__ import annotations

import os
import signal
import socket
import sys

import utils
from utils import LIMIT, Task

from children import say


def until_ctrl_c() -> None:
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


def with_few_descriptors() -> None:
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


def that_only_an_end_wakes(target: str, room: str) -> None:
    """Serve by threads, with few descriptors and endless pauses; print the number accepted when there are too few."""
    import logging
    import resource

    from hvsock.relay import Relay, _engine, _relay

    class Totals(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "cannot accept" in record.getMessage():
                say(it.counters.total)

    logging.getLogger("hvsock.relay").addHandler(Totals())
    _engine.Engine.serves = lambda *_: False  # type: ignore[method-assign]
    _relay._FIRST_PAUSE = _relay._LONGEST_PAUSE = 2 * LIMIT  # type: ignore[misc]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (utils.open_descriptors() + int(room), hard))
    with Relay("tcp://:0", target) as it:
        say(it.address)
        sys.stdin.readline()
        say("refused", it.counters.refused, "failed", it.counters.failed)


def whose_clients_wait(target: str, room: str) -> None:
    """Serve with descriptors for a few connections, and print at the end how many were turned away."""
    import resource

    from hvsock.relay import Relay

    with Relay("tcp://:0", target) as it:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (utils.open_descriptors() + int(room), hard))
        say(it.address)
        sys.stdin.readline()
        say(it.counters.total, "accepted, refused", it.counters.refused, "failed", it.counters.failed)


def with_two_families(target: str, place: str) -> None:
    """Serve where socket() knows no families but AF_UNIX and AF_VSOCK, and print the counters at the end."""
    from children.denied import deny_all_families_but
    from hvsock.relay import Relay

    deny_all_families_but(socket.AF_UNIX, socket.AF_VSOCK)
    with Relay(f"unix://{place}/two", target) as relay:
        say(relay.address)
        sys.stdin.readline()
        relay.stop(LIMIT)
    say(relay.counters)


def of_a_soak(target: str, place: str, most: str) -> None:
    """Relay from TCP to a Unix socket and on to the target; for each line, say what is held without a connection."""
    import faulthandler
    import json
    import mmap

    from hvsock.relay import Relay

    faulthandler.cancel_dump_traceback_later()  # it may take an hour
    between = f"unix://{place}/between"
    with (
        Relay(between, target, max_connections=int(most)) as there,
        Relay("tcp://:0", between, max_connections=int(most)) as here,
    ):
        say(here.address.rpartition(":")[2])
        for line in sys.stdin:
            if line.strip() == "stop":
                break
            utils.wait_for(lambda: here.counters.open == there.counters.open == 0)
            with open("/proc/self/statm") as file:
                resident = int(file.read().split()[1]) * mmap.PAGESIZE
            held = {"descriptors": utils.open_descriptors(), "resident": resident}
            say(
                json.dumps(
                    held | {"total": here.counters.total, "refused": here.counters.refused + there.counters.refused}
                )
            )
