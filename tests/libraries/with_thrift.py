"""Apache Thrift: a client's `TSocket.setHandle`, and a server's transport of a few lines.

What Thrift's compiler makes of a service is written by hand: a call has one argument of bytes, and so has its result.
"""

from __future__ import annotations

import time
from typing import Any

from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.server.TServer import TThreadedServer
from thrift.Thrift import TMessageType, TProcessor
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TBufferedTransportFactory, TServerTransportBase, TTransportException

import hvsock
from hvsock import Address, HyperVAddress
from libraries.harness import CONNECT, PATIENCE, SLOW, check, ready, vm_of


class ServerSocket(TServerTransportBase):
    """What a server of Thrift listens on: a Hyper-V socket."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def listen(self) -> None:
        self.listener = hvsock.create_server(self.address)
        ready()

    def accept(self) -> TSocket:
        connection = TSocket()
        connection.setHandle(self.listener.accept()[0])
        return connection

    def close(self) -> None:
        self.listener.close()


def write(protocol: Any, name: str, kind: int, body: bytes) -> None:
    protocol.writeMessageBegin(name, kind, 0)
    protocol.writeBinary(body)
    protocol.writeMessageEnd()
    protocol.trans.flush()


def read(protocol: Any) -> tuple[str, bytes]:
    name, _, _ = protocol.readMessageBegin()
    body = protocol.readBinary()
    protocol.readMessageEnd()
    return name, body


class Transports(TBufferedTransportFactory):
    """Buffered transports that know the address of the peer."""

    def getTransport(self, trans: TSocket) -> Any:  # noqa: N802 - Thrift's name
        transport = super().getTransport(trans)
        transport.peer = trans.handle.getpeername()
        return transport


class Processor(TProcessor):
    def process(self, iprot: Any, oprot: Any) -> None:
        name, body = read(iprot)
        if name == "who":
            body = vm_of(iprot.trans.peer).encode()
        elif name == "slow":
            time.sleep(SLOW)
        write(oprot, name, TMessageType.REPLY, body)


def server(how: str, address: HyperVAddress) -> None:
    transport, protocol = Transports(), TBinaryProtocolFactory()
    TThreadedServer(Processor(), ServerSocket(address), transport, protocol, daemon=True).serve()


def client(how: str, address: HyperVAddress) -> None:
    sock = TSocket()
    sock.setHandle(hvsock.create_connection(address, CONNECT))
    protocol = TBinaryProtocolFactory().getProtocol(TBufferedTransportFactory().getTransport(sock))

    def request(name: str, body: bytes = b"") -> bytes:
        write(protocol, name, TMessageType.CALL, body)
        return read(protocol)[1]

    def late() -> None:
        sock.setTimeout(1000 * PATIENCE)
        request("slow")

    check(lambda body: request("echo", body), lambda: request("who").decode(), late, TTransportException)
