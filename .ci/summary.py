"""Print the end of `.ci/run`: why tests were skipped, a table of its steps, what failed and why, and the totals.

`summary.py LOGS`. All that names a failure stands at the end, where a log that was cut short still has it.

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
# pytest's headings: of a part of its report, and of one test in it.
PART = re.compile(r"=+ (.+?) =+")
TEST = re.compile(r"_{3,} .+ _{3,}")
#: Lines on what failed, of all steps together; for a step without a test's name, at most so many.
LINES = 40
LAST_LINES = 20


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


def read_log(logs: Path, bed: str) -> str:
    """Return what one step printed."""
    return (logs / f"{bed}.log").read_text(encoding="utf-8", errors="replace")


def read_step(logs: Path, bed: str) -> list[Row]:
    """Return the rows of one step; a step that failed has a failure in them, whatever its log says."""
    log = read_log(logs, bed)
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
        for number, reason in SKIP.findall(read_log(logs, bed)):
            counts[reason] += int(number)
            where[reason].add(bed)
    print("\nskipped:")
    for reason, number in counts.most_common():
        print(f"{number:>5}  {reason} ({', '.join(sorted(where[reason]))})")


def read_failures(log: str, limit: int) -> list[str]:
    """Return up to `limit` lines on what failed: pytest's names of tests and last reasons, else the log's end."""
    names: list[str] = []
    reasons: list[str] = []
    part = ""
    for line in log.splitlines():
        if match := PART.fullmatch(line):
            part = match[1]
        elif part == "short test summary info" and line.startswith(("FAILED ", "ERROR ")):
            names.append(line)
        elif part in ("FAILURES", "ERRORS") and (line.startswith("E  ") or TEST.fullmatch(line)):
            reasons.append(line)
    if not names:
        return log.splitlines()[-min(limit, LAST_LINES) :]
    if len(names) > limit:
        return [*names[: limit - 1], f"and {len(names) - limit + 1} more"]
    return names + reasons[len(reasons) - min(len(reasons), limit - len(names)) :]


def print_failures(logs: Path, beds: list[str]) -> None:
    """Print which tests of these beds failed, and why."""
    for bed in beds:
        print(f"\nfailed: {bed}")
        for line in read_failures(read_log(logs, bed), max(LINES // len(beds), 3)):
            print(f"    {line}")


def main(logs: Path) -> int:
    """Print the reasons of the skips, the table, the failures and the totals."""
    beds = (logs / "order").read_text().split()
    print_skips(logs, beds)
    rows = [row for bed in beds for row in read_step(logs, bed)]
    print(f"\n{'bed':<16} {'Python':<6} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>7}")
    for row in rows:
        print(f"{row.bed:<16} {row.python:<6} {row.passed:>6} {row.failed:>6} {row.skipped:>7} {row.seconds:>7.0f}")
    print_failures(logs, list(dict.fromkeys(row.bed for row in rows if row.failed)))
    passed, failed, skipped = (sum(counts) for counts in zip(*(row[2:5] for row in rows), strict=True))
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
