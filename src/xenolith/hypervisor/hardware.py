"""What a domain with HARDWARE has of the machine: ports, device memory, PCI functions; and its way to device memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EINVAL, ENODEV, XenError
from xenolith.abi.types import PAGE_SHIFT
from xenolith.hypervisor import ranges
from xenolith.hypervisor.domain import Domain
from xenolith.machine.buses import ALL_ONES
from xenolith.machine.e820 import ECAM_LENGTH, ECAM_START
from xenolith.machine.pci import BarKind, PciFunction

_ECAM: Final = range(ECAM_START, ECAM_START + ECAM_LENGTH)

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.machine.pc import Pc


def limit(
    hv: Hypervisor, domain: Domain, ports: Iterable[range], memory: Iterable[range], functions: Iterable[int]
) -> None:
    """Let a domain have only these ports, the pages of these machine addresses, and these PCI functions.

    A function (its `bdf`) is its configuration and whatever its base address registers decode now, and nobody else has
    it then. Raises XenError: EINVAL for addresses that are not of devices, ENODEV for a function that there is not,
    EBUSY for one that another domain was given.
    """
    port_ranges: ranges.Ranges = []
    frame_ranges: ranges.Ranges = []
    for part in ports:
        port_ranges = ranges.with_added(port_ranges, part.start, part.stop - 1)
    for part in memory:
        first, last = part.start >> PAGE_SHIFT, part.stop - 1 >> PAGE_SHIFT
        if not ranges.contains(hv.device_frames(), first, last):
            raise XenError(EINVAL, f"{part.start:#x}-{part.stop - 1:#x} is not memory of devices only")
        frame_ranges = ranges.with_added(frame_ranges, first, last)
    found = {} if hv.pc is None else hv.pc.pci.functions
    for where in functions:
        if where not in found:
            raise XenError(ENODEV, f"there is no PCI function {where >> 3 & 31:02x}.{where & 7} on bus {where >> 8}")
        hv.iommu.give(where, domain)
        for other in hv.domains.values():
            if other is not domain and other.pci_functions is None:
                other.port_ranges = _changed(ranges.without, other.port_ranges, _ports(found[where]))
                other.iomem_ranges = _changed(ranges.without, other.iomem_ranges, _frames(found[where]))
        port_ranges = _changed(ranges.with_added, port_ranges, _ports(found[where]))
        frame_ranges = _changed(ranges.with_added, frame_ranges, _frames(found[where]))
    domain.port_ranges, domain.iomem_ranges = port_ranges, frame_ranges
    domain.pci_functions = frozenset(functions)


def read(hv: Hypervisor, pc: Pc, maddr: int, width: int) -> int:
    """The running guest reads `width` bytes of a device at `maddr`; the configuration of others' functions is ones."""
    if maddr in _ECAM and not _configures(hv, maddr):
        return ALL_ONES[width]
    return pc.mmio.read(maddr, width)


def write(hv: Hypervisor, pc: Pc, maddr: int, width: int, value: int) -> None:
    """The running guest writes to a device. The hypervisor has the tables of interrupt messages: they stay as they are.

    (Xen lets guests map them read-only: mmio_ro_ranges of xen/arch/x86/msi.c.)
    """
    if maddr in _ECAM and not _configures(hv, maddr):
        return
    if not any(maddr in table for table in hv.iommu.message_tables()):
        pc.mmio.write(maddr, width, value)


def _configures(hv: Hypervisor, maddr: int) -> bool:
    return hv.iommu.configures(hv.traps.current.domain, maddr - _ECAM.start >> 12)


def _ports(function: PciFunction) -> list[range]:
    decoded = [function.bar_range(bar) for bar in function.bars if bar.kind is BarKind.IO]
    return [part for part in decoded if part is not None]


def _frames(function: PciFunction) -> list[range]:
    decoded = [function.bar_range(bar) for bar in function.bars if bar.kind is not BarKind.IO]
    return [range(part.start >> PAGE_SHIFT, (part.stop - 1 >> PAGE_SHIFT) + 1) for part in decoded if part is not None]


def _changed(
    change: Callable[[ranges.Ranges, int, int], ranges.Ranges], present: ranges.Ranges, parts: list[range]
) -> ranges.Ranges:
    for part in parts:
        present = change(present, part.start, part.stop - 1)
    return present
