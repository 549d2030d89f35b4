r"""Services that a Hyper-V host lets its virtual machines reach: how they are registered, listed and taken back.

A VM reaches a service on its host only if the registry of the host has a key of the service's id, in
``HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices``. The value
``ElementName`` in it describes it. Loopback and WSL2 need no key. Every user may read the keys, only administrators may
write them. Source: Microsoft, "Make your own integration services".

A key that was made here has a second value, ``RegisteredBy``, by which `unregister` recognizes it. Hyper-V ignores
further values: podman, for one, marks its keys in the same way (``pkg/machine/hyperv/vsock``).
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import re
import unicodedata
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple
from uuid import UUID

from hvsock._addresses import HV_GUID_ZERO, as_hyperv_service_id, port_from_service_id

__all__ = ["REGISTRY_KEY", "Service", "list_services", "reg_file", "register", "registered", "unregister"]

REGISTRY_KEY: Final = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices"
"""The key of all services, in HKEY_LOCAL_MACHINE and the 64-bit view."""

_NAME: Final = "ElementName"
_MARK: Final = "RegisteredBy"
_OWNER: Final = "hvsock"
_ACCESS_DENIED: Final = 5  # winerror.h, ERROR_ACCESS_DENIED
_NO_MORE_ITEMS: Final = 259  # winerror.h, ERROR_NO_MORE_ITEMS


class Service(NamedTuple):
    """A registered service."""

    id: UUID
    """The service id, which is the name of its key."""
    name: str
    """``ElementName``; empty where the key has none."""
    owned: bool
    """Whether it was registered by `register` or a `reg_file`, so that `unregister` removes it unforced."""

    @property
    def port(self) -> int | None:
        """The vsock port (0..0xfffffffe) that the id stands for, or None if it is not a port's."""
        return port_from_service_id(self.id)


def register(service: UUID | str | int, name: str, *, exist_ok: bool = False) -> Service:
    """Let VMs reach a service (a UUID, a GUID string or a port), described by a name; return what is registered now.

    With `exist_ok`, a service that is already registered is not an error. Its name is changed if hvsock registered it;
    the key of another program is left alone. If nothing has to change, the call needs no administrator's rights, so
    that an installed program can make it at each start.

    Raises:
        TypeError: `service` or `name` is of another type.
        ValueError: `service` is malformed or zero, or `name` is empty or has control characters.
        FileExistsError: the service is already registered.
        PermissionError: this user may not register it; a note has the command for an administrator to run once.
        FileNotFoundError: this Windows has no Hyper-V.
        OSError: this is not Windows.
    """
    service_id, name = _checked_service(service), _checked_name(name)
    with _explained(service_id, _command_to_register(service_id, name)):
        found = _find(service_id)
        if found is None:
            _create(service_id, name)
            return Service(service_id, name, owned=True)
        if not exist_ok:
            raise FileExistsError(errno.EEXIST, "the service is registered already", _shown(service_id))
        if found.owned and found.name != name:
            winreg = _winreg()
            with _open(_path(service_id), winreg.KEY_SET_VALUE) as key:
                winreg.SetValueEx(key, _NAME, 0, winreg.REG_SZ, name)
            return found._replace(name=name)
        return found


def unregister(service: UUID | str | int, *, missing_ok: bool = False, force: bool = False) -> None:
    """Remove the registration of a service: VMs no longer reach it.

    Without `force`, only a key that hvsock made and that nothing was added to is removed. With `missing_ok`, a service
    that is not registered is not an error.

    Raises:
        TypeError: `service` is of another type.
        ValueError: it is malformed or zero.
        FileNotFoundError: it is not registered.
        PermissionError: the key is another program's or has additions, or this user may not remove it; then a note has
            the command for an administrator to run.
        OSError: this is not Windows.
    """
    service_id = _checked_service(service)
    with _explained(service_id, f'reg delete "{_shown(service_id)}" /reg:64 /f'):
        found = _find(service_id)
        if found is None:
            if missing_ok:
                return
            raise FileNotFoundError(errno.ENOENT, "the service is not registered", _shown(service_id))
        if not force and not found.owned:
            message = "the service was not registered by hvsock; use force to remove it"
            raise PermissionError(errno.EPERM, message, _shown(service_id))
        if not force and _was_added_to(service_id):
            message = "the key has values or keys that hvsock did not write; use force to remove them"
            raise PermissionError(errno.EPERM, message, _shown(service_id))
        _delete(_path(service_id))


def registered(service: UUID | str | int) -> bool:
    """Whether a service is registered, by hvsock or any other program.

    Raises:
        TypeError: `service` is of another type.
        ValueError: it is malformed or zero.
        OSError: this is not Windows.
    """
    service_id = _checked_service(service)
    return _find(service_id) is not None


def list_services() -> list[Service]:
    """Return the registered services that this user may read, in the order of their ids; Windows' own are among them.

    Raises:
        FileNotFoundError: this Windows has no Hyper-V.
        OSError: this is not Windows.
    """
    services = set()  # a key may be there in two forms, of which Hyper-V looks at one
    with _open_parent(_winreg().KEY_ENUMERATE_SUB_KEYS) as parent:
        for name in _sub_keys(parent):
            with contextlib.suppress(ValueError, PermissionError):  # not a service's key, or this user may not read it
                service = _find(_checked_service(name))
                if service is not None:  # else it has just been removed
                    services.add(service)
    return sorted(services, key=lambda service: str(service.id))


def reg_file(services: Mapping[UUID | str | int, str]) -> bytes:
    r"""Return the content of a ``.reg`` file that registers services, each with its name, on any Windows host.

    An administrator applies it by ``reg import services.reg /reg:64`` or a double click. UTF-16 little-endian with a
    byte order mark, lines end with CR LF. Works on every platform.

    Raises:
        TypeError: a service or name is of another type.
        ValueError: a service is malformed, zero or given twice, or a name is empty or has control characters.
    """
    names: dict[UUID, str] = {}
    for service, name in services.items():
        service_id = _checked_service(service)
        if service_id in names:
            raise ValueError(f"service {service_id} is given twice")
        names[service_id] = _checked_name(name)
    lines = ["Windows Registry Editor Version 5.00", ""]
    for service_id, name in names.items():
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        key = rf"HKEY_LOCAL_MACHINE\{REGISTRY_KEY}\{service_id}"
        lines += [f"[{key}]", f'"{_NAME}"="{escaped}"', f'"{_MARK}"="{_OWNER}"', ""]
    return codecs.BOM_UTF16_LE + "\r\n".join([*lines, ""]).encode("utf-16-le")


def _checked_service(service: UUID | str | int) -> UUID:
    service_id = as_hyperv_service_id(service)
    if service_id == HV_GUID_ZERO:
        raise ValueError("the all-zero GUID is not a valid service id")
    return service_id


def _checked_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of a service must be a str, not {type(name).__name__}")
    if not name.strip():
        raise ValueError("the name of a service is empty")
    # Control characters, halves of surrogate pairs, and line separators break the registry's or the .reg file's form.
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise ValueError(f"the name of a service must be printable text on one line, not {name!r}")
    return name


def _path(service_id: UUID) -> str:
    return rf"{REGISTRY_KEY}\{service_id}"


def _shown(service_id: UUID) -> str:
    return rf"HKLM\{_path(service_id)}"


def _command_to_register(service_id: UUID, name: str) -> str:
    """Return a line for cmd.exe and PowerShell; a name with characters that are special there is replaced by the id."""
    quoted = name if re.fullmatch(r"[\w .,:()/+-]*", name) else service_id
    return f'reg add "{_shown(service_id)}" /v {_NAME} /d "{quoted}" /reg:64 /f'


@contextlib.contextmanager
def _explained(service_id: UUID, command: str) -> Iterator[None]:
    """Add to a refusal by the system the key and the command for an administrator."""
    try:
        yield
    except PermissionError as exc:
        if getattr(exc, "winerror", None) == _ACCESS_DENIED:
            exc.filename = _shown(service_id)
            exc.add_note(f"run this once in an elevated terminal: {command}")
        raise


def _winreg() -> ModuleType:
    try:
        import winreg
    except ModuleNotFoundError:
        message = (
            "services are registered on the Windows host, and this is not Windows; "
            "`hvsock service export`, or reg_file(), writes a file for it"
        )
        raise OSError(errno.EOPNOTSUPP, message) from None
    return winreg


def _open(path: str, access: int) -> Any:
    winreg = _winreg()
    # A 32-bit process has two views of the registry; Hyper-V reads the 64-bit one.
    return winreg.OpenKeyEx(winreg.HKEY_LOCAL_MACHINE, path, 0, access | winreg.KEY_WOW64_64KEY)


def _open_parent(access: int) -> Any:
    try:
        return _open(REGISTRY_KEY, access)
    except FileNotFoundError as exc:
        exc.filename = rf"HKLM\{REGISTRY_KEY}"
        exc.add_note("Hyper-V makes this key: enable the Windows feature Hyper-V; WSL2 needs no registered services")
        raise


def _find(service_id: UUID) -> Service | None:
    try:
        key = _open(_path(service_id), _winreg().KEY_QUERY_VALUE)
    except FileNotFoundError:
        return None
    with key:
        return Service(service_id, _text(key, _NAME), owned=_text(key, _MARK) == _OWNER)


def _text(key: Any, name: str) -> str:
    winreg = _winreg()
    try:
        value, kind = winreg.QueryValueEx(key, name)
    except FileNotFoundError:
        return ""
    return value if kind == winreg.REG_SZ and isinstance(value, str) else ""


def _create(service_id: UUID, name: str) -> None:
    winreg = _winreg()
    view = winreg.KEY_WOW64_64KEY
    with (
        _open_parent(winreg.KEY_CREATE_SUB_KEY) as parent,
        winreg.CreateKeyEx(parent, str(service_id), 0, winreg.KEY_SET_VALUE | view) as key,
    ):
        try:
            winreg.SetValueEx(key, _MARK, 0, winreg.REG_SZ, _OWNER)
            winreg.SetValueEx(key, _NAME, 0, winreg.REG_SZ, name)
        except BaseException:
            winreg.DeleteKeyEx(parent, str(service_id), view, 0)
            raise


def _was_added_to(service_id: UUID) -> bool:
    winreg = _winreg()
    with _open(_path(service_id), winreg.KEY_QUERY_VALUE) as key:
        sub_keys, values, _written = winreg.QueryInfoKey(key)
        names = {winreg.EnumValue(key, index)[0] for index in range(values)}
    return sub_keys > 0 or not names <= {_NAME, _MARK}


def _delete(path: str) -> None:
    winreg = _winreg()
    with _open(path, winreg.KEY_ENUMERATE_SUB_KEYS) as key:
        for name in _sub_keys(key):
            _delete(rf"{path}\{name}")
    winreg.DeleteKeyEx(winreg.HKEY_LOCAL_MACHINE, path, winreg.KEY_WOW64_64KEY, 0)


def _sub_keys(key: Any) -> list[str]:
    winreg = _winreg()
    names: list[str] = []
    while True:
        try:
            names.append(winreg.EnumKey(key, len(names)))
        except OSError as exc:
            if getattr(exc, "winerror", None) == _NO_MORE_ITEMS:
                return names
            raise
