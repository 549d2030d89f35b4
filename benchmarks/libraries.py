"""Requests a second of libraries of HTTP over `hvsock.integrations`, beside the same on AF_UNIX: see README.md.

Transport `local` is AF_UNIX too, so that the two differ by the adapter only. A server and its client are on the same
kind of socket, and the kinds take turns within each round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final

import hvsock

BODY: Final = b"x" * 100
HVSOCK: Final = "hvsock"

# Servers: of a library, at an address (hvsock://...) or a path.


async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Answer, by ASGI."""
    if scope["type"] != "http":
        raise NotImplementedError
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(BODY))]})
    await send({"type": "http.response.body", "body": BODY})


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    """Answer, by WSGI."""
    start_response("200 OK", [("Content-Length", str(len(BODY)))])
    return [BODY]


def serve_uvicorn(place: str) -> None:
    """Serve by uvicorn."""
    import uvicorn

    from hvsock.integrations.uvicorn import serve

    if place.startswith(HVSOCK):
        serve(app, hvsock.HyperVAddress.parse(place), log_level="error", access_log=False, loop="asyncio")
    else:
        uvicorn.run(app, uds=place, log_level="error", access_log=False, loop="asyncio")


def serve_hypercorn(place: str) -> None:
    """Serve by hypercorn."""
    from hypercorn.asyncio import serve as serve_plain
    from hypercorn.config import Config

    from hvsock.integrations.hypercorn import serve

    config = Config.from_mapping(loglevel="ERROR", bind=[f"unix:{place}"], keep_alive_max_requests=1_000_000)
    if place.startswith(HVSOCK):
        serve(app, hvsock.HyperVAddress.parse(place), config=config)
    else:
        asyncio.run(serve_plain(app, config))  # type: ignore[arg-type]


def serve_cheroot(place: str) -> None:
    """Serve by cheroot."""
    from cheroot.wsgi import Server

    from hvsock.integrations.cheroot import serve

    if place.startswith(HVSOCK):
        serve(wsgi_app, hvsock.HyperVAddress.parse(place))
    else:
        Server(place, wsgi_app).start()


def serve_aiohttp(place: str) -> None:
    """Serve by aiohttp."""
    from aiohttp import web

    from hvsock.integrations.aiohttp import Site

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=BODY)

    async def main() -> None:
        application = web.Application()
        application.router.add_get("/", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        ours = place.startswith(HVSOCK)
        await (Site(runner, hvsock.HyperVAddress.parse(place)) if ours else web.UnixSite(runner, place)).start()
        await asyncio.Event().wait()

    asyncio.run(main())


def serve_websockets(place: str) -> None:
    """Serve by websockets."""
    from websockets.asyncio.server import unix_serve

    from hvsock.integrations.websockets import serve

    async def answer(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    async def main() -> None:
        if place.startswith(HVSOCK):
            server = await serve(answer, hvsock.HyperVAddress.parse(place), compression=None)
        else:
            server = await unix_serve(answer, place, compression=None)
        await server.serve_forever()

    asyncio.run(main())


# Clients: make requests, and return how many a second.


def timed(count: int, call: Callable[[], object]) -> float:
    """Call again and again."""
    call()
    began = time.perf_counter()
    for _ in range(count):
        call()
    return count / (time.perf_counter() - began)


async def timed_in_loop(count: int, call: Callable[[], Awaitable[object]]) -> float:
    """Await again and again."""
    await call()
    began = time.perf_counter()
    for _ in range(count):
        await call()
    return count / (time.perf_counter() - began)


def connect(place: str) -> socket.socket:
    """Connect a socket."""
    if place.startswith(HVSOCK):
        return hvsock.create_connection(hvsock.HyperVAddress.parse(place), 30)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(place)
    return sock


def ask_plainly(place: str, count: int) -> float:
    """Ask with http.client, whose socket is of the one kind or the other."""
    connection = http.client.HTTPConnection("agent")
    with connect(place) as connection.sock:

        def call() -> None:
            connection.request("GET", "/")
            assert connection.getresponse().read() == BODY

        return timed(count, call)


def ask_httpx(place: str, count: int) -> float:
    """Ask with httpx."""
    import httpx

    from hvsock.integrations.httpx import Transport

    ours = place.startswith(HVSOCK)
    transport = Transport(hvsock.HyperVAddress.parse(place)) if ours else httpx.HTTPTransport(uds=place)
    with httpx.Client(transport=transport, base_url="http://agent") as client:
        return timed(count, lambda: client.get("/").content)


async def ask_httpx_async(place: str, count: int) -> float:
    """Ask with httpx in asyncio."""
    import httpx

    from hvsock.integrations.httpx import AsyncTransport

    ours = place.startswith(HVSOCK)
    transport = AsyncTransport(hvsock.HyperVAddress.parse(place)) if ours else httpx.AsyncHTTPTransport(uds=place)
    async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
        return await timed_in_loop(count, lambda: client.get("/"))


async def ask_aiohttp(place: str, count: int) -> float:
    """Ask with aiohttp."""
    import aiohttp

    from hvsock.integrations.aiohttp import Connector

    ours = place.startswith(HVSOCK)
    connector = Connector(hvsock.HyperVAddress.parse(place)) if ours else aiohttp.UnixConnector(place)
    async with aiohttp.ClientSession("http://agent", connector=connector) as client:

        async def call() -> None:
            async with client.get("/") as answer:
                await answer.read()

        return await timed_in_loop(count, call)


async def ask_websockets(place: str, count: int) -> float:
    """Ask with websockets."""
    from websockets.asyncio.client import unix_connect

    from hvsock.integrations.websockets import connect as connect_ours

    uri: Any = "ws://agent/"
    ours = place.startswith(HVSOCK)
    made: Any = connect_ours(uri, hvsock.HyperVAddress.parse(place)) if ours else unix_connect(place, uri)
    async with made as connection:

        async def call() -> None:
            await connection.send(BODY)
            await connection.recv()

        return await timed_in_loop(count, call)


Client = Callable[[str, int], "float | Coroutine[Any, Any, float]"]
CASES: Final[dict[str, tuple[Callable[[str], None], Client]]] = {
    "uvicorn": (serve_uvicorn, ask_plainly),
    "hypercorn": (serve_hypercorn, ask_plainly),
    "cheroot": (serve_cheroot, ask_plainly),
    "httpx, uvicorn": (serve_uvicorn, ask_httpx),
    "httpx in asyncio, uvicorn": (serve_uvicorn, ask_httpx_async),
    "aiohttp at both ends": (serve_aiohttp, ask_aiohttp),
    "websockets at both ends": (serve_websockets, ask_websockets),
}


@contextlib.contextmanager
def serving(case: str, place: str) -> Iterator[None]:
    """Run a server in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__, "--serve", case, place])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                connect(place).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def measure(case: str, rounds: int, count: int) -> tuple[float, float, float]:
    """Return the medians of requests a second over hvsock and over AF_UNIX, and of the rounds' ratios."""
    client = CASES[case][1]
    with tempfile.TemporaryDirectory() as directory:
        os.environ.update(HVSOCK_TRANSPORT="local", HVSOCK_LOCAL_DIR=directory)
        places = ["hvsock://loopback/8000", f"{directory}/plain"]
        found: list[list[float]] = [[], []]
        with serving(case, places[0]), serving(case, places[1]):
            for turn in range(rounds):
                for kind in (0, 1) if turn % 2 else (1, 0):
                    value = client(places[kind], count)
                    found[kind].append(value if isinstance(value, float) else asyncio.run(value))
    ours, plain = (statistics.median(values) for values in found)
    return ours, plain, statistics.median(a / b for a, b in zip(*found, strict=True))


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--requests", type=int, default=1000, help="of a round")
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        CASES[options.serve[0]][0](options.serve[1])
        return
    for case in [options.only] if options.only else CASES:
        ours, plain, ratio = measure(case, options.rounds, options.requests)
        print(f"{case:28} {ours:8.0f} {plain:8.0f} requests/s, hvsock / plain {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
