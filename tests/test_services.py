"""Registration of services: in a scratch key of the real registry on Windows, in one in memory elsewhere."""

from __future__ import annotations

import contextlib
import errno
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import registry
import utils
from hypothesis import given, settings
from hypothesis import strategies as st

import hvsock
from hvsock import services

GUID = uuid.UUID("6f2a3b7e-51a4-4c0d-9a53-0c5d1e7f8a42")
PORT = hvsock.service_id_from_port(5000)
REAL_KEY = services.REGISTRY_KEY

bad_services = pytest.mark.parametrize(
    ("service", "kind"),
    [
        ("", ValueError),
        ("agent", ValueError),
        (r"..\Run", ValueError),
        (f"{GUID}\\x", ValueError),
        (str(GUID) + "\n", ValueError),
        ("5000", ValueError),
        (-1, ValueError),
        (0x80000000, ValueError),
        (uuid.UUID(int=0), ValueError),
        (True, TypeError),
        (None, TypeError),
        (1.5, TypeError),
    ],
    ids=repr,
)
bad_names = pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", ValueError),
        ("  ", ValueError),
        ("a\0b", ValueError),
        ("a\r\nb", ValueError),
        ("a\u2028b", ValueError),
        ("\ud800", ValueError),
        (None, TypeError),
        (b"a", TypeError),
    ],
    ids=repr,
)


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[registry.Scratch]:
    with registry.scratch(monkeypatch) as scratch:
        monkeypatch.setattr(services, "REGISTRY_KEY", scratch.path)
        yield scratch


@contextlib.contextmanager
def unprivileged(key: registry.Scratch) -> Iterator[None]:
    """Refuse whatever would write, as Windows does to a user who is no administrator."""
    write = key.winreg.KEY_SET_VALUE | key.winreg.KEY_CREATE_SUB_KEY
    really_open = key.winreg.OpenKeyEx

    def open_key(handle: Any, path: str, reserved: int, access: int) -> Any:
        if access & write:
            raise registry.windows_error(PermissionError, registry.DENIED)
        return really_open(handle, path, reserved, access)

    def refuse(*_: Any) -> Any:
        raise registry.windows_error(PermissionError, registry.DENIED)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key.winreg, "OpenKeyEx", open_key)
        patch.setattr(key.winreg, "CreateKeyEx", refuse)
        patch.setattr(key.winreg, "DeleteKeyEx", refuse)
        yield


# register


@pytest.mark.parametrize("service", [GUID, str(GUID), f"{{{str(GUID).upper()}}}"], ids=repr)
def test_register(key: registry.Scratch, service: Any) -> None:
    assert not services.registered(service)
    assert services.register(service, "My agent") == (GUID, "My agent", True)
    assert services.registered(service)
    assert key.values(str(GUID)) == {"ElementName": "My agent", "RegisteredBy": "hvsock"}


def test_register_a_port(key: registry.Scratch) -> None:
    service = services.register(5000, "Größe 日本　😀")
    assert (service.id, service.port) == (PORT, 5000)
    assert services.Service(GUID, "", owned=False).port is None
    assert services.list_services() == [(PORT, "Größe 日本　😀", True)]


def test_register_again(key: registry.Scratch) -> None:
    services.register(5000, "one")
    with pytest.raises(FileExistsError) as caught:
        services.register(5000, "two")
    assert str(caught.value.filename) == rf"HKLM\{key.path}\{PORT}"
    assert services.list_services() == [(PORT, "one", True)]
    assert services.register(5000, "one", exist_ok=True) == (PORT, "one", True)
    assert services.register(5000, "two", exist_ok=True) == (PORT, "two", True)
    assert services.list_services() == [(PORT, "two", True)]


def test_what_others_registered_stays_as_it_is(key: registry.Scratch) -> None:
    """Its name too, and it does not become ours; nor do values that others add to ours get lost."""
    key.make(str(PORT).upper(), Purpose="Network", ToolName="podman")
    with pytest.raises(FileExistsError):
        services.register(5000, "mine")
    assert services.register(5000, "mine", exist_ok=True) == (PORT, "", False)
    assert key.values(str(PORT)) == {"Purpose": "Network", "ToolName": "podman"}
    services.register(GUID, "one")
    key.make(str(GUID), Number=7)
    services.register(GUID, "two", exist_ok=True)
    assert key.values(str(GUID)) == {"ElementName": "two", "RegisteredBy": "hvsock", "Number": 7}


def test_a_failure_leaves_nothing_half_done(key: registry.Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    really_set = key.winreg.SetValueEx

    def set_value(handle: Any, name: str, *rest: Any) -> None:
        if name == "ElementName":
            raise OSError(errno.ENOSPC, "no room")
        really_set(handle, name, *rest)

    monkeypatch.setattr(key.winreg, "SetValueEx", set_value)
    with pytest.raises(OSError, match="no room"):
        services.register(GUID, "My agent")
    assert key.values(str(GUID)) is None


def test_without_hyper_v(key: registry.Scratch) -> None:
    """Nothing makes the parent key: without Hyper-V nobody would read it."""
    key.remove()
    for call in (lambda: services.register(GUID, "name", exist_ok=True), services.list_services):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert caught.value.filename == rf"HKLM\{key.path}"
        assert "Hyper-V" in caught.value.__notes__[0]
    assert not services.registered(GUID)
    services.unregister(GUID, missing_ok=True)


# unregister


def test_unregister(key: registry.Scratch) -> None:
    services.register(5000, "one")
    services.register(GUID, "two")
    services.unregister(5000)
    assert services.list_services() == [(GUID, "two", True)]
    with pytest.raises(FileNotFoundError) as caught:
        services.unregister(5000)
    assert caught.value.filename == rf"HKLM\{key.path}\{PORT}"
    services.unregister(5000, missing_ok=True)


def test_only_force_removes_what_is_not_ours(key: registry.Scratch) -> None:
    key.make(str(PORT), ElementName="theirs")
    with pytest.raises(PermissionError) as caught:
        services.unregister(5000)
    assert caught.value.errno == errno.EPERM
    assert not hasattr(caught.value, "__notes__")  # more rights would not help
    assert key.values(str(PORT)) == {"ElementName": "theirs"}
    services.unregister(5000, force=True)
    assert key.values(str(PORT)) is None


@pytest.mark.parametrize("added", ["", r"\below\further"], ids=["a value", "keys"])
def test_only_force_removes_what_others_added_to(key: registry.Scratch, added: str) -> None:
    services.register(5000, "mine")
    key.make(f"{PORT}{added}", Theirs="x")
    with pytest.raises(PermissionError, match="did not write; use force"):
        services.unregister(5000)
    assert services.registered(5000)
    services.unregister(5000, force=True)
    assert not services.registered(5000)


# list


def test_list_takes_what_it_finds(key: registry.Scratch) -> None:
    """In the order of the ids; keys that are no services' are passed over, and odd values are not a name."""
    key.make("999E53D4-3D5C-4C3E-8779-BED06EC056E1", ElementName="VM Session Service")
    key.make("Security")
    key.make(str(uuid.UUID(int=0)), ElementName="nobody's")
    key.make(str(PORT), elementname="in other case", registeredby="podman")
    key.make(f"{{{PORT}}}", ElementName="the same in braces")
    key.make(str(GUID), ElementName=7, RegisteredBy=7)
    assert services.list_services() == [
        (PORT, "in other case", False),
        (GUID, "", False),
        (uuid.UUID("999e53d4-3d5c-4c3e-8779-bed06ec056e1"), "VM Session Service", False),
    ]


def test_list_of_none(key: registry.Scratch) -> None:
    assert services.list_services() == []


# rights


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("My agent (test), v1.0", "My agent (test), v1.0"),
        ("Größe", "Größe"),
        ('a" & calc & "', str(PORT)),
        ("$(calc)", str(PORT)),
        ("%PATH%", str(PORT)),
    ],
)
def test_the_note_has_the_command(key: registry.Scratch, name: str, quoted: str) -> None:
    with unprivileged(key), pytest.raises(PermissionError) as caught:
        services.register(5000, name)
    path = rf"HKLM\{key.path}\{PORT}"
    assert caught.value.filename == path
    (note,) = caught.value.__notes__
    assert note.endswith(f'elevated terminal: reg add "{path}" /v ElementName /d "{quoted}" /reg:64 /f')
    assert not services.registered(5000)


def test_no_rights_are_needed_where_nothing_changes(key: registry.Scratch) -> None:
    services.register(5000, "mine")
    key.make(str(GUID), ElementName="theirs")
    with unprivileged(key):
        assert services.register(5000, "mine", exist_ok=True) == (PORT, "mine", True)
        assert services.register(GUID, "mine", exist_ok=True) == (GUID, "theirs", False)
        assert services.registered(5000)
        assert [service.id for service in services.list_services()] == [PORT, GUID]
        services.unregister(uuid.uuid4(), missing_ok=True)
        for call, command in (
            (lambda: services.register(5000, "other", exist_ok=True), "reg add"),
            (lambda: services.unregister(5000), f'reg delete "HKLM\\{key.path}\\{PORT}" /reg:64 /f'),
        ):
            with pytest.raises(PermissionError) as caught:
                call()
            assert command in caught.value.__notes__[0]
    assert services.list_services() == [(PORT, "mine", True), (GUID, "theirs", False)]


# bad arguments


@bad_services
@pytest.mark.parametrize(
    "call",
    [
        lambda service: services.register(service, "name"),
        services.unregister,
        services.registered,
        lambda service: services.reg_file({service: "name"}),
    ],
    ids=["register", "unregister", "registered", "reg_file"],
)
def test_bad_services(
    key: registry.Scratch, call: Callable[[Any], object], service: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        call(service)
    assert services.list_services() == []


@bad_names
def test_bad_names(key: registry.Scratch, name: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="name"):
        services.register(GUID, name)
    with pytest.raises(kind, match="name"):
        services.reg_file({GUID: name})
    assert not services.registered(GUID)


@pytest.mark.skipif(utils.WINDOWS, reason="this is Windows: services can be registered here")
def test_one_clear_error_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "winreg", raising=False)
    for call in (
        lambda: services.register(GUID, "name"),
        lambda: services.unregister(GUID),
        lambda: services.registered(GUID),
        services.list_services,
    ):
        with pytest.raises(OSError, match="not Windows") as caught:
            call()
        assert caught.value.errno == errno.EOPNOTSUPP


# .reg files


def parse_reg_file(content: bytes) -> dict[str, dict[str, str]]:
    """Read a .reg file of strings as regedit does: the header, keys in brackets, quoted names and values."""
    assert content.startswith(b"\xff\xfe")
    text = content[2:].decode("utf-16-le")
    assert text.endswith("\r\n")
    assert re.search(r"(?<!\r)\n|\r(?!\n)", text) is None
    header, blank, *lines = text.split("\r\n")
    assert (header, blank) == ("Windows Registry Editor Version 5.00", "")
    keys: dict[str, dict[str, str]] = {}
    for line in lines:
        if match := re.fullmatch(r"\[(.+)\]", line):
            keys[match[1]] = values = {}
        elif match := re.fullmatch(r'"((?:[^"\\]|\\.)*)"="((?:[^"\\]|\\.)*)"', line):
            name, value = (re.sub(r"\\(.)", r"\1", part) for part in match.groups())
            values[name] = value
        else:
            assert line == ""
    return keys


def test_reg_file() -> None:
    content = services.reg_file({5000: 'My "agent" in C:\\', GUID: "日本"})
    assert parse_reg_file(content) == {
        rf"HKEY_LOCAL_MACHINE\{REAL_KEY}\{PORT}": {"ElementName": 'My "agent" in C:\\', "RegisteredBy": "hvsock"},
        rf"HKEY_LOCAL_MACHINE\{REAL_KEY}\{GUID}": {"ElementName": "日本", "RegisteredBy": "hvsock"},
    }


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).filter(str.strip))
def test_every_name_survives_a_reg_file(name: str) -> None:
    (values,) = parse_reg_file(services.reg_file({GUID: name})).values()
    assert values["ElementName"] == name


def test_reg_file_of_nothing_and_of_the_same_twice() -> None:
    assert parse_reg_file(services.reg_file({})) == {}
    with pytest.raises(ValueError, match="twice"):
        services.reg_file({5000: "one", PORT: "two"})


@pytest.mark.skipif(not utils.WINDOWS, reason="reg.exe is Windows': tests/windows/run has one")
def test_windows_reads_reg_files(key: registry.Scratch, tmp_path: Any) -> None:
    """What reg.exe imports is what register() would have written."""
    import subprocess

    name = 'My "agent" in C:\\ größer'
    file = tmp_path / "services.reg"
    file.write_bytes(services.reg_file({5000: name}))
    subprocess.run(["reg", "import", str(file), "/reg:64"], check=True, timeout=utils.LIMIT)
    assert services.list_services() == [(PORT, name, True)]
    services.unregister(5000)


@pytest.mark.skipif(not utils.WINDOWS, reason="reg.exe is Windows': tests/windows/run has one")
def test_the_command_of_the_note_works(key: registry.Scratch) -> None:
    import subprocess

    command = services._command_to_register(PORT, "My agent")
    subprocess.run(command, check=True, timeout=utils.LIMIT)
    assert services.list_services() == [(PORT, "My agent", False)]
    services.unregister(5000, force=True)


def test_the_key_is_hyper_vs() -> None:
    assert REAL_KEY.split("\\")[0] == "SOFTWARE"
    assert REAL_KEY.endswith(r"\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices")
