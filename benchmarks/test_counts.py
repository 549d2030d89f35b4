"""What an operation costs, as run.py counts it, on Linux: `python -Im pytest benchmarks`; no test looks at times.

Not a part of the suite, since a minute of the counting is spent in an emulator; `.ci/run` does it once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = Path(__file__).resolve().parent / "run.py"
#: In seconds, and of an emulator: 150 s were not enough on a machine that was busy.
LIMIT = 600


def measure(name: str, tool: str, path: Path) -> dict[str, Any]:
    """Run one measure, and return its rows by their cases."""
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}: install it and run again")
    report = path / "report.json"
    command = [sys.executable, str(RUN), "--quick", "--only", name, "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(report.read_text(encoding="utf-8"))["measures"][name]["rows"]
    return {row["case"]: row for row in rows}


def test_instructions_of_a_pair(tmp_path: Path) -> None:
    """What is measured is 0.53, and 0.37 with a timeout; releasing the GIL is 0.33 and 0.23 of it, as for CPython."""
    rows = measure("instructions", "valgrind", tmp_path)
    for case, bar in {"blocking": 0.57, "timeout": 0.42, "non-blocking": 0.57}.items():
        assert 0.05 < rows[case]["ratios"]["hvsock / CPython"] < bar, rows[case]


def test_system_calls_of_an_operation(tmp_path: Path) -> None:
    """One call each when nothing has to be waited for, whatever the timeout."""
    rows = measure("system-calls", "strace", tmp_path)
    for operation in ("send", "recv_into"):
        for mode in ("blocking", "timeout", "non-blocking"):
            row = rows[f"{operation}, {mode}"]
            assert 0.95 < row["medians"]["hvsock"] < 1.1, row
