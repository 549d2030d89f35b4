"""The package exports the exact sum of its modules, and every source module has its test module."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import pkgutil
import re
import socket
import subprocess
import sys
import typing
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import utils

import hvsock
from hvsock import _addresses, _sockets, aio, relay, services, vms

PUBLIC = (hvsock, aio, relay, services, vms)
#: The directives by which the reference takes a docstring: the last one's indentation says that it is of a class.
DIRECTIVE = re.compile(r"^( *)\.\. (currentmodule|auto\w+):: ([\w.]+)", re.MULTILINE)

#: Public modules that are used by their own name and not re-exported.
NAMESPACES = {"aio", "relay", "services", "vms"}
#: What the package gives of the modules that it does not give the whole of.
FROM_OTHERS = {"connections", "IncompleteReadError", "Transport", "default_transport", "transports"}
#: Modules whose test module has another name than their own.
TESTED_ELSEWHERE = {
    "aio": "test_aio_streams",
    "aio_connect": "test_aio_serve",
    "aio_uvloop": "test_aio_streams",
    "aio_links": "test_aio_messages",
    "aio_parser": "test_fuzz",
    "aio_server": "test_aio_streams",
    "aio_turns": "test_aio_messages",
    "cli_clients": "test_cli_echo",
    "cli_options": "test_cli",
    "cli_output": "test_cli",
    "cli_throughput": "test_cli_bench",
    "hvsock": "test_streams",
    "integrations": "test_exports",
    "integrations_httpcore_asyncio": "test_integrations_httpx",
    "integrations_httpcore_sync": "test_integrations_httpx",
    "integrations_httpx_models": "test_integrations_httpx",
    "integrations_pairs": "test_integrations_uvicorn",
    "integrations_watched": "test_integrations_trio",
    "names": "test_exports",
    "relay_access": "test_relay_endpoints",
    "relay_attempt": "test_relay",
    "relay_endpoints": "test_relay",
    "relay_engine": "test_relay",
    "relay_listeners": "test_relay",
    "relay_native": "test_relay",
    "relay_pipes": "test_relay_endpoints",  # and windows/test_relay_pipes.py
    "relay_relay": "test_relay",
    "relay_tcp": "test_relay",
    "shown": "test_addresses",
    "transports": "test_sockets",
    "transports_base": "test_sockets",
    **{
        f"vms_{name}": "test_vms" for name in ("guest", "hcs", "programs", "records", "registry", "vsock", "wmi", "wsl")
    },
}

INTS = {
    "AF_HYPERV": 34,
    "HV_PROTOCOL_RAW": 1,
    "HVSOCKET_CONNECT_TIMEOUT": 1,
    "HVSOCKET_CONNECT_TIMEOUT_MAX": 300_000,
    "HVSOCKET_CONTAINER_PASSTHRU": 2,
    "HVSOCKET_CONNECTED_SUSPEND": 4,
    "HVSOCKET_HIGH_VTL": 8,
}
GUIDS = ["ZERO", "WILDCARD", "BROADCAST", "CHILDREN", "LOOPBACK", "PARENT", "SILOHOST", "VSOCK_TEMPLATE"]
CALLABLES = [
    "HyperVAddress",
    "HyperVSocket",
    "cid_from_vm_id",
    "container_vm_id",
    "create_connection",
    "create_server",
    "default_transport",
    "port_from_service_id",
    "service_id_from_port",
    "transports",
    "vm_id_from_cid",
]


def modules() -> list[str]:
    """Return the names of the package's modules, without the package's own."""
    found = pkgutil.walk_packages(hvsock.__path__, "hvsock.")
    return sorted(module.name.removeprefix("hvsock.") for module in found)


def test_all_is_the_sum_of_the_modules() -> None:
    expected = set(FROM_OTHERS)
    for module in (_addresses, _sockets):
        for name in module.__all__:
            assert getattr(hvsock, name) is getattr(module, name)
        assert not expected & set(module.__all__)
        expected |= set(module.__all__)
    assert set(hvsock.__all__) - NAMESPACES == expected
    assert len(set(hvsock.__all__)) == len(hvsock.__all__)


@pytest.mark.parametrize("name", [name for name in modules() if not name.startswith(("__", "_cli", "_hvsock"))])
def test_module_exports_what_it_defines(name: str) -> None:
    """`__all__` is sorted, and holds every public class and function that the module defines, and nothing private."""
    try:
        module = importlib.import_module(f"hvsock.{name}")
    except ModuleNotFoundError as error:
        if not name.startswith("integrations.") or str(error.name).startswith("hvsock"):
            raise
        pytest.skip(f"{error.name} is not installed: pip install 'hvsock[{name.rpartition('.')[2]}]'")
    assert [export for export in module.__all__ if export.startswith("_")] == []
    for export in module.__all__:
        assert hasattr(module, export), export
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    own = {it.name for it in ast.parse(inspect.getsource(module)).body if isinstance(it, kinds)}
    internal = {
        *("address_of", "as_hyperv_service_id", "as_service_id", "as_vm_id", "parse_guid"),
        *("vsock_address", "vsock_port_from_service_id", "warn_of_high_port"),
    }
    assert {key for key in own if not key.startswith("_")} - internal <= set(module.__all__)


def test_aio_is_the_sum_of_its_modules() -> None:
    from hvsock import aio
    from hvsock.aio import _messages, _serve, _streams

    modules = (_messages, _serve, _streams)
    assert set(aio.__all__) == {
        "connect",
        "connections",
        "new_event_loop",
        *(name for module in modules for name in module.__all__),
    }
    for module in modules:
        for name in module.__all__:
            assert getattr(aio, name) is getattr(module, name)
            assert inspect.getdoc(getattr(aio, name)), name
            assert getattr(aio, name).__module__ == "hvsock.aio"  # as signatures, reprs and the reference name it
    functions = {"open_connection", "start_server", "create_connection", "create_server"}
    assert functions | {"MessageStream", "connect_messages", "serve_messages"} <= set(aio.__all__)


def test_public_names() -> None:
    """The names that design and documentation promise, and what they are."""
    for name, value in INTS.items():
        assert getattr(hvsock, name) == value
        assert type(getattr(hvsock, name)) is int
    for name in GUIDS:
        assert type(getattr(hvsock, f"HV_GUID_{name}")) is uuid.UUID
    for name in CALLABLES:
        assert callable(getattr(hvsock, name))
    assert {*INTS, *(f"HV_GUID_{name}" for name in GUIDS), *CALLABLES} <= set(hvsock.__all__)
    assert issubclass(hvsock.HyperVSocket, socket.socket)
    assert isinstance(hvsock.__version__, str)
    assert set(dir(hvsock)) >= set(hvsock.__all__)


def test_public_things_are_documented() -> None:
    for name in hvsock.__all__:
        value = getattr(hvsock, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
    for name, value in vars(hvsock.HyperVSocket).items():
        if not name.startswith("_"):
            assert inspect.getdoc(value), name


def documented() -> Iterator[str]:
    """Yield the full name of what each directive of autodoc in the reference shows; methods are indented there."""
    for page in sorted((utils.TESTS.parent / "docs" / "reference").glob("*.md")):
        module = owner = ""
        for indent, kind, name in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if kind in ("currentmodule", "automodule"):
                module = owner = name
                yield name
            else:
                full = f"{owner if indent else module}.{name}"
                owner = owner if indent else full
                yield full


def test_what_is_documented_is_found_under_its_name() -> None:
    names = set(documented())
    assert {"hvsock.Address", "hvsock.HyperVSocket.recv_exactly", "hvsock.Transport", "hvsock.relay"} <= names
    for name in names:
        assert not re.search(r"\._(?!_)", name), name
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_public_things_show_their_public_name(module: ModuleType) -> None:
    """And are found by it, as pickles do."""
    for name in module.__all__:
        exported = getattr(module, name)
        if inspect.isclass(exported) or inspect.isfunction(exported):
            assert exported.__module__ in {public.__name__ for public in PUBLIC}, name
            assert exported.__qualname__ == name
            assert pickle.loads(pickle.dumps(exported)) is exported


def test_the_types_of_fields_are_found() -> None:
    """Of a class they are looked up in the module that it names, which is not the one that it was written in."""
    assert typing.get_type_hints(hvsock.HyperVAddress) == {"vm_id": uuid.UUID, "service_id": uuid.UUID}
    for module in PUBLIC:
        for name in module.__all__:
            if inspect.isclass(getattr(module, name)):
                typing.get_type_hints(getattr(module, name))


def test_an_address_survives_pickling() -> None:
    address = hvsock.as_address(("parent", 5000))
    pickled = pickle.dumps(address, protocol=0)
    assert b"chvsock\nHyperVAddress\n" in pickled
    assert pickle.loads(pickled) == address
    assert type(pickle.loads(pickled)) is hvsock.HyperVAddress


def test_every_module_has_its_tests() -> None:
    tests = {path.stem for path in utils.TESTS.glob("test_*.py")}
    tests |= {path.stem.replace("_", "_integrations_", 1) for path in utils.TESTS.glob("integrations/test_*.py")}
    for name in modules():
        flat = "_".join(part.strip("_") for part in name.split("."))
        assert TESTED_ELSEWHERE.get(flat, f"test_{flat}") in tests, name


def test_the_package_is_typed() -> None:
    directory = Path(hvsock.__file__).parent
    assert (directory / "py.typed").exists()
    assert (directory / "_hvsock.pyi").exists()


def test_import_is_light_and_has_no_side_effects() -> None:
    """Importing needs no third-party package, opens no descriptor, starts no thread and makes no directory."""
    code = """if True:
        import os, sys, threading
        fds = lambda: len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        import socket
        before = fds()
        import hvsock, hvsock.integrations
        assert fds() == before
        assert threading.active_count() == 1
        assert not {"asyncio", "click", "multiprocessing", "rich", "ssl", "subprocess"} & set(sys.modules), "heavy"
        assert not os.listdir(os.environ["HVSOCK_LOCAL_DIR"])
    """
    subprocess.run([sys.executable, "-I", "-W", "error", "-c", code], check=True, timeout=utils.LIMIT)


def test_tests_are_not_a_package() -> None:
    """So that `python -Im pytest` tests what is installed, and not the checkout."""
    assert not (utils.TESTS / "__init__.py").exists()


def test_no_test_module_is_imported() -> None:
    """What test modules share is in modules without tests."""
    for path in utils.TESTS.rglob("*.py"):
        found = re.findall(r"^ *(?:from|import) (?:\w+\.)?test_\w+", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert found == [], path
