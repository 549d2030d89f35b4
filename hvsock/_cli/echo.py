"""`hvsock echo`: a service that sends back what it receives, for `ping` and `bench` to talk to.

There is no protocol: bytes are sent back unchanged, as they arrive, until the client ends its stream; then this end
ends too. A length-prefixed message therefore comes back as a message, so that `ping` and `bench`, which send messages,
work with a service that echoes messages as well as with one that echoes bytes.
"""

from __future__ import annotations

from typing import Final

import click

import hvsock
from hvsock._cli.clients import Clients
from hvsock._cli.options import address_argument, examples, transport_option, until_interrupted
from hvsock._cli.output import doing, print_lines

__all__ = ["command", "echo"]

CHUNK: Final = 256 << 10
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


class Echoes(Clients):
    """The connections of an echo service."""

    def serve(self, connection: hvsock.HyperVSocket, peer: hvsock.HyperVAddress) -> str:
        """Send back what comes."""
        return f"{echo(connection):,} bytes echoed"

    def tell(self, line: str) -> None:
        """Print it."""
        print_lines(line)


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
