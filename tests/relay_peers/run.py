"""Run other people's servers and clients through two relays; README.md beside this file has what was seen.

`run.py [--seconds SECONDS] [NAME...]`: nginx, redis, postgresql and ssh, or those named. One line each; exit status 0
when all of them passed, 77 when a program is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import glob
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HVSOCK_TRANSPORT"] = "local"

from hvsock.relay import Relay

MISSING = 77
# Seconds: for a server to come up or a connection to go, and for a client beyond the time that it was told to run.
WAIT = 30.0
LIMIT = 120.0
# Bytes.
PAGE = 20_000
LARGE = 10 << 20
FILE = 100 << 20
CLIENTS = 50
SERVICE = 5000

#: Without the directories in which Debian has servers, a user's PATH does not find them.
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)])


def program(name: str, package: str) -> str:
    """Return its path, or end with one sentence."""
    if found := shutil.which(name, path=PATH):
        return found
    print(f"run.py: {name} is missing; apt-get install --no-install-recommends {package}", file=sys.stderr)
    sys.exit(MISSING)


def run(*command: str | Path, seconds: float = 0.0, stdin: bytes = b"") -> bytes:
    """Return the output of a client, whose exit status must be 0."""
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=LIMIT + seconds)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stderr.decode()[-500:]}"
    return done.stdout


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT:g} s: {what}"
        time.sleep(0.05)


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"the output has no {pattern}: {text}"
    return int(found[1])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def serving(directory: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; what it writes goes into a file, whose end is shown if the block fails."""
    with (directory / "log").open("w+b") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory)
        try:
            yield process
        except BaseException as error:
            log.seek(0)
            error.add_note(log.read()[-1000:].decode(errors="replace"))
            raise
        finally:
            process.terminate()
            process.wait(WAIT)


def is_idle(relay: Relay) -> bool:
    return relay.counters.open == 0


@contextlib.contextmanager
def relayed(listen: str, server: str) -> Iterator[Relay]:
    """Two relays, joined by a Hyper-V socket; yield the client's. None of its connections may fail, or stay."""
    service = f"hvsock://loopback/{SERVICE}"
    with Relay(service, server) as far, Relay(listen, service) as near:
        yield near
        for relay in (near, far):
            wait_for(functools.partial(is_idle, relay), f"the end of all connections of {relay!r}")
            assert relay.counters.failed == relay.counters.refused == 0, relay.counters
            assert relay.counters.total > 0


def port_of(relay: Relay) -> str:
    return relay.address.rpartition(":")[2]


def carried(relay: Relay) -> str:
    counters = relay.counters
    return f"{counters.total:,} connections, {(counters.bytes_to_target + counters.bytes_to_client) >> 20:,} MiB"


# --- the pairs: each is given a private directory and the seconds to run, and returns what it saw ---

NGINX = """
daemon off; {user} worker_processes 1; pid {directory}/pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    server {{ listen unix:{directory}/socket; root {directory}/pages; }}
}}
"""
WRK = """
local file = io.open("{page}", "rb")
local page = file:read("*a")
file:close()
function response(status, headers, body)
    if status ~= 200 or body ~= page then print("wrong: status " .. status .. ", " .. #body .. " bytes") end
end
"""


def nginx(directory: Path, seconds: int) -> str:
    """Ask for a page over connections that stay, and compare each answer with it."""
    server, client = program("nginx", "nginx-light"), program("wrk", "wrk")
    page = directory / "pages" / "page"
    page.parent.mkdir()
    page.write_bytes(os.urandom(PAGE))
    user = "user root;" if os.geteuid() == 0 else ""  # else its worker may not enter the directory
    (directory / "conf").write_text(NGINX.format(directory=directory, user=user))
    (directory / "lua").write_text(WRK.format(page=page))
    with serving(directory, server, "-p", directory, "-e", "stderr", "-c", directory / "conf"):
        wait_for((directory / "socket").exists, "nginx listens")
        with relayed("tcp://127.0.0.1:0", f"unix://{directory}/socket") as relay:
            url = f"http://127.0.0.1:{port_of(relay)}/page"
            words = f"-t2 -c{CLIENTS} -d{seconds} -s{directory}/lua {url}"
            printed = run(client, *words.split(), seconds=seconds).decode()
            assert "wrong:" not in printed, printed
            assert "Socket errors" not in printed, printed
            assert "Non-2xx" not in printed, printed
            requests = number(r"(\d+) requests in", printed)
            assert requests > 0
    return f"{requests:,} requests, each with its page of {PAGE:,} bytes; {carried(relay)}"


def redis(directory: Path, seconds: int) -> str:
    """Run the benchmark, and get a large value as it was set."""
    server, client, cli = (
        program("redis-server", "redis-server"),
        program("redis-benchmark", "redis-tools"),
        program("redis-cli", "redis-tools"),
    )
    options = f"--port 0 --unixsocket {directory}/socket --dir {directory} --appendonly no --save"
    with serving(directory, server, *options.split(), ""):
        wait_for((directory / "socket").exists, "redis listens")
        with relayed("tcp://127.0.0.1:0", f"unix://{directory}/socket") as relay:
            port = port_of(relay)
            value = os.urandom(LARGE)
            assert run(cli, "-p", port, "-x", "set", "large", stdin=value) == b"OK\n"
            assert digest(run(cli, "-p", port, "--raw", "get", "large")[:-1]) == digest(value)
            requests = 5_000 * seconds
            words = f"-p {port} -c {CLIENTS} -n {requests} -d 1000 -e --csv -t set,get,incr,lpush,lrange_100,mset"
            printed = run(client, *words.split(), seconds=10 * seconds).decode()
            tests = re.findall(r'^"(\w+)[^"]*","[0-9.]+"', printed, re.MULTILINE)
            assert tests == ["SET", "GET", "INCR", "LPUSH", "LPUSH", "LRANGE_100", "MSET"], printed
            assert run(cli, "-p", port, "llen", "mylist") == b"%d\n" % (2 * requests)
    return f"{len(tests)} tests of {requests:,} requests, {LARGE >> 20} MiB set and got; {carried(relay)}"


def postgresql(directory: Path, seconds: int) -> str:
    """Run pgbench's transactions, which leave the same sum in three tables."""
    initdb, server = (program(name, "postgresql") for name in ("initdb", "postgres"))
    client, psql = (program(name, "postgresql-client") for name in ("pgbench", "psql"))
    near, far = directory / "near", directory / "far"
    for path in (near, far):
        path.mkdir()
    as_user: tuple[str, ...] = ()
    if os.geteuid() == 0:  # which neither of the two runs as
        as_user = (program("setpriv", "util-linux"), "--reuid=postgres", "--regid=postgres", "--clear-groups")
        directory.chmod(0o711)
        shutil.chown(far, "postgres")
    run(*as_user, initdb, "--auth=trust", "--username=postgres", "--no-sync", f"{far}/data")
    with serving(directory, *as_user, server, "-D", f"{far}/data", "-h", "", "-k", far, "-F"):
        wait_for((far / ".s.PGSQL.5432").exists, "PostgreSQL listens")
        with relayed(f"unix://{near}/.s.PGSQL.5432", f"unix://{far}/.s.PGSQL.5432") as relay:
            login = ("-h", str(near), "-U", "postgres")
            wait_for(
                lambda: subprocess.run([psql, *login, "-c", ""], capture_output=True).returncode == 0, "it answers"
            )
            run(client, *login, "-i", "-q", "postgres")
            words = f"-c 10 -j 2 -T {seconds} postgres"
            printed = run(client, *login, *words.split(), seconds=seconds).decode()
            transactions = number(r"transactions actually processed: (\d+)", printed)
            assert transactions > 0
            assert number(r"failed transactions: (\d+)", printed) == 0, printed
            parts = {"accounts": "abalance", "tellers": "tbalance", "branches": "bbalance", "history": "delta"}
            query = " union all ".join(f"select sum({column}) from pgbench_{name}" for name, column in parts.items())
            sums = run(psql, *login, "-At", "-c", query).split()
            assert len(sums) == len(parts), sums
            assert len(set(sums)) == 1, sums
    return f"{transactions:,} transactions, none failed, the four tables' sums are the same; {carried(relay)}"


SSHD = """
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


def ssh(directory: Path, seconds: int) -> str:
    """Copy a file there and back."""
    server, client = program("sshd", "openssh-server"), program("scp", "openssh-client")
    for name in ("host", "user"):
        run(program("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (directory / "conf").write_text(SSHD.format(directory=directory, port=port))
    data = os.urandom(FILE)
    (directory / "sent").write_bytes(data)
    with privilege_separation(), serving(directory, server, "-D", "-e", "-f", directory / "conf"):
        wait_for(lambda: b"Server listening" in (directory / "log").read_bytes(), "sshd listens")
        with relayed("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{port}") as relay:
            words = f"-q -B -P {port_of(relay)} -i {directory}/user -o IdentitiesOnly=yes -o StrictHostKeyChecking=no"
            command = (client, *words.split(), "-o", f"UserKnownHostsFile={directory}/known", "-F", "none")
            run(*command, directory / "sent", f"127.0.0.1:{directory}/there")
            run(*command, f"127.0.0.1:{directory}/there", directory / "back")
    for name in ("there", "back"):
        assert digest((directory / name).read_bytes()) == digest(data), name
    return f"{FILE >> 20} MiB there and back, whole; {carried(relay)}"


@contextlib.contextmanager
def privilege_separation() -> Iterator[None]:
    """Have the directory without which sshd does not start; otherwise its service makes that."""
    path = Path("/run/sshd")
    if path.exists() or os.geteuid() != 0:
        yield
        return
    path.mkdir(mode=0o755)
    try:
        yield
    finally:
        path.rmdir()


PAIRS = {"nginx": nginx, "redis": redis, "postgresql": postgresql, "ssh": ssh}


def check(name: str, seconds: int) -> bool:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"hvsock-{name}.") as path:
        os.environ["HVSOCK_LOCAL_DIR"] = path
        try:
            seen = PAIRS[name](Path(path), seconds)
        except Exception as error:
            notes = "".join(f"\n    {note}" for note in getattr(error, "__notes__", ()))
            print(f"FAILED {name}: {type(error).__name__}: {error}{notes}", flush=True)
            return False
    print(f"ok     {name}: {seen} ({time.monotonic() - start:.1f} s)", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Real servers and clients through two relays.")
    parser.add_argument("--seconds", type=int, default=10, help="how long each benchmark runs, about (10)")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(PAIRS)}; all of them if none is named")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(PAIRS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    results = [check(name, arguments.seconds) for name in arguments.names or PAIRS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
