"""What the host's own processor says of itself, on x86-64 hosts that let a program make executable pages."""

from __future__ import annotations

import ctypes
import mmap
import platform
from functools import cache
from typing import Any, Final

_READ_TSC: Final = bytes.fromhex("0f31 48c1e220 4809d0 c3")
"""rdtsc; shl rdx, 32; or rax, rdx; ret"""
_CPUID: Final = bytes.fromhex("53 89f8 89f1 4989d0 0fa2 418900 41895804 41894808 4189500c 5b c3")
"""push rbx; mov eax, edi; mov ecx, esi; mov r8, rdx; cpuid; mov [r8], eax; mov [r8+4], ebx; mov [r8+8], ecx;
mov [r8+12], edx; pop rbx; ret"""


def page_of_code(code: bytes) -> mmap.mmap:
    """An executable page that holds native code. OSError or NotImplementedError where that is not possible."""
    if platform.machine() != "x86_64":
        raise NotImplementedError
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page[: len(code)] = code
    return page


@cache
def _function(code: bytes, result: Any, *arguments: Any) -> tuple[Any, mmap.mmap]:
    page = page_of_code(code)
    return ctypes.CFUNCTYPE(result, *arguments)(ctypes.addressof(ctypes.c_char.from_buffer(page))), page


def read_tsc() -> int:
    """The time stamp counter."""
    return int(_function(_READ_TSC, ctypes.c_uint64)[0]())


def cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX."""
    answer = (ctypes.c_uint32 * 4)()
    _function(_CPUID, None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)[0](leaf, subleaf, answer)
    a, b, c, d = answer
    return (a, b, c, d)
