"""`hvsock info`: which transports work on this machine, and why others do not."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import click

import hvsock
from hvsock._addresses import VMADDR_CID_ANY
from hvsock._cli.options import as_json, examples
from hvsock._cli.output import Failure, print_json, print_rows
from hvsock._transports import local, vsock

__all__ = ["command", "no_loopback"]

EXAMPLES = """
  hvsock info
  hvsock info --constants               ids and numbers of the interface
  hvsock info --json | jq .transports
"""


@click.command("info", epilog=examples(EXAMPLES))
@click.option("--constants", is_flag=True, help="Also show the ids and constants; with --json they always are.")
@as_json
def command(constants: bool, as_json: bool) -> None:
    """Show which transports work here and why others do not.

    It opens sockets to find out, but connects and binds none.
    """
    facts = gather_info()
    if as_json:
        print_json(facts)
        return
    rows: list[tuple[object, object]] = [(name, facts[name]) for name in ("hvsock", "python", "platform")]
    rows += [(f"transport {transport['name']}", describe_transport(transport)) for transport in facts["transports"]]
    rows += [
        ("default transport", facts["default_transport"] or "none"),
        ("local CID", describe_cid(facts["local_cid"])),
        ("local directory", facts["local"]["directory"] or "none"),
        ("local partition", facts["local"]["partition"] or "none"),
    ]
    rows += [("problem", problem) for problem in facts["problems"]]
    rows += facts["constants"].items() if constants else ()
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
            {
                "name": t.name,
                "available": t.available,
                "reason": t.reason,
                "family": t.family,
                "loopback": t.available and no_loopback(t.name) is None,
            }
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


def no_loopback(transport: str) -> str | None:
    """Return why the loopback of an available transport does not work here, or None where it does."""
    if transport == "vsock" and not vsock.has_loopback():
        return "the vsock loopback module is not loaded (modprobe vsock_loopback)"
    return None


def describe_transport(transport: Mapping[str, Any]) -> str:
    """Return in words whether a transport and its loopback work."""
    if not transport["available"]:
        return f"not available: {transport['reason']}"
    if transport["loopback"]:
        return "available, also as loopback"
    return f"available, but not as loopback: {no_loopback(transport['name'])}"


def describe_cid(cid: int | None) -> str:
    """Return a machine's own CID in words."""
    if cid is None:
        return "none"
    return "any (a Hyper-V guest reports this)" if cid == VMADDR_CID_ANY else str(cid)
