"""What the commands print: errors as one line, stdout that may fail, and text from elsewhere.

Text from peers, files and the system is escaped before it is printed, so that it cannot move the cursor, change colours
or forge a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    # Imported where they are used: the demo's client needs neither and starts faster.
    from rich.console import Console
    from rich.text import Text

__all__ = [
    "Failure",
    "cell",
    "console",
    "doing",
    "drop_output",
    "encodable",
    "end_output",
    "escaped",
    "print_failure",
    "print_json",
    "print_lines",
    "print_note",
    "print_rows",
    "print_table",
    "print_text",
    "stdout",
    "writing",
]

# The package's note about the operation, which `doing` reports itself.
_OPERATION: Final = re.compile(r"\w+ on transport ")

_line_lock: Final = threading.Lock()


class Failure(Exception):
    """An error as it is printed: one line of `message` and, in parentheses, the `notes` about its cause and cure.

    `trace` is printed only on request, and made only then: a process without descriptors left cannot import what makes
    it, and still has to say what happened.
    """

    def __init__(
        self, message: str, notes: Sequence[str] = (), trace: str = "", error: BaseException | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.notes = tuple(notes)
        self._trace = trace
        self._error = error

    @property
    def trace(self) -> str:
        """The trace, in lines."""
        import traceback

        return self._trace or "".join(traceback.format_exception(self._error or self))

    def __str__(self) -> str:
        """Return the line that is printed."""
        notes = "; ".join(note.rstrip(".") for note in self.notes)
        return f"{self.message} ({notes})" if notes else self.message

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Make one from any exception; it keeps the notes of the package's own errors."""
        if isinstance(error, Failure):
            return error
        message = str(error)
        if isinstance(error, OSError) and error.strerror:
            message = error.strerror + (f": {error.filename}" if error.filename else "")
        if not isinstance(error, OSError | ValueError | EOFError) or not message:
            message = f"{type(error).__name__}: {message}".removesuffix(": ")
        return cls(message, getattr(error, "__notes__", ()), error=error)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Name the operation in any error of the system, a peer or an address that leaves the block."""
    try:
        yield
    except (OSError, EOFError, ValueError) as error:
        failure = Failure.of(error)
        failure.message = f"{what}: {failure.message}"
        failure.notes = tuple(note for note in failure.notes if not _OPERATION.match(note))
        raise failure from error


# --- stdout -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Mark errors in the block as stdout's, not a socket's: its reader is gone, or the disk is full."""
    try:
        yield
    except OSError as error:
        raise Failure(f"standard output: {Failure.of(error).message}") from error
    except SystemExit as error:  # rich raises it when a pipe's reader is gone
        raise Failure("standard output: Broken pipe") from error


def stdout() -> TextIO:
    """Return stdout.

    Raises:
        Failure: the process was started without one.
    """
    if sys.stdout is None:
        raise Failure("standard output is closed")
    return sys.stdout


def end_output() -> None:
    """Flush stdout. If that fails, drop the rest, or the interpreter would try again at exit and print an error."""
    if sys.stdout is None:
        return
    try:
        with writing():
            sys.stdout.flush()
    except Failure:
        drop_output()
        raise


def drop_output() -> None:
    """Close stdout for its reader, and discard what is written to it from now on."""
    with contextlib.suppress(OSError):  # in a test it is not a file
        descriptor = stdout().fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


# --- text -------------------------------------------------------------------------------------------------------------


def escaped(text: object) -> str:
    """Return the text on one line, with unprintable characters as backslash escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def encodable(text: str, stream: Any) -> str:
    """Return the text with characters that the stream's encoding lacks as backslash escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def console(stream: Any) -> Console:
    """Return a console that uses colours and folds lines on a terminal only."""
    from rich.console import Console

    terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        width=None if terminal else 10_000,
        markup=False,
        emoji=False,
        highlight=False,
    )


def cell(text: object, stream: Any, style: str = "") -> Text:
    """Return a text for `stream`, escaped."""
    from rich.text import Text

    return Text(encodable(escaped(text), stream), style=style)


def print_lines(*lines: object) -> None:
    """Print lines on stdout, at once; threads may do so at the same time."""
    out = stdout()
    with writing(), _line_lock:
        out.write("".join(f"{encodable(escaped(line), out)}\n" for line in lines))
        out.flush()


def print_text(text: str) -> None:
    """Print lines that hold nothing from elsewhere, such as a command's help, on stdout."""
    with writing():
        stdout().write(f"{text}\n")


def print_rows(rows: Sequence[tuple[object, object]], *, width: int = 0) -> None:
    """Print a name and a value a line on stdout; the names are `width` wide, or as wide as the widest."""
    out = stdout()
    if not out.isatty():
        _print_plain(rows, width=width)
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(min_width=width or None, overflow="fold")  # not an ellipsis: it may be an id to copy
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(cell(text, out, "" if column else "bold") for column, text in enumerate(row)))
    with writing():
        console(out).print(table)


def print_table(names: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[str] = ()) -> None:
    """Print a table on stdout: a line of names, then the rows; the columns in `numbers` are aligned right."""
    out = stdout()
    right = [name in numbers for name in names]
    if not out.isatty():
        _print_plain([names, *rows], right=right)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, aligned in zip(names, right, strict=True):
        table.add_column(name, justify="right" if aligned else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(text, out) for text in row))
    with writing():
        console(out).print(table)


def _print_plain(rows: Sequence[Sequence[object]], *, right: Sequence[bool] = (False, False), width: int = 0) -> None:
    """Print columns as text, the first at least `width` wide, without the time that importing rich takes."""
    out = stdout()
    texts = [[encodable(escaped(text), out) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)] or [0 for _ in right]
    widths[0] = max(widths[0], width)
    aligns = [f"{'>' if aligned else '<'}{width}" for aligned, width in zip(right, widths, strict=True)]
    print_lines(*("  ".join(map(format, row, aligns)).rstrip() for row in texts))


def print_json(value: object) -> None:
    """Print a value of JSON's types on stdout; JSON escapes by itself."""
    with writing():
        stdout().write(json.dumps(value, indent=2) + "\n")


def print_note(text: str) -> None:
    """Print a line on stderr that is not an error."""
    print_failure(Failure(text), debug=False)


def print_failure(failure: Failure, *, debug: bool) -> None:
    """Print one line on stderr; the trace first if asked for."""
    stream = sys.stderr
    if stream is None:
        return
    lines = [*(failure.trace.splitlines() if debug else ()), f"hvsock: {failure}"]
    with contextlib.suppress(OSError):  # stderr has failed too
        stream.write("".join(f"{encodable(escaped(line), stream)}\n" for line in lines))
