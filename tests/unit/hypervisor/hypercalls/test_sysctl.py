"""sysctl: who may ask what of the machine, and what is answered; the errors are those of Xen 4.17."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.hypervisor.hypercalls.domctl import set_fields
from tests.unit.hypervisor.support import Bench, Guest
from xenolith.abi import sysctl as abi
from xenolith.abi.domctl import XEN_SCHEDULER_CREDIT2, XenDomctlGetdomaininfo
from xenolith.abi.errno import (
    EACCES,
    EBUSY,
    EFAULT,
    EINVAL,
    ENOBUFS,
    ENODEV,
    ENOENT,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
)
from xenolith.abi.hypercalls import HYPERVISOR_console_io, HYPERVISOR_sysctl
from xenolith.abi.sysctl import XenSysctl
from xenolith.hypervisor.domain import Capability


@pytest.fixture
def hv() -> Bench:
    return Bench()


@pytest.fixture
def control(hv: Bench) -> Guest:
    return hv.guest(capabilities=Capability.CONTROL)


def run(caller: Guest, command: int, **fields: Any) -> tuple[int, Any]:
    """The result, and the union afterwards; `member__field` sets a field of it."""
    op = XenSysctl(cmd=command, interface_version=abi.XEN_SYSCTL_INTERFACE_VERSION)
    set_fields(op.u, fields)
    vaddr = caller.put(caller.va(0), op)
    result = caller.call(HYPERVISOR_sysctl, vaddr)
    return result, XenSysctl.from_bytes(caller.hv.memory.read(caller.vcpu, vaddr, XenSysctl.sizeof())).u


def listed(caller: Guest, first: int = 0, most: int = 4) -> list[int]:
    result, u = run(
        caller,
        abi.XEN_SYSCTL_getdomaininfolist,
        getdomaininfolist__first_domain=first,
        getdomaininfolist__max_domains=most,
        getdomaininfolist__buffer=caller.va(4),
    )
    assert result == 0
    size = XenDomctlGetdomaininfo.sizeof()
    data = caller.hv.memory.read(caller.vcpu, caller.va(4), size * u.getdomaininfolist.num_domains)
    return [XenDomctlGetdomaininfo.from_bytes(data[at : at + size]).domain for at in range(0, len(data), size)]


# -- the edge ----------------------------------------------------------------------------------------------------------


def test_the_structure_is_checked_first(control: Guest) -> None:
    assert control.call(HYPERVISOR_sysctl, 0) == -EFAULT
    op = XenSysctl(cmd=abi.XEN_SYSCTL_physinfo, interface_version=abi.XEN_SYSCTL_INTERFACE_VERSION - 1)
    assert control.call(HYPERVISOR_sysctl, control.put(control.va(0), op)) == -EACCES
    assert run(control, 9999)[0] == -ENOSYS
    assert run(control, abi.XEN_SYSCTL_perfc_op)[0] == -ENOSYS


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        (abi.XEN_SYSCTL_physinfo, {Capability.CONTROL, Capability.CREATE, Capability.HARDWARE}),
        (abi.XEN_SYSCTL_getdomaininfolist, {Capability.CONTROL, Capability.CREATE, Capability.STORE}),
        (abi.XEN_SYSCTL_readconsole, {Capability.CONTROL, Capability.CONSOLE}),
        (abi.XEN_SYSCTL_scheduler_op, {Capability.CONTROL}),
        (9999, {Capability.CONTROL}),
    ],
)
def test_who_may_ask(hv: Bench, command: int, allowed: set[Capability]) -> None:
    for capability in (Capability.NONE, *Capability):
        asker = hv.guest(capabilities=capability)
        assert (run(asker, command)[0] == -EPERM) == (capability not in allowed), capability


# -- domains -----------------------------------------------------------------------------------------------------------


def test_everybody_sees_what_is_its_own_to_know(hv: Bench, control: Guest) -> None:
    others = [hv.guest().domain.domid for _ in range(2)]
    store = hv.guest(capabilities=Capability.STORE)
    everything = [control.domain.domid, *others, store.domain.domid]
    assert listed(control) == listed(store) == everything
    assert listed(control, others[0], 2) == others
    control.domain.targets = frozenset(others[1:])
    assert listed(control) == [control.domain.domid, others[1]]


def test_a_list_that_cannot_be_written(control: Guest) -> None:
    fields = {"getdomaininfolist__max_domains": 4, "getdomaininfolist__buffer": 0x1000}
    assert run(control, abi.XEN_SYSCTL_getdomaininfolist, **fields)[0] == -EFAULT


# -- the log -----------------------------------------------------------------------------------------------------------


def test_the_log_is_read(hv: Bench, control: Guest) -> None:
    guest = hv.guest()
    guest.call(HYPERVISOR_console_io, 0, 6, guest.put(guest.va(1), b"hello\n"))
    run(guest, abi.XEN_SYSCTL_physinfo)
    hv.crash(guest.vcpu, "a test")
    number = guest.domain.domid
    fields = {"readconsole__buffer": control.va(4), "readconsole__count": 4096}
    result, u = run(control, abi.XEN_SYSCTL_readconsole, **fields)
    assert result == 0
    lines = hv.memory.read(control.vcpu, control.va(4), u.readconsole.count).decode().splitlines()
    assert lines[0].startswith("(XEN) Xen version 4.17")
    assert lines[-3] == f"(d{number}) hello"
    assert lines[-2].startswith(f"(XEN) domain {number} may not XEN_SYSCTL_physinfo: needs the capability CONTROL or")
    assert lines[-1] == f"(XEN) domain {number} crashed on vCPU 0: a test"
    fields |= {"readconsole__incremental": 1, "readconsole__index": u.readconsole.index}
    assert run(control, abi.XEN_SYSCTL_readconsole, **fields)[1].readconsole.count == 0


def test_a_failed_read_clears_nothing(hv: Bench, control: Guest) -> None:
    hv.log.read(4096, clear=True)
    hv.say("kept")
    fields = {"readconsole__buffer": 0x1000, "readconsole__count": 4096, "readconsole__clear": 1}
    assert run(control, abi.XEN_SYSCTL_readconsole, **fields)[0] == -EFAULT
    assert hv.log.read(100)[0] == b"(XEN) kept\n"
    fields["readconsole__buffer"] = control.va(4)
    assert run(control, abi.XEN_SYSCTL_readconsole, **fields)[0] == 0
    assert hv.log.read(100)[0] == b""


def test_debug_keys_write_to_the_log(hv: Bench, control: Guest) -> None:
    keys = control.put(control.va(4), b"qx")
    assert run(control, abi.XEN_SYSCTL_debug_keys, debug_keys__keys=keys, debug_keys__nr_keys=2)[0] == 0
    log = hv.log.read(4096)[0].decode()
    assert "'q' pressed\n(XEN) domain 0: 12 of 64 frames, 1 vCPUs" in log
    assert log.endswith("'x' pressed\n")
    assert run(control, abi.XEN_SYSCTL_debug_keys, debug_keys__keys=0, debug_keys__nr_keys=2)[0] == -EFAULT


# -- the machine -------------------------------------------------------------------------------------------------------


def test_what_the_machine_has(hv: Bench, control: Guest) -> None:
    info = run(control, abi.XEN_SYSCTL_physinfo)[1].physinfo
    assert (info.nr_cpus, info.nr_nodes, info.max_mfn) == (1, 1, 511)
    assert info.total_pages == 511
    assert info.free_pages == hv.frames.free_frames
    assert info.capabilities & abi.XEN_SYSCTL_PHYSCAP_pv
    assert not info.capabilities & abi.XEN_SYSCTL_PHYSCAP_hvm
    heap = run(control, abi.XEN_SYSCTL_availheap, availheap__node=-1)[1].availheap
    assert heap.avail_bytes == hv.frames.free_frames << 12
    low = run(control, abi.XEN_SYSCTL_availheap, availheap__node=0, availheap__max_bitwidth=16)[1].availheap
    assert 0 <= low.avail_bytes <= 1 << 16
    assert run(control, abi.XEN_SYSCTL_availheap, availheap__node=1)[1].availheap.avail_bytes == 0


def test_topology(hv: Bench, control: Guest) -> None:
    assert run(control, abi.XEN_SYSCTL_cputopoinfo)[1].cputopoinfo.num_cpus == 1
    assert run(control, abi.XEN_SYSCTL_numainfo)[1].numainfo.num_nodes == 1
    fields = {"numainfo__num_nodes": 4, "numainfo__meminfo": control.va(4), "numainfo__distance": control.va(5)}
    assert run(control, abi.XEN_SYSCTL_numainfo, **fields)[1].numainfo.num_nodes == 1
    assert control.word(control.va(4)) == 511 << 12
    assert control.word(control.va(4, 8)) == hv.frames.free_frames << 12
    assert control.word(control.va(5)) == 10
    assert run(control, abi.XEN_SYSCTL_pcitopoinfo)[0] == -EINVAL
    assert run(control, abi.XEN_SYSCTL_get_pmstat, get_pmstat__cpuid=1)[0] == -EINVAL
    assert run(control, abi.XEN_SYSCTL_get_pmstat)[0] == -ENODEV


def test_several_processors(hv: Bench, control: Guest) -> None:
    hv.engine.processors = 3
    info = run(control, abi.XEN_SYSCTL_physinfo)[1].physinfo
    assert (info.nr_cpus, info.max_cpu_id, info.cores_per_socket, info.threads_per_core) == (3, 2, 3, 1)
    fields = {"cputopoinfo__num_cpus": 4, "cputopoinfo__cputopo": control.va(4)}
    assert run(control, abi.XEN_SYSCTL_cputopoinfo, **fields)[1].cputopoinfo.num_cpus == 3
    places = [
        abi.XenSysctlCputopo.from_bytes(hv.memory.read(control.vcpu, control.va(4, 12 * n), 12)) for n in range(3)
    ]
    assert [(each.core, each.socket, each.node) for each in places] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    control.vcpu.processor = 1
    hv.scheduler.account(control.vcpu, 300)
    run(control, abi.XEN_SYSCTL_getcpuinfo, getcpuinfo__max_cpus=4, getcpuinfo__info=control.va(4))
    assert [hv.clock.ns - control.word(control.va(4, 8 * n)) for n in range(3)] == [0, 300, 0]


def test_idle_time_is_what_nobody_ran(hv: Bench, control: Guest) -> None:
    hv.scheduler.account(control.vcpu, 300)
    result, u = run(control, abi.XEN_SYSCTL_getcpuinfo, getcpuinfo__max_cpus=4, getcpuinfo__info=control.va(4))
    assert (result, u.getcpuinfo.nr_cpus) == (0, 1)
    assert control.word(control.va(4)) == hv.clock.ns - 300


def test_there_is_one_pool(hv: Bench, control: Guest) -> None:
    def pool(operation: int, **fields: int) -> tuple[int, Any]:
        fields = {f"cpupool_op__{name}": value for name, value in fields.items()}
        result, u = run(control, abi.XEN_SYSCTL_cpupool_op, cpupool_op__op=operation, **fields)
        return result, u.cpupool_op

    control.put(control.va(4), [0xFF])
    result, found = pool(abi.XEN_SYSCTL_CPUPOOL_OP_INFO, cpumap__bitmap=control.va(4), cpumap__nr_bits=8)
    assert (result, found.n_dom, found.sched_id) == (0, 1, XEN_SCHEDULER_CREDIT2)
    assert control.word(control.va(4)) == 1
    assert pool(abi.XEN_SYSCTL_CPUPOOL_OP_INFO, cpupool_id=1)[0] == -ENOENT
    assert pool(abi.XEN_SYSCTL_CPUPOOL_OP_DESTROY)[0] == -EBUSY
    fields = {"cpupool_op__op": abi.XEN_SYSCTL_CPUPOOL_OP_INFO}
    assert run(hv.guest(capabilities=Capability.STORE), abi.XEN_SYSCTL_cpupool_op, **fields)[0] == 0
    assert run(hv.guest(capabilities=Capability.HARDWARE), abi.XEN_SYSCTL_cpupool_op, **fields)[0] == -EPERM
    assert pool(abi.XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN, domid=99)[0] == -ESRCH
    assert pool(abi.XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN, domid=hv.guest().domain.domid)[0] == 0
    assert pool(99)[0] == -ENOSYS


def test_the_schedulers_parameters(control: Guest) -> None:
    def limit(command: int, us: int, **fields: int) -> int:
        fields = {f"scheduler_op__{name}": value for name, value in fields.items()}
        defaults = {"scheduler_op__sched_id": XEN_SCHEDULER_CREDIT2, "scheduler_op__cmd": command}
        return run(
            control,
            abi.XEN_SYSCTL_scheduler_op,
            **(defaults | {"scheduler_op__u__sched_credit2__ratelimit_us": us} | fields),
        )[0]

    assert run(control, abi.XEN_SYSCTL_sched_id)[1].sched_id.sched_id == XEN_SCHEDULER_CREDIT2
    assert limit(abi.XEN_SYSCTL_SCHEDOP_getinfo, 5) == 0
    assert limit(abi.XEN_SYSCTL_SCHEDOP_putinfo, 0) == 0
    assert limit(abi.XEN_SYSCTL_SCHEDOP_putinfo, 99) == -EINVAL
    assert limit(abi.XEN_SYSCTL_SCHEDOP_putinfo, 1000) == -EOPNOTSUPP
    assert limit(abi.XEN_SYSCTL_SCHEDOP_getinfo, 0, cpupool_id=1) == -ESRCH
    assert limit(abi.XEN_SYSCTL_SCHEDOP_getinfo, 0, sched_id=5) == -EINVAL
    assert limit(2, 0) == -EINVAL


def test_policies_and_featuresets(control: Guest) -> None:
    count = run(control, abi.XEN_SYSCTL_get_cpu_featureset)[1].cpu_featureset.nr_features
    assert count == 19
    fields = {"cpu_featureset__index": 2, "cpu_featureset__features": control.va(4)}
    assert run(control, abi.XEN_SYSCTL_get_cpu_featureset, cpu_featureset__nr_features=18, **fields)[0] == -ENOBUFS
    assert run(control, abi.XEN_SYSCTL_get_cpu_featureset, cpu_featureset__nr_features=19, **fields)[0] == 0
    assert control.word(control.va(4)) >> 63, "a PV guest sees that there is a hypervisor"
    assert run(control, abi.XEN_SYSCTL_get_cpu_featureset, cpu_featureset__index=6)[0] == -EINVAL
    assert run(control, abi.XEN_SYSCTL_get_cpu_policy, cpu_policy__index=3)[0] == -EOPNOTSUPP
    policy = run(control, abi.XEN_SYSCTL_get_cpu_policy, cpu_policy__index=4)[1].cpu_policy
    fields = {"cpu_policy__index": 4, "cpu_policy__leaves": control.va(4)}
    result, told = run(control, abi.XEN_SYSCTL_get_cpu_policy, cpu_policy__nr_leaves=policy.nr_leaves, **fields)
    assert result == 0
    few = told.cpu_policy.nr_leaves - 1
    assert 0 < few < policy.nr_leaves
    assert run(control, abi.XEN_SYSCTL_get_cpu_policy, cpu_policy__nr_leaves=few, **fields)[0] == -ENOBUFS
    assert control.word(control.va(4)) == 0xFFFFFFFF << 32, "leaf 0, which has no subleaves"
