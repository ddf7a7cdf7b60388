"""Grants: who may map, copy and take over what, with which status, and that no sequence of them leaks a reference."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenolith.abi.errno import EBUSY, EFAULT, EINVAL, ENOSYS, EPERM, ERANGE, ESRCH, XenError
from xenolith.abi.grant_table import (
    GNTTAB_CACHE_CLEAN,
    GNTTAB_CACHE_SOURCE_GREF,
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_copy_arg,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_bad_virt_addr,
    GNTST_eagain,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GnttabCacheFlush,
    GnttabCopy,
    GnttabGetStatusFrames,
    GnttabGetVersion,
    GnttabMapGrantRef,
    GNTTABOP_cache_flush,
    GNTTABOP_copy,
    GNTTABOP_dump_table,
    GNTTABOP_get_status_frames,
    GNTTABOP_get_version,
    GNTTABOP_map_grant_ref,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_transfer,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
    GnttabSwapGrantRef,
    GnttabTransfer,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
    GrantEntryV1,
    GrantEntryV2,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transfer_committed,
    GTF_transfer_completed,
    GTF_transitive,
    GTF_writing,
)
from xenolith.abi.hypercalls import HYPERVISOR_grant_table_op
from xenolith.abi.types import DOMID_SELF, Struct
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.frames import TYPE_L1, TYPE_L4, TYPE_WRITABLE
from xenolith.hypervisor.grants import GrantError
from xenolith.hypervisor.hypercalls.grant_table import grant_l1e, grant_table_op
from xenolith.hypervisor.pagetables import GLOBAL, GUEST_KERNEL, PRESENT, RW, USER

from .conftest import StandIn

REF = 20
HOST = GNTMAP_host_map | GNTMAP_contains_pte


def op(hv: StandIn, caller: Domain, command: int, *arguments: Struct) -> int:
    return hv.call(caller, HYPERVISOR_grant_table_op, command, *arguments)


def refused(hv: StandIn, caller: Domain, command: int, *arguments: Struct) -> int:
    with pytest.raises(XenError) as caught:
        op(hv, caller, command, *arguments)
    return caught.value.errno


def status_of(hv: StandIn, caller: Domain, command: int, argument: Any) -> int:
    assert op(hv, caller, command, argument) == 0
    status: int = argument.status
    return status


def entry(hv: StandIn, domain: Domain, ref: int) -> GrantEntryV1:
    return GrantEntryV1.from_buffer(hv.ram.bytes, (domain.grants.frames[ref // 512] << 12) + ref % 512 * 8)


def entry2(hv: StandIn, domain: Domain, ref: int) -> GrantEntryV2:
    return GrantEntryV2.from_buffer(hv.ram.bytes, (domain.grants.frames[ref // 256] << 12) + ref % 256 * 16)


def status2(hv: StandIn, domain: Domain, ref: int) -> int:
    return hv.ram.bytes[(domain.grants.status_frames[ref // 2048] << 12) + ref % 2048 * 2]


class Pair:
    """A granter with a frame and its mapper, whose first frame is an L1 table."""

    def __init__(self, hv: StandIn) -> None:
        self.hv = hv
        self.granter, self.mapper = hv.create(1), hv.create(2, frames=6)
        self.mfn = hv.memory_of(self.granter)[0]
        self.l1_mfn = hv.memory_of(self.mapper)[0]
        hv.frames.get_page_and_type(self.l1_mfn, 2, TYPE_L1)
        self.granter.grants.grant(REF, 2, self.mfn)

    def pte(self, slot: int = 0) -> int:
        return (self.l1_mfn << 12) + slot * 8

    def pte_value(self, slot: int = 0) -> int:
        return self.hv.ram.words[self.pte(slot) >> 3]

    def map(self, flags: int = HOST, ref: int = REF, dom: int = 1, slot: int = 0) -> GnttabMapGrantRef:
        argument = GnttabMapGrantRef(host_addr=self.pte(slot), flags=flags, ref=ref, dom=dom)
        op(self.hv, self.mapper, GNTTABOP_map_grant_ref, argument)
        return argument

    def unmap(self, handle: int, slot: int | None = 0, bus: int = 0) -> int:
        argument = GnttabUnmapGrantRef(host_addr=0 if slot is None else self.pte(slot), dev_bus_addr=bus, handle=handle)
        return status_of(self.hv, self.mapper, GNTTABOP_unmap_grant_ref, argument)

    def references(self) -> tuple[int, int]:
        return self.hv.frames.count[self.mfn], self.hv.frames.type_count[self.mfn]

    def flags(self) -> int:
        return entry(self.hv, self.granter, REF).flags


@pytest.fixture
def pair(hv: StandIn) -> Pair:
    return Pair(hv)


# -- mapping ----------------------------------------------------------------------------------------------------------


def test_a_mapping_and_its_end(hv: StandIn, pair: Pair) -> None:
    mapped = pair.map()
    assert (mapped.status, mapped.dev_bus_addr) == (GNTST_okay, pair.mfn << 12)
    assert pair.pte_value() == grant_l1e(pair.mfn, HOST)
    assert pair.references() == (2, 1)
    assert pair.flags() == GTF_permit_access | GTF_reading | GTF_writing
    assert pair.unmap(mapped.handle) == GNTST_okay
    assert pair.pte_value() == 0
    assert pair.references() == (1, 0)
    assert pair.flags() == GTF_permit_access
    assert pair.unmap(mapped.handle) == GNTST_bad_handle


def test_flags_of_the_entry_that_maps() -> None:
    kernel = grant_l1e(0x123, HOST | GNTMAP_readonly)
    assert kernel == 0x123 << 12 | 1 << 63 | GUEST_KERNEL | USER | PRESENT | 0x60
    assert grant_l1e(0x123, HOST) == kernel | RW
    user = grant_l1e(0x123, HOST | GNTMAP_application_map | 0xFFFF0000)
    assert user == 0x123 << 12 | 1 << 63 | 0xE00 | GLOBAL | USER | RW | PRESENT | 0x60


def test_readonly_mappings_take_no_write_access(hv: StandIn, pair: Pair) -> None:
    pair.granter.grants.grant(REF, 2, pair.mfn, readonly=True)
    assert pair.map().status == GNTST_general_error
    assert pair.references() == (1, 0)
    mapped = pair.map(HOST | GNTMAP_readonly)
    assert mapped.status == GNTST_okay
    assert pair.references() == (2, 0)
    assert pair.flags() == GTF_permit_access | GTF_readonly | GTF_reading
    assert not pair.pte_value() & RW
    assert pair.map(slot=1).status == GNTST_general_error, "nor may a second mapping write"
    assert pair.unmap(mapped.handle) == GNTST_okay


def test_writing_flag_ends_with_the_last_writer(hv: StandIn, pair: Pair) -> None:
    reader = pair.map(HOST | GNTMAP_readonly, slot=0)
    writer = pair.map(slot=1)
    assert pair.flags() & (GTF_reading | GTF_writing) == GTF_reading | GTF_writing
    pair.unmap(writer.handle, slot=1)
    assert pair.flags() & (GTF_reading | GTF_writing) == GTF_reading
    pair.unmap(reader.handle, slot=0)
    assert not pair.flags() & GTF_reading


def test_device_mappings_hold_a_reference_of_their_own(hv: StandIn, pair: Pair) -> None:
    mapped = pair.map(HOST | GNTMAP_device_map)
    assert pair.references() == (3, 2)
    assert pair.unmap(mapped.handle, slot=None, bus=(pair.mfn + 1) << 12) == GNTST_general_error
    assert pair.unmap(mapped.handle, slot=None, bus=pair.mfn << 12) == GNTST_okay
    assert pair.references() == (2, 1)
    assert pair.unmap(mapped.handle, slot=None) == GNTST_okay, "naming no part is allowed, and does nothing"
    assert pair.references() == (2, 1)
    assert pair.unmap(mapped.handle) == GNTST_okay
    assert pair.references() == (1, 0)
    assert pair.map(GNTMAP_device_map).status == GNTST_okay
    assert pair.pte_value() == 0


def test_a_stale_entry_does_not_change_what_is_mapped(hv: StandIn, pair: Pair) -> None:
    first = pair.map()
    other = hv.memory_of(pair.granter)[1]
    entry(hv, pair.granter, REF).frame = other
    assert pair.map(slot=1).dev_bus_addr == pair.mfn << 12
    entry(hv, pair.granter, REF).flags = 0
    assert pair.map(slot=2).status == GNTST_okay
    assert pair.unmap(first.handle) == GNTST_okay


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"dom": 9}, GNTST_bad_domain),
        ({"dom": DOMID_SELF}, GNTST_bad_domain),
        ({"dom": 2}, GNTST_general_error),
        ({"ref": 512}, GNTST_bad_gntref),
        ({"ref": 0xFFFFFFFF}, GNTST_bad_gntref),
        ({"ref": REF + 1}, GNTST_general_error),
        ({"flags": GNTMAP_readonly}, GNTST_bad_gntref),
        ({"flags": 0}, GNTST_bad_gntref),
        ({"offset": 4096}, GNTST_general_error),
        ({"offset": -8}, GNTST_general_error),
        ({"offset": 4}, GNTST_general_error),
        ({"offset": 1 << 60}, GNTST_general_error),
        ({"flags": GNTMAP_host_map}, GNTST_general_error),
    ],
)
def test_refused_mappings_take_nothing(hv: StandIn, pair: Pair, change: dict[str, Any], status: int) -> None:
    wanted = {"flags": HOST, "ref": REF, "dom": 1, "offset": 0, **change}
    argument = GnttabMapGrantRef(host_addr=pair.pte() + wanted.pop("offset"), **wanted)
    before = hv.frames.counts.copy()
    assert status_of(hv, pair.mapper, GNTTABOP_map_grant_ref, argument) == status
    assert (hv.frames.counts == before).all()
    assert pair.flags() == GTF_permit_access
    assert pair.granter.grants.active_grants() == []


def test_frames_that_cannot_be_granted(hv: StandIn, pair: Pair) -> None:
    foreign = hv.memory_of(pair.mapper)[1]
    for mfn in (foreign, 0, hv.frames.total, 0xFFFFFFFF):
        entry(hv, pair.granter, REF).frame = mfn
        assert pair.map().status == GNTST_bad_page
    table = hv.memory_of(pair.granter)[1]
    hv.frames.get_page_and_type(table, 1, TYPE_L1)
    entry(hv, pair.granter, REF).frame = table
    assert pair.map().status == GNTST_general_error
    assert pair.map(HOST | GNTMAP_readonly).status == GNTST_okay


def test_only_the_named_domain_maps(hv: StandIn, pair: Pair) -> None:
    third = hv.create(3)
    with pytest.raises(GrantError) as caught:
        third.grants.map_frame(1, REF)
    assert caught.value.status == GNTST_general_error
    pair.map()
    with pytest.raises(GrantError):
        third.grants.map_frame(1, REF)


def test_a_domain_may_map_its_own_grant(hv: StandIn, pair: Pair) -> None:
    own = hv.memory_of(pair.mapper)[1]
    pair.mapper.grants.grant(REF, 2, own)
    mapped = pair.map(dom=2)
    assert (mapped.status, hv.frames.count[own]) == (GNTST_okay, 2)
    assert pair.unmap(mapped.handle) == GNTST_okay
    assert hv.frames.count[own] == 1


def test_counts_of_mappings_are_bounded(hv: StandIn, pair: Pair) -> None:
    for _ in range(128):
        assert pair.map(slot=1).status == GNTST_okay
    assert pair.map(slot=1).status == GNTST_general_error


def test_unmapping_what_the_guest_has_overwritten(hv: StandIn, pair: Pair) -> None:
    mapped = pair.map()
    own = hv.memory_of(pair.mapper)[1]
    hv.pagetables.update_l1(pair.pte(), own << 12 | PRESENT | RW, pair.mapper, 2)
    assert pair.references() == (1, 0)
    assert pair.unmap(mapped.handle) == GNTST_general_error
    assert hv.frames.count[own] == 2


def test_an_entry_with_less_access_does_not_stand_for_the_mapping(hv: StandIn) -> None:
    """Else a guest could give back, by a writable mapping, a type reference that its read-only entry never took."""
    pair = Pair(hv)
    own = hv.memory_of(pair.mapper)[1]
    pair.mapper.grants.grant(REF, 2, own)
    mapped = pair.map(dom=2)
    hv.pagetables.update_l1(pair.pte(), own << 12 | PRESENT, pair.mapper, 2)
    assert (hv.frames.count[own], hv.frames.type_count[own]) == (2, 0)
    assert pair.unmap(mapped.handle) == GNTST_general_error
    assert (hv.frames.count[own], hv.frames.type_count[own]) == (2, 0)


def make_root(hv: StandIn, domain: Domain, l1_mfn: int) -> None:
    """Page tables that map the first 2 MiB by the L1 table `l1_mfn`."""
    l4, l3, l2 = hv.frames.allocate(domain.domid, 3)
    for table, below in ((l4, l3), (l3, l2), (l2, l1_mfn)):
        hv.ram.words[table << 9] = below << 12 | 7
    hv.frames.get_page_and_type(l4, domain.domid, TYPE_L4)
    domain.vcpus[0].kernel_root = l4 << 12


def test_mapping_at_a_virtual_address_and_moving_another_entry_there(hv: StandIn, pair: Pair) -> None:
    make_root(hv, pair.mapper, pair.l1_mfn)
    own = hv.memory_of(pair.mapper)[1]
    hv.pagetables.update_l1(pair.pte(7), own << 12 | PRESENT | RW, pair.mapper, 2)
    argument = GnttabMapGrantRef(host_addr=0x5123, flags=GNTMAP_host_map, ref=REF, dom=1)
    assert status_of(hv, pair.mapper, GNTTABOP_map_grant_ref, argument) == GNTST_okay
    assert pair.pte_value(5) == grant_l1e(pair.mfn, GNTMAP_host_map)

    def replace(new_addr: int) -> int:
        moved = GnttabUnmapAndReplace(host_addr=0x5000, new_addr=new_addr, handle=argument.handle)
        return status_of(hv, pair.mapper, GNTTABOP_unmap_and_replace, moved)

    for bad in (0x5000, 0xFFFF800000000000, 1 << 63, 2 << 20):
        assert replace(bad) == GNTST_general_error
    assert pair.references() == (2, 1)
    kept = pair.pte_value(7)
    assert replace(0x7000) == GNTST_okay
    assert (pair.pte_value(5), pair.pte_value(7)) == (kept, 0)
    assert pair.references() == (1, 0)
    assert (hv.frames.count[own], hv.frames.type_count[own]) == (2, 1)


def test_unmap_and_replace_without_a_replacement(hv: StandIn, pair: Pair) -> None:
    make_root(hv, pair.mapper, pair.l1_mfn)
    for new_addr in (0, 0x9000):
        argument = GnttabMapGrantRef(host_addr=0x5000, flags=GNTMAP_host_map, ref=REF, dom=1)
        op(hv, pair.mapper, GNTTABOP_map_grant_ref, argument)
        moved = GnttabUnmapAndReplace(host_addr=0x5000, new_addr=new_addr, handle=argument.handle)
        assert status_of(hv, pair.mapper, GNTTABOP_unmap_and_replace, moved) == GNTST_okay
        assert (pair.references(), pair.pte_value(5)) == ((1, 0), 0)
    mapped = pair.map()
    moved = GnttabUnmapAndReplace(host_addr=pair.pte(), new_addr=0x9000, handle=mapped.handle)
    assert status_of(hv, pair.mapper, GNTTABOP_unmap_and_replace, moved) == GNTST_general_error


@pytest.mark.parametrize("vaddr", [0x0000800000000000, 0xFFFF800000000000, 0xFFFF87FFFFFFFFF8, 1 << 39])
def test_virtual_addresses_without_an_entry(hv: StandIn, pair: Pair, vaddr: int) -> None:
    make_root(hv, pair.mapper, pair.l1_mfn)
    argument = GnttabMapGrantRef(host_addr=vaddr, flags=GNTMAP_host_map, ref=REF, dom=1)
    assert status_of(hv, pair.mapper, GNTTABOP_map_grant_ref, argument) == GNTST_general_error


def test_each_of_a_batch_has_its_own_status(hv: StandIn, pair: Pair) -> None:
    batch = [GnttabMapGrantRef(host_addr=pair.pte(slot), flags=HOST, ref=REF + slot % 2, dom=1) for slot in range(3)]
    op(hv, pair.mapper, GNTTABOP_map_grant_ref, *batch)
    assert [argument.status for argument in batch] == [GNTST_okay, GNTST_general_error, GNTST_okay]
    assert len({batch[0].handle, batch[2].handle}) == 2


# -- edges of the call ------------------------------------------------------------------------------------------------


def test_commands_and_counts_that_are_refused(hv: StandIn, pair: Pair) -> None:
    def errno_of(command: int, count: int, vaddr: int = 0) -> int:
        with pytest.raises(XenError) as caught:
            grant_table_op(hv, pair.mapper.vcpus[0], command, vaddr, count)  # type: ignore[arg-type]
        return caught.value.errno

    assert errno_of(GNTTABOP_map_grant_ref, 1 << 31) == EINVAL
    assert errno_of(GNTTABOP_map_grant_ref, (1 << 32) - 1) == EINVAL
    assert errno_of(1 << 12, 1) == EINVAL
    assert errno_of(13, 1) == ENOSYS
    assert errno_of(GNTTABOP_dump_table, 1) == ENOSYS
    assert errno_of(GNTTABOP_query_size, 2) == EINVAL
    assert errno_of(GNTTABOP_setup_table, 0) == EINVAL
    assert errno_of(GNTTABOP_map_grant_ref, 1, 1 << 40) == EFAULT
    assert errno_of(GNTTABOP_copy, 0x7FFFFFFF, (hv.frames.total << 12) - 4096) == EFAULT


def test_the_size_of_a_table(hv: StandIn) -> None:
    control, domain = hv.create(1, capabilities=Capability.CONTROL), hv.create(2)
    size = GnttabQuerySize(dom=DOMID_SELF)
    assert status_of(hv, domain, GNTTABOP_query_size, size) == GNTST_okay
    assert (size.nr_frames, size.max_nr_frames) == (1, 64)
    assert status_of(hv, control, GNTTABOP_query_size, GnttabQuerySize(dom=2)) == GNTST_okay
    assert status_of(hv, control, GNTTABOP_query_size, GnttabQuerySize(dom=7)) == GNTST_bad_domain
    assert status_of(hv, domain, GNTTABOP_query_size, GnttabQuerySize(dom=1)) == GNTST_permission_denied


def test_setting_up_a_table(hv: StandIn) -> None:
    domain = hv.create(1)
    listed = hv.memory_of(domain)[0] << 12
    setup = GnttabSetupTable(dom=DOMID_SELF, nr_frames=3, frame_list=listed)
    assert status_of(hv, domain, GNTTABOP_setup_table, setup) == GNTST_okay
    assert [hv.ram.words[(listed >> 3) + index] for index in range(3)] == domain.grants.frames
    assert all(hv.frames.owner[mfn] == 1 for mfn in domain.grants.frames)
    assert domain.grants.entries == 3 * 512
    for nr_frames, frame_list, status in (
        (65, listed, GNTST_general_error),
        (0xFFFFFFFF, listed, GNTST_general_error),
        (2, 1 << 40, GNTST_bad_virt_addr),
    ):
        setup = GnttabSetupTable(dom=DOMID_SELF, nr_frames=nr_frames, frame_list=frame_list)
        assert status_of(hv, domain, GNTTABOP_setup_table, setup) == status
    assert len(domain.grants.frames) == 3
    assert status_of(hv, domain, GNTTABOP_setup_table, GnttabSetupTable(dom=5)) == GNTST_bad_domain


# -- versions ---------------------------------------------------------------------------------------------------------


def test_changing_the_version(hv: StandIn, pair: Pair) -> None:
    granter = pair.granter
    granter.grants.grant(1, 2, pair.mfn)
    handle, _ = pair.mapper.grants.map_frame(1, 1)
    version = GnttabSetVersion(version=2)
    op(hv, granter, GNTTABOP_set_version, version)
    assert version.version == 2
    assert len(granter.grants.status_frames) == 1
    full = entry2(hv, granter, 1).full_page
    assert (full.hdr.flags, full.hdr.domid, full.frame) == (GTF_permit_access, 2, pair.mfn)
    assert status2(hv, granter, 1) == GTF_reading | GTF_writing
    assert entry2(hv, granter, REF).hdr.flags == 0
    pair.mapper.grants.unmap_frame(handle)
    assert status2(hv, granter, 1) == 0
    op(hv, granter, GNTTABOP_set_version, GnttabSetVersion(version=1))
    assert (entry(hv, granter, 1).flags, entry(hv, granter, 1).frame) == (GTF_permit_access, pair.mfn)
    assert granter.grants.status_frames == []


def test_versions_that_are_refused(hv: StandIn, pair: Pair) -> None:
    pair.map()
    version = GnttabSetVersion(version=2)
    assert refused(hv, pair.granter, GNTTABOP_set_version, version) == EBUSY
    assert version.version == 1, "the version in force is told in any case"
    for number in (0, 3, 0xFFFFFFFF):
        assert refused(hv, pair.mapper, GNTTABOP_set_version, GnttabSetVersion(version=number)) == EINVAL
    pair.mapper.grants.set_version(2)
    entry2(hv, pair.mapper, 3).hdr.flags = GTF_transitive
    assert refused(hv, pair.mapper, GNTTABOP_set_version, GnttabSetVersion(version=1)) == ERANGE
    entry2(hv, pair.mapper, 3).hdr.flags = 0
    status_mfn = pair.mapper.grants.status_frames[0]
    hv.frames.get_page(status_mfn, 2)
    assert refused(hv, pair.mapper, GNTTABOP_set_version, GnttabSetVersion(version=1)) == EBUSY
    hv.frames.put_page(status_mfn)
    op(hv, pair.mapper, GNTTABOP_set_version, GnttabSetVersion(version=1))


def test_get_version(hv: StandIn) -> None:
    control, domain = hv.create(1, capabilities=Capability.CONTROL), hv.create(2)
    domain.grants.set_version(2)
    argument = GnttabGetVersion(dom=2)
    op(hv, control, GNTTABOP_get_version, argument)
    assert argument.version == 2
    assert refused(hv, domain, GNTTABOP_get_version, GnttabGetVersion(dom=1)) == EPERM
    assert refused(hv, control, GNTTABOP_get_version, GnttabGetVersion(dom=6)) == ESRCH


def test_status_frames(hv: StandIn) -> None:
    domain = hv.create(1)
    listed = hv.memory_of(domain)[0] << 12
    argument = GnttabGetStatusFrames(dom=DOMID_SELF, nr_frames=1, frame_list=listed)
    assert status_of(hv, domain, GNTTABOP_get_status_frames, argument) == GNTST_general_error
    domain.grants.set_version(2)
    domain.grants.grow(9)
    assert len(domain.grants.status_frames) == 2
    argument.nr_frames = 2
    assert status_of(hv, domain, GNTTABOP_get_status_frames, argument) == GNTST_okay
    assert [hv.ram.words[(listed >> 3) + index] for index in range(2)] == domain.grants.status_frames


def test_version_2_maps_and_notes_use_in_the_status_words(hv: StandIn, pair: Pair) -> None:
    pair.granter.grants.set_version(2)
    pair.granter.grants.grow(9)
    ref = 8 * 256 + 5
    pair.granter.grants.grant(ref, 2, pair.mfn)
    mapped = pair.map(ref=ref)
    assert mapped.status == GNTST_okay
    assert status2(hv, pair.granter, ref) == GTF_reading | GTF_writing
    assert entry2(hv, pair.granter, ref).hdr.flags == GTF_permit_access
    pair.unmap(mapped.handle)
    assert status2(hv, pair.granter, ref) == 0
    for flags in (GTF_permit_access | GTF_sub_page, GTF_transitive, GTF_accept_transfer):
        entry2(hv, pair.granter, ref).hdr.flags = flags
        assert pair.map(ref=ref).status == GNTST_general_error


# -- swap -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_swap(hv: StandIn, pair: Pair, version: int) -> None:
    pair.granter.grants.set_version(version)
    pair.granter.grants.grant(REF, 2, pair.mfn)
    assert status_of(hv, pair.granter, GNTTABOP_swap_grant_ref, GnttabSwapGrantRef(ref_a=REF, ref_b=30)) == GNTST_okay
    mapped = pair.map(ref=30)
    assert mapped.status == GNTST_okay
    assert pair.map(ref=REF, slot=1).status == GNTST_general_error
    for one, other, status in (
        (30, REF, GNTST_eagain),
        (REF, 30, GNTST_eagain),
        (30, 30, GNTST_okay),
        (pair.granter.grants.entries, REF, GNTST_bad_gntref),
        (REF, 0xFFFFFFFF, GNTST_bad_gntref),
    ):
        swap = GnttabSwapGrantRef(ref_a=one, ref_b=other)
        assert status_of(hv, pair.granter, GNTTABOP_swap_grant_ref, swap) == status


# -- copy -------------------------------------------------------------------------------------------------------------


def copy_argument(
    source: tuple[int, int], dest: tuple[int, int], length: int, flags: int, offsets: tuple[int, int] = (0, 0)
) -> GnttabCopy:
    argument = GnttabCopy(len=length, flags=flags)
    for end, (domid, number), offset in ((argument.source, source, offsets[0]), (argument.dest, dest, offsets[1])):
        end.domid, end.offset = domid, offset
        end.u.gmfn = number
    return argument


def test_copy_to_a_grant_and_from_it(hv: StandIn, pair: Pair) -> None:
    own = hv.memory_of(pair.mapper)[1]
    hv.ram.frame(own)[10:15] = b"hello"
    out = copy_argument((DOMID_SELF, own), (1, REF), 5, GNTCOPY_dest_gref, (10, 4091))
    assert status_of(hv, pair.mapper, GNTTABOP_copy, out) == GNTST_okay
    assert bytes(hv.ram.frame(pair.mfn)[4091:]) == b"hello"
    back = copy_argument((1, REF), (DOMID_SELF, own), 5, GNTCOPY_source_gref, (4091, 100))
    assert status_of(hv, pair.mapper, GNTTABOP_copy, back) == GNTST_okay
    assert bytes(hv.ram.frame(own)[100:105]) == b"hello"
    assert (pair.references(), pair.flags()) == ((1, 0), GTF_permit_access)


def test_copies_that_are_refused(hv: StandIn, pair: Pair) -> None:
    own = hv.memory_of(pair.mapper)[1]
    table = pair.l1_mfn
    mine, granted = (DOMID_SELF, own), (1, REF)
    out = GNTCOPY_dest_gref
    pair.granter.grants.grant(REF + 1, 2, pair.mfn, readonly=True)
    pair.granter.grants.grant(REF + 2, 2, own)
    cases = [
        (copy_argument((2, own), granted, 1, out), GNTST_permission_denied),
        (copy_argument(mine, (1, pair.mfn), 1, 0), GNTST_permission_denied),
        (copy_argument(mine, (9, REF), 1, out), GNTST_bad_domain),
        (copy_argument(mine, (1, 512), 1, out), GNTST_bad_gntref),
        (copy_argument(mine, (1, REF + 9), 1, out), GNTST_general_error),
        (copy_argument(mine, (1, REF + 1), 1, out), GNTST_general_error),
        (copy_argument(mine, (1, REF + 2), 1, out), GNTST_bad_page),
        (copy_argument((DOMID_SELF, pair.mfn), granted, 1, out), GNTST_bad_page),
        (copy_argument((DOMID_SELF, 1 << 60), granted, 1, out), GNTST_bad_page),
        (copy_argument(mine, granted, 2, out, (4095, 0)), GNTST_bad_copy_arg),
        (copy_argument(mine, granted, 0xFFFF, out, (0xFFFF, 0)), GNTST_bad_copy_arg),
        (copy_argument(mine, (DOMID_SELF, table), 8, 0), GNTST_general_error),
    ]
    before = hv.frames.counts.copy(), hv.frames.type_counts.copy()
    for argument, status in cases:
        assert status_of(hv, pair.mapper, GNTTABOP_copy, argument) == status
    assert (hv.frames.counts == before[0]).all()
    assert (hv.frames.type_counts == before[1]).all()
    assert status_of(hv, hv.create(3), GNTTABOP_copy, copy_argument(granted, granted, 1, 3)) == GNTST_general_error


def test_copy_beside_a_mapping(hv: StandIn, pair: Pair) -> None:
    mapped = pair.map(HOST | GNTMAP_readonly)
    entry(hv, pair.granter, REF).flags |= GTF_readonly
    own = hv.memory_of(pair.mapper)[1]
    out = copy_argument((DOMID_SELF, own), (1, REF), 5, GNTCOPY_dest_gref)
    assert status_of(hv, pair.mapper, GNTTABOP_copy, out) == GNTST_general_error
    entry(hv, pair.granter, REF).flags &= ~GTF_readonly
    assert status_of(hv, pair.mapper, GNTTABOP_copy, out) == GNTST_okay
    assert pair.unmap(mapped.handle) == GNTST_okay


def test_copy_within_a_part_of_a_frame(hv: StandIn, pair: Pair) -> None:
    pair.granter.grants.set_version(2)
    part = entry2(hv, pair.granter, REF).sub_page
    part.frame, part.page_off, part.length, part.hdr.domid = pair.mfn, 100, 50, 2
    part.hdr.flags = GTF_permit_access | GTF_sub_page
    own = hv.memory_of(pair.mapper)[1]
    for offset, length, status in (
        (100, 50, GNTST_okay),
        (120, 30, GNTST_okay),
        (99, 10, GNTST_general_error),
        (120, 31, GNTST_general_error),
        (150, 1, GNTST_general_error),
    ):
        argument = copy_argument((1, REF), (DOMID_SELF, own), length, GNTCOPY_source_gref, (offset, 0))
        assert status_of(hv, pair.mapper, GNTTABOP_copy, argument) == status


def test_transitive_grants_lead_one_step_and_only_for_copies(hv: StandIn, pair: Pair) -> None:
    third, fourth = hv.create(3), hv.create(4)
    pair.granter.grants.grant(REF, 3, pair.mfn)
    hv.ram.frame(pair.mfn)[:3] = b"abc"

    def refer(domain: Domain, ref: int, to: int, domid: int, gref: int) -> None:
        if domain.grants.version == 1:
            domain.grants.set_version(2)
        link = entry2(hv, domain, ref).transitive
        link.trans_domid, link.gref, link.hdr.domid, link.hdr.flags = domid, gref, to, GTF_transitive

    def copy_by(ref: int) -> int:
        own = hv.memory_of(pair.mapper)[1]
        argument = copy_argument((3, ref), (DOMID_SELF, own), 3, GNTCOPY_source_gref)
        return status_of(hv, pair.mapper, GNTTABOP_copy, argument)

    refer(third, 5, 2, 1, REF)
    assert copy_by(5) == GNTST_okay
    assert bytes(hv.ram.frame(hv.memory_of(pair.mapper)[1])[:3]) == b"abc"
    assert pair.map(dom=3, ref=5).status == GNTST_general_error
    refer(third, 6, 2, 3, 5)
    refer(third, 7, 2, 99, 5)
    refer(fourth, 5, 3, 1, REF)
    refer(third, 8, 2, 4, 5)
    refer(third, 9, 2, 1, REF + 1)
    assert [copy_by(ref) for ref in (6, 7, 8, 9)] == [GNTST_general_error] * 4


# -- transfer ---------------------------------------------------------------------------------------------------------


def accept(hv: StandIn, taker: Domain, ref: int, giver_domid: int, gfn: int) -> GrantEntryV1:
    wanted = entry(hv, taker, ref)
    wanted.frame, wanted.domid, wanted.flags = gfn, giver_domid, GTF_accept_transfer
    return wanted


def test_transfer(hv: StandIn, pair: Pair) -> None:
    wanted = accept(hv, pair.mapper, 40, 1, 0x77)
    hv.ram.frame(pair.mfn)[:4] = b"data"
    totals = pair.granter.tot_frames, pair.mapper.tot_frames
    gift = GnttabTransfer(mfn=pair.mfn, domid=2, ref=40)
    assert status_of(hv, pair.granter, GNTTABOP_transfer, gift) == GNTST_okay
    assert wanted.frame == pair.mfn
    assert wanted.flags == GTF_accept_transfer | GTF_transfer_committed | GTF_transfer_completed
    assert (hv.frames.owner[pair.mfn], hv.frames.count[pair.mfn], hv.m2p[pair.mfn]) == (2, 1, 0x77)
    assert (pair.granter.tot_frames, pair.mapper.tot_frames) == (totals[0] - 1, totals[1] + 1)
    assert bytes(hv.ram.frame(pair.mfn)[:4]) == b"data"


def test_frames_that_cannot_be_given_stay(hv: StandIn, pair: Pair) -> None:
    accept(hv, pair.mapper, 40, 1, 0x77)
    pair.map()
    shared = pair.granter.grants.frames[0]
    table = hv.memory_of(pair.granter)[1]
    hv.frames.get_page_and_type(table, 1, TYPE_WRITABLE)
    for mfn in (pair.mfn, shared, pair.granter.shared_info_mfn, table, pair.l1_mfn, 0, hv.frames.total, 1 << 63):
        owner = hv.frames.owner[mfn] if mfn < hv.frames.total else None
        gift = GnttabTransfer(mfn=mfn, domid=2, ref=40)
        assert status_of(hv, pair.granter, GNTTABOP_transfer, gift) == GNTST_bad_page
        assert owner is None or hv.frames.owner[mfn] == owner


def test_a_failed_transfer_frees_the_frame(hv: StandIn, pair: Pair) -> None:
    mfns = hv.memory_of(pair.granter)
    accept(hv, pair.mapper, 40, 3, 0x77)
    accept(hv, pair.mapper, 41, 1, 0x77)
    pair.mapper.max_frames = pair.mapper.tot_frames
    free = hv.frames.free_frames
    for mfn, domid, ref, status in (
        (mfns[0], 9, 41, GNTST_bad_domain),
        (mfns[1], 2, 41, GNTST_general_error),
    ):
        gift = GnttabTransfer(mfn=mfn, domid=domid, ref=ref)
        assert status_of(hv, pair.granter, GNTTABOP_transfer, gift) == status
    pair.mapper.max_frames += 1
    assert status_of(hv, pair.granter, GNTTABOP_transfer, GnttabTransfer(mfn=mfns[2], domid=2, ref=40)) == (
        GNTST_general_error
    )
    assert hv.frames.free_frames == free + 3


# -- cache flush ------------------------------------------------------------------------------------------------------


def flush(maddr: int, offset: int = 0, length: int = 64, what: int = GNTTAB_CACHE_CLEAN) -> GnttabCacheFlush:
    argument = GnttabCacheFlush(offset=offset, length=length, op=what)
    argument.a.dev_bus_addr = maddr
    return argument


def test_cache_flush_checks_whose_frame_it_is(hv: StandIn, pair: Pair) -> None:
    granted, own = pair.mfn << 12, hv.memory_of(pair.mapper)[1] << 12
    free = hv.frames.owners.tolist().index(-1) << 12
    op(hv, pair.mapper, GNTTABOP_cache_flush, flush(own, 0, 4096))
    for argument, errno in (
        (flush(own, 4096, 0), EINVAL),
        (flush(own, 1, 4096), EINVAL),
        (flush(own, what=4), EINVAL),
        (flush(own, what=GNTTAB_CACHE_SOURCE_GREF), EINVAL),
        (flush(1 << 60), EINVAL),
        (flush(free), EPERM),
        (flush(granted), EINVAL),
    ):
        assert refused(hv, pair.mapper, GNTTABOP_cache_flush, argument) == errno
    op(hv, pair.mapper, GNTTABOP_cache_flush, flush(1 << 60, length=0))
    pair.map(HOST | GNTMAP_readonly)
    op(hv, pair.mapper, GNTTABOP_cache_flush, flush(granted))


# -- lives and deaths -------------------------------------------------------------------------------------------------


def test_a_dead_granters_frame_lives_until_it_is_unmapped(hv: StandIn, pair: Pair) -> None:
    mapped = pair.map()
    hv.destroy(pair.granter)
    assert hv.frames.count[pair.mfn] == 1
    free = hv.frames.free_frames
    assert pair.unmap(mapped.handle) == GNTST_okay
    assert hv.frames.free_frames == free + 1


def test_a_new_domain_of_the_same_number_is_not_the_old_one(hv: StandIn, pair: Pair) -> None:
    mapped = pair.map()
    hv.destroy(pair.granter)
    hv.create(1).grants.grant(REF, 2, 5)
    assert pair.unmap(mapped.handle) == GNTST_okay
    assert entry(hv, hv.domains[1], REF).flags == GTF_permit_access


REFS = (10, 11)
steps = st.one_of(
    st.tuples(st.just("grant"), st.sampled_from(REFS), st.booleans()),
    st.tuples(
        st.just("map"),
        st.sampled_from(REFS),
        st.integers(0, 3),
        st.sampled_from(
            [
                base | readonly
                for base in (HOST, HOST | GNTMAP_device_map, GNTMAP_device_map)
                for readonly in (0, GNTMAP_readonly)
            ]
        ),
    ),
    st.tuples(st.just("native"), st.sampled_from(REFS), st.booleans()),
    st.tuples(st.just("unmap"), st.integers(0, 7), st.integers(0, 3), st.booleans(), st.booleans()),
    st.tuples(st.just("unmap_native"), st.integers(0, 7)),
    st.tuples(st.just("overwrite"), st.integers(0, 3)),
    st.tuples(st.just("destroy"), st.sampled_from([1, 2, 3])),
)


class World:
    """A granter, a mapper with a page table and a native mapper, and what they did."""

    def __init__(self) -> None:
        self.hv = StandIn(mib=1)
        self.free = self.hv.frames.free_frames
        self.pair = Pair(self.hv)
        self.native = self.hv.create(3, frames=1)
        self.handles: list[GnttabMapGrantRef] = []
        self.native_handles: list[int] = []

    def grant(self, ref: int, readonly: bool) -> None:
        if 1 in self.hv.domains:
            domid = 2 if ref == REFS[0] else 3
            mfn = self.hv.memory_of(self.pair.granter)[ref - REFS[0]]
            flags = entry(self.hv, self.pair.granter, ref).flags & (GTF_reading | GTF_writing)
            self.pair.granter.grants.grant(ref, domid, mfn, readonly)
            entry(self.hv, self.pair.granter, ref).flags |= flags

    def map(self, ref: int, slot: int, flags: int) -> None:
        if 2 in self.hv.domains:
            mapped = self.pair.map(flags, ref=ref, slot=slot)
            if mapped.status == GNTST_okay:
                self.handles.append(mapped)

    def native_map(self, ref: int, readonly: bool) -> None:
        if 3 in self.hv.domains:
            try:
                self.native_handles.append(self.native.grants.map_frame(1, ref, readonly)[0])
            except GrantError:
                return

    def unmap(self, index: int, slot: int, host: bool, device: bool) -> None:
        if 2 in self.hv.domains and index < len(self.handles):
            mapped = self.handles[index]
            self.pair.unmap(mapped.handle, slot if host else None, mapped.dev_bus_addr if device else 0)

    def unmap_native(self, index: int) -> None:
        if 3 in self.hv.domains and index < len(self.native_handles):
            self.native.grants.unmap_frame(self.native_handles.pop(index))

    def overwrite(self, slot: int) -> None:
        if 2 in self.hv.domains:
            self.hv.pagetables.update_l1(self.pair.pte(slot), 0, self.pair.mapper, 2)

    def destroy(self, domid: int) -> None:
        if domid in self.hv.domains:
            if domid == 2:
                self.hv.frames.put_page_and_type(self.pair.l1_mfn)
            self.hv.destroy(self.hv.domains[domid])

    def check(self) -> None:
        """Every count is the number of what is really there."""
        frames, hv = self.hv.frames, self.hv
        holders = [mapping for domain in hv.domains.values() for mapping in domain.grants._mappings.values()]
        entries = [self.pair.pte_value(slot) for slot in range(4)] if 2 in hv.domains else []
        held = [(value >> 12 & 0xFFFFF, bool(value & RW)) for value in entries if value & PRESENT]
        for mapping in holders:
            parts = mapping.flags & GNTMAP_device_map, mapping.flags & GNTMAP_host_map and not mapping.in_table
            held += [(mapping.active.mfn, not mapping.readonly) for part in parts if part]
        for mfn in {mfn for mfn, _ in held} | set(hv.memory_of(self.pair.granter) if 1 in hv.domains else []):
            own = frames.flags[mfn] & 1
            assert frames.count[mfn] == own + sum(1 for other, _ in held if other == mfn)
            assert frames.type_count[mfn] == sum(1 for other, writable in held if other == mfn and writable)
        if 1 in hv.domains:
            for ref in REFS:
                of_ref = [mapping for mapping in holders if mapping.active.ref == ref]
                used = GTF_reading if of_ref else 0
                if any(not mapping.readonly for mapping in of_ref):
                    used |= GTF_writing
                assert entry(hv, self.pair.granter, ref).flags & (GTF_reading | GTF_writing) == used


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=40))
def test_no_history_leaks_or_loses_a_reference(history: list[tuple[Any, ...]]) -> None:
    world = World()
    for ref in REFS:
        world.grant(ref, False)
    for what, *arguments in history:
        getattr(world, {"native": "native_map"}.get(what, what))(*arguments)
        world.check()
    for domid in (1, 2, 3):
        world.destroy(domid)
    assert world.hv.frames.free_frames == world.free
    assert not world.hv.frames.type_counts.any()
