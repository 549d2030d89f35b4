"""The `hvsock` command as a whole: how it ends, what it says of errors, and a stdout that fails."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import utils
from command_line import ESCAPED, NASTY, command, failure, posix, run

import hvsock
from hvsock._cli import cli, info, output
from hvsock._cli.options import Seconds
from hvsock._cli.output import Failure, doing, print_lines, print_table


def leaves(group: click.Group = cli, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the words of every command that is no group."""
    found = []
    for name, it in group.commands.items():
        found += leaves(it, (*path, name)) if isinstance(it, click.Group) else [(*path, name)]
    return found


LEAVES = leaves()


def test_there_are_the_commands() -> None:
    assert {path[0] for path in LEAVES} == {
        "bench", "completion", "connect", "demo", "echo", "info", "listen", "ping", "relay", "scp", "service",
        "ssh", "vm",
    }  # fmt: skip
    assert {path[1] for path in LEAVES if path[0] == "service"} == {"list", "register", "unregister", "export"}
    assert {path[1] for path in LEAVES if path[0] == "vm"} == {"list", "id"}


def examples(text: str) -> list[list[str]]:
    """Return the words of every example in a help text, without `hvsock`, and without what is piped and redirected."""
    found = []
    for line in text.partition("Examples:")[2].splitlines():
        _, there, words = line.partition("hvsock ")
        if there:
            words = re.split(r" {2,}| [|<>] |\)\"", words)[0]
            found.append(shlex.split(re.sub(r"\$\(.*?\)", "parent", words)))
    return found


@pytest.mark.parametrize("path", [(), ("service",), ("vm",), *LEAVES], ids=" ".join)
def test_help_has_examples_that_parse(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(" ".join(["Usage: hvsock", *path]))
    assert run(*path, "-h").stdout == result.stdout
    shown = examples(result.stdout)
    assert any(tuple(words[: len(path)]) == path for words in shown)
    for words in shown:
        it: click.Command = cli
        while isinstance(it, click.Group):
            it = it.commands[words.pop(0)]
        it.make_context("hvsock", words, parent=click.Context(cli, **cli.context_settings))


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_a_table_can_be_had_as_json(path: tuple[str, ...]) -> None:
    it: Any = cli
    for name in path:
        it = it.commands[name]
    has_json = any("--json" in option.opts for option in it.params)
    assert has_json == (
        path in {("bench",), ("demo",), ("info",), ("ping",), ("relay",), ("service", "list"), ("vm", "list")}
    )


@pytest.mark.parametrize(
    "args",
    [
        ("--bogus",), ("bogus",), ("demo", "--count", "0"), ("info", "extra"), ("demo", "-x"),
        ("ping",), ("ping", "pigeon"), ("ping", "parent/x"), ("ping", "parent/4294967295"), ("ping", "tcp://parent/1"),
        ("ping", "pa\x1brent"), ("ping", "hvsock:///1"), ("ping", "vsock:2:4294967295"), ("ping", "My VM/x"),
        ("ping", "parent/1?transport=pigeon"), ("ping", "--transport", "local", "parent/1?transport=vsock"),
        ("ping", "--transport", "local", "vsock:2:1"), ("ssh",), ("ssh", "-l", "me"), ("ssh", "me@"), ("scp",),
        ("ping", "-c", "0", "parent/1"), ("ping", "-i", "nan", "parent/1"),
        ("ping", "-w", "0", "parent/1"), ("ping", "--json", "--json-lines", "parent/1"),
        ("ping", "-t", "0", "parent/1"), ("ping", "-t", "inf", "parent/1"), ("ping", "-s", "0", "parent/1"),
        ("ping", "--transport", "pigeon", "parent/1"), ("bench", "-s", "1", "-s", "x", "parent/1"), ("echo", "5000"),
        ("connect", "parent/5000", "--retry-for", "-1"), ("listen", ""), ("completion", "csh"),
        ("relay", "tcp://:1"), ("relay", "pigeon", "tcp://:1"), ("relay", "tcp://:1", "hvsock://wildcard/5000/"),
        ("service", "register", "x", "name"), ("service", "register", "-1", "name"), ("service", "export", "5000"),
        ("service", "export"), ("service", "export", "1", "a", "1", "b"), ("service", "export", "1", "a\nb"),
        ("vm", "list", "--source", "pigeon"), ("vm", "id"), ("vm", "id", ""),
    ],
    ids=" ".join,
)  # fmt: skip
def test_usage_errors_are_one_line_and_exit_2(args: tuple[str, ...]) -> None:
    line = failure(*args, code=2)
    assert line.isprintable()
    assert re.search(r" \(see 'hvsock( [a-z]+){0,2} --help'\)$", line)


@pytest.mark.parametrize(
    ("args", "path"),
    [
        (("ping", "loopback/1", "--count"), "hvsock ping"),
        (("--debug", "vm", "list", "--source"), "hvsock vm list"),
        (("ping", "--cuont", "3", "loopback/1"), "hvsock ping"),
        (("service", "--x"), "hvsock service"),
        (("--x",), "hvsock"),
        (("pign",), "hvsock"),
    ],
)
def test_a_usage_error_names_the_help_of_its_command(args: tuple[str, ...], path: str) -> None:
    assert failure(*args, code=2).endswith(f" (see '{path} --help')")


def test_choices_are_on_the_line_of_the_error() -> None:
    assert failure("completion", code=2).endswith(". Choose from: bash, zsh, fish (see 'hvsock completion --help')")


@pytest.mark.parametrize("path", [(), ("service",), ("vm",)], ids=" ".join)
def test_a_group_alone_lists_its_commands(path: tuple[str, ...]) -> None:
    result = run(*path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == run(*path, "--help").stdout


@pytest.mark.parametrize("path", [(), ("service",), ("vm",), *LEAVES], ids=" ".join)
def test_help_fits_80_columns(path: tuple[str, ...]) -> None:
    result = run(*path, "--help", env={"COLUMNS": "80"})
    assert [line for line in result.stdout.splitlines() if len(line) > 80] == []


def test_an_address_may_be_short(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def refuse(address: hvsock.HyperVAddress, *_: object, **__: object) -> None:
        seen.append(address)
        raise OSError("no")

    monkeypatch.setattr(hvsock, "create_connection", refuse)
    for text in (
        "parent/5000", "hvsock://parent/5000", "HVSOCK://Parent/00001388-facb-11e6-bd58-64006a7986d3",
        "vsock:2:5000", "vsock://2:5000?transport=local", "parent/5000?transport=local",
    ):  # fmt: skip
        assert failure("connect", text) == "connect to hvsock://parent/5000: no"
    assert set(seen) == {hvsock.HyperVAddress.parse("hvsock://parent/5000")}


def test_seconds() -> None:
    assert Seconds().convert("1e-3", None, None) == 0.001
    assert Seconds(positive=False).convert("0", None, None) == 0.0
    for text in ("nan", "inf", "-1", "0", "1e9", "x", ""):
        with pytest.raises(click.BadParameter):
            Seconds().convert(text, None, None)


def test_an_address_that_the_transport_does_not_have(local: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HVSOCK_TRANSPORT", "local")
        assert failure("connect", "wildcard/1").startswith("connect to hvsock://wildcard/1: ")


# errors


def test_an_error_is_one_line_with_its_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        error = ConnectionResetError(104, NASTY)
        error.add_note("first\nand more.")
        error.add_note(f"second {NASTY}")
        raise error

    monkeypatch.setattr(info, "gather_info", fail)
    line = failure("info")
    assert line == rf"{ESCAPED} (first\nand more; second {ESCAPED})"
    assert line.isprintable()


def test_debug_shows_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "gather_info", lambda: 1 / 0)
    assert failure("info") == "ZeroDivisionError: division by zero"
    result = run("--debug", "info")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "hvsock: ZeroDivisionError: division by zero"


def test_an_error_without_words_is_named() -> None:
    assert Failure.of(OSError()).message == "OSError"
    assert Failure.of(KeyError("x")).message == "KeyError: 'x'"
    assert Failure.of(TimeoutError("timed out")).message == "timed out"


def test_what_was_being_done_is_said_once() -> None:
    with pytest.raises(Failure) as caught, doing("connect to b"):
        error = ConnectionRefusedError(111, "refused")
        error.add_note("connect on transport local, peer b")
        error.add_note("known cause: none.")
        raise error
    assert str(caught.value) == "connect to b: refused (known cause: none)"


def test_ctrl_c_is_130_and_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "gather_info", interrupt)
    result = run("info")
    assert (result.exit_code, result.output) == (130, "")


# stdout

FULL = r"^standard output: No space left on device$"


@pytest.mark.parametrize(
    "args",
    [("info",), ("info", "--json"), ("--help",), ("info", "--help"), ("--version",), ("completion", "bash")],
    ids=" ".join,
)
@posix
def test_nobody_reads_the_output(args: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command(*args), stdout=writer, stderr=subprocess.PIPE, text=True, timeout=utils.LIMIT)
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert re.fullmatch(r"hvsock: (standard output: )?Broken pipe\n", done.stderr)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="a disk that is always full is Linux's /dev/full")
@pytest.mark.parametrize(
    "args",
    [("info",), ("info", "--json"), ("--help",), ("--version",), ("service", "export", "5000", "x")],
    ids=" ".join,
)
def test_a_full_disk(args: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command(*args), stdout=full, stderr=subprocess.PIPE, text=True, timeout=utils.LIMIT)
    assert done.returncode == 1
    assert re.fullmatch(r"hvsock: (standard output: )?No space left on device\n", done.stderr)


@posix
@pytest.mark.parametrize("args", ["info", "info --json", "vm list --source vsock --json"])
def test_no_output_at_all(args: str) -> None:
    line = f"{subprocess.list2cmdline(command())} {args} >&-"
    done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, timeout=utils.LIMIT)
    assert (done.returncode, done.stderr) == (1, "hvsock: standard output is closed\n")
    silent = subprocess.run(["sh", "-c", f"{line} 2>&-"], timeout=utils.LIMIT)
    assert silent.returncode == 1


def test_an_output_that_fails_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(Failure, match=FULL):
        output.end_output()
    with pytest.raises(Failure, match=FULL):
        print_lines("x")


def test_a_table_escapes_and_aligns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "number"), [(NASTY, 1), ("x", 1000)], numbers=("number",))
    names, first, second = capsys.readouterr().out.splitlines()
    width = len(ESCAPED)
    assert names == f"{'name':<{width}}  number"
    assert first == f"{ESCAPED}       1"
    assert second == f"{'x':<{width}}    1000"


def test_the_reference_is_what_the_help_says() -> None:
    directory = utils.TESTS.parent / "docs"
    if not directory.exists():
        pytest.skip("docs is not beside the tests: run them from a clone")
    code = "import sys, cli_reference; sys.stdout.buffer.write(cli_reference.reference().encode())"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=directory, capture_output=True, timeout=utils.LIMIT)
    assert (done.returncode, done.stderr) == (0, b"")
    page = (directory / "reference" / "cli.md").read_text(encoding="utf-8")
    assert page == done.stdout.decode(), "run python docs/cli_reference.py"
    assert "| By default hyperv on Windows, vsock elsewhere. Environment variable: HVSOCK_TRANSPORT. |" in page
    for path in LEAVES:
        assert f"\n## hvsock {' '.join(path)}\n" in page
