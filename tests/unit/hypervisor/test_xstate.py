"""Which parts of extended state can be switched on together, and how CPUID describes them."""

from __future__ import annotations

import pytest

from xenolith.hypervisor import xstate

PARTS = {2: (256, 576), 5: (64, 832), 6: (512, 896), 7: (1024, 1408)}


def real(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    if subleaf == 1:
        return (0xF, 0, 0, 0)
    return (*PARTS.get(subleaf, (0, 0)), 0, 0)


@pytest.mark.parametrize("value", [1, 3, 7, 0xE7])
def test_parts_that_belong_together(value: int) -> None:
    assert xstate.valid(value, xstate.KNOWN)


@pytest.mark.parametrize("value", [0, 2, 4, 5, 0x23, 0xE3, 0x67, 0x107])
def test_parts_that_do_not(value: int) -> None:
    assert not xstate.valid(value, xstate.KNOWN)


def test_what_the_mask_has_not_cannot_be_switched_on() -> None:
    assert not xstate.valid(0xE7, 7)


def test_sizes() -> None:
    assert [xstate.size(real, parts) for parts in (1, 3, 7, 0xE7)] == [576, 576, 832, 2432]


def test_description() -> None:
    assert xstate.describe(real, 0xE7, 0) == (0xE7, 576, 2432, 0)
    assert xstate.describe(real, 7, 0) == (7, 576, 832, 0)
    assert xstate.describe(real, 7, 1) == (1, 0, 0, 0)
    assert xstate.describe(real, 7, 2) == (256, 576, 0, 0)
    assert xstate.describe(real, 7, 5) == (0, 0, 0, 0)
    assert xstate.describe(real, 0, 0) == (0, 0, 0, 0)
