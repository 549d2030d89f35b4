"""A relay: it connects each client of one address to another address, of the same or another kind.

Existing programs speak TCP or ``AF_UNIX``; with a relay beside them they are reached from, or reach, the other side of
a hypervisor. An address is one of these:

* ``VM/SERVICE`` or ``hvsock://VM/SERVICE``, as `HyperVAddress.parse` takes it; ``?transport=local`` at its end names a
  transport. A VM's name is not looked up: `hvsock.vms.find_vm` does that.
* ``vsock:CID:PORT``, transport vsock by CID; without CID it is VMADDR_CID_ANY, to listen on.
* ``tcp:HOST:PORT``; without HOST it is this machine's loopback, since all that reaches the port reaches what is
  behind it.
* ``unix:PATH``; the file is made with the process's umask, and removed at the end. To listen on:
  ``?mode=660&group=NAME`` gives it a mode, in octal digits, and a group, by name or number.
* ``unix:@NAME``, a Unix socket with an abstract name, which is not a file. Only Linux has them.
* ``fd:NUMBER``, to listen on: a listener of any kind with which the process was started, such as systemd's ``fd:3``. A
  copy of it is used, and the original stays open. Not on Windows.
* ``npipe:NAME`` or ``npipe:////./pipe/NAME``, a named pipe of Windows on this machine. A pipe of messages, as Docker's
  and those that a relay makes, can end one direction, by an empty message; a pipe of bytes, as that of OpenSSH's agent,
  only both: it is kept open for an answer until nothing has come for 5 seconds.
* ``hybrid:PATH:PORT``: the Unix sockets by which Firecracker and cloud-hypervisor give their host a guest's
  ``AF_VSOCK``. Connecting asks at PATH for the guest's PORT; listening on it serves, at ``PATH_PORT``, the guests that
  connect to the host's PORT.

The URIs ``vsock://CID:PORT``, ``tcp://HOST:PORT``, ``unix:///PATH`` and ``hybrid:///PATH?port=PORT`` are the same. In a
PATH, and in the VM of ``hvsock://``, what cannot stand for itself is percent-encoded.
"""

from hvsock import _names
from hvsock.relay._relay import Counters, Relay

__all__ = ["Counters", "Relay"]

_names.publish(globals())
