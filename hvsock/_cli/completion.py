"""`hvsock completion`: the script by which a shell completes this command's words."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from hvsock._cli.options import COMPLETE, examples
from hvsock._cli.output import stdout, writing

__all__ = ["command"]

SHELLS = ("bash", "zsh", "fish")

EXAMPLES = """
  hvsock completion bash > ~/.local/share/bash-completion/completions/hvsock
  eval "$(hvsock completion zsh)"
  hvsock completion fish > ~/.config/fish/completions/hvsock.fish
"""


@click.command("completion", epilog=examples(EXAMPLES))
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    It completes commands, options and addresses. It needs bash 4.4 or later, zsh, or fish.
    """
    root = ctx.find_root()
    made_for = get_completion_class(shell)
    assert made_for is not None
    # The class's own source() runs bash to check its version, but the script may be for another machine.
    script = ShellComplete.source(made_for(root.command, {}, "hvsock", COMPLETE))
    with writing():
        stdout().write(script)
