"""`hvsock info`: which transports work on this machine, and why others do not."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable
from typing import Any

import click

import hvsock
from hvsock._addresses import VMADDR_CID_ANY
from hvsock._cli.options import as_json, examples
from hvsock._cli.output import Failure, print_json, print_rows
from hvsock._transports import local, vsock

__all__ = ["command"]

EXAMPLES = """
  hvsock info
  hvsock info --json | jq .transports
"""


@click.command("info", epilog=examples(EXAMPLES))
@as_json
def command(as_json: bool) -> None:
    """Show which transports work here and why others do not, ids and constants.

    It opens sockets to find out, but connects and binds none.
    """
    facts = gather_info()
    if as_json:
        print_json(facts)
        return
    rows: list[tuple[object, object]] = [(name, facts[name]) for name in ("hvsock", "python", "platform")]
    for transport in facts["transports"]:
        state = "available" if transport["available"] else f"not available: {transport['reason']}"
        rows.append((f"transport {transport['name']}", state))
    rows.append(("default transport", facts["default_transport"] or "none"))
    rows.append(("local CID", describe_cid(facts["local_cid"])))
    rows.append(("local directory", facts["local"]["directory"] or "none"))
    rows.append(("local partition", facts["local"]["partition"] or "none"))
    rows += [("problem", problem) for problem in facts["problems"]]
    rows += facts["constants"].items()
    print_rows(rows)


def gather_info() -> dict[str, Any]:
    """Return what `hvsock info` knows, in JSON's types."""
    problems: list[str] = []

    def ask(question: Callable[[], object]) -> str | None:
        """Return the answer; report a wrong setting as a problem instead of failing."""
        try:
            return str(question())
        except (OSError, ValueError) as error:
            problems.append(Failure.of(error).message)
            return None

    has_local = any(transport.name == "local" and transport.available for transport in hvsock.transports())
    return {
        "hvsock": hvsock.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "transports": [
            {"name": t.name, "available": t.available, "reason": t.reason, "family": t.family}
            for t in hvsock.transports()
        ],
        "default_transport": ask(lambda: hvsock.default_transport().name),
        "local_cid": vsock.local_cid(),
        "local": {
            "directory": ask(local.directory) if has_local else None,
            "partition": ask(lambda: local.partition() or "host") if has_local else None,
        },
        "problems": problems,
        "constants": {
            name: value if isinstance(value, int) else str(value)
            for name in sorted(hvsock.__all__)
            if name.isupper() and isinstance(value := getattr(hvsock, name), int | uuid.UUID)
        },
    }


def describe_cid(cid: int | None) -> str:
    """Return a machine's own CID in words."""
    if cid is None:
        return "none"
    return "any (a Hyper-V guest reports this)" if cid == VMADDR_CID_ANY else str(cid)
