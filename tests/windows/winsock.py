"""Winsock's own functions by ctypes, for what the socket module cannot say: ConnectEx, AcceptEx, WSASend."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import uuid
from collections.abc import Callable, Iterator
from ctypes import wintypes
from typing import Any

import pytest

SO_UPDATE_ACCEPT_CONTEXT = 0x700B
SO_UPDATE_CONNECT_CONTEXT = 0x7010
SIO_GET_EXTENSION_FUNCTION_POINTER = 0xC8000006
ERROR_IO_PENDING = 997
FIONREAD = 0x4004667F
POLLRDNORM, POLLWRNORM, POLLERR, POLLHUP = 0x100, 0x10, 1, 2
WSA_FLAG_REGISTERED_IO = 0x100
FILE_SKIP_COMPLETION_PORT_ON_SUCCESS, FILE_SKIP_SET_EVENT_ON_HANDLE = 1, 2
DUPLICATE_SAME_ACCESS = 2
ADDRESS_SIZE = 36

_winsock = ctypes.WinDLL("ws2_32", use_last_error=True)
_kernel = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel.CreateEventW.restype = wintypes.HANDLE
_kernel.GetCurrentProcess.restype = wintypes.HANDLE
Socket = ctypes.c_size_t
_winsock.WSASocketW.restype = _winsock.WSAAccept.restype = Socket


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


#: What the system may write to as long as an operation is pending, which a test that fails may leave.
_lent: list[object] = []


class Operation:
    """One overlapped operation, with an event of its own."""

    def __init__(self, owner: socket.socket, *, hide_from_port: bool = False) -> None:
        self.owner = owner
        self.event = _kernel.CreateEventW(None, True, False, None)
        # The lowest bit set keeps the completion off a completion port.
        self.overlapped = Overlapped(event=self.event | 1 if hide_from_port else self.event)
        _lent.append(self.overlapped)

    def start(self, function: Callable[..., object], *arguments: object) -> None:
        """Begin; an error that is known at once is raised, a pending operation is not an error."""
        done = function(*arguments, ctypes.byref(self.overlapped))
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


def _extension(owner: socket.socket, name: str, *types: Any, restype: Any = wintypes.BOOL) -> Any:
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
    assert pointer.value
    return ctypes.WINFUNCTYPE(restype, *types, use_last_error=True)(pointer.value)


def pack(vm: str, service: str) -> bytes:
    return struct.pack("<HH", socket.AF_HYPERV, 0) + uuid.UUID(vm).bytes_le + uuid.UUID(service).bytes_le


def unpack(data: bytes) -> tuple[uuid.UUID, uuid.UUID]:
    return uuid.UUID(bytes_le=data[4:20]), uuid.UUID(bytes_le=data[20:36])


def connect_ex(
    sock: socket.socket,
    vm: str,
    service: str,
    *,
    hide_from_port: bool = False,
    pointer_of: socket.socket | None = None,
) -> Operation:
    """ConnectEx, by default as this socket itself names it."""
    function = _extension(
        pointer_of or sock, "25a207b9-ddf3-4660-8ee9-76e58c74063e",
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
        _lent.append(self.buffer)
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

    def sockaddrs(self) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
        """The local and the remote address in the buffer, each with the length that is told of it."""
        function = _extension(
            self.owner, "b5367df2-cbac-11cf-95ca-00805f48a192",
            ctypes.c_void_p, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD,
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
            restype=None,
        )  # fmt: skip
        pointers = (ctypes.c_void_p(), ctypes.c_void_p())
        lengths = (ctypes.c_int(), ctypes.c_int())
        function(
            self.buffer, 0, self.slot, self.slot,
            ctypes.byref(pointers[0]), ctypes.byref(lengths[0]),
            ctypes.byref(pointers[1]), ctypes.byref(lengths[1]),
        )  # fmt: skip
        local, remote = (
            (length.value, ctypes.string_at(pointer.value, ADDRESS_SIZE) if pointer.value else b"")
            for pointer, length in zip(pointers, lengths, strict=True)
        )
        return local, remote

    def addresses(self, size: int = ADDRESS_SIZE) -> tuple[tuple[uuid.UUID, uuid.UUID], tuple[uuid.UUID, uuid.UUID]]:
        """The local and the remote address, out of the buffer, each said to be of this many bytes."""
        local, remote = self.sockaddrs()
        assert (local[0], remote[0]) == (size, size)
        return unpack(local[1]), unpack(remote[1])


def checked(failed: int) -> None:
    """Raise the last error of a Winsock function that says that it has failed."""
    if failed:
        raise ctypes.WinError(ctypes.get_last_error())


def own_name(sock: socket.socket, size: int) -> tuple[int, int]:
    """getsockname into a buffer of this many bytes: the error or 0, and the length that is told."""
    length = ctypes.c_int(size)
    failed = _winsock.getsockname(Socket(sock.fileno()), ctypes.create_string_buffer(size), ctypes.byref(length))
    return ctypes.get_last_error() if failed else 0, length.value


def wsa_connect(sock: socket.socket, vm: str, service: str) -> None:
    checked(_winsock.WSAConnect(Socket(sock.fileno()), pack(vm, service), ADDRESS_SIZE, None, None, None, None))


def wsa_accept(listener: socket.socket) -> socket.socket:
    handle = _winsock.WSAAccept(Socket(listener.fileno()), None, None, None, 0)
    checked(handle == ctypes.c_size_t(-1).value)
    return socket.socket(socket.AF_HYPERV, socket.SOCK_STREAM, socket.HV_PROTOCOL_RAW, handle)


def readable_bytes(sock: socket.socket) -> int:
    """FIONREAD."""
    size = wintypes.ULONG()
    checked(_winsock.ioctlsocket(Socket(sock.fileno()), FIONREAD, ctypes.byref(size)))
    return size.value


class PollEntry(ctypes.Structure):
    """A WSAPOLLFD."""

    _fields_ = (("socket", Socket), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def poll(sock: socket.socket, events: int, seconds: float) -> int:
    """WSAPoll: what has happened of these events, and errors."""
    entry = PollEntry(sock.fileno(), events)
    checked(_winsock.WSAPoll(ctypes.byref(entry), 1, int(seconds * 1000)) < 0)
    return int(entry.revents)


def duplicate_handle(sock: socket.socket) -> socket.socket:
    """DuplicateHandle, which asks nothing of Winsock."""
    process, copy = wintypes.HANDLE(_kernel.GetCurrentProcess()), wintypes.HANDLE()
    if not _kernel.DuplicateHandle(
        process, wintypes.HANDLE(sock.fileno()), process, ctypes.byref(copy), 0, False, DUPLICATE_SAME_ACCESS
    ):
        raise ctypes.WinError(ctypes.get_last_error())
    return socket.socket(socket.AF_HYPERV, socket.SOCK_STREAM, socket.HV_PROTOCOL_RAW, copy.value)


def skip_completion_port(sock: socket.socket) -> None:
    """What is done at once is not told to the completion port, and sets no event."""
    modes = FILE_SKIP_COMPLETION_PORT_ON_SUCCESS | FILE_SKIP_SET_EVENT_ON_HANDLE
    if not _kernel.SetFileCompletionNotificationModes(wintypes.HANDLE(sock.fileno()), ctypes.c_ubyte(modes)):
        raise ctypes.WinError(ctypes.get_last_error())


class FileOperation(Operation):
    """An overlapped operation on the handle as on a file's: ``name`` is ReadFile or WriteFile."""

    def __init__(self, sock: socket.socket, name: str, data: ctypes.Array[ctypes.c_char]) -> None:
        super().__init__(sock)
        self.data = data
        self.start(getattr(_kernel, name), wintypes.HANDLE(sock.fileno()), data, len(data), None)


def transmit_file(sock: socket.socket, file: int) -> Operation:
    """TransmitFile of the whole file that this handle is of."""
    function = _extension(
        sock, "b5367df0-cbac-11cf-95ca-00805f48a192",
        Socket, wintypes.HANDLE, wintypes.DWORD, wintypes.DWORD, ctypes.c_void_p, ctypes.c_void_p, wintypes.DWORD,
    )  # fmt: skip
    operation = Operation(sock)
    done = function(Socket(sock.fileno()), file, 0, 0, ctypes.byref(operation.overlapped), None, 0)
    checked(not done and ctypes.get_last_error() != ERROR_IO_PENDING)
    return operation


def disconnect_ex(sock: socket.socket) -> None:
    function = _extension(
        sock, "7fda2e11-8630-436f-a031-f536a6eec157", Socket, ctypes.c_void_p, wintypes.DWORD, wintypes.DWORD
    )
    checked(not function(Socket(sock.fileno()), None, 0, 0))


def registered_io_socket() -> socket.socket:
    """A new socket with WSA_FLAG_REGISTERED_IO."""
    handle = _winsock.WSASocketW(
        socket.AF_HYPERV, socket.SOCK_STREAM, socket.HV_PROTOCOL_RAW, None, 0, WSA_FLAG_REGISTERED_IO
    )
    checked(handle == ctypes.c_size_t(-1).value)
    return socket.socket(socket.AF_HYPERV, socket.SOCK_STREAM, socket.HV_PROTOCOL_RAW, handle)


@contextlib.contextmanager
def refused(code: int) -> Iterator[None]:
    """Expect an OSError with this Winsock error."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.winerror == code, f"not {code}: {caught.value}"
