"""What all pages have in common: blocks that nothing is left out of, links, commands, tables of the package."""

from __future__ import annotations

import errno
import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import utils

import hvsock
from documentation.pages import GUEST, PAGES, ROOT, TUTORIAL, Block, blocks_of, click_command, each_block, run_alone
from hvsock import _errors as errors
from hvsock._transports import transport_named

#: What the marks of a page's blocks may be; those without a mark are commands.
MARKS = {
    "README.md": {
        *("", "ci: demo", "ci: test", "run: alone", "run: host", "run: guest"),
        *("file: server.py", "file: client.py", "output: demo"),
    },
    "docs/index.md": {"run: alone"},
    "docs/install.md": {""},
    TUTORIAL: {
        *("", "run: any", "run: in the registry", "run: host, echo", "run: guest, ping", "run: host, service.py"),
        *("run: guest, agent.py", "file: service.py", "file: agent.py", "output: service.py", "output: agent.py"),
        *("environment: host", "environment: guest", "run: host, ping"),
    },
    "docs/troubleshooting.md": {"", "run: alone"},
    "docs/explanation/addresses.md": {"run: alone"},
    "docs/explanation/messages.md": {"run: alone"},
    "docs/explanation/performance.md": {""},
    "docs/explanation/timeouts.md": {"run: alone"},
    "docs/explanation/transports.md": {"run: alone"},
    "docs/howto/anyio.md": {"run: alone"},
    "docs/howto/asyncio.md": {"run: alone"},
    "docs/howto/containers.md": {"run: alone"},
    "docs/howto/find-a-vm.md": {"", "run: with VMs"},
    "docs/howto/http.md": {
        *(f"file: with_{name}.py" for name in ("httpx", "httpx_async", "requests", "aiohttp", "http_client")),
        *(f"file: by_{name}.py" for name in ("uvicorn", "uvicorn_itself", "hypercorn", "cheroot", "aiohttp")),
        *(f"file: {role}_websockets{kind}.py" for role in ("by", "with") for kind in ("", "_sync")),
        "file: app.py",
    },
    "docs/howto/linux-guest.md": {"", "run: alone", "file: client.py", "file: server.py"},
    "docs/howto/openssh.md": {
        *(
            "run: in the guest",
            "run: on the host",
            "run: on the host, for its guests",
            "run: in the guest, to the host",
        ),
        *("", "file: config of the host", "file: config of the guest"),
    },
    "docs/howto/redis-docker.md": {"", "file: redis_client.py", "file: docker_client.py"},
    "docs/howto/register-a-service.md": {
        *("", "run: alone", "run: command in the registry", "run: in the registry", "check: reg"),
    },
    "docs/howto/relay.md": {
        *("", "file: to_service.py", "file: from_service.py", "run: alone", "output: alone", "run: beside"),
        *("file: relays.toml", "unit: web.socket", "unit: web.service"),
    },
    "docs/howto/rpc.md": {"run: alone", "file: manager.py"},
    "docs/howto/socketserver.md": {"run: alone"},
    "docs/howto/systemd.md": {
        *("", "unit: agent.service", "unit: listener.socket", "setting: [Service]", "file: listener.py"),
    },
    "docs/howto/tls.md": {
        *("", "run: token", "run: certificates", "file: token_proof.py", "file: token_host.py"),
        *("file: token_guest.py", "file: tls_host.py", "file: tls_guest.py"),
    },
    "docs/howto/trio.md": {"run: alone"},
    "docs/howto/windows-service.md": {"check: powershell", "file: agent_service.py"},
    "docs/reference/addresses.md": {"run: alone"},
    "docs/howto/wsl2.md": {
        *("", "run: with WSL", "file: server.py", "file: client.py", "file: guest_server.py", "file: host_client.py"),
    },
}
#: Prose stands beside its blocks, and they are made from the commands.
CLI_REFERENCE = "docs/reference/cli.md"
#: Whose blocks have modules of their own: they run on Windows too, or over every transport, or print what is shown.
ELSEWHERE = {
    "README.md",
    *(f"docs/howto/{name}.md" for name in ("anyio", "asyncio", "containers", "register-a-service")),
    *(f"docs/howto/{name}.md" for name in ("relay", "rpc", "socketserver", "trio")),
}


def test_every_block_is_covered() -> None:
    assert {page for page in PAGES if blocks_of(page)} == {*MARKS, CLI_REFERENCE}
    for page, marks in MARKS.items():
        found = {block.mark for block in blocks_of(page)}
        assert found == marks, f"nothing here tests these blocks of {page}: {found - marks}"
        for block in blocks_of(page):
            assert block.mark or block.language in ("sh", "powershell"), f"{page}, {block}"


@pytest.mark.parametrize("page", MARKS)
def test_python_blocks_compile(page: str) -> None:
    for block in blocks_of(page):
        if block.language == "python":
            compile(block.code, f"{page}, {block}", "exec")


@pytest.mark.skipif(
    shutil.which("bash") is None or utils.WINDOWS, reason="the sh blocks are checked with bash: install it"
)
def test_shell_blocks_are_shell() -> None:
    for page in MARKS:
        for block in blocks_of(page):
            if block.language == "sh":
                check = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True)
                assert (check.returncode, check.stderr) == (0, ""), f"{page}, {block}"


def test_powershell_blocks_parse() -> None:
    powershell = shutil.which("pwsh") or shutil.which("powershell")
    if powershell is None:
        pytest.skip("PowerShell is not here: install pwsh")
    parse = (
        "$errors = $null; $tokens = $null; $text = [Console]::In.ReadToEnd(); "
        "[void][System.Management.Automation.Language.Parser]::ParseInput($text, [ref]$tokens, [ref]$errors); "
        "$errors | ForEach-Object { $_.Message }; exit $errors.Count"
    )
    command = [powershell, "-NoProfile", "-NonInteractive", "-Command", parse]
    for page in MARKS:
        for block in blocks_of(page):
            if block.language == "powershell":
                check = subprocess.run(command, input=block.code, capture_output=True, text=True, timeout=utils.LIMIT)
                assert (check.returncode, check.stdout) == (0, ""), f"{page}, {block}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_titles(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}, link


ALONE = each_block(
    *(page for page in MARKS if page not in ELSEWHERE and "run: alone" in MARKS[page]), mark="run: alone"
)


@pytest.mark.parametrize(("page", "block"), ALONE)
def test_blocks_that_need_nothing(page: str, block: Block, local: str, tmp_path: Path) -> None:
    output = run_alone(block, tmp_path)
    if "except" in block.code and "print(error" in block.code:  # a block that shows an error has to meet it
        assert "known cause" in output


# Commands


def commands_of(page: str) -> Iterator[list[str]]:
    """Yield the arguments of each `hvsock` in the blocks of a shell, also of one inside another."""
    for block in blocks_of(page):
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
    for page in PAGES
    if page != CLI_REFERENCE
    for arguments in commands_of(page)
]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_commands_are_well_formed(arguments: list[str]) -> None:
    """The command and its options exist, and the arguments are of their types; nothing is run."""
    command, rest, context = click_command(), list(arguments), None
    while hasattr(command, "commands"):
        context = command.make_context("hvsock", [], parent=context, resilient_parsing=True)
        command = command.commands[rest.pop(0)]
    command.make_context("hvsock", rest, parent=context)


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
    section = PAGES["docs/troubleshooting.md"].partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert rows == sorted(rows)
    expected = []
    for code, cause in transport_named(transport).causes.items():
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

    assert len(table(PAGES["README.md"])) == 8
    assert table(PAGES["README.md"]) == table(PAGES["docs/explanation/addresses.md"])


def test_the_reference_has_every_public_name() -> None:
    text = PAGES["docs/reference/sockets.md"] + PAGES["docs/reference/addresses.md"]
    for name in hvsock.__all__:
        assert re.search(rf"(:: |`|\.){name}\b", text), name
    inherited = set(dir(hvsock.HyperVSocket.__mro__[2]))
    assert inherited >= {"fileno", "makefile"}
    own = {name for cls in hvsock.HyperVSocket.__mro__[:2] for name in vars(cls) if not name.startswith("_")}
    assert own == set(re.findall(r"auto(?:method|property|attribute):: (\w+)", PAGES["docs/reference/sockets.md"]))


def test_the_table_of_constants() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGES["docs/reference/addresses.md"], re.MULTILINE)
    constants = {name for name in hvsock.__all__ if name.isupper()}
    assert {name for name, _ in rows} == constants
    for name, value in rows:
        assert str(getattr(hvsock, name)) == value, name
