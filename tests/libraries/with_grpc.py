"""gRPC: its core in C takes no socket, so a relay at each end carries it over a Unix socket."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
from utils import MIB

from hvsock import HyperVAddress
from hvsock.relay import Relay
from libraries.harness import CONNECT, PATIENCE, SLOW, acheck, check, ready, run

OPTIONS = [("grpc.max_receive_message_length", 64 * MIB), ("grpc.max_send_message_length", 64 * MIB)]


def echo(body: bytes, context: grpc.ServicerContext) -> bytes:
    return body


def slow(body: bytes, context: grpc.ServicerContext) -> bytes:
    time.sleep(SLOW)
    return body


@contextlib.contextmanager
def unix_socket() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir=os.environ["HVSOCK_LOCAL_DIR"]) as directory:
        yield f"{directory}/grpc"


def server(how: str, address: HyperVAddress) -> None:
    calls = {"Echo": grpc.unary_unary_rpc_method_handler(echo), "Slow": grpc.unary_unary_rpc_method_handler(slow)}
    with unix_socket() as path:
        service = grpc.server(futures.ThreadPoolExecutor(4), options=OPTIONS)
        service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Service", calls),))
        service.add_insecure_port(f"unix:{path}")
        service.start()
        with Relay(str(address), f"unix://{path}"):
            ready()
            service.wait_for_termination()


def client(how: str, address: HyperVAddress) -> None:
    with unix_socket() as path, Relay(f"unix://{path}", str(address)):
        if how == "threads":
            blocking(f"unix:{path}")
        else:
            run(ask(f"unix:{path}"), how)


def blocking(target: str) -> None:
    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        call, late = channel.unary_unary("/Service/Echo"), channel.unary_unary("/Service/Slow")
        check(
            lambda body: call(body, timeout=CONNECT),
            lambda: None,
            lambda: late(b"", timeout=PATIENCE),
            grpc.RpcError,
        )


async def ask(target: str) -> None:
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        call, late = channel.unary_unary("/Service/Echo"), channel.unary_unary("/Service/Slow")

        async def who() -> Any:
            return None

        await acheck(lambda body: call(body, timeout=CONNECT), who, lambda: late(b""))
