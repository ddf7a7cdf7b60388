"""sched_op, set_timer_op and vcpu_op: giving up the processor, timers, and starting and stopping vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EEXIST, EINVAL, ENOENT, EPERM, ESRCH, ETIME, XenError
from xenolith.abi.hypercalls import (
    HYPERVISOR_sched_op,
    HYPERVISOR_sched_op_compat,
    HYPERVISOR_set_timer_op,
    HYPERVISOR_vcpu_op,
)
from xenolith.abi.sched import (
    SHUTDOWN_MAX,
    SCHEDOP_block,
    SCHEDOP_pin_override,
    SCHEDOP_poll,
    SCHEDOP_remote_shutdown,
    SCHEDOP_shutdown,
    SCHEDOP_shutdown_code,
    SCHEDOP_watchdog,
    SCHEDOP_yield,
    SchedPinOverride,
    SchedPoll,
    SchedRemoteShutdown,
    SchedShutdown,
    SchedWatchdog,
)
from xenolith.abi.vcpu import (
    VCPU_SSHOTTMR_future,
    VcpuGuestContext,
    VCPUOP_down,
    VCPUOP_get_physid,
    VCPUOP_get_runstate_info,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
    VCPUOP_send_nmi,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VCPUOP_stop_singleshot_timer,
    VCPUOP_up,
    VcpuRegisterRunstateMemoryArea,
    VcpuRegisterTimeMemoryArea,
    VcpuRegisterVcpuInfo,
    VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
)
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.frames import TYPE_WRITABLE
from xenolith.hypervisor.hypercalls.table import hypercall, operation, run_operation
from xenolith.hypervisor.vcpu import UPCALL_MASK, Vcpu

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

_SHORTEST_PERIOD_NS: Final = 1_000_000
_LONGEST_PERIOD_NS: Final = (1 << 63) - 1
_FAR_FUTURE_NS: Final = 1 << 50
_CLIPPED_TIMEOUT_NS: Final = 100_000_000
_INFO_BYTES: Final = 64
_TIME_BYTES: Final = 32
_MAX_POLL_PORTS: Final = 128
_WATCHDOGS: Final = 2


@hypercall(HYPERVISOR_sched_op)
def sched_op(hv: Hypervisor, vcpu: Vcpu, command: int, vaddr: int) -> int:
    return run_operation(hv, vcpu, HYPERVISOR_sched_op, command & 0xFFFF_FFFF, vaddr)


@hypercall(HYPERVISOR_sched_op_compat)
def sched_op_compat(hv: Hypervisor, vcpu: Vcpu, command: int, argument: int) -> int:
    """The older form: its argument is no address but the number itself (Xen, arch/x86/compat.c)."""
    return run_operation(hv, vcpu, HYPERVISOR_sched_op_compat, command & 0xFFFF_FFFF, argument)


@operation(HYPERVISOR_sched_op_compat, SCHEDOP_yield, raw=True)
@operation(HYPERVISOR_sched_op, SCHEDOP_yield, raw=True)
def yield_(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    hv.scheduler.yielded(vcpu)
    return 0


@operation(HYPERVISOR_sched_op_compat, SCHEDOP_block, raw=True)
@operation(HYPERVISOR_sched_op, SCHEDOP_block, raw=True)
def block(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    """Wait for an event, with events unmasked."""
    ram = hv.ram.bytes
    ram[vcpu.info_maddr + UPCALL_MASK] = 0
    if not ram[vcpu.info_maddr]:
        vcpu.blocked = True
    return 0


@operation(HYPERVISOR_sched_op, SCHEDOP_shutdown)
def shutdown(hv: Hypervisor, vcpu: Vcpu, argument: SchedShutdown) -> int:
    """Raises XenError(EINVAL) for a reason that does not exist."""
    if argument.reason > SHUTDOWN_MAX:
        raise XenError(EINVAL, f"shutdown reason {argument.reason}")
    hv.shutdown(vcpu.domain, argument.reason)
    return 0


@operation(HYPERVISOR_sched_op_compat, SCHEDOP_shutdown, raw=True)
def shutdown_compat(hv: Hypervisor, vcpu: Vcpu, reason: int) -> int:
    """The reason is the lowest byte of what is given, and need not be one that sched.h names."""
    hv.shutdown(vcpu.domain, reason & 0xFF)
    return 0


@operation(HYPERVISOR_sched_op, SCHEDOP_shutdown_code)
def shutdown_code(hv: Hypervisor, vcpu: Vcpu, argument: SchedShutdown) -> int:
    """Say beforehand which reason a later shutdown has."""
    if argument.reason > SHUTDOWN_MAX:
        raise XenError(EINVAL, f"shutdown reason {argument.reason}")
    vcpu.domain.announced_shutdown_code = argument.reason
    return 0


@operation(HYPERVISOR_sched_op, SCHEDOP_poll)
def poll(hv: Hypervisor, vcpu: Vcpu, argument: SchedPoll) -> int:
    """Wait until one of the ports is pending or `timeout` (system time, ns; 0 for none) has passed.

    Raises XenError: EINVAL for too many ports or one that does not exist, EFAULT.
    """
    if argument.nr_ports > _MAX_POLL_PORTS:
        raise XenError(EINVAL, f"{argument.nr_ports} ports")
    data = hv.memory.read(vcpu, argument.ports, argument.nr_ports * 4) if argument.nr_ports else b""
    ports = tuple(memoryview(data).cast("I"))
    events = vcpu.domain.events
    pending = [events.is_pending(port) for port in ports]
    if any(pending):
        return 0
    if argument.timeout and argument.timeout <= hv.now_ns():
        return 0
    if hv.ram.bytes[vcpu.info_maddr] and not hv.ram.bytes[vcpu.info_maddr + UPCALL_MASK]:
        return 0  # any event that can be delivered ends the wait
    vcpu.poll_ports, vcpu.poll_deadline_ns = ports, argument.timeout
    vcpu.polling = vcpu.blocked = True
    return 0


@operation(HYPERVISOR_sched_op, SCHEDOP_remote_shutdown)
def remote_shutdown(hv: Hypervisor, vcpu: Vcpu, argument: SchedRemoteShutdown) -> int:
    domain = hv.domains.get(argument.domain_id)
    if domain is None:
        raise XenError(ESRCH, f"domain {argument.domain_id} does not exist")
    if domain is vcpu.domain:
        raise XenError(EPERM, "a domain shuts itself down by SCHEDOP_shutdown")
    hv.policy.require_target(vcpu.domain, domain, "SCHEDOP_remote_shutdown")
    if argument.reason > SHUTDOWN_MAX:
        raise XenError(EINVAL, f"shutdown reason {argument.reason}")
    hv.shutdown(domain, argument.reason)
    return 0


@operation(HYPERVISOR_sched_op, SCHEDOP_watchdog)
def watchdog(hv: Hypervisor, vcpu: Vcpu, argument: SchedWatchdog) -> int:
    """Arm, rearm or disarm one of a domain's two watchdogs. Returns the id of a new one.

    Raises XenError: EINVAL for a bad id, EEXIST for re-arming one that does not run, ENOSPC-like EEXIST when both run.
    """
    dogs = vcpu.domain.watchdogs
    deadline = hv.now_ns() + argument.timeout * 1_000_000_000 if argument.timeout else 0
    if argument.id > _WATCHDOGS:
        raise XenError(EINVAL, f"watchdog {argument.id}")
    if argument.id:
        if not dogs[argument.id - 1]:
            raise XenError(EINVAL, f"watchdog {argument.id} does not run")
        dogs[argument.id - 1] = deadline
        return 0
    if not argument.timeout:
        raise XenError(EINVAL, "a new watchdog needs a timeout")
    for number, running in enumerate(dogs):
        if not running:
            dogs[number] = deadline
            return number + 1
    raise XenError(EEXIST, "all watchdogs run")


@operation(HYPERVISOR_sched_op, SCHEDOP_pin_override, needs=Capability.HARDWARE)
def pin_override(hv: Hypervisor, vcpu: Vcpu, argument: SchedPinOverride) -> int:
    """There is one physical processor, so a vCPU is always pinned to it."""
    if argument.pcpu > 0:
        raise XenError(EINVAL, f"processor {argument.pcpu}")
    return 0


@hypercall(HYPERVISOR_set_timer_op)
def set_timer_op(hv: Hypervisor, vcpu: Vcpu, timeout: int) -> int:
    """VIRQ_TIMER at system time `timeout` (ns); 0 stops it. One absurdly far off, or negative, comes after 100 ms."""
    now = hv.now_ns()
    if timeout >> 63 or timeout > now + _FAR_FUTURE_NS:
        timeout = now + _CLIPPED_TIMEOUT_NS
    vcpu.singleshot_ns = timeout
    hv.timers_changed()
    return 0


# -- vcpu_op -----------------------------------------------------------------------------------------------------------


@hypercall(HYPERVISOR_vcpu_op)
def vcpu_op(hv: Hypervisor, vcpu: Vcpu, command: int, vcpu_id: int, vaddr: int) -> int:
    """Operations on one vCPU of the calling domain. Raises XenError(ENOENT) for one that does not exist."""
    vcpu_id &= 0xFFFF_FFFF
    if vcpu_id >= len(vcpu.domain.vcpus):
        raise XenError(ENOENT)  # without words: Linux asks for thousands of vCPUs that are not there
    hv.vcpu_op_target = vcpu.domain.vcpus[vcpu_id]
    return run_operation(hv, vcpu, HYPERVISOR_vcpu_op, command & 0xFFFF_FFFF, vaddr)


@operation(HYPERVISOR_vcpu_op, VCPUOP_initialise)
def initialise(hv: Hypervisor, vcpu: Vcpu, argument: VcpuGuestContext) -> int:
    """Give a vCPU that was never started its first state. Raises XenError(EEXIST, EINVAL or EFAULT)."""
    target = hv.vcpu_op_target
    if target.initialised:
        raise XenError(EEXIST, f"vCPU {target.vcpu_id} is initialised already")
    if target.info_maddr == hv.dummy_vcpu_info_maddr:
        raise XenError(EINVAL, f"vCPU {target.vcpu_id} has no vcpu_info")
    hv.contexts.load(target, argument)
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_up, raw=True)
def up(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    target = hv.vcpu_op_target
    if not target.initialised:
        raise XenError(EINVAL, f"vCPU {target.vcpu_id} is not initialised")
    target.down = False
    hv.scheduler.woken(target)
    hv.reschedule = True
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_down, raw=True)
def down(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    """A vCPU that goes down stops at once; the last one to do so powers the domain off."""
    target = hv.vcpu_op_target
    target.down = True
    target.singleshot_ns = target.periodic_ns = 0
    if all(other.down for other in vcpu.domain.vcpus):
        hv.shutdown(vcpu.domain, 0)
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_is_up, raw=True)
def is_up(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    return 0 if hv.vcpu_op_target.down else 1


@operation(HYPERVISOR_vcpu_op, VCPUOP_get_runstate_info, raw=True)
def get_runstate_info(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    words = hv.timekeeping.runstate_record(hv.vcpu_op_target)
    hv.memory.write(vcpu, vaddr, b"".join(word.to_bytes(8, "little") for word in words))
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_register_runstate_memory_area)
def register_runstate_memory_area(hv: Hypervisor, vcpu: Vcpu, argument: VcpuRegisterRunstateMemoryArea) -> int:
    """Keep a record of the vCPU's states at a guest virtual address. Raises XenError(EFAULT)."""
    target = hv.vcpu_op_target
    words = hv.timekeeping.runstate_record(target)
    hv.memory.write(vcpu, argument.addr.v, b"".join(word.to_bytes(8, "little") for word in words))
    target.runstate.area_vaddr = argument.addr.v
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_register_vcpu_time_memory_area)
def register_vcpu_time_memory_area(hv: Hypervisor, vcpu: Vcpu, argument: VcpuRegisterTimeMemoryArea) -> int:
    """Keep a second clock record of the vCPU at a guest virtual address; 0 for no longer. Raises XenError(EFAULT)."""
    target = hv.vcpu_op_target
    if argument.addr.v:
        hv.memory.write(vcpu, argument.addr.v, bytes(_TIME_BYTES))
    target.time_area_vaddr = argument.addr.v
    hv.timekeeping.update_vcpu_time(target)
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_set_periodic_timer)
def set_periodic_timer(hv: Hypervisor, vcpu: Vcpu, argument: VcpuSetPeriodicTimer) -> int:
    """Raises XenError(EINVAL) for a period below one millisecond or beyond 2**63 ns."""
    period = argument.period_ns
    if not _SHORTEST_PERIOD_NS <= period <= _LONGEST_PERIOD_NS:
        raise XenError(EINVAL, f"a period of {period} ns")
    target = hv.vcpu_op_target
    target.periodic_ns, target.periodic_next_ns = period, hv.now_ns() + period
    hv.timers_changed()
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_stop_periodic_timer, raw=True)
def stop_periodic_timer(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    hv.vcpu_op_target.periodic_ns = 0
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_set_singleshot_timer)
def set_singleshot_timer(hv: Hypervisor, vcpu: Vcpu, argument: VcpuSetSingleshotTimer) -> int:
    """Raises XenError: EINVAL for another vCPU, ETIME for a time in the past if the guest asks to be told."""
    target = hv.vcpu_op_target
    if target is not vcpu:
        raise XenError(EINVAL, "only a vCPU's own timer")
    if argument.flags & VCPU_SSHOTTMR_future and argument.timeout_abs_ns < hv.now_ns():
        raise XenError(ETIME)
    target.singleshot_ns = argument.timeout_abs_ns or 1
    hv.timers_changed()
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_stop_singleshot_timer, raw=True)
def stop_singleshot_timer(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    if hv.vcpu_op_target is not vcpu:
        raise XenError(EINVAL, "only a vCPU's own timer")
    vcpu.singleshot_ns = 0
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_register_vcpu_info)
def register_vcpu_info(hv: Hypervisor, vcpu: Vcpu, argument: VcpuRegisterVcpuInfo) -> int:
    """Move a vCPU's struct vcpu_info into a frame of the guest; everything becomes pending, so that nothing is lost.

    Raises XenError(EINVAL) for a second registration, another vCPU that is up, a bad frame, or one that crosses a page.
    """
    target = hv.vcpu_op_target
    if argument.offset > 4096 - _INFO_BYTES or argument.offset & 7:
        raise XenError(EINVAL, f"offset {argument.offset:#x}")
    if target.info_registered or (target is not vcpu and not target.down):
        raise XenError(EINVAL, f"vCPU {target.vcpu_id} cannot move its vcpu_info now")
    hv.frames.get_page_and_type(argument.mfn, vcpu.domain.domid, TYPE_WRITABLE)
    new = argument.mfn << 12 | argument.offset
    ram = hv.ram.bytes
    if target.info_maddr == hv.dummy_vcpu_info_maddr:
        ram[new : new + _INFO_BYTES] = bytes(_INFO_BYTES)
        ram[new + UPCALL_MASK] = 1
    else:
        ram[new : new + _INFO_BYTES] = bytes(ram[target.info_maddr : target.info_maddr + _INFO_BYTES])
    target.info_maddr, target.info_registered = new, True
    target.cpu.show(new)
    hv.timekeeping.update_vcpu_time(target)
    vcpu.domain.events.mark_all_pending(target)
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_send_nmi, raw=True)
def send_nmi(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    hv.vcpu_op_target.nmi_pending = True
    hv.wake(hv.vcpu_op_target)
    return 0


@operation(HYPERVISOR_vcpu_op, VCPUOP_get_physid, raw=True)
def get_physid(hv: Hypervisor, vcpu: Vcpu, vaddr: int) -> int:
    """Only vCPUs that are pinned to a processor are told its number. Raises XenError(EINVAL)."""
    raise XenError(EINVAL, "vCPUs are not pinned")
