"""Hostile arguments: pointers, counts and domain numbers of every hypercall that takes them."""

from __future__ import annotations

import struct
import time

import pytest

from tests.guest.pvguest import NO_EXCEPTION, NX, PAGE, PRESENT, RW, PvGuest, TestMachine
from xenolith.abi.errno import E2BIG, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH
from xenolith.abi.event_channel import (
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_reset,
    EVTCHNOP_status,
    EvtchnReset,
    EvtchnStatus,
)
from xenolith.abi.grant_table import (
    GNTST_bad_domain,
    GNTST_okay,
    GNTST_permission_denied,
    GNTTABOP_copy,
    GNTTABOP_query_size,
    GNTTABOP_setup_table,
    GnttabQuerySize,
    GnttabSetupTable,
)
from xenolith.abi.hypercalls import (
    HYPERVISOR_console_io,
    HYPERVISOR_event_channel_op,
    HYPERVISOR_grant_table_op,
    HYPERVISOR_memory_op,
    HYPERVISOR_mmu_update,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_multicall,
    HYPERVISOR_platform_op,
    HYPERVISOR_sched_op,
    HYPERVISOR_set_gdt,
    HYPERVISOR_set_trap_table,
    HYPERVISOR_vcpu_op,
    HYPERVISOR_xen_version,
)
from xenolith.abi.memory import (
    XENMEM_current_reservation,
    XENMEM_decrease_reservation,
    XENMEM_exchange,
    XENMEM_increase_reservation,
    XENMEM_maximum_gpfn,
    XENMEM_maximum_reservation,
    XENMEM_populate_physmap,
    XenMemoryDomain,
    XenMemoryExchange,
    XenMemoryReservation,
)
from xenolith.abi.mmu import MMUEXT_TLB_FLUSH_LOCAL
from xenolith.abi.sched import SCHEDOP_poll, SCHEDOP_remote_shutdown, SCHEDOP_shutdown, SchedPoll, SchedRemoteShutdown
from xenolith.abi.types import DOMID_IO, DOMID_SELF, DOMID_XEN, Struct
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.hypercalls.table import HANDLERS, OPERATIONS

UNMAPPED, NON_CANONICAL = 0x7000_0000_0000, 0x8000_0000_0000
M2P, HYPERVISOR = 0xFFFF_8000_0000_0000, 0xFFFF_8200_0000_0000
BAD_POINTERS = (UNMAPPED, NON_CANONICAL, 0xFFFF_7FFF_FFFF_FFF8, HYPERVISOR, (1 << 64) - 8, (1 << 63) - 1)
NOBODY = 999


# -- pointers ---------------------------------------------------------------------------------------------------------


def test_every_operation_survives_bad_pointers(guest: PvGuest) -> None:
    """None of them does anything with such a pointer, and none raises anything but an error number."""
    for number, command in OPERATIONS:
        bound = OPERATIONS[number, command]
        if bound.argument is None:
            continue
        for pointer in BAD_POINTERS:
            more = (pointer, 1) if number == HYPERVISOR_grant_table_op else (pointer,)
            if number == HYPERVISOR_vcpu_op:
                more = (0, pointer)
            arguments = (command, *more)
            if number in (19, 16):  # the older forms hold the command in the structure
                arguments = (pointer,)
            result = guest.hypercall(number, *arguments)
            reservation = number == HYPERVISOR_memory_op and command in (0, 1, 6)
            assert result == 0 if reservation else result in (-EFAULT, -EPERM), (number, command, hex(pointer), result)


def test_every_hypercall_survives_edge_values(guest: PvGuest) -> None:
    """Every number there is and is not, with arguments of all ones and the like; the guest lives on."""
    for number in (*range(64), 255, 1 << 31, (1 << 32) + 17, (1 << 64) - 1):
        if number in (23, HYPERVISOR_sched_op):
            continue
        for value in ((1 << 64) - 1, 1 << 63, (1 << 32) - 1, HYPERVISOR):
            guest.hypercall(number, *[value] * 6)
    assert guest.call("nothing").rax == 42


def test_output_to_a_read_only_page(guest: PvGuest) -> None:
    guest.protect(guest.page(0))
    assert guest.hypercall(HYPERVISOR_xen_version, 1, guest.page(0)) == -EFAULT
    assert guest.hypercall(HYPERVISOR_xen_version, 1, M2P) == -EFAULT
    root = guest.domain.vcpus[0].kernel_root
    guest.map(guest.page(1), root | PRESENT | NX)
    before = bytes(guest.hv.ram.frame(root >> 12))
    assert guest.hypercall(HYPERVISOR_xen_version, 1, guest.page(1)) == -EFAULT
    assert bytes(guest.hv.ram.frame(root >> 12)) == before


def test_output_across_a_page_into_nothing(guest: PvGuest) -> None:
    guest.map(guest.page(1), 0)
    assert guest.hypercall(HYPERVISOR_xen_version, 2, guest.page(1) - 64) == -EFAULT, "compile_info is longer"
    assert guest.hypercall(HYPERVISOR_xen_version, 1, guest.page(1) - 16) == 0, "extraversion just fits"


def test_input_across_a_page(guest: PvGuest) -> None:
    reservation = XenMemoryDomain(domid=DOMID_SELF).to_bytes()
    guest.write(guest.page(1) - 1, reservation)
    assert guest.hypercall(HYPERVISOR_memory_op, XENMEM_current_reservation, guest.page(1) - 1) == 2048
    guest.map(guest.page(1), 0)
    assert guest.hypercall(HYPERVISOR_memory_op, XENMEM_current_reservation, guest.page(1) - 1) == -EFAULT


def test_reading_the_m2p_as_an_argument_leaks_nothing(guest: PvGuest) -> None:
    """Guests may read it, but the hypervisor's range is no place for arguments."""
    assert guest.hypercall(HYPERVISOR_memory_op, XENMEM_current_reservation, M2P) == -EFAULT
    assert guest.hypercall(HYPERVISOR_console_io, 0, 8, M2P) == -EFAULT


# -- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1 << 20 | 1, 1 << 31, (1 << 32) - 1, (1 << 64) - 1])
def test_console_write_of_too_much(guest: PvGuest, count: int) -> None:
    assert guest.hypercall(HYPERVISOR_console_io, 0, count, guest.page(0)) == -E2BIG


def test_console_write_that_runs_out_of_memory(guest: PvGuest) -> None:
    guest.map(guest.page(3), 0)
    assert guest.hypercall(HYPERVISOR_console_io, 0, 1 << 20, guest.page(0)) == -EFAULT
    assert guest.hypercall(HYPERVISOR_console_io, 1, 16, guest.page(0)) == -EPERM, "reading is not for everybody"


@pytest.mark.parametrize("count", [129, 1 << 31, (1 << 32) - 1])
def test_poll_of_too_many_ports(guest: PvGuest, count: int) -> None:
    poll = SchedPoll(ports=guest.page(0), nr_ports=count)
    assert guest.operation(HYPERVISOR_sched_op, SCHEDOP_poll, poll) == -EINVAL


def test_poll_of_ports_that_do_not_exist(guest: PvGuest) -> None:
    guest.write(guest.page(0), struct.pack("<I", 0xFFFFFFFF))
    poll = SchedPoll(ports=guest.page(0), nr_ports=1)
    assert guest.operation(HYPERVISOR_sched_op, SCHEDOP_poll, poll) == -EINVAL
    poll = SchedPoll(ports=UNMAPPED, nr_ports=1)
    assert guest.operation(HYPERVISOR_sched_op, SCHEDOP_poll, poll) == -EFAULT


@pytest.mark.parametrize("count", [1 << 31, (1 << 32) - 1, (1 << 64) - 1])
def test_grant_operations_without_end(guest: PvGuest, count: int) -> None:
    assert guest.hypercall(HYPERVISOR_grant_table_op, 0, guest.page(0), count) == -EINVAL


@pytest.mark.parametrize("command", [XENMEM_increase_reservation, XENMEM_decrease_reservation, XENMEM_populate_physmap])
@pytest.mark.parametrize("count", [1 << 31, (1 << 32) - 1, 1 << 58, (1 << 64) - 1])
def test_reservations_without_end(guest: PvGuest, command: int, count: int) -> None:
    before = guest.domain.tot_frames
    reservation = XenMemoryReservation(extent_start=UNMAPPED, nr_extents=count, domid=DOMID_SELF)
    assert guest.operation(HYPERVISOR_memory_op, command, reservation) <= 0
    assert guest.domain.tot_frames == before, "the domain has all that it may have, and gave nothing back"


@pytest.mark.parametrize("order", [10, 18, 19, 31, 32, 63, 64, (1 << 32) - 1])
def test_extents_of_absurd_size(guest: PvGuest, order: int) -> None:
    guest.write_words(guest.page(0), 0)
    for command in (XENMEM_increase_reservation, XENMEM_decrease_reservation, XENMEM_populate_physmap):
        reservation = XenMemoryReservation(
            extent_start=guest.page(0), nr_extents=1, extent_order=order, domid=DOMID_SELF
        )
        assert guest.operation(HYPERVISOR_memory_op, command, reservation) == 0


def test_reservation_start_beyond_the_end(guest: PvGuest) -> None:
    reservation = XenMemoryReservation(extent_start=guest.page(0), nr_extents=1, domid=DOMID_SELF)
    for start in (1, 2, 1 << 20, (1 << 26) - 1):
        result = guest.operation(HYPERVISOR_memory_op, XENMEM_decrease_reservation | start << 6, reservation)
        assert result in (start, -EINVAL)


@pytest.mark.parametrize("mem_flags", [0, 0x1000 | 24, 0xFFFF_FF00 | 24, 0xFFFF_FFFF])
def test_exchange_with_absurd_flags(guest: PvGuest, mem_flags: int) -> None:
    frames = guest.hv.frames
    unused = int(((frames.owners == guest.domid) & (frames.counts == 1)).nonzero()[0][0])
    guest.write_words(guest.page(0), unused)
    guest.write_words(guest.page(1), 77)
    exchange = XenMemoryExchange()
    for side, where in ((exchange.in_, guest.page(0)), (exchange.out, guest.page(1))):
        side.extent_start, side.nr_extents, side.domid, side.mem_flags = where, 1, DOMID_SELF, mem_flags
    started = time.monotonic()
    assert guest.operation(HYPERVISOR_memory_op, XENMEM_exchange, exchange) in (0, -EINVAL, -12)
    assert time.monotonic() - started < 1


def test_exchange_of_others_frames(guest: PvGuest, bystander: PvGuest) -> None:
    for mfn in (bystander.mfn(bystander.page(95)), 0, guest.hv.frames.total, (1 << 64) - 1):
        guest.write_words(guest.page(0), mfn)
        exchange = XenMemoryExchange()
        for side in (exchange.in_, exchange.out):
            side.extent_start, side.nr_extents, side.domid = guest.page(0), 1, DOMID_SELF
        assert guest.operation(HYPERVISOR_memory_op, XENMEM_exchange, exchange) == -EINVAL


def test_giving_back_what_is_not_ones_own(guest: PvGuest, bystander: PvGuest) -> None:
    hv = guest.hv
    root = guest.domain.vcpus[0].kernel_root >> 12
    for mfn in (
        bystander.mfn(bystander.page(95)),
        guest.domain.shared_info_mfn,
        guest.domain.grants.frames[0],
        hv.xenspace.m2p_chunks()[0],
        hv.frames.total,
        (1 << 64) - 1,
    ):
        guest.write_words(guest.page(0), mfn)
        reservation = XenMemoryReservation(extent_start=guest.page(0), nr_extents=1, domid=DOMID_SELF)
        assert guest.operation(HYPERVISOR_memory_op, XENMEM_decrease_reservation, reservation) == 0, hex(mfn)
    guest.write_words(guest.page(0), root)
    reservation = XenMemoryReservation(extent_start=guest.page(0), nr_extents=1, domid=DOMID_SELF)
    guest.operation(HYPERVISOR_memory_op, XENMEM_decrease_reservation, reservation)
    assert guest.call("nothing").rax == 42, "its page tables stay until it leaves them"


def test_memory_goes_and_comes(guest: PvGuest) -> None:
    vaddr = guest.page(5)
    mfn, before = guest.mfn(vaddr), guest.domain.tot_frames
    guest.write(vaddr, b"secret")
    guest.map(vaddr, 0)
    guest.write_words(guest.page(0), mfn)
    reservation = XenMemoryReservation(extent_start=guest.page(0), nr_extents=1, domid=DOMID_SELF)
    assert guest.operation(HYPERVISOR_memory_op, XENMEM_decrease_reservation, reservation) == 1
    assert guest.domain.tot_frames == before - 1
    assert guest.map(vaddr, mfn << 12 | PRESENT) == -EINVAL
    guest.write_words(guest.page(0), 0x123)
    assert guest.operation(HYPERVISOR_memory_op, XENMEM_populate_physmap, reservation) == 1
    new = guest.word(guest.page(0))
    assert guest.hv.m2p[new] == 0x123
    assert guest.map(vaddr, new << 12 | PRESENT | RW) == 0
    assert guest.read(vaddr, PAGE) == bytes(PAGE), "old contents do not come back"
    assert guest.operation(HYPERVISOR_memory_op, XENMEM_populate_physmap, reservation) == 0, "no more than its limit"


# -- long calls -------------------------------------------------------------------------------------------------------


def window(guest: PvGuest, content: bytes) -> int:
    """An address at which the same page, filled with `content`, is seen 2 MiB * 512 long: 262,144 times."""
    page = content * (PAGE // len(content))
    guest.write(guest.page(60), page)
    entry = guest.mfn(guest.page(60)) << 12 | PRESENT | RW
    l1 = guest.table(61, dict.fromkeys(range(512), entry))
    l2 = guest.table(62, dict.fromkeys(range(512), l1 << 12 | PRESENT | RW))
    root = guest.domain.vcpus[0].kernel_root
    l3 = guest.table(63, {0: l2 << 12 | PRESENT | RW})
    assert guest.mmu_update((root | 8, l3 << 12 | PRESENT | RW)) == (0, 1)
    return 1 << 39


@pytest.mark.parametrize(
    ("number", "content", "size"),
    [
        (HYPERVISOR_mmuext_op, struct.pack("<4Q", MMUEXT_TLB_FLUSH_LOCAL, 0, 0, MMUEXT_TLB_FLUSH_LOCAL), 24),
        (HYPERVISOR_multicall, struct.pack("<8Q", HYPERVISOR_xen_version, 0, 0, 0, 0, 0, 0, 0), 64),
    ],
)
def test_long_call_lets_others_live(
    machine: TestMachine, guest: PvGuest, bystander: PvGuest, number: int, content: bytes, size: int
) -> None:
    start = window(guest, content)
    count = (1 << 30) // size
    guest._prepare(1, number, (start, count, 0, DOMID_SELF), 0)
    started = time.monotonic()
    for _ in range(10):
        assert bystander.call("nothing").rax == 42
    assert time.monotonic() - started < 2
    assert not guest.stopped


def test_long_update_lets_others_live(machine: TestMachine, guest: PvGuest, bystander: PvGuest) -> None:
    target = guest.maddr(guest.page(59))
    start = window(guest, struct.pack("<QQ", target, 1))
    guest._prepare(1, HYPERVISOR_mmu_update, (start, 1 << 26, 0, DOMID_SELF), 0)
    started = time.monotonic()
    for _ in range(10):
        assert bystander.call("nothing").rax == 42
    assert time.monotonic() - started < 2


def test_long_list_at_the_end_of_the_address_space(guest: PvGuest) -> None:
    """A continued call whose next argument would be beyond 2**64 ends with an error."""
    root = guest.domain.vcpus[0].kernel_root
    page = struct.pack("<8Q", HYPERVISOR_xen_version, 0, 0, 0, 0, 0, 0, 0) * 64
    guest.write(guest.page(60), page)
    entry = guest.mfn(guest.page(60)) << 12 | PRESENT | RW
    l1 = guest.table(61, dict.fromkeys(range(512), entry))
    l2_maddr = (guest.hv.ram.words[(root >> 3) + 511] & ~0xFFF) & (1 << 52) - 1
    l2_table = guest.hv.ram.words[(l2_maddr >> 3) + 511]
    if l2_table & PRESENT:
        l2 = l2_table & 0x000F_FFFF_FFFF_F000
        assert guest.mmu_update((l2 | 511 * 8, l1 << 12 | PRESENT | RW)) == (0, 1)
    else:
        l2 = guest.table(62, {511: l1 << 12 | PRESENT | RW}) << 12
        assert guest.mmu_update((l2_maddr | 511 * 8, l2 | PRESENT | RW)) == (0, 1)
    for pages in (16, 32, 64):
        start = (1 << 64) - pages * PAGE
        assert guest.hypercall(HYPERVISOR_multicall, start, 1 << 31) in (0, -EFAULT)
        flush = struct.pack("<QQ", guest.maddr(guest.page(59)), 0) * 256
        guest.write(guest.page(60), flush)
        assert guest.hypercall(HYPERVISOR_mmu_update, start, 1 << 30, 0, DOMID_SELF) == -EFAULT
        copies = bytes(PAGE)
        guest.write(guest.page(60), copies)
        assert guest.hypercall(HYPERVISOR_grant_table_op, GNTTABOP_copy, start, 1 << 30) == -EFAULT
        guest.write(guest.page(60), page)


# -- multicalls -------------------------------------------------------------------------------------------------------


def multicall(guest: PvGuest, *calls: tuple[int, ...]) -> tuple[int, list[int]]:
    """The result, and those of the calls."""
    entries = b"".join(struct.pack("<8Q", call[0], 0, *call[1:], *[0] * (7 - len(call))) for call in calls)
    vaddr = guest.arguments(entries, 2 * PAGE)
    result = guest.hypercall(HYPERVISOR_multicall, vaddr, len(calls))
    return result, [struct.unpack("<q", guest.read(vaddr + 64 * at + 8, 8))[0] for at in range(len(calls))]


def test_multicall_within_a_multicall(guest: PvGuest) -> None:
    inner = guest.arguments(struct.pack("<8Q", HYPERVISOR_xen_version, 0, 0, 0, 0, 0, 0, 0))
    assert multicall(guest, (HYPERVISOR_multicall, inner, 1), (HYPERVISOR_xen_version, 0)) == (
        0,
        [-EINVAL, 4 << 16 | 17],
    )
    assert multicall(guest, (HYPERVISOR_xen_version, 0)) == (0, [4 << 16 | 17])


def test_multicall_goes_on_after_an_error(guest: PvGuest) -> None:
    result, results = multicall(guest, (777,), (HYPERVISOR_set_gdt, UNMAPPED, 1), (HYPERVISOR_xen_version, 0))
    assert (result, results) == (0, [-ENOSYS, -EFAULT, 4 << 16 | 17])


@pytest.mark.parametrize("count", [1 << 31, (1 << 32) - 1])
def test_multicall_that_runs_out_of_memory(guest: PvGuest, count: int) -> None:
    guest.write(guest.page(93), struct.pack("<8Q", HYPERVISOR_xen_version, 0, 0, 0, 0, 0, 0, 0) * 64)
    guest.map(guest.page(94), 0)
    assert guest.hypercall(HYPERVISOR_multicall, guest.page(93), count) == -EFAULT


def test_multicall_that_cannot_write_its_results(guest: PvGuest) -> None:
    guest.write(guest.page(93), struct.pack("<8Q", HYPERVISOR_xen_version, 0, 0, 0, 0, 0, 0, 0))
    guest.protect(guest.page(93))
    assert guest.hypercall(HYPERVISOR_multicall, guest.page(93), 1) == -EFAULT


def test_multicall_that_takes_its_own_list_away(guest: PvGuest) -> None:
    entries = struct.pack("<8Q", 14, 0, guest.page(93), 0, 2, 0, 0, 0) * 3
    guest.write(guest.page(93), entries)
    assert guest.hypercall(HYPERVISOR_multicall, guest.page(93), 3) == -EFAULT


def test_shutdown_in_a_multicall_ends_it(guest: PvGuest, bystander: PvGuest) -> None:
    reason = guest.arguments(bytes(4))
    entries = b"".join(
        struct.pack("<8Q", number, 0, *arguments)
        for number, arguments in (
            (HYPERVISOR_sched_op, (SCHEDOP_shutdown, reason, 0, 0, 0, 0)),
            (HYPERVISOR_set_trap_table, (0, 0, 0, 0, 0, 0)),
        )
    )
    vaddr = guest.arguments(entries, PAGE)
    guest._prepare(1, HYPERVISOR_multicall, (vaddr, 2), 0)
    guest.machine.run(lambda: guest.stopped)
    assert guest.domain.vcpus[0].traps[6].address, "the second call was not made"


# -- domain numbers ---------------------------------------------------------------------------------------------------


def _operations(guest: PvGuest, bystander: PvGuest) -> list[tuple[str, int, int, Struct, str]]:
    """(name, hypercall, command, argument, the field that names a domain)."""
    return [
        ("alloc_unbound", HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, EvtchnAllocUnbound(), "dom"),
        ("status", HYPERVISOR_event_channel_op, EVTCHNOP_status, EvtchnStatus(port=1), "dom"),
        ("reset", HYPERVISOR_event_channel_op, EVTCHNOP_reset, EvtchnReset(), "dom"),
        ("current", HYPERVISOR_memory_op, XENMEM_current_reservation, XenMemoryDomain(), "domid"),
        ("maximum", HYPERVISOR_memory_op, XENMEM_maximum_reservation, XenMemoryDomain(), "domid"),
        ("gpfn", HYPERVISOR_memory_op, XENMEM_maximum_gpfn, XenMemoryDomain(), "domid"),
    ]


def test_domain_numbers(guest: PvGuest, bystander: PvGuest) -> None:
    for name, number, command, argument, field in _operations(guest, bystander):
        for domid, expected in (
            (NOBODY, -ESRCH),
            (bystander.domid, -EPERM),
            (DOMID_IO, -ESRCH),
            (DOMID_XEN, -ESRCH),
            (0x7FF4, -ESRCH),
            (0xFFFF, -ESRCH),
        ):
            setattr(argument, field, domid)
            assert guest.operation(number, command, argument) == expected, (name, hex(domid))
        for domid in (guest.domid, DOMID_SELF):
            setattr(argument, field, domid)
            assert guest.operation(number, command, argument) >= 0, (name, domid)


def test_domain_numbers_of_grant_operations(guest: PvGuest, bystander: PvGuest) -> None:
    cases = [(NOBODY, GNTST_bad_domain), (bystander.domid, GNTST_permission_denied), (DOMID_XEN, GNTST_bad_domain)]
    for domid, status in [*cases, (DOMID_SELF, GNTST_okay), (guest.domid, GNTST_okay)]:
        query = GnttabQuerySize(dom=domid)
        assert guest.operation(HYPERVISOR_grant_table_op, GNTTABOP_query_size, query, 1) == 0
        assert query.status == status, hex(domid)
        setup = GnttabSetupTable(dom=domid, nr_frames=1, frame_list=guest.page(0))
        assert guest.operation(HYPERVISOR_grant_table_op, GNTTABOP_setup_table, setup, 1) == 0
        assert setup.status == status, hex(domid)


def test_remote_shutdown_is_for_control_domains(machine: TestMachine, guest: PvGuest, bystander: PvGuest) -> None:
    cases = ((bystander.domid, -EPERM), (NOBODY, -ESRCH), (DOMID_XEN, -ESRCH), (DOMID_SELF, -ESRCH))
    for domid, expected in (*cases, (guest.domid, -EPERM)):
        argument = SchedRemoteShutdown(domain_id=domid)
        assert guest.operation(HYPERVISOR_sched_op, SCHEDOP_remote_shutdown, argument) == expected
    control = machine.start("control", Capability.CONTROL)
    argument = SchedRemoteShutdown(domain_id=guest.domid, reason=0)
    assert control.operation(HYPERVISOR_sched_op, SCHEDOP_remote_shutdown, argument) == 0
    assert guest.stopped


def test_binding_to_others_ports(guest: PvGuest, bystander: PvGuest) -> None:
    for domid, expected in ((NOBODY, -ESRCH), (bystander.domid, -EINVAL), (DOMID_XEN, -ESRCH)):
        argument = EvtchnBindInterdomain(remote_dom=domid, remote_port=1)
        assert guest.operation(HYPERVISOR_event_channel_op, EVTCHNOP_bind_interdomain, argument) == expected
    for port in (0, 63, 64, 4096, 1 << 17, (1 << 32) - 1):
        argument = EvtchnBindInterdomain(remote_dom=bystander.domid, remote_port=port)
        assert guest.operation(HYPERVISOR_event_channel_op, EVTCHNOP_bind_interdomain, argument) == -EINVAL


def test_privileged_hypercalls_are_refused(guest: PvGuest) -> None:
    for command in range(70):
        vaddr = guest.arguments(struct.pack("<II", command, 0x03000001) + bytes(128))
        assert guest.hypercall(HYPERVISOR_platform_op, vaddr) in (-EPERM, -ENOSYS, -13), command


def test_unknown_calls_are_counted_without_end(guest: PvGuest) -> None:
    """A guest cannot make the hypervisor remember ever more."""
    for number in range(1 << 20, (1 << 20) + 400):
        assert guest.hypercall(number, 0) == -ENOSYS
        assert guest.hypercall(HYPERVISOR_xen_version, number, 0) == -ENOSYS
    assert len(guest.hv.unimplemented) < 500


def test_every_handler_takes_its_declared_arguments() -> None:
    import inspect

    from xenolith.abi.hypercalls import BY_NUMBER

    for number, handler in HANDLERS.items():
        taken = len(inspect.signature(handler).parameters) - 2
        assert taken == len(BY_NUMBER[number].arguments), BY_NUMBER[number].name
    assert NO_EXCEPTION == -1
