"""Whose device it is: a device reads and writes the memory of its domain, and interrupts nobody else.

It is always on. A device may read what its domain owns or has mapped by a grant, and write what of that is no page
table and no descriptor table, as with Xen's (xen/arch/x86/mm.c, _get_page_type; xen/common/grant_table.c). What it is
refused is told and leaves no trace. Messages carry a handle that is only good for the function it was made for.

Source: xen/drivers/passthrough/pci.c (assign_device, deassign_device).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EBUSY, ENODEV, XenError
from xenolith.abi.types import DOMID_IO, PAGE_SHIFT
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.frames import FLAG_EXECUTABLE, TYPE_WRITABLE
from xenolith.machine.pci import DmaFault
from xenolith.machine.pci_device import PciDevice

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

_TOLD: Final = 64
"""Refused accesses that are told of one function, until it is given away again."""


class Iommu:
    """Stands between the functions on the PCI bus and memory (machine.pci.Iommu).

    Interrupt messages are the hypervisor's; guests can only read their tables (mmio_ro_ranges of xen/arch/x86/msi.c).
    """

    programs_messages = True

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._assigned: dict[int, Domain] = {}
        self._given: dict[int, Domain] = {}
        self.quarantine = Domain(DOMID_IO, "quarantine", 0, has_iommu=True)
        """Works for nobody: what is assigned to it reaches no memory, and comes back to it until its host takes it."""
        self._quarantined: set[int] = set()
        self._faults: dict[int, int] = {}

    # -- whose ------------------------------------------------------------------------------------------------------

    def functions(self) -> dict[int, PciDevice]:
        """The functions that can be given away, by their bus, device and function number."""
        pc = self._hv.pc
        found = {} if pc is None else pc.pci.functions
        return {where: function for where, function in found.items() if isinstance(function, PciDevice)}

    def give(self, where: int, domain: Domain) -> None:
        """A machine's description gives this function to `domain`. Raises XenError(EBUSY) if it is given twice."""
        if self._given.get(where, domain) is not domain:
            raise XenError(EBUSY, f"PCI function {name(where)} is given to {self._given[where].name} already")
        self._given[where] = domain

    def host(self, where: int) -> Domain | None:
        """Who configures the function: the domain that it was given to, or else whoever has all the hardware."""
        given = self._given.get(where)
        if given is not None and not given.is_dying:
            return given
        for domain in self._hv.domains.values():
            if Capability.HARDWARE in domain.capabilities and domain.pci_functions is None and not domain.is_dying:
                return domain
        return None

    def configures(self, domain: Domain, where: int) -> bool:
        """Whether the domain may use the configuration space of function `where`."""
        if Capability.HARDWARE not in domain.capabilities:
            return False
        if domain.pci_functions is not None:
            return where in domain.pci_functions
        return self._given.get(where, domain) is domain

    def owner(self, where: int) -> Domain | None:
        """Whose memory the function may use, and who gets its interrupts."""
        assigned = self._assigned.get(where)
        return assigned if assigned is not None else self.host(where)

    def is_offered(self, where: int) -> bool:
        """Whether its host has put the function into quarantine, for whoever makes guests to take it from there."""
        return self._assigned.get(where) is self.quarantine

    def can_be_assigned(self, where: int) -> bool:
        """Whether the function works for no guest now."""
        return self._assigned.get(where, self.quarantine) is self.quarantine

    def assign(self, where: int, domain: Domain) -> None:
        """Take the function from its host and let it work for `domain`. Raises XenError(EBUSY) if a guest has it."""
        if not self.can_be_assigned(where):
            raise XenError(EBUSY, f"PCI function {name(where)} works for {self._assigned[where]}")
        self._part(where)
        self._assigned[where] = domain
        if domain is self.quarantine:
            self._quarantined.add(where)

    def deassign(self, where: int, domain: Domain) -> None:
        """Give the function back to its host, or to the quarantine that it came from.

        Raises XenError(ENODEV) if it does not work for `domain`.
        """
        if self._assigned.get(where) is not domain:
            raise XenError(ENODEV, f"PCI function {name(where)} does not work for {domain}")
        if domain is self.quarantine:
            self._quarantined.discard(where)
        self._take_back(where)

    def _take_back(self, where: int) -> None:
        self._part(where)
        self._assigned.pop(where, None)
        if where in self._quarantined:
            self._assigned[where] = self.quarantine

    def release(self, domain: Domain) -> None:
        """A domain is dying: what worked for it is reset, so that it is quiet, and goes back to its host."""
        for where, function in self.functions().items():
            if self.owner(where) is domain:
                self._take_back(where)
                function.reset()
        self._given = {where: owner for where, owner in self._given.items() if owner is not domain}

    def _part(self, where: int) -> None:
        self._hv.pirqs.release_messages(where)
        self._faults.pop(where, None)

    def lends(self, giver: Domain, taker: Domain) -> list[PciDevice]:
        """The functions that `giver` drives and that work for `taker`: what belongs to them is the giver's to lend."""
        return [
            function
            for where, function in self.functions().items()
            if self._assigned.get(where) is taker and self.configures(giver, where)
        ]

    # -- what devices do ----------------------------------------------------------------------------------------------

    def open(self, where: int, maddr: int, length: int, write: bool) -> memoryview:
        """Memory for a device to use at once. Raises DmaFault, and tells it, where the device may not go."""
        first, last = maddr >> PAGE_SHIFT, maddr + max(length, 1) - 1 >> PAGE_SHIFT
        domain = self.owner(where)
        if domain is None or length < 0 or last >= self._hv.frames.total:
            raise self._fault(where, domain, maddr, length, write)
        for mfn in range(first, last + 1):
            if not self._allows(domain, mfn, write):
                raise self._fault(where, domain, maddr, length, write)
            if write and self._hv.frames.flags[mfn] & FLAG_EXECUTABLE:
                self._hv.frames.invalidate_code(mfn << PAGE_SHIFT, 1 << PAGE_SHIFT)
        return self._hv.ram.bytes[maddr : maddr + length]

    def _allows(self, domain: Domain, mfn: int, write: bool) -> bool:
        frames = self._hv.frames
        if frames.owner[mfn] == domain.domid:
            return not write or not frames.type_count[mfn] or frames.type[mfn] == TYPE_WRITABLE
        return domain is not self.quarantine and domain.grants.maps_for_devices(mfn, write)

    def _fault(self, where: int, domain: Domain | None, maddr: int, length: int, write: bool) -> DmaFault:
        what = f"{'writes' if write else 'reads'} {length} bytes at {maddr:#x}"
        reason = f"PCI function {name(where)} of {domain} {what}, where it may not"
        if self._tell(where, reason):
            self._hv.publish(
                "dma_fault",
                function=name(where),
                domid=None if domain is None else domain.domid,
                maddr=maddr,
                length=length,
                write=write,
            )
        return DmaFault(reason)

    def message(self, where: int, address: int, data: int) -> None:
        """A function has sent an interrupt message: it comes through only if it was programmed for that function."""
        if not self._hv.pirqs.deliver_message(where, address, data):
            self._tell(where, f"PCI function {name(where)} sends message {data:#x} to {address:#x}, not its own")

    def _tell(self, where: int, text: str) -> bool:
        """Note what a function was refused, if that has not been noted often enough; returns whether it was."""
        told = self._faults.get(where, 0)
        if told == _TOLD:
            return False
        self._faults[where] = told + 1
        self._hv.log.write(f"IOMMU: {text}")
        return True


def name(where: int) -> str:
    """A function as lspci calls it."""
    return f"0000:{where >> 8:02x}:{where >> 3 & 31:02x}.{where & 7}"
