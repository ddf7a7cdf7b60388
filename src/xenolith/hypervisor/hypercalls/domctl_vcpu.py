"""domctl: the vCPUs of a domain: their registers, state, processors and triggers.

Facts are those of Xen 4.17's xen/common/domctl.c, xen/arch/x86/domctl.c and arch_set_info_guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenolith.abi.domctl import (
    XEN_DOMCTL_SENDTRIGGER_NMI,
    XEN_DOMCTL_SENDTRIGGER_POWER,
    XEN_DOMCTL_SENDTRIGGER_SLEEP,
    XEN_DOMCTL_getvcpucontext,
    XEN_DOMCTL_getvcpuinfo,
    XEN_DOMCTL_sendtrigger,
    XEN_DOMCTL_setvcpucontext,
    XenDomctlGetvcpuinfo,
    XenDomctlSendtrigger,
    XenDomctlVcpucontext,
)
from xenolith.abi.errno import EINVAL, ENODATA, ENOSYS, ESRCH, XenError
from xenolith.abi.hypercalls import HYPERVISOR_domctl
from xenolith.abi.vcpu import RUNSTATE_running, VcpuGuestContext
from xenolith.hypervisor import vcpu_state
from xenolith.hypervisor.hypercalls.table import operation

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu


def find_vcpu(domain: Domain, number: int, beyond: int = EINVAL, missing: int = ESRCH) -> Vcpu:
    """A vCPU by its number. Raises XenError: `beyond` for a number too high, `missing` before max_vcpus was done."""
    if number >= domain.max_vcpus:
        raise XenError(beyond, f"domain {domain.domid} has no vCPU {number}")
    if not domain.vcpus:
        raise XenError(missing, f"domain {domain.domid} has no vCPUs yet")
    return domain.vcpus[number]


@operation(HYPERVISOR_domctl, XEN_DOMCTL_setvcpucontext)
def setvcpucontext(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlVcpucontext) -> None:
    """Give a vCPU its whole state; with no state it is stopped, as if it had never been started.

    Raises XenError: EINVAL for oneself or a state that breaks a rule, EFAULT, EOPNOTSUPP for other tables than a vCPU
    that was started has.
    """
    if domain is caller.domain or domain.is_dying:
        raise XenError(EINVAL, "a domain cannot do that to itself, nor to one that is dying")
    vcpu = find_vcpu(domain, argument.vcpu, EINVAL, EINVAL)
    if not argument.ctxt:
        vcpu_state.reset(hv, vcpu)
        return
    context = VcpuGuestContext.from_bytes(hv.memory.read(caller, argument.ctxt, VcpuGuestContext.sizeof()))
    if vcpu.vcpu_id == 0:
        hv.timekeeping.update_wall_clock(domain)
    if vcpu.initialised:
        hv.contexts.reload(vcpu, context)
    else:
        hv.contexts.load(vcpu, context)
    hv.timekeeping.settle(vcpu)
    hv.reschedule = True


@operation(HYPERVISOR_domctl, XEN_DOMCTL_getvcpucontext, copy_back=True)
def getvcpucontext(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlVcpucontext) -> None:
    """Raises XenError: EINVAL for no vCPU or oneself, ENODATA for one that was never started, EFAULT."""
    vcpu = find_vcpu(domain, argument.vcpu, EINVAL, EINVAL)
    if vcpu is caller:
        raise XenError(EINVAL, "a vCPU cannot do that to itself")
    if not vcpu.initialised:
        raise XenError(ENODATA, f"{vcpu!r} was never started")
    hv.memory.write(caller, argument.ctxt, vcpu_state.save(hv, vcpu).to_bytes())


@operation(HYPERVISOR_domctl, XEN_DOMCTL_getvcpuinfo, copy_back=True)
def getvcpuinfo(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlGetvcpuinfo) -> None:
    """Raises XenError: EINVAL, ESRCH."""
    vcpu = find_vcpu(domain, argument.vcpu)
    argument.online, argument.blocked = not vcpu.down, vcpu.blocked
    argument.running = vcpu.runstate.state == RUNSTATE_running
    argument.cpu_time = hv.timekeeping.time_in(vcpu, RUNSTATE_running)
    argument.cpu = vcpu.processor


@operation(HYPERVISOR_domctl, XEN_DOMCTL_sendtrigger)
def sendtrigger(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlSendtrigger) -> None:
    """Raise an NMI. Raises XenError: ESRCH, EINVAL for buttons, which PV domains have not, ENOSYS."""
    vcpu = find_vcpu(domain, argument.vcpu, ESRCH)
    if argument.trigger in (XEN_DOMCTL_SENDTRIGGER_POWER, XEN_DOMCTL_SENDTRIGGER_SLEEP):
        raise XenError(EINVAL, "a PV domain has no buttons")
    if argument.trigger != XEN_DOMCTL_SENDTRIGGER_NMI:
        raise XenError(ENOSYS, f"trigger {argument.trigger}")
    vcpu.nmi_pending = True
    hv.wake(vcpu)
