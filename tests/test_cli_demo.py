"""`hvsock demo`: the choice of a transport, the measurements, and what goes wrong."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import utils
from command_line import ESCAPED, NASTY, command, on_terminal, plain, posix, run

import hvsock
from hvsock._cli import demo
from hvsock._transports import vsock as vsock_transport

QUICK = ("--count", "50", "--size", "1")
GUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def transport_named(name: str, reason: str | None = None) -> Any:
    return types.SimpleNamespace(name=name, available=reason is None, reason=reason, family=1)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the transports are usable or not, for these reasons, and that vsock has a loopback or not."""

    def pretend(*, hyperv: str | None, vsock: str | None, local: str | None, loopback: bool) -> None:
        transports = transport_named("hyperv", hyperv), transport_named("vsock", vsock), transport_named("local", local)
        monkeypatch.setattr(hvsock, "transports", lambda: transports)
        monkeypatch.setattr(vsock_transport, "has_loopback", lambda: loopback)

    return pretend


@pytest.fixture
def temporary_directories(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Unset HVSOCK_LOCAL_DIR, and return a list of the directories that are made for want of it."""
    made: list[Path] = []
    mkdtemp = tempfile.mkdtemp

    def recording(*args: Any, **kwargs: Any) -> str:
        made.append(Path(mkdtemp(*args, **kwargs)))
        return str(made[-1])

    monkeypatch.delenv("HVSOCK_LOCAL_DIR")
    monkeypatch.setattr(tempfile, "mkdtemp", recording)
    return made


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Return a list of the client processes, every one of which must be reaped at the end."""
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    yield started
    assert all(client.returncode is not None for client in started)


def no_thread_is_left() -> bool:
    end = time.monotonic() + utils.LIMIT
    while any(thread.name.startswith("hvsock demo") for thread in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(utils.TICK)
    return True


# demo, the choice


def test_the_help_says_which_transport_is_taken() -> None:
    assert "By default the best one that works here." in " ".join(run("demo", "--help").stdout.split())


def test_the_demo_prefers_hyperv(pretend: Callable[..., None]) -> None:
    pretend(hyperv=None, vsock=None, local=None, loopback=True)
    scene = demo.choose_scene(None)
    assert (scene.transport, scene.serve, scene.dial, scene.guest) == ("hyperv", "loopback", "loopback", None)


def test_the_demo_takes_vsock_only_with_a_loopback(pretend: Callable[..., None]) -> None:
    pretend(hyperv="this is not Windows", vsock=None, local=None, loopback=True)
    assert demo.choose_scene(None).transport == "vsock"
    pretend(hyperv="this is not Windows", vsock=None, local=None, loopback=False)
    scene = demo.choose_scene(None)
    assert (scene.transport, scene.serve, scene.dial) == ("local", "wildcard", "parent")
    assert scene.guest is not None
    assert "hyperv: this is not Windows" in scene.reason
    assert "vsock: the vsock loopback module is not loaded" in scene.reason


def test_the_demo_does_not_run_on_vsock_without_a_loopback_even_if_asked_to(pretend: Callable[..., None]) -> None:
    pretend(hyperv="this is not Windows", vsock=None, local=None, loopback=False)
    result = run("demo", "--transport", "vsock")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"hvsock: the demo cannot run on vsock: the vsock loopback module is not .*\n", result.stderr)


def test_the_demo_says_why_a_transport_cannot_be_had(pretend: Callable[..., None]) -> None:
    pretend(hyperv="no provider", vsock="no /dev/vsock", local="no AF_UNIX", loopback=False)
    for name, reason in (("hyperv", "no provider"), ("vsock", "no /dev/vsock"), ("local", "no AF_UNIX")):
        result = run("demo", "--transport", name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"hvsock: the demo cannot run on {name}: {reason}\n"
    result = run("demo")
    assert result.exit_code == 1
    reasons = "hyperv: no provider; vsock: no /dev/vsock"
    assert result.stderr == f"hvsock: the demo cannot run on local: no AF_UNIX ({reasons})\n"


@pytest.mark.parametrize("given", ["option", "environment"])
def test_an_unknown_transport_is_a_usage_error(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if given == "environment":
        monkeypatch.setenv("HVSOCK_TRANSPORT", "carrier\x1bpigeon")
        result = run("demo")
    else:
        result = run("demo", "--transport", "carrier\x1bpigeon")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("hvsock: Invalid value for '--transport'")
    assert r"carrier\x1bpigeon" in result.stderr
    assert result.stderr.endswith("(see 'hvsock demo --help')\n")
    assert len(result.stderr.splitlines()) == 1


# demo, the run


def test_the_demo_measures_and_verifies(transport: str, clients: list[subprocess.Popen[bytes]]) -> None:
    result = run("demo", "--transport", transport, *QUICK, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["transport"] == transport
    assert report["connect"]["count"] > 0
    assert 0 < report["round_trip"]["count"] <= 50  # fewer where they take more than the second
    for measured in (report["connect"], report["round_trip"]):
        assert 0 < measured["p50_us"] <= measured["p99_us"]
    assert 0 < report["throughput"]["bytes"] <= 1 << 20
    assert report["throughput"]["mib_per_second"] > 0
    assert report["verified_bytes"] > report["throughput"]["bytes"]
    service, client = (hvsock.HyperVAddress.parse(report[name]) for name in ("service", "client"))
    assert service.port == client.port
    assert len(clients) == 1
    assert no_thread_is_left()


def test_the_demo_in_words(local: str) -> None:
    result = run("demo", "--transport", "local", *QUICK)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    names = ["transport", "service", "client", "payloads", "connect", "round trip", "throughput"]
    assert [re.split(r" {2,}", line)[0] for line in lines] == names
    assert result.stdout.isascii()
    assert not any(line != line.rstrip() for line in lines)
    guest = rf"hvsock://{GUID}/"
    assert re.search(rf"hvsock://parent/\d+ in another process, seen here as {guest}", lines[2])
    assert re.search(r"p50 [\d.,]+ us, p99 [\d.,]+ us, \d+ times of 64 bytes$", lines[5])


def test_the_demo_uses_a_directory_of_its_own_and_removes_it(local: str, temporary_directories: list[Path]) -> None:
    before = dict(os.environ)
    assert run("demo", "--transport", "local", *QUICK).exit_code == 0
    assert dict(os.environ) == before
    assert len(temporary_directories) == 1
    assert not temporary_directories[0].exists()


def test_the_demo_works_in_a_process_that_is_a_guest(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = str(uuid.uuid4())
    monkeypatch.setenv("HVSOCK_LOCAL_VM", vm)
    assert run("demo", "--transport", "local", *QUICK).exit_code == 0
    assert os.environ["HVSOCK_LOCAL_VM"] == vm


def test_the_demo_can_run_twice_at_once(served: str) -> None:
    commands = [command("demo", "--transport", served, *QUICK, "--json") for _ in range(2)]
    processes = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    for process in processes:
        out, err = process.communicate(timeout=utils.LIMIT)
        assert (process.returncode, err) == (0, "")
        json.loads(out)


def test_the_environment_chooses_the_demos_transport(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSOCK_TRANSPORT", served)
    assert json.loads(run("demo", *QUICK, "--json").stdout)["reason"].startswith("asked for")


# demo, when it fails


@posix
def test_a_broken_transport_is_one_line_and_exit_1(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (local_directory / "file").touch()
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", str(local_directory / "file"))
    result = run("demo", "--transport", "local", *QUICK)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("hvsock: listen on hvsock://wildcard/")
    result = run("--debug", "demo", "--transport", "local", *QUICK)
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert line.partition("hvsock://")[0] in result.stderr


def failing_demo(served: str, *args: str) -> str:
    """Run a demo that must fail, and return its standard error without the `hvsock: `."""
    result = run(*args, "demo", "--transport", served, *QUICK)
    assert result.exit_code == 1
    assert no_thread_is_left()
    if not args:
        assert result.stderr.startswith("hvsock: ")
    return result.stderr.removeprefix("hvsock: ")


def test_a_payload_that_comes_back_changed_is_a_failure(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def flip(connection: hvsock.HyperVSocket) -> None:
        while data := connection.recv(65536):
            connection.sendall(bytes([data[0] ^ 1]) + data[1:])

    monkeypatch.setattr(demo, "echo", flip)
    assert failing_demo(served) == "what came back is not what was sent\n"


def test_a_stream_that_comes_back_changed_is_a_failure(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def flip(connection: hvsock.HyperVSocket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data if len(data) == demo.PAYLOAD else bytes([data[0] ^ 1]) + data[1:])

    monkeypatch.setattr(demo, "echo", flip)
    assert failing_demo(served) == "what came back is not what was sent\n"


def test_a_stream_that_comes_back_short_is_a_failure(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def swallow(connection: hvsock.HyperVSocket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data if len(data) == demo.PAYLOAD else data[:-1])

    monkeypatch.setattr(demo, "echo", swallow)
    assert failing_demo(served) == "what came back is not what was sent\n"


def test_a_service_that_hangs_up_is_a_failure(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "echo", lambda connection: None)
    assert re.fullmatch(r"exchange with hvsock://(parent|loopback)/\d+: .*\n", failing_demo(served))


def test_a_service_that_breaks_is_named(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(connection: hvsock.HyperVSocket) -> None:
        raise RuntimeError(NASTY)

    monkeypatch.setattr(demo, "echo", crash)
    assert f"(the service ended: RuntimeError: {ESCAPED})\n" in failing_demo(served)


def test_a_client_that_crashes_is_a_failure(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CLIENT", "import sys; sys.exit('first\\nno \\x1b[31mluck')")
    assert failing_demo(served) == "the client ended with exit code 1 (no \\x1b[31mluck)\n"


def test_the_trace_of_the_client_is_shown_on_request(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CLIENT", "1 / 0")
    assert failing_demo(served) == "the client ended with exit code 1 (ZeroDivisionError: division by zero)\n"
    assert 'File "<string>", line 1' in failing_demo(served, "--debug")


@pytest.mark.parametrize("connects", [False, True])
def test_a_client_that_hangs_is_killed(
    connects: bool,
    served: str,
    monkeypatch: pytest.MonkeyPatch,
    clients: list[subprocess.Popen[bytes]],
    temporary_directories: list[Path],
) -> None:
    code = "import hvsock, json, sys, time; job = json.loads(sys.argv[1])\n"
    if connects:
        monkeypatch.setattr(demo, "RUN_LIMIT", 2 * utils.TICK)
        code += (
            "sock = hvsock.create_connection(hvsock.HyperVAddress.parse(job['address']), transport=job['transport'])\n"
        )
    else:
        monkeypatch.setattr(demo, "START_LIMIT", 2 * utils.TICK)
    monkeypatch.setattr(demo, "CLIENT", code + "time.sleep(600)")
    assert failing_demo(served).startswith(f"the client did not {'finish' if connects else 'connect'} within ")
    assert len(clients) == 1
    assert not any(directory.exists() for directory in temporary_directories)


def test_ctrl_c_in_the_demo_cleans_up_and_exits_130(
    served: str,
    monkeypatch: pytest.MonkeyPatch,
    clients: list[subprocess.Popen[bytes]],
    temporary_directories: list[Path],
) -> None:
    def interrupt(client: object, service: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "wait", interrupt)
    result = run("demo", "--transport", served, *QUICK)
    assert result.exit_code == 130
    assert len(clients) == 1
    assert not any(directory.exists() for directory in temporary_directories)
    assert no_thread_is_left()


# as a process


@pytest.mark.parametrize("what", ["service", "client"])
def test_ctrl_c_while_something_starts_leaves_nothing_behind(
    what: str,
    served: str,
    monkeypatch: pytest.MonkeyPatch,
    clients: list[subprocess.Popen[bytes]],
    temporary_directories: list[Path],
) -> None:
    listen = demo.listen

    def listen_interrupted(scene: demo.Scene) -> Any:
        listening = listen(scene)
        signal.raise_signal(signal.SIGINT)
        return listening

    class PopenInterrupted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            signal.raise_signal(signal.SIGINT)

    if what == "service":
        monkeypatch.setattr(demo, "listen", listen_interrupted)
    else:
        monkeypatch.setattr(subprocess, "Popen", PopenInterrupted)
    result = run("demo", "--transport", served, *QUICK)
    assert result.exit_code == 130
    assert len(clients) == (what == "client")
    assert not any(directory.exists() for directory in temporary_directories)
    assert no_thread_is_left()
    gc.collect()  # a socket left open would be warned of here


def test_the_demo_as_a_process(transport: str) -> None:
    done = subprocess.run(
        command("demo", "--transport", transport, *QUICK), capture_output=True, text=True, timeout=utils.LIMIT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "round trip" in done.stdout


@posix
def test_the_demo_on_a_terminal(local: str) -> None:
    with on_terminal("demo", "--transport", "local", *QUICK, columns=60) as (process, shown, _):
        text = shown()
        assert process.wait(utils.LIMIT) == 0
    assert "\x1b[1m" in text
    assert "round trip" in plain(text)
    assert "\x1b" not in plain(text)
    assert max(map(len, plain(text).splitlines())) <= 60


@posix
def test_a_terminal_shows_whole_addresses(local: str) -> None:
    """Also one that is longer than a line: on a few lines, without an ellipsis."""
    with on_terminal("demo", "--transport", "local", *QUICK, columns=40) as (process, shown, _):
        text = plain(shown())
        assert process.wait(utils.LIMIT) == 0
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert re.search(rf"hvsock://{GUID}/({GUID}|\d+)payloads", re.sub(r"\s", "", text))


@posix
def test_a_real_ctrl_c(local: str, local_directory: Path) -> None:
    env = {**os.environ, "XDG_RUNTIME_DIR": str(local_directory), "TMPDIR": str(local_directory / ("x" * 100))}
    del env["HVSOCK_LOCAL_DIR"]
    arguments = command("demo", "--transport", "local", "--count", "1000000", "--size", "65536")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline().startswith("transport")
        end = time.monotonic() + utils.LIMIT
        while not list(local_directory.glob("hvsock-*/*")) and time.monotonic() < end:
            time.sleep(utils.TICK / 10)
        process.send_signal(signal.SIGINT)
        assert process.wait(utils.LIMIT) == 130
        assert process.stderr.read().strip() == ""
    assert list(local_directory.iterdir()) == []
