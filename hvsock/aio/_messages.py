"""Messages over Hyper-V sockets with asyncio: the wire format of `HyperVSocket.send_message`, on every event loop."""

from __future__ import annotations

import asyncio
import collections
import errno
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Final, Self

from hvsock._addresses import Address
from hvsock._sockets import HyperVSocket, _bind_server
from hvsock.aio._connect import connect, watches_sockets
from hvsock.aio._links import HEADER, Buffer, Link, OverlappedLink, WatchedLink, to_be_repeated
from hvsock.aio._server import BaseServer

__all__ = ["MessageServer", "MessageStream", "connect_messages", "serve_messages"]

_MAX_SIZE: Final = 16 * 2**20  # bytes, as for HyperVSocket.recv_message
_BACKLOG: Final = 100
_LAST: Final = 2**20  # bytes: what has arrived when a server shuts down is less, whatever its peer goes on to send
_BURST: Final = 64  # messages sent or received without waiting, before other tasks get a turn


class _Waiter:
    """What a task awaits that sends or receives: a "Future-like object", as `asyncio.isfuture` has it.

    A future's task goes on in the loop's next turn, which costs as much as the rest of a short message. This one's goes
    on within wake().

    An error leads to the frames it has come through, and they to this and the task, which may keep the error: so that
    no cycle is left, the frames drop the error, and this its task.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_loop", "_outcome", "done")

    _callback: Callable[[_Waiter], object]
    _context: Context
    _outcome: bytes | BaseException | None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self.done = False

    def wake(self, outcome: bytes | Exception | None = None) -> None:
        """Have the task go on at once, with a message, its turn or an error.

        Only for the loop: no task may be running.
        """
        self.done = True
        self._outcome = outcome
        del outcome
        self._context.run(self._callback, self)
        del self._callback

    def wake_soon(self, outcome: BaseException | None = None) -> None:
        """Have the task go on in the loop's next turn, to look again or with an error."""
        self.done = True
        self._outcome = outcome
        self._loop.call_soon(self._callback, self, context=self._context)
        del self._callback

    # What a task asks of a future

    def __await__(self) -> Generator[Self, None, bytes | None]:
        self._asyncio_future_blocking = True
        yield self
        assert not isinstance(self._outcome, BaseException)
        return self._outcome

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop."""
        return self._loop

    def add_done_callback(self, callback: Callable[[_Waiter], object], *, context: Context) -> None:
        """Take the task's; there is no other."""
        self._callback, self._context = callback, context

    def result(self) -> bytes | None:
        """Return the message, or None if the task has to look by itself, or raise the error."""
        if isinstance(self._outcome, BaseException):
            try:
                raise self._outcome
            finally:
                self._outcome = None
        return self._outcome

    def cancel(self, msg: object = None) -> bool:
        """Have the task go on with CancelledError; nothing is handed to it any more."""
        if self.done:
            return False
        self.wake_soon(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True


class _Receiver(_Waiter):
    """Waits for a message."""

    __slots__ = ("max_size",)

    def __init__(self, loop: asyncio.AbstractEventLoop, max_size: int) -> None:
        super().__init__(loop)
        self.max_size = max_size  # of the message that it takes


class _Turn:
    """The turn to send: a lock that tasks take in the order in which they come.

    Tasks that send again and again all come to wait for it, and each time for all others. So one after another goes on
    within the same turn of the loop, where `asyncio.Lock` takes one for each.
    """

    __slots__ = ("_giving", "_loop", "_taken", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._taken = False
        self._waiting = collections.deque[_Waiter]()
        self._giving = False  # _give() will run, or does

    @property
    def is_free(self) -> bool:
        """Whether nobody has it, nor waits for it."""
        return not (self._taken or self._waiting)

    async def __aenter__(self) -> None:
        if not self.is_free:
            waiter = _Waiter(self._loop)
            self._waiting.append(waiter)
            await waiter
        self._taken = True

    async def __aexit__(self, *_: object) -> None:
        self._taken = False
        self._give_soon()

    def _give_soon(self) -> None:
        if self._waiting and not self._taken and not self._giving:
            self._giving = True
            self._loop.call_soon(self._give)

    def _give(self) -> None:
        """Give it to those who wait, as long as each of them gives it back at once; called by the loop."""
        try:
            for _ in range(_BURST):
                if self._taken or not self._waiting:
                    break
                waiter = self._waiting.popleft()
                if not waiter.done:  # it was not cancelled
                    waiter.wake()
        finally:
            self._giving = False
            self._give_soon()


class MessageStream:
    """A connection that carries messages: bytes with a beginning and an end.

    Each is sent as a length of 4 bytes, big-endian, and its content, so that the peer can be a `HyperVSocket` and its
    message methods. The stream takes over a connected socket, and is used in the event loop that it was made in.

    Several tasks may send and receive at the same time. Messages are never mixed: they are sent in the order in which
    send() was called, and each is received by one of the tasks that wait. `async for` receives until the peer has ended
    the stream.

    A call that is cancelled, by `asyncio.timeout` too, loses nothing: what was received of a message is kept for the
    next recv(), and a message that was sent in part is continued by the next send().

    Raises:
        OSError: from every method, as the system says, or EBADF after aclose().
    """

    __slots__ = (
        "_ahead",
        "_burst",
        "_closed",
        "_due",
        "_exchanging",
        "_left",
        "_link",
        "_loop",
        "_receivers",
        "_sock",
        "_turn",
        "_unfinished",
    )

    def __init__(self, sock: HyperVSocket) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        sock.setblocking(False)
        kind = WatchedLink if watches_sockets(self._loop) else OverlappedLink
        self._link: Link = kind(self._loop, sock, self._on_arrival)
        self._closed = False
        self._left: int | None = None  # bytes of messages that recv() returns without waiting, and then ends
        self._burst = 0
        self._receivers = collections.OrderedDict[_Receiver, None]()  # in order; any may be cancelled
        self._turn = _Turn(self._loop)  # of those who send, unless it is free and the message goes at once
        self._unfinished: tuple[bytes, ...] | None = None  # of a cancelled send() that had begun
        self._exchanging = asyncio.Lock()
        self._due: bytes | None = None  # the request of a cancelled exchange() whose reply is still to come
        self._ahead = 0  # messages that come before that reply

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._sock!r}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return "socket", "sockname" or "peername", as an asyncio transport does."""
        try:
            if name == "peername":
                return self._sock.getpeername()
            if name == "sockname":
                return self._sock.getsockname()
        except OSError:
            return default
        return self._sock if name == "socket" else default

    async def send(self, *buffers: Buffer) -> None:
        """Send one message, the concatenation of the buffers, when those before it have been sent.

        Returns as soon as the system has taken all of it, and so waits for a peer that is slow to receive. If it is
        cancelled, the message may be sent all the same; never a part of it. Calling it again with the same message goes
        on with it, and sends it once.

        Raises:
            ValueError: the message is longer than 4,294,967,295 bytes.
        """
        self._check_open()
        buffers = to_be_repeated(buffers)
        self._burst += 1
        if self._turn.is_free and self._unfinished is None and self._burst < _BURST:
            try:
                return self._link.send(*buffers)
            except BlockingIOError:
                pass
        async with self._turn:
            if self._burst >= _BURST:
                await self._let_others_run()
            await self._finish_and_send(buffers)
        return None

    async def recv(self, max_size: int = _MAX_SIZE) -> bytes:
        """Return the next message.

        Raises:
            EOFError: the peer has ended the stream.
            IncompleteReadError: it has ended inside a message.
            OSError: EMSGSIZE, a message of more than `max_size` bytes is announced. It has not been received, and a
                call with a larger `max_size` can still receive it.
        """
        self._check_open()
        self._burst += 1
        if self._burst >= _BURST:
            await self._let_others_run()
        if self._left is not None and self._left <= 0:
            raise _shutting_down()
        message = self._take_now(max_size)
        if message is None:
            message = await self._wait(max_size)
        if self._left is not None:
            self._left -= len(message) + HEADER
        if self._ahead:
            self._ahead -= 1
        else:
            self._due = None
        return message

    async def exchange(self, *buffers: Buffer, max_size: int = _MAX_SIZE) -> bytes:
        """Send one message and return the next one that arrives, its reply. Exchanges go one after another.

        If it is cancelled, or the reply is too long, calling it again with the same message goes on: the message is
        not sent twice. Once all of it has been sent, recv() takes the reply, too.

        Raises:
            RuntimeError: another request is partly sent, or its reply is due.
            EOFError, IncompleteReadError, OSError, ValueError: as for send() and recv().
        """
        async with self._exchanging:
            self._check_open()
            if self._due is None:
                try:
                    await self.send(*buffers)
                except asyncio.CancelledError:
                    if self._is_unfinished(*buffers):  # the reply will come once it is sent
                        self._due = b"".join(buffers)
                        self._ahead = self._waiting_before(None)
                    raise
            elif self._due != b"".join(buffers):
                if self._is_unfinished(self._due):  # its reply will not come before its rest is sent
                    raise RuntimeError("a message is partly sent: exchange() with the same message goes on")
                raise RuntimeError("the reply to another request is due: recv() takes it")
            elif self._unfinished is not None:  # the request, or what was sent after it
                async with self._turn:
                    await self._finish()
            try:
                reply = self._take_now(max_size)
                if reply is None:
                    reply = await self._wait(max_size, request=True)
            except BaseException as exc:
                self._due = None if _ends_stream(exc) else b"".join(buffers)
                raise
            self._due = None
            self._ahead = 0
            return reply

    async def send_eof(self) -> None:
        """End the stream in this direction, after all that was sent: the peer receives EOFError."""
        async with self._turn:
            await self._finish()
            self._check_open()
            self._link.send_eof()

    async def aclose(self) -> None:
        """Close the connection. Calls that other tasks are in end with an OSError; what was sent still arrives."""
        if not self._closed:
            self._closed = True
            self._wake_all()
            await self._link.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.recv()
        except EOFError as exc:
            if type(exc) is EOFError:
                raise StopAsyncIteration from None
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "the message stream is closed")

    async def _let_others_run(self) -> None:
        """Give other tasks a turn, where nothing else may do so: before anything is sent or received."""
        self._burst = 0
        await asyncio.sleep(0)
        self._check_open()

    # Sending

    async def _finish_and_send(self, buffers: tuple[Buffer, ...]) -> None:
        """Send, as the one whose turn it is."""
        goes_on = self._is_unfinished(*buffers)
        await self._finish()
        if goes_on:
            return
        try:
            await self._send_all(buffers)
        except asyncio.CancelledError:
            if not self._closed and self._link.is_amid_message():
                self._unfinished = tuple(map(bytes, buffers))
            raise

    async def _finish(self) -> None:
        if self._unfinished is not None:
            await self._send_all(self._unfinished)
            self._unfinished = None

    async def _send_all(self, buffers: tuple[Buffer, ...]) -> None:
        self._check_open()
        while True:
            try:
                return self._link.send(*buffers)
            except BlockingIOError:
                await self._link.writable()
            self._check_open()

    def _is_unfinished(self, *buffers: Buffer) -> bool:
        """Whether this is the message that a cancelled send() has left to be finished."""
        return self._unfinished is not None and b"".join(self._unfinished) == b"".join(buffers)

    # Receiving

    def _take_now(self, max_size: int) -> bytes | None:
        """Return the next message if nobody waits for one and it has arrived."""
        if max_size < 0:
            raise ValueError("negative size of a message")
        if self._receivers or not self._link.may_have_message:
            return None
        try:
            return self._link.take(max_size)
        except BlockingIOError:
            return None

    async def _wait(self, max_size: int, *, request: bool = False) -> bytes:
        while True:
            self._check_open()
            if self._left is not None and not request:
                try:
                    return self._link.take(max_size)
                except BlockingIOError:
                    raise _shutting_down() from None
            self._burst = 0
            receiver = _Receiver(self._loop, max_size)
            self._receivers[receiver] = None
            self._link.watch()
            try:
                message = await receiver
            except BaseException:
                if receiver in self._receivers:
                    if request:
                        self._ahead = self._waiting_before(receiver)
                    del self._receivers[receiver]
                raise
            if message is not None:
                return message

    def _waiting_before(self, receiver: _Receiver | None) -> int:
        """Return how many receivers still wait before this one, or at all."""
        before = itertools.takewhile(lambda other: other is not receiver, self._receivers)
        return sum(not other.done for other in before)

    def _on_arrival(self) -> None:
        """Hand what has arrived to those who wait; called by the loop."""
        if not self._receivers:
            self._link.unwatch()
        for handed in range(len(self._receivers)):
            if handed and not (self._receivers and self._link.may_have_message):
                break
            receiver, _ = self._receivers.popitem(last=False)
            if receiver.done:
                continue
            outcome: bytes | Exception
            try:
                outcome = self._link.take(receiver.max_size)
            except BlockingIOError:
                self._receivers[receiver] = None
                self._receivers.move_to_end(receiver, last=False)
                self._link.watch()
                return
            except Exception as exc:
                outcome = exc
            receiver.wake(outcome)
            del outcome
        if self._receivers:
            self._link.watch()
            if self._link.may_have_message:
                self._loop.call_soon(self._on_arrival)

    def _wake_all(self) -> None:
        while self._receivers:
            receiver, _ = self._receivers.popitem(last=False)
            if not receiver.done:
                receiver.wake_soon()

    def _end_input(self) -> None:
        """Let recv() return what has arrived already, and then end."""
        self._left = _LAST
        self._wake_all()


def _ends_stream(exc: BaseException) -> bool:
    """Whether no message can come after this error."""
    return isinstance(exc, EOFError) or (isinstance(exc, OSError) and exc.errno != errno.EMSGSIZE)


def _shutting_down() -> EOFError:
    return EOFError("the server is shutting down")


async def connect_messages(
    address: Address,
    *,
    timeout: float | None = None,
    transport: str | None = None,
    retry_for: float = 0.0,
) -> MessageStream:
    """Connect to a service and return a stream of messages.

    Args:
        address: any (vm, service) pair that `as_address` takes.
        timeout: seconds that an attempt to connect may take, None for the system's limit.
        transport: the name of a transport; by default `default_transport()`.
        retry_for: seconds in which errors that pass by themselves are met with another attempt, as in
            `hvsock.create_connection`.

    Raises:
        TimeoutError: no answer in time.
        OSError: as the system says.
        ValueError: an unknown transport, an address that it cannot express, or a number out of range.
    """
    return MessageStream(await connect(address, timeout=timeout, transport=transport, retry_for=retry_for))


class MessageServer(BaseServer):
    """What `serve_messages` returns. Leaving ``async with`` shuts it down."""

    def __init__(
        self,
        sock: HyperVSocket,
        backlog: int,
        handler: Callable[[MessageStream], Awaitable[None]],
        max_connections: int | None,
    ) -> None:
        super().__init__(sock, backlog, max_connections)
        self._handler = handler
        self._streams: dict[HyperVSocket, MessageStream] = {}
        self._shutdowns: set[asyncio.Future[None]] = set()  # that are not over

    async def shutdown(self, timeout: float | None = 10.0) -> None:
        """Close the server, let the handlers come to their end, and cancel those that are not there in time.

        A handler's recv() returns the messages that have arrived already, and then raises EOFError (`async for` ends);
        its exchange() still gets the reply.

        Args:
            timeout: seconds; None cancels none.
        """
        over = self._loop.create_future()
        self._shutdowns.add(over)
        try:
            self.close()
            self.close_clients()
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=timeout)
                for task in late:
                    task.cancel()
            await self.wait_closed()
        finally:
            self._shutdowns.remove(over)
            over.set_result(None)

    def close_clients(self) -> None:
        """Let the handlers come to their end, as shutdown() does."""
        for stream in self._streams.values():
            stream._end_input()

    def abort_clients(self) -> None:
        """Cancel the handlers."""
        self._cancel_tasks()

    async def _finish(self) -> None:
        while self._shutdowns:  # which may give the handlers more time
            await asyncio.wait(self._shutdowns)
        await self.shutdown()

    def _serve(self, sock: HyperVSocket) -> Coroutine[Any, Any, None]:
        stream = self._streams[sock] = MessageStream(sock)
        return self._handle(sock, stream)

    async def _handle(self, sock: HyperVSocket, stream: MessageStream) -> None:
        try:
            await self._handler(stream)
        except Exception as exc:
            self._loop.call_exception_handler(
                {"message": "error in the handler of a message stream", "exception": exc, "socket": sock}
            )
        finally:
            await stream.aclose()

    def _served(self, sock: HyperVSocket, connection: object, task: asyncio.Task[None]) -> None:
        super()._served(sock, connection, task)
        del self._streams[sock]


async def serve_messages(
    handler: Callable[[MessageStream], Awaitable[None]],
    address: Address,
    *,
    max_connections: int | None = None,
    backlog: int = _BACKLOG,
    transport: str | None = None,
    connected_suspend: bool = False,
    start_serving: bool = True,
) -> MessageServer:
    """Serve a service with streams of messages.

    Args:
        handler: called with a `MessageStream` for each connection, as a task of its own; the stream is closed when it
            returns. What it raises goes to the event loop's exception handler, and ends that connection only.
        address: any (vm, service) pair that `as_address` takes; a host's service usually binds to ``wildcard``.
        max_connections: how many may be open at a time; further ones wait to be accepted. None: any number.
        backlog: connections that may wait to be accepted.
        transport: the name of a transport; by default `default_transport()`.
        connected_suspend: as in `hvsock.create_server`.
        start_serving: False waits for the server's start_serving() or serve_forever().

    Raises:
        OSError: the address is in use, or as the system says.
        ValueError: an unknown transport, an address that it cannot express, or `max_connections` below 1.
    """
    if max_connections is not None and max_connections < 1:
        raise ValueError(f"max_connections must be at least 1, not {max_connections!r}")
    sock = _bind_server(address, transport, connected_suspend)
    server = MessageServer(sock, backlog, handler, max_connections)
    try:
        if start_serving:
            await server.start_serving()
    except BaseException:
        server.close()
        raise
    return server
