"""ASGI applications at a Hyper-V address, by uvicorn: ``serve(app, ("wildcard", 8000))``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any, cast

import uvicorn

import hvsock
from hvsock import aio
from hvsock.integrations._pairs import introduced

__all__ = ["Server", "serve"]


class Server(uvicorn.Server):
    """A `uvicorn.Server` that listens on a Hyper-V address, on asyncio's event loops and uvloop.

    A scope's ``client`` is a pair of the client's VM id, a string, and its service: the port or, where the service id
    stands for none, that id's number, which `uuid.UUID(int=...)` takes.

    Args:
        config: as for `uvicorn.Server`; its host, port, workers and reload are ignored.
        address: any (vm, service) pair that `hvsock.as_address` takes.
        **options: as for `hvsock.aio.create_server`: ``transport``, ``connected_suspend``.
    """

    def __init__(self, config: uvicorn.Config, address: hvsock.Address, **options: Any) -> None:
        super().__init__(config)
        self._address = hvsock.as_address(address)
        self._options = options

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, and then listen."""
        options = {"ssl": self.config.ssl, "backlog": self.config.backlog, **self._options}
        server = await aio.create_server(introduced(self._protocol), self._address, start_serving=False, **options)
        try:
            await super().startup(sockets=[])
            await server.start_serving()
        except BaseException:
            server.close()
            if self.started:
                await self.lifespan.shutdown()
            raise
        self.servers.append(cast(asyncio.Server, server))
        logging.getLogger("uvicorn.error").info("Uvicorn running on %s (Press CTRL+C to quit)", self._address)

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def serve(app: Any, address: hvsock.Address, *, transport: str | None = None, **settings: Any) -> None:
    """Serve an application at an address until Ctrl-C or SIGTERM.

    The arguments are those of `Server` and, as `settings`, of `uvicorn.Config`: ``timeout_graceful_shutdown`` is the
    number of seconds that requests under way get at the end, without a limit if it is not given.

    Raises:
        OSError: the address is in use, or as the system says.
        ValueError: an unknown transport, or an address that it cannot express.
    """
    server = Server(uvicorn.Config(app, **settings), address, transport=transport)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn passes the signal on when it has ended
        server.run()
