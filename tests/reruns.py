"""For conftest.py: tests that failed and were run again are named at the end, with why they failed first."""

from __future__ import annotations

import pytest


def reason(report: pytest.TestReport) -> str:
    """Return the first and the last line of the error: of a child's, the last one is its own."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = [line.strip() for line in (crash.message if crash else report.longreprtext).splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print two lines for each test, which `.ci/summary.py` reads; pytest-rerunfailures makes these reports."""
    reasons: dict[str, str] = {}
    for report in terminalreporter.stats.get("rerun", []):
        reasons.setdefault(report.nodeid, reason(report))
    if reasons:
        terminalreporter.section("run again")
    for name, text in reasons.items():
        terminalreporter.write_line(f"RERUN {name}")
        terminalreporter.write_line(f"      {text}")
