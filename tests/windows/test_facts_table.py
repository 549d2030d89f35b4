"""The table of facts, of answers made by hand: on every platform."""

from __future__ import annotations

from typing import Any

import facts
import pytest


def refuse() -> str:
    error: Any = OSError("refused")
    error.winerror = 10061
    raise error


def fall_silent() -> str:
    raise TimeoutError


def see_nothing() -> str:
    raise facts.Unseen("needs | a VM")


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "FACTS", [])
    monkeypatch.setattr(facts, "SEEN", {})


def test_table() -> None:
    facts.known("c6 V", "A refusal", "10061")(refuse)
    facts.unknown("c5 ?", "A silence", {"an answer": ""})(fall_silent)
    facts.known("c3 V", "A VM", "reached")(see_nothing)
    seen = [facts.see(fact, "") for fact in facts.FACTS[:2]]
    assert seen == ["10061", "no answer in time"]
    with pytest.raises(facts.Unseen):
        facts.see(facts.FACTS[2], "")
    assert facts.report("a machine") == [
        "Facts of AF_HYPERV on a machine: 2 seen, 1 not seen.",
        "",
        "| line | fact      | expected | seen                    |",
        "|------|-----------|----------|-------------------------|",
        "| c6 V | A refusal | 10061    | 10061                   |",
        "| c5 ? | A silence | ?        | no answer in time       |",
        "| c3 V | A VM      | reached  | not seen: needs \\| a VM |",
    ]


def test_machine_without_hyperv() -> None:
    facts.known("c6 V", "A refusal", "10061")(refuse)
    facts.unknown("c5 ?", "A silence", {"an answer": ""})(fall_silent)
    for fact in facts.FACTS:
        facts.SEEN[fact.name, ""] = "not seen: no AF_HYPERV"
    lines = facts.report("a machine")
    assert lines[0] == "**No fact was seen on a machine: no AF_HYPERV**"
    assert lines[4:] == [
        "| c6 V | A refusal | 10061    | not seen: no AF_HYPERV |",
        "| c5 ? | A silence | ?        | not seen: no AF_HYPERV |",
    ]


def test_no_table_without_facts() -> None:
    assert facts.report("a machine") == []
