"""`hvsock relay`: clients of one address are connected to another."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import click

from hvsock._cli.names import with_id
from hvsock._cli.options import Seconds, as_json, checking_arguments, examples, until_interrupted
from hvsock._cli.output import doing, end_output, print_json, print_lines, print_note, print_rows, print_table
from hvsock._cli.relays import Relays
from hvsock.relay import Counters, Relay

__all__ = ["command"]

EXAMPLES = """
  hvsock relay tcp://:8080 hvsock://parent/5000
                in a guest: http://localhost:8080 is the host's service
  hvsock relay hvsock://wildcard/5000 tcp://127.0.0.1:80
                on the host: guests reach a web server that knows only TCP
  hvsock relay unix:///run/agent.sock 'hybrid:///srv/fc/v.sock?port=5000'
                into a Firecracker VM
  hvsock relay 'hvsock://wildcard/5000?transport=local' tcp://:5432
                without a hypervisor
  hvsock relay --config relays.toml
                several in one process
"""

if sys.platform == "win32":
    _COUNTERS: Final = signal.SIGBREAK  # Ctrl-Break
else:
    _COUNTERS: Final = signal.SIGUSR1


class Orders:
    """What signals order, done one after another in the thread that asks. As a context manager it takes signals."""

    def __init__(self, orders: Mapping[int, Callable[[], object]]) -> None:
        self._orders = orders
        self._came: deque[int] = deque()
        self._taken = contextlib.ExitStack()
        self._ends = False

    def carry_out(self) -> None:
        """Wait for signals and do what they order, until Ctrl-C or SIGTERM; a second one interrupts what is done.

        The first does not: a flush of stdout that is interrupted would print some lines twice.
        """
        with contextlib.ExitStack() as taken:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._take(number, self._end, taken)
            reader = self._reader(taken)
            while not self._ends:
                if self._came:
                    self._orders.get(self._came.popleft(), lambda: None)()
                else:
                    reader.recv(1)

    def _reader(self, stack: contextlib.ExitStack) -> socket.socket:
        """Return a socket that has a byte for each signal.

        A signal that comes just before a wait, or that the system gives to another thread, would not end the wait by
        itself.
        """
        reader, writer = (stack.enter_context(sock) for sock in socket.socketpair())
        writer.setblocking(False)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False))
        return reader

    def _end(self, number: int, _frame: object) -> None:
        if self._ends:
            raise KeyboardInterrupt
        self._ends = True
        self._came.append(number)

    def _take(self, number: int, handler: Callable[[int, Any], object], stack: contextlib.ExitStack) -> None:
        stack.callback(signal.signal, number, signal.signal(number, handler))

    def __enter__(self) -> Self:
        for number in self._orders:
            self._take(number, lambda number, _frame: self._came.append(number), self._taken)
        return self

    def __exit__(self, *_: object) -> None:
        self._taken.close()


class Notes(logging.Handler):
    """Prints what the relay logs on stderr, a line each, after the time of day."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        print_note(f"{clock}.{int(record.msecs):03d} {record.getMessage()}")


@click.command("relay", epilog=examples(EXAMPLES))
@click.argument("listen", required=False)
@click.argument("connect", required=False)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Run the relays of a TOML file: tables [[relay]] with listen, connect and the options. SIGHUP reads it again.",
)
@click.option(
    "--connect-timeout",
    type=Seconds(),
    default=10.0,
    show_default=True,
    help="Give up on CONNECT after this many seconds.",
)
@click.option(
    "--retry-for",
    type=Seconds(positive=False),
    default=0.0,
    show_default=True,
    help="Have a client wait this long for a CONNECT that is still booting: try again and again.",
)
@click.option("--idle-timeout", type=Seconds(), help="Close a connection after this many seconds without data.")
@click.option(
    "--max-connections",
    type=click.IntRange(1, 1_000_000),
    default=1000,
    show_default=True,
    help="Most connections at a time; further ones are refused.",
)
@click.option(
    "--grace",
    type=Seconds(positive=False),
    default=0.0,
    show_default=True,
    help="Seconds that connections may continue after Ctrl-C.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log each connection on stderr.")
@as_json
def command(
    listen: str | None,
    connect: str | None,
    config: Path | None,
    connect_timeout: float,
    retry_for: float,
    idle_timeout: float | None,
    max_connections: int,
    grace: float,
    verbose: bool,
    as_json: bool,
) -> None:
    """Connect each client of one address to another address.

    Listens at LISTEN until Ctrl-C or SIGTERM, and connects each client to CONNECT. Each is VM/SERVICE, vsock:CID:PORT,
    tcp:HOST:PORT, unix:PATH, unix:@NAME or hybrid:PATH:PORT. tcp::PORT is this machine's loopback, because anything
    that reaches the port reaches the target. LISTEN may be fd:NUMBER, a listener with which systemd starts the command.
    On Windows both may be npipe:NAME, a named pipe.

    When one side stops sending, the other sees the end and can still answer. The numbers of connections and bytes are
    printed at the end, and when the relay gets SIGUSR1 (on Windows, Ctrl-Break).
    """
    if config is not None:
        if listen is not None:
            raise click.UsageError("--config takes the place of LISTEN and CONNECT")
        with _logging(verbose):
            _run_file(config, grace, as_json)
        return
    if listen is None or connect is None:
        raise click.UsageError("LISTEN and CONNECT must be given, or --config FILE")
    with checking_arguments():
        relay = Relay(
            with_id(listen, verbose=verbose),
            with_id(connect, verbose=verbose),
            connect_timeout=connect_timeout,
            idle_timeout=idle_timeout,
            max_connections=max_connections,
            retry_for=retry_for,
        )
    orders = Orders({_COUNTERS: lambda: _print_counters(relay.counters, as_json)})
    with _logging(verbose), doing(f"relay {listen}"), orders, relay:
        if not as_json:
            print_lines(f"listening on {relay.address} for {relay.target}")
        with until_interrupted():
            orders.carry_out()
        relay.stop(grace)
    _print_counters(relay.counters, as_json)


def _print_counters(counters: Counters, as_json: bool) -> None:
    if as_json:
        print_json(counters._asdict())
    else:
        print_rows(
            [
                ("connections", f"{counters.total:,}"),
                ("open", f"{counters.open:,}"),
                ("refused", f"{counters.refused:,}"),
                ("target not reached", f"{counters.failed:,}"),
                ("aborted", f"{counters.aborted:,}"),
                ("bytes to target", f"{counters.bytes_to_target:,}"),
                ("bytes to client", f"{counters.bytes_to_client:,}"),
            ]
        )
    end_output()


def _run_file(path: Path, grace: float, as_json: bool) -> None:
    relays = Relays(path, (lambda line: None) if as_json else print_lines)
    actions: dict[int, Callable[[], object]] = {_COUNTERS: lambda: _print_all_counters(relays, as_json)}
    if sys.platform != "win32":
        actions[signal.SIGHUP] = relays.reload
    with doing("relay"), Orders(actions) as orders:
        relays.start()
        try:
            with until_interrupted():
                orders.carry_out()
        finally:
            relays.stop(grace)
    _print_all_counters(relays, as_json)


def _print_all_counters(relays: Relays, as_json: bool) -> None:
    rows = [(relay.address, relay.target, counters) for relay, counters in relays.counters]
    if as_json:
        print_json([{"listen": listen, "connect": connect, **counters._asdict()} for listen, connect, counters in rows])
    else:
        names = ["listen", "connections", "open", "refused", "not reached", "aborted"]
        names += ["bytes to target", "bytes to client"]
        print_table(
            names,
            [
                (listen, *(f"{number:,}" for number in (counters.total, counters.open, *counters[2:])))
                for listen, _connect, counters in rows
            ],
            numbers=names[1:],
        )
    end_output()


@contextlib.contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """Print on stderr what the relay logs in the block."""
    logger = logging.getLogger("hvsock.relay")
    handler = Notes()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
