"""`hvsock service`: which services a Windows host lets its virtual machines reach."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import uuid
from pathlib import Path

import click

from hvsock import services
from hvsock._addresses import as_hyperv_service_id
from hvsock._cli.options import as_json, checking_arguments, examples
from hvsock._cli.output import Failure, doing, print_json, print_lines, print_table, print_text, stdout, writing

__all__ = ["command"]

EXAMPLES = """
  hvsock service list
  hvsock service register 5000 "My service"           in an elevated terminal
  hvsock service unregister 5000                      the same
  hvsock service export -o my.reg 5000 "My service"   for another machine
"""


def parse_service(text: str) -> uuid.UUID:
    """Return the service id that a port or a GUID means.

    Raises:
        click.UsageError: it is neither.
    """
    with checking_arguments():
        return as_hyperv_service_id(int(text) if text.isascii() and text.isdigit() else text)


def _parse(ctx: click.Context, param: click.Parameter, text: str) -> uuid.UUID:
    return parse_service(text)


service_argument = click.argument("service", callback=_parse)


@click.group("service", invoke_without_command=True, epilog=examples(EXAMPLES))
@click.pass_context
def command(ctx: click.Context) -> None:
    """Register services on a Windows host, so that VMs reach them.

    A SERVICE is a port or a GUID. Only administrators may register and unregister. Loopback and WSL2 need no
    registration.
    """
    if ctx.invoked_subcommand is None:
        print_text(ctx.get_help())


@command.command("list", epilog=examples("  hvsock service list --json | jq '.[] | select(.owned)'"))
@as_json
def list_(as_json: bool) -> None:
    """List the registered services, Windows' own among them.

    "here" marks those that hvsock registered.
    """
    with doing("list services"):
        found = services.list_services()
    if as_json:
        print_json([{"id": str(s.id), "port": s.port, "name": s.name, "owned": s.owned} for s in found])
        return
    rows = [(s.id, "" if s.port is None else s.port, "here" if s.owned else "", s.name) for s in found]
    print_table(("service", "port", "by", "name"), rows, numbers=("port",))


@command.command("register", epilog=examples('  hvsock service register 5000 "My service"'))
@service_argument
@click.argument("name")
@click.option("--exist-ok", is_flag=True, help="Succeed if the service is already registered.")
def register(service: uuid.UUID, name: str, exist_ok: bool) -> None:
    """Let VMs reach SERVICE; NAME is a description."""
    with doing(f"register {service}"), checking_arguments():
        done = services.register(service, name, exist_ok=exist_ok)
    print_lines(f"{done.id} is registered: {done.name}")


@command.command("unregister", epilog=examples("  hvsock service unregister 5000"))
@service_argument
@click.option("--missing-ok", is_flag=True, help="Succeed if the service is not registered.")
@click.option("--force", is_flag=True, help="Remove it even if another program registered it.")
def unregister(service: uuid.UUID, missing_ok: bool, force: bool) -> None:
    """Remove the registration of SERVICE."""
    with doing(f"unregister {service}"), checking_arguments():
        services.unregister(service, missing_ok=missing_ok, force=force)
    print_lines(f"{service} is not registered")


@command.command(
    "export",
    epilog=examples("""
  hvsock service export -o my.reg 5000 "My service" 5001 "Its log"
  reg import my.reg /reg:64               there, in an elevated terminal
"""),
)
@click.argument("pairs", metavar="SERVICE NAME...", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write; stdout by default."
)
def export(pairs: tuple[str, ...], output: Path | None) -> None:
    """Make a .reg file that registers services on any Windows host.

    The file is UTF-16, which PowerShell changes at `>`: name the file with --output.
    """
    if len(pairs) % 2:
        raise click.UsageError("each SERVICE needs a NAME after it")
    named = [(parse_service(text), name) for text, name in zip(pairs[::2], pairs[1::2], strict=True)]
    if len(dict(named)) < len(named):
        raise click.UsageError("a SERVICE is given twice")
    with checking_arguments():
        content = services.reg_file(dict(named))
    if output is not None:
        try:
            write_file(output, content)
        except OSError as error:
            raise Failure(f"write {output}: {error.strerror}") from error
    elif stdout().isatty():
        print_lines(*content.decode("utf-16").splitlines())
    else:
        with writing():
            stdout().buffer.write(content)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: the old content stays until the new one is on the disk.

    Anything but a regular file, such as a pipe, is written to directly.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = path.resolve()  # so that a link stays a link
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = new.open("xb")
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, new)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
