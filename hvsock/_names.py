"""Public objects show their public name, whichever module defines them."""

from __future__ import annotations

from types import FunctionType
from typing import Any

__all__ = ["publish"]


def publish(module: dict[str, Any]) -> None:
    """Give the classes and functions that a package exports from its modules its own name, for repr(), help(), pickles.

    Called at the end of the package's own module, with its globals().
    """
    package = module["__name__"]
    for name in module["__all__"]:
        exported = module[name]
        if isinstance(exported, (type, FunctionType)) and exported.__module__.startswith(f"{package}."):
            exported.__module__ = package
