"""Copies to and from guest memory: every address is checked, and a bad pointer is the caller's EFAULT."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hypervisor.support import KERNEL_BASE, RW, Bench, Guest, P
from xenolith.abi.errno import EFAULT, XenError
from xenolith.hypervisor.frames import FLAG_EXECUTABLE

BAD = {
    "null": 0,
    "unmapped": KERNEL_BASE + 0x100000,
    "no L3": 0x0000_7F00_0000_0000,
    "not canonical": 0x0000_8000_0000_0000,
    "not canonical either": 0xFFFF_7FFF_FFFF_FFFF,
    "the hypervisor's": 0xFFFF_8000_0000_0000,
    "the hypervisor's last": 0xFFFF_87FF_FFFF_FFFF,
    "the last page": (1 << 64) - 8,
    "beyond 64 bits": 1 << 64,
    "far beyond": KERNEL_BASE + (1 << 64),
    "below zero": -4096,
}


@pytest.fixture
def guest() -> Guest:
    return Bench().guest(pages=4)


def faults(action: object) -> None:
    with pytest.raises(XenError) as caught:
        action()  # type: ignore[operator]
    assert caught.value.errno == EFAULT


@pytest.mark.parametrize("address", BAD.values(), ids=BAD)
def test_a_bad_pointer_is_efault(guest: Guest, address: int) -> None:
    memory, vcpu = guest.hv.memory, guest.vcpu
    faults(lambda: memory.read(vcpu, address, 8))
    faults(lambda: memory.read(vcpu, address, 5000))
    faults(lambda: memory.read_u64(vcpu, address))
    faults(lambda: memory.write(vcpu, address, b"12345678"))
    faults(lambda: memory.write_u64(vcpu, address, 1))
    assert memory.fetch(vcpu, address) == b""


def test_what_is_mapped_read_only_is_read_and_not_written(guest: Guest) -> None:
    memory, vcpu, address = guest.hv.memory, guest.vcpu, guest.table_va(guest.l1, 1)
    assert memory.read_u64(vcpu, address) == guest.hv.entry(guest.l1, 1)
    before = bytes(guest.hv.ram.frame(guest.l1))
    faults(lambda: memory.write(vcpu, address, b"x"))
    faults(lambda: memory.write_u64(vcpu, address, 0))
    assert bytes(guest.hv.ram.frame(guest.l1)) == before


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_mapping_is_writable_only_if_all_levels_say_so(guest: Guest, level: int) -> None:
    table, slot, kind = ((guest.l2, 0, 2), (guest.l3, 510, 3), (guest.l4, 511, 4))[level]
    entry = guest.hv.entry(table, slot) & ~RW
    guest.hv.pagetables.update(table << 12 | slot << 3, entry, kind, guest.domain, guest.domain.domid)
    guest.hv.memory.read(guest.vcpu, guest.va(0), 8)
    faults(lambda: guest.hv.memory.write(guest.vcpu, guest.va(0), b"x"))


@settings(max_examples=100, deadline=None)
@given(offset=st.integers(0, 3 * 4096), data=st.binary(max_size=9000))
def test_what_is_written_is_read_across_pages(offset: int, data: bytes) -> None:
    guest = Bench().guest(pages=6)
    guest.hv.memory.write(guest.vcpu, guest.va(0) + offset, data)
    assert guest.hv.memory.read(guest.vcpu, guest.va(0) + offset, len(data)) == data
    flat = b"".join(bytes(guest.hv.ram.frame(mfn)) for mfn in guest.data)
    assert flat[offset : offset + len(data)] == data
    assert not any(flat[:offset])
    assert not any(flat[offset + len(data) :])


@pytest.mark.parametrize("offset", range(9))
def test_words_need_no_alignment(guest: Guest, offset: int) -> None:
    address = guest.va(1, 4088 + offset)
    guest.hv.memory.write_u64(guest.vcpu, address, 0x8877_6655_4433_2211)
    assert guest.hv.memory.read_u64(guest.vcpu, address) == 0x8877_6655_4433_2211
    assert guest.hv.memory.read(guest.vcpu, address, 2) == b"\x11\x22"


def test_a_copy_stops_at_the_page_that_is_not_there(guest: Guest) -> None:
    guest.hv.pagetables.update_l1(guest.l1 << 12 | 3 << 3, 0, guest.domain, guest.domain.domid)
    faults(lambda: guest.hv.memory.write(guest.vcpu, guest.va(1, 4090), b"123456789"))
    assert guest.hv.memory.read(guest.vcpu, guest.va(1, 4090), 6) == b"123456"
    faults(lambda: guest.hv.memory.read(guest.vcpu, guest.va(1, 4090), 9))


@pytest.mark.parametrize("size", [(1 << 20) + 1, 1 << 40, 1 << 63, 1 << 64])
def test_no_size_makes_the_host_copy_for_ever(guest: Guest, size: int) -> None:
    faults(lambda: guest.hv.memory.read(guest.vcpu, guest.va(0), size))


def test_an_empty_copy_looks_at_its_address_only_if_it_reads(guest: Guest) -> None:
    assert guest.hv.memory.read(guest.vcpu, guest.va(0), 0) == b""
    guest.hv.memory.write(guest.vcpu, 0, b"")


def test_the_mode_says_which_tables_count(guest: Guest) -> None:
    hv = guest.hv
    l4, l3, l2, l1, page = hv.give(guest.domain, 5)
    hv.table(l1, {1: page << 12 | P | RW})
    for table, slot, lower in ((l2, 0, l1), (l3, 510, l2), (l4, 511, l3)):
        hv.table(table, {slot: lower << 12 | P | RW})
    hv.frames.get_page_and_type(l4, guest.domain.domid, 4)
    guest.vcpu.user_root = l4 << 12
    hv.memory.write(guest.vcpu, guest.va(0), b"kernel")
    guest.vcpu.kernel_mode = False
    hv.memory.write(guest.vcpu, guest.va(0), b"user")
    assert hv.memory.read(guest.vcpu, guest.va(0), 4) == b"user"
    guest.vcpu.kernel_mode = True
    assert hv.memory.read(guest.vcpu, guest.va(0), 6) == b"kernel"


def test_writing_over_code_is_told_to_the_engine(guest: Guest) -> None:
    hv = guest.hv
    for executable in (False, True):
        mfn = guest.data[2]
        hv.frames.flags[mfn] = hv.frames.flags[mfn] & ~FLAG_EXECUTABLE & 0xFF | (FLAG_EXECUTABLE if executable else 0)
        hv.engine.calls.clear()
        hv.memory.write(guest.vcpu, guest.va(2, 16), b"\x90\x90")
        hv.memory.write_u64(guest.vcpu, guest.va(2, 32), 0)
        expected = [("code", mfn << 12 | 16, 2), ("code", mfn << 12 | 32, 8)] if executable else []
        assert hv.engine.calls == expected


def test_device_memory_is_no_memory_to_copy_from(guest: Guest) -> None:
    guest.domain.iomem_ranges = [(0x9000, 0x9000)]
    guest.hv.pagetables.update_l1(guest.l1 << 12 | 8, 0x9000 << 12 | P | RW, guest.domain, guest.domain.domid)
    faults(lambda: guest.hv.memory.read(guest.vcpu, guest.va(0), 8))
    faults(lambda: guest.hv.memory.write(guest.vcpu, guest.va(0), b"x"))


def test_code_is_fetched_as_far_as_it_is_mapped(guest: Guest) -> None:
    last = guest.va(3 + len(guest.tables), 4092)
    assert len(guest.hv.memory.fetch(guest.vcpu, last)) == 4
    assert len(guest.hv.memory.fetch(guest.vcpu, guest.va(0, 4092))) == 15
    assert guest.hv.memory.fetch(guest.vcpu, last + 4) == b""


def test_the_entry_that_maps_an_address(guest: Guest) -> None:
    memory = guest.hv.memory
    assert memory.l1e_maddr(guest.vcpu.kernel_root, guest.va(2)) == guest.l1 << 12 | 3 << 3
    assert memory.l1e_maddr(guest.vcpu.kernel_root, KERNEL_BASE) == guest.l1 << 12, "also where it is not present"
    assert memory.l1e_maddr(guest.vcpu.kernel_root, KERNEL_BASE + (1 << 21)) == 0
    assert memory.l1e_maddr(guest.vcpu.kernel_root, 0) == 0
