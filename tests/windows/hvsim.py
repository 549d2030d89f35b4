"""The provider's controls, for tests inside the bench: ``hvsim = pytest.importorskip("hvsim")``.

Counts and faults belong to this process. A child process takes faults from ``HVSIM_FAULTS``, the
partition it plays from ``HVSIM_PARTITION``; README.md has all of these.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

if sys.platform != "win32":
    raise ModuleNotFoundError("hvsim works in Windows Python with the simulated provider only")

try:
    _dll = ctypes.CDLL("ws2_32")
    _dll.hvsim_call_name.restype = ctypes.c_char_p
except AttributeError:
    raise ModuleNotFoundError("this ws2_32.dll is not the simulated provider") from None


def reset_counts() -> None:
    """Start counting again."""
    _dll.hvsim_reset_counts()


def counts() -> dict[str, int]:
    """The Winsock calls made on Hyper-V sockets since the last reset, without those never made."""
    found = {}
    index = 0
    while (name := _dll.hvsim_call_name(index)) is not None:
        if number := _dll.hvsim_count(name):
            found[name.decode()] = number
        index += 1
    return found


@contextlib.contextmanager
def faults(*plan: str) -> Iterator[None]:
    """Make calls fail inside the ``with`` block, for example ``faults("receiving=10054@1")``."""
    if _dll.hvsim_set_faults(" ".join(plan).encode()):
        raise ValueError(f"not a list of faults: {plan!r}")
    try:
        yield
    finally:
        _dll.hvsim_set_faults(b"")
