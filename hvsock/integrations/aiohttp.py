"""aiohttp over Hyper-V sockets.

``aiohttp.ClientSession("http://agent", connector=Connector(("parent", 8000)))``, and for servers
``await Site(runner, ("wildcard", 8000)).start()``.
"""

from __future__ import annotations

import functools
import ssl
from typing import Any

import aiohttp
from aiohttp import web

import hvsock
from hvsock import aio

__all__ = ["Connector", "Site"]

_default_context = functools.cache(ssl.create_default_context)


class Connector(aiohttp.BaseConnector):
    """The connector of a session: it opens all connections to the service at `address`, whatever host a URL names.

    `address` is any (vm, service) pair that `hvsock.as_address` takes, else a `ValueError`, `transport` the name of a
    transport; the other arguments are those of `aiohttp.BaseConnector`. Make it in a coroutine. Errors are aiohttp's:
    `aiohttp.ClientConnectorError` where the service does not listen. ``sock_connect`` of `aiohttp.ClientTimeout` is the
    limit of a connect, in seconds. For TLS, ``ssl`` of a request is a context or True, and the URL's name is checked.
    """

    def __init__(self, address: hvsock.Address, *, transport: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._address = hvsock.as_address(address)
        self._transport = transport

    # The method that a connector implements, as aiohttp's own ones do; it has no public name.
    async def _create_connection(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:
        tls: dict[str, Any] = {}
        if req.is_ssl():
            tls["ssl"] = _default_context() if req.ssl is True else req.ssl
            tls["server_hostname"] = req.server_hostname or req.host
        try:
            _, protocol = await aio.create_connection(
                self._factory, self._address, timeout=timeout.sock_connect, transport=self._transport, **tls
            )
        except ssl.CertificateError as exc:
            raise aiohttp.ClientConnectorCertificateError(req.connection_key, exc) from exc
        except OSError as exc:
            if exc.errno is None:  # the timeout, for which aiohttp has its own error
                raise
            raise aiohttp.ClientConnectorError(req.connection_key, exc) from exc
        return protocol


class Site(web.BaseSite):
    """Where a runner serves its application. ``request.remote`` is the client's VM id.

    `address` is any (vm, service) pair that `hvsock.as_address` takes, and the options are those of
    `hvsock.aio.create_server`: ``ssl``, ``backlog``, ``transport``, ``connected_suspend``. start() raises its errors.
    """

    def __init__(self, runner: web.BaseRunner, address: hvsock.Address, **options: Any) -> None:
        super().__init__(runner)
        self._address = hvsock.as_address(address)
        self._options = options

    @property
    def name(self) -> str:
        """The address's URI."""
        return str(self._address)

    async def start(self) -> None:
        """Bind, listen and serve."""
        await super().start()
        assert self._runner.server is not None
        self._server = await aio.create_server(self._runner.server, self._address, **self._options)
