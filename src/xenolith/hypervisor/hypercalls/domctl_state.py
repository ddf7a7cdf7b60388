"""domctl: what the register image of a vCPU lacks: compatibility entry points, extended state, MSRs, the time stamp
counter. The processors have no XSAVE, and all read one counter, so there is little to keep.

Facts are those of Xen 4.17's xen/arch/x86/domctl.c and tsc_get_info.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.domctl import (
    XEN_DOMCTL_get_ext_vcpucontext,
    XEN_DOMCTL_get_vcpu_msrs,
    XEN_DOMCTL_gettscinfo,
    XEN_DOMCTL_getvcpuextstate,
    XEN_DOMCTL_set_ext_vcpucontext,
    XEN_DOMCTL_set_vcpu_msrs,
    XEN_DOMCTL_settscinfo,
    XEN_DOMCTL_setvcpuextstate,
    XenDomctlExtVcpucontext,
    XenDomctlTscInfo,
    XenDomctlVcpuextstate,
    XenDomctlVcpuMsr,
    XenDomctlVcpuMsrs,
)
from xenolith.abi.errno import EINVAL, ENOBUFS, EOPNOTSUPP, ESRCH, XenError
from xenolith.abi.hypercalls import HYPERVISOR_domctl
from xenolith.abi.traps import CALLBACKTYPE_syscall32, CALLBACKTYPE_sysenter
from xenolith.hypervisor import msr
from xenolith.hypervisor.descriptors import XEN_CS64
from xenolith.hypervisor.hypercalls.domctl_vcpu import find_vcpu
from xenolith.hypervisor.hypercalls.table import operation
from xenolith.hypervisor.shared_state import Callback

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_MACHINE_CHECKS_AT: Final[int] = XenDomctlExtVcpucontext.vmce.offset
_EXTENDED_HEADER: Final = 16
"""Two words, XCR0 and what was ever in it, before the state itself, of which there is none without XSAVE."""
_KEPT_MSRS: Final = (msr.MISC_FEATURES_ENABLES, msr.TSC_AUX)
_TSC_EMULATED: Final = 1
_LAST_TSC_MODE: Final = 2


@operation(HYPERVISOR_domctl, XEN_DOMCTL_get_ext_vcpucontext, copy_back=True)
def get_ext_vcpucontext(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlExtVcpucontext) -> None:
    """Raises XenError(ESRCH) for no vCPU, or the caller."""
    vcpu = find_vcpu(domain, argument.vcpu, ESRCH)
    if vcpu is caller:
        raise XenError(ESRCH, "a vCPU cannot do that to itself")
    argument.size = argument.sizeof()
    sysenter = vcpu.callbacks[CALLBACKTYPE_sysenter]
    syscall32 = vcpu.callbacks[CALLBACKTYPE_syscall32]
    argument.sysenter_callback_cs = argument.syscall32_callback_cs = XEN_CS64
    argument.sysenter_callback_eip, argument.sysenter_disables_events = sysenter.address, sysenter.masks_events
    argument.syscall32_callback_eip, argument.syscall32_disables_events = syscall32.address, syscall32.masks_events
    argument.vmce.caps = argument.vmce.mci_ctl2_bank0 = argument.vmce.mci_ctl2_bank1 = argument.vmce.mcg_ext_ctl = 0


@operation(HYPERVISOR_domctl, XEN_DOMCTL_set_ext_vcpucontext)
def set_ext_vcpucontext(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlExtVcpucontext) -> None:
    """Raises XenError: ESRCH for no vCPU, or one of the caller's; EINVAL."""
    vcpu = find_vcpu(domain, argument.vcpu, ESRCH)
    if domain is caller.domain:
        raise XenError(ESRCH, "a domain cannot do that to itself")
    addresses = (argument.sysenter_callback_eip, argument.syscall32_callback_eip)
    if argument.size < _MACHINE_CHECKS_AT or not all(msr.is_canonical(address) for address in addresses):
        raise XenError(EINVAL, "too short, or an entry point that is not canonical")
    masks = (argument.sysenter_disables_events, argument.syscall32_disables_events)
    for kind, address, masked in zip((CALLBACKTYPE_sysenter, CALLBACKTYPE_syscall32), addresses, masks, strict=True):
        vcpu.callbacks[kind] = Callback(address, bool(masked))


@operation(HYPERVISOR_domctl, XEN_DOMCTL_getvcpuextstate, copy_back=True)
def getvcpuextstate(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlVcpuextstate) -> None:
    """Without a buffer, how long it has to be. Raises XenError: ESRCH, EINVAL, EFAULT."""
    _not_the_caller(find_vcpu(domain, argument.vcpu, ESRCH), caller)
    if not argument.buffer or not (argument.size or argument.xfeature_mask):
        argument.size = _EXTENDED_HEADER
        return
    if argument.size != _EXTENDED_HEADER or argument.xfeature_mask:
        raise XenError(EINVAL, f"{argument.size} bytes of extended state")
    hv.memory.write(caller, argument.buffer, bytes(_EXTENDED_HEADER))


@operation(HYPERVISOR_domctl, XEN_DOMCTL_setvcpuextstate)
def setvcpuextstate(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlVcpuextstate) -> None:
    """Only the empty state can be set. Raises XenError: ESRCH, EINVAL, EFAULT."""
    _not_the_caller(find_vcpu(domain, argument.vcpu, ESRCH), caller)
    if argument.size != _EXTENDED_HEADER or any(hv.memory.read(caller, argument.buffer, _EXTENDED_HEADER)):
        raise XenError(EINVAL, "extended state that the processor has not")


@operation(HYPERVISOR_domctl, XEN_DOMCTL_get_vcpu_msrs, copy_back=True)
def get_vcpu_msrs(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlVcpuMsrs) -> None:
    """Those that are not 0; without a list, how many there can be. Raises XenError: EINVAL, ESRCH, ENOBUFS, EFAULT."""
    vcpu = find_vcpu(domain, argument.vcpu)
    _not_the_caller(vcpu, caller)
    if not argument.msrs:
        argument.msr_count = len(_KEPT_MSRS)
        return
    found = [(number, msr.read(hv, vcpu, number)) for number in _KEPT_MSRS]
    entries = [XenDomctlVcpuMsr(index=number, value=value).to_bytes() for number, value in found if value]
    if len(entries) > argument.msr_count:
        raise XenError(ENOBUFS, f"room for {argument.msr_count} of {len(entries)} registers")
    hv.memory.write(caller, argument.msrs, b"".join(entries))
    argument.msr_count = len(entries)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_set_vcpu_msrs)
def set_vcpu_msrs(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlVcpuMsrs) -> None:
    """Raises XenError: EINVAL for a register that is not kept or a value that it cannot have, ESRCH, EFAULT."""
    vcpu = find_vcpu(domain, argument.vcpu)
    _not_the_caller(vcpu, caller)
    if argument.msr_count > len(_KEPT_MSRS):
        raise XenError(EINVAL, f"{argument.msr_count} registers")
    size = XenDomctlVcpuMsr.sizeof()
    for index in range(argument.msr_count):
        entry = XenDomctlVcpuMsr.from_bytes(hv.memory.read(caller, argument.msrs + index * size, size))
        if entry.reserved or entry.index not in _KEPT_MSRS or not msr.write(hv, vcpu, entry.index, entry.value):
            raise XenError(EINVAL, f"register {entry.index:#x} cannot be {entry.value:#x}")


def _not_the_caller(vcpu: Vcpu, caller: Vcpu) -> None:
    if vcpu is caller:
        raise XenError(EINVAL, "a vCPU cannot do that to itself")


@operation(HYPERVISOR_domctl, XEN_DOMCTL_gettscinfo, copy_back=True)
def gettscinfo(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlTscInfo) -> None:
    """The counter counts system time, for everybody. Raises XenError(EINVAL) for oneself."""
    if domain is caller.domain:
        raise XenError(EINVAL, "a domain cannot do that to itself")
    argument.tsc_mode = 0
    argument.gtsc_khz, argument.elapsed_nsec = hv.tsc_khz, hv.now_ns()
    argument.incarnation = domain.tsc_incarnation


@operation(HYPERVISOR_domctl, XEN_DOMCTL_settscinfo)
def settscinfo(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlTscInfo) -> None:
    """The counter is the machine's whatever the mode: what it had counted elsewhere matters to emulated ones only.

    Raises XenError: EINVAL, EOPNOTSUPP for a counter of another speed, or one that is to be emulated from there on.
    """
    if domain is caller.domain or argument.tsc_mode > _LAST_TSC_MODE:
        raise XenError(EINVAL, f"mode {argument.tsc_mode} of the time stamp counter, or oneself")
    goes_on = argument.tsc_mode == _TSC_EMULATED and argument.elapsed_nsec
    if argument.gtsc_khz not in (0, hv.tsc_khz) or goes_on:
        raise XenError(EOPNOTSUPP, f"a counter of {argument.gtsc_khz} kHz from {argument.elapsed_nsec} ns on")
    domain.tsc_incarnation = argument.incarnation + 1 & 0xFFFF_FFFF
    hv.forget_cpuid(domain)
