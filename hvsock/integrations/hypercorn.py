"""ASGI and WSGI applications at a Hyper-V address, by hypercorn: ``serve(app, ("wildcard", 8000))``, HTTP/2 too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, cast

from hypercorn.asyncio.run import worker_serve
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config, Sockets
from hypercorn.utils import wrap_app

import hvsock
from hvsock import aio
from hvsock.integrations._pairs import presented

__all__ = ["serve", "serve_in_loop"]

_Loop = Callable[[], asyncio.AbstractEventLoop]


def serve(app: Any, address: hvsock.Address, *, loop_factory: _Loop | None = None, **options: Any) -> None:
    """Serve until Ctrl-C, on a new event loop; the other arguments and the errors are those of `serve_in_loop`."""
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve_in_loop(app, address, **options))


async def serve_in_loop(app: Any, address: hvsock.Address, *, config: Config | None = None, **options: Any) -> None:
    """Serve an application until cancelled; requests under way then get the config's `graceful_timeout`, in seconds.

    A scope's ``client`` is a pair of the client's VM id, a string, and its service: the port or, where the service id
    stands for none, that id's number, which `uuid.UUID(int=...)` takes.

    Args:
        app: the application, ASGI's or WSGI's.
        address: any (vm, service) pair that `hvsock.as_address` takes.
        config: hypercorn's settings; ``bind``, ``workers``, ``max_requests`` and those of QUIC are ignored.
        **options: as for `hvsock.aio.create_server`: ``transport``, ``connected_suspend``.

    Raises:
        OSError: the address is in use, or as the system says; in an `ExceptionGroup` where only listen() says so.
        ValueError: an unknown transport, or an address that it cannot express.
    """
    config = config or Config()
    wrapped: Any = wrap_app(app, config.wsgi_max_body_size, None)
    context, state, tasks = WorkerContext(None), dict[str, Any](), set[asyncio.Task[None]]()

    async def noted(scope: Any, *args: Any) -> None:
        if scope["type"] == "lifespan":  # what the application stores there, each connection's scope has
            scope["state"] = state
        await wrapped(scope, *args)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast(asyncio.Task[None], asyncio.current_task())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await TCPServer(noted, task.get_loop(), config, context, state, reader, presented(writer))  # type: ignore[arg-type]

    tls = config.create_ssl_context()
    server = await aio.start_server(talk, address, ssl=tls, backlog=config.backlog, start_serving=False, **options)

    async def listen() -> None:
        await server.start_serving()
        await config.log.info("Running on %s (CTRL + C to quit)", server.sockets[0].getsockname())
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            await context.terminated.set()
            if tasks:
                await asyncio.wait(tasks, timeout=config.graceful_timeout)

    try:
        await worker_serve(cast(Any, noted), config, sockets=Sockets([], [], []), shutdown_trigger=listen)
    finally:
        await server.shutdown(0)
