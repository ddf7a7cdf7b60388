"""console_io: the hypervisor's own console (do_console_io in xen/drivers/char/console.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.console_io import CONSOLEIO_read, CONSOLEIO_write
from xenolith.abi.errno import E2BIG, ENOSYS, XenError
from xenolith.abi.hypercalls import HYPERVISOR_console_io
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.hypercalls.table import hypercall

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

PIECE: Final = 4096
"""Bytes copied from the guest at once."""
LONGEST_WRITE: Final = 1 << 20
LONGEST_READ: Final = (1 << 31) - 1


@hypercall(HYPERVISOR_console_io)
def console_io(hv: Hypervisor, caller: Vcpu, command: int, count: int, vaddr: int) -> int:
    """Write `count` bytes, or read up to as many. Returns 0 for a write, the number of bytes for a read.

    Any domain may write, as with a debugging build of Xen: small guests have no other voice. Reading needs the
    capability CONSOLE. Raises XenError: EPERM, EFAULT, E2BIG for a count out of bounds, ENOSYS.
    """
    command &= 0xFFFFFFFF
    count &= 0xFFFFFFFF
    if command == CONSOLEIO_write:
        return _write(hv, caller, count, vaddr)
    hv.policy.require(caller.domain, Capability.CONSOLE, "CONSOLEIO_read")
    if command == CONSOLEIO_read:
        return _read(hv, caller, count, vaddr)
    raise XenError(ENOSYS, f"there is no console operation {command}")


def _write(hv: Hypervisor, caller: Vcpu, count: int, vaddr: int) -> int:
    if count > LONGEST_WRITE:
        raise XenError(E2BIG, f"{count} bytes of console output at once")
    for at in range(0, count, PIECE):
        hv.console_write(caller.domain, hv.memory.read(caller, vaddr + at, min(PIECE, count - at)))
    return 0


def _read(hv: Hypervisor, caller: Vcpu, count: int, vaddr: int) -> int:
    """Typed characters that do not fit the guest's memory are lost to it, as with Xen."""
    if count > LONGEST_READ:
        raise XenError(E2BIG, f"{count} bytes of console input at once")
    data = hv.console_read(min(count, PIECE))
    if data:
        hv.memory.write(caller, vaddr, data)
    return len(data)
