"""Port I/O of guests: who may use a port, and what stands behind the ports that a hypervisor must arbitrate.

Source: guest_io_okay, admin_io_okay, guest_io_read and guest_io_write of xen/arch/x86/pv/emul-priv-op.c.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import XenError
from xenolith.abi.vm_assist import VMASST_TYPE_architectural_iopl
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.machine.buses import ALL_ONES
from xenolith.machine.pci import CONFIG_ADDRESS, CONFIG_DATA, CONFIG_ENABLE

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

LAST_PORT: Final = 0xFFFF
PIT_PORTS: Final = frozenset((0x42, 0x43, 0x61))
"""Channel 2 of the interval timer, its control port and its gate: what Xen shares of it."""
PIT_CHANNEL_2: Final = 0x42

RTC_INDEX: Final = 0x70
RTC_DATA: Final = 0x71
_RTC_INDEX_MASK: Final = 0x7F


def iopl_allows(vcpu: Vcpu) -> bool:
    """Whether the vCPU's I/O privilege level, set by PHYSDEVOP_set_iopl, covers its present mode."""
    if not vcpu.kernel_mode:
        return vcpu.iopl >= 3
    return vcpu.iopl >= (0 if vcpu.domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1 else 1)


def permitted(hv: Hypervisor, vcpu: Vcpu, port: int, size: int) -> bool:
    """Whether the guest's kernel lets the present mode access `size` bytes at `port`; if not, the guest gets #GP."""
    if iopl_allows(vcpu):
        return True
    if vcpu.io_bitmap_ports <= port + size:
        return False
    mask = (1 << size) - 1 << (port & 7)
    return not _permission_bits(hv, vcpu, vcpu.io_bitmap_vaddr + (port >> 3)) & mask


def _permission_bits(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    """Two bytes of a bitmap, which lies in the kernel's address space; what cannot be read denies."""
    value = 0
    for index in range(2):
        try:
            maddr = hv.memory.walk(vcpu.kernel_root, vaddr + index)
        except XenError:
            value |= 0xFF << 8 * index
        else:
            value |= hv.ram.bytes[maddr] << 8 * index
    return value


def read(hv: Hypervisor, vcpu: Vcpu, port: int, size: int) -> int:
    """What the guest reads of `size` (1, 2 or 4) bytes at `port`. Ports that it was not given read all ones."""
    domain = vcpu.domain
    if hv.pc is not None and _direct(domain, port, size):
        return hv.pc.ports.read(port, size)
    if port == CONFIG_ADDRESS and size == 4:
        return domain.pci_config_address
    value = at = 0
    while at < size:
        step = _step(port + at, size - at)
        value |= _read_shared(hv, domain, port + at, step) << 8 * at
        at += step
    return value


def write(hv: Hypervisor, vcpu: Vcpu, port: int, size: int, value: int) -> None:
    """The guest writes the low `size` (1, 2 or 4) bytes of `value` at `port`. Ports it was not given ignore it."""
    domain = vcpu.domain
    value &= ALL_ONES[size]
    if hv.pc is not None and _direct(domain, port, size):
        hv.pc.ports.write(port, size, value)
        return
    if port == CONFIG_ADDRESS and size == 4:
        domain.pci_config_address = value
        return
    at = 0
    while at < size:
        step = _step(port + at, size - at)
        _write_shared(hv, domain, port + at, step, value >> 8 * at & ALL_ONES[step])
        at += step


def _direct(domain: Domain, port: int, size: int) -> bool:
    """Whether the domain was given all these ports and none of them is arbitrated at this width."""
    if port + size - 1 > LAST_PORT:
        return False
    shared = _shared()
    for each in range(port, port + size):
        if each in shared and shared[each] in (None, size):
            return False
    return allowed(domain, port, size)


@cache
def _shared() -> dict[int, int | None]:
    """The ports that are arbitrated, with the width of access that is. A machine that is no PC never imports one."""
    from xenolith.machine.pc import SHARED_PORTS

    return {port: shared.width for shared in SHARED_PORTS for port in shared.ports}


def allowed(domain: Domain, port: int, size: int) -> bool:
    """Whether the domain was given `size` ports from `port` on."""
    return any(first <= port and port + size - 1 <= last for first, last in domain.port_ranges)


def _step(port: int, left: int) -> int:
    """How many of the `left` bytes at `port` go to one shared device at once."""
    if port & ~3 != CONFIG_DATA:
        return 1
    room = min(left, 4 - (port & 3))
    return 2 if room == 3 else room


def _read_shared(hv: Hypervisor, domain: Domain, port: int, size: int) -> int:
    if port in PIT_PORTS:
        return _read_pit(hv, domain, port)
    if port == RTC_INDEX:
        return domain.rtc_index
    if port == RTC_DATA and hv.pc is not None and allowed(domain, RTC_INDEX, 2):
        return hv.pc.rtc.read_cmos(domain.rtc_index & _RTC_INDEX_MASK)
    if port & ~3 == CONFIG_DATA and hv.pc is not None:
        address = domain.pci_config_address
        if address & CONFIG_ENABLE and hv.iommu.configures(domain, address >> 8 & 0xFFFF):
            return hv.pc.pci.read_config(address >> 8 & 0xFFFF, address & 0xFC | port & 3, size)
    return ALL_ONES[size]


def _read_pit(hv: Hypervisor, domain: Domain, port: int) -> int:
    """The interval timer, for the domain that drives the machine.

    For others the counter reads 0: all ones would keep the fast calibration of Linux busy for 100,000 reads. The gate
    port reads all ones, which says that channel 2 has finished.
    """
    if hv.pc is not None and _drives(domain, port):
        return hv.pc.ports.read(port, 1)
    return 0 if port == PIT_CHANNEL_2 else 0xFF


def _drives(domain: Domain, port: int) -> bool:
    return Capability.HARDWARE in domain.capabilities and allowed(domain, port, 1)


def _write_shared(hv: Hypervisor, domain: Domain, port: int, size: int, value: int) -> None:
    if port == RTC_INDEX:
        domain.rtc_index = value
    elif hv.pc is None:
        return
    elif port in PIT_PORTS and _drives(domain, port):
        hv.pc.ports.write(port, 1, value)
    elif port == RTC_DATA and allowed(domain, RTC_INDEX, 2):
        hv.pc.rtc.write_cmos(domain.rtc_index & _RTC_INDEX_MASK, value)
    elif port & ~3 == CONFIG_DATA:
        address = domain.pci_config_address
        if address & CONFIG_ENABLE and hv.iommu.configures(domain, address >> 8 & 0xFFFF):
            hv.pc.pci.write_config(address >> 8 & 0xFFFF, address & 0xFC | port & 3, size, value)
