"""aiohttp, by `hvsock.integrations.aiohttp`."""

from __future__ import annotations

import asyncio
import io

import aiohttp
from aiohttp import web

from hvsock import HyperVAddress
from hvsock.integrations.aiohttp import Connector, Site
from libraries.harness import SLOW, acheck, forever, ready, run


async def answer(request: web.Request) -> web.Response:
    if request.path == "/who":
        return web.Response(text=request.remote)
    if request.path == "/slow":
        await asyncio.sleep(SLOW)
    return web.Response(body=await request.read())


async def serve(address: HyperVAddress) -> None:
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await Site(runner, address).start()
    ready()
    await forever()


async def ask(address: HyperVAddress) -> None:
    async with aiohttp.ClientSession("http://host", connector=Connector(address)) as it:

        async def echo(body: bytes) -> bytes:
            async with it.post("/", data=io.BytesIO(body)) as response:
                return await response.read()

        async def get(path: str) -> str:
            async with it.get(path) as response:
                return await response.text()

        await acheck(echo, lambda: get("/who"), lambda: get("/slow"))


def server(how: str, address: HyperVAddress) -> None:
    run(serve(address), how)


def client(how: str, address: HyperVAddress) -> None:
    run(ask(address), how)
