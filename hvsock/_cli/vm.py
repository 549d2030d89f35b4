"""`hvsock vm`: the ids of virtual machines."""

from __future__ import annotations

import click

from hvsock import vms
from hvsock._cli.names import find
from hvsock._cli.options import Seconds, as_json, checking_arguments, examples
from hvsock._cli.output import Failure, print_json, print_lines, print_note, print_table, print_text

__all__ = ["command"]

EXAMPLES = """
  hvsock vm list --source hcs --source wmi
  hvsock vm id "My VM"                   as Hyper-V Manager calls it
  hvsock vm id WSL                       the VM of WSL2, on either side
"""

ID_EXAMPLES = """
  hvsock vm id "My VM"
  hvsock vm id --verbose Ubuntu          of the VM of a WSL distribution
"""

source_option = click.option(
    "--source",
    "sources",
    type=click.Choice(vms.SOURCES),
    multiple=True,
    help="Where to look; may be repeated. By default those that start no program, then for a name the others.",
)
timeout_option = click.option(
    "-t",
    "--timeout",
    type=Seconds(),
    default=30.0,
    show_default=True,
    help="Give up on a source after this many seconds.",
)


@click.group("vm", invoke_without_command=True, epilog=examples(EXAMPLES))
@click.pass_context
def command(ctx: click.Context) -> None:
    """Find the ids of virtual machines.

    Sources: hcs is the Host Compute Service of a Windows host, wmi its Hyper-V management (through PowerShell), wsl is
    wslinfo, guest is what the host told this guest about itself, and vsock is a Linux guest's own CID.
    """
    if ctx.invoked_subcommand is None:
        print_text(ctx.get_help())


@command.command("list", epilog=examples("  hvsock vm list --source hcs --source wmi --json"))
@source_option
@timeout_option
@as_json
def list_(sources: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """List the VMs that the sources know.

    On a host these are its VMs, in a guest the guest itself. Sources that do not answer are named on stderr.
    """
    found = vms.list_vms(sources or None, timeout=timeout)
    if as_json:
        print_json(
            {
                "vms": [{**vm._asdict(), "id": str(vm.id)} for vm in found],
                "failures": [{"source": failure.source, "reason": str(failure)} for failure in found.failures],
            }
        )
        return
    print_table(vms.VM._fields, found)
    for failure in found.failures:
        print_note(str(Failure.of(failure)))


@command.command("id", epilog=examples(ID_EXAMPLES))
@click.argument("name")
@source_option
@timeout_option
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr what each source says.")
def id_(name: str, sources: tuple[str, ...], timeout: float, verbose: bool) -> None:
    """Print the id of the VM called NAME, as every command looks it up.

    The first source that knows the name decides. Two VMs of that name are an error that has their ids.
    """
    with checking_arguments():
        known = (
            find(name, timeout=timeout, verbose=verbose) if not sources else vms.find_vm(name, sources, timeout=timeout)
        )
    print_lines(known)
