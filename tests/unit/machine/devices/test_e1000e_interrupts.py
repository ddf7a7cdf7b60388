"""When an 82574L interrupts, by the pin, by MSI and by MSI-X, and what masks and clears by itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenolith.machine.devices.e1000e_interrupts import ASSERTED, LSC, OTHER, RXQ0, RXT0, TXDW, TXQ0, Interrupts

MASK_ON_READ, MASK_ON_MESSAGE = 1 << 27, 1 << 24
LINUX_VECTORS = 8 | 9 << 8 | 10 << 16
"""Receive 0, transmit 1, other 2."""


class Function:
    def __init__(self, message_vectors: int) -> None:
        self.message_vectors = message_vectors
        self.sent: list[int] = []
        self.line = False

    def interrupt(self, vector: int = 0) -> None:
        self.sent.append(vector)

    def set_intx(self, level: bool) -> None:
        self.line = level

    def take(self) -> list[int]:
        sent, self.sent = self.sent, []
        return sent


def both(vectors: int) -> tuple[Function, Interrupts]:
    function = Function(vectors)
    return function, Interrupts(function)


def test_the_pin_is_up_while_there_is_a_cause_that_is_not_masked() -> None:
    function, interrupts = both(0)
    interrupts.add(TXDW)
    assert not function.line
    interrupts.unmask(TXDW | LSC)
    assert function.line
    assert interrupts.take() == TXDW | ASSERTED
    assert not function.line
    interrupts.add(RXT0)
    assert not function.line
    interrupts.add(LSC)
    interrupts.mask_off(LSC)
    assert not function.line
    assert interrupts.take() == RXT0 | LSC | OTHER


def test_causes_are_cleared_by_writing_them() -> None:
    function, interrupts = both(0)
    interrupts.unmask(TXDW | RXT0)
    interrupts.add(TXDW | RXT0)
    interrupts.clear(TXDW)
    assert function.line
    interrupts.clear(RXT0)
    assert not function.line


def test_reading_masks_if_it_is_to() -> None:
    function, interrupts = both(0)
    interrupts.control, interrupts.auto_mask = MASK_ON_READ, TXDW
    interrupts.unmask(TXDW | RXT0)
    interrupts.take()
    assert interrupts.mask == TXDW | RXT0, "nothing was asserted"
    interrupts.add(TXDW)
    interrupts.take()
    assert interrupts.mask == RXT0
    interrupts.add(TXDW)
    assert not function.line
    interrupts.unmask(TXDW)
    assert function.line


def test_one_message_is_sent_until_software_has_read_why() -> None:
    function, interrupts = both(1)
    interrupts.unmask(TXDW | RXT0)
    interrupts.add(TXDW)
    interrupts.add(RXT0)
    assert function.take() == [0]
    assert interrupts.take() == TXDW | RXT0 | ASSERTED
    interrupts.add(RXT0)
    assert function.take() == [0]


@pytest.fixture
def linux() -> tuple[Function, Interrupts]:
    """As Linux sets it up with MSI-X."""
    function, interrupts = both(5)
    interrupts.vectors, interrupts.control, interrupts.auto_mask = LINUX_VECTORS, MASK_ON_MESSAGE, 0xFFFFFFFF
    interrupts.auto_clear = RXQ0 | TXQ0
    interrupts.unmask(RXQ0 | TXQ0 | OTHER | LSC)
    return function, interrupts


def test_each_queue_has_its_message(linux: tuple[Function, Interrupts]) -> None:
    function, interrupts = linux
    interrupts.add(RXQ0 | RXT0)
    assert function.take() == [0]
    interrupts.add(TXQ0 | TXDW)
    assert function.take() == [1]
    interrupts.add(LSC)
    assert function.take() == [2]
    assert not function.line


def test_a_message_comes_again_when_software_wants_it(linux: tuple[Function, Interrupts]) -> None:
    function, interrupts = linux
    interrupts.add(RXQ0)
    interrupts.add(RXQ0)
    interrupts.add(RXQ0)
    assert function.take() == [0]
    interrupts.unmask(RXQ0)
    assert function.take() == [0]
    interrupts.unmask(RXQ0)
    assert function.take() == []


def test_other_causes_are_told_again_after_they_were_read(linux: tuple[Function, Interrupts]) -> None:
    function, interrupts = linux
    interrupts.add(LSC)
    assert interrupts.take() == LSC | OTHER | ASSERTED
    interrupts.unmask(OTHER | LSC)
    interrupts.add(LSC)
    assert function.take() == [2, 2]


def test_a_cause_without_a_message_waits(linux: tuple[Function, Interrupts]) -> None:
    function, interrupts = linux
    interrupts.vectors = 0
    interrupts.add(RXQ0)
    assert function.take() == []
    interrupts.vectors = LINUX_VECTORS
    interrupts.add(TXDW)
    assert function.take() == [0]


ACTIONS = st.tuples(st.integers(0, 5), st.integers(0, 0xFFFFFFFF))


@settings(deadline=None)
@given(st.sampled_from((0, 1, 5)), st.lists(ACTIONS, max_size=40))
def test_random_registers_lose_no_interrupt(vectors: int, actions: list[tuple[int, int]]) -> None:
    function, interrupts = both(vectors)
    for action, value in actions:
        match action:
            case 0:
                interrupts.control, interrupts.auto_mask = value, value >> 3
            case 1:
                interrupts.vectors, interrupts.auto_clear = value, value >> 5
            case 2:
                interrupts.unmask(value)
            case 3:
                interrupts.mask_off(value)
            case 4:
                interrupts.add(value)
            case _:
                interrupts.take()
    interrupts.vectors, interrupts.control = LINUX_VECTORS, 0
    interrupts.take()
    interrupts.unmask(RXQ0)
    function.take()
    interrupts.add(RXQ0)
    assert function.line if not vectors else function.take() == [0]
