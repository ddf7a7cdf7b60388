"""Traps and callbacks of a PV guest: its virtual IDT, entry points and the frame of `iret`.

Sources: arch-x86/xen.h, arch-x86/xen-x86_64.h, callback.h.
"""

from typing import Final

from xenolith.abi.types import U8, U16, U64, Struct, layout

# Exception vectors of the processor.
TRAP_divide_error: Final = 0
TRAP_debug: Final = 1
TRAP_nmi: Final = 2
TRAP_int3: Final = 3
TRAP_overflow: Final = 4
TRAP_bounds: Final = 5
TRAP_invalid_op: Final = 6
TRAP_no_device: Final = 7
TRAP_double_fault: Final = 8
TRAP_copro_seg: Final = 9
TRAP_invalid_tss: Final = 10
TRAP_no_segment: Final = 11
TRAP_stack_error: Final = 12
TRAP_gp_fault: Final = 13
TRAP_page_fault: Final = 14
TRAP_copro_error: Final = 16
TRAP_alignment_check: Final = 17
TRAP_machine_check: Final = 18
TRAP_simd_error: Final = 19
TRAP_virtualisation: Final = 20
TRAPS_WITH_ERROR_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17))
"""Vectors for which the processor pushes an error code."""

# TrapInfo.flags: the lowest privilege that may use `int n`, and whether entry masks events.
TI_DPL_MASK: Final = 3
TI_IF: Final = 4

# callback_op sub-operations.
CALLBACKOP_register: Final = 0
CALLBACKOP_unregister: Final = 1

# CallbackRegister.type.
CALLBACKTYPE_event: Final = 0
CALLBACKTYPE_failsafe: Final = 1
CALLBACKTYPE_syscall: Final = 2
CALLBACKTYPE_sysenter_deprecated: Final = 3
CALLBACKTYPE_nmi: Final = 4
CALLBACKTYPE_sysenter: Final = 5
CALLBACKTYPE_syscall32: Final = 7

# CallbackRegister.flags.
CALLBACKF_mask_events: Final = 1 << 0


@layout()
class TrapInfo(Struct):
    """One gate of the virtual IDT. A table given to set_trap_table ends with an entry whose `address` is 0."""

    vector: U8
    flags: U8
    cs: U16
    address: U64


@layout()
class CallbackRegister(Struct):
    """Set one entry point: `address` is a virtual address."""

    type: U16
    flags: U16
    address: U64


@layout()
class CallbackUnregister(Struct):
    """Take one entry point away."""

    type: U16
    _unused: U16


@layout()
class IretContext(Struct):
    """What the `iret` hypercall finds at the stack pointer; CS with RPL 3 means return to user mode."""

    rax: U64
    r11: U64
    rcx: U64
    flags: U64
    rip: U64
    cs: U64
    rflags: U64
    rsp: U64
    ss: U64
