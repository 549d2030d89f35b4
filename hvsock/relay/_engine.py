"""The relay's engine: threads in C, each of which waits for all of its connections at once."""

from __future__ import annotations

import errno
import logging
import os
import threading
from typing import Any, Final

from hvsock import _hvsock
from hvsock._errors import os_error
from hvsock.relay._endpoints import Endpoint
from hvsock.relay._listeners import Listener

__all__ = ["NO_DESCRIPTORS", "Engine", "error_text", "warn_of_accept"]

logger = logging.getLogger("hvsock.relay")

NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, 10024})  # 10024: WSAEMFILE

_RELAY_ENGINE: Final[Any] = getattr(_hvsock, "RelayEngine", None)  # for some systems there is none
_MOST_THREADS: Final = 16
_BEGIN: Final = 10.0  # seconds that the threads may take to begin
_STOPPED: Final = 0  # in place of an error: see src/hv_relay.h
_IDLE: Final = -1


class Engine:
    """Moves bytes between connected sockets, and accepts and connects by itself where it can.

    Attributes:
        accepts: whether it does; otherwise connections come by `adopt`.
    """

    def __init__(
        self,
        listener: Listener,
        target: Endpoint,
        *,
        connects: bool,
        connect_timeout: float | None,
        idle_timeout: float | None,
        max_connections: int,
    ) -> None:
        addresses = target.addresses() if connects else ()
        socks = listener.sockets() if addresses else ()
        self.accepts = bool(socks)
        self._listener = listener
        self._target = target
        self._most = max_connections
        self._engine = _RELAY_ENGINE(
            tuple(sock.fileno() for sock in socks),
            addresses if socks else (),
            connect_timeout,
            idle_timeout,
            max_connections,
            logger.isEnabledFor(logging.DEBUG),
        )
        self._threads: list[threading.Thread] = []

    @staticmethod
    def serves(source: Endpoint, target: Endpoint) -> bool:
        """Whether connections between the two can be an engine's."""
        return _RELAY_ENGINE is not None and source.is_plain and target.is_plain

    def start(self) -> None:
        """Start the threads.

        Raises:
            OSError, RuntimeError: there are no descriptors or no threads for it.
        """
        count = min(os.cpu_count() or 1, _MOST_THREADS)
        try:
            for run, name in [*[(self._engine.run, "relay-engine")] * count, (self._log, "relay-log")]:
                thread = threading.Thread(target=run, name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
            if not self._engine.wait(count, _BEGIN):
                raise OSError(errno.EMFILE, "the relay's threads could not begin")
        except BaseException:
            self.end()
            raise

    def adopt(self, client: int, target: int, name: str) -> None:
        """Relay between two connected handles, which belong to the engine from now on; `name` is for the log.

        Raises:
            OSError: it is over; the handles stay the caller's.
        """
        self._engine.adopt(client, target, name.encode())

    def stop_listening(self) -> None:
        """Accept no more; the listener may be closed afterwards."""
        self._engine.stop_listening()

    def abort(self) -> None:
        """Abort all connections, and those to come."""
        self._engine.abort()

    def wait(self, seconds: float) -> bool:
        """Wait until no connection is open, for so long at most; return whether that is so."""
        return bool(self._engine.wait(0, seconds))

    def end(self) -> None:
        """End the threads, and what they had to log."""
        self._engine.abort()
        self._engine.end()
        for thread in self._threads:
            thread.join()

    @property
    def counters(self) -> tuple[int, int, int, int, int, int, int]:
        """The numbers of `Counters`."""
        numbers: tuple[int, int, int, int, int, int, int] = self._engine.counters
        return numbers

    def _log(self) -> None:
        while (entry := self._engine.next_log()) is not None:
            kind, error, client = entry
            name = self._listener.name_of(client) if self.accepts else client.decode(errors="replace")
            if kind == "connected":
                logger.debug("%s: connected to %s", name, self._target.text)
            elif kind == "ended":
                logger.debug("%s: ended", name)
            elif kind == "refused":
                logger.warning("%s: refused: %d connections are open", name, self._most)
            elif kind == "accept":
                warn_of_accept(self._listener.text, os_error(error))
            elif kind == "failed":
                logger.warning("%s: %s was not reached: %s", name, self._target.text, self._why_not_reached(error))
            elif error == _STOPPED:
                logger.debug("%s: aborted by stop()", name)
            else:
                logger.info("%s: aborted: %s", name, _why_aborted(error))

    def _why_not_reached(self, error: int) -> str:
        if error == _STOPPED:
            return "the relay stops"
        exc = TimeoutError("timed out") if error == errno.ETIMEDOUT else os_error(error)
        self._target.explain(exc)
        return error_text(exc)


def _why_aborted(error: int) -> str:
    return "no data in either direction for the idle timeout" if error == _IDLE else str(os_error(error))


def error_text(exc: BaseException) -> str:
    """Return the error with its notes, on one line."""
    return "; ".join([str(exc) or type(exc).__name__, *getattr(exc, "__notes__", ())])


def warn_of_accept(address: str, exc: OSError) -> None:
    """Log that a client could not be accepted."""
    hint = "; ulimit -n allows more" if exc.errno in NO_DESCRIPTORS else ""
    logger.warning("%s: cannot accept: %s%s", address, error_text(exc), hint)
