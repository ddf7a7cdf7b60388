"""Grants between two running guests: use, misuse, and the death of either side.

The expected statuses are those of Xen 4.17 (xen/common/grant_table.c).
"""

from __future__ import annotations

import pytest

from tests.guest.pvguest import NO_EXCEPTION, PAGE, PRESENT, RW, PvGuest, TestMachine
from xenolith.abi.errno import EFAULT, EINVAL
from xenolith.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GnttabCopy,
    GnttabMapGrantRef,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_setup_table,
    GNTTABOP_transfer,
    GNTTABOP_unmap_grant_ref,
    GnttabSetupTable,
    GnttabTransfer,
    GnttabUnmapGrantRef,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_readonly,
)
from xenolith.abi.hypercalls import HYPERVISOR_grant_table_op
from xenolith.abi.types import DOMID_SELF, DOMID_XEN
from xenolith.hypervisor.frames import FLAG_SHARED

PAGE_FAULT = 14
TABLE_PAGE = 80
REF = 16


class Granter:
    """A guest that writes its own grant table, which it has mapped at a playground page."""

    def __init__(self, guest: PvGuest) -> None:
        self.guest = guest
        setup = GnttabSetupTable(dom=DOMID_SELF, nr_frames=1, frame_list=guest.page(TABLE_PAGE))
        assert guest.operation(HYPERVISOR_grant_table_op, GNTTABOP_setup_table, setup, 1) == 0
        assert setup.status == GNTST_okay
        frame = guest.word(guest.page(TABLE_PAGE))
        assert guest.map(guest.page(TABLE_PAGE), frame << 12 | PRESENT | RW) == 0

    def grant(self, ref: int, domid: int, mfn: int, flags: int = GTF_permit_access) -> None:
        self.guest.write_words(self.guest.page(TABLE_PAGE) + 8 * ref, flags | domid << 16 | mfn << 32)

    def flags(self, ref: int) -> int:
        return self.guest.word(self.guest.page(TABLE_PAGE) + 8 * ref) & 0xFFFF


@pytest.fixture
def granter(machine: TestMachine) -> Granter:
    return Granter(machine.start("granter"))


@pytest.fixture
def mapper(machine: TestMachine) -> PvGuest:
    return machine.start("mapper")


def map_grant(
    mapper: PvGuest, granter: Granter, host_addr: int, flags: int = GNTMAP_host_map, ref: int = REF
) -> GnttabMapGrantRef:
    argument = GnttabMapGrantRef(host_addr=host_addr, flags=flags, ref=ref, dom=granter.guest.domid)
    assert mapper.operation(HYPERVISOR_grant_table_op, GNTTABOP_map_grant_ref, argument, 1) == 0
    return argument


def unmap_grant(mapper: PvGuest, host_addr: int, handle: int, dev_bus_addr: int = 0) -> int:
    argument = GnttabUnmapGrantRef(host_addr=host_addr, dev_bus_addr=dev_bus_addr, handle=handle)
    assert mapper.operation(HYPERVISOR_grant_table_op, GNTTABOP_unmap_grant_ref, argument, 1) == 0
    return argument.status


def test_map_write_and_unmap(granter: Granter, mapper: PvGuest) -> None:
    page = granter.guest.page(0)
    granter.grant(REF, mapper.domid, granter.guest.mfn(page))
    window = mapper.page(0)
    mapped = map_grant(mapper, granter, window)
    assert mapped.status == GNTST_okay
    assert mapped.dev_bus_addr == granter.guest.maddr(page)
    assert granter.flags(REF) == GTF_permit_access | 0x18, "in use for reading and writing"
    assert mapper.call("poke", window, 4711).vector == NO_EXCEPTION
    assert granter.guest.word(page) == 4711
    assert unmap_grant(mapper, window, mapped.handle) == GNTST_okay
    assert mapper.call("peek", window).fault == (PAGE_FAULT, 0)
    assert granter.flags(REF) == GTF_permit_access
    assert unmap_grant(mapper, window, mapped.handle) == GNTST_bad_handle, "it is stale"


def test_read_only_grant(granter: Granter, mapper: PvGuest) -> None:
    granter.grant(REF, mapper.domid, granter.guest.mfn(granter.guest.page(0)), GTF_permit_access | GTF_readonly)
    window = mapper.page(0)
    assert map_grant(mapper, granter, window).status == GNTST_general_error
    mapped = map_grant(mapper, granter, window, GNTMAP_host_map | GNTMAP_readonly)
    assert mapped.status == GNTST_okay
    assert mapper.call("peek", window).vector == NO_EXCEPTION
    assert mapper.call("poke", window, 1).fault == (PAGE_FAULT, 3)
    entry = mapper.pte(window)
    assert mapper.map(window, entry | RW) == -EINVAL, "nor can it make the mapping writable by itself"
    assert unmap_grant(mapper, window, mapped.handle) == GNTST_okay


def test_mapping_is_never_executable(granter: Granter, mapper: PvGuest) -> None:
    granter.guest.write(granter.guest.page(0), b"\xc3" * 16)
    granter.grant(REF, mapper.domid, granter.guest.mfn(granter.guest.page(0)))
    mapped = map_grant(mapper, granter, mapper.page(0))
    outcome = mapper.call(mapper.page(0))
    assert (outcome.vector, outcome.error & 0x10) == (PAGE_FAULT, 0x10)
    assert unmap_grant(mapper, mapper.page(0), mapped.handle) == GNTST_okay


def test_grants_that_are_not_for_the_mapper(granter: Granter, mapper: PvGuest, bystander: PvGuest) -> None:
    granter.grant(REF, bystander.domid, granter.guest.mfn(granter.guest.page(0)))
    assert map_grant(mapper, granter, mapper.page(0)).status == GNTST_general_error
    for ref in (17, 511):
        assert map_grant(mapper, granter, mapper.page(0), ref=ref).status == GNTST_general_error, "an empty entry"
    for ref in (512, 1 << 31, (1 << 32) - 1):
        assert map_grant(mapper, granter, mapper.page(0), ref=ref).status == GNTST_bad_gntref
    for domid in (999, DOMID_XEN, DOMID_SELF):
        argument = GnttabMapGrantRef(host_addr=mapper.page(0), flags=GNTMAP_host_map, ref=REF, dom=domid)
        assert mapper.operation(HYPERVISOR_grant_table_op, GNTTABOP_map_grant_ref, argument, 1) == 0
        assert argument.status == GNTST_bad_domain


def test_grant_of_what_is_not_the_granters(granter: Granter, mapper: PvGuest, bystander: PvGuest) -> None:
    hv = granter.guest.hv
    for mfn in (bystander.mfn(bystander.page(95)), hv.xenspace.m2p_chunks()[0], 0, hv.frames.total, (1 << 32) - 1):
        granter.grant(REF, mapper.domid, mfn)
        assert map_grant(mapper, granter, mapper.page(0)).status == GNTST_bad_page, hex(mfn)


def test_page_table_is_granted_for_reading_only(granter: Granter, mapper: PvGuest) -> None:
    granter.grant(REF, mapper.domid, granter.guest.domain.vcpus[0].kernel_root >> 12)
    assert map_grant(mapper, granter, mapper.page(0)).status == GNTST_general_error
    mapped = map_grant(mapper, granter, mapper.page(0), GNTMAP_host_map | GNTMAP_readonly)
    assert mapped.status == GNTST_okay
    assert mapper.call("poke", mapper.page(0), 0).fault == (PAGE_FAULT, 3)
    assert unmap_grant(mapper, mapper.page(0), mapped.handle) == GNTST_okay


def test_granted_page_cannot_become_a_table(granter: Granter, mapper: PvGuest) -> None:
    mfn = granter.guest.mfn(granter.guest.page(0))
    granter.grant(REF, mapper.domid, mfn)
    mapped = map_grant(mapper, granter, mapper.page(0))
    granter.guest.protect(granter.guest.page(0))
    assert granter.guest.pin(1, mfn) == -EINVAL
    assert unmap_grant(mapper, mapper.page(0), mapped.handle) == GNTST_okay
    assert granter.guest.pin(1, mfn) == 0


def test_bad_places_for_a_mapping(granter: Granter, mapper: PvGuest, bystander: PvGuest) -> None:
    granter.grant(REF, mapper.domid, granter.guest.mfn(granter.guest.page(0)))
    for address in (0, 0x7000_0000_0000, 0x8000_0000_0000, 0xFFFF_8000_0000_0000, 0xFFFF_8200_0000_0000):
        assert map_grant(mapper, granter, address).status == GNTST_general_error, hex(address)
    pte = GNTMAP_host_map | GNTMAP_contains_pte
    root = mapper.domain.vcpus[0].kernel_root
    for maddr in (
        bystander.pte_maddr(bystander.page(0)),
        granter.guest.pte_maddr(granter.guest.page(0)),
        root | 8,
        root | 256 * 8,
        mapper.maddr(mapper.page(0)),
        mapper.pte_maddr(mapper.page(0)) | 4,
        0,
        mapper.hv.frames.total << 12,
        (1 << 64) - 8,
    ):
        assert map_grant(mapper, granter, maddr, pte).status == GNTST_general_error, hex(maddr)
    assert granter.flags(REF) == GTF_permit_access, "nothing is left of the attempts"
    mapped = map_grant(mapper, granter, mapper.pte_maddr(mapper.page(0)), pte)
    assert mapped.status == GNTST_okay
    assert unmap_grant(mapper, mapper.pte_maddr(mapper.page(0)), mapped.handle) == GNTST_okay


def test_flags_without_a_mapping(granter: Granter, mapper: PvGuest) -> None:
    granter.grant(REF, mapper.domid, granter.guest.mfn(granter.guest.page(0)))
    for flags in (0, GNTMAP_readonly, GNTMAP_contains_pte, 0xFFFF0000):
        assert map_grant(mapper, granter, mapper.page(0), flags).status == GNTST_bad_gntref, hex(flags)


def test_unmapping_what_is_something_else(granter: Granter, mapper: PvGuest) -> None:
    granter.grant(REF, mapper.domid, granter.guest.mfn(granter.guest.page(0)))
    mapped = map_grant(mapper, granter, mapper.page(0))
    before = mapper.pte(mapper.page(1))
    for address in (mapper.page(1), 0x7000_0000_0000, 0xFFFF_8000_0000_0000):
        assert unmap_grant(mapper, address, mapped.handle) == GNTST_general_error
    assert unmap_grant(mapper, mapper.page(0), mapped.handle, dev_bus_addr=PAGE) == GNTST_general_error
    for handle in (mapped.handle + 1, 1 << 31, (1 << 32) - 1):
        assert unmap_grant(mapper, mapper.page(0), handle) == GNTST_bad_handle
    assert mapper.pte(mapper.page(1)) == before
    assert unmap_grant(mapper, mapper.page(0), mapped.handle) == GNTST_okay


def test_entry_that_the_mapper_overwrites(granter: Granter, mapper: PvGuest) -> None:
    """The reference goes with the entry; the handle stays, and can do no harm any more."""
    mfn = granter.guest.mfn(granter.guest.page(0))
    granter.grant(REF, mapper.domid, mfn)
    mapped = map_grant(mapper, granter, mapper.page(0))
    assert mapper.map(mapper.page(0), 0) == 0
    assert unmap_grant(mapper, mapper.page(0), mapped.handle) == GNTST_general_error
    assert mapper.hv.frames.count[mfn] == 2, "the granter's own and its mapping"


def test_many_mappings_of_one_grant(granter: Granter, mapper: PvGuest) -> None:
    granter.grant(REF, mapper.domid, granter.guest.mfn(granter.guest.page(0)))
    handles = []
    for page in range(8):
        mapped = map_grant(mapper, granter, mapper.page(page), GNTMAP_host_map | GNTMAP_device_map)
        assert mapped.status == GNTST_okay
        handles.append(mapped.handle)
    assert len(set(handles)) == 8
    for page, handle in enumerate(handles):
        assert unmap_grant(mapper, mapper.page(page), handle) == GNTST_okay
        assert granter.flags(REF) & 0x18, "the device mappings are left"
        assert unmap_grant(mapper, 0, handle, dev_bus_addr=granter.guest.maddr(granter.guest.page(0))) == GNTST_okay
    assert granter.flags(REF) == GTF_permit_access


@pytest.mark.parametrize("first", ["granter", "mapper"])
def test_either_side_may_die(machine: TestMachine, granter: Granter, mapper: PvGuest, first: str) -> None:
    page = granter.guest.page(0)
    mfn = granter.guest.mfn(page)
    granter.guest.write(page, b"kept")
    granter.grant(REF, mapper.domid, mfn)
    mapped = map_grant(mapper, granter, mapper.page(0))
    assert mapped.status == GNTST_okay
    if first == "mapper":
        mapper.destroy()
        machine.check()
        assert granter.flags(REF) == GTF_permit_access
        assert granter.guest.call("nothing").rax == 42
        return
    granter.guest.destroy()
    machine.check()
    assert mapper.read(mapper.page(0), 4) == b"kept", "the frame stays as long as it is mapped"
    other = machine.start("other")
    assert mfn not in machine.hv.frames.owned_by(other.domid)
    assert unmap_grant(mapper, mapper.page(0), mapped.handle) == GNTST_okay
    machine.check()


# -- copies -----------------------------------------------------------------------------------------------------------


def copy(mapper: PvGuest, source: tuple[int, int], dest: tuple[int, int], flags: int, **bounds: int) -> int:
    """GNTTABOP_copy between (domid, ref or mfn) pairs; its status."""
    argument = GnttabCopy(flags=flags, len=bounds.get("length", 8))
    argument.source.domid, argument.source.offset = source[0], bounds.get("source_offset", 0)
    argument.dest.domid, argument.dest.offset = dest[0], bounds.get("dest_offset", 0)
    argument.source.u.gmfn, argument.dest.u.gmfn = source[1], dest[1]
    assert mapper.operation(HYPERVISOR_grant_table_op, GNTTABOP_copy, argument, 1) == 0
    return argument.status


def test_copy_from_a_grant(granter: Granter, mapper: PvGuest) -> None:
    granter.grant(REF, mapper.domid, granter.guest.mfn(granter.guest.page(0)), GTF_permit_access | GTF_readonly)
    granter.guest.write(granter.guest.page(0), b"by copy!")
    source, dest = (granter.guest.domid, REF), (DOMID_SELF, mapper.mfn(mapper.page(0)))
    assert copy(mapper, source, dest, GNTCOPY_source_gref, dest_offset=8) == GNTST_okay
    assert mapper.read(mapper.page(0) + 8, 8) == b"by copy!"
    assert copy(mapper, dest, source, GNTCOPY_dest_gref) == GNTST_general_error, "it is for reading only"
    for bounds in ({"length": 4097}, {"source_offset": 4095}, {"dest_offset": 4089}, {"length": 0xFFFF}):
        assert copy(mapper, source, dest, GNTCOPY_source_gref, **bounds) < 0, bounds


def test_copy_by_frame_number_is_for_ones_own_frames(granter: Granter, mapper: PvGuest) -> None:
    other, own = granter.guest.mfn(granter.guest.page(0)), mapper.mfn(mapper.page(0))
    assert copy(mapper, (granter.guest.domid, other), (DOMID_SELF, own), 0) == GNTST_permission_denied
    assert copy(mapper, (DOMID_SELF, other), (DOMID_SELF, own), 0) == GNTST_bad_page
    assert copy(mapper, (DOMID_SELF, own), (DOMID_SELF, other), 0) == GNTST_bad_page
    root = mapper.domain.vcpus[0].kernel_root >> 12
    assert copy(mapper, (DOMID_SELF, own), (DOMID_SELF, root), 0) == GNTST_general_error, "not into a table"
    assert copy(mapper, (DOMID_SELF, mapper.hv.frames.total), (DOMID_SELF, own), 0) == GNTST_bad_page


def test_copy_into_code_that_has_run(granter: Granter, mapper: PvGuest) -> None:
    code = mapper.page(0)
    mapper.write(code, b"\xb8\x01\x00\x00\x00\xc3")  # mov $1, %eax; ret
    mapper.protect(code, PRESENT | RW)
    assert mapper.call(code).rax == 1
    granter.guest.write(granter.guest.page(0), b"\xb8\x02\x00\x00\x00\xc3")
    granter.grant(REF, mapper.domid, granter.guest.mfn(granter.guest.page(0)))
    source, dest = (granter.guest.domid, REF), (DOMID_SELF, mapper.mfn(code))
    assert copy(mapper, source, dest, GNTCOPY_source_gref) == GNTST_okay
    assert mapper.call(code).rax == 2


# -- transfer ---------------------------------------------------------------------------------------------------------


def test_transfer(granter: Granter, mapper: PvGuest) -> None:
    """A frame changes its owner; here the granter is the one that takes it, and has first made room for it."""
    taker = granter.guest
    frames = taker.hv.frames
    unmapped = (frames.counts == 1) & ((frames.all_flags & FLAG_SHARED) == 0)
    spare = int(((frames.owners == taker.domid) & unmapped).nonzero()[0][0])
    given = int(((frames.owners == mapper.domid) & unmapped).nonzero()[0][0])
    granter.grant(REF, mapper.domid, 77, GTF_accept_transfer)

    def transfer(mfn: int) -> int:
        argument = GnttabTransfer(mfn=mfn, domid=taker.domid, ref=REF)
        assert mapper.operation(HYPERVISOR_grant_table_op, GNTTABOP_transfer, argument, 1) == 0
        return argument.status

    for mfn in (spare, mapper.mfn(mapper.page(0)), mapper.domain.shared_info_mfn, 0, frames.total, (1 << 64) - 1):
        assert transfer(mfn) == GNTST_bad_page, hex(mfn)
    taker.write_words(taker.page(1), spare)
    reservation = taker.arguments(taker.page(1).to_bytes(8, "little") + b"\1" + bytes(15) + b"\xf0\x7f" + bytes(6))
    assert taker.hypercall(12, 1, reservation) == 1
    assert transfer(given) == GNTST_okay
    assert frames.owner[given] == taker.domid
    assert taker.hv.m2p[given] == 77
    assert granter.flags(REF) == GTF_accept_transfer | 0xC


@pytest.mark.parametrize("pointer", [0, 0x7000_0000_0000, 0x8000_0000_0000, 0xFFFF_8000_0000_0000])
@pytest.mark.parametrize("command", range(12))
def test_operations_on_bad_pointers(guest: PvGuest, command: int, pointer: int) -> None:
    assert guest.hypercall(HYPERVISOR_grant_table_op, command, pointer, 1) in (-EFAULT, -38, -EINVAL)
