"""vcpu_op: start, stop and time a vcpu, and the register image of a new one (vcpu.h, arch-x86/xen.h)."""

from ctypes import Array, c_uint8, c_uint16, c_uint64
from typing import Annotated, Final

from xenolith.abi.traps import TrapInfo
from xenolith.abi.types import I32, U8, U16, U32, U64, Handle, Struct, Union, layout

# vcpu_op sub-operations.
VCPUOP_initialise: Final = 0
VCPUOP_up: Final = 1
VCPUOP_down: Final = 2
VCPUOP_is_up: Final = 3
VCPUOP_get_runstate_info: Final = 4
VCPUOP_register_runstate_memory_area: Final = 5
VCPUOP_set_periodic_timer: Final = 6
VCPUOP_stop_periodic_timer: Final = 7
VCPUOP_set_singleshot_timer: Final = 8
VCPUOP_stop_singleshot_timer: Final = 9
VCPUOP_register_vcpu_info: Final = 10
VCPUOP_send_nmi: Final = 11
VCPUOP_get_physid: Final = 12
VCPUOP_register_vcpu_time_memory_area: Final = 13

# VcpuSetSingleshotTimer.flags.
VCPU_SSHOTTMR_future: Final = 1 << 0

# VcpuRunstateInfo.state, and the index of `time`.
RUNSTATE_running: Final = 0
RUNSTATE_runnable: Final = 1
RUNSTATE_blocked: Final = 2
RUNSTATE_offline: Final = 3

# VcpuRunstateInfo.state_entry_time: set while Xen writes the record, if the guest asked for it by vm_assist.
XEN_RUNSTATE_UPDATE: Final = 1 << 63

# VcpuGuestContext.flags, and IretContext.flags.
VGCF_I387_VALID: Final = 1 << 0
VGCF_IN_KERNEL: Final = 1 << 2
VGCF_i387_valid: Final = 1 << 0
VGCF_in_kernel: Final = 1 << 2
VGCF_failsafe_disables_events: Final = 1 << 3
VGCF_syscall_disables_events: Final = 1 << 4
VGCF_online: Final = 1 << 5
VGCF_in_syscall: Final = 1 << 8
VGCF_IN_SYSCALL: Final = VGCF_in_syscall


@layout()
class VcpuRunstateInfo(Struct):
    """How long (ns) a vcpu has been in each RUNSTATE_*, and since when (system time, ns) it is in the present one."""

    state: I32
    state_entry_time: U64
    time: Annotated[Array[c_uint64], c_uint64 * 4]


@layout()
class VcpuRegisterRunstateMemoryArea(Struct):
    """Where to keep a vcpu's VcpuRunstateInfo up to date: `addr.v` is a virtual address."""

    @layout()
    class Addr(Union):
        h: Handle
        v: Handle
        p: U64

    addr: Addr


@layout()
class VcpuSetPeriodicTimer(Struct):
    """A timer that sends VIRQ_TIMER every `period_ns`."""

    period_ns: U64


@layout()
class VcpuSetSingleshotTimer(Struct):
    """A timer that sends VIRQ_TIMER once, at system time `timeout_abs_ns`."""

    timeout_abs_ns: U64
    flags: U32


@layout()
class VcpuRegisterVcpuInfo(Struct):
    """Where a vcpu's VcpuInfo shall lie: an mfn and a byte offset; it must not cross the page's end."""

    mfn: U64
    offset: U32
    rsvd: U32


@layout()
class VcpuGetPhysid(Struct):
    """The physical processor of a pinned vcpu."""

    phys_id: U64


@layout()
class VcpuRegisterTimeMemoryArea(Struct):
    """Where to keep a copy of a vcpu's VcpuTimeInfo for the guest's user space."""

    @layout()
    class Addr(Union):
        h: Handle
        v: Handle
        p: U64

    addr: Addr


@layout()
class CpuUserRegs(Struct):
    """The registers of a vcpu. `error_code` and `entry_vector` are Xen's own."""

    r15: U64
    r14: U64
    r13: U64
    r12: U64
    rbp: U64
    rbx: U64
    r11: U64
    r10: U64
    r9: U64
    r8: U64
    rax: U64
    rcx: U64
    rdx: U64
    rsi: U64
    rdi: U64
    error_code: U32
    entry_vector: U32
    rip: U64
    cs: U16
    _pad0: Annotated[Array[c_uint16], c_uint16 * 1]
    saved_upcall_mask: U8
    _pad1: Annotated[Array[c_uint8], c_uint8 * 3]
    rflags: U64
    rsp: U64
    ss: U16
    _pad2: Annotated[Array[c_uint16], c_uint16 * 3]
    es: U16
    _pad3: Annotated[Array[c_uint16], c_uint16 * 3]
    ds: U16
    _pad4: Annotated[Array[c_uint16], c_uint16 * 3]
    fs: U16
    _pad5: Annotated[Array[c_uint16], c_uint16 * 3]
    gs: U16
    _pad6: Annotated[Array[c_uint16], c_uint16 * 3]


@layout()
class VcpuGuestContext(Struct):
    """The whole of a vcpu: for VCPUOP_initialise and the domain builder.

    `ctrlreg[3]` is the kernel's root table and `ctrlreg[1]` the user's, both as CR3 values; `gdt_frames` are mfns.
    """

    @layout()
    class FpuCtxt(Struct):
        x: Annotated[Array[c_uint8], c_uint8 * 512]

    fpu_ctxt: FpuCtxt
    flags: U64
    user_regs: CpuUserRegs
    trap_ctxt: Annotated[Array[TrapInfo], TrapInfo * 256]
    ldt_base: U64
    ldt_ents: U64
    gdt_frames: Annotated[Array[c_uint64], c_uint64 * 16]
    gdt_ents: U64
    kernel_ss: U64
    kernel_sp: U64
    ctrlreg: Annotated[Array[c_uint64], c_uint64 * 8]
    debugreg: Annotated[Array[c_uint64], c_uint64 * 8]
    event_callback_eip: U64
    failsafe_callback_eip: U64
    syscall_callback_eip: U64
    vm_assist: U64
    fs_base: U64
    gs_base_kernel: U64
    gs_base_user: U64
