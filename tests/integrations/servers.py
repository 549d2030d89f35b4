"""Servers of HTTP by other libraries, each in a process of its own, and what is checked of all of them.

A server is given a transport and an address's URI. Its application answers a POST with the body, ``GET /who`` with the
client's address as it sees it, host, space, port, and ``GET /slow`` after some time.
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import utils
from children import say

import hvsock

SLOW = 20 * utils.TICK


def on_ctrl_c_by_line() -> None:
    """Have a line of standard input be a Ctrl-C: a test on Windows cannot send one to another process alone."""

    def wait() -> None:
        sys.stdin.readline()
        if utils.WINDOWS:
            signal.raise_signal(signal.SIGINT)
        else:
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer, by WSGI."""
    path = environ["PATH_INFO"]
    if path == "/who":
        body = f"{environ['REMOTE_ADDR']} {environ['REMOTE_PORT']}".encode()
    elif path == "/slow":
        time.sleep(SLOW)
        body = b""
    else:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def wsgi(transport: str, uri: str) -> None:
    """Serve by cheroot."""
    from hvsock.integrations.wsgi import serve

    on_ctrl_c_by_line()
    say("ready")
    serve(wsgi_app, hvsock.HyperVAddress.parse(uri), transport=transport, shutdown_timeout=utils.TICK)
    say("ended")


def connect(address: hvsock.HyperVAddress, transport: str) -> http.client.HTTPConnection:
    """Return a connection of the standard library to a server that begins to listen at some time."""
    made = http.client.HTTPConnection("agent")
    made.sock = hvsock.create_connection(address, utils.LIMIT, transport=transport, retry_for=utils.LIMIT)
    return made


def request(it: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> bytes:
    """Make a request and return the body of the answer."""
    it.request(method, path, body)
    answer = it.getresponse()
    assert answer.status == 200
    return answer.read()


def check(serve: Callable[..., object], transport: str, *arguments: str) -> None:
    """Check what a server of this module answers, and that Ctrl-C ends it, beside a client that is silent."""
    address = hvsock.as_address(("loopback", utils.new_service()))
    with utils.Child(serve, transport, str(address), *arguments) as child:
        assert child.line() == "ready"
        it = connect(address, transport)
        client = it.sock.getsockname()
        port = client.service_id.int if client.port is None else client.port
        assert request(it, "GET", "/who") == f"{hvsock.HV_GUID_LOOPBACK} {port}".encode()
        for number in range(100):
            body = b"%d" % number
            assert request(it, "POST", "/", body) == body
        big = utils.random_bytes(10 * utils.MIB)
        assert request(it, "POST", "/", big) == big
        it.sock.settimeout(utils.TICK)
        with pytest.raises(TimeoutError):
            request(it, "GET", "/slow")
        it.sock.settimeout(utils.LIMIT)
        assert it.sock.recv(1) == b"H"  # the answer comes later
        it.close()
        silent = connect(address, transport)
        child.tell("Ctrl-C")
        assert child.finish() == ["ended"]
        silent.close()
