"""What a builder does to the memory of a domain that it made, with the errors that Xen 4.17 gives."""

from __future__ import annotations

import struct

import pytest

from tests.unit.hypervisor.support import Bench, Guest
from xenolith.abi.errno import EFAULT, EINVAL, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from xenolith.abi.hypercalls import HYPERVISOR_memory_op
from xenolith.abi.memory import (
    XenForeignMemoryMap,
    XENMEM_acquire_resource,
    XENMEM_claim_pages,
    XENMEM_get_vnumainfo,
    XENMEM_memory_map,
    XENMEM_populate_physmap,
    XENMEM_resource_grant_table,
    XENMEM_resource_ioreq_server,
    XENMEM_set_memory_map,
    XenMemAcquireResource,
    XenMemoryMap,
    XenMemoryReservation,
    XenVnumaTopologyInfo,
)
from xenolith.abi.types import DOMID_SELF
from xenolith.hypervisor.domain import Capability, Domain


@pytest.fixture
def hv() -> Bench:
    return Bench()


@pytest.fixture
def builder(hv: Bench) -> Guest:
    return hv.guest(capabilities=Capability.CREATE)


@pytest.fixture
def made(hv: Bench, builder: Guest) -> Domain:
    domain = hv.domain()
    domain.creator = builder.domain.domid
    return domain


def claim(caller: Guest, domid: int, pages: int, order: int = 0) -> int:
    argument = XenMemoryReservation(nr_extents=pages, extent_order=order, domid=domid)
    return caller.op(HYPERVISOR_memory_op, XENMEM_claim_pages, argument)


def populate(caller: Guest, domid: int, count: int) -> int:
    at = caller.put(caller.va(4), list(range(count)))
    return caller.op(HYPERVISOR_memory_op, XENMEM_populate_physmap, XenMemoryReservation(at, count, 0, 0, domid))


def test_what_is_claimed_is_for_nobody_else(hv: Bench, builder: Guest, made: Domain) -> None:
    other = hv.domain()
    other.creator = builder.domain.domid
    made.max_frames = other.max_frames = hv.frames.free_frames
    assert claim(builder, made.domid, hv.frames.free_frames - 2) == 0
    assert claim(builder, made.domid, 20) == -EINVAL, "one claim at a time"
    assert claim(builder, other.domid, 3) == -ENOMEM
    assert populate(builder, other.domid, 4) == 2
    left = made.claimed_frames
    assert populate(builder, made.domid, 4) == 4
    assert made.claimed_frames == left - 4
    assert claim(builder, made.domid, 0) == 0
    assert populate(builder, other.domid, 4) == 4


def test_claims_that_cannot_be(hv: Bench, builder: Guest, made: Domain) -> None:
    made.tot_frames, made.max_frames = 10, 20
    assert claim(builder, made.domid, 10) == -EINVAL
    assert claim(builder, made.domid, 21) == -EINVAL
    assert claim(builder, made.domid, 15, order=1) == -EINVAL
    assert claim(builder, 999, 15) == -EINVAL
    assert claim(builder, builder.domain.domid, 15) == -EPERM


def test_a_builder_says_what_memory_map_a_domain_is_told(hv: Bench, builder: Guest) -> None:
    made = hv.guest()
    made.domain.creator = builder.domain.domid
    entry = struct.pack("<QQI", 0x1_0000_0000, 0x2000, 2)
    buffer = builder.put(builder.va(4), entry)
    argument = XenForeignMemoryMap(domid=made.domain.domid, map=XenMemoryMap(nr_entries=1, buffer=buffer))
    assert builder.op(HYPERVISOR_memory_op, XENMEM_set_memory_map, argument) == 0
    question = XenMemoryMap(nr_entries=4, buffer=made.va(4))
    assert made.op(HYPERVISOR_memory_op, XENMEM_memory_map, question) == 0
    assert question.nr_entries == 1
    assert hv.memory.read(made.vcpu, made.va(4), 20) == entry
    for bad, errno in (
        (XenForeignMemoryMap(domid=999), ESRCH),
        (XenForeignMemoryMap(domid=hv.guest().domain.domid), EPERM),
        (XenForeignMemoryMap(domid=made.domain.domid, map=XenMemoryMap(nr_entries=1025, buffer=buffer)), EINVAL),
        (XenForeignMemoryMap(domid=made.domain.domid, map=XenMemoryMap(nr_entries=1, buffer=0)), EFAULT),
    ):
        assert builder.op(HYPERVISOR_memory_op, XENMEM_set_memory_map, bad) == -errno
    assert hv.guest().op(HYPERVISOR_memory_op, XENMEM_memory_map, question) == -ENOSYS


def acquire(caller: Guest, domid: int, frame: int, count: int, listed: bool = True, **changes: int) -> tuple[int, int]:
    """The result, and nr_frames afterwards. The list is in data page 4."""
    argument = XenMemAcquireResource(
        domid=domid, type=XENMEM_resource_grant_table, nr_frames=count, frame=frame, frame_list=caller.va(4) * listed
    )
    for name, value in changes.items():
        setattr(argument, name, value)
    return caller.op(HYPERVISOR_memory_op, XENMEM_acquire_resource, argument), argument.nr_frames


def test_a_grant_table_is_found_and_grows(hv: Bench, builder: Guest, made: Domain) -> None:
    made.grants.max_frames = 4
    assert acquire(builder, made.domid, 0, 0, listed=False) == (0, 4)
    assert acquire(builder, made.domid, 1, 2)[0] == 0
    assert len(made.grants.frames) == 3
    assert [builder.word(builder.va(4, 8 * index)) for index in range(2)] == made.grants.frames[1:]
    assert acquire(builder, made.domid, 3, 2)[0] == -EINVAL
    assert acquire(builder, made.domid, 0, 0)[0] == -EINVAL
    assert acquire(builder, made.domid, 0, 1, listed=False)[0] == -EINVAL


def test_resources_that_are_not_to_be_had(hv: Bench, builder: Guest, made: Domain) -> None:
    assert acquire(builder, made.domid, 0, 1, type=XENMEM_resource_ioreq_server)[0] == -EINVAL
    assert acquire(builder, made.domid, 0, 1, id=1)[0] == -EINVAL, "status frames, in version 1"
    assert acquire(builder, made.domid, 0, 1, id=2)[0] == -EINVAL
    assert acquire(builder, made.domid, 0, 1, pad=1)[0] == -EINVAL
    assert acquire(builder, made.domid, 1 << 32, 1)[0] == -EINVAL
    assert acquire(builder, 999, 0, 1)[0] == -ESRCH
    assert acquire(builder, builder.domain.domid, 0, 1)[0] == -EPERM
    assert acquire(hv.guest(), made.domid, 0, 1)[0] == -EPERM
    made.is_dying = True
    assert acquire(builder, made.domid, 0, 2)[0] == -EINVAL


def test_status_frames_come_with_version_2(hv: Bench, builder: Guest, made: Domain) -> None:
    made.grants.set_version(2)
    assert acquire(builder, made.domid, 0, 2, id=1)[0] == 0
    assert len(made.grants.status_frames) == 2


def test_no_domain_has_virtual_nodes(hv: Bench, builder: Guest, made: Domain) -> None:
    def ask(domid: int, **fields: int) -> int:
        return builder.op(HYPERVISOR_memory_op, XENMEM_get_vnumainfo, XenVnumaTopologyInfo(domid=domid, **fields))

    assert ask(made.domid) == ask(DOMID_SELF) == -EOPNOTSUPP
    assert ask(made.domid, pad=1) == -EINVAL
    assert ask(999) == -ESRCH
    assert ask(hv.domain().domid) == -EPERM
