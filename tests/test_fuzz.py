"""What fuzzing has found worth keeping, run again; `tests/fuzz/run` looks for more."""

from __future__ import annotations

import sys

import pytest
import utils

sys.path.insert(0, str(utils.TESTS / "fuzz"))

import targets


@pytest.mark.skipif(utils.WINDOWS, reason="POSIX only: AF_UNIX pairs and paths")
@pytest.mark.parametrize("name", targets.TARGETS)
def test_corpus(name: str) -> None:
    corpus = targets.inputs(name)
    assert corpus
    for data in corpus:
        targets.TARGETS[name](data)
