"""Hypercalls about a vCPU's own state, and multicall."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hypervisor.support import NX, RW, USER, A, Bench, D, Guest, P, snapshot
from xenolith.abi.errno import EFAULT, EINVAL, ENOSYS
from xenolith.abi.hypercalls import (
    HYPERVISOR_callback_op,
    HYPERVISOR_fpu_taskswitch,
    HYPERVISOR_iret,
    HYPERVISOR_mmu_update,
    HYPERVISOR_multicall,
    HYPERVISOR_sched_op,
    HYPERVISOR_set_callbacks,
    HYPERVISOR_set_segment_base,
    HYPERVISOR_set_trap_table,
    HYPERVISOR_stack_switch,
    HYPERVISOR_update_va_mapping,
    HYPERVISOR_xen_version,
)
from xenolith.abi.sched import SCHEDOP_shutdown, SchedShutdown
from xenolith.abi.traps import (
    CALLBACKF_mask_events,
    CALLBACKOP_register,
    CALLBACKOP_unregister,
    CallbackRegister,
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_nmi,
    CALLBACKTYPE_syscall,
    CALLBACKTYPE_syscall32,
    CALLBACKTYPE_sysenter,
    CallbackUnregister,
    TrapInfo,
)
from xenolith.abi.types import DOMID_SELF
from xenolith.abi.x86_64 import SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL
from xenolith.cpu.registers import RAX, RIP, RSP
from xenolith.hypervisor.descriptors import FLAT_DATA
from xenolith.hypervisor.hypercalls.table import Continuation
from xenolith.hypervisor.shared_state import Callback, Gate

BAD_ADDRESSES = (0x8000_0000_0000_0000, 0x0000_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF)


@pytest.fixture
def guest(hv: Bench) -> Guest:
    return hv.guest()


# -- traps and callbacks -----------------------------------------------------------------------------------------------


def set_traps(guest: Guest, *traps: tuple[int, int, int, int]) -> int:
    data = b"".join(TrapInfo(*trap).to_bytes() for trap in (*traps, (0, 0, 0, 0)))
    guest.put(guest.va(0), data)
    return guest.call(HYPERVISOR_set_trap_table, guest.va(0))


def test_a_trap_table_is_taken_entry_by_entry(guest: Guest) -> None:
    assert set_traps(guest, (14, 0, 0xE033, 0x1000), (0x80, 3, 0xE030, 0x2000), (2, 4, 0xE033, 0x3000)) == 0
    assert guest.vcpu.traps[14] == Gate(0x1000, 0xE033, 0, False)
    assert guest.vcpu.traps[0x80] == Gate(0x2000, 0xE033, 3, False)
    assert guest.vcpu.traps[2] == Gate(0x3000, 0xE033, 0, True)
    assert not guest.vcpu.traps[13].address
    assert set_traps(guest, (13, 0, 0xE033, 0x4000)) == 0
    assert guest.vcpu.traps[14].address == 0x1000, "the others stay"
    assert guest.call(HYPERVISOR_set_trap_table, 0) == 0
    assert not any(gate.address for gate in guest.vcpu.traps)


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_a_handlers_address_is_canonical(guest: Guest, address: int) -> None:
    assert set_traps(guest, (3, 0, 0xE033, 0x1000), (14, 0, 0xE033, address)) == -EINVAL
    assert not guest.vcpu.traps[14].address


def test_a_trap_table_has_an_end(hv: Bench, guest: Guest) -> None:
    assert guest.call(HYPERVISOR_set_trap_table, 0x5000) == -EFAULT


def test_a_long_trap_table_is_taken_in_parts(guest: Guest) -> None:
    guest.put(guest.va(0), b"".join(TrapInfo(1, 0, 0xE033, 0x1000 + count).to_bytes() for count in range(7 * 256)))
    with pytest.raises(Continuation) as rest:
        guest.call(HYPERVISOR_set_trap_table, guest.va(0))
    assert rest.value.arguments == (guest.va(0) + 1024 * 16,)
    assert guest.call(HYPERVISOR_set_trap_table, *rest.value.arguments) == 0, "the next page is clear"
    assert guest.vcpu.traps[1].address == 0x1000 + 7 * 256 - 1


def register(guest: Guest, kind: int, address: int, flags: int = 0) -> int:
    return guest.op(HYPERVISOR_callback_op, CALLBACKOP_register, CallbackRegister(kind, flags, address))


@pytest.mark.parametrize(
    ("kind", "flags", "masks"),
    [
        (CALLBACKTYPE_event, 0, True),
        (CALLBACKTYPE_failsafe, 0, True),
        (CALLBACKTYPE_syscall, 0, False),
        (CALLBACKTYPE_syscall, CALLBACKF_mask_events, True),
        (CALLBACKTYPE_syscall32, 0, False),
        (CALLBACKTYPE_sysenter, CALLBACKF_mask_events, True),
        (CALLBACKTYPE_nmi, 0, False),
    ],
)
def test_callbacks(guest: Guest, kind: int, flags: int, masks: bool) -> None:
    assert register(guest, kind, 0x1234, flags) == 0
    assert guest.vcpu.callbacks[kind] == Callback(0x1234, masks)
    for address in BAD_ADDRESSES:
        assert register(guest, kind, address) == -EINVAL
    assert guest.vcpu.callbacks[kind].address == 0x1234


def test_callbacks_that_do_not_exist(guest: Guest) -> None:
    for kind in (3, 6, 8, 0xFFFF):
        assert register(guest, kind, 0x1234) == -ENOSYS
        assert guest.op(HYPERVISOR_callback_op, CALLBACKOP_unregister, CallbackUnregister(kind)) == -ENOSYS
    assert guest.op(HYPERVISOR_callback_op, 77) == -ENOSYS
    assert guest.call(HYPERVISOR_callback_op, CALLBACKOP_register, 0) == -EFAULT


def test_only_an_nmi_callback_is_given_up(guest: Guest) -> None:
    register(guest, CALLBACKTYPE_nmi, 0x1234)
    for _ in range(2):
        assert guest.op(HYPERVISOR_callback_op, CALLBACKOP_unregister, CallbackUnregister(CALLBACKTYPE_nmi)) == 0
    assert CALLBACKTYPE_nmi not in guest.vcpu.callbacks
    kind = CallbackUnregister(CALLBACKTYPE_event)
    assert guest.op(HYPERVISOR_callback_op, CALLBACKOP_unregister, kind) == -EINVAL


def test_the_older_way_to_register_callbacks(guest: Guest) -> None:
    assert guest.call(HYPERVISOR_set_callbacks, 0x1000, 0x2000, 0x3000) == 0
    assert guest.vcpu.callbacks[CALLBACKTYPE_event] == Callback(0x1000, True)
    assert guest.vcpu.callbacks[CALLBACKTYPE_failsafe] == Callback(0x2000, True)
    assert guest.vcpu.callbacks[CALLBACKTYPE_syscall] == Callback(0x3000, False)
    for position in range(3):
        addresses = [0x10, 0x10, 0x10]
        addresses[position] = BAD_ADDRESSES[0]
        assert guest.call(HYPERVISOR_set_callbacks, *addresses) == -EINVAL
    assert guest.vcpu.callbacks[CALLBACKTYPE_event].address == 0x1000


# -- stack, FPU, segments ----------------------------------------------------------------------------------------------


def test_the_stack_has_privilege_3(guest: Guest) -> None:
    assert guest.call(HYPERVISOR_stack_switch, 0x1_E028, 0x7777) == 0
    assert (guest.vcpu.kernel_ss, guest.vcpu.kernel_sp) == (0xE02B, 0x7777)


def test_the_fpu_flag(guest: Guest) -> None:
    for value, flag in ((1, True), (0, False), (7, True), (1 << 32, False)):
        assert guest.call(HYPERVISOR_fpu_taskswitch, value) == 0
        assert guest.cpu.task_switched is flag


def test_segment_bases(guest: Guest) -> None:
    bases = {SEGBASE_FS: 0x1000, SEGBASE_GS_USER: 0x2000, SEGBASE_GS_KERNEL: 0xFFFF_8123_4567_0000}
    for which, base in bases.items():
        assert guest.call(HYPERVISOR_set_segment_base, which, base) == 0
        for bad in (0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF):
            assert guest.call(HYPERVISOR_set_segment_base, which, bad) == -EINVAL
    found = (guest.cpu.fs_base, guest.vcpu.other_gs_base, guest.cpu.gs_base)
    assert found == tuple(bases.values())
    assert guest.call(HYPERVISOR_set_segment_base, 4, 0) == -EINVAL


def test_a_user_gs_selector_brings_its_base(hv: Bench, guest: Guest) -> None:
    mfn = hv.give(guest.domain, 1)[0]
    hv.table(mfn, {2: FLAT_DATA & ~0xFF00_00FF_FFFF_0000 | 0x12 << 56 | 0x34_5678 << 16, 3: 0x1000})
    hv.descriptors.set_gdt(guest.vcpu, [mfn], 512)
    assert guest.call(HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, 0x13) == 0
    assert guest.vcpu.other_gs_base == 0x1234_5678
    assert guest.call(HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, 0x1B) == -EFAULT, "not present"
    assert guest.vcpu.other_gs_base == 0x1234_5678
    for null in range(4):
        assert guest.call(HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, null) == 0
        assert guest.vcpu.other_gs_base == 0


# -- multicall ---------------------------------------------------------------------------------------------------------

LIST = 1


def multicall(guest: Guest, *calls: tuple[int, ...], count: int | None = None) -> int:
    words = []
    for number, *arguments in calls:
        words += [number, 0xDEAD, *arguments, *[0] * (6 - len(arguments))]
    guest.put(guest.va(LIST), words)
    return guest.call(HYPERVISOR_multicall, guest.va(LIST), len(calls) if count is None else count)


def results(guest: Guest, count: int) -> list[int]:
    found = [guest.word(guest.va(LIST, 64 * number + 8)) for number in range(count)]
    return [word - (1 << 64) if word >> 63 else word for word in found]


def test_each_call_has_its_result(guest: Guest) -> None:
    calls = [
        (HYPERVISOR_xen_version, 0, 0),
        (HYPERVISOR_stack_switch, 0xE02B, 0x1234),
        (HYPERVISOR_set_segment_base, 9, 0),
        (HYPERVISOR_update_va_mapping, guest.va(5), guest.data[6] << 12 | P, 0),
        (63,),
        (1 << 40,),
    ]
    assert multicall(guest, *calls) == 0
    version, *rest = results(guest, len(calls))
    assert version >> 16 == 4
    assert rest == [0, -EINVAL, 0, -ENOSYS, -ENOSYS]
    assert guest.vcpu.kernel_sp == 0x1234


def test_an_iret_is_the_last_call_of_its_list(hv: Bench, guest: Guest) -> None:
    guest.put(guest.va(5), [77, 0, 0, 0, 0x1234, 0xE030, 0x202, guest.va(6), 0xE02B])
    guest.cpu.regs[RSP] = guest.va(5)
    later = (HYPERVISOR_stack_switch, 0xE02B, 0x4321)
    assert multicall(guest, (HYPERVISOR_xen_version, 0, 0), (HYPERVISOR_iret,), later) == 0
    assert (guest.cpu.regs[RAX], guest.cpu.regs[RIP], guest.cpu.regs[RSP]) == (77, 0x1234, guest.va(6))
    assert results(guest, 3)[1:] == [77, 0xDEAD]
    assert guest.vcpu.kernel_sp != 0x4321
    assert multicall(guest, (HYPERVISOR_xen_version, 0, 0)) == 0


def test_no_multicall_is_made_in_a_multicall(hv: Bench, guest: Guest) -> None:
    assert multicall(guest, (HYPERVISOR_multicall, guest.va(LIST), 1)) == 0
    assert results(guest, 1) == [-EINVAL]
    assert multicall(guest, (HYPERVISOR_xen_version, 0, 0)) == 0, "and the next one is none within another"


def test_a_list_that_ends_before_its_count(guest: Guest) -> None:
    for pointer in (0, 0xFFFF_8000_0000_0000, guest.va(50)):
        assert guest.call(HYPERVISOR_multicall, pointer, 1) == -EFAULT
        assert guest.call(HYPERVISOR_multicall, pointer, 0) == 0
    assert guest.call(HYPERVISOR_multicall, guest.table_va(guest.l1), 1) == -EFAULT, "a result must be written"
    assert multicall(guest, (HYPERVISOR_xen_version, 0, 0)) == 0


def test_a_list_may_lie_anyhow(guest: Guest) -> None:
    for offset in (4096 - 32, 3, 4096 - 61):
        address = guest.va(LIST, offset)
        guest.put(address, [HYPERVISOR_stack_switch, 0, 0xE02B, offset, 0, 0, 0, 0])
        assert guest.call(HYPERVISOR_multicall, address, 1) == 0
        assert guest.vcpu.kernel_sp == offset


def test_a_domain_that_stops_within_its_list_does_no_more(guest: Guest) -> None:
    guest.put(guest.va(0), SchedShutdown(0))
    calls = [(HYPERVISOR_sched_op, SCHEDOP_shutdown, guest.va(0)), (HYPERVISOR_stack_switch, 0xE02B, 0x4321)]
    assert multicall(guest, *calls) == 0
    assert guest.vcpu.kernel_sp != 0x4321


def test_a_long_list_is_done_in_parts(hv: Bench, guest: Guest) -> None:
    """One page of calls, mapped again and again, stands for 2**32 - 1 of them."""
    page = hv.give(guest.domain, 1)[0]
    hv.table(page, {word: HYPERVISOR_stack_switch if word % 8 == 0 else 0 for word in range(512)})
    l1 = hv.give(guest.domain, 1)[0]
    hv.table(l1, dict.fromkeys(range(512), page << 12 | 3))
    hv.pagetables.update(guest.l2 << 12 | 8, l1 << 12 | 3, 2, guest.domain, guest.domain.domid)
    start = guest.va(0) - 4096 + (1 << 21)
    with pytest.raises(Continuation) as rest:
        guest.call(HYPERVISOR_multicall, start, (1 << 32) - 1)
    assert rest.value.arguments == (start + 1024 * 64, (1 << 32) - 1 - 1024)
    assert not hv.in_multicall


def test_a_long_call_within_a_list_is_continued_in_it(hv: Bench, guest: Guest) -> None:
    page = hv.give(guest.domain, 1)[0]
    requests = {word: page << 12 | 8 if word % 2 == 0 else 5 for word in range(512)}
    l1 = hv.give(guest.domain, 1)[0]
    hv.table(page, requests)
    hv.table(l1, dict.fromkeys(range(512), page << 12 | P))
    hv.pagetables.update(guest.l2 << 12 | 8, l1 << 12 | 3, 2, guest.domain, guest.domain.domid)
    start = guest.va(0) - 4096 + (1 << 21)
    first, last = (HYPERVISOR_stack_switch, 0xE02B, 1), (HYPERVISOR_stack_switch, 0xE02B, 2)
    with pytest.raises(Continuation) as rest:
        multicall(guest, first, (HYPERVISOR_mmu_update, start, 5000, 0, DOMID_SELF), last)
    assert guest.vcpu.kernel_sp == 1
    assert rest.value.arguments == (guest.va(LIST, 64), 2)
    assert guest.call(HYPERVISOR_multicall, *rest.value.arguments) == 0
    assert guest.vcpu.kernel_sp == 2
    assert results(guest, 3) == [0, 0, 0]


# -- entries that are carried out together -----------------------------------------------------------------------------

PAGES = 40
FIRST = 8
"""Data pages, and the first one whose mapping a list changes."""


class Listing:
    """A guest with a page for lists of calls that holds no code, and a way to make the calls one by one."""

    def __init__(self) -> None:
        self.hv = Bench(256)
        self.guest = self.hv.guest(pages=PAGES)
        self.page = self.hv.give(self.guest.domain, 1)[0]
        self.va = self.guest.va(LIST)
        self.update(self.va, self.page << 12 | P | RW | NX)

    def update(self, vaddr: int, value: int, flags: int = 0) -> int:
        return self.guest.call(HYPERVISOR_update_va_mapping, vaddr, value, flags)

    def multicall(self, updates: list[tuple[int, int, int]], offset: int = 0) -> list[int]:
        """The results of a list of updates, which begins `offset` bytes into the page."""
        start = self.va + offset
        for at, update in enumerate(updates):
            self.guest.put(start + 64 * at, [HYPERVISOR_update_va_mapping, 0xDEAD, *update, 0, 0, 0])
        assert self.guest.call(HYPERVISOR_multicall, start, len(updates)) == 0
        found = [self.guest.word(start + 64 * at + 8) for at in range(len(updates))]
        return [word - (1 << 64) if word >> 63 else word for word in found]

    def state(self) -> tuple[list[tuple[int, ...]], list[int]]:
        table = self.guest.l1 << 9
        return snapshot(self.hv), self.hv.ram.words[table : table + 512].tolist()


ENTRIES = st.one_of(
    st.sampled_from([0, 2, 0xFFF0]),
    st.tuples(st.integers(0, PAGES - 1), st.sampled_from([P, P | RW, P | RW | NX | A | D, P | USER | NX])),
    st.sampled_from(["table", "table, writable", "nobody", "nowhere", "uncached"]),
)


def entry_of(listing: Listing, wanted: object) -> int:
    guest = listing.guest
    if isinstance(wanted, tuple):
        index, flags = wanted
        return guest.data[index] << 12 | int(flags)
    special = {
        "table": guest.l1 << 12 | P | NX,
        "table, writable": guest.l1 << 12 | P | RW,
        "nobody": 250 << 12 | P,
        "nowhere": 1 << 40 | P,
        "uncached": guest.data[3] << 12 | P | 0x10,
    }
    return special[wanted] if isinstance(wanted, str) else int(wanted)  # type: ignore[call-overload]


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(
        st.one_of(
            st.integers(1, 30).map(lambda count: [0] * count),
            st.integers(1, 30).map(lambda count: [(index, P | RW | NX) for index in range(FIRST, FIRST + count)]),
            st.lists(ENTRIES, min_size=1, max_size=30),
        ),
        min_size=1,
        max_size=5,
    ),
    offset=st.sampled_from([0, 64, 4096 - 10 * 64 - 1024, 3]),
)
def test_a_list_of_updates_is_the_same_as_its_updates(batches: list[list[object]], offset: int) -> None:
    together, singly = Listing(), Listing()
    for batch in batches:
        updates = [(together.guest.va(FIRST + at), entry_of(together, wanted), 0) for at, wanted in enumerate(batch)]
        assert together.multicall(updates, offset) == [singly.update(*update) for update in updates]
        assert together.state() == singly.state()
    assert list(together.hv.hypercall_counts) == [
        sum(map(len, batches)) if number == HYPERVISOR_update_va_mapping else 0 for number in range(64)
    ]


def test_neighbours_are_updated_together(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing()
    monkeypatch.setattr(type(listing.hv.pagetables), "update_l1", lambda *arguments: pytest.fail("one by one"))
    away = [(listing.guest.va(FIRST + at), 0, 0) for at in range(20)]
    back = [(vaddr, listing.guest.data[FIRST + at] << 12 | P | RW, 0) for at, (vaddr, _, _) in enumerate(away)]
    for updates in (away, back):
        assert listing.multicall(updates) == [0] * 20


def test_a_list_that_takes_itself_away_ends_there() -> None:
    """The tenth entry unmaps the page that the list is read from."""
    listing = Listing()
    guest = listing.guest
    listing.update(guest.va(FIRST + 9), listing.page << 12 | P | RW | NX)
    for at in range(20):
        words = [HYPERVISOR_update_va_mapping, 0xDEAD, guest.va(FIRST + at), 0, 0, 0, 0, 0]
        guest.put(listing.va + 64 * at, words)
    assert guest.call(HYPERVISOR_multicall, guest.va(FIRST + 9), 20) == -EFAULT
    present = [listing.hv.entry(guest.l1, 1 + FIRST + at) & P for at in range(20)]
    assert present == [0] * 10 + [P] * 10


def test_the_last_page_of_the_address_space_can_be_in_a_list() -> None:
    listing = Listing()
    top = (1 << 64) - 8 * 4096
    updates = [(top + 4096 * at, 0, 0) for at in range(8)]
    assert listing.multicall(updates) == [-EINVAL] * 8
    hv, guest = listing.hv, listing.guest
    l2, l1 = hv.give(guest.domain, 2)
    hv.table(l2, {511: l1 << 12 | P | RW})
    hv.pagetables.update(guest.l3 << 12 | 511 << 3, l2 << 12 | P | RW, 3, guest.domain, guest.domain.domid)
    updates = [(vaddr, guest.data[FIRST] << 12 | P | NX, 0) for vaddr, _, _ in updates]
    assert listing.multicall(updates) == [0] * 8
    assert hv.entry(l1, 511) >> 12 & 0xFFFF == guest.data[FIRST]
