"""`python -I tests/children/__main__.py MODULE FUNCTION ARGUMENT...` calls the function; a coroutine it runs."""

from __future__ import annotations

import faulthandler
import importlib
import sys
from pathlib import Path


def main(module: str, function: str, *arguments: str) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from utils import LIMIT

    # Ends the process, with the stack of every thread, even where the parent is gone.
    faulthandler.dump_traceback_later(5 * LIMIT, exit=True)
    result = getattr(importlib.import_module(module), function)(*arguments)
    if result is not None:
        import asyncio

        asyncio.run(result)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(*sys.argv[1:])
