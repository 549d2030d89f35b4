"""`hvsock relay --config`: the file, what starts and ends with it, and that SIGHUP cuts no connection."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import utils
from command_line import ended, failure, posix, run, service, start

from hvsock._cli import relays
from hvsock._cli.relay import Orders


def written(path: Path, *pairs: tuple[str, str], more: str = "") -> Path:
    path.write_text(
        "".join(f'[[relay]]\nlisten = "{listen}"\nconnect = "{connect}"\n' for listen, connect in pairs) + more
    )
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it must have one or more tables [[relay]], and nothing else"),
        ("relay = 1", "it must have one or more tables [[relay]], and nothing else"),
        ('[[relay]]\nlisten = "tcp://:0"\nconnect = "tcp://:1"\n[other]', "it must have one or more tables"),
        ("[[relay", "at end of document"),
        ("relay = [1]", "relay 1: it must be a table, [[relay]]"),
        ('[[relay]]\nlisten = "tcp://:0"', "relay 1: connect must be given, as a string"),
        ('[[relay]]\nlisten = "tcp://:0"\nconnect = 5', "relay 1: connect must be given, as a string"),
        ('[[relay]]\nlisten = "tcp://:0"\nconnect = "tcp://:1"\nidle = 5', "relay 1: there is no option 'idle'"),
        (
            '[[relay]]\nlisten = "tcp://:0"\nconnect = "tcp://:1"\nidle-timeout = "5"',
            "idle-timeout must be a number, not '5'",
        ),
        ('[[relay]]\nlisten = "tcp://:0"\nconnect = "tcp://:1"\nmax-connections = true', "must be a number, not True"),
        ('[[relay]]\nlisten = "tcp://:0"\nconnect = "tcp://:1"\nidle-timeout = -1', "relay 1: idle_timeout must be"),
        ('[[relay]]\nlisten = "tcp://:0"\nconnect = "tcp://:0"', "port 0 only means any free port"),
        (
            '[[relay]]\nlisten = "tcp://:7"\nconnect = "tcp://:1"\n' * 2,
            "relay 2: 'tcp://:7' is listened on by another relay of this file",
        ),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "relays.toml"
    path.write_text(text)
    line = failure("relay", "--config", str(path))
    assert line.startswith(f"relay: {path}: ")
    assert message in line


def test_options_of_a_pair(tmp_path: Path) -> None:
    path = written(
        tmp_path / "relays.toml",
        ("tcp://:7", "tcp://:1"),
        more="connect-timeout = 1\nidle-timeout = 2.5\nmax-connections = 3\nretry-for = 60\n",
    )
    assert relays.read(path) == [relays.Pair("tcp://:7", "tcp://:1", 1, 2.5, 3, 60)]


def test_wrong_usage(tmp_path: Path) -> None:
    path = written(tmp_path / "relays.toml", ("tcp://:7", "tcp://:1"))
    assert "--config takes the place of LISTEN and CONNECT" in failure(
        "relay", "--config", str(path), "tcp://:0", code=2
    )
    assert "LISTEN and CONNECT must be given, or --config FILE" in failure("relay", "tcp://:0", code=2)
    assert run("relay", "--config", str(tmp_path / "missing")).exit_code == 1


def test_all_start_or_none(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = written(tmp_path / "relays.toml", (f"unix://{tmp_path}/s", "tcp://:1"), (f"tcp://:{port}", "tcp://:1"))
        result = run("relay", "--config", str(path))
    assert result.exit_code == 1
    assert not (tmp_path / "s").exists()


def port_of(line: str) -> int:
    match = re.fullmatch(r"(?:no longer )?listening on tcp://127\.0\.0\.1:(\d+)(?: for .*)?\n", line)
    assert match, line
    return int(match[1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), utils.LIMIT)


def refuses(port: int) -> bool:
    try:
        dial(port).close()
    except ConnectionRefusedError:
        return True
    return False


def echoes(sock: socket.socket) -> bool:
    sock.sendall(b"x")
    return sock.recv(1) == b"x"


@posix
def test_a_signal_that_another_thread_gets() -> None:
    """The system chooses the thread; the one that waits is woken in any case."""
    done: list[str] = []

    def send() -> None:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            time.sleep(2 * utils.TICK)  # until the other one waits
            signal.pthread_kill(threading.get_ident(), number)

    with Orders({signal.SIGUSR1: lambda: done.append("done")}) as orders:
        task = utils.Task(send)
        orders.carry_out()
    task.result()
    assert done == ["done"]


@posix
def test_hangup(local: str, tmp_path: Path) -> None:
    """What is new is started, what is missing ends, and no connection does."""
    with service(local) as address:
        other = free_port()
        target = f"{address}?transport=local"
        path = written(tmp_path / "relays.toml", ("tcp://:0", target), (f"tcp://:{other}", target))
        with ended(start("relay", "--config", str(path))) as process:

            def line() -> str:
                assert process.stdout
                return process.stdout.readline().decode()

            first = port_of(line())
            assert port_of(line()) == other
            with dial(first) as one, dial(other) as two:
                assert echoes(one)
                assert echoes(two)
                written(path, (f"tcp://:{other}", target), (f"unix://{tmp_path}/s", target))
                process.send_signal(signal.SIGHUP)
                assert port_of(line()) == first
                assert line() == f"listening on unix://{tmp_path}/s for {target}\n"
                utils.wait_for(lambda: refuses(first))
                assert echoes(one)
                assert echoes(two)
                # The same address with another option.
                written(path, (f"tcp://:{other}", target), more="idle-timeout = 60\n")
                process.send_signal(signal.SIGHUP)
                assert {line(), line()} == {
                    f"no longer listening on tcp://127.0.0.1:{other}\n",
                    f"no longer listening on unix://{tmp_path}/s\n",
                }
                assert line() == f"listening on tcp://127.0.0.1:{other} for {target}\n"
                with dial(other) as three:
                    assert echoes(three)
                # A mistake changes nothing.
                path.write_text("[[relay]")
                process.send_signal(signal.SIGHUP)
                assert process.stderr
                assert process.stderr.readline().startswith(b"hvsock: nothing was reloaded: ")
                assert echoes(one)
                assert echoes(two)
                process.send_signal(signal.SIGUSR1)
                assert re.split(r" {2,}", line().rstrip())[:3] == ["listen", "connections", "open"]
                rows = [re.split(r" {2,}", line().rstrip()) for _ in range(4)]
                assert sum(int(row[2]) for row in rows) == 2
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=utils.LIMIT)
    assert (process.returncode, err) == (0, b"")
    rows = [re.split(r" {2,}", row) for row in out.decode().splitlines()]
    assert rows[0][:2] == ["listen", "connections"]
    assert sorted(int(row[1]) for row in rows[1:]) == [0, 1, 1, 1]


@posix
def test_numbers_as_json(local: str, tmp_path: Path) -> None:
    with service(local) as address:
        path = written(tmp_path / "relays.toml", (f"unix://{tmp_path}/s", f"{address}?transport=local"))
        with ended(start("relay", "--json", "--config", str(path))) as process:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(utils.LIMIT)
                utils.wait_for(lambda: sock.connect_ex(str(tmp_path / "s")) == 0)
                assert echoes(sock)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=utils.LIMIT)
    assert err == b""
    (numbers,) = json.loads(out)
    assert numbers["listen"] == f"unix://{tmp_path}/s"
    assert numbers["bytes_to_target"] == 1
