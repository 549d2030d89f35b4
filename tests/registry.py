"""The registry for tests: a scratch key of the real one on Windows, elsewhere a `winreg` that lives in memory."""

from __future__ import annotations

import contextlib
import sys
import types
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

DENIED = 5
NO_MORE_ITEMS = 259
KEY_WOW64_64KEY = 0x0100
KEY_QUERY_VALUE, KEY_SET_VALUE, KEY_CREATE_SUB_KEY, KEY_ENUMERATE_SUB_KEYS = 1, 2, 4, 8
REG_SZ, REG_DWORD = 1, 4


def windows_error(kind: type[OSError], code: int) -> OSError:
    """Return the error that winreg raises, with its code, on any platform."""
    if sys.platform == "win32":
        return kind(None, "said by Windows", None, code)
    error = kind(13 if kind is PermissionError else 2 if kind is FileNotFoundError else 22, "said by Windows")
    error.winerror = code  # type: ignore[attr-defined]
    return error


class _Node:
    """A key: its values and sub-keys, both by the lower-case name, with the name as it was given."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[str, Any, int]] = {}
        self.keys: dict[str, tuple[str, _Node]] = {}


class _Handle:
    """An open key with the rights it was opened with."""

    def __init__(self, node: _Node, access: int) -> None:
        self.node, self.access, self.open = node, access, True

    def __enter__(self) -> _Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False


class Winreg(types.ModuleType):
    """As much of `winreg` as the package uses, with its rules: rights, the view, and names in any case."""

    HKEY_LOCAL_MACHINE = "HKLM"
    KEY_WOW64_64KEY = KEY_WOW64_64KEY
    KEY_QUERY_VALUE, KEY_SET_VALUE = KEY_QUERY_VALUE, KEY_SET_VALUE
    KEY_CREATE_SUB_KEY, KEY_ENUMERATE_SUB_KEYS = KEY_CREATE_SUB_KEY, KEY_ENUMERATE_SUB_KEYS
    REG_SZ, REG_DWORD = REG_SZ, REG_DWORD

    def __init__(self) -> None:
        super().__init__("winreg")
        self._root = _Node()
        self._handles: list[_Handle] = []

    def handles(self) -> int:
        """Return how many keys are open."""
        return sum(handle.open for handle in self._handles)

    def _opened(self, node: _Node, access: int) -> _Handle:
        assert access & KEY_WOW64_64KEY, "not the 64-bit view"
        self._handles.append(_Handle(node, access))
        return self._handles[-1]

    def _node(self, key: Any, right: int = 0) -> _Node:
        if key == self.HKEY_LOCAL_MACHINE:
            return self._root
        assert key.open, "a closed key"
        if right & ~key.access:
            raise windows_error(PermissionError, DENIED)
        node: _Node = key.node
        return node

    def _walk(self, key: Any, path: str) -> _Node:
        node = self._node(key)
        for part in path.split("\\"):
            if part.lower() not in node.keys:
                raise windows_error(FileNotFoundError, 2)
            node = node.keys[part.lower()][1]
        return node

    def OpenKeyEx(self, key: Any, sub_key: str, reserved: int, access: int) -> _Handle:  # noqa: N802 - winreg's name
        assert reserved == 0
        return self._opened(self._walk(key, sub_key), access)

    def CreateKeyEx(self, key: Any, sub_key: str, reserved: int, access: int) -> _Handle:  # noqa: N802
        assert reserved == 0
        node = self._node(key, 0 if key == self.HKEY_LOCAL_MACHINE else KEY_CREATE_SUB_KEY)
        for part in sub_key.split("\\"):
            node = node.keys.setdefault(part.lower(), (part, _Node()))[1]
        return self._opened(node, access)

    def DeleteKeyEx(self, key: Any, sub_key: str, access: int, reserved: int) -> None:  # noqa: N802
        assert (access, reserved) == (KEY_WOW64_64KEY, 0)
        parent, _, name = sub_key.rpartition("\\")
        if self._walk(key, sub_key).keys:
            raise windows_error(PermissionError, DENIED)
        del (self._walk(key, parent) if parent else self._node(key)).keys[name.lower()]

    def QueryInfoKey(self, key: Any) -> tuple[int, int, int]:  # noqa: N802
        node = self._node(key, KEY_QUERY_VALUE)
        return len(node.keys), len(node.values), 0

    def QueryValueEx(self, key: Any, name: str) -> tuple[Any, int]:  # noqa: N802
        values = self._node(key, KEY_QUERY_VALUE).values
        if name.lower() not in values:
            raise windows_error(FileNotFoundError, 2)
        return values[name.lower()][1:]

    def SetValueEx(self, key: Any, name: str, reserved: int, kind: int, value: Any) -> None:  # noqa: N802
        assert reserved == 0
        self._node(key, KEY_SET_VALUE).values[name.lower()] = (name, value, kind)

    def EnumKey(self, key: Any, index: int) -> str:  # noqa: N802
        keys = list(self._node(key, KEY_ENUMERATE_SUB_KEYS).keys.values())
        if index >= len(keys):
            raise windows_error(OSError, NO_MORE_ITEMS)
        return keys[index][0]

    def EnumValue(self, key: Any, index: int) -> tuple[str, Any, int]:  # noqa: N802
        values = list(self._node(key, KEY_QUERY_VALUE).values.values())
        if index >= len(values):
            raise windows_error(OSError, NO_MORE_ITEMS)
        return values[index]


class Scratch:
    """A key of its own for a test, and what the test needs to do there behind the package's back."""

    def __init__(self, winreg: Any, path: str) -> None:
        self.winreg, self.path = winreg, path

    def make(self, name: str = "", **values: Any) -> None:
        """Make a sub-key with values: a str, or an int as a DWORD."""
        path = rf"{self.path}\{name}".rstrip("\\")
        access = self.winreg.KEY_SET_VALUE | KEY_WOW64_64KEY
        with self.winreg.CreateKeyEx(self.winreg.HKEY_LOCAL_MACHINE, path, 0, access) as key:
            for value_name, value in values.items():
                kind = REG_SZ if isinstance(value, str) else REG_DWORD
                self.winreg.SetValueEx(key, value_name, 0, kind, value)

    def values(self, name: str) -> dict[str, Any] | None:
        """Return the values of a sub-key; None if there is no such key."""
        access = self.winreg.KEY_QUERY_VALUE | KEY_WOW64_64KEY
        try:
            key = self.winreg.OpenKeyEx(self.winreg.HKEY_LOCAL_MACHINE, rf"{self.path}\{name}", 0, access)
        except FileNotFoundError:
            return None
        with key:
            count = self.winreg.QueryInfoKey(key)[1]
            return dict(self.winreg.EnumValue(key, index)[:2] for index in range(count))

    def remove(self, path: str = "") -> None:
        """Remove the key with all below it, or one below it."""
        path = path or self.path
        access = self.winreg.KEY_ENUMERATE_SUB_KEYS | KEY_WOW64_64KEY
        with self.winreg.OpenKeyEx(self.winreg.HKEY_LOCAL_MACHINE, path, 0, access) as key:
            while True:
                try:
                    name = self.winreg.EnumKey(key, 0)
                except OSError:
                    break
                self.remove(rf"{path}\{name}")
        self.winreg.DeleteKeyEx(self.winreg.HKEY_LOCAL_MACHINE, path, KEY_WOW64_64KEY, 0)


@contextlib.contextmanager
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scratch]:
    """Lend a key that did not exist before, of the real registry or of one in memory; skip if this user may not."""
    if sys.platform == "win32":
        import winreg
    else:
        winreg = Winreg()
        monkeypatch.setitem(sys.modules, "winreg", winreg)
    key = Scratch(winreg, rf"SOFTWARE\hvsock-test-{uuid.uuid4()}")
    try:
        key.make()
    except PermissionError:
        pytest.skip("writing to HKEY_LOCAL_MACHINE needs an administrator: run the tests elevated")
    yield key
    with contextlib.suppress(FileNotFoundError):
        key.remove()
    if isinstance(winreg, Winreg):
        assert winreg.handles() == 0, "a key was left open"
