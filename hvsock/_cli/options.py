"""What the commands share: exit codes, argument types, and common options."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import shell_complete

import hvsock
from hvsock._cli.output import Failure, end_output, print_failure
from hvsock._cli.streams import whole_output

__all__ = [
    "COMPLETE",
    "EXIT_FAILURE",
    "Commands",
    "Seconds",
    "as_json",
    "checking_arguments",
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
    """Add the argument ADDRESS: ``hvsock://VM/SERVICE``, or ``VM/SERVICE``; becomes a `HyperVAddress`."""
    return click.argument("address", callback=_parse_address, shell_complete=_complete_address)(function)


def _parse_address(ctx: click.Context, param: click.Parameter, text: str) -> hvsock.HyperVAddress:
    is_short = "://" not in text
    if is_short and text.count("/") != 1:
        raise click.BadParameter(f"{text!r} is not of the form VM/SERVICE, such as loopback/5000", ctx, param)
    try:
        return hvsock.HyperVAddress.parse(f"hvsock://{text}" if is_short else text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _complete_address(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Offer the names of VMs."""
    return [f"{vm}/" for vm in ("wildcard", "children", "loopback", "parent", "silohost") if vm.startswith(incomplete)]


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
