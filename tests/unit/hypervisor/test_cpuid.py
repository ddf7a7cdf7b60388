"""CPUID: what is hidden, what is made up, and Xen's own leaves."""

from __future__ import annotations

import pytest

from xenolith.hypervisor.cpuid import NOTHING, CpuidPolicy, Leaf
from xenolith.hypervisor.domain import Domain

ALL = 0xFFFFFFFF


class FullProcessor:
    """An engine whose processor claims every feature there is."""

    name = "unicorn"
    xcr0_mask = 0
    tsc_khz: int | None = None

    def host_cpuid(self, leaf: int, subleaf: int) -> Leaf:
        return (ALL, ALL, ALL, ALL)


class BareProcessor(FullProcessor):
    def host_cpuid(self, leaf: int, subleaf: int) -> Leaf:
        return NOTHING


def policy(engine: FullProcessor) -> CpuidPolicy:
    return CpuidPolicy(engine, Domain(1, "guest", 16))  # type: ignore[arg-type]


@pytest.fixture
def full() -> CpuidPolicy:
    return policy(FullProcessor())


def text(*words: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)


def test_vendor_and_last_leaf(full: CpuidPolicy) -> None:
    last, ebx, ecx, edx = full.query(0, 0)
    assert text(ebx, edx, ecx) == b"GenuineIntel"
    assert last == 7
    assert full.query(last + 1, 0) == NOTHING
    assert full.query(0x8000_0000, 0)[0] == 0x8000_0008


@pytest.mark.parametrize("bit", [1, 3, 12, 13, 17, 22, 28])
def test_edx_hides_what_a_pv_guest_cannot_use(full: CpuidPolicy, bit: int) -> None:
    """VME, PSE, MTRR, PGE, PSE-36, ACPI, HTT."""
    assert not full.query(1, 0)[3] >> bit & 1


@pytest.mark.parametrize("bit", [2, 3, 5, 12, 15, 17, 21, 24, 26, 27, 28, 29])
def test_ecx_hides_what_needs_more_than_an_engine_has(full: CpuidPolicy, bit: int) -> None:
    """DTES64, MONITOR, VMX, FMA, PDCM, PCID, x2APIC, TSC deadline, XSAVE, OSXSAVE, AVX, F16C."""
    assert not full.query(1, 0)[2] >> bit & 1


def test_features_that_stay(full: CpuidPolicy) -> None:
    _, _, ecx, edx = full.query(1, 0)
    for bit in (0, 9, 13, 19, 20, 23):
        assert ecx >> bit & 1
    for bit in (0, 4, 5, 6, 9, 11, 15, 24, 25, 26):
        assert edx >> bit & 1


def test_a_run_that_shall_be_repeatable_has_no_random_numbers(full: CpuidPolicy) -> None:
    repeatable = CpuidPolicy(FullProcessor(), Domain(1, "guest", 16), repeatable=True)  # type: ignore[arg-type]
    assert full.query(1, 0)[2] ^ repeatable.query(1, 0)[2] == 1 << 30
    assert not repeatable.query(7, 0)[1] >> 18 & 1


def test_nothing_is_claimed_that_the_engine_lacks() -> None:
    bare = policy(BareProcessor())
    assert bare.query(1, 0)[2:] == (1 << 31, 0)
    assert bare.query(7, 0) == NOTHING
    assert bare.query(0x8000_0001, 0) == NOTHING


@pytest.mark.parametrize("bit", [0, 3, 5, 7, 8, 9, 10, 16, 19, 20])
def test_structured_features_hidden(full: CpuidPolicy, bit: int) -> None:
    """FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, AVX-512, ADX, SMAP."""
    assert not full.query(7, 0)[1] >> bit & 1
    assert full.query(7, 1) == NOTHING


def test_extended_features(full: CpuidPolicy) -> None:
    edx = full.query(0x8000_0001, 0)[3]
    assert edx >> 29 & 1  # 64-bit mode
    assert edx >> 20 & 1  # NX
    assert not edx >> 26 & 1  # 1 GiB pages
    assert full.query(0x8000_0007, 0)[3] == 1 << 8
    assert full.query(0x8000_0008, 0)[0] == 48 << 8 | 46


def test_hypervisor_bit_is_set_whatever_the_engine_says() -> None:
    assert policy(BareProcessor()).query(1, 0)[2] >> 31


def test_a_cache_belongs_to_one_core(full: CpuidPolicy) -> None:
    assert full.query(4, 0)[0] >> 14 == 0
    assert policy(BareProcessor()).query(4, 0) == NOTHING


def test_brand(full: CpuidPolicy) -> None:
    brand = b"".join(text(*full.query(0x8000_0002 + part, 0)) for part in range(3))
    assert brand.rstrip(b"\0") == b"Xenolith virtual CPU (Unicorn)"
    assert len(brand) == 48


def test_xen_leaves(full: CpuidPolicy) -> None:
    last, ebx, ecx, edx = full.query(0x4000_0000, 0)
    assert text(ebx, ecx, edx) == b"XenVMMXenVMM"
    assert last == 0x4000_0005
    assert full.query(0x4000_0001, 0)[0] == 4 << 16 | 17
    assert full.query(0x4000_0002, 0) == (1, 0x4000_0000, 1, 0)
    assert full.query(0x4000_0004, 0) == NOTHING
    assert full.query(0x4000_0005, 0)[1] == 46
    assert full.query(0x4000_0006, 0) == NOTHING


def test_xen_time_leaf_says_that_a_tick_is_a_nanosecond(full: CpuidPolicy) -> None:
    assert full.query(0x4000_0003, 0)[2] == 1_000_000
    _, _, multiplier, shift = full.query(0x4000_0003, 1)
    assert (1_000_000_000 << shift) * multiplier >> 32 == 1_000_000_000
    assert full.query(0x4000_0003, 2)[0] == 1_000_000
    assert full.query(0x4000_0003, 3) == NOTHING


def test_xen_time_leaf_says_how_fast_a_processors_own_counter_is() -> None:
    processor = FullProcessor()
    processor.tsc_khz = 2_596_144
    fast = policy(processor)
    assert fast.query(0x4000_0003, 0)[2] == fast.query(0x4000_0003, 2)[0] == 2_596_144
    _, _, multiplier, shift = fast.query(0x4000_0003, 1)
    assert shift == 0xFF
    assert abs(((2_596_144_000 >> 1) * multiplier >> 32) - 1_000_000_000) < 10


def test_hostile_subleaves_do_not_grow_the_cache(full: CpuidPolicy) -> None:
    for subleaf in range(0, 1 << 32, 1 << 22):
        full.query(4, subleaf)
        full.query(subleaf, 0)
    assert len(full._answers) < 100


# -- what a domain's builder wants -------------------------------------------------------------------------------------


def wanted(**leaves: Leaf) -> CpuidPolicy:
    domain = Domain(1, "guest", 16)
    domain.cpu_policy = {(int(name[1:], 16), 0): leaf for name, leaf in leaves.items()}
    return CpuidPolicy(FullProcessor(), domain)  # type: ignore[arg-type]


def test_features_can_be_left_out_and_not_added(full: CpuidPolicy) -> None:
    model, _, ecx, edx = full.query(1, 0)
    without = wanted(x1=(0x12345, ALL, ALL, 1))
    assert without.query(1, 0) == (0x12345, full.query(1, 0)[1], ecx, 1)
    assert without.possible(1, 0) == (model, full.query(1, 0)[1], ecx, edx)
    assert without.query(0x8000_0001, 0) == full.query(0x8000_0001, 0)


def test_leaves_beyond_the_last_one_wanted_are_empty(full: CpuidPolicy) -> None:
    short = wanted(x0=(6, 0, 0, 0), x80000000=(0x8000_0004, 0, 0, 0), x7=(0, ALL, 0, 0))
    assert short.query(0, 0) == (6, *full.query(0, 0)[1:])
    assert short.query(7, 0) == short.query(0x8000_0008, 0) == NOTHING
    assert short.query(0x8000_0004, 0) == full.query(0x8000_0004, 0)
    assert wanted(x0=(0xD, 0, 0, 0)).query(0, 0)[0] == 7


def test_xen_s_own_leaves_are_not_the_builder_s(full: CpuidPolicy) -> None:
    assert wanted(x40000000=(0x4000_0000, 0, 0, 0)).query(0x4000_0001, 0) == full.query(0x4000_0001, 0)
