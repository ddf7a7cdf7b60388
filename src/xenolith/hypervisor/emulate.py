"""Emulates the privileged instructions that PV guests execute at CPL 3, where the processor raises #GP or #UD.

Which instructions and under which conditions: validate() and its operations in xen/arch/x86/pv/emul-priv-op.c, and
xen/arch/x86/pv/emul-inv-op.c for the forced-emulation prefix. All else is the guest's own fault.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import ENODEV, XenError
from xenolith.abi.x86_64 import XEN_CPUID
from xenolith.cpu.registers import (
    CR0_AM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    CS,
    DF,
    DR6_BS,
    DR6_FIXED,
    ES,
    FS,
    GS,
    MASK64,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    RIP,
    RSI,
    SS,
    TF,
)
from xenolith.cpu.segments import base_of, limit_of
from xenolith.hypervisor import debug_registers, ioports, msr, xstate
from xenolith.hypervisor.descriptors import XEN_CS64
from xenolith.hypervisor.guest_memory import CANONICAL_LOW_END, HYPERVISOR_END
from xenolith.hypervisor.hypercalls.mmu import new_base
from xenolith.hypervisor.vcpu import INFO_CR2

if TYPE_CHECKING:
    from iced_x86 import Instruction

    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

Attempt = Callable[["Hypervisor", "Vcpu"], bool]
"""Tries to emulate the instruction at RIP; False: the exception is the guest's."""
Handler = Callable[["Hypervisor", "Vcpu", "Instruction"], int]
"""Emulates one kind of instruction: how many bytes RIP goes on, or NOT_EMULATED."""

DEBUG: Final = 1
INVALID_OPCODE: Final = 6
STACK_FAULT: Final = 12
GENERAL_PROTECTION: Final = 13
PAGE_FAULT: Final = 14
PF_WRITE: Final = 1 << 1

NOT_EMULATED: Final = -1

CR0: Final = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG
"""CR0 as every guest reads it, but for TS."""
CR4_TSD: Final = 1 << 2
CR4_MCE: Final = 1 << 6
CR4_VISIBLE: Final = CR4_PAE | CR4_MCE | CR4_OSFXSR | CR4_OSXMMEXCPT
"""Bits of CR4 that every guest sees set (PV_CR4_GUEST_VISIBLE_MASK)."""
CR4_GUEST: Final = CR4_TSD | debug_registers.CR4_DE
"""Bits that a guest controls (PV_CR4_GUEST_MASK less FSGSBASE, which the CPUID policy hides, and OSXSAVE)."""
CR4_OSXSAVE: Final = 1 << 18
"""A bit that a guest controls where the engine has XSAVE."""

_CPUID_OSXSAVE: Final = 1 << 27
_CLI: Final = 0xFA
_STI: Final = 0xFB
_LONGEST_INSTRUCTION: Final = 15
_CACHED_INSTRUCTIONS: Final = 4096
_REPETITIONS_AT_ONCE: Final = 1024
"""Elements of one INS or OUTS before events get their turn."""
_MASK32: Final = 0xFFFF_FFFF
_LOW: Final = {1: 0xFF, 2: 0xFFFF, 4: _MASK32}
_PRESENT: Final = 1
_PRESENT_WRITABLE: Final = 3
_SEGMENT_PRESENT: Final = 1 << 47
_LONG: Final = 1 << 53
_BIG: Final = 1 << 54


class GuestFault(Exception):
    """The emulated instruction raises an exception: `vector`, `error_code`, and `address` (CR2) of a page fault.

    RIP is at the instruction, or after it for the debug trap.
    """

    def __init__(self, vector: int, error_code: int = 0, address: int = 0) -> None:
        super().__init__(vector, error_code, address)
        self.vector = vector
        self.error_code = error_code
        self.address = address


def privileged(hv: Hypervisor, vcpu: Vcpu) -> bool:
    """Emulate the instruction at RIP that raised #GP(0), and go past it.

    False where Xen does not emulate it: the #GP is the guest's. Raises GuestFault where it raises something else.
    """
    regs = vcpu.cpu.regs
    code = hv.memory.fetch(vcpu, regs[RIP], _LONGEST_INSTRUCTION)
    if not code:
        return False
    if code[0] == _CLI or code[0] == _STI:
        # The guest's own event mask stays as it is: POPF could not be trapped to set it back.
        if not ioports.iopl_allows(vcpu):
            return False
        regs[RIP] = regs[RIP] + 1 & MASK64
    else:
        decoded = _decode(code, _bitness(hv, vcpu))
        if decoded is None:
            return False
        handler, instruction = decoded
        length = handler(hv, vcpu, instruction)
        if length == NOT_EMULATED:
            return False
        regs[RIP] = regs[RIP] + length & MASK64
    _trap_single_step(vcpu)
    return True


def invalid_opcode(hv: Hypervisor, vcpu: Vcpu) -> bool:
    """Emulate `ud2; "xen"; cpuid`, the way to ask for CPUID on processors where it does not trap; else False."""
    regs = vcpu.cpu.regs
    if hv.memory.fetch(vcpu, regs[RIP], len(XEN_CPUID)) != XEN_CPUID:
        return False
    cpuid(hv, vcpu)
    regs[RIP] = regs[RIP] + len(XEN_CPUID) & MASK64
    _trap_single_step(vcpu)
    return True


def cpuid(hv: Hypervisor, vcpu: Vcpu) -> None:
    """Put the answer to CPUID leaf EAX, subleaf ECX into RAX, RBX, RCX and RDX."""
    regs = vcpu.cpu.regs
    leaf, subleaf = regs[RAX] & _MASK32, regs[RCX] & _MASK32
    policy = hv.cpuid_for(vcpu.domain)
    eax, ebx, ecx, edx = policy.query(leaf, subleaf)
    if leaf == 1 and policy.xcr0_mask and (vcpu.kernel_mode or vcpu.cr4 & CR4_OSXSAVE):
        ecx |= _CPUID_OSXSAVE  # which kernels expect to find set, as in Xen's own CR4 (xen/arch/x86/cpuid.c)
    elif leaf == xstate.LEAF and subleaf == 0 and ebx:
        ebx = policy.state_size(vcpu.xcr0)
    regs[RAX], regs[RBX], regs[RCX], regs[RDX] = eax, ebx, ecx, edx


def cr4_of(vcpu: Vcpu) -> int:
    """CR4 as the guest reads it."""
    return vcpu.cr4 | CR4_VISIBLE


def _trap_single_step(vcpu: Vcpu) -> None:
    if vcpu.cpu.flags & TF:
        vcpu.debug[6] |= DR6_BS | DR6_FIXED
        raise GuestFault(DEBUG)


def _bitness(hv: Hypervisor, vcpu: Vcpu) -> int:
    selector = vcpu.cpu.selector(CS)
    if selector == XEN_CS64:
        return 64
    descriptor = hv.descriptors.lookup(vcpu, selector)
    if descriptor & _LONG:
        return 64
    return 32 if descriptor & _BIG else 16


_decoded: dict[tuple[bytes, int], tuple[Handler, Instruction] | None] = {}


def _decode(code: bytes, bitness: int) -> tuple[Handler, Instruction] | None:
    """The handler and the decoded form of the first instruction of `code`, or None if it is not one to emulate."""
    key = (code, bitness)
    if key not in _decoded:
        from iced_x86 import Decoder

        if len(_decoded) >= _CACHED_INSTRUCTIONS:
            _decoded.clear()
        instruction = Decoder(bitness, code).decode()
        handler = _handlers().get(instruction.mnemonic)
        _decoded[key] = None if handler is None or instruction.has_lock_prefix else (handler, instruction)
    return _decoded[key]


@cache
def _handlers() -> dict[int, Handler]:
    """By mnemonic. Made at first use, because the decoder takes long to import."""
    from iced_x86 import Mnemonic

    return {
        Mnemonic.IN: _in,
        Mnemonic.OUT: _out,
        Mnemonic.INSB: partial(_ins, 1),
        Mnemonic.INSW: partial(_ins, 2),
        Mnemonic.INSD: partial(_ins, 4),
        Mnemonic.OUTSB: partial(_outs, 1),
        Mnemonic.OUTSW: partial(_outs, 2),
        Mnemonic.OUTSD: partial(_outs, 4),
        Mnemonic.CLTS: _clts,
        Mnemonic.WBINVD: _wbinvd,
        Mnemonic.MOV: _mov,
        Mnemonic.RDMSR: _rdmsr,
        Mnemonic.WRMSR: _wrmsr,
        Mnemonic.RDTSC: _rdtsc,
        Mnemonic.RDTSCP: _rdtscp,
        Mnemonic.CPUID: _cpuid,
        Mnemonic.XSETBV: _xsetbv,
    }


# -- port I/O ---------------------------------------------------------------------------------------------------------


def _in(hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    from iced_x86 import RegisterExt

    size = RegisterExt.size(instruction.op0_register)
    port = _port(vcpu, instruction, 1)
    if not ioports.permitted(hv, vcpu, port, size):
        return NOT_EMULATED
    regs = vcpu.cpu.regs
    kept = regs[RAX] & _LOW[size] ^ regs[RAX] if size < 4 else 0
    regs[RAX] = kept | ioports.read(hv, vcpu, port, size)
    return instruction.len


def _out(hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    from iced_x86 import RegisterExt

    size = RegisterExt.size(instruction.op1_register)
    port = _port(vcpu, instruction, 0)
    if not ioports.permitted(hv, vcpu, port, size):
        return NOT_EMULATED
    ioports.write(hv, vcpu, port, size, vcpu.cpu.regs[RAX])
    return instruction.len


def _port(vcpu: Vcpu, instruction: Instruction, operand: int) -> int:
    from iced_x86 import OpKind

    if instruction.op_kind(operand) == OpKind.REGISTER:
        return vcpu.cpu.regs[RDX] & 0xFFFF
    return instruction.immediate8


def _ins(size: int, hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    def move(port: int, vaddr: int) -> None:
        data = ioports.read(hv, vcpu, port, size).to_bytes(size, "little")
        try:
            hv.memory.write(vcpu, vaddr, data)
        except XenError:
            raise GuestFault(PAGE_FAULT, PF_WRITE, _first_bad(hv, vcpu, vaddr, _PRESENT_WRITABLE)) from None

    return _string_io(hv, vcpu, instruction, size, RDI, ES, move)


def _outs(size: int, hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    def move(port: int, vaddr: int) -> None:
        try:
            data = hv.memory.read(vcpu, vaddr, size)
        except XenError:
            raise GuestFault(PAGE_FAULT, 0, _first_bad(hv, vcpu, vaddr, _PRESENT)) from None
        ioports.write(hv, vcpu, port, size, int.from_bytes(data, "little"))

    from iced_x86 import Register

    return _string_io(hv, vcpu, instruction, size, RSI, instruction.memory_segment - Register.ES, move)


def _first_bad(hv: Hypervisor, vcpu: Vcpu, vaddr: int, needed: int) -> int:
    """The first byte of an access at `vaddr`, at most a page long, that cannot be accessed."""
    try:
        hv.memory.walk(vcpu.root, vaddr, needed)
    except XenError:
        return vaddr
    return (vaddr | 0xFFF) + 1 & MASK64


def _string_io(
    hv: Hypervisor,
    vcpu: Vcpu,
    instruction: Instruction,
    size: int,
    pointer: int,
    segment: int,
    move: Callable[[int, int], None],
) -> int:
    """INS and OUTS: `move(port, vaddr)` transfers one element.

    With REP, RCX counts down and RIP stays at the instruction until it is 0.
    """
    regs = vcpu.cpu.regs
    port = regs[RDX] & 0xFFFF
    if not ioports.permitted(hv, vcpu, port, size):
        return NOT_EMULATED
    to_linear = _addressing(hv, vcpu, segment, size)
    if to_linear is None:
        return NOT_EMULATED
    mask = _address_mask(instruction, pointer)
    repeated = instruction.has_rep_prefix or instruction.has_repne_prefix
    left = regs[RCX] & mask if repeated else 1
    step = -size if vcpu.cpu.flags & DF else size
    at_once = 1 if vcpu.cpu.flags & TF else _REPETITIONS_AT_ONCE
    for _ in range(min(left, at_once)):
        move(port, to_linear(regs[pointer] & mask))
        _advance(regs, pointer, step, mask)
        left -= 1
        if repeated:
            _advance(regs, RCX, -1, mask)
    return 0 if left else instruction.len


def _advance(regs: memoryview, register: int, step: int, mask: int) -> None:
    """Add to a register at the address size: 32 bits clear the upper half, 16 bits keep the rest."""
    value = regs[register] + step & mask
    regs[register] = regs[register] & ~mask & MASK64 | value if mask == _LOW[2] else value


def _address_mask(instruction: Instruction, pointer: int) -> int:
    from iced_x86 import OpKind

    kind = instruction.op0_kind if pointer == RDI else instruction.op1_kind
    if kind in (OpKind.MEMORY_ESDI, OpKind.MEMORY_SEG_SI):
        return _LOW[2]
    return _LOW[4] if kind in (OpKind.MEMORY_ESEDI, OpKind.MEMORY_SEG_ESI) else MASK64


def _addressing(hv: Hypervisor, vcpu: Vcpu, segment: int, size: int) -> Callable[[int], int] | None:
    """What turns an offset into the linear address of `size` bytes in `segment`; None for a segment not present.

    It raises GuestFault, as this function does, where the segment does not allow the access.
    """
    fault = GuestFault(STACK_FAULT if segment == SS else GENERAL_PROTECTION)
    if _bitness(hv, vcpu) == 64:
        base = {FS: vcpu.cpu.fs_base, GS: vcpu.cpu.gs_base}.get(segment, 0)

        def flat(offset: int) -> int:
            vaddr = base + offset & MASK64
            if CANONICAL_LOW_END <= vaddr < HYPERVISOR_END:
                raise fault
            return vaddr

        return flat
    descriptor = hv.descriptors.lookup(vcpu, vcpu.cpu.selector(segment))
    if not descriptor & _SEGMENT_PRESENT:
        return None
    if not (_is_writable(descriptor) if segment == ES else _is_readable(descriptor)):
        raise fault
    start, limit = base_of(descriptor), limit_of(descriptor)

    def limited(offset: int) -> int:
        if offset + size - 1 > limit:
            raise fault
        return start + offset & _MASK32

    return limited


def _is_readable(descriptor: int) -> bool:
    """A data segment, or a code segment that may be read."""
    kind = descriptor >> 40
    return bool(kind & 0x10 and (not kind & 8 or kind & 2))


def _is_writable(descriptor: int) -> bool:
    return descriptor >> 40 & 0x1A == 0x12


# -- control and debug registers --------------------------------------------------------------------------------------


def _mov(hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    """MOV to and from control and debug registers. Only the guest's kernel may."""
    from iced_x86 import RegisterExt

    if not vcpu.kernel_mode:
        return NOT_EMULATED
    target, source = instruction.op0_register, instruction.op1_register
    done = False
    if RegisterExt.is_cr(source):
        done = _read_control(hv, vcpu, RegisterExt.number(target), RegisterExt.number(source))
    elif RegisterExt.is_dr(source):
        done = _read_debug(vcpu, RegisterExt.number(target), RegisterExt.number(source))
    else:
        value = vcpu.cpu.regs[RegisterExt.number(source)]
        if RegisterExt.size(source) == 4:
            value &= _MASK32
        if RegisterExt.is_cr(target):
            done = _write_control(hv, vcpu, RegisterExt.number(target), value)
        elif RegisterExt.is_dr(target):
            done = _write_debug(vcpu, RegisterExt.number(target), value)
    return instruction.len if done else NOT_EMULATED


def _read_control(hv: Hypervisor, vcpu: Vcpu, register: int, number: int) -> bool:
    if number == 0:
        value = CR0 | (CR0_TS if vcpu.cpu.task_switched else 0)
    elif number == 2:
        value = hv.ram.words[(vcpu.info_maddr + INFO_CR2) >> 3]
    elif number == 3:
        value = vcpu.kernel_root
    elif number == 4:
        value = cr4_of(vcpu)
    else:
        return False
    vcpu.cpu.regs[register] = value
    return True


def _write_control(hv: Hypervisor, vcpu: Vcpu, number: int, value: int) -> bool:
    if number == 0:
        if (value ^ CR0) & ~CR0_TS:
            return False
        vcpu.cpu.task_switched = bool(value & CR0_TS)
    elif number == 2:
        hv.ram.words[(vcpu.info_maddr + INFO_CR2) >> 3] = value
    elif number == 3:
        try:
            new_base(hv, vcpu, value >> 12)
        except XenError:
            return False
    elif number == 4:
        vcpu.cr4 = value & (CR4_GUEST | (CR4_OSXSAVE if hv.cpuid_for(vcpu.domain).xcr0_mask else 0))
    else:
        return False
    return True


def _read_debug(vcpu: Vcpu, register: int, number: int) -> bool:
    try:
        vcpu.cpu.regs[register] = debug_registers.get(vcpu, number)
    except XenError:
        raise GuestFault(INVALID_OPCODE) from None
    return True


def _write_debug(vcpu: Vcpu, number: int, value: int) -> bool:
    try:
        debug_registers.put(vcpu, number, value)
    except XenError as error:
        if error.errno == ENODEV:
            raise GuestFault(INVALID_OPCODE) from None
        return False
    return True


def _clts(hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    if not vcpu.kernel_mode:
        return NOT_EMULATED
    vcpu.cpu.task_switched = False
    return instruction.len


def _wbinvd(hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    return instruction.len if vcpu.kernel_mode else NOT_EMULATED


# -- model-specific registers, time, identification -------------------------------------------------------------------


def _rdmsr(hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    regs = vcpu.cpu.regs
    value = msr.read(hv, vcpu, regs[RCX] & _MASK32) if vcpu.kernel_mode else None
    if value is None:
        return NOT_EMULATED
    _put_edx_eax(regs, value)
    return instruction.len


def _wrmsr(hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    regs = vcpu.cpu.regs
    value = (regs[RDX] & _MASK32) << 32 | regs[RAX] & _MASK32
    done = vcpu.kernel_mode and msr.write(hv, vcpu, regs[RCX] & _MASK32, value)
    return instruction.len if done else NOT_EMULATED


def _may_read_tsc(vcpu: Vcpu) -> bool:
    return vcpu.kernel_mode or not vcpu.cr4 & CR4_TSD


def _rdtsc(hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    if not _may_read_tsc(vcpu):
        return NOT_EMULATED
    _put_edx_eax(vcpu.cpu.regs, hv.tsc())
    return instruction.len


def _rdtscp(hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    if not _may_read_tsc(vcpu):
        return NOT_EMULATED
    regs = vcpu.cpu.regs
    _put_edx_eax(regs, hv.tsc())
    regs[RCX] = vcpu.tsc_aux
    return instruction.len


def _put_edx_eax(regs: memoryview, value: int) -> None:
    regs[RAX], regs[RDX] = value & _MASK32, value >> 32 & _MASK32


def _cpuid(hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    cpuid(hv, vcpu)
    return instruction.len


def _xsetbv(hv: Hypervisor, vcpu: Vcpu, instruction: Instruction) -> int:
    """Switch parts of extended state on; without CR4.OSXSAVE the instruction does not exist."""
    if not vcpu.cr4 & CR4_OSXSAVE:
        raise GuestFault(INVALID_OPCODE)
    regs = vcpu.cpu.regs
    value = (regs[RDX] & _MASK32) << 32 | regs[RAX] & _MASK32
    mask = hv.cpuid_for(vcpu.domain).xcr0_mask
    if not vcpu.kernel_mode or regs[RCX] & _MASK32 or not xstate.valid(value, mask):
        return NOT_EMULATED
    vcpu.xcr0 = value
    vcpu.cpu.set_xcr0(value)
    return instruction.len
