"""The transport of virtio devices, seen from a driver; and what one that breaks the rules can do: nothing."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.machine.devices.virtio_driver import (
    ACKNOWLEDGE,
    COMMON,
    DEVICE,
    DRIVER,
    INDIRECT,
    ISR,
    NEXT,
    NOTIFY,
    WINDOW,
    WRITE,
    Driver,
)
from xenolith.machine.devices.virtio_pci import (
    ACCESS_PLATFORM,
    EVENT_IDX,
    FEATURES_OK,
    INDIRECT_DESC,
    NEEDS_RESET,
    VERSION_1,
    VirtioDevice,
)
from xenolith.machine.devices.virtqueue import NO_VECTOR, Chain, Virtqueue
from xenolith.machine.pci import COMMAND
from xenolith.machine.pci_device import MSIX

SHOUT = 1 << 3
"""A feature of the device below."""


class Echo(VirtioDevice):
    """Answers each chain with what can be read in it; in capital letters if the driver wants to be shouted at."""

    def __init__(self) -> None:
        super().__init__(18, 0xFF0000, SHOUT, (64, 8), b"registers")
        self.kept: list[Chain] = []
        self.keep = False
        self.stops = 0

    def notified(self, queue: Virtqueue) -> None:
        while chain := queue.take():
            if self.keep:
                self.kept.append(chain)
            else:
                self.answer(queue, chain)
        self.flush(queue)

    def answer(self, queue: Virtqueue, chain: Chain) -> None:
        data = chain.read(0, 1 << 20)
        queue.put(chain, chain.write(0, data.upper() if self.has(SHOUT) else data))

    def stopped(self) -> None:
        self.stops += 1

    def write_registers(self, offset: int, size: int, value: int) -> None:
        self.registers[offset : offset + size] = value.to_bytes(size, "little")


@pytest.fixture
def driver() -> Driver:
    return Driver(Echo())


def lend_and_see(driver: Driver, text: bytes, size: int = 64) -> bytes:
    (_, place) = driver.lend(0, [text], [size])
    driver.kick(0)
    ((_, length),) = driver.answers(0)
    return bytes(driver.board.memory[place : place + length])


# -- finding and starting it ------------------------------------------------------------------------------------------


def test_it_says_what_it_is(driver: Driver) -> None:
    assert driver.board.read_config(0, 4) == 0x1052_1AF4
    assert driver.board.read_config(8, 1) == 1
    assert driver.places.keys() == {COMMON, NOTIFY, ISR, DEVICE, WINDOW}
    assert driver.read(COMMON, 18, 2) == 2
    assert driver.board.device.vectors == (0, 3)
    assert driver.offered() == SHOUT | INDIRECT_DESC | EVENT_IDX | VERSION_1 | ACCESS_PLATFORM


@pytest.mark.parametrize(
    ("wanted", "agreed"), [(VERSION_1, True), (VERSION_1 | SHOUT, True), (SHOUT, False), (VERSION_1 | 1, False)]
)
def test_it_agrees_to_what_it_offers_and_only_to_the_modern_interface(
    driver: Driver, wanted: int, agreed: bool
) -> None:
    assert driver.negotiate(wanted) is agreed
    driver.set_status(0xF)
    assert driver.device.running is agreed


def test_features_stay_as_they_were_agreed_on(driver: Driver) -> None:
    driver.negotiate(VERSION_1)
    driver.write(COMMON, 8, 4, 0)
    driver.write(COMMON, 12, 4, SHOUT)
    assert driver.read(COMMON, 12, 4) == 0
    driver.write(COMMON, 8, 4, 2)
    driver.write(COMMON, 12, 4, SHOUT)
    assert driver.read(COMMON, 12, 4) == 0


def test_there_is_no_third_word_of_features(driver: Driver) -> None:
    driver.write(COMMON, 0, 4, 2)
    assert driver.read(COMMON, 4, 4) == 0


@pytest.mark.parametrize(("size", "becomes"), [(4, 4), (64, 64), (0, 64), (3, 64), (128, 64), (0x8000, 64)])
def test_a_queue_is_as_large_as_it_may_be(driver: Driver, size: int, becomes: int) -> None:
    driver.write(COMMON, 22, 2, 0)
    driver.write(COMMON, 24, 2, size)
    assert driver.read(COMMON, 24, 2) == becomes


def test_a_queue_that_there_is_not_has_no_size(driver: Driver) -> None:
    driver.write(COMMON, 22, 2, 2)
    driver.write(COMMON, 24, 2, 8)
    assert driver.read(COMMON, 24, 2) == 0


def test_a_queue_that_is_on_stays_where_it_is(driver: Driver) -> None:
    driver.start()
    before = [driver.read(COMMON, offset, 8) for offset in (32, 40, 48)]
    for offset in (24, 28, 32, 36, 40, 44, 48, 52):
        driver.write(COMMON, offset, 2 if offset < 32 else 4, 4)
    assert [driver.read(COMMON, offset, 8) for offset in (32, 40, 48)] == before
    assert driver.read(COMMON, 24, 2) == driver.size
    assert driver.read(COMMON, 28, 2) == 1


def test_addresses_are_written_whole_or_in_halves(driver: Driver) -> None:
    driver.write(COMMON, 40, 8, 0x1122334455667788)
    assert driver.read(COMMON, 44, 4) == 0x11223344
    driver.write(COMMON, 40, 4, 1)
    driver.write(COMMON, 44, 4, 2)
    assert driver.read(COMMON, 40, 8) == 0x2_0000_0001


@pytest.mark.parametrize(("vector", "becomes"), [(0, 0), (2, 2), (3, NO_VECTOR), (NO_VECTOR, NO_VECTOR)])
def test_a_message_that_there_is_not_is_refused(driver: Driver, vector: int, becomes: int) -> None:
    for offset in (16, 26):
        driver.write(COMMON, offset, 2, vector)
        assert driver.read(COMMON, offset, 2) == becomes


def test_the_window_in_configuration_space_leads_to_the_registers(driver: Driver) -> None:
    at = next(at for number, at in driver.board.capabilities() if driver.board.read_config(at + 3, 1) == WINDOW)
    bar, offset = driver.places[DEVICE]
    driver.board.write_config(at + 4, 1, bar)
    driver.board.write_config(at + 8, 4, offset + 4)
    driver.board.write_config(at + 12, 4, 4)
    assert driver.board.read_config(at + 16, 4).to_bytes(4, "little") == b"ster"
    driver.board.write_config(at + 16, 4, int.from_bytes(b"STER", "little"))
    assert driver.device.registers == b"regiSTERs"
    for bad in (3, 8, 0):
        driver.board.write_config(at + 12, 4, bad)
        driver.board.write_config(at + 16, 4, 0)
    assert driver.device.registers == b"regiSTERs"


# -- chains -----------------------------------------------------------------------------------------------------------


def test_what_is_lent_is_answered(driver: Driver) -> None:
    driver.start()
    assert lend_and_see(driver, b"hello") == b"hello"
    assert driver.board.take_messages() == [101]
    assert lend_and_see(driver, b"again", size=3) == b"aga"


def test_a_feature_is_used_when_the_driver_has_taken_it(driver: Driver) -> None:
    driver.start(SHOUT)
    assert lend_and_see(driver, b"hello") == b"HELLO"


def test_nothing_happens_before_the_driver_is_ready(driver: Driver) -> None:
    driver.negotiate(VERSION_1)
    driver.set_up(0)
    driver.lend(0, [b"hello"], [8])
    driver.kick(0)
    assert driver.answers(0) == []


def test_many_pieces_are_one_text(driver: Driver) -> None:
    driver.start()
    places = driver.lend(0, [b"he", b"", b"llo"], [1, 0, 2, 9])
    driver.kick(0)
    assert driver.answers(0) == [(0, 5)]
    assert bytes(driver.board.memory[places[3] : places[3] + 12]) == b"hello" + bytes(7)


def test_a_chain_may_have_a_table_of_its_own(driver: Driver) -> None:
    driver.start(INDIRECT_DESC)
    texts = [driver.place(b"text") for _ in range(20)]
    answer = driver.place(bytes(100))
    entries = [struct.pack("<QIHH", at, 4, NEXT, number + 1) for number, at in enumerate(texts)]
    table = driver.place(b"".join(entries) + struct.pack("<QIHH", answer, 100, WRITE, 0))
    driver.describe(0, 5, table, 16 * 21, INDIRECT)
    driver.offer(0, 5)
    driver.kick(0)
    assert driver.answers(0) == [(5, 80)]
    assert bytes(driver.board.memory[answer : answer + 80]) == b"text" * 20


def test_indexes_run_on_beyond_their_sixteen_bits(driver: Driver) -> None:
    driver.start(EVENT_IDX)
    queue = driver.device.queues[0]
    queue._next = queue._known = queue._answered = queue._told = driver.used_seen[0] = 0xFFFE
    for ring in driver.rings(0)[1:]:
        driver.board.set_word(ring + 2, 2, 0xFFFE)
    for number in range(6):
        assert lend_and_see(driver, b"%d" % number) == b"%d" % number


def test_a_chain_may_be_answered_later_and_in_another_order(driver: Driver) -> None:
    echo = Echo()
    driver = Driver(echo).start()
    echo.keep = True
    places = [driver.lend(0, [text], [8])[1] for text in (b"one", b"two")]
    driver.kick(0)
    assert driver.answers(0) == []

    def answer() -> None:
        for chain in reversed(echo.kept):
            echo.answer(echo.queues[0], chain)
        echo.flush(echo.queues[0])

    echo.attempt(answer)
    assert driver.answers(0) == [(2, 3), (0, 3)]
    assert [bytes(driver.board.memory[at : at + 3]) for at in places] == [b"one", b"two"]
    assert driver.board.take_messages() == [101]


def test_after_a_reset_nothing_old_is_answered() -> None:
    echo = Echo()
    driver = Driver(echo).start()
    echo.keep = True
    driver.lend(0, [b"one"], [8])
    driver.kick(0)
    driver.set_status(0)
    assert echo.stops == 2  # and once when it was negotiated with
    driver.start()
    echo.attempt(lambda: echo.queues[0].put(echo.kept[0], 3))
    echo.attempt(lambda: echo.flush(echo.queues[0]))
    assert driver.answers(0) == []
    assert driver.board.take_messages() == []


def test_chains_can_be_given_back_to_the_ring() -> None:
    echo = Echo()
    driver = Driver(echo).start()
    for text in (b"one", b"two"):
        driver.lend(0, [text])
    queue = echo.queues[0]
    heads = [chain.head for chain in (queue.take(), queue.take()) if chain is not None]
    assert queue.take() is None
    queue.put_back(2)
    again = [chain.head for chain in (queue.take(), queue.take()) if chain is not None]
    assert again == heads == [0, 1]


# -- telling ----------------------------------------------------------------------------------------------------------


def test_interrupts_can_be_declined(driver: Driver) -> None:
    driver.start()
    driver.board.set_word(driver.rings(0)[1], 2, 1)
    lend_and_see(driver, b"hello")
    assert driver.board.take_messages() == []


def test_interrupts_come_when_the_event_index_is_reached(driver: Driver) -> None:
    driver.start(EVENT_IDX)
    event = driver.rings(0)[1] + 4 + 2 * driver.size
    told = []
    for number in range(4):
        driver.board.set_word(event, 2, 2)
        lend_and_see(driver, b"%d" % number)
        told.append(len(driver.board.take_messages()))
    assert told == [0, 0, 1, 0]


def test_the_driver_learns_from_where_on_it_is_to_notify(driver: Driver) -> None:
    driver.start(EVENT_IDX)
    for _ in range(3):
        lend_and_see(driver, b"hello")
    assert driver.board.word(driver.rings(0)[2] + 4 + 8 * driver.size, 2) == 3


def test_without_messages_the_pin_tells_and_reading_why_ends_it(driver: Driver) -> None:
    driver.start()
    driver.board.write_config(driver.board.capability(MSIX) + 2, 2, 0)
    assert lend_and_see(driver, b"hello") == b"hello"
    assert driver.board.line
    assert driver.read(ISR, 0, 1) == 1
    assert not driver.board.line
    assert driver.read(ISR, 0, 1) == 0
    driver.device.change_registers(0, b"R")
    assert driver.read(ISR, 0, 1) == 2


def test_a_change_of_the_registers_is_told(driver: Driver) -> None:
    driver.start()
    before = driver.read(COMMON, 21, 1)
    driver.device.change_registers(1, b"EG")
    assert driver.board.take_messages() == [100]
    assert driver.read(DEVICE, 0, 4).to_bytes(4, "little") == b"rEGi"
    assert driver.read(COMMON, 21, 1) != before
    assert driver.read(DEVICE, 8, 4).to_bytes(4, "little") == b"s\0\0\0"


def test_a_function_reset_resets_everything() -> None:
    echo = Echo()
    driver = Driver(echo).start()
    driver.board.write_config(driver.board.capability(0x13) + 4, 1, 1)
    assert echo.stops == 2
    assert not echo.running
    assert not driver.board.read_config(COMMAND, 2) & 4


# -- drivers that break the rules -------------------------------------------------------------------------------------


def broken(driver: Driver) -> bool:
    """Whether the device has stopped, told so once, does no more, and works again after a reset."""
    if not driver.status & NEEDS_RESET:
        return False
    assert driver.board.take_messages() == [100]
    assert driver.device.failure
    driver.lend(1, [b"hello"], [8])
    driver.kick(1)
    assert driver.answers(1) == []
    for ring in (0, 1):
        for at in driver.rings(ring)[1:]:
            driver.board.set_word(at, 4, 0)
    driver.start()
    assert lend_and_see(driver, b"hello") == b"hello"
    return True


@pytest.mark.parametrize("head", [8, 0xFFFF])
def test_a_head_outside_the_table(driver: Driver, head: int) -> None:
    driver.start()
    driver.offer(0, head)
    driver.kick(0)
    assert broken(driver)


def test_more_chains_than_the_ring_has(driver: Driver) -> None:
    driver.start()
    driver.board.set_word(driver.rings(0)[1] + 2, 2, 9)
    driver.kick(0)
    assert broken(driver)


@pytest.mark.parametrize(
    ("flags", "following"),
    [(NEXT, 0), (NEXT, 8), (NEXT, 1), (INDIRECT, 0), (NEXT | WRITE, 2)],
    ids=["itself", "outside", "a ring of two", "a table that was not agreed on", "reading after writing"],
)
def test_chains_that_cannot_be(driver: Driver, flags: int, following: int) -> None:
    driver.start()
    driver.describe(0, 0, driver.place(bytes(32)), 32, flags, following)
    driver.describe(0, 1, 0, 4, NEXT, 0)
    driver.describe(0, 2, 0, 4, 0, 0)
    driver.offer(0, 0)
    driver.kick(0)
    assert broken(driver)


@pytest.mark.parametrize(
    ("length", "flags", "inner"),
    [(0, INDIRECT, 0), (17, INDIRECT, 0), (16, INDIRECT | NEXT, 0), (16, INDIRECT, INDIRECT), (16, INDIRECT, NEXT)],
)
def test_tables_that_cannot_be(driver: Driver, length: int, flags: int, inner: int) -> None:
    driver.start(INDIRECT_DESC)
    table = driver.place(struct.pack("<QIHH", 0, 4, inner, 1) * 2)
    driver.describe(0, 0, table, length, flags)
    driver.offer(0, 0)
    driver.kick(0)
    assert broken(driver)


@pytest.mark.parametrize("maddr", [1 << 20, (1 << 64) - 8])
def test_buffers_where_the_device_may_not_go(driver: Driver, maddr: int) -> None:
    driver.start()
    driver.describe(0, 0, maddr, 16, WRITE)
    driver.describe(0, 1, maddr, 16, NEXT, 0)
    driver.offer(0, 1)
    driver.kick(0)
    assert broken(driver)


@pytest.mark.parametrize("offset", [32, 40, 48])
def test_rings_where_the_device_may_not_go(driver: Driver, offset: int) -> None:
    driver.negotiate(VERSION_1)
    driver.board.use_msix()
    driver.write(COMMON, 16, 2, 0)
    driver.set_up(1)
    driver.write(COMMON, 22, 2, 0)
    for place in {32, 40, 48} - {offset}:
        driver.write(COMMON, place, 8, driver.rings(0)[(place - 32) // 8])
    driver.write(COMMON, 24, 2, driver.size)
    driver.write(COMMON, offset, 8, (1 << 64) - 16)
    driver.write(COMMON, 28, 2, 1)
    driver.set_status(0xF)
    driver.lend(0, [b"hello"], [8])
    driver.kick(0)
    assert broken(driver)


def test_a_device_that_is_no_bus_master_stops(driver: Driver) -> None:
    driver.start()
    driver.board.write_config(COMMAND, 2, 2)
    driver.lend(0, [b"hello"], [8])
    driver.kick(0)
    assert driver.status & NEEDS_RESET


REGISTERS = st.tuples(st.integers(0, 0x3FFF), st.sampled_from((1, 2, 4, 8)), st.integers(0, (1 << 64) - 1))
COMMON_REGISTERS = st.tuples(st.integers(0, 63), st.sampled_from((1, 2, 4, 8)), st.integers(0, 255))


@settings(deadline=None)
@given(st.lists(REGISTERS | COMMON_REGISTERS, max_size=60))
def test_random_registers_harm_nobody(writes: list[tuple[int, int, int]]) -> None:
    driver = Driver(Echo()).start()
    for offset, size, value in writes:
        driver.board.write(0, offset, size, value & (1 << 8 * size) - 1)
        driver.board.read(0, offset, size)
    driver.start()
    for ring in driver.rings(0)[1:]:
        driver.board.set_word(ring, 4, 0)
    assert lend_and_see(driver, b"hello") == b"hello"


DESCRIPTORS = st.lists(
    st.tuples(
        st.sampled_from((0, 0x1000, 0x20000, 0xFFFF0, 1 << 40)),
        st.sampled_from((0, 1, 16, 32, 4096, 0xFFFFFFFF)),
        st.integers(0, 7),
        st.integers(0, 9),
    ),
    min_size=8,
    max_size=8,
)


@settings(deadline=None)
@given(DESCRIPTORS, st.lists(st.integers(0, 9), max_size=9), st.booleans())
def test_random_rings_harm_nobody(
    descriptors: list[tuple[int, int, int, int]], heads: list[int], indirect: bool
) -> None:
    driver = Driver(Echo()).start(INDIRECT_DESC if indirect else 0)
    for index, descriptor in enumerate(descriptors):
        driver.describe(0, index, *descriptor)
    driver.board.put(0, driver.board.memory[0x1000:0x1080])
    for head in heads:
        driver.offer(0, head)
    driver.kick(0)
    driver.negotiate(VERSION_1)
    assert driver.status == ACKNOWLEDGE | DRIVER | FEATURES_OK
