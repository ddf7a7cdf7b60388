"""Extended processor state (XSAVE): which parts a guest may switch on, and how long they are.

The parts and their dependencies are those of the processor manuals; what Xen allows PV guests is in
xen/arch/x86/xstate.c (valid_xcr0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

X87: Final = 1 << 0
SSE: Final = 1 << 1
AVX: Final = 1 << 2
AVX512: Final = 7 << 5
KNOWN: Final = X87 | SSE | AVX | AVX512
"""What a guest can be given: state that needs neither supervisor instructions nor permission of the host."""
LEAF: Final = 0xD
_LEGACY_BYTES: Final = 576
"""The x87 and SSE area and the header behind it."""
_XSAVEOPT: Final = 1 << 0

Query = Callable[[int, int], tuple[int, int, int, int]]


def valid(value: int, mask: int) -> bool:
    """Whether XCR0 can be `value` where `mask` are the parts that there are."""
    if value & ~mask or not value & X87 or (value & AVX and not value & SSE):
        return False
    return not value & AVX512 or value & (AVX512 | AVX) == AVX512 | AVX


def size(real: Query, parts: int) -> int:
    """Bytes of an area in the standard form for `parts` of XCR0."""
    ends = [_LEGACY_BYTES]
    for number in range(2, parts.bit_length()):
        if parts >> number & 1:
            length, offset, _, _ = real(LEAF, number)
            ends.append(offset + length)
    return max(ends)


def describe(real: Query, mask: int, subleaf: int) -> tuple[int, int, int, int]:
    """CPUID leaf 0xD, with EBX of the first subleaf as for XCR0 with nothing but x87 state."""
    if not mask:
        return (0, 0, 0, 0)
    if subleaf == 0:
        return (mask & 0xFFFF_FFFF, _LEGACY_BYTES, size(real, mask), mask >> 32)
    if subleaf == 1:
        return (real(LEAF, 1)[0] & _XSAVEOPT, 0, 0, 0)
    if subleaf >= 2 and mask >> subleaf & 1:
        length, offset, _, _ = real(LEAF, subleaf)
        return (length, offset, 0, 0)
    return (0, 0, 0, 0)
