"""What the commands share: exit codes, argument types, and common options."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import click
from click.shell_completion import shell_complete

import hvsock
from hvsock._addresses import ALIASES, address_of
from hvsock._cli.names import address_by_name, is_name
from hvsock._cli.output import Failure, end_output, print_failure
from hvsock._cli.streams import whole_output
from hvsock._grammar import HYPERV_KINDS, Written, read
from hvsock._transports import transport_named

__all__ = [
    "COMPLETE",
    "EXIT_FAILURE",
    "Commands",
    "Seconds",
    "as_json",
    "checking_arguments",
    "complete_vm",
    "examples",
    "transport_option",
    "until_interrupted",
]

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports

COMPLETE = "_HVSOCK_COMPLETE"  # the environment variable by which a shell asks for completions
DAY = 86_400.0

F = TypeVar("F", bound=Callable[..., Any])


class Commands(click.Group):
    """A group whose errors are one line each, and whose exit codes are 0, 1, 2 and 130.

    A command that fails without an error message returns its exit code.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command and exit, whatever `standalone_mode` says.

        Replaces click's own, which exits silently on a broken pipe and prints an empty line on Ctrl-C.
        """
        with whole_output():
            code = self._run(list(sys.argv[1:] if args is None else args), prog_name or "hvsock", extra)
        sys.exit(code)

    def _run(self, args: list[str], name: str, extra: dict[str, Any]) -> int:
        if instruction := os.environ.get(COMPLETE):
            return shell_complete(self, extra, name, COMPLETE, instruction)
        debug = False
        code = 0
        try:
            with self.make_context(name, args, **extra) as context:
                debug = context.params["debug"]
                if debug:
                    import traceback  # noqa: F401 - now, since an error may leave no descriptor to do it with
                code = self.invoke(context) or 0
        except click.exceptions.Exit as ending:
            code = ending.exit_code
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else self._path(name, args)
            message = error.format_message().replace("\n\t", " ").rstrip(".")  # click lists choices on lines
            print_failure(Failure(f"{message} (see '{command} --help')"), debug=False)
            code = EXIT_USAGE
        except (KeyboardInterrupt, click.Abort):
            code = EXIT_INTERRUPTED
        except Exception as error:
            print_failure(Failure.of(error), debug=debug)
            code = EXIT_FAILURE
        try:
            end_output()
        except Failure as failure:
            if code == 0:
                print_failure(failure, debug=debug)
            code = code or EXIT_FAILURE
        return code

    def _path(self, name: str, args: list[str]) -> str:
        """Return the words that name the command which the arguments are for: not every error of click knows it."""
        words = [name]
        command: click.Command = self
        for word in args:
            if isinstance(command, click.Group) and word in command.commands:
                command = command.commands[word]
                words.append(word)
        return " ".join(words)


@contextlib.contextmanager
def until_interrupted() -> Iterator[None]:
    """End the block, without an error, on Ctrl-C or SIGTERM: so a service ends."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def checking_arguments() -> Iterator[None]:
    """Turn a ValueError of the package into a usage error."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


# --- arguments and options --------------------------------------------------------------------------------------------


def address_argument(function: F) -> F:
    """Add the argument ADDRESS, which the command gets as a `HyperVAddress`, and --verbose if it has none of its own.

    A VM that is given by its name is looked up. What the address says of the transport is the command's `transport`.
    """
    has_verbose = any(param.name == "verbose" for param in getattr(function, "__click_params__", ()))

    @functools.wraps(function)
    def with_address(*, address: Written, transport: str | None, verbose: bool, **others: Any) -> Any:
        if has_verbose:
            others["verbose"] = verbose
        transport = _chosen_transport(address, transport)
        return function(address=address_by_name(address, verbose=verbose), transport=transport, **others)

    if not has_verbose:
        click.option("-v", "--verbose", is_flag=True, help="Say on stderr where the name of a VM is looked up.")(
            with_address
        )
    argument = click.argument("address", callback=_read_address, shell_complete=_complete_address)
    return cast("F", argument(with_address))


def _read_address(ctx: click.Context, param: click.Parameter, text: str) -> Written:
    try:
        written = read(text, HYPERV_KINDS)
        if not written.place and written.kind == "hvsock":
            raise ValueError("the name of a VM is empty")
        if written.transport is not None:
            transport_named(written.transport)
        by_name = written.kind == "hvsock" and is_name(written.place)  # looked up later, if all else is right
        address_of(written._replace(place="parent") if by_name else written)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    return written


def _chosen_transport(address: Written, option: str | None) -> str | None:
    """Return the transport that the address names, else the option's, which is also in the environment."""
    ctx = click.get_current_context()
    given = ctx.get_parameter_source("transport") is click.core.ParameterSource.COMMANDLINE
    if given and address.transport not in (None, option):
        raise click.UsageError(f"the address is for transport {address.transport}, and --transport is {option}", ctx)
    return address.transport or option


def _complete_address(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [f"{vm}/" for vm in ALIASES if vm.startswith(incomplete)]


def complete_vm(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Offer what can be connected to without knowing its id, after a user or without."""
    user, at, vm = incomplete.rpartition("@")
    return [f"{user}{at}{alias}" for alias in ("loopback", "parent", "silohost") if alias.startswith(vm)]


class Seconds(click.FloatRange):
    """A number of seconds, from none (or more than none) to a day."""

    name = "seconds"

    def __init__(self, *, positive: bool = True) -> None:
        super().__init__(0, DAY, min_open=positive)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse it, and refuse NaN, which is in no range."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return number


def transport_option(default: str = "hyperv on Windows, vsock elsewhere") -> Callable[[F], F]:
    """Return a decorator that adds the option --transport; `default` describes the default."""
    return click.option(
        "--transport",
        type=click.Choice([transport.name for transport in hvsock.transports()]),
        envvar="HVSOCK_TRANSPORT",
        show_envvar=True,
        help=f"By default {default}.",
    )


def as_json(function: F) -> F:
    """Add the option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")(function)


def examples(text: str) -> str:
    """Return the epilog of a command's help: its examples, one a line, unfolded."""
    return f"\b\nExamples:\n{text.strip(chr(10))}"
