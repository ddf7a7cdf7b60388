"""Page-table hypercalls: mmu_update, update_va_mapping, mmuext_op, and the GDT and descriptor calls."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import numpy as np

from xenolith.abi.errno import EACCES, EFAULT, EINVAL, ENOSYS, EPERM, XenError
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
    UVMF_FLUSHTYPE_MASK,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
)
from xenolith.abi.types import DOMID_FIRST_RESERVED, DOMID_IO, DOMID_SELF, DOMID_XEN, PAGE_OFFSET_MASK, PAGE_SIZE
from xenolith.hypervisor.domain import Domain
from xenolith.hypervisor.frames import FLAG_EXECUTABLE, FLAG_PINNED, TYPE_L1, TYPE_L4, TYPE_WRITABLE
from xenolith.hypervisor.hypercalls.table import Continuation, hypercall
from xenolith.hypervisor.vcpu import Vcpu

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

_PREEMPTED: Final = 0x8000_0000
"""Set in the count of a call that is continued (Xen's MMU_UPDATE_PREEMPTED)."""
_ENTRY_BYTES: Final = 64
_RESULT: Final = 1
_ARGUMENT: Final = 2
"""struct multicall_entry (public/xen.h): its size, and the words that its result and its first argument are."""
_PART: Final = 4096
"""Elements that one part of a call does."""


def _table_owner(hv: Hypervisor, vcpu: Vcpu, foreign: int, what: str) -> Domain:
    """The domain whose tables are meant: the high half of the domid argument, 0 for the caller's own."""
    domid = foreign >> 16
    if not domid:
        return vcpu.domain
    domain = hv.domain_by_id(vcpu, domid - 1)
    hv.policy.require_target(vcpu.domain, domain, what)
    return domain


def _frame_owner(hv: Hypervisor, vcpu: Vcpu, foreign: int, table_owner: Domain, what: str) -> int:
    """Whose frames an L1 entry may map: the low half of the domid argument."""
    domid = foreign & 0xFFFF
    if domid == DOMID_SELF:
        return table_owner.domid if foreign >> 16 else vcpu.domain.domid
    if domid == vcpu.domain.domid:
        return domid
    if domid in (DOMID_IO, DOMID_XEN):
        hv.policy.require_foreign_special(vcpu.domain, domid, what)
        return domid
    if domid >= DOMID_FIRST_RESERVED:
        raise XenError(EPERM, f"domid {domid:#x} owns no frames that can be mapped")
    domain = hv.domain_by_id(vcpu, domid)
    hv.policy.require_target(vcpu.domain, domain, what)
    return domain.domid


@hypercall(HYPERVISOR_mmu_update)
def mmu_update(hv: Hypervisor, vcpu: Vcpu, requests: int, count: int, done: int, foreign: int) -> int:
    """Update page-table entries and the M2P (public/xen.h); stops at the first that fails.

    `done` is where the number of successful updates is written, unless it is 0. Raises what the failing update raises.
    """
    count &= 0xFFFF_FFFF
    foreign &= 0xFFFF_FFFF
    before, count = _continued(hv, vcpu, count, done) if count & _PREEMPTED else (0, count)
    domain = vcpu.domain
    if foreign == DOMID_SELF:
        table_owner, owner_domid = domain, domain.domid
    else:
        table_owner = _table_owner(hv, vcpu, foreign, "mmu_update")
        owner_domid = _frame_owner(hv, vcpu, foreign, table_owner, "mmu_update")
    if count == 1 and not done and not requests & 7:
        at = hv.memory.walk(vcpu.kernel_root, requests) >> 3
        if at & 511 != 511:  # the commonest case by far: one request, within a frame
            update_entry(hv, vcpu, hv.ram.words[at], hv.ram.words[at + 1], table_owner, owner_domid)
            return 0
    part = min(count, _PART)
    finished = 0
    try:
        while finished < part:
            start = requests + finished * 16
            # No batch crosses a page, so that those before a bad one are carried out.
            batch = min(part - finished, (PAGE_SIZE - (start & PAGE_OFFSET_MASK)) // 16 or 1)
            pairs = memoryview(hv.memory.read(vcpu, start, batch * 16)).cast("Q")
            for at in range(0, batch * 2, 2):
                update_entry(hv, vcpu, pairs[at], pairs[at + 1], table_owner, owner_domid)
                finished += 1
    finally:
        _tell(hv, vcpu, done, before + finished)
    if finished < count:
        raise Continuation(requests + finished * 16, (count - finished) | _PREEMPTED, done, foreign)
    return 0


def _continued(hv: Hypervisor, vcpu: Vcpu, count: int, done: int) -> tuple[int, int]:
    """How many elements earlier parts of this call have done (the guest keeps the count), and how many are left."""
    before = int.from_bytes(hv.memory.read(vcpu, done, 4), "little") if done else 0
    return before & 0x7FFF_FFFF, count & ~_PREEMPTED


def _tell(hv: Hypervisor, vcpu: Vcpu, done: int, count: int) -> None:
    """Write how many elements were done; a guest whose counter cannot be written is not told, as with Xen."""
    if done:
        with contextlib.suppress(XenError):
            hv.memory.write(vcpu, done, count.to_bytes(4, "little"))


def update_entry(hv: Hypervisor, vcpu: Vcpu, pointer: int, value: int, table_owner: Domain, owner_domid: int) -> None:
    """One request of mmu_update."""
    kind = pointer & 7
    maddr = pointer & ~7
    frames = hv.frames
    mfn = maddr >> 12
    if kind > MMU_PT_UPDATE_NO_TRANSLATE:
        raise XenError(ENOSYS, f"there is no page-table update {kind}")
    if kind == MMU_MACHPHYS_UPDATE:
        if not frames.get_page(mfn, owner_domid):
            raise XenError(EINVAL, f"frame {mfn:#x} {frames.describe_owner(mfn)}")
        hv.m2p[mfn] = value
        frames.put_page(mfn)
        return
    if mfn >= frames.total or frames.owner[mfn] != table_owner.domid:
        raise XenError(EINVAL, f"page-table frame {mfn:#x} {frames.describe_owner(mfn)}")
    in_use = frames.type_count[mfn]
    current = frames.type[mfn] if in_use else 0
    if current == TYPE_L1:
        hv.pagetables.update_l1(maddr, value, table_owner, owner_domid, kind == MMU_PT_UPDATE_PRESERVE_AD)
    elif TYPE_L1 < current <= TYPE_L4:
        hv.pagetables.update(maddr, value, current, table_owner, owner_domid, kind == MMU_PT_UPDATE_PRESERVE_AD)
    else:
        frames.get_page_type(mfn, TYPE_WRITABLE)
        hv.memory.write_machine(maddr, value.to_bytes(8, "little"))
        frames.put_page_type(mfn)


# -- update_va_mapping -------------------------------------------------------------------------------------------------


def _update_va_mapping(hv: Hypervisor, vcpu: Vcpu, vaddr: int, value: int, flags: int, owner_domid: int) -> int:
    maddr = hv.memory.l1e_maddr(vcpu.kernel_root, vaddr) if is_guest_address(vaddr) else 0
    mfn = maddr >> 12
    if not maddr or hv.frames.type[mfn] != TYPE_L1 or not hv.frames.type_count[mfn]:
        raise XenError(EINVAL, f"no L1 table maps {vaddr:#x}")
    hv.pagetables.update_l1(maddr, value, vcpu.domain, owner_domid)
    kind = flags & UVMF_FLUSHTYPE_MASK
    if kind == UVMF_INVLPG:
        hv.flush_page(vaddr)
    elif kind == UVMF_TLB_FLUSH:
        hv.flush_all()
    return 0


def update_va_mappings(hv: Hypervisor, vcpu: Vcpu, calls: int, count: int) -> int:
    """Carry out the first of `count` entries of a multicall (struct multicall_entry) together, and write their results.

    Only successful updates of neighbouring pages, without flushes, are: all pages come, or all of them go. Nothing else
    could happen between two of them. Returns how many were, which may be none.
    """
    memory, tables = hv.memory, hv.pagetables
    count = min(count, (PAGE_SIZE - (calls & PAGE_OFFSET_MASK)) // _ENTRY_BYTES)
    try:
        list_maddr = memory.walk(vcpu.kernel_root, calls, 3)
    except XenError:
        return 0
    if calls & 7 or not count or hv.frames.flags[list_maddr >> 12] & FLAG_EXECUTABLE:
        return 0
    entries = tables.table[list_maddr >> 3 : (list_maddr >> 3) + 8 * count].reshape(count, 8)
    vaddr = int(entries[0, _ARGUMENT])
    table_maddr = memory.l1e_maddr(vcpu.kernel_root, vaddr) if is_guest_address(vaddr) else 0
    mfn = table_maddr >> 12
    if not table_maddr or hv.frames.type[mfn] != TYPE_L1 or not hv.frames.type_count[mfn]:
        return 0
    room = (PAGE_SIZE - (table_maddr & PAGE_OFFSET_MASK)) // 8
    count = min(count, room)
    vaddrs = np.arange(count, dtype=np.uint64) * np.uint64(PAGE_SIZE) + np.uint64(vaddr)
    numbers, flags = entries[:count, 0], entries[:count, _ARGUMENT + 2]
    fitting = (numbers == HYPERVISOR_update_va_mapping) & (entries[:count, _ARGUMENT] == vaddrs) & (flags == 0)
    count = count if fitting.all() else int(fitting.argmin())
    list_l1e = memory.l1e_maddr(vcpu.kernel_root, calls)
    if not count or table_maddr <= list_l1e < table_maddr + 8 * count:
        return 0
    if not tables.update_l1s(table_maddr, entries[:count, _ARGUMENT + 1], vcpu.domain):
        return 0
    entries[:count, _RESULT] = 0
    hv.hypercall_counts[HYPERVISOR_update_va_mapping] += count
    return count


def is_guest_address(vaddr: int) -> bool:
    """Canonical and outside the hypervisor's range."""
    return vaddr < 0x0000_8000_0000_0000 or 0xFFFF_8800_0000_0000 <= vaddr < 1 << 64


@hypercall(HYPERVISOR_update_va_mapping)
def update_va_mapping(hv: Hypervisor, vcpu: Vcpu, vaddr: int, value: int, flags: int) -> int:
    """Replace the L1 entry that maps `vaddr`, and flush as `flags` (UVMF_*) says."""
    return _update_va_mapping(hv, vcpu, vaddr, value, flags, vcpu.domain.domid)


@hypercall(HYPERVISOR_update_va_mapping_otherdomain)
def update_va_mapping_otherdomain(hv: Hypervisor, vcpu: Vcpu, vaddr: int, value: int, flags: int, domid: int) -> int:
    """The same with a frame of another domain."""
    owner = _frame_owner(hv, vcpu, domid & 0xFFFF, vcpu.domain, "update_va_mapping_otherdomain")
    return _update_va_mapping(hv, vcpu, vaddr, value, flags, owner)


# -- mmuext_op ---------------------------------------------------------------------------------------------------------

_OP_BYTES: Final = 24


@hypercall(HYPERVISOR_mmuext_op)
def mmuext_op(hv: Hypervisor, vcpu: Vcpu, operations: int, count: int, done: int, foreign: int) -> int:
    """Extended operations (struct mmuext_op): pinning, base pointers, flushes, LDT; stops at the first that fails."""
    count &= 0xFFFF_FFFF
    foreign &= 0xFFFF
    before, count = _continued(hv, vcpu, count, done) if count & _PREEMPTED else (0, count)
    if foreign in (DOMID_SELF, vcpu.domain.domid):
        owner = vcpu.domain
    elif foreign >= DOMID_FIRST_RESERVED:
        raise XenError(EPERM, f"domid {foreign:#x} has no page tables")
    else:
        owner = hv.domain_by_id(vcpu, foreign)
        hv.policy.require_target(vcpu.domain, owner, "mmuext_op")
    part = min(count, _PART)
    finished = 0
    try:
        while finished < part:
            words = memoryview(hv.memory.read(vcpu, operations + finished * _OP_BYTES, _OP_BYTES)).cast("Q")
            _extended(hv, vcpu, owner, words[0] & 0xFFFF_FFFF, words[1], words[2])
            finished += 1
    finally:
        _tell(hv, vcpu, done, before + finished)
    if finished < count:
        raise Continuation(operations + finished * _OP_BYTES, (count - finished) | _PREEMPTED, done, foreign)
    return 0


def _extended(hv: Hypervisor, vcpu: Vcpu, owner: Domain, command: int, arg1: int, arg2: int) -> None:
    if command == MMUEXT_NEW_BASEPTR:
        _own_only(vcpu, owner)
        new_base(hv, vcpu, arg1)
    elif command == MMUEXT_NEW_USER_BASEPTR:
        _own_only(vcpu, owner)
        new_user_base(hv, vcpu, arg1)
    elif MMUEXT_PIN_L1_TABLE <= command <= MMUEXT_PIN_L4_TABLE:
        pin(hv, owner, arg1, TYPE_L1 + command - MMUEXT_PIN_L1_TABLE)
    elif command == MMUEXT_UNPIN_TABLE:
        unpin(hv, owner, arg1)
    elif command in (MMUEXT_TLB_FLUSH_LOCAL, MMUEXT_TLB_FLUSH_ALL):
        _own_only(vcpu, owner)
        hv.flush_all()
    elif command in (MMUEXT_INVLPG_LOCAL, MMUEXT_INVLPG_ALL):
        _own_only(vcpu, owner)
        if is_guest_address(arg1):
            hv.flush_page(arg1)
    elif command in (MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI):
        _own_only(vcpu, owner)
        hv.memory.read(vcpu, arg2, (len(vcpu.domain.vcpus) + 7) // 8)
        if command == MMUEXT_TLB_FLUSH_MULTI:
            hv.flush_all()
        elif is_guest_address(arg1):
            hv.flush_page(arg1)
    elif command == MMUEXT_SET_LDT:
        _own_only(vcpu, owner)
        entries = arg2 & 0xFFFF_FFFF
        base = arg1 if entries else 0
        if not is_guest_address(base):
            raise XenError(EINVAL, f"LDT at {base:#x}")
        hv.descriptors.set_ldt(vcpu, base, entries)
    elif command in (MMUEXT_FLUSH_CACHE, MMUEXT_FLUSH_CACHE_GLOBAL):
        _own_only(vcpu, owner)
        if not (vcpu.domain.iomem_ranges or vcpu.domain.port_ranges):
            raise XenError(EINVAL if command == MMUEXT_FLUSH_CACHE_GLOBAL else EACCES, "no hardware of its own")
    elif command in (MMUEXT_CLEAR_PAGE, MMUEXT_COPY_PAGE):
        _page_operation(hv, owner, arg1, arg2 if command == MMUEXT_COPY_PAGE else None)
    else:
        raise XenError(ENOSYS, f"mmuext_op {command}")


def _own_only(vcpu: Vcpu, owner: Domain) -> None:
    if owner is not vcpu.domain:
        raise XenError(EPERM, "acts on the calling vCPU only")


def pin(hv: Hypervisor, owner: Domain, mfn: int, kind: int) -> None:
    """Validate a table and keep it valid until it is unpinned. Raises XenError(EINVAL)."""
    frames = hv.frames
    if owner.is_dying:
        raise XenError(EINVAL, f"domain {owner.domid} is dying")
    frames.get_page_and_type(mfn, owner.domid, kind)
    if frames.flags[mfn] & FLAG_PINNED:
        frames.put_page_and_type(mfn)
        raise XenError(EINVAL, f"frame {mfn:#x} is pinned already")
    frames.flags[mfn] |= FLAG_PINNED


def unpin(hv: Hypervisor, owner: Domain, mfn: int) -> None:
    """Raises XenError(EINVAL) for a frame that is not the domain's or not pinned."""
    frames = hv.frames
    if mfn >= frames.total or frames.owner[mfn] != owner.domid or not frames.flags[mfn] & FLAG_PINNED:
        raise XenError(EINVAL, f"frame {mfn:#x} is not pinned by domain {owner.domid}")
    frames.flags[mfn] &= ~FLAG_PINNED & 0xFF
    frames.put_page_and_type(mfn)


def new_base(hv: Hypervisor, vcpu: Vcpu, mfn: int) -> None:
    """Use the L4 table `mfn` for the kernel's mode. Raises XenError(EINVAL)."""
    old = vcpu.kernel_root >> 12
    if old == mfn and old:
        hv.load_root(vcpu.kernel_root)
        return
    hv.frames.get_page_and_type(mfn, vcpu.domain.domid, TYPE_L4)
    hv.descriptors.drop_ldt(vcpu)
    vcpu.kernel_root = mfn << 12
    hv.load_root(vcpu.kernel_root)
    if old:
        hv.frames.put_page_and_type(old)


def new_user_base(hv: Hypervisor, vcpu: Vcpu, mfn: int) -> None:
    """Use the L4 table `mfn` for user mode; 0 for none. Raises XenError(EINVAL)."""
    old = vcpu.user_root >> 12
    if old == mfn:
        return
    if mfn:
        hv.frames.get_page_and_type(mfn, vcpu.domain.domid, TYPE_L4)
    vcpu.user_root = mfn << 12
    if old:
        hv.frames.put_page_and_type(old)


def _page_operation(hv: Hypervisor, owner: Domain, target_mfn: int, source_mfn: int | None) -> None:
    frames = hv.frames
    if source_mfn is not None and not frames.get_page(source_mfn, owner.domid):
        raise XenError(EINVAL, f"frame {source_mfn:#x} {frames.describe_owner(source_mfn)}")
    try:
        frames.get_page_and_type(target_mfn, owner.domid, TYPE_WRITABLE)
        content = bytes(4096) if source_mfn is None else bytes(hv.ram.frame(source_mfn))
        hv.memory.write_machine(target_mfn << 12, content)
        frames.put_page_and_type(target_mfn)
    finally:
        if source_mfn is not None:
            frames.put_page(source_mfn)


# -- descriptors -------------------------------------------------------------------------------------------------------


@hypercall(HYPERVISOR_set_gdt)
def set_gdt(hv: Hypervisor, vcpu: Vcpu, frame_list: int, entries: int) -> int:
    """Use the frames listed at `frame_list` as GDT of `entries` descriptors."""
    entries &= 0xFFFF_FFFF
    count = (entries + 511) // 512
    if entries > 7168:
        raise XenError(EINVAL, f"{entries} GDT entries")
    if entries and not is_guest_address(frame_list):
        raise XenError(EFAULT)
    mfns = memoryview(hv.memory.read(vcpu, frame_list, count * 8)).cast("Q").tolist() if count else []
    hv.descriptors.set_gdt(vcpu, mfns, entries)
    return 0


@hypercall(HYPERVISOR_update_descriptor)
def update_descriptor(hv: Hypervisor, vcpu: Vcpu, maddr: int, descriptor: int) -> int:
    """Write one descriptor of a table of the calling domain."""
    hv.descriptors.update_descriptor(vcpu.domain, maddr, descriptor)
    return 0
