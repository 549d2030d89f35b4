"""The pages on agents that run in a guest: docs/howto/linux-guest.md, systemd.md and windows-service.md."""

from __future__ import annotations

import configparser
import errno
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import utils
from utils import Task, next_line

import hvsock
from documentation.pages import GUEST, code_of, is_closed, python

SYSTEMD = "docs/howto/systemd.md"

# Linux


def host_process(code: str, **kwargs: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True, **kwargs)


def test_the_guest_calls(local: str) -> None:
    env = {**os.environ, "HVSOCK_TRANSPORT": local, "HVSOCK_LOCAL_VM": GUEST}
    with hvsock.create_server(("wildcard", 5000), transport=local) as server:
        server.settimeout(utils.LIMIT)
        with host_process(code_of("docs/howto/linux-guest.md", "file: client.py"), env=env) as client:
            connection, address = server.accept()
            with connection:
                connection.send_message(connection.recv_message()[::-1])
            assert Task(client.communicate).result()[0] == "olleh\n"
            assert str(address.vm_id) == GUEST


def test_the_guest_is_called(local: str) -> None:
    env = {**os.environ, "HVSOCK_TRANSPORT": local, "HVSOCK_LOCAL_VM": GUEST}
    with host_process(code_of("docs/howto/linux-guest.md", "file: server.py"), env=env) as server:
        try:
            assert next_line(server) == "listening on hvsock://wildcard/5001\n"
            with hvsock.create_connection((GUEST, 5001), timeout=utils.LIMIT, transport=local) as connection:
                assert connection.exchange(b"x") == b"hello from x"
        finally:
            server.kill()


# systemd


def parse_unit(text: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, comment_prefixes="#")
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    return unit


def test_the_units_are_units(tmp_path: Path) -> None:
    agent, listener = (code_of(SYSTEMD, f"unit: {name}") for name in ("agent.service", "listener.socket"))
    assert parse_unit(agent)["Service"]["RestrictAddressFamilies"].split() == ["AF_VSOCK", "AF_UNIX"]
    assert parse_unit(listener)["Socket"]["ListenStream"] == "vsock::5001"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("the units are checked by systemd-analyze: install systemd")
    agent = agent.replace("[Service]\n", "[Service]\n" + code_of(SYSTEMD, "setting: [Service]"))
    agent = re.sub(r"ExecStart=\S+", "ExecStart=/bin/sh", agent)
    (tmp_path / "agent.service").write_text(agent, encoding="utf-8")
    (tmp_path / "listener.service").write_text(re.sub(r"(?s)\[Install\].*", "", agent), encoding="utf-8")
    (tmp_path / "listener.socket").write_text(listener, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "agent.service", "listener.socket"],
        cwd=tmp_path,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        timeout=utils.LIMIT,
    )
    assert [line for line in (done.stdout + done.stderr).splitlines() if str(tmp_path) in line] == []
    assert done.returncode == 0, done.stderr


def test_the_listener_is_taken_over(local: str) -> None:
    """As descriptor 3, which is how systemd passes it."""
    if shutil.which("bash") is None:
        pytest.skip("the descriptor is moved by bash: install it")
    with hvsock.create_server(("wildcard", 5001), transport=local) as server:
        handle = server.fileno()
        code = code_of(SYSTEMD, "file: listener.py")
        shell = f'exec 3<&{handle}; exec "$0" -I -W error -c "$1"'
        with subprocess.Popen(["bash", "-c", shell, sys.executable, code], pass_fds=[handle]) as agent:
            try:
                for _ in range(2):
                    address = ("loopback", 5001)
                    with hvsock.create_connection(address, timeout=utils.LIMIT, transport=local) as connection:
                        assert connection.exchange(b"x") == b"hello from x"
            finally:
                agent.kill()


# Windows' services


@pytest.fixture
def pywin32(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Play the modules of pywin32; return what is called."""
    calls: list[tuple[Any, ...]] = []

    class ServiceFramework:
        def __init__(self, args: list[str]) -> None:
            calls.append(("made", *args))

        def ReportServiceStatus(self, status: int) -> None:  # noqa: N802 - pywin32's name
            calls.append(("status", status))

    def handle(cls: type) -> None:
        calls.append(("command line", cls))

    modules: dict[str, dict[str, Any]] = {
        "servicemanager": {"LogWarningMsg": lambda text: calls.append(("warning", text))},
        "win32service": {"SERVICE_STOP_PENDING": 3},
        "win32serviceutil": {"ServiceFramework": ServiceFramework, "HandleCommandLine": handle},
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_the_windows_service(local: str, pywin32: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSOCK_TRANSPORT", local)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code_of("docs/howto/windows-service.md", "file: agent_service.py"), "agent_service.py", "exec"), names)
    service_class: Callable[..., Any] = names["AgentService"]
    assert pywin32 == [("command line", service_class)]
    service = service_class(["MyAgent"])
    serving = Task(service.SvcDoRun)
    for _ in range(2):
        with hvsock.create_connection(("loopback", 5000), timeout=utils.LIMIT) as connection:
            assert connection.exchange(b"x") == b"hello, x"
    with hvsock.create_connection(("loopback", 5000), timeout=utils.LIMIT) as connection:
        connection.send_message(b"x" * 1001)
        assert is_closed(connection)
    service.SvcStop()
    assert serving.result() is None
    said = dict(pywin32[1:])  # the warning comes from another thread
    assert said.keys() == {"made", "status", "warning"}
    assert (said["made"], said["status"]) == ("MyAgent", 3)
    assert str(errno.EMSGSIZE) in said["warning"]
