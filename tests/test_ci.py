"""What `.ci/run` prints at its end, of logs made by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import utils

SUMMARY = utils.TESTS.parent / ".ci" / "summary.py"

if not SUMMARY.exists():
    pytest.skip(".ci is not beside the tests: run them from a clone", allow_module_level=True)

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


def summary(directory: Path, steps: dict[str, tuple[int, str]]) -> tuple[int, list[str]]:
    """Return the exit status of summary.py and its lines, for steps with these exit statuses and logs."""
    (directory / "order").write_text("\n".join(steps))
    for name, (status, log) in steps.items():
        (directory / f"{name}.status").write_text(f"{status} 7")
        (directory / f"{name}.log").write_text(log)
    command = [sys.executable, "-I", "-W", "error", str(SUMMARY), str(directory)]
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
            "bed              Python passed failed skipped seconds",
            "test-3.12        3.12        4      0       1       2",
            "lint                         2      0       0       7",
            "demo                         1      0       0       7",
            "",
            "7 passed, 0 failed, 1 skipped",
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
        "36 passed, 3 failed, 4 skipped",
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
        "4 passed, 2 failed, 1 skipped",
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
