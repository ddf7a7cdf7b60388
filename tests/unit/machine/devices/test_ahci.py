"""An AHCI controller and its disk: as drivers start it, what commands do, how errors are told."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.machine.devices.ahci_driver import DATA, FRAMES, LIST, READS, WRITES, Driver
from tests.unit.machine.devices.board import MEMORY_BYTES
from tests.unit.machine.devices.disks import SECTORS, MemoryDisk, Worker, pattern
from xenolith.errors import UserError
from xenolith.machine.devices import ahci_disk as ata
from xenolith.machine.devices.ahci import CAP, GHC, IS, PI, VS, Ahci
from xenolith.machine.devices.ahci_fis import READ_QUEUED, SOFT_RESET, WRITE_QUEUED
from xenolith.machine.devices.ahci_port import (
    CI,
    CLB,
    CMD,
    CMD_CLEAR_BUSY,
    CMD_RECEIVE,
    CMD_RUNNING,
    CMD_START,
    CONNECTED,
    FB,
    IE,
    IS_BITS,
    IS_BUS_FATAL,
    IS_CONNECT,
    IS_PIO,
    IS_REGISTERS,
    IS_TASK_ERROR,
    MAX_PRDS,
    SACT,
    SCTL,
    SERR,
    SIG,
    SIGNATURE,
    SSTS,
    TFD,
)
from xenolith.machine.devices.ahci_port import IS as PORT_IS

WELL = 0x50
FAILED = 0x51


@pytest.fixture
def driver() -> Driver:
    made = Driver()
    made.start()
    made.board.take_messages()
    return made


# -- registers --------------------------------------------------------------------------------------------------------


def test_registers_tell_what_it_can_do() -> None:
    driver = Driver()
    assert driver.read(CAP) & 0x1F == 0
    assert driver.read(CAP) >> 8 & 0x1F == 31
    assert driver.read(CAP, 8) == driver.read(CAP) | driver.read(GHC) << 32
    assert driver.read(PI) == 1
    assert driver.read(VS) == 0x10301
    assert driver.read(VS + 2, 2) == 1
    assert driver.port(SIG) == SIGNATURE
    assert driver.port(SSTS) == CONNECTED
    assert driver.port(TFD) == 0x150
    assert driver.read(0x180 + SSTS) == 0


def test_a_reset_forgets_all_but_where_memory_is(driver: Driver) -> None:
    driver.do(0xFF)
    driver.write(GHC, 1)
    assert driver.read(GHC) == 1 << 31
    assert (driver.port(IE), driver.port(PORT_IS), driver.port(CI)) == (0, 0, 0)
    assert driver.port(CLB) == LIST
    assert not driver.port(CMD) & CMD_RUNNING
    driver.start()
    assert driver.transfer(ata.READ_DMA_EXT, 0, 1)


def test_the_disk_tells_what_it_is_when_frames_are_received() -> None:
    driver = Driver()
    driver.board.put(FRAMES, b"\xee" * 256)
    driver.start()
    frame = driver.data(20, FRAMES + 0x40)
    assert frame[0] == 0x34
    assert (frame[2], frame[3], frame[4], frame[12]) == (WELL, 1, 1, 1)


def test_memory_is_named_only_while_the_port_stands(driver: Driver) -> None:
    driver.set_port(CLB, 0x5000)
    driver.set_port(FB, 0x5000)
    assert (driver.port(CLB), driver.port(FB)) == (LIST, FRAMES)
    driver.set_port(CMD, 0)
    driver.set_port(CLB, 0x5123)
    driver.set_port(FB, 0x51FF)
    driver.set_port(CLB + 4, 7)
    assert (driver.port(CLB), driver.port(CLB + 4), driver.port(FB)) == (0x5000, 7, 0x5100)


def test_the_link_is_reset(driver: Driver) -> None:
    driver.set_port(CMD, CMD_RECEIVE)
    driver.set_port(SCTL, 0x301)
    assert driver.port(SSTS) == 0
    assert driver.port(TFD) & 0x80
    driver.set_port(SCTL, 0x300)
    assert driver.port(SSTS) == CONNECTED
    assert driver.port(TFD) == 0x150
    assert driver.port(PORT_IS) & IS_CONNECT
    driver.set_port(PORT_IS, IS_CONNECT)
    assert driver.port(PORT_IS) & IS_CONNECT
    driver.restart()
    assert driver.transfer(ata.READ_DMA_EXT, 0, 1)


def test_commands_wait_for_a_disk(driver: Driver) -> None:
    driver.set_port(SCTL, 4)
    driver.prepare(0, driver.frame(ata.FLUSH))
    driver.issue(1)
    assert driver.port(CI) == 0
    assert driver.disk.calls == []


def test_the_disk_is_reset_by_frames(driver: Driver) -> None:
    driver.do(ata.SET_FEATURES, features=ata.CACHE_OFF)
    driver.prepare(0, driver.frame(0, control=SOFT_RESET | 8))
    driver.prepare(1, driver.frame(0, control=8))
    driver.issue(1)
    driver.issue(2)
    assert (driver.port(CI), driver.port(TFD), driver.port(SIG)) == (0, 0x150, SIGNATURE)
    driver.transfer(ata.WRITE_DMA_EXT, 0, 1)
    assert driver.disk.calls == ["write"]


def test_busy_can_be_cleared() -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.start()
    driver.do(ata.FLUSH)
    assert driver.port(TFD) & 0x80
    driver.set_port(CMD, CMD_RECEIVE | CMD_START | CMD_CLEAR_BUSY)
    assert driver.port(TFD) == WELL
    assert not driver.port(CMD) & CMD_CLEAR_BUSY


def test_it_cannot_be_readonly() -> None:
    disk = MemoryDisk()
    disk.readonly = True
    with pytest.raises(UserError, match="read-only"):
        Ahci(disk, Worker().submit)


# -- interrupts -------------------------------------------------------------------------------------------------------


def test_a_message_comes_with_each_event(driver: Driver) -> None:
    driver.do(ata.FLUSH)
    assert driver.board.take_messages() == [100]
    assert (driver.read(IS), driver.port(PORT_IS)) == (1, IS_REGISTERS)
    driver.set_port(PORT_IS, IS_REGISTERS)
    driver.do(ata.FLUSH)
    assert driver.board.take_messages() == [100]
    driver.write(IS, 1)
    assert driver.board.take_messages() == [100], "it is still pending in the port"
    driver.set_port(PORT_IS, IS_REGISTERS)
    driver.write(IS, 1)
    assert (driver.board.take_messages(), driver.read(IS)) == ([], 0)


def test_the_pin_is_up_until_all_is_cleared() -> None:
    driver = Driver()
    driver.start(msi=False)
    driver.do(ata.FLUSH)
    assert driver.board.line
    driver.set_port(PORT_IS, IS_REGISTERS)
    assert driver.board.line
    driver.write(IS, 1)
    assert not driver.board.line


def test_what_is_not_enabled_does_not_interrupt(driver: Driver) -> None:
    driver.set_port(IE, 0)
    driver.do(ata.FLUSH)
    assert (driver.board.take_messages(), driver.read(IS)) == ([], 0)
    driver.set_port(IE, IS_REGISTERS)
    assert driver.board.take_messages() == [100]


# -- what it is -------------------------------------------------------------------------------------------------------


def identify(driver: Driver) -> tuple[int, ...]:
    assert driver.do(ata.IDENTIFY, memory=[(DATA, 512)]) == WELL
    return struct.unpack("<256H", driver.data(512))


def text(words: tuple[int, ...]) -> str:
    return b"".join(word.to_bytes(2, "big") for word in words).decode().strip()


def test_it_identifies_itself(driver: Driver) -> None:
    words = identify(driver)
    assert text(words[10:20]) == "XENOLITH0018"
    assert text(words[27:47]) == ata.MODEL
    assert words[60] | words[61] << 16 == SECTORS
    assert words[100:104] == (SECTORS, 0, 0, 0)
    assert (words[75], words[76] >> 8 & 1) == (31, 1)
    assert words[106] == 0x6003
    assert words[169] == 1
    assert driver.port(PORT_IS) == IS_PIO
    assert driver.counted() == 512
    frame = driver.data(20, FRAMES + 0x20)
    assert (frame[0], frame[15], frame[16] | frame[17] << 8) == (0x5F, WELL, 512)


def test_what_is_set_is_told(driver: Driver) -> None:
    driver.do(ata.SET_FEATURES, features=ata.CACHE_OFF)
    driver.do(ata.SET_FEATURES, features=ata.AHEAD_OFF)
    assert driver.do(ata.SET_FEATURES, features=ata.TRANSFER_MODE, count=0x42) == WELL
    words = identify(driver)
    assert words[85] & 0x60 == 0
    assert words[88] >> 8 == 1 << 2
    driver.do(ata.SET_FEATURES, features=ata.CACHE_ON)
    driver.do(ata.SET_FEATURES, features=ata.AHEAD_ON)
    assert identify(driver)[85] & 0x60 == 0x60


@pytest.mark.parametrize(("features", "count"), [(0x05, 0), (ata.TRANSFER_MODE, 0x47), (ata.TRANSFER_MODE, 0x11)])
def test_features_that_there_are_not(driver: Driver, features: int, count: int) -> None:
    assert driver.do(ata.SET_FEATURES, features=features, count=count) == FAILED | ata.ABORTED << 8


def test_other_commands(driver: Driver) -> None:
    assert driver.do(ata.DIAGNOSE) == 0x150
    assert driver.do(ata.IDLE_NOW) == WELL
    assert driver.do(ata.CHECK_POWER) == WELL
    assert driver.data(20, FRAMES + 0x40)[12] == 0xFF
    assert driver.do(ata.STANDBY_NOW) == WELL
    assert driver.disk.calls == ["flush"]
    assert driver.do(ata.VERIFY_EXT, 5, 7) == WELL
    assert driver.disk.calls == ["flush", "read"]


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("command", [*READS, ata.READ_SECTORS_EXT])
def test_it_reads(driver: Driver, command: int, cached: bool) -> None:
    driver.disk.cached = cached
    assert driver.transfer(command, 5, 9)
    assert driver.data(9 * 512) == pattern(SECTORS)[5 * 512 : 14 * 512]
    wanted = {READ_QUEUED: IS_BITS, ata.READ_DMA_EXT: IS_REGISTERS, ata.READ_SECTORS_EXT: IS_PIO}[command]
    assert driver.port(PORT_IS) == wanted


@pytest.mark.parametrize("command", WRITES)
def test_it_writes(driver: Driver, command: int) -> None:
    driver.board.put(DATA, b"written!" * 128)
    assert driver.transfer(command, 7, 2)
    assert driver.disk.content[7 * 512 : 9 * 512] == b"written!" * 128
    assert driver.disk.content[9 * 512 :] == pattern(SECTORS)[9 * 512 :]


def test_data_is_in_pieces(driver: Driver) -> None:
    assert driver.do(ata.READ_DMA_EXT, 0, 4, [(DATA, 512), (DATA + 0x1000, 1000), (DATA + 0x3000, 4096)]) == WELL
    assert driver.data(512) == pattern(SECTORS)[:512]
    assert driver.data(1000, DATA + 0x1000) == pattern(SECTORS)[512:1512]
    assert driver.data(536, DATA + 0x3000) == pattern(SECTORS)[1512:2048]
    assert driver.data(1, DATA + 0x3000 + 536) == b"\0"
    assert driver.counted() == 2048


def test_short_commands_have_short_addresses(driver: Driver) -> None:
    assert driver.do(ata.READ_DMA, 0x999900_000003, 0xFF01, device=0x40) == WELL
    assert driver.data(512) == pattern(SECTORS)[3 * 512 : 4 * 512]
    assert driver.do(ata.READ_DMA, 0, 0, [(DATA, 256 * 512)]) == WELL
    assert driver.counted() == 256 * 512


def test_many_queued_commands_run_together() -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.start()
    driver.disk.cached = False
    for slot in (0, 4, 31):
        driver.queue(slot, READ_QUEUED, slot, 1, DATA + slot * 0x1000)
    driver.issue(1 | 1 << 4 | 1 << 31)
    assert (driver.port(CI), driver.port(SACT)) == (0, 1 | 1 << 4 | 1 << 31)
    assert len(driver.worker.queue) == 3
    driver.worker.run(1)
    assert driver.port(SACT) == 1 | 1 << 31
    assert driver.data(8, FRAMES + 0x58) == struct.pack("<BBBBI", 0xA1, 0x40, WELL, 0, 1 << 4)
    driver.worker.run_all()
    assert driver.port(SACT) == 0
    for slot in (0, 4, 31):
        assert driver.data(512, DATA + slot * 0x1000) == pattern(SECTORS)[slot * 512 :][:512]


def test_other_commands_run_alone() -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.start()
    driver.queue(0, WRITE_QUEUED, 0, 1)
    driver.prepare(1, driver.frame(ata.FLUSH))
    driver.prepare(2, driver.frame(ata.FLUSH))
    driver.issue(7)
    assert len(driver.worker.queue) == 1
    driver.worker.run()
    assert (driver.port(CI), len(driver.worker.queue)) == (6, 1)
    driver.worker.run_all()
    assert driver.port(CI) == 0
    assert driver.disk.calls == ["write", "flush", "flush"]


def test_what_must_be_safe_is_flushed(driver: Driver) -> None:
    driver.do(ata.WRITE_DMA_EXT, 0, 1)
    assert driver.disk.calls == ["write"]
    driver.do(ata.WRITE_DMA_FUA_EXT, 0, 1)
    driver.queue(0, WRITE_QUEUED, 0, 1, device=0xC0)
    driver.issue(1)
    driver.do(ata.SET_FEATURES, features=ata.CACHE_OFF)
    driver.do(ata.WRITE_DMA_EXT, 0, 1)
    assert driver.disk.calls == ["write", "write", "flush", "write", "flush", "write", "flush"]


def test_ranges_are_trimmed(driver: Driver) -> None:
    driver.board.put(DATA, struct.pack("<3Q", 8 << 48 | 16, 0, 8 << 48 | SECTORS - 8).ljust(512, b"\0"))
    assert driver.do(ata.DATA_SET_MANAGEMENT, count=1, features=1) == WELL
    assert driver.disk.calls == ["discard", "discard"]
    assert driver.disk.content[-4096:] == bytes(4096)
    driver.board.put(DATA, struct.pack("<Q", 9 << 48 | SECTORS - 8).ljust(512, b"\0"))
    assert driver.do(ata.DATA_SET_MANAGEMENT, count=1, features=1) == FAILED | ata.NOT_FOUND << 8
    driver.restart()
    assert driver.do(ata.DATA_SET_MANAGEMENT, count=9, features=1) == FAILED | ata.ABORTED << 8
    driver.restart()
    assert driver.do(ata.DATA_SET_MANAGEMENT, count=1, features=0) == FAILED | ata.ABORTED << 8


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [*READS, *WRITES, ata.VERIFY_EXT])
@pytest.mark.parametrize(("lba", "sectors"), [(SECTORS, 1), (SECTORS - 1, 2), ((1 << 48) - 1, 1)])
def test_the_disk_ends(driver: Driver, command: int, lba: int, sectors: int) -> None:
    assert not driver.transfer(command, lba, sectors)
    assert driver.disk.calls == []
    assert driver.transfer(ata.READ_DMA_EXT, 0, 1)


def test_an_error_is_told_and_stops_the_port(driver: Driver) -> None:
    assert driver.do(0xFF) == FAILED | ata.ABORTED << 8
    assert driver.port(PORT_IS) == IS_TASK_ERROR | IS_REGISTERS
    assert driver.port(CI) == 1
    frame = driver.data(20, FRAMES + 0x40)
    assert frame[:4] == bytes((0x34, 0x40, FAILED, ata.ABORTED))
    driver.prepare(1, driver.frame(ata.FLUSH))
    driver.issue(2)
    assert driver.disk.calls == []
    driver.restart()
    assert driver.port(CI) == 0
    assert driver.do(ata.FLUSH) == WELL


def test_the_error_of_a_queued_command_is_in_a_log(driver: Driver) -> None:
    driver.queue(5, READ_QUEUED, SECTORS + 0x123456, 1)
    driver.queue(6, READ_QUEUED, 0, 1)
    driver.issue(1 << 5 | 1 << 6)
    assert driver.port(PORT_IS) == IS_TASK_ERROR | IS_BITS
    assert driver.port(SACT) & 1 << 5
    assert driver.data(8, FRAMES + 0x58)[2:] == bytes((FAILED, ata.NOT_FOUND, 0, 0, 0, 0))
    driver.restart()
    assert driver.port(SACT) == 0
    assert driver.do(ata.READ_LOG_EXT, 0x10, 1, [(DATA, 512)]) == WELL
    page = driver.data(512)
    assert page[:4] == bytes((5, 0, FAILED, ata.NOT_FOUND))
    assert page[4:7] == (SECTORS + 0x123456).to_bytes(3, "little")
    assert sum(page) & 0xFF == 0
    assert driver.do(ata.READ_LOG_EXT, 0, 1, [(DATA, 512)]) == WELL
    directory = struct.unpack("<256H", driver.data(512))
    assert (directory[0], directory[0x10], sum(directory)) == (1, 1, 2)


@pytest.mark.parametrize(("lba", "count"), [(0x30, 1), (0x10, 2), (0x110, 1), (0x10 | 1 << 32, 1)])
def test_logs_that_there_are_not(driver: Driver, lba: int, count: int) -> None:
    assert driver.do(ata.READ_LOG_EXT, lba, count) == FAILED | ata.ABORTED << 8


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (ata.READ_DMA_EXT, FAILED | ata.UNCORRECTABLE << 8),
        (ata.VERIFY_EXT, FAILED | ata.UNCORRECTABLE << 8),
        (ata.WRITE_DMA_EXT, FAILED | 0x20 | ata.ABORTED << 8),
        (ata.FLUSH_EXT, FAILED | 0x20 | ata.ABORTED << 8),
    ],
)
def test_the_host_may_fail(driver: Driver, command: int, status: int) -> None:
    driver.disk.failing = True
    assert driver.do(command, 0, 1) == status
    driver.disk.failing = False
    driver.restart()
    assert driver.do(command, 0, 1) == WELL


@pytest.mark.parametrize("command", [*READS, *WRITES])
def test_data_where_the_device_may_not_go(driver: Driver, command: int) -> None:
    assert not driver.transfer(command, 0, 2, MEMORY_BYTES - 512)
    assert driver.disk.content == pattern(SECTORS)
    assert driver.transfer(command, 0, 1)


def test_memory_of_the_driver_where_the_device_may_not_go(driver: Driver) -> None:
    driver.board.put(LIST, struct.pack("<HHIQ", 5, 1, 0, 1 << 63))
    driver.issue(1)
    assert driver.port(PORT_IS) == IS_BUS_FATAL
    driver.set_port(CMD, 0)
    driver.write(0x100 + CLB, MEMORY_BYTES, 8)
    driver.set_port(CMD, CMD_START)
    driver.set_port(PORT_IS, IS_BUS_FATAL)
    driver.issue(1)
    assert driver.port(PORT_IS) == IS_BUS_FATAL
    driver.start()
    driver.set_port(CMD, 0)
    driver.write(0x100 + FB, MEMORY_BYTES, 8)
    driver.set_port(CMD, CMD_RECEIVE | CMD_START)
    driver.do(ata.FLUSH)
    assert driver.port(PORT_IS) & IS_BUS_FATAL
    driver.start()
    assert driver.transfer(ata.READ_DMA_EXT, 0, 1)


@pytest.mark.parametrize(
    ("options", "frame"),
    [(4, bytes((0x27, 0x80, ata.FLUSH))), (5 | 1 << 5, bytes((0x27, 0x80, ata.FLUSH))), (5, b"\x34"), (5, b"\x27\x81")],
    ids=["too short", "a packet", "of another kind", "for another device"],
)
def test_frames_that_cannot_be(driver: Driver, options: int, frame: bytes) -> None:
    driver.prepare(0, frame)
    driver.board.set_word(LIST, 2, options)
    driver.issue(1)
    assert driver.port(TFD) == FAILED | ata.ABORTED << 8
    assert driver.disk.calls == []


def test_memory_that_does_not_suffice(driver: Driver) -> None:
    assert driver.do(ata.READ_DMA_EXT, 0, 2, [(DATA, 512)]) == FAILED | ata.ABORTED << 8
    driver.restart()
    assert driver.do(ata.IDENTIFY, memory=[]) == FAILED | ata.ABORTED << 8
    driver.restart()
    driver.prepare(0, driver.frame(ata.READ_DMA_EXT, 0, 1), [(DATA, 512)])
    driver.board.set_word(LIST + 2, 2, MAX_PRDS + 1)
    driver.issue(1)
    assert driver.port(TFD) == FAILED | ata.ABORTED << 8


def test_a_tag_must_be_that_of_its_slot(driver: Driver) -> None:
    driver.prepare(2, driver.frame(READ_QUEUED, 0, 3 << 3, 1), [(DATA, 512)])
    driver.issue(4)
    assert driver.port(PORT_IS) == IS_TASK_ERROR | IS_BITS


# -- reset ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["stop", "link", "controller", "function"])
@pytest.mark.parametrize("command", [READ_QUEUED, WRITE_QUEUED])
def test_nothing_old_happens_after_a_reset(way: str, command: int) -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.start()
    driver.disk.cached = False
    for slot in range(3):
        driver.queue(slot, command, 0, 1)
    driver.issue(7)
    match way:
        case "stop":
            driver.set_port(CMD, CMD_RECEIVE)
        case "link":
            driver.set_port(SCTL, 1)
            driver.set_port(SCTL, 0)
        case "controller":
            driver.write(GHC, 1)
        case "function":
            driver.reset_function()
    driver.start()
    driver.board.put(DATA, b"\xaa" * 512)
    before = bytes(driver.board.memory)
    driver.board.take_messages()
    driver.do(ata.WRITE_DMA_EXT, 0, 1)
    assert len(driver.worker.queue) == 3, "the new write must not be overtaken by the old ones"
    for _ in range(3):
        driver.worker.run()
    assert driver.board.memory[DATA:] == before[DATA:]
    assert driver.board.memory[FRAMES : FRAMES + 256] == before[FRAMES : FRAMES + 256]
    assert driver.board.take_messages() == []
    driver.worker.run_all()
    assert (driver.port(TFD), driver.port(CI)) == (WELL, 0)
    assert driver.disk.content[:512] == b"\xaa" * 512


# -- hostile drivers --------------------------------------------------------------------------------------------------

known = [0x100 + register for register in (CLB, CLB + 4, FB, PORT_IS, IE, CMD, SCTL, SERR, SACT, CI)]
accesses = st.tuples(
    st.one_of(st.sampled_from([CAP, GHC, IS, *known]), st.integers(0, 0xFF8)),
    st.sampled_from([1, 2, 4, 8]),
    st.one_of(st.integers(0, 0x20), st.sampled_from([0x11, 0xFFFFFFFF]), st.integers(0, 2**32 - 1)),
)
codes = [getattr(ata, name) for name in dir(ata) if name.isupper() and isinstance(getattr(ata, name), int)]
commands = st.tuples(
    st.integers(0, 31),
    st.one_of(
        st.sampled_from([READ_QUEUED, WRITE_QUEUED, *(code for code in codes if 0 <= code < 256)]), st.integers(0, 255)
    ),
    st.one_of(st.integers(0, SECTORS + 4), st.integers(0, 2**48 - 1)),
    st.integers(0, 0xFFFF),
    st.one_of(st.integers(0, 8), st.integers(0, 0xFFFF)),
    st.lists(
        st.tuples(st.sampled_from([DATA, LIST, FRAMES, MEMORY_BYTES - 512, 1 << 62]), st.integers(1, 1 << 16)),
        max_size=3,
    ),
    st.booleans(),
)
deeds = st.one_of(commands, accesses, st.sampled_from(["work", "reset", "restart"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(deeds, max_size=40), st.booleans())
def test_whatever_a_driver_does_the_disk_can_be_used_again(things: list[object], cached: bool) -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.disk.cached = cached
    driver.start()
    for thing in things:
        match thing:
            case (int(slot), int(command), int(lba), int(count), int(features), list(memory), bool(tagged)):
                if tagged:
                    driver.set_port(SACT, 1 << slot)
                    count = slot << 3
                driver.prepare(slot, driver.frame(command, lba, count, features), memory)
                driver.issue(1 << slot)
            case (int(register), int(size), int(value)):
                assert 0 <= driver.read(register, size) < 1 << 8 * size
                driver.write(register, value & (1 << 8 * size) - 1, size)
            case "work":
                if driver.worker.queue:
                    driver.worker.run()
            case "restart":
                driver.restart()
            case "reset":
                driver.reset_function()
    driver.worker.run_all()
    assert driver.disk.size == SECTORS * 512
    driver.worker.at_once = True
    driver.reset_function()
    driver.set_port(SCTL, 1)
    driver.set_port(SCTL, 0)
    driver.start()
    assert driver.transfer(READ_QUEUED, 0, 1)
    assert driver.data(512) == driver.disk.content[:512]
    assert driver.transfer(ata.READ_DMA_EXT, 0, 1)
