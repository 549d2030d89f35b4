"""`hvsock relay --config`: several relays in one process, as a TOML file says, read again on SIGHUP."""

from __future__ import annotations

import dataclasses
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvsock._cli.names import with_id
from hvsock._cli.output import Failure, print_note
from hvsock.relay import Counters, Relay

__all__ = ["Pair", "Relays", "read"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One ``[[relay]]`` of the file: the arguments of a `Relay`."""

    listen: str
    connect: str
    connect_timeout: float | None = 10.0
    idle_timeout: float | None = None
    max_connections: int = 1000
    retry_for: float = 0.0

    @classmethod
    def of(cls, table: Any) -> Pair:
        """Check a table of the file, whose keys are the options' names.

        Raises:
            ValueError: a key is unknown or missing, or a value has the wrong type or is of no use to a relay.
            VMLookupError: a VM is given by a name that no source knows.
        """
        if not isinstance(table, dict):
            raise ValueError("it must be a table, [[relay]]")
        values = {key.replace("-", "_"): value for key, value in table.items()}
        if unknown := sorted(values.keys() - {field.name for field in dataclasses.fields(cls)}):
            raise ValueError(f"there is no option {unknown[0].replace('_', '-')!r}")
        for name in ("listen", "connect"):
            if not isinstance(values.get(name), str):
                raise ValueError(f"{name} must be given, as a string")
            values[name] = with_id(values[name])
        for name in ("connect_timeout", "idle_timeout", "max_connections", "retry_for"):
            kinds = (int,) if name == "max_connections" else (int, float)
            if name in values and type(values[name]) not in kinds:
                raise ValueError(f"{name.replace('_', '-')} must be a number, not {values[name]!r}")
        pair = cls(**values)
        pair.relay()
        return pair

    def relay(self) -> Relay:
        """Return a relay that is not started."""
        return Relay(
            self.listen,
            self.connect,
            connect_timeout=self.connect_timeout,
            idle_timeout=self.idle_timeout,
            max_connections=self.max_connections,
            retry_for=self.retry_for,
        )


def read(path: Path) -> list[Pair]:
    """Read the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not TOML, or says something else than relays; the message has the number of the relay.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except ValueError as exc:
        raise ValueError(f"{path}: {exc}") from None
    tables = content.pop("relay", [])
    if content or not isinstance(tables, list) or not tables:
        raise ValueError(f"{path}: it must have one or more tables [[relay]], and nothing else")
    pairs: list[Pair] = []
    for number, table in enumerate(tables, 1):
        try:
            pair = Pair.of(table)
            if pair.listen in (other.listen for other in pairs):
                raise ValueError(f"{pair.listen!r} is listened on by another relay of this file")
        except ValueError as exc:
            raise ValueError(f"{path}: relay {number}: {exc}") from None
        pairs.append(pair)
    return pairs


class Relays:
    """The relays of a file, running. Its methods are for one thread."""

    def __init__(self, path: Path, said: Callable[[str], object]) -> None:
        self._path = path
        self._said = said  # called with a line for each relay that begins or ends
        self._running: dict[Pair, Relay] = {}
        self._ending: list[tuple[Relay, threading.Thread]] = []  # whose connections continue

    def start(self) -> None:
        """Start the relays of the file: all of them, or none.

        Raises:
            OSError, ValueError: as `read` and `Relay.start`.
        """
        pairs = read(self._path)
        try:
            for pair in pairs:
                self._start(pair)
        except BaseException:
            self.stop(0.0)
            raise

    def reload(self) -> None:
        """Read the file again: start what is new in it, and end what is missing.

        A relay that ends closes its listener, and its connections continue. What cannot be read or started is noted on
        stderr; after a mistake in the file, everything continues as before.
        """
        try:
            pairs = read(self._path)
        except (OSError, ValueError) as exc:
            print_note(f"nothing was reloaded: {Failure.of(exc)}")
            return
        for pair in self._running.keys() - set(pairs):
            relay = self._running.pop(pair)
            self._end(relay, None)
            self._said(f"no longer listening on {relay.address}")
        for pair in pairs:
            if pair in self._running:
                continue
            try:
                self._start(pair)
            except (OSError, ValueError) as exc:
                print_note(f"{pair.listen} is not listened on: {Failure.of(exc)}")

    def stop(self, grace: float) -> None:
        """End all of them, and abort the connections that have not ended after `grace` seconds."""
        for relay in self._running.values():
            self._end(relay, grace)
        self._running.clear()
        deadline = time.monotonic() + grace
        for relay, thread in self._ending:
            thread.join(max(0.0, deadline - time.monotonic()))
            relay.stop(0.0)
            thread.join()

    @property
    def counters(self) -> list[tuple[Relay, Counters]]:
        """The numbers of each relay that there was, in the order of their ends; those that run come last."""
        relays = [*(relay for relay, _ in self._ending), *self._running.values()]
        return [(relay, relay.counters) for relay in relays]

    def _start(self, pair: Pair) -> None:
        relay = pair.relay()
        relay.start()
        self._running[pair] = relay
        self._said(f"listening on {relay.address} for {relay.target}")

    def _end(self, relay: Relay, grace: float | None) -> None:
        relay.stop_listening()
        thread = threading.Thread(target=relay.stop, args=(grace,), name="relay-stop", daemon=True)
        thread.start()
        self._ending.append((relay, thread))
