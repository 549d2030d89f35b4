"""asyncssh: ``tunnel=`` of `connect` and `listen` is what makes its connections, here by `hvsock.aio`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncssh

from hvsock import Address, HyperVAddress, aio
from libraries.harness import CONNECT, PATIENCE, SLOW, acheck, forever, ready, run, vm_of


class Tunnel:
    """Carries SSH over Hyper-V sockets: the address is given here, and what asyncssh is told otherwise is a name."""

    def __init__(self, address: Address) -> None:
        self.address = address

    async def create_connection(self, factory: Callable[[], Any], host: str, port: int) -> Any:
        return await aio.create_connection(factory, self.address, timeout=CONNECT)

    async def create_server(self, factory: Callable[[str, int], Any], host: str, port: int) -> Any:
        return await aio.create_server(lambda: factory(host, port), self.address)


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
        "host",
        tunnel=Tunnel(address),
        server_factory=Server,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        process_factory=process,
        encoding=None,
    )
    ready()
    await forever()


async def ask(address: HyperVAddress) -> None:
    async with asyncssh.connect(
        "vm", tunnel=Tunnel(address), known_hosts=None, username="u", client_keys=None, config=None
    ) as ssh:

        async def command(name: str, **options: Any) -> bytes:
            return bytes((await ssh.run(name, encoding=None, check=True, **options)).stdout)

        async def who() -> str:
            return (await command("who")).decode()

        await acheck(
            lambda body: command("cat", input=body), who, lambda: command("sleep", timeout=PATIENCE / 2), TimeoutError
        )


def server(how: str, address: HyperVAddress) -> None:
    run(serve(address), how)


def client(how: str, address: HyperVAddress) -> None:
    run(ask(address), how)
