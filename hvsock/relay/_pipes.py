"""Windows' named pipes in a relay: their handles are made here; the engine has them afterwards."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from hvsock._errors import code_of, os_error
from hvsock.relay._attempt import Attempt, wait_for

__all__ = ["ClientWait", "PipeEnd", "connect_pipe", "make_pipe"]

# Private to CPython, whose multiprocessing and asyncio are made of it. Elsewhere `Pipe.unavailable` comes first.
_winapi: Final[Any] = importlib.import_module("_winapi") if sys.platform == "win32" else None
_ERROR_PIPE_BUSY: Final = 231
_PIPE_REJECT_REMOTE_CLIENTS: Final = 8
_SECURITY_SQOS_PRESENT: Final = 0x00100000
_SECURITY_IDENTIFICATION: Final = 0x00010000  # the server may ask who the client is, and not act in its name
# Full access for the system, administrators and the owner. Without it, everybody could open the pipe to read from it.
_ACCESS: Final = "D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;OW)"
_BUFFER: Final = 65536  # bytes that the system holds for each direction
_PAUSE: Final = 0.01  # seconds before another try to connect, as go-winio has it


class PipeEnd:
    """One end of a connected pipe, with what a relay asks of a socket."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def fileno(self) -> int:
        """Return the handle, or -1 after the end."""
        return self._handle

    def detach(self) -> int:
        """Give the handle up without closing it."""
        handle, self._handle = self._handle, -1
        return handle

    def close(self) -> None:
        """Close the handle."""
        handle = self.detach()
        if handle != -1:
            _winapi.CloseHandle(handle)


def connect_pipe(path: str, attempt: Attempt) -> PipeEnd:
    """Connect to a pipe; while all its instances have clients, wait for one.

    Raises:
        FileNotFoundError: there is no such pipe.
        TimeoutError: the attempt's deadline has passed.
        OSError: as the system says, or the relay stops.
    """
    access = _winapi.GENERIC_READ | _winapi.GENERIC_WRITE
    flags = _winapi.FILE_FLAG_OVERLAPPED | _SECURITY_SQOS_PRESENT | _SECURITY_IDENTIFICATION
    while True:
        try:
            return PipeEnd(_winapi.CreateFile(path, access, 0, 0, _winapi.OPEN_EXISTING, flags, 0))
        except OSError as exc:
            if code_of(exc) != _ERROR_PIPE_BUSY:
                raise
        pause = time.monotonic() + _PAUSE
        if attempt.deadline is not None and attempt.deadline < pause:
            raise TimeoutError("timed out: all instances of the pipe have clients")
        wait_for((), 0, attempt.aborting, pause)


def make_pipe(path: str, *, first: bool) -> PipeEnd:
    """Make an instance of a pipe of messages, so that an empty one can be the end of a stream.

    Raises:
        PermissionError: it is to be the first one, and another program has one.
        OSError: as the system says.
    """
    mode = _winapi.PIPE_ACCESS_DUPLEX | _winapi.FILE_FLAG_OVERLAPPED
    if first:
        mode |= _winapi.FILE_FLAG_FIRST_PIPE_INSTANCE
    kind = _winapi.PIPE_TYPE_MESSAGE | _PIPE_REJECT_REMOTE_CLIENTS
    most = _winapi.PIPE_UNLIMITED_INSTANCES
    with _security_attributes() as attributes:
        return PipeEnd(_winapi.CreateNamedPipe(path, mode, kind, most, _BUFFER, _BUFFER, 0, attributes))


@contextlib.contextmanager
def _security_attributes() -> Iterator[int]:
    """Give the address of a SECURITY_ATTRIBUTES with that access."""
    import ctypes  # slow to load
    from ctypes import wintypes

    class Attributes(ctypes.Structure):
        _fields_ = (("size", wintypes.DWORD), ("descriptor", ctypes.c_void_p), ("is_inherited", wintypes.BOOL))

    load: Any = vars(ctypes)["WinDLL"]
    advapi, kernel = load("advapi32", use_last_error=True), load("kernel32")
    descriptor = ctypes.c_void_p()
    if not advapi.ConvertStringSecurityDescriptorToSecurityDescriptorW(_ACCESS, 1, ctypes.byref(descriptor), None):
        raise os_error(vars(ctypes)["get_last_error"]())
    try:
        attributes = Attributes(ctypes.sizeof(Attributes), descriptor, False)
        yield ctypes.addressof(attributes)
    finally:
        kernel.LocalFree(descriptor)


class ClientWait:
    """A wait for the client of an instance, which another thread may cancel."""

    def __init__(self, instance: PipeEnd) -> None:
        self._overlapped = _winapi.ConnectNamedPipe(instance.fileno(), overlapped=True)

    def result(self) -> bool:
        """Wait for its end; return whether there is a client."""
        error: int = self._overlapped.GetOverlappedResult(True)[1]
        return error == 0

    def cancel(self) -> None:
        """Have the wait end."""
        self._overlapped.cancel()
