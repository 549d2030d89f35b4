"""multiprocessing over Hyper-V sockets: its connections by `Listener` and `Client`, and its managers by `BaseManager`.

What arrives is unpickled: a peer that has the `authkey` can run any code in this process.
"""

from __future__ import annotations

import multiprocessing.connection as connections
from multiprocessing import AuthenticationError, managers
from typing import Any, Final, Self

from hvsock import Address, HyperVAddress, HyperVSocket, create_connection, create_server

__all__ = ["BaseManager", "Client", "Listener"]

_SERIALIZER: Final = "hvsock"


class Listener:
    """A `multiprocessing.connection.Listener` at a Hyper-V address; `last_accepted` is the last client's."""

    def __init__(self, address: Address, backlog: int | None = None, authkey: bytes | None = None) -> None:
        self._socket = create_server(address, backlog=backlog)
        self._authkey = authkey
        self.address: HyperVAddress = self._socket.getsockname()
        self.last_accepted: HyperVAddress | None = None

    def accept(self) -> connections.Connection[Any, Any]:
        """Wait for a client, and for its proof that it has the key.

        Raises:
            multiprocessing.AuthenticationError: it has another key.
        """
        sock, self.last_accepted = self._socket.accept()
        return _connection(sock, self._authkey, connections.deliver_challenge, connections.answer_challenge)

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def Client(  # noqa: N802 - as in multiprocessing.connection
    address: Address, authkey: bytes | None = None, *, timeout: float | None = None, retry_for: float = 0.0
) -> connections.Connection[Any, Any]:
    """Connect to a `Listener`; `timeout` and `retry_for` are of `hvsock.create_connection`, and of the connect only."""
    sock = create_connection(address, timeout, retry_for=retry_for)
    return _connection(sock, authkey, connections.answer_challenge, connections.deliver_challenge)


def _connection(sock: HyperVSocket, authkey: bytes | None, *proofs: Any) -> connections.Connection[Any, Any]:
    sock.settimeout(None)  # which makes the handle blocking, as a Connection needs it
    connection: connections.Connection[Any, Any] = connections.Connection(sock.detach())
    try:
        for proof in proofs if authkey is not None else ():
            proof(connection, authkey)
    except BaseException:
        connection.close()
        raise
    return connection


class _ManagersListener(Listener):
    def accept(self) -> connections.Connection[Any, Any]:
        while True:
            try:
                return super().accept()
            except (AuthenticationError, EOFError):  # which would end the server's thread
                continue


class BaseManager(managers.BaseManager):
    """A `multiprocessing.managers.BaseManager` at a Hyper-V address; SyncManager takes ``serializer="hvsock"``, too."""

    def __init__(self, address: Address, authkey: bytes, **options: Any) -> None:
        super().__init__(address, authkey, _SERIALIZER, **options)  # type: ignore[arg-type]


# Managers look their two ends up in this table, by name: the one entry beside pickle's is the standard library's own.
managers.listener_client[_SERIALIZER] = (_ManagersListener, Client)  # type: ignore[attr-defined]
