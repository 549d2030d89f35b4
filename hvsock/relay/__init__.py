"""A relay: it connects each client of one address to another address, of the same or another kind.

Existing programs speak TCP or ``AF_UNIX``; with a relay beside them they are reached from, or reach, the other side of
a hypervisor. Addresses are URIs:

* ``hvsock://VM/SERVICE``, as `HyperVAddress.parse` takes it; ``?transport=local`` at its end names a transport.
* ``tcp://HOST:PORT``; without HOST it is this machine's loopback, since all that reaches the port reaches what is
  behind it.
* ``unix:///PATH``; the file is made with the process's umask, and removed at the end. To listen on:
  ``?mode=660&group=NAME`` gives it a mode, in octal digits, and a group, by name or number.
* ``unix:@NAME``, a Unix socket with an abstract name, which is not a file. Only Linux has them.
* ``fd:NUMBER``, to listen on: a listener of any kind with which the process was started, such as systemd's ``fd:3``. A
  copy of it is used, and the original stays open. Not on Windows.
* ``vsock://CID:PORT``, transport vsock by CID; without CID it is VMADDR_CID_ANY, to listen on.
* ``hybrid:///PATH?port=PORT``: the Unix sockets by which Firecracker and cloud-hypervisor give their host a guest's
  ``AF_VSOCK``. Connecting asks at PATH for the guest's PORT; listening on it serves, at ``PATH_PORT``, the guests that
  connect to the host's PORT.

What may stand for itself in a URI is percent-encoded in a PATH only.
"""

from hvsock import _names
from hvsock.relay._relay import Counters, Relay

__all__ = ["Counters", "Relay"]

_names.publish(globals())
