"""`hvsock info`: what it tells, and that a wrong setting is no failure."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import types
import uuid
from pathlib import Path

import pytest
import utils
from click.testing import CliRunner
from command_line import ESCAPED, NASTY, on_terminal, plain, posix, run

import hvsock
from hvsock._cli import cli
from hvsock._transports import vsock


def test_info_lists_transports_reasons_ids_and_constants() -> None:
    result = run("info", "--constants")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {line[:28].strip(): line for line in result.stdout.splitlines()}
    text = result.stdout
    for transport in hvsock.transports():
        assert f"transport {transport.name}" in text
        assert transport.available or (transport.reason and transport.reason in text)
    for name in ("HV_GUID_PARENT", "HVSOCKET_CONNECT_TIMEOUT", "AF_HYPERV", "default transport", "local CID"):
        assert name in rows
    assert str(hvsock.HV_GUID_PARENT) in rows["HV_GUID_PARENT"]
    assert rows["local directory"].endswith("none" if utils.WINDOWS else os.environ["HVSOCK_LOCAL_DIR"])
    assert rows["local partition"].endswith("  none" if utils.WINDOWS else "  host")
    short = run("info").stdout
    assert [line.split() for line in short.splitlines()] == [
        line.split() for line in text.splitlines() if line.partition(" ")[0] not in hvsock.__all__
    ]


def test_info_as_json() -> None:
    result = run("info", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert facts["hvsock"] == importlib.metadata.version("hvsock")
    assert [(t["name"], t["available"], t["reason"]) for t in facts["transports"]] == [
        (t.name, t.available, t.reason) for t in hvsock.transports()
    ]
    assert facts["constants"]["HV_GUID_LOOPBACK"] == str(hvsock.HV_GUID_LOOPBACK)
    assert facts["constants"]["HVSOCKET_HIGH_VTL"] == 8
    assert facts["problems"] == []
    assert [t["loopback"] for t in facts["transports"]] == [
        t.available and (t.name != "vsock" or vsock.has_loopback()) for t in hvsock.transports()
    ]
    if utils.WINDOWS:
        assert facts["local"] == {"directory": None, "partition": None}
    else:
        assert facts["local"] == {"directory": os.environ["HVSOCK_LOCAL_DIR"], "partition": "host"}


def test_info_names_every_public_constant() -> None:
    constants = json.loads(run("info", "--json").stdout)["constants"]
    assert set(constants) == {name for name in hvsock.__all__ if name.startswith(("AF_", "HV_", "HVSOCKET_"))}


@posix
def test_info_tells_the_guest_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = uuid.uuid4()
    monkeypatch.setenv("HVSOCK_LOCAL_VM", str(vm))
    assert json.loads(run("info", "--json").stdout)["local"]["partition"] == str(vm)


def test_info_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSOCK_TRANSPORT", "local")
    assert json.loads(run("info", "--json").stdout)["default_transport"] == "local"


@posix
def test_info_reports_wrong_settings_and_does_not_fail(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (local_directory / "file").touch()
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", str(local_directory / "file"))
    monkeypatch.setenv("HVSOCK_LOCAL_VM", "bogus")
    monkeypatch.setenv("HVSOCK_TRANSPORT", "bogus\x1b")
    result = run("info")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\nproblem ") == 3
    facts = json.loads(run("info", "--json").stdout)
    assert facts["default_transport"] is None
    assert facts["local"] == {"directory": None, "partition": None}
    assert str(local_directory / "file") in facts["problems"][1]


@pytest.mark.parametrize(
    ("cid", "text"), [(None, "none"), (3, "3"), (0xFFFFFFFF, "any (a Hyper-V guest reports this)")]
)
def test_info_shows_the_cid(cid: int | None, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "local_cid", lambda: cid)
    assert re.search(rf"^local CID +{re.escape(text)}$", run("info").stdout, re.MULTILINE)
    assert json.loads(run("info", "--json").stdout)["local_cid"] == cid


def test_info_says_whether_loopback_works(monkeypatch: pytest.MonkeyPatch) -> None:
    transports = [
        types.SimpleNamespace(name="hyperv", available=False, reason="AF_HYPERV exists on Windows only.", family=34),
        types.SimpleNamespace(name="vsock", available=True, reason=None, family=40),
    ]
    monkeypatch.setattr(hvsock, "transports", lambda: tuple(transports))
    for has, words in (
        (True, "available, also as loopback"),
        (False, "available, but not as loopback: the vsock loopback module is not loaded (modprobe vsock_loopback)"),
    ):
        monkeypatch.setattr(vsock, "has_loopback", lambda has=has: has)
        lines = run("info").stdout.splitlines()
        assert lines[3:5] == [
            "transport hyperv   not available: AF_HYPERV exists on Windows only.",
            f"transport vsock    {words}",
        ]
        assert [t["loopback"] for t in json.loads(run("info", "--json").stdout)["transports"]] == [False, has]


def test_text_of_others_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = types.SimpleNamespace(name="hyperv", available=False, reason=NASTY, family=34)
    monkeypatch.setattr(hvsock, "transports", lambda: (transport,))
    assert f"not available: {ESCAPED}" in run("info").stdout
    assert json.loads(run("info", "--json").stdout)["transports"][0]["reason"] == NASTY


def test_what_the_encoding_does_not_have_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "local_cid", lambda: "\u00e9\u4e2d")
    result = CliRunner(charset="latin-1").invoke(cli, ["info"])
    assert re.search(r"^local CID +\u00e9\\u4e2d$", result.stdout, re.MULTILINE)


@posix
def test_info_fits_a_terminal() -> None:
    """And leaves a line for the prompt."""
    with on_terminal("info", columns=80) as (process, shown, _):
        lines = plain(shown()).splitlines()
        assert process.wait(utils.LIMIT) == 0
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80


@posix
def test_info_on_a_terminal() -> None:
    with on_terminal("info", "--constants", columns=80) as (process, shown, _):
        text = shown()
        assert process.wait(utils.LIMIT) == 0
    assert "\x1b[1m" in text
    assert "HV_GUID_PARENT" in plain(text)
    assert max(map(len, plain(text).splitlines())) <= 80
