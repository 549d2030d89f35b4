"""websockets, by `hvsock.integrations.websockets` and `websockets_sync`.

The first message of a server is the VM's id; it answers ``slow`` late, and others with what they are.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from websockets.sync.client import connect as connect_in_thread

import hvsock
from hvsock import HyperVAddress
from hvsock.integrations import websockets_sync
from hvsock.integrations.websockets import connect, serve
from libraries.harness import CONNECT, PATIENCE, SLOW, acheck, check, ready, run, vm_of


def answer(connection: Any) -> None:
    connection.send(vm_of(connection.remote_address))
    for message in connection:
        if message == "slow":
            time.sleep(SLOW)
        connection.send(message)


async def answer_in_loop(connection: Any) -> None:
    await connection.send(vm_of(connection.remote_address))
    async for message in connection:
        if message == "slow":
            await asyncio.sleep(SLOW)
        await connection.send(message)


async def serve_in_loop(address: HyperVAddress) -> None:
    async with await serve(answer_in_loop, address, max_size=None) as it:
        ready()
        await it.serve_forever()


def ask(address: HyperVAddress) -> None:
    sock = hvsock.create_connection(address, CONNECT)
    with connect_in_thread("ws://host/", sock=sock, max_size=None) as it:
        peer = it.recv()

        def request(message: Any, timeout: float | None = None) -> Any:
            it.send(message)
            return it.recv(timeout)

        check(request, lambda: str(peer), lambda: request("slow", PATIENCE))


async def ask_in_loop(address: HyperVAddress) -> None:
    async with connect("ws://host/", address, max_size=None) as it:
        peer = await it.recv()

        async def request(message: Any) -> Any:
            await it.send(message)
            return await it.recv()

        async def who() -> str:
            return str(peer)

        await acheck(request, who, lambda: request("slow"))


def server(how: str, address: HyperVAddress) -> None:
    if how != "threads":
        run(serve_in_loop(address), how)
        return
    with websockets_sync.serve(answer, address, max_size=None) as it:
        ready()
        it.serve_forever()


def client(how: str, address: HyperVAddress) -> None:
    if how == "threads":
        ask(address)
    else:
        run(ask_in_loop(address), how)
