"""httpx, by `hvsock.integrations.httpx`; the server is the standard library's."""

from __future__ import annotations

import httpx

from hvsock import HyperVAddress
from hvsock.integrations.httpx import AsyncTransport, Transport
from libraries import http
from libraries.harness import CONNECT, PATIENCE, acheck, check, run

TIMEOUT = httpx.Timeout(CONNECT)


def ask(address: HyperVAddress) -> None:
    with httpx.Client(transport=Transport(address), base_url="http://host", timeout=TIMEOUT) as it:
        check(
            lambda body: it.post("/", content=body).content,
            lambda: it.get("/who").text,
            lambda: it.get("/slow", timeout=PATIENCE),
            httpx.ReadTimeout,
        )


async def ask_in_loop(address: HyperVAddress) -> None:
    async with httpx.AsyncClient(transport=AsyncTransport(address), base_url="http://host", timeout=TIMEOUT) as it:

        async def echo(body: bytes) -> bytes:
            return (await it.post("/", content=body)).content

        async def who() -> str:
            return (await it.get("/who")).text

        await acheck(echo, who, lambda: it.get("/slow"))


def server(how: str, address: HyperVAddress) -> None:
    http.serve(address)


def client(how: str, address: HyperVAddress) -> None:
    if how == "threads":
        ask(address)
    else:
        run(ask_in_loop(address), how)
