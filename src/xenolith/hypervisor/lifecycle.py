"""The life of a domain: made, paused, started, stopped, and taken apart until nothing of it is left.

Facts are those of Xen 4.17's xen/common/domain.c (domain_create, domain_kill, complete_domain_destroy).
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

import numpy as np

from xenolith.abi.errno import EINVAL, ENOMEM, EOVERFLOW, XenError
from xenolith.abi.event_channel import VIRQ_DOM_EXC
from xenolith.abi.types import DOMID_FIRST_RESERVED
from xenolith.hypervisor import vcpu_state
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.events import EventChannels, raise_global_virq
from xenolith.hypervisor.frames import FLAG_PINNED
from xenolith.hypervisor.grants import GrantTable
from xenolith.hypervisor.hypercalls import mmu
from xenolith.hypervisor.vcpu import UPCALL_MASK, Vcpu

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

MAX_VCPUS: Final = 128
_LEGACY_VCPUS: Final = 32
"""vCPUs whose struct vcpu_info lies in shared_info from the start."""
_INFO_BYTES: Final = 64
_VCPUS_PER_TABLE: Final = 16
_FRAMES_OF_A_DOMAIN: Final = 4
"""shared_info, the grant table's first frame, and two page tables for descriptors."""
_MOST_PAUSES: Final = 255
_PERIOD_NS: Final = 10_000_000
"""The periodic timer that a vCPU has until it stops it."""
_FRAMES_IN_A_PART: Final = 8192
_TABLES_IN_A_PART: Final = 64
_ITEMS_IN_A_PART: Final = 1024
"""Ports or grant mappings."""
_INVALID_M2P: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


class Lifecycle:
    """Makes domains and ends them."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._next_domid = 0

    # -- the beginning ------------------------------------------------------------------------------------------------

    def create(self, name: str, max_vcpus: int, capabilities: Capability, wanted: int | None = None) -> Domain:
        """A domain without memory and vCPUs, numbered `wanted`, which nobody is, or with a free number.

        Raises XenError, and makes nothing: EINVAL for an impossible number of vCPUs, ENOMEM for lack of frames or
        numbers.
        """
        hv = self._hv
        if not 1 <= max_vcpus <= MAX_VCPUS:
            raise XenError(EINVAL, f"{max_vcpus} vCPUs")
        self._require_frames(_FRAMES_OF_A_DOMAIN)
        domain = Domain(self._choose_domid(wanted), name, 0, capabilities, max_vcpus=max_vcpus)
        if hv.clock.virtual:
            domain.handle = uuid.uuid5(uuid.NAMESPACE_URL, f"xenolith:{domain.domid}/{name}")
        hv.domains[domain.domid] = domain
        domain.shared_info_mfn = hv.share_frame(domain)
        hv.descriptors.add_domain(domain)
        domain.events = EventChannels(hv, domain)
        domain.grants = GrantTable(hv, domain)
        hv.timekeeping.update_wall_clock(domain)
        return domain

    def _require_frames(self, count: int) -> None:
        if self._hv.frames.free_frames < count:
            raise XenError(ENOMEM, f"{count} frames needed, {self._hv.frames.free_frames} free")

    def _choose_domid(self, wanted: int | None) -> int:
        domains = self._hv.domains
        if wanted is not None:
            return wanted
        for _ in range(DOMID_FIRST_RESERVED):
            domid = self._next_domid
            self._next_domid = domid % (DOMID_FIRST_RESERVED - 1) + 1
            if domid not in domains:
                return domid
        raise XenError(ENOMEM, "all domids are in use")

    def create_vcpus(self, domain: Domain) -> None:
        """Give the domain its vCPUs, none of them started. Raises XenError(ENOMEM) and gives none."""
        if domain.vcpus:
            return
        self._require_frames(-(-domain.max_vcpus // _VCPUS_PER_TABLE))
        for number in range(domain.max_vcpus):
            domain.vcpus.append(self._create_vcpu(domain, number))
        domain.vcpu_count = len(domain.vcpus)

    def _create_vcpu(self, domain: Domain, number: int) -> Vcpu:
        hv = self._hv
        if number < _LEGACY_VCPUS:
            info = (domain.shared_info_mfn << 12) + number * _INFO_BYTES
            hv.ram.bytes[info + UPCALL_MASK] = 1
        else:
            info = hv.dummy_vcpu_info_maddr
        vcpu = Vcpu(domain, number, hv.engine.create_cpu(), info)
        vcpu.periodic_ns = _PERIOD_NS
        vcpu.runstate.entered_ns = hv.now_ns()
        hv.descriptors.add_vcpu(vcpu)
        return vcpu

    # -- pausing ------------------------------------------------------------------------------------------------------

    def pause(self, domain: Domain) -> None:
        """One more reason of a control domain's that the domain does not run. Raises XenError(EOVERFLOW)."""
        if domain.controller_pause_count >= _MOST_PAUSES:
            raise XenError(EOVERFLOW, f"domain {domain.domid} is paused {_MOST_PAUSES} times")
        domain.controller_pause_count += 1
        domain.pause_count += 1
        self._settle(domain)

    def unpause(self, domain: Domain) -> None:
        """One reason less. Raises XenError(EINVAL) if no control domain has paused it."""
        if not domain.controller_pause_count:
            raise XenError(EINVAL, f"domain {domain.domid} is not paused")
        domain.controller_pause_count -= 1
        domain.pause_count -= 1
        if not domain.controller_pause_count:
            domain.was_started = True
        if not domain.pause_count:
            for vcpu in domain.vcpus:
                self._hv.scheduler.woken(vcpu)
            self._hv.reschedule = True
        self._settle(domain)

    def resume(self, domain: Domain) -> None:
        """Let a domain that has shut down go on where it was (domain_resume)."""
        if domain.shutdown_code is None:
            return
        domain.shutdown_code = domain.announced_shutdown_code = None
        domain.pause_count -= 1
        for vcpu in domain.vcpus:
            self._hv.scheduler.woken(vcpu)
        self._hv.reschedule = True
        self._settle(domain)

    def _settle(self, domain: Domain) -> None:
        for vcpu in domain.vcpus:
            self._hv.timekeeping.settle(vcpu)

    # -- the end ------------------------------------------------------------------------------------------------------

    def kill(self, domain: Domain) -> bool:
        """Do a part of taking the domain apart. Returns whether that was the last; it may be called after it."""
        if domain.is_dead:
            return True
        if not domain.is_dying:
            domain.is_dying = True
            domain.claimed_frames = 0
            domain.watchdogs = [0, 0]
            self._hv.iommu.release(domain)
            self._settle(domain)
        stages = (self._unmap_some, self._close_some, self._release_vcpus, self._unpin_some, self._release_some)
        if not all(stage(domain) for stage in stages):
            return False
        self._die(domain)
        return True

    def _unmap_some(self, domain: Domain) -> bool:
        """Let go of others' grants, and then of its own table. Returns whether that is done."""
        return domain.grants.destroy(_ITEMS_IN_A_PART)

    def _close_some(self, domain: Domain) -> bool:
        """Close ports; those at the other end wait for nobody. Returns whether all are closed."""
        return domain.events.destroy(_ITEMS_IN_A_PART)

    def _release_vcpus(self, domain: Domain) -> bool:
        """Give back what the vCPUs hold."""
        hv, frames = self._hv, self._hv.frames
        for vcpu in domain.vcpus:
            vcpu.singleshot_ns = vcpu.periodic_ns = vcpu.poll_deadline_ns = 0
            vcpu_state.reset(hv, vcpu)
            if vcpu.info_registered:
                frames.put_page_and_type(vcpu.info_maddr >> 12)
                vcpu.info_maddr, vcpu.info_registered = hv.dummy_vcpu_info_maddr, False
        if domain.pirq_eoi_mfn:
            frames.put_page_and_type(domain.pirq_eoi_mfn)
            domain.pirq_eoi_mfn = 0
        return True

    def _unpin_some(self, domain: Domain) -> bool:
        """Let page tables go. Returns whether none is pinned any more."""
        frames = self._hv.frames
        pinned = np.flatnonzero((frames.owners == domain.domid) & ((frames.all_flags & FLAG_PINNED) != 0))
        for mfn in pinned[:_TABLES_IN_A_PART].tolist():
            if frames.flags[mfn] & FLAG_PINNED:
                mmu.unpin(self._hv, domain, mfn)
        return len(pinned) <= _TABLES_IN_A_PART

    def _release_some(self, domain: Domain) -> bool:
        """Give memory back. Returns whether none is allocated any more."""
        hv = self._hv
        mfns = hv.frames.allocated_to(domain.domid)
        part = mfns[:_FRAMES_IN_A_PART]
        np.frombuffer(hv.m2p, dtype=np.uint64)[part] = _INVALID_M2P
        domain.tot_frames -= hv.frames.release_allocations(part)
        return len(mfns) <= _FRAMES_IN_A_PART

    def _die(self, domain: Domain) -> None:
        hv = self._hv
        hv.descriptors.remove_domain(domain)
        hv.unshare_frame(domain.shared_info_mfn)
        domain.frames_left = len(hv.frames.owned_by(domain.domid))
        domain.is_dead = True
        hv.publish("destroy", domid=domain.domid)
        raise_global_virq(hv, VIRQ_DOM_EXC)
        self._bury(domain)

    def frame_freed(self, domid: int) -> None:
        """A frame of domain `domid` is free, perhaps the last that kept its number from being used again."""
        domain = self._hv.domains.get(domid)
        if domain is not None and domain.is_dead:
            domain.frames_left -= 1
            self._bury(domain)

    def _bury(self, domain: Domain) -> None:
        """Forget a dead domain of which no frame is left: its number may be another's."""
        hv = self._hv
        if domain.frames_left or hv.domains.get(domain.domid) is not domain:
            return
        del hv.domains[domain.domid]
        for vcpu in domain.vcpus:
            hv.engine.release_cpu(vcpu.cpu)
        hv.forget_cpuid(domain)
        hv.policy.forget(domain.domid)
        hv.log.forget(domain.domid)
        for other in hv.domains.values():
            if other.targets is not None:
                other.targets -= {domain.domid}
            if other.creator == domain.domid:
                other.creator = None
        hv.publish("gone", domid=domain.domid)
        raise_global_virq(hv, VIRQ_DOM_EXC)
