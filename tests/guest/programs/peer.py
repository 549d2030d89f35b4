"""The same as peer.go, by CPython's `socket`."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import TextIO

CHUNK = 1 << 16


def dial(cid: str, port: str) -> socket.socket:
    conn = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    conn.connect((int(cid), int(port)))
    return conn


def listen(port: str) -> socket.socket:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, int(port)))
    listener.listen(socket.SOMAXCONN)
    return listener


def copy(read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
    while data := read(CHUNK):
        write(data)


def join(conn: socket.socket) -> None:
    """Copy both ways until both have ended."""

    def receive() -> None:
        copy(conn.recv, lambda data: os.write(1, data))
        os.close(1)

    print(f"here {conn.getsockname()}, there {conn.getpeername()}", file=sys.stderr, flush=True)
    receiver = threading.Thread(target=receive)
    receiver.start()
    copy(lambda size: os.read(0, size), conn.sendall)
    conn.shutdown(socket.SHUT_WR)
    receiver.join()


def first_client(port: str) -> socket.socket:
    with listen(port) as listener:
        return listener.accept()[0]


def echo_to(conn: socket.socket) -> None:
    with conn:
        copy(conn.recv, conn.sendall)


def echo(port: str) -> None:
    listener = listen(port)
    while True:
        threading.Thread(target=echo_to, args=(listener.accept()[0],)).start()


def many(cid: str, port: str, count: str) -> None:
    conns = [dial(cid, port) for _ in range(int(count))]
    for number, conn in enumerate(conns):
        conn.sendall(b"connection %d\n" % number)
    for number, conn in enumerate(conns):
        file: TextIO = conn.makefile()
        line = file.readline()
        assert line == f"connection {number}\n", f"{line!r} came back on connection {number}"


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "connect":
        join(dial(*arguments))
    elif command == "listen":
        join(first_client(*arguments))
    else:
        programs: dict[str, Callable[..., None]] = {"echo": echo, "many": many}
        programs[command](*arguments)
