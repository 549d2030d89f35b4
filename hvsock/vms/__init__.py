r"""Finding the ids of virtual machines.

No single place knows all VMs, so there are several sources, each with requirements of its own:

* ``hcs``: the Host Compute Service of a Windows host. Knows every running VM, those of WSL and containers too, but not
  the names of all. Needs an administrator, or a member of the group Hyper-V Administrators.
* ``wmi``: Hyper-V's own management on a Windows host. Knows the VMs of Hyper-V Manager by name, also those that are
  off. Needs the same, and starts PowerShell.
* ``wsl``: ``wslinfo --vm-id``, on the Windows side and in WSL itself. Needs no rights, but WSL 2.5.10, and starts the
  distribution if it does not run.
* ``guest``: what the host tells its guest about itself. Needs the data exchange integration service, on Linux
  ``hv_kvp_daemon``.
* ``vsock``: this machine's own CID on Linux. A Hyper-V guest's kernel does not know it; a KVM guest's does.

Sources that start a program are asked only if you name them. No socket is connected or bound.
"""

from hvsock import _names
from hvsock._addresses import container_vm_id
from hvsock.vms._records import VM, VMLookupError
from hvsock.vms._registry import SOURCES, VMs, default_sources, find_vm, list_vms
from hvsock.vms._wsl import wsl_vm_id

__all__ = [
    "SOURCES",
    "VM",
    "VMLookupError",
    "VMs",
    "container_vm_id",
    "default_sources",
    "find_vm",
    "list_vms",
    "wsl_vm_id",
]

_names.publish(globals())
