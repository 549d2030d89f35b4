"""Writes reference/cli.md from the commands themselves: `python docs/cli_reference.py`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from hvsock._cli import cli

PAGE: Final = Path(__file__).resolve().parent / "reference" / "cli.md"

INTRODUCTION: Final = """\
# Command line

Made by `docs/cli_reference.py` from what `--help` says. The command needs the extra `cli`. `python -m hvsock` is the
same.

Exit codes: 0, 1 for a failure, 2 for a usage error, 130 after Ctrl-C where that is not the usual end. A failure is one
line on stderr; `hvsock --debug COMMAND` adds the trace. Text of peers and of the system is escaped. Colours and
progress are shown on terminals only; `NO_COLOR` turns the colours off.
"""


def pages() -> Iterator[str]:
    """Yield the text of each command, the group's own first."""
    yield INTRODUCTION
    root = click.Context(cli, info_name="hvsock", **cli.context_settings)
    yield from sections(cli, root)


def sections(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the section of a command, and those of its own commands."""
    yield f"## {context.command_path}\n\n```text\n{usage(command, context)}\n```\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    options = [param for param in command.params if isinstance(param, click.Option)]
    if options:
        rows = "".join(f"| `{escaped(name_of(option))}` | {escaped(meaning_of(option))} |\n" for option in options)
        yield f"| option | meaning |\n| --- | --- |\n{rows}"
    _, _, examples = (command.epilog or "").partition("Examples:\n")
    yield f"```text\n{inspect.cleandoc(examples)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.commands[name]
            yield from sections(child, click.Context(child, parent=context, info_name=name))


# Not click's own words for these: they differ from version to version.


def usage(command: click.Command, context: click.Context) -> str:
    """Return the line that `--help` begins with."""
    arguments = [
        param.metavar or "|".join(getattr(param.type, "choices", [])) or str(param.name).upper()
        for param in command.params
        if isinstance(param, click.Argument)
    ]
    if isinstance(command, click.Group):
        arguments = ["COMMAND ..."]
    return " ".join([context.command_path, "[OPTIONS]", *arguments])


def name_of(option: click.Option) -> str:
    """Return an option's names, and what it takes."""
    names = " / ".join(", ".join(some) for some in (option.opts, option.secondary_opts) if some)
    if option.is_flag:
        return names
    choices = "|".join(getattr(option.type, "choices", []))
    return f"{names} {choices or option.metavar or option.type.name.partition(' ')[0].upper()}"


def meaning_of(option: click.Option) -> str:
    """Return an option's help, with its default, its range and its environment variable."""
    text = option.help or ""
    if option.show_default:
        text += f" Default: {option.default}."
    if isinstance(option.type, click.IntRange) and option.type.max is not None:
        text += f" From {option.type.min:,} to {option.type.max:,}."
    if option.show_envvar:
        text += f" Environment variable: {option.envvar}."
    return text


def escaped(text: str) -> str:
    """Return the text for a cell of a table."""
    return text.replace("|", "\\|")


def reference() -> str:
    """Return the whole page."""
    return "\n".join(pages())


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference(), encoding="utf-8")
