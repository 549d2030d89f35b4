"""Calls for strace: each 100 times where it can proceed; `access` calls in the trace mark where they begin and end."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import utils
from utils import LIMIT, connected, framed


def streams(implementation: str, timeout: str, busy_poll: str = "0") -> None:
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


def messages(implementation: str, timeout: str) -> None:
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
