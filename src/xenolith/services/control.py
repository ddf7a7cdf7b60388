"""The hypercalls with which one domain makes, looks at and ends others, as calls: domctl, sysctl and foreign memory."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from ctypes import c_uint8
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from xenolith.abi.domctl import (
    XEN_DOMCTL_DEV_PCI,
    XEN_SCHEDULER_CREDIT2,
    XEN_VCPUAFFINITY_HARD,
    XEN_DOMCTL_assign_device,
    XEN_DOMCTL_CDF_iommu,
    XEN_DOMCTL_createdomain,
    XEN_DOMCTL_destroydomain,
    XEN_DOMCTL_getdomaininfo,
    XEN_DOMCTL_iomem_permission,
    XEN_DOMCTL_ioport_permission,
    XEN_DOMCTL_max_mem,
    XEN_DOMCTL_max_vcpus,
    XEN_DOMCTL_pausedomain,
    XEN_DOMCTL_SCHEDOP_getinfo,
    XEN_DOMCTL_SCHEDOP_putinfo,
    XEN_DOMCTL_scheduler_op,
    XEN_DOMCTL_sendtrigger,
    XEN_DOMCTL_settimeoffset,
    XEN_DOMCTL_setvcpuaffinity,
    XEN_DOMCTL_setvcpucontext,
    XEN_DOMCTL_unpausedomain,
    XEN_DOMINF_blocked,
    XEN_DOMINF_dying,
    XEN_DOMINF_paused,
    XEN_DOMINF_running,
    XEN_DOMINF_shutdown,
    XEN_DOMINF_shutdownmask,
    XEN_DOMINF_shutdownshift,
    XenDomctl,
    XenDomctlGetdomaininfo,
)
from xenolith.abi.errno import EAGAIN, ENOMEM, ESRCH, XenError
from xenolith.abi.event_channel import EvtchnAllocUnbound, EVTCHNOP_alloc_unbound
from xenolith.abi.grant_table import GrantEntryV1, GTF_permit_access
from xenolith.abi.hypercalls import (
    HYPERVISOR_domctl,
    HYPERVISOR_event_channel_op,
    HYPERVISOR_memory_op,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_sysctl,
)
from xenolith.abi.memory import (
    XENMEM_acquire_resource,
    XENMEM_populate_physmap,
    XENMEM_resource_grant_table,
    XenMemAcquireResource,
    XenMemoryReservation,
)
from xenolith.abi.mmu import MMUEXT_PIN_L4_TABLE, MmuextOp
from xenolith.abi.sysctl import (
    XEN_SYSCTL_physinfo,
    XenSysctl,
    XenSysctlPhysinfo,
)
from xenolith.abi.types import PAGE_SIZE
from xenolith.abi.vcpu import VcpuGuestContext, VGCF_in_kernel, VGCF_online
from xenolith.hypervisor.native import NativeKernel

TRIGGERS: Final = {"nmi": 0, "reset": 1, "init": 2, "power": 3, "sleep": 4}
"""By the names that xl gives to XEN_DOMCTL_SENDTRIGGER_*."""
_ANY_DOMID: Final = 0x7FFF
"""What a toolstack that leaves the choice of a domid to the hypervisor passes."""
_SLACK_KIB: Final = 1024
_MAX_PORT: Final = 1023
_MAX_GRANT_FRAMES: Final = 64
_MAX_MAPTRACK_FRAMES: Final = 1024
_LARGE_ORDER: Final = 9
_EXTENTS: Final = 2048
"""Extents that are passed in one call."""
_GRANT_ENTRY: Final = GrantEntryV1.sizeof()
_INTERRUPTS: Final = 0x200
_CS: Final = 0xE033
_SS: Final = 0xE02B


class DomainInfo(NamedTuple):
    """What the hypervisor says of a domain. `shutdown_reason` is a SHUTDOWN_*, or None while it goes on."""

    domid: int
    handle: uuid.UUID
    flags: int
    frames: int
    max_frames: int
    cpu_time_ns: int
    vcpus_online: int
    max_vcpu_id: int
    shared_info_mfn: int

    @property
    def is_running(self) -> bool:
        return bool(self.flags & XEN_DOMINF_running)

    @property
    def is_blocked(self) -> bool:
        return bool(self.flags & XEN_DOMINF_blocked)

    @property
    def is_paused(self) -> bool:
        return bool(self.flags & XEN_DOMINF_paused)

    @property
    def is_dying(self) -> bool:
        return bool(self.flags & XEN_DOMINF_dying)

    @property
    def shutdown_reason(self) -> int | None:
        if not self.flags & XEN_DOMINF_shutdown:
            return None
        return self.flags >> XEN_DOMINF_shutdownshift & XEN_DOMINF_shutdownmask


class Entry(NamedTuple):
    """Where a first vCPU begins: addresses in the guest, and the machine frame of its root table."""

    instruction: int
    stack: int
    start_info: int
    l4_mfn: int


class Control:
    """The control interface in a native domain's hands: every call succeeds or raises the XenError of its hypercall."""

    def __init__(self, kernel: NativeKernel) -> None:
        self._kernel = kernel

    def _domctl(self, command: int, domid: int) -> XenDomctl:
        return XenDomctl(cmd=command, interface_version=self._kernel.release.domctl, domain=domid)

    def _do(self, argument: XenDomctl) -> XenDomctl:
        self._kernel.hypercall(HYPERVISOR_domctl, argument)
        return argument

    # -- life ---------------------------------------------------------------------------------------------------------

    def create(self, handle: uuid.UUID, vcpus: int, memory_frames: int, has_iommu: bool = False) -> int:
        """A domain without memory, paused; its domid. `has_iommu`: PCI functions can be assigned to it."""
        argument = self._domctl(XEN_DOMCTL_createdomain, _ANY_DOMID)
        new = argument.u.createdomain
        new.handle = (c_uint8 * 16)(*handle.bytes)
        new.max_vcpus = vcpus
        new.max_evtchn_port = _MAX_PORT
        new.max_grant_frames = _MAX_GRANT_FRAMES
        new.max_maptrack_frames = _MAX_MAPTRACK_FRAMES
        new.grant_opts = 2
        new.flags = XEN_DOMCTL_CDF_iommu if has_iommu else 0
        domid = self._do(argument).domain
        argument = self._domctl(XEN_DOMCTL_max_vcpus, domid)
        argument.u.max_vcpus.max = vcpus
        self._do(argument)
        self.set_max_memory(domid, memory_frames)
        return domid

    def destroy(self, domid: int) -> bool:
        """End a domain at once. False while it is not yet wholly gone: to be called again."""
        try:
            self._do(self._domctl(XEN_DOMCTL_destroydomain, domid))
        except XenError as error:
            if error.errno != EAGAIN:
                raise
            return False
        return True

    def pause(self, domid: int) -> None:
        self._do(self._domctl(XEN_DOMCTL_pausedomain, domid))

    def unpause(self, domid: int) -> None:
        self._do(self._domctl(XEN_DOMCTL_unpausedomain, domid))

    def set_max_memory(self, domid: int, frames: int) -> None:
        argument = self._domctl(XEN_DOMCTL_max_mem, domid)
        argument.u.max_mem.max_memkb = frames * 4 + _SLACK_KIB
        self._do(argument)

    def set_time_offset(self, domid: int, seconds: int) -> None:
        """How far a domain's wall clock is before the machine's."""
        argument = self._domctl(XEN_DOMCTL_settimeoffset, domid)
        argument.u.settimeoffset.time_offset_seconds = seconds
        self._do(argument)

    def info(self, domid: int) -> DomainInfo:
        """Raises XenError(ESRCH) for a domain that does not exist."""
        found = self._do(self._domctl(XEN_DOMCTL_getdomaininfo, domid)).u.getdomaininfo
        if found.domain != domid:
            raise XenError(ESRCH, f"domain {domid} does not exist")
        return info_from(found)

    # -- the machine --------------------------------------------------------------------------------------------------

    def free_memory(self) -> int:
        """Bytes that no domain has."""
        return int(self._physical().free_pages) * PAGE_SIZE

    def cpus(self) -> int:
        """How many processors there are."""
        return int(self._physical().nr_cpus)

    def _physical(self) -> XenSysctlPhysinfo:
        argument = XenSysctl(cmd=XEN_SYSCTL_physinfo, interface_version=self._kernel.release.sysctl)
        self._kernel.hypercall(HYPERVISOR_sysctl, argument)
        return argument.u.physinfo

    # -- PCI ----------------------------------------------------------------------------------------------------------

    def assign(self, domid: int, where: int) -> None:
        """Have PCI function `where` (its bus, device and function number) work for a domain, DOMID_IO for nobody."""
        argument = self._domctl(XEN_DOMCTL_assign_device, domid)
        argument.u.assign_device.dev = XEN_DOMCTL_DEV_PCI
        argument.u.assign_device.u.pci.machine_sbdf = where
        self._do(argument)

    def permit_ports(self, domid: int, ports: range) -> None:
        """Let a domain use ports."""
        argument = self._domctl(XEN_DOMCTL_ioport_permission, domid)
        permission = argument.u.ioport_permission
        permission.first_port, permission.nr_ports, permission.allow_access = ports.start, len(ports), 1
        self._do(argument)

    def permit_memory(self, domid: int, maddrs: range) -> None:
        """Let a domain map the pages of these machine addresses of devices."""
        argument = self._domctl(XEN_DOMCTL_iomem_permission, domid)
        permission = argument.u.iomem_permission
        first, last = maddrs.start // PAGE_SIZE, (maddrs.stop - 1) // PAGE_SIZE
        permission.first_mfn, permission.nr_mfns, permission.allow_access = first, last - first + 1, 1
        self._do(argument)

    # -- scheduling ---------------------------------------------------------------------------------------------------

    def scheduling(self, domid: int) -> tuple[int, int]:
        """A domain's weight and cap (percent of one processor, 0 for none)."""
        argument = self._scheduler_op(domid, XEN_DOMCTL_SCHEDOP_getinfo)
        found = self._do(argument).u.scheduler_op.u.credit2
        return found.weight, found.cap

    def set_scheduling(self, domid: int, weight: int, cap: int) -> None:
        argument = self._scheduler_op(domid, XEN_DOMCTL_SCHEDOP_putinfo)
        wanted = argument.u.scheduler_op.u.credit2
        wanted.weight, wanted.cap = weight, cap
        self._do(argument)

    def set_affinity(self, domid: int, vcpu: int, processors: int) -> None:
        """Let a vCPU run on these processors alone (a bitmap). Raises XenError(EINVAL) if none of them is there."""
        count = self.cpus()
        argument = self._domctl(XEN_DOMCTL_setvcpuaffinity, domid)
        argument.u.vcpuaffinity.vcpu, argument.u.vcpuaffinity.flags = vcpu, XEN_VCPUAFFINITY_HARD
        bitmap = argument.u.vcpuaffinity.cpumap_hard
        data = (processors & (1 << count) - 1).to_bytes(-(-count // 8), "little")
        with self._kernel.scratch(len(data)) as place:
            place.view[:] = data
            bitmap.bitmap, bitmap.nr_bits = place.vaddr, count
            self._do(argument)

    def _scheduler_op(self, domid: int, command: int) -> XenDomctl:
        argument = self._domctl(XEN_DOMCTL_scheduler_op, domid)
        argument.u.scheduler_op.sched_id, argument.u.scheduler_op.cmd = XEN_SCHEDULER_CREDIT2, command
        return argument

    def trigger(self, domid: int, trigger: str, vcpu: int) -> None:
        """Send one of TRIGGERS to a vCPU. KeyError for another."""
        argument = self._domctl(XEN_DOMCTL_sendtrigger, domid)
        argument.u.sendtrigger.trigger, argument.u.sendtrigger.vcpu = TRIGGERS[trigger], vcpu
        self._do(argument)

    # -- memory -------------------------------------------------------------------------------------------------------

    def populate(self, domid: int, frames: int) -> npt.NDArray[np.uint64]:
        """Give a new domain memory from pfn 0 on; its list of machine frames. Raises XenError(ENOMEM)."""
        p2m = np.zeros(frames, np.uint64)
        large = 1 << _LARGE_ORDER
        done = 0
        while done + large <= frames:
            count = min((frames - done) // large, _EXTENTS)
            got = self._extents(domid, np.arange(done, done + count * large, large, dtype=np.uint64), _LARGE_ORDER)
            starts = got[:, None] + np.arange(large, dtype=np.uint64)
            p2m[done : done + len(got) * large] = starts.reshape(-1)
            done += len(got) * large
            if len(got) < count:
                break
        while done < frames:
            count = min(frames - done, _EXTENTS)
            got = self._extents(domid, np.arange(done, done + count, dtype=np.uint64), 0)
            p2m[done : done + len(got)] = got
            done += len(got)
            if len(got) < count:
                raise XenError(ENOMEM, f"{frames - done} of {frames} frames cannot be had")
        return p2m

    def _extents(self, domid: int, gfns: npt.NDArray[np.uint64], order: int) -> npt.NDArray[np.uint64]:
        """The first machine frames of as many extents as could be had."""
        with self._kernel.scratch(gfns.nbytes) as place:
            place.view[:] = gfns.tobytes()
            reservation = XenMemoryReservation(
                extent_start=place.vaddr, nr_extents=len(gfns), extent_order=order, domid=domid
            )
            done = self._kernel.hypercall(HYPERVISOR_memory_op, XENMEM_populate_physmap, reservation)
            return np.frombuffer(bytes(place.view[: done * 8]), np.uint64)

    def seed_grants(self, domid: int, entries: Sequence[tuple[int, int, int]]) -> None:
        """Write (reference, domid, frame) entries into another domain's grant table, as the builder may."""
        with self._kernel.scratch(8) as place:
            argument = XenMemAcquireResource(
                domid=domid, type=XENMEM_resource_grant_table, id=0, nr_frames=1, frame=0, frame_list=place.vaddr
            )
            self._kernel.hypercall(HYPERVISOR_memory_op, XENMEM_acquire_resource, argument)
            mfn = int.from_bytes(place.view, "little")
        table = self._kernel.map_frames(domid, [mfn])
        for gref, grantee, frame in entries:
            entry = GrantEntryV1.from_buffer(table.views[0], gref * _GRANT_ENTRY)
            entry.domid, entry.frame = grantee, frame
            entry.flags = GTF_permit_access
        table.unmap()

    # -- the first vCPU, and channels ---------------------------------------------------------------------------------

    def start(self, domid: int, entry: Entry) -> None:
        """Validate a new domain's tables and say where its first vCPU begins."""
        pin = MmuextOp(cmd=MMUEXT_PIN_L4_TABLE)
        pin.arg1.mfn = entry.l4_mfn
        self._kernel.hypercall(HYPERVISOR_mmuext_op, pin, 1, 0, domid)
        context = VcpuGuestContext(flags=VGCF_in_kernel | VGCF_online, kernel_ss=_SS, kernel_sp=entry.stack)
        regs = context.user_regs
        regs.rip, regs.rsp, regs.rsi, regs.rflags = entry.instruction, entry.stack, entry.start_info, _INTERRUPTS
        regs.cs, regs.ss = _CS, _SS
        context.ctrlreg[3] = entry.l4_mfn * PAGE_SIZE
        data = context.to_bytes()
        with self._kernel.scratch(len(data)) as place:
            place.view[:] = data
            argument = self._domctl(XEN_DOMCTL_setvcpucontext, domid)
            argument.u.vcpucontext.vcpu, argument.u.vcpucontext.ctxt = 0, place.vaddr
            self._do(argument)

    def alloc_unbound(self, domid: int, remote_domid: int) -> int:
        """A port of `domid` for another domain to bind."""
        argument = EvtchnAllocUnbound(dom=domid, remote_dom=remote_domid)
        self._kernel.hypercall(HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, argument)
        return argument.port


def info_from(found: XenDomctlGetdomaininfo) -> DomainInfo:
    """What the hypervisor's answer says."""
    return DomainInfo(
        domid=found.domain,
        handle=uuid.UUID(bytes=bytes(found.handle)),
        flags=found.flags,
        frames=found.tot_pages,
        max_frames=found.max_pages,
        cpu_time_ns=found.cpu_time,
        vcpus_online=found.nr_online_vcpus,
        max_vcpu_id=found.max_vcpu_id,
        shared_info_mfn=found.shared_info_frame,
    )
