"""Docker SDK: `hvsock.integrations.requests` mounted on its client, with a stand-in for the server.

It keeps one file of a container, and what it runs there prints which VM the client is in.
"""

from __future__ import annotations

import base64
import http.server
import json
import time

import docker
import requests

from hvsock import HyperVAddress
from hvsock.integrations.requests import Adapter
from libraries.harness import CONNECT, PATIENCE, SLOW, check, ready, vm_of
from libraries.servers import Server


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        self.server.values["file"] = self.body()
        self.answer(b"")

    def do_GET(self) -> None:
        stat = base64.b64encode(json.dumps({"name": "file"}).encode()).decode()
        self.answer(self.server.values["file"], X_Docker_Container_Path_Stat=stat)

    def do_POST(self) -> None:
        self.body()
        if self.path.endswith("/wait"):
            time.sleep(SLOW)
            self.answer(b'{"StatusCode": 0}')
        else:  # a command's output: a stream of frames, each for stdout or stderr
            output = vm_of(self.client_address).encode()
            self.send_response(101, "UPGRADED")
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "tcp")
            self.end_headers()
            time.sleep(SLOW / 2)  # as a command does before it prints: the SDK loses what comes with the header
            self.wfile.write(b"\x01\0\0\0" + len(output).to_bytes(4) + output)
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def server(how: str, address: HyperVAddress) -> None:
    with Server(address, Handler) as it:
        ready()
        it.serve_forever()


def client(how: str, address: HyperVAddress) -> None:
    with docker.APIClient("http://docker:2375", version="1.44", timeout=CONNECT) as api:
        api.mount("http://docker", Adapter(address))

        def echo(body: bytes) -> bytes:
            assert api.put_archive("container", "/", body)
            return b"".join(api.get_archive("container", "/file")[0])

        check(
            echo,
            lambda: api.exec_start("command").decode(),
            lambda: api.wait("container", timeout=PATIENCE),
            (requests.ReadTimeout, requests.ConnectionError),
        )
