"""What is known of a guest that was stopped because it could not go on: the material of one readable report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import XenError
from xenolith.abi.hypercalls import BY_NUMBER
from xenolith.cpu.registers import RSP

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

_STACK_WORDS: Final = 32


@dataclass(slots=True)
class CrashReport:
    """`registers` by name; `stack` the words from the stack pointer up; `hypercalls` the last ones, oldest first."""

    vcpu: str
    domain: str
    reason: str
    kernel_mode: bool
    registers: dict[str, int]
    cr2: int
    code: bytes
    stack: list[int] = field(default_factory=list)
    hypercalls: list[str] = field(default_factory=list)
    last_refusal: str = ""


def describe(hv: Hypervisor, vcpu: Vcpu, reason: str) -> CrashReport:
    """Collect the report of a vCPU whose state is current."""
    registers = hv.contexts.store(vcpu)
    return CrashReport(
        vcpu=repr(vcpu),
        domain=vcpu.domain.name,
        reason=reason,
        kernel_mode=vcpu.kernel_mode,
        registers=registers,
        cr2=hv.cr2_of(vcpu),
        code=hv.memory.fetch(vcpu, registers["rip"], 16),
        stack=_stack(hv, vcpu),
        hypercalls=[_call(number, arguments) for number, arguments in vcpu.last_hypercalls],
        last_refusal=hv.last_refusal,
    )


def _stack(hv: Hypervisor, vcpu: Vcpu) -> list[int]:
    words: list[int] = []
    pointer = vcpu.cpu.regs[RSP] & ~7
    try:
        while len(words) < _STACK_WORDS:
            words.append(hv.memory.read_u64(vcpu, pointer + 8 * len(words)))
    except XenError:
        return words
    return words


def _call(number: int, arguments: tuple[int, ...]) -> str:
    call = BY_NUMBER.get(number)
    if call is None:
        return f"hypercall {number}"
    shown = arguments[: len(call.arguments)]
    return f"{call.name}({', '.join(f'{argument:#x}' for argument in shown)})"
