"""VMs by their names in the commands' addresses: the order of the sources, and what is said of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from command_line import failure, run

import hvsock
from hvsock import relay, vms
from hvsock._cli import names, relays
from hvsock.vms import _registry, _wsl

ONE = uuid.UUID("6f2a3b7e-51a4-4c0d-9a53-0c5d1e7f8a42")
OTHER = uuid.UUID("75d5a99a-c870-4c8b-9e48-5ae02563c8ba")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Have a Windows host whose sources know these VMs, by name, or cannot be asked; return who was asked."""

    def know(**sources: dict[str, uuid.UUID] | list[tuple[str, uuid.UUID]] | str) -> list[str]:
        asked: list[str] = []

        def ask(source: str) -> Callable[[float], list[vms.VM]]:
            def list_vms(timeout: float) -> list[vms.VM]:
                asked.append(source)
                content = sources.get(source, {})
                if isinstance(content, str):
                    raise vms.VMLookupError(content, source)
                pairs = content.items() if isinstance(content, dict) else content
                return [vms.VM(vm_id, name, "Running", "", source) for name, vm_id in pairs]

            return list_vms

        monkeypatch.setattr(_registry, "_ASK", {source: ask(source) for source in vms.SOURCES})
        monkeypatch.setattr(_wsl, "vm_id_of_distribution", lambda name, timeout: None)
        monkeypatch.setattr(names, "_order", lambda: ("hcs", "guest", "wmi", "wsl"))
        return asked

    return know


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the addresses and transports that are connected to."""
    seen: list[Any] = []

    def refuse(address: hvsock.HyperVAddress, *_: object, transport: str | None, **__: object) -> None:
        seen.append((address, transport))
        raise OSError("no")

    monkeypatch.setattr(hvsock, "create_connection", refuse)
    return seen


def test_the_first_source_that_knows_the_name(known: Callable[..., list[str]]) -> None:
    asked = known(hcs={"other": OTHER}, wmi={"My VM": ONE}, wsl={"My VM": OTHER})
    assert names.find("my vm") == ONE
    assert asked == ["hcs", "guest", "wmi"]


@pytest.mark.parametrize("text", ["My VM/5000", "hvsock://My%20VM/5000", "My VM/5000?transport=hyperv"])
def test_in_an_address(known: Callable[..., list[str]], connected: list[Any], text: str) -> None:
    known(hcs={"My VM": ONE})
    transport = "hyperv" if "?" in text else None
    for command in ("connect", "ping"):
        assert failure(command, text, env={"HVSOCK_TRANSPORT": ""}) == f"connect to hvsock://{ONE}/5000: no"
    assert connected == 2 * [(hvsock.as_address((ONE, 5000)), transport)]


def test_ids_and_aliases_are_not_looked_up(known: Callable[..., list[str]], connected: list[Any]) -> None:
    asked = known(hcs={"parent": OTHER, str(ONE): OTHER})
    for text in ("parent/1", f"{{{str(ONE).upper()}}}/1", "vsock:2:1"):
        failure("connect", text)
    assert [address for address, _ in connected] == [
        hvsock.as_address((vm, 1)) for vm in ("parent", ONE, "parent")
    ]  # fmt: skip
    assert asked == []


def test_verbose_shows_the_order_and_who_answered(known: Callable[..., list[str]], connected: list[Any]) -> None:
    known(hcs="needs an administrator", wmi={"My VM": ONE})
    for command in (("connect",), ("bench",)):
        assert run(*command, "-v", "My VM/5000").stderr.splitlines()[:4] == [
            "hvsock: looking for VM 'My VM': hcs, guest, wmi, wsl",
            "hvsock: hcs: needs an administrator",
            "hvsock: guest does not know 'My VM'",
            f"hvsock: wmi: 'My VM' is {ONE}",
        ]
    assert run("vm", "id", "-v", "My VM").stdout == f"{ONE}\n"


def test_two_vms_of_one_name(known: Callable[..., list[str]]) -> None:
    known(hcs=[("twin", ONE), ("twin", OTHER)], wmi={"twin": ONE})
    for words in (("ping", "twin/5000"), ("vm", "id", "twin"), ("ssh", "twin"), ("relay", "tcp::0", "twin/5000")):
        line = failure(*words)
        assert line.startswith("2 VMs are called 'twin': name one by its id (")
        assert str(ONE) in line
        assert str(OTHER) in line


def test_no_source_knows_it(known: Callable[..., list[str]]) -> None:
    known(hcs="needs an administrator")
    assert failure("connect", "wilcard/1") == (
        "no VM is called 'wilcard'; asked: hcs, guest, wmi, wsl "
        "(did you mean wildcard?; hcs: needs an administrator)"
    )  # fmt: skip


def test_a_distribution_of_wsl(known: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    known(wsl={"WSL": ONE})
    of_distribution = {"Ubuntu": ONE}
    monkeypatch.setattr(_wsl, "vm_id_of_distribution", lambda name, timeout: of_distribution.get(name))
    assert names.find("Ubuntu") == names.find("wsl") == ONE


def test_in_a_relay(known: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = known(hcs={"My VM": ONE})
    seen = []

    def refuse(listen: str, connect: str, **_: object) -> None:
        seen.append((listen, connect))
        raise ValueError("no")

    monkeypatch.setattr("hvsock._cli.relay.Relay", refuse)
    failure("relay", "tcp::0", "My VM/5000?transport=local", code=2)
    failure("relay", "parent/1", "unix:/run/a", code=2)
    assert seen == [("tcp::0", f"hvsock://{ONE}/5000?transport=local"), ("parent/1", "unix:/run/a")]
    assert asked == ["hcs"]
    pair = relays.Pair.of({"listen": "tcp::0", "connect": "My VM/5000"})
    assert pair.connect == f"hvsock://{ONE}/5000"


def test_the_library_looks_nothing_up(known: Callable[..., list[str]]) -> None:
    asked = known(hcs={"My VM": ONE})
    for use in (hvsock.HyperVAddress.parse, lambda text: relay.Relay("tcp::0", text)):
        with pytest.raises(ValueError, match="'My VM' is neither a GUID nor one of"):
            use("My VM/5000")
    assert asked == []


@pytest.mark.parametrize(
    ("platform", "wslinfo", "expected"),
    [
        ("win32", None, ("hcs", "guest", "wmi", "wsl")),
        ("linux", None, ("guest", "vsock")),
        ("linux", "/usr/bin/wslinfo", ("guest", "vsock", "wsl")),
        ("darwin", None, ()),
    ],
)
def test_order(platform: str, wslinfo: str | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("shutil.which", lambda _: wslinfo)
    assert names._order() == expected
