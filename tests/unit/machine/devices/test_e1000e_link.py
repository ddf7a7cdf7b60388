"""The memory and the PHY of an 82574L, as drivers look into them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenolith.machine.devices.e1000e_link import Nvm, Phy

MAC = bytes.fromhex("00163e123456")
READY, ERROR, INTERRUPT = 1 << 28, 1 << 30, 1 << 29
RESET, POWER_DOWN = 1 << 15, 1 << 11
LINK = 1 << 2


def word(nvm: Nvm, at: int) -> int:
    nvm.read(at << 2 | 1)
    assert nvm.read_register & 0xFFFF == at << 2 | 2
    return nvm.read_register >> 16


def test_the_memory_has_the_address_and_a_sum_that_is_right() -> None:
    nvm = Nvm(MAC)
    assert b"".join(word(nvm, at).to_bytes(2, "little") for at in range(3)) == MAC == nvm.mac
    assert sum(word(nvm, at) for at in range(64)) & 0xFFFF == 0xBABA
    assert word(nvm, 64) == 0xFFFF


def test_words_are_written_where_there_are_some() -> None:
    nvm = Nvm(MAC)
    nvm.write(0xBEEF << 16 | 0x10 << 2 | 1)
    nvm.write(0xDEAD << 16 | 64 << 2 | 1)
    nvm.write(0xDEAD << 16 | 0x11 << 2)
    assert word(nvm, 0x10) == 0xBEEF
    assert word(nvm, 0x11) == 0
    assert nvm.write_register == 2


def command(phy: Phy, operation: int, register: int, value: int = 0, address: int = 1) -> int:
    phy.execute(operation << 26 | address << 21 | register << 16 | value)
    assert phy.command & READY
    return phy.command


def read(phy: Phy, register: int) -> int:
    return command(phy, 2, register) & 0xFFFF


def test_the_phy_is_the_one_that_drivers_know_and_its_link_is_up() -> None:
    phy = Phy()
    assert (read(phy, 2), read(phy, 3)) == (0x0141, 0x0CB1)
    assert phy.link
    assert read(phy, 1) & LINK
    assert read(phy, 17) >> 14 == 2
    phy.cable = False
    assert not read(phy, 1) & LINK


@pytest.mark.parametrize(("operation", "address"), [(0, 1), (3, 1), (2, 0), (2, 2)])
def test_what_is_no_command_to_this_phy_is_an_error(operation: int, address: int) -> None:
    assert command(Phy(), operation, 2, address=address) & ERROR


def test_without_power_there_is_no_link() -> None:
    phy = Phy()
    command(phy, 1, 0, POWER_DOWN)
    assert not phy.link
    command(phy, 1, 0, RESET)
    assert phy.link
    assert read(phy, 0) == 0x1140


def test_negotiation_is_started_again_and_done_at_once() -> None:
    phy = Phy()
    command(phy, 1, 0, 0x1140 | 1 << 9)
    assert read(phy, 0) == 0x1140
    assert read(phy, 1) & 1 << 5


def test_there_is_one_page_of_registers_behind_the_first_sixteen() -> None:
    phy = Phy()
    command(phy, 1, 20, 7)
    command(phy, 1, 2, 7)
    command(phy, 1, 22, 769)
    assert read(phy, 22) == 769
    assert read(phy, 20) == 0
    command(phy, 1, 20, 8)
    assert read(phy, 2) == 0x0141
    command(phy, 1, 22, 0)
    assert read(phy, 20) == 7


@settings(deadline=None)
@given(st.lists(st.integers(0, 0xFFFFFFFF), max_size=30))
def test_random_commands_harm_nobody(commands: list[int]) -> None:
    phy, nvm = Phy(), Nvm(MAC)
    for word_ in commands:
        assert phy.execute(word_) is bool(word_ & INTERRUPT)
        nvm.read(word_)
        nvm.write(word_)
    assert len(phy._registers) <= 32
