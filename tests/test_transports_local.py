"""The local transport: Hyper-V's rules of VM ids between the processes of one machine, over AF_UNIX."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import stat
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import utils
from children import listeners
from utils import LIMIT, TICK, Child, Task

import hvsock
from hvsock import _hvsock
from hvsock._transports import local as local_module

pytestmark = pytest.mark.skipif(utils.WINDOWS, reason="POSIX only: Python has no AF_UNIX on Windows")

GUEST = uuid.UUID("11111111-2222-3333-4444-555555555555")
SIBLING = uuid.UUID("99999999-2222-3333-4444-555555555555")
SERVICE = hvsock.service_id_from_port(5000)

HOST = ""
PARENT, LOOPBACK = hvsock.HV_GUID_PARENT, hvsock.HV_GUID_LOOPBACK
CHILDREN, WILDCARD = hvsock.HV_GUID_CHILDREN, hvsock.HV_GUID_WILDCARD


@contextlib.contextmanager
def partition(vm: uuid.UUID | str) -> Iterator[None]:
    """Make this process play another partition for a while: it is asked for at every bind, connect and accept."""
    before = os.environ.get("HVSOCK_LOCAL_VM")
    os.environ["HVSOCK_LOCAL_VM"] = str(vm)
    try:
        yield
    finally:
        if before is None:
            del os.environ["HVSOCK_LOCAL_VM"]
        else:
            os.environ["HVSOCK_LOCAL_VM"] = before


def listen(vm: uuid.UUID | str, bound: uuid.UUID | str, service: Any = SERVICE) -> hvsock.HyperVSocket:
    """Return a listener of the partition `vm`."""
    with partition(vm):
        listener = hvsock.create_server((bound, service), transport="local")
    listener.settimeout(LIMIT)
    return listener


def dial(vm: uuid.UUID | str, target: uuid.UUID | str, service: Any = SERVICE) -> hvsock.HyperVSocket:
    """Return a client of the partition `vm`."""
    with partition(vm):
        return hvsock.create_connection((target, service), timeout=LIMIT, transport="local")


def pending(listener: hvsock.HyperVSocket) -> bool:
    """Whether a connection waits to be accepted."""
    listener.settimeout(0)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_is_tested() -> None:
    if "local" in utils.required():
        assert utils.reason_to_skip("local") is None


# Who is who


@pytest.mark.parametrize(
    ("server", "bound", "client", "target", "client_seen_as"),
    [
        pytest.param(HOST, WILDCARD, GUEST, PARENT, GUEST, id="guest to host"),
        pytest.param(HOST, CHILDREN, GUEST, PARENT, GUEST, id="guest to host's children"),
        pytest.param(HOST, GUEST, GUEST, PARENT, GUEST, id="guest to host's listener for it"),
        pytest.param(GUEST, WILDCARD, HOST, GUEST, PARENT, id="host to guest"),
        pytest.param(GUEST, PARENT, HOST, GUEST, PARENT, id="host to guest's listener for its parent"),
        pytest.param(HOST, WILDCARD, HOST, LOOPBACK, LOOPBACK, id="within the host"),
        pytest.param(HOST, LOOPBACK, HOST, LOOPBACK, LOOPBACK, id="host's loopback"),
        pytest.param(GUEST, WILDCARD, GUEST, LOOPBACK, LOOPBACK, id="within a guest"),
        pytest.param(GUEST, LOOPBACK, GUEST, LOOPBACK, LOOPBACK, id="guest's loopback"),
    ],
)
def test_addresses(server: Any, bound: Any, client: Any, target: Any, client_seen_as: uuid.UUID) -> None:
    """Who may reach whom, and what each end says of itself and of the other."""
    with listen(server, bound) as listener, dial(client, target) as dialler:
        with partition(server):
            assert listener.getsockname() == (bound, SERVICE)
            accepted, address = listener.accept()
            assert address == accepted.getpeername()
            assert address.vm_id == client_seen_as
            assert accepted.getsockname().service_id == SERVICE
        with accepted, partition(client):
            assert dialler.getpeername() == (target, SERVICE)
            mine = dialler.getsockname()
            assert mine.service_id == address.service_id
            assert mine.service_id not in (SERVICE, hvsock.HV_GUID_ZERO)
            if target == LOOPBACK:
                assert mine.vm_id == CHILDREN
            accepted.sendall(b"both")
            assert utils.receive_exactly(dialler, 4) == b"both"
            dialler.sendall(b"ways")
            assert utils.receive_exactly(accepted, 4) == b"ways"


def test_every_client_has_its_own_service_id() -> None:
    with listen(HOST, WILDCARD) as listener, contextlib.ExitStack() as stack:
        seen = set()
        for _ in range(20):
            stack.enter_context(dial(GUEST, PARENT))
            accepted, address = listener.accept()
            stack.enter_context(accepted)
            seen.add(address)
        assert len(seen) == 20


@pytest.mark.parametrize(
    ("server", "bound", "client", "target"),
    [
        pytest.param(HOST, LOOPBACK, GUEST, PARENT, id="host's loopback is not the guest's business"),
        pytest.param(HOST, SIBLING, GUEST, PARENT, id="host's listener for another guest"),
        pytest.param(HOST, CHILDREN, HOST, LOOPBACK, id="the host is none of its children"),
        pytest.param(HOST, GUEST, HOST, LOOPBACK, id="nor that guest"),
        pytest.param(GUEST, LOOPBACK, HOST, GUEST, id="guest's loopback is not the host's business"),
        pytest.param(GUEST, CHILDREN, HOST, GUEST, id="the host is no child of the guest"),
        pytest.param(GUEST, PARENT, GUEST, LOOPBACK, id="the guest is not its parent"),
        pytest.param(GUEST, WILDCARD, HOST, SIBLING, id="another guest's"),
        pytest.param(GUEST, WILDCARD, GUEST, PARENT, id="the guest's own, asked of the parent"),
        pytest.param(GUEST, WILDCARD, SIBLING, LOOPBACK, id="a sibling's, asked of itself"),
        pytest.param(HOST, WILDCARD, GUEST, LOOPBACK, id="the host's, asked of the guest itself"),
        pytest.param(GUEST, WILDCARD, HOST, LOOPBACK, id="the guest's, asked of the host itself"),
    ],
)
def test_not_let_in(server: Any, bound: Any, client: Any, target: Any) -> None:
    """Somebody listens, but not for this client: it is refused as if nobody did."""
    with listen(server, bound) as listener:
        with pytest.raises(ConnectionRefusedError):
            dial(client, target)
        assert not pending(listener)


@pytest.mark.parametrize(
    ("client", "target", "code"),
    [
        pytest.param(HOST, WILDCARD, errno.EADDRNOTAVAIL, id="host to wildcard"),
        pytest.param(HOST, CHILDREN, errno.EADDRNOTAVAIL, id="host to children"),
        pytest.param(HOST, hvsock.HV_GUID_BROADCAST, errno.EADDRNOTAVAIL, id="host to broadcast"),
        pytest.param(GUEST, WILDCARD, errno.EADDRNOTAVAIL, id="guest to wildcard"),
        pytest.param(GUEST, CHILDREN, errno.EADDRNOTAVAIL, id="guest to children"),
        pytest.param(GUEST, hvsock.HV_GUID_BROADCAST, errno.EADDRNOTAVAIL, id="guest to broadcast"),
        pytest.param(HOST, PARENT, errno.ENETUNREACH, id="the host has no parent"),
        pytest.param(GUEST, SIBLING, errno.ENETUNREACH, id="siblings never meet"),
        pytest.param(HOST, GUEST, errno.ECONNREFUSED, id="a guest in which nobody listens"),
        pytest.param(GUEST, PARENT, errno.ECONNREFUSED, id="a parent in which nobody listens"),
        pytest.param(HOST, LOOPBACK, errno.ECONNREFUSED, id="nobody listens"),
    ],
)
def test_unreachable(client: Any, target: Any, code: int) -> None:
    with pytest.raises(OSError) as info:
        dial(client, target)
    assert info.value.errno == code
    assert info.value.strerror == os.strerror(code)
    notes = "\n".join(info.value.__notes__)
    assert str(hvsock.HyperVAddress(target, SERVICE)) in notes
    assert "known cause" in notes


def test_sibling_is_unreachable_even_if_it_listens() -> None:
    with listen(SIBLING, WILDCARD) as listener:
        with pytest.raises(OSError) as info:
            dial(GUEST, SIBLING)
        assert info.value.errno == errno.ENETUNREACH
        assert not pending(listener)


@pytest.mark.parametrize(
    ("server", "client", "target", "order"),
    [
        pytest.param(HOST, GUEST, PARENT, [GUEST, CHILDREN, WILDCARD], id="guest to host"),
        pytest.param(GUEST, HOST, GUEST, [PARENT, WILDCARD], id="host to guest"),
        pytest.param(HOST, HOST, LOOPBACK, [LOOPBACK, WILDCARD], id="within the host"),
        pytest.param(GUEST, GUEST, LOOPBACK, [LOOPBACK, WILDCARD], id="within a guest"),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_most_specific_listener_wins(server: Any, client: Any, target: Any, order: list[Any], reverse: bool) -> None:
    """Whichever was there first; when it closes, the next one takes over."""
    with contextlib.ExitStack() as stack:
        listeners: dict[Any, hvsock.HyperVSocket] = {}
        for bound in reversed(order) if reverse else order:
            listeners[bound] = stack.enter_context(listen(server, bound))
        for winner in order:
            stack.enter_context(dial(client, target))
            assert [bound for bound, listener in listeners.items() if pending(listener)] == [winner]
            listeners.pop(winner).close()
        with pytest.raises(ConnectionRefusedError):
            dial(client, target)


def test_partitions_do_not_share_names() -> None:
    """The same service in the host and in two guests is three listeners."""
    with (
        listen(HOST, WILDCARD) as in_host,
        listen(GUEST, WILDCARD) as in_guest,
        listen(SIBLING, WILDCARD) as in_sibling,
        dial(HOST, SIBLING),
    ):
        assert not pending(in_host)
        assert not pending(in_guest)
        assert pending(in_sibling)


@pytest.mark.parametrize("bound", [PARENT, hvsock.HV_GUID_BROADCAST, hvsock.HV_GUID_SILOHOST], ids=str)
def test_what_the_host_cannot_bind(bound: uuid.UUID) -> None:
    with pytest.raises(OSError) as info:
        listen(HOST, bound)
    assert info.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("text", ["parent", "nonsense", str(WILDCARD), str(PARENT), "1234"])
def test_partition_that_is_no_vm(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSOCK_LOCAL_VM", text)
    calls: list[Callable[[], Any]] = [
        lambda: hvsock.create_connection(("loopback", 5000), transport="local"),
        lambda: hvsock.create_server(("wildcard", 5000), transport="local"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="HVSOCK_LOCAL_VM"):
            call()


@pytest.mark.parametrize("text", [str(GUEST).upper(), f"{{{GUEST}}}"])
def test_partition_in_any_form(text: str) -> None:
    with listen(HOST, GUEST) as listener, dial(text, PARENT):
        accepted, address = listener.accept()
        accepted.close()
        assert address.vm_id == GUEST


def test_a_name_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is asked for; the names that are remembered are not ever more."""
    local_module._parse.cache_clear()
    read = local_module._read_guid
    texts: list[str] = []

    def noting(text: str) -> uuid.UUID:
        texts.append(text)
        return read(text)

    monkeypatch.setattr(local_module, "_read_guid", noting)
    with listen(GUEST, "parent", uuid.UUID(int=1)) as listener:
        own = listener.getsockname()
        with dial(HOST, GUEST, uuid.UUID(int=1)) as client, listener.accept()[0] as sock:
            for _ in range(3):
                assert sock.getsockname() == own == (PARENT, uuid.UUID(int=1))
                assert sock.getpeername().vm_id == LOOPBACK
            with partition(GUEST):  # who asks is no part of the name
                assert sock.getpeername().vm_id == PARENT
                assert client.getpeername() == (LOOPBACK, uuid.UUID(int=1))
            assert client.getpeername() == (GUEST, uuid.UUID(int=1))
    assert len(texts) == len(set(texts)) == 3  # the guest, its service, the client's service
    for number in range(1000):
        local_module._parse(f"host.wildcard.{number}")
    assert local_module._parse.cache_info().currsize <= 128


def test_accepting_process_may_be_another(local: str) -> None:
    """Addresses come with the connection: a listener that was passed on tells the same ones."""
    with listen(GUEST, WILDCARD) as listener:
        handed_on = hvsock.HyperVSocket(fileno=os.dup(listener.fileno()))
        handed_on.settimeout(LIMIT)
        with handed_on, dial(HOST, GUEST), partition(GUEST):
            accepted, address = handed_on.accept()
            with accepted:
                assert address.vm_id == PARENT


# Names in the directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_names_come_and_go(local_directory: Path) -> None:
    """A listener's name lives as long as the listener; a client leaves none."""
    listener = listen(HOST, WILDCARD)
    assert len(names(local_directory)) == 1
    client = dial(GUEST, PARENT)
    accepted, _ = listener.accept()
    assert len(names(local_directory)) == 1
    client.close()
    accepted.close()
    assert len(names(local_directory)) == 1
    twin = listener.dup()
    twin.close()
    assert len(names(local_directory)) == 1
    listener.close()
    listener.close()
    assert names(local_directory) == []


INHERITOR = """
import hvsock, sys
with hvsock.HyperVSocket(fileno=int(sys.argv[1])):
    print("has it", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["dup", "descriptor", "process"])
def test_a_listener_stays_until_its_last_owner_closes_it(how: str, local_directory: Path) -> None:
    """As on the real transports: a program that restarts hands its listener over and closes its own."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(listen(HOST, WILDCARD))
        if how == "dup":
            close: Callable[[], object] = first.dup().close
        elif how == "descriptor":
            close = hvsock.HyperVSocket(fileno=os.dup(first.fileno())).close
        else:
            words = [sys.executable, "-Ic", INHERITOR, str(first.fileno())]
            process = stack.enter_context(
                subprocess.Popen(words, pass_fds=[first.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            assert process.stdout is not None
            assert process.stdout.readline() == b"has it\n"
            close = process.communicate
        first.close()
        assert len(names(local_directory)) == 1
        dial(GUEST, PARENT).close()
        close()
        assert names(local_directory) == []
        with pytest.raises(ConnectionRefusedError):
            dial(GUEST, PARENT)


def test_a_listener_stays_until_its_last_process_closes_it(local_directory: Path) -> None:
    with Child(listeners.hand_over_by_fork, 5000) as child:
        assert child.line() == "closed"
        assert len(names(local_directory)) == 1
        dial(GUEST, PARENT).close()
        child.tell("close")
        child.finish()
    assert names(local_directory) == []


def test_a_connection_that_is_adopted_removes_no_name(local_directory: Path) -> None:
    """The kernel says of an accepted socket that its name is the listener's."""
    with listen(HOST, WILDCARD) as listener, dial(GUEST, PARENT), listener.accept()[0] as accepted:
        hvsock.HyperVSocket(fileno=os.dup(accepted.fileno())).close()
        assert len(names(local_directory)) == 1


def test_a_name_that_cannot_be_removed_is_no_error(local_directory: Path) -> None:
    with locked(local_directory), pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_module, "_PATIENCE", 0)
        patch.setattr(local_module, "_PAUSE", 0)
        with hvsock.HyperVSocket(transport="local") as sock:
            sock._after_close(functools.partial(local_module._remove, str(local_directory / "host.wildcard.1")))


def test_failed_listen_leaves_no_name(local_directory: Path) -> None:
    with pytest.raises((TypeError, OverflowError)):
        hvsock.create_server(("wildcard", 5000), backlog=1 << 40, transport="local")
    assert names(local_directory) == []


def test_refused_client_leaves_no_name(local_directory: Path) -> None:
    with pytest.raises(ConnectionRefusedError):
        dial(GUEST, PARENT)
    assert names(local_directory) == []


def test_closing_does_not_remove_anothers_name(local_directory: Path) -> None:
    """Someone cleaned the directory, and another service took the name: it is not this one's any more."""
    first = listen(HOST, WILDCARD)
    [name] = names(local_directory)
    (local_directory / name).unlink()
    with listen(HOST, WILDCARD) as second:
        first.close()
        assert names(local_directory) == [name]
        with dial(GUEST, PARENT):
            second.accept()[0].close()


def test_directory_removed_before_close(local_directory: Path) -> None:
    listener = listen(HOST, WILDCARD)
    for path in local_directory.iterdir():
        path.unlink()
    local_directory.rmdir()
    listener.close()
    with listen(HOST, WILDCARD):
        assert stat.S_IMODE(local_directory.stat().st_mode) == 0o700


def test_detached_listener_keeps_its_name(local_directory: Path) -> None:
    """Who takes the descriptor over takes the service over."""
    listener = listen(HOST, WILDCARD)
    with hvsock.HyperVSocket(fileno=listener.detach()) as again:
        listener.close()
        again.settimeout(LIMIT)
        with dial(GUEST, PARENT):
            again.accept()[0].close()


def test_killed_listener_is_replaced(local_directory: Path) -> None:
    """After kill -9 the name is still there, and nobody behind it: connect is refused, bind takes it over."""
    with Child(listeners.listen_and_wait, "wildcard", 5000) as child:
        assert child.line() == "listening"
        child.kill()
    assert len(names(local_directory)) == 1
    with pytest.raises(ConnectionRefusedError):
        dial(GUEST, PARENT)
    with listen(HOST, WILDCARD) as listener, dial(GUEST, PARENT):
        listener.accept()[0].close()
    assert names(local_directory) == []


def test_live_listener_is_not_replaced() -> None:
    with Child(listeners.listen_and_wait, "wildcard", 5000) as child:
        assert child.line() == "listening"
        with pytest.raises(OSError) as info:
            listen(HOST, WILDCARD)
        assert info.value.errno == errno.EADDRINUSE
        # It was not disturbed either: what it accepts first is a real client.
        with dial(GUEST, PARENT) as client:
            client.sendall(b"hello")
            assert child.line() == "accepted hello"
        child.finish()
    with listen(HOST, WILDCARD):
        pass


def test_bound_but_not_listening_is_live() -> None:
    """A name is taken from bind on, not from listen."""
    with hvsock.HyperVSocket(transport="local") as sock:
        sock.bind(("wildcard", SERVICE))
        with pytest.raises(ConnectionRefusedError):
            dial(GUEST, PARENT)
        with pytest.raises(OSError) as info:
            listen(HOST, WILDCARD)
        assert info.value.errno == errno.EADDRINUSE
        sock.listen()
        dial(GUEST, PARENT).close()


def test_full_listener_is_live() -> None:
    """A backlog without room does not make a listener look dead."""
    with contextlib.ExitStack() as stack:
        listener = utils.full_listener("local", stack)
        with pytest.raises(OSError) as info:
            hvsock.create_server(listener.getsockname(), transport="local")
        assert info.value.errno == errno.EADDRINUSE


def test_many_start_at_once() -> None:
    """Of many processes that take over a dead listener's name at the same time, exactly one gets it."""
    with Child(listeners.listen_and_wait, "wildcard", 5000) as child:
        assert child.line() == "listening"
        child.kill()
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(listeners.race_to_listen, "wildcard", 5000)) for _ in range(4)]
        for child in children:
            assert child.line() == "ready"
        for child in children:
            child.tell("go")
        results = [child.line() for child in children]
        assert sorted(results) == ["in use"] * 3 + ["listening"]
        with dial(GUEST, PARENT) as client:
            client.settimeout(LIMIT)
            assert utils.receive_exactly(client, 7) == b"welcome"
        for child in children:
            child.finish()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """As another process has it that takes a name."""
    import fcntl

    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def test_names_are_taken_one_after_the_other(local_directory: Path) -> None:
    """Who takes a name that nobody has waits for the lock too: while the kernel makes it, it looks like a dead one."""
    with locked(local_directory):
        task = Task(listen, HOST, WILDCARD)
        assert not task.wait(2 * TICK)
        assert names(local_directory) == []
    task.result().close()


def test_file_that_is_no_socket_is_not_replaced(local_directory: Path) -> None:
    with listen(HOST, WILDCARD):
        [name] = names(local_directory)
    path = local_directory / name
    path.write_text("precious")
    with pytest.raises(OSError) as info:
        listen(HOST, WILDCARD)
    assert info.value.errno == errno.EADDRINUSE
    assert path.read_text() == "precious"


@pytest.mark.parametrize("leads_to", ["nothing", "a file", "a dead socket", "a live socket"])
def test_name_that_is_a_link(leads_to: str, local_directory: Path) -> None:
    """What it leads to stays; it is replaced where no socket is alive behind it."""
    with listen(HOST, WILDCARD):
        [name] = names(local_directory)
    target = local_directory / "elsewhere"
    with socket.socket(socket.AF_UNIX) as other:
        if leads_to.endswith("socket"):
            other.bind(str(target))
            if leads_to == "a dead socket":
                other.close()
        elif leads_to == "a file":
            target.write_text("precious")
        before = target.lstat() if target.exists() else None
        (local_directory / name).symlink_to(target)
        if leads_to in ("a file", "a live socket"):
            with pytest.raises(OSError) as info:
                listen(HOST, WILDCARD)
            assert info.value.errno == errno.EADDRINUSE
            assert (local_directory / name).is_symlink()
        else:
            with listen(HOST, WILDCARD), dial(HOST, LOOPBACK):
                assert not (local_directory / name).is_symlink()
        assert (target.lstat() if target.exists() else None) == before


def test_name_is_fought_for(local_directory: Path) -> None:
    """Processes that take one name again and again, and are killed: one has it at a time, and it is never lost."""
    with contextlib.ExitStack() as stack:
        fighters = [stack.enter_context(Child(listeners.fight_for_a_name, 5000)) for _ in range(3)]
        for fighter in fighters:
            assert fighter.line() == "won"
        fighters.pop().kill()
        for fighter in fighters:
            for _ in range(20):
                assert fighter.line() == "won"
            fighter.kill()
    with listen(HOST, LOOPBACK), dial(HOST, LOOPBACK):
        assert "host.loopback.5000" in names(local_directory)
    assert "host.loopback.5000" not in names(local_directory)


def test_foreign_socket_in_the_directory(local_directory: Path) -> None:
    """A socket with another kind of name is no address of ours: it is zero, and nothing breaks."""
    path = local_directory / "something.else"
    with socket.socket(socket.AF_UNIX) as plain:
        plain.bind(str(path))
        plain.listen()
        with hvsock.HyperVSocket(fileno=os.dup(plain.fileno())) as listener:
            assert type(listener.getsockname()) is hvsock.HyperVAddress
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                listener.settimeout(LIMIT)
                accepted, address = listener.accept()
                with accepted:
                    assert type(address) is hvsock.HyperVAddress


def test_the_lock_is_no_childs(local_directory: Path) -> None:
    """A child that is forked while the lock is held has a part in it, and keeps it from nobody."""
    where = str(local_directory)
    read, write = os.pipe()
    with local_module._locked(where), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later warn of a fork beside a thread
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # until the parent is done
            os._exit(0)
    os.close(read)
    try:
        with listen(HOST, WILDCARD):
            pass
    finally:
        os.close(write)
        os.waitpid(child, 0)


def test_a_lock_that_is_kept(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory for all, anybody could."""
    monkeypatch.setattr(local_module, "_PATIENCE", TICK)
    with (
        locked(local_directory),
        pytest.raises(TimeoutError, match="another process keeps the directory of the local transport locked"),
    ):
        listen(HOST, WILDCARD)
    with listen(HOST, WILDCARD):
        assert len(names(local_directory)) == 1


def test_a_name_is_removed_when_no_socket_has_it(local_directory: Path) -> None:
    """Neither too early, nor another socket's, which may even have the same inode."""
    path = str(local_directory / "name")
    with _hvsock.Socket(socket.AF_UNIX) as one, _hvsock.Socket(socket.AF_UNIX) as other:
        remove = local_module.bind_path(one, path)
        remove()
        assert os.path.exists(path)
        one.close()
        remove()
        assert not os.path.exists(path)
        remove_other = local_module.bind_path(other, path)
        remove()
        assert os.path.exists(path)
        other.close()
        remove_other()
        assert not os.path.exists(path)


# The directory


def test_directory_is_made(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0700, whatever the umask."""
    new = local_directory / "new"
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", str(new))
    before = os.umask(0)
    try:
        with listen(HOST, WILDCARD):
            assert stat.S_IMODE(new.stat().st_mode) == 0o700
            assert len(names(new)) == 1
    finally:
        os.umask(before)


def test_directory_by_default(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HVSOCK_LOCAL_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(local_directory))
    with listen(HOST, WILDCARD):
        assert len(names(local_directory / "hvsock")) == 1
    # Not made, not touched: other tests on this machine may be using it.
    monkeypatch.setattr(os, "mkdir", lambda *_args, **_kwargs: None)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    try:
        found = local_module.directory()
    except FileNotFoundError as error:
        found = error.filename
    assert str(found) == f"/tmp/hvsock-{os.getuid()}"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_directory_that_others_may_write_to(mode: int, local_directory: Path) -> None:
    local_directory.chmod(mode)
    calls: list[Callable[[], Any]] = [lambda: listen(HOST, WILDCARD), lambda: dial(HOST, LOOPBACK)]
    for call in calls:
        with pytest.raises(PermissionError) as info:
            call()
        assert str(local_directory) in str(info.value)
    assert names(local_directory) == []


@pytest.mark.parametrize("between", ["", "inner"])
@pytest.mark.parametrize(("mode", "is_safe"), [(0o777, False), (0o703, False), (0o1777, True), (0o775, True)])
def test_directory_that_others_may_replace(
    mode: int, is_safe: bool, between: str, local_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to a directory above can rename it and make another one, unless that has the sticky bit."""
    private = local_directory / between / "private"
    private.mkdir(mode=0o700, parents=True)
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", str(private))
    local_directory.chmod(mode)
    if is_safe:
        with listen(HOST, WILDCARD), dial(HOST, LOOPBACK):
            return
    calls: list[Callable[[], Any]] = [lambda: listen(HOST, WILDCARD), lambda: dial(HOST, LOOPBACK)]
    for call in calls:
        with pytest.raises(PermissionError, match=f"{local_directory}, which has no sticky bit"):
            call()
    assert names(private) == []


def test_directory_that_was_replaced(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was safe says nothing of another one in its place."""
    private = local_directory / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", str(private))
    with listen(HOST, WILDCARD):
        pass
    local_directory.chmod(0o777)
    private.rename(local_directory / "before")
    private.mkdir(mode=0o700)
    with pytest.raises(PermissionError, match=f"{local_directory}, which has no sticky bit"):
        listen(HOST, WILDCARD)
    assert names(private) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root only: it gives a directory away")
def test_directory_of_somebody_else(local_directory: Path) -> None:
    os.chown(local_directory, 12345, -1)
    calls: list[Callable[[], Any]] = [lambda: listen(HOST, WILDCARD), lambda: dial(HOST, LOOPBACK)]
    for call in calls:
        with pytest.raises(PermissionError) as info:
            call()
        assert str(local_directory) in str(info.value)
    os.chown(local_directory, os.geteuid(), -1)


def test_directory_of_somebody_else_seen_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without root: somebody else is who asks."""
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    with pytest.raises(PermissionError):
        listen(HOST, WILDCARD)


@pytest.mark.parametrize("end", ["", "/", "/."])
def test_directory_that_is_a_link(local_directory: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Somebody else could point it anywhere."""
    link = local_directory / "link"
    target = local_directory / "target"
    target.mkdir(mode=0o700)
    link.symlink_to(target)
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", f"{link}{end}")
    with pytest.raises(OSError) as info:
        listen(HOST, WILDCARD)
    assert info.value.errno in (errno.ENOTDIR, errno.ELOOP, errno.EPERM)
    assert str(link) in str(info.value)
    assert names(target) == []


def test_directory_that_is_a_file(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = local_directory / "file"
    path.touch(mode=0o600)
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", str(path))
    with pytest.raises(OSError) as info:
        listen(HOST, WILDCARD)
    assert info.value.errno == errno.ENOTDIR


CHOICE = "set HVSOCK_LOCAL_DIR to a directory that you can use, the same for both ends"


@pytest.mark.parametrize("variable", ["HVSOCK_LOCAL_DIR", "XDG_RUNTIME_DIR"])
def test_directory_whose_parent_is_missing(
    variable: str, local_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable that has chosen it, and the one to set: under su and cron it is not one's own."""
    path = local_directory / "missing" / "hvsock"
    monkeypatch.delenv("HVSOCK_LOCAL_DIR")
    monkeypatch.setenv(variable, str(path if variable == "HVSOCK_LOCAL_DIR" else path.parent))
    for call in (listen, dial):
        with pytest.raises(FileNotFoundError) as info:
            call(HOST, LOOPBACK)
        assert info.value.strerror == f"{variable}: cannot make {path}: No such file or directory; {CHOICE}"
    with pytest.raises(FileNotFoundError, match="cannot make"):  # which is what `hvsock info` asks
        local_module.directory()


def test_directory_that_cannot_be_looked_at(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (local_directory / "file").touch()
    path = local_directory / "file" / "hvsock"
    monkeypatch.delenv("HVSOCK_LOCAL_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path.parent))
    for call in (lambda: listen(HOST, WILDCARD), local_module.directory):
        with pytest.raises(NotADirectoryError) as info:
            call()
        assert info.value.strerror == f"XDG_RUNTIME_DIR: cannot use {path}: Not a directory; {CHOICE}"


def test_directory_too_long(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's 108 bytes: said in the error, with what to do."""
    deep = local_directory / ("d" * 90)
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", str(deep))
    for use, vm in ((listen, SIBLING), (dial, PARENT)):
        with pytest.raises(OSError) as info:
            use(GUEST, vm, uuid.uuid4())
        assert info.value.errno == errno.ENAMETOOLONG
        assert "HVSOCK_LOCAL_DIR" in str(info.value)


def test_longest_names_fit_under_a_usual_directory() -> None:
    """Three GUIDs under the directory that a desktop session has."""
    with listen(GUEST, SIBLING, uuid.uuid4()) as listener:
        path = socket.socket.getsockname(listener)
        assert len(Path(path).name) + len("/run/user/65534/hvsock/") < 108


def test_relative_directory(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same place after a chdir, for the name that has to be removed then."""
    monkeypatch.chdir(local_directory)
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", "relative")
    listener = listen(HOST, WILDCARD)
    monkeypatch.chdir("/")
    assert len(names(local_directory / "relative")) == 1
    listener.close()
    assert names(local_directory / "relative") == []


def test_directory_with_bytes_that_are_no_text(local_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = os.fsdecode(os.fsencode(local_directory) + b"/\xff\xfe")
    monkeypatch.setenv("HVSOCK_LOCAL_DIR", directory)
    try:
        os.mkdir(directory, 0o700)
    except OSError as error:
        pytest.skip(f"this file system takes text only: {error}")
    with listen(HOST, WILDCARD) as listener:
        assert listener.getsockname() == (WILDCARD, SERVICE)
        with dial(GUEST, PARENT):
            listener.accept()[0].close()


# Between processes


def test_host_and_guest_processes() -> None:
    """Both directions, each end in a process of its own."""
    env = {"HVSOCK_LOCAL_VM": str(GUEST)}
    with Child(listeners.listen_and_wait, "parent", 6000, env=env) as guest:
        assert guest.line() == "listening"
        with dial(HOST, GUEST, 6000) as client:
            client.sendall(b"from the host")
            assert guest.line() == "accepted from the host"
            assert client.getpeername() == (GUEST, hvsock.service_id_from_port(6000))
        guest.finish()


def test_fork_does_not_remove_the_name(local_directory: Path) -> None:
    """A forked child that closes its copy of the listener leaves the service alone."""
    code = (
        "import os, sys, hvsock\n"
        "listener = hvsock.create_server(('wildcard', 5000), transport='local')\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    listener.close()\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "assert len(os.listdir(os.environ['HVSOCK_LOCAL_DIR'])) == 1\n"
        "hvsock.create_connection(('loopback', 5000), transport='local').close()\n"
        "listener.close()\n"
        "assert not os.listdir(os.environ['HVSOCK_LOCAL_DIR'])\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=LIMIT)


def test_listener_closed_while_clients_wait() -> None:
    """Connections that nobody accepted end with their listener."""
    listener = listen(HOST, WILDCARD)
    with dial(GUEST, PARENT) as client:
        task = Task(client.recv, 1)
        assert not task.wait(TICK)
        listener.close()
        with contextlib.suppress(ConnectionResetError):
            assert task.result() == b""
