"""`HyperVSocket`: a `socket.socket` whose addresses are Hyper-V addresses, and functions that make one."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Callable
from types import EllipsisType
from typing import Any, Final, Self, SupportsIndex, cast

from hvsock._addresses import (
    HV_GUID_ZERO,
    Address,
    HyperVAddress,
    as_address,
)
from hvsock._errors import code_of, is_shortage
from hvsock._hvsock import Socket, own_data_path
from hvsock._retries import Retries
from hvsock._transports import (
    CARRIERS,
    Option,
    Transport,
    default_transport,
    transport_named,
    transport_of_family,
    transports,
)

__all__ = ["HyperVSocket", "create_connection", "create_server"]

_BLOCK: Final = 128 << 10  # bytes that sendfile() reads at a time
# Every system lowers it to its own limit, such as Linux' net.core.somaxconn; the constant of the socket module is that
# of the machine that Python was built on. On AF_VSOCK a full backlog resets clients, where TCP makes them wait.
_AS_MANY_AS_ALLOWED: Final = 0x7FFFFFFF
_TYPE_FLAGS: Final = getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0)


@own_data_path
class HyperVSocket(Socket):
    """A stream socket between a host and its virtual machines.

    It is a `socket.socket`, and every method that is not described here is that class's. An address argument is any
    (vm, service) pair that `as_address` takes; an address that comes back is a `HyperVAddress`.

    Without arguments the socket uses `default_transport()`. `transport` names another one: ``"hyperv"``, ``"vsock"`` or
    ``"local"``. With `fileno`, the socket takes over an open one, and its family determines the transport; if
    `transport` is given too, the handle must be a stream of that family. A socket of any other family behaves as a
    `socket.socket` with this class's data path.

    Timeouts are `socket.settimeout`'s and cover the whole call; a timeout of connect() also replaces the system's own
    limit of about 2 s. A call releases the GIL, whether it has to wait or not.

    close() wakes the calls that other threads are blocked in, which raise `OSError`; on POSIX it uses the signal
    SIGURG. It waits for them to return, at most 1 s; the handle's number is not reused before that. If calls were
    blocked, the connection is shut down for other owners of the handle too. `recvfrom`, `recvmsg` and `sendto` in all
    their forms are inherited unchanged and are not woken.

    Only settimeout() and setblocking() change the mode of the handle, blocking or non-blocking. On POSIX the mode is as
    for `socket.socket`. On Windows the handle is non-blocking, whatever the timeout, and detach() gives it the mode
    that fits the timeout. A handle taken over with `fileno` keeps its mode until its timeout is set.

    A process of `multiprocessing` can be given a socket of exactly this class as it can be given a `socket.socket`: the
    options of Windows and `busy_poll` go with it, the timeout does not. Any other pickling is a `TypeError`.

    Raises:
        ValueError: an unknown transport, a type other than SOCK_STREAM, or a handle that `transport` cannot use or that
            was made without WSA_FLAG_OVERLAPPED, on Windows. The handle stays open and still belongs to the caller.
        OSError: the transport is not available here; a note says how to get one.
    """

    __slots__ = ()  # accept() does not call __init__: all state is in C

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # noqa: A002 - socket.socket's own name for it
        proto: int = -1,
        fileno: int | None = None,
        *,
        transport: str | None = None,
    ) -> None:
        chosen = _choose(family, fileno, transport)
        if chosen is not None and fileno is None:
            if type not in (-1, socket.SOCK_STREAM) and type & ~_TYPE_FLAGS != socket.SOCK_STREAM:
                raise ValueError(f"Hyper-V sockets are streams: the type must be SOCK_STREAM, not {type!r}")
            family, proto = chosen.family, chosen.proto if proto == -1 else proto
        try:
            if chosen is not None and chosen.unsupported is not None:
                raise OSError(errno.EAFNOSUPPORT, chosen.unsupported)
            super().__init__(family, type, proto, fileno)
        except OSError as exc:
            if chosen is not None and (reason := chosen.reason) is not None:
                if chosen.unsupported is None:
                    exc.add_note(f"transport {chosen.name} is not available: {reason}")
                if chosen.name != "local" and not is_shortage(exc):
                    exc.add_note("to develop without a hypervisor, on this machine only: HVSOCK_TRANSPORT=local")
            raise
        if chosen is not None and transport is not None and fileno is not None:
            self._check_handle(chosen)
        if fileno is not None and self._transport is not None:
            self._at_close(self._transport.adopt(self))

    def _check_handle(self, chosen: Transport) -> None:
        """Leave the handle open and raise ValueError unless it is a stream of the transport's family."""
        family, kind = self.family, self.type
        if family != chosen.family or kind != socket.SOCK_STREAM:
            handle = super().detach()
            raise ValueError(
                f"handle {handle} is of {_name(family)}, {_name(kind)}, and transport {chosen.name} is of family "
                f"{chosen.family}, SOCK_STREAM; omit transport to take the handle over as it is"
            )

    @property
    def _transport(self) -> Transport | None:
        return CARRIERS.get(self._family)

    @property
    def proto(self) -> int:
        """The protocol number, which CPython on Windows forgets on accepted and other adopted handles."""
        return super().proto if self._transport is None else self._transport.proto

    def bind(self, address: Any, /) -> None:
        """Bind to a service, for the partitions that the VM id names: wildcard, children, loopback, parent, or one id.

        Raises:
            OSError: as the system says. A duplicate is refused here, or by listen() on transport hyperv.
            ValueError: the transport cannot express the address.
        """
        if self._transport is None:
            return super().bind(address)
        to = as_address(address)
        try:
            self._at_close(self._transport.bind(self, to))
        except OSError as exc:
            self._note(exc, "bind", local=to)
            raise
        return None

    def _at_close(self, call: Callable[[], object] | None) -> None:
        """Have `call` made once, after the handle was closed; None leaves what there is.

        A socket has one such call: of its transport if it was bound or adopted, of its server if it was accepted.
        """
        if call is not None:
            self._after_close(call)

    def listen(self, backlog: int | None = None, /) -> None:
        """Start accepting connections; up to `backlog` may wait, by default as many as the system allows."""
        if backlog is None and self._transport is not None:
            backlog = _AS_MANY_AS_ALLOWED
        try:
            super().listen(*(() if backlog is None else (backlog,)))
        except OSError as exc:
            self._note(exc, "listen")
            raise

    def connect(self, address: Any, /) -> None:
        """Connect to a service: of the parent, of this partition (loopback), or of the VM with that id.

        Blocks for the timeout at most. After an error the socket can only be closed.

        Raises:
            TimeoutError: no answer within the timeout.
            OSError: as the system says.
            ValueError: the transport cannot express the address.
        """
        transport = self._transport
        if transport is None:
            return super().connect(address)
        to = as_address(address)
        try:
            transport.connect(self, to)
        except OSError as exc:
            self._note(exc, "connect", peer=to)
            raise
        return None

    def connect_ex(self, address: Any, /) -> int:
        """Connect, but return the system's error code instead of raising it; 0 is success."""
        if self._transport is None:
            return super().connect_ex(address)
        try:
            self.connect(address)
        except OSError as exc:
            code = code_of(exc)
            return errno.EWOULDBLOCK if code is None else code  # none: the timeout's own error
        return 0

    def accept(self) -> tuple[Self, Any]:
        """Wait for a connection within the timeout; return its socket and the peer's address.

        The socket is of this class. If that is a subclass whose constructor does not take
        ``(family, type, proto, fileno=handle)``, as dup() passes it, it is a plain `HyperVSocket`. The options of this
        socket hold for the new one too.

        The handle's mode stays as it is. Without a timeout, accept() waits also if the handle is non-blocking, where
        `socket.socket` raises BlockingIOError.
        """
        try:
            sock, native = super()._accept_plain(HyperVSocket)
        except OSError as exc:
            self._note(exc, "accept")
            raise
        transport = CARRIERS.get(self._family)
        return sock, native if transport is None else transport.peer_address(native)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file, opened in binary mode, up to `count` bytes of it; return how many were sent.

        A regular file is sent from `offset`, wherever its position is. Anything else (a file in memory, a pipe, every
        file on Windows) is sent from its position if `offset` is 0. Both are as `socket.socket` does it.

        It uses send(), on every platform: the system's own sendfile would continue on a handle that has been closed.
        The timeout applies to each send(). The file's position ends up behind what was sent, after an error too.

        Raises:
            ValueError: the file is in text mode, `count` is not above 0, or the socket is non-blocking or not a stream.
        """
        if "b" not in getattr(file, "mode", "b"):
            raise ValueError("file should be opened in binary mode")
        if self.type != socket.SOCK_STREAM:
            raise ValueError("only SOCK_STREAM type sockets are supported")
        if count is not None and not isinstance(count, int):
            raise TypeError(f"count must be a positive integer (got {count!r})")
        if count is not None and count <= 0:
            raise ValueError(f"count must be a positive integer (got {count!r})")
        if self.gettimeout() == 0.0:
            raise ValueError("non-blocking sockets are not supported")
        by_offset = _is_read_by_offset(file)
        if offset and not by_offset:
            file.seek(offset)
        start = offset if by_offset or offset else _position(file)
        sent = 0
        try:
            while size := _BLOCK if count is None else min(_BLOCK, count - sent):
                data = memoryview(_read_at(file, size, offset + sent) if by_offset else file.read(size))
                if not data:
                    break
                while data:
                    step = self.send(data)
                    sent += step
                    data = data[step:]
            return sent
        finally:
            # Reading by offset does not move the position: only what was sent does.
            if start is not None and (sent or not by_offset) and hasattr(file, "seek"):
                file.seek(start + sent)

    def setsockopt(self, level: int, optname: int, /, *value: Any) -> None:
        """Set an option of the system.

        TCP_NODELAY, which servers set on every connection, is accepted and ignored on a socket with Hyper-V addresses:
        Hyper-V sockets have no such option and delay nothing.
        """
        try:
            super().setsockopt(level, optname, *value)
        except OSError as exc:
            if not self._never_delays(level, optname, exc):
                raise

    def getsockopt(self, level: int, optname: int, /, *buflen: int) -> Any:
        """Return an option of the system; TCP_NODELAY is 1 on a socket with Hyper-V addresses, whatever was set."""
        try:
            return super().getsockopt(level, optname, *buflen)
        except OSError as exc:
            if not self._never_delays(level, optname, exc):
                raise
        return (1).to_bytes(4, sys.byteorder)[: buflen[0]] if buflen and buflen[0] else 1

    def _never_delays(self, level: int, optname: int, exc: OSError) -> bool:
        """Return whether an error is only that Hyper-V sockets have no TCP_NODELAY.

        The systems use different error numbers for that; an error without a number is about the arguments.
        """
        is_option = (level, optname) == (socket.IPPROTO_TCP, socket.TCP_NODELAY)
        return is_option and self._transport is not None and exc.errno not in (None, errno.EBADF, errno.ENOTSOCK)

    def getsockname(self) -> Any:
        """Return this socket's address.

        A client's service id is made by the system. The VM id of an accepted socket is not reliable.
        """
        native = super().getsockname()
        return native if self._transport is None else self._transport.local_address(native)

    def getpeername(self) -> Any:
        """Return the peer's address: the one connected to or, on an accepted socket, the client's."""
        native = super().getpeername()
        return native if self._transport is None else self._transport.peer_address(native)

    def dup(self) -> Self:
        """Duplicate the socket; the copy is not inheritable."""
        copy = super().dup()
        copy.busy_poll = self.busy_poll
        copy._options = self._options
        return copy

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> str | tuple[Any, ...]:
        """Reduce for the picklers of `multiprocessing`, which send the handle along; refuse all others.

        `multiprocessing` finds the reducer of socket.socket in a register, and ours cannot be entered there before that
        module is imported. Its picklers are recognized by their caller instead, which is always that module.
        """
        reduction = sys.modules.get("multiprocessing.reduction")
        caller = sys._getframe(1)  # noqa: SLF001 - documented, for CPython
        if reduction is None or type(self) is not HyperVSocket or caller.f_globals is not vars(reduction):
            return super().__reduce_ex__(protocol)
        plain = reduction._reduce_socket(self)  # noqa: SLF001 - what the register has for socket.socket
        return _rebuilt, (plain, self._options, self.busy_poll)

    @property
    def connected_suspend(self) -> bool:
        """Whether the connection survives a pause of the VM (HVSOCKET_CONNECTED_SUSPEND), False unless set.

        Only on transport hyperv. Set it before connect() or listen(); accepted sockets inherit it. Reading gives the
        value that was set: the system's answer is not reliable on a connected socket.
        """
        return bool(self._options & Option.CONNECTED_SUSPEND)

    @connected_suspend.setter
    def connected_suspend(self, value: bool) -> None:
        self._set_option(Option.CONNECTED_SUSPEND, value)

    @property
    def high_vtl(self) -> bool:
        """Whether connect() goes to VTL2 of the guest (HVSOCKET_HIGH_VTL), False unless set; hosts only.

        As with `connected_suspend`, it is the value that was set.
        """
        return bool(self._options & Option.HIGH_VTL)

    @high_vtl.setter
    def high_vtl(self, value: bool) -> None:
        self._set_option(Option.HIGH_VTL, value)

    @property
    def container_passthru(self) -> bool:
        """Whether connect() passes through the utility VM into the container (HVSOCKET_CONTAINER_PASSTHRU).

        False unless set; newer Windows SDKs no longer name this option. As with `connected_suspend`, it is the value
        that was set.
        """
        return bool(self._options & Option.CONTAINER_PASSTHRU)

    @container_passthru.setter
    def container_passthru(self, value: bool) -> None:
        self._set_option(Option.CONTAINER_PASSTHRU, value)

    def _set_option(self, option: Option, value: bool) -> None:
        number = None if self._transport is None else self._transport.options.get(option)
        if number is None:
            name = "this family" if self._transport is None else f"transport {self._transport.name}"
            having = " and ".join(transport.name for transport in transports() if option in transport.options)
            raise OSError(errno.ENOPROTOOPT, f"{name} does not have this option; only transport {having} has it")
        self.setsockopt(*number, int(bool(value)))
        self._options = self._options | option if value else self._options & ~option

    def _note(
        self, exc: OSError, operation: str, *, local: HyperVAddress | None = None, peer: HyperVAddress | None = None
    ) -> None:
        """Add notes to an error, unless it is a BlockingIOError."""
        if self._transport is not None and not isinstance(exc, BlockingIOError):
            local = local or _address_or_none(self.getsockname)
            self._transport.explain(exc, operation, local=local, peer=peer)

    def _explain(self, exception: OSError, operation: str, /) -> None:
        """Add notes to the error of a data call; called by C."""
        if self._transport is not None:
            local, peer = _address_or_none(self.getsockname), _address_or_none(self.getpeername)
            self._transport.explain(exception, operation, local=local, peer=peer)


def _is_read_by_offset(file: Any) -> bool:
    """Return whether socket.socket would have the system send the file by offset, wherever its position is."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = file.fileno()
        os.pread(descriptor, 0, 0)  # an error if there are no offsets, as in a pipe, or it is open for writing only
        return os.fstat(descriptor).st_size > 0
    except (AttributeError, OSError):
        return False


def _read_at(file: Any, size: int, offset: int) -> bytes:
    if sys.platform == "win32":
        raise NotImplementedError
    return os.pread(file.fileno(), size, offset)  # fileno() each time, so that a closed file raises


def _position(file: Any) -> int | None:
    """Return the position of a file, or None if it has none."""
    try:
        return cast(int, file.tell())
    except (AttributeError, OSError):
        return None


def _rebuilt(
    reduced: tuple[Callable[..., socket.socket], tuple[Any, ...]], options: int, busy_poll: int
) -> HyperVSocket:
    """Make the socket again, in the process that it was sent to, from what `multiprocessing` makes of socket.socket."""
    make, arguments = reduced
    with make(*arguments) as plain:
        sock = HyperVSocket(plain.family, plain.type, plain.proto, fileno=plain.fileno())
        plain.detach()
    sock._options = options
    sock.busy_poll = busy_poll
    return sock


def _name(number: int) -> str:
    """Return the name of a family or type, or its number where Python has no name for it."""
    return getattr(number, "name", str(number))


def _choose(family: int, fileno: int | None, name: str | None) -> Transport | None:
    """Return the transport that the arguments of `HyperVSocket` mean; None if the handle decides."""
    if name is not None:
        chosen = transport_named(name)
        if family not in (-1, chosen.family):
            raise ValueError(f"transport {name} is of family {chosen.family}, not {family}")
        return chosen
    if family != -1:
        return transport_of_family(family)
    return default_transport() if fileno is None else None


def _address_or_none(get: Callable[[], object]) -> HyperVAddress | None:
    try:
        address = get()
    except OSError:
        return None
    known = isinstance(address, HyperVAddress) and address.service_id != HV_GUID_ZERO
    return cast(HyperVAddress, address) if known else None


def create_connection(
    address: Address,
    timeout: float | EllipsisType | None = ...,
    *,
    transport: str | None = None,
    retry_for: float = 0.0,
) -> HyperVSocket:
    """Connect to a service and return the socket.

    Args:
        address: any (vm, service) pair that `as_address` takes.
        timeout: seconds that an attempt may take, None for no limit (with `retry_for`, 2 s); it stays set on the
            socket. By default it is `socket.getdefaulttimeout()`.
        transport: the name of a transport; by default `default_transport()`.
        retry_for: seconds, counted from the call, in which errors that may pass by themselves lead to another attempt:
            refused, unreachable, down, no such device, reset, timed out, as while the VM or its service starts. The
            call ends by then: attempts are cut short, and the last error is raised.

    Raises:
        TimeoutError: no answer in time.
        OSError: as the system says.
        ValueError: an unknown transport, an address that it cannot express, or a negative `retry_for`.
    """
    to = as_address(address)
    retries = Retries(retry_for)
    while True:
        sock = HyperVSocket(transport=transport)
        try:
            if timeout is not ...:
                sock.settimeout(timeout)
            limit = sock.gettimeout()
            if (attempt := retries.limit(limit)) != limit:
                sock.settimeout(attempt)
            sock.connect(to)
            sock.settimeout(limit)
        except OSError as exc:
            sock.close()
            pause = retries.pause_after(exc)
            if pause is None:
                raise
        except BaseException:
            sock.close()
            raise
        else:
            return sock
        time.sleep(pause)


def create_server(
    address: Address,
    *,
    backlog: int | None = None,
    transport: str | None = None,
    connected_suspend: bool = False,
) -> HyperVSocket:
    """Bind to a service, listen, and return the socket.

    Args:
        address: any (vm, service) pair that `as_address` takes; a host's service usually binds to ``wildcard``.
        backlog: connections that may wait to be accepted; by default as many as the system allows.
        transport: the name of a transport; by default `default_transport()`.
        connected_suspend: keep accepted connections while their VM is paused. Transport hyperv only: elsewhere it does
            nothing, since a pause is not known to end connections.

    Raises:
        OSError: the address is in use, or as the system says.
        ValueError: an unknown transport, or an address that it cannot express.
    """
    sock = _bind_server(address, transport, connected_suspend)
    try:
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_server(address: Address, transport: str | None, connected_suspend: bool) -> HyperVSocket:
    chosen = default_transport() if transport is None else transport_named(transport)
    sock = HyperVSocket(transport=chosen.name)
    try:
        if connected_suspend and Option.CONNECTED_SUSPEND in chosen.options:
            sock.connected_suspend = True
        sock.bind(as_address(address))
    except BaseException:
        sock.close()
        raise
    return sock
