"""CPython's own tests of asyncio over our sockets, in child processes, and the table of what is left out of them.

`HyperVSocket` on TCP takes the place of `socket.socket`, with the loop's own functions; and over each transport, whose
loopback passes for 127.0.0.1, hvsock.aio's functions and event loop also take the place of asyncio's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from fnmatch import fnmatchcase

import pytest
from children import cpython
from shown_family import NO_TLS, SHOWN_FAMILY
from utils import LIMIT, WINDOWS, WINE, Child

#: Modules of `test.test_asyncio` that take about the same time together; each group runs in its own process.
MODULES = (
    ("test_events", "test_buffered_proto"),
    ("test_ssl", "test_server"),
    ("test_sock_lowlevel", "test_streams", "test_sendfile", "test_sslproto"),
)

# The table: a pattern for names of tests, and why they are left out. What is left out has to fail, or it would belong
# to the rest; but what is NOT_TRIED.

#: Of which it is known that it says nothing more, or it cannot be run to see.
NOT_TRIED = {
    "test_events.PollEventLoopTests.*": "slow: the same loop over another selector",
    "test_sendfile.PollEventLoopTests.*": "the same",
    "test_sock_lowlevel.PollEventLoopTests.*": "the same",
}
if not WINDOWS:
    NOT_TRIED["test_events.*.test_get_event_loop_new_process"] = (
        "from 3.12 on, its process comes over a path of AF_UNIX, and ours takes Hyper-V addresses"
    )
    NOT_TRIED |= {name.replace(".Poll", ".Select"): why for name, why in NOT_TRIED.items() if ".Poll" in name}
if WINE:
    NOT_TRIED |= {
        "test_ssl.TestSSL.test_remote_shutdown_receives_trailing_data": "hangs under Wine, with socket.socket too",
        "test_sock_lowlevel.*.test_datagram_send_to_non_listening_address*": "the same",
        "*.test_start_tls_client_corrupted_ssl": "fails now and then under Wine, with socket.socket too",
    }

LEFT_OUT = {
    "test_events.*.test_create_ssl_unix_connection": "binds to a path of AF_UNIX: ours takes Hyper-V addresses",
    "test_events.*.test_create_unix_connection": "the same",
    "test_events.*.test_create_unix_server": "the same",
    "test_events.*.test_create_unix_server_ssl": "the same",
    "test_events.*.test_create_unix_server_ssl_verified": "the same",
    "test_events.*.test_create_unix_server_ssl_verify_failed": "the same",
    "test_server.*.test_start_unix_server_1": "the same",
    "test_server.UnixServerCleanupTests.*": "the same",
    "test_sock_lowlevel.*.test_unix_sock_client_ops": "the same",
    "test_streams.*.test_open_unix_connection": "the same",
    "test_streams.*.test_open_unix_connection_error": "the same",
    "test_streams.*.test_open_unix_connection_no_loop_ssl": "the same",
    "test_streams.*.test_start_unix_server": "the same",
}
#: Over a transport, and with hvsock.aio.
TRANSPORT_NOT_TRIED = {
    "test_events.*.test_ssl_connect_accepted_socket": "hangs: its client, in a thread, wraps its socket in TLS before "
    "it connects it, which `ssl` then does by itself, with addresses that it does not know (docs/howto/tls.md)",
    "test_server.TestServer2.test_close_clients": "fails now and then: it counts turns of the loop, and to close a "
    "connection that has no transport yet, hvsock.aio takes one more",
}
TRANSPORT = {
    "test_ssl.TestSSL.test_create_server_ssl_1": "wraps its socket in TLS before it connects it, as above",
    "test_events.*.test_create_datagram_endpoint": "makes a datagram socket, which Hyper-V has not",
    "test_events.*.test_create_datagram_endpoint_ipv6": "the same",
    "test_events.*.test_create_datagram_endpoint_sock": "the same",
    "test_events.*.test_datagram_*": "the same",
    "test_sendfile.*.test_sendfile_not_supported": "the same",
    "test_sock_lowlevel.*.test_recvfrom*": "the same",
    "test_sock_lowlevel.*.test_sendto_blocking": "the same",
    "test_events.*.test_create_server_dual_stack": "IPv6 is TCP's",
    "test_events.*.test_create_server_reuse_port": "SO_REUSEPORT is TCP's",
    "test_events.*.test_create_server_trsock": "asyncio wraps the sockets of a server; hvsock.aio shows its own",
    "test_events.*.test_create_ssl_connection": "has ssl=True, and hvsock.aio wants a context",
    "test_ssl.TestSSL.test_connect_timeout_warning": "the same",
    "test_server.*.test_start_server_1": "reads what is private in asyncio's Server",
}
VSOCK = {
    "test_events.*.test_server_close": "where nobody listens, AF_VSOCK says ECONNRESET and TCP ECONNREFUSED",
    "test_sock_lowlevel.*.test_cancel_sock_accept": "the same",
    "test_sock_lowlevel.*.test_sock_client_fail": "the same",
    "test_sock_lowlevel.*.test_sock_accept": "compares a client's own address with what the listener saw: its own CID "
    "reads as VMADDR_CID_ANY",
}
HYPERV = {
    "test_events.*.test_create_connection_local_addr_in_use": "a name that is taken is refused by listen(), and not by "
    "bind()",
}
OF_TRANSPORT = {"vsock": VSOCK, "hyperv": HYPERV}
HYPERV_NOT_TRIED = {
    "test_streams.StreamTests.test_unhandled_exception": "fails now and then: the connection comes by way of a thread, "
    "after the test has ended",
    "test_ssl.TestSSL.test_flush_before_shutdown": "under Wine, the end of TLS is not seen within 30 s here, and is "
    "in a program that does the same by itself",
    "test_streams.StreamTests.test_drain_raises": "under Wine, a send to a peer that has gone may fail with "
    "ERROR_NETNAME_DELETED, which Python makes a plain OSError",
}
if sys.version_info[:2] == (3, 12):
    TRANSPORT |= {
        "test_server.TestServer2.test_wait_closed_basic": "calls what is private in asyncio's Server",
        "test_server.TestServer2.test_wait_closed_race": "the same",
    }
if sys.version_info >= (3, 14):
    TRANSPORT["test_streams.StreamTests.test_open_connection_happy_eyeball_refcycles"] = (
        "a Hyper-V address stands for no others that could be tried meanwhile"
    )


def tables(kind: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return what is left out of the run with sockets of `kind`: what has to fail, and what is not tried."""
    if kind in ("stdlib", "HyperVSocket"):
        return LEFT_OUT, NOT_TRIED
    left_out = LEFT_OUT | TRANSPORT | OF_TRANSPORT.get(kind, {})
    return left_out, NOT_TRIED | TRANSPORT_NOT_TRIED | (HYPERV_NOT_TRIED if kind == "hyperv" else {})


Outcomes = dict[str, tuple[str, str]]


def run(kind: str, part: str, groups: tuple[tuple[str, ...], ...] = MODULES) -> Outcomes:
    """Run groups of modules or tests at the same time; return what became of each test, by name, and its last line."""
    if importlib.util.find_spec("test.test_asyncio") is None:
        pytest.skip("this interpreter comes without its `test` package: install it (Debian: libpython3-testsuite)")
    outcomes = {}
    patterns = json.dumps([[*table] for table in tables(kind)])
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(Child(cpython.run_asyncio, kind, index, len(groups), part, patterns, *group))
            for index, group in enumerate(groups)
        ]
        for child in children:
            for line in child.finish(4 * LIMIT):
                outcome, name, reason = line.split(" ", 2)
                outcomes[name] = outcome, reason
    return outcomes


def failures(outcomes: Outcomes) -> tuple[str, ...]:
    return tuple(name for name, (outcome, _) in outcomes.items() if outcome == "failed")


def check(kind: str) -> None:
    """Run what is not left out; what fails twice must fail with the standard library's socket too."""
    outcomes = run(kind, "run")
    assert len(outcomes) > 200
    # Some of CPython's tests have races of their own: it runs what failed again too (regrtest --rerun).
    if names := failures(outcomes):
        outcomes = run(kind, "run", (names,))
    if names := failures(outcomes):
        expected = failures(run("stdlib", "run", (names,)))
        assert not set(names) - set(expected), "\n".join(f"{name}: {outcomes[name][1]}" for name in names)


def check_table(kind: str) -> None:
    """Run what is left out: it has to fail, and to exist."""
    outcomes = run(kind, "left-out")
    passed = [name for name, (outcome, _) in outcomes.items() if outcome == "passed"]
    assert not passed, f"left out, and they pass: {', '.join(passed)}"
    if sys.version_info >= (3, 13) and not WINDOWS:
        left_out, _ = tables(kind)
        gone = [pattern for pattern in left_out if not any(fnmatchcase(name, pattern) for name in outcomes)]
        assert not gone, f"left out, and there are none: {', '.join(gone)}"


def test_hyperv_socket_on_tcp() -> None:
    check("HyperVSocket")


def test_table_on_tcp() -> None:
    check_table("HyperVSocket")


def test_transport(transport: str) -> None:
    if SHOWN_FAMILY == "hyperv":
        pytest.skip(NO_TLS)
    if transport == "hyperv" and sys.version_info < (3, 12):
        pytest.skip("CPython has sockets of AF_HYPERV from 3.12 on, and TLS makes one")
    check(transport)


def test_table_of_transport(transport: str) -> None:
    check_table(transport)
