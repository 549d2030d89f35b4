"""Servers of HTTP by other libraries, each in a process of its own, and what is checked of all of them.

A server is given a transport and an address's URI. Its application answers a POST with the body, ``GET /who`` with the
client's address as it sees it, host, space, port, and ``GET /slow`` after some time.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import utils
from children import say

import hvsock
from hvsock import aio

REQUESTS = 1000
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


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """Return an event loop of a kind of `aio_loops`."""
    if kind == "uvloop":
        import uvloop

        made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return made
    return asyncio.SelectorEventLoop() if kind == "selector" else aio.new_event_loop()


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer, by WSGI."""
    path = environ["PATH_INFO"]
    if path == "/who":
        body = f"{environ['REMOTE_ADDR']} {environ.get('REMOTE_PORT')}".encode()
    elif path == "/slow":
        time.sleep(SLOW)
        body = b""
    else:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def cheroot(transport: str, uri: str) -> None:
    """Serve by cheroot."""
    from hvsock.integrations.cheroot import serve

    on_ctrl_c_by_line()
    say("ready")
    serve(wsgi_app, hvsock.HyperVAddress.parse(uri), transport=transport, shutdown_timeout=utils.TICK)
    say("ended")


async def asgi_app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Answer, by ASGI."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        say("shut down")
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": " ".join(map(str, scope["client"]))})
        await receive()
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if scope["path"] == "/who":
        body = " ".join(map(str, scope["client"])).encode()
    elif scope["path"] == "/slow":
        await asyncio.sleep(SLOW)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def uvicorn(transport: str, uri: str, loop: str) -> None:
    """Serve by uvicorn."""
    from hvsock.integrations.uvicorn import serve

    on_ctrl_c_by_line()
    say("ready")
    serve(asgi_app, hvsock.HyperVAddress.parse(uri), transport=transport, loop=loop, lifespan="on", log_level="error")
    say("ended")


def aiohttp(transport: str, uri: str, loop: str) -> None:
    """Serve by aiohttp."""
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
        runner.run(serve_aiohttp(transport, uri))


def uvicorn_itself(transport: str, uri: str) -> None:
    """Serve by uvicorn without an adapter, with a listening socket."""
    from uvicorn import Config, Server

    on_ctrl_c_by_line()
    config = Config(asgi_app, loop="hvsock.aio:new_event_loop", log_level="error", timeout_graceful_shutdown=1)
    listener = hvsock.create_server(hvsock.HyperVAddress.parse(uri), transport=transport)
    say("ready")
    with contextlib.suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listener])
    say("ended")


def websockets_itself(transport: str, uri: str) -> None:
    """Serve by websockets without an adapter, with a listening socket."""
    from websockets.asyncio.server import serve

    async def answer(connection: Any) -> None:
        await connection.send(str(connection.remote_address.vm_id))
        async for message in connection:
            await connection.send(message)

    async def main() -> None:
        listener = hvsock.create_server(hvsock.HyperVAddress.parse(uri), transport=transport)
        async with await serve(answer, sock=listener, start_serving=False, max_size=None) as server:
            await server.start_serving()
            say("ready")
            try:
                await server.serve_forever()
            finally:
                say("ended")

    on_ctrl_c_by_line()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=aio.new_event_loop) as runner:
        runner.run(main())


def hypercorn(transport: str, uri: str, loop: str) -> None:
    """Serve by hypercorn."""
    from hypercorn.config import Config

    from hvsock.integrations.hypercorn import serve

    on_ctrl_c_by_line()
    config = Config.from_mapping(loglevel="ERROR", graceful_timeout=utils.TICK)
    address = hvsock.HyperVAddress.parse(uri)
    say("ready")
    serve(asgi_app, address, config=config, transport=transport, loop_factory=lambda: new_loop(loop))
    say("ended")


def websockets(transport: str, uri: str, loop: str) -> None:
    """Serve by websockets: echo, and the peer's VM id first."""
    from hvsock.integrations.websockets import serve

    async def answer(connection: Any) -> None:
        await connection.send(str(connection.remote_address.vm_id))
        async for message in connection:
            await connection.send(message)

    async def main() -> None:
        address = hvsock.HyperVAddress.parse(uri)
        async with await serve(answer, address, transport=transport, max_size=None, server_header="it") as server:
            say("ready")
            try:
                await server.serve_forever()
            finally:
                say("ended")

    on_ctrl_c_by_line()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
        runner.run(main())


def websockets_sync(transport: str, uri: str) -> None:
    """Serve by websockets, in threads."""
    from hvsock.integrations.websockets_sync import serve

    def answer(connection: Any) -> None:
        connection.send(str(connection.remote_address.vm_id))
        for message in connection:
            connection.send(message)

    on_ctrl_c_by_line()
    with contextlib.suppress(KeyboardInterrupt):
        with serve(answer, hvsock.HyperVAddress.parse(uri), transport=transport, max_size=None) as server:
            say("ready")
            server.serve_forever()
    say("ended")


async def serve_aiohttp(transport: str, uri: str) -> None:
    from aiohttp import web

    from hvsock.integrations.aiohttp import Site

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/who":
            assert request.transport is not None
            peername = request.transport.get_extra_info("peername")
            return web.Response(text=f"{request.remote} {peername.port or peername.service_id.int}")
        if request.path == "/slow":
            await asyncio.sleep(SLOW)
        return web.Response(body=await request.read())

    on_ctrl_c_by_line()
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = Site(runner, hvsock.HyperVAddress.parse(uri), transport=transport)
    await site.start()
    assert site.name == uri
    say("ready")
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        say("ended")


class Connection(http.client.HTTPConnection):
    """A connection of the standard library, made again when the server has closed it after many requests."""

    def __init__(self, address: hvsock.HyperVAddress, transport: str) -> None:
        super().__init__("agent")
        self._address = address
        self._transport = transport
        self.connect()

    def connect(self) -> None:
        """Connect, as soon as the server listens."""
        self.sock: Any = hvsock.create_connection(
            self._address, utils.LIMIT, transport=self._transport, retry_for=utils.LIMIT
        )


def request(it: Connection, method: str, path: str, body: bytes | None = None) -> bytes:
    """Make a request and return the body of the answer."""
    it.request(method, path, body)
    answer = it.getresponse()
    assert answer.status == 200
    return answer.read()


def check(
    serve: Callable[..., object], transport: str, *arguments: str, requests: int = REQUESTS, number: bool = False
) -> None:
    """Check what a server of this module answers, and that Ctrl-C ends it, beside a client that is silent."""
    address = hvsock.as_address(("loopback", utils.new_service()))
    with utils.Child(serve, transport, str(address), *arguments) as child:
        assert child.line() == "ready"
        silent, it = Connection(address, transport), Connection(address, transport)
        client = it.sock.getsockname()
        port = client.service_id.int if number or client.port is None else client.port
        assert request(it, "GET", "/who") == f"{hvsock.HV_GUID_LOOPBACK} {port}".encode()
        for index in range(requests):
            body = b"%d" % index
            assert request(it, "POST", "/", body) == body
        big = utils.random_bytes(10 * utils.MIB)
        assert request(it, "POST", "/", big) == big
        it.sock.settimeout(utils.TICK)
        try:
            request(it, "GET", "/slow")
        except TimeoutError:
            pass
        else:
            raise AssertionError("the answer came in time")
        it.sock.settimeout(utils.LIMIT)
        assert it.sock.recv(1) == b"H"  # the answer comes later
        it.close()
        child.tell("Ctrl-C")
        assert child.finish()[-1:] == ["ended"]
        silent.close()


def check_websockets(serve: Callable[..., object], transport: str, *arguments: str, requests: int = REQUESTS) -> None:
    """Check what a server of websockets answers, and that Ctrl-C ends it, and its connections."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect as websocket

    address = hvsock.as_address(("loopback", utils.new_service()))
    big = utils.random_bytes(10 * utils.MIB)
    with utils.Child(serve, transport, str(address), *arguments) as child:
        assert child.line() == "ready"
        sock = hvsock.create_connection(address, utils.LIMIT, transport=transport)
        with websocket("ws://agent/", sock=sock, max_size=None) as it:
            assert it.recv() == str(hvsock.HV_GUID_LOOPBACK)
            for body in (*(b"%d" % number for number in range(requests)), big):
                it.send(body)
                assert it.recv() == body
            child.tell("Ctrl-C")
            with contextlib.suppress(ConnectionClosed):
                it.recv(timeout=utils.LIMIT)
            assert it.close_code == 1001
        assert child.finish() == ["ended"]
