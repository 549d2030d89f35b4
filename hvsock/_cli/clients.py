"""The clients of a listening socket: each on its own thread, until Ctrl-C."""

from __future__ import annotations

import abc
import sys
import threading
from typing import Final

import hvsock
from hvsock._cli.output import Failure, print_note
from hvsock._errors import is_shortage

__all__ = ["Clients"]

# Seconds between two looks for room, or for a signal: Ctrl-C does not end the wait for a lock on Windows, and a signal
# that comes just before accept() starts to wait does not end that anywhere.
TICK: Final = 0.1 if sys.platform == "win32" else 1.0
MOST_CLIENTS: Final = 100  # at the same time; the next one waits in the backlog


class Clients(abc.ABC):
    """Serves those who connect to a listening socket, up to `most` at the same time."""

    def __init__(self, server: hvsock.HyperVSocket, most: int = MOST_CLIENTS) -> None:
        self._server = server
        self._room = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, hvsock.HyperVSocket] = {}
        self._failure: Failure | None = None
        self._closing = False
        self._one_ended = threading.Event()
        self._lacking = False

    @abc.abstractmethod
    def serve(self, connection: hvsock.HyperVSocket, peer: hvsock.HyperVAddress) -> str:
        """Serve one client, in its thread; return how it has ended.

        Raises:
            OSError: the connection has failed, which is told like its end.
            Failure: this ends the service.
        """

    @abc.abstractmethod
    def tell(self, line: str) -> None:
        """Tell of a connection or of its end; threads do so at the same time."""

    def run(self) -> None:
        """Accept until the server is closed, by Ctrl-C or because of a `Failure`; then end the connections too."""
        self._server.settimeout(TICK)
        try:
            while True:
                while not self._room.acquire(timeout=TICK):
                    if self._failure is not None:
                        raise self._failure
                self._one_ended.clear()
                try:
                    connection, peer = self._server.accept()
                except (TimeoutError, ConnectionError):  # or the client is already gone
                    self._room.release()
                except OSError as error:
                    self._room.release()
                    if not is_shortage(error):
                        raise
                    self._wait_for_an_end(Failure.of(error).message)
                else:
                    self._begin(connection, peer)
        except OSError:
            if self._failure is not None:
                raise self._failure from None
            raise
        finally:
            self._close()

    def _begin(self, connection: hvsock.HyperVSocket, peer: hvsock.HyperVAddress) -> None:
        thread = threading.Thread(target=self._serve, args=(connection, peer), daemon=True)
        with self._lock:
            self._open[thread] = connection
        self.tell(f"connection from {peer}")
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no thread
            with self._lock:
                del self._open[thread]
            self._room.release()
            connection.close()
            self._wait_for_an_end(str(error))
        else:
            self._lacking = False

    def _wait_for_an_end(self, reason: str) -> None:
        """Wait until a connection has ended, which gives back what the system lacks, or for a moment."""
        if not self._lacking:  # it is said once
            print_note(f"cannot accept: {reason}; clients wait until a connection ends")
        self._lacking = True
        self._one_ended.wait(TICK)

    def _close(self) -> None:
        with self._lock:
            self._closing = True
            still_open = dict(self._open)
        for connection in still_open.values():
            connection.close()
        for thread in still_open:
            if thread.ident is not None:
                thread.join()

    def _serve(self, connection: hvsock.HyperVSocket, peer: hvsock.HyperVAddress) -> None:
        try:
            try:
                with connection:
                    ending = self.serve(connection, peer)
            except OSError as error:
                ending = Failure.of(error).message
            if not self._closing:
                self.tell(f"{peer}: {ending}")
        except Failure as failure:
            self._failure = failure
            self._server.close()
        finally:
            with self._lock:
                del self._open[threading.current_thread()]
            self._room.release()
            self._one_ended.set()
