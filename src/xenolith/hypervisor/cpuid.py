"""What CPUID tells a PV guest: the engine's processor, less what PV guests must not see, plus Xen's own leaves.

Which features a PV guest may see is Xen's (the annotations in public/arch-x86/cpufeatureset.h and the PV cases of
xen/arch/x86/cpuid.c). Xen's leaves are those of public/arch-x86/cpuid.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenolith.abi.x86_64 import (
    XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD,
    XEN_CPUID_FIRST_LEAF,
    XEN_CPUID_MAX_NUM_LEAVES,
    XEN_CPUID_SIGNATURE_EBX,
    XEN_CPUID_SIGNATURE_ECX,
    XEN_CPUID_SIGNATURE_EDX,
)
from xenolith.hypervisor import xstate
from xenolith.hypervisor.release import DEFAULT_RELEASE, RELEASES, Release
from xenolith.hypervisor.timekeeping import tsc_scale

if TYPE_CHECKING:
    from xenolith.cpu.engine import Engine
    from xenolith.hypervisor.domain import Domain

Leaf = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

NOTHING: Final[Leaf] = (0, 0, 0, 0)

VENDOR: Final = b"GenuineIntel"

TSC_KHZ: Final = 1_000_000
"""Of the time stamp counter that guests read, where it counts nanoseconds."""


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


FAMILY_MODEL_STEPPING: Final = 0x00030661
"""Family 6, model 0x36, stepping 1: an in-order Intel processor. Like the emulator it never executes speculatively, so
that guests know that they need none of the slow protections against speculation."""

_MAX_BASIC_LEAF: Final = 7
_FIRST_EXTENDED_LEAF: Final = 0x8000_0000
_MAX_EXTENDED_LEAF: Final = 0x8000_0008
_CLFLUSH_LINE: Final = 0x0800
PHYSICAL_ADDRESS_BITS: Final = 46
_ADDRESS_WIDTHS: Final = 48 << 8 | PHYSICAL_ADDRESS_BITS
"""Bits of linear and of physical addresses."""
_MACHINE_ADDRESS_BITS: Final = 46
"""Bits of the highest machine address, unless the machine says how large it is: above 44, Linux wants grants of v2."""
_INVARIANT_TSC: Final = 1 << 8
_ONE_CORE: Final = 0x0000_3FFF
"""Of EAX of a cache leaf: all but the counts of cores and threads that share the cache."""

_HYPERVISOR: Final = 1 << 31

LEVELS: Final = {
    "host": xstate.KNOWN,
    "x86-64-v4": xstate.KNOWN,
    "x86-64-v3": xstate.KNOWN & ~xstate.AVX512,
    "x86-64-v2": 0,
}
"""Extended state that a processor of each level of the x86-64 psABI has; "host" is all that the engine has."""

# Bits that may be shown, leaf by leaf. Not shown: what PV guests cannot use (PSE, PGE, MTRR, VME, PCID, x2APIC, SMEP,
# 1 GiB pages …) and FSGSBASE. Shown only where the engine has XSAVE, which is where it executes natively: what needs
# extended state, and what an emulator computes wrongly (BMI1, BMI2, ADX) or slowly (ERMS).
_SHOWN_1_ECX: Final = _bits(
    0,  # SSE3
    1,  # PCLMULQDQ
    9,  # SSSE3
    13,  # CMPXCHG16B
    19,  # SSE4.1
    20,  # SSE4.2
    22,  # MOVBE
    23,  # POPCNT
    25,  # AES
    30,  # RDRAND
)
_RDRAND: Final = 1 << 30
_XSAVE: Final = 1 << 26
_AVX_1_ECX: Final = _bits(12, 28, 29)  # FMA, AVX, F16C
_NATIVE_7_EBX: Final = _bits(3, 8, 9, 18, 19)  # BMI1, BMI2, ERMS, RDSEED, ADX
_AVX_7_EBX: Final = _bits(5)  # AVX2
_AVX_7_ECX: Final = _bits(8, 9, 10)  # GFNI, VAES, VPCLMULQDQ
_AVX512_7_EBX: Final = _bits(16, 17, 21, 28, 30, 31)  # F, DQ, IFMA, CD, BW, VL
_AVX512_7_ECX: Final = _bits(1, 6, 11, 12, 14)  # VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
_NATIVE_7_EDX: Final = _bits(4)  # FSRM
_SHOWN_1_EDX: Final = _bits(
    0,  # FPU
    2,  # debugging extensions
    4,  # TSC
    5,  # MSR
    6,  # PAE
    7,  # machine-check exception
    8,  # CMPXCHG8B
    9,  # APIC
    11,  # SYSENTER
    14,  # machine-check architecture
    15,  # CMOV
    16,  # PAT
    19,  # CLFLUSH
    23,  # MMX
    24,  # FXSAVE
    25,  # SSE
    26,  # SSE2
    27,  # self-snoop
)
_SHOWN_7_EBX: Final = _bits(23, 24, 29)  # CLFLUSHOPT, CLWB, SHA
_SHOWN_EXTENDED_ECX: Final = _bits(0, 5, 8)  # LAHF in 64-bit mode, LZCNT, PREFETCHW
_SHOWN_EXTENDED_EDX: Final = _bits(11, 20, 27, 29)  # SYSCALL, NX, RDTSCP, 64-bit mode


class CpuidPolicy:
    """The answers to CPUID that `domain` gets on `engine`. They do not depend on the guest's mode or on how it asks.

    With `repeatable` there is no RDRAND, whose numbers would differ from run to run.
    """

    def __init__(
        self,
        engine: Engine,
        domain: Domain,
        repeatable: bool = False,
        address_bits: int = _MACHINE_ADDRESS_BITS,
        level: str = "host",
        release: Release = RELEASES[DEFAULT_RELEASE],
    ) -> None:
        self._engine = engine
        self._address_bits = address_bits
        self._release = release
        self.xcr0_mask = engine.xcr0_mask & LEVELS[level]
        """The parts of extended state that the domain may switch on."""
        self._shown_1_ecx = self._choose(_SHOWN_1_ECX, _XSAVE, _AVX_1_ECX) & ~(_RDRAND if repeatable else 0)
        self._shown_7_ebx = self._choose(_SHOWN_7_EBX, _NATIVE_7_EBX, _AVX_7_EBX, _AVX512_7_EBX)
        self._shown_7_ecx = self._choose(0, 0, _AVX_7_ECX, _AVX512_7_ECX)
        self._shown_7_edx = self._choose(0, _NATIVE_7_EDX)
        self.domain = domain
        self._answers: dict[tuple[int, int], Leaf] = {}

    def query(self, leaf: int, subleaf: int) -> Leaf:
        """EAX, EBX, ECX and EDX of `leaf` (32 bits) and `subleaf`; a leaf beyond the last of its range is all zero."""
        if leaf not in _LEAVES:
            return NOTHING
        subleaf = min(subleaf, _SUBLEAVES_KEPT)
        key = (leaf, subleaf)
        if key not in self._answers:
            self._answers[key] = self._limited(leaf, subleaf, self.possible(leaf, subleaf))
        return self._answers[key]

    def _choose(self, always: int, native: int, avx: int = 0, avx512: int = 0) -> int:
        """The bits that go with the extended state that there is."""
        mask = self.xcr0_mask
        shown = always | (native if mask else 0) | (avx if mask & xstate.AVX else 0)
        return shown | (avx512 if mask & xstate.AVX512 else 0)

    def state_size(self, xcr0: int) -> int:
        """Bytes of the XSAVE area for these parts."""
        return xstate.size(self._real, xcr0)

    def possible(self, leaf: int, subleaf: int) -> Leaf:
        """What a domain can be shown at most, whatever its builder wants."""
        answer = _LEAVES.get(leaf)
        return answer(self, subleaf) if answer is not None else NOTHING

    def _limited(self, leaf: int, subleaf: int, possible: Leaf) -> Leaf:
        """What there is less what the domain's builder left out; where it is no matter of features, what it wants.

        As recalculate_cpuid_policy in xen/arch/x86/cpuid.c makes of a policy that a toolstack has set.
        """
        policy = self.domain.cpu_policy
        if not policy or leaf & _RANGE == XEN_CPUID_FIRST_LEAF:
            return possible
        last = policy.get((leaf & _FIRST_EXTENDED_LEAF, 0))
        if last is not None and leaf > last[0]:
            return NOTHING
        wanted = policy.get((leaf, subleaf), possible)
        rules = _RULES.get(leaf, (_OURS,) * 4)
        a, b, c, d = (_RULE[rule](ours, theirs) for rule, ours, theirs in zip(rules, possible, wanted, strict=True))
        return (a, b, c, d)

    def _real(self, leaf: int, subleaf: int = 0) -> Leaf:
        return self._engine.host_cpuid(leaf, subleaf)

    def _vendor(self, subleaf: int) -> Leaf:
        return (xstate.LEAF if self.xcr0_mask else _MAX_BASIC_LEAF, *_VENDOR)

    def _features(self, subleaf: int) -> Leaf:
        _, _, ecx, edx = self._real(1)
        return (FAMILY_MODEL_STEPPING, _CLFLUSH_LINE, ecx & self._shown_1_ecx | _HYPERVISOR, edx & _SHOWN_1_EDX)

    def _cache_descriptors(self, subleaf: int) -> Leaf:
        return self._real(2)

    def _caches(self, subleaf: int) -> Leaf:
        eax, ebx, ecx, edx = self._real(4, subleaf)
        return (eax & _ONE_CORE, ebx, ecx, edx) if eax & 0x1F else NOTHING

    def _structured_features(self, subleaf: int) -> Leaf:
        if subleaf:
            return NOTHING
        _, ebx, ecx, edx = self._real(7)
        return (0, ebx & self._shown_7_ebx, ecx & self._shown_7_ecx, edx & self._shown_7_edx)

    def _extended_state(self, subleaf: int) -> Leaf:
        return xstate.describe(self._real, self.xcr0_mask, subleaf)

    def _extended_maximum(self, subleaf: int) -> Leaf:
        return (_MAX_EXTENDED_LEAF, 0, 0, 0)

    def _extended_features(self, subleaf: int) -> Leaf:
        _, _, ecx, edx = self._real(0x8000_0001)
        return (0, 0, ecx & _SHOWN_EXTENDED_ECX, edx & _SHOWN_EXTENDED_EDX)

    def _brand(self, part: int) -> Leaf:
        text = f"Xenolith virtual CPU ({self._engine.name.capitalize()})".encode("ascii")[:47].ljust(48, b"\0")
        return _words(text[16 * part : 16 * part + 16])

    def _level_2_cache(self, subleaf: int) -> Leaf:
        return (0, 0, self._real(0x8000_0006)[2], 0)

    def _time_base(self, subleaf: int) -> Leaf:
        return (0, 0, 0, _INVARIANT_TSC)

    def _address_widths(self, subleaf: int) -> Leaf:
        return (_ADDRESS_WIDTHS, 0, 0, 0)

    def _xen_signature(self, subleaf: int) -> Leaf:
        last = XEN_CPUID_FIRST_LEAF + XEN_CPUID_MAX_NUM_LEAVES
        return (last, XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX)

    def _xen_version(self, subleaf: int) -> Leaf:
        return (self._release.major << 16 | self._release.minor, 0, 0, 0)

    def _xen_hypercall_page(self, subleaf: int) -> Leaf:
        return (1, XEN_CPUID_FIRST_LEAF, XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0)

    def _xen_time(self, subleaf: int) -> Leaf:
        """Features, mode, the guest's kHz, incarnation; offset, offset, scale to nanoseconds; the host's kHz."""
        khz = self._engine.tsc_khz or TSC_KHZ
        multiplier, shift = tsc_scale(khz)
        parts: tuple[Leaf, ...] = (
            (_SAFE_TSC | _HAS_RDTSCP, 0, khz, self.domain.tsc_incarnation),
            (0, 0, multiplier, shift & 0xFF),
            (khz, 0, 0, 0),
        )
        return parts[subleaf] if subleaf < len(parts) else NOTHING

    def _xen_pv(self, subleaf: int) -> Leaf:
        return (0, self._address_bits, 0, 0) if subleaf == 0 else NOTHING


def _words(text: bytes) -> Leaf:
    a, b, c, d = (int.from_bytes(text[at : at + 4], "little") for at in range(0, 16, 4))
    return (a, b, c, d)


_VENDOR: Final = _words(bytes(4) + VENDOR[:4] + VENDOR[8:] + VENDOR[4:8])[1:]

_SAFE_TSC: Final = 1 << 1
_HAS_RDTSCP: Final = 1 << 2
_RANGE: Final = 0xFFFF_0000
"""Of a leaf's number: the range that it belongs to."""
_OURS, _THEIRS, _BOTH, _LESS = "ours", "theirs", "both", "less"
_RULE: Final[dict[str, Callable[[int, int], int]]] = {
    _OURS: lambda ours, theirs: ours,
    _THEIRS: lambda ours, theirs: theirs,
    _BOTH: lambda ours, theirs: ours & theirs,
    _LESS: min,
}
_RULES: Final = {
    0: (_LESS, _OURS, _OURS, _OURS),
    1: (_THEIRS, _OURS, _BOTH, _BOTH),
    2: (_THEIRS,) * 4,
    4: (_THEIRS,) * 4,
    7: (_OURS, _BOTH, _BOTH, _BOTH),
    0x8000_0000: (_LESS, _OURS, _OURS, _OURS),
    0x8000_0001: (_OURS, _OURS, _BOTH, _BOTH),
    0x8000_0002: (_THEIRS,) * 4,
    0x8000_0003: (_THEIRS,) * 4,
    0x8000_0004: (_THEIRS,) * 4,
    0x8000_0006: (_THEIRS,) * 4,
    0x8000_0007: (_OURS, _OURS, _OURS, _BOTH),
}
"""Whose word counts for EAX, EBX, ECX and EDX of a leaf, of a domain whose builder has set a policy."""

_SUBLEAVES_KEPT: Final = 64
"""More subleaves than any leaf has: one entry of the cache stands for all above."""

_LEAVES: Final[dict[int, Callable[[CpuidPolicy, int], Leaf]]] = {
    0: CpuidPolicy._vendor,
    1: CpuidPolicy._features,
    2: CpuidPolicy._cache_descriptors,
    4: CpuidPolicy._caches,
    7: CpuidPolicy._structured_features,
    xstate.LEAF: CpuidPolicy._extended_state,
    0x4000_0000: CpuidPolicy._xen_signature,
    0x4000_0001: CpuidPolicy._xen_version,
    0x4000_0002: CpuidPolicy._xen_hypercall_page,
    0x4000_0003: CpuidPolicy._xen_time,
    0x4000_0005: CpuidPolicy._xen_pv,
    0x8000_0000: CpuidPolicy._extended_maximum,
    0x8000_0001: CpuidPolicy._extended_features,
    0x8000_0002: lambda policy, subleaf: policy._brand(0),
    0x8000_0003: lambda policy, subleaf: policy._brand(1),
    0x8000_0004: lambda policy, subleaf: policy._brand(2),
    0x8000_0006: CpuidPolicy._level_2_cache,
    0x8000_0007: CpuidPolicy._time_base,
    0x8000_0008: CpuidPolicy._address_widths,
}
