"""Page-table updates: mmu_update, mmuext_op and update_va_mapping (xen.h)."""

from typing import Final

from xenolith.abi.types import U32, U64, Handle, Struct, Union, layout

# The low two bits of MmuUpdate.ptr.
MMU_NORMAL_PT_UPDATE: Final = 0
MMU_MACHPHYS_UPDATE: Final = 1
MMU_PT_UPDATE_PRESERVE_AD: Final = 2
MMU_PT_UPDATE_NO_TRANSLATE: Final = 3

# MmuextOp.cmd.
MMUEXT_PIN_L1_TABLE: Final = 0
MMUEXT_PIN_L2_TABLE: Final = 1
MMUEXT_PIN_L3_TABLE: Final = 2
MMUEXT_PIN_L4_TABLE: Final = 3
MMUEXT_UNPIN_TABLE: Final = 4
MMUEXT_NEW_BASEPTR: Final = 5
MMUEXT_TLB_FLUSH_LOCAL: Final = 6
MMUEXT_INVLPG_LOCAL: Final = 7
MMUEXT_TLB_FLUSH_MULTI: Final = 8
MMUEXT_INVLPG_MULTI: Final = 9
MMUEXT_TLB_FLUSH_ALL: Final = 10
MMUEXT_INVLPG_ALL: Final = 11
MMUEXT_FLUSH_CACHE: Final = 12
MMUEXT_SET_LDT: Final = 13
MMUEXT_NEW_USER_BASEPTR: Final = 15
MMUEXT_CLEAR_PAGE: Final = 16
MMUEXT_COPY_PAGE: Final = 17
MMUEXT_FLUSH_CACHE_GLOBAL: Final = 18
MMUEXT_MARK_SUPER: Final = 19
MMUEXT_UNMARK_SUPER: Final = 20

# update_va_mapping flags. With a flush and UVMF_MULTI, the rest is the address of a vcpu bitmap.
UVMF_NONE: Final = 0
UVMF_TLB_FLUSH: Final = 1
UVMF_INVLPG: Final = 2
UVMF_FLUSHTYPE_MASK: Final = 3
UVMF_MULTI: Final = 0
UVMF_LOCAL: Final = 0
UVMF_ALL: Final = 1 << 2


@layout()
class MmuUpdate(Struct):
    """One update: `ptr` is a maddr with the kind in its low bits, `val` the new entry (or, for the M2P, a pfn)."""

    ptr: U64
    val: U64


@layout()
class MmuextOp(Struct):
    """One extended operation: `mfn` and `src_mfn` are machine frames, `linear_addr` a virtual address."""

    @layout()
    class Arg1(Union):
        mfn: U64
        linear_addr: U64

    @layout()
    class Arg2(Union):
        nr_ents: U32
        vcpumask: Handle
        src_mfn: U64

    cmd: U32
    arg1: Arg1
    arg2: Arg2
