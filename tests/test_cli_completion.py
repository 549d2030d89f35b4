"""`hvsock completion`, and the completions themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import click
import pytest
import utils
from click.shell_completion import ShellComplete
from command_line import command, run

from hvsock._cli import cli
from hvsock._cli.options import COMPLETE


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_the_shells(shell: str) -> None:
    result = run("completion", shell)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"_HVSOCK_COMPLETE={shell}_complete" in result.stdout
    program = shutil.which(shell)
    if program is not None:
        done = subprocess.run([program, "-n"], input=result.stdout, capture_output=True, text=True, timeout=utils.LIMIT)
        assert (done.returncode, done.stderr) == (0, "")


def asked(*words: str) -> dict[str, str]:
    """Return the environment in which bash asks for completions of the last word."""
    return {
        "_HVSOCK_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["hvsock", *words]),
        "COMP_CWORD": str(len(words)),
    }


def completed(*words: str) -> list[str]:
    """Return what bash is offered for the last word."""
    result = run(env=asked(*words))
    assert result.stderr == ""
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_the_command_answers_the_shell() -> None:
    env = {**os.environ, **asked("pi")}
    done = subprocess.run(command(), env=env, capture_output=True, text=True, timeout=utils.LIMIT)
    assert (done.stdout, done.stderr) == ("plain,ping\n", "")


def test_commands_options_and_addresses_are_completed() -> None:
    assert completed("pi") == ["ping"]
    assert completed("service", "re") == ["register"]
    assert "--interval" in completed("ping", "--i")
    assert completed("ping", "--transport", "l") == ["local"]
    assert completed("ping", "lo") == ["loopback/"]
    assert completed("ping", "loopback/") == []
    assert completed("completion", "f") == ["fish"]


def options(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Option]]:
    """Yield each option of each command, with the words of the command."""
    yield from ((path, option) for option in group.params if isinstance(option, click.Option))
    for name, it in group.commands.items():
        if isinstance(it, click.Group):
            yield from options(it, (*path, name))
        else:
            yield from (((*path, name), option) for option in it.params if isinstance(option, click.Option))


def offered(*words: str) -> dict[str, str | None]:
    """Return what every shell is offered for the last word, with what it is for."""
    found = ShellComplete(cli, {}, "hvsock", COMPLETE).get_completions(list(words[:-1]), words[-1])
    return {item.value: item.help for item in found}


def test_every_option_is_completed_with_its_help() -> None:
    for path, option in options():
        assert option.help
        begin = " ".join(option.help.split())[:20]
        for name in (*option.opts, *option.secondary_opts):
            words = (offered(*path, name).get(name) or "").split()
            assert " ".join(words).startswith(begin), (path, name)


def test_values_are_completed() -> None:
    """Where the values are few, each one; a file by the shell. What is a number, a name or an address is not."""
    for path, option in options():
        if isinstance(option.type, click.Choice):
            assert list(offered(*path, option.opts[-1], "")) == list(option.type.choices)
        if isinstance(option.type, click.Path):
            (item,) = ShellComplete(cli, {}, "hvsock", COMPLETE).get_completions([*path, option.opts[-1]], "x")
            assert item.type == "file"
