"""Which libraries are tested, how each is run, and on which transports; what docs/reference/libraries.md shows.

It imports none of them.
"""

from __future__ import annotations

import importlib.metadata
import sys
from typing import NamedTuple

#: How a program is run: on asyncio's event loop or uvloop's, on trio, in threads.
ASYNCIO, UVLOOP, TRIO, THREADS = "asyncio", "uvloop", "trio", "threads"
LOOPS = (ASYNCIO, UVLOOP)
#: uvloop is not for Windows, and trio asks Wine for what it does not have (SIO_BASE_HANDLE).
NOT_ON_WINDOWS = {UVLOOP, TRIO}
#: The `ssl` of CPython 3.11 knows no AF_HYPERV.
NEW_ON_WINDOWS = {("ssl", THREADS)} if sys.version_info < (3, 12) else set()
POSIX = frozenset({"local", "vsock"})
EVERYWHERE = POSIX | {"hyperv"}


class Library(NamedTuple):
    """A library, whose module in this package is `with_` and its key in `LIBRARIES`."""

    name: str  #: as the page writes it
    distribution: str | None  #: on PyPI; None for the standard library
    hows: tuple[str, ...]
    transports: frozenset[str]
    peer: bool = True  #: whether its server's application sees which VM a client is in

    def version(self) -> str | None:
        """Return the version that is installed, None without one; the standard library's is "3"."""
        if self.distribution is None:
            return "3"
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


LIBRARIES: dict[str, Library] = {
    "asyncio": Library("asyncio", None, LOOPS, EVERYWHERE),
    "asyncio_sock": Library("asyncio with `sock=`", None, LOOPS, EVERYWHERE),
    "ssl": Library("ssl", None, (THREADS, *LOOPS), EVERYWHERE),
    "trio": Library("trio", "trio", (TRIO,), POSIX),
    "anyio": Library("anyio", "anyio", (*LOOPS, TRIO), EVERYWHERE),
    "multiprocessing": Library("multiprocessing", None, (THREADS,), EVERYWHERE),
    "rpyc": Library("rpyc", "rpyc", (THREADS,), EVERYWHERE),
    "pyro5": Library("Pyro5", "Pyro5", (THREADS,), EVERYWHERE),
    "paramiko": Library("paramiko", "paramiko", (THREADS,), POSIX),
    "asyncssh": Library("asyncssh", "asyncssh", LOOPS, POSIX),
    "redis": Library("redis-py", "redis", (THREADS, *LOOPS), EVERYWHERE),
    "docker": Library("Docker SDK", "docker", (THREADS,), EVERYWHERE),
    "grpc": Library("gRPC", "grpcio", (THREADS, *LOOPS), POSIX, peer=False),
    "pycapnp": Library("pycapnp", "pycapnp", (ASYNCIO,), POSIX),
    "thrift": Library("Thrift", "thrift", (THREADS,), POSIX),
    "tornado": Library("tornado", "tornado", LOOPS, EVERYWHERE),
    "httpx": Library("httpx", "httpx", (THREADS, *LOOPS), EVERYWHERE),
    "requests": Library("requests", "requests", (THREADS,), EVERYWHERE),
    "aiohttp": Library("aiohttp", "aiohttp", LOOPS, EVERYWHERE),
    "uvicorn": Library("uvicorn", "uvicorn", LOOPS, EVERYWHERE),
    "hypercorn": Library("hypercorn", "hypercorn", LOOPS, EVERYWHERE),
    "cheroot": Library("cheroot", "cheroot", (THREADS,), EVERYWHERE),
    "websockets": Library("websockets", "websockets", (THREADS, *LOOPS), EVERYWHERE),
}


def cases(transport: str) -> list[tuple[str, str]]:
    """Return the keys of the libraries that are run on a transport, each with each way in which it is run."""
    windows = transport == "hyperv"
    return [
        (key, how)
        for key, library in LIBRARIES.items()
        if transport in library.transports
        for how in library.hows
        if not (windows and (how in NOT_ON_WINDOWS or (key, how) in NEW_ON_WINDOWS))
    ]


def missing(key: str, how: str) -> str | None:
    """Return the distribution that this case lacks here, or None."""
    library = LIBRARIES[key]
    if library.version() is None:
        return library.distribution
    if how in (UVLOOP, TRIO):
        try:
            importlib.metadata.version(how)
        except importlib.metadata.PackageNotFoundError:
            return how
    return None
