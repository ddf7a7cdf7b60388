"""Physical interrupts of domains: what stands behind each pirq, who waits for it, and when it may come again.

Behind a pirq is an irq: a GSI by its own number, or one message of a PCI function by a number from `FIRST_MESSAGE` on.

Source: xen/arch/x86/irq.c (map_domain_pirq, pirq_guest_bind, __do_IRQ_guest, desc_guest_eoi), msi.c and physdev.c.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary

from xenolith.abi.errno import EBUSY, EEXIST, EINVAL, ENODEV, ENOSPC, XenError
from xenolith.machine.interrupts import ACTIVE_LOW, LEVEL, PINS
from xenolith.machine.pci_device import PciDevice

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor

NR_PIRQS: Final = 256
"""Pirqs that a domain can have: the GSIs by their own numbers, then those for messages."""
LEGACY_IRQS: Final = 16
FIRST_MESSAGE: Final = 32
"""Irqs from here on are messages, a multiple of what one function sends by MSI."""
MESSAGE_ADDRESS: Final = 0xFEE0_0000
"""Where messages are sent to; the data is the handle."""

_RESERVED: Final = -1
"""In place of an irq: the number was given out, but nothing is mapped to it yet."""
_FIRST_VECTOR: Final = 0x30
"""What the guest never sees but the I/O APIC keeps."""


@dataclass(slots=True)
class DomainPirqs:
    """The pirqs of one domain, each with its irq.

    `unmasks` says that an end of interrupt also unmasks the port (eoi_gmfn version 1).
    """

    irqs: dict[int, int] = field(default_factory=dict)
    unmasks: bool = False


class _Message(NamedTuple):
    """One of the messages of a PCI function: entry `entry` of MSI-X, or number `entry` of MSI."""

    function: PciDevice
    is_msix: bool
    entry: int


@dataclass(slots=True)
class _Line:
    """The bindings (domain, pirq, may be shared) of one irq, and which of them have not ended the last interrupt."""

    bound: list[tuple[Domain, int, bool]] = field(default_factory=list)
    in_flight: list[tuple[Domain, int]] = field(default_factory=list)
    message: _Message | None = None


class Pirqs:
    """Takes every interrupt of the machine and gives it to the domains that have bound it."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._domains: WeakKeyDictionary[Domain, DomainPirqs] = WeakKeyDictionary()
        self._lines = {gsi: _Line() for gsi in range(PINS)}
        self.devices: set[tuple[int, int, int]] = set()
        """The PCI functions (segment, bus, devfn) that a domain has announced."""
        if hv.pc is not None:
            hv.pc.ioapic.deliver = self.deliver

    def of(self, domain: Domain) -> DomainPirqs:
        """The pirqs of `domain`."""
        state = self._domains.get(domain)
        if state is None:
            state = self._domains[domain] = DomainPirqs()
            domain.events.bind_irq = partial(self.bind, domain)
            domain.events.unbind_irq = partial(self.unbind, domain)
        return state

    def irq(self, domain: Domain, pirq: int) -> int | None:
        """What is behind `pirq`; None if nothing is."""
        irq = self.of(domain).irqs.get(pirq, _RESERVED)
        return None if irq == _RESERVED else irq

    def is_of(self, domain: Domain, pirq: int, functions: Collection[PciDevice]) -> bool:
        """Whether `pirq` of the domain is a message, or the line, of one of these PCI functions."""
        irq = self.irq(domain, pirq)
        if irq is None:
            return False
        message = self._lines[irq].message
        return message.function in functions if message else irq in [function.gsi for function in functions]

    # -- mapping ------------------------------------------------------------------------------------------------------

    def setup_gsi(self, gsi: int, level: bool, active_low: bool) -> None:
        """Say how the line of `gsi` is driven. Raises XenError: EINVAL, EEXIST while the interrupt is bound."""
        if self._gsi(gsi).bound:
            raise XenError(EEXIST, f"GSI {gsi} is in use")
        self._route(gsi, level, active_low, masked=True)

    def map_gsi(self, domain: Domain, gsi: int, pirq: int) -> int:
        """Map `gsi` to `pirq` of `domain`, or to a free number if `pirq` is negative; the number.

        Raises XenError: EINVAL for a number that is not valid or taken, EEXIST if the GSI has another, ENOSPC.
        """
        self._gsi(gsi)
        state = self.of(domain)
        present = next((number for number, mapped in state.irqs.items() if mapped == gsi), None)
        if pirq < 0:
            pirq = present if present is not None else self._choose(state, gsi)
        elif present is not None and present != pirq:
            raise XenError(EEXIST, f"GSI {gsi} is pirq {present}")
        if pirq >= NR_PIRQS or state.irqs.get(pirq, gsi) not in (gsi, _RESERVED):
            raise XenError(EINVAL, f"GSI {gsi} cannot be pirq {pirq}")
        state.irqs[pirq] = gsi
        return pirq

    def _choose(self, state: DomainPirqs, gsi: int) -> int:
        return gsi if gsi not in state.irqs else self._free(state, for_messages=False)

    def unmap(self, domain: Domain, pirq: int) -> None:
        """Give `pirq` back. Raises XenError(EINVAL) if it is not mapped."""
        state = self.of(domain)
        if state.irqs.get(pirq, _RESERVED) == _RESERVED:
            raise XenError(EINVAL, f"pirq {pirq} is not mapped")
        self.unbind(domain, pirq)
        irq = state.irqs.pop(pirq)
        if irq >= FIRST_MESSAGE:
            self._drop_message(irq)

    def reserve(self, domain: Domain, for_messages: bool) -> int:
        """A number that is not in use, and is not given out again. Raises XenError(ENOSPC)."""
        state = self.of(domain)
        pirq = self._free(state, for_messages)
        state.irqs[pirq] = _RESERVED
        return pirq

    def _free(self, state: DomainPirqs, for_messages: bool) -> int:
        numbers = range(NR_PIRQS - 1, PINS - 1, -1) if for_messages else range(LEGACY_IRQS, PINS)
        free = next((number for number in numbers if number not in state.irqs), None)
        if free is None:
            raise XenError(ENOSPC, "no free pirq")
        return free

    # -- messages of PCI functions ------------------------------------------------------------------------------------

    def map_msi(self, domain: Domain, where: int, count: int, pirq: int) -> int:
        """Map `count` messages of MSI to pirqs one after the other, from `pirq` on or from a free one; the first.

        Raises XenError: ENODEV if the function does not work for the domain or has no MSI, EEXIST if it uses it
        already, EINVAL for more than it has or pirqs that are taken, ENOSPC.
        """
        function = self._function(domain, where)
        size = 1 << max(count - 1, 0).bit_length()
        if not function.vectors[0]:
            raise XenError(ENODEV, f"function {where:#06x} sends no messages by MSI")
        if not count >= 1 or size > function.vectors[0]:
            raise XenError(EINVAL, f"{count} messages of function {where:#06x}, which has {function.vectors[0]}")
        if any(message.function is function and not message.is_msix for message in self._messages()):
            raise XenError(EEXIST, f"function {where:#06x} sends messages already")
        first = self._place(domain, pirq, count)
        irq = self._free_irqs(size)
        for index in range(count):
            self._lines[irq + index] = _Line(message=_Message(function, False, index))
            self.of(domain).irqs[first + index] = irq + index
        function.program_msi(MESSAGE_ADDRESS, irq, size)
        return first

    def map_msix(self, domain: Domain, where: int, entry: int, pirq: int) -> int:
        """Map entry `entry` of MSI-X to `pirq` of the domain, or to a free one; the number.

        Raises XenError: ENODEV, EEXIST, EINVAL, ENOSPC, as `map_msi`.
        """
        function = self._function(domain, where)
        if not function.vectors[1]:
            raise XenError(ENODEV, f"function {where:#06x} sends no messages by MSI-X")
        if not 0 <= entry < function.vectors[1]:
            raise XenError(EINVAL, f"message {entry} of function {where:#06x}, which has {function.vectors[1]}")
        if _Message(function, True, entry) in self._messages():
            raise XenError(EEXIST, f"message {entry} of function {where:#06x} is mapped already")
        pirq = self._place(domain, pirq, 1)
        irq = self._free_irqs(1)
        self._lines[irq] = _Line(message=_Message(function, True, entry))
        self.of(domain).irqs[pirq] = irq
        function.program_msix(entry, MESSAGE_ADDRESS, irq, masked=True)
        return pirq

    def restore_messages(self, where: int) -> None:
        """Program the messages of a function anew, after it was reset."""
        own = {irq: message for irq, message in self._messages_by_irq() if message.function.where == where}
        count = sum(not message.is_msix for message in own.values())
        for irq, message in own.items():
            if not message.is_msix and not message.entry:
                message.function.program_msi(MESSAGE_ADDRESS, irq, 1 << (count - 1).bit_length())
        for irq in own:
            self._set_masked(irq, not self._lines[irq].bound)

    def has_messages(self, where: int) -> bool:
        """Whether messages of a function are mapped."""
        return any(message.function.where == where for message in self._messages())

    def release_messages(self, where: int) -> None:
        """Unmap all messages of a function, whoever has them."""
        for domain, state in list(self._domains.items()):
            for pirq, irq in list(state.irqs.items()):
                message = self._lines[irq].message if irq >= FIRST_MESSAGE else None
                if message is not None and message.function.where == where:
                    self.unmap(domain, pirq)

    def deliver_message(self, where: int, address: int, data: int) -> bool:
        """A message has come. Returns whether it is one that was programmed for function `where`."""
        line = self._lines.get(data) if address == MESSAGE_ADDRESS else None
        if line is None or line.message is None or line.message.function.where != where:
            return False
        self.deliver(data)
        return True

    def _function(self, domain: Domain, where: int) -> PciDevice:
        function = self._hv.iommu.functions().get(where)
        if function is None or self._hv.iommu.owner(where) is not domain:
            raise XenError(ENODEV, f"PCI function {where:#06x} does not work for {domain}")
        return function

    def _messages_by_irq(self) -> list[tuple[int, _Message]]:
        return [(irq, line.message) for irq, line in self._lines.items() if line.message is not None]

    def _messages(self) -> list[_Message]:
        return [message for _, message in self._messages_by_irq()]

    def _place(self, domain: Domain, pirq: int, count: int) -> int:
        """The first of `count` pirqs one after the other that are free, or reserved and asked for."""
        state = self.of(domain)
        if pirq >= 0:
            if any(state.irqs.get(number, _RESERVED) != _RESERVED for number in range(pirq, pirq + count)):
                raise XenError(EINVAL, f"pirq {pirq} is taken")
            if not PINS <= pirq <= NR_PIRQS - count:
                raise XenError(EINVAL, f"pirq {pirq} is none for messages")
            return pirq
        for first in range(NR_PIRQS - count, PINS - 1, -1):
            if not any(number in state.irqs for number in range(first, first + count)):
                return first
        raise XenError(ENOSPC, "no free pirq")

    def _free_irqs(self, size: int) -> int:
        """The first of `size` free irqs, a multiple of `size` (a power of two up to 32)."""
        irq = FIRST_MESSAGE
        while any(irq + index in self._lines for index in range(size)):
            irq += size
        return irq

    def _drop_message(self, irq: int) -> None:
        message = self._lines.pop(irq).message
        assert message is not None
        if message.is_msix:
            message.function.program_msix(message.entry, 0, 0, masked=True)
        elif not any(other.function is message.function and not other.is_msix for other in self._messages()):
            message.function.stop_msi()

    # -- delivery -----------------------------------------------------------------------------------------------------

    def bind(self, domain: Domain, pirq: int, will_share: bool) -> None:
        """Deliver the interrupt behind `pirq` to the domain from now on.

        Raises XenError: EINVAL if nothing is mapped there, EBUSY if it is bound and not all are willing to share.
        """
        irq = self.of(domain).irqs.get(pirq, _RESERVED)
        if irq == _RESERVED:
            raise XenError(EINVAL, f"pirq {pirq} is not mapped")
        line = self._lines[irq]
        if line.bound and not (will_share and all(shared for _, _, shared in line.bound)):
            raise XenError(EBUSY, f"irq {irq} is in use and not shared")
        line.bound.append((domain, pirq, will_share))
        self._note_eoi(domain, pirq, self._is_level(irq))
        if len(line.bound) == 1:
            self._set_masked(irq, False)

    def unbind(self, domain: Domain, pirq: int) -> None:
        """Stop delivering `pirq`; the last one to leave masks the line. Nothing happens if it is not bound."""
        irq = self.of(domain).irqs.get(pirq, _RESERVED)
        if irq == _RESERVED or not self.is_bound(domain, pirq):
            return
        line = self._lines[irq]
        line.bound = [binding for binding in line.bound if binding[:2] != (domain, pirq)]
        if not line.bound:
            self._set_masked(irq, True)
        self.eoi(domain, pirq)
        self._note_eoi(domain, pirq, False)

    def deliver(self, irq: int) -> None:
        """An interrupt has come: tell all who bound it. A level interrupt stays away until all have ended it."""
        line = self._lines[irq]
        if self._is_level(irq):
            line.in_flight = [(domain, pirq) for domain, pirq, _ in line.bound]
        for domain, pirq, _ in line.bound:
            domain.events.raise_pirq(pirq)

    def eoi(self, domain: Domain, pirq: int) -> None:
        """The domain has handled the last interrupt of `pirq`. Raises XenError(EINVAL) if it has no such pirq."""
        irq = self.of(domain).irqs.get(pirq)
        if irq is None:
            raise XenError(EINVAL, f"there is no pirq {pirq}")
        if irq == _RESERVED:
            return
        line = self._lines[irq]
        if (domain, pirq) in line.in_flight:
            line.in_flight.remove((domain, pirq))
            if not line.in_flight and self._hv.pc is not None:
                self._hv.pc.ioapic.eoi(irq)

    def is_bound(self, domain: Domain, pirq: int) -> bool:
        """Whether a port of the domain is bound to `pirq`."""
        irq = self.of(domain).irqs.get(pirq, _RESERVED)
        return irq != _RESERVED and any(binding[:2] == (domain, pirq) for binding in self._lines[irq].bound)

    def is_shared(self, domain: Domain, pirq: int) -> bool:
        """Whether others have bound the same line."""
        irq = self.of(domain).irqs.get(pirq, _RESERVED)
        return irq != _RESERVED and len(self._lines[irq].bound) > 1

    # -- the I/O APIC -------------------------------------------------------------------------------------------------

    def write_entry(self, domain: Domain, gsi: int, low: int) -> None:
        """The driver of the machine writes the lower half of a redirection entry: its trigger and polarity are kept.

        The interrupt becomes the pirq of the same number. While it is bound nothing happens, as with Xen.
        """
        if not self._gsi(gsi).bound:
            self._route(gsi, bool(low & LEVEL), bool(low & ACTIVE_LOW), masked=True)
            self.map_gsi(domain, gsi, gsi)

    def _gsi(self, gsi: int) -> _Line:
        if not 0 <= gsi < PINS:
            raise XenError(EINVAL, f"there is no GSI {gsi}")
        return self._lines[gsi]

    def _route(self, gsi: int, level: bool, active_low: bool, masked: bool) -> None:
        if self._hv.pc is None:
            raise XenError(ENODEV, "the machine has no I/O APIC")
        self._hv.pc.ioapic.route(gsi, _FIRST_VECTOR + gsi, level=level, active_low=active_low, masked=masked)

    def _set_masked(self, irq: int, masked: bool) -> None:
        message = self._lines[irq].message
        if message is None:
            if self._hv.pc is not None:
                self._hv.pc.ioapic.set_masked(irq, masked)
        elif message.is_msix:
            message.function.program_msix(message.entry, MESSAGE_ADDRESS, irq, masked)
        else:
            message.function.mask_msi(message.entry, masked)

    def _is_level(self, irq: int) -> bool:
        return irq < PINS and self._hv.pc is not None and bool(self._hv.pc.ioapic.entry(irq) & LEVEL)

    def _note_eoi(self, domain: Domain, pirq: int, needed: bool) -> None:
        """Keep the domain's page of flags that say which pirqs need an end of interrupt (PHYSDEVOP_pirq_eoi_gmfn)."""
        if not domain.pirq_eoi_mfn:
            return
        at = (domain.pirq_eoi_mfn << 12) + (pirq >> 3)
        bit = 1 << (pirq & 7)
        flags = self._hv.ram.bytes[at]
        self._hv.ram.bytes[at] = flags | bit if needed else flags & ~bit
