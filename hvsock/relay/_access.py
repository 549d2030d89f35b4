"""Who may connect to a Unix socket that a relay makes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import unquote

from hvsock._shown import shown

__all__ = ["DEFAULT_ACCESS", "Access"]


class Access(NamedTuple):
    """A socket's mode and group; None for what the system gives it."""

    mode: int | None = None
    group: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Self:
        """Return what the options ``mode`` and ``group`` of an address say.

        Raises:
            ValueError: one of them is malformed.
        """
        mode, group = options.get("mode"), options.get("group")
        if mode is not None and not re.fullmatch("0?[0-7]{3}", mode):
            raise ValueError(f"the mode must be three octal digits, such as 660, not {shown(mode)}")
        if group == "":
            raise ValueError("the group is missing")
        return cls(None if mode is None else int(mode, 8), None if group is None else unquote(group))

    def grant(self, path: Path) -> None:
        """Give them to the socket with this path.

        Raises:
            OSError: as the system says; one who is not root can only give a group that he is in.
            ValueError: there is no such group.
        """
        if sys.platform != "win32":  # Python has no AF_UNIX there
            if self.group is not None:
                os.chown(path, -1, _group_id(self.group))
            if self.mode is not None:
                path.chmod(self.mode)


DEFAULT_ACCESS: Final = Access()


def _group_id(group: str) -> int:
    if group.isdecimal():
        return int(group)
    if sys.platform == "win32":
        raise AssertionError("grant() does not ask")
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {shown(group)}") from None
