"""asyncssh: ``sock=`` of `connect` and `listen`."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncssh

import hvsock
from hvsock import HyperVAddress, aio
from libraries.harness import CONNECT, PATIENCE, SLOW, acheck, forever, ready, run_with_sockets, vm_of


class Server(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


async def process(it: asyncssh.SSHServerProcess[bytes]) -> None:
    if it.command == "cat":
        while data := await it.stdin.read(1 << 16):
            it.stdout.write(data)
            await it.stdout.drain()
    elif it.command == "who":
        it.stdout.write(vm_of(it.get_extra_info("peername")).encode())
    else:
        await asyncio.sleep(SLOW)
    it.exit(0)


async def serve(address: HyperVAddress) -> None:
    await asyncssh.listen(
        sock=hvsock.create_server(address),
        server_factory=Server,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        process_factory=process,
        encoding=None,
    )
    ready()
    await forever()


async def ask(address: HyperVAddress) -> None:
    async with asyncssh.connect(
        sock=await aio.connect(address, timeout=CONNECT), known_hosts=None, username="u", client_keys=None, config=None
    ) as ssh:

        async def command(name: str, **options: Any) -> bytes:
            return bytes((await ssh.run(name, encoding=None, check=True, **options)).stdout)

        async def who() -> str:
            return (await command("who")).decode()

        await acheck(
            lambda body: command("cat", input=body), who, lambda: command("sleep", timeout=PATIENCE / 2), TimeoutError
        )


def server(how: str, address: HyperVAddress) -> None:
    run_with_sockets(serve(address), how)


def client(how: str, address: HyperVAddress) -> None:
    run_with_sockets(ask(address), how)
