"""Servers of websockets in threads, over Hyper-V sockets: ``with serve(handler, ("wildcard", 8000)) as server``.

A client needs no adapter: ``websockets.sync.client.connect("ws://agent/", sock=hvsock.create_connection(address))``.
"""

from __future__ import annotations

import functools
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

from websockets.sync import server

import hvsock
from hvsock.integrations._pairs import pair

__all__ = ["serve"]


def serve(
    handler: Callable[[server.ServerConnection], None],
    address: hvsock.Address,
    *,
    transport: str | None = None,
    connected_suspend: bool = False,
    **kwargs: Any,
) -> server.Server:
    """Return a listening server, as `websockets.sync.server.serve` does, whose arguments the others are, but for TLS.

    ``remote_address`` of a connection is the client's `hvsock.HyperVAddress`.

    Args:
        handler: called with each connection, in a thread of its own.
        address: any (vm, service) pair that `hvsock.as_address` takes.
        transport: the name of a transport; by default `hvsock.default_transport()`.
        connected_suspend: as in `hvsock.create_server`.
        **kwargs: as for `websockets.sync.server.serve`.

    Raises:
        OSError: the address is in use, or as the system says.
        ValueError: an unknown transport, or an address that it cannot express.
    """
    listener = hvsock.create_server(address, transport=transport, connected_suspend=connected_suspend)
    made = server.serve(handler, sock=cast(socket.socket, _Listener(listener)), **kwargs)
    if sys.platform == "win32":
        made.serve_forever = functools.partial(_wait_for, made.serve_forever)  # type: ignore[method-assign]
    return made


def _wait_for(call: Callable[[], None]) -> None:
    """Call in a thread, and wait so that Ctrl-C is noticed: on Windows it does not end a wait for sockets."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)


class _Listener:
    """A listening socket that looks like one of IPv6: websockets cannot show the name of another family."""

    family = socket.AF_INET6

    def __init__(self, sock: hvsock.HyperVSocket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def getsockname(self) -> tuple[str, int]:
        return pair(self._sock.getsockname())
