"""Winsock's own functions by ctypes, for what the socket module cannot say: ConnectEx, AcceptEx, WSASend."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import uuid
from collections.abc import Iterator
from ctypes import wintypes

import pytest

SO_UPDATE_ACCEPT_CONTEXT = 0x700B
SO_UPDATE_CONNECT_CONTEXT = 0x7010
SIO_GET_EXTENSION_FUNCTION_POINTER = 0xC8000006
ERROR_IO_PENDING = 997
ADDRESS_SIZE = 36

_winsock = ctypes.WinDLL("ws2_32", use_last_error=True)
_kernel = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel.CreateEventW.restype = wintypes.HANDLE
Socket = ctypes.c_size_t


class Overlapped(ctypes.Structure):
    _fields_ = (
        ("internal", ctypes.c_size_t),
        ("internal_high", ctypes.c_size_t),
        ("offset", ctypes.c_uint64),
        ("event", wintypes.HANDLE),
    )


class Buffer(ctypes.Structure):
    """A WSABUF."""

    _fields_ = (("length", wintypes.ULONG), ("data", ctypes.c_char_p))


class Operation:
    """One overlapped operation, with an event of its own."""

    def __init__(self, owner: socket.socket, *, hide_from_port: bool = False) -> None:
        self.owner = owner
        self.event = _kernel.CreateEventW(None, True, False, None)
        # The lowest bit set keeps the completion off a completion port.
        self.overlapped = Overlapped(event=self.event | 1 if hide_from_port else self.event)

    def start(self, function: object, *arguments: object) -> None:
        """Begin; an error that is known at once is raised, a pending operation is not an error."""
        done = function(*arguments, ctypes.byref(self.overlapped))  # type: ignore[operator]
        if not done and ctypes.get_last_error() != ERROR_IO_PENDING:
            raise ctypes.WinError(ctypes.get_last_error())

    def wait(self, seconds: float) -> bool:
        return bool(_kernel.WaitForSingleObject(wintypes.HANDLE(self.event), int(seconds * 1000)) == 0)

    def cancel(self) -> bool:
        return bool(_kernel.CancelIoEx(wintypes.HANDLE(self.owner.fileno()), ctypes.byref(self.overlapped)))

    def result(self, *, wait: bool = False) -> int:
        """The number of bytes; raises what Winsock says the operation failed with. ``told`` has it in both cases."""
        size, flags = wintypes.DWORD(), wintypes.DWORD()
        done = _winsock.WSAGetOverlappedResult(
            Socket(self.owner.fileno()),
            ctypes.byref(self.overlapped),
            ctypes.byref(size),
            wait,
            ctypes.byref(flags),
        )
        self.told = size.value
        if not done:
            raise ctypes.WinError(ctypes.get_last_error())
        return self.told


def _extension(owner: socket.socket, name: str, *types: object, restype: object = wintypes.BOOL) -> object:
    wanted = (ctypes.c_ubyte * 16).from_buffer_copy(uuid.UUID(name).bytes_le)
    pointer, size = ctypes.c_void_p(), wintypes.DWORD()
    if _winsock.WSAIoctl(
        Socket(owner.fileno()),
        wintypes.DWORD(SIO_GET_EXTENSION_FUNCTION_POINTER),
        ctypes.byref(wanted),
        16,
        ctypes.byref(pointer),
        ctypes.sizeof(pointer),
        ctypes.byref(size),
        None,
        None,
    ):
        raise ctypes.WinError(ctypes.get_last_error())
    return ctypes.WINFUNCTYPE(restype, *types, use_last_error=True)(pointer.value)


def pack(vm: str, service: str) -> bytes:
    return struct.pack("<HH", socket.AF_HYPERV, 0) + uuid.UUID(vm).bytes_le + uuid.UUID(service).bytes_le


def unpack(data: bytes) -> tuple[uuid.UUID, uuid.UUID]:
    return uuid.UUID(bytes_le=data[4:20]), uuid.UUID(bytes_le=data[20:36])


def connect_ex(sock: socket.socket, vm: str, service: str, *, hide_from_port: bool = False) -> Operation:
    function = _extension(
        sock, "25a207b9-ddf3-4660-8ee9-76e58c74063e",
        Socket, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD, ctypes.c_void_p, ctypes.c_void_p,
    )  # fmt: skip
    operation = Operation(sock, hide_from_port=hide_from_port)
    operation.start(function, Socket(sock.fileno()), pack(vm, service), ADDRESS_SIZE, None, 0, None)
    return operation


def _send(sock: socket.socket, buffers: ctypes.Array[Buffer], overlapped: object) -> int:
    sent = wintypes.DWORD()
    failed = _winsock.WSASend(Socket(sock.fileno()), buffers, len(buffers), ctypes.byref(sent), 0, overlapped, None)
    if failed and ctypes.get_last_error() != ERROR_IO_PENDING:
        raise ctypes.WinError(ctypes.get_last_error())
    return sent.value


def _gather(parts: tuple[bytes, ...]) -> ctypes.Array[Buffer]:
    return (Buffer * len(parts))(*(Buffer(len(part), part) for part in parts))


def send(sock: socket.socket, *parts: bytes) -> int:
    """WSASend of these parts, not overlapped; returns the number of bytes."""
    return _send(sock, _gather(parts), None)


class Send(Operation):
    """WSASend of these parts, overlapped."""

    def __init__(self, sock: socket.socket, *parts: bytes) -> None:
        super().__init__(sock)
        self.buffers = _gather(parts)
        _send(sock, self.buffers, ctypes.byref(self.overlapped))


class Accept(Operation):
    """AcceptEx into a socket of the caller's."""

    def __init__(self, listener: socket.socket, accepted: socket.socket, slot: int = ADDRESS_SIZE + 16) -> None:
        super().__init__(listener)
        self.slot = slot
        self.accepted = accepted
        self.buffer = ctypes.create_string_buffer(2 * slot)
        self.received = wintypes.DWORD()
        function = _extension(
            listener, "b5367df1-cbac-11cf-95ca-00805f48a192",
            Socket, Socket, ctypes.c_void_p, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD,
            ctypes.c_void_p, ctypes.c_void_p,
        )  # fmt: skip
        self.start(
            function, Socket(listener.fileno()), Socket(accepted.fileno()), self.buffer, 0, slot, slot,
            ctypes.byref(self.received),
        )  # fmt: skip

    def update_context(self) -> None:
        self.accepted.setsockopt(socket.SOL_SOCKET, SO_UPDATE_ACCEPT_CONTEXT, struct.pack("@P", self.owner.fileno()))

    def addresses(self, size: int = ADDRESS_SIZE) -> tuple[tuple[uuid.UUID, uuid.UUID], tuple[uuid.UUID, uuid.UUID]]:
        """The local and the remote address, out of the buffer, each said to be of this many bytes."""
        function = _extension(
            self.owner, "b5367df2-cbac-11cf-95ca-00805f48a192",
            ctypes.c_void_p, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD,
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
            restype=None,
        )  # fmt: skip
        pointers = (ctypes.c_void_p(), ctypes.c_void_p())
        lengths = (ctypes.c_int(), ctypes.c_int())
        function(  # type: ignore[operator]
            self.buffer, 0, self.slot, self.slot,
            ctypes.byref(pointers[0]), ctypes.byref(lengths[0]),
            ctypes.byref(pointers[1]), ctypes.byref(lengths[1]),
        )  # fmt: skip
        assert [length.value for length in lengths] == [size, size]
        local, remote = (unpack(ctypes.string_at(pointer.value, ADDRESS_SIZE)) for pointer in pointers)
        return local, remote


@contextlib.contextmanager
def refused(code: int) -> Iterator[None]:
    """Expect an OSError with this Winsock error."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.winerror == code, f"not {code}: {caught.value}"
