"""Model-specific registers as a PV guest reads and writes them: one table, and Xen's rule for those not in it.

Source: the PV cases of xen/arch/x86/msr.c and xen/arch/x86/pv/emul-priv-op.c (4.17).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from xenolith.abi.errno import XenError
from xenolith.abi.types import PAGE_OFFSET_MASK, PAGE_SHIFT
from xenolith.cpu.registers import EFER_LMA, EFER_LME, EFER_NX, EFER_SCE
from xenolith.hypervisor.frames import TYPE_WRITABLE
from xenolith.hypervisor.hypercall_page import hypercall_page

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

TSC: Final = 0x10
PLATFORM_ID: Final = 0x17
APIC_BASE: Final = 0x1B
FEATURE_CONTROL: Final = 0x3A
MICROCODE_REVISION: Final = 0x8B
PLATFORM_INFO: Final = 0xCE
MPERF: Final = 0xE7
APERF: Final = 0xE8
MISC_FEATURES_ENABLES: Final = 0x140
MCG_CAP: Final = 0x179
MCG_STATUS: Final = 0x17A
PERF_STATUS: Final = 0x198
PERF_CTL: Final = 0x199
THERM_CONTROL: Final = 0x19A
MISC_ENABLE: Final = 0x1A0
ENERGY_PERF_BIAS: Final = 0x1B0
PAT: Final = 0x277
PERF_CAPABILITIES: Final = 0x345
MC0_CTL: Final = 0x400
XEN_FIRST: Final = 0x4000_0000
"""Xen's own registers: the first, which takes the address of a hypercall page, is the one that there is."""
EFER: Final = 0xC000_0080
FS_BASE: Final = 0xC000_0100
GS_BASE: Final = 0xC000_0101
KERNEL_GS_BASE: Final = 0xC000_0102
TSC_AUX: Final = 0xC000_0103

GENERAL_PROTECTION: Final = 13

_MICROCODE: Final = 1 << 32
"""Revision 1, in the upper half as Intel has it."""
_APIC_ENABLED_AT: Final = 0xFEE0_0800
_APIC_BSP: Final = 1 << 8
_XEN_PAT: Final = 0x0005_0100_0704_06
"""Write-back, write-through, uncached minus, uncached, write-combining, write-protected (XEN_MSR_PAT)."""
_EFER_VALUE: Final = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX
_MISC_ENABLE_VALUE: Final = 1 << 0 | 1 << 11 | 1 << 12 | 1 << 23
"""Fast strings; no branch trace store, no PEBS, no xTPR messages (guest_misc_enable)."""
_MC_BANKS: Final = 2
_MC_BANK_REGISTERS: Final = 4
_ALL_ONES: Final = (1 << 64) - 1

Read = Callable[["Hypervisor", "Vcpu"], int]
Write = Callable[["Hypervisor", "Vcpu", int], bool]


class Msr(NamedTuple):
    """One register. `write` returns whether the value is allowed. None: it cannot be read, or written."""

    read: Read | None
    write: Write | None = None


def read(hv: Hypervisor, vcpu: Vcpu, number: int) -> int | None:
    """The 64-bit value of register `number`, or None where the guest gets #GP.

    A guest that has no #GP handler yet reads 0 from a register that it does not have, as under Xen.
    """
    register = _TABLE.get(number)
    if register is not None and register.read is not None:
        return register.read(hv, vcpu)
    may_fault = vcpu.traps[GENERAL_PROTECTION].address or number & ~0xFFFF == XEN_FIRST
    return None if may_fault else 0


def write(hv: Hypervisor, vcpu: Vcpu, number: int, value: int) -> bool:
    """Write register `number`; False where the guest gets #GP."""
    register = _TABLE.get(number)
    return register is not None and register.write is not None and register.write(hv, vcpu, value)


def is_canonical(vaddr: int) -> bool:
    """Whether bits 63 to 47 of a 64-bit address are equal."""
    return vaddr >> 47 in (0, 0x1FFFF)


def _constant(value: int) -> Read:
    return lambda hv, vcpu: value


def _ignore(hv: Hypervisor, vcpu: Vcpu, value: int) -> bool:
    return True


def _only(allowed: int) -> Write:
    return lambda hv, vcpu, value: value == allowed


def _read_apic_base(hv: Hypervisor, vcpu: Vcpu) -> int:
    return _APIC_ENABLED_AT | (_APIC_BSP if vcpu.vcpu_id == 0 else 0)


def _write_fs_base(hv: Hypervisor, vcpu: Vcpu, value: int) -> bool:
    if is_canonical(value):
        vcpu.cpu.fs_base = value
        return True
    return False


def _write_gs_base(hv: Hypervisor, vcpu: Vcpu, value: int) -> bool:
    if is_canonical(value):
        vcpu.cpu.gs_base = value
        return True
    return False


def _write_other_gs_base(hv: Hypervisor, vcpu: Vcpu, value: int) -> bool:
    if is_canonical(value):
        vcpu.other_gs_base = value
        return True
    return False


def _write_tsc_aux(hv: Hypervisor, vcpu: Vcpu, value: int) -> bool:
    if value >> 32:
        return False
    vcpu.tsc_aux = value
    return True


def _write_hypercall_page(hv: Hypervisor, vcpu: Vcpu, value: int) -> bool:
    """Fill the guest's frame at machine address `value` with the stubs (guest_wrmsr_xen)."""
    mfn, page = value >> PAGE_SHIFT, value & PAGE_OFFSET_MASK
    if page:
        return False
    try:
        hv.frames.get_page_and_type(mfn, vcpu.domain.domid, TYPE_WRITABLE)
    except XenError:
        return False
    hv.memory.write_machine(value, hypercall_page())
    hv.frames.put_page_and_type(mfn)
    return True


def _machine_check_banks() -> dict[int, Msr]:
    """Banks that never report: control reads all ones, status, address and miscellaneous read 0 and take only 0."""
    control = Msr(_constant(_ALL_ONES), _ignore)
    silent = Msr(_constant(0), _only(0))
    return {
        MC0_CTL + index: silent if index % _MC_BANK_REGISTERS else control
        for index in range(_MC_BANKS * _MC_BANK_REGISTERS)
    }


_TABLE: Final[dict[int, Msr]] = {
    TSC: Msr(lambda hv, vcpu: hv.tsc()),
    PLATFORM_ID: Msr(_constant(0)),
    APIC_BASE: Msr(_read_apic_base),
    FEATURE_CONTROL: Msr(_constant(1)),  # locked, nothing enabled
    MICROCODE_REVISION: Msr(_constant(_MICROCODE), _only(0)),
    PLATFORM_INFO: Msr(_constant(0)),
    MPERF: Msr(lambda hv, vcpu: hv.tsc(), _ignore),
    APERF: Msr(lambda hv, vcpu: hv.tsc(), _ignore),
    MISC_FEATURES_ENABLES: Msr(_constant(0), _only(0)),
    MCG_CAP: Msr(_constant(_MC_BANKS)),
    MCG_STATUS: Msr(_constant(0), _ignore),
    PERF_STATUS: Msr(_constant(0)),
    PERF_CTL: Msr(_constant(0), _ignore),
    THERM_CONTROL: Msr(_constant(0), _ignore),
    MISC_ENABLE: Msr(_constant(_MISC_ENABLE_VALUE), _only(_MISC_ENABLE_VALUE)),
    ENERGY_PERF_BIAS: Msr(_constant(0), _ignore),
    PAT: Msr(_constant(_XEN_PAT), _only(_XEN_PAT)),
    PERF_CAPABILITIES: Msr(_constant(0)),
    **_machine_check_banks(),
    XEN_FIRST: Msr(None, _write_hypercall_page),
    # NetBSD writes NX into it although it reads as set already.
    EFER: Msr(_constant(_EFER_VALUE), _only(_EFER_VALUE)),
    FS_BASE: Msr(lambda hv, vcpu: vcpu.cpu.fs_base, _write_fs_base),
    GS_BASE: Msr(lambda hv, vcpu: vcpu.cpu.gs_base, _write_gs_base),
    KERNEL_GS_BASE: Msr(lambda hv, vcpu: vcpu.other_gs_base, _write_other_gs_base),
    TSC_AUX: Msr(lambda hv, vcpu: vcpu.tsc_aux, _write_tsc_aux),
}
