"""mmu_update, update_va_mapping, mmuext_op, set_gdt and update_descriptor, as a guest calls them."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.support import RW, USER, A, Bench, D, Guest, P, snapshot
from xenolith.abi.errno import EACCES, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH
from xenolith.abi.hypercalls import (
    HYPERVISOR_mmu_update,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_set_gdt,
    HYPERVISOR_update_descriptor,
    HYPERVISOR_update_va_mapping,
    HYPERVISOR_update_va_mapping_otherdomain,
)
from xenolith.abi.mmu import (
    MMU_MACHPHYS_UPDATE,
    MMU_PT_UPDATE_NO_TRANSLATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_FLUSH_CACHE,
    MMUEXT_FLUSH_CACHE_GLOBAL,
    MMUEXT_INVLPG_ALL,
    MMUEXT_INVLPG_LOCAL,
    MMUEXT_INVLPG_MULTI,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_SET_LDT,
    MMUEXT_TLB_FLUSH_ALL,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_TLB_FLUSH_MULTI,
    MMUEXT_UNPIN_TABLE,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
    MmuextOp,
)
from xenolith.abi.types import DOMID_IO, DOMID_SELF, DOMID_XEN
from xenolith.hypervisor.descriptors import FLAT_DATA
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.frames import FLAG_PINNED, TYPE_L1, TYPE_SEG_DESC
from xenolith.hypervisor.hypercalls.table import Continuation

DONE = 7
"""The data page in which the number of elements done is put."""


@pytest.fixture
def guest(hv: Bench) -> Guest:
    return hv.guest(pages=16)


@pytest.fixture
def control(hv: Bench) -> Guest:
    return hv.guest(pages=16, capabilities=Capability.CONTROL)


def update(guest: Guest, *requests: tuple[int, int], domid: int = DOMID_SELF, count: int | None = None) -> int:
    guest.put(guest.va(0), [word for request in requests for word in request])
    guest.put(guest.va(DONE), [0xFFFF_FFFF_FFFF_FFFF])
    return guest.call(
        HYPERVISOR_mmu_update, guest.va(0), len(requests) if count is None else count, guest.va(DONE), domid
    )


def flushes(hv: Bench) -> list[tuple[object, ...]]:
    """What the engine was asked to forget or to load, other than code."""
    return [call for call in hv.engine.calls if call[0] != "code"]


def done(guest: Guest) -> int:
    return guest.word(guest.va(DONE)) & 0xFFFF_FFFF


def slot(guest: Guest, number: int) -> int:
    """The machine address of an entry of the L1."""
    return guest.l1 << 12 | number << 3


# -- mmu_update --------------------------------------------------------------------------------------------------------


def test_entries_of_every_level_are_updated(hv: Bench, guest: Guest) -> None:
    fresh = hv.give(guest.domain, 3)
    requests = [
        (slot(guest, 100), guest.data[3] << 12 | P),
        (guest.l2 << 12 | 8, fresh[0] << 12 | P | RW),
        (guest.l3 << 12 | 8, fresh[1] << 12 | P | RW),
        (guest.l4 << 12 | 8, fresh[2] << 12 | P | RW),
    ]
    assert update(guest, *requests) == 0
    assert done(guest) == 4
    assert [hv.frames.type[mfn] for mfn in fresh] == [1, 2, 3]


def test_updates_stop_at_the_first_that_fails(hv: Bench, guest: Guest) -> None:
    good, bad = guest.data[3] << 12 | P, 0x9000 << 12 | P
    result = update(guest, (slot(guest, 100), good), (slot(guest, 101), bad), (slot(guest, 102), good))
    assert (result, done(guest)) == (-EINVAL, 1)
    assert [bool(hv.entry(guest.l1, number)) for number in (100, 101, 102)] == [True, False, False]


@pytest.mark.parametrize("with_counter", [True, False])
def test_one_update_is_like_many(hv: Bench, guest: Guest, with_counter: bool) -> None:
    counter = guest.va(DONE) if with_counter else 0
    for at, value, result in (
        (guest.va(0), guest.data[3] << 12 | P, 0),
        (guest.va(0, 4080), guest.data[4] << 12 | P, 0),
        (guest.va(0, 4088), guest.data[5] << 12 | P, 0),
        (guest.va(0, 3), guest.data[6] << 12 | P, 0),
        (guest.va(0), guest.l2 << 12 | P | RW, -EINVAL),
        (guest.va(40), 0, -EFAULT),
        (0, 0, -EFAULT),
    ):
        if result != -EFAULT:
            guest.put(at, [slot(guest, 100), value])
        assert guest.call(HYPERVISOR_mmu_update, at, 1, counter, DOMID_SELF) == result
        if not result:
            assert hv.entry(guest.l1, 100) & ~(USER | 1 << 52) == value


def test_a_counter_that_cannot_be_written_is_not_written(guest: Guest) -> None:
    guest.put(guest.va(0), [slot(guest, 100), guest.data[3] << 12 | P])
    for counter in (guest.table_va(guest.l1), 0x8000_0000_0000_0000, 8):
        assert guest.call(HYPERVISOR_mmu_update, guest.va(0), 1, counter, DOMID_SELF) == 0


def test_accessed_and_dirty_are_kept_where_that_is_asked(hv: Bench, guest: Guest) -> None:
    entry = guest.data[3] << 12 | P | RW
    update(guest, (slot(guest, 4), entry | A | D), (slot(guest, 4) | MMU_PT_UPDATE_PRESERVE_AD, entry))
    assert hv.entry(guest.l1, 4) & (A | D) == A | D
    update(guest, (slot(guest, 4) | MMU_PT_UPDATE_NO_TRANSLATE, entry))
    assert not hv.entry(guest.l1, 4) & (A | D)


@pytest.mark.parametrize("command", [4, 5, 6, 7])
def test_commands_that_do_not_exist(guest: Guest, command: int) -> None:
    assert update(guest, (slot(guest, 100) | command, 0)) == -ENOSYS


def test_the_m2p_is_updated_for_ones_own_frames(hv: Bench, guest: Guest) -> None:
    assert update(guest, (guest.data[2] << 12 | MMU_MACHPHYS_UPDATE, 0x777)) == 0
    assert hv.m2p[guest.data[2]] == 0x777
    other = hv.guest()
    for mfn in (other.data[0], 0, hv.frames.total, 1 << 51, hv.xenspace.m2p_chunks()[0]):
        assert update(guest, (mfn << 12 | MMU_MACHPHYS_UPDATE, 0x777)) == -EINVAL


def test_memory_that_is_no_table_is_just_written(hv: Bench, guest: Guest) -> None:
    fresh = hv.give(guest.domain, 1)[0]
    for mfn in (fresh, guest.data[3]):
        assert update(guest, (mfn << 12 | 16, 0xDEAD_BEEF)) == 0
        assert hv.entry(mfn, 2) == 0xDEAD_BEEF
    hv.table(fresh, {2: FLAT_DATA})
    hv.frames.get_page_and_type(fresh, guest.domain.domid, TYPE_SEG_DESC)
    assert update(guest, (fresh << 12 | 16, 0)) == -EINVAL
    assert hv.entry(fresh, 2) == FLAT_DATA


def test_frames_of_others_are_not_written(hv: Bench, guest: Guest) -> None:
    other = hv.guest()
    for mfn in (other.data[0], other.l1, 0, hv.frames.total, (1 << 52) - 1, hv.xenspace.m2p_chunks()[0]):
        assert update(guest, (mfn << 12, 0)) == -EINVAL


def test_a_count_of_zero_does_nothing(guest: Guest) -> None:
    assert update(guest, count=0) == 0
    assert done(guest) == 0
    assert guest.call(HYPERVISOR_mmu_update, 0, 0, 0, DOMID_SELF) == 0


def test_a_count_is_32_bits_wide(guest: Guest) -> None:
    assert update(guest, (slot(guest, 100), guest.data[3] << 12 | P), count=1 << 32 | 1) == 0
    assert done(guest) == 1


def test_many_updates_are_done_in_parts(hv: Bench, guest: Guest) -> None:
    """One page of requests, mapped again and again, stands for 10,000 of them."""
    requests = hv.give(guest.domain, 1)[0]
    hv.table(requests, {word: slot(guest, 500) if word % 2 == 0 else guest.data[3] << 12 | P for word in range(512)})
    l1 = hv.give(guest.domain, 1)[0]
    hv.table(l1, dict.fromkeys(range(512), requests << 12 | P))
    assert update(guest, (guest.l2 << 12 | 8, l1 << 12 | P | RW)) == 0
    start, count, counter = guest.va(0) + (1 << 21) - 4096, 10_000, guest.va(DONE)
    arguments: tuple[int, ...] = (start, count, counter, DOMID_SELF)
    for before in (4096, 8192):
        with pytest.raises(Continuation) as rest:
            guest.call(HYPERVISOR_mmu_update, *arguments)
        assert done(guest) == before
        arguments = rest.value.arguments
        assert arguments[0] == start + before * 16
    assert guest.call(HYPERVISOR_mmu_update, *arguments) == 0
    assert done(guest) == 10_000


# -- whose tables and frames -------------------------------------------------------------------------------------------


def test_the_domid_names_the_owner_of_frames_and_of_tables(hv: Bench, guest: Guest, control: Guest) -> None:
    """The low half is whose frames are mapped, the high half, less one, whose tables map them."""
    mine, theirs = control.domain.domid, guest.domain.domid
    map_theirs = (slot(control, 100), guest.data[3] << 12 | P | RW)
    assert update(control, map_theirs, domid=theirs) == 0
    assert hv.frames.count[guest.data[3]] == 3
    in_their_table = (slot(guest, 100), guest.data[4] << 12 | P)
    assert update(control, in_their_table, domid=(theirs + 1) << 16 | theirs) == 0
    assert update(control, in_their_table, domid=(theirs + 1) << 16 | DOMID_SELF) == 0
    assert update(control, in_their_table, domid=theirs) == -EINVAL, "a table is the caller's unless said otherwise"
    mine_in_theirs = (slot(guest, 101), control.data[4] << 12 | P)
    assert update(control, mine_in_theirs, domid=(theirs + 1) << 16 | mine) == 0


@pytest.mark.parametrize(
    ("domid", "errno"), [(DOMID_IO, EPERM), (DOMID_XEN, EPERM), (0x7FF4, EPERM), (0x7FFF, EPERM), (999, ESRCH)]
)
def test_domids_that_mean_nobody_who_may_be_mapped(guest: Guest, domid: int, errno: int) -> None:
    request = (slot(guest, 100), guest.data[3] << 12 | P)
    assert update(guest, request, domid=domid) == -errno
    if domid == 999:
        assert update(guest, request, domid=domid + 1 << 16) == -errno


def test_others_need_control(hv: Bench, guest: Guest) -> None:
    other = hv.guest()
    before = snapshot(hv)
    request = (slot(guest, 100), other.data[3] << 12 | P)
    assert update(guest, request, domid=other.domain.domid) == -EPERM
    assert update(guest, (slot(other, 100), 0), domid=(other.domain.domid + 1) << 16) == -EPERM
    assert snapshot(hv) == before


# -- update_va_mapping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "calls"), [(0, 0), (UVMF_INVLPG, 1), (UVMF_TLB_FLUSH, 1), (UVMF_INVLPG | 4, 1)])
def test_the_entry_that_maps_an_address_is_replaced(hv: Bench, guest: Guest, flags: int, calls: int) -> None:
    address = guest.va(3)
    hv.engine.calls.clear()
    assert guest.call(HYPERVISOR_update_va_mapping, address, guest.data[5] << 12 | P, flags) == 0
    assert hv.entry(guest.l1, 4) & ~(USER | 1 << 52) == guest.data[5] << 12 | P
    expected = ("page", address) if flags & 3 == UVMF_INVLPG else ("flush",)
    assert hv.engine.calls == [expected] * calls


@pytest.mark.parametrize(
    "address",
    [0, 0x7FFF_FFFF_F000, 0x8000_0000_0000_0000, 0xFFFF_8000_0000_0000, 0xFFFF_8200_0000_0000, (1 << 64) - 1],
)
def test_an_address_that_no_table_maps(guest: Guest, address: int) -> None:
    assert guest.call(HYPERVISOR_update_va_mapping, address, 0, 0) == -EINVAL


def test_a_linear_mapping_is_no_way_round_the_rules_for_upper_tables(hv: Bench, guest: Guest) -> None:
    assert update(guest, (guest.l4 << 12 | 5 << 3, guest.l4 << 12 | P)) == 0
    l2_as_l1 = 5 << 39 | 511 << 30 | 510 << 21 | 0 << 12
    assert hv.memory.l1e_maddr(guest.vcpu.kernel_root, l2_as_l1) == guest.l2 << 12
    assert guest.call(HYPERVISOR_update_va_mapping, l2_as_l1, guest.data[0] << 12 | P, 0) == -EINVAL


def test_frames_of_others_are_mapped_by_control_only(hv: Bench, guest: Guest, control: Guest) -> None:
    entry = guest.data[3] << 12 | P
    call = HYPERVISOR_update_va_mapping_otherdomain
    assert control.call(call, control.va(3), entry, 0, guest.domain.domid) == 0
    assert control.call(call, control.va(3), control.data[3] << 12 | P, 0, DOMID_SELF) == 0
    assert guest.call(call, guest.va(3), control.data[3] << 12 | P, 0, control.domain.domid) == -EPERM
    assert guest.call(call, guest.va(3), entry, 0, 999) == -ESRCH


# -- mmuext_op ---------------------------------------------------------------------------------------------------------


def extended(guest: Guest, *operations: tuple[int, int, int], domid: int = DOMID_SELF) -> int:
    data = b""
    for command, arg1, arg2 in operations:
        one = MmuextOp()
        one.cmd, one.arg1.mfn, one.arg2.src_mfn = command, arg1, arg2
        data += one.to_bytes()
    guest.put(guest.va(0), data)
    guest.put(guest.va(DONE), [0xFFFF_FFFF_FFFF_FFFF])
    return guest.call(HYPERVISOR_mmuext_op, guest.va(0), len(operations), guest.va(DONE), domid)


@pytest.mark.parametrize("kind", range(4))
def test_a_table_is_pinned_once_and_unpinned(hv: Bench, guest: Guest, kind: int) -> None:
    mfn = hv.give(guest.domain, 1)[0]
    before = snapshot(hv)
    pin, unpin = (MMUEXT_PIN_L1_TABLE + kind, mfn, 0), (MMUEXT_UNPIN_TABLE, mfn, 0)
    assert extended(guest, unpin) == -EINVAL
    assert extended(guest, pin) == 0
    assert (hv.frames.type[mfn], hv.frames.flags[mfn] & FLAG_PINNED) == (TYPE_L1 + kind, FLAG_PINNED)
    after = snapshot(hv)
    assert extended(guest, pin) == -EINVAL
    assert extended(guest, (MMUEXT_PIN_L1_TABLE + (kind + 1) % 4, mfn, 0)) == -EINVAL
    assert snapshot(hv) == after
    assert extended(guest, unpin) == 0
    assert snapshot(hv) == before


def test_operations_stop_at_the_first_that_fails(hv: Bench, guest: Guest) -> None:
    mfns = hv.give(guest.domain, 2)
    bad = (MMUEXT_PIN_L1_TABLE, guest.data[0], 0)
    assert extended(guest, (0, mfns[0], 0), bad, (0, mfns[1], 0)) == -EINVAL
    assert done(guest) == 1
    assert [hv.frames.flags[mfn] & FLAG_PINNED for mfn in mfns] == [FLAG_PINNED, 0]


def test_a_new_base_is_used_at_once_and_the_old_one_let_go(hv: Bench, guest: Guest) -> None:
    fresh = hv.give(guest.domain, 1)[0]
    hv.table(fresh, {511: guest.l3 << 12 | P | RW})
    uses = hv.frames.type_count[guest.l4]
    hv.engine.calls.clear()
    assert extended(guest, (MMUEXT_NEW_BASEPTR, fresh, 0)) == 0
    assert guest.vcpu.kernel_root == fresh << 12
    assert ("root", fresh << 12) in hv.engine.calls
    assert hv.frames.type_count[guest.l4] == uses - 1
    for bad in (guest.data[0], guest.l1, 0, hv.frames.total, hv.guest().l4):
        assert extended(guest, (MMUEXT_NEW_BASEPTR, bad, 0)) == -EINVAL
    assert guest.vcpu.kernel_root == fresh << 12


def test_the_same_base_again_forgets_translations(hv: Bench, guest: Guest) -> None:
    before = snapshot(hv)
    hv.engine.calls.clear()
    assert extended(guest, (MMUEXT_NEW_BASEPTR, guest.l4, 0)) == 0
    assert flushes(hv) == [("root", guest.l4 << 12)]
    assert snapshot(hv) == before


def test_a_user_base_may_be_none(hv: Bench, guest: Guest) -> None:
    before = snapshot(hv)
    assert extended(guest, (MMUEXT_NEW_USER_BASEPTR, guest.l4, 0)) == 0
    assert guest.vcpu.user_root == guest.l4 << 12
    assert extended(guest, (MMUEXT_NEW_USER_BASEPTR, guest.l3, 0)) == -EINVAL
    assert extended(guest, (MMUEXT_NEW_USER_BASEPTR, guest.l4, 0)) == 0
    assert extended(guest, (MMUEXT_NEW_USER_BASEPTR, 0, 0)) == 0
    assert guest.vcpu.user_root == 0
    assert snapshot(hv) == before


def test_flushes(hv: Bench, guest: Guest) -> None:
    mask = guest.va(6)
    for command, arg1, arg2, expected in (
        (MMUEXT_TLB_FLUSH_LOCAL, 0, 0, [("flush",)]),
        (MMUEXT_TLB_FLUSH_ALL, 0, 0, [("flush",)]),
        (MMUEXT_TLB_FLUSH_MULTI, 0, mask, [("flush",)]),
        (MMUEXT_INVLPG_LOCAL, guest.va(2), 0, [("page", guest.va(2))]),
        (MMUEXT_INVLPG_ALL, guest.va(2), 0, [("page", guest.va(2))]),
        (MMUEXT_INVLPG_MULTI, guest.va(2), mask, [("page", guest.va(2))]),
        (MMUEXT_INVLPG_LOCAL, 0xFFFF_8000_0000_0000, 0, []),
        (MMUEXT_INVLPG_ALL, 0x8000_0000_0000_0000, 0, []),
    ):
        hv.engine.calls.clear()
        assert extended(guest, (command, arg1, arg2)) == 0
        assert flushes(hv) == expected
    for command in (MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI):
        assert extended(guest, (command, guest.va(2), 0x10)) == -EFAULT


def test_the_ldt(guest: Guest) -> None:
    assert extended(guest, (MMUEXT_SET_LDT, guest.va(3), 8)) == 0
    assert (guest.vcpu.ldt_base, guest.vcpu.ldt_entries) == (guest.va(3), 8)
    for base, entries in ((guest.va(3, 8), 8), (guest.va(3), 8193), (0xFFFF_8000_0000_0000, 8), (1 << 63, 1)):
        assert extended(guest, (MMUEXT_SET_LDT, base, entries)) == -EINVAL
    assert guest.vcpu.ldt_entries == 8
    assert extended(guest, (MMUEXT_SET_LDT, 0xDEAD_BEEF, 0)) == 0, "the address of nothing does not matter"
    assert guest.vcpu.ldt_entries == 0


def test_caches_are_flushed_by_who_has_hardware(guest: Guest) -> None:
    assert extended(guest, (MMUEXT_FLUSH_CACHE, 0, 0)) == -EACCES
    assert extended(guest, (MMUEXT_FLUSH_CACHE_GLOBAL, 0, 0)) == -EINVAL
    guest.domain.iomem_ranges = [(0x9000, 0x9000)]
    assert extended(guest, (MMUEXT_FLUSH_CACHE, 0, 0), (MMUEXT_FLUSH_CACHE_GLOBAL, 0, 0)) == 0


def test_pages_are_cleared_and_copied(hv: Bench, guest: Guest) -> None:
    before = snapshot(hv)
    guest.put(guest.va(3), b"abc" * 100)
    assert extended(guest, (MMUEXT_COPY_PAGE, guest.data[4], guest.data[3])) == 0
    assert bytes(hv.ram.frame(guest.data[4])) == bytes(hv.ram.frame(guest.data[3]))
    assert extended(guest, (MMUEXT_CLEAR_PAGE, guest.data[3], 0)) == 0
    assert not any(hv.ram.frame(guest.data[3]))
    other = hv.guest()
    for target, source in ((guest.l1, guest.data[3]), (other.data[0], guest.data[3]), (guest.data[3], other.data[0])):
        assert extended(guest, (MMUEXT_COPY_PAGE, target, source)) == -EINVAL
    assert extended(guest, (MMUEXT_CLEAR_PAGE, guest.l1, 0)) == -EINVAL
    hv.destroy_domain(other.domain)
    assert snapshot(hv)[: guest.l4 + 1] == before[: guest.l4 + 1]


def test_tables_of_others_are_pinned_by_control_only(hv: Bench, guest: Guest, control: Guest) -> None:
    mfn = hv.give(guest.domain, 1)[0]
    theirs = guest.domain.domid
    assert extended(control, (MMUEXT_PIN_L4_TABLE, mfn, 0), domid=theirs) == 0
    assert extended(control, (MMUEXT_UNPIN_TABLE, mfn, 0), domid=theirs) == 0
    for command in (MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR, MMUEXT_TLB_FLUSH_LOCAL, MMUEXT_SET_LDT):
        assert extended(control, (command, mfn, 0), domid=theirs) == -EPERM
    assert extended(guest, (MMUEXT_PIN_L4_TABLE, mfn, 0), domid=control.domain.domid) == -EPERM
    assert extended(guest, (MMUEXT_PIN_L4_TABLE, mfn, 0), domid=DOMID_XEN) == -EPERM
    assert extended(guest, (MMUEXT_PIN_L4_TABLE, mfn, 0), domid=999) == -ESRCH


@pytest.mark.parametrize("command", [14, 19, 20, 99, (1 << 32) - 1])
def test_operations_that_do_not_exist(guest: Guest, command: int) -> None:
    assert extended(guest, (command, 0, 0)) == -ENOSYS


# -- descriptor tables -------------------------------------------------------------------------------------------------


def test_a_gdt_is_set_from_a_list(hv: Bench, guest: Guest) -> None:
    mfns = hv.give(guest.domain, 2)
    hv.table(mfns[0], {1: FLAT_DATA & ~(3 << 45)})
    guest.put(guest.va(0), mfns)
    assert guest.call(HYPERVISOR_set_gdt, guest.va(0), 520) == 0
    assert (guest.vcpu.gdt_mfns, guest.vcpu.gdt_entries) == (mfns, 520)
    assert hv.entry(mfns[0], 1) == FLAT_DATA, "with privilege 3"
    assert guest.call(HYPERVISOR_set_gdt, guest.va(0), 0) == 0
    assert all(hv.frames.count[mfn] == 1 for mfn in mfns)


@pytest.mark.parametrize(("entries", "result"), [(7169, -EINVAL), ((1 << 32) - 1, -EINVAL), (1 << 32, 0)])
def test_a_gdt_has_an_end(guest: Guest, entries: int, result: int) -> None:
    assert guest.call(HYPERVISOR_set_gdt, guest.va(0), entries) == result


def test_a_gdt_that_is_refused_leaves_the_old_one(hv: Bench, guest: Guest) -> None:
    mfns = hv.give(guest.domain, 2)
    guest.put(guest.va(0), mfns)
    assert guest.call(HYPERVISOR_set_gdt, guest.va(0), 600) == 0
    for bad in (guest.data[0], guest.l1, 0, hv.guest().data[0]):
        guest.put(guest.va(0), [mfns[0], bad])
        assert guest.call(HYPERVISOR_set_gdt, guest.va(0), 600) == -EINVAL
    for pointer in (0, 0xFFFF_8000_0000_0000, 1 << 63):
        assert guest.call(HYPERVISOR_set_gdt, pointer, 600) == -EFAULT
    assert guest.vcpu.gdt_mfns == mfns
    assert hv.frames.type_count[mfns[0]] == 1


def test_descriptors_are_updated_where_they_are(hv: Bench, guest: Guest) -> None:
    mfn = hv.give(guest.domain, 1)[0]
    guest.put(guest.va(0), [mfn])
    assert guest.call(HYPERVISOR_set_gdt, guest.va(0), 512) == 0
    assert guest.call(HYPERVISOR_update_descriptor, mfn << 12 | 24, FLAT_DATA & ~(3 << 45)) == 0
    assert hv.entry(mfn, 3) == FLAT_DATA
    assert guest.call(HYPERVISOR_update_descriptor, guest.maddr(3), 0) == 0, "in ordinary memory, too"
    for maddr in (mfn << 12 | 4, guest.l1 << 12, hv.guest().maddr(0), 0, hv.frames.total << 12, 1 << 63):
        assert guest.call(HYPERVISOR_update_descriptor, maddr, 0) == -EINVAL
    assert guest.call(HYPERVISOR_update_descriptor, mfn << 12, 0x0000_8200_0000_0000) == -EINVAL
