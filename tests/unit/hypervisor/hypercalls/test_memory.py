"""memory_op: giving frames back, asking for more, exchanging them, and the questions about memory."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.support import Bench, Guest
from xenolith.abi.errno import EFAULT, EINVAL, ENOMEM, ENOSYS, EPERM, ESRCH
from xenolith.abi.hypercalls import HYPERVISOR_memory_op
from xenolith.abi.memory import (
    MEMOP_EXTENT_SHIFT,
    XenAddToPhysmap,
    XenMachphysMapping,
    XenMachphysMfnList,
    XENMEM_add_to_physmap,
    XENMEM_current_reservation,
    XENMEM_decrease_reservation,
    XENMEM_exchange,
    XENMEM_increase_reservation,
    XENMEM_machine_memory_map,
    XENMEM_machphys_mapping,
    XENMEM_machphys_mfn_list,
    XENMEM_maximum_gpfn,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_memory_map,
    XENMEM_populate_physmap,
    XenMemoryDomain,
    XenMemoryExchange,
    XenMemoryMap,
    XenMemoryReservation,
)
from xenolith.abi.shared_info import SharedInfo
from xenolith.abi.types import DOMID_SELF
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.hypercalls import memory, mmu
from xenolith.hypervisor.hypercalls.table import Continuation

INVALID = (1 << 64) - 1
LIST, LIST_OUT = 2, 3
"""Data pages that hold lists of frames."""


@pytest.fixture
def guest() -> Guest:
    return Bench(1024).guest(pages=8)


@pytest.fixture
def control() -> Guest:
    return Bench(1024).guest(pages=8, capabilities=Capability.ALL)


def frames(guest: Guest, count: int) -> list[int]:
    """Frames of the guest that are mapped nowhere."""
    return guest.hv.give(guest.domain, count)


def listed(guest: Guest, page: int, count: int) -> list[int]:
    return [guest.word(guest.va(page, index * 8)) for index in range(count)]


def reserve(
    guest: Guest, command: int, values: list[int], order: int = 0, domid: int = DOMID_SELF, flags: int = 0
) -> int:
    guest.put(guest.va(LIST), values)
    argument = XenMemoryReservation(guest.va(LIST), len(values), order, flags, domid)
    return guest.op(HYPERVISOR_memory_op, command, argument)


# -- decrease ----------------------------------------------------------------------------------------------------------


def test_frames_are_given_back(guest: Guest) -> None:
    mfns, free = frames(guest, 4), guest.hv.frames.free_frames
    had = guest.domain.tot_frames
    assert reserve(guest, XENMEM_decrease_reservation, mfns) == 4
    assert guest.hv.frames.free_frames == free + 4
    assert guest.domain.tot_frames == had - 4
    assert all(guest.hv.m2p[mfn] == INVALID for mfn in mfns)


def test_a_run_of_frames_is_given_back_as_one_extent(guest: Guest) -> None:
    run = guest.hv.frames.allocate_contiguous(guest.domain.domid, 3, 1024)
    guest.domain.tot_frames += 8
    free = guest.hv.frames.free_frames
    assert reserve(guest, XENMEM_decrease_reservation, [run[0]], order=3) == 1
    assert guest.hv.frames.free_frames == free + 8


def test_the_first_frame_that_cannot_be_given_back_ends_it(guest: Guest) -> None:
    mine = frames(guest, 3)
    for bad in (0, guest.hv.frames.total, INVALID, guest.domain.shared_info_mfn, mine[0]):
        values = [frames(guest, 1)[0], bad, frames(guest, 1)[0]]
        if bad == mine[0]:
            assert reserve(guest, XENMEM_decrease_reservation, [bad]) == 1
        assert reserve(guest, XENMEM_decrease_reservation, values) == 1
        assert guest.hv.frames.owner[values[2]] == guest.domain.domid


def test_a_frame_in_use_is_freed_when_its_last_use_ends(guest: Guest) -> None:
    mfn, had = guest.data[6], guest.domain.tot_frames
    assert reserve(guest, XENMEM_decrease_reservation, [mfn]) == 1
    assert guest.hv.frames.owner[mfn] == guest.domain.domid
    assert guest.domain.tot_frames == had
    guest.hv.pagetables.update_l1(guest.l1 << 12 | 7 << 3, 0, guest.domain, guest.domain.domid)
    assert guest.hv.frames.owner[mfn] == -1
    assert guest.domain.tot_frames == had - 1


def test_a_pinned_table_that_is_given_back_is_unpinned(guest: Guest) -> None:
    mfn = frames(guest, 1)[0]
    mmu.pin(guest.hv, guest.domain, mfn, 2)
    assert reserve(guest, XENMEM_decrease_reservation, [mfn]) == 1
    assert guest.hv.frames.owner[mfn] == -1


# -- increase and populate ---------------------------------------------------------------------------------------------


def test_populate_gives_frames_for_pfns(guest: Guest) -> None:
    had = guest.domain.tot_frames
    assert reserve(guest, XENMEM_populate_physmap, [0x100, 0x200]) == 2
    first, second = listed(guest, LIST, 2)
    assert (guest.hv.m2p[first], guest.hv.m2p[second]) == (0x100, 0x200)
    assert {guest.hv.frames.owner[first], guest.hv.frames.owner[second]} == {guest.domain.domid}
    assert guest.domain.tot_frames == had + 2


def test_a_large_extent_is_adjacent_and_aligned(guest: Guest) -> None:
    assert reserve(guest, XENMEM_populate_physmap, [0x100], order=3) == 1
    first = listed(guest, LIST, 1)[0]
    assert first % 8 == 0
    assert [guest.hv.m2p[first + offset] for offset in range(8)] == list(range(0x100, 0x108))


def test_increase_tells_the_frames_only_where_there_is_a_list(guest: Guest) -> None:
    had = guest.domain.tot_frames
    assert reserve(guest, XENMEM_increase_reservation, [0, 0]) == 2
    assert all(guest.hv.frames.owner[mfn] == guest.domain.domid for mfn in listed(guest, LIST, 2))
    argument = XenMemoryReservation(0, 3, 0, 0, DOMID_SELF)
    assert guest.op(HYPERVISOR_memory_op, XENMEM_increase_reservation, argument) == 3
    assert guest.domain.tot_frames == had + 5


def test_a_domain_has_no_more_than_its_limit(guest: Guest) -> None:
    guest.domain.max_frames = guest.domain.tot_frames + 2
    assert reserve(guest, XENMEM_populate_physmap, [1, 2, 3, 4]) == 2
    assert guest.domain.tot_frames == guest.domain.max_frames
    assert reserve(guest, XENMEM_populate_physmap, [1], order=1) == 0


def test_a_domain_has_no_more_than_there_is(guest: Guest) -> None:
    guest.domain.max_frames = 1 << 20
    guest.hv.frames.allocate(0x7F00, guest.hv.frames.free_frames - 1)
    assert reserve(guest, XENMEM_populate_physmap, [1, 2]) == 1


@pytest.mark.parametrize(("bits", "done"), [(0, 1), (64, 1), (255, 1), (22, 1), (21, 1), (13, 0), (12, 0), (1, 0)])
def test_frames_below_an_address(guest: Guest, bits: int, done: int) -> None:
    assert reserve(guest, XENMEM_populate_physmap, [1], flags=bits | 0xFFFF_FF00) == done
    if done:
        assert listed(guest, LIST, 1)[0] << 12 < 1 << (bits or 64)


@pytest.mark.parametrize("command", [XENMEM_increase_reservation, XENMEM_decrease_reservation, XENMEM_populate_physmap])
def test_nothing_is_done_for_impossible_requests(guest: Guest, command: int) -> None:
    had = guest.domain.tot_frames
    assert reserve(guest, command, [0x100], order=10) == 0
    assert reserve(guest, command, [0x100], order=(1 << 32) - 1) == 0
    assert reserve(guest, command, [0x100], domid=77) == 0
    assert reserve(guest, command, []) == 0
    assert guest.call(HYPERVISOR_memory_op, command, 0) == 0
    assert guest.call(HYPERVISOR_memory_op, command | 5 << MEMOP_EXTENT_SHIFT, 0x7777_0000) == 5
    argument = XenMemoryReservation(guest.va(LIST), (1 << 64) - 1, 0, 0, DOMID_SELF)
    assert guest.op(HYPERVISOR_memory_op, command, argument) == 0
    assert guest.domain.tot_frames == had


def test_a_continued_call_goes_on_where_it_was(guest: Guest) -> None:
    mfns = frames(guest, 3)
    guest.put(guest.va(LIST), mfns)
    argument = XenMemoryReservation(guest.va(LIST), 3, 0, 0, DOMID_SELF)
    assert guest.op(HYPERVISOR_memory_op, XENMEM_decrease_reservation | 1 << MEMOP_EXTENT_SHIFT, argument) == 3
    assert [guest.hv.frames.owner[mfn] for mfn in mfns] == [guest.domain.domid, -1, -1]


def test_long_work_is_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_FRAMES_IN_A_PART", 1024)
    guest = Bench(8192).guest()
    guest.domain.max_frames = 8192
    vaddr = guest.put(guest.va(0), XenMemoryReservation(0, 3000, 0, 0, DOMID_SELF))
    had, command = guest.domain.tot_frames, XENMEM_increase_reservation
    for done in (1024, 2048):
        with pytest.raises(Continuation) as rest:
            guest.call(HYPERVISOR_memory_op, command, vaddr)
        command = XENMEM_increase_reservation | done << MEMOP_EXTENT_SHIFT
        assert rest.value.arguments == (command, vaddr)
    assert guest.call(HYPERVISOR_memory_op, command, vaddr) == 3000
    assert guest.domain.tot_frames == had + 3000


def test_only_control_acts_on_others(guest: Guest, control: Guest) -> None:
    other = guest.hv.domain(4)
    assert reserve(guest, XENMEM_populate_physmap, [1], domid=other.domid) == -EPERM
    other = control.hv.domain(4)
    had = other.tot_frames
    assert reserve(control, XENMEM_populate_physmap, [1], domid=other.domid) == 1
    assert reserve(control, XENMEM_populate_physmap, [1], order=4, domid=other.domid) == 1
    assert other.tot_frames == had + 17


# -- exchange ----------------------------------------------------------------------------------------------------------


def exchange(
    guest: Guest, given: list[int], in_order: int = 0, out_order: int = 0, flags: int = 0, **changes: int
) -> tuple[int, int]:
    """The result and how many extents the hypervisor says were exchanged. The pfns wanted count from 0x100."""
    count = (len(given) << in_order) >> out_order
    guest.put(guest.va(LIST), given)
    guest.put(guest.va(LIST_OUT), [0x100 + (index << out_order) for index in range(count)])
    argument = XenMemoryExchange()
    argument.in_ = XenMemoryReservation(guest.va(LIST), len(given), in_order, 0, DOMID_SELF)
    argument.out = XenMemoryReservation(guest.va(LIST_OUT), count, out_order, flags, DOMID_SELF)
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        setattr(getattr(argument, part) if part else argument, field, value)
    result = guest.op(HYPERVISOR_memory_op, XENMEM_exchange, argument)
    return result, argument.nr_exchanged


def test_single_frames_become_a_run(guest: Guest) -> None:
    given, had = frames(guest, 8), guest.domain.tot_frames
    assert exchange(guest, given, out_order=3) == (0, 8)
    first = listed(guest, LIST_OUT, 1)[0]
    assert first % 8 == 0
    assert [guest.hv.m2p[first + offset] for offset in range(8)] == list(range(0x100, 0x108))
    assert all(guest.hv.frames.owner[mfn] == -1 and guest.hv.m2p[mfn] == INVALID for mfn in given)
    assert guest.domain.tot_frames == had


def test_a_run_becomes_single_frames(guest: Guest) -> None:
    run = guest.hv.frames.allocate_contiguous(guest.domain.domid, 3, 1024)
    guest.domain.tot_frames += 8
    had = guest.domain.tot_frames
    assert exchange(guest, [run[0]], in_order=3) == (0, 1)
    fresh = listed(guest, LIST_OUT, 8)
    assert len(set(fresh)) == 8
    assert [guest.hv.m2p[mfn] for mfn in fresh] == list(range(0x100, 0x108))
    assert guest.domain.tot_frames == had


def test_frames_below_an_address_are_had_by_exchange(guest: Guest) -> None:
    given = frames(guest, 200)[-2:]
    assert exchange(guest, given, flags=64 | 0xFFFF_FF00)[0] == 0
    low = guest.hv.give(guest.domain, 1)
    guest.hv.frames.release_allocation(low[0])
    top = guest.hv.frames.allocate_top(guest.domain.domid, 1)
    guest.domain.tot_frames += 1
    assert exchange(guest, top, flags=22 | 0xFFFF_FF00)[0] == 0
    assert listed(guest, LIST_OUT, 1)[0] < 1024
    assert exchange(guest, listed(guest, LIST_OUT, 1), flags=12)[0] == -ENOMEM


def test_what_was_done_before_a_bad_frame_is_told(guest: Guest) -> None:
    good, more = frames(guest, 2), frames(guest, 1)
    had = guest.domain.tot_frames
    assert exchange(guest, [*good, guest.data[0], *more]) == (-EINVAL, 2)
    assert all(guest.hv.frames.owner[mfn] == guest.domain.domid for mfn in listed(guest, LIST_OUT, 2))
    assert guest.hv.frames.owner[more[0]] == guest.domain.domid
    assert guest.domain.tot_frames == had


def test_frames_that_cannot_be_exchanged(guest: Guest) -> None:
    twice = frames(guest, 1) * 2
    assert exchange(guest, twice, out_order=1) == (-EINVAL, 0)
    for bad in (guest.data[0], guest.l1, 0, guest.hv.frames.total, INVALID, guest.domain.shared_info_mfn):
        assert exchange(guest, [bad]) == (-EINVAL, 0)


def test_where_there_is_no_run_everything_stays(guest: Guest) -> None:
    hv = guest.hv
    guest.domain.max_frames = 2000
    mine = hv.give(guest.domain, hv.frames.free_frames)
    for mfn in (mine[0], mine[2], mine[4]):
        hv.frames.release_allocation(mfn)
    had, free = guest.domain.tot_frames, hv.frames.free_frames
    assert exchange(guest, mine[10:12], out_order=1) == (-ENOMEM, 0)
    run = next(mfn for mfn in mine[20:] if mfn % 4 == 0)
    assert exchange(guest, [run], in_order=2) == (-ENOMEM, 0), "four are needed while three are free"
    assert (guest.domain.tot_frames, hv.frames.free_frames) == (had, free)
    assert hv.frames.owner[run] == guest.domain.domid


def test_a_list_that_cannot_be_written_loses_no_frame(guest: Guest) -> None:
    given = frames(guest, 2)
    had, free = guest.domain.tot_frames, guest.hv.frames.free_frames
    read_only = guest.table_va(guest.l1)
    assert exchange(guest, given, out_order=1, out__extent_start=read_only) == (-EFAULT, 0)
    assert guest.domain.tot_frames == had
    assert guest.hv.frames.free_frames == free


@pytest.mark.parametrize(
    ("changes", "errno"),
    [
        ({"out__domid": 5}, EINVAL),
        ({"nr_exchanged": 3}, EINVAL),
        ({"nr_exchanged": INVALID}, EINVAL),
        ({"out__nr_extents": 3}, EINVAL),
        ({"in___nr_extents": 1 << 63, "out__nr_extents": 1 << 63}, EINVAL),
        ({"in___nr_extents": INVALID, "out__nr_extents": INVALID}, EINVAL),
        ({"out__extent_order": 10}, EPERM),
        ({"in___extent_order": 0xFFFF_FFFF}, EPERM),
        ({"in___domid": 99, "out__domid": 99}, ESRCH),
        ({"in___extent_start": 0x1000}, EFAULT),
        ({"out__extent_start": 1 << 63}, EFAULT),
    ],
)
def test_exchanges_that_make_no_sense(guest: Guest, changes: dict[str, int], errno: int) -> None:
    assert exchange(guest, frames(guest, 2), **changes)[0] == -errno


def test_large_exchanges_need_hardware_or_control(guest: Guest) -> None:
    assert exchange(guest, [1], in_order=10, out_order=10)[0] == -EPERM
    guest.domain.iomem_ranges = [(0x9000, 0x9000)]
    assert exchange(guest, [1], in_order=10, out_order=10)[0] == -EINVAL


def test_an_exchange_is_done_in_parts() -> None:
    guest = Bench(2048).guest()
    given = frames(guest, 150)
    argument = XenMemoryExchange()
    guest.put(guest.va(LIST), given)
    argument.in_ = XenMemoryReservation(guest.va(LIST), 150, 0, 0, DOMID_SELF)
    argument.out = XenMemoryReservation(guest.va(LIST_OUT), 150, 0, 0, DOMID_SELF)
    vaddr = guest.put(guest.va(0), argument)
    for _ in range(2):
        with pytest.raises(Continuation) as rest:
            guest.call(HYPERVISOR_memory_op, XENMEM_exchange, vaddr)
        assert rest.value.arguments == (XENMEM_exchange, vaddr)
    assert guest.call(HYPERVISOR_memory_op, XENMEM_exchange, vaddr) == 0
    assert len(set(listed(guest, LIST_OUT, 150))) == 150


# -- questions ---------------------------------------------------------------------------------------------------------


def test_reservations_and_the_end_of_memory(guest: Guest) -> None:
    ask = XenMemoryDomain(DOMID_SELF)
    assert guest.op(HYPERVISOR_memory_op, XENMEM_current_reservation, ask) == guest.domain.tot_frames
    assert guest.op(HYPERVISOR_memory_op, XENMEM_maximum_reservation, ask) == guest.domain.max_frames
    assert guest.call(HYPERVISOR_memory_op, XENMEM_maximum_ram_page, 0) == 1024


@pytest.mark.parametrize(("said", "answer"), [(0, 0), (1, 0), (0x8000, 0x7FFF)])
def test_the_last_pfn_is_what_the_domain_says(guest: Guest, said: int, answer: int) -> None:
    at = (guest.domain.shared_info_mfn << 12) + SharedInfo.arch.offset  # type: ignore[attr-defined]
    guest.hv.ram.words[at >> 3] = said
    assert guest.op(HYPERVISOR_memory_op, XENMEM_maximum_gpfn, XenMemoryDomain(DOMID_SELF)) == answer


@pytest.mark.parametrize("command", [XENMEM_current_reservation, XENMEM_maximum_reservation, XENMEM_maximum_gpfn])
def test_questions_about_others_need_control(guest: Guest, control: Guest, command: int) -> None:
    other = guest.hv.domain(2)
    assert guest.op(HYPERVISOR_memory_op, command, XenMemoryDomain(other.domid)) == -EPERM
    assert guest.op(HYPERVISOR_memory_op, command, XenMemoryDomain(55)) == -ESRCH
    other = control.hv.domain(2)
    assert control.op(HYPERVISOR_memory_op, command, XenMemoryDomain(other.domid)) >= 0


def test_the_m2p_is_where_the_header_says(guest: Guest) -> None:
    answer = XenMachphysMapping()
    assert guest.op(HYPERVISOR_memory_op, XENMEM_machphys_mapping, answer) == 0
    assert (answer.v_start, answer.v_end) == (0xFFFF_8000_0000_0000, 0xFFFF_8040_0000_0000)
    assert answer.max_mfn == (answer.v_end - answer.v_start) // 8 - 1


def test_the_m2ps_frames(guest: Guest) -> None:
    argument = XenMachphysMfnList(4, guest.va(LIST), 0)
    assert guest.op(HYPERVISOR_memory_op, XENMEM_machphys_mfn_list, argument) == 0
    assert argument.nr_extents == 1
    assert listed(guest, LIST, 1) == guest.hv.xenspace.m2p_chunks()
    argument = XenMachphysMfnList(0, guest.va(LIST), 9)
    assert guest.op(HYPERVISOR_memory_op, XENMEM_machphys_mfn_list, argument) == 0
    assert argument.nr_extents == 0
    argument = XenMachphysMfnList(4, guest.table_va(guest.l1), 0)
    assert guest.op(HYPERVISOR_memory_op, XENMEM_machphys_mfn_list, argument) == -EFAULT


def test_a_memory_map_is_what_the_builder_gave(guest: Guest) -> None:
    argument = XenMemoryMap(8, guest.va(LIST))
    assert guest.op(HYPERVISOR_memory_op, XENMEM_memory_map, argument) == -ENOSYS
    guest.domain.memory_map = [(0, 0xA0000, 1), (0x100000, 0x700000, 2)]
    assert guest.op(HYPERVISOR_memory_op, XENMEM_memory_map, argument) == 0
    assert argument.nr_entries == 2
    packed = guest.hv.memory.read(guest.vcpu, guest.va(LIST), 40)
    assert packed[20:] == (0x100000).to_bytes(8, "little") + (0x700000).to_bytes(8, "little") + b"\2\0\0\0"
    argument = XenMemoryMap(1, guest.va(LIST_OUT))
    assert guest.op(HYPERVISOR_memory_op, XENMEM_memory_map, argument) == 0
    assert argument.nr_entries == 1
    assert not any(guest.hv.memory.read(guest.vcpu, guest.va(LIST_OUT, 20), 20))


def test_the_machines_memory_map_is_for_who_has_the_hardware(guest: Guest, control: Guest) -> None:
    assert guest.op(HYPERVISOR_memory_op, XENMEM_machine_memory_map, XenMemoryMap(8, guest.va(LIST))) == -EPERM
    argument = XenMemoryMap(8, control.va(LIST))
    assert control.op(HYPERVISOR_memory_op, XENMEM_machine_memory_map, argument) == 0
    assert argument.nr_entries == 1
    assert listed(control, LIST, 2) == [0, 1024 << 12]
    assert control.op(HYPERVISOR_memory_op, XENMEM_machine_memory_map, XenMemoryMap(0, control.va(LIST))) == -EINVAL


def test_a_pv_domain_has_no_physmap_of_xens(guest: Guest) -> None:
    assert guest.op(HYPERVISOR_memory_op, XENMEM_add_to_physmap, XenAddToPhysmap(DOMID_SELF)) == -EINVAL


def test_questions_are_not_continued(guest: Guest) -> None:
    ask = XenMemoryDomain(DOMID_SELF)
    command = XENMEM_current_reservation | 1 << MEMOP_EXTENT_SHIFT
    assert guest.op(HYPERVISOR_memory_op, command, ask) == -EINVAL
    assert guest.call(HYPERVISOR_memory_op, 63, 0) == -ENOSYS
    assert guest.hv.unimplemented[HYPERVISOR_memory_op, 63] == 1


def test_a_pointer_to_nowhere_is_the_callers_fault(guest: Guest) -> None:
    for vaddr in (0, 0xFFFF_8000_0000_0000, 0x8000_0000_0000_0000, INVALID, guest.va(50)):
        assert guest.call(HYPERVISOR_memory_op, XENMEM_current_reservation, vaddr) == -EFAULT
        assert guest.call(HYPERVISOR_memory_op, XENMEM_exchange, vaddr) == -EFAULT
    assert guest.call(HYPERVISOR_memory_op, XENMEM_machphys_mapping, guest.table_va(guest.l1)) == -EFAULT
