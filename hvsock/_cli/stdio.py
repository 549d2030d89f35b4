"""`hvsock connect` and `hvsock listen`: stdin and stdout at one end of a connection, as ncat does it."""

from __future__ import annotations

import codecs
import contextlib
import io
import socket
import sys
import threading
from typing import Any, Final

import click

import hvsock
from hvsock._cli.options import Seconds, address_argument, examples, transport_option
from hvsock._cli.output import Failure, doing, drop_output, encodable, escaped, print_note, stdout, writing
from hvsock._cli.streams import read

__all__ = ["connect", "listen", "pump"]

CHUNK: Final = 64 << 10
# Seconds between two looks at the sender: Ctrl-C does not interrupt a long wait on Windows, and elsewhere a signal that
# comes just before a wait does not.
TICK: Final = 0.05 if sys.platform == "win32" else 1.0

CONNECT_EXAMPLES = """
  hvsock connect parent/5000             end with Ctrl-D (Windows: Ctrl-Z)
  hvsock connect parent/5000 < request > reply
  tar c . | hvsock connect parent/5000
"""

LISTEN_EXAMPLES = """
  hvsock listen wildcard/5000 > file
  hvsock listen --verbose wildcard/5000 | tar x
"""

verbose_option = click.option("-v", "--verbose", is_flag=True, help="Report connections on stderr.")


@click.command("connect", epilog=examples(CONNECT_EXAMPLES))
@address_argument
@click.option(
    "-t", "--timeout", type=Seconds(), default=10.0, show_default=True, help="Seconds to wait for the connection."
)
@click.option(
    "--retry-for",
    type=Seconds(positive=False),
    default=0.0,
    help="Keep trying for this many seconds while the service does not answer.",
)
@verbose_option
@transport_option()
def connect(
    address: hvsock.HyperVAddress, timeout: float, retry_for: float, verbose: bool, transport: str | None
) -> None:
    """Connect stdin and stdout to a service.

    Stdin is sent to ADDRESS, and what comes back is written to stdout. The end of stdin ends that direction only;
    the command ends when both directions have ended. On a terminal the command ends when the service closes, and
    control characters are escaped; pipe through `cat` to see them raw.

    PowerShell before 7.4, such as Windows' own, changes the bytes at `>` and `|`, and `cmd` does not:
    `cmd /c "hvsock connect parent/5000 > file"`.
    """
    with doing(f"connect to {address}"):
        connection = hvsock.create_connection(address, timeout, transport=transport, retry_for=retry_for)
    with connection:
        if verbose:
            print_note(f"connected to {address}")
        pump(connection, str(address))


@click.command("listen", epilog=examples(LISTEN_EXAMPLES))
@address_argument
@click.option("-t", "--timeout", type=Seconds(), help="Seconds to wait for the connection; no limit by default.")
@verbose_option
@transport_option()
def listen(address: hvsock.HyperVAddress, timeout: float | None, verbose: bool, transport: str | None) -> None:
    """Wait for one connection and join it to stdin and stdout.

    Listens at ADDRESS and accepts one client. Then stdin is sent to it, and what it sends is written to stdout, as
    with `hvsock connect`.

    PowerShell before 7.4, such as Windows' own, changes the bytes at `>` and `|`, and `cmd` does not:
    `cmd /c "hvsock listen wildcard/5000 > file"`.
    """
    with doing(f"listen on {address}"):
        server = hvsock.create_server(address, backlog=1, transport=transport)
        server.settimeout(timeout)
    with server:
        if verbose:
            print_note(f"listening on {address}")
        with doing(f"accept on {address}"):
            connection, peer = server.accept()
    with connection:
        if verbose:
            print_note(f"connection from {peer}")
        pump(connection, str(peer))


def pump(connection: hvsock.HyperVSocket, peer: str) -> None:
    """Carry bytes and ends of streams both ways until both have ended.

    On a terminal, the end of what comes is enough. Blocks without limit; stdin is read on a thread, because it cannot
    be waited for together with a socket on Windows.

    Raises:
        Failure: stdin, stdout or the connection failed; what had come before was written.
    """
    connection.settimeout(None)
    sender = Sender(connection, peer)
    try:
        with doing(f"receive from {peer}"):
            receive(connection)
    except Failure:
        if sender.failure is not None:
            raise sender.failure from None  # it came first and caused the other
        raise
    while sender.is_alive() and not sender.terminal:
        sender.join(TICK)
    if sender.failure is not None:
        raise sender.failure


class Sender(threading.Thread):
    """Sends stdin to a connection, then ends the stream. `failure` is what went wrong."""

    def __init__(self, connection: hvsock.HyperVSocket, peer: str) -> None:
        super().__init__(name="hvsock stdin", daemon=True)
        self.failure: Failure | None = None
        self.terminal = sys.stdin is not None and sys.stdin.isatty()
        self._connection = connection
        self._peer = peer
        self.start()

    def run(self) -> None:
        """Send until the end of stdin. Input that an error cut off must not look complete to the peer."""
        try:
            while data := self._read():
                with doing(f"send to {self._peer}"):
                    self._connection.sendall(data)
            with contextlib.suppress(OSError):  # all was sent; receive() finds out whether the peer is still there
                self._connection.shutdown(socket.SHUT_WR)
        except Failure as failure:
            self.failure = failure  # the peer takes no more; what it has sent is still received

    def _read(self) -> bytes:
        if sys.stdin is None:
            return b""
        try:
            return read(sys.stdin.buffer, CHUNK)
        except OSError as error:
            self.failure = Failure(f"standard input: {Failure.of(error).message}")
            self._connection.close()
            raise self.failure from error


def receive(connection: hvsock.HyperVSocket) -> None:
    """Write what comes to stdout, at once, and close stdout at the end of the stream."""
    out = stdout()
    terminal = out.isatty()
    utf8 = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    decode = io.IncrementalNewlineDecoder(utf8, translate=True).decode
    buffer = memoryview(bytearray(CHUNK))
    while True:
        size = connection.recv_into(buffer)
        with writing():
            if terminal:
                out.write(shown(decode(bytes(buffer[:size]), final=not size), out))
                out.flush()
            else:
                out.buffer.write(buffer[:size])
                out.buffer.flush()
        if not size:
            if not terminal:
                drop_output()
            return


def shown(text: str, stream: Any) -> str:
    """Return the text for a terminal: in lines, and with nothing that could move the cursor elsewhere."""
    return encodable("".join(c if c in "\n\t" else escaped(c) for c in text), stream)
