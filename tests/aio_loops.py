"""The event loops that `hvsock.aio` is tested on, and a runner that finds what a test has left behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib.util
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
import utils
from utils import LIMIT, TICK, WINDOWS

from hvsock import aio
from hvsock.aio import _connect, _loop, _messages, _server

T = TypeVar("T")


def _kinds() -> Iterator[str]:
    yield "selector"
    if WINDOWS:
        yield "proactor"
    else:
        yield "overlapped"  # what is the Proactor's, on a loop that has the same methods
    for name in ("uvloop", "winloop"):  # each is of one platform
        if importlib.util.find_spec(name):
            yield name
    if sys.version_info >= (3, 12):
        yield "eager"


def _new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind in ("uvloop", "winloop"):
        loop: asyncio.AbstractEventLoop = importlib.import_module(kind).new_event_loop()
        return loop
    if kind == "proactor" and sys.platform == "win32":
        return asyncio.ProactorEventLoop()
    if kind == "eager":
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
        return loop
    if kind.startswith("own"):
        return aio.new_event_loop(importlib.import_module("uvloop").Loop if kind == "own uvloop" else None)
    return asyncio.SelectorEventLoop()


class Bed:
    """An event loop over a transport."""

    def __init__(self, kind: str, transport: str) -> None:
        self.kind = kind
        self.transport = transport
        #: Whether the loop tells of transfers that are over, and not of sockets that are ready.
        self.completes = kind.endswith(("proactor", "overlapped")) or (WINDOWS and kind in ("eager", "own"))
        #: What the loop's exception handler was told; a test takes what it expects.
        self.reported: list[dict[str, Any]] = []
        self.address = ("loopback", utils.new_service())

    def run(self, main: Callable[[], Awaitable[T]], *, debug: bool | None = None) -> T:
        """Run a coroutine function within the time limit, and check that no task, thread or descriptor is left.

        The debug mode, which makes a loop several times slower, is by default that of the kind "selector" on POSIX.
        """
        debug = self.kind == "selector" and not WINDOWS if debug is None else debug
        with asyncio.Runner(loop_factory=lambda: _new_loop(self.kind)) as runner:
            runner.run(asyncio.sleep(0))  # libuv keeps what its first loop has opened
        descriptors = 0 if WINDOWS else utils.open_descriptors()
        threads = threading.active_count()
        with asyncio.Runner(debug=debug, loop_factory=lambda: _new_loop(self.kind)) as runner:
            result = runner.run(self._supervise(main))
        gc.collect()
        assert self.reported == []
        assert threading.active_count() == threads
        if not WINDOWS:
            assert utils.open_descriptors() == descriptors
        return result

    async def _supervise(self, main: Callable[[], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = 1000 * LIMIT  # it only writes to the log
        loop.set_exception_handler(lambda _, context: self.reported.append(context))
        async with asyncio.timeout(LIMIT):
            result = await main()
        for _ in range(10):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    # The functions of hvsock.aio, with this bed's transport and address

    async def open_connection(self, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await aio.open_connection(self.address, transport=self.transport, timeout=LIMIT, **kwargs)

    async def start_server(self, callback: Any, **kwargs: Any) -> aio.Server:
        return await aio.start_server(callback, self.address, transport=self.transport, **kwargs)

    async def create_connection(self, factory: Any, **kwargs: Any) -> Any:
        return await aio.create_connection(factory, self.address, transport=self.transport, timeout=LIMIT, **kwargs)

    async def create_server(self, factory: Any, **kwargs: Any) -> aio.Server:
        return await aio.create_server(factory, self.address, transport=self.transport, **kwargs)

    async def connect_messages(self, **kwargs: Any) -> aio.MessageStream:
        return await aio.connect_messages(self.address, transport=self.transport, timeout=LIMIT, **kwargs)

    async def serve_messages(self, handler: Any, **kwargs: Any) -> aio.MessageServer:
        return await aio.serve_messages(handler, self.address, transport=self.transport, **kwargs)

    @contextlib.asynccontextmanager
    async def message_pair(self) -> AsyncIterator[tuple[aio.MessageStream, aio.MessageStream]]:
        """Lend two connected streams; the first is the one that dialled."""
        accepted: asyncio.Future[aio.MessageStream] = asyncio.get_running_loop().create_future()
        done = asyncio.Event()

        async def handler(stream: aio.MessageStream) -> None:
            accepted.set_result(stream)
            await done.wait()

        async with await self.serve_messages(handler), await self.connect_messages() as stream:
            try:
                yield stream, await accepted
            finally:
                done.set()


KINDS = tuple(_kinds())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function in the loop of its `bed`."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    arguments["bed"].run(functools.partial(pyfuncitem.obj, **arguments))
    return True


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of event loop."""
    return str(request.param)


@pytest.fixture
def bed(kind: str, transport: str, monkeypatch: pytest.MonkeyPatch) -> Bed:
    """Every kind of event loop, over every transport."""
    if kind.endswith("overlapped"):
        for module in (_connect, _loop, _messages, _server):
            monkeypatch.setattr(module, "watches_sockets", lambda _loop: False)
    return Bed(kind, transport)


@contextlib.contextmanager
def pending_connects(transport: str, address: Any) -> Iterator[Any]:
    """Have connects stay pending; gives the address to connect to."""
    with contextlib.ExitStack() as stack:
        if transport == "local":
            yield utils.full_listener(transport, stack).getsockname()
        elif transport == "hyperv":
            hvsim = pytest.importorskip("hvsim", reason="only the simulated provider can keep a connect pending")
            stack.enter_context(utils.listen(transport, address))
            stack.enter_context(hvsim.faults("connecting=pending*0"))
            yield address
        else:
            pytest.skip("a connect over the vsock loopback is refused or done at once")


def allow_descriptors(wanted: int) -> None:
    """Raise this process's limit of descriptors as far as that is allowed."""
    with contextlib.suppress(ImportError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(hard, wanted), hard))


async def ticks(count: int) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    while not condition():
        await asyncio.sleep(TICK / 10)
