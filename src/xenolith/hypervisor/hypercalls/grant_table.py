"""grant_table_op: a guest's access to grants, and where they meet its page tables (public header grant_table.h)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EINVAL, ENOSYS, EPERM, ESRCH, XenError
from xenolith.abi.grant_table import (
    GNTTAB_CACHE_CLEAN,
    GNTTAB_CACHE_INVAL,
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_readonly,
    GNTST_bad_domain,
    GNTST_bad_virt_addr,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GnttabCacheFlush,
    GnttabCopy,
    GnttabGetStatusFrames,
    GnttabGetVersion,
    GnttabMapGrantRef,
    GNTTABOP_cache_flush,
    GNTTABOP_copy,
    GNTTABOP_get_status_frames,
    GNTTABOP_get_version,
    GNTTABOP_map_grant_ref,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_transfer,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
    GnttabSwapGrantRef,
    GnttabTransfer,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
)
from xenolith.abi.hypercalls import HYPERVISOR_grant_table_op
from xenolith.abi.types import PAGE_SHIFT, PAGE_SIZE, Struct
from xenolith.hypervisor import grants
from xenolith.hypervisor.frames import NOT_RAM
from xenolith.hypervisor.grants import CopyEnd, GrantError, Mapping
from xenolith.hypervisor.guest_memory import CANONICAL_LOW_END, HYPERVISOR_END
from xenolith.hypervisor.hypercalls.table import (
    OPERATIONS,
    BoundOperation,
    Continuation,
    hypercall,
    operation,
    run_operation,
)
from xenolith.hypervisor.pagetables import ACCESSED, ADDRESS, DIRTY, NX, PRESENT, RW, USER, adjust_l1e

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_COMMAND_MASK: Final = 0xFFF
_ONE_ONLY: Final = (GNTTABOP_setup_table, GNTTABOP_query_size, GNTTABOP_get_status_frames)
_WITHOUT_COUNT: Final = (GNTTABOP_set_version, GNTTABOP_get_version)


_COPY: Final = struct.Struct("<QHH4xQHH4xHH4x")
_COPY_STATUS: Final[int] = GnttabCopy.status.offset  # type: ignore[attr-defined]
_PART: Final = 256
"""Elements that one part of a call does."""


@hypercall(HYPERVISOR_grant_table_op)
def grant_table_op(hv: Hypervisor, caller: Vcpu, command: int, vaddr: int, count: int) -> int:
    """Run one sub-operation on `count` argument structures, each of which gets its own GNTST_* status.

    Raises XenError: EINVAL, EFAULT, ENOSYS, or what an operation without a status raises.
    """
    command &= 0xFFFF_FFFF
    count &= 0xFFFF_FFFF
    if count >> 31 or command & ~_COMMAND_MASK:
        raise XenError(EINVAL, f"command {command:#x}, count {count:#x}")
    if command in _WITHOUT_COUNT:
        return run_operation(hv, caller, HYPERVISOR_grant_table_op, command, vaddr)
    bound = OPERATIONS.get((HYPERVISOR_grant_table_op, command))
    if bound is None or bound.argument is None:
        hv.count_unimplemented(HYPERVISOR_grant_table_op, command)
        raise XenError(ENOSYS)
    if command in _ONE_ONLY and count != 1:
        raise XenError(EINVAL, f"{bound.name} takes one structure, not {count}")
    size = bound.argument.sizeof()
    part = min(count, _PART)
    if command != GNTTABOP_copy or not _copy_all(hv, caller, vaddr, part):
        for index in range(part):
            _run_one(hv, caller, bound, bound.argument, vaddr + index * size)
    if part < count:
        raise Continuation(command, vaddr + part * size, count - part)
    return 0


def _run_one(hv: Hypervisor, caller: Vcpu, bound: BoundOperation, structure: type[Struct], vaddr: int) -> None:
    argument = structure.from_bytes(hv.memory.read(caller, vaddr, structure.sizeof()))
    status = GNTST_okay
    try:
        bound.handler(hv, caller, argument)
    except GrantError as error:
        status = error.status
    if not hasattr(argument, "status"):
        return
    argument.status = status
    field = structure.status
    start, end = (0, structure.sizeof()) if bound.copy_back else (field.offset, field.offset + field.size)
    hv.memory.write(caller, vaddr + start, argument.to_bytes()[start:end])


def _target(hv: Hypervisor, caller: Vcpu, domid: int, action: str) -> Domain:
    """The domain that an operation is about, if the caller may act on it. Raises GrantError."""
    try:
        domain = hv.domain_by_id(caller, domid)
        hv.policy.require_target(caller.domain, domain, action)
    except XenError as error:
        statuses = {ESRCH: GNTST_bad_domain, EPERM: GNTST_permission_denied}
        raise GrantError(statuses.get(error.errno, GNTST_general_error), str(error)) from None
    return domain


# -- mapping ----------------------------------------------------------------------------------------------------------


def grant_l1e(mfn: int, flags: int) -> int:
    """The L1 entry that maps a granted frame as the GNTMAP_* `flags` say: never executable, marked as used."""
    entry = mfn << PAGE_SHIFT | PRESENT | ACCESSED | DIRTY | NX | (flags >> 16 & 7) << 9
    if not flags & GNTMAP_readonly:
        entry |= RW
    if flags & GNTMAP_application_map:
        entry |= USER
    return adjust_l1e(entry)


def _entry_maddr(hv: Hypervisor, caller: Vcpu, host_addr: int, flags: int) -> int:
    """The machine address of the L1 entry that `host_addr` means. Raises XenError(EINVAL)."""
    maddr = host_addr
    if not flags & GNTMAP_contains_pte:
        if CANONICAL_LOW_END <= host_addr < HYPERVISOR_END:
            raise XenError(EINVAL, f"{host_addr:#x} is no address of the guest")
        maddr = hv.memory.l1e_maddr(caller.kernel_root, host_addr)
    if not 0 < maddr < hv.frames.total << PAGE_SHIFT or maddr & 7:
        raise XenError(EINVAL, f"there is no L1 entry for {host_addr:#x}")
    return maddr


def _granted_entry(hv: Hypervisor, caller: Vcpu, host_addr: int, mapping: Mapping) -> int:
    """Where `mapping` lies. An entry of other access holds other references, and is refused with XenError(EINVAL)."""
    maddr = _entry_maddr(hv, caller, host_addr, mapping.flags)
    entry = hv.ram.words[maddr >> 3]
    if bool(entry & RW) == mapping.readonly:
        raise XenError(EINVAL, f"L1e {entry:#x} has not the access of the mapping")
    return maddr


@operation(HYPERVISOR_grant_table_op, GNTTABOP_map_grant_ref, copy_back=True)
def map_grant_ref(hv: Hypervisor, caller: Vcpu, arg: GnttabMapGrantRef) -> None:
    def install(mfn: int) -> None:
        maddr = _entry_maddr(hv, caller, arg.host_addr, arg.flags)
        hv.pagetables.map_grant_pte(caller.domain, maddr, grant_l1e(mfn, arg.flags))

    arg.handle, mfn = caller.domain.grants.map_grant(arg.dom, arg.ref, arg.flags, install)
    arg.dev_bus_addr = mfn << PAGE_SHIFT


@operation(HYPERVISOR_grant_table_op, GNTTABOP_unmap_grant_ref)
def unmap_grant_ref(hv: Hypervisor, caller: Vcpu, arg: GnttabUnmapGrantRef) -> None:
    def remove(mapping: Mapping) -> None:
        maddr = _granted_entry(hv, caller, arg.host_addr, mapping)
        hv.pagetables.unmap_grant_pte(caller.domain, maddr, mapping.active.mfn, 0)

    caller.domain.grants.unmap_grant(arg.handle, arg.dev_bus_addr, remove if arg.host_addr else None)


@operation(HYPERVISOR_grant_table_op, GNTTABOP_unmap_and_replace)
def unmap_and_replace(hv: Hypervisor, caller: Vcpu, arg: GnttabUnmapAndReplace) -> None:
    def remove(mapping: Mapping) -> None:
        maddr = _granted_entry(hv, caller, arg.host_addr, mapping)
        if not arg.new_addr:
            hv.pagetables.unmap_grant_pte(caller.domain, maddr, mapping.active.mfn, 0)
        elif mapping.flags & GNTMAP_contains_pte:
            raise XenError(EINVAL, "a mapping at the address of an entry cannot be replaced")
        else:
            _move_entry(hv, caller, _entry_maddr(hv, caller, arg.new_addr, 0), maddr, mapping.active.mfn)

    caller.domain.grants.unmap_grant(arg.handle, 0, remove if arg.host_addr else None)


def _move_entry(hv: Hypervisor, caller: Vcpu, source: int, dest: int, mfn: int) -> None:
    """Take the entry at `source`, with the references that it holds, to `dest`, where it replaces that of `mfn`."""
    domain = caller.domain
    if source == dest:
        raise XenError(EINVAL, "a mapping cannot replace itself")
    entry = hv.ram.words[source >> 3]
    if not entry & PRESENT:
        hv.pagetables.unmap_grant_pte(domain, dest, mfn, 0)
        return
    moved = (entry & ADDRESS) >> PAGE_SHIFT
    hv.pagetables.unmap_grant_pte(domain, source, moved, 0)
    try:
        hv.pagetables.unmap_grant_pte(domain, dest, mfn, entry)
    except XenError:
        hv.pagetables.map_grant_pte(domain, source, entry)
        raise


# -- the table itself -------------------------------------------------------------------------------------------------


@operation(HYPERVISOR_grant_table_op, GNTTABOP_setup_table)
def setup_table(hv: Hypervisor, caller: Vcpu, arg: GnttabSetupTable) -> None:
    table = _target(hv, caller, arg.dom, "set up a grant table").grants
    try:
        table.grow(arg.nr_frames)
    except XenError as error:
        raise GrantError(GNTST_general_error, str(error)) from None
    _write_frame_list(hv, caller, arg.frame_list, table.frames[: arg.nr_frames])


def _write_frame_list(hv: Hypervisor, caller: Vcpu, vaddr: int, mfns: list[int]) -> None:
    try:
        hv.memory.write(caller, vaddr, b"".join(mfn.to_bytes(8, "little") for mfn in mfns))
    except XenError as error:
        raise GrantError(GNTST_bad_virt_addr, str(error)) from None


@operation(HYPERVISOR_grant_table_op, GNTTABOP_get_status_frames)
def get_status_frames(hv: Hypervisor, caller: Vcpu, arg: GnttabGetStatusFrames) -> None:
    table = _target(hv, caller, arg.dom, "see the status frames of a grant table").grants
    if arg.nr_frames > len(table.status_frames):
        raise GrantError(GNTST_general_error, f"there are {len(table.status_frames)} status frames")
    _write_frame_list(hv, caller, arg.frame_list, table.status_frames[: arg.nr_frames])


@operation(HYPERVISOR_grant_table_op, GNTTABOP_query_size, copy_back=True)
def query_size(hv: Hypervisor, caller: Vcpu, arg: GnttabQuerySize) -> None:
    table = _target(hv, caller, arg.dom, "see the size of a grant table").grants
    arg.nr_frames = len(table.frames)
    arg.max_nr_frames = table.max_frames


@operation(HYPERVISOR_grant_table_op, GNTTABOP_set_version, raw=True)
def set_version(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    """The version in force is written back whether or not it could be changed."""
    table = caller.domain.grants
    arg = GnttabSetVersion.from_bytes(hv.memory.read(caller, vaddr, GnttabSetVersion.sizeof()))
    try:
        table.set_version(arg.version)
    finally:
        arg.version = table.version
        hv.memory.write(caller, vaddr, arg.to_bytes())


@operation(HYPERVISOR_grant_table_op, GNTTABOP_get_version, copy_back=True)
def get_version(hv: Hypervisor, caller: Vcpu, arg: GnttabGetVersion) -> None:
    domain = hv.domain_by_id(caller, arg.dom)
    hv.policy.require_target(caller.domain, domain, "see the version of a grant table")
    arg.version = domain.grants.version


@operation(HYPERVISOR_grant_table_op, GNTTABOP_swap_grant_ref)
def swap_grant_ref(hv: Hypervisor, caller: Vcpu, arg: GnttabSwapGrantRef) -> None:
    caller.domain.grants.swap(arg.ref_a, arg.ref_b)


# -- copying, transfer, caches ----------------------------------------------------------------------------------------


@operation(HYPERVISOR_grant_table_op, GNTTABOP_copy)
def copy(hv: Hypervisor, caller: Vcpu, arg: GnttabCopy) -> None:
    source = CopyEnd(arg.source.u.gmfn, arg.source.domid, arg.source.offset, bool(arg.flags & GNTCOPY_source_gref))
    dest = CopyEnd(arg.dest.u.gmfn, arg.dest.domid, arg.dest.offset, bool(arg.flags & GNTCOPY_dest_gref))
    grants.copy(hv, caller.domain, source, dest, arg.len)


def _copy_all(hv: Hypervisor, caller: Vcpu, vaddr: int, count: int) -> bool:
    """Do copies whose arguments can be read together, which spares a network backend most of its time. False, and
    nothing done, if they cannot."""
    size = GnttabCopy.sizeof() * count
    try:
        arguments = bytearray(hv.memory.read(caller, vaddr, size))
    except XenError:
        return False
    at = _COPY_STATUS
    for number, domid, offset, other, other_domid, other_offset, length, flags in _COPY.iter_unpack(bytes(arguments)):
        status = GNTST_okay
        try:
            source = CopyEnd(number, domid, offset, bool(flags & GNTCOPY_source_gref))
            dest = CopyEnd(other, other_domid, other_offset, bool(flags & GNTCOPY_dest_gref))
            grants.copy(hv, caller.domain, source, dest, length)
        except GrantError as error:
            status = error.status
        arguments[at : at + 2] = status.to_bytes(2, "little", signed=True)
        at += _COPY.size
    hv.memory.write(caller, vaddr, bytes(arguments))
    return True


@operation(HYPERVISOR_grant_table_op, GNTTABOP_transfer)
def transfer(hv: Hypervisor, caller: Vcpu, arg: GnttabTransfer) -> None:
    grants.transfer(hv, caller.domain, arg.mfn, arg.domid, arg.ref)


@operation(HYPERVISOR_grant_table_op, GNTTABOP_cache_flush)
def cache_flush(hv: Hypervisor, caller: Vcpu, arg: GnttabCacheFlush) -> None:
    """Caches are coherent here, so only the arguments are checked. Raises XenError: EINVAL, EPERM."""
    if arg.offset + arg.length > PAGE_SIZE or arg.offset >= PAGE_SIZE:
        raise XenError(EINVAL, f"{arg.length} bytes at {arg.offset:#x} leave the frame")
    if arg.op & ~(GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL):
        raise XenError(EINVAL, f"cache operation {arg.op:#x}")
    if not arg.length or not arg.op:
        return
    mfn = arg.a.dev_bus_addr >> PAGE_SHIFT
    if mfn >= hv.frames.total or hv.frames.owner[mfn] == NOT_RAM:
        raise XenError(EINVAL, f"frame {mfn:#x} is no memory")
    owner = hv.domains.get(hv.frames.owner[mfn])
    if owner is None:
        raise XenError(EPERM, f"frame {mfn:#x} is free")
    if owner is not caller.domain and not owner.grants.is_mapped_by(caller.domain.domid, mfn):
        raise XenError(EINVAL, f"frame {mfn:#x} is not granted to {caller.domain}")
