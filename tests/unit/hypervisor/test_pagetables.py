"""Page tables entry by entry: what each may say, what it takes and gives back, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hypervisor.support import GLOBAL, NX, PSE, RW, USER, A, Bench, D, Guest, P, snapshot
from xenolith.abi.errno import EINVAL, EPERM, XenError
from xenolith.abi.types import DOMID_IO
from xenolith.hypervisor import pagetables
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.frames import (
    FLAG_EXECUTABLE,
    TYPE_L1,
    TYPE_L2,
    TYPE_L3,
    TYPE_L4,
    TYPE_SEG_DESC,
    TYPE_WRITABLE,
)
from xenolith.hypervisor.hypercalls import mmu
from xenolith.hypervisor.pagetables import GUEST_KERNEL, XEN_SLOT_FIRST, XEN_SLOT_LAST, adjust_l1e

PWT, PCD, PAT = 0x8, 0x10, 0x80


@pytest.fixture
def hv() -> Bench:
    return Bench()


@pytest.fixture
def domain(hv: Bench) -> Domain:
    return hv.domain(24)


@pytest.fixture
def mfns(hv: Bench, domain: Domain) -> list[int]:
    """Its ordinary frames."""
    return [mfn for mfn in hv.frames.owned_by(domain.domid) if hv.frames.flags[mfn] & 1]


def refused(hv: Bench, errno: int, action: object) -> XenError:
    """The action is refused with `errno`, and changes nothing in the frame table."""
    before = snapshot(hv)
    with pytest.raises(XenError) as caught:
        action()  # type: ignore[operator]
    assert caught.value.errno == errno
    assert snapshot(hv) == before
    return caught.value


# -- whose an entry is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "stored"),
    [
        (P, P | USER | GUEST_KERNEL),
        (P | USER, P | USER | GLOBAL),
        (P | USER | GUEST_KERNEL, P | USER | GUEST_KERNEL),
        (P | GLOBAL, P | GLOBAL | USER | GUEST_KERNEL),
        (P | RW | USER | NX, P | RW | USER | NX | GLOBAL),
    ],
)
def test_an_entry_is_readable_at_cpl_3_and_marked_as_the_kernels_or_the_users(entry: int, stored: int) -> None:
    assert adjust_l1e(entry) == stored


def test_every_level_is_made_readable_at_cpl_3_when_it_is_validated(hv: Bench) -> None:
    guest = hv.guest()
    assert all(hv.entry(table, slot) & USER for table, slot in ((guest.l4, 511), (guest.l3, 510), (guest.l2, 0)))
    assert hv.entry(guest.l1, 1) & (USER | GUEST_KERNEL) == USER | GUEST_KERNEL


# -- validating whole tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 24, 25, 512])
def test_a_table_refers_to_each_frame_once_for_each_entry(
    hv: Bench, domain: Domain, mfns: list[int], count: int
) -> None:
    table, data = mfns[0], mfns[1:5]
    hv.table(table, {slot: data[slot % 4] << 12 | P | (RW if slot % 4 < 2 else 0) for slot in range(count)})
    before = snapshot(hv)
    mmu.pin(hv, domain, table, TYPE_L1)
    for number, mfn in enumerate(data):
        uses = len(range(number, count, 4))
        assert hv.frames.count[mfn] == 1 + uses
        if number < 2 and uses:
            assert (hv.frames.type[mfn], hv.frames.type_count[mfn]) == (TYPE_WRITABLE, uses)
        else:
            assert hv.frames.type_count[mfn] == 0
    mmu.unpin(hv, domain, table)
    assert snapshot(hv) == before


L1_ENTRIES = st.tuples(
    st.integers(0, 12), st.sampled_from([P, P, P, P | RW, P | USER, P | NX, P | A | D, P | GLOBAL, 0, P | GUEST_KERNEL])
)
ODD = st.sampled_from(["none", "none", "cache", "foreign", "nowhere", "self", "writable self", "hypervisor", "table"])


@settings(max_examples=150, deadline=None)
@given(entries=st.lists(L1_ENTRIES, max_size=80), odd=ODD, odd_slot=st.integers(0, 80), data=st.data())
def test_checking_all_entries_at_once_does_what_checking_each_does(
    entries: list[tuple[int, int]], odd: str, odd_slot: int, data: st.DataObject
) -> None:
    devices = data.draw(st.booleans())
    results = []
    for few in (0, 1 << 20):
        hv = Bench(96)
        domain, other = hv.domain(16), hv.domain(1)
        domain.iomem_ranges = [(0x9000, 0x9000)] if devices else []
        table, second, *rest = (mfn for mfn in hv.frames.owned_by(domain.domid) if hv.frames.flags[mfn] & 1)
        odd_entry = {
            "none": 0,
            "cache": rest[0] << 12 | P | PCD,
            "foreign": hv.frames.owned_by(other.domid)[-1] << 12 | P,
            "nowhere": 0x9000 << 12 | P,
            "self": table << 12 | P,
            "writable self": table << 12 | P | RW,
            "hypervisor": hv.xenspace.m2p_chunks()[0] << 12 | P,
            "table": second << 12 | P | RW,
        }[odd]
        mmu.pin(hv, domain, second, TYPE_L1)
        content = {slot: rest[which] << 12 | bits for slot, (which, bits) in enumerate(entries)}
        hv.table(table, content | ({odd_slot: odd_entry} if odd_entry else {}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pagetables, "_FEW", few)
            steps = []
            for step in (mmu.pin, mmu.unpin):
                try:
                    step(hv, domain, table, *([TYPE_L1] if step is mmu.pin else []))  # type: ignore[operator]
                    outcome = "done"
                except XenError as error:
                    outcome = str(error)
                flags = bytes(hv.frames.flags) if outcome == "done" else b""
                steps.append((outcome, snapshot(hv), flags, bytes(hv.ram.frame(table))))
        results.append(steps)
    assert results[0] == results[1]


@pytest.mark.parametrize("at_once", [True, False])
def test_what_was_writable_since_the_last_flush_is_flushed_when_it_is_mapped_again(
    hv: Bench, domain: Domain, mfns: list[int], at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagetables, "_FEW", 0 if at_once else 600)
    table, data = mfns[:2]
    mmu.pin(hv, domain, data, TYPE_L1)
    mmu.unpin(hv, domain, data)
    hv.table(table, {0: data << 12 | P | RW})
    flushes = hv.engine.count("flush")
    mmu.pin(hv, domain, table, TYPE_L1)
    assert hv.engine.count("flush") == flushes + 1


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("no_execute", [0, NX])
def test_a_frame_is_noted_as_code_when_it_is_mapped_executable(
    hv: Bench, domain: Domain, mfns: list[int], at_once: bool, no_execute: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagetables, "_FEW", 0 if at_once else 600)
    hv.table(mfns[0], {3: mfns[1] << 12 | P | no_execute})
    mmu.pin(hv, domain, mfns[0], TYPE_L1)
    assert bool(hv.frames.flags[mfns[1]] & FLAG_EXECUTABLE) == (not no_execute)


def test_tables_are_validated_down_to_the_last_level(hv: Bench, domain: Domain, mfns: list[int]) -> None:
    l1, l2, l3, l4, data = mfns[:5]
    hv.table(l1, {7: data << 12 | P | RW})
    hv.table(l2, {6: l1 << 12 | P | RW})
    hv.table(l3, {5: l2 << 12 | P | RW})
    hv.table(l4, {4: l3 << 12 | P | RW})
    before = snapshot(hv)
    mmu.pin(hv, domain, l4, TYPE_L4)
    assert [hv.frames.type[mfn] for mfn in (l1, l2, l3, l4, data)] == [1, 2, 3, 4, TYPE_WRITABLE]
    assert all(hv.frames.type_count[mfn] == 1 for mfn in (l1, l2, l3, l4, data))
    mmu.unpin(hv, domain, l4)
    assert snapshot(hv) == before


def test_a_bad_entry_at_the_bottom_undoes_everything_above(hv: Bench, domain: Domain, mfns: list[int]) -> None:
    l1, l2, l3, l4, data, good = mfns[:6]
    hv.table(good, {0: data << 12 | P | RW})
    hv.table(l1, {7: 0x9000 << 12 | P})
    hv.table(l2, {5: good << 12 | P, 6: l1 << 12 | P})
    hv.table(l3, {5: l2 << 12 | P})
    hv.table(l4, {4: l3 << 12 | P})
    error = refused(hv, EINVAL, lambda: mmu.pin(hv, domain, l4, TYPE_L4))
    assert "0x9000" in str(error)


def test_a_table_is_shared_by_several_entries(hv: Bench, domain: Domain, mfns: list[int]) -> None:
    l1, l2 = mfns[:2]
    hv.table(l2, dict.fromkeys(range(512), l1 << 12 | P))
    mmu.pin(hv, domain, l2, TYPE_L2)
    assert (hv.frames.count[l1], hv.frames.type_count[l1]) == (513, 512)


def test_an_l4_gets_the_hypervisors_slots_whatever_it_had_there(hv: Bench, domain: Domain, mfns: list[int]) -> None:
    hv.table(mfns[0], dict.fromkeys(range(XEN_SLOT_FIRST, XEN_SLOT_LAST + 1), 0xDEAD_BEEF_F00D_F007))
    mmu.pin(hv, domain, mfns[0], TYPE_L4)
    entries = {slot: hv.entry(mfns[0], slot) for slot in range(XEN_SLOT_FIRST, XEN_SLOT_LAST + 1)}
    assert {slot for slot, entry in entries.items() if entry} == {256, 260}
    assert (entries[260] & pagetables.ADDRESS) >> 12 == domain.perdomain_l3_mfn


@pytest.mark.parametrize("kind", [TYPE_L2, TYPE_L3, TYPE_L4])
@pytest.mark.parametrize("bit", [PWT, PCD, PSE, GLOBAL])
def test_an_upper_entry_has_no_large_page_and_no_cache_attribute(
    hv: Bench, domain: Domain, mfns: list[int], kind: int, bit: int
) -> None:
    hv.table(mfns[0], {0: mfns[1] << 12 | P | bit})
    refused(hv, EINVAL, lambda: mmu.pin(hv, domain, mfns[0], kind))


@pytest.mark.parametrize("kind", [TYPE_L2, TYPE_L3, TYPE_L4])
def test_an_upper_entry_refers_to_a_frame_of_the_domain(hv: Bench, domain: Domain, mfns: list[int], kind: int) -> None:
    other = hv.domain(1)
    for mfn in (0, hv.frames.owned_by(other.domid)[-1], hv.frames.total, 0xFF_FFFF_FFFF, hv.xenspace.m2p_chunks()[0]):
        hv.table(mfns[0], {0: mfn << 12 | P})
        refused(hv, EINVAL, lambda: mmu.pin(hv, domain, mfns[0], kind))


def test_data_that_is_mapped_writable_is_no_table(hv: Bench, domain: Domain, mfns: list[int]) -> None:
    hv.table(mfns[0], {0: mfns[1] << 12 | P | RW})
    mmu.pin(hv, domain, mfns[0], TYPE_L1)
    for kind in (TYPE_L1, TYPE_L2, TYPE_L3, TYPE_L4, TYPE_SEG_DESC):
        refused(hv, EINVAL, lambda kind=kind: hv.frames.get_page_and_type(mfns[1], domain.domid, kind))
    hv.table(mfns[2], {0: mfns[1] << 12 | P})
    refused(hv, EINVAL, lambda: mmu.pin(hv, domain, mfns[2], TYPE_L2))


# -- tables that refer to their own level ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TYPE_L2, TYPE_L3, TYPE_L4])
def test_a_table_may_refer_to_itself_read_only(hv: Bench, domain: Domain, mfns: list[int], kind: int) -> None:
    hv.table(mfns[0], {3: mfns[0] << 12 | P})
    before = snapshot(hv)
    mmu.pin(hv, domain, mfns[0], kind)
    assert (hv.frames.count[mfns[0]], hv.frames.type_count[mfns[0]]) == (2, 1)
    mmu.unpin(hv, domain, mfns[0])
    assert snapshot(hv) == before
    hv.table(mfns[0], {3: mfns[0] << 12 | P | RW})
    refused(hv, EINVAL, lambda: mmu.pin(hv, domain, mfns[0], kind))


@pytest.mark.parametrize("kind", [TYPE_L2, TYPE_L3, TYPE_L4])
def test_linear_tables_make_no_chains(hv: Bench, domain: Domain, mfns: list[int], kind: int) -> None:
    first, second, third = mfns[:3]
    for mfn in (first, second, third):
        mmu.pin(hv, domain, mfn, kind)
    tables = hv.pagetables
    tables.update(second << 12, first << 12 | P, kind, domain, domain.domid)
    refused(hv, EINVAL, lambda: tables.update(third << 12, second << 12 | P, kind, domain, domain.domid))
    refused(hv, EINVAL, lambda: tables.update(first << 12, third << 12 | P, kind, domain, domain.domid))
    refused(hv, EINVAL, lambda: tables.update(first << 12, second << 12 | P, kind, domain, domain.domid))
    tables.update(second << 12, 0, kind, domain, domain.domid)
    tables.update(third << 12, second << 12 | P, kind, domain, domain.domid)
    tables.update(third << 12, 0, kind, domain, domain.domid)
    assert not tables.linear_uses
    assert not tables.linear_entries


def test_a_linear_reference_keeps_a_table_valid(hv: Bench, domain: Domain, mfns: list[int]) -> None:
    target, user, l1, data = mfns[:4]
    hv.table(l1, {0: data << 12 | P | RW})
    hv.table(target, {0: l1 << 12 | P})
    before = snapshot(hv)
    mmu.pin(hv, domain, target, TYPE_L2)
    hv.table(user, {0: target << 12 | P})
    mmu.pin(hv, domain, user, TYPE_L2)
    mmu.unpin(hv, domain, target)
    assert (hv.frames.type[target], hv.frames.type[data]) == (TYPE_L2, TYPE_WRITABLE)
    assert hv.frames.type_count[data] == 1
    mmu.unpin(hv, domain, user)
    assert snapshot(hv) == before


# -- changing one entry ------------------------------------------------------------------------------------------------


@pytest.fixture
def l1(hv: Bench, domain: Domain, mfns: list[int]) -> int:
    """A pinned L1 that maps its domain's frame 1 read-only in slot 0, and frame 2 writable in slot 1."""
    hv.table(mfns[0], {0: mfns[1] << 12 | P, 1: mfns[2] << 12 | P | RW})
    mmu.pin(hv, domain, mfns[0], TYPE_L1)
    return mfns[0]


def test_a_new_entry_takes_and_the_old_one_gives_back(hv: Bench, domain: Domain, mfns: list[int], l1: int) -> None:
    hv.pagetables.update_l1(l1 << 12 | 8, mfns[3] << 12 | P | RW, domain, domain.domid)
    assert (hv.frames.count[mfns[2]], hv.frames.type_count[mfns[2]]) == (1, 0)
    assert (hv.frames.count[mfns[3]], hv.frames.type_count[mfns[3]]) == (2, 1)
    hv.pagetables.update_l1(l1 << 12 | 8, 0, domain, domain.domid)
    assert hv.frames.count[mfns[3]] == 1
    assert hv.entry(l1, 1) == 0


def test_an_engine_with_shadows_is_told_what_is_gone(hv: Bench, domain: Domain, mfns: list[int], l1: int) -> None:
    """Each way to change a table that the processor may have walked."""
    engine, tables = hv.engine, hv.pagetables
    tables.watch(engine.mapping_removed, engine.table_entry_changed, engine.table_gone)

    def told(action: Callable[[], object]) -> list[tuple[object, ...]]:
        engine.calls.clear()
        action()
        return [call for call in engine.calls if call[0] in ("removed", "entry", "gone")]

    at = l1 << 12 | 80
    one, two = (mfn << 12 | P | RW for mfn in mfns[3:5])
    assert told(lambda: tables.update_l1(at, one, domain, domain.domid)) == [], "nothing was there"
    assert told(lambda: tables.update_l1(at, two, domain, domain.domid)) == [("removed", mfns[3])]
    assert told(lambda: tables.update_l1(at, two & ~RW, domain, domain.domid)) == [("removed", mfns[4])]
    assert told(lambda: tables.update_l1(at, two & ~RW | NX, domain, domain.domid)) == [("removed", mfns[4])]
    assert told(lambda: tables.update_l1(at, 0, domain, domain.domid)) == [("removed", mfns[4])]
    several, nothing = np.array([one, two], np.uint64), np.zeros(2, np.uint64)
    assert told(lambda: tables.update_l1s(at, several, domain)) == []
    assert told(lambda: tables.update_l1s(at, nothing, domain)) == [("removed", mfns[3]), ("removed", mfns[4])]


def test_translated_code_is_forgotten_when_a_kernel_makes_a_frame_executable_again(
    hv: Bench, domain: Domain, mfns: list[int], l1: int
) -> None:
    """A module's text may lie where another's was; a user's pages come and go with processes, and are left alone."""
    hv.frames.invalidate_code = hv.engine.invalidate_code
    at, mfn = l1 << 12 | 80, mfns[3]

    def forgotten(*entries: int) -> list[bool]:
        found = []
        for entry in entries:
            hv.engine.calls.clear()
            hv.pagetables.update_l1(at, entry, domain, domain.domid)
            found.append(("code", mfn << 12, 4096) in hv.engine.calls)
        return found

    kernels, users = mfn << 12 | P, mfn << 12 | P | USER
    assert forgotten(kernels) == [False], "nothing can have been executed before"
    assert forgotten(kernels | RW | NX, kernels | NX, kernels) == [False, False, True]
    assert forgotten(kernels, 0, kernels) == [False, False, True]
    stored = hv.entry(l1, 10)
    assert forgotten(stored | NX, stored) == [False, True], "as a guest reads it back"
    assert forgotten(users | NX, users, 0, users) == [False, False, False, False]


def test_an_engine_with_shadows_is_told_of_tables(hv: Bench, domain: Domain, mfns: list[int]) -> None:
    engine = hv.engine
    hv.pagetables.watch(engine.mapping_removed, engine.table_entry_changed, engine.table_gone)
    l2, l1, other = mfns[5:8]
    hv.ram.words[l2 << 9] = l1 << 12 | P
    mmu.pin(hv, domain, l2, TYPE_L2)
    engine.calls.clear()
    hv.pagetables.update(l2 << 12, other << 12 | P, TYPE_L2, domain, domain.domid)
    assert engine.calls == [("entry", l2 << 12), ("gone", l1)]
    mmu.unpin(hv, domain, l2)
    assert engine.calls[2:] == [("gone", l2), ("gone", other)]


def test_an_absent_entry_may_say_anything(hv: Bench, domain: Domain, l1: int) -> None:
    before = snapshot(hv)
    for entry in (0xFFFF_FFFF_FFFF_FFFE, 0x9000 << 12, PCD):
        hv.pagetables.update_l1(l1 << 12 | 80, entry, domain, domain.domid)
        assert hv.entry(l1, 10) == entry
    assert snapshot(hv) == before


@pytest.mark.parametrize("bits", [A, D, GLOBAL, USER, NX, 0x200, 0xE00, 1 << 58, GUEST_KERNEL])
def test_harmless_bits_change_without_a_new_reference(
    hv: Bench, domain: Domain, mfns: list[int], l1: int, bits: int
) -> None:
    before = snapshot(hv)
    hv.pagetables.update_l1(l1 << 12, mfns[1] << 12 | P | bits, domain, domain.domid)
    assert snapshot(hv) == before
    assert hv.entry(l1, 0) & bits == bits


def test_making_an_entry_executable_notes_the_code(hv: Bench, domain: Domain, mfns: list[int]) -> None:
    hv.table(mfns[0], {0: mfns[1] << 12 | P | NX})
    mmu.pin(hv, domain, mfns[0], TYPE_L1)
    hv.pagetables.update_l1(mfns[0] << 12, mfns[1] << 12 | P, domain, domain.domid)
    assert hv.frames.flags[mfns[1]] & FLAG_EXECUTABLE


def test_accessed_and_dirty_are_kept_where_that_is_asked(hv: Bench, domain: Domain, mfns: list[int], l1: int) -> None:
    update = hv.pagetables.update_l1
    update(l1 << 12, mfns[1] << 12 | P | A | D, domain, domain.domid)
    update(l1 << 12, mfns[3] << 12 | P, domain, domain.domid, True)
    assert hv.entry(l1, 0) & (A | D) == A | D
    update(l1 << 12, mfns[3] << 12 | P, domain, domain.domid)
    assert hv.entry(l1, 0) & (A | D) == 0
    mmu.pin(hv, domain, mfns[4], TYPE_L2)
    hv.pagetables.update(mfns[4] << 12, l1 << 12 | P | A, TYPE_L2, domain, domain.domid)
    hv.pagetables.update(mfns[4] << 12, l1 << 12 | P, TYPE_L2, domain, domain.domid, True)
    assert hv.entry(mfns[4], 0) == l1 << 12 | P | A | USER


@pytest.mark.parametrize("bit", [PWT, PCD, PAT])
def test_cache_attributes_need_hardware_of_ones_own(
    hv: Bench, domain: Domain, mfns: list[int], l1: int, bit: int
) -> None:
    entry = mfns[3] << 12 | P | bit
    refused(hv, EINVAL, lambda: hv.pagetables.update_l1(l1 << 12, entry, domain, domain.domid))
    domain.iomem_ranges = [(0x9000, 0x9001)]
    hv.pagetables.update_l1(l1 << 12, entry, domain, domain.domid)
    assert hv.entry(l1, 0) & bit


@pytest.mark.parametrize("capability", [Capability.NONE, Capability.HARDWARE])
def test_device_memory_is_for_who_was_given_it(hv: Bench, capability: Capability) -> None:
    domain = hv.domain(2, capabilities=capability)
    domain.iomem_ranges = [(0x9000, 0x9001)]
    table = hv.frames.owned_by(domain.domid)[-1]
    mmu.pin(hv, domain, table, TYPE_L1)
    update = hv.pagetables.update_l1
    for mfn in (0x9000, 0x9001):
        update(table << 12, mfn << 12 | P | RW | PCD, domain, domain.domid)
    for mfn in (0x8FFF, 0x9002, 0, 0xFF_FFFF_FFFF):
        errno = EPERM if capability else EINVAL
        refused(hv, errno, lambda mfn=mfn: update(table << 12, mfn << 12 | P, domain, domain.domid))
    mmu.unpin(hv, domain, table)


def test_an_entry_maps_frames_of_the_owner_that_was_named(hv: Bench, domain: Domain, mfns: list[int], l1: int) -> None:
    other = hv.domain(1)
    theirs = hv.frames.owned_by(other.domid)[-1]
    update = hv.pagetables.update_l1
    refused(hv, EINVAL, lambda: update(l1 << 12, theirs << 12 | P, domain, domain.domid))
    refused(hv, EINVAL, lambda: update(l1 << 12, mfns[3] << 12 | P, domain, other.domid))
    refused(hv, EPERM, lambda: update(l1 << 12, mfns[3] << 12 | P, domain, DOMID_IO))
    update(l1 << 12, theirs << 12 | P | RW, domain, other.domid)
    assert (hv.frames.count[theirs], hv.frames.type[theirs]) == (2, TYPE_WRITABLE)
    mmu.unpin(hv, domain, l1)
    assert (hv.frames.count[theirs], hv.frames.type_count[theirs]) == (1, 0)


def test_a_frame_of_a_domain_that_is_gone_stays_until_it_is_unmapped(hv: Bench, domain: Domain, l1: int) -> None:
    other = hv.domain(1)
    theirs = hv.frames.owned_by(other.domid)[-1]
    hv.pagetables.update_l1(l1 << 12, theirs << 12 | P | RW, domain, other.domid)
    hv.destroy_domain(other)
    assert hv.frames.count[theirs] == 1
    free = hv.frames.free_frames
    hv.pagetables.update_l1(l1 << 12, 0, domain, domain.domid)
    assert hv.frames.free_frames == free + 1


def test_a_table_maps_its_own_tables_read_only(hv: Bench, domain: Domain, l1: int) -> None:
    update = hv.pagetables.update_l1
    refused(hv, EINVAL, lambda: update(l1 << 12 | 16, l1 << 12 | P | RW, domain, domain.domid))
    update(l1 << 12 | 16, l1 << 12 | P, domain, domain.domid)
    refused(hv, EINVAL, lambda: update(l1 << 12 | 16, l1 << 12 | P | RW, domain, domain.domid))


@pytest.mark.parametrize("slot", range(XEN_SLOT_FIRST, XEN_SLOT_LAST + 1))
def test_the_hypervisors_slots_are_not_updated(hv: Bench, slot: int) -> None:
    guest = hv.guest()
    before = hv.entry(guest.l4, slot)
    for entry in (0, guest.l3 << 12 | P):
        arguments = (guest.l4 << 12 | slot << 3, entry, TYPE_L4, guest.domain, guest.domain.domid)
        refused(hv, EINVAL, lambda arguments=arguments: hv.pagetables.update(*arguments))
    assert hv.entry(guest.l4, slot) == before


def test_replacing_a_table_gives_back_all_that_it_mapped(hv: Bench) -> None:
    guest: Guest = hv.guest(pages=40)
    fresh = hv.give(guest.domain, 1)[0]
    hv.pagetables.update(guest.l2 << 12, fresh << 12 | P | RW, TYPE_L2, guest.domain, guest.domain.domid)
    assert all((hv.frames.count[mfn], hv.frames.type_count[mfn]) == (1, 0) for mfn in guest.data)
    assert hv.frames.type_count[guest.l1] == 0
    assert hv.frames.type[fresh] == TYPE_L1


# -- granted frames ----------------------------------------------------------------------------------------------------


def test_a_granted_frame_goes_into_an_entry_and_out_of_it(hv: Bench, domain: Domain, mfns: list[int], l1: int) -> None:
    frame = mfns[5]
    hv.frames.get_page_and_type(frame, domain.domid, TYPE_WRITABLE)
    entry = frame << 12 | P | RW | NX
    hv.pagetables.map_grant_pte(domain, l1 << 12 | 8, entry)
    assert hv.entry(l1, 1) == entry
    assert hv.frames.count[mfns[2]] == 1, "the entry that was there has given back its frame"
    assert hv.frames.count[frame] == 2
    hv.pagetables.unmap_grant_pte(domain, l1 << 12 | 8, frame, 0)
    assert hv.entry(l1, 1) == 0
    assert hv.frames.count[frame] == 2, "the references are the caller's again"


def test_granted_frames_go_only_into_l1_tables_of_the_domain(hv: Bench, domain: Domain, mfns: list[int]) -> None:
    guest = hv.guest()
    entry = mfns[5] << 12 | P
    places = [guest.l1 << 12, mfns[6] << 12, hv.frames.total << 12, 1 << 60, -8]
    for maddr in places:
        refused(hv, EINVAL, lambda maddr=maddr: hv.pagetables.map_grant_pte(domain, maddr, entry))
    for maddr in (guest.l2 << 12, guest.l4 << 12, guest.l1 << 12 | 4):
        refused(hv, EINVAL, lambda maddr=maddr: hv.pagetables.map_grant_pte(guest.domain, maddr, entry))


def test_only_the_entry_that_maps_the_frame_is_unmapped(hv: Bench, domain: Domain, mfns: list[int], l1: int) -> None:
    for frame, slot in ((mfns[2], 0), (mfns[1], 1), (mfns[1], 5)):
        refused(
            hv,
            EINVAL,
            lambda frame=frame, slot=slot: hv.pagetables.unmap_grant_pte(domain, l1 << 12 | slot << 3, frame, 0),
        )
    assert hv.entry(l1, 0) & P


# -- descriptor tables -------------------------------------------------------------------------------------------------


def test_unmapping_a_page_of_the_ldt_drops_the_ldt(hv: Bench) -> None:
    guest = hv.guest()
    page = guest.data[4]
    hv.pagetables.update_l1(guest.l1 << 12 | 5 << 3, page << 12 | P, guest.domain, guest.domain.domid)
    hv.descriptors.set_ldt(guest.vcpu, guest.va(4), 8)
    assert hv.descriptors.lookup(guest.vcpu, 4) == 0
    assert guest.vcpu.ldt_mfns == {0: page}
    hv.pagetables.update_l1(guest.l1 << 12 | 5 << 3, 0, guest.domain, guest.domain.domid)
    assert guest.vcpu.ldt_mfns == {}
    assert (hv.frames.count[page], hv.frames.type_count[page]) == (1, 0)
