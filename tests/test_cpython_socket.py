"""CPython's own tests of stream sockets, run with `socket.socket` swapped for ours, in child processes.

Three kinds of ours: the C type on AF_UNIX, with that family's own addresses; `HyperVSocket` on TCP; and each transport,
whose loopback passes for 127.0.0.1. What fails must fail again, alone, and not with the standard library's socket too:
else it says nothing about ours.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys

import pytest
import utils
from children import cpython
from shown_family import SHOWN_FAMILY
from utils import LIMIT, WINDOWS, Child

OLD = sys.version_info < (3, 12)

#: Classes that take about the same time together; each group runs in its own process at the same time.
STREAMS = (
    ("NetworkConnectionBehaviourTest", "BasicTCPTest", "BasicTCPTest2", "TCPCloserTest", "SendmsgTCPTest"),
    ("SendfileUsingSendTest", "SendfileUsingSendfileTest", "TCPTimeoutTest", "InterruptedSendTimeoutTest"),
    (
        "FileObjectClassTestCase",
        "UnbufferedFileObjectClassTestCase",
        "LineBufferedFileObjectClassTestCase",
        "BufferIOTest",
        "NetworkConnectionAttributesTest",
        "NetworkConnectionNoServer",
        "InheritanceTest",
        "NonblockConstantTest",
        "TestSocketSharing",
    ),
    (
        "SmallBufferedFileObjectClassTestCase",
        "UnicodeReadFileObjectClassTestCase",
        "UnicodeWriteFileObjectClassTestCase",
        "UnicodeReadWriteFileObjectClassTestCase",
        "NonBlockingTCPTests",
        "ContextManagersTest",
        "BasicSocketPairTest",
        "PurePythonSocketPairTest",
        "RecvmsgTCPTest",
        "RecvmsgIntoTCPTest",
    ),
)
#: What needs addresses of TCP, or other types of socket too.
TCP = (
    ("GeneralModuleTests",),
    ("CreateServerTest", "CreateServerFunctionalTest", "SendRecvFdsTests", "TestExceptions"),
)
#: What binds sockets to paths.
UNIX = (
    (
        "SendmsgUnixStreamTest",
        "RecvmsgUnixStreamTest",
        "RecvmsgIntoUnixStreamTest",
        "RecvmsgSCMRightsStreamTest",
        "RecvmsgIntoSCMRightsStreamTest",
        "TestUnixDomain",
        "TestLinuxAbstractNamespace",
    ),
)

SWAP = {
    "GeneralModuleTests.test_SocketType_is_socketobject": "it compares the swapped class with the original one",
    "GeneralModuleTests.test_sendall_interrupted": "its only signal may come before the call, which then hangs, as the "
    "standard library's does: test_signal_handler_raises has more signals than one",
    "GeneralModuleTests.test_sendall_interrupted_with_timeout": "the same",
}
HYPERV_SOCKET = {
    "GeneralModuleTests.test_socket_fileno": "it binds an AF_UNIX socket to a path: ours takes Hyper-V addresses",
    "SendRecvFdsTests.testSendAndRecvFds": "its files have no addresses of ours",
}
C_TYPE = {
    "TestLinuxAbstractNamespace.testAutobind": "a name made up by the kernel is AF_UNIX's own, and no transport's",
}
TRANSPORT = {
    "NetworkConnectionAttributesTest.testFamily": "it compares the family with TCP's",
    "NetworkConnectionBehaviourTest.testOutsideTimeout": "its server sends after the client has gone: an error at "
    "once on AF_UNIX and AF_VSOCK, and later on TCP",
    "ContextManagersTest.testCreateConnectionClose": "the same",
    "BufferIOTest.testRecvFromIntoEmptyBuffer": "the same, the other way round: its server does not wait",
    "BufferIOTest.testRecvFromIntoSmallBuffer": "the same",
    "SendfileUsingSendTest.test_errors": "it makes a datagram socket, which Hyper-V has not",
    "SendfileUsingSendfileTest.test_errors": "the same",
    "InterruptedSendTimeoutTest.testInterruptedSendtoTimeout": "sendto() with an address is TCP's",
    "PurePythonSocketPairTest.test_ipv6": "there is no IPv6 over a transport",
}
#: Windows has no socketpair() of its own, and Python's compares the address of the accepted end with the one that was
#: dialled. Over AF_HYPERV they differ (microsoft/go-winio, hvsock_test.go).
SOCKETPAIR = {"BasicSocketPairTest", "PurePythonSocketPairTest"}
HYPERV = {
    "InheritanceTest.test_socketpair": "the same as for the classes in SOCKETPAIR",
    "TestSocketSharing.testTypes": "it makes a datagram socket, which Hyper-V has not",
}
#: CPython 3.11 does not know 34, AF_HYPERV: it takes it for the number of a family that nobody has, and refuses what
#: has an address of it in its own methods.
WINDOWS_3_11 = {"GeneralModuleTests.test_unknown_socket_family_repr": "its unknown family is AF_HYPERV"}
HYPERV_3_11 = {
    "BasicTCPTest.testOverFlowRecvFrom": "recvfrom() is the base class's, and has an address",
    "BasicTCPTest.testRecvFrom": "the same",
    "BasicTCPTest2.testOverFlowRecvFrom": "the same",
    "BasicTCPTest2.testRecvFrom": "the same",
    "BufferIOTest.testRecvFromIntoArray": "the same",
    "BufferIOTest.testRecvFromIntoBytearray": "the same",
    "BufferIOTest.testRecvFromIntoMemoryview": "the same",
    "TestSocketSharing.testShare": "its other process accepts with the standard library's socket",
}
#: What AF_VSOCK does otherwise than AF_UNIX and TCP.
VSOCK = {
    "NetworkConnectionNoServer.test_connect": "where nobody listens, AF_VSOCK says ECONNRESET and TCP ECONNREFUSED",
    "NetworkConnectionNoServer.test_create_connection": "the same",
}
#: Where the tests are shown another family than AF_UNIX (shown_family.py).
SHOWN = {"BasicSocketPairTest.testDefaults": "a socketpair is of AF_UNIX itself"} if SHOWN_FAMILY else {}


def run(kind: str, groups: tuple[tuple[str, ...], ...], excluded: dict[str, str]) -> tuple[int, dict[str, str]]:
    """Run groups of classes at the same time; return how many tests ran, and which failed with what last line."""
    ran, failed = 0, {}
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                Child(cpython.run_sockets, kind, index, len(groups), *group, *(f"-{name}" for name in excluded))
            )
            for index, group in enumerate(groups)
        ]
        for child in children:
            for line in child.finish(4 * LIMIT):
                ran += 1
                outcome, name, *error = line.split(" ", 2)
                if outcome == "failed":
                    failed[name] = "".join(error)
    return ran, failed


def check(kind: str, groups: tuple[tuple[str, ...], ...], excluded: dict[str, str]) -> None:
    """Run the groups; what fails twice must fail with the standard library's socket too."""
    if importlib.util.find_spec("test.test_socket") is None:
        pytest.skip("this interpreter comes without its `test` package: install it (Debian: libpython3-testsuite)")
    ran, failed = run(kind, groups, {**SWAP, **SHOWN, **excluded})
    assert ran > 10 * len(groups)
    if failed:
        # Some of CPython's tests have races of their own: it runs what failed again too (regrtest --rerun).
        _, failed = run(kind, (tuple(failed),), {})
    if failed:
        _, expected = run("stdlib", (tuple(failed),), {})
        failed = {name: error for name, error in failed.items() if name not in expected}
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())


@pytest.mark.skipif(WINDOWS, reason="POSIX only: Python has no AF_UNIX on Windows")
def test_c_type_on_unix() -> None:
    check("_hvsock.Socket", UNIX, C_TYPE)


def test_hyperv_socket_on_tcp() -> None:
    check("HyperVSocket", STREAMS + TCP, {**HYPERV_SOCKET, **(WINDOWS_3_11 if WINDOWS and OLD else {})})


def test_transport(transport: str) -> None:
    if transport == "hyperv":
        groups = tuple(tuple(name for name in group if name not in SOCKETPAIR) for group in STREAMS)
        check(transport, groups, {**TRANSPORT, **HYPERV, **(HYPERV_3_11 if OLD else {})})
    else:
        check(transport, STREAMS, {**TRANSPORT, **(VSOCK if transport == "vsock" else {})})


def test_exclusions_exist() -> None:
    """An exclusion of a test that is gone would hide that its successor is not run."""
    if importlib.util.find_spec("test.test_socket") is None:
        pytest.skip("this interpreter comes without its `test` package: install it (Debian: libpython3-testsuite)")
    names = [*SWAP, *HYPERV_SOCKET, *C_TYPE, *TRANSPORT, *HYPERV, *WINDOWS_3_11, *HYPERV_3_11, *VSOCK]
    utils.run_child(cpython.check_names, *names)
