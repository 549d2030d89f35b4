"""`hvsock ssh` and `hvsock scp`: what OpenSSH is asked for, by a stand-in; and a login, by a real one."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import utils
from command_line import command, failure, posix, run

import hvsock
from hvsock._cli import ssh

pytestmark = posix
VM = uuid.UUID("6f2a3b7e-51a4-4c0d-9a53-0c5d1e7f8a42")
PROXY = f"-oProxyCommand={sys.executable} -P -m hvsock connect hvsock://%h/%p"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command with stand-ins for ssh and scp, and return the words that they get."""
    for name in ("ssh", "scp"):
        script = tmp_path / name
        script.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\nexit 7\n')
        script.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    env.pop("HVSOCK_TRANSPORT", None)

    def ask(*words: str) -> list[str]:
        done = subprocess.run(command(*words), env=env, capture_output=True, text=True, timeout=utils.LIMIT)
        assert (done.returncode, done.stderr) == (7, "")
        program, *given = done.stdout.splitlines()
        assert Path(program).name == words[0]
        return given

    return ask


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["parent"], ["-oHostKeyAlias=parent.hvsock", "parent"]),
        (["me@Parent", "uname", "-a"], ["-oHostKeyAlias=parent.hvsock", "me@parent", "uname", "-a"]),
        (["-p", "2222", "-v", "parent"], ["-oHostKeyAlias=parent.hvsock", "-p", "2222", "-v", "parent"]),
        (["-vlthomas", "parent"], ["-oHostKeyAlias=parent.hvsock", "-vlthomas", "parent"]),
        (["-vl", "thomas", "parent"], ["-oHostKeyAlias=parent.hvsock", "-vl", "thomas", "parent"]),
        (["--", "parent", "-h"], ["-oHostKeyAlias=parent.hvsock", "--", "parent", "-h"]),
        ([f"{{{str(VM).upper()}}}"], [f"-oHostKeyAlias={VM}.hvsock", str(VM)]),
        (["a@b@parent", "x y"], ["-oHostKeyAlias=parent.hvsock", "a@b@parent", "x y"]),
    ],
)
def test_ssh(asked: Any, words: list[str], expected: list[str]) -> None:
    assert asked("ssh", *words) == [PROXY, *expected]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a b", "me@parent:"], ["-oHostKeyAlias=parent.hvsock", "a b", "me@parent:"]),
        (
            ["-rP", "2222", "parent:/x:y", "./a:b"],
            ["-oHostKeyAlias=parent.hvsock", "-rP", "2222", "parent:/x:y", "./a:b"],
        ),
        (["parent:a", "loopback:b"], ["parent:a", "loopback:b"]),
        (["C:\\a", "dir/a:b", "scp://host/a"], ["C:\\a", "dir/a:b", "scp://host/a"]),
    ],
)
def test_scp(asked: Any, words: list[str], expected: list[str]) -> None:
    assert asked("scp", *words) == [PROXY, *expected]


@pytest.mark.parametrize("service", ["2222", "2714018708", str(VM)])
def test_a_service(asked: Any, service: str) -> None:
    expected = [PROXY.replace("%p", service), "-oHostKeyAlias=parent.hvsock", "me@parent", "true"]
    assert asked("ssh", f"me@parent/{service}", "true") == expected


def test_the_transport_is_passed_on(asked: Any) -> None:
    for words in (["--transport", "local"], ["--transport=local"]):
        assert asked("ssh", *words, "parent")[0] == PROXY.replace("connect ", "connect --transport local ")


@pytest.mark.parametrize(
    ("name", "key"), [("Build-Agent", "build-agent.hvsock"), ("My VM", f"{VM}.hvsock"), ("日本", f"{VM}.hvsock")]
)
def test_a_name(name: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is the id, and the keys of hosts are under the name: WSL's id is another one at each start."""
    started: list[Any] = []
    monkeypatch.setattr(ssh, "find", lambda vm, verbose: {name: VM}[vm])
    monkeypatch.setattr(ssh, "_run", lambda program, words: started.append([program, *words[1:]]) or 0)
    for words in (("ssh", f"me@{name}", "true"), ("scp", "a", f"me@{name}:b")):
        assert run(*words).exit_code == 0
    assert started == [
        ["ssh", f"-oHostKeyAlias={key}", f"me@{VM}", "true"],
        ["scp", f"-oHostKeyAlias={key}", "a", f"me@{VM}:b"],
    ]


def test_a_python_in_a_directory_with_odd_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/a b/100%/python")
    assert ssh._proxy(None) == "-oProxyCommand='/a b/100%%/python' -P -m hvsock connect hvsock://%h/%p"


def test_without_openssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert failure("ssh", "parent") == "ssh is not on PATH (install the client of OpenSSH)"


# With the real ones


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Make the keys of a host and a user, and return sshd's configuration and the options of its client."""
    for name in ("ssh", "scp", "sshd", "ssh-keygen"):
        if shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") is None:
            pytest.skip(f"{name} is missing: apt-get install openssh-server openssh-client")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    config = tmp_path / "sshd_config"
    config.write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\nUsePAM no\n"
        "PidFile none\nSubsystem sftp internal-sftp\n"
    )
    (tmp_path / "known").write_text(f"loopback.hvsock {(tmp_path / 'host.pub').read_text()}")
    known = f"-oUserKnownHostsFile={tmp_path}/known"
    with privilege_separation():
        yield config, ["-F", "none", known, "-i", str(tmp_path / "user"), "-oBatchMode=yes"]


@contextlib.contextmanager
def privilege_separation() -> Iterator[None]:
    """Have the directory without which root's sshd does not start; otherwise its service makes that."""
    path = Path("/run/sshd")
    if os.geteuid() or path.is_dir():
        yield
        return
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()


def test_a_login_and_a_copy(local: str, keys: tuple[Path, list[str]], tmp_path: Path) -> None:
    config, options = keys
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")

    def serve() -> None:
        for _ in range(2):
            with listener.accept()[0] as sock:
                handle = sock.fileno()
                subprocess.run(
                    [str(program), "-i", "-f", config], stdin=handle, stdout=handle, stderr=subprocess.DEVNULL
                )

    target = f"{getpass.getuser()}@loopback"
    (tmp_path / "a").write_bytes(data := utils.random_bytes(300_000))
    with hvsock.create_server(("loopback", 22), transport=local) as listener:
        listener.settimeout(utils.LIMIT)
        serving = utils.Task(serve)
        words = ["ssh", "--transport", local, *options, target, "cat; exit 5"]
        done = subprocess.run(command(*words), input=b"hello", capture_output=True, timeout=utils.LIMIT)
        assert (done.returncode, done.stdout, done.stderr) == (5, b"hello", b"")
        words = ["scp", "--transport", local, *options, str(tmp_path / "a"), f"{target}:{tmp_path}/b"]
        done = subprocess.run(command(*words), capture_output=True, timeout=utils.LIMIT)
        assert (done.returncode, done.stderr) == (0, b"")
        serving.result()
    assert (tmp_path / "b").read_bytes() == data
