"""The `hvsock` command: the first user of the package's public names."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Final

import click

import hvsock
from hvsock._cli.options import Commands, examples
from hvsock._cli.output import print_lines, print_text

__all__ = ["cli"]

COMMANDS: Final = {
    "bench": "bench.command",
    "completion": "completion.command",
    "connect": "stdio.connect",
    "demo": "demo.command",
    "echo": "echo.command",
    "info": "info.command",
    "listen": "stdio.listen",
    "ping": "ping.command",
    "relay": "relay.command",
    "scp": "ssh.scp",
    "service": "service.command",
    "ssh": "ssh.ssh",
    "vm": "vm.command",
}

EXAMPLES = """
  hvsock demo                   can this machine do it, and how fast?
  hvsock info                   which transports work here, and why not others
  hvsock echo wildcard/5000     on the host: a service to test against
  hvsock ping parent/5000       in a guest: does it answer, and how fast?
"""


class OnDemand(Mapping[str, click.Command]):
    """COMMANDS, each imported when it is used: a command starts faster without the others."""

    def __getitem__(self, name: str) -> click.Command:
        module, _, attribute = COMMANDS[name].partition(".")
        command: click.Command = getattr(importlib.import_module(f"hvsock._cli.{module}"), attribute)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Answer --version."""
    if wanted:
        print_lines(f"hvsock {hvsock.__version__}")
        ctx.exit()


@click.group(
    cls=Commands,
    commands=OnDemand(),
    invoke_without_command=True,
    epilog=examples(EXAMPLES),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--debug", is_flag=True, help="Also print the traceback of an error.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Hyper-V sockets for Python.

    An ADDRESS is VM/SERVICE or hvsock://VM/SERVICE, or by numbers vsock:CID:PORT; ?transport=NAME may follow. VM is a
    name, a GUID, or one of wildcard, children, loopback, parent and silohost; SERVICE is a port or a GUID.
    """
    if ctx.invoked_subcommand is None:
        print_text(ctx.get_help())
