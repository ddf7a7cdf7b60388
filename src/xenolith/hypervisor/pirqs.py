"""Physical interrupts of domains: which GSI stands behind each pirq, who waits for it, and when it may come again.

Source: xen/arch/x86/irq.c (map_domain_pirq, pirq_guest_bind, __do_IRQ_guest, desc_guest_eoi) and physdev.c.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from xenolith.abi.errno import EBUSY, EEXIST, EINVAL, ENODEV, ENOSPC, XenError
from xenolith.machine.interrupts import ACTIVE_LOW, LEVEL, PINS

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor

NR_PIRQS: Final = 256
"""Pirqs that a domain can have: the GSIs by their own numbers, then those for messages."""
LEGACY_IRQS: Final = 16

_RESERVED: Final = -1
"""In place of a GSI: the number was given out, but nothing is mapped to it yet."""
_FIRST_VECTOR: Final = 0x30
"""What the guest never sees but the I/O APIC keeps."""


@dataclass(slots=True)
class DomainPirqs:
    """The pirqs of one domain. `unmasks` says that an end of interrupt also unmasks the port (eoi_gmfn version 1)."""

    gsis: dict[int, int] = field(default_factory=dict)
    unmasks: bool = False


@dataclass(slots=True)
class _Line:
    """The bindings (domain, pirq, may be shared) of one GSI, and which of them have not ended the last interrupt."""

    bound: list[tuple[Domain, int, bool]] = field(default_factory=list)
    in_flight: list[tuple[Domain, int]] = field(default_factory=list)


class Pirqs:
    """Takes every interrupt of the machine's I/O APIC and gives it to the domains that have bound it."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._domains: WeakKeyDictionary[Domain, DomainPirqs] = WeakKeyDictionary()
        self._lines = [_Line() for _ in range(PINS)]
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

    # -- mapping ------------------------------------------------------------------------------------------------------

    def setup_gsi(self, gsi: int, level: bool, active_low: bool) -> None:
        """Say how the line of `gsi` is driven. Raises XenError: EINVAL, EEXIST while the interrupt is bound."""
        line = self._line(gsi)
        if line.bound:
            raise XenError(EEXIST, f"GSI {gsi} is in use")
        self._route(gsi, level, active_low, masked=True)

    def map_gsi(self, domain: Domain, gsi: int, pirq: int) -> int:
        """Map `gsi` to `pirq` of `domain`, or to a free number if `pirq` is negative; the number.

        Raises XenError: EINVAL for a number that is not valid or taken, EEXIST if the GSI has another, ENOSPC.
        """
        self._line(gsi)
        state = self.of(domain)
        present = next((number for number, mapped in state.gsis.items() if mapped == gsi), None)
        if pirq < 0:
            pirq = present if present is not None else self._choose(state, gsi)
        elif present is not None and present != pirq:
            raise XenError(EEXIST, f"GSI {gsi} is pirq {present}")
        if pirq >= NR_PIRQS or state.gsis.get(pirq, gsi) not in (gsi, _RESERVED):
            raise XenError(EINVAL, f"GSI {gsi} cannot be pirq {pirq}")
        state.gsis[pirq] = gsi
        return pirq

    def _choose(self, state: DomainPirqs, gsi: int) -> int:
        return gsi if gsi not in state.gsis else self._free(state, for_messages=False)

    def unmap(self, domain: Domain, pirq: int) -> None:
        """Give `pirq` back. Raises XenError(EINVAL) if it is not mapped."""
        state = self.of(domain)
        if state.gsis.get(pirq, _RESERVED) == _RESERVED:
            raise XenError(EINVAL, f"pirq {pirq} is not mapped")
        self.unbind(domain, pirq)
        del state.gsis[pirq]

    def reserve(self, domain: Domain, for_messages: bool) -> int:
        """A number that is not in use, and is not given out again. Raises XenError(ENOSPC)."""
        state = self.of(domain)
        pirq = self._free(state, for_messages)
        state.gsis[pirq] = _RESERVED
        return pirq

    def _free(self, state: DomainPirqs, for_messages: bool) -> int:
        numbers = range(NR_PIRQS - 1, PINS - 1, -1) if for_messages else range(LEGACY_IRQS, PINS)
        free = next((number for number in numbers if number not in state.gsis), None)
        if free is None:
            raise XenError(ENOSPC, "no free pirq")
        return free

    # -- delivery -----------------------------------------------------------------------------------------------------

    def bind(self, domain: Domain, pirq: int, will_share: bool) -> None:
        """Deliver the interrupt behind `pirq` to the domain from now on.

        Raises XenError: EINVAL if nothing is mapped there, EBUSY if it is bound and not all are willing to share.
        """
        gsi = self.of(domain).gsis.get(pirq, _RESERVED)
        if gsi == _RESERVED:
            raise XenError(EINVAL, f"pirq {pirq} is not mapped")
        line = self._line(gsi)
        if line.bound and not (will_share and all(shared for _, _, shared in line.bound)):
            raise XenError(EBUSY, f"GSI {gsi} is in use and not shared")
        line.bound.append((domain, pirq, will_share))
        self._note_eoi(domain, pirq, self._is_level(gsi))
        if len(line.bound) == 1:
            self._set_masked(gsi, False)

    def unbind(self, domain: Domain, pirq: int) -> None:
        """Stop delivering `pirq`; the last one to leave masks the line. Nothing happens if it is not bound."""
        gsi = self.of(domain).gsis.get(pirq, _RESERVED)
        if gsi == _RESERVED or not self.is_bound(domain, pirq):
            return
        line = self._line(gsi)
        line.bound = [binding for binding in line.bound if binding[:2] != (domain, pirq)]
        if not line.bound:
            self._set_masked(gsi, True)
        self.eoi(domain, pirq)
        self._note_eoi(domain, pirq, False)

    def deliver(self, gsi: int) -> None:
        """An interrupt has come: tell all who bound it. A level interrupt stays away until all have ended it."""
        line = self._line(gsi)
        if self._is_level(gsi):
            line.in_flight = [(domain, pirq) for domain, pirq, _ in line.bound]
        for domain, pirq, _ in line.bound:
            domain.events.raise_pirq(pirq)

    def eoi(self, domain: Domain, pirq: int) -> None:
        """The domain has handled the last interrupt of `pirq`. Raises XenError(EINVAL) if it has no such pirq."""
        gsi = self.of(domain).gsis.get(pirq)
        if gsi is None:
            raise XenError(EINVAL, f"there is no pirq {pirq}")
        if gsi == _RESERVED:
            return
        line = self._line(gsi)
        if (domain, pirq) in line.in_flight:
            line.in_flight.remove((domain, pirq))
            if not line.in_flight and self._hv.pc is not None:
                self._hv.pc.ioapic.eoi(gsi)

    def is_bound(self, domain: Domain, pirq: int) -> bool:
        """Whether a port of the domain is bound to `pirq`."""
        gsi = self.of(domain).gsis.get(pirq, _RESERVED)
        return gsi != _RESERVED and any(binding[:2] == (domain, pirq) for binding in self._line(gsi).bound)

    def is_shared(self, domain: Domain, pirq: int) -> bool:
        """Whether others have bound the same line."""
        gsi = self.of(domain).gsis.get(pirq, _RESERVED)
        return gsi != _RESERVED and len(self._line(gsi).bound) > 1

    # -- the I/O APIC -------------------------------------------------------------------------------------------------

    def write_entry(self, domain: Domain, gsi: int, low: int) -> None:
        """The driver of the machine writes the lower half of a redirection entry: its trigger and polarity are kept.

        The interrupt becomes the pirq of the same number. While it is bound nothing happens, as with Xen.
        """
        if not self._line(gsi).bound:
            self._route(gsi, bool(low & LEVEL), bool(low & ACTIVE_LOW), masked=True)
            self.map_gsi(domain, gsi, gsi)

    def _line(self, gsi: int) -> _Line:
        if not 0 <= gsi < PINS:
            raise XenError(EINVAL, f"there is no GSI {gsi}")
        return self._lines[gsi]

    def _route(self, gsi: int, level: bool, active_low: bool, masked: bool) -> None:
        if self._hv.pc is None:
            raise XenError(ENODEV, "the machine has no I/O APIC")
        self._hv.pc.ioapic.route(gsi, _FIRST_VECTOR + gsi, level=level, active_low=active_low, masked=masked)

    def _set_masked(self, gsi: int, masked: bool) -> None:
        if self._hv.pc is not None:
            self._hv.pc.ioapic.set_masked(gsi, masked)

    def _is_level(self, gsi: int) -> bool:
        return self._hv.pc is not None and bool(self._hv.pc.ioapic.entry(gsi) & LEVEL)

    def _note_eoi(self, domain: Domain, pirq: int, needed: bool) -> None:
        """Keep the domain's page of flags that say which pirqs need an end of interrupt (PHYSDEVOP_pirq_eoi_gmfn)."""
        if not domain.pirq_eoi_mfn:
            return
        at = (domain.pirq_eoi_mfn << 12) + (pirq >> 3)
        bit = 1 << (pirq & 7)
        flags = self._hv.ram.bytes[at]
        self._hv.ram.bytes[at] = flags | bit if needed else flags & ~bit
