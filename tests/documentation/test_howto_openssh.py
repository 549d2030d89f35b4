"""docs/howto/openssh.md is followed with OpenSSH: its relays, configurations and commands, in both directions."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import utils
from utils import LIMIT, next_line, running

from documentation.pages import GUEST, code_of

PAGE = "docs/howto/openssh.md"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"])
SSHD = """
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp -d {directory}/there
"""
#: What a user has, and a test must not use.
CLIENT = """
Host *
    User {user}
    IdentityFile {directory}/user
    IdentitiesOnly yes
    UserKnownHostsFile {directory}/known
    StrictHostKeyChecking no
    LogLevel ERROR
"""
DIRECTIONS = {
    "host to guest": ("run: in the guest", GUEST, "config of the host", "run: on the host", None),
    "guest to host": (
        *("run: on the host, for its guests", None, "config of the guest"),
        *("run: in the guest, to the host", GUEST),
    ),
}


def require(name: str, package: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"no {name}: apt-get install --no-install-recommends {package}")
    return found


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[int]:
    """Run sshd, and yield its port."""
    sshd, keygen = require("sshd", "openssh-server"), require("ssh-keygen", "openssh-client")
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (directory / "sshd_config").write_text(SSHD.format(port=port, directory=directory))
    own = Path("/run/sshd")
    make = os.geteuid() == 0 and not own.exists()  # without it sshd does not start, and its service makes it
    if make:
        own.mkdir(mode=0o755)
    try:
        with running([sshd, "-D", "-e", "-f", str(directory / "sshd_config")], directory) as process:
            assert "Server listening" in next_line(process)
            yield port
    finally:
        if make:
            own.rmdir()


def environment(vm: str | None) -> dict[str, str]:
    chosen = {"PATH": PATH, "HVSOCK_TRANSPORT": "local", **({"HVSOCK_LOCAL_VM": vm} if vm else {})}
    return {**os.environ, **chosen}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_page_is_followed(direction: str, local: str, local_directory: Path, tmp_path: Path) -> None:
    relay, relay_vm, config, commands, client_vm = DIRECTIONS[direction]
    require("hvsock", "python3-pip, and pip install 'hvsock[cli]'")
    (tmp_path / "there").mkdir()
    report = utils.random_bytes(10 * utils.MIB)
    (tmp_path / "report.bin").write_bytes(report)
    settings = CLIENT.format(user=getpass.getuser(), directory=tmp_path)
    (tmp_path / "config").write_text(code_of(PAGE, f"file: {config}") + settings)
    with serving(tmp_path) as port:
        line = re.sub(r":22\n", f":{port}\n", code_of(PAGE, relay))
        with running(["hvsock", *shlex.split(line)[1:]], tmp_path, environment(relay_vm)) as process:
            assert "listening on hvsock://" in next_line(process)
            for command in code_of(PAGE, commands).splitlines():
                program, *arguments = shlex.split(command)
                done = subprocess.run(
                    [program, "-F", tmp_path / "config", *arguments],
                    cwd=tmp_path,
                    env=environment(client_vm),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=LIMIT,
                )
                assert done.returncode == 0, done.stderr
                if program == "ssh":
                    assert done.stdout == os.uname().sysname + "\n"
    assert (tmp_path / "there" / "report.bin").read_bytes() == report
    assert (tmp_path / "copy.bin").read_bytes() == report


def test_configurations_differ_in_the_address_only() -> None:
    """And the commands in the name, so that what is said of one direction holds for the other."""
    host, guest = code_of(PAGE, "file: config of the host"), code_of(PAGE, "file: config of the guest")
    same = re.sub(r"(Host |connect ).*", r"\1", host)
    assert same == re.sub(r"(Host |connect ).*", r"\1", guest)
    assert code_of(PAGE, "run: on the host").replace("agent", "host") == code_of(PAGE, "run: in the guest, to the host")
