"""`hvsock relay`: clients of one address are connected to another."""

from __future__ import annotations

import logging

import click

from hvsock._cli.options import Seconds, as_json, checking_arguments, examples, until_interrupted
from hvsock._cli.output import doing, print_json, print_lines, print_note, print_rows
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
"""


class Notes(logging.Handler):
    """Prints what the relay logs on stderr, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        print_note(record.getMessage())


@click.command("relay", epilog=examples(EXAMPLES))
@click.argument("listen")
@click.argument("connect")
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
    listen: str,
    connect: str,
    connect_timeout: float,
    idle_timeout: float | None,
    max_connections: int,
    grace: float,
    verbose: bool,
    as_json: bool,
) -> None:
    """Connect each client of one address to another address.

    Listens at LISTEN until Ctrl-C or SIGTERM, and connects each client to CONNECT. Both are URIs: hvsock://VM/SERVICE,
    tcp://HOST:PORT, unix:///PATH, vsock://CID:PORT, or hybrid:///PATH?port=PORT. tcp://:PORT is this machine's
    loopback, because anything that reaches the port reaches the target.

    When one side stops sending, the other sees the end and can still answer. The numbers of connections and bytes are
    printed at the end.
    """
    with checking_arguments():
        relay = Relay(
            listen,
            connect,
            connect_timeout=connect_timeout,
            idle_timeout=idle_timeout,
            max_connections=max_connections,
        )
    logger = logging.getLogger("hvsock.relay")
    handler = Notes()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    try:
        with doing(f"relay {listen}"), relay:
            if not as_json:
                print_lines(f"listening on {relay.address} for {relay.target}")
            with until_interrupted():
                relay.serve_forever()
            relay.stop(grace)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
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
