"""How tasks wait for each other and for their socket: a future that wakes its task at once, and turns."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Final, Self

__all__ = ["BURST", "Turn", "Waiter"]

BURST: Final = 64  # turns, or messages, in one turn of the loop


class Waiter:
    """What one task awaits: a "Future-like object", as `asyncio.isfuture` has it.

    The task of a `asyncio.Future` runs in the loop's next turn, which costs as much as the rest of a short message.
    This one's runs within wake().
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_loop", "done")

    _callback: Callable[[Waiter], object]
    _context: Context

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self.done = False

    def wake(self) -> None:
        """Run the task, unless it was woken before. Only for callbacks of the loop: no other task may be running."""
        if not self.done:
            self.done = True
            self._context.run(self._callback, self)
            del self._callback  # an error of the task leads to this frame: no cycle

    def wake_soon(self) -> None:
        """Have the task run in the loop's next turn, unless it was woken before."""
        self._loop.call_soon(self.wake)

    # What a task asks of a future

    def __await__(self) -> Generator[Self, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop."""
        return self._loop

    def add_done_callback(self, callback: Callable[[Waiter], object], *, context: Context) -> None:
        """Take the task's; there is no other."""
        self._callback, self._context = callback, context

    def result(self) -> None:
        """There is none."""

    def cancel(self, msg: object = None) -> bool:
        """Have the task run; False says that it raises the CancelledError by itself."""
        self.wake_soon()
        return False


class Turn:
    """The right to send on a stream, or to receive: a lock that tasks take in the order in which they come.

    Tasks that do so again and again all come to wait for it, and each time for all others. So one after another runs
    within one turn of the loop, where `asyncio.Lock` takes one for each.
    """

    __slots__ = ("_giving", "_loop", "_taken", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._taken = False
        self._waiting: collections.OrderedDict[Waiter, None] = collections.OrderedDict()  # any may be cancelled
        self._giving = False  # _give() will run, or does

    @property
    def is_free(self) -> bool:
        """Whether no task has it or waits for it."""
        return not (self._taken or self._waiting)

    def take(self) -> bool:
        """Take it if it is free."""
        if self._taken or self._waiting:
            return False
        self._taken = True
        return True

    async def wait(self) -> None:
        """Take it after the tasks that came before."""
        waiter = Waiter(self._loop)
        self._waiting[waiter] = None
        try:
            await waiter
        except BaseException:
            self._waiting.pop(waiter, None)
            raise
        self._taken = True

    def give(self) -> None:
        """Give it to the next task."""
        self._taken = False
        if self._waiting:
            self._give_soon()

    async def __aenter__(self) -> None:
        if not self.take():
            await self.wait()

    async def __aexit__(self, *_: object) -> None:
        self.give()

    def _give_soon(self) -> None:
        if self._waiting and not self._taken and not self._giving:
            self._giving = True
            self._loop.call_soon(self._give)

    def _give(self) -> None:
        """Give it to the waiting tasks, as long as each returns it at once; called by the loop."""
        try:
            for _ in range(BURST):
                if self._taken or not self._waiting:
                    break
                waiter, _none = self._waiting.popitem(last=False)
                waiter.wake()
        finally:
            self._giving = False
            self._give_soon()
