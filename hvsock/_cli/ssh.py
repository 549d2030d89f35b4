"""`hvsock ssh` and `hvsock scp`: OpenSSH, whose connection to a VM is `hvsock connect`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Final

import click

from hvsock._addresses import address_of
from hvsock._cli.names import find, is_name
from hvsock._cli.options import checking_arguments, complete_vm, examples, transport_option
from hvsock._cli.output import Failure, end_output
from hvsock._grammar import Written

__all__ = ["scp", "ssh"]

# The options of ssh(1) and scp(1) that take a value, which may be the next word.
_SSH_VALUES: Final = "BbcDEeFIiJLlmOopQRSWw"
_SCP_VALUES: Final = "cDFiJloPSX"
_DESTINATION: Final = re.compile(r"(.*@)?([^@]+?)(?:/([0-9]+|\{?[0-9A-Fa-f-]{36}\}?))?", re.DOTALL)
_ON_A_VM: Final = re.compile(r"([^/:@]+@)?([^/:@]{2,}):(?!//)(.*)", re.DOTALL)  # one letter is a drive of Windows
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # what may stand in a file of known hosts

SSH_EXAMPLES = """
  hvsock ssh root@parent               in a guest: log in to the host
  hvsock ssh "me@My VM" uname -a
  hvsock ssh -i key -p 2222 me@WSL     another port than 22
"""

SCP_EXAMPLES = """
  hvsock scp report.txt "me@My VM:"
  hvsock scp -r WSL:/var/log logs
"""


class _OpenSSH(click.Command):
    """A command whose words, after --transport, are for another program."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the own options, which come first."""
        own = 0
        while own < len(args) and args[own].partition("=")[0] in ("--transport", "--help", "-h"):
            own += 2 if args[own] == "--transport" else 1
        return super().parse_args(ctx, [*args[:own], "--", *args[own:]])


@click.command("ssh", cls=_OpenSSH, epilog=examples(SSH_EXAMPLES))
@transport_option()
@click.argument("words", nargs=-1, required=True, metavar="[USER@]VM[/SERVICE]...", shell_complete=complete_vm)
def ssh(words: tuple[str, ...], transport: str | None) -> int:
    """Log in to a VM by OpenSSH, or run a command there.

    All words but --transport, which comes first, are those of ssh(1). VM is a name or an id, and SERVICE may be a GUID
    or a port above those that -p takes. The VM's sshd must listen on AF_VSOCK, which systemd 256 and later make it do
    by themselves, on port 22.
    """
    place = next(_operands(words, _SSH_VALUES), None)
    if place is None:
        raise click.UsageError("the VM is missing")
    match = _DESTINATION.fullmatch(words[place])
    if match is None:
        raise click.UsageError("the VM is missing")
    service = match[3] or "%p"
    if match[3] is not None:
        with checking_arguments():
            address_of(Written("hvsock", "parent", service, {}))
    hosts = _Hosts(verbose="-v" in words[:place])
    destination = f"{match[1] or ''}{hosts.of(match[2])}"
    options = [_proxy(transport, service), *hosts.options()]
    return _run("ssh", [*options, *words[:place], destination, *words[place + 1 :]])


@click.command("scp", cls=_OpenSSH, epilog=examples(SCP_EXAMPLES))
@transport_option()
@click.argument("words", nargs=-1, required=True, metavar="SOURCE... TARGET")
def scp(words: tuple[str, ...], transport: str | None) -> int:
    """Copy files to and from a VM by OpenSSH.

    A file of a VM is [USER@]VM:PATH. All words but --transport, which comes first, are those of scp(1), and as for
    `hvsock ssh`.
    """
    given = list(words)
    hosts = _Hosts(verbose="-v" in words)
    for place in _operands(words, _SCP_VALUES):
        if match := _ON_A_VM.fullmatch(words[place]):
            given[place] = f"{match[1] or ''}{hosts.of(match[2])}:{match[3]}"
    return _run("scp", [_proxy(transport), *hosts.options(), *given])


def _operands(words: Sequence[str], values: str) -> Iterator[int]:
    """Yield where the words are that are neither options nor the values of those."""
    is_value = options_ended = False
    for place, word in enumerate(words):
        if is_value:
            is_value = False
        elif options_ended or not word.startswith("-") or word == "-":
            yield place
        elif word == "--":
            options_ended = True
        else:
            takes = next((number for number, letter in enumerate(word) if number and letter in values), None)
            is_value = takes == len(word) - 1


class _Hosts:
    """The VMs of one command, under the names that OpenSSH gets: the id, or loopback, parent and so on."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._keys: dict[str, str] = {}

    def of(self, vm: str) -> str:
        """Return the host of a VM, given by its name or its id."""
        host = str(find(vm, verbose=self._verbose)) if is_name(vm) else vm.strip("{}").lower()
        self._keys[host] = f"{vm if is_name(vm) and _PLAIN.fullmatch(vm) else host}.hvsock".lower()
        return host

    def options(self) -> list[str]:
        """Return the options that name the VM in the file of known hosts: WSL's id is another one at each start."""
        return [f"-oHostKeyAlias={key}" for key in self._keys.values()] if len(self._keys) == 1 else []


def _proxy(transport: str | None, service: str = "%p") -> str:
    # -P: without the current directory, in which there may be another hvsock.
    command = [sys.executable, "-P", "-m", "hvsock", "connect"]
    if transport is not None:
        command += ["--transport", transport]
    quoted = subprocess.list2cmdline(command) if sys.platform == "win32" else shlex.join(command)
    return f"-oProxyCommand={quoted.replace('%', '%%')} hvsock://%h/{service}"


def _run(name: str, words: Sequence[str]) -> int:
    program = shutil.which(name)
    if program is None:
        raise Failure(f"{name} is not on PATH", ["install the client of OpenSSH"])
    end_output()
    if sys.platform != "win32":
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
        os.execv(program, [name, *words])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program
    return subprocess.call([program, *words])
