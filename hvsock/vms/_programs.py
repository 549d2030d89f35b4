"""Programs that sources start: run to their end, without a window or a shell."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

from hvsock._shown import shown
from hvsock.vms._records import VMLookupError

__all__ = ["Done", "run", "system_program"]

_MAX_OUTPUT: Final = 16 << 20  # bytes that are read from a program: thousands of VMs


class Done(NamedTuple):
    status: int
    output: str
    errors: str

    def said(self) -> str:
        """Return the first line of its output, for an error message."""
        lines = [line.strip() for line in f"{self.errors}\n{self.output}".splitlines() if line.strip()]
        return shown(lines[0]) if lines else f"it said nothing (status {self.status})"


def system_program(*parts: str) -> str | None:
    """Return the path of a program of Windows' own: searched only there, since elsewhere it could be another one."""
    root = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"))
    # A 32-bit process has another System32, and reaches the real one by that other name.
    for directory in ("Sysnative", "System32"):
        path = root.joinpath(directory, *parts)
        if path.is_file():
            return str(path)
    return None


def run(command: Sequence[str], timeout: float, source: str) -> Done:
    """Run a program to its end, without a window or a shell, and return what it printed.

    Its output is read by threads: what it may have started can hold the pipes open for longer than it lives.
    """
    import subprocess
    from threading import Thread

    deadline = time.monotonic() + timeout
    printed: dict[str, bytes] = {}

    def read(name: str, pipe: IO[bytes]) -> None:
        with pipe:
            printed[name] = pipe.read(_MAX_OUTPUT + 1)

    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "WSL_UTF8": "1"},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as exc:
        raise VMLookupError(f"{command[0]} does not start: {exc}", source) from None
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = {"output": process.stdout, "errors": process.stderr}
    readers = [Thread(target=read, args=item, name=f"hvsock {source}", daemon=True) for item in pipes.items()]
    try:
        for reader in readers:
            reader.start()
        # In short sleeps: on Windows Ctrl-C ends neither a wait for a process nor one for a thread.
        while process.poll() is None or any(reader.is_alive() for reader in readers):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        status = process.poll()
    finally:
        process.kill()
        process.wait()
    if any(len(text) > _MAX_OUTPUT for text in printed.values()):
        raise VMLookupError(f"{command[0]} printed more than {_MAX_OUTPUT:,} bytes", source)
    if status is None or len(printed) < len(pipes):
        raise VMLookupError(f"{command[0]} did not end within {timeout:g} s", source)
    return Done(status, _decoded(printed["output"]), _decoded(printed["errors"]))


def _decoded(text: bytes) -> str:
    # wsl.exe before 0.64 knows no WSL_UTF8, and writes UTF-16.
    return text.decode("utf-16-le" if b"\0" in text else "utf-8-sig", "replace")
