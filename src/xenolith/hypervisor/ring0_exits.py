"""The commonest exits of PV guests as a program for ring 0: what exits.c does, where nothing is out of the ordinary.

A system call of user mode and its page faults are bounced to the guest's kernel, and from there HYPERVISOR_iret goes
back. What is not done here is left to Python (`leave`), which then finds everything as it was. Other vCPUs may run
meanwhile, so nothing is touched but the vCPU's own state, its struct vcpu_info, its kernel's stack and its descriptors.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from xenolith.abi.hypercalls import HYPERVISOR_iret, HYPERVISOR_set_segment_base, HYPERVISOR_stack_switch
from xenolith.abi.traps import CALLBACKTYPE_syscall
from xenolith.abi.x86_64 import SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER
from xenolith.cpu.compiled import SWITCH
from xenolith.cpu.registers import AC, DF, FLAGS_ARITHMETIC, FLAGS_FIXED, IF, IOPL, NT, RF, TF, VM
from xenolith.cpu.shortcuts import Field, Program
from xenolith.hypervisor.descriptors import XEN_CS64, XEN_SS
from xenolith.hypervisor.guest_memory import CANONICAL_LOW_END, HYPERVISOR_END
from xenolith.hypervisor.shared_state import Callback, Gate, LastHypercalls, MachineState, VcpuState
from xenolith.hypervisor.vcpu import INFO_CR2

_PAGE: Final = 4096
_PAGE_FAULT: Final = 14
_BELOW_GUESTS: Final = 43
"""Addresses that are no guest's begin and end at multiples of 1 << 43."""
_IRET_BYTES: Final = 72
"""struct iret_context, public/arch-x86/xen-x86_64.h"""
_CODE64: Final = 0x20F8
_CODE64_BITS: Final = 0x60F8
_WRITABLE_DATA: Final = 0xF2
_WRITABLE_DATA_BITS: Final = 0xFA
"""Of a descriptor's bits 40 and up: what 64-bit code and writable data at CPL 3 have."""
_NUMBERS: Final = {
    "IF": IF,
    "NOT_IF": ~IF,
    "SINGLE_STEP": TF,
    "HANDLER_FLAGS": 0xFFFF_FFFF & ~(AC | VM | RF | NT | TF | IOPL),
    "IRET_FLAGS": FLAGS_ARITHMETIC | DF | NT | RF | AC | 1 << 21,
    "IRET_FLAGS_SET": FLAGS_FIXED | IF,
    "XEN_CS64": XEN_CS64,
    "XEN_SS": XEN_SS,
    "FLAT": XEN_CS64 | XEN_SS << 16,
    "IRET": HYPERVISOR_iret,
    "STACK_SWITCH": HYPERVISOR_stack_switch,
    "SET_SEGMENT_BASE": HYPERVISOR_set_segment_base,
    "SEGBASE_FS": SEGBASE_FS,
    "SEGBASE_GS_USER": SEGBASE_GS_USER,
    "SEGBASE_GS_KERNEL": SEGBASE_GS_KERNEL,
    "IN_SYSCALL": 1 << 8,
    "USER_ERROR": 4,
    "MSR_FS_BASE": 0xC000_0100,
    "MSR_GS_BASE": 0xC000_0101,
    "INFO_CR2": INFO_CR2,
    "BELOW_GUESTS": _BELOW_GUESTS,
    "FIRST_OTHER": CANONICAL_LOW_END >> _BELOW_GUESTS,
    "OTHERS": HYPERVISOR_END - CANONICAL_LOW_END >> _BELOW_GUESTS,
    "CODE64": _CODE64,
    "CODE64_BITS": _CODE64_BITS,
    "WRITABLE_DATA": _WRITABLE_DATA,
    "WRITABLE_DATA_BITS": _WRITABLE_DATA_BITS,
}


def _require_guest_address(register: str) -> str:
    """Leave unless an address is one that a guest may have something at. Takes EAX."""
    return f"""
    mov   rax, {register}
    shr   rax, BELOW_GUESTS
    sub   eax, FIRST_OTHER
    cmp   eax, OTHERS
    jb    leave
    """


def _require_within_page(size: int) -> str:
    """Leave unless `size` bytes at RDX are the guest's, and in one page. Takes EAX."""
    return f"""
    mov   eax, edx
    and   eax, {_PAGE - 1}
    cmp   eax, {_PAGE - size}
    ja    leave
    {_require_guest_address("rdx")}
    """


def _require_canonical(register: str) -> str:
    """Leave unless an address is canonical. Takes RAX."""
    return f"""
    mov   rax, {register}
    sar   rax, 47
    inc   rax
    cmp   rax, 1
    ja    leave
    """


def _require_descriptor(kind: str) -> str:
    """Leave unless the selector in EAX names a descriptor of this kind in the GDT. Takes RAX."""
    return f"""
    cmp   eax, 3                    ; or a null selector
    je    leave
    test  eax, 4                    ; in the LDT
    jne   leave
    and   eax, 0xFFF8
    add   rax, gdt
    mov   rax, [rax]
    shr   rax, 40
    and   eax, {kind}_BITS
    cmp   eax, {kind}
    jne   leave
    """


_FIND_INFO: Final = """
    cmp   nmi_pending, 0
    jne   leave
    mov   rax, info_maddr
    and   eax, 0xFFF
    lea   rbx, [rsp+rax+WINDOW]     ; its struct vcpu_info: is an event pending, are events masked
"""


def _require_no_event(name: str, masks_events: str = "") -> str:
    """Leave if an event waits that will be delivered, unless the byte `masks_events` says that it will not."""
    return f"""
    cmp   byte [rbx], 0
    je    {name}_no_event
    cmp   byte [rbx+1], 0
    jne   {name}_no_event
    {f"cmp {masks_events}, 0" if masks_events else ""}
    {"je leave" if masks_events else "jmp leave"}
{name}_no_event:
    """


def _bounce(entry: str, to: str, with_error: bool) -> str:
    """Traps.bounce from user mode to the entry point `to` of the kernel. RCX, R11 and the frame are the user's."""
    size = 64 if with_error else 56
    rip = size - 40
    error = """
    mov   eax, [rsp-8]
    or    eax, USER_ERROR
    mov   [rdx+16], rax
    """
    address = """
    mov   rax, saved_cr2
    mov   [rbx+INFO_CR2], rax
    """
    return f"""
    {_FIND_INFO}
    cmp   {to}_address, 0
    je    leave
    {_require_no_event(entry, f"{to}_masks_events")}
    mov   rdx, kernel_sp
    and   rdx, -16
    sub   rdx, {size}
    {_require_within_page(size)}
    mov   rax, kernel_root
    mov   cr3, rax
    mov   [rdx], rcx
    mov   [rdx+8], r11
    {error if with_error else ""}
    mov   rax, frame_rip
    mov   [rdx+{rip}], rax
    movzx eax, byte [rbx+1]
    shl   rax, 32
    or    rax, frame_cs
    mov   [rdx+{rip + 8}], rax
    mov   rax, frame_flags
    cmp   byte [rbx+1], 0
    je    {entry}_unmasked
    and   rax, NOT_IF
{entry}_unmasked:
    or    eax, shown_iopl
    mov   [rdx+{rip + 16}], rax
    mov   rax, saved_rsp
    mov   [rdx+{rip + 24}], rax
    mov   rax, frame_ss
    mov   [rdx+{rip + 32}], rax
    mov   undoable, 0
    {address if with_error else ""}
    cmp   {to}_masks_events, 0
    je    {entry}_bounced
    mov   byte [rbx+1], 1
{entry}_bounced:
    mov   rax, {to}_address
    mov   frame_rip, rax
    jmp   enter_kernel
    """


_NOTE: Final = """
    mov   rdx, saved_rax            ; count the hypercall, and keep it as the last one
    lea   rcx, hypercall_counts
    mov   eax, edx
    shl   eax, 3
    lock inc qword [rcx+rax]
    mov   rax, hypercalls_made
    and   eax, 15
    mov   ecx, eax
    shl   ecx, 2
    add   eax, ecx
    shl   eax, 3                    ; 40 bytes each
    lea   rcx, hypercalls_calls
    add   rax, rcx
    mov   [rax], rdx
    mov   [rax+8], rdi
    mov   [rax+16], rsi
    mov   rdx, saved_rdx
    mov   [rax+24], rdx
    mov   [rax+32], r10
    inc   hypercalls_made
"""

_SYSTEM_CALL: Final = f"""
system_call:
    test  r11d, SINGLE_STEP
    jne   leave
    cmp   kernel_mode, 0
    jne   hypercall
    mov   frame_rip, rcx            ; Traps._user_syscall
    mov   frame_cs, XEN_CS64
    mov   frame_flags, r11
    mov   frame_ss, XEN_SS
    {_bounce("call", "syscall", with_error=False)}
"""

_USER_FAULT: Final = f"""
page_fault:                         ; Traps._page_fault
    cmp   kernel_mode, 0
    jne   leave
    test  frame_flags, SINGLE_STEP
    jne   leave
    {_require_guest_address("saved_cr2")}
    {_bounce("fault", "page_fault", with_error=True)}
"""

_MODES: Final = """
enter_kernel:                       ; at frame_rip, with its stack at RDX
    mov   frame_rsp, rdx
    mov   frame_cs, XEN_CS64
    mov   frame_ss, XEN_SS
    mov   segments, FLAT
    mov   rax, frame_flags
    and   eax, HANDLER_FLAGS
    or    eax, IF
    mov   frame_flags, rax
    mov   kernel_mode, 1
    mov   rax, kernel_root
    mov   root, rax
exchange_gs_base:
    mov   ecx, MSR_GS_BASE
    rdmsr
    shl   rdx, 32
    or    rdx, rax
    mov   rax, other_gs_base
    mov   other_gs_base, rdx
    mov   rdx, rax
    shr   rdx, 32
    wrmsr
    jmp   go_on
"""

_IRET: Final = f"""
iret:                               ; Traps.iret: struct iret_context is rax, r11, rcx, flags, rip, cs, rflags, rsp, ss
    {_FIND_INFO}
    mov   rdx, saved_rsp
    test  edx, 7
    jne   leave
    {_require_within_page(_IRET_BYTES)}
    mov   rax, [rdx+48]
    mov   scratch_0, rax
    test  eax, SINGLE_STEP
    jne   leave
    test  eax, IF
    je    iret_masked
    cmp   byte [rbx], 0
    jne   leave
iret_masked:
    and   eax, IRET_FLAGS
    or    eax, IRET_FLAGS_SET
    mov   frame_flags, rax
    movzx eax, word [rdx+40]
    mov   scratch_1, rax
    or    eax, 3
    mov   frame_cs, rax
    cmp   eax, XEN_CS64
    je    iret_stack
    {_require_descriptor("CODE64")}
iret_stack:
    movzx eax, word [rdx+64]
    or    eax, 3
    mov   frame_ss, rax
    cmp   eax, XEN_SS
    je    iret_place
    {_require_descriptor("WRITABLE_DATA")}
iret_place:
    mov   rax, [rdx+32]
    mov   frame_rip, rax
    {_require_canonical("frame_rip")}
    mov   rax, [rdx+56]
    mov   frame_rsp, rax
    mov   rax, [rdx]
    mov   scratch_2, rax
    mov   scratch_3, r11
    mov   scratch_4, rcx
    test  dword [rdx+24], IN_SYSCALL
    jne   iret_mode
    mov   rax, [rdx+8]
    mov   scratch_3, rax
    mov   rax, [rdx+16]
    mov   scratch_4, rax
iret_mode:
    mov   rax, scratch_1
    and   eax, 3
    cmp   eax, 3
    jne   iret_done
    cmp   user_root, 0
    je    leave
iret_done:
    mov   undoable, 0
    {_NOTE}
    mov   rax, scratch_2
    mov   saved_rax, rax
    mov   r11, scratch_3
    mov   rax, scratch_4
    mov   saved_rcx, rax
    mov   rax, scratch_0
    shr   eax, 9
    and   eax, 1
    xor   eax, 1
    mov   [rbx+1], al
    mov   upcall_streak, 0
    mov   rax, frame_ss
    shl   eax, 16
    or    rax, frame_cs
    mov   segments, eax
    mov   rax, scratch_1
    and   eax, 3
    cmp   eax, 3
    jne   go_on
    mov   kernel_mode, 0
    mov   rax, user_root
    mov   root, rax
    mov   cr3, rax
    jmp   exchange_gs_base
"""

_HYPERCALLS: Final = f"""
hypercall:
    cmp   traced, 0
    jne   leave
    cmp   rax, IRET
    je    iret
    cmp   rax, STACK_SWITCH
    je    simple
    cmp   rax, SET_SEGMENT_BASE
    jne   leave
simple:
    cmp   segments, FLAT            ; which SYSCALL has lost
    jne   leave
    {_FIND_INFO}
    {_require_no_event("hypercall")}
    {_require_canonical("rcx")}
    cmp   saved_rax, STACK_SWITCH
    jne   set_segment_base
    mov   undoable, 0
    mov   eax, edi
    and   eax, 0xFFFF
    or    eax, 3
    mov   kernel_ss, rax
    mov   kernel_sp, rsi
    jmp   hypercall_done
set_segment_base:
    {_require_canonical("rsi")}
    mov   ecx, MSR_FS_BASE
    cmp   edi, SEGBASE_FS
    je    write_base
    mov   ecx, MSR_GS_BASE
    cmp   edi, SEGBASE_GS_KERNEL
    je    write_base
    cmp   edi, SEGBASE_GS_USER
    jne   leave
    mov   undoable, 0
    mov   other_gs_base, rsi
    jmp   hypercall_done
write_base:
    mov   undoable, 0
    mov   eax, esi
    mov   rdx, rsi
    shr   rdx, 32
    wrmsr
hypercall_done:
    {_NOTE}
    mov   rax, saved_rcx
    mov   frame_rip, rax
    mov   frame_cs, XEN_CS64
    mov   frame_flags, r11
    mov   rax, saved_rsp
    mov   frame_rsp, rax
    mov   frame_ss, XEN_SS
    mov   saved_rax, 0
    jmp   go_on
"""


def _fields(structure: type[ctypes.Structure]) -> dict[str, Field]:
    """The fields of a structure by name."""
    places = {name: getattr(structure, name) for name, *_ in structure._fields_}
    return {name: Field(place.offset, place.size) for name, place in places.items()}


def _inside(name: str, outer: Field, index: int, structure: type[ctypes.Structure]) -> dict[str, Field]:
    """The fields of one element of an array, with `name` before theirs."""
    start = outer.offset + index * ctypes.sizeof(structure)
    return {f"{name}_{field}": Field(start + at, size) for field, (at, size) in _fields(structure).items()}


def program() -> Program | None:
    """What virtual processors execute, on the states of the machine and of a vCPU. None if it is switched off."""
    if os.environ.get(SWITCH) == "0":
        return None
    vcpu = _fields(VcpuState)
    vcpu |= _inside("syscall", vcpu["callbacks_"], CALLBACKTYPE_syscall, Callback)
    vcpu |= _inside("page_fault", vcpu["traps_"], _PAGE_FAULT, Gate)
    vcpu |= _inside("hypercalls", vcpu["hypercalls_"], 0, LastHypercalls)
    text = _SYSTEM_CALL + _USER_FAULT + _MODES + _IRET + _HYPERCALLS
    machine = {name: field for name, field in _fields(MachineState).items() if name in ("traced", "hypercall_counts")}
    return Program(text, vcpu, machine, _NUMBERS)
