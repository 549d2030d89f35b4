"""WSGI applications at a Hyper-V address, by cheroot: ``serve(app, ("wildcard", 8000))``."""

from __future__ import annotations

import contextlib
from typing import Any

from cheroot import server, wsgi

import hvsock
from hvsock.integrations._pairs import pair

__all__ = ["Server", "serve"]


class _Connection(server.HTTPConnection):
    """A connection that knows which VM is at the other end."""

    def __init__(self, server: server.HTTPServer, sock: Any, *args: Any) -> None:
        super().__init__(server, sock, *args)
        with contextlib.suppress(OSError):  # the peer has gone already
            self.remote_addr, self.remote_port = pair(sock.getpeername())


class Server(wsgi.Server):
    """A `cheroot.wsgi.Server` that listens on a Hyper-V address, in threads.

    In an application's environment, ``REMOTE_ADDR`` is the client's VM id and ``REMOTE_PORT`` its service: the port or,
    where the service id stands for none, that id's number, which `uuid.UUID(int=...)` takes. ``SERVER_PORT`` is empty.

    Args:
        address: any (vm, service) pair that `hvsock.as_address` takes.
        wsgi_app: the application.
        transport: the name of a transport; by default `hvsock.default_transport()`.
        connected_suspend: as in `hvsock.create_server`.
        **kwargs: as for `cheroot.wsgi.Server`.

    Raises:
        ValueError: a malformed address.
    """

    ConnectionClass = _Connection

    def __init__(self, address: hvsock.Address, wsgi_app: Any, *, transport: str | None = None, **kwargs: Any) -> None:
        self._address = hvsock.as_address(address)
        self._transport = transport
        super().__init__(str(self._address), wsgi_app, **kwargs)  # a str, as for AF_UNIX: cheroot looks up others

    def bind_unix_socket(self, bind_addr: Any) -> None:
        """Make the socket, for prepare(): the way on which cheroot looks up no host."""
        sock = hvsock.HyperVSocket(transport=self._transport)
        try:
            sock.bind(self._address)
        except BaseException:
            sock.close()
            raise
        self.socket = sock


def serve(app: Any, address: hvsock.Address, **kwargs: Any) -> None:
    """Serve an application at an address until Ctrl-C; the arguments are those of `Server`.

    Ctrl-C waits 5 s for requests that are under way, or `shutdown_timeout`.

    Raises:
        OSError: the address is in use, or as the system says.
        ValueError: an unknown transport, or an address that it cannot express.
    """
    server = Server(address, app, **kwargs)
    try:
        server.start()
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()
