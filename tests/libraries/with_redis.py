"""redis-py: `hvsock.integrations.redis`, with a stand-in for the server, which speaks enough of its protocol."""

from __future__ import annotations

import socketserver
import time
from typing import Any

import redis

from hvsock import HyperVAddress
from hvsock.integrations.redis import async_client
from hvsock.integrations.redis import client as blocking_client
from libraries.harness import CONNECT, PATIENCE, SLOW, acheck, check, ready, run, vm_of
from libraries.servers import Server


class Handler(socketserver.StreamRequestHandler):
    server: Server

    """A command is an array of strings, ``*2 $3 GET $1 k``, each word a line."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                words.append(self.rfile.read(int(self.rfile.readline()[1:])))
                self.rfile.readline()
            self.wfile.write(self.answer(*words))

    def answer(self, name: bytes, *arguments: bytes) -> bytes:
        match name.upper():
            case b"HELLO":
                return b"%1\r\n+proto\r\n:3\r\n"
            case b"SET":
                self.server.values[arguments[0]] = arguments[1]
                return b"+OK\r\n"
            case b"GET":
                return self.string(self.server.values[arguments[0]])
            case b"BLPOP":
                time.sleep(SLOW)
                return b"_\r\n"
            case b"CLIENT" if arguments[0] == b"INFO":
                return self.string(b"addr=" + vm_of(self.client_address).encode() + b":0")
        return b"-ERR unknown command\r\n"

    def string(self, value: bytes) -> bytes:
        return b"$%d\r\n%s\r\n" % (len(value), value)


def server(how: str, address: HyperVAddress) -> None:
    with Server(address, Handler) as it:
        ready()
        it.serve_forever()


def client(how: str, address: HyperVAddress) -> None:
    if how != "threads":
        run(ask(address), how)
        return
    it: Any  # redis-py's types are of both its clients
    with blocking_client(address, socket_connect_timeout=CONNECT, socket_timeout=CONNECT) as it:

        def echo(body: bytes) -> bytes:
            it.set("key", body)
            return bytes(it.get("key"))

        def who() -> str:
            return str(it.client_info()["addr"]).removesuffix(":0")

        def late() -> None:
            with blocking_client(address, socket_timeout=PATIENCE, retry=None) as impatient:
                impatient.blpop("none")

        check(echo, who, late, redis.TimeoutError)


async def ask(address: HyperVAddress) -> None:
    it: Any
    async with async_client(address, socket_connect_timeout=CONNECT) as it:

        async def echo(body: bytes) -> bytes:
            await it.set("key", body)
            return bytes(await it.get("key"))

        async def who() -> str:
            return str((await it.client_info())["addr"]).removesuffix(":0")

        await acheck(echo, who, lambda: it.blpop("none"))
