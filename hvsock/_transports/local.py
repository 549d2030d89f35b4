"""A stand-in for a hypervisor on one machine: Hyper-V addresses over ``AF_UNIX``, for development and tests.

Each process is the host, or the VM whose GUID stands in HVSOCK_LOCAL_VM. The rules are Hyper-V's: a guest reaches its
parent and itself, the host reaches itself and every guest by id, and guests do not reach each other.

Every socket has a name in a private directory, ``PARTITION.VM.SERVICE``: the partition that owns it, the VM id that it
is bound to, and the service id. A client's name is removed as soon as the kernel has it, so the directory shows only
listeners. The names contain the whole address, and the kernel reports them to both ends.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from hvsock._addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    HV_GUID_ZERO,
    NO_VM,
    SEVERAL_VMS,
    HyperVAddress,
    as_vm_id,
    port_from_service_id,
    service_id_from_port,
)
from hvsock._errors import os_error
from hvsock._hvsock import SUN_PATH_SIZE, Socket
from hvsock._transports.base import Transport

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl  # here, and not at the first bind(), when there may be no descriptor left to import it with

__all__ = ["LocalTransport", "bind_path", "directory", "partition"]

_HOST: Final = "host"
_NAME_OF: Final = {
    HV_GUID_WILDCARD: "wildcard",
    HV_GUID_CHILDREN: "children",
    HV_GUID_LOOPBACK: "loopback",
    HV_GUID_PARENT: "parent",
}
_ID_OF: Final = {name: vm_id for vm_id, name in _NAME_OF.items()}
_CHOICE: Final = "set HVSOCK_LOCAL_DIR to a directory that you can use, the same for both ends"
_PATIENCE: Final = 5.0  # seconds to wait for the lock, which another user could keep in a shared directory
_PAUSE: Final = 0.005  # seconds between two attempts to get it
_NOWHERE: Final = HyperVAddress(HV_GUID_ZERO, HV_GUID_ZERO)  # the address of a socket that has no name of ours

_CAUSES: Final = {
    errno.EADDRINUSE: "another socket listens on this address",
    errno.EADDRNOTAVAIL: "wildcard and children can be bound, not connected to; the host has no parent to bind to",
    errno.ECONNREFUSED: "nothing listens there, or only with a VM id that does not let this process in",
    errno.ETIMEDOUT: "the listener's backlog is full: it accepts more slowly than clients come",
    errno.ENETUNREACH: "the host has no parent: set HVSOCK_LOCAL_VM=<GUID> to play a guest, or use loopback; "
    "a guest reaches only its parent and itself",
}

_REFUSALS: Final = {
    errno.EAFNOSUPPORT: (
        "This kernel has no AF_UNIX, or a filter denies it to this process",
        "a unit of systemd needs AF_UNIX in RestrictAddressFamilies=",
    ),
    errno.EPERM: ("A seccomp filter denies AF_UNIX to this process", "the profile of its container has to permit it"),
    errno.EACCES: (
        "A security policy denies AF_UNIX to this process",
        "journalctl -k and ausearch -m avc show what SELinux or AppArmor has denied",
    ),
}


class LocalTransport(Transport):
    """``AF_UNIX`` under a private directory, by the rules of VM ids."""

    name = "local"
    family = getattr(socket, "AF_UNIX", -2)
    unsupported = None if hasattr(socket, "AF_UNIX") else "Python has no AF_UNIX on this platform."
    causes = _CAUSES
    refusals = _REFUSALS

    def bind(self, sock: Socket, address: HyperVAddress) -> Callable[[], None]:
        """Bind, replacing the name of a listener that was killed; its last owner's close() removes it."""
        me = partition()
        unbindable = {HV_GUID_BROADCAST, HV_GUID_SILOHOST} | ({HV_GUID_PARENT} if me is None else set())
        if address.vm_id in unbindable:
            raise os_error(errno.EADDRNOTAVAIL)
        return bind_path(sock, _path(_made_directory(), me, address))

    def adopt(self, sock: Socket) -> Callable[[], None] | None:
        """Have a listener that was dup()ed or inherited remove its name, as the one does that has bound it."""
        path = Socket.getsockname(sock)
        is_listener = Socket.getsockopt(sock, socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return functools.partial(_remove, path) if is_listener and _parse(path) is not None else None

    def connect(self, sock: Socket, address: HyperVAddress) -> None:
        """Connect to the listener whose VM id is the most specific one that lets this process in."""
        me = partition()
        target, seen_as = _route(me, address.vm_id)
        where = _made_directory()
        if Socket.getsockname(sock) == "":
            vm_id = HV_GUID_CHILDREN if target == me else HV_GUID_WILDCARD
            own = _path(where, me, HyperVAddress(vm_id, uuid4()))
            Socket.bind(sock, own)
            os.unlink(own)
        for vm_id in seen_as:
            path = _path(where, target, HyperVAddress(vm_id, address.service_id))
            try:
                Socket.connect(sock, path)
            except (FileNotFoundError, ConnectionRefusedError):
                continue
            return
        raise os_error(errno.ECONNREFUSED)

    def local_address(self, native: Any) -> HyperVAddress:
        """Translate the path: what was bound."""
        name = _parse(native)
        return _NOWHERE if name is None else name[1]

    def peer_address(self, native: Any) -> HyperVAddress:
        """Translate the path: the peer's partition as this one sees it, and its service."""
        name = _parse(native)
        if name is None:
            return _NOWHERE
        owner, address = name
        vm_id = HV_GUID_LOOPBACK if owner == partition() else HV_GUID_PARENT if owner is None else owner
        return HyperVAddress(vm_id, address.service_id)


def bind_path(sock: Socket, path: str) -> Callable[[], None]:
    """Bind to a path, replacing the name of a listener that was killed.

    Return a function that removes the name, to be called after the socket was closed: it has an effect only once no
    process has the socket any more.

    Raises:
        OSError: another socket has this name, or as the system says.
    """
    # The lock is for the first attempt too: bind() creates the name before the socket is reachable, and another process
    # would think it stale and unlink it.
    with _locked(os.path.dirname(path) or os.curdir):
        try:
            Socket.bind(sock, path)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or _is_live(path):
                raise
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            Socket.bind(sock, path)
    return functools.partial(_remove, path)


def partition() -> UUID | None:
    """Return the id of the VM that this process plays, from HVSOCK_LOCAL_VM; None for the host.

    Raises:
        ValueError: HVSOCK_LOCAL_VM is not the GUID of a VM.
    """
    text = os.environ.get("HVSOCK_LOCAL_VM")
    if not text:
        return None
    try:
        vm_id = as_vm_id(text)
    except ValueError:
        vm_id = HV_GUID_ZERO
    if vm_id in NO_VM:
        raise ValueError(f"HVSOCK_LOCAL_VM must be the GUID of a VM, not {text!r}")
    return vm_id


def directory() -> str:
    """Return the directory of the names. It need not exist yet: the first bind or connect makes it, with mode 0700.

    It is HVSOCK_LOCAL_DIR, else ``$XDG_RUNTIME_DIR/hvsock``, else ``hvsock-<uid>`` in /tmp.

    Raises:
        PermissionError: it belongs to another user, other users may write to it, or any user may replace it.
        NotADirectoryError: it is something else.
        OSError: it cannot be made.
    """
    chosen_by, path = _chosen_directory()
    try:
        _check_directory(chosen_by, path)
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if not os.access(parent, os.W_OK | os.X_OK):
            code = errno.EACCES if os.path.exists(parent) else errno.ENOENT
            raise _cannot_make(chosen_by, path, code) from None
    return path


def _made_directory() -> str:
    chosen_by, path = _chosen_directory()
    try:
        _check_directory(chosen_by, path)
    except FileNotFoundError:
        try:
            os.mkdir(path, mode=0o700)
        except FileExistsError:
            pass  # another process was faster, perhaps another user's
        except OSError as exc:
            raise _cannot_make(chosen_by, path, exc.errno or errno.ENOENT) from None
        _check_directory(chosen_by, path)
    return path


def _cannot_make(chosen_by: str, path: str, code: int) -> OSError:
    return OSError(code, f"{chosen_by}: cannot make {path}: {os.strerror(code)}; {_CHOICE}")


def _chosen_directory() -> tuple[str, str]:
    """Return what has chosen the directory, for errors, and its path."""
    if sys.platform == "win32":
        raise NotImplementedError(LocalTransport.unsupported)
    chosen = os.environ.get("HVSOCK_LOCAL_DIR")
    chosen_by = "HVSOCK_LOCAL_DIR"
    if not chosen:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        chosen_by = "XDG_RUNTIME_DIR" if runtime else "transport local"
        # Not TMPDIR's, which could differ between two ends.
        chosen = f"{runtime}/hvsock" if runtime else f"/tmp/hvsock-{os.getuid()}"
    return chosen_by, os.path.abspath(chosen)  # without a slash at its end, which would follow a link


def _check_directory(chosen_by: str, path: str) -> None:
    if sys.platform == "win32":
        raise NotImplementedError(LocalTransport.unsupported)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise
    except OSError as exc:  # XDG_RUNTIME_DIR is another user's, for example, after su
        raise OSError(exc.errno, f"{chosen_by}: cannot use {path}: {exc.strerror}; {_CHOICE}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(
            errno.ENOTDIR,
            "the directory of the local transport is something else; choose another HVSOCK_LOCAL_DIR",
            path,
        )
    if status.st_uid != os.geteuid():
        raise PermissionError(
            errno.EPERM,
            "the directory of the local transport belongs to another user; choose another HVSOCK_LOCAL_DIR",
            path,
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            errno.EPERM, "other users may write to the directory of the local transport; chmod go-w prevents it", path
        )
    _check_parents(path, (status.st_dev, status.st_ino))


@functools.lru_cache(maxsize=1)  # once for an inode: a directory that replaces this one has another
def _check_parents(path: str, _inode: tuple[int, int]) -> None:
    for parent in Path(path).resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            reason = (
                "any user may replace the directory of the local transport: all may write to "
                f"{parent}, which has no sticky bit; choose another HVSOCK_LOCAL_DIR"
            )
            raise PermissionError(errno.EPERM, reason, path)


def _route(me: UUID | None, vm_id: UUID) -> tuple[UUID | None, tuple[UUID, ...]]:
    """Return the partition that `me` means by `vm_id`, and the ids that let `me` in there, most specific first."""
    if vm_id in SEVERAL_VMS:
        raise os_error(errno.EADDRNOTAVAIL)
    if vm_id == HV_GUID_LOOPBACK:
        return me, (HV_GUID_LOOPBACK, HV_GUID_WILDCARD)
    if vm_id == HV_GUID_PARENT and me is not None:
        return None, (me, HV_GUID_CHILDREN, HV_GUID_WILDCARD)
    if vm_id not in NO_VM and me is None:
        return vm_id, (HV_GUID_PARENT, HV_GUID_WILDCARD)
    raise os_error(errno.ENETUNREACH)


# A GUID is 26 characters of base32, which survive a file system that ignores case: two in hexadecimal would leave no
# room for the directory in the 108 bytes of a sun_path. Ports and well-known ids are shorter, so names are unambiguous.


def _write_guid(guid: UUID) -> str:
    return base64.b32encode(guid.bytes).decode().rstrip("=").lower()


def _read_guid(text: str) -> UUID:
    return UUID(bytes=base64.b32decode(text.upper() + "======"))


# Names are strings: on CPython 3.12, what a pathlib.Path has parsed stays in memory for ever.


def _path(where: str, owner: UUID | None, address: HyperVAddress) -> str:
    port = port_from_service_id(address.service_id)
    parts = (
        _HOST if owner is None else _write_guid(owner),
        _NAME_OF.get(address.vm_id) or _write_guid(address.vm_id),
        _write_guid(address.service_id) if port is None else str(port),
    )
    path = f"{where}/{'.'.join(parts)}"
    if len(os.fsencode(path)) >= SUN_PATH_SIZE:
        raise OSError(
            errno.ENAMETOOLONG,
            f"the directory of the local transport is too long: names in it must stay below {SUN_PATH_SIZE} bytes; "
            "choose a shorter HVSOCK_LOCAL_DIR",
            path,
        )
    return path


@functools.lru_cache(maxsize=128)  # the addresses of an accepted socket are looked up more than once
def _parse(native: Any) -> tuple[UUID | None, HyperVAddress] | None:
    """Read a path: its owner and address; None if it is not one of our names."""
    parts = os.path.basename(os.fsdecode(native)).split(".")
    if len(parts) != 3:
        return None
    owner, vm, service = parts
    try:
        vm_id = _ID_OF.get(vm) or _read_guid(vm)
        service_id = service_id_from_port(int(service)) if service.isdecimal() else _read_guid(service)
        return None if owner == _HOST else _read_guid(owner), HyperVAddress(vm_id, service_id)
    except ValueError:
        return None


def _is_live(path: str) -> bool:
    """Whether a socket in any process still has this name; its listener does not notice the question.

    Connecting with another type of socket fails with EPROTOTYPE only if there is a socket.
    """
    if sys.platform == "win32":
        raise NotImplementedError(LocalTransport.unsupported)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep other processes from binding names in the directory during the block."""
    if sys.platform == "win32":
        raise NotImplementedError(LocalTransport.unsupported)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _PATIENCE
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, "another process keeps the directory of the local transport locked", path
                )
            time.sleep(_PAUSE)
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)  # close() alone would leave the lock to a child that was forked meanwhile
        os.close(lock)


def _remove(path: str) -> None:
    """Remove a name, unless a socket has it: the one that was closed, in another object or process, or a newer one."""
    # What stays is replaced by the next bind().
    with contextlib.suppress(OSError), _locked(os.path.dirname(path) or os.curdir):
        if not _is_live(path):
            os.unlink(path)
