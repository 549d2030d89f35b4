"""Imports point down only: the drawing in CONTRIBUTING.md is what the modules import."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest
import utils

import hvsock

CONTRIBUTING = utils.TESTS.parent / "CONTRIBUTING.md"
PACKAGE = Path(hvsock.__file__).parent


def drawing() -> list[list[str]]:
    """Return the drawing's lines from the top: of each, the entries, such as ``aio/`` and ``_sockets.py``."""
    block = CONTRIBUTING.read_text(encoding="utf-8").partition("\n## Layers\n")[2].split("```\n")[1]
    return [re.split(r" {2,}", line)[0].split(", ") for line in block.splitlines()]


def modules() -> dict[str, Path]:
    """Return the file of each module by its name; a package's is its ``__init__.py``. The one in C has its stub."""
    found = {}
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def entry(path: Path) -> str:
    """Return the entry of the drawing that a module's file belongs to."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) == 1 else f"{parts[0]}/"


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the package's modules that a module imports, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if names <= set(known) else {*names, node.module}
    return found & set(known)


def test_the_drawing_has_every_module() -> None:
    entries = [name for line in drawing() for name in line]
    assert len(entries) == len(set(entries))
    assert set(entries) == {entry(path) for path in modules().values()}


def test_imports_point_down_only() -> None:
    level = {name: number for number, line in enumerate(drawing()) for name in line}
    known = modules()
    for module, path in known.items():
        for imported in imports(path, known):
            ours, theirs = entry(path), entry(known[imported])
            assert ours == theirs or level[ours] < level[theirs], f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize("name", [name for line in drawing() for name in line if name.endswith("/")])
def test_imports_within_a_package_are_no_circle(name: str) -> None:
    known = {module: path for module, path in modules().items() if entry(path) == name}
    graphlib.TopologicalSorter({module: imports(path, known) for module, path in known.items()}).prepare()


def test_what_is_drawn_is_needed() -> None:
    """But for the top, which users start, what is private is imported by a line above it."""
    known = modules()
    used = {
        entry(known[it]) for path in known.values() for it in imports(path, known) if entry(path) != entry(known[it])
    }
    private = {name for line in drawing()[1:] for name in line if name.startswith("_") and name != "__init__.py"}
    assert private <= used


def test_an_import_upwards_is_found(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("import os\n\n\ndef late():\n    from hvsock import aio, _names\n    import hvsock.relay\n")
    assert imports(source, modules()) == {"hvsock.aio", "hvsock._names", "hvsock.relay"}
    source.write_text("from hvsock import _names, as_address\n")
    assert imports(source, modules()) == {"hvsock._names", "hvsock"}
