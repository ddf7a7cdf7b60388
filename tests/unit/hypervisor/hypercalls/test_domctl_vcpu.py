"""domctl: vCPUs, their processors, and what a domain may touch; the errors are those of Xen 4.17."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.hypervisor.hypercalls.domctl import run
from tests.unit.hypervisor.support import KERNEL_BASE, Bench, Guest
from xenolith.abi import domctl as abi
from xenolith.abi.errno import (
    E2BIG,
    EEXIST,
    EFAULT,
    EINVAL,
    ENODATA,
    ENOSYS,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    ERANGE,
    ESRCH,
)
from xenolith.abi.vcpu import VcpuGuestContext, VGCF_in_kernel, VGCF_online
from xenolith.cpu.registers import RAX, RIP
from xenolith.hypervisor.hypercalls.cpu_policy import serialised
from xenolith.hypervisor.scheduler import PERIOD_NS


@pytest.fixture
def made(hv: Bench, builder: Guest) -> Guest:
    """A running domain with two vCPUs that the builder controls."""
    guest = hv.guest(vcpus=2)
    guest.domain.creator = builder.domain.domid
    return guest


def set_context(caller: Guest, target: Guest, vcpu: int, **fields: Any) -> int:
    context = VcpuGuestContext(flags=VGCF_in_kernel | VGCF_online)
    context.user_regs.rip = KERNEL_BASE
    context.ctrlreg[3] = target.l4 << 12
    for name, value in fields.items():
        setattr(context, name, value)
    at = caller.put(caller.va(4), context)
    return run(
        caller, abi.XEN_DOMCTL_setvcpucontext, target.domain.domid, vcpucontext__vcpu=vcpu, vcpucontext__ctxt=at
    )[0]


def get_context(caller: Guest, target: Guest, vcpu: int) -> VcpuGuestContext:
    fields = {"vcpucontext__vcpu": vcpu, "vcpucontext__ctxt": caller.va(4)}
    assert run(caller, abi.XEN_DOMCTL_getvcpucontext, target.domain.domid, **fields)[0] == 0
    return VcpuGuestContext.from_bytes(caller.hv.memory.read(caller.vcpu, caller.va(4), VcpuGuestContext.sizeof()))


# -- contexts ----------------------------------------------------------------------------------------------------------


def test_a_context_is_set_and_read_back(hv: Bench, builder: Guest, made: Guest) -> None:
    assert run(builder, abi.XEN_DOMCTL_getvcpucontext, made.domain.domid, vcpucontext__vcpu=1)[0] == -ENODATA
    fields = {"event_callback_eip": KERNEL_BASE + 0x10, "fs_base": 0x1234, "gs_base_user": 0x5678, "kernel_sp": 0x9000}
    assert set_context(builder, made, 1, **fields) == 0
    second = made.domain.vcpus[1]
    assert second.initialised
    assert second.runnable
    second.cpu.regs[RAX] = 77
    found = get_context(builder, made, 1)
    assert {name: getattr(found, name) for name in fields} == fields
    assert (found.user_regs.rip, found.user_regs.rax) == (KERNEL_BASE, 77)
    assert found.ctrlreg[3] == made.l4 << 12
    assert found.flags & (VGCF_in_kernel | VGCF_online) == VGCF_in_kernel | VGCF_online


def test_a_started_vcpu_gets_other_registers_but_no_other_tables(hv: Bench, builder: Guest, made: Guest) -> None:
    counts = hv.frames.count[made.l4], hv.frames.type_count[made.l4]
    assert set_context(builder, made, 0, fs_base=0x4000) == 0
    assert (made.vcpu.cpu.fs_base, made.vcpu.cpu.regs[RIP]) == (0x4000, KERNEL_BASE)
    assert set_context(builder, made, 0, ldt_ents=8) == -EOPNOTSUPP
    assert set_context(builder, made, 0, fs_base=1 << 63) == -EINVAL
    assert (hv.frames.count[made.l4], hv.frames.type_count[made.l4]) == counts
    saved = get_context(builder, made, 0)
    assert saved.fs_base == 0x4000


def test_no_context_stops_a_vcpu(hv: Bench, builder: Guest, made: Guest) -> None:
    assert run(builder, abi.XEN_DOMCTL_setvcpucontext, made.domain.domid)[0] == 0
    assert not made.vcpu.initialised
    assert not made.vcpu.kernel_root
    assert set_context(builder, made, 0) == 0


def test_contexts_that_cannot_be(builder: Guest, made: Guest) -> None:
    assert set_context(builder, made, 2) == -EINVAL
    fields = {"vcpucontext__ctxt": 0x1000, "vcpucontext__vcpu": 1}
    assert run(builder, abi.XEN_DOMCTL_setvcpucontext, made.domain.domid, **fields)[0] == -EFAULT


def test_what_is_said_of_a_vcpu(hv: Bench, builder: Guest, made: Guest) -> None:
    made.vcpu.blocked = True
    info = run(builder, abi.XEN_DOMCTL_getvcpuinfo, made.domain.domid)[1].u.getvcpuinfo
    assert (info.online, info.blocked, info.running) == (1, 1, 0)
    flags = run(builder, abi.XEN_DOMCTL_getdomaininfo, made.domain.domid)[1].u.getdomaininfo.flags
    assert flags & abi.XEN_DOMINF_blocked
    assert run(builder, abi.XEN_DOMCTL_getvcpuinfo, made.domain.domid, getvcpuinfo__vcpu=2)[0] == -EINVAL


@pytest.mark.parametrize(("trigger", "result"), [(0, 0), (1, -ENOSYS), (2, -ENOSYS), (3, -EINVAL), (4, -EINVAL)])
def test_triggers(builder: Guest, made: Guest, trigger: int, result: int) -> None:
    fields = {"sendtrigger__trigger": trigger}
    assert run(builder, abi.XEN_DOMCTL_sendtrigger, made.domain.domid, **fields)[0] == result
    assert made.vcpu.nmi_pending == (trigger == 0)
    assert run(builder, abi.XEN_DOMCTL_sendtrigger, made.domain.domid, sendtrigger__vcpu=2)[0] == -ESRCH


# -- the processor -----------------------------------------------------------------------------------------------------


def affinity(
    caller: Guest, command: int, target: Guest, hard: int = 0, soft: int = 0, flags: int = 3
) -> tuple[int, int, int]:
    """The result, and the bitmaps afterwards."""
    at = caller.put(caller.va(4), [hard, soft])
    fields = {"vcpuaffinity__flags": flags}
    for name, offset in (("hard", 0), ("soft", 8)):
        fields |= {f"vcpuaffinity__cpumap_{name}__bitmap": at + offset, f"vcpuaffinity__cpumap_{name}__nr_bits": 64}
    result = run(caller, command, target.domain.domid, **fields)[0]
    return result, caller.word(at), caller.word(at + 8)


def test_affinity(builder: Guest, made: Guest) -> None:
    put, get = abi.XEN_DOMCTL_setvcpuaffinity, abi.XEN_DOMCTL_getvcpuaffinity
    assert affinity(builder, get, made) == (0, 1, 1)
    assert affinity(builder, put, made, 0xFF, 0xFE) == (0, 1, 0)
    assert affinity(builder, get, made) == (0, 1, 0)
    assert affinity(builder, put, made, 0xFE, 0xFF)[0] == -EINVAL
    assert affinity(builder, get, made) == (0, 1, 0), "nothing of what failed was done"
    assert affinity(builder, get, made, flags=0)[0] == -EINVAL
    nodes = {"nodeaffinity__nodemap__bitmap": builder.va(4), "nodeaffinity__nodemap__nr_bits": 8}
    assert run(builder, abi.XEN_DOMCTL_getnodeaffinity, made.domain.domid, **nodes)[0] == 0
    assert run(builder, abi.XEN_DOMCTL_setnodeaffinity, made.domain.domid, **nodes)[0] == 0
    builder.put(builder.va(4), [0])
    assert run(builder, abi.XEN_DOMCTL_setnodeaffinity, made.domain.domid, **nodes)[0] == -EINVAL


def test_affinity_to_some_of_several_processors(hv: Bench, builder: Guest, made: Guest) -> None:
    hv.engine.processors = 4
    put, get = abi.XEN_DOMCTL_setvcpuaffinity, abi.XEN_DOMCTL_getvcpuaffinity
    assert affinity(builder, get, made) == (0, 0b1111, 0b1111)
    assert affinity(builder, put, made, 0b110110, 0b0011) == (0, 0b0110, 0b0010)
    assert affinity(builder, get, made) == (0, 0b0110, 0b0011)
    assert affinity(builder, put, made, 0b110000, 0b1000)[0] == -EINVAL
    assert affinity(builder, put, made, 0, 0b1000, abi.XEN_VCPUAFFINITY_SOFT)[0] == 0
    assert affinity(builder, get, made) == (0, 0b0110, 0b1000)
    at = builder.put(builder.va(4), [0xFF])
    fields = {"vcpuaffinity__flags": 1, "vcpuaffinity__cpumap_hard__bitmap": at}
    assert run(builder, put, made.domain.domid, vcpuaffinity__cpumap_hard__nr_bits=1, **fields)[0] == 0
    assert made.vcpu.hard_affinity == 1, "no more bits are read than there are"


def schedule(
    caller: Guest, target: Guest, command: int, weight: int = 0, cap: int = 0, sched_id: int = 6
) -> tuple[int, int, int]:
    fields = {"sched_id": sched_id, "cmd": command, "u__credit2__weight": weight, "u__credit2__cap": cap}
    fields = {f"scheduler_op__{name}": value for name, value in fields.items()}
    result, op = run(caller, abi.XEN_DOMCTL_scheduler_op, target.domain.domid, **fields)
    return result, op.u.scheduler_op.u.credit2.weight, op.u.scheduler_op.u.credit2.cap


def test_weight_and_cap(builder: Guest, made: Guest) -> None:
    put, get = abi.XEN_DOMCTL_SCHEDOP_putinfo, abi.XEN_DOMCTL_SCHEDOP_getinfo
    assert schedule(builder, made, get) == (0, 256, 0)
    assert schedule(builder, made, put, 512, 25)[0] == 0
    assert schedule(builder, made, put, 0, 50)[0] == 0
    assert schedule(builder, made, get) == (0, 512, 50)
    assert schedule(builder, made, get, sched_id=5)[0] == -EINVAL
    assert schedule(builder, made, abi.XEN_DOMCTL_SCHEDOP_putvcpuinfo)[0] == -EINVAL
    assert schedule(builder, made, 9)[0] == -EINVAL


def test_a_capped_domain_waits_for_its_next_share(hv: Bench, builder: Guest, made: Guest) -> None:
    hv.scheduler.replenish()
    assert schedule(builder, made, abi.XEN_DOMCTL_SCHEDOP_putinfo, 0, 25)[0] == 0
    hv.scheduler.replenish()
    builder.vcpu.down = True
    assert hv.scheduler.pick() is made.vcpu
    assert hv.scheduler.budget_end([made.vcpu]) == hv.clock.ns + PERIOD_NS // 4
    hv.scheduler.account(made.vcpu, PERIOD_NS // 4)
    assert hv.scheduler.pick() is None
    assert hv.scheduler.next_replenishment() == hv.clock.ns + PERIOD_NS
    hv.clock.ns += PERIOD_NS
    hv.scheduler.replenish()
    assert hv.scheduler.pick() is made.vcpu
    assert schedule(builder, made, abi.XEN_DOMCTL_SCHEDOP_putinfo)[0] == 0
    hv.scheduler.account(made.vcpu, 10 * PERIOD_NS)
    assert hv.scheduler.pick() is made.vcpu


def test_what_a_vcpu_has_done_at_the_same_time_is_dealt_with_first(hv: Bench, builder: Guest, made: Guest) -> None:
    hv.engine.untold = [made.cpu] * 3
    hv.engine.calls.clear()
    assert run(builder, abi.XEN_DOMCTL_pausedomain, made.domain.domid)[0] == 0
    assert hv.engine.calls.count(("comes first", made.cpu)) == 4, "the caller repeats what it asked"
    assert made.domain.controller_pause_count == 1


# -- rights ------------------------------------------------------------------------------------------------------------


def test_ports_are_given_by_who_has_them(builder: Guest, made: Guest) -> None:
    def permit(first: int, count: int, allow: int) -> int:
        fields = {"first_port": first, "nr_ports": count, "allow_access": allow}
        fields = {f"ioport_permission__{name}": value for name, value in fields.items()}
        return run(builder, abi.XEN_DOMCTL_ioport_permission, made.domain.domid, **fields)[0]

    assert permit(0x3F8, 8, 1) == -EPERM
    builder.domain.port_ranges = [(0, 0xFFFF)]
    assert permit(0x3F8, 8, 1) == 0
    assert permit(0x3FA, 1, 0) == 0
    assert made.domain.port_ranges == [(0x3F8, 0x3F9), (0x3FB, 0x3FF)]
    for first, count in ((0, 0), (0xFFFF, 2), (0xFFFFFFFF, 2)):
        assert permit(first, count, 1) == -EINVAL


def test_device_frames_are_given_by_who_has_them(builder: Guest, made: Guest) -> None:
    def permit(first: int, count: int, allow: int) -> int:
        fields = {"first_mfn": first, "nr_mfns": count, "allow_access": allow}
        fields = {f"iomem_permission__{name}": value for name, value in fields.items()}
        return run(builder, abi.XEN_DOMCTL_iomem_permission, made.domain.domid, **fields)[0]

    def might_map(first: int, count: int) -> int:
        fields = {
            "memory_mapping__first_mfn": first,
            "memory_mapping__nr_mfns": count,
            "memory_mapping__add_mapping": 1,
        }
        return run(builder, abi.XEN_DOMCTL_memory_mapping, made.domain.domid, **fields)[0]

    builder.domain.iomem_ranges = [(0xFD000, 0xFDFFF)]
    assert might_map(0xFD000, 16) == -EPERM
    assert permit(0xFD000, 16, 1) == 0
    assert might_map(0xFD000, 16) == 0
    assert made.domain.iomem_ranges == [(0xFD000, 0xFD00F)]
    assert permit(0xFC000, 16, 1) == -EPERM
    assert permit((1 << 64) - 1, 2, 1) == -EINVAL
    assert permit(1, 0, 1) == -EINVAL
    assert might_map(1 << 40, 1) == -EINVAL


def test_frames_say_what_they_are(hv: Bench, builder: Guest, made: Guest) -> None:
    mfns = [made.l4, made.l1, made.data[0], builder.data[0], made.domain.shared_info_mfn, 1 << 40]
    at = builder.put(builder.va(4), mfns)
    fields = {"getpageframeinfo3__num": len(mfns), "getpageframeinfo3__array": at}
    assert run(builder, abi.XEN_DOMCTL_getpageframeinfo3, made.domain.domid, **fields)[0] == 0
    assert [builder.word(at + 8 * index) for index in range(len(mfns))] == [
        abi.XEN_DOMCTL_PFINFO_L4TAB | abi.XEN_DOMCTL_PFINFO_LPINTAB,
        abi.XEN_DOMCTL_PFINFO_L1TAB,
        abi.XEN_DOMCTL_PFINFO_NOTAB,
        *[abi.XEN_DOMCTL_PFINFO_XTAB] * 3,
    ]
    fields["getpageframeinfo3__num"] = 1025
    assert run(builder, abi.XEN_DOMCTL_getpageframeinfo3, made.domain.domid, **fields)[0] == -E2BIG


# -- the rest of a vCPU's state ----------------------------------------------------------------------------------------


def test_compatibility_entry_points(builder: Guest, made: Guest) -> None:
    fields = {"size": 128, "sysenter_callback_eip": KERNEL_BASE + 8, "sysenter_disables_events": 1}
    fields = {f"ext_vcpucontext__{name}": value for name, value in fields.items()}
    domid = made.domain.domid
    assert run(builder, abi.XEN_DOMCTL_set_ext_vcpucontext, domid, **fields)[0] == 0
    found = run(builder, abi.XEN_DOMCTL_get_ext_vcpucontext, domid)[1].u.ext_vcpucontext
    assert (found.sysenter_callback_eip, found.sysenter_disables_events, found.syscall32_callback_eip) == (
        KERNEL_BASE + 8,
        1,
        0,
    )
    fields["ext_vcpucontext__sysenter_callback_eip"] = 1 << 63
    assert run(builder, abi.XEN_DOMCTL_set_ext_vcpucontext, domid, **fields)[0] == -EINVAL
    assert run(builder, abi.XEN_DOMCTL_set_ext_vcpucontext, domid)[0] == -EINVAL
    assert run(builder, abi.XEN_DOMCTL_get_ext_vcpucontext, domid, ext_vcpucontext__vcpu=2)[0] == -ESRCH


def test_extended_state_and_counters(hv: Bench, builder: Guest, made: Guest) -> None:
    domid = made.domain.domid
    assert run(builder, abi.XEN_DOMCTL_getvcpuextstate, domid)[1].u.vcpuextstate.size == 16
    fields = {"vcpuextstate__size": 16, "vcpuextstate__buffer": builder.va(4)}
    assert run(builder, abi.XEN_DOMCTL_getvcpuextstate, domid, **fields)[0] == 0
    assert run(builder, abi.XEN_DOMCTL_setvcpuextstate, domid, **fields)[0] == 0
    builder.put(builder.va(4), [7])
    assert run(builder, abi.XEN_DOMCTL_setvcpuextstate, domid, **fields)[0] == -EINVAL
    assert run(builder, abi.XEN_DOMCTL_get_vcpu_msrs, domid)[1].u.vcpu_msrs.msr_count == 2
    entry = abi.XenDomctlVcpuMsr(index=0x1234, value=1)
    fields = {"vcpu_msrs__msr_count": 1, "vcpu_msrs__msrs": builder.put(builder.va(4), entry)}
    assert run(builder, abi.XEN_DOMCTL_set_vcpu_msrs, domid, **fields)[0] == -EINVAL
    info = run(builder, abi.XEN_DOMCTL_gettscinfo, domid)[1].u.tsc_info
    assert (info.gtsc_khz, info.elapsed_nsec) == (1_000_000, hv.clock.ns)
    assert run(builder, abi.XEN_DOMCTL_settscinfo, domid, tsc_info__gtsc_khz=1_000_000)[0] == 0
    fields = {"tsc_info__elapsed_nsec": 5, "tsc_info__incarnation": 6}
    assert run(builder, abi.XEN_DOMCTL_settscinfo, domid, **fields)[0] == 0
    assert run(builder, abi.XEN_DOMCTL_gettscinfo, domid)[1].u.tsc_info.incarnation == 7
    assert hv.cpuid_for(made.domain).query(0x4000_0003, 0)[3] == 7
    assert run(builder, abi.XEN_DOMCTL_settscinfo, domid, **fields, tsc_info__tsc_mode=1)[0] == -EOPNOTSUPP
    assert run(builder, abi.XEN_DOMCTL_settscinfo, domid, tsc_info__gtsc_khz=2_000_000)[0] == -EOPNOTSUPP
    assert run(builder, abi.XEN_DOMCTL_settscinfo, domid, tsc_info__tsc_mode=3)[0] == -EINVAL


# -- what CPUID shows --------------------------------------------------------------------------------------------------


def set_policy(
    caller: Guest, domid: int, leaves: list[tuple[int, ...]], registers: list[tuple[int, ...]] | None = None
) -> tuple[int, tuple[int, int, int]]:
    """The result of set_cpu_policy, and what the argument says of the error."""
    values = b"".join(abi.XenCpuidLeaf(*leaf).to_bytes() for leaf in leaves)
    entries = b"".join(abi.XenMsrEntry(*entry).to_bytes() for entry in registers or [])
    fields = {"leaves": caller.put(caller.va(4), values), "nr_leaves": len(leaves)}
    fields |= {"msrs": caller.put(caller.va(5), entries), "nr_msrs": len(registers or [])}
    fields = {f"cpu_policy__{name}": value for name, value in fields.items()}
    result, op = run(caller, abi.XEN_DOMCTL_set_cpu_policy, domid, **fields)
    return result, (op.u.cpu_policy.err_leaf, op.u.cpu_policy.err_subleaf, op.u.cpu_policy.err_msr)


NO = abi.XEN_CPUID_NO_SUBLEAF


def test_a_policy_is_set_before_a_domain_runs(hv: Bench, builder: Guest, made: Guest) -> None:
    domid = made.domain.domid
    before = made.domain.cpu_policy
    made.domain.was_started = True
    assert set_policy(builder, domid, [])[0] == -EEXIST
    made.domain.was_started = False
    assert set_policy(builder, domid, [(1, NO, 0x777, 0, 0, 0)], [(0xCE, 0, 0), (0x10A, 0, 0)])[0] == 0
    assert hv.cpuid_for(made.domain).query(1, 0)[0] == 0x777
    assert set_policy(builder, domid, [(4, 1, 5, 0, 0, 0)])[0] == 0
    assert made.domain.cpu_policy == before | {(1, 0): (0x777, 0, 0, 0), (4, 1): (5, 0, 0, 0)}
    assert run(builder, abi.XEN_DOMCTL_set_cpu_policy, builder.domain.domid)[0] == -EPERM


@pytest.mark.parametrize(
    ("leaves", "registers", "answer"),
    [
        ([(0, NO, 8, 0, 0, 0)], [], (-EINVAL, (0, NO, NO))),
        ([(0x8000_0000, NO, 0x8000_0009, 0, 0, 0)], [], (-EINVAL, (0x8000_0000, NO, NO))),
        ([(1, 0, 0, 0, 0, 0)], [], (-ERANGE, (1, 0, NO))),
        ([(7, 3, 0, 0, 0, 0)], [], (-ERANGE, (7, 3, NO))),
        ([(0xE, NO, 0, 0, 0, 0)], [], (-ERANGE, (0xE, NO, NO))),
        ([(0x8000_0022, NO, 0, 0, 0, 0)], [], (-ERANGE, (0x8000_0022, NO, NO))),
        ([(1, NO, 0, 0, 0, 0)] * 121, [], (-E2BIG, (NO, NO, NO))),
        ([], [(0xCE, 0, 0)] * 3, (-E2BIG, (NO, NO, NO))),
        ([], [(0xCF, 0, 0)], (-ERANGE, (NO, NO, 0xCF))),
        ([], [(0xCE, 1, 0)], (-EINVAL, (NO, NO, 0xCE))),
        ([], [(0x10A, 0, 1 << 32)], (-EOVERFLOW, (NO, NO, 0x10A))),
        ([], [(0x10A, 0, 1)], (-EINVAL, (NO, NO, 0x10A))),
    ],
)
def test_a_policy_that_there_cannot_be(
    builder: Guest,
    made: Guest,
    leaves: list[tuple[int, ...]],
    registers: list[tuple[int, ...]],
    answer: tuple[int, tuple[int, int, int]],
) -> None:
    assert set_policy(builder, made.domain.domid, leaves, registers) == answer
    assert made.domain.cpu_policy == {}


def test_there_is_always_room_for_what_tools_list(builder: Guest, made: Guest) -> None:
    """Xen's CPUID_MAX_SERIALISED_LEAVES and MSR_MAX_SERIALISED_ENTRIES, for tools that ask how much room they need."""
    policy = run(builder, abi.XEN_DOMCTL_get_cpu_policy, made.domain.domid)[1].u.cpu_policy
    assert (policy.nr_leaves, policy.nr_msrs) == (120, 2)


def test_the_leaves_that_xen_lists() -> None:
    """As many subleaves as libxenguest writes itself, which takes no more room than it was told of."""
    leaves = {(0, 0): (0xD, 0, 0, 0), (0x8000_0000, 0): (0x8000_0001, 0, 0, 0), (4, 0): (1, 0, 0, 0)}
    leaves |= {(7, 0): (1, 0, 0, 0), (0xD, 0): (7, 0, 0, 0), (0xD, 1): (0, 0, 1 << 8, 0)}
    found = [(leaf.leaf, leaf.subleaf) for leaf in serialised(lambda *key: leaves.get(key, (0, 0, 0, 0)))]
    several = {4: 2, 7: 2, 0xB: 2, 0xD: 9}
    expected: list[tuple[int, int]] = []
    for number in (*range(14), 0x4000_0000, 0x4000_0100, 0x8000_0000, 0x8000_0001):
        expected += [(number, subleaf) for subleaf in range(several.get(number, 0))] or [(number, NO)]
    assert found == expected
