"""Hyper-V sockets with asyncio: streams, transports and protocols as asyncio's own, and streams of messages.

It works on asyncio's own event loops, the Proactor among them, and on uvloop; on winloop, messages do.
"""

from hvsock import _names
from hvsock.aio._connect import connect, connections
from hvsock.aio._loop import new_event_loop
from hvsock.aio._messages import *
from hvsock.aio._serve import *
from hvsock.aio._streams import *

__all__ = [
    "MessageServer",
    "MessageStream",
    "Server",
    "SocketServer",
    "connect",
    "connect_messages",
    "connections",
    "create_connection",
    "create_server",
    "new_event_loop",
    "open_connection",
    "serve",
    "serve_messages",
    "start_server",
]

_names.publish(globals())
