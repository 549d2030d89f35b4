"""The system calls that an operation makes, as strace sees them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from utils import LIMIT, run_child

STRACE = shutil.which("strace")
#: The calls counted: not what the memory allocator, the interpreter's lock and signals do.
NETWORK = ("recv", "send", "read", "write", "poll", "ppoll", "select", "pselect", "epoll", "ioctl", "fcntl", "getsock")
MARKER = re.compile(r'"hvsock-(begin|end)-(\w+)"')


def system_calls(
    child: Callable[..., None], implementation: str, tmp_path: Path, *arguments: object
) -> dict[str, list[str]]:
    """Run a function of `children.traced` under strace and return the system calls of each operation."""
    if not STRACE:
        pytest.skip("needs strace: install it and run again")
    trial = subprocess.run([STRACE, "-o", os.devnull, sys.executable, "-c", ""], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"strace may not trace here ({trial.stderr.strip()}): allow ptrace and run again")
    log = tmp_path / "strace"
    run_child(child, implementation, *arguments, under=(STRACE, "-f", "-o", str(log)), timeout=2 * LIMIT)
    calls: dict[str, list[str]] = {}
    current: list[str] | None = None
    main = ""
    for line in log.read_text(errors="replace").splitlines():
        thread, call = line.split(maxsplit=1)
        if match := MARKER.search(call):
            main = thread
            current = calls.setdefault(match[2], []) if match[1] == "begin" else None
        elif current is not None and thread == main and call.startswith(NETWORK):
            current.append(call.split("(")[0])
    return calls
