"""Print the end of `.ci/run`: its steps and their times, which tests were skipped, run again or failed, and why.

`summary.py LOGS SECONDS`, with the seconds that all of it took. All that names a failure stands at the end, where a log
that was cut short still has it.

LOGS holds `order` (the names of the steps), and for each step `NAME.log` and `NAME.status` (exit status and seconds).
A log with pytest's closing lines gives a row for each run of pytest; else its lines "ok ..." and "FAILED ..." are
counted; else the step counts as one check. A test that was run again in two runs counts as failed: a machine that is
held up seldom hits the same test twice. Exit status 0: something passed and nothing failed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

# In pytest's opening lines, and in what tests/windows/run prints before or instead of them.
PYTHON = re.compile(r"(?:^platform \S+ -- Python|^Windows CPython) (3\.\d+)")
CLOSING = re.compile(r"((?:\d+ [a-z]+, )*\d+ [a-z]+) in (\d+\.\d+)s\b")
COUNT = re.compile(r"(\d+) ([a-z]+)")
SKIP = re.compile(r"^SKIPPED \[(\d+)\] \S+?:\d+: (.*)$", re.MULTILINE)
# Of tests/reruns.py: the name of a test, and below it why it failed first.
RERUN = re.compile(r"^RERUN (.+)\n {6}(.*)$", re.MULTILINE)
# Of pytest's --durations.
DURATION = re.compile(r"^(\d+\.\d+)s (?:setup|call|teardown) +(.+)$", re.MULTILINE)
FAILED = {"failed", "error", "errors", "xpassed"}
SKIPPED = {"skipped", "xfailed"}
# pytest's headings: of a part of its report, and of one test in it.
PART = re.compile(r"=+ (.+?) =+")
TEST = re.compile(r"_{3,} .+ _{3,}")
#: Lines on what failed, of all steps together; for a step without a test's name, at most so many.
LINES = 40
LAST_LINES = 20
#: How many tests are named that were run again, and that were slowest; and how much of an error is shown.
MANY = 10
WIDTH = 200


class Row(NamedTuple):
    """One line of the table."""

    bed: str
    python: str
    passed: int
    failed: int
    skipped: int
    seconds: float

    @property
    def name(self) -> str:
        """What distinguishes this run: the step, and the Python unless the step is named after it."""
        return self.bed if self.bed.endswith(self.python) else f"{self.bed} {self.python}"


class Rerun(NamedTuple):
    """A test that was run again in one run."""

    test: str
    run: str
    reason: str


def split_runs(log: str) -> list[str]:
    """Cut a log where pytest opens again: its opening line names another Python, or comes after a closing line."""
    runs = [""]
    python = ""
    closed = False
    for line in log.splitlines(keepends=True):
        if match := PYTHON.search(line):
            if closed or python not in ("", match[1]):
                runs.append("")
                closed = False
            python = match[1]
        closed = closed or CLOSING.search(line) is not None
        runs[-1] += line
    return runs


def read_run(bed: str, log: str) -> Row | None:
    """Return the row of one run of pytest, of which the last closing line counts; None if there is none."""
    closings = CLOSING.findall(log)
    if not closings:
        return None
    pythons = [match[1] for match in map(PYTHON.search, log.splitlines()) if match]
    counts = [(int(number), word) for number, word in COUNT.findall(closings[-1][0])]
    passed, failed, skipped = (
        sum(number for number, word in counts if word in words) for words in ({"passed"}, FAILED, SKIPPED)
    )
    return Row(bed, pythons[0] if pythons else "", passed, failed, skipped, float(closings[-1][1]))


def read_log(logs: Path, bed: str) -> str:
    """Return what one step printed."""
    return (logs / f"{bed}.log").read_text(encoding="utf-8", errors="replace")


def read_status(logs: Path, bed: str) -> tuple[int, int]:
    """Return the exit status of one step, and how many seconds it took."""
    status, seconds = map(int, (logs / f"{bed}.status").read_text().split())
    return status, seconds


def read_step(logs: Path, bed: str) -> tuple[list[Row], list[Rerun]]:
    """Return the rows of one step, of which one has a failure if the step failed; and what was run again in it."""
    log = read_log(logs, bed)
    status, seconds = read_status(logs, bed)
    rows = []
    reruns = []
    for run in split_runs(log):
        if row := read_run(bed, run):
            rows.append(row)
            reruns += [Rerun(test.replace("\\", "/"), row.name, reason) for test, reason in RERUN.findall(run)]
    if not rows:
        passed = len(re.findall(r"^ok\s", log, re.MULTILINE))
        failed = len(re.findall(r"^FAILED\s", log, re.MULTILINE))
        if not passed and not failed:
            passed = int(status == 0)
        rows = [Row(bed, "", passed, failed, 0, seconds)]
    if status and not any(row.failed for row in rows):
        rows[-1] = rows[-1]._replace(failed=1)
    return rows, reruns


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


def print_table(rows: list[Row], steps: dict[str, int]) -> None:
    """Print a line for each row; the first one of a step also says how long all of the step took."""
    print(f"\n{'bed':<16} {'Python':<6} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>7} {'step':>5}")
    shown = set()
    for row in rows:
        step = "" if row.bed in shown else steps[row.bed]
        shown.add(row.bed)
        line = f"{row.bed:<16} {row.python:<6} {row.passed:>6} {row.failed:>6} {row.skipped:>7} {row.seconds:>7.0f}"
        print(f"{line} {step:>5}".rstrip())


def print_slowest(logs: Path, steps: dict[str, int]) -> None:
    """Print the slowest tests of the step that took longest: on two cores it decides when all is done."""
    bed = max(steps, key=steps.__getitem__)
    durations = sorted(((float(time), test) for time, test in DURATION.findall(read_log(logs, bed))), reverse=True)
    if durations:
        print(f"\nslowest of the longest step, {bed}:")
    for time, test in durations[:MANY]:
        print(f"{time:>7.1f} s  {test}")


def print_reruns(reruns: list[Rerun]) -> int:
    """Print which tests were run again, where, and why; return how many were in two runs, which are shown last."""
    by_test: dict[str, list[Rerun]] = defaultdict(list)
    for rerun in reruns:
        by_test[rerun.test].append(rerun)
    tests = sorted(by_test, key=lambda test: len(by_test[test]))
    if tests:
        print("\nrun again:")
    if len(tests) > MANY:
        print(f"    {len(tests) - MANY} more, and")
    for test in tests[-MANY:]:
        runs = by_test[test]
        print(f"    {'FAILED ' if len(runs) > 1 else ''}{test} ({', '.join(rerun.run for rerun in runs)})")
        for reason in dict.fromkeys(rerun.reason for rerun in runs):
            print(f"        {reason[:WIDTH]}")
    return sum(len(runs) > 1 for runs in by_test.values())


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


def main(logs: Path, seconds: int) -> int:
    """Print all of it."""
    beds = (logs / "order").read_text().split()
    steps = {bed: read_status(logs, bed)[1] for bed in beds}
    rows: list[Row] = []
    reruns: list[Rerun] = []
    for bed in beds:
        more_rows, more_reruns = read_step(logs, bed)
        rows += more_rows
        reruns += more_reruns
    print_skips(logs, beds)
    print_table(rows, steps)
    print_slowest(logs, steps)
    twice = print_reruns(reruns)
    print_failures(logs, list(dict.fromkeys(row.bed for row in rows if row.failed)))
    passed, failed, skipped = (sum(counts) for counts in zip(*(row[2:5] for row in rows), strict=True))
    failed += twice
    again = len({rerun.test for rerun in reruns})
    minutes, seconds = divmod(seconds, 60)
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped, {again} run again, in {minutes} min {seconds} s")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
