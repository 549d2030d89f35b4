"""The tests of streams between two kernels: the guest relays each connection back to the host, where both ends are.

`streams.py guest` relays. `streams.py host PYTEST-ARGUMENT... -- COMMAND...` starts COMMAND, which boots the machine
(CID 7) that relays, runs pytest when it does, and ends with pytest's exit status.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hvsock
from hvsock.relay import Relay

GUEST = 7
THERE, HERE = 6000, 6001  # the guest's port, and the host's
BOOT = 600.0  # seconds
CONSOLE = Path("/tmp/console")


def guest() -> None:
    """Relay what the host connects, back to the host."""
    with Relay(f"vsock://:{THERE}", f"vsock://2:{HERE}", connect_timeout=None) as relay:
        print(f"relaying {relay.address}", flush=True)
        relay.serve_forever()


def host(arguments: list[str], command: list[str]) -> int:
    """Run pytest beside the machine."""
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        # Nothing listens on the host's port: the relay closes the connection, which tells that it is there.
        address = hvsock.vm_id_from_cid(GUEST), THERE
        with hvsock.create_connection(address, timeout=BOOT, transport="vsock", retry_for=BOOT) as connection:
            connection.recv(1)
        settings = {"HVSOCK_TEST_FAR": f"{GUEST}:{THERE}:{HERE}", "HVSOCK_REQUIRE": "vsock"}
        tests = [sys.executable, "-B", "-Im", "pytest", "-o", "testpaths=tests", *arguments]
        return subprocess.run(tests, cwd="/project", env={**os.environ, **settings}).returncode
    finally:
        machine.kill()
        for line in CONSOLE.read_text(errors="replace").splitlines()[-5:]:
            print(f"      console: {line}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "guest":
        guest()
    else:
        middle = sys.argv.index("--")
        sys.exit(host(sys.argv[2:middle], sys.argv[middle + 1 :]))
