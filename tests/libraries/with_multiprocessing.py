"""multiprocessing.connection: `hvsock.integrations.multiprocessing`."""

from __future__ import annotations

import threading
import time
from typing import Any

from hvsock import HyperVAddress
from hvsock.integrations.multiprocessing import Client, Listener
from libraries.harness import CONNECT, PATIENCE, SLOW, check, ready, vm_of

KEY = b"a secret"


def answer(connection: Any, peer: str) -> None:
    while True:
        try:
            word, body = connection.recv()
        except EOFError:
            return
        if word == "slow":
            time.sleep(SLOW)
        connection.send(peer if word == "who" else body)


def server(how: str, address: HyperVAddress) -> None:
    with Listener(address, authkey=KEY) as listener:
        ready()
        while True:
            connection = listener.accept()
            assert listener.last_accepted
            peer = vm_of(listener.last_accepted)
            threading.Thread(target=answer, args=(connection, peer), daemon=True).start()


def client(how: str, address: HyperVAddress) -> None:
    with Client(address, KEY, timeout=CONNECT) as connection:

        def request(word: str, body: bytes = b"") -> Any:
            sender = threading.Thread(target=connection.send, args=((word, body),))
            sender.start()
            try:
                return connection.recv()
            finally:
                sender.join()

        def late() -> None:
            connection.send(("slow", b""))
            if not connection.poll(PATIENCE):
                raise TimeoutError

        check(lambda body: request("echo", body), lambda: request("who"), late)
