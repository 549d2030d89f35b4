"""Hyper-V sockets with asyncio: streams, transports and protocols as asyncio's own, and streams of messages.

Everything works on every event loop: the Proactor and selector loops of Windows, selector loops elsewhere, uvloop. On
winloop, messages do.
"""

from hvsock.aio import messages, streams
from hvsock.aio.messages import *  # noqa: F403
from hvsock.aio.streams import *  # noqa: F403

__all__ = [*messages.__all__, *streams.__all__]  # noqa: PLE0604
