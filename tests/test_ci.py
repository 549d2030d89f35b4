"""What `.ci/run` prints at its end, of logs made by hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import utils

SUMMARY = utils.TESTS.parent / ".ci" / "summary.py"

if not SUMMARY.exists():
    pytest.skip(".ci is not beside the tests: run them from a clone", allow_module_level=True)
if utils.WINDOWS:
    pytest.skip(".ci/run is Linux': run these tests there", allow_module_level=True)

PASSED = """\
platform linux -- Python 3.12.1, pytest-9.2.0
tests/test_cli.py ....s                                     [100%]
=========================== short test summary info ============================
SKIPPED [1] tests/test_cli.py:16: Windows only: no AF_HYPERV
========================= 4 passed, 1 skipped in 2.50s =========================
"""
FAILED = """\
WARNING: what pip has to say
platform linux -- Python 3.11.7, pytest-9.2.0
tests/test_cli.py E..F                                      [100%]
==================================== ERRORS ====================================
_______________________ ERROR at setup of test_beginning _______________________
E   fixture 'nowhere' not found
=================================== FAILURES ===================================
__________________________________ test_end ____________________________________
    def test_end() -> None:
>       assert answer() == 42
E       assert 41 == 42
E        +  where 41 = answer()
----------------------------- Captured stdout call -----------------------------
FAILED is a word that a test may print
=========================== short test summary info ============================
SKIPPED [3] tests/test_cli.py:16: Windows only: no AF_HYPERV
ERROR tests/test_cli.py::test_beginning
FAILED tests/test_cli.py::test_end - assert 41 == 42
==================== 1 failed, 2 passed, 3 skipped, 1 error in 2.50s ============
"""


#: As tests/windows/run prints it: a run of pytest for each Python, in each of which a test failed at first.
WINDOWS = """\
Windows CPython 3.13:
platform win32 -- Python 3.13.0, pytest-9.2.0
tests/test_cli.py R.R..                                     [100%]
============================= slowest 10 durations =============================
9.75s call     tests/test_cli.py::test_end
0.50s setup    tests/test_cli.py::test_start
================================== run again ===================================
RERUN tests/test_cli.py::test_end[a b]
      AssertionError: child ended (1) ... TimeoutError: timed out
RERUN tests/test_cli.py::test_start
      ValueError
==================== 3 passed, 2 rerun in 12.00s ====================
Windows CPython 3.11:
platform win32 -- Python 3.11.7, pytest-9.2.0
tests/test_cli.py R..                                       [100%]
============================= slowest 10 durations =============================
20.25s call     tests/test_cli.py::test_start
================================== run again ===================================
RERUN tests\\test_cli.py::test_end[a b]
      OSError: [WinError 10055]
==================== 2 passed, 1 rerun in 23.00s ====================
"""


def summary(directory: Path, steps: dict[str, tuple[int, str]], seconds: int = 7) -> tuple[int, list[str]]:
    """Return the exit status of summary.py and its lines, for steps with these exit statuses and logs."""
    (directory / "order").write_text("\n".join(steps))
    for name, (status, log) in steps.items():
        (directory / f"{name}.status").write_text(f"{status} {seconds}")
        (directory / f"{name}.log").write_text(log)
    command = [sys.executable, "-I", "-W", "error", str(SUMMARY), str(directory), "1790"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=utils.LIMIT)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_what_passed_is_counted(tmp_path: Path) -> None:
    steps = {"test-3.12": (0, PASSED), "lint": (0, "ok     mypy\nok     shellcheck\n"), "demo": (0, "anything\n")}
    assert summary(tmp_path, steps) == (
        0,
        [
            "",
            "skipped:",
            "    1  Windows only: no AF_HYPERV (test-3.12)",
            "",
            "bed              Python passed failed skipped seconds  step",
            "test-3.12        3.12        4      0       1       2     7",
            "lint                         2      0       0       7     7",
            "demo                         1      0       0       7     7",
            "",
            "7 passed, 0 failed, 1 skipped, 0 run again, in 29 min 50 s",
        ],
    )


def test_what_failed_is_named_at_the_end(tmp_path: Path) -> None:
    checks = "".join(f"ok     check {number}\n" for number in range(30)) + "FAILED mypy\n"
    steps = {"lint": (1, checks), "test-3.11": (1, FAILED), "test-3.12": (0, PASSED)}
    status, lines = summary(tmp_path, steps)
    assert status == 1
    assert lines[lines.index("failed: lint") - 1 :] == [
        "",
        "failed: lint",
        *(f"    {line}" for line in checks.splitlines()[-20:]),
        "",
        "failed: test-3.11",
        "    ERROR tests/test_cli.py::test_beginning",
        "    FAILED tests/test_cli.py::test_end - assert 41 == 42",
        "    _______________________ ERROR at setup of test_beginning _______________________",
        "    E   fixture 'nowhere' not found",
        "    __________________________________ test_end ____________________________________",
        "    E       assert 41 == 42",
        "    E        +  where 41 = answer()",
        "",
        "36 passed, 3 failed, 4 skipped, 0 run again, in 29 min 50 s",
    ]


def test_a_step_that_fails_without_a_word_has_a_failure(tmp_path: Path) -> None:
    status, lines = summary(tmp_path, {"test-3.12": (139, PASSED), "guest": (1, "")})
    assert status == 1
    assert lines[-11:] == [
        "",
        "failed: test-3.12",
        *(f"    {line}" for line in PASSED.splitlines()),
        "",
        "failed: guest",
        "",
        "4 passed, 2 failed, 1 skipped, 0 run again, in 29 min 50 s",
    ]


@pytest.mark.parametrize("steps", [1, 2, 13])
def test_many_failures_do_not_push_each_other_out(steps: int, tmp_path: Path) -> None:
    """Of every step the first names stay; reasons fill the room that is left, from the last one backwards."""
    reasons = "".join(f"E   reason {number}\n" for number in range(100))
    report = FAILED.replace("E        +  where 41 = answer()\n", reasons)
    many = report.replace("FAILED tests", "FAILED tests/test_a.py::test_a\n" * 100 + "FAILED tests")
    _, lines = summary(tmp_path, {**dict.fromkeys(map(str, range(steps - 1)), (1, many)), "last": (1, report)})
    shown = lines[lines.index("failed: last" if steps == 1 else "failed: 0") : -2]
    assert len(shown) <= 40 + 2 * steps
    assert shown[1] == "    ERROR tests/test_cli.py::test_beginning"
    assert "    FAILED tests/test_cli.py::test_end - assert 41 == 42" in shown
    assert shown[-1] == "    E   reason 99"
    assert any(line.startswith("    and ") and line.endswith(" more") for line in shown) == (steps > 1)


def test_a_test_that_was_run_again_in_two_runs_has_failed(tmp_path: Path) -> None:
    """Each run of pytest has its row, a step its time; the slowest tests are those of the longest step."""
    assert summary(tmp_path, {"windows": (0, WINDOWS), "test-3.12": (0, PASSED)}) == (
        1,
        [
            "",
            "skipped:",
            "    1  Windows only: no AF_HYPERV (test-3.12)",
            "",
            "bed              Python passed failed skipped seconds  step",
            "windows          3.13        3      0       0      12     7",
            "windows          3.11        2      0       0      23",
            "test-3.12        3.12        4      0       1       2     7",
            "",
            "slowest of the longest step, windows:",
            "   20.2 s  tests/test_cli.py::test_start",
            "    9.8 s  tests/test_cli.py::test_end",
            "    0.5 s  tests/test_cli.py::test_start",
            "",
            "run again:",
            "    tests/test_cli.py::test_start (windows 3.13)",
            "        ValueError",
            "    FAILED tests/test_cli.py::test_end[a b] (windows 3.13, windows 3.11)",
            "        AssertionError: child ended (1) ... TimeoutError: timed out",
            "        OSError: [WinError 10055]",
            "",
            "9 passed, 1 failed, 1 skipped, 2 run again, in 29 min 50 s",
        ],
    )


def test_a_test_that_was_run_again_in_one_run_has_passed(tmp_path: Path) -> None:
    """Other tests may have been run again elsewhere."""
    again = "=== run again ===\nRERUN tests/test_cli.py::test_{}\n      ValueError\n{}"
    steps = {
        "test-3.12": (0, again.format("a", PASSED)),
        "sanitizers": (0, again.format("b", "5 passed, 1 rerun in 2.50s\n")),
    }
    status, lines = summary(tmp_path, steps)
    assert status == 0
    assert lines[-6:] == [
        "    tests/test_cli.py::test_a (test-3.12)",
        "        ValueError",
        "    tests/test_cli.py::test_b (sanitizers)",
        "        ValueError",
        "",
        "9 passed, 0 failed, 1 skipped, 2 run again, in 29 min 50 s",
    ]


def test_of_many_that_were_run_again_those_in_two_runs_are_named(tmp_path: Path) -> None:
    names = "".join(f"RERUN tests/test_cli.py::test_{number}\n      ValueError\n" for number in range(30))
    once = "RERUN tests/test_cli.py::test_0\n      \n" + PASSED.replace("3.12.1", "3.13.0")
    steps = {"test-3.12": (0, names + PASSED), "test-3.13": (0, once)}
    status, lines = summary(tmp_path, steps)
    assert status == 1
    start = lines.index("run again:")
    assert lines[start : start + 2] == ["run again:", "    20 more, and"]
    assert lines[-5:-2] == [
        "    FAILED tests/test_cli.py::test_0 (test-3.12, test-3.13)",
        "        ValueError",
        "        ",
    ]


def test_a_run_without_an_end_has_no_row(tmp_path: Path) -> None:
    """The Python that closes is the one that counts."""
    ended = WINDOWS[WINDOWS.index("Windows CPython 3.11") :]
    status, lines = summary(tmp_path, {"windows": (1, "Windows CPython 3.13:\nstopped after 5 s\n" + ended)})
    assert status == 1
    assert [line for line in lines if line.startswith("windows")] == [
        "windows          3.11        2      1       0      23     7"
    ]


FLAKY = """\
import subprocess
import sys

import pytest

runs = []


@pytest.fixture
def resource():
    runs.append("resource")
    assert len(runs) > 2


def test_flaky_fixture(resource):
    pass


@pytest.mark.parametrize("way", ["a\\\\b - c"])
def test_flaky(way):
    runs.append(way)
    if runs.count(way) == 1:
        code = "print('Traceback'); raise TimeoutError('timed out')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        raise AssertionError("child ended (1)\\n" + done.stderr)
    assert runs.count(way) > 2


def test_without_a_traceback():
    runs.append("short")
    if runs.count("short") < 2:
        pytest.fail("too short", pytrace=False)


def test_steady():
    pass
"""


def test_a_flaky_test_is_named_with_its_reason(tmp_path: Path) -> None:
    """By pytest itself, with the hook that the conftest.py of these tests has."""
    pytest.importorskip("pytest_rerunfailures")
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(utils.TESTS / "reruns.py", project / "conftest.py")
    (project / "test_flaky.py").write_text(FLAKY)
    command = [sys.executable, "-Im", "pytest", "-p", "no:cacheprovider", "--reruns=2", "--durations=10", "-vv"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "--rootdir", str(project)],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=utils.LIMIT,
    )
    assert done.returncode == 0, done.stdout
    status, lines = summary(tmp_path, {"flaky": (0, done.stdout)})
    assert status == 0
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    start = lines.index("run again:")
    assert lines[start:] == [
        "run again:",
        f"    test_flaky.py::test_flaky_fixture (flaky {version})",
        "        AssertionError: assert 1 > 2 ... +  where 1 = len(['resource'])",
        f"    test_flaky.py::test_flaky[a//b - c] (flaky {version})",
        "        AssertionError: child ended (1) ... TimeoutError: timed out",
        f"    test_flaky.py::test_without_a_traceback (flaky {version})",
        "        Failed: too short",
        "",
        "4 passed, 0 failed, 0 skipped, 3 run again, in 29 min 50 s",
    ]
    assert any(line.endswith(" s  test_flaky.py::test_flaky[a\\\\b - c]") for line in lines[:start])
