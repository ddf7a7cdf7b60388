"""A few thousand random hypercalls; `python -m tests.guest.fuzzing SECONDS` makes more."""

from __future__ import annotations

import pytest

from tests.guest.fuzzing import Fuzzer
from tests.guest.pvguest import TestMachine


@pytest.mark.parametrize("seed", range(1, 7))
def test_random_calls_keep_the_books_balanced(machine: TestMachine, seed: int) -> None:
    fuzzer = Fuzzer(machine, seed)
    try:
        fuzzer.live()
    except BaseException:
        print(f"seed {seed}, after {fuzzer.calls} calls:", *fuzzer.log[-20:], sep="\n  ")
        raise
    assert fuzzer.accepted > 20
