"""The `hvsock` command: the first user of the package's public names."""

from __future__ import annotations

import click

from hvsock.cli import bench, completion, demo, echo, info, ping, relay, service, stdio, vm
from hvsock.cli.commands import Commands, examples, version
from hvsock.cli.output import print_lines

__all__ = ["cli"]

EXAMPLES = """
  hvsock demo                        can this machine do it, and how fast?
  hvsock info                        which transports there are, and why not
  hvsock echo wildcard/5000          on the host: a service to try out others with
  hvsock ping parent/5000            in a guest: does it answer, and how fast?
"""


def print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Answer --version."""
    if wanted:
        print_lines(f"hvsock {version()}")
        ctx.exit()


@click.group(
    cls=Commands,
    no_args_is_help=False,
    epilog=examples(EXAMPLES),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--debug", is_flag=True, help="Print the trace of an error too.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_version,
    help="Show the version and exit.",
)
def cli(debug: bool) -> None:
    """Hyper-V sockets for Python.

    An ADDRESS is hvsock://VM/SERVICE, or shorter VM/SERVICE. VM is a GUID or one of wildcard, children, loopback,
    parent and silohost; SERVICE is a port or a GUID.
    """


for command in (
    bench.command,
    completion.command,
    stdio.connect,
    demo.command,
    echo.command,
    info.command,
    stdio.listen,
    ping.command,
    relay.command,
    service.command,
    vm.command,
):
    cli.add_command(command)
