"""Messages over Hyper-V sockets with asyncio: the wire format of `HyperVSocket.send_message`, on every event loop."""

from __future__ import annotations

import asyncio
import errno
import socket
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Self

from hvsock._addresses import Address
from hvsock._sockets import HyperVSocket
from hvsock.aio._connect import connect, end_with_peer, watches_sockets
from hvsock.aio._links import Buffer, Link, OverlappedLink, WatchedLink, to_be_repeated
from hvsock.aio._parser import HEADER
from hvsock.aio._server import BaseServer, check_most, listener
from hvsock.aio._turns import BURST, Turn

__all__ = ["MessageServer", "MessageStream", "connect_messages", "serve_messages"]

_LAST: Final = 2**20  # bytes: what has arrived when a server shuts down is less, whatever its peer sends after that


class MessageStream:
    """A connection that carries messages: bytes with a beginning and an end.

    Each is sent as a length of 4 bytes, big-endian, and its content, so that the peer can be a `HyperVSocket` and its
    message methods. The stream takes over a connected socket, and is used in the event loop that it was made in.

    Several tasks may send and receive at the same time. They take turns in the order in which they call, one of them
    sending and one receiving, as threads do on a `HyperVSocket`: messages are never mixed, and each is received by one
    task. `async for` receives until the peer has ended the stream.

    A call that is cancelled, by `asyncio.timeout` too, loses nothing: what was received of a message is kept for the
    next recv(), and a message that was sent in part is continued by the next send().

    Raises:
        OSError: from every method, as the system says, or EBADF after aclose().
    """

    __slots__ = (
        "__weakref__",
        "_burst",
        "_closed",
        "_due",
        "_left",
        "_link",
        "_receiving",
        "_sending",
        "_sock",
        "_unsent",
    )

    def __init__(self, sock: HyperVSocket) -> None:
        loop = asyncio.get_running_loop()
        self._sock = sock
        sock.setblocking(False)
        end_with_peer(loop, sock)
        kind = WatchedLink if watches_sockets(loop) else OverlappedLink
        self._link: Link = kind(loop, sock)
        self._closed = False
        self._left: int | None = None  # bytes of messages that recv() returns without waiting, and then ends
        self._burst = 0  # messages sent or received without waiting: after BURST, other tasks get a turn of the loop
        self._sending = Turn(loop)
        self._receiving = Turn(loop)
        self._unsent: tuple[bytes, ...] | None = None  # the message of a cancelled send() that had begun
        self._due: bytes | None = None  # the request of a cancelled exchange() whose reply is still to come

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
        cancelled, the message may be sent all the same; never a part of it. Calling it again with the same message
        continues it, and sends it once.

        Raises:
            ValueError: the message is longer than 4,294,967,295 bytes.
        """
        self._check_open()
        buffers = to_be_repeated(buffers)
        self._burst += 1
        if self._sending.is_free and self._unsent is None and self._burst < BURST:
            try:
                return self._link.send(*buffers)
            except BlockingIOError:
                pass
        async with self._sending:
            await self._let_others_run()
            is_repeated = self._is_unsent(*buffers)
            await self._send_rest()
            if not is_repeated:
                await self._send_all(buffers)
        return None

    async def recv(self, max_size: int = 2**24) -> bytes:
        """Return the next message, when the tasks that called before have theirs.

        Raises:
            EOFError: the peer has ended the stream.
            IncompleteReadError: it has ended inside a message.
            OSError: EMSGSIZE, a message of more than `max_size` bytes is announced. It has not been received, and a
                call with a larger `max_size` can still receive it.
        """
        self._burst += 1
        if not self._receiving.take():
            await self._receiving.wait()
        try:
            if self._burst >= BURST:
                await self._let_others_run()
            while (message := self._take(max_size)) is None:
                self._burst = 0
                await self._link.readable()
        finally:
            self._receiving.give()
        if self._left is not None:
            self._left -= len(message) + HEADER
        if self._due is not None and not self._is_unsent(self._due):
            self._due = None
        return message

    async def exchange(self, *buffers: Buffer, max_size: int = 2**24) -> bytes:
        """Send one message and return the next one that arrives, its reply.

        It is the task's turn to receive from before the message is sent until the reply has come. If it is cancelled,
        or the reply is too long, calling it again with the same message continues it: the message is not sent twice.
        Once all of it has been sent, recv() takes the reply, too.

        Raises:
            RuntimeError: another request is partly sent, or its reply is due.
            EOFError, IncompleteReadError, OSError, ValueError: as for send() and recv().
        """
        if not self._receiving.take():
            await self._receiving.wait()
        try:
            self._check_open()
            if self._due is None:
                try:
                    await self.send(*buffers)
                except asyncio.CancelledError:
                    if self._is_unsent(*buffers):  # the reply will come once it is sent
                        self._due = b"".join(buffers)
                    raise
            elif self._due != b"".join(buffers):
                if self._is_unsent(self._due):  # its reply will not come before its rest is sent
                    raise RuntimeError("a request is partly sent; call exchange() again with the same message")
                raise RuntimeError("the reply to another request is due; call recv() to take it")
            elif self._unsent is not None:  # the request, or what was sent after it
                async with self._sending:
                    await self._send_rest()
            try:
                while (reply := self._take(max_size, is_reply=True)) is None:
                    self._burst = 0
                    await self._link.readable()
            except BaseException as exc:
                self._due = None if _ends_stream(exc) else b"".join(buffers)
                raise
            self._due = None
            return reply
        finally:
            self._receiving.give()

    async def send_eof(self) -> None:
        """End the stream in this direction, after all that was sent: the peer receives EOFError."""
        async with self._sending:
            await self._send_rest()
            self._check_open()
            self._link.send_eof()

    async def aclose(self) -> None:
        """Close the connection. Calls that other tasks are in end with an OSError; what was sent still arrives."""
        if not self._closed:
            self._closed = True
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
        """After many messages, give other tasks a turn of the loop: before anything is sent or received."""
        if self._burst >= BURST:
            self._burst = 0
            await asyncio.sleep(0)

    # With the turn to send

    async def _send_rest(self) -> None:
        """Finish the message of a cancelled send()."""
        if self._unsent is not None:
            await self._send_all(self._unsent)
            self._unsent = None

    async def _send_all(self, buffers: tuple[Buffer, ...]) -> None:
        try:
            while True:
                self._check_open()
                try:
                    return self._link.send(*buffers)
                except BlockingIOError:
                    await self._link.writable()
        except asyncio.CancelledError:
            if not self._closed and self._link.is_amid_message():
                self._unsent = tuple(map(bytes, buffers))
            raise

    def _is_unsent(self, *buffers: Buffer) -> bool:
        """Whether this is the message that a cancelled send() has left to be finished."""
        return self._unsent is not None and b"".join(self._unsent) == b"".join(buffers)

    # With the turn to receive

    def _take(self, max_size: int, *, is_reply: bool = False) -> bytes | None:
        """Return the next message if it has arrived."""
        if self._closed or max_size < 0:
            self._check_open()
            raise ValueError("negative size of a message")
        if is_reply or self._left is None:
            return self._link.take(max_size)
        message = self._link.take(max_size) if self._left > 0 else None
        if message is None:
            raise EOFError("the server is shutting down")
        return message

    def _end_input(self) -> None:
        """Let recv() return what has arrived already, and then end."""
        self._left = _LAST
        self._link.wake()


def _ends_stream(exc: BaseException) -> bool:
    """Whether no message can come after this error."""
    return isinstance(exc, EOFError) or (isinstance(exc, OSError) and exc.errno != errno.EMSGSIZE)


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

    _failure = "error in the handler of a message stream"

    def __init__(
        self,
        sock: HyperVSocket,
        backlog: int | None,
        handler: Callable[[MessageStream], Awaitable[None]],
        max_connections: int | None,
    ) -> None:
        super().__init__(sock, backlog, max_connections)
        self._handler = handler
        self._streams = weakref.WeakSet[MessageStream]()

    def close_clients(self) -> None:
        """Let the handlers come to their end.

        recv() returns the messages that have arrived already, and then raises EOFError (`async for` ends); exchange()
        still gets the reply.
        """
        for stream in self._streams:
            stream._end_input()

    def abort_clients(self) -> None:
        """Cancel the handlers."""
        self._cancel_tasks()

    async def _finish(self, *, failed: bool) -> None:
        await self._end()

    def _serve(self, sock: HyperVSocket) -> Coroutine[Any, Any, None]:
        stream = MessageStream(sock)
        self._streams.add(stream)
        return self._handle(stream)

    async def _handle(self, stream: MessageStream) -> None:
        async with stream:
            await self._handler(stream)


async def serve_messages(
    handler: Callable[[MessageStream], Awaitable[None]],
    address: Address | None = None,
    *,
    sock: socket.socket | None = None,
    max_connections: int | None = None,
    backlog: int | None = None,
    transport: str | None = None,
    connected_suspend: bool = False,
    start_serving: bool = True,
) -> MessageServer:
    """Serve a service with streams of messages.

    Args:
        handler: called with a `MessageStream` for each connection, as a task of its own; the stream is closed when it
            returns. What it raises goes to the event loop's exception handler, and ends that connection only.
        address: any (vm, service) pair that `as_address` takes; a host's service usually binds to ``wildcard``.
        sock: instead of an address, a bound or listening socket, which the server takes over: any stream socket.
        max_connections: how many may be open at a time; further ones wait to be accepted. None: any number.
        backlog: connections that may wait to be accepted; by default as many as the system allows.
        transport: the name of a transport; by default `default_transport()`.
        connected_suspend: as in `hvsock.create_server`.
        start_serving: False waits for the server's start_serving() or serve_forever().

    Raises:
        OSError: the address is in use, or as the system says.
        ValueError: an unknown transport, an address that it cannot express, both an address and a socket or neither, or
            `max_connections` below 1.
    """
    check_most(max_connections)
    taken = listener(address, sock, transport, connected_suspend)
    server = MessageServer(taken, backlog, handler, max_connections)
    return await server._started(start_serving)
