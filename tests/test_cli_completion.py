"""`hvsock completion`, and the completions themselves."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
import utils
from command_line import command, run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_the_shells(shell: str) -> None:
    result = run("completion", shell)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"_HVSOCK_COMPLETE={shell}_complete" in result.stdout
    program = shutil.which(shell)
    if program is not None:
        done = subprocess.run([program, "-n"], input=result.stdout, capture_output=True, text=True, timeout=utils.LIMIT)
        assert (done.returncode, done.stderr) == (0, "")


def completed(*words: str) -> list[str]:
    """Return what bash is offered for the last word."""
    env = {
        "_HVSOCK_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["hvsock", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(command(), env={**os.environ, **env}, capture_output=True, text=True, timeout=utils.LIMIT)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_commands_options_and_addresses_are_completed() -> None:
    assert completed("pi") == ["ping"]
    assert completed("service", "re") == ["register"]
    assert "--interval" in completed("ping", "--i")
    assert completed("ping", "--transport", "l") == ["local"]
    assert completed("ping", "lo") == ["loopback/"]
    assert completed("ping", "loopback/") == []
    assert completed("completion", "f") == ["fish"]
