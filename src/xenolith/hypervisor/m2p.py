"""Reads of the M2P at its fixed address, where the engine cannot show it there: trapped, and carried out.

Guests that ask where it is (XENMEM_machphys_mapping) never come here. Others load an entry from HYPERVISOR_VIRT_START
(public/arch-x86/xen-x86_64.h) without asking, by a plain MOV, which is what is understood.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from xenolith.cpu.registers import RIP

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_LONGEST_INSTRUCTION: Final = 15


def emulate_read(hv: Hypervisor, vcpu: Vcpu, address: int) -> bool:
    """Carry out the load from `address` that just faulted. False, and nothing is changed, if it is none of the M2P."""
    index, offset = divmod(address - hv.xenspace.fixed_start, 8)
    entry = hv.xenspace.entry(index)
    if entry is None:
        return False
    load = _decode(hv.memory.fetch(vcpu, vcpu.cpu.regs[RIP], _LONGEST_INSTRUCTION))
    if load is None or offset + load[1] > 8:
        return False
    register, size, length = load
    regs = vcpu.cpu.regs
    regs[register] = entry >> 8 * offset & (1 << 8 * size) - 1
    regs[RIP] += length
    return True


@lru_cache(maxsize=64)
def _decode(code: bytes) -> tuple[int, int, int] | None:
    """Register, size in bytes and length of a MOV from memory to a register of 4 or 8 bytes."""
    from iced_x86 import Decoder, Mnemonic, OpKind, RegisterExt

    instruction = Decoder(64, code).decode()
    if instruction.mnemonic != Mnemonic.MOV or instruction.op1_kind != OpKind.MEMORY:
        return None
    register = instruction.op0_register
    if not RegisterExt.is_gpr32(register) and not RegisterExt.is_gpr64(register):
        return None
    return RegisterExt.number(register), RegisterExt.size(register), instruction.len
