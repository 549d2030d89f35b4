"""What the tests of the command line share: running it in process or as a process, and a service to talk to."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import utils

import hvsock

pytest.importorskip("click", reason='the command line is an extra: pip install "hvsock[cli]"')
pytest.importorskip("rich", reason='the command line is an extra: pip install "hvsock[cli]"')

from click.testing import CliRunner, Result

from hvsock._cli import cli
from hvsock._cli.echo import echo

NASTY = "a\x1b[31mb\r\nc\u202ed[bold]e[/bold]:smile:\x00\x7f"
ESCAPED = r"a\x1b[31mb\r\nc\u202ed[bold]e[/bold]:smile:\x00\x7f"

posix = pytest.mark.skipif(utils.WINDOWS, reason="signals, terminals and this use of pipes are POSIX's")


def run(*args: str, **kwargs: Any) -> Result:
    """Run the command line in this process; Ctrl-C, where a test makes one, comes out as its exit code."""
    return CliRunner().invoke(cli, args, prog_name="hvsock", **kwargs)


def failure(*args: str, code: int = 1, **kwargs: Any) -> str:
    """Run what must fail without a word on stdout, and return its one line on stderr, without the `hvsock: `."""
    result = run(*args, **kwargs)
    assert (result.exit_code, result.stdout) == (code, ""), (result.output, result.exception)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("hvsock: ")
    return result.stderr.removeprefix("hvsock: ").rstrip("\n")


def command(*args: str) -> list[str]:
    """Return the command line as a process's."""
    return [sys.executable, "-I", "-W", "error", "-m", "hvsock", *args]


def start(*args: str, **kwargs: Any) -> subprocess.Popen[bytes]:
    """Start the command line as a process with pipes."""
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(*args), **(streams | kwargs))


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Lend a process, and kill it if it is still there at the end."""
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def service(
    transport: str, serve: Callable[[hvsock.HyperVSocket], object] = echo, number: int | None = None
) -> Iterator[str]:
    """Serve on the loopback, each connection on a thread, and lend the address as the command line takes it.

    After `number` connections it listens no more.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(utils.listen(transport))
        address = listener.getsockname()
        connections: list[Any] = []
        threads: list[threading.Thread] = []

        def one(connection: hvsock.HyperVSocket) -> None:
            with connection, contextlib.suppress(OSError):
                serve(connection)

        def accept() -> None:
            while number is None or len(threads) < number:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                connection.settimeout(utils.LIMIT)
                connections.append(connection)
                threads.append(threading.Thread(target=one, args=(connection,), daemon=True))
                threads[-1].start()
            listener.close()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield str(address)
        finally:
            listener.close()
            accepting.join(utils.LIMIT)
            for connection in connections:
                connection.close()
            for thread in threads:
                thread.join(utils.LIMIT)
            assert not any(thread.is_alive() for thread in [accepting, *threads])


def nowhere() -> str:
    """Return an address of this partition where nobody listens."""
    return f"loopback/{hvsock.port_from_service_id(utils.new_service())}"


@contextlib.contextmanager
def on_terminal(
    *args: str, columns: int = 100, stdin: Any = None, stdout: Any = None
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str], int]]:
    """Run the command line on a pseudo-terminal.

    Lends the process, a function that reads what it shows until its end, and the terminal's other end. `stdin` and
    `stdout` may be something else than the terminal.
    """
    import fcntl
    import pty
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        command(*args),
        stdin=follower if stdin is None else stdin,
        stdout=follower if stdout is None else stdout,
        stderr=follower,
        env={**env, "TERM": "xterm-256color"},
        preexec_fn=lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - so that Ctrl-C is a signal
        start_new_session=True,
    )
    os.close(follower)

    def shown() -> str:
        data = b""
        try:
            while more := os.read(leader, 65536):
                data += more
        except OSError as error:  # nobody has the other end any more
            if error.errno != errno.EIO:
                raise
        return data.decode()

    try:
        with ended(process):
            yield process, shown, leader
    finally:
        os.close(leader)


def plain(shown: str) -> str:
    """Return what a terminal was sent without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def half_close_echo(connection: socket.socket) -> None:
    """Answer only after the end of what the client sends."""
    data = utils.receive_all(connection)
    connection.sendall(data[::-1])
