"""requests over Hyper-V sockets.

``session.mount("http://agent", Adapter(("parent", 8000)))``, then ``session.get("http://agent/status")``; or
``session.mount("hvsock://", URLAdapter())``, then ``session.get("hvsock://parent/8000/status")``.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.exceptions import InvalidURL

import hvsock
from hvsock.integrations.urllib3 import PoolManager

__all__ = ["Adapter", "URLAdapter"]


class Adapter(HTTPAdapter):
    """An adapter that sends requests to the service at `address`, a (vm, service) pair that `hvsock.as_address` takes.

    Mount it on a name, which only the session knows: ``http://agent``, or for TLS ``https://agent``. Proxies are
    ignored. Timeouts and errors are those of requests, in seconds. `transport` is as for `hvsock.create_connection`,
    the other arguments are those of `requests.adapters.HTTPAdapter`. A malformed address is a `ValueError`.
    """

    def __init__(self, address: hvsock.Address, *, transport: str | None = None, **kwargs: Any) -> None:
        self._address = hvsock.as_address(address)
        self._transport = transport
        super().__init__(**kwargs)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        """Make the pools of connections, for the base class."""
        options = {"num_pools": connections, "maxsize": maxsize, "block": block, **pool_kwargs}
        self.poolmanager = PoolManager(self._address, transport=self._transport, **options)

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        """Send a request and return its response."""
        return super().send(request, *args, **{**kwargs, "proxies": None})


class URLAdapter(BaseAdapter):
    """An adapter for ``hvsock://VM/SERVICE/PATH``: a URI as `hvsock.HyperVAddress.parse` takes it, then a path.

    Mount it on ``hvsock://``. The arguments are those of `Adapter`. requests leaves out ``params`` where a URL does not
    begin with ``http``: write them into the URL. Another URI raises `requests.exceptions.InvalidURL`, a `ValueError`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self._options = kwargs
        self._adapters: dict[hvsock.HyperVAddress, Adapter] = {}

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        """Send a request and return its response; a redirect within the service becomes a URL of this form, too."""
        url = urlsplit(request.url or "")
        service, _, path = url.path[1:].partition("/")
        try:
            address = hvsock.HyperVAddress.parse(f"{url.scheme}://{url.netloc}/{service}")
        except ValueError as exc:
            raise InvalidURL(exc, request=request) from exc
        if (adapter := self._adapters.get(address)) is None:
            adapter = self._adapters.setdefault(address, Adapter(address, **self._options))
        sent = request.copy()
        sent.url = urlunsplit(("http", url.netloc, f"/{path}", url.query, ""))
        response = adapter.send(sent, *args, **kwargs)
        response.request, response.url = request, str(request.url)
        if location := response.headers.get("location"):
            inside = f"^http://{re.escape(url.netloc)}(?=/)"
            response.headers["location"] = re.sub(inside, str(address), urljoin(sent.url, location))
        return response

    def close(self) -> None:
        """Close all connections."""
        for adapter in self._adapters.values():
            adapter.close()
