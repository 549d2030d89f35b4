"""Facts of ``AF_HYPERV``, looked at through Winsock and without hvsock: over the simulated provider, and on Windows.

Each function is one fact, with its line in the project's facts (c3: VM ids, c4: addresses, c5: calls, c6: errors) and
its mark. What is known is asserted. What is marked ? is printed on Windows, whatever it is; the provider shows it in
each of its ways, by a switch, and test_both_ways.py has hvsock live with each. The table is printed at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator

import pytest
import utils

if sys.platform != "win32":
    pytest.skip("Windows Python only: tests/windows/run has one", allow_module_level=True)
if sys.version_info < (3, 12):
    pytest.skip("CPython's socket.AF_HYPERV is new in 3.12", allow_module_level=True)

import _overlapped
import _winapi
import msvcrt
import winreg
from socket import (
    AF_HYPERV,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_WILDCARD,
    HV_PROTOCOL_RAW,
)

import facts
import winsock
from facts import Unseen, hvsim, known, unknown

VM = "11111111-2222-4333-8444-555555555555"
OTHER_VM = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
HOST = "parent"
#: For what must happen; only a hang reaches it.
LIMIT = 10.0
#: How long what is not expected to happen is waited for.
MOMENT = 0.3
#: How long the default limit of a connect is waited for: Windows may have none.
PATIENCE = 30.0 if hvsim is None else 4.0
MIB = 1 << 20
NAMES = {
    uuid.UUID(HV_GUID_WILDCARD): "WILDCARD",
    uuid.UUID(HV_GUID_CHILDREN): "CHILDREN",
    uuid.UUID(HV_GUID_LOOPBACK): "LOOPBACK",
    uuid.UUID(HV_GUID_PARENT): "PARENT",
    uuid.UUID(VM): "the VM",
}
Pair = tuple[socket.socket, socket.socket]


def new_id() -> str:
    return str(uuid.uuid4())


def new() -> socket.socket:
    sock = socket.socket(AF_HYPERV, socket.SOCK_STREAM, HV_PROTOCOL_RAW)
    sock.settimeout(LIMIT)
    return sock


@contextlib.contextmanager
def listening(service: str, vm: str = HV_GUID_LOOPBACK, backlog: int = 5) -> Iterator[socket.socket]:
    with new() as sock:
        sock.bind((vm, service))
        sock.listen(backlog)
        yield sock


@contextlib.contextmanager
def connected(service: str, vm: str = HV_GUID_LOOPBACK) -> Iterator[socket.socket]:
    with new() as sock:
        sock.connect((vm, service))
        yield sock


@contextlib.contextmanager
def accepting(server: socket.socket) -> Iterator[socket.socket]:
    accepted, _ = server.accept()
    with accepted:
        accepted.settimeout(LIMIT)
        yield accepted


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    service = new_id()
    with listening(service) as server, connected(service) as client, accepting(server) as accepted:
        yield client, accepted


@contextlib.contextmanager
def extended(*, contexts: bool = True) -> Iterator[tuple[socket.socket, winsock.Accept, str]]:
    """A client by ConnectEx, the AcceptEx that took it, and the service."""
    service = new_id()
    with listening(service) as server, new() as client, new() as accepted:
        client.bind((HV_GUID_WILDCARD, HV_GUID_WILDCARD))
        accept = winsock.Accept(server, accepted)
        finish(winsock.connect_ex(client, HV_GUID_LOOPBACK, service))
        finish(accept)
        if contexts:
            update_connect_context(client)
            accept.update_context()
        yield client, accept, service


def update_connect_context(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, winsock.SO_UPDATE_CONNECT_CONTEXT, b"")


def finish(operation: winsock.Operation) -> int:
    if not operation.wait(LIMIT):
        raise TimeoutError
    return operation.result()


def error_of(call: object, *arguments: object) -> str:
    """The error's number, or that there was none."""
    try:
        call(*arguments)  # type: ignore[operator]
    except OSError as exc:
        return str(exc.winerror)
    return "no error"


def named(address: tuple[object, object], **services: str) -> str:
    """An address in words: its VM's name, and the name of the service among these."""
    vm, service = (uuid.UUID(str(part)) for part in address)
    if service == uuid.UUID(int=0):
        return f"{NAMES.get(vm, vm)}, no service"
    known_services = {uuid.UUID(value): name for name, value in services.items()}
    return f"{NAMES.get(vm, vm)}, {known_services.get(service, 'a service of its own')}"


@contextlib.contextmanager
def inside(partition: str) -> Iterator[None]:
    """Make this process's sockets in that partition."""
    if hvsim is None:
        raise Unseen("needs a virtual machine on this host")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HVSIM_PARTITION", partition)
        new().close()  # now it runs
        yield


@contextlib.contextmanager
def policy(words: str) -> Iterator[None]:
    """Have the host's configuration say this of all services."""
    if hvsim is None:
        raise Unseen("needs a virtual machine with that configuration on this host")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HVSIM_POLICY", f"*={words}")
        yield


def reached(server: str, bound: str, client: str, dialled: str) -> str:
    """What a connect of `client` to a listener in `server` comes to."""
    service = new_id()
    with contextlib.ExitStack() as stack:
        if hvsim is not None or (server, client) != (HOST, HOST):
            stack.enter_context(inside(server))
        listener = stack.enter_context(listening(service, bound))
        if client != server:
            stack.enter_context(inside(client))
        stack.enter_context(connected(service, dialled))
        stack.enter_context(accepting(listener))
        return "reached"


# What a VM id means (c3)


@known("c3 V", "A listener on WILDCARD is reached by loopback", "reached")
def wildcard_by_loopback() -> str:
    return reached(HOST, HV_GUID_WILDCARD, HOST, HV_GUID_LOOPBACK)


@known("c3 V", "A listener on WILDCARD is reached by a VM", "reached")
def wildcard_by_a_vm() -> str:
    return reached(HOST, HV_GUID_WILDCARD, VM, HV_GUID_PARENT)


@known("c3 V", "A listener on CHILDREN is reached by a VM", "reached")
def children_by_a_vm() -> str:
    return reached(HOST, HV_GUID_CHILDREN, VM, HV_GUID_PARENT)


@known("c3 V", "A listener on a VM's id is reached by that VM", "reached")
def own_id_by_a_vm() -> str:
    return reached(HOST, VM, VM, HV_GUID_PARENT)


@known("c3 V", "A listener on a VM's id is not reached by another VM", "10061")
def own_id_by_another_vm() -> str:
    return reached(HOST, VM, OTHER_VM, HV_GUID_PARENT)


@known("c3 V", "A listener on LOOPBACK is reached in the same partition", "reached")
def loopback_by_loopback() -> str:
    return reached(HOST, HV_GUID_LOOPBACK, HOST, HV_GUID_LOOPBACK)


@known("c3 V", "A listener on LOOPBACK is not reached by a VM", "10061")
def loopback_by_a_vm() -> str:
    return reached(HOST, HV_GUID_LOOPBACK, VM, HV_GUID_PARENT)


@known("c3 V", "A listener on PARENT in a VM is reached by the host", "reached")
def parent_by_the_host() -> str:
    return reached(VM, HV_GUID_PARENT, HOST, VM)


@known("c3 V", "A listener on PARENT in a VM is not reached by loopback", "10061")
def parent_by_loopback() -> str:
    return reached(VM, HV_GUID_PARENT, VM, HV_GUID_LOOPBACK)


@unknown(
    "c3 ?",
    "What a listener on PARENT is told (the header: not supported on a physical host)",
    {"10049 from bind": "HVSIM_PARTITION=parent", "no error": f"HVSIM_PARTITION={VM}"},
)
def parent_on_this_machine() -> str:
    with new() as sock:
        error = error_of(sock.bind, (HV_GUID_PARENT, new_id()))
        if error != "no error":
            return f"{error} from bind"
        error = error_of(sock.listen)
        return error if error == "no error" else f"{error} from listen"


@unknown("c3 ?", "A guest's own id in its registry, or the error", {"2": ""})
def own_id_in_the_registry() -> str:
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Virtual Machine\Guest\Parameters") as key:
        uuid.UUID(winreg.QueryValueEx(key, "VirtualMachineId")[0])
        return "an id"


@known("c3 V", "A connect to WILDCARD", "10049")
def connect_to_wildcard() -> str:
    with connected(new_id(), HV_GUID_WILDCARD):
        return "connected"


@known("c3 V", "A connect to CHILDREN", "10049")
def connect_to_children() -> str:
    with connected(new_id(), HV_GUID_CHILDREN):
        return "connected"


# The addresses that are reported (c4)


@known("c4 V", "A listener's own address is what was bound", "WILDCARD, the listener's")
def name_of_listener() -> str:
    service = new_id()
    with listening(service, HV_GUID_WILDCARD) as server:
        return named(server.getsockname(), **{"the listener's": service})


@known("c4 V", "A loopback client's own address", "CHILDREN, a service of its own")
def name_of_client() -> str:
    service = new_id()
    with listening(service), connected(service) as client:
        return named(client.getsockname(), **{"the listener's": service})


@known("c4 V", "A loopback client's peer is what was dialled", "LOOPBACK, the listener's")
def peer_of_client() -> str:
    service = new_id()
    with listening(service), connected(service) as client:
        return named(client.getpeername(), **{"the listener's": service})


@known("c4 V", "The own address in AcceptEx's buffer", "CHILDREN, the listener's")
def local_in_the_buffer() -> str:
    with extended() as (_, accept, service):
        (_, local), _ = accept.sockaddrs()
        return named(winsock.unpack(local), **{"the listener's": service})


@known("c4 V", "The client's address in AcceptEx's buffer", "LOOPBACK, the client's")
def remote_in_the_buffer() -> str:
    with extended() as (client, accept, _):
        _, (_, remote) = accept.sockaddrs()
        return named(winsock.unpack(remote), **{"the client's": client.getsockname()[1]})


@known("c4 V", "An accepted socket's peer, as getpeername says", "LOOPBACK, the client's")
def peer_of_accepted() -> str:
    with extended() as (client, accept, _):
        return named(accept.accepted.getpeername(), **{"the client's": client.getsockname()[1]})


@unknown(
    "c4 ?",
    "GetAcceptExSockaddrs's lengths of the two addresses",
    {"36 and 36": "", "52 and 52": "HVSIM_ODD_ACCEPT=1"},
)
def lengths_in_the_buffer() -> str:
    with extended() as (_, accept, _):
        (local, _), (remote, _) = accept.sockaddrs()
        return f"{local} and {remote}"


@unknown(
    "c4 ?",
    "The service in an accepted socket's own address",
    {"the listener's, Data1 incremented": "", "the listener's": "HVSIM_EXACT_NAME=1"},
)
def name_of_accepted() -> str:
    service = uuid.UUID(new_id())
    with listening(str(service)) as server, connected(str(service)), accepting(server) as accepted:
        seen = uuid.UUID(accepted.getsockname()[1])
    if seen == service:
        return "the listener's"
    incremented = ((service.fields[0] + 1) & 0xFFFFFFFF, *service.fields[1:])
    return "the listener's, Data1 incremented" if seen.fields == incremented else "another"


@known("c4 V", "getpeername, shutdown after ConnectEx, before SO_UPDATE_CONNECT_CONTEXT", "10057, 10057")
def connect_without_context() -> str:
    with extended(contexts=False) as (client, _, _):
        return f"{error_of(client.getpeername)}, {error_of(client.shutdown, socket.SHUT_WR)}"


@known("c4 V", "getpeername, shutdown after AcceptEx, before SO_UPDATE_ACCEPT_CONTEXT", "10057, 10057")
def accept_without_context() -> str:
    with extended(contexts=False) as (_, accept, _):
        accepted = accept.accepted
        return f"{error_of(accepted.getpeername)}, {error_of(accepted.shutdown, socket.SHUT_WR)}"


@known("c4 V", "getpeername, shutdown with the contexts", "no error, no error, no error, no error")
def with_contexts() -> str:
    with extended() as (client, accept, _):
        calls = [(sock.getpeername, sock.shutdown) for sock in (client, accept.accepted)]
        return ", ".join(f"{error_of(peer)}, {error_of(shutdown, socket.SHUT_WR)}" for peer, shutdown in calls)


@known("c4 V", "getsockname into 35 bytes", "10014, the length stays 35")
def short_buffer() -> str:
    with new() as sock:
        sock.bind((HV_GUID_WILDCARD, new_id()))
        error, length = winsock.own_name(sock, 35)
        return f"{error}, the length {'stays' if length == 35 else 'becomes'} {length}"


@known("c4 V", "The host's own address of a connection from a VM", "the VM")
def host_accepted_name() -> str:
    service = new_id()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(listening(service, HV_GUID_WILDCARD))
        stack.enter_context(inside(VM))
        stack.enter_context(connected(service, HV_GUID_PARENT))
        return named(stack.enter_context(accepting(server)).getsockname()).split(",")[0]


@known("c4 V", "The peer of a guest that has dialled the host", "PARENT, the listener's")
def guest_peer() -> str:
    service = new_id()
    with listening(service, HV_GUID_WILDCARD), inside(VM), connected(service, HV_GUID_PARENT) as client:
        return named(client.getpeername(), **{"the listener's": service})


@known("c4 V", "A guest's own address of a connection from the host", "PARENT")
def guest_accepted_name() -> str:
    service = new_id()
    with contextlib.ExitStack() as stack:
        with inside(VM):
            server = stack.enter_context(listening(service, HV_GUID_WILDCARD))
        stack.enter_context(connected(service, VM))
        return named(stack.enter_context(accepting(server)).getsockname()).split(",")[0]


# Which calls work (c5)


def exchanged(client: socket.socket, accepted: socket.socket) -> str:
    client.sendall(b"there")
    accepted.sendall(b"back")
    received = utils.receive_exactly(accepted, 5), utils.receive_exactly(client, 4)
    return "works" if received == (b"there", b"back") else f"received {received}"


@known("c5 V", "WSAConnect, WSAAccept", "works")
def wsa_connect_and_accept() -> str:
    service = new_id()
    with listening(service) as server, new() as client:
        server.settimeout(None)
        client.settimeout(None)
        accepting = utils.Task(winsock.wsa_accept, server)
        winsock.wsa_connect(client, HV_GUID_LOOPBACK, service)
        with accepting.result() as accepted:
            return exchanged(client, accepted)


@known("c5 V", "ConnectEx, bound to WILDCARD without a service", "works")
def connect_ex_from_nowhere() -> str:
    with extended() as (client, accept, _):
        return exchanged(client, accept.accepted)


@known("c5 V", "ConnectEx, bound to the address that is dialled", "works")
def connect_ex_from_the_remote() -> str:
    service = new_id()
    with listening(service) as server, new() as client:
        client.bind((HV_GUID_LOOPBACK, service))
        finish(winsock.connect_ex(client, HV_GUID_LOOPBACK, service))
        with accepting(server) as accepted:
            return exchanged(client, accepted)


@known("c5 V", "ConnectEx of a socket that is not bound", "10022")
def connect_ex_unbound() -> str:
    service = new_id()
    with listening(service), new() as client:
        return str(finish(winsock.connect_ex(client, HV_GUID_LOOPBACK, service)))


@known("c5 V", "ConnectEx by the pointer that a TCP socket gives", "works")
def connect_ex_of_tcp() -> str:
    service = new_id()
    with listening(service) as server, new() as client, socket.socket() as tcp:
        client.bind((HV_GUID_WILDCARD, HV_GUID_WILDCARD))
        finish(winsock.connect_ex(client, HV_GUID_LOOPBACK, service, pointer_of=tcp))
        with accepting(server) as accepted:
            return exchanged(client, accepted)


@known("c5 V", "CancelIoEx of a pending AcceptEx", "995")
def cancelled_accept() -> str:
    with listening(new_id()) as server, new() as accepted:
        accept = winsock.Accept(server, accepted)
        if accept.wait(MOMENT):
            return "it was not pending"
        accept.cancel()
        return str(finish(accept))


@known("c5 V", "An overlapped WSASend and the completion port", "4 bytes")
def completion_port() -> str:
    with pair() as (client, _), port_of(client) as port:
        send = winsock.Send(client, b"data")
        error, size, _, address = told(port)
        return f"{size} bytes" if (error, address) == (0, ctypes.addressof(send.overlapped)) else f"error {error}"


@known("c5 V", "The same with FILE_SKIP_COMPLETION_PORT_ON_SUCCESS, done at once", "nothing queued")
def skipped_completion_port() -> str:
    with pair() as (client, accepted), port_of(client) as port:
        winsock.skip_completion_port(client)
        winsock.Send(client, b"data")
        if utils.receive_exactly(accepted, 4) != b"data":
            return "nothing sent"
        return "nothing queued" if _overlapped.GetQueuedCompletionStatus(port, int(MOMENT * 1000)) is None else "queued"


@contextlib.contextmanager
def port_of(sock: socket.socket) -> Iterator[int]:
    port = _overlapped.CreateIoCompletionPort(_overlapped.INVALID_HANDLE_VALUE, 0, 0, 1)
    try:
        _overlapped.CreateIoCompletionPort(sock.fileno(), port, 7, 0)
        yield port
    finally:
        _winapi.CloseHandle(port)


def told(port: int) -> tuple[int, int, int, int]:
    answer: tuple[int, int, int, int] | None = _overlapped.GetQueuedCompletionStatus(port, int(LIMIT * 1000))
    if answer is None:
        raise TimeoutError
    return answer


@known("c5 V", "FIONBIO: a receive without data", "10035")
def non_blocking() -> str:
    with pair() as (client, _):
        client.setblocking(False)
        return str(client.recv(1))


@known("c5 V", "FIONREAD and MSG_PEEK of 4 bytes", "4, 4 bytes, then 4 bytes")
def looked_ahead() -> str:
    with pair() as (client, accepted):
        client.sendall(b"data")
        peeked = accepted.recv(100, socket.MSG_PEEK)
        return f"{winsock.readable_bytes(accepted)}, {len(peeked)} bytes, then {len(accepted.recv(100))} bytes"


@unknown(
    "c5 ?",
    "select of a connection: writable, then readable",
    {"writable, readable": "", "10045": "select=10045*0"},
)
def select_of_a_connection() -> str:
    with pair() as (client, accepted):
        accepted.settimeout(None)
        client.settimeout(None)  # or the socket module itself calls select
        idle = select.select([client], [client], [client], LIMIT)
        accepted.send(b"x")
        readable, _, _ = select.select([client], [], [client], LIMIT)
        return f"{'writable' if idle == ([], [client], []) else idle}, {'readable' if readable else 'nothing'}"


def poll_words(revents: int) -> str:
    names = [name for name in ("POLLRDNORM", "POLLWRNORM", "POLLERR", "POLLHUP") if revents & getattr(winsock, name)]
    return " ".join(names) or "nothing"


@unknown(
    "c5 ?",
    "WSAPoll of a connection: writable, then readable",
    {"POLLWRNORM, POLLRDNORM": "", "10045": "WSAPoll=10045*0"},
)
def poll_of_a_connection() -> str:
    both = winsock.POLLRDNORM | winsock.POLLWRNORM
    with pair() as (client, accepted):
        idle = winsock.poll(client, both, LIMIT)
        accepted.send(b"x")
        readable = winsock.poll(client, winsock.POLLRDNORM, LIMIT)
        return f"{poll_words(idle)}, {poll_words(readable)}"


def connect_begun(client: socket.socket, service: str) -> None:
    """A non-blocking connect that is on its way."""
    client.setblocking(False)
    if (error := client.connect_ex((HV_GUID_LOOPBACK, service))) not in {0, 10035}:
        raise ctypes.WinError(error)


@unknown(
    "c5 ?",
    "select of a non-blocking connect, made and refused",
    {"made: writable; refused: exceptional, 10061": "", "10045": "select=10045*0"},
)
def select_of_a_connect() -> str:
    service = new_id()
    with listening(service), new() as made, new() as refused:
        connect_begun(made, service)
        _, writable, exceptional = select.select([], [made], [made], LIMIT)
        first = "writable" * bool(writable) + "exceptional" * bool(exceptional)
        connect_begun(refused, new_id())
        _, writable, exceptional = select.select([], [refused], [refused], LIMIT)
        second = "writable" * bool(writable) + "exceptional" * bool(exceptional)
        error = refused.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return f"made: {first or 'nothing'}; refused: {second or 'nothing'}, {error}"


@unknown(
    "c5 ?",
    "WSAPoll of a non-blocking connect, made and refused",
    {
        "made: POLLWRNORM; refused: POLLERR, 10061": "",
        "made: POLLWRNORM; refused: nothing, 10061": "HVSIM_SILENT_POLL=1",
        "10045": "WSAPoll=10045*0",
    },
)
def poll_of_a_connect() -> str:
    service = new_id()
    with listening(service), new() as made, new() as refused:
        connect_begun(made, service)
        first = winsock.poll(made, winsock.POLLWRNORM, LIMIT)
        connect_begun(refused, new_id())
        second = winsock.poll(refused, winsock.POLLWRNORM, 1)
        error = refused.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return f"made: {poll_words(first)}; refused: {poll_words(second)}, {error}"


@unknown("c5 ?", "TransmitFile of 4 bytes", {"4 bytes": "", "10045": "TransmitFile=10045"})
def transmit_file() -> str:
    with pair() as (client, accepted), tempfile.TemporaryFile() as file:
        file.write(b"data")
        file.flush()
        finish(winsock.transmit_file(client, msvcrt.get_osfhandle(file.fileno())))
        return f"{len(utils.receive_exactly(accepted, 4))} bytes"


@unknown("c5 ?", "DisconnectEx, and what the peer sees", {"the end": "", "10045": "DisconnectEx=10045"})
def disconnect_ex() -> str:
    with extended() as (client, accept, _):
        winsock.disconnect_ex(client)
        return "the end" if accept.accepted.recv(1) == b"" else "data"


@unknown("c5 ?", "WSASocket with WSA_FLAG_REGISTERED_IO", {"made": ""})
def registered_io() -> str:
    with winsock.registered_io_socket():
        return "made"


@unknown("c5 ?", "WriteFile and ReadFile on the handles, 4 bytes", {"4 bytes, 4 bytes": ""})
def file_functions() -> str:
    with pair() as (client, accepted):
        written = finish(winsock.FileOperation(client, "WriteFile", ctypes.create_string_buffer(b"data", 4)))
        read = finish(winsock.FileOperation(accepted, "ReadFile", ctypes.create_string_buffer(4)))
        return f"{written} bytes, {read} bytes"


@unknown(
    "c5 ?",
    "A name that another socket listens on (a comment in wslbridge2: listen refuses it)",
    {"listen: 10048": "", "bind: 10048": "HVSIM_STRICT_BIND=1"},
)
def taken_name() -> str:
    service = new_id()
    with listening(service), new() as second:
        error = error_of(second.bind, (HV_GUID_LOOPBACK, service))
        return f"listen: {error_of(second.listen)}" if error == "no error" else f"bind: {error}"


@unknown(
    "c5 ?",
    "A listener without a service id: any, or an error",
    {"listen: 10022": "", "listen: no error; its name: LOOPBACK, a service of its own": "HVSIM_ANY_SERVICE=1"},
)
def any_service() -> str:
    with new() as sock:
        sock.bind((HV_GUID_LOOPBACK, HV_GUID_WILDCARD))
        error = error_of(sock.listen)
        return f"listen: {error}" + ("" if error != "no error" else f"; its name: {named(sock.getsockname())}")


@unknown(
    "c5 ?",
    "SO_REUSEADDR, SO_EXCLUSIVEADDRUSE on a new socket, and the second listener of SO_REUSEADDR",
    {"no error, no error, 10048": "", "10042, 10042, 10048": "reuse-option=10042*0"},
)
def reuse_options() -> str:
    service = new_id()
    options = socket.SO_REUSEADDR, socket.SO_EXCLUSIVEADDRUSE
    with listening(service), new() as second, new() as third:
        errors = [
            error_of(sock.setsockopt, socket.SOL_SOCKET, option, 1)
            for sock, option in zip((second, third), options, strict=True)
        ]
        bind = error_of(second.bind, (HV_GUID_LOOPBACK, service))
        return ", ".join([*errors, error_of(second.listen) if bind == "no error" else bind])


@unknown(
    "c5 ?",
    "A cancelled WSASend tells how many bytes have gone",
    {"all that went": "", "0, though some went": "HVSIM_LOSSY_CANCEL=1"},
)
def cancelled_send() -> str:
    with pair() as (client, accepted):
        send = winsock.Send(client, bytes(64 * MIB))
        if send.wait(MOMENT):
            raise Unseen("64 MiB are taken at once: there is nothing to cancel")
        send.cancel()
        error = error_of(finish, send)
        client.shutdown(socket.SHUT_WR)
        went = len(utils.receive_all(accepted))
        if (error, send.told) == ("995", went):
            return "all that went"
        count = "0, though some went" if send.told == 0 and went else f"{send.told} of {went}"
        return count if error == "995" else f"{count}, {error}"


@unknown(
    "c5 ?",
    "The largest single WSASend that is taken, of 64 KiB, 1, 16 and 64 MiB",
    {"67108864": "", "65536": "sending=limit:65536*0"},
)
def largest_send() -> str:
    largest = 0
    for size in (MIB // 16, MIB, 16 * MIB, 64 * MIB):
        with pair() as (client, accepted):
            reading = utils.Task(utils.receive_exactly, accepted, size)
            try:
                sent = finish(winsock.Send(client, bytes(size)))
            except OSError:
                break
            finally:
                client.close()
                reading.wait(LIMIT)
            largest = max(largest, sent)
    return str(largest)


@unknown(
    "c5 ?",
    "SO_UPDATE_ACCEPT_CONTEXT, then getpeername, of a client that has gone",
    {
        "no error, no error": "",
        "10057, 10057": "accept-context=10057*0",
        "10054, 10057": "accept-context=10054*0",
    },
)
def context_of_a_gone_client() -> str:
    service = new_id()
    with listening(service) as server, new() as accepted:
        with connected(service):
            pass
        time.sleep(MOMENT)
        accept = winsock.Accept(server, accepted)
        finish(accept)
        return f"{error_of(accept.update_context)}, {error_of(accepted.getpeername)}"


@contextlib.contextmanager
def pending_connect() -> Iterator[winsock.Operation]:
    """A ConnectEx that stays pending: by a fault of the provider; to an unknown VM or a full backlog on Windows."""
    with contextlib.ExitStack() as stack:
        service = new_id()
        answers = []
        if hvsim is None:
            stack.enter_context(listening(service, backlog=1))
        for vm in [HV_GUID_LOOPBACK] if hvsim else [new_id(), *11 * [HV_GUID_LOOPBACK]]:
            sock = stack.enter_context(new())
            sock.bind((HV_GUID_WILDCARD, HV_GUID_WILDCARD))
            try:
                connect = winsock.connect_ex(sock, vm, service)
            except OSError as exc:
                answers.append(str(exc.winerror))
                continue
            if not connect.wait(MOMENT):
                try:
                    yield connect
                finally:
                    sock.close()
                    connect.wait(LIMIT)
                return
            answers.append(error_of(connect.result))
        raise Unseen(f"no connect stays pending here: an unknown VM answers {answers[0]}, a full backlog {answers[-1]}")


@unknown(
    "c5 ?",
    "CancelIoEx of a pending ConnectEx",
    {"ends it, 995": "connecting=pending", "ends it late, 995": "connecting=stubborn:1500"},
)
def cancelled_connect() -> str:
    with pending_connect() as connect:
        cancelled = connect.cancel()
        at_once = connect.wait(0.7)
        if not at_once and not connect.wait(LIMIT):
            return "does not end it" if cancelled else "fails"
        return f"ends it{'' if at_once else ' late'}, {error_of(connect.result)}"


@unknown(
    "c2 ?",
    "How long a connect may be pending by default",
    {
        "about 2 s, 10060": "connecting=pending",
        f"more than {PATIENCE:.0f} s": "connecting=pending HVSIM_DEFAULT_TIMEOUT=60000",
    },
)
def default_connect_timeout() -> str:
    start = time.monotonic()
    with pending_connect() as connect:
        if not connect.wait(PATIENCE):
            return f"more than {PATIENCE:.0f} s"
        elapsed = time.monotonic() - start
        return f"{'about 2' if 1.8 < elapsed < 3 else f'{elapsed:.1f}'} s, {error_of(connect.result)}"


@unknown(
    "c5 ?",
    "FIONBIO and the duplicate that DuplicateHandle makes",
    {"shared": "", "each has its own": "HVSIM_OWN_MODE=1"},
)
def mode_of_a_duplicate_handle() -> str:
    with pair() as (client, accepted):
        client.settimeout(None)
        return mode_of(winsock.duplicate_handle(client), client, accepted)


@unknown(
    "c5 ?",
    "FIONBIO and the duplicate that WSADuplicateSocket makes",
    {"shared": "", "each has its own": "HVSIM_OWN_MODE=1"},
)
def mode_of_a_duplicate_socket() -> str:
    with pair() as (client, accepted):
        client.settimeout(None)
        return mode_of(client.dup(), client, accepted)


def mode_of(copy: socket.socket, client: socket.socket, accepted: socket.socket) -> str:
    """Whether a duplicate does not block once the original does not."""
    with copy:
        client.setblocking(False)
        receiving = utils.Task(copy.recv, 1)
        blocks = not receiving.wait(MOMENT)
        accepted.send(b"x")
        if blocks:
            return "each has its own" if receiving.result() == b"x" else "the end"
        return "shared" if isinstance(receiving.error(), BlockingIOError) else str(receiving.error())


# What fails, and how (c6)


@known("c6 V", "A listener on a VM's id, whose security descriptor denies it", "10013")
def bind_denied() -> str:
    with policy("deny-bind"), listening(new_id(), VM):
        return "listens"


@known("c6 V", "A listener on a VM's id, the service disabled", "bind: no error, listen: 10022")
def listen_disabled() -> str:
    with policy("disabled"), new() as sock:
        return f"bind: {error_of(sock.bind, (VM, new_id()))}, listen: {error_of(sock.listen)}"


def wildcard_denied(words: str, vm: str) -> str:
    service = new_id()
    with policy(words), listening(service, vm), inside(VM), new() as client:
        return f"listens, the guest gets {error_of(client.connect, (HV_GUID_PARENT, service))}"


@known("c6 V", "A listener on WILDCARD without AllowWildcardBinds", "listens, the guest gets 10061")
def wildcard_not_allowed() -> str:
    return wildcard_denied("no-wildcard", HV_GUID_WILDCARD)


@known("c6 V", "A listener on CHILDREN without AllowWildcardBinds", "listens, the guest gets 10061")
def children_not_allowed() -> str:
    return wildcard_denied("no-wildcard", HV_GUID_CHILDREN)


@known("c6 V", "A listener on WILDCARD, the service disabled", "listens, the guest gets 10061")
def wildcard_disabled() -> str:
    return wildcard_denied("disabled", HV_GUID_WILDCARD)


def host_dials(words: str) -> str:
    service = new_id()
    with policy(words), contextlib.ExitStack() as stack:
        with inside(VM):
            stack.enter_context(listening(service, HV_GUID_PARENT))
        stack.enter_context(connected(service, VM))
        return "connected"


@known("c6 V", "The host dials, the connect's security descriptor denies it", "10013")
def connect_denied() -> str:
    return host_dials("deny-connect")


@known("c6 V", "The host dials, the service disabled", "10022")
def connect_disabled() -> str:
    return host_dials("disabled")


@known("c6 V", "Loopback, and nothing listens", "10061")
def loopback_refused() -> str:
    with connected(new_id()):
        return "connected"


@known("c6 V", "The same by ConnectEx: WSAGetOverlappedResult, the completion port", "10061, 1225")
def refused_overlapped() -> str:
    with new() as sock, port_of(sock) as port:
        sock.bind((HV_GUID_WILDCARD, HV_GUID_WILDCARD))
        connect = winsock.connect_ex(sock, HV_GUID_LOOPBACK, new_id())
        error = error_of(finish, connect)
        return f"{error}, {told(port)[0]}"


@known("c6 V", "A send after SHUT_WR, a receive after SHUT_RD", "10058, 10058")
def after_shutdown() -> str:
    with pair() as (client, _):
        client.settimeout(None)  # or the socket module itself calls select
        client.shutdown(socket.SHUT_WR)
        client.shutdown(socket.SHUT_RD)
        return f"{error_of(client.send, b'x')}, {error_of(utils.Task(client.recv, 1).result)}"


@known("c6 V", "The second shutdown of the same direction", "no error, no error")
def second_shutdown() -> str:
    with pair() as (client, _):
        return ", ".join(error_of(client.shutdown, socket.SHUT_WR) for _ in range(2))


@known("c6 V", "A send on a socket that was closed", "10038")
def after_close() -> str:
    with pair() as (client, _):
        handle = client.detach()
        socket.close(handle)
        with socket.socket(AF_HYPERV, socket.SOCK_STREAM, HV_PROTOCOL_RAW, handle) as closed:
            return str(closed.send(b"x"))


@known("c6 V", "A socket of protocol 0", "10041")
def no_protocol() -> str:
    with socket.socket(AF_HYPERV):
        return "made"


@unknown(
    "c6 ?",
    "The host dials a VM where nothing listens",
    {"10061": "", "10060": "connecting=pending"},
)
def nothing_listens_in_a_vm() -> str:
    with inside(VM):
        pass
    with connected(new_id(), VM):
        return "connected"


@unknown(
    "c6 ?",
    "A connect to a VM that does not run",
    {"10051": "", "10060": "connecting=10060"},
)
def unknown_vm() -> str:
    with connected(new_id(), new_id()):
        return "connected"


# The tests


def why_unseen() -> str | None:
    """Why no fact can be seen here; None if they can."""
    try:
        new().close()
    except OSError as exc:
        return f"no AF_HYPERV here (error {exc.winerror}): enable Hyper-V or the Virtual Machine Platform"
    return None


CASES = [
    pytest.param(fact, expected, switches, id=f"{fact.name}-{switches}" if switches else fact.name)
    for fact in facts.FACTS
    for expected, switches in (fact.ways.items() if hvsim else [(next(iter(fact.ways)), "")])
]


@pytest.fixture(scope="module", autouse=True)
def printed(pytestconfig: pytest.Config) -> None:
    """Print the table at the end."""
    pytestconfig.pluginmanager.register(facts)


@pytest.mark.parametrize(("fact", "expected", "switches"), CASES)
def test_fact(fact: facts.Fact, expected: str, switches: str) -> None:
    if reason := why_unseen():
        facts.SEEN[fact.name, switches] = f"not seen: {reason}"
        pytest.skip(reason)
    try:
        seen = facts.see(fact, switches)
    except Unseen as exc:
        pytest.skip(str(exc))
    assert seen == expected or (hvsim is None and not fact.is_known)
