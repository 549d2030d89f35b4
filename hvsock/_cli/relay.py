"""`hvsock relay`: clients of one address are connected to another."""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from hvsock._cli.names import with_id
from hvsock._cli.options import Seconds, as_json, checking_arguments, examples, until_interrupted
from hvsock._cli.output import doing, print_json, print_lines, print_note, print_rows, print_table
from hvsock._cli.relays import Relays
from hvsock.relay import Relay

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

_HANGUP: Final = getattr(signal, "SIGHUP", None)  # Windows has none
_SLICE: Final = (
    0.1 if sys.platform == "win32" else None
)  # seconds: there, Ctrl-C does not interrupt the wait for a lock


class Notes(logging.Handler):
    """Prints what the relay logs on stderr, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        print_note(record.getMessage())


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
    idle_timeout: float | None,
    max_connections: int,
    grace: float,
    verbose: bool,
    as_json: bool,
) -> None:
    """Connect each client of one address to another address.

    Listens at LISTEN until Ctrl-C or SIGTERM, and connects each client to CONNECT. Each is VM/SERVICE, vsock:CID:PORT,
    tcp:HOST:PORT, unix:PATH or hybrid:PATH:PORT. tcp::PORT is this machine's loopback, because anything that reaches
    the port reaches the target.

    When one side stops sending, the other sees the end and can still answer. The numbers of connections and bytes are
    printed at the end.
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
        )
    with _logging(verbose), doing(f"relay {listen}"), relay:
        if not as_json:
            print_lines(f"listening on {relay.address} for {relay.target}")
        with until_interrupted():
            relay.serve_forever()
        relay.stop(grace)
    counters = relay.counters
    if as_json:
        print_json(counters._asdict())
        return
    print_rows(
        [
            ("connections", f"{counters.total:,}"),
            ("refused", f"{counters.refused:,}"),
            ("target not reached", f"{counters.failed:,}"),
            ("aborted", f"{counters.aborted:,}"),
            ("bytes to target", f"{counters.bytes_to_target:,}"),
            ("bytes to client", f"{counters.bytes_to_client:,}"),
        ]
    )


def _run_file(path: Path, grace: float, as_json: bool) -> None:
    relays = Relays(path, (lambda line: None) if as_json else print_lines)
    with doing("relay"), _signals() as signals:
        relays.start()
        try:
            while _next(signals) == _HANGUP:
                relays.reload()
        finally:
            relays.stop(grace)
    rows = [(relay.address, relay.target, counters) for relay, counters in relays.counters]
    if as_json:
        print_json([{"listen": listen, "connect": connect, **counters._asdict()} for listen, connect, counters in rows])
        return
    names = ["listen", "connections", "refused", "not reached", "aborted", "bytes to target", "bytes to client"]
    print_table(
        names,
        [(listen, *(f"{number:,}" for number in counters[1:])) for listen, _connect, counters in rows],
        numbers=names[1:],
    )


@contextlib.contextmanager
def _signals() -> Iterator[queue.SimpleQueue[int]]:
    """Lend a queue of the signals that come, none of which interrupts anything: SIGINT, SIGTERM and SIGHUP."""
    came: queue.SimpleQueue[int] = queue.SimpleQueue()  # the one queue that a signal handler may put something into
    before = {
        number: signal.signal(number, lambda number, _: came.put(number))
        for number in (signal.SIGINT, signal.SIGTERM, _HANGUP)
        if number is not None
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _next(signals: queue.SimpleQueue[int]) -> int:
    while True:
        with contextlib.suppress(queue.Empty):
            return signals.get(timeout=_SLICE)


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
