"""docs/tutorial.md, walked through in two machines: the host's half and the guest's.

`tutorial.py host COMMAND...` follows it on the host, and starts COMMAND, which boots the guest (CID 7) that runs
`tutorial.py guest`. Only `hvsock` commands and the page's own two programs are run, as processes. What each prints is
shown. Exit status 0: both halves came to their end.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import hvsock

PAGE = Path(__file__).with_name("tutorial.md").read_text(encoding="utf-8")
DIRECTORY = Path("/tmp")
GUEST = hvsock.vm_id_from_cid(7)
# Seconds. A machine in an emulated machine is slow, slower still when the real one is busy; the bed has its own limit.
BOOT = "3600"
WAIT = 300
# What the machine writes: the exit status of its half, if that came to its end before the host's.
STATUS = Path("/tmp/status")


def block(mark: str) -> str:
    """Return the code of the block that the page marks so."""
    found = re.search(rf"^<!-- {re.escape(mark)} -->\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"the tutorial has no block marked {mark}"
    return found[1]


def start(line: str) -> subprocess.Popen[str]:
    """Start a line of the page, or one like it, and show it."""
    side = sys.argv[1]
    print(f"{side}$ {line.strip()}", flush=True)
    program, *arguments = shlex.split(line)
    words = {"hvsock": [sys.executable, "-I", "-m", "hvsock"], "python": [sys.executable, "-I"]}[program]
    return subprocess.Popen(
        [*words, *arguments],
        cwd=DIRECTORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def shown(process: subprocess.Popen[str], *, until: str = "") -> str:
    """Show what it prints, up to a line that matches or to its end, and return that."""
    assert process.stdout
    printed = ""
    for line in process.stdout:
        print(f"      {line.rstrip()}", flush=True)
        printed += line
        if until and re.search(until, line):
            return printed
    assert not until, f"it ended and printed no {until}"
    return printed


def run(line: str) -> str:
    """Run it to its end, which must be a good one."""
    began = time.monotonic()
    with start(line) as process:
        printed = shown(process)
    assert process.returncode == 0, f"exit status {process.returncode}"
    print(f"      ({time.monotonic() - began:.1f} s)", flush=True)
    return printed


def write_program(name: str) -> None:
    """Write the file as the page has it."""
    (DIRECTORY / name).write_text(block(f"file: {name}"), encoding="utf-8")


def meet(side: str) -> None:
    """Wait for the other machine, with the commands that there are."""
    if side == "guest":
        run(f"hvsock listen --timeout {BOOT} wildcard/5002")
    else:
        run(f"hvsock connect --timeout {WAIT} --retry-for {BOOT} {GUEST}/5002")


def guest() -> None:
    """Follow the tutorial in the guest."""
    assert re.search(r"transport vsock +available", run(block("run: any")))
    assert "3 sent, 3 came back, 0 % lost" in run(block("run: guest, ping"))
    write_program("agent.py")
    meet("guest")
    assert run(block("run: guest, agent.py")) == block("output: agent.py")
    with start("hvsock echo wildcard/5001") as echo:  # until the host cuts the power
        shown(echo)


def host(command: list[str]) -> None:
    """Follow the tutorial on the host, with the machine that COMMAND boots."""
    assert re.search(r"transport vsock +available", run(block("run: any")))
    with start(block("run: host, echo")) as echo:
        shown(echo, until="listening on hvsock://wildcard/5000")
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            shown(echo, until=rf"hvsock://{GUEST}/.*came and went")
            echo.send_signal(signal.SIGINT)
            shown(echo)
            assert echo.wait() == 0
            with_the_service(machine)
        finally:
            machine.kill()
            machine.wait()
            echo.kill()
    print("passed", flush=True)


def shape(text: str) -> str:
    """Return what the page has in common with what is seen: ids, names and loads differ."""
    text = re.sub(r"^[0-9a-f-]{36}", "VM", text, flags=re.MULTILINE)
    return re.sub(r"'.*' [0-9.]+$", "NAME LOAD", text, flags=re.MULTILINE)


def with_the_service(machine: subprocess.Popen[bytes]) -> None:
    """Go on from the page's own service."""
    write_program("service.py")
    with start(block("run: host, service.py")) as service:
        printed = shown(service, until="listening on")
        meet("host")
        printed += shown(service, until="is done")
        service.kill()
    assert printed.count(str(GUEST)) == 4
    assert shape(printed) == shape(block("output: service.py"))
    run(f"hvsock connect --timeout {WAIT} --retry-for {BOOT} {GUEST}/5001")
    assert "3 sent, 3 came back, 0 % lost" in run(f"hvsock ping --count 3 {GUEST}/5001")
    assert machine.poll() is None, f"the guest has ended by itself: {STATUS.read_text()}"


if __name__ == "__main__":
    if sys.argv[1:] == ["guest"]:
        guest()
    else:
        host(sys.argv[2:])
