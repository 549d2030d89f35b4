"""paramiko: `SSHClient.connect` takes ``sock=``, and a server's `Transport` the accepted socket."""

from __future__ import annotations

import threading
import time
from typing import Any

import paramiko

import hvsock
from hvsock import HyperVAddress, HyperVSocket
from libraries.harness import CONNECT, PATIENCE, SLOW, check, ready, vm_of

KEY = paramiko.ECDSAKey.generate()


class Server(paramiko.ServerInterface):
    def __init__(self, peer: str) -> None:
        self.peer = peer

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_auth_password(self, username: str, password: str) -> int:
        return int(paramiko.AUTH_SUCCESSFUL)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return int(paramiko.OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self.run, args=(channel, command), daemon=True).start()
        return True

    def run(self, channel: paramiko.Channel, command: bytes) -> None:
        while data := channel.recv(1 << 16):
            channel.sendall(data)
        if command == b"who":
            channel.sendall(self.peer.encode())
        elif command == b"sleep":
            time.sleep(SLOW)
        channel.send_exit_status(0)
        channel.close()


def answer(sock: HyperVSocket, peer: HyperVAddress) -> None:
    transport = paramiko.Transport(sock)
    transport.add_server_key(KEY)
    transport.start_server(server=Server(vm_of(transport.getpeername())))


def server(how: str, address: HyperVAddress) -> None:
    with hvsock.create_server(address) as listener:
        ready()
        while True:
            answer(*listener.accept())


def client(how: str, address: HyperVAddress) -> None:
    with paramiko.SSHClient() as ssh:
        ssh.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        sock: Any = hvsock.create_connection(address, CONNECT)
        ssh.connect("vm", username="u", password="p", sock=sock, allow_agent=False, look_for_keys=False)

        def run(command: str, body: bytes = b"", timeout: float | None = None) -> bytes:
            stdin, stdout, _ = ssh.exec_command(command, timeout=timeout)

            def send() -> None:
                stdin.write(body)
                stdin.channel.shutdown_write()

            sender = threading.Thread(target=send)
            sender.start()
            try:
                return bytes(stdout.read())
            finally:
                sender.join()

        check(
            lambda body: run("cat", body),
            lambda: run("who").decode(),
            lambda: run("sleep", timeout=PATIENCE),
        )
