"""Interpreters beside the main one."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def new_interpreter() -> tuple[Any, Any]:
    """Return the module for interpreters and the id of a new one that has a GIL of its own: CPython 3.12 and later."""
    if sys.version_info >= (3, 13):
        module = importlib.import_module("_interpreters")
        return module, module.create("isolated")
    module = importlib.import_module("_xxsubinterpreters")
    return module, module.create(isolated=True)
