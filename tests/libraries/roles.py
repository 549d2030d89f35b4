"""What a test runs in a process of its own: one role of one library."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import hvsock


def run(role: str, key: str, how: str, address: str) -> Any:
    """Run the server or the client of a library, at an address or connected to it."""
    warnings.simplefilter("default")  # what a library warns of is its own
    module = importlib.import_module(f"libraries.with_{key}")
    return getattr(module, role)(how, hvsock.HyperVAddress.parse(address))
