"""The debug registers of a vCPU and the values that a guest may give them (xen/arch/x86/pv/misc-hypercalls.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import ENODEV, EPERM, XenError
from xenolith.cpu.registers import DR6_FIXED, DR7_FIXED
from xenolith.hypervisor.guest_memory import CANONICAL_LOW_END, HYPERVISOR_END

if TYPE_CHECKING:
    from xenolith.hypervisor.vcpu import Vcpu

CR4_DE: Final = 1 << 3

_DR6_ZERO: Final = 1 << 12
_DR7_ZERO: Final = 0xD800
_DR7_GENERAL_DETECT: Final = 1 << 13
_DR7_ENABLES: Final = 0xFF
_KIND_EXECUTE: Final = 0
_KIND_IO: Final = 2


def get(vcpu: Vcpu, number: int) -> int:
    """The value of debug register `number`. Raises XenError(ENODEV) if there is no such register."""
    return vcpu.debug[_resolve(vcpu, number)]


def put(vcpu: Vcpu, number: int, value: int) -> None:
    """Set debug register `number` to a 64-bit value.

    Raises XenError(EPERM) for an address in the hypervisor's range, reserved bits, general detect, and I/O breakpoints
    without CR4.DE; XenError(ENODEV) if there is no such register.
    """
    number = _resolve(vcpu, number)
    if number < 4:
        _check_address(value)
    else:
        if value >> 32:
            raise XenError(EPERM, f"the upper half of DR{number} is reserved")
        value = value & ~_DR6_ZERO | DR6_FIXED if number == 6 else _check_control(vcpu, value)
    vcpu.debug[number] = value
    vcpu.cpu.set_debug_register(number, value)


def load(vcpu: Vcpu, values: list[int]) -> None:
    """Start with these eight values, less those that a guest may not have (xen/arch/x86/domain.c)."""
    for number in (0, 1, 2, 3, 6, 7):
        try:
            put(vcpu, number, values[number])
        except XenError:
            put(vcpu, number, 0)


def stopped_at_code(vcpu: Vcpu, status: int) -> bool:
    """Whether `status`, a value of DR6, tells of a breakpoint on the instruction at RIP."""
    control = vcpu.debug[7]
    return any(
        status >> number & 1 and control >> 2 * number & 3 and control >> 16 + 4 * number & 3 == _KIND_EXECUTE
        for number in range(4)
    )


def _resolve(vcpu: Vcpu, number: int) -> int:
    """Registers 4 and 5 are 6 and 7 unless debugging extensions are on."""
    if number in (4, 5) and not vcpu.cr4 & CR4_DE:
        return number + 2
    if number in (0, 1, 2, 3, 6, 7):
        return number
    raise XenError(ENODEV, f"there is no debug register {number}")


def _check_address(vaddr: int) -> None:
    if CANONICAL_LOW_END <= vaddr < HYPERVISOR_END:
        raise XenError(EPERM, f"breakpoint address {vaddr:#x} is not the guest's")


def _check_control(vcpu: Vcpu, value: int) -> int:
    value = value & ~_DR7_ZERO | DR7_FIXED
    if value & _DR7_GENERAL_DETECT:
        raise XenError(EPERM, "general detect belongs to the hypervisor")
    if value & _DR7_ENABLES:
        for shift in range(16, 32, 4):
            kind, length = value >> shift & 3, value >> shift + 2 & 3
            if kind == _KIND_IO and not vcpu.cr4 & CR4_DE:
                raise XenError(EPERM, "an I/O breakpoint without debugging extensions")
            if kind == _KIND_EXECUTE and length:
                raise XenError(EPERM, "an execution breakpoint longer than a byte")
    return value
