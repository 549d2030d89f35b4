"""What the pages of docs/ show is run or checked: programs, commands, units, tables. Some have their own module."""

from __future__ import annotations

import configparser
import contextlib
import errno
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import registry
import utils
from test_readme import TEXT, Block, read_blocks
from test_vms import WMI, Program, program
from utils import Task, next_line

import hvsock
from hvsock import _errors as errors
from hvsock import services

__all__ = ["program"]  # a fixture

DOCS = utils.TESTS.parent / "docs"
if not DOCS.exists():
    pytest.skip("docs is not beside the tests: run them from a clone", allow_module_level=True)

PAGES = {page.relative_to(DOCS).as_posix(): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
#: The pages whose blocks are run here, and what their marks may be.
MARKS = {
    "index.md": {"run: alone"},
    "install.md": {""},
    "tutorial.md": {
        *("", "run: any", "run: in the registry", "run: host, echo", "run: guest, ping", "run: host, service.py"),
        *("run: guest, agent.py", "file: service.py", "file: agent.py", "output: service.py", "output: agent.py"),
        *("environment: host", "environment: guest", "run: host, ping"),
    },
    "troubleshooting.md": {"", "run: alone"},
    "explanation/addresses.md": {"run: alone"},
    "explanation/messages.md": {"run: alone"},
    "explanation/performance.md": {""},
    "explanation/timeouts.md": {"run: alone"},
    "explanation/transports.md": {"run: alone"},
    "howto/linux-guest.md": {"", "run: alone", "file: client.py", "file: server.py"},
    "howto/systemd.md": {"", "unit: agent.service", "unit: listener.socket", "setting: [Service]", "file: listener.py"},
    "howto/windows-service.md": {"check: powershell", "file: agent_service.py"},
}
GUEST = "6f2a3b7e-51a4-4c0d-9a53-0c5d1e7f8a42"


def blocks_of(page: str) -> list[Block]:
    text = re.sub(r"(?ms)^```\{.*?^```$", "", PAGES[page])  # a directive of the site is no code
    return list(read_blocks(text))


def code_of(page: str, mark: str) -> str:
    (code,) = (block.code for block in blocks_of(page) if block.mark == mark)
    return code


def test_every_block_is_covered() -> None:
    for page, marks in MARKS.items():
        found = {block.mark for block in blocks_of(page)}
        assert found == marks, f"nothing here tests these blocks of {page}: {found - marks}"
        for block in blocks_of(page):
            assert block.mark or block.language in ("sh", "powershell"), f"{page}, {block}"


def test_every_page_is_tested_somewhere() -> None:
    modules = "".join(path.read_text(encoding="utf-8") for path in utils.TESTS.glob("test_*.py"))
    for page in PAGES:
        if page not in MARKS and blocks_of(page):
            path = Path(page)
            assert path.name in modules or f'"{path.stem}"' in modules, f"no test module names {page}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" not in link:
            assert (DOCS / page).parent.joinpath(link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", MARKS)
def test_python_blocks_compile(page: str) -> None:
    for block in blocks_of(page):
        if block.language == "python":
            compile(block.code, f"{page}, {block}", "exec")


ALONE = [
    pytest.param(block, id=f"{page}-{block}")
    for page in MARKS
    for block in blocks_of(page)
    if block.mark == "run: alone"
]


@pytest.mark.parametrize("block", ALONE)
def test_blocks_that_need_nothing(block: Block, local: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", block.code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=utils.LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if "except" in block.code and "print(error" in block.code:  # a block that shows an error has to meet it
        assert "known cause" in done.stdout


def is_closed(connection: hvsock.HyperVSocket) -> bool:
    """Whether the peer ends the stream; what it has not received makes that a reset."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


# Commands


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each `hvsock` in the blocks of a shell, also of one inside another."""
    for block in read_blocks(re.sub(r"(?ms)^```\{.*?^```$", "", text)):
        if block.language in ("sh", "powershell"):
            for line in block.code.splitlines():
                for inner in re.findall(r"\$\((hvsock [^)]+)\)", line):
                    yield shlex.split(inner)[1:]
                _, found, rest = re.sub(r"\$\([^)]*\)", GUEST, line).rpartition("hvsock ")
                if found and (
                    line.startswith("hvsock") or "&& hvsock" in line or "bin/hvsock" in line or '/c "hvsock' in line
                ):
                    yield shlex.split(re.split(" [<>|] ", rest)[0])


COMMANDS = [
    pytest.param(arguments, id=" ".join(arguments))
    for page, text in {**PAGES, "README.md": TEXT}.items()
    if page != "reference/cli.md"  # prose stands beside these, and they are made from the commands
    for arguments in commands_of(text)
]


def click_command() -> Any:
    pytest.importorskip("click")
    pytest.importorskip("rich")
    from hvsock._cli import cli

    return cli


@pytest.mark.parametrize("arguments", COMMANDS)
def test_commands_are_well_formed(arguments: list[str]) -> None:
    """The command and its options exist, and the arguments are of their types; nothing is run."""
    command, rest, context = click_command(), list(arguments), None
    while hasattr(command, "commands"):
        context = command.make_context("hvsock", [], parent=context, resilient_parsing=True)
        command = command.commands[rest.pop(0)]
    command.make_context("hvsock", rest, parent=context)


def run_command(line: str) -> str:
    from click.testing import CliRunner

    program_name, *arguments = shlex.split(line)
    assert program_name == "hvsock"
    done = CliRunner().invoke(click_command(), arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


# The tutorial

TUTORIAL = "tutorial.md"


def environment(side: str) -> dict[str, str]:
    """Return what the tutorial has a reader without a hypervisor set, on the host or in the guest."""
    python = str(Path(sys.executable).parent)
    settings = dict(re.findall(r"(HVSOCK_\w+)=(\S+)", code_of(TUTORIAL, f"environment: {side}")))
    return {**os.environ, **settings, "PATH": os.pathsep.join([python, os.environ.get("PATH", os.defpath)])}


def running(line: str, side: str, directory: Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Run a shell line of the tutorial until the end of the block."""
    return utils.running(shlex.split(line), directory, environment(side))


def run(line: str, side: str, directory: Path) -> str:
    done = subprocess.run(
        shlex.split(line),
        cwd=directory,
        env=environment(side),
        capture_output=True,
        text=True,
        timeout=utils.LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def tutorial(local: str, tmp_path: Path) -> Path:
    """Give a directory with the programs of the tutorial."""
    click_command()
    for name in ("service.py", "agent.py"):
        (tmp_path / name).write_text(code_of(TUTORIAL, f"file: {name}"), encoding="utf-8")
    return tmp_path


def test_the_tutorials_commands(tutorial: Path) -> None:
    assert "local" in run(code_of(TUTORIAL, "run: any"), "host", tutorial)
    with running(code_of(TUTORIAL, "run: host, echo"), "host", tutorial) as echo:
        assert "hvsock://wildcard/5000" in next_line(echo)
        assert "3" in run(code_of(TUTORIAL, "run: guest, ping"), "guest", tutorial)
    with running("hvsock echo wildcard/5001", "guest", tutorial) as echo:
        next_line(echo)
        assert "3 sent, 3 came back" in run(code_of(TUTORIAL, "run: host, ping"), "host", tutorial)


def shape(text: str) -> list[str]:
    text = re.sub(r"reports '.*?' ", "reports NAME ", text)
    return re.sub(r"[0-9]+\.[0-9]+$", "N", text, flags=re.MULTILINE).splitlines()


@pytest.mark.parametrize("agent_first", [False, True])
def test_the_tutorials_programs(tutorial: Path, agent_first: bool) -> None:
    """They print what is shown, whichever starts first."""
    service_line, agent_line = (code_of(TUTORIAL, f"run: {name}") for name in ("host, service.py", "guest, agent.py"))
    with contextlib.ExitStack() as stack:
        if agent_first:
            agent = stack.enter_context(running(agent_line, "guest", tutorial))
        service = stack.enter_context(running(service_line, "host", tutorial))
        assert next_line(service) == "listening on hvsock://wildcard/5000\n"
        if not agent_first:
            agent = stack.enter_context(running(agent_line, "guest", tutorial))
        assert Task(agent.communicate).result()[0] == code_of(TUTORIAL, "output: agent.py")
        shown = shape(code_of(TUTORIAL, "output: service.py"))
        assert shape("".join(next_line(service) for _ in shown[1:])) == shown[1:]
        assert GUEST in "".join(shown)


@pytest.mark.parametrize("message", [b"[]", b'{"name": 1}', b"\xff", b"x" * 10_001, b'{"name": "x", "load": "y"}'])
def test_the_tutorials_service_drops_nonsense(tutorial: Path, message: bytes) -> None:
    with running(code_of(TUTORIAL, "run: host, service.py"), "host", tutorial) as service:
        next_line(service)
        with hvsock.create_connection(("loopback", 5000), timeout=utils.LIMIT, transport="local") as connection:
            connection.send_message(message)
            assert is_closed(connection)
        assert "is dropped: " in next_line(service)
        assert service.poll() is None


def test_the_tutorials_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [block.code.splitlines() for block in blocks_of(TUTORIAL) if block.mark == "run: in the registry"]
    with registry.scratch(monkeypatch) as scratch:
        monkeypatch.setattr(services, "REGISTRY_KEY", scratch.path)
        (host,), (guest,), clean_up = commands
        run_command(host)
        assert services.list_services() == [(hvsock.service_id_from_port(5000), "Tutorial", True)]
        run_command(guest)
        assert hvsock.service_id_from_port(5001) in [service.id for service in services.list_services()]
        for command in clean_up:
            run_command(command)
        assert services.list_services() == []


def test_the_tutorials_way_to_a_vms_id(program: Program) -> None:
    program.prints(json.dumps(WMI))
    (inner,) = re.findall(r"\$\((hvsock vm id [^)]+)\)", PAGES[TUTORIAL])
    vm = WMI[-1]
    assert run_command(inner.replace("My VM", str(vm["ElementName"]))).strip() == str(vm["Name"]).lower()


# Guests


def host_process(code: str, **kwargs: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-W", "error", "-c", code], stdout=subprocess.PIPE, text=True, **kwargs
    )


def test_the_guest_calls(local: str) -> None:
    env = {**os.environ, "HVSOCK_TRANSPORT": local, "HVSOCK_LOCAL_VM": GUEST}
    with hvsock.create_server(("wildcard", 5000), transport=local) as server:
        server.settimeout(utils.LIMIT)
        with host_process(code_of("howto/linux-guest.md", "file: client.py"), env=env) as client:
            connection, address = server.accept()
            with connection:
                connection.send_message(connection.recv_message()[::-1])
            assert Task(client.communicate).result()[0] == "olleh\n"
            assert str(address.vm_id) == GUEST


def test_the_guest_is_called(local: str) -> None:
    env = {**os.environ, "HVSOCK_TRANSPORT": local, "HVSOCK_LOCAL_VM": GUEST}
    with host_process(code_of("howto/linux-guest.md", "file: server.py"), env=env) as server:
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
    agent, listener = (code_of("howto/systemd.md", f"unit: {name}") for name in ("agent.service", "listener.socket"))
    assert parse_unit(agent)["Service"]["RestrictAddressFamilies"].split() == ["AF_VSOCK", "AF_UNIX"]
    assert parse_unit(listener)["Socket"]["ListenStream"] == "vsock::5001"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("the units are checked by systemd-analyze: install systemd")
    agent = agent.replace("[Service]\n", "[Service]\n" + code_of("howto/systemd.md", "setting: [Service]"))
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
        code = code_of("howto/systemd.md", "file: listener.py")
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

    modules = {
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
    exec(compile(code_of("howto/windows-service.md", "file: agent_service.py"), "agent_service.py", "exec"), names)
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


# Tables

WINSOCK = {
    10013: "WSAEACCES",
    10022: "WSAEINVAL",
    10041: "WSAEPROTOTYPE",
    10048: "WSAEADDRINUSE",
    10049: "WSAEADDRNOTAVAIL",
    10050: "WSAENETDOWN",
    10051: "WSAENETUNREACH",
    10054: "WSAECONNRESET",
    10060: "WSAETIMEDOUT",
    10061: "WSAECONNREFUSED",
}


@pytest.mark.parametrize(
    ("transport", "title"), [("hyperv", "Windows"), ("vsock", "Linux guests"), ("local", "Transport local")]
)
def test_the_table_of_errors_is_the_packages(transport: str, title: str) -> None:
    section = PAGES["troubleshooting.md"].partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert rows == sorted(rows)
    expected = []
    for code, cause in errors._CAUSES[transport].items():
        name = (
            f"{code} `{WINSOCK[code]}`" if transport == "hyperv" else f"`{errno.errorcode[code].removeprefix('WSA')}`"
        )
        passes = "yes |" if errors.is_transient(OSError(code, "")) else "|"
        expected.append(f"| {name} | {cause} | {passes}")
    assert rows == sorted(expected)


def test_the_tables_of_names_agree() -> None:
    """The README and the page on addresses have the same one."""

    def table(text: str) -> list[str]:
        lines = itertools.dropwhile(lambda line: not line.startswith("| name | to bind"), text.splitlines())
        return list(itertools.takewhile(lambda line: line.startswith("|"), lines))

    assert len(table(TEXT)) == 8
    assert table(TEXT) == table(PAGES["explanation/addresses.md"])


def test_the_reference_has_every_public_name() -> None:
    text = PAGES["reference/sockets.md"] + PAGES["reference/addresses.md"]
    for name in hvsock.__all__:
        assert re.search(rf"(:: |`|\.){name}\b", text), name
    inherited = set(dir(hvsock.HyperVSocket.__mro__[2]))
    assert inherited >= {"fileno", "makefile"}
    own = {name for cls in hvsock.HyperVSocket.__mro__[:2] for name in vars(cls) if not name.startswith("_")}
    assert own == set(re.findall(r"auto(?:method|property|attribute):: (\w+)", PAGES["reference/sockets.md"]))


def test_the_table_of_constants() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGES["reference/addresses.md"], re.MULTILINE)
    constants = {name for name in hvsock.__all__ if name.isupper()}
    assert {name for name, _ in rows} == constants
    for name, value in rows:
        assert str(getattr(hvsock, name)) == value, name
