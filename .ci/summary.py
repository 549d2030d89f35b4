"""Print why tests of `.ci/run` were skipped, a table of its steps and, last, the totals: `summary.py LOGS`.

LOGS holds `order` (the names of the steps), and for each step `NAME.log` and `NAME.status` (exit status and seconds).
A log with pytest's closing lines gives a row for each Python; else its lines "ok ..." and "FAILED ..." are counted;
else the step counts as one check. Exit status 0: something passed and nothing failed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

# In pytest's opening lines, and in what tests/windows/run prints instead of them.
PYTHON = re.compile(r"(?:^platform \S+ -- Python|^Windows CPython) (3\.\d+)")
CLOSING = re.compile(r"((?:\d+ [a-z]+, )*\d+ [a-z]+) in (\d+\.\d+)s\b")
COUNT = re.compile(r"(\d+) ([a-z]+)")
SKIP = re.compile(r"^SKIPPED \[(\d+)\] \S+?:\d+: (.*)$", re.MULTILINE)
FAILED = {"failed", "error", "errors", "xpassed"}
SKIPPED = {"skipped", "xfailed"}


class Row(NamedTuple):
    """One line of the table."""

    bed: str
    python: str
    passed: int
    failed: int
    skipped: int
    seconds: float


def read_pytest(bed: str, log: str) -> list[Row]:
    """Return a row for each Python whose pytest closed in this log; what it said last counts."""
    rows: dict[str, Row] = {}
    python = ""
    for line in log.splitlines():
        if match := PYTHON.search(line):
            python = match[1]
        if match := CLOSING.search(line):
            counts = [(int(number), word) for number, word in COUNT.findall(match[1])]
            passed, failed, skipped = (
                sum(number for number, word in counts if word in words) for words in ({"passed"}, FAILED, SKIPPED)
            )
            rows[python] = Row(bed, python, passed, failed, skipped, float(match[2]))
    return list(rows.values())


def read_step(logs: Path, bed: str) -> list[Row]:
    """Return the rows of one step; a step that failed has a failure in them, whatever its log says."""
    log = (logs / f"{bed}.log").read_text(encoding="utf-8", errors="replace")
    status, seconds = map(int, (logs / f"{bed}.status").read_text().split())
    rows = read_pytest(bed, log)
    if not rows:
        passed = len(re.findall(r"^ok\s", log, re.MULTILINE))
        failed = len(re.findall(r"^FAILED\s", log, re.MULTILINE))
        if not passed and not failed:
            passed = int(status == 0)
        rows = [Row(bed, "", passed, failed, 0, seconds)]
    if status and not any(row.failed for row in rows):
        rows[-1] = rows[-1]._replace(failed=1)
    return rows


def print_skips(logs: Path, beds: list[str]) -> None:
    """Print why tests were skipped: how many for each reason, and in which beds."""
    counts: Counter[str] = Counter()
    where: dict[str, set[str]] = defaultdict(set)
    for bed in beds:
        log = (logs / f"{bed}.log").read_text(encoding="utf-8", errors="replace")
        for number, reason in SKIP.findall(log):
            counts[reason] += int(number)
            where[reason].add(bed)
    print("\nskipped:")
    for reason, number in counts.most_common():
        print(f"{number:>5}  {reason} ({', '.join(sorted(where[reason]))})")


def main(logs: Path) -> int:
    """Print the reasons of the skips, the table and the totals."""
    beds = (logs / "order").read_text().split()
    print_skips(logs, beds)
    rows = [row for bed in beds for row in read_step(logs, bed)]
    print(f"\n{'bed':<16} {'Python':<6} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>7}")
    for row in rows:
        print(f"{row.bed:<16} {row.python:<6} {row.passed:>6} {row.failed:>6} {row.skipped:>7} {row.seconds:>7.0f}")
    passed, failed, skipped = (sum(counts) for counts in zip(*(row[2:5] for row in rows), strict=True))
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
