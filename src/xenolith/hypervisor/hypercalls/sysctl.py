"""sysctl: what the machine has and does: the edge, and questions about domains, processors, memory and the log.

Facts are those of Xen 4.17's xen/common/sysctl.c and xen/arch/x86/sysctl.c. Each operation needs one of some
capabilities: looking at the machine is for whoever builds, drives or controls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from xenolith.abi.domctl import XEN_SCHEDULER_CREDIT2, XenDomctlGetdomaininfo
from xenolith.abi.errno import EACCES, EINVAL, ENODEV, ENOSYS, EOPNOTSUPP, XenError
from xenolith.abi.hypercalls import HYPERVISOR_sysctl
from xenolith.abi.sysctl import (
    XEN_INVALID_DEV,
    XEN_SYSCTL_availheap,
    XEN_SYSCTL_coverage_op,
    XEN_SYSCTL_cputopoinfo,
    XEN_SYSCTL_debug_keys,
    XEN_SYSCTL_get_pmstat,
    XEN_SYSCTL_getcpuinfo,
    XEN_SYSCTL_getdomaininfolist,
    XEN_SYSCTL_livepatch_op,
    XEN_SYSCTL_lockprof_op,
    XEN_SYSCTL_numainfo,
    XEN_SYSCTL_pcitopoinfo,
    XEN_SYSCTL_perfc_op,
    XEN_SYSCTL_PHYSCAP_directio,
    XEN_SYSCTL_PHYSCAP_gnttab_v1,
    XEN_SYSCTL_PHYSCAP_gnttab_v2,
    XEN_SYSCTL_PHYSCAP_pv,
    XEN_SYSCTL_physinfo,
    XEN_SYSCTL_pm_op,
    XEN_SYSCTL_psr_alloc,
    XEN_SYSCTL_psr_cmt_op,
    XEN_SYSCTL_readconsole,
    XEN_SYSCTL_sched_id,
    XenSysctl,
    XenSysctlAvailheap,
    XenSysctlCpuinfo,
    XenSysctlCputopo,
    XenSysctlCputopoinfo,
    XenSysctlDebugKeys,
    XenSysctlGetcpuinfo,
    XenSysctlGetdomaininfolist,
    XenSysctlGetPmstat,
    XenSysctlMeminfo,
    XenSysctlNumainfo,
    XenSysctlPcitopoinfo,
    XenSysctlPhysinfo,
    XenSysctlReadconsole,
    XenSysctlSchedId,
)
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.frames import NOBODY
from xenolith.hypervisor.hypercalls.cpu_policy import featureset
from xenolith.hypervisor.hypercalls.domctl_life import fill_info
from xenolith.hypervisor.hypercalls.memory import claimed_frames
from xenolith.hypervisor.hypercalls.table import OPERATIONS, hypercall, operation, refuse

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

LOOKS: Final = Capability.CONTROL | Capability.CREATE | Capability.HARDWARE
_LISTS: Final = Capability.CONTROL | Capability.CREATE | Capability.STORE
_LOGS: Final = Capability.CONTROL | Capability.CONSOLE
_ARGUMENT: Final[int] = XenSysctl.u.offset
_NODES: Final = 1
_LOCAL_DISTANCE: Final = 10
_PIECE: Final = 4096
_DEBUG_KEYS: Final = 64
"""Keys that are pressed in one call; the rest is not heard."""
_DEVICE_BYTES: Final = 8


@hypercall(HYPERVISOR_sysctl)
def sysctl(hv: Hypervisor, caller: Vcpu, vaddr: int) -> int:
    """Run one operation on the machine.

    Raises XenError: EFAULT, EACCES for another interface version, ENOSYS, EPERM, or what the operation raises.
    """
    data = bytearray(hv.memory.read(caller, vaddr, XenSysctl.sizeof()))
    op = XenSysctl.from_buffer(data)
    if op.interface_version != hv.release.sysctl:
        raise XenError(EACCES, f"sysctl interface version {op.interface_version:#x}")
    bound = OPERATIONS.get((HYPERVISOR_sysctl, op.cmd))
    if bound is None:
        hv.policy.require(caller.domain, Capability.CONTROL, f"XEN_SYSCTL {op.cmd}")
        hv.count_unimplemented(HYPERVISOR_sysctl, op.cmd)
        raise XenError(ENOSYS, f"sysctl {op.cmd}")
    hv.policy.require_any(caller.domain, bound.needs or LOOKS, bound.name)
    argument = bound.argument.from_buffer(data, _ARGUMENT) if bound.argument is not None else None
    bound.handler(hv, caller, argument)
    if bound.copy_back:
        hv.memory.write(caller, vaddr, bytes(data))
    return 0


# -- domains and the log -----------------------------------------------------------------------------------------------


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_getdomaininfolist, copy_back=True, needs=_LISTS)
def getdomaininfolist(hv: Hypervisor, caller: Vcpu, argument: XenSysctlGetdomaininfolist) -> None:
    """What the domains from a number on are, as far as the caller may know of them. Raises XenError(EFAULT)."""
    shown = [domain for domain in sorted(hv.domains.values(), key=_domid) if _is_shown(hv, caller.domain, domain)]
    shown = [domain for domain in shown if domain.domid >= argument.first_domain][: argument.max_domains]
    size = XenDomctlGetdomaininfo.sizeof()
    for index, domain in enumerate(shown):
        info = XenDomctlGetdomaininfo()
        fill_info(hv, domain, info)
        hv.memory.write(caller, argument.buffer + index * size, info.to_bytes())
    argument.num_domains = len(shown)


def _domid(domain: Domain) -> int:
    return domain.domid


def _is_shown(hv: Hypervisor, subject: Domain, domain: Domain) -> bool:
    return subject.can(Capability.STORE) or subject is domain or hv.policy.controls(subject, domain)


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_readconsole, copy_back=True, needs=_LOGS)
def readconsole(hv: Hypervisor, caller: Vcpu, argument: XenSysctlReadconsole) -> None:
    """The hypervisor's log, from the start of what it remembers or from `index` on. Raises XenError(EFAULT)."""
    index = argument.index if argument.incremental else None
    data, end = hv.log.read(argument.count, index)
    for at in range(0, len(data), _PIECE):
        hv.memory.write(caller, argument.buffer + at, data[at : at + _PIECE])
    if argument.clear:
        hv.log.read(argument.count, index, clear=True)
    argument.count, argument.index = len(data), end


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_debug_keys, needs=_LOGS)
def debug_keys(hv: Hypervisor, caller: Vcpu, argument: XenSysctlDebugKeys) -> None:
    """Write to the log what the keys ask for: `q` what the domains are, `h` which keys there are."""
    keys = hv.memory.read(caller, argument.keys, min(argument.nr_keys, _DEBUG_KEYS)) if argument.nr_keys else b""
    for key in keys.decode("latin-1"):
        hv.log.write(f"'{key}' pressed")
        for line in _KEYS[key](hv) if key in _KEYS else []:
            hv.log.write(line)


def _help(hv: Hypervisor) -> list[str]:
    return ["h: this help", "q: what the domains are"]


def _describe_domains(hv: Hypervisor) -> list[str]:
    domains = [
        f"domain {domain.domid}: {domain.tot_frames} of {domain.max_frames} frames, {len(domain.vcpus)} vCPUs, "
        f"{sum(vcpu.runnable for vcpu in domain.vcpus)} want to run, paused {domain.pause_count} times, "
        f"{len(list(domain.events))} ports, {domain.grants.mapped} grants mapped"
        + (", dying" if domain.is_dying else "")
        for domain in hv.domains.values()
    ]
    return [*domains, f"{hv.frames.free_frames} frames are free"]


_KEYS: Final = {"h": _help, "q": _describe_domains}


# -- processors and memory ---------------------------------------------------------------------------------------------


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_physinfo, copy_back=True)
def physinfo(hv: Hypervisor, caller: Vcpu, argument: XenSysctlPhysinfo) -> None:
    """Processors of one socket, one node, and the memory of the machine in frames."""
    argument.nr_cpus = argument.cores_per_socket = hv.engine.processors
    argument.threads_per_core, argument.nr_nodes = 1, _NODES
    argument.max_cpu_id, argument.max_node_id = hv.engine.processors - 1, 0
    argument.cpu_khz = hv.tsc_khz
    argument.capabilities = XEN_SYSCTL_PHYSCAP_pv | XEN_SYSCTL_PHYSCAP_gnttab_v1 | XEN_SYSCTL_PHYSCAP_gnttab_v2
    if hv.pc is not None:
        argument.capabilities |= XEN_SYSCTL_PHYSCAP_directio
    argument.arch_capabilities = 0
    argument.total_pages = hv.frames.ram_frames
    argument.free_pages, argument.scrub_pages = hv.frames.free_frames, 0
    argument.outstanding_pages = claimed_frames(hv)
    argument.max_mfn = hv.frames.total - 1
    for number, word in enumerate(featureset(hv.engine.host_cpuid)[: len(argument.hw_cap)]):
        argument.hw_cap[number] = word


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_sched_id, copy_back=True)
def sched_id(hv: Hypervisor, caller: Vcpu, argument: XenSysctlSchedId) -> None:
    """The scheduler takes credit2's weights and caps."""
    argument.sched_id = XEN_SCHEDULER_CREDIT2


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_getcpuinfo, copy_back=True)
def getcpuinfo(hv: Hypervisor, caller: Vcpu, argument: XenSysctlGetcpuinfo) -> None:
    """How long each processor has been idle. Raises XenError(EFAULT)."""
    argument.nr_cpus = min(argument.max_cpus, hv.engine.processors)
    for index in range(argument.nr_cpus):
        record = XenSysctlCpuinfo(idletime=max(0, hv.now_ns() - hv.scheduler.busy_ns[index]))
        hv.memory.write(caller, argument.info + index * record.sizeof(), record.to_bytes())


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_cputopoinfo, copy_back=True)
def cputopoinfo(hv: Hypervisor, caller: Vcpu, argument: XenSysctlCputopoinfo) -> None:
    """Core, socket and node of each processor: all are cores of one socket. Raises XenError(EFAULT)."""
    if not argument.cputopo:
        argument.num_cpus = hv.engine.processors
        return
    argument.num_cpus = min(argument.num_cpus, hv.engine.processors)
    places = (XenSysctlCputopo(core=number).to_bytes() for number in range(argument.num_cpus))
    hv.memory.write(caller, argument.cputopo, b"".join(places))


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_numainfo, copy_back=True)
def numainfo(hv: Hypervisor, caller: Vcpu, argument: XenSysctlNumainfo) -> None:
    """The memory of the only node. Raises XenError(EFAULT)."""
    if not argument.meminfo and not argument.distance:
        argument.num_nodes = _NODES
        return
    argument.num_nodes = min(argument.num_nodes, _NODES)
    memory = XenSysctlMeminfo(memsize=hv.frames.ram_frames << 12, memfree=hv.frames.free_frames << 12)
    for vaddr, record in (
        (argument.meminfo, memory.to_bytes()),
        (argument.distance, bytes((_LOCAL_DISTANCE, 0, 0, 0))),
    ):
        if vaddr and argument.num_nodes:
            hv.memory.write(caller, vaddr, record)


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_pcitopoinfo, copy_back=True)
def pcitopoinfo(hv: Hypervisor, caller: Vcpu, argument: XenSysctlPcitopoinfo) -> None:
    """The node of each PCI function (struct physdev_pci_device) that some domain has announced.

    Raises XenError: EINVAL without lists, EFAULT.
    """
    if not argument.devs or not argument.nodes:
        raise XenError(EINVAL, "no lists of devices and nodes")
    for index in range(min(argument.num_devs, _PIECE)):
        device = hv.memory.read(caller, argument.devs + index * _DEVICE_BYTES, 4)
        known = (int.from_bytes(device[:2], "little"), device[2], device[3]) in hv.pirqs.devices
        node = 0 if known else XEN_INVALID_DEV
        hv.memory.write(caller, argument.nodes + index * 4, node.to_bytes(4, "little"))


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_availheap, copy_back=True)
def availheap(hv: Hypervisor, caller: Vcpu, argument: XenSysctlAvailheap) -> None:
    """Free bytes of a node (negative for all) at addresses of so many bits."""
    argument.avail_bytes = 0
    if argument.node < _NODES:
        first = 1 << argument.min_bitwidth >> 12 if 0 < argument.min_bitwidth < 64 else 0
        end = 1 << argument.max_bitwidth >> 12 if 0 < argument.max_bitwidth < 64 else hv.frames.total
        argument.avail_bytes = int(np.count_nonzero(hv.frames.owners[first:end] == NOBODY)) << 12


# -- what an emulated machine has little of ----------------------------------------------------------------------------


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_get_pmstat)
def get_pmstat(hv: Hypervisor, caller: Vcpu, argument: XenSysctlGetPmstat) -> None:
    """Raises XenError: EINVAL for no processor, ENODEV for one, which has no power states."""
    if argument.cpuid >= hv.engine.processors:
        raise XenError(EINVAL, f"there is no processor {argument.cpuid}")
    raise XenError(ENODEV, "the processor has no power states")


for _command, _error, _reason in (
    (XEN_SYSCTL_coverage_op, EOPNOTSUPP, "not compiled in"),
    (XEN_SYSCTL_livepatch_op, ENOSYS, "not compiled in"),
    (XEN_SYSCTL_lockprof_op, ENOSYS, "not compiled in"),
    (XEN_SYSCTL_perfc_op, ENOSYS, "not compiled in"),
    (XEN_SYSCTL_pm_op, ENODEV, "the processor has no power states"),
    (XEN_SYSCTL_psr_alloc, ENODEV, "the processor cannot part its caches"),
    (XEN_SYSCTL_psr_cmt_op, ENODEV, "the processor cannot part its caches"),
):
    refuse(HYPERVISOR_sysctl, _command, _error, _reason)
