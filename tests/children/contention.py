"""The races of `races.py`."""

from __future__ import annotations

import faulthandler
import sys

import races
import utils
from interpreters import new_interpreter
from utils import WINDOWS, Task

from children import say


def disturb(transport: str, kind: str, rounds: int) -> None:
    for disturbance in races.DISTURBANCES:
        races.run(transport, kind, disturbance, rounds)
        say(disturbance)


def race(transport: str, kind: str, rounds: str) -> None:
    """Disturb the calls of many threads in every way, and print which; afterwards no descriptor is left."""
    faulthandler.dump_traceback_later(races.limit(int(rounds)), exit=True)
    before = utils.handles()
    disturb(transport, kind, int(rounds))
    assert utils.handles() <= before + 2 * WINDOWS


def race_in_interpreters(transport: str, kind: str, rounds: str) -> None:
    """The same in this interpreter and in two that have a GIL of their own, at the same time."""

    def race_elsewhere() -> None:
        module, interpreter = new_interpreter()
        try:
            code = f"""
import sys; sys.path = {sys.path!r}; import races
for disturbance in races.DISTURBANCES: races.run({transport!r}, {kind!r}, disturbance, {rounds})
"""
            failure = module.run_string(interpreter, code)
            assert failure is None, failure
        finally:
            module.destroy(interpreter)

    faulthandler.dump_traceback_later(races.limit(int(rounds)), exit=True)
    tasks = [Task(race_elsewhere) for _ in range(2)]
    disturb(transport, kind, int(rounds))
    for task in tasks:
        task.result(races.limit(int(rounds)))
