"""Whatever hosts, guests and devices do in whatever order: a device works for one domain at a time, for it alone."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.hypervisor.hypercalls.conftest import Machine
from tests.unit.hypervisor.test_pirqs import take
from xenolith.abi.errno import XenError
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.pirqs import FIRST_MESSAGE, MESSAGE_ADDRESS
from xenolith.machine.pci import COMMAND, DmaFault
from xenolith.machine.pci_device import PciDevice

SLOTS = (3, 4)
DEVICES = st.sampled_from(range(len(SLOTS)))
DOMAINS = st.integers(0, 2)
VECTORS = st.integers(0, 4)


class Passing(RuleBasedStateMachine):
    """Two devices with MSI and MSI-X on one interrupt line, their host, and two guests that may have them."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.host = self.machine.caller(0, Capability.ALL)
        self.guests = [self.machine.caller(domid) for domid in (1, 2)]
        self.domains = [self.host, *self.guests]
        self.devices = [self.make(slot) for slot in SLOTS]
        self.machine.pc.pci.place_bars()
        self.ports: dict[tuple[int, int], int] = {}

    def make(self, slot: int) -> PciDevice:
        device = PciDevice(0x1B36, 0x0010, 0x010802, interrupt_pin=1 + (SLOTS[1] - slot))
        device.add_function_reset()
        device.add_msi(4)
        device.add_msix(4, 4)
        self.machine.pc.pci.add(device, slot)
        return device

    def may_fail(self, act: object, *arguments: object) -> object:
        try:
            return act(*arguments)  # type: ignore[operator]
        except XenError:
            return None

    # -- what hypercalls do -------------------------------------------------------------------------------------------

    @rule(at=DEVICES, to=st.sampled_from((1, 2, None)))
    def assign(self, at: int, to: int | None) -> None:
        iommu = self.machine.iommu
        self.may_fail(iommu.assign, self.devices[at].where, iommu.quarantine if to is None else self.domains[to])

    @rule(at=DEVICES, of=st.sampled_from((1, 2, None)))
    def deassign(self, at: int, of: int | None) -> None:
        iommu = self.machine.iommu
        self.may_fail(iommu.deassign, self.devices[at].where, iommu.quarantine if of is None else self.domains[of])

    @rule(at=DEVICES, domain=DOMAINS, count=st.integers(0, 5))
    def map_msi(self, at: int, domain: int, count: int) -> None:
        self.may_fail(self.machine.pirqs.map_msi, self.domains[domain], self.devices[at].where, count, -1)

    @rule(at=DEVICES, domain=DOMAINS, entry=VECTORS)
    def map_msix(self, at: int, domain: int, entry: int) -> None:
        self.may_fail(self.machine.pirqs.map_msix, self.domains[domain], self.devices[at].where, entry, -1)

    @rule(domain=DOMAINS, pirq=st.integers(246, 255))
    def bind(self, domain: int, pirq: int) -> None:
        port = self.may_fail(self.domains[domain].events.bind_pirq, pirq, False)
        if isinstance(port, int):
            self.ports[domain, port] = pirq

    @rule(at=DEVICES, entry=VECTORS)
    def use(self, at: int, entry: int) -> None:
        """Its owner has a message of the device and waits for it."""
        owner = self.machine.iommu.owner(self.devices[at].where)
        if owner in self.domains:
            pirq = self.may_fail(self.machine.pirqs.map_msix, owner, self.devices[at].where, entry, -1)
            if isinstance(pirq, int):
                self.bind(self.domains.index(owner), pirq)

    @rule(domain=DOMAINS, pirq=st.integers(246, 255))
    def unmap(self, domain: int, pirq: int) -> None:
        self.may_fail(self.machine.pirqs.unmap, self.domains[domain], pirq)

    @rule(at=DEVICES)
    def restore(self, at: int) -> None:
        self.machine.pirqs.restore_messages(self.devices[at].where)

    # -- what software and devices do ---------------------------------------------------------------------------------

    @rule(at=DEVICES, offset=st.integers(0, 255), size=st.sampled_from((1, 2, 4)), value=st.integers(0, 0xFFFFFFFF))
    def configure(self, at: int, offset: int, size: int, value: int) -> None:
        self.machine.pc.pci.write_config(self.devices[at].where, offset, size, value & (1 << 8 * size) - 1)

    @rule(at=DEVICES)
    def master(self, at: int) -> None:
        self.machine.pc.pci.write_config(self.devices[at].where, COMMAND, 2, 0x6)

    @rule(at=DEVICES, vector=VECTORS)
    def interrupt(self, at: int, vector: int) -> None:
        self.quiet()
        self.devices[at].interrupt(vector)
        owner = self.machine.iommu.owner(self.devices[at].where)
        assert all(domain is owner for domain in self.disturbed()), "the interrupt is its owner's"

    @rule(at=DEVICES, handle=st.integers(FIRST_MESSAGE - 1, FIRST_MESSAGE + 5))
    def forge(self, at: int, handle: int) -> None:
        """A device sends what it was not told to: at most its own messages come through."""
        self.quiet()
        self.machine.iommu.message(self.devices[at].where, MESSAGE_ADDRESS, handle)
        owner = self.machine.iommu.owner(self.devices[at].where)
        assert all(domain is owner for domain in self.disturbed())

    @rule(at=DEVICES, level=st.booleans())
    def drive(self, at: int, level: bool) -> None:
        self.devices[at].set_intx(level)

    @rule(at=DEVICES)
    def reset(self, at: int) -> None:
        self.devices[at].reset()

    def quiet(self) -> None:
        self.disturbed()

    def disturbed(self) -> list[Domain]:
        """The domains with a pending port, which is pending no more."""
        return [self.domains[number] for number, port in self.ports if take(self.machine, self.domains[number], port)]

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def each_reaches_the_memory_of_its_owner_alone(self) -> None:
        for device in self.devices:
            owner = self.machine.iommu.owner(device.where)
            for domain in self.domains:
                maddr = self.machine.memory_of(domain)[0] << 12
                try:
                    self.machine.iommu.open(device.where, maddr, 8, True)
                except DmaFault:
                    assert domain is not owner
                else:
                    assert domain is owner

    @invariant()
    def messages_are_mapped_for_owners_alone(self) -> None:
        for domain in self.domains:
            for pirq in self.machine.pirqs.of(domain).irqs:
                strangers = [device for device in self.devices if self.machine.iommu.owner(device.where) is not domain]
                assert not self.machine.pirqs.is_of(domain, pirq, strangers)


Passing.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPassing = Passing.TestCase
