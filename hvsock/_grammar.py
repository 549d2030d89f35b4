"""Addresses as text: the one grammar of every command, of `HyperVAddress.parse` and of `Relay`.

==============================================  ====================================================
``VM/SERVICE``, ``hvsock://VM/SERVICE``         a VM and a service in it
``vsock:CID:PORT``, ``vsock://CID:PORT``        the same by numbers, on ``AF_VSOCK``
``tcp:HOST:PORT``, ``tcp://HOST:PORT``          TCP
``unix:PATH``, ``unix:///PATH``                 a Unix socket
``unix:@NAME``, ``unix://@NAME``                one with an abstract name
``hybrid:PATH:PORT``, ``hybrid:///PATH?port=``  the Unix socket of a hybrid vsock, and a guest's port
``fd:NUMBER``, ``fd://NUMBER``                  a descriptor of the process
``npipe:NAME``, ``npipe:////./pipe/NAME``       a named pipe of Windows
==============================================  ====================================================

This module only takes a text apart; its callers decide what the parts mean.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from hvsock._shown import shown

__all__ = ["HYPERV_KINDS", "KINDS", "Written", "read"]


class _Form(NamedTuple):
    """How addresses of a kind are written."""

    shown: str
    pattern: re.Pattern[str]  # of what follows ``KIND:``; its groups are the place, the service and the options
    options: frozenset[str] = frozenset()


def _form(shown: str, place: str, service: str, *options: str) -> _Form:
    pattern = rf"{place}{service}(?:\?([^?#\s]*))?"
    return _Form(shown, re.compile(pattern, re.IGNORECASE | re.ASCII | re.DOTALL), frozenset(options))


_FORMS: Final = {
    "hvsock": _form("VM/SERVICE", r"//([^/?#]*)", r"/([^/?#]*)", "transport"),
    "vsock": _form("vsock:CID:PORT", r"(?://)?(-1|[0-9]{0,10})", r":([0-9]{1,10})", "transport"),
    "tcp": _form("tcp:HOST:PORT", r"(?://)?(\[[0-9a-f:.]+(?:%[\w.-]+)?\]|[^:/?#@\[\]\s]*)", r":([0-9]{1,10})"),
    "unix": _form("unix:PATH", r"(?://(?=[/@]))?(?!//)([^?#]*[^/?#])", "()", "mode", "group"),
    "hybrid": _form("hybrid:PATH:PORT", r"(?://(?=/))?(?!//)([^?#]*?[^/?#])", r"(?::([0-9]{1,10}))?", "port"),
    "fd": _form("fd:NUMBER", r"(?://)?([0-9]{1,9})", "()"),
    "npipe": _form("npipe:NAME", r"(?:(?://)?//\./pipe/|\\\\\.\\pipe\\)?([^/\\?#][^?#]*)", "()"),
}
# The name of a VM may be any text, but a path begins with a slash or dots, and a URI with a scheme.
_SHORT: Final = _form("VM/SERVICE", r"(?!\.{0,2}/|[\w+.-]*:/)(.+)", r"/([^/?#]+)", "transport")
KINDS: Final = tuple(_FORMS)
HYPERV_KINDS: Final = ("hvsock", "vsock")  # those of a Hyper-V address

_PORT: Final = re.compile(r"[0-9]{1,10}")
_KIND: Final = re.compile(rf"({'|'.join(KINDS)}):(.*)", re.IGNORECASE | re.ASCII | re.DOTALL)

_GUID: Final = r"\{?[0-9a-f-]{36}\}?"
# How addresses are mistaken, and what is meant. Compiled after a mistake only: they would be a tenth of the import.
_MISTAKES: Final = {
    r"(vsock|tcp)-listen:([0-9]+)": r"\1::\2",  # socat's
    r"(vsock|tcp|unix)-[a-z]+:(.*)": r"\1:\2",  # socat's VSOCK-CONNECT:, systemd's vsock-stream:
    r"(?:https?|wss?)://([^/]+:[0-9]+)/?": r"tcp:\1",
    r"(?:tcp:)?(?://)?:?([0-9]+)/?": r"tcp::\1",
    r"vsock:(?://)?([0-9]*|-1)[:/]([0-9]+)/?": r"vsock:\1:\2",
    r"([0-9]+|-1):([0-9]+)": r"vsock:\1:\2",
    r"(?:hvsock|vsock):/*([^/]+)[/:]([^/:]+)/?": r"hvsock://\1/\2",
    r"((?://|\\\\)\.[/\\]pipe[/\\].+)": r"npipe:\1",
    r"//([^/]+/[^/]+)": r"hvsock://\1",
    rf"(wildcard|children|loopback|parent|silohost|{_GUID}):({_GUID}|[0-9]+)": r"\1/\2",
    rf"([^/]+/(?:{_GUID}|[0-9]+))/": r"\1",
    r"(?:tcp:)?(?://)?([^/:]+:[0-9]+)/?": r"tcp:\1",
    r"((?!\w+-listen:)[^/:]+):([0-9]+)": r"\1/\2",
    r"(?:unix://)?([^/:]*/[^:]*?)/?": r"unix:\1",
}


class Written(NamedTuple):
    """An address in its parts, as they were written."""

    kind: str
    """One of `KINDS`."""
    place: str
    """A VM, a CID, a host, a path, a descriptor or the name of a pipe."""
    service: str
    """A service or a port; empty for ``unix``, ``fd`` and ``npipe``."""
    options: dict[str, str]
    """What follows a question mark."""

    @property
    def transport(self) -> str | None:
        """The transport that the address names: by ``?transport=``, or as it begins with ``vsock:``."""
        return self.options.get("transport", "vsock" if self.kind == "vsock" else None)


def read(text: str, kinds: Collection[str] = KINDS) -> Written:
    """Take an address apart that must be of one of these kinds.

    Raises:
        TypeError: it is not a string.
        ValueError: it is not of such a form; the message says what may have been meant.
    """
    if not isinstance(text, str):
        raise TypeError(f"an address must be a str, not {shown(text)}")
    try:
        return _read(text, kinds)
    except ValueError as exc:
        reason = str(exc)
    kind = _kind_of(text)
    *forms, last = [_FORMS[it].shown for it in ([kind] if kind is not None and kind in kinds else kinds)]
    form = f"{', '.join(forms)} or {last}" if forms else last
    meant = next((guess for guess in _guesses(text) if not reason and _is_address(guess, kinds)), None)
    if meant is not None:
        hint = f"; did you mean {shown(meant)}?"
    else:
        hint = ", such as parent/5000" if form.startswith("VM/") and not reason else ""
    raise ValueError(f"{shown(text)} is not of the form {form}{reason and ': '}{reason}{hint}")


def _kind_of(text: str) -> str | None:
    match = _KIND.fullmatch(text)
    return None if match is None else match[1].lower()


def _is_address(text: str, kinds: Collection[str]) -> bool:
    try:
        _read(text, kinds)
    except ValueError:
        return False
    return True


def _read(text: str, kinds: Collection[str]) -> Written:
    """Take it apart; a ValueError has a reason, or an empty message."""
    kind = _kind_of(text)
    if kind is not None and kind not in kinds:
        raise ValueError(f"only a relay takes {kind}:")
    form, rest = (_SHORT, text) if kind is None else (_FORMS[kind], text[len(kind) + 1 :])
    match = form.pattern.fullmatch(rest)
    if match is None:
        raise ValueError
    options = _read_options(match[3], form.options)
    written = Written(kind or "hvsock", match[1] if kind is None else _decoded(match[1]), match[2] or "", options)
    if "\0" in written.place:
        raise ValueError("it has a NUL character")
    return _whole(written)


def _decoded(text: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote  # slow to load

    return unquote(text, errors="surrogateescape")


def _read_options(text: str | None, known: frozenset[str]) -> dict[str, str]:
    pairs = [] if text is None else [pair.partition("=") for pair in text.split("&")]
    options = {name: value for name, _, value in pairs}
    if len(options) < len(pairs):
        raise ValueError("an option is given twice")
    if unknown := options.keys() - known:
        raise ValueError(f"there is no option {shown(min(unknown))}")
    return options


def _whole(written: Written) -> Written:
    """Find the port of a hybrid vsock, which is after the path or an option."""
    if written.kind != "hybrid":
        return written
    path, port = written.place, written.service
    if "port" in written.options:
        path, port = f"{path}:{port}" if port else path, written.options["port"]
    if not _PORT.fullmatch(port):
        raise ValueError("the port is missing")
    return Written("hybrid", path, port, {})


def _guesses(text: str) -> Iterator[str]:
    """Yield what may have been meant by a text that is of no form."""
    for pattern, meant in _MISTAKES.items():
        if match := re.fullmatch(pattern, text, re.IGNORECASE | re.ASCII):
            kind, colon, rest = match.expand(meant).partition(":")
            yield f"{kind.lower() if colon else kind}{colon}{rest}"
