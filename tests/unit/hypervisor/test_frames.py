"""The frame table: given out once, counted exactly, one type at a time; and with page tables against a model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.hypervisor.frame_model import L1, L4, NOBODY, SEG, WRITABLE, XEN_SLOTS, Frame, Model, Refused
from tests.unit.hypervisor.support import Bench
from xenolith.abi.errno import EINVAL, ENOMEM, XenError
from xenolith.abi.memory import XenMemoryExchange
from xenolith.abi.mmu import MMU_MACHPHYS_UPDATE, MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_PRESERVE_AD
from xenolith.hypervisor import frames as frame_table
from xenolith.hypervisor.domain import Domain
from xenolith.hypervisor.frames import (
    FLAG_ALLOCATED,
    FLAG_EXECUTABLE,
    FLAG_PINNED,
    NOT_RAM,
    TYPE_L1,
    TYPE_NONE,
    TYPE_WRITABLE,
    FrameTable,
)
from xenolith.hypervisor.hypercalls import memory, mmu
from xenolith.machine.ram import Ram

ME, OTHER = 1, 2


@pytest.fixture
def frames() -> FrameTable:
    table = FrameTable(Ram(1 << 20))
    table.add_ram(1, 255)
    return table


@given(
    taken=st.lists(st.integers(1, 255), max_size=60, unique=True),
    order=st.integers(0, 5),
    highest=st.integers(0, 300),
    count=st.integers(1, 6),
    window=st.sampled_from([1, 8, 64, 1 << 14]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_runs_are_the_highest_free_ones(
    monkeypatch: pytest.MonkeyPatch, taken: list[int], order: int, highest: int, count: int, window: int
) -> None:
    """However many frames are looked at together."""
    monkeypatch.setattr(frame_table, "_SEARCHED_AT_ONCE", window)
    table = FrameTable(Ram(1 << 20))
    table.add_ram(1, 255)
    table.owners[taken] = OTHER
    size = 1 << order
    end = min(256, highest + 1) // size * size
    free = [at for at in range(0, end, size) if all(table.owner[mfn] == NOBODY for mfn in range(at, at + size))]
    if len(free) < count:
        with pytest.raises(XenError):
            table.allocate_runs(ME, order, highest, count)
    else:
        assert table.allocate_runs(ME, order, highest, count).tolist() == free[-count:]


# -- giving out --------------------------------------------------------------------------------------------------------


def test_frames_are_given_out_once_in_ascending_order(frames: FrameTable) -> None:
    first, second = frames.allocate(ME, 10), frames.allocate(OTHER, 20)
    assert first == sorted(first)
    assert second == sorted(second)
    assert not set(first) & set(second)
    assert frames.owned_by(ME) == first
    assert frames.free_frames == 225


def test_more_than_there_is_takes_nothing(frames: FrameTable) -> None:
    with pytest.raises(XenError) as caught:
        frames.allocate(ME, 256)
    assert caught.value.errno == ENOMEM
    assert frames.free_frames == 255
    assert len(frames.allocate(ME, 255)) == 255
    with pytest.raises(XenError):
        frames.allocate(ME, 1)


def test_frame_zero_and_what_is_no_memory_are_never_given_out(frames: FrameTable) -> None:
    assert 0 not in frames.allocate(ME, 255)
    assert frames.owner[0] == NOT_RAM


def test_many_frames_at_once_do_not_collide_with_single_ones() -> None:
    table = FrameTable(Ram(4096 << 12))
    table.add_ram(0, 4096)
    given: list[int] = table.allocate(ME, 3)
    given += table.allocate(ME, 1000)
    given += table.allocate(ME, 3)
    given += table.allocate_contiguous(ME, 9, 4095)
    given += table.allocate_top(ME, 5)
    given += table.allocate(ME, table.free_frames)
    assert sorted(given) == list(range(4096))


def test_frames_that_come_back_behind_the_search_are_found_again(frames: FrameTable) -> None:
    given = frames.allocate(ME, 255)
    for mfn in (given[3], given[200]):
        frames.release_allocation(mfn)
    assert frames.allocate(OTHER, 2) == [given[3], given[200]]


def test_frames_that_come_back_are_used_before_new_ones() -> None:
    frames = FrameTable(Ram(8192 << 12))
    frames.add_ram(1, 8191)
    seen: set[int] = set()
    for size in (700, 30, 700, 1) * 20:
        mfns = frames.allocate(ME, size)
        seen.update(mfns)
        frames.release_allocations(np.array(mfns[size // 2 :]))
        for mfn in mfns[: size // 2]:
            frames.release_allocation(mfn)
    assert len(seen) < 2000
    assert frames.free_frames == 8191


def test_a_run_is_adjacent_aligned_and_below_the_limit(frames: FrameTable) -> None:
    run = frames.allocate_contiguous(ME, 4, 100)
    assert run == list(range(run[0], run[0] + 16))
    assert run[0] % 16 == 0
    assert run[-1] <= 100
    assert frames.free_frames == 239


@pytest.mark.parametrize(("order", "highest"), [(8, 255), (18, 255), (4, 14), (0, 0)])
def test_a_run_that_there_is_not_is_refused(frames: FrameTable, order: int, highest: int) -> None:
    with pytest.raises(XenError) as caught:
        frames.allocate_contiguous(ME, order, highest)
    assert caught.value.errno == ENOMEM
    assert frames.free_frames == 255


def test_the_top_must_be_adjacent(frames: FrameTable) -> None:
    assert frames.allocate_top(ME, 2) == [254, 255]
    given = frames.allocate(ME, 253)
    frames.release_allocation(given[-1])
    frames.release_allocation(given[-3])
    with pytest.raises(XenError):
        frames.allocate_top(ME, 2)


def test_old_contents_and_old_code_are_gone_before_a_frame_is_given_to_anybody(frames: FrameTable) -> None:
    forgotten: list[tuple[int, int]] = []
    frames.invalidate_code = lambda maddr, size: forgotten.append((maddr, size))
    mfn = frames.allocate(ME, 1)[0]
    frames.ram.frame(mfn)[:] = b"\xcc" * 4096
    frames.flags[mfn] |= FLAG_EXECUTABLE
    frames.release_allocation(mfn)
    assert mfn in frames.allocate(OTHER, 255)
    assert not any(frames.ram.frame(mfn))
    assert forgotten == [(mfn << 12, 4096)]
    assert frames.flags[mfn] == FLAG_ALLOCATED


# -- counting ----------------------------------------------------------------------------------------------------------


def test_the_last_reference_frees_a_frame_and_tells_of_it(frames: FrameTable) -> None:
    told: list[tuple[int, int]] = []
    frames.on_free = lambda mfn, domid: told.append((mfn, domid))
    mfn = frames.allocate(ME, 1)[0]
    assert frames.get_page(mfn, ME)
    frames.release_allocation(mfn)
    assert told == []
    frames.put_page(mfn)
    assert told == [(mfn, ME)]
    assert not frames.get_page(mfn, ME)


@pytest.mark.parametrize("mfn", [-1, 0, 256, 1 << 40, 1 << 64])
def test_what_is_no_frame_of_the_domain_gives_no_reference(frames: FrameTable, mfn: int) -> None:
    frames.allocate(ME, 255)
    assert not frames.get_page(mfn, ME)
    with pytest.raises(XenError) as caught:
        frames.get_page_and_type(mfn, ME, TYPE_WRITABLE)
    assert caught.value.errno == EINVAL


def test_a_frame_is_given_back_once(frames: FrameTable) -> None:
    mfn = frames.allocate(ME, 1)[0]
    frames.get_page(mfn, ME)
    frames.release_allocation(mfn)
    with pytest.raises(XenError) as caught:
        frames.release_allocation(mfn)
    assert caught.value.errno == EINVAL
    assert frames.count[mfn] == 1


def test_one_type_excludes_every_other_until_its_last_use_ends(frames: FrameTable) -> None:
    mfn = frames.allocate(ME, 1)[0]
    frames.get_page_and_type(mfn, ME, TYPE_WRITABLE)
    frames.get_page_and_type(mfn, ME, TYPE_WRITABLE)
    with pytest.raises(XenError, match="in use as writable \\(2 uses\\), not free to be L1"):
        frames.get_page_and_type(mfn, ME, TYPE_L1)
    assert (frames.count[mfn], frames.type_count[mfn]) == (3, 2)
    frames.put_page_and_type(mfn)
    frames.put_page_and_type(mfn)
    frames.get_page_and_type(mfn, ME, TYPE_L1)
    assert frames.type[mfn] == TYPE_L1


def test_a_table_is_validated_at_its_first_use_and_devalidated_at_its_last(frames: FrameTable) -> None:
    log: list[tuple[str, int, int]] = []
    frames.validate = lambda mfn, kind: log.append(("in", mfn, kind))
    frames.devalidate = lambda mfn, kind: log.append(("out", mfn, kind))
    mfn = frames.allocate(ME, 1)[0]
    frames.get_page_and_type(mfn, ME, TYPE_L1)
    frames.get_page_and_type(mfn, ME, TYPE_L1)
    frames.put_page_and_type(mfn)
    assert log == [("in", mfn, TYPE_L1)]
    frames.put_page_and_type(mfn)
    assert log == [("in", mfn, TYPE_L1), ("out", mfn, TYPE_L1)]


def test_a_table_that_is_refused_has_no_type(frames: FrameTable) -> None:
    def refuse(mfn: int, kind: int) -> None:
        raise XenError(EINVAL, "no")

    frames.validate = refuse
    mfn = frames.allocate(ME, 1)[0]
    with pytest.raises(XenError):
        frames.get_page_and_type(mfn, ME, TYPE_L1)
    assert (frames.count[mfn], frames.type_count[mfn], frames.type[mfn]) == (1, 0, TYPE_NONE)


# -- stale translations ------------------------------------------------------------------------------------------------


@pytest.fixture
def flushes(frames: FrameTable) -> list[int]:
    log: list[int] = []

    def flush() -> None:
        log.append(frames.epoch)
        frames.flushed()

    frames.flush = flush
    return log


def test_a_frame_that_was_writable_becomes_a_table_only_after_a_flush(frames: FrameTable, flushes: list[int]) -> None:
    mfn = frames.allocate(ME, 1)[0]
    frames.get_page_and_type(mfn, ME, TYPE_WRITABLE)
    frames.put_page_and_type(mfn)
    frames.get_page_and_type(mfn, ME, TYPE_WRITABLE)
    frames.put_page_and_type(mfn)
    assert not flushes
    frames.get_page_and_type(mfn, ME, TYPE_L1)
    assert len(flushes) == 1


def test_a_flush_that_happened_meanwhile_is_not_done_again(frames: FrameTable, flushes: list[int]) -> None:
    mfn = frames.allocate(ME, 1)[0]
    frames.get_page_and_type(mfn, ME, TYPE_WRITABLE)
    frames.put_page_and_type(mfn)
    frames.flushed()
    frames.get_page_and_type(mfn, ME, TYPE_L1)
    assert not flushes


def test_a_freed_frame_has_a_new_owner_only_after_a_flush(frames: FrameTable, flushes: list[int]) -> None:
    everything = frames.allocate(ME, 255)
    frames.release_allocation(everything[7])
    frames.allocate(OTHER, 1)
    assert len(flushes) == 1


def test_flushes_are_counted_beyond_32_bits(frames: FrameTable, flushes: list[int]) -> None:
    everything = frames.allocate(ME, 255)
    frames.epoch_counter.value = (1 << 32) - 1
    frames.release_allocation(everything[0])
    frames.flushed()
    frames.release_allocation(everything[1])
    frames.allocate(OTHER, 2)
    assert len(flushes) == 1


# -- the whole against a model -----------------------------------------------------------------------------------------

TOTAL = 192
DEVICES = range(0x100000, 0x100010)
INVALID_M2P = (1 << 64) - 1

indices = st.integers(0, 15)
low = st.integers(0, 7)
"""Of a domain's frames the first eight tend to be tables, and the others what these map."""
high = st.integers(8, 15)
slots = st.one_of(st.integers(0, 3), st.integers(0, 3), st.integers(254, 272), st.just(511))
kinds = st.integers(L1, L4)
domains = st.integers(0, 2)
TABLE_FLAGS = (0x1, 0x3, 0x5, 0x7, 0x23, 0x63)
READ_ONLY_FLAGS = (0x1, 0x5, 0x21, 0x165, 0x8000_0000_0000_0001, 0x10_0000_0000_0005)
WRITABLE_FLAGS = (0x3, 0x7, 0x8000_0000_0000_0067)
BAD_FLAGS = (0x0, 0x81, 0x11, 0x9, 0x101, 0x83, 0x200)
entries = st.one_of(
    st.tuples(st.tuples(st.just("own"), low), st.sampled_from(TABLE_FLAGS)),
    st.tuples(st.tuples(st.just("own"), indices), st.sampled_from(READ_ONLY_FLAGS)),
    st.tuples(st.tuples(st.just("own"), high), st.sampled_from(WRITABLE_FLAGS)),
    st.tuples(st.tuples(st.just("table"), indices), st.sampled_from(TABLE_FLAGS)),
    st.tuples(st.tuples(st.just("table"), indices), st.sampled_from((0x1, 0x5))),
    st.tuples(st.tuples(st.sampled_from(["other", "xen", "device"]), indices), st.sampled_from((0x1, 0x3, 0x11))),
    st.tuples(st.tuples(st.just("nowhere"), st.sampled_from([0, TOTAL, 0xFF_FFFF_FFFF])), st.sampled_from((0x1, 0x0))),
    st.tuples(st.tuples(st.just("own"), indices), st.sampled_from(BAD_FLAGS)),
)
"""What an entry refers to, and its flags."""
tables = st.one_of(
    st.tuples(st.just("table"), indices),
    st.tuples(st.just("table"), indices),
    st.tuples(st.just("own"), low),
)
whats = st.one_of(
    tables,
    st.tuples(st.just("own"), indices),
    st.tuples(st.sampled_from(["other", "xen", "device"]), indices),
    st.tuples(st.just("nowhere"), st.sampled_from([0, TOTAL, 0xFF_FFFF_FFFF])),
)


class FramesAndTables(RuleBasedStateMachine):
    """Three domains, of which one has device memory, do to the frame table what they like; the model follows."""

    @initialize()
    def start(self) -> None:
        self.hv = Bench(TOTAL)
        self.table = self.hv.frames
        self.model = Model(self.xen_slots)
        self.model.frames = {mfn: Frame() for mfn in range(1, TOTAL)}
        self.scratch = self.table.allocate(-3, 1)[0]
        self.domains: list[Domain] = []
        self.held: list[tuple[int, bool]] = []
        self.maybe_writable: set[int] = set()
        self.maybe_mapped: set[tuple[int, int]] = set()
        self.hv.memory.walk = self.walk  # type: ignore[method-assign]
        self.hv.engine.flush_all = self.note_cached  # type: ignore[method-assign]
        self.hv.engine.load_root = lambda maddr: self.note_cached()  # type: ignore[method-assign]
        for number in range(3):
            self.domains.append(self.create(with_devices=number == 2))
        self.note_cached()

    def walk(self, root: int, vaddr: int, needed: int = 1) -> int:
        """Handlers find their arguments in the scratch frame."""
        return self.scratch << 12 | vaddr & 0xFFF

    def xen_slots(self, domid: int) -> dict[int, int]:
        scratch = self.scratch
        self.hv.xenspace.fill_slots(scratch, self.hv.domains[domid])
        return {slot: self.hv.entry(scratch, slot) for slot in XEN_SLOTS}

    def create(self, with_devices: bool) -> Domain:
        domain = self.hv.create_domain("d", 40, 1, memory.Capability.NONE)
        if with_devices:
            domain.iomem_ranges = [(DEVICES.start, DEVICES.stop - 1)]
            self.model.devices[domain.domid] = DEVICES
        for mfn in (domain.shared_info_mfn, *domain.grants.frames):
            self.model.frames[mfn] = Frame(domain.domid, 1, WRITABLE, 1, shared=True)
        mfns = self.table.allocate(domain.domid, 14)
        domain.tot_frames += 14
        self.model.allocated(mfns, domain.domid)
        return domain

    # -- choices ------------------------------------------------------------------------------------------------------

    def frames_of(self, domid: int) -> list[int]:
        return [mfn for mfn, frame in self.model.frames.items() if frame.owner == domid]

    def pick(self, domid: int, index: int) -> int:
        found = self.frames_of(domid)
        return found[index % len(found)] if found else 0

    def kind(self, mfn: int) -> int:
        frame = self.model.frames.get(mfn)
        return frame.type if frame is not None and frame.type_count else TYPE_NONE

    def entry(self, domain: Domain, what: tuple[tuple[str, int], int]) -> int:
        return self.number(domain, what[0]) << 12 & 0x000F_FFFF_FFFF_F000 | what[1]

    def number(self, domain: Domain, what: tuple[str, int]) -> int:
        where, index = what
        if where == "nowhere":
            return index
        if where == "device":
            return DEVICES.start + index
        if where == "xen":
            mine = [mfn for mfn in range(1, TOTAL) if self.table.owner[mfn] not in self.hv.domains]
            return mine[index * 7 % len(mine)]
        if where == "table":
            mine = [mfn for mfn in self.frames_of(domain.domid) if L1 <= self.kind(mfn) <= L4]
            return mine[index % len(mine)] if mine else self.pick(domain.domid, index)
        if where == "other":
            domain = self.domains[(self.domains.index(domain) + 1) % 3]
        return self.pick(domain.domid, index)

    def both(self, real: Any, expected: Any) -> bool:
        """Do it to both; either both refuse, or both do it."""
        try:
            real()
            error = None
        except XenError as caught:
            error = caught
        try:
            expected()
            reason = None
        except Refused as caught_too:
            reason = caught_too
        assert (error is None) == (reason is None), f"the model says {reason}, the hypervisor {error}"
        return error is None

    # -- what the guest does by itself --------------------------------------------------------------------------------

    def writable(self, mfn: int) -> bool:
        frame = self.model.frames.get(mfn)
        return frame is not None and (not frame.type_count or frame.type == WRITABLE) and not frame.shared

    def store(self, mfn: int, slot: int, entry: int) -> None:
        self.hv.table(mfn, {slot: entry})
        self.model.write(mfn, slot, entry)

    @rule(who=domains, where=low, slot=slots, what=entries)
    def write(self, who: int, where: int, slot: int, what: tuple[tuple[str, int], int]) -> None:
        domain = self.domains[who]
        mfn = self.pick(domain.domid, where)
        if self.writable(mfn):
            self.store(mfn, slot, self.entry(domain, what))

    @rule(who=domains, where=indices)
    def clear(self, who: int, where: int) -> None:
        mfn = self.pick(self.domains[who].domid, where)
        if self.writable(mfn):
            self.hv.ram.clear(mfn)
            self.model.words.pop(mfn, None)

    @rule(
        who=domains,
        path=st.permutations(range(8)),
        kind=kinds,
        slot=slots,
        count=st.sampled_from([0, 3, 24, 25, 40, 256]),
        bits=st.sampled_from((READ_ONLY_FLAGS[0], READ_ONLY_FLAGS[4], *WRITABLE_FLAGS)),
        odd=st.one_of(st.none(), st.none(), entries),
    )
    def build(
        self,
        who: int,
        path: list[int],
        kind: int,
        slot: int,
        count: int,
        bits: int,
        odd: tuple[tuple[str, int], int] | None,
    ) -> None:
        """Tables that lead from one to the next down to one that maps `count` frames, and maybe one odd entry more."""
        domain = self.domains[who]
        chain = [self.pick(domain.domid, index) for index in path[:kind]]
        if not all(self.writable(mfn) for mfn in chain):
            return
        for mfn in chain:
            self.hv.ram.clear(mfn)
            self.model.words.pop(mfn, None)
        for number in range(count):
            self.store(chain[0], number, self.pick(domain.domid, 8 + number % 8) << 12 | bits)
        for lower, upper in pairwise(chain):
            self.store(upper, slot if slot not in XEN_SLOTS else 0, lower << 12 | 7)
        if odd is not None:
            self.store(chain[len(chain) // 2], 300, self.entry(domain, odd))
        self.pin_frame(domain, chain[-1], kind)

    # -- hypercalls ---------------------------------------------------------------------------------------------------

    def pin_frame(self, domain: Domain, mfn: int, kind: int) -> None:
        self.both(lambda: mmu.pin(self.hv, domain, mfn, kind), lambda: self.model.pin(mfn, domain.domid, kind))

    @rule(who=domains, what=whats, kind=kinds)
    def pin(self, who: int, what: tuple[str, int], kind: int) -> None:
        domain = self.domains[who]
        self.pin_frame(domain, self.number(domain, what), kind)

    @rule(who=domains, what=tables)
    def unpin(self, who: int, what: tuple[str, int]) -> None:
        domain = self.domains[who]
        mfn = self.number(domain, what)
        self.both(lambda: mmu.unpin(self.hv, domain, mfn), lambda: self.model.unpin(mfn, domain.domid))

    @rule(
        who=domains,
        where=tables,
        slot=slots,
        what=entries,
        foreign=st.sampled_from([0, 0, 0, 1]),
        kind=st.sampled_from([MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_PRESERVE_AD]),
    )
    def update(
        self, who: int, where: tuple[str, int], slot: int, what: tuple[tuple[str, int], int], foreign: int, kind: int
    ) -> None:
        """Also of entries that map frames of another domain, as only a control domain may ask for."""
        domain = self.domains[who]
        owner = self.domains[(who + foreign) % 3].domid
        mfn, entry = self.number(domain, where), self.entry(domain, what)
        pointer = mfn << 12 | slot << 3 | kind
        keep = kind == MMU_PT_UPDATE_PRESERVE_AD
        frame = self.model.frames.get(mfn)
        if frame is not None and frame.shared:
            return
        self.both(
            lambda: mmu.update_entry(self.hv, domain.vcpus[0], pointer, entry, domain, owner),
            lambda: self.model.update(mfn, slot, entry, domain.domid, owner, keep),
        )

    @rule(who=domains, what=whats, value=st.integers(0, INVALID_M2P))
    def update_m2p(self, who: int, what: tuple[str, int], value: int) -> None:
        domain = self.domains[who]
        mfn = self.number(domain, what)
        frame = self.model.frames.get(mfn)
        mine = frame is not None and frame.owner == domain.domid

        def expected() -> None:
            if not mine:
                raise Refused("not its own")

        pointer = mfn << 12 | MMU_MACHPHYS_UPDATE
        if self.both(
            lambda: mmu.update_entry(self.hv, domain.vcpus[0], pointer, value, domain, domain.domid), expected
        ):
            assert self.hv.m2p[mfn] == value

    @rule(who=domains, what=whats)
    def new_base(self, who: int, what: tuple[str, int]) -> None:
        domain = self.domains[who]
        vcpu = domain.vcpus[0]
        mfn, old = self.number(domain, what), vcpu.kernel_root >> 12

        def expected() -> None:
            if mfn != old:
                with self.model.all_or_nothing():
                    self.model.get_both(mfn, domain.domid, L4)
                if old:
                    self.model.put_both(old)

        done = self.both(lambda: mmu.new_base(self.hv, vcpu, mfn), expected) if mfn else False
        assert vcpu.kernel_root >> 12 == (mfn if done else old)

    @rule(who=domains, what=whats)
    def new_user_base(self, who: int, what: tuple[str, int]) -> None:
        domain = self.domains[who]
        vcpu = domain.vcpus[0]
        mfn, old = self.number(domain, what), vcpu.user_root >> 12

        def expected() -> None:
            if mfn == old:
                return
            if mfn:
                with self.model.all_or_nothing():
                    self.model.get_both(mfn, domain.domid, L4)
            if old:
                self.model.put_both(old)

        done = self.both(lambda: mmu.new_user_base(self.hv, vcpu, mfn), expected)
        assert vcpu.user_root >> 12 == (mfn if done else old)

    @rule(who=domains, where=st.lists(whats, max_size=3))
    def set_gdt(self, who: int, where: list[tuple[str, int]]) -> None:
        domain = self.domains[who]
        vcpu = domain.vcpus[0]
        mfns, old = [self.number(domain, what) for what in where], list(vcpu.gdt_mfns)

        def expected() -> None:
            with self.model.all_or_nothing():
                for mfn in mfns:
                    self.model.get_both(mfn, domain.domid, SEG)
            for mfn in old:
                self.model.put_both(mfn)

        done = self.both(lambda: self.hv.descriptors.set_gdt(vcpu, mfns, len(mfns) * 512), expected)
        assert vcpu.gdt_mfns == (mfns if done else old)

    @rule(who=domains, what=st.one_of(whats, st.tuples(st.just("own"), high)))
    def give_back(self, who: int, what: tuple[str, int]) -> None:
        domain = self.domains[who]
        mfn = self.number(domain, what)
        done = self.both(
            lambda: memory.give_back(self.hv, domain, mfn), lambda: self.model.give_back(mfn, domain.domid)
        )
        if done:
            assert self.hv.m2p[mfn] == INVALID_M2P

    @rule(who=domains, count=st.integers(1, 6))
    def allocate(self, who: int, count: int) -> None:
        domain = self.domains[who]
        if len(self.frames_of(domain.domid)) < 30:
            mfns = self.table.allocate(domain.domid, count)
            domain.tot_frames += count
            self.model.allocated(mfns, domain.domid)

    @rule(who=domains, where=st.lists(whats, min_size=1, max_size=4))
    def exchange(self, who: int, where: list[tuple[str, int]]) -> None:
        """One, two or four frames for one run of as many."""
        domain = self.domains[who]
        order = len(where).bit_length() - 1
        given = [self.number(domain, what) for what in where[: 1 << order]]
        self.hv.ram.clear(self.scratch)
        self.hv.table(self.scratch, dict(enumerate(given)) | {64: 0x1000})
        argument = XenMemoryExchange()
        argument.in_.extent_start, argument.in_.nr_extents, argument.in_.domid = 0, len(given), domain.domid
        argument.out.extent_start, argument.out.nr_extents, argument.out.domid = 512, 1, domain.domid
        argument.out.extent_order = order

        def expected() -> None:
            with self.model.all_or_nothing():
                for mfn in given:
                    frame = self.model.frames.get(mfn)
                    if frame is None or (frame.owner, frame.count, frame.type_count) != (domain.domid, 1, 0):
                        raise Refused("in use, or not the domain's")
                    self.model.release(mfn)

        at = 2048
        self.hv.memory.write_machine(self.scratch << 12 | at, argument.to_bytes())
        if self.both(lambda: memory.exchange(self.hv, domain.vcpus[0], at), expected):
            first = self.hv.entry(self.scratch, 64)
            fresh = list(range(first, first + len(given)))
            self.model.allocated(fresh, domain.domid)
            assert [self.hv.m2p[mfn] for mfn in fresh] == [0x1000 + at for at in range(len(given))]

    # -- references of others -----------------------------------------------------------------------------------------

    @rule(who=domains, what=whats, to_write=st.booleans())
    def hold(self, who: int, what: tuple[str, int], to_write: bool) -> None:
        """As grants and registered areas do."""
        domain = self.domains[who]
        mfn = self.number(domain, what)

        def real() -> None:
            if to_write:
                self.table.get_page_and_type(mfn, domain.domid, TYPE_WRITABLE)
            elif not self.table.get_page(mfn, domain.domid):
                raise XenError(EINVAL)

        def expected() -> None:
            with self.model.all_or_nothing():
                self.model.get(mfn, domain.domid)
                if to_write:
                    self.model.get_type(mfn, WRITABLE)

        if self.both(real, expected):
            self.held.append((mfn, to_write))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 100))
    def let_go(self, which: int) -> None:
        mfn, to_write = self.held.pop(which % len(self.held))
        if to_write:
            self.table.put_page_and_type(mfn)
            self.model.put_both(mfn)
        else:
            self.table.put_page(mfn)
            self.model.put(mfn)

    @precondition(lambda self: self.held)
    @rule(who=domains, where=tables, slot=slots, which=st.integers(0, 100))
    def map_held(self, who: int, where: tuple[str, int], slot: int, which: int) -> None:
        """What is held goes into a page table, as a mapped grant does; the table has the reference then."""
        domain = self.domains[who]
        mfn, to_write = self.held[which % len(self.held)]
        table = self.number(domain, where)
        entry = mfn << 12 | (0x8000_0000_0000_0165 | (2 if to_write else 0))
        frame = self.model.frames.get(table)

        def expected() -> None:
            if frame is None or frame.type != L1 or not frame.type_count:
                raise Refused("no L1 table")
            old = self.model.read(table, slot)
            self.model.write(table, slot, entry)
            if old & 1:
                self.model.put_l1e(old)

        if self.both(lambda: self.hv.pagetables.map_grant_pte(domain, table << 12 | slot << 3, entry), expected):
            self.held.remove((mfn, to_write))

    @rule(who=domains, where=tables, slot=slots)
    def unmap_to_hold(self, who: int, where: tuple[str, int], slot: int) -> None:
        domain = self.domains[who]
        table = self.number(domain, where)
        frame = self.model.frames.get(table)
        old = self.model.read(table, slot)
        mfn = (old & 0x000F_FFFF_FFFF_F000) >> 12

        def expected() -> None:
            if frame is None or frame.type != L1 or not frame.type_count or not old & 1:
                raise Refused("no entry of an L1 table")
            self.model.write(table, slot, 0)

        real = self.hv.pagetables.unmap_grant_pte
        if self.both(lambda: real(domain, table << 12 | slot << 3, mfn, 0), expected) and mfn in self.model.frames:
            self.held.append((mfn, bool(old & 2)))

    # -- ends ---------------------------------------------------------------------------------------------------------

    @rule(who=domains)
    def destroy(self, who: int) -> None:
        """The domain goes, with all that it has; what others hold of it stays theirs; a new one comes."""
        domain = self.domains[who]
        vcpu, domid = domain.vcpus[0], domain.domid
        ends = [*vcpu.gdt_mfns, vcpu.kernel_root >> 12, vcpu.user_root >> 12]
        self.hv.destroy_domain(domain)
        for mfn in filter(None, ends):
            self.model.put_both(mfn)
        for mfn in self.frames_of(domid):
            if self.model.frames[mfn].pinned:
                self.model.unpin(mfn, domid)
        for mfn in self.frames_of(domid):
            if self.model.frames[mfn].allocated:
                self.model.release(mfn)
            elif self.model.frames[mfn].shared:
                self.model.put_both(mfn)
        self.compare()
        self.domains[who] = self.create(with_devices=who == 2)

    def teardown(self) -> None:
        """In the end nobody has anything."""
        if not hasattr(self, "domains"):
            return
        for domain in self.domains:
            self.hv.destroy_domain(domain)
        for mfn, to_write in self.held:
            (self.table.put_page_and_type if to_write else self.table.put_page)(mfn)
        owners = {self.table.owner[mfn] for mfn in range(1, TOTAL)}
        assert all(owner < 0 or owner > 0x7FF0 for owner in owners), f"frames are left with {owners}"

    # -- the comparison -----------------------------------------------------------------------------------------------

    @invariant()
    def compare(self) -> None:
        table = self.table
        free = 0
        for mfn, frame in self.model.frames.items():
            owner = table.owner[mfn]
            free += owner == NOBODY
            if frame.owner == NOBODY:
                assert owner == NOBODY or owner not in self.hv.domains, f"frame {mfn} is not free, but of {owner}"
                continue
            found = (owner, table.count[mfn], table.type_count[mfn], table.type[mfn] if table.type_count[mfn] else 0)
            assert found == (frame.owner, frame.count, frame.type_count, frame.type if frame.type_count else 0), mfn
            assert bool(table.flags[mfn] & FLAG_PINNED) == frame.pinned
            assert bool(table.flags[mfn] & FLAG_ALLOCATED) == frame.allocated
            if not frame.shared:
                self.compare_words(mfn)
        assert free == table.free_frames
        for domain in self.domains:
            if domain.domid in self.hv.domains:
                mine = [self.model.frames[mfn] for mfn in self.frames_of(domain.domid)]
                assert domain.tot_frames == sum(not frame.shared for frame in mine)

    def compare_words(self, mfn: int) -> None:
        words = np.frombuffer(self.hv.ram.frame(mfn), dtype=np.uint64)
        found = {int(slot): int(words[slot]) for slot in np.flatnonzero(words)}
        assert found == {slot: word for slot, word in self.model.words.get(mfn, {}).items() if word}, mfn

    # -- what the processor may still have cached ---------------------------------------------------------------------

    def note_cached(self) -> None:
        """Translations are forgotten now: those that the tables allow may be in the processor's cache again at once."""
        self.maybe_writable, self.maybe_mapped = self.mapped_now()

    def mapped_now(self) -> tuple[set[int], set[tuple[int, int]]]:
        table = self.table
        guests = [mfn for mfn in range(1, TOTAL) if table.owner[mfn] >= 0]
        writable = {mfn for mfn in guests if table.type_count[mfn] and table.type[mfn] == TYPE_WRITABLE}
        return writable, {(mfn, table.owner[mfn]) for mfn in guests if table.count[mfn] > 1}

    @invariant()
    def no_stale_translation_matters(self) -> None:
        table = self.table
        for mfn in self.maybe_writable:
            kind = table.type[mfn] if table.type_count[mfn] else TYPE_NONE
            assert kind in (TYPE_NONE, TYPE_WRITABLE), f"frame {mfn} is a {kind} and may still be written to"
        for mfn, owner in self.maybe_mapped:
            assert table.owner[mfn] in (owner, NOBODY), f"frame {mfn} of {owner} has a new owner and may still be seen"
        writable, mapped = self.mapped_now()
        self.maybe_writable |= writable
        self.maybe_mapped |= mapped


TestFramesAndTables = FramesAndTables.TestCase
TestFramesAndTables.settings = settings(
    max_examples=60, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)
