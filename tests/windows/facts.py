"""Facts of ``AF_HYPERV``: what each says, how sure it is, and the table of those that were seen.

A fact is a function that looks, and returns in a few words what it has seen. An OSError is an answer too: its number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import pytest

hvsim: Any = None
with contextlib.suppress(ModuleNotFoundError):  # the real AF_HYPERV
    hvsim = importlib.import_module("hvsim")

Look = Callable[[], str]


class Unseen(Exception):
    """This machine cannot show the fact; the message says why."""


@dataclasses.dataclass(frozen=True)
class Fact:
    """One line of what is known of Windows.

    Attributes:
        line: the part of the facts, and the mark: V for read in a source, T for said by someone, ? for not verified.
        sentence: the fact, or the question where it has not been verified.
        look: sees it.
        ways: what may be seen, each with the provider's switches for it. A fact that is known has one.
    """

    line: str
    sentence: str
    look: Look
    ways: dict[str, str]

    @property
    def name(self) -> str:
        return self.look.__name__

    @property
    def is_known(self) -> bool:
        return not self.line.endswith("?")


FACTS: list[Fact] = []
#: The rows of the table: what was seen of a fact with these switches.
SEEN: dict[tuple[str, str], str] = {}


def known(line: str, sentence: str, expected: str) -> Callable[[Look], Look]:
    """Add a fact whose answer is asserted, on Windows too."""
    return unknown(line, sentence, {expected: ""})


def unknown(line: str, sentence: str, ways: dict[str, str]) -> Callable[[Look], Look]:
    """Add a question: the provider answers it in each of these ways, and Windows in one that is printed only."""

    def add(look: Look) -> Look:
        FACTS.append(Fact(line, sentence, look, ways))
        return look

    return add


@contextlib.contextmanager
def switched(switches: str) -> Iterator[None]:
    """Set the provider's switches: ``NAME=VALUE`` of its environment, all others are faults."""
    words = switches.split()
    settings = dict(word.split("=", 1) for word in words if word.startswith("HVSIM_"))
    faults = [word for word in words if not word.startswith("HVSIM_")]
    if words and hvsim is None:
        raise Unseen("needs the provider's switches")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for name, value in settings.items():
            patch.setenv(name, value)
        if faults:
            stack.enter_context(hvsim.faults(*faults))
        yield


def see(fact: Fact, switches: str) -> str:
    """Look, note what was seen, and return it."""
    try:
        with switched(switches):
            seen = fact.look()
    except Unseen as reason:
        SEEN[fact.name, switches] = f"not seen: {reason}"
        raise
    except (OSError, AssertionError) as exc:  # without a number: the socket module's timeout, or utils.Task's
        seen = str(getattr(exc, "winerror", None) or "no answer in time")
    SEEN[fact.name, switches] = seen
    return seen


def table() -> list[str]:
    """Return the rows of what was seen, in Markdown."""
    rows = [("line", "fact", "expected", "seen")]
    for fact in FACTS:
        expected = next(iter(fact.ways)) if fact.is_known else "?"
        for (name, switches), seen in SEEN.items():
            if name == fact.name:
                rows.append((fact.line, fact.sentence, expected, f"{seen} ({switches})" if switches else seen))
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def report(where: str) -> list[str]:
    """Return the table under a sentence that says what it is of."""
    if not SEEN:
        return []
    unseen = sum(seen.startswith("not seen") for seen in SEEN.values())
    reasons = {seen for seen in SEEN.values() if seen.startswith("not seen")}
    if len(SEEN) == unseen and len(reasons) == 1:
        return [f"**No fact was seen on {where}: {reasons.pop().removeprefix('not seen: ')}**", "", *table()]
    return [f"Facts of AF_HYPERV on {where}: {len(SEEN) - unseen} seen, {unseen} not seen.", "", *table()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, and add it to the file that HVSOCK_FACTS_TABLE names; test_facts.py makes this a plugin."""
    lines = report("the simulated provider" if hvsim else platform.platform())
    if lines:
        terminalreporter.section("facts")
        terminalreporter.write_line("\n".join(lines))
        if path := os.environ.get("HVSOCK_FACTS_TABLE"):
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
