"""Addresses and transports as servers of HTTP know them: a host, which is a string, and a port, which is a number."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any, cast

import hvsock

__all__ = ["introduced", "pair", "presented"]


def pair(address: hvsock.HyperVAddress) -> tuple[str, int]:
    """Return the VM id, and the port or, where the service id stands for none, that id's number."""
    return str(address.vm_id), address.service_id.int if address.port is None else address.port


def introduced(protocol_factory: Callable[[], asyncio.BaseProtocol]) -> Callable[[], asyncio.BaseProtocol]:
    """Return a factory whose protocols see such pairs as the names of their transports."""
    return lambda: _Introduction(protocol_factory())


class _Introduction(asyncio.Protocol):
    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).set_protocol(self._protocol)
        self._protocol.connection_made(cast(asyncio.Transport, _Transport(transport)))


class _Transport:
    """A transport with such pairs as its names; it hides its socket, which has other names."""

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return default
        value = self._transport.get_extra_info(name, default)
        return pair(value) if isinstance(value, hvsock.HyperVAddress) else value


def presented(writer: asyncio.StreamWriter) -> asyncio.StreamWriter:
    """Return a writer whose socket looks like one of IPv6, for code that asks a socket for its family and names."""
    return cast(asyncio.StreamWriter, _Writer(writer))


class _Writer:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _Names(self._writer) if name == "socket" else self._writer.get_extra_info(name, default)


class _Names:
    family = socket.AF_INET6

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def getsockname(self) -> tuple[str, int]:
        return pair(self._writer.get_extra_info("sockname"))

    def getpeername(self) -> tuple[str, int]:
        if (address := self._writer.get_extra_info("peername")) is None:
            raise OSError(errno.ENOTCONN, "the peer has gone already")
        return pair(address)
