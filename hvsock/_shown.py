"""How a value that is refused is shown in the message: its repr(), cut where it is long."""

from __future__ import annotations

import reprlib

__all__ = ["shown"]

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100


def shown(value: object) -> str:
    """Return the repr() of a value, of about 100 characters at most."""
    return _repr.repr(value)
