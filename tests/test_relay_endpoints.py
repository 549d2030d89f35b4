"""Addresses that only some systems have: inherited listeners, abstract names, and who may connect to a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from utils import LIMIT, WINDOWS, open_descriptors, receive_all, receive_exactly

from hvsock.relay import Relay, _native

posix_only = pytest.mark.skipif(WINDOWS, reason="POSIX only: run it there")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract names: run it there")


@pytest.fixture
def server() -> Iterator[str]:
    """Serve one client at a URI: say what it has said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)

        def serve() -> None:
            with listener.accept()[0] as sock:
                sock.settimeout(LIMIT)
                sock.sendall(receive_all(sock).upper())

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def answer_of(family: int, address: object) -> bytes:
    with socket.socket(family) as client:
        client.settimeout(LIMIT)
        client.connect(address)  # type: ignore[arg-type]
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)


# Inherited listeners


def tcp_listener(_directory: Path) -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def unix_listener(directory: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "s"))
    listener.listen()
    return listener


@posix_only
@pytest.mark.parametrize("make", [tcp_listener, unix_listener])
@pytest.mark.parametrize("form", ["fd:{}", "fd://{}"])
def test_an_inherited_listener(
    make: Callable[[Path], socket.socket], form: str, server: str, local_directory: Path
) -> None:
    """It is accepted on, and is there afterwards as it was before."""
    with make(local_directory) as listener:
        before = open_descriptors()
        uri = form.format(listener.fileno())
        with Relay(uri, server) as relay:
            assert relay.address == uri
            assert answer_of(listener.family, listener.getsockname()) == b"HELLO"
        assert relay.counters[:5] == (0, 1, 0, 0, 0)
        assert open_descriptors() == before
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


@posix_only
def test_an_inherited_listener_is_used_again(server: str) -> None:
    """A relay runs once, and another one can take its place: as on SIGHUP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"fd:{listener.fileno()}"
        with Relay(uri, server):
            pass
        with Relay(uri, server):
            assert answer_of(socket.AF_INET, listener.getsockname()) == b"HELLO"


@posix_only
def test_the_command_takes_over_a_listener(server: str) -> None:
    """As systemd's socket activation passes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        command = [sys.executable, "-Im", "hvsock", "relay", f"fd:{number}", server]
        with subprocess.Popen(command, pass_fds=[number], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout
                assert process.stdout.readline().decode() == f"listening on fd:{number} for {server}\n"
                assert answer_of(socket.AF_INET, listener.getsockname()) == b"HELLO"
            finally:
                process.terminate()


@posix_only
def test_descriptors_that_are_no_listeners() -> None:
    def why_not(number: int) -> tuple[int | None, str, list[str]]:
        with pytest.raises(OSError) as caught:
            Relay(f"fd:{number}", "tcp://:1").start()
        return caught.value.errno, str(caught.value), caught.value.__notes__

    with socket.socket() as bound, Path(os.devnull).open() as file, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        bound.bind(("127.0.0.1", 0))
        before = open_descriptors()
        assert why_not(file.fileno())[0] == errno.ENOTSOCK
        for sock in (bound, datagram):
            assert "is a socket that does not listen" in why_not(sock.fileno())[1]
        number, _, notes = why_not(999_999_999)
        gc.collect()  # the exceptions' traces
        assert open_descriptors() == before
    assert number == errno.EBADF
    assert notes == [
        "the process was not started with a socket as descriptor 999999999; systemd's first is 3",
        "listen on fd:999999999",
    ]


def test_an_inherited_listener_is_not_a_target() -> None:
    with pytest.raises(ValueError, match="'fd:3' can be listened on, but not connected to: it is a listener"):
        Relay("tcp://:0", "fd:3")


@pytest.mark.skipif(not WINDOWS, reason="Windows only: run it there")
def test_windows_passes_no_listeners() -> None:
    with pytest.raises(OSError, match="a process is not started with sockets"):
        Relay("fd:3", "tcp://:1").start()


@posix_only
def test_only_windows_has_named_pipes() -> None:
    with pytest.raises(OSError, match="only Windows has such pipes"):
        Relay("npipe:name", "tcp://:1").start()


def send_a_descriptor(sock: socket.socket) -> None:
    socket.send_fds(sock, [b"a"], [sock.fileno()])


def send_urgently(sock: socket.socket) -> None:
    sock.sendall(b"a")
    sock.send(b"!", socket.MSG_OOB)


@posix_only
@pytest.mark.parametrize(("make", "send"), [(unix_listener, send_a_descriptor), (tcp_listener, send_urgently)])
def test_what_a_receive_stops_at(
    make: Callable[[Path], socket.socket], send: Callable[[socket.socket], None], local_directory: Path
) -> None:
    """It does not come through, and what was sent after it is not held up."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(make(local_directory))
        target = stack.enter_context(tcp_listener(local_directory))
        client = stack.enter_context(socket.socket(source.family))
        client.connect(source.getsockname())
        send(client)
        client.sendall(b"b")
        stack.enter_context(Relay(f"fd:{source.fileno()}", f"tcp:127.0.0.1:{target.getsockname()[1]}"))
        target.settimeout(LIMIT)
        server = stack.enter_context(target.accept()[0])
        server.settimeout(LIMIT)
        assert receive_exactly(server, 2) == b"ab"


# Abstract names


@linux_only
@pytest.mark.parametrize("form", ["unix:@{}", "unix://@{}"])
def test_an_abstract_name(form: str, server: str) -> None:
    """To listen on, and as the target: through two relays."""
    name = f"hvsock test {os.getpid()}"
    uri = form.format(name.replace(" ", "%20"))
    with Relay(uri, server) as inner, Relay("tcp://:0", uri) as outer:
        assert inner.address == uri
        host, _, port = outer.address.removeprefix("tcp://").rpartition(":")
        assert f"@{name}" in Path("/proc/net/unix").read_text()
        assert answer_of(socket.AF_INET, (host, int(port))) == b"HELLO"
    assert f"@{name}" not in Path("/proc/net/unix").read_text()


@linux_only
def test_an_abstract_name_that_is_taken() -> None:
    uri = f"unix:@hvsock-test-{os.getpid()}"
    with Relay(uri, "tcp://:1"), pytest.raises(OSError) as caught:
        Relay(uri, "tcp://:1").start()
    assert caught.value.errno == errno.EADDRINUSE


@linux_only
def test_the_length_of_an_abstract_name() -> None:
    with Relay(f"unix:@{'a' * 107}", "tcp://:1"):
        pass
    with pytest.raises(ValueError, match=f"must stay below 108 bytes; '{'a' * 20}.* has 108"):
        Relay(f"unix:@{'a' * 108}", "tcp://:1")


@pytest.mark.skipif(sys.platform == "linux", reason="Linux has them: run it elsewhere")
def test_only_linux_has_abstract_names() -> None:
    with pytest.raises(OSError, match="only Linux has"):
        Relay("unix:@name", "tcp://:1").start()


# As the system has them


@pytest.mark.parametrize(
    ("has_length", "unix", "tcp"),
    [
        (False, struct.pack("=H", 1), struct.pack("=H", socket.AF_INET)),
        (True, b"\x05\x01", bytes((16, socket.AF_INET))),
    ],
    ids=["linux", "bsd"],
)
def test_an_address_as_bytes(monkeypatch: pytest.MonkeyPatch, has_length: bool, unix: bytes, tcp: bytes) -> None:
    monkeypatch.setattr(_native, "_HAS_LENGTH", has_length)
    assert _native.to_unix(PurePosixPath("/a")) == (1, 0, unix + b"/a\0")
    ((family, _, native),) = _native.to_tcp("127.0.0.1", 80)
    assert (family, native) == (socket.AF_INET, tcp + b"\0\x50\x7f\0\0\x01" + bytes(8))
    assert _native.text_of(native) == "127.0.0.1:80"
    assert [_native.text_of(native[:n]) for n in range(3)] == [None, None, None]


# Who may connect to a Unix socket


@posix_only
@pytest.mark.parametrize(("mode", "bits"), [("660", 0o660), ("0600", 0o600), ("777", 0o777)])
def test_the_mode_of_a_unix_socket(mode: str, bits: int, local_directory: Path) -> None:
    path = local_directory / "s"
    with Relay(f"unix://{path}?mode={mode}", "tcp://:1"):
        assert stat.S_IMODE(path.stat().st_mode) == bits
    assert not path.exists()


@posix_only
def test_the_group_of_a_unix_socket(local_directory: Path) -> None:
    import grp

    path = local_directory / "s"
    number = os.getgid()
    if os.geteuid() == 0:  # who can give any
        number += 1
        with Relay(f"unix://{path}?group={number}&mode=770", "tcp://:1"):
            assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (number, 0o770)
        number = max(grp.getgrall(), key=lambda group: group.gr_gid).gr_gid
    with Relay(f"unix://{path}?group={grp.getgrgid(number).gr_name}", "tcp://:1"):
        assert path.stat().st_gid == number


@posix_only
def test_a_group_that_is_missing(local_directory: Path) -> None:
    """The socket is removed again."""
    path = local_directory / "s"
    with pytest.raises(ValueError, match="there is no group 'no such group'"):
        Relay(f"unix://{path}?group=no%20such%20group", "tcp://:1").start()
    assert not path.exists()


@posix_only
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("mode=", "the mode must be three octal digits, such as 660, not ''"),
        ("mode=999", "such as 660, not '999'"),
        ("mode=1777", "such as 660, not '1777'"),
        ("mode=rw", "such as 660, not 'rw'"),
        ("group=", "the group is missing"),
        ("mode=660&mode=600", "an option is given twice"),
        ("owner=me", "there is no option 'owner'"),
    ],
)
def test_malformed_access(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Relay(f"unix:///run/s?{options}", "tcp://:1")


@linux_only
def test_an_abstract_name_has_no_access() -> None:
    with pytest.raises(ValueError, match="a socket with an abstract name has neither mode nor group"):
        Relay("unix:@name?mode=600", "tcp://:1")


@posix_only
def test_access_is_not_for_a_target() -> None:
    with pytest.raises(ValueError, match="mode and group are those of a socket that the relay makes"):
        Relay("tcp://:0", "unix:///run/s?mode=600")
