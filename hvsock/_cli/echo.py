"""`hvsock echo`: a service that sends back what it receives, for `ping` and `bench` to talk to.

There is no protocol: bytes are sent back unchanged, as they arrive, until the client ends its stream; then this end
ends too. A length-prefixed message therefore comes back as a message, so that `ping` and `bench`, which send messages,
work with a service that echoes messages as well as with one that echoes bytes.
"""

from __future__ import annotations

import sys
import threading
from typing import Final

import click

import hvsock
from hvsock._cli.options import address_argument, examples, transport_option, until_interrupted
from hvsock._cli.output import Failure, doing, print_lines, print_note
from hvsock._errors import is_shortage

__all__ = ["command", "echo"]

CHUNK: Final = 256 << 10
# Seconds between two looks for room, or for a signal: Ctrl-C does not end the wait for a lock on Windows, and a signal
# that comes just before accept() starts to wait does not end that anywhere.
TICK: Final = 0.1 if sys.platform == "win32" else 1.0
MOST_CLIENTS: Final = 100  # at the same time; the next one waits in the backlog

EXAMPLES = """
  hvsock echo wildcard/5000                        for every partition
  hvsock echo 6f2a3b7e-51a4-4c0d-9a53-0c5d1e7f8a42/5000
                                                   for one VM
  hvsock echo --transport local wildcard/5000      without a hypervisor
"""


def echo(connection: hvsock.HyperVSocket) -> int:
    """Send back what comes until the peer ends its stream; return the number of bytes."""
    buffer = memoryview(bytearray(CHUNK))
    total = 0
    while size := connection.recv_into(buffer):
        connection.sendall(buffer[:size])
        total += size
    return total


class Echoes:
    """The connections of a listening socket, each on its own thread."""

    def __init__(self, server: hvsock.HyperVSocket) -> None:
        self._server = server
        self._room = threading.BoundedSemaphore(MOST_CLIENTS)
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, hvsock.HyperVSocket] = {}
        self._failure: Failure | None = None
        self._closing = False
        self._one_ended = threading.Event()
        self._lacking = False

    def run(self) -> None:
        """Accept until the server is closed, by Ctrl-C or because stdout failed; then end the connections too."""
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
        print_lines(f"connection from {peer}")
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
                    ending = f"{echo(connection):,} bytes echoed"
            except OSError as error:
                ending = Failure.of(error).message
            if not self._closing:
                print_lines(f"{peer}: {ending}")
        except Failure as failure:  # of stdout: the service ends, as it does without connections
            self._failure = failure
            self._server.close()
        finally:
            with self._lock:
                del self._open[threading.current_thread()]
            self._room.release()
            self._one_ended.set()


@click.command("echo", epilog=examples(EXAMPLES))
@address_argument
@transport_option()
def command(address: hvsock.HyperVAddress, transport: str | None) -> None:
    """Run an echo service.

    It sends back what it receives, to any number of clients at ADDRESS, until Ctrl-C or SIGTERM; each connection and
    its end are printed. Use it with `hvsock ping`, `hvsock bench` or a client of your own.
    """
    with doing(f"listen on {address}"):
        server = hvsock.create_server(address, transport=transport)
    with server:
        print_lines(f"listening on {address}")
        with until_interrupted(), doing(f"accept on {address}"):
            Echoes(server).run()
