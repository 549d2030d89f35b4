"""`hvsock service`, over a stand-in for the registry's functions, and for real in the Windows bench."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import utils
from command_line import ESCAPED, NASTY, command, failure, on_terminal, posix, run

import hvsock
from hvsock import services

PORT = hvsock.service_id_from_port(5000)
OTHER = uuid.UUID("6f2a3b7e-51a4-4c0d-9a53-0c5d1e7f8a42")
TAKEN = r"HKLM\a\key"


def test_list(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [services.Service(PORT, "My service", True), services.Service(OTHER, NASTY, False)]
    monkeypatch.setattr(services, "list_services", lambda: found)
    result = run("service", "list")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split(maxsplit=3) for line in result.stdout.splitlines()] == [
        ["service", "port", "by", "name"],
        [str(PORT), "5000", "here", "My service"],
        [str(OTHER), *ESCAPED.split(maxsplit=2)],
    ]
    assert json.loads(run("service", "list", "--json").stdout) == [
        {"id": str(PORT), "port": 5000, "name": "My service", "owned": True},
        {"id": str(OTHER), "port": None, "name": NASTY, "owned": False},
    ]


@pytest.mark.parametrize("text", ["5000", str(PORT), f"{{{str(PORT).upper()}}}"])
def test_register_and_unregister(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def register(*args: Any, **kwargs: Any) -> services.Service:
        calls.append(("register", args, kwargs))
        return services.Service(args[0], args[1], True)

    monkeypatch.setattr(services, "register", register)
    monkeypatch.setattr(services, "unregister", lambda *args, **kwargs: calls.append(("unregister", args, kwargs)))
    assert run("service", "register", text, "My service").stdout == f"{PORT} is registered: My service\n"
    run("service", "register", "--exist-ok", text, "x")
    assert run("service", "unregister", text).stdout == f"{PORT} is not registered\n"
    run("service", "unregister", "--force", "--missing-ok", text)
    assert calls == [
        ("register", (PORT, "My service"), {"exist_ok": False}),
        ("register", (PORT, "x"), {"exist_ok": True}),
        ("unregister", (PORT,), {"missing_ok": False, "force": False}),
        ("unregister", (PORT,), {"missing_ok": True, "force": True}),
    ]


def test_a_refusal_has_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        error = PermissionError(13, "Access is denied", TAKEN)
        error.add_note("run this once in an elevated terminal: reg add")
        raise error

    monkeypatch.setattr(services, "register", refuse)
    line = failure("service", "register", "5000", "x")
    assert line == f"register {PORT}: Access is denied: {TAKEN} (run this once in an elevated terminal: reg add)"


@pytest.mark.parametrize("name", ["", "a\nb"])
def test_a_name_that_is_none(name: str) -> None:
    assert "the name of a service" in failure("service", "register", "5000", name, code=2)


@posix
def test_elsewhere_it_is_one_clear_error() -> None:
    for args in (("list",), ("register", "5000", "x"), ("unregister", "5000")):
        assert "this is not Windows" in failure("service", *args)


# Export


def test_export(tmp_path: Path) -> None:
    expected = services.reg_file({PORT: "My servicé", OTHER: 'a "name"'})
    pairs = ("5000", "My servicé", str(OTHER), 'a "name"')
    result = run("service", "export", *pairs)
    assert (result.exit_code, result.stderr, result.stdout_bytes) == (0, "", expected)
    file = tmp_path / "my.reg"
    file.write_bytes(b"what was there before")
    result = run("service", "export", "-o", str(file), *pairs)
    assert (result.exit_code, result.output) == (0, "")
    assert file.read_bytes() == expected
    assert os.listdir(tmp_path) == ["my.reg"]


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "my.reg"
    file.write_bytes(b"what was there before")
    monkeypatch.setattr(os, "fsync", full)
    line = failure("service", "export", "-o", str(file), "5000", "x")
    assert line == f"write {file}: No space left on device"
    assert file.read_bytes() == b"what was there before"
    assert os.listdir(tmp_path) == ["my.reg"]
    assert failure("service", "export", "-o", str(tmp_path / "none" / "x"), "5000", "x").startswith(f"write {tmp_path}")
    assert "is a directory" in failure("service", "export", "-o", str(tmp_path), "5000", "x", code=2)


@posix
def test_export_leaves_links_and_modes(tmp_path: Path) -> None:
    """The file that a link leads to is written; a new file is as open as any, an old one as it was."""
    link, file = tmp_path / "link.reg", tmp_path / "my.reg"
    link.symlink_to(file)
    new: list[int] = []
    old: list[int] = []
    for modes, mask in ((new, 0o022), (old, 0o077)):
        before = os.umask(mask)
        try:
            assert run("service", "export", "-o", str(link), "5000", "x").exit_code == 0
        finally:
            os.umask(before)
        modes.append(file.stat().st_mode & 0o777)
    assert (new, old) == ([0o644], [0o644])
    assert link.is_symlink()
    assert file.read_bytes() == services.reg_file({PORT: "x"})


@posix
def test_export_to_what_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = utils.Task(pipe.read_bytes)
    assert run("service", "export", "-o", str(pipe), "5000", "x").exit_code == 0
    assert reading.result() == services.reg_file({PORT: "x"})
    assert pipe.is_fifo()


@posix
def test_export_on_a_terminal_is_readable() -> None:
    with on_terminal("service", "export", "5000", "My service") as (process, shown, _):
        text = shown()
        assert process.wait(utils.LIMIT) == 0
    assert text.startswith("Windows Registry Editor Version 5.00\r\n")
    assert '"ElementName"="My service"\r\n' in text


def test_export_as_a_process() -> None:
    done = subprocess.run(command("service", "export", "5000", "x"), capture_output=True, timeout=utils.LIMIT)
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", services.reg_file({PORT: "x"}))


# The registry


@pytest.mark.skipif(not utils.WINE, reason="the registry is written to in the Windows bench only: tests/windows/run")
def test_the_registry() -> None:
    if sys.platform == "win32":
        import winreg

        winreg.CreateKeyEx(winreg.HKEY_LOCAL_MACHINE, services.REGISTRY_KEY, 0, winreg.KEY_ALL_ACCESS).Close()
    new = str(uuid.uuid4())
    assert run("service", "register", new, "A test").exit_code == 0
    try:
        assert {"id": new, "port": None, "name": "A test", "owned": True} in json.loads(
            run("service", "list", "--json").stdout
        )
        assert "registered already" in failure("service", "register", new, "A test")
        assert run("service", "register", "--exist-ok", new, "Another name").exit_code == 0
        assert "Another name" in run("service", "list").stdout
    finally:
        assert run("service", "unregister", new).exit_code == 0
    assert "not registered" in failure("service", "unregister", new)
    assert run("service", "unregister", "--missing-ok", new).exit_code == 0
