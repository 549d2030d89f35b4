"""The programs of docs/howto/tls.md let in whom they should, and nobody else."""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import utils
from utils import next_line, running

import hvsock
from documentation.pages import GUEST, blocks_of

PAGE = "docs/howto/tls.md"
BLOCKS = {block.mark: block.code for block in blocks_of(PAGE)}
OTHER_VM = str(utils.new_vm())


@pytest.fixture
def directory(local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a directory with all the files of the page, and have the processes use `local`."""
    for mark, code in BLOCKS.items():
        if mark.startswith("file: "):
            (tmp_path / mark.removeprefix("file: ")).write_text(code, encoding="utf-8")
    monkeypatch.setenv("HVSOCK_TRANSPORT", local)
    return tmp_path


def command(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", program, *arguments]


@contextlib.contextmanager
def host(directory: Path, program: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program of the host, which listens."""
    with running(command(program), directory) as server:
        assert next_line(server) == "listening\n"
        yield server


def guest(directory: Path, vm: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of a guest to its end."""
    return subprocess.run(
        command(program, *arguments),
        cwd=directory,
        env={**os.environ, "HVSOCK_LOCAL_VM": vm},
        capture_output=True,
        text=True,
        timeout=utils.LIMIT,
    )


def run_bash(directory: Path, code: str) -> None:
    command = ["bash", "-euo", "pipefail", "-c", code]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=utils.LIMIT)


# The token


@pytest.fixture
def token_host(directory: Path) -> Iterator[subprocess.Popen[str]]:
    run_bash(directory, BLOCKS[""].replace("python3", shlex.quote(sys.executable)))
    assert (directory / "vm.token").stat().st_mode & 0o077 == 0
    with host(directory, "token_host.py") as server:
        yield server


def test_token(directory: Path, token_host: subprocess.Popen[str]) -> None:
    done = guest(directory, GUEST, "token_guest.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"welcome, {GUEST}\n", "")


def test_the_token_of_powershell(directory: Path) -> None:
    program, *arguments = shlex.split(BLOCKS["run: token"])
    assert program == "py"
    subprocess.run([sys.executable, *arguments], cwd=directory, check=True, timeout=utils.LIMIT)
    assert len(bytes.fromhex((directory / "vm.token").read_text())) == 32


def test_the_wrong_token_is_refused_by_both(directory: Path, token_host: subprocess.Popen[str]) -> None:
    (directory / "vm.token").write_text("00" * 32)
    done = guest(directory, GUEST, "token_guest.py")
    assert done.returncode == 1
    assert "PermissionError: the other end does not know the secret" in done.stderr
    assert next_line(token_host).startswith("refused: ")


def test_the_hosts_own_bytes_are_no_proof(token_host: subprocess.Popen[str]) -> None:
    """What an impostor can have: the host's challenge and proof, sent back."""
    with hvsock.create_connection(("loopback", 5000), timeout=utils.LIMIT) as connection:
        connection.sendall(connection.recv_exactly(32))
        connection.sendall(connection.recv_exactly(32))
        assert connection.recv(1) == b""
    assert next_line(token_host).startswith("refused: PermissionError(")


def test_silence_is_refused(token_host: subprocess.Popen[str]) -> None:
    with hvsock.create_connection(("loopback", 5000), timeout=utils.LIMIT) as connection:
        connection.send(b"x")
    assert next_line(token_host).startswith("refused: ")


def test_the_proof_depends_on_both_challenges(directory: Path, token_host: subprocess.Popen[str]) -> None:
    """A proof that was heard once does not serve again."""
    secret = bytes.fromhex((directory / "vm.token").read_text())
    mine = bytes(32)
    proofs = []
    for proof in (None, 0):
        with hvsock.create_connection(("loopback", 5000), timeout=utils.LIMIT) as connection:
            connection.sendall(mine)
            yours = connection.recv_exactly(32)
            proofs.append(hmac.digest(secret, b"guest" + mine + yours, "sha256"))
            connection.sendall(proofs[-1] if proof is None else proofs[proof])
            assert connection.recv_exactly(32) == hmac.digest(secret, b"host" + yours + mine, "sha256")
            if proof is None:
                assert connection.recv_message().startswith(b"welcome, ")
            else:
                assert connection.recv(1) == b""
    assert next_line(token_host).startswith("refused: PermissionError(")


# TLS


@pytest.fixture
def tls_host(directory: Path) -> Iterator[subprocess.Popen[str]]:
    if shutil.which("openssl") is None or shutil.which("bash") is None:
        pytest.skip("the certificates are made with openssl and bash: install them")
    version = subprocess.check_output(["openssl", "version"], text=True)
    if not re.match(r"OpenSSL [3-9]\.", version):
        pytest.skip(f"the certificates are made with OpenSSL 3 or later, not {version.strip()}")
    run_bash(directory, BLOCKS["run: certificates"])
    with host(directory, "tls_host.py") as server:
        yield server


def test_tls(directory: Path, tls_host: subprocess.Popen[str]) -> None:
    done = guest(directory, GUEST, "tls_guest.py", GUEST)
    assert (done.returncode, done.stdout, done.stderr) == (0, "HELLO OVER TLS\n", "")


def test_another_vms_certificate_is_refused(directory: Path, tls_host: subprocess.Popen[str]) -> None:
    done = guest(directory, OTHER_VM, "tls_guest.py", GUEST)
    assert "HELLO" not in done.stdout
    line = next_line(tls_host)
    assert line.startswith("refused: PermissionError(")
    assert OTHER_VM in line
    assert f"{GUEST}.hvsock" in line


def test_a_certificate_of_nobody_is_refused(directory: Path, tls_host: subprocess.Popen[str]) -> None:
    run_bash(
        directory,
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout nobody.key -out nobody.pem "
        f"-subj /CN=nobody -addext subjectAltName=DNS:{GUEST}.hvsock",
    )
    done = guest(directory, GUEST, "tls_guest.py", "nobody")
    assert done.returncode == 1
    assert "SSL" in next_line(tls_host)


def test_a_host_that_is_not_the_service_is_refused(directory: Path, tls_host: subprocess.Popen[str]) -> None:
    """Another GUEST's certificate, from the right authority, does not make a host."""
    tls_host.kill()
    tls_host.wait(utils.LIMIT)
    for suffix in ("pem", "key"):
        shutil.copy(directory / f"{GUEST}.{suffix}", directory / f"host.{suffix}")
    with host(directory, "tls_host.py"):
        done = guest(directory, GUEST, "tls_guest.py", GUEST)
    assert done.returncode == 1
    assert "CertificateError" in done.stderr or "CERTIFICATE_VERIFY_FAILED" in done.stderr
