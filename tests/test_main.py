"""`python -m hvsock`, the `hvsock` command, and what both say without the extra."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import utils


def python(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-W", "error", *args]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=utils.LIMIT)


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_one_line_says_how_to_get_it(missing: str) -> None:
    pytest.importorskip("click")
    done = python("-c", f"import sys; sys.modules['{missing}'] = None; from hvsock.__main__ import main; main()")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f'hvsock: the command line needs {missing}: pip install "hvsock[cli]"\n'


def test_another_missing_module_is_not_hidden() -> None:
    done = python("-c", "import sys; sys.modules['json'] = None; from hvsock.__main__ import main; main()")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_importing_the_package_needs_no_extra() -> None:
    done = python("-c", "import sys; sys.modules['click'] = sys.modules['rich'] = None; import hvsock, hvsock.__main__")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_module_and_the_command_are_the_same() -> None:
    pytest.importorskip("click")
    pytest.importorskip("rich")
    version = f"hvsock {importlib.metadata.version('hvsock')}\n"
    done = python("-m", "hvsock", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, version, "")
    script = Path(sysconfig.get_path("scripts"), "hvsock.exe" if utils.WINDOWS else "hvsock")
    if not script.exists():
        pytest.skip("the hvsock command is not installed here: pip install . puts it beside python")
    output = subprocess.check_output([script, "--version"], text=True, timeout=utils.LIMIT)
    assert output == version


@pytest.mark.parametrize("args", [("--version",), ("ping", "--help"), ("ping", "bad")], ids=" ".join)
def test_a_command_imports_little(args: tuple[str, ...]) -> None:
    """It starts fast because what others need, and what draws tables, stays away."""
    pytest.importorskip("click")
    pytest.importorskip("rich")
    code = """if 1:
        import sys
        from hvsock.__main__ import main
        try:
            main()
        finally:
            unwanted = ("hashlib", "importlib.metadata", "logging", "rich.console", "hvsock.relay", "hvsock.vms")
            print([name for name in unwanted if name in sys.modules])
    """
    assert python("-c", code, *args).stdout.splitlines()[-1] == "[]"


def test_the_module_names_itself_hvsock_in_its_help() -> None:
    pytest.importorskip("click")
    pytest.importorskip("rich")
    assert python("-m", "hvsock", "--help").stdout.startswith("Usage: hvsock [OPTIONS]")
