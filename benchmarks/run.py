"""Measure hvsock beside CPython's sockets and raw C on this machine: see README.md."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from measures import FULL, MEASURES, QUICK, SIZES, Row, Table

import hvsock


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    model = re.search(r"^model name\s*: (.+)", cpus, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "hvsock": hvsock.__version__,
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def number(value: float) -> str:
    """Format a measured value in about four digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def ratio(value: float) -> str:
    """Format a ratio, as exactly as a bar is meant; a small one in one digit more."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def verdict(row: Row) -> str:
    """Say whether the row keeps its bars."""
    said = []
    for bar in row.bars:
        sign, word = ">=" if bar.at_least else "<=", "reached" if bar.is_kept(row.measured(bar)) else "NOT reached"
        said.append(f"{bar.of} {sign} {bar.limit:.2f} {word} (aim {bar.aim:.2f})")
    return "; ".join(said)


def show(table: Table) -> None:
    """Print a table as text."""
    print(f"\n{table.title}")
    if table.reason:
        print(f"  skipped: {table.reason}")
        return
    names = list(dict.fromkeys(name for row in table.rows for name in row.rounds))
    ratios = list(dict.fromkeys(name for row in table.rows for name in row.ratios))
    lines = [[table.unit, *names, *ratios, "bar"]]
    for row in table.rows:
        medians, compared = row.medians, row.ratios
        lines.append(
            [
                row.case,
                *(number(medians[name]) if name in medians else "-" for name in names),
                *(ratio(compared[name]) if name in compared else "-" for name in ratios),
                verdict(row),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line, note in zip(lines, ["", *(row.note for row in table.rows)], strict=True):
        first, *middle, last = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  " + "  ".join([first.strip().ljust(widths[0]), *middle, last.strip()]).rstrip())
        if note:
            print(f"      {note}")
    sys.stdout.flush()


def as_json(table: Table) -> dict[str, Any]:
    """Return what is written of a table."""
    rows = [
        {
            "case": row.case,
            "medians": row.medians,
            "ratios": row.ratios,
            "bars": [{**bar._asdict(), "reached": bar.is_kept(row.measured(bar))} for bar in row.bars],
            "note": row.note or None,
            "rounds": row.rounds,
        }
        for row in table.rows
    ]
    return {"title": table.title, "unit": table.unit, "skipped": table.reason or None, "rows": rows}


def draw(table: Table, path: str, heading: str) -> None:
    """Draw the share of round trips that took longer than a time: the line's height at 1 % is the p99."""
    from matplotlib.figure import Figure  # an option needs it, and nothing else here

    lines, columns = len(table.samples) // len(SIZES), len(SIZES)
    figure = Figure(figsize=(4 * columns, 3.5 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axis, (case, by_name) in zip(axes.flat, table.samples.items(), strict=True):
        for name, ordered in by_name.items():
            shares = [1 - k / len(ordered) for k in range(len(ordered))]
            axis.plot([ns / 1e3 for ns in ordered], shares, label=name)
        axis.set(xscale="log", yscale="log", title=case, xlabel="round trip, us")
        axis.grid(visible=True, which="both", alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("share that took longer")
    axes[0, 0].legend()
    figure.suptitle(heading)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, to see that it runs")
    parser.add_argument("--only", metavar="NAME", choices=MEASURES, help=f"one measure: {', '.join(MEASURES)}")
    parser.add_argument("--json", metavar="FILE", help="write the numbers of every round")
    parser.add_argument("--png", metavar="FILE", help="draw the distributions of the round trips; needs matplotlib")
    parser.add_argument("--transport", choices=("local", "vsock"), default="local", help="vsock: only in a guest")
    options = parser.parse_args()
    if options.png and options.only not in (None, "round-trip", "messages"):
        parser.error("--png draws round trips: --only must be round-trip or messages, or left out")
    if options.png and importlib.util.find_spec("matplotlib") is None:
        parser.error("--png needs matplotlib: pip install matplotlib")
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "transport": options.transport,
        "quick": options.quick,
        "machine": machine(),
        "measures": {},
    }
    heading = ", ".join(f"{key} {value}" for key, value in report["machine"].items()) + f", {report['date']}"
    print(heading)
    with tempfile.TemporaryDirectory(prefix="hvsock-bench-") as directory:
        os.environ["HVSOCK_LOCAL_DIR"] = directory
        for name, measure in MEASURES.items():
            if options.only in (None, name):
                table = measure(QUICK if options.quick else FULL, options.transport)
                show(table)
                report["measures"][name] = as_json(table)
                if options.png and name == (options.only or "round-trip"):
                    draw(table, options.png, heading)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
