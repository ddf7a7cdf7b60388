"""Recomputes every reference and type count of a hypervisor's frame table from what holds them, and compares.

This is a second, slow and simple statement of the rules that the hypervisor keeps: nothing here is taken from its own
counting. A difference is a bug of the hypervisor, whatever guests did.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np

from xenolith.abi.event_channel import EVTCHNSTAT_closed, EVTCHNSTAT_interdomain
from xenolith.abi.grant_table import GNTMAP_device_map, GNTMAP_host_map
from xenolith.abi.types import DOMID_XEN
from xenolith.cpu.engine import ENGINE_SLOT
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.events_fifo import Fifo
from xenolith.hypervisor.frames import (
    FLAG_ALLOCATED,
    FLAG_EXECUTABLE,
    FLAG_PINNED,
    FLAG_SHARED,
    HYPERVISOR,
    NOBODY,
    NOT_RAM,
    TYPE_L1,
    TYPE_L4,
    TYPE_NAMES,
    TYPE_SEG_DESC,
    TYPE_SHARED,
    TYPE_WRITABLE,
)
from xenolith.hypervisor.machine import Hypervisor

_PRESENT: Final = 1
_RW: Final = 2
_USER: Final = 4
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_NX: Final = 1 << 63
_XEN_SLOTS: Final = range(256, 272)
_PERDOMAIN_SLOT: Final = 260


def check_invariants(hv: Hypervisor) -> None:
    """AssertionError, with every broken rule in a line of its own, if the hypervisor's books do not balance."""
    problems = _Census(hv).problems()
    assert not problems, "the hypervisor's books do not balance:\n  " + "\n  ".join(problems[:40])


class _Census:
    """Counts all holders of frames. `held[mfn]` are the references, `typed[mfn]` those that also hold a type."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._frames = hv.frames
        self._words = hv.ram.words
        self._held = np.zeros(hv.frames.total, np.int64)
        self._typed: dict[int, Counter[int]] = {}
        self._foreign: Counter[tuple[int, int, bool]] = Counter()
        self._linear_entries: Counter[int] = Counter()
        self._linear_uses: Counter[int] = Counter()
        self._problems: list[str] = []

    def problems(self) -> list[str]:
        """What is wrong, in words; empty if nothing is."""
        self._count_frames()
        alive = [domain for domain in self._hv.domains.values() if not domain.is_dead]
        for domain in alive:
            self._count_domain(domain)
        self._count_tables()
        self._compare_counts()
        self._compare_linear()
        for domain in alive:
            self._check_foreign(domain)
            self._check_events(domain)
            self._check_perdomain(domain)
        for domain in self._hv.domains.values():
            if domain.is_dead:
                self._check_dead(domain)
        self._check_grants()
        return self._problems

    def _say(self, text: str) -> None:
        self._problems.append(text)

    def _hold(self, mfn: int, kind: int | None = None) -> None:
        self._held[mfn] += 1
        if kind is not None:
            self._typed.setdefault(mfn, Counter())[kind] += 1

    # -- holders ------------------------------------------------------------------------------------------------------

    def _count_frames(self) -> None:
        frames = self._frames
        self._held += (frames.all_flags & FLAG_ALLOCATED) != 0
        for mfn in np.flatnonzero(frames.all_flags & FLAG_PINNED).tolist():
            self._hold(mfn, frames.type[mfn])
        for mfn in np.flatnonzero(frames.owners == DOMID_XEN).tolist():
            self._typed[mfn] = Counter({TYPE_SHARED: 1})  # so that nobody has it writable

    def _count_domain(self, domain: Domain) -> None:
        for mfn in (domain.shared_info_mfn, *domain.grants.frames, *domain.grants.status_frames):
            if not self._frames.flags[mfn] & FLAG_SHARED:
                self._say(f"shared frame {mfn:#x} of {domain} is not marked so")
            self._hold(mfn, TYPE_WRITABLE)
        for vcpu in domain.vcpus:
            for root in (vcpu.kernel_root, vcpu.user_root):
                if root:
                    self._hold(root >> 12, TYPE_L4)
            for mfn in (*vcpu.gdt_mfns, *vcpu.ldt_mfns.values()):
                self._hold(mfn, TYPE_SEG_DESC)
            if vcpu.info_registered:
                self._hold(vcpu.info_maddr >> 12, TYPE_WRITABLE)
        if domain.pirq_eoi_mfn:
            self._hold(domain.pirq_eoi_mfn, TYPE_WRITABLE)
        if isinstance(domain.events.signalling, Fifo):
            for mfn in domain.events.signalling._held:
                self._hold(mfn, TYPE_WRITABLE)
        for mapping in domain.grants._mappings.values():
            kind = None if mapping.readonly else TYPE_WRITABLE
            if mapping.flags & GNTMAP_host_map and not mapping.in_table:
                self._hold(mapping.active.mfn, kind)
            if mapping.flags & GNTMAP_device_map:
                self._hold(mapping.active.mfn, kind)

    def _check_dead(self, domain: Domain) -> None:
        owned = int((self._frames.owners == domain.domid).sum())
        if not owned or owned != domain.frames_left:
            self._say(f"dead {domain} owns {owned} frames, {domain.frames_left} are said to be left of it")
        if list(domain.events) or domain.grants._mappings or domain.grants.frames:
            self._say(f"dead {domain} holds ports or grants")

    def _count_tables(self) -> None:
        frames = self._frames
        tables = (frames.type_counts != 0) & (frames.types >= TYPE_L1) & (frames.types <= TYPE_SEG_DESC)
        for mfn in np.flatnonzero(tables).tolist():
            kind = frames.type[mfn]
            owner = frames.owner[mfn]
            if owner not in self._hv.domains:
                self._say(f"frame {mfn:#x} is a table ({TYPE_NAMES[kind]}) of domain {owner}, which does not exist")
            elif kind == TYPE_SEG_DESC:
                self._check_descriptors(mfn)
            elif kind == TYPE_L1:
                self._count_l1(mfn, owner)
            else:
                self._count_upper(mfn, kind)

    def _present(self, mfn: int) -> list[tuple[int, int]]:
        entries = enumerate(self._words[mfn << 9 : (mfn + 1) << 9].tolist())
        return [(slot, entry) for slot, entry in entries if entry & _PRESENT]

    def _count_l1(self, table: int, owner: int) -> None:
        frames = self._frames
        for slot, entry in self._present(table):
            mfn = (entry & _ADDRESS) >> 12
            if not entry & _USER:
                self._say(f"L1e {entry:#x} in slot {slot} of {table:#x} lacks the user bit")
            if mfn >= frames.total or frames.owner[mfn] == NOT_RAM:
                if not any(first <= mfn <= last for first, last in self._hv.domains[owner].iomem_ranges):
                    self._say(f"L1e {entry:#x} in slot {slot} of {table:#x} maps what is no memory")
                continue
            self._hold(mfn, TYPE_WRITABLE if entry & _RW else None)
            if not entry & _NX and not frames.flags[mfn] & FLAG_EXECUTABLE:
                self._say(f"frame {mfn:#x} is mapped executable and not marked so")
            if frames.owner[mfn] != owner:
                self._foreign[owner, mfn, bool(entry & _RW)] += 1

    def _count_upper(self, table: int, kind: int) -> None:
        frames = self._frames
        for slot, entry in self._present(table):
            mfn = (entry & _ADDRESS) >> 12
            if kind == TYPE_L4 and slot in _XEN_SLOTS:
                self._check_xen_slot(table, slot, entry)
                continue
            if not entry & _USER or entry & 0x198:
                self._say(f"L{kind}e {entry:#x} in slot {slot} of {table:#x} has wrong flags")
            if mfn == table:
                if entry & _RW:
                    self._say(f"table {table:#x} maps itself with write access")
            elif mfn < frames.total and frames.type[mfn] == kind:
                if entry & _RW:
                    self._say(f"table {table:#x} maps {mfn:#x}, of the same level, with write access")
                self._hold(mfn, kind)
                self._linear_entries[table] += 1
                self._linear_uses[mfn] += 1
            else:
                self._hold(mfn, kind - 1)

    def _check_xen_slot(self, table: int, slot: int, entry: int) -> None:
        domain = self._hv.domains[self._frames.owner[table]]
        expected = {
            self._hv.engine.first_slot: self._hv.xenspace._l3_mfn,
            _PERDOMAIN_SLOT: domain.perdomain_l3_mfn,
        }.get(slot)
        if slot == ENGINE_SLOT:
            if entry != self._hv.engine.entry_table:
                self._say(f"the engine's slot of L4 {table:#x} holds {entry:#x}")
        elif expected is None or (entry & _ADDRESS) >> 12 != expected:
            self._say(f"the hypervisor's slot {slot} of L4 {table:#x} holds {entry:#x}")
        elif slot == _PERDOMAIN_SLOT and entry & _USER:
            self._say(f"the domain's own area is open to its code in L4 {table:#x}")

    def _check_descriptors(self, mfn: int) -> None:
        for slot, entry in enumerate(self._words[mfn << 9 : (mfn + 1) << 9].tolist()):
            if not entry >> 47 & 1:
                continue
            if entry >> 44 & 1:
                if entry >> 45 & 3 != 3:
                    self._say(f"descriptor {entry:#x} in slot {slot} of frame {mfn:#x} has a privilege below 3")
            elif entry >> 40 & 0xF not in (0, 0xC):
                self._say(f"descriptor {entry:#x} in slot {slot} of frame {mfn:#x} is a system descriptor")

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _compare_counts(self) -> None:
        frames = self._frames
        typed = np.zeros(frames.total, np.int64)
        for mfn, kinds in self._typed.items():
            typed[mfn] = kinds.total()
            if wrong := [TYPE_NAMES[kind] for kind in kinds if kind != frames.type[mfn]]:
                self._say(f"{self._name(mfn)} is used as {', '.join(wrong)}")
        for mfn in np.flatnonzero(frames.counts != self._held).tolist():
            self._say(f"{self._name(mfn)} has {frames.count[mfn]} references, {self._held[mfn]} holders")
        for mfn in np.flatnonzero(frames.type_counts != typed).tolist():
            holders = {TYPE_NAMES[kind]: times for kind, times in self._typed.get(mfn, Counter()).items()}
            self._say(f"{self._name(mfn)} has {frames.type_count[mfn]} uses as its type, holders are {holders}")
        for mfn in np.flatnonzero((frames.owners == HYPERVISOR) & ((typed != 0) | (self._held != 1))).tolist():
            self._say(f"{self._name(mfn)} is the hypervisor's and somebody refers to it")
        self._compare_totals()

    def _compare_totals(self) -> None:
        frames = self._frames
        free = int((frames.owners == NOBODY).sum())
        if free != frames.free_frames:
            self._say(f"{free} frames are free, {frames.free_frames} are said to be")
        own = (frames.all_flags & FLAG_SHARED) == 0
        for domain in self._hv.domains.values():
            owned = int(((frames.owners == domain.domid) & own).sum())
            if domain.tot_frames != owned:
                self._say(f"{domain} owns {owned} frames, {domain.tot_frames} are said to be its")

    def _name(self, mfn: int) -> str:
        return f"frame {mfn:#x} (owner {self._frames.owner[mfn]}, {TYPE_NAMES[self._frames.type[mfn]]})"

    def _compare_linear(self) -> None:
        tables = self._hv.pagetables
        if tables.linear_entries != self._linear_entries or tables.linear_uses != self._linear_uses:
            self._say(
                f"linear entries {dict(tables.linear_entries)} and uses {dict(tables.linear_uses)} are noted, "
                f"{dict(self._linear_entries)} and {dict(self._linear_uses)} are there"
            )

    # -- who may hold what --------------------------------------------------------------------------------------------

    def _check_foreign(self, domain: Domain) -> None:
        """A domain without CONTROL maps others' frames only by grants, and not more often or otherwise than granted,
        unless it made the others."""
        if domain.capabilities & (Capability.CONTROL | Capability.HARDWARE):
            return
        allowed: Counter[tuple[int, bool]] = Counter()
        for mapping in domain.grants._mappings.values():
            if mapping.flags & GNTMAP_host_map and mapping.in_table:
                allowed[mapping.active.mfn, not mapping.readonly] += 1
        for (owner, mfn, writable), times in self._foreign.items():
            if self._was_made_by(domain, self._frames.owner[mfn]):
                continue
            if owner == domain.domid and times > allowed[mfn, writable]:
                self._say(
                    f"{domain} maps frame {mfn:#x} of domain {self._frames.owner[mfn]} {times} times "
                    f"({'writable' if writable else 'read-only'}), {allowed[mfn, writable]} are granted"
                )

    def _was_made_by(self, domain: Domain, domid: int) -> bool:
        made = self._hv.domains.get(domid)
        return made is not None and made.creator == domain.domid and domain.can(Capability.CREATE)

    def _check_grants(self) -> None:
        pins: dict[int, list[int]] = {}
        for domain in self._hv.domains.values():
            for mapping in domain.grants._mappings.values():
                counted = pins.setdefault(id(mapping.active), [0, 0, 0, 0])
                for base, part in ((0, GNTMAP_host_map), (2, GNTMAP_device_map)):
                    if mapping.flags & part:
                        counted[base + mapping.readonly] += 1
        for domain in self._hv.domains.values():
            for active in domain.grants.active_grants():
                if active.pins != pins.get(id(active), [0, 0, 0, 0]):
                    self._say(f"grant {active.ref} of {domain} is pinned {active.pins}, held {pins.get(id(active))}")

    def _check_events(self, domain: Domain) -> None:
        for channel in domain.events:
            if channel.state == EVTCHNSTAT_interdomain:
                peer = channel.peer
                if peer is None or peer.peer is not channel or peer.state != EVTCHNSTAT_interdomain:
                    self._say(f"port {channel.port} of {domain} has no other end")
                elif peer.events.domain is not self._hv.domains.get(peer.events.domain.domid):
                    self._say(f"port {channel.port} of {domain} leads to a domain that is gone")
            elif channel.peer is not None:
                self._say(f"port {channel.port} of {domain} has an end and is not interdomain")
            if not 0 <= channel.vcpu_id < len(domain.vcpus):
                self._say(f"port {channel.port} of {domain} notifies vCPU {channel.vcpu_id}")
        for channel in domain.events._virqs.values():
            if channel.state == EVTCHNSTAT_closed:
                self._say(f"a VIRQ of {domain} goes to the closed port {channel.port}")

    def _check_perdomain(self, domain: Domain) -> None:
        for vcpu in domain.vcpus:
            at = self._hv.descriptors._l1_slot(vcpu)
            shown = [(entry & _ADDRESS) >> 12 for entry in self._words[at : at + 14].tolist()]
            wanted = vcpu.gdt_mfns + [self._hv.descriptors._zero_mfn] * (14 - len(vcpu.gdt_mfns))
            if shown != wanted:
                self._say(f"{vcpu} has its GDT in {wanted}, the processor sees {shown}")
            for page, entry in enumerate(self._words[at + 16 : at + 32].tolist()):
                if (entry & _ADDRESS) >> 12 != vcpu.ldt_mfns.get(page, 0):
                    self._say(
                        f"{vcpu} has LDT page {page} at {vcpu.ldt_mfns.get(page, 0):#x}, the processor {entry:#x}"
                    )
            ours = (self._hv.descriptors._zero_mfn, self._hv.descriptors._xen_gdt_mfn)
            for entry in self._words[at : at + 32].tolist():
                if entry & _PRESENT and (entry & _USER or (entry & _RW and (entry & _ADDRESS) >> 12 in ours)):
                    self._say(f"{vcpu} has a descriptor page {entry:#x} that somebody else could change")
