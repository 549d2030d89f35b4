"""TLS without a certificate, or with the interpreter's own test one."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest


def tls_contexts(kind: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's and a client's context: without a certificate, or with the interpreter's own test one."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    if kind == "TLS 1.2, anonymous":
        for context in (server, client):
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            try:
                context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
            except ssl.SSLError as error:
                pytest.skip(f"this OpenSSL knows no anonymous cipher ({error})")
        return server, client
    server.load_cert_chain(own_certificate())
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    return server, client


def own_certificate() -> Path:
    """Return the interpreter's own test certificate, with its key in the same file, or skip the test without it."""
    directory = Path(os.__file__).parent / "test"
    for path in (directory / "certdata" / "keycert.pem", directory / "keycert.pem"):
        if path.exists():
            return path
    pytest.skip("this interpreter comes without its `test` package, which has the certificate")
