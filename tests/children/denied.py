"""socket() where seccomp denies it, as systemd's RestrictAddressFamilies and Docker's default profile do."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

from children import say

_SOCKET = {"x86_64": 41, "aarch64": 198}  # the number of the system call
_LOAD, _IS_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF: ld [k]; jeq k, if so, if not; ret k
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_NUMBER, _FAMILY = 0, 16  # offsets in struct seccomp_data


def reason(transport: str, code: str) -> None:
    """Print what an error says about a transport whose family is denied with an error."""
    import hvsock
    from hvsock._transports import transport_named

    deny(transport_named(transport).family, int(code))
    try:
        hvsock.create_connection(("loopback", 5000), transport=transport)
    except OSError as exc:
        say(exc, *exc.__notes__)


def deny(family: int, code: int) -> None:
    """Have socket() of a family fail with an error from now on, in this process."""
    _install([(_IS_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ERROR | code), (_RETURN, 0, 0, _ALLOW)])


def deny_all_families_but(*families: int) -> None:
    """Have socket() of all other families fail with EAFNOSUPPORT, as RestrictAddressFamilies does."""
    allowed = [(_IS_EQUAL, len(families) - n, 0, family) for n, family in enumerate(families)]
    _install([*allowed, (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)])


def _install(rules: list[tuple[int, int, int, int]]) -> None:
    """Have the rules decide about each socket(), with its family loaded, and allow everything else."""
    number = _SOCKET[platform.machine()]
    program = [(_LOAD, 0, 0, _NUMBER), (_IS_EQUAL, 1, 0, number), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _FAMILY)]
    program += rules
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in program))
    filter_ = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, 2, filter_, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
