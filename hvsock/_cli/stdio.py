"""`hvsock connect` and `hvsock listen`: stdin and stdout at one end of a connection, as ncat does it."""

from __future__ import annotations

import codecs
import contextlib
import io
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import click

import hvsock
from hvsock._cli.clients import Clients
from hvsock._cli.meter import Counts, Meter
from hvsock._cli.options import Seconds, address_argument, examples, transport_option, until_interrupted
from hvsock._cli.output import Failure, doing, drop_output, encodable, escaped, print_note, stdout, writing
from hvsock._cli.streams import Whole, read

__all__ = ["connect", "listen", "pump"]

CHUNK: Final = 64 << 10
# Seconds between two looks at the sender: Ctrl-C does not interrupt a long wait on Windows, and elsewhere a signal that
# comes just before a wait does not.
TICK: Final = 0.05 if sys.platform == "win32" else 1.0

CONNECT_EXAMPLES = """
  hvsock connect parent/5000             end with Ctrl-D (Windows: Ctrl-Z)
  hvsock connect parent/5000 < request > reply
  hvsock connect --check parent/5000     exit code 0 if the service is there
  tar c . | hvsock connect parent/5000
"""

LISTEN_EXAMPLES = """
  hvsock listen wildcard/5000 > file
  hvsock listen --verbose wildcard/5000 | tar x
  hvsock listen --keep-open wildcard/5000 > log
  hvsock listen --keep-open --exec 'git daemon --inetd' wildcard/9418
"""

progress_option = click.option(
    "--progress/--no-progress",
    default=None,
    help="On a terminal, show on stderr how much was moved, and how fast. "
    "By default it is shown if stdout is redirected or stdin is a file, and not between two pipes.",
)
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
@click.option("-z", "--check", is_flag=True, help="Only connect, to see whether the service is there; send nothing.")
@click.option(
    "--end-after",
    type=Seconds(positive=False),
    help="End this many seconds after the service has closed, unless stdin has more; else at the end of stdin.",
)
@progress_option
@verbose_option
@transport_option()
def connect(
    address: hvsock.HyperVAddress,
    timeout: float,
    retry_for: float,
    check: bool,
    end_after: float | None,
    progress: bool | None,
    verbose: bool,
    transport: str | None,
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
        if not check:
            pump(connection, str(address), end_after=end_after, progress=progress)


@click.command("listen", epilog=examples(LISTEN_EXAMPLES))
@address_argument
@click.option("-t", "--timeout", type=Seconds(), help="Seconds to wait for the connection; no limit by default.")
@click.option("-k", "--keep-open", is_flag=True, help="Serve one client after the other until Ctrl-C.")
@click.option(
    "--exec",
    "program",
    metavar="PROGRAM",
    help="Start PROGRAM, with its arguments, and give it the connection as stdin and stdout.",
)
@progress_option
@verbose_option
@transport_option()
def listen(
    address: hvsock.HyperVAddress,
    timeout: float | None,
    keep_open: bool,
    program: str | None,
    progress: bool | None,
    verbose: bool,
    transport: str | None,
) -> None:
    """Wait for one connection and join it to stdin and stdout.

    Listens at ADDRESS and accepts one client. Then stdin is sent to it, and what it sends is written to stdout, as
    with `hvsock connect`.

    With --keep-open, what clients send is written to stdout, one client after the other, and stdin is not read. With
    --exec too, each client has a PROGRAM of its own, up to 100 at the same time. PROGRAM is started without a shell;
    its environment has the client's address in HVSOCK_PEER.

    PowerShell before 7.4, such as Windows' own, changes the bytes at `>` and `|`, and `cmd` does not:
    `cmd /c "hvsock listen wildcard/5000 > file"`.
    """
    if keep_open and timeout is not None:
        raise click.UsageError("--timeout is for one connection: it cannot be used with --keep-open")
    if progress and (keep_open or program is not None):
        raise click.UsageError("--progress is for one connection to stdin and stdout: not for --keep-open and --exec")
    words = None if program is None else program_words(program)
    with doing(f"listen on {address}"):
        server = hvsock.create_server(address, backlog=None if keep_open else 1, transport=transport)
        server.settimeout(timeout)
    with server:
        if verbose:
            print_note(f"listening on {address}")
        if keep_open:
            clients = Sink(server, verbose) if words is None else Programs(server, verbose, words)
            with until_interrupted(), doing(f"accept on {address}"):
                clients.run()
            return
        with doing(f"accept on {address}"):
            connection, peer = accept(server)
    with connection:
        if verbose:
            print_note(f"connection from {peer}")
        if words is None:
            pump(connection, str(peer), progress=progress)
        elif ending := run_program(words, connection, peer):
            raise Failure(ending)


def accept(server: hvsock.HyperVSocket) -> tuple[hvsock.HyperVSocket, hvsock.HyperVAddress]:
    """Accept the first client that is still there."""
    while True:
        with contextlib.suppress(ConnectionError):  # one that has gone again
            return server.accept()


class Sink(Clients):
    """Writes what one client after the other sends to stdout."""

    def __init__(self, server: hvsock.HyperVSocket, verbose: bool) -> None:
        super().__init__(server, most=1)
        self._verbose = verbose

    def serve(self, connection: hvsock.HyperVSocket, peer: hvsock.HyperVAddress) -> str:
        """Write it."""
        connection.settimeout(None)
        receive(connection, Counts(), is_last=False)
        return "ended"

    def tell(self, line: str) -> None:
        """Report it on stderr if asked to."""
        if self._verbose:
            print_note(line)


class Programs(Clients):
    """Gives each client a program."""

    def __init__(self, server: hvsock.HyperVSocket, verbose: bool, words: str | list[str]) -> None:
        super().__init__(server)
        self._verbose = verbose
        self._words = words

    def serve(self, connection: hvsock.HyperVSocket, peer: hvsock.HyperVAddress) -> str:
        """Run the program until it has ended."""
        ending = run_program(self._words, connection, peer)
        if ending and not self._verbose:
            print_note(f"{peer}: {ending}")
        return ending or "ended"

    def tell(self, line: str) -> None:
        """Report it on stderr if asked to."""
        if self._verbose:
            print_note(line)


def program_words(text: str) -> str | list[str]:
    """Return what `subprocess` is to start: the words of a command line, or on Windows the line as it is."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}", param_hint="'--exec'") from None
    if not words:
        raise click.BadParameter("there is no program", param_hint="'--exec'")
    if sys.platform == "win32":
        return text
    if shutil.which(words[0]) is None:
        raise click.BadParameter(f"there is no program {words[0]!r}", param_hint="'--exec'")
    return words


def run_program(words: str | list[str], connection: hvsock.HyperVSocket, peer: hvsock.HyperVAddress) -> str:
    """Run a program whose stdin and stdout are the connection; return how it failed, or an empty text.

    Pipes and threads join them: on Windows a program cannot use a socket as a file.

    Raises:
        OSError: the program was not started, or the connection failed.
    """
    connection.settimeout(None)
    environment = {**os.environ, "HVSOCK_PEER": str(peer)}
    with subprocess.Popen(words, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        connection._at_close(process.terminate)  # Ctrl-C ends the service, and its programs with it
        feeding = threading.Thread(target=feed, args=(process, connection), daemon=True)
        feeding.start()
        assert process.stdout is not None
        with process.stdout as answers:
            while data := answers.read(CHUNK):
                connection.sendall(data)
        with contextlib.suppress(OSError):  # the client has gone: the program may go on without it
            connection.shutdown(socket.SHUT_WR)
        code = process.wait()
        failed = code != 0 and connection.fileno() != -1
    connection.close()  # which ends the thread
    feeding.join()
    return f"the program ended with exit code {code}" if failed else ""


def feed(process: subprocess.Popen[bytes], connection: hvsock.HyperVSocket) -> None:
    """Write what comes to a program's stdin until one of them has ended."""
    assert process.stdin is not None
    whole = Whole(process.stdin)  # type: ignore[arg-type] # unbuffered, it is a raw stream
    buffer = memoryview(bytearray(CHUNK))
    with contextlib.suppress(OSError), process.stdin:  # the program need not read to the end
        while size := connection.recv_into(buffer):
            whole.write(buffer[:size])


def pump(
    connection: hvsock.HyperVSocket, peer: str, *, end_after: float | None = None, progress: bool | None = False
) -> None:
    """Carry bytes and ends of streams both ways until both have ended.

    On a terminal, the end of what comes is enough; otherwise so is a stdin that has been silent for `end_after` seconds
    since then. Blocks without limit; stdin is read on a thread, because it cannot be waited for together with a socket
    on Windows.

    Raises:
        Failure: stdin, stdout or the connection failed; what had come before was written.
    """
    connection.settimeout(None)
    counts = Counts()
    with Meter(counts, progress) as meter:
        carry(connection, peer, Sender(connection, peer, counts), end_after, meter)


def carry(connection: hvsock.HyperVSocket, peer: str, sender: Sender, end_after: float | None, meter: Meter) -> None:
    """Receive until the end, then wait for the sender's."""
    try:
        with doing(f"receive from {peer}"):
            receive(connection, sender.counts, before_showing=meter.make_room)
    except Failure:
        if sender.failure is not None:
            raise sender.failure from None  # it came first and caused the other
        raise
    ended = time.monotonic()
    while sender.is_alive() and not sender.terminal:
        left = TICK if end_after is None else max(ended, sender.silent_since) + end_after - time.monotonic()
        if left <= 0.0:
            return
        sender.join(min(left, TICK))
    if sender.failure is not None:
        raise sender.failure


class Sender(threading.Thread):
    """Sends stdin to a connection, then ends the stream. `failure` is what went wrong."""

    def __init__(self, connection: hvsock.HyperVSocket, peer: str, counts: Counts) -> None:
        super().__init__(name="hvsock stdin", daemon=True)
        self.counts = counts
        self.failure: Failure | None = None
        self.silent_since = math.inf  # monotonic seconds; inf while there is something to send
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
                self.counts.sent += len(data)
            with contextlib.suppress(OSError):  # all was sent; receive() finds out whether the peer is still there
                self._connection.shutdown(socket.SHUT_WR)
        except Failure as failure:
            self.failure = failure  # the peer takes no more; what it has sent is still received

    def _read(self) -> bytes:
        if sys.stdin is None:
            return b""
        self.silent_since = time.monotonic()
        try:
            data = read(sys.stdin.buffer, CHUNK)
        except OSError as error:
            self.failure = Failure(f"standard input: {Failure.of(error).message}")
            self._connection.close()
            raise self.failure from error
        self.silent_since = math.inf
        return data


def receive(
    connection: hvsock.HyperVSocket,
    counts: Counts,
    *,
    is_last: bool = True,
    before_showing: Callable[[], object] = lambda: None,
) -> None:
    """Write what comes to stdout, at once, and close stdout at the end of the last stream.

    `before_showing` is called before something is written to a terminal.
    """
    out = stdout()
    terminal = out.isatty()
    utf8 = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    decode = io.IncrementalNewlineDecoder(utf8, translate=True).decode
    buffer = memoryview(bytearray(CHUNK))
    while True:
        size = connection.recv_into(buffer)
        with writing():
            if not terminal:
                out.buffer.write(buffer[:size])
                out.buffer.flush()
            elif text := shown(decode(bytes(buffer[:size]), final=not size), out):
                before_showing()
                out.write(text)
                out.flush()
        counts.received += size
        if not size:
            if is_last and not terminal:
                drop_output()
            return


def shown(text: str, stream: Any) -> str:
    """Return the text for a terminal: in lines, and with nothing that could move the cursor elsewhere."""
    return encodable("".join(c if c in "\n\t" else escaped(c) for c in text), stream)
