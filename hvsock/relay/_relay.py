"""The relay: accepting clients, serving each connection, and shutting down."""

from __future__ import annotations

import contextlib
import enum
import errno
import functools
import logging
import math
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Self, TypeAlias

from hvsock._hvsock import Socket
from hvsock._retries import Retries
from hvsock._transports.vsock import VsockTransport
from hvsock.relay._attempt import Attempt, Wake, deadline_after, time_left, wait_for
from hvsock.relay._endpoints import parse
from hvsock.relay._engine import NO_DESCRIPTORS, Engine, error_text, warn_of_accept
from hvsock.relay._listeners import Listener
from hvsock.relay._pipes import PipeEnd

if sys.platform != "win32":
    from hvsock._hvsock import Pump
else:
    Pump = Any  # an engine serves all that there is

__all__ = ["Counters", "Relay"]

logger = logging.getLogger("hvsock.relay")

_FIRST_PAUSE: Final = 0.05  # seconds after an accept that failed, doubled each time
_LONGEST_PAUSE: Final = 1.0
_SLICE: Final = 0.1  # seconds: Ctrl-C interrupts neither the wait for a lock on Windows nor the engine's
_LONGEST_SLICE: Final = 3600.0  # seconds, for other threads, which do not get it
# While a target starts: the file of its socket is missing; connections that ended have not returned their descriptors.
_NOT_YET: Final = NO_DESCRIPTORS | {errno.ENOENT}
_LINGER_NOT: Final = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)  # close() resets
_AF_VSOCK: Final = VsockTransport.family

_Connected: TypeAlias = socket.socket | PipeEnd


class Counters(NamedTuple):
    """Numbers of a relay so far."""

    open: int
    """Connections that exist now, including those whose target is still being connected."""
    total: int
    """Connections that were accepted."""
    refused: int
    """Of these, closed at once, since `max_connections` were open or the system gave no thread."""
    failed: int
    """Of these, closed because the target was not reached."""
    aborted: int
    """Of these, ended by an error, `idle_timeout` or `Relay.stop`, and not by the ends of both streams."""
    bytes_to_target: int
    """Bytes moved from clients to targets."""
    bytes_to_client: int
    """Bytes moved from targets to clients."""


class _State(enum.StrEnum):
    NEW = "new"
    RUNNING = "running"
    CLOSED = "no longer listening"
    STOPPING = "stopping"
    STOPPED = "stopped"


class _Parts(NamedTuple):
    """Resources of a started relay besides its threads."""

    listener: Listener
    closing: Wake
    aborting: Wake


class Relay:
    """Listens on one address and connects each client to another.

    The end of a stream is passed on by itself, so that a client may end its half and still read the answer. Nothing is
    read from one side before the other has taken what was read before. A reset of one side resets the other, or closes
    it where its kind of socket knows no reset. What happens to a single connection is logged (logger ``hvsock.relay``)
    and counted, and does not end the relay.

    As a context manager it starts, and at the end of the block stops at once. Methods may be called from any thread.
    A connection has two descriptors. One thread in C for each processor serves all of them without the GIL, except
    those of hybrid vsock and of the transport local, which have a thread each, as all have on other systems than
    Linux, Windows, macOS and FreeBSD.

    Args:
        listen: the address to listen on; TCP's port 0 is any free one.
        connect: the target.
        connect_timeout: seconds that reaching the target may take, its name's resolution aside; None for the system's
            own limit.
        idle_timeout: seconds without data in either direction after which a connection is closed; None for never.
        max_connections: how many may be open at a time; further ones are closed as soon as they are accepted.
        retry_for: seconds for which a client waits for a target that is not there yet, as while its VM or its service
            starts: what refuses, is unreachable or does not answer is tried again. Each attempt may take
            `connect_timeout`; with None, 2 seconds. A client that waits has a thread.

    Raises:
        ValueError: an address is malformed or of no use there, or another argument is out of range.
    """

    def __init__(
        self,
        listen: str,
        connect: str,
        *,
        connect_timeout: float | None = 10.0,
        idle_timeout: float | None = None,
        max_connections: int = 1000,
        retry_for: float = 0.0,
    ) -> None:
        self._source = parse(listen)
        self._target = parse(connect)
        if (reason := self._target.no_target()) is not None:
            raise ValueError(f"{connect!r} can be listened on, but not connected to: {reason}")
        for name, value in (("connect_timeout", connect_timeout), ("idle_timeout", idle_timeout)):
            if value is not None and not (value > 0.0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a number of seconds above 0, or None, not {value!r}")
        if max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {max_connections!r}")
        Retries(retry_for)  # checks it
        self._connect_timeout = connect_timeout
        self._retry_for = retry_for
        self._idle_timeout = idle_timeout
        self._max_connections = max_connections
        self._accounting = threading.Lock()  # held while descriptors change hands
        self._changed = threading.Condition()  # guards what follows
        self._state = _State.NEW
        self._parts: _Parts | None = None  # once started
        self._engine: Engine | None = None  # while running, if it can serve;
        self._pump: Pump | None = None  # ... otherwise this
        self._counted = (0,) * len(Counters._fields)  # by these two, afterwards
        self._is_accepting = False  # the thread that does; it has the listener
        self._reaching: set[Socket] = set()  # what is connecting, to be closed by stop()
        self._running = 0  # threads at work
        self._done: list[threading.Thread] = []  # threads to be joined
        self._open = self._total = self._refused = self._failed = self._aborted = 0

    def __repr__(self) -> str:
        """Return the two addresses and the state."""
        return f"<Relay {self.address} -> {self.target}, {self._state}>"

    @property
    def address(self) -> str:
        """The address that is listened on; once started, with the port that was chosen for TCP's port 0."""
        return self._source.text if self._parts is None else self._parts.listener.text

    @property
    def target(self) -> str:
        """The address that clients are connected to."""
        return self._target.text

    @property
    def counters(self) -> Counters:
        """The numbers so far; they stay after the end."""
        with self._changed:
            own = self._open, self._total, self._refused, self._failed, self._aborted, 0, 0
            return Counters(*map(sum, zip(own, self._moved(), strict=True)))

    def _moved(self) -> tuple[int, ...]:
        """Return the part of the counters that is not counted here."""
        if self._engine is not None:
            return self._engine.counters
        if self._pump is not None:
            return (0, 0, 0, 0, 0, *self._pump.transferred)
        return self._counted

    def start(self) -> None:
        """Listen, and serve in threads of its own.

        Raises:
            OSError: the address is in use, a transport is not available here, or as the system says.
            ValueError: the transport cannot express the address, or a host's name is none.
            RuntimeError: it was started before; a relay runs once.
        """
        with self._changed:
            if self._state is not _State.NEW:
                raise RuntimeError("a relay runs once; make another one")
            for endpoint in (self._source, self._target):
                if (reason := endpoint.unavailable()) is not None:
                    raise OSError(errno.EAFNOSUPPORT, f"{endpoint.text}: {reason}")
            with contextlib.ExitStack() as undo:
                closing = undo.enter_context(Wake())
                aborting = undo.enter_context(Wake())
                try:
                    listener = undo.enter_context(self._source.listen(closing))
                except (OSError, ValueError) as exc:
                    exc.add_note(f"listen on {self._source.text}")
                    raise
                engine = self._start_engine(listener, undo) if Engine.serves(self._source, self._target) else None
                pump = Pump() if engine is None else None  # after what may fail: the error's trace would keep it open
                if engine is None or not engine.accepts:
                    thread = threading.Thread(target=self._accept, args=(listener,), name="relay-accept", daemon=True)
                    thread.start()  # it waits for the lock
                    self._running = 1
                    self._is_accepting = True
                undo.pop_all()
            self._parts = _Parts(listener, closing, aborting)
            self._pump = pump
            self._engine = engine
            self._state = _State.RUNNING
        logger.info("listening on %s for %s", self.address, self.target)

    def _start_engine(self, listener: Listener, undo: contextlib.ExitStack) -> Engine:
        engine = Engine(
            listener,
            self._target,
            connects=self._retry_for == 0.0,
            connect_timeout=self._connect_timeout,
            idle_timeout=self._idle_timeout,
            max_connections=self._max_connections,
        )
        undo.callback(engine.end)
        engine.start()
        return engine

    def serve_forever(self) -> None:
        """Start unless started, and return when another thread's stop() has ended everything.

        Ctrl-C raises KeyboardInterrupt here and leaves the relay as it is: call stop(), or leave the ``with`` block.

        Raises:
            OSError, ValueError: as start().
        """
        if self._state is _State.NEW:
            self.start()
        if self._parts is not None:
            self._parts.closing.wait()
        self._wait(lambda: self._state is _State.STOPPED, None)

    def stop_listening(self) -> None:
        """Stop listening, and return once the listener is closed; connections continue.

        From then on clients are refused, and those that waited to be accepted are cut off; behind the original of an
        inherited listener they wait. The address can be listened on again at once (of TCP on Windows: once the
        connections that came by it have ended). What was accepted, `counters` and `serve_forever` continue until
        `stop`. Calling it again, or after `stop`, does nothing; a relay that was never started cannot be started any
        more.
        """
        self._stop_listening(_State.CLOSED)

    def stop(self, timeout: float | None = 0.0) -> None:
        """Stop listening, let connections continue for `timeout` seconds, and abort those that have not ended.

        Returns when all threads have ended and all descriptors are closed; the resolution of a name cannot be cut
        short. With None, connections have as long as they take; another call can still cut that short. A relay that
        has stopped stays so, and one that was never started cannot be started any more.

        Raises:
            ValueError: `timeout` is negative.
        """
        if timeout is not None and not timeout >= 0.0:
            raise ValueError(f"timeout must be a number of seconds, at least 0, or None, not {timeout!r}")
        if (parts := self._stop_listening(_State.STOPPING)) is None:
            return
        engine = self._engine
        if not self._drain(engine, timeout):
            with self._changed:
                if self._pump is not None:
                    self._pump.stop()
                parts.aborting.set()
                for sock in self._reaching:
                    sock.close()
            if engine is not None:
                engine.abort()
            self._drain(engine, None)
        self._join()
        if engine is not None:
            engine.end()
        with self._changed:
            if self._state is _State.STOPPED:  # another stop() was faster
                return
            self._counted = self._moved()
            self._pump = self._engine = None  # and their descriptors
            parts.closing.close()
            parts.aborting.close()
            self._state = _State.STOPPED
            self._changed.notify_all()

    def _stop_listening(self, state: _State) -> _Parts | None:
        """Close the listener, unless that has been done, and enter the state; None if there are no parts any more."""
        with self._changed:
            parts = self._parts
            if parts is None or self._state is _State.STOPPED:
                self._state = _State.STOPPED
                return None
            is_first = self._state is _State.RUNNING
            if self._state is not _State.STOPPING:
                self._state = state
            parts.closing.set()
            self._changed.notify_all()
            engine = self._engine
        if engine is not None:
            engine.stop_listening()
            if engine.accepts:
                parts.listener.close()
        parts.listener.interrupt()
        self._wait(lambda: not self._is_accepting, None)
        if is_first:
            logger.info("stopped listening on %s", self.address)
        return parts

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # Ctrl-C, when all of it runs already
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait for something that `_changed` guards, and return whether it came."""
        deadline = deadline_after(timeout)
        with self._changed:
            while not condition():
                left = time_left(deadline)
                if left is not None and left <= 0.0:
                    return False
                self._changed.wait(_slice_of(left))
        return True

    def _drain(self, engine: Engine | None, timeout: float | None) -> bool:
        """Wait until there is no connection any more, and return whether that is so."""
        deadline = deadline_after(timeout)
        if not self._wait(lambda: self._running == 0, timeout):
            return False
        while engine is not None:
            left = time_left(deadline)
            if engine.wait(_slice_of(left)):
                break
            if left is not None and left <= 0.0:
                return False
        return True

    def _join(self) -> None:
        with self._changed:
            done, self._done = self._done, []
        for thread in done:
            thread.join()

    # In the threads.

    def _is_running(self) -> bool:
        with self._changed:
            return self._state is _State.RUNNING

    def _leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._done.append(threading.current_thread())
            self._changed.notify_all()

    def _accept(self, listener: Listener) -> None:
        pause = _FIRST_PAUSE
        try:
            with listener:
                while self._is_running():
                    running = self._running
                    try:
                        client, name, place = self._next_client(listener)
                    except ConnectionError:
                        pass  # about this peer only, which is already gone; the next one may be waiting
                    except OSError as exc:
                        if self._is_running():
                            warn_of_accept(self.address, exc)
                        self._wait(functools.partial(self._has_news, running), pause)
                        pause = min(2 * pause, _LONGEST_PAUSE)
                    else:
                        self._admit(client, name, place)
                        pause = _FIRST_PAUSE
        finally:
            with self._changed:
                self._is_accepting = False
            self._leave()

    def _has_news(self, running: int) -> bool:
        """Whether stop() was called, or a connection has ended and returned resources that the system lacked."""
        return self._state is not _State.RUNNING or self._running < running

    def _next_client(self, listener: Listener) -> tuple[_Connected, str, socket.socket]:
        """Accept only while a descriptor for the target is reserved; otherwise leave the client in the backlog.

        What keeps it is a socket of no use, the last item: which kind the target needs may take a name server to know.
        It is a copy of one that is there, since a new one's family could be one that this process must not use.
        """
        assert self._parts is not None
        with contextlib.ExitStack() as undo:
            with self._accounting:
                place: socket.socket = undo.enter_context(self._parts.closing.reader.dup())
                with place.dup(), place.dup():
                    pass  # there is one for the client, and one to look a name up with
            client, name = listener.accept()
            undo.pop_all()
        return client, name, place

    def _admit(self, client: _Connected, name: str, place: socket.socket) -> None:
        self._join()  # of threads that are about to end
        with self._changed:
            self._total += 1
            is_open = self.counters.open  # the engine's too, which it was given by adopt()
            refusal = None if is_open < self._max_connections else f"{self._max_connections} connections are open"
            if refusal is None:
                thread = threading.Thread(
                    target=self._serve, args=(client, name, place), name="relay-connection", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as exc:
                    refusal = str(exc)
            if refusal is None:
                self._open += 1
                self._running += 1
            else:
                self._refused += 1
        if refusal is not None:
            logger.warning("%s: refused: %s", name, refusal)
            _abort(client)
            place.close()

    def _serve(self, client: _Connected, name: str, place: socket.socket) -> None:
        try:
            self._connect_and_pump(client, name, place)
        finally:
            self._leave()

    def _connect_and_pump(self, client: _Connected, name: str, place: socket.socket) -> None:
        target: _Connected | None = None
        ended = False
        try:
            target = self._reach(place)
            if self._engine is not None:
                with self._changed:  # which counts it from now on
                    self._engine.adopt(client.fileno(), target.fileno(), name)
                    self._open -= 1
                client.detach()
                target.detach()
                return
            logger.debug("%s: connected to %s", name, self.target)
            assert self._pump is not None
            ended = self._pump.run(client.fileno(), target.fileno(), self._idle_timeout, self._target.hold)
            logger.debug("%s: %s", name, "ended" if ended else "aborted by stop()")
        except (OSError, ValueError) as exc:
            if target is None:
                assert self._parts is not None
                why = "the relay stops" if self._parts.aborting.is_set else error_text(exc)
                logger.warning("%s: %s was not reached: %s", name, self.target, why)
            else:
                logger.info("%s: aborted: %s", name, error_text(exc))
        finally:
            handed_over = client.fileno() < 0
            with self._changed:
                self._open -= not handed_over
                self._failed += target is None
                self._aborted += target is not None and not (ended or handed_over)
            for sock in (client, target):
                if sock is not None:
                    _close(sock) if ended else _abort(sock)

    def _reach(self, place: socket.socket) -> _Connected:
        assert self._parts is not None
        aborting = self._parts.aborting
        room = functools.partial(self._room, place)
        retries = Retries(self._retry_for)
        with place:
            while True:
                deadline = deadline_after(retries.limit(self._connect_timeout))
                try:
                    return self._target.connect(Attempt(deadline, aborting, self._abortable, room))
                except OSError as exc:
                    pause = None if aborting.is_set else retries.pause_after(exc, also=_NOT_YET)
                    if pause is None:
                        raise
                wait_for((), selectors.EVENT_READ, aborting, deadline_after(pause))

    @contextlib.contextmanager
    def _room(self, place: socket.socket) -> Iterator[None]:
        """Give a descriptor to the socket that the block opens, while no other thread reserves one."""
        with self._accounting:
            place.close()
            yield

    @contextlib.contextmanager
    def _abortable(self, sock: Socket) -> Iterator[None]:
        """Have stop() close the socket, which ends the call that it is in; close it after an error too."""
        with self._changed:
            self._reaching.add(sock)
            if self._parts is not None and self._parts.aborting.is_set:
                sock.close()
        try:
            yield
        except BaseException:
            sock.close()
            raise
        finally:
            with self._changed:
                self._reaching.discard(sock)


def _slice_of(left: float | None) -> float:
    """Return how many seconds to wait before another look at what is waited for."""
    longest = _SLICE if threading.current_thread() is threading.main_thread() else _LONGEST_SLICE
    return longest if left is None else max(0.0, min(left, longest))


def _close(sock: _Connected) -> None:
    with contextlib.suppress(OSError):
        sock.close()


def _abort(sock: _Connected) -> None:
    """Close the socket with a reset, if its family has one: the peer must not take it for the end of the stream."""
    # AF_VSOCK has none, and CPython takes no struct for its options.
    if isinstance(sock, socket.socket) and sock.family != _AF_VSOCK:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    _close(sock)
