"""domctl: a domain from createdomain to destroydomain, with the errors that Xen 4.17 gives."""

from __future__ import annotations

import uuid
from ctypes import c_uint8
from typing import Any

import pytest

from tests.unit.hypervisor.hypercalls.domctl import run
from tests.unit.hypervisor.support import RW, A, Bench, D, Guest, P, snapshot
from xenolith.abi import domctl as abi
from xenolith.abi.domctl import XEN_DOMCTL_INTERFACE_VERSION, XenDomctl
from xenolith.abi.errno import EACCES, EEXIST, EFAULT, EINVAL, EOPNOTSUPP, EOVERFLOW, EPERM, ESRCH
from xenolith.abi.hypercalls import HYPERVISOR_domctl, HYPERVISOR_memory_op
from xenolith.abi.memory import XENMEM_populate_physmap, XenMemoryReservation
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.frames import TYPE_SEG_DESC
from xenolith.hypervisor.hypercalls.table import Continuation

HANDLE = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")


def create(caller: Guest, domid: int = 0, **fields: Any) -> tuple[int, int]:
    """The result of createdomain, and the domid."""
    wanted = {
        "handle": (c_uint8 * 16)(*HANDLE.bytes),
        "max_vcpus": 1,
        "max_evtchn_port": 1023,
        "max_grant_frames": 4,
        "max_maptrack_frames": 4,
        "grant_opts": 2,
    }
    fields = {f"createdomain__{name}": value for name, value in (wanted | fields).items()}
    result, op = run(caller, abi.XEN_DOMCTL_createdomain, domid, **fields)
    return result, op.domain


def info(caller: Guest, domid: int) -> Any:
    result, op = run(caller, abi.XEN_DOMCTL_getdomaininfo, domid)
    assert result == 0
    return op.u.getdomaininfo


@pytest.fixture
def made(hv: Bench, builder: Guest) -> Domain:
    result, domid = create(builder)
    assert result == 0
    return hv.domains[domid]


# -- the edge ----------------------------------------------------------------------------------------------------------


def test_the_structure_is_checked_before_anything_else(builder: Guest) -> None:
    assert builder.call(HYPERVISOR_domctl, 0x1000) == -EFAULT
    op = XenDomctl(cmd=abi.XEN_DOMCTL_createdomain, interface_version=XEN_DOMCTL_INTERFACE_VERSION + 1)
    assert builder.call(HYPERVISOR_domctl, builder.put(builder.va(0), op)) == -EACCES
    assert run(builder, abi.XEN_DOMCTL_pausedomain, 999)[0] == -ESRCH


def test_only_who_may_create_creates(hv: Bench) -> None:
    controller = hv.guest(capabilities=Capability.CONTROL)
    assert create(controller)[0] == -EPERM
    assert hv.policy.refusals == {(controller.domain.domid, "XEN_DOMCTL_createdomain"): 1}


@pytest.mark.parametrize(
    "command",
    [
        abi.XEN_DOMCTL_destroydomain,
        abi.XEN_DOMCTL_pausedomain,
        abi.XEN_DOMCTL_max_mem,
        abi.XEN_DOMCTL_getdomaininfo,
        abi.XEN_DOMCTL_set_virq_handler,
        9999,
    ],
)
def test_nobody_controls_what_was_not_made_by_it(hv: Bench, builder: Guest, command: int) -> None:
    """Not even itself: its own limit of memory is its creator's matter."""
    stranger = hv.guest()
    for target in (stranger, builder):
        assert run(builder, command, target.domain.domid)[0] == -EPERM
    assert run(stranger, command, stranger.domain.domid)[0] == -EPERM


def test_who_serves_the_store_may_look_and_no_more(hv: Bench, made: Domain) -> None:
    store = hv.guest(capabilities=Capability.STORE)
    assert info(store, made.domid).domain == made.domid
    assert run(store, abi.XEN_DOMCTL_pausedomain, made.domid)[0] == -EPERM


def test_what_is_not_for_pv_domains_says_so(builder: Guest, made: Domain) -> None:
    assert run(builder, abi.XEN_DOMCTL_gethvmcontext, made.domid)[0] == -EINVAL
    assert run(builder, abi.XEN_DOMCTL_ioport_mapping, made.domid)[0] == -EOPNOTSUPP
    assert run(builder, 9999, made.domid)[0] == -EOPNOTSUPP


# -- createdomain ------------------------------------------------------------------------------------------------------


def test_a_new_domain_has_nothing_and_is_paused(hv: Bench, builder: Guest, made: Domain) -> None:
    found = info(builder, made.domid)
    assert found.flags == abi.XEN_DOMINF_paused | 0xFFFF << abi.XEN_DOMINF_shutdownshift
    assert (found.tot_pages, found.max_pages, found.nr_online_vcpus) == (0, 0, 0)
    assert found.max_vcpu_id == abi.XEN_INVALID_MAX_VCPU_ID
    assert uuid.UUID(bytes=bytes(found.handle)) == HANDLE
    assert found.shared_info_frame == made.shared_info_mfn
    assert made.creator == builder.domain.domid
    assert not made.capabilities
    assert (made.grants.max_frames, made.grants.max_mappings, made.events.max_port) == (4, 1024, 1023)


@pytest.mark.parametrize(
    ("fields", "errno"),
    [
        ({"flags": 1 << 8}, EINVAL),
        ({"flags": abi.XEN_DOMCTL_CDF_hvm}, EINVAL),
        ({"flags": abi.XEN_DOMCTL_CDF_hap}, EINVAL),
        ({"flags": abi.XEN_DOMCTL_CDF_vpmu}, EINVAL),
        ({"flags": abi.XEN_DOMCTL_CDF_xs_domain}, EPERM),
        ({"iommu_opts": 1}, EINVAL),
        ({"flags": abi.XEN_DOMCTL_CDF_iommu, "iommu_opts": 2}, EINVAL),
        ({"max_vcpus": 0}, EINVAL),
        ({"max_vcpus": 129}, EINVAL),
        ({"grant_opts": 0}, EINVAL),
        ({"grant_opts": 3}, EINVAL),
        ({"grant_opts": 0x12}, EINVAL),
        ({"max_grant_frames": 0}, EINVAL),
        ({"max_grant_frames": 65}, EINVAL),
        ({"max_maptrack_frames": 1025}, EINVAL),
        ({"vmtrace_size": 4096}, EINVAL),
        ({"cpupool_id": 1}, ESRCH),
    ],
)
def test_a_configuration_that_cannot_be(hv: Bench, builder: Guest, fields: dict[str, int], errno: int) -> None:
    before = snapshot(hv)
    assert create(builder, **fields)[0] == -errno
    assert snapshot(hv) == before


def test_a_domid_can_be_chosen_once(hv: Bench, builder: Guest) -> None:
    assert create(builder, 77) == (0, 77)
    assert create(builder, 77)[0] == -EEXIST
    assert create(builder, 0x7FFF)[0] == 0


def test_who_has_the_store_may_give_it(hv: Bench) -> None:
    caller = hv.guest(capabilities=Capability.CREATE | Capability.STORE)
    result, domid = create(caller, flags=abi.XEN_DOMCTL_CDF_xs_domain)
    assert result == 0
    assert hv.domains[domid].capabilities == Capability.STORE
    assert info(caller, domid).flags & abi.XEN_DOMINF_xs_domain


# -- pausing -----------------------------------------------------------------------------------------------------------


def test_pauses_are_counted(builder: Guest, made: Domain) -> None:
    assert run(builder, abi.XEN_DOMCTL_unpausedomain, made.domid)[0] == 0
    assert run(builder, abi.XEN_DOMCTL_unpausedomain, made.domid)[0] == -EINVAL
    for _ in range(255):
        assert run(builder, abi.XEN_DOMCTL_pausedomain, made.domid)[0] == 0
    assert run(builder, abi.XEN_DOMCTL_pausedomain, made.domid)[0] == -EOVERFLOW
    assert made.pause_count == made.controller_pause_count == 255


def test_nobody_pauses_or_ends_itself(hv: Bench) -> None:
    controller = hv.guest(capabilities=Capability.CONTROL)
    for command in (
        abi.XEN_DOMCTL_pausedomain,
        abi.XEN_DOMCTL_destroydomain,
        abi.XEN_DOMCTL_resumedomain,
        abi.XEN_DOMCTL_max_vcpus,
        abi.XEN_DOMCTL_setdebugging,
        abi.XEN_DOMCTL_setvcpucontext,
    ):
        assert run(controller, command, controller.domain.domid)[0] == -EINVAL


# -- vCPUs and memory --------------------------------------------------------------------------------------------------


def test_vcpus_are_made_once_and_as_many_as_announced(hv: Bench, builder: Guest) -> None:
    domid = create(builder, max_vcpus=3)[1]
    assert run(builder, abi.XEN_DOMCTL_max_vcpus, domid, max_vcpus__max=2)[0] == -EINVAL
    for _ in range(2):
        assert run(builder, abi.XEN_DOMCTL_max_vcpus, domid, max_vcpus__max=3)[0] == 0
    assert len(hv.domains[domid].vcpus) == 3
    assert info(builder, domid).max_vcpu_id == 2
    assert info(builder, domid).nr_online_vcpus == 0


def populate(caller: Guest, domid: int, gpfns: list[int], order: int = 0) -> tuple[int, list[int]]:
    """How many extents were had, and their list afterwards."""
    at = caller.put(caller.va(4), gpfns)
    argument = XenMemoryReservation(extent_start=at, nr_extents=len(gpfns), extent_order=order, domid=domid)
    done = caller.op(HYPERVISOR_memory_op, XENMEM_populate_physmap, argument)
    return done, [caller.word(at + index * 8) for index in range(len(gpfns))]


def test_memory_up_to_the_limit(hv: Bench, builder: Guest, made: Domain) -> None:
    assert populate(builder, made.domid, [0])[0] == 0
    assert run(builder, abi.XEN_DOMCTL_max_mem, made.domid, max_mem__max_memkb=43)[0] == 0
    assert made.max_frames == 10
    done, listed = populate(builder, made.domid, list(range(100, 112)))
    assert done == 10
    assert listed[10:] == [110, 111]
    assert [hv.m2p[mfn] for mfn in listed[:10]] == list(range(100, 110))
    assert {hv.frames.owner[mfn] for mfn in listed[:10]} == {made.domid}
    assert run(builder, abi.XEN_DOMCTL_max_mem, made.domid, max_mem__max_memkb=4)[0] == 0
    assert (info(builder, made.domid).tot_pages, info(builder, made.domid).max_pages) == (10, 1)
    assert populate(builder, made.domid, [0])[0] == 0


def test_large_extents(hv: Bench, builder: Guest, made: Domain) -> None:
    made.max_frames = 1000
    done, listed = populate(builder, made.domid, [0, 512], 4)
    assert done == 2
    assert made.tot_frames == 32
    for first, gpfn in zip(listed, (0, 512), strict=True):
        assert first % 16 == 0
        assert [hv.m2p[first + offset] for offset in range(16)] == [gpfn + offset for offset in range(16)]


def test_a_list_that_is_writable_in_part_is_done_in_part(hv: Bench, builder: Guest, made: Domain) -> None:
    made.max_frames = 100
    last = builder.va(len(builder.data) - 1, 4096 - 16)
    builder.put(last, [5, 6])
    argument = XenMemoryReservation(extent_start=last, nr_extents=4, extent_order=0, domid=made.domid)
    assert builder.op(HYPERVISOR_memory_op, XENMEM_populate_physmap, argument) == 2
    assert made.tot_frames == 3, "the frame whose number could not be told is the domain's, as with Xen"


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_destroyed_domain_leaves_nothing(hv: Bench, builder: Guest) -> None:
    before, free = dict(hv.domains), hv.frames.free_frames
    domid = create(builder, max_vcpus=2)[1]
    run(builder, abi.XEN_DOMCTL_max_vcpus, domid, max_vcpus__max=2)
    hv.domains[domid].max_frames = 100
    populate(builder, domid, list(range(64)))
    assert hv.frames.free_frames < free - 64
    assert run(builder, abi.XEN_DOMCTL_destroydomain, domid)[0] == 0
    assert hv.domains == before
    assert hv.frames.free_frames == free
    assert run(builder, abi.XEN_DOMCTL_destroydomain, domid)[0] == -ESRCH
    assert [kind for kind, _ in hv.events][-2:] == ["destroy", "gone"]


def test_a_domain_is_listed_as_dying_until_its_last_frame_is_free(hv: Bench, builder: Guest, made: Domain) -> None:
    made.max_frames = 10
    run(builder, abi.XEN_DOMCTL_max_vcpus, made.domid, max_vcpus__max=1)
    mfn = populate(builder, made.domid, [0, 1])[1][0]
    entry = builder.l1 << 12 | 100 << 3
    hv.pagetables.update_l1(entry, mfn << 12 | P | RW | A | D, builder.domain, made.domid)
    for _ in range(2):
        assert run(builder, abi.XEN_DOMCTL_destroydomain, made.domid)[0] == 0
    found = info(builder, made.domid)
    assert found.flags & abi.XEN_DOMINF_dying
    assert found.tot_pages == 1
    assert create(builder, made.domid)[0] == -EEXIST
    assert populate(builder, made.domid, [0])[0] == 0
    assert run(builder, abi.XEN_DOMCTL_max_vcpus, made.domid, max_vcpus__max=1)[0] == -EINVAL
    assert run(builder, abi.XEN_DOMCTL_setvcpucontext, made.domid)[0] == -EINVAL
    hv.pagetables.update_l1(entry, 0, builder.domain, builder.domain.domid)
    assert run(builder, abi.XEN_DOMCTL_destroydomain, made.domid)[0] == -ESRCH
    assert create(builder, made.domid)[0] == 0


def test_a_long_end_comes_in_parts(hv: Bench, builder: Guest, made: Domain) -> None:
    made.max_frames = 10
    run(builder, abi.XEN_DOMCTL_max_vcpus, made.domid, max_vcpus__max=1)
    made.events.max_port = 2000
    for _ in range(1030):
        made.events.alloc_unbound(0)
    op = XenDomctl(cmd=abi.XEN_DOMCTL_destroydomain, interface_version=XEN_DOMCTL_INTERFACE_VERSION, domain=made.domid)
    vaddr = builder.put(builder.va(0), op)
    with pytest.raises(Continuation):
        builder.call(HYPERVISOR_domctl, vaddr)
    assert made.is_dying
    assert not info(builder, made.domid).flags & abi.XEN_DOMINF_dying
    assert run(builder, abi.XEN_DOMCTL_destroydomain, made.domid)[0] == 0
    assert made.domid not in hv.domains


def test_control_over_a_domid_ends_with_the_domain(hv: Bench, builder: Guest, made: Domain) -> None:
    controller = hv.guest(capabilities=Capability.CONTROL)
    controller.domain.targets = frozenset((made.domid,))
    assert run(controller, abi.XEN_DOMCTL_destroydomain, made.domid)[0] == 0
    assert create(builder, made.domid)[0] == 0
    assert run(controller, abi.XEN_DOMCTL_pausedomain, made.domid)[0] == -EPERM


def test_looking_for_domains_goes_on_with_the_next(hv: Bench, builder: Guest) -> None:
    create(builder, 100)
    assert info(builder, 50).domain == 100
    assert run(builder, abi.XEN_DOMCTL_getdomaininfo, 101)[0] == -ESRCH
    assert run(builder, abi.XEN_DOMCTL_getdomaininfo, 0x7FF0)[0] == -EINVAL


# -- small things ------------------------------------------------------------------------------------------------------


def test_what_is_set_is_said(hv: Bench, builder: Guest, made: Domain) -> None:
    other = uuid.uuid4()
    domid = made.domid
    handle = (c_uint8 * 16)(*other.bytes)
    assert run(builder, abi.XEN_DOMCTL_setdomainhandle, domid, setdomainhandle__handle=handle)[0] == 0
    assert run(builder, abi.XEN_DOMCTL_setdebugging, domid, setdebugging__enable=1)[0] == 0
    assert uuid.UUID(bytes=bytes(info(builder, domid).handle)) == other
    assert info(builder, domid).flags & abi.XEN_DOMINF_debugged
    assert run(builder, abi.XEN_DOMCTL_settimeoffset, domid, settimeoffset__time_offset_seconds=-60)[0] == 0
    assert made.time_offset_s == -60
    assert run(builder, abi.XEN_DOMCTL_get_address_size, domid)[1].u.address_size.size == 64
    for size, result in ((64, 0), (32, -EOPNOTSUPP), (16, -EINVAL)):
        assert run(builder, abi.XEN_DOMCTL_set_address_size, domid, address_size__size=size)[0] == result


def test_a_shut_down_domain_says_why_and_can_go_on(hv: Bench, builder: Guest, made: Domain) -> None:
    hv.shutdown(made, 2)
    flags = info(builder, made.domid).flags
    assert flags & abi.XEN_DOMINF_shutdown
    assert flags >> abi.XEN_DOMINF_shutdownshift == 2
    assert run(builder, abi.XEN_DOMCTL_resumedomain, made.domid)[0] == 0
    assert not info(builder, made.domid).flags & abi.XEN_DOMINF_shutdown
    assert made.pause_count == 1


def test_a_hypercall_page(hv: Bench, builder: Guest, made: Domain) -> None:
    made.max_frames = 10
    mfn = populate(builder, made.domid, [0])[1][0]
    assert run(builder, abi.XEN_DOMCTL_hypercall_init, made.domid, hypercall_init__gmfn=mfn)[0] == 0
    assert bytes(hv.ram.frame(mfn)[3:9]) == bytes.fromhex("b800000000 0f".replace(" ", ""))
    assert run(builder, abi.XEN_DOMCTL_hypercall_init, made.domid, hypercall_init__gmfn=builder.data[0])[0] == -EINVAL
    hv.ram.clear(mfn)
    hv.frames.get_page_and_type(mfn, made.domid, TYPE_SEG_DESC)
    assert run(builder, abi.XEN_DOMCTL_hypercall_init, made.domid, hypercall_init__gmfn=mfn)[0] == -EPERM
