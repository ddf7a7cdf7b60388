"""The host kernel's KVM interface as data: requests, structures and exit reasons (linux/kvm.h, asm/kvm.h for x86)."""

from __future__ import annotations

import ctypes
import fcntl
from typing import Final

API_VERSION: Final = 12

# Requests to /dev/kvm.
GET_API_VERSION: Final = 0xAE00
CREATE_VM: Final = 0xAE01
CHECK_EXTENSION: Final = 0xAE03
GET_VCPU_MMAP_SIZE: Final = 0xAE04
GET_SUPPORTED_CPUID: Final = 0xC008AE05
# Requests to a virtual machine.
CREATE_VCPU: Final = 0xAE41
SET_USER_MEMORY_REGION: Final = 0x4020AE46
# Requests to a virtual processor.
RUN: Final = 0xAE80
GET_SREGS: Final = 0x8138AE83
SET_SREGS: Final = 0x4138AE84
SET_MSRS: Final = 0x4008AE89
SET_FPU: Final = 0x41A0AE8D
SET_CPUID2: Final = 0x4008AE90
GET_VCPU_EVENTS: Final = 0x8040AE9F
SET_VCPU_EVENTS: Final = 0x4040AEA0
GET_DEBUGREGS: Final = 0x8080AEA1
SET_DEBUGREGS: Final = 0x4080AEA2
GET_TSC_KHZ: Final = 0xAEA3
SET_XCRS: Final = 0x4188AEA7
SET_DEVICE_ATTR: Final = 0x4018AEE1

CAP_MAX_VCPUS: Final = 66
CAP_SYNC_REGS: Final = 74
CAP_IMMEDIATE_EXIT: Final = 136
SYNC_REGS: Final = 1
SYNC_SREGS: Final = 2
CPUID_SIGNIFICANT_INDEX: Final = 1
TSC_OFFSET_GROUP: Final = 0

EXIT_IO: Final = 2
EXIT_MMIO: Final = 6
EXIT_SHUTDOWN: Final = 8
EXIT_FAIL_ENTRY: Final = 9
EXIT_INTERNAL_ERROR: Final = 17

# struct kvm_run, offsets in bytes.
RUN_IMMEDIATE_EXIT: Final = 1
RUN_EXIT_REASON: Final = 8
RUN_IO_SIZE: Final = 33
RUN_IO_PORT: Final = 34
RUN_MMIO_ADDRESS: Final = 32
RUN_MMIO_DATA: Final = 40
RUN_MMIO_LENGTH: Final = 48
RUN_MMIO_IS_WRITE: Final = 52
RUN_VALID_REGS: Final = 288
RUN_DIRTY_REGS: Final = 296
RUN_REGS: Final = 304
RUN_SREGS: Final = 448
REGS_WORDS: Final = 18

# struct kvm_sregs, offsets in bytes.
SREGS_CS: Final = 0
SREGS_DS: Final = 24
SREGS_ES: Final = 48
SREGS_FS: Final = 72
SREGS_GS: Final = 96
SREGS_SS: Final = 120
SREGS_TR: Final = 144
SREGS_LDT: Final = 168
SREGS_GDT: Final = 192
SREGS_IDT: Final = 208
SREGS_CR0: Final = 224
SREGS_CR2: Final = 232
SREGS_CR3: Final = 240
SREGS_CR4: Final = 248
SREGS_EFER: Final = 264
SREGS_BYTES: Final = 312
SEGMENT: Final = "<QIHBBBBBBBBBx"
"""base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable"""
SEGMENT_SELECTOR: Final = 12

DEBUGREGS_BYTES: Final = 128
EVENTS_BYTES: Final = 64
FPU_BYTES: Final = 416
FPU_CONTROL: Final = 128
FPU_MXCSR: Final = 408
CPUID_ENTRIES: Final = 256
_CPUID_ENTRY: Final = 40
XCRS_BYTES: Final = 392

MSR_SYSENTER_CS: Final = 0x174
MSR_SYSENTER_EIP: Final = 0x176
MSR_MISC_FEATURES_ENABLES: Final = 0x140
MSR_STAR: Final = 0xC0000081
MSR_LSTAR: Final = 0xC0000082
MSR_CSTAR: Final = 0xC0000083
MSR_SYSCALL_MASK: Final = 0xC0000084
MISC_CPUID_FAULT: Final = 1


class CpuidTable:
    """struct kvm_cpuid2: what the host can show a guest, and the form in which a virtual processor is told."""

    def __init__(self, kvm: int) -> None:
        self.raw = bytearray(8 + _CPUID_ENTRY * CPUID_ENTRIES)
        self.raw[0:4] = CPUID_ENTRIES.to_bytes(4, "little")
        fcntl_large(kvm, GET_SUPPORTED_CPUID, self.raw)
        self._answers: dict[tuple[int, int | None], tuple[int, int, int, int]] = {}
        words = memoryview(self.raw).cast("I")
        for number in range(words[0]):
            leaf, subleaf, flags, eax, ebx, ecx, edx = words[2 + number * 10 : 9 + number * 10].tolist()
            self._answers[leaf, subleaf if flags & CPUID_SIGNIFICANT_INDEX else None] = (eax, ebx, ecx, edx)

    def query(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX; zeros for what the host does not know."""
        return self._answers.get((leaf, None)) or self._answers.get((leaf, subleaf), (0, 0, 0, 0))


def fcntl_large(fd: int, request: int, argument: bytearray) -> None:
    """An ioctl whose argument is longer than its number says. Raises OSError."""
    place = (ctypes.c_char * len(argument)).from_buffer(argument)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ioctl(fd, ctypes.c_ulong(request), place) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"KVM request {request:#x} failed")


def set_msr(vcpu: int, number: int, value: int) -> bool:
    """Write a model-specific register of a virtual processor. False where the host refuses."""
    message = bytearray(24)
    words = memoryview(message).cast("I")
    words[0], words[2] = 1, number
    memoryview(message).cast("Q")[2] = value
    place = (ctypes.c_char * 24).from_buffer(message)
    return bool(ctypes.CDLL(None).ioctl(vcpu, ctypes.c_ulong(SET_MSRS), place) == 1)


def request(fd: int, number: int, argument: int | bytes = 0) -> int:
    """An ioctl with a number or an input structure. Raises OSError."""
    if isinstance(argument, bytes):
        fcntl.ioctl(fd, number, argument)
        return 0
    return fcntl.ioctl(fd, number, argument)


def answer(fd: int, number: int, size: int) -> bytearray:
    """An ioctl that fills a structure of `size` bytes. Raises OSError."""
    place = bytearray(size)
    fcntl.ioctl(fd, number, place)
    return place
