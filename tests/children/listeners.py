"""Processes that listen on the local transport, at the same address."""

from __future__ import annotations

import errno
import faulthandler
import os
import sys
import time

from utils import LIMIT, TICK

import hvsock
from children import say


def listen_and_wait(vm: str, port: str) -> None:
    """Listen, and tell what the first client sends; end when it does, or when told to."""
    with hvsock.create_server((vm, int(port)), transport="local") as listener:
        listener.settimeout(LIMIT)
        say("listening")
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            say("accepted", accepted.recv(100).decode())


def hand_over_by_fork(port: str) -> None:
    """Listen, and leave the listener to a child; end it when told to."""
    assert sys.platform != "win32"
    listener = hvsock.create_server(("wildcard", int(port)), transport="local")
    reader, writer = os.pipe()
    faulthandler.cancel_dump_traceback_later()  # CPython 3.15 warns of its thread at a fork
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        listener.close()
        os._exit(0)
    listener.close()
    say("closed")
    sys.stdin.readline()
    os.write(writer, b"x")
    assert os.waitpid(child, 0)[1] == 0


def race_to_listen(vm: str, port: str) -> None:
    """Listen when told to, unless somebody else does, and welcome one client."""
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
