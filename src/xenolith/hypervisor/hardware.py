"""What a domain with HARDWARE has of the machine: ports, device memory, PCI functions; and its way to device memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from xenolith.abi.errno import EINVAL, ENODEV, XenError
from xenolith.abi.types import PAGE_SHIFT
from xenolith.hypervisor import ranges
from xenolith.hypervisor.domain import Domain
from xenolith.machine.buses import ALL_ONES
from xenolith.machine.devices.hpet import HPET_BYTES
from xenolith.machine.e820 import ECAM_LENGTH, ECAM_START, HPET_START
from xenolith.machine.pci import BarKind, PciFunction

_ECAM: Final = range(ECAM_START, ECAM_START + ECAM_LENGTH)
_HPET: Final = range(HPET_START, HPET_START + HPET_BYTES)

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.machine.pc import Pc


class Resources(NamedTuple):
    """What belongs to functions: ports, and frames of device memory."""

    ports: ranges.Ranges
    frames: ranges.Ranges


def of_functions(functions: Iterable[PciFunction]) -> Resources:
    """What the base address registers of functions decode now."""
    ports: ranges.Ranges = []
    frames: ranges.Ranges = []
    for function in functions:
        for bar in function.bars:
            decoded = function.bar_range(bar)
            if decoded is not None and bar.kind is BarKind.IO:
                ports = ranges.with_added(ports, decoded.start, decoded.stop - 1)
            elif decoded is not None:
                frames = ranges.with_added(frames, decoded.start >> PAGE_SHIFT, decoded.stop - 1 >> PAGE_SHIFT)
    return Resources(ports, frames)


def limit(
    hv: Hypervisor, domain: Domain, ports: Iterable[range], memory: Iterable[range], functions: Collection[int]
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
    own = of_functions(found[where] for where in functions)
    for other in hv.domains.values():
        if other is not domain and other.pci_functions is None:
            other.port_ranges = _less(other.port_ranges, own.ports)
            other.iomem_ranges = _less(other.iomem_ranges, own.frames)
    port_ranges, frame_ranges = _more(port_ranges, own.ports), _more(frame_ranges, own.frames)
    domain.port_ranges, domain.iomem_ranges = port_ranges, frame_ranges
    domain.pci_functions = frozenset(functions)


def read(hv: Hypervisor, pc: Pc, maddr: int, width: int) -> int:
    """The running guest reads `width` bytes of a device at `maddr`; the configuration of others' functions is ones."""
    if maddr in _ECAM and not _configures(hv, maddr):
        return ALL_ONES[width]
    value = pc.mmio.read(maddr, width)
    hv.traps.accessed_device()
    return value


def write(hv: Hypervisor, pc: Pc, maddr: int, width: int, value: int) -> None:
    """The running guest writes to a device. The event timer, which all may read, is the hypervisor's and stays as it
    is. (Xen lets guests map it read-only: dom0_setup_permissions with ro-hpet.)
    """
    if (maddr in _ECAM and not _configures(hv, maddr)) or maddr in _HPET:
        return
    pc.mmio.write(maddr, width, value)
    hv.traps.accessed_device()


def _configures(hv: Hypervisor, maddr: int) -> bool:
    return hv.iommu.configures(hv.traps.current.domain, maddr - _ECAM.start >> 12)


def _less(present: ranges.Ranges, parts: ranges.Ranges) -> ranges.Ranges:
    for first, last in parts:
        present = ranges.without(present, first, last)
    return present


def _more(present: ranges.Ranges, parts: ranges.Ranges) -> ranges.Ranges:
    for first, last in parts:
        present = ranges.with_added(present, first, last)
    return present
