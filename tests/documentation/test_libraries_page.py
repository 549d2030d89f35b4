"""docs/reference/libraries.md says of each library what tests/libraries runs, no more and no less."""

from __future__ import annotations

import re

import utils
from libraries import catalogue
from libraries.catalogue import LIBRARIES, Library

from documentation.pages import PAGES

PAGE = PAGES["docs/reference/libraries.md"]
TRANSPORTS = {"local": "local", "AF_VSOCK": "vsock", "Windows": "hyperv"}


def rows() -> dict[str, dict[str, str]]:
    """Return the table's cells by the name of the library and of the column."""
    table = PAGE.partition("<!-- libraries: the table -->\n")[2].partition("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    columns = lines[0]
    for line in lines:
        assert len(line) == len(columns), line
    return {line[0]: dict(zip(columns, line, strict=True)) for line in lines[2:]}


def pinned() -> dict[str, str]:
    """Return the versions that the tests install, by distribution."""
    directory = utils.TESTS / "libraries"
    text = "".join(
        (directory / name).read_text(encoding="utf-8") for name in ("requirements.txt", "requirements-windows.txt")
    )
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)$", text, re.MULTILINE))


def expected(library: Library) -> dict[str, str]:
    def loop(how: str) -> str:
        if how in library.hows:
            return "yes"
        return "not run" if set(library.hows) & set(catalogue.LOOPS) else "-"

    return {
        "version": "standard library" if library.distribution is None else pinned()[library.distribution],
        "asyncio": loop(catalogue.ASYNCIO),
        "uvloop": loop(catalogue.UVLOOP),
        **{column: "yes" if transport in library.transports else "not run" for column, transport in TRANSPORTS.items()},
        "client's VM": "seen" if library.peer else "not seen",
    }


def test_the_table_is_of_the_libraries_that_are_tested() -> None:
    assert list(rows()) == [library.name for library in LIBRARIES.values()]


def test_each_cell_says_what_is_tested() -> None:
    found = rows()
    for library in LIBRARIES.values():
        cells = found[library.name]
        assert {column: cells[column] for column in expected(library)} == expected(library), library.name
        assert cells["what to write"], library.name


def test_each_library_has_its_module() -> None:
    modules = {path.stem.removeprefix("with_") for path in (utils.TESTS / "libraries").glob("with_*.py")}
    assert modules == set(LIBRARIES)


def test_what_the_windows_bed_installs_is_run_there() -> None:
    text = (utils.TESTS / "libraries" / "requirements-windows.txt").read_text(encoding="utf-8")
    there = set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE))
    used = {library.distribution for library in LIBRARIES.values() if "hyperv" in library.transports}
    assert used - {None} <= there
