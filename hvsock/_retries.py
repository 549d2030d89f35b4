"""When a connect that failed is tried again, and how long each attempt may take."""

from __future__ import annotations

import math
import time
from typing import Final

from hvsock._errors import is_transient

__all__ = ["Retries"]

_FIRST_PAUSE: Final = 0.01  # seconds between two attempts, doubled each time
_LONGEST_PAUSE: Final = 0.5
_LONGEST_ATTEMPT: Final = 2.0  # seconds, where no timeout says otherwise: about what both systems allow by themselves
_SHORTEST_ATTEMPT: Final = 0.001


class Retries:
    """The attempts of one call to connect: as many as fit into `retry_for` seconds from now, but at least one.

    Raises:
        ValueError: `retry_for` is negative, or not finite.
    """

    def __init__(self, retry_for: float) -> None:
        if not (retry_for >= 0.0 and math.isfinite(retry_for)):
            raise ValueError(f"retry_for must be a finite number of seconds, at least 0, not {retry_for!r}")
        self._limited = retry_for > 0.0
        self._deadline = time.monotonic() + retry_for
        self._pause = _FIRST_PAUSE

    def limit(self, timeout: float | None) -> float | None:
        """Return the timeout of the next attempt, where the caller allows each `timeout` seconds."""
        if not self._limited or timeout == 0.0:
            return timeout
        left = self._deadline - time.monotonic()
        return max(min(_LONGEST_ATTEMPT if timeout is None else timeout, left), _SHORTEST_ATTEMPT)

    def pause_after(self, error: OSError) -> float | None:
        """Return the seconds to wait before the next attempt, or None if this error is the call's."""
        pause = self._pause
        if time.monotonic() + pause >= self._deadline or not is_transient(error):
            return None
        self._pause = min(2 * pause, _LONGEST_PAUSE)
        return pause
