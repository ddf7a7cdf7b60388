"""The hypervisor's part of each address space: the M2P, read-only and with holes, and the domain's own area."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.support import NX, RW, USER, Bench, P
from xenolith.abi.errno import EINVAL, XenError
from xenolith.abi.types import DOMID_XEN
from xenolith.hypervisor.frames import HYPERVISOR, TYPE_SHARED, FrameTable
from xenolith.hypervisor.xenspace import XenSpace
from xenolith.machine.ram import Ram

M2P_START = 0xFFFF_8000_0000_0000
M2P_END = 0xFFFF_8040_0000_0000
ADDRESS = 0x000F_FFFF_FFFF_F000


def walk(hv: Bench, root: int, vaddr: int) -> list[int]:
    """The entries that translate an address, down to the last that is present."""
    entries, table = [], root
    for shift in (39, 30, 21, 12):
        entries.append(hv.ram.words[(table >> 3) + (vaddr >> shift & 511)])
        if not entries[-1] & P:
            break
        table = entries[-1] & ADDRESS
    return entries


def test_a_guest_finds_the_m2p_at_its_fixed_address_and_cannot_write_it() -> None:
    hv = Bench(2048)
    guest = hv.guest()
    hv.m2p[1000] = 0x1234
    entries = walk(hv, guest.vcpu.kernel_root, M2P_START + 1000 * 8)
    assert len(entries) == 4
    assert all(entry & USER for entry in entries)
    assert entries[-1] & (RW | NX) == NX
    assert hv.ram.words[((entries[-1] & ADDRESS) + (1000 * 8 & 0xFFF)) >> 3] == 0x1234


def test_there_is_no_m2p_where_there_is_no_memory() -> None:
    frames = FrameTable(Ram(4096 << 12))
    frames.add_ram(0, 1024)
    frames.add_ram(3072, 1024)
    space = XenSpace(frames)
    present = []
    for page in range(8):
        l3 = space._l3_mfn
        l2 = frames.ram.words[l3 << 9] >> 12
        l1 = frames.ram.words[l2 << 9] >> 12
        present.append(bool(frames.ram.words[(l1 << 9) + page] & P))
    assert present == [True, True, False, False, False, False, True, True]


def test_an_unknown_frame_has_an_impossible_pfn() -> None:
    hv = Bench(1024)
    assert all(word == (1 << 64) - 1 for word in hv.m2p)


@pytest.mark.parametrize("frames", [512, 513, 3000])
def test_the_m2p_covers_every_frame(frames: int) -> None:
    hv = Bench(frames)
    assert len(hv.m2p) >= frames
    assert hv.xenspace.m2p_range() == (M2P_START, M2P_END, (M2P_END - M2P_START) // 8 - 1)
    first = hv.xenspace.m2p_chunks()[0]
    hv.m2p[0] = 7
    assert hv.ram.words[first << 9] == 7


def test_the_m2p_is_all_of_the_hypervisor_that_a_privileged_domain_can_have_and_not_to_write() -> None:
    hv = Bench(512)
    domain = hv.domain(1)
    assert all(hv.frames.type[mfn] == TYPE_SHARED for mfn in hv.frames.owned_by(DOMID_XEN))
    assert hv.frames.owned_by(DOMID_XEN) == hv.xenspace.m2p_chunks()
    m2p = hv.xenspace.m2p_chunks()[0]
    hv.pagetables.get_l1e(m2p << 12 | P, domain, DOMID_XEN)
    hv.frames.put_page(m2p)
    with pytest.raises(XenError) as caught:
        hv.pagetables.get_l1e(m2p << 12 | P | RW, domain, DOMID_XEN)
    assert caught.value.errno == EINVAL
    for mfn in hv.frames.owned_by(HYPERVISOR):
        with pytest.raises(XenError, match="belongs to the hypervisor"):
            hv.pagetables.get_l1e(mfn << 12 | P, domain, DOMID_XEN)


def test_each_domain_sees_its_own_area() -> None:
    hv = Bench(512)
    first, second = hv.guest(), hv.guest()
    areas = {hv.entry(guest.l4, 260) & ADDRESS for guest in (first, second)}
    assert areas == {first.domain.perdomain_l3_mfn << 12, second.domain.perdomain_l3_mfn << 12}
    assert not any(hv.entry(guest.l4, 260) & USER for guest in (first, second)), "only the processor uses it"
