"""Makes images/*.svg: runs commands on a pseudo-terminal, on transport local, and draws what they leave on it.

`python docs/screenshots.py`, on POSIX. The numbers are this machine's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

IMAGES: Final = Path(__file__).resolve().parent / "images"
COLUMNS: Final = 104
HVSOCK: Final = (sys.executable, "-m", "hvsock")
# The guest in which the commands are run, and its host's service.
ENVIRONMENT: Final = {"HVSOCK_TRANSPORT": "local", "TERM": "xterm-256color", "COLORTERM": ""}
GUEST: Final = {"HVSOCK_LOCAL_VM": "6f2a3b7e-51a4-4c0d-9a53-0c5d1e7f8a42"}

SCREENS: Final = {
    "ping": ("ping --count 3 parent/5000", "ping --count 20000 --interval 0 parent/5000"),
    "info": ("info",),
}


def main() -> None:
    """Make them all."""
    with tempfile.TemporaryDirectory(prefix="hv") as directory, host(directory):
        for name, commands in SCREENS.items():
            draw(name, {f"hvsock {arguments}": on_terminal(directory, arguments.split()) for arguments in commands})


@contextlib.contextmanager
def host(directory: str) -> Iterator[None]:
    """Run the service to which the commands connect."""
    env = {**os.environ, **ENVIRONMENT, "HVSOCK_LOCAL_DIR": directory}
    with subprocess.Popen([*HVSOCK, "echo", "wildcard/5000"], env=env, stdout=subprocess.PIPE) as service:
        assert service.stdout
        service.stdout.readline()
        try:
            yield
        finally:
            service.terminate()
            service.stdout.close()


def on_terminal(directory: str, arguments: list[str]) -> str:
    """Run a command, and return what a terminal has got from it."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    env = {**os.environ, **ENVIRONMENT, **GUEST, "HVSOCK_LOCAL_DIR": directory}
    for name in ("COLUMNS", "NO_COLOR"):
        env.pop(name, None)
    process = subprocess.Popen([*HVSOCK, *arguments], stdin=follower, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while data := os.read(leader, 65536):
            shown += data
    os.close(leader)
    if process.wait() != 0:
        raise SystemExit(f"hvsock {' '.join(arguments)} failed: {shown.decode()}")
    # What belongs to this machine only is left out: its directory, and the build of its kernel.
    text = shown.decode().replace(directory, "/run/user/1000/hvsock")
    return re.sub(r"(Linux-\d+\.\d+)\S*?(-x86_64|-aarch64)", r"\1\2", text)


def left_on_screen(shown: str) -> str:
    """Return the lines that are left, with their colours; what was erased and overwritten is gone."""
    lines = [""]
    row = 0
    for part in re.split(r"(\r\n|\n|\r|\x1b\[\d*A|\x1b\[2K|\x1b\[\?25[lh])", shown):
        if part in ("\n", "\r\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r" or (part.endswith(("l", "h")) and part.startswith("\x1b[")):
            continue  # what is written after a return follows an erasure; the cursor is not drawn
        elif part == "\x1b[2K":
            lines[row] = ""
        elif up := re.fullmatch(r"\x1b\[(\d*)A", part):
            row -= int(up[1] or 1)
        else:
            lines[row] += part
    return "\n".join(lines).rstrip()


def draw(name: str, commands: dict[str, str]) -> None:
    """Write images/NAME.svg: the commands, one after the other, and what a terminal got from each."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="256")
        for command, shown in commands.items():
            console.print(Text.assemble(("$ ", "green"), command))
            console.print(Text.from_ansi(left_on_screen(shown)))
        IMAGES.mkdir(exist_ok=True)
        svg = console.export_svg(title=f"hvsock {name}", unique_id=f"hvsock-{name}")
    # Of one family that every system has, and not fetched from elsewhere.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code, ", "")
    (IMAGES / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
