"""requests, by `hvsock.integrations.requests`; the server is the standard library's."""

from __future__ import annotations

import requests

from hvsock import HyperVAddress
from hvsock.integrations.requests import URLAdapter
from libraries import http
from libraries.harness import PATIENCE, check


def server(how: str, address: HyperVAddress) -> None:
    http.serve(address)


def client(how: str, address: HyperVAddress) -> None:
    with requests.Session() as session:
        session.mount("hvsock://", URLAdapter())
        check(
            lambda body: session.post(f"{address}/", data=body).content,
            lambda: session.get(f"{address}/who").text,
            lambda: session.get(f"{address}/slow", timeout=PATIENCE),
            requests.exceptions.ReadTimeout,
        )
