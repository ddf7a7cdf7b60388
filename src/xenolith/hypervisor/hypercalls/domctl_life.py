"""domctl: the life of a domain, from createdomain to destroydomain, and what is said of it meanwhile.

Facts are those of Xen 4.17's xen/common/domctl.c and xen/common/domain.c.
"""

from __future__ import annotations

import uuid
from ctypes import c_uint8
from typing import TYPE_CHECKING, Final

from xenolith.abi.domctl import (
    XEN_DOMCTL_CDF_MAX,
    XEN_DOMCTL_IOMMU_MAX,
    XEN_INVALID_MAX_VCPU_ID,
    XEN_X86_EMU_PIT,
    XEN_X86_MSR_RELAXED,
    XEN_DOMCTL_CDF_hap,
    XEN_DOMCTL_CDF_hvm,
    XEN_DOMCTL_CDF_iommu,
    XEN_DOMCTL_CDF_nested_virt,
    XEN_DOMCTL_CDF_vpmu,
    XEN_DOMCTL_CDF_xs_domain,
    XEN_DOMCTL_createdomain,
    XEN_DOMCTL_destroydomain,
    XEN_DOMCTL_get_address_size,
    XEN_DOMCTL_getdomaininfo,
    XEN_DOMCTL_GRANT_version_mask,
    XEN_DOMCTL_hypercall_init,
    XEN_DOMCTL_max_mem,
    XEN_DOMCTL_max_vcpus,
    XEN_DOMCTL_pausedomain,
    XEN_DOMCTL_resumedomain,
    XEN_DOMCTL_set_address_size,
    XEN_DOMCTL_set_virq_handler,
    XEN_DOMCTL_setdebugging,
    XEN_DOMCTL_setdomainhandle,
    XEN_DOMCTL_settimeoffset,
    XEN_DOMCTL_subscribe,
    XEN_DOMCTL_unpausedomain,
    XEN_DOMINF_blocked,
    XEN_DOMINF_debugged,
    XEN_DOMINF_dying,
    XEN_DOMINF_paused,
    XEN_DOMINF_running,
    XEN_DOMINF_shutdown,
    XEN_DOMINF_shutdownshift,
    XEN_DOMINF_xs_domain,
    XenDomctl,
    XenDomctlAddressSize,
    XenDomctlCreatedomain,
    XenDomctlGetdomaininfo,
    XenDomctlHypercallInit,
    XenDomctlMaxMem,
    XenDomctlMaxVcpus,
    XenDomctlSetdebugging,
    XenDomctlSetdomainhandle,
    XenDomctlSettimeoffset,
    XenDomctlSetVirqHandler,
    XenDomctlSubscribe,
)
from xenolith.abi.errno import EEXIST, EINVAL, EOPNOTSUPP, EPERM, ESRCH, XenError
from xenolith.abi.hypercalls import HYPERVISOR_domctl
from xenolith.abi.types import DOMID_FIRST_RESERVED
from xenolith.abi.vcpu import RUNSTATE_running
from xenolith.hypervisor.cpuid import PHYSICAL_ADDRESS_BITS
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.events import set_global_virq_handler
from xenolith.hypervisor.frames import TYPE_WRITABLE
from xenolith.hypervisor.grants import DEFAULT_MAPTRACK_FRAMES, DEFAULT_MAX_FRAMES, MAPPINGS_PER_FRAME
from xenolith.hypervisor.hypercall_page import hypercall_page
from xenolith.hypervisor.hypercalls.table import Continuation, operation
from xenolith.hypervisor.lifecycle import MAX_VCPUS

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_KNOWN_FLAGS: Final = XEN_DOMCTL_CDF_MAX * 2 - 1
_HARDWARE_ONLY: Final = XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap | XEN_DOMCTL_CDF_nested_virt
_IOMMU_OPTIONS: Final = XEN_DOMCTL_IOMMU_MAX * 2 - 1
_NEWEST_GRANT_VERSION: Final = 2
_INT_MAX: Final = (1 << 31) - 1
_MOST_PAGES: Final = (1 << 32) - 1
_PAGE_KIB_SHIFT: Final = 2
_NO_SHUTDOWN_CODE: Final = 0xFFFF
"""What the upper half of getdomaininfo's flags holds while no reason for a shutdown is known."""


# -- making and ending -------------------------------------------------------------------------------------------------


@operation(HYPERVISOR_domctl, XEN_DOMCTL_createdomain, copy_back=True, needs=Capability.CREATE)
def createdomain(hv: Hypervisor, caller: Vcpu, op: XenDomctl) -> None:
    """Make a domain without memory and vCPUs, paused once; its number is put into `op`.

    Raises XenError: EPERM, EEXIST for a number in use, EINVAL for a configuration that is not one of a PV domain here,
    ESRCH for another CPU pool, ENOMEM.
    """
    config, subject = op.u.createdomain, caller.domain
    hv.policy.require(subject, Capability.CREATE, "XEN_DOMCTL_createdomain")
    wanted = op.domain if 0 < op.domain < DOMID_FIRST_RESERVED else None
    if wanted in hv.domains:
        raise XenError(EEXIST, f"there is a domain {wanted}")
    _check_config(config, hv.pc is not None)
    capabilities = Capability.NONE
    if config.flags & XEN_DOMCTL_CDF_xs_domain:
        has_store = subject.can(Capability.STORE)
        hv.policy.require_own(subject, has_store, "the capability STORE", "XEN_DOMCTL_createdomain")
        capabilities = Capability.STORE
    domain = hv.lifecycle.create("", config.max_vcpus, capabilities, wanted)
    domain.name = repr(domain)
    domain.creator = subject.domid
    domain.handle = uuid.UUID(bytes=bytes(config.handle))
    domain.events.max_port = min(config.max_evtchn_port, _INT_MAX)
    domain.grants.max_frames = _or_default(config.max_grant_frames, DEFAULT_MAX_FRAMES)
    domain.grants.max_mappings = _or_default(config.max_maptrack_frames, DEFAULT_MAPTRACK_FRAMES) * MAPPINGS_PER_FRAME
    domain.grants.max_version = config.grant_opts & XEN_DOMCTL_GRANT_version_mask
    domain.has_iommu = bool(config.flags & XEN_DOMCTL_CDF_iommu)
    domain.emulation_flags, domain.misc_flags = config.arch.emulation_flags, config.arch.misc_flags
    hv.lifecycle.pause(domain)
    op.domain = domain.domid
    hv.publish("create", domid=domain.domid, name=domain.name, creator=subject.domid)


def _check_config(config: XenDomctlCreatedomain, has_iommu: bool) -> None:
    """Raise XenError as sanitise_domain_config and domain_create do for a machine without HVM and vPMU."""
    wrong = {
        "unknown flags": config.flags & ~_KNOWN_FLAGS,
        "unknown grant options": config.grant_opts & ~XEN_DOMCTL_GRANT_version_mask,
        "an impossible number of vCPUs": not 1 <= config.max_vcpus <= MAX_VCPUS,
        "not a PV domain": config.flags & _HARDWARE_ONLY,
        "there is no IOMMU": config.flags & XEN_DOMCTL_CDF_iommu and not has_iommu,
        "wrong options of the IOMMU": config.iommu_opts & ~_IOMMU_OPTIONS
        or (config.iommu_opts and not config.flags & XEN_DOMCTL_CDF_iommu),
        "there is no tracing of vCPUs": config.vmtrace_size,
        "there is no vPMU": config.flags & XEN_DOMCTL_CDF_vpmu,
        "unknown misc_flags": config.arch.misc_flags & ~XEN_X86_MSR_RELAXED,
        "devices that a PV domain cannot have": config.arch.emulation_flags & ~XEN_X86_EMU_PIT,
        "a grant table version that there is not": not 1 <= config.grant_opts <= _NEWEST_GRANT_VERSION,
        "an impossible number of grant frames": config.max_grant_frames == 0
        or config.max_grant_frames > DEFAULT_MAX_FRAMES,
        "too many map-track frames": config.max_maptrack_frames > DEFAULT_MAPTRACK_FRAMES,
    }
    for what, found in wrong.items():
        if found:
            raise XenError(EINVAL, f"createdomain: {what}")
    if config.cpupool_id:
        raise XenError(ESRCH, f"there is no CPU pool {config.cpupool_id}")


def _or_default(value: int, default: int) -> int:
    return default if value < 0 else value


def _not_oneself(caller: Vcpu, domain: Domain) -> None:
    if domain is caller.domain:
        raise XenError(EINVAL, "a domain cannot do that to itself")


@operation(HYPERVISOR_domctl, XEN_DOMCTL_destroydomain)
def destroydomain(hv: Hypervisor, caller: Vcpu, domain: Domain) -> None:
    """Take a domain apart, in parts. It is listed as dying until nobody holds a frame of it any more."""
    _not_oneself(caller, domain)
    if not hv.lifecycle.kill(domain):
        raise Continuation


@operation(HYPERVISOR_domctl, XEN_DOMCTL_pausedomain)
def pausedomain(hv: Hypervisor, caller: Vcpu, domain: Domain) -> None:
    """Raises XenError: EINVAL for oneself, EOVERFLOW after 255 times."""
    _not_oneself(caller, domain)
    hv.lifecycle.pause(domain)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_unpausedomain)
def unpausedomain(hv: Hypervisor, caller: Vcpu, domain: Domain) -> None:
    """Raises XenError(EINVAL) for a domain that is not paused."""
    hv.lifecycle.unpause(domain)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_resumedomain)
def resumedomain(hv: Hypervisor, caller: Vcpu, domain: Domain) -> None:
    """Let a domain go on that has shut down, as after a suspend that was called off. Raises XenError(EINVAL)."""
    _not_oneself(caller, domain)
    hv.lifecycle.resume(domain)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_max_vcpus)
def max_vcpus(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlMaxVcpus) -> None:
    """Make the vCPUs, as many as were announced. Raises XenError: EINVAL, ENOMEM."""
    _not_oneself(caller, domain)
    if argument.max != domain.max_vcpus or domain.is_dying:
        raise XenError(EINVAL, f"domain {domain.domid} has {domain.max_vcpus} vCPUs, not {argument.max}")
    hv.lifecycle.create_vcpus(domain)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_max_mem)
def max_mem(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlMaxMem) -> None:
    """How much memory the domain may have. It may be less than it has, which it keeps."""
    domain.max_frames = min(argument.max_memkb >> _PAGE_KIB_SHIFT, _MOST_PAGES)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_hypercall_init)
def hypercall_init(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlHypercallInit) -> None:
    """Fill a frame of the domain with hypercall stubs. Raises XenError: EINVAL, EPERM for one that is not writable."""
    mfn, frames = argument.gmfn, hv.frames
    if not frames.get_page(mfn, domain.domid):
        raise XenError(EINVAL, f"frame {mfn:#x} {frames.describe_owner(mfn)}")
    try:
        frames.get_page_type(mfn, TYPE_WRITABLE)
    except XenError as error:
        raise XenError(EPERM, error.reason) from None
    else:
        hv.memory.write_machine(mfn << 12, hypercall_page())
        frames.put_page_type(mfn)
    finally:
        frames.put_page(mfn)


# -- what is said of a domain ------------------------------------------------------------------------------------------


@operation(HYPERVISOR_domctl, XEN_DOMCTL_getdomaininfo, copy_back=True)
def getdomaininfo(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlGetdomaininfo) -> None:
    """What the domain is; of a number that is nobody's, what the next domain is."""
    fill_info(hv, domain, argument)


def fill_info(hv: Hypervisor, domain: Domain, info: XenDomctlGetdomaininfo) -> None:
    """Write all that is said of a domain."""
    online = [vcpu for vcpu in domain.vcpus if not vcpu.down]
    info.domain = domain.domid
    info.flags = _flags(domain, online)
    info.tot_pages, info.max_pages = domain.tot_frames, domain.max_frames
    info.outstanding_pages = domain.claimed_frames
    info.shr_pages = info.paged_pages = 0
    info.shared_info_frame = domain.shared_info_mfn
    info.cpu_time = sum(hv.timekeeping.time_in(vcpu, RUNSTATE_running) for vcpu in domain.vcpus)
    info.nr_online_vcpus = len(online)
    info.max_vcpu_id = len(domain.vcpus) - 1 if domain.vcpus else XEN_INVALID_MAX_VCPU_ID
    info.ssidref = info.cpupool = 0
    info.handle = (c_uint8 * 16)(*domain.handle.bytes)
    info.gpaddr_bits = PHYSICAL_ADDRESS_BITS
    info.arch_config.emulation_flags, info.arch_config.misc_flags = domain.emulation_flags, domain.misc_flags


def _flags(domain: Domain, online: list[Vcpu]) -> int:
    """XEN_DOMINF_*. A domain is blocked if all its vCPUs are, and runs if one of them does."""
    states = {
        XEN_DOMINF_blocked: bool(online) and all(vcpu.blocked for vcpu in online),
        XEN_DOMINF_running: any(vcpu.runstate.state == RUNSTATE_running for vcpu in online),
        XEN_DOMINF_dying: domain.is_dead,
        XEN_DOMINF_shutdown: domain.shutdown_code is not None,
        XEN_DOMINF_paused: domain.controller_pause_count > 0,
        XEN_DOMINF_debugged: domain.is_debugged,
        XEN_DOMINF_xs_domain: domain.can(Capability.STORE),
    }
    code = domain.shutdown_code if domain.shutdown_code is not None else domain.announced_shutdown_code
    shutdown = (_NO_SHUTDOWN_CODE if code is None else code) << XEN_DOMINF_shutdownshift
    return sum(flag for flag, holds in states.items() if holds) | shutdown


@operation(HYPERVISOR_domctl, XEN_DOMCTL_setdomainhandle)
def setdomainhandle(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlSetdomainhandle) -> None:
    domain.handle = uuid.UUID(bytes=bytes(argument.handle))


@operation(HYPERVISOR_domctl, XEN_DOMCTL_settimeoffset)
def settimeoffset(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlSettimeoffset) -> None:
    """How far the domain's wall clock is before the machine's."""
    domain.time_offset_s = argument.time_offset_seconds
    if not domain.is_dead:
        hv.timekeeping.update_wall_clock(domain)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_setdebugging)
def setdebugging(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlSetdebugging) -> None:
    """Note whether a debugger is attached. Raises XenError(EINVAL) for oneself."""
    _not_oneself(caller, domain)
    domain.is_debugged = bool(argument.enable)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_set_address_size)
def set_address_size(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlAddressSize) -> None:
    """Raises XenError: EOPNOTSUPP for 32 bits, EINVAL for what is neither 32 nor 64."""
    if argument.size != 64:
        raise XenError(EOPNOTSUPP if argument.size == 32 else EINVAL, f"addresses of {argument.size} bits")


@operation(HYPERVISOR_domctl, XEN_DOMCTL_get_address_size, copy_back=True)
def get_address_size(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlAddressSize) -> None:
    argument.size = 64


@operation(HYPERVISOR_domctl, XEN_DOMCTL_subscribe)
def subscribe(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlSubscribe) -> None:
    """The port of the domain to send on when it has suspended; 0 for none."""
    domain.suspend_port = argument.port


@operation(HYPERVISOR_domctl, XEN_DOMCTL_set_virq_handler)
def set_virq_handler(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlSetVirqHandler) -> None:
    """Let a global VIRQ go to this domain. Raises XenError(EINVAL) for any other, or a domain that is dying."""
    if domain.is_dying:
        raise XenError(EINVAL, f"domain {domain.domid} is dying")
    set_global_virq_handler(hv, domain, argument.virq)
