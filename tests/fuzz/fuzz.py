#!/usr/bin/env python3
"""Has atheris fuzz a target, whose name is in HVSOCK_FUZZ; `run` calls it, and libFuzzer's own options go through.

``--unpack DIRECTORY`` and ``--pack DIRECTORY`` instead: the corpus from its file into a directory, and back.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hvsock", "targets"]):
    import targets


def main(arguments: list[str]) -> None:
    name = os.environ["HVSOCK_FUZZ"]
    target = targets.TARGETS[name]
    match arguments[1:]:
        case ["--unpack", directory]:
            for data in targets.inputs(name):
                Path(directory, hashlib.sha1(data).hexdigest()).write_bytes(data)
        case ["--pack", directory]:
            found = sorted(
                (path.read_bytes() for path in Path(directory).iterdir()), key=lambda data: (len(data), data)
            )
            (targets.CORPUS / name).write_text("".join(f"{data.hex()}\n" for data in found))
            print(f"{name}: {len(found)} inputs of {sum(map(len, found))} bytes in the corpus")
        case _:
            atheris.Setup(arguments, target)
            atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
