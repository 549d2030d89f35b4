"""The `hvsock` command: what it prints, where, and with which exit code."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import conftest
import pytest
import utils

import hvsock

pytest.importorskip("click", reason='the command line is an extra: pip install "hvsock[cli]"')
pytest.importorskip("rich", reason='the command line is an extra: pip install "hvsock[cli]"')

from click.testing import CliRunner, Result

from hvsock import cli

posix = pytest.mark.skipif(utils.WINDOWS, reason="signals, terminals and this use of pipes are POSIX's")

QUICK = ("--count", "50", "--size", "1")
NASTY = "a\x1b[31mb\r\nc\u202ed[bold]e[/bold]:smile:\x00\x7f"
ESCAPED = r"a\x1b[31mb\r\nc\u202ed[bold]e[/bold]:smile:\x00\x7f"


def run(*args: str) -> Result:
    return CliRunner().invoke(cli.cli, args, prog_name="hvsock")


def command(*args: str) -> list[str]:
    return [sys.executable, "-I", "-W", "error", "-m", "hvsock", *args]


def transport_named(name: str, reason: str | None = None) -> Any:
    return types.SimpleNamespace(name=name, available=reason is None, reason=reason, family=1)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the transports are usable or not, for these reasons, and that vsock has a loopback or not."""

    def pretend(*, hyperv: str | None, vsock: str | None, local: str | None, loopback: bool) -> None:
        transports = transport_named("hyperv", hyperv), transport_named("vsock", vsock), transport_named("local", local)
        monkeypatch.setattr(hvsock, "transports", lambda: transports)
        monkeypatch.setattr(cli.vsock, "has_loopback", lambda: loopback)

    return pretend


@pytest.fixture
def served() -> str:
    """A transport on which this machine may serve and connect to itself."""
    name = "hyperv" if utils.WINDOWS else "local"
    conftest.require(name)
    return name


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


# info


def test_info_lists_transports_reasons_ids_and_constants() -> None:
    result = run("info")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {line[:28].strip(): line for line in result.stdout.splitlines()}
    text = result.stdout
    for transport in hvsock.transports():
        assert f"transport {transport.name}" in text
        assert transport.available or (transport.reason and transport.reason in text)
    for name in ("HV_GUID_PARENT", "HVSOCKET_CONNECT_TIMEOUT", "AF_HYPERV", "default transport", "local CID"):
        assert name in rows
    assert str(hvsock.HV_GUID_PARENT) in rows["HV_GUID_PARENT"]
    assert rows["local directory"].endswith("none" if utils.WINDOWS else os.environ["HVSOCK_LOCAL_DIR"])
    assert rows["local partition"].endswith("  none" if utils.WINDOWS else "  host")


def test_info_as_json() -> None:
    result = run("info", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert facts["hvsock"] == importlib.metadata.version("hvsock")
    assert [(t["name"], t["available"], t["reason"]) for t in facts["transports"]] == [
        (t.name, t.available, t.reason) for t in hvsock.transports()
    ]
    assert facts["constants"]["HV_GUID_LOOPBACK"] == str(hvsock.HV_GUID_LOOPBACK)
    assert facts["constants"]["HVSOCKET_HIGH_VTL"] == 8
    assert facts["problems"] == []
    if utils.WINDOWS:
        assert facts["local"] == {"directory": None, "partition": None}
    else:
        assert facts["local"] == {"directory": os.environ["HVSOCK_LOCAL_DIR"], "partition": "host"}


def test_info_names_every_public_constant() -> None:
    constants = json.loads(run("info", "--json").stdout)["constants"]
    assert set(constants) == {name for name in hvsock.__all__ if name.startswith(("AF_", "HV_", "HVSOCKET_"))}


@posix
def test_info_tells_the_guest_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = uuid.uuid4()
    monkeypatch.setenv("HVSOCK_LOCAL_VM", str(vm))
    assert json.loads(run("info", "--json").stdout)["local"]["partition"] == str(vm)


def test_info_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSOCK_TRANSPORT", "local")
    assert json.loads(run("info", "--json").stdout)["default_transport"] == "local"


@posix
def test_info_reports_wrong_settings_and_does_not_fail(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (local_directory / "file").touch()
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", str(local_directory / "file"))
    monkeypatch.setenv("HVSOCK_LOCAL_VM", "bogus")
    monkeypatch.setenv("HVSOCK_TRANSPORT", "bogus\x1b")
    result = run("info")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\nproblem ") == 3
    facts = json.loads(run("info", "--json").stdout)
    assert facts["default_transport"] is None
    assert facts["local"] == {"directory": None, "partition": None}
    assert str(local_directory / "file") in facts["problems"][1]


@pytest.mark.parametrize(
    ("cid", "text"), [(None, "none"), (3, "3"), (0xFFFFFFFF, "any (a Hyper-V guest reports this)")]
)
def test_info_shows_the_cid(cid: int | None, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.vsock, "local_cid", lambda: cid)
    assert re.search(rf"^local CID +{re.escape(text)}$", run("info").stdout, re.MULTILINE)
    assert json.loads(run("info", "--json").stdout)["local_cid"] == cid


# demo, the choice


def test_the_demo_prefers_hyperv(pretend: Callable[..., None]) -> None:
    pretend(hyperv=None, vsock=None, local=None, loopback=True)
    scene = cli.choose_scene(None)
    assert (scene.transport, scene.serve, scene.dial, scene.guest) == ("hyperv", "loopback", "loopback", None)


def test_the_demo_takes_vsock_only_with_a_loopback(pretend: Callable[..., None]) -> None:
    pretend(hyperv="this is not Windows", vsock=None, local=None, loopback=True)
    assert cli.choose_scene(None).transport == "vsock"
    pretend(hyperv="this is not Windows", vsock=None, local=None, loopback=False)
    scene = cli.choose_scene(None)
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
    assert result.stderr.splitlines() == [
        "hvsock: the demo cannot run on local: no AF_UNIX",
        "    hyperv: no provider",
        "    vsock: no /dev/vsock",
    ]


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


@pytest.mark.parametrize(
    "args", [("--bogus",), ("bogus",), (), ("demo", "--count", "0"), ("info", "extra"), ("demo", "-x")]
)
def test_usage_errors_are_one_line_and_exit_2(args: tuple[str, ...]) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("hvsock: ")


def test_help_has_examples() -> None:
    result = run("--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "hvsock demo --transport local" in result.stdout
    for name in ("demo", "info"):
        assert run(name, "--help").stdout.startswith(f"Usage: hvsock {name} [OPTIONS]")


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
    guest = r"hvsock://[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/"
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


def test_percentiles_are_nearest_rank() -> None:
    assert cli.times([1000 * n for n in range(100, 0, -1)]) == {"count": 100, "p50_us": 50.0, "p99_us": 99.0}
    assert cli.times([7000]) == {"count": 1, "p50_us": 7.0, "p99_us": 7.0}


# demo, when it fails


@posix
def test_a_broken_transport_is_one_line_and_exit_1(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (local_directory / "file").touch()
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", str(local_directory / "file"))
    result = run("demo", "--transport", "local", *QUICK)
    assert result.exit_code == 1
    first, *notes = result.stderr.splitlines()
    assert first.startswith("hvsock: ")
    assert all(note.startswith("    ") for note in notes)
    assert "Traceback" not in result.stderr
    result = run("--debug", "demo", "--transport", "local", *QUICK)
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert first.partition("hvsock://")[0] in result.stderr


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

    monkeypatch.setattr(cli.EchoService, "_echo", staticmethod(flip))
    assert failing_demo(served) == "what came back is not what was sent\n"


def test_a_stream_that_comes_back_changed_is_a_failure(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def flip(connection: hvsock.HyperVSocket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data if len(data) == cli.PAYLOAD else bytes([data[0] ^ 1]) + data[1:])

    monkeypatch.setattr(cli.EchoService, "_echo", staticmethod(flip))
    assert failing_demo(served) == "what came back is not what was sent\n"


def test_a_stream_that_comes_back_short_is_a_failure(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def swallow(connection: hvsock.HyperVSocket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data if len(data) == cli.PAYLOAD else data[:-1])

    monkeypatch.setattr(cli.EchoService, "_echo", staticmethod(swallow))
    assert failing_demo(served) == "what came back is not what was sent\n"


def test_a_service_that_hangs_up_is_a_failure(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.EchoService, "_echo", staticmethod(lambda connection: None))
    first, *notes = failing_demo(served).splitlines()
    assert re.match(r"exchange with hvsock://(parent|loopback)/\d+: ", first)
    assert all(note.startswith("    ") for note in notes)


def test_a_service_that_breaks_is_named(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(connection: hvsock.HyperVSocket) -> None:
        raise RuntimeError(NASTY)

    monkeypatch.setattr(cli.EchoService, "_echo", staticmethod(crash))
    assert f"    the service ended: RuntimeError: {ESCAPED}\n" in failing_demo(served)


def test_a_client_that_crashes_is_a_failure(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "CLIENT", "import sys; sys.exit('first\\nno \\x1b[31mluck')")
    assert failing_demo(served) == "the client ended with exit code 1\n    no \\x1b[31mluck\n"


def test_the_trace_of_the_client_is_shown_on_request(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "CLIENT", "1 / 0")
    assert failing_demo(served) == "the client ended with exit code 1\n    ZeroDivisionError: division by zero\n"
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
        monkeypatch.setattr(cli, "RUN_LIMIT", 2 * utils.TICK)
        code += (
            "sock = hvsock.create_connection(hvsock.HyperVAddress.parse(job['address']), transport=job['transport'])\n"
        )
    else:
        monkeypatch.setattr(cli, "START_LIMIT", 2 * utils.TICK)
    monkeypatch.setattr(cli, "CLIENT", code + "time.sleep(600)")
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

    monkeypatch.setattr(cli, "wait", interrupt)
    result = run("demo", "--transport", served, *QUICK)
    assert result.exit_code == 130
    assert len(clients) == 1
    assert not any(directory.exists() for directory in temporary_directories)
    assert no_thread_is_left()


@pytest.mark.parametrize("what", ["service", "client"])
def test_ctrl_c_while_something_starts_leaves_nothing_behind(
    what: str,
    served: str,
    monkeypatch: pytest.MonkeyPatch,
    clients: list[subprocess.Popen[bytes]],
    temporary_directories: list[Path],
) -> None:
    listen = cli.listen

    def listen_interrupted(scene: cli.Scene) -> Any:
        listening = listen(scene)
        signal.raise_signal(signal.SIGINT)
        return listening

    class PopenInterrupted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            signal.raise_signal(signal.SIGINT)

    if what == "service":
        monkeypatch.setattr(cli, "listen", listen_interrupted)
    else:
        monkeypatch.setattr(subprocess, "Popen", PopenInterrupted)
    result = run("demo", "--transport", served, *QUICK)
    assert result.exit_code == 130
    assert len(clients) == (what == "client")
    assert not any(directory.exists() for directory in temporary_directories)
    assert no_thread_is_left()
    gc.collect()  # a socket left open would be warned of here


# what is printed


def test_text_of_others_is_escaped(pretend: Callable[..., None]) -> None:
    pretend(hyperv=NASTY, vsock="no", local="no", loopback=False)
    assert f"not available: {ESCAPED}" in run("info").stdout
    assert ESCAPED in run("demo", "--transport", "hyperv").stderr
    assert json.loads(run("info", "--json").stdout)["transports"][0]["reason"] == NASTY


def test_notes_are_escaped_and_indented(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        error = ConnectionResetError(104, NASTY)
        error.add_note(f"first {NASTY}")
        raise error

    monkeypatch.setattr(cli, "gather_info", fail)
    result = run("info")
    assert (result.exit_code, result.stdout) == (1, "")
    first, *notes = result.stderr.splitlines()
    assert first == f"hvsock: {ESCAPED}"
    assert len(notes) == 2  # the note has two lines, because notes may
    assert all(line.startswith("    ") and line.isprintable() for line in notes)


def test_what_the_encoding_does_not_have_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.vsock, "local_cid", lambda: "\u00e9\u4e2d")
    result = CliRunner(charset="latin-1").invoke(cli.cli, ["info"])
    assert re.search(r"^local CID +\u00e9\\u4e2d$", result.stdout, re.MULTILINE)


def test_an_error_without_words_is_named() -> None:
    assert cli.Failure.of(OSError()).message == "OSError"
    assert cli.Failure.of(KeyError("x")).message == "KeyError: 'x'"
    assert cli.Failure.of(TimeoutError("timed out")).message == "timed out"


# as a process


def test_the_demo_as_a_process(transport: str) -> None:
    done = subprocess.run(
        command("demo", "--transport", transport, *QUICK), capture_output=True, text=True, timeout=utils.LIMIT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "round trip" in done.stdout


@posix
def test_the_demo_on_a_terminal(local: str) -> None:
    import pty

    leader, follower = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        command("demo", "--transport", "local", *QUICK),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**env, "TERM": "xterm-256color", "COLUMNS": "60"},
    )
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
        while data := os.read(leader, 65536):
            shown += data
    os.close(leader)
    assert process.wait(utils.LIMIT) == 0
    assert b"\x1b[1m" in shown
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert "round trip" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 60


@posix
def test_a_real_ctrl_c(local: str, local_directory: Path) -> None:
    env = {**os.environ, "TMPDIR": str(local_directory)}
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


@posix
def test_nobody_reads_the_output() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command("info"), stdout=writer, stderr=subprocess.PIPE, text=True, timeout=utils.LIMIT)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
