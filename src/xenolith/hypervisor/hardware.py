"""What a domain with HARDWARE has of the machine when that is not all: ports, device memory, PCI functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from xenolith.abi.errno import EINVAL, ENODEV, XenError
from xenolith.abi.types import PAGE_SHIFT
from xenolith.hypervisor import ranges
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.machine.pci import BarKind

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor


def limit(
    hv: Hypervisor, domain: Domain, ports: Iterable[range], memory: Iterable[range], functions: Iterable[int]
) -> None:
    """Let a domain have only these ports, the pages of these machine addresses, and these PCI functions.

    A function (its `bdf`) is its configuration and whatever its base address registers decode now. Raises XenError:
    EINVAL for addresses that are not of devices, ENODEV for a function that there is not.
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
        for bar in found[where].bars:
            decoded = found[where].bar_range(bar)
            if decoded is not None and bar.kind is BarKind.IO:
                port_ranges = ranges.with_added(port_ranges, decoded.start, decoded.stop - 1)
            elif decoded is not None:
                first, last = decoded.start >> PAGE_SHIFT, decoded.stop - 1 >> PAGE_SHIFT
                frame_ranges = ranges.with_added(frame_ranges, first, last)
    domain.port_ranges, domain.iomem_ranges = port_ranges, frame_ranges
    domain.pci_functions = frozenset(functions)


def has_function(domain: Domain, where: int) -> bool:
    """Whether the domain may configure the PCI function `where`."""
    if Capability.HARDWARE not in domain.capabilities:
        return False
    return domain.pci_functions is None or where in domain.pci_functions
