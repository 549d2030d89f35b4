"""urllib3 over Hyper-V sockets: ``PoolManager(("parent", 8000)).request("GET", "http://agent/status")``."""

from __future__ import annotations

import socket
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

import hvsock

__all__ = ["PoolManager"]


class PoolManager(urllib3.PoolManager):
    """A `urllib3.PoolManager` whose connections all go to one service.

    The host of a URL becomes the ``Host`` header, and is the name that TLS checks the certificate for; it is not looked
    up. A redirect stays at the service, whatever host it names. Timeouts are urllib3's, in seconds.

    Args:
        address: any (vm, service) pair that `hvsock.as_address` takes.
        transport: the name of a transport; by default `hvsock.default_transport()`.
        **kwargs: as for `urllib3.PoolManager`.

    Raises:
        ValueError: a malformed address. An unknown transport raises it at the first request.
    """

    def __init__(self, address: hvsock.Address, *, transport: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        to = hvsock.as_address(address)

        class Connection(HTTPConnection):
            # The one seam of both classes. connect() would be public, but HTTPSConnection's does all of TLS too.
            def _new_conn(self) -> socket.socket:
                return _connect(self, to, transport)

        class SecureConnection(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return _connect(self, to, transport)

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = SecureConnection

        self.pool_classes_by_scheme = {"http": Pool, "https": SecurePool}


def _connect(connection: HTTPConnection, address: hvsock.HyperVAddress, transport: str | None) -> hvsock.HyperVSocket:
    try:
        return hvsock.create_connection(address, connection.timeout, transport=transport)
    except TimeoutError as exc:
        raise ConnectTimeoutError(connection, f"{exc} (connect timeout={connection.timeout})") from exc
    except OSError as exc:
        raise NewConnectionError(connection, str(exc)) from exc
