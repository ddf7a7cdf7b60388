"""An NVMe controller: as drivers start it, what its commands do, and what it refuses."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.machine.devices.board import MEMORY_BYTES
from tests.unit.machine.devices.disks import SECTORS, MemoryDisk, Worker, pattern
from tests.unit.machine.devices.nvme_driver import DATA, IO_ENTRIES, PAGE, Driver, Queue
from xenolith.machine.devices.nvme import (
    ACQ,
    AQA,
    ASQ,
    CAP,
    CC,
    CC_ENABLE,
    CC_ENTRY_SIZES,
    CC_SHUTDOWN,
    CSTS,
    CSTS_FATAL,
    CSTS_READY,
    CSTS_SHUT,
    DOORBELLS,
    INTMC,
    INTMS,
    VS,
)
from xenolith.machine.devices.nvme_admin import IO_QUEUES, MAX_QUEUE_ENTRIES, Feature
from xenolith.machine.devices.nvme_commands import Admin, Io, Status

FORCE_ACCESS = 1 << 30
NORMAL_SHUTDOWN = 1 << 14


@pytest.fixture
def driver() -> Driver:
    made = Driver()
    made.start()
    return made


# -- registers --------------------------------------------------------------------------------------------------------


def test_registers_tell_what_it_can_do() -> None:
    driver = Driver()
    assert driver.read(VS) == 0x10400
    assert driver.read(CAP, 8) & 0xFFFF == MAX_QUEUE_ENTRIES - 1
    assert driver.read(CAP, 8) == driver.read(CAP) | driver.read(CAP + 4) << 32
    assert driver.read(VS + 2, 2) == 1
    assert driver.read(CSTS) == 0
    assert driver.read(DOORBELLS) == 0


def test_the_admin_queue_is_where_the_driver_says() -> None:
    driver = Driver()
    driver.write(ASQ, 0x1234_5678_9ABC_D123, 8)
    assert driver.read(ASQ, 8) == 0x1234_5678_9ABC_D000
    driver.write(ASQ + 4, 7)
    assert driver.read(ASQ, 8) == 0x7_9ABC_D000
    driver.enable()
    driver.write(ASQ, 0, 8)
    assert driver.read(ASQ, 8) == driver.admin.submission


@pytest.mark.parametrize("value", [CC_ENABLE | 1 << 4, CC_ENABLE | 1 << 7, CC_ENABLE | 1 << 11])
def test_what_it_has_not_makes_it_fail(value: int) -> None:
    driver = Driver()
    driver.write(AQA, 0x000F000F)
    driver.write(CC, value)
    assert driver.read(CSTS) == CSTS_FATAL
    driver.write(CC, 0)
    driver.enable()
    assert driver.read(CSTS) == CSTS_READY


def test_an_admin_queue_of_one_entry_makes_it_fail() -> None:
    driver = Driver()
    driver.write(CC, CC_ENTRY_SIZES | CC_ENABLE)
    assert driver.read(CSTS) == CSTS_FATAL


def test_a_queue_outside_memory_makes_it_fail_until_it_is_reset() -> None:
    driver = Driver()
    driver.enable()
    driver.write(CC, 0)
    driver.write(ASQ, MEMORY_BYTES, 8)
    driver.write(CC, CC_ENTRY_SIZES | CC_ENABLE)
    driver.ring(0, 1)
    assert driver.read(CSTS) == CSTS_READY | CSTS_FATAL
    driver.write(CC, 0)
    assert driver.read(CSTS) == 0
    driver.start()


def test_narrow_writes_are_ignored() -> None:
    driver = Driver()
    driver.write(AQA, 5, 2)
    assert driver.read(AQA) == 0


def test_shutting_down_flushes() -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.enable()
    driver.write(CC, CC_ENTRY_SIZES | CC_ENABLE | NORMAL_SHUTDOWN)
    assert driver.read(CSTS) & CSTS_SHUT | CC_SHUTDOWN == CC_SHUTDOWN
    driver.worker.run_all()
    assert driver.disk.calls == ["flush"]
    assert driver.read(CSTS) == CSTS_READY | CSTS_SHUT
    driver.write(CC, 0)
    assert driver.read(CSTS) == 0


# -- admin commands ---------------------------------------------------------------------------------------------------


def identify(driver: Driver, kind: int, namespace: int = 0) -> bytes:
    answer = driver.do(driver.admin, Admin.IDENTIFY, DATA, 0, kind, namespace=namespace)
    assert answer.status == Status.SUCCESS
    return driver.data(PAGE)


def test_it_identifies_itself(driver: Driver) -> None:
    page = identify(driver, 1)
    assert page[24:64].rstrip() == b"Xenolith NVMe disk"
    assert page[4:24].rstrip() == b"XENOLITH0018"
    assert page[80:84] == b"\x00\x04\x01\x00"
    assert page[512:514] == b"\x66\x44"
    assert page[525] == 1
    assert page[768:].startswith(b"nqn.2014-08.org.nvmexpress:uuid:")


def test_it_has_one_namespace(driver: Driver) -> None:
    assert identify(driver, 2)[:8] == struct.pack("<II", 1, 0)
    assert identify(driver, 2, 1)[:4] == bytes(4)
    page = identify(driver, 0, 1)
    assert struct.unpack("<QQQ", page[:24]) == (SECTORS, SECTORS, SECTORS)
    assert page[128:132] == b"\x00\x00\x09\x00"
    assert page[99] == 0
    assert identify(driver, 3, 1)[:4] == b"\x03\x10\x00\x00"


@pytest.mark.parametrize(
    ("kind", "namespace", "status"),
    [
        (0, 2, Status.INVALID_NAMESPACE),
        (2, 0xFFFFFFFF, Status.INVALID_NAMESPACE),
        (6, 1, Status.INVALID_FIELD),
    ],
)
def test_it_identifies_nothing_else(driver: Driver, kind: int, namespace: int, status: Status) -> None:
    answer = driver.do(driver.admin, Admin.IDENTIFY, DATA, 0, kind, namespace=namespace)
    assert (answer.status, answer.is_final) == (status, True)


def test_a_readonly_disk_says_so_and_takes_no_writes() -> None:
    disk = MemoryDisk()
    disk.readonly = True
    driver = Driver(disk)
    driver.start()
    assert identify(driver, 0, 1)[99] == 1
    assert driver.transfer(Io.WRITE, 0, 1).status == Status.WRITE_PROTECTED
    assert driver.transfer(Io.WRITE_ZEROES, 0, 1).status == Status.WRITE_PROTECTED
    assert driver.transfer(Io.READ, 0, 1).status == Status.SUCCESS
    assert disk.content == pattern(SECTORS)


def test_features_are_kept_until_a_reset(driver: Driver) -> None:
    assert driver.do(driver.admin, Admin.SET_FEATURES, 0, 0, Feature.COALESCING, 0x1234).status == Status.SUCCESS
    assert driver.do(driver.admin, Admin.GET_FEATURES, 0, 0, Feature.COALESCING).result == 0x1234
    driver.write(CC, 0)
    driver.enable()
    assert driver.do(driver.admin, Admin.GET_FEATURES, 0, 0, Feature.COALESCING).result == 0


def test_the_number_of_queues_is_told_and_set_before_there_are_any() -> None:
    driver = Driver()
    driver.board.use_msix()
    driver.enable()
    answer = driver.do(driver.admin, Admin.SET_FEATURES, 0, 0, Feature.QUEUES, 63 | 63 << 16)
    assert answer.result == IO_QUEUES - 1 | IO_QUEUES - 1 << 16
    assert driver.do(driver.admin, Admin.SET_FEATURES, 0, 0, Feature.QUEUES, 0xFFFF).status == Status.INVALID_FIELD
    driver.create_queues(driver.io)
    assert driver.do(driver.admin, Admin.SET_FEATURES, 0, 0, Feature.QUEUES, 0).status == Status.COMMAND_SEQUENCE


@pytest.mark.parametrize(
    ("feature", "value", "status"),
    [
        (0x1F, 0, Status.INVALID_FIELD),
        (Feature.POWER, 1, Status.INVALID_FIELD),
        (Feature.VECTOR, 99, Status.INVALID_FIELD),
        (Feature.TEMPERATURE, 5 << 16, Status.INVALID_FIELD),
        (Feature.COALESCING | 1 << 31, 0, Status.NOT_SAVEABLE),
    ],
)
def test_features_that_there_are_not(driver: Driver, feature: int, value: int, status: Status) -> None:
    assert driver.do(driver.admin, Admin.SET_FEATURES, 0, 0, feature, value).status == status


def test_the_health_log_counts_what_was_moved(driver: Driver) -> None:
    driver.transfer(Io.READ, 0, 8)
    driver.transfer(Io.WRITE, 0, 8)
    driver.transfer(Io.WRITE, 0, 8)
    driver.transfer(Io.WRITE, SECTORS, 1)
    answer = driver.do(driver.admin, Admin.GET_LOG_PAGE, DATA, 0, 2 | 127 << 16, namespace=0xFFFFFFFF)
    assert answer.status == Status.SUCCESS
    counts = driver.data(512)[32:96]
    assert [int.from_bytes(counts[at : at + 16], "little") for at in range(0, 64, 16)] == [1, 1, 1, 2]


def test_logs_are_read_in_parts_and_end(driver: Driver) -> None:
    driver.board.put(DATA, b"\xff" * 16)
    assert driver.do(driver.admin, Admin.GET_LOG_PAGE, DATA, 0, 3 | 3 << 16, 0, 504).status == Status.SUCCESS
    assert driver.data(16) == bytes(16)
    for dwords, status in (
        ((3 | 3 << 16, 0, 516), Status.INVALID_FIELD),
        ((3 | 3 << 16, 0, 2), Status.INVALID_FIELD),
        ((3 | 0xFFFF << 16, 0xFFFF), Status.INVALID_FIELD),
        ((0x70,), Status.LOG_PAGE),
    ):
        assert driver.do(driver.admin, Admin.GET_LOG_PAGE, DATA, 0, *dwords).status == status


def test_unknown_commands_are_refused(driver: Driver) -> None:
    assert driver.do(driver.admin, 0x7F).status == Status.INVALID_OPCODE
    assert driver.do(driver.io, 0x05).status == Status.INVALID_OPCODE
    assert driver.do(driver.io, Io.READ, DATA, flags=0x40).status == Status.INVALID_FIELD
    assert driver.do(driver.io, Io.READ, DATA, flags=0x01).status == Status.INVALID_FIELD
    assert driver.do(driver.io, Io.READ, DATA, namespace=2).status == Status.INVALID_NAMESPACE


# -- queues -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "base", "size", "flags", "status"),
    [
        (Admin.CREATE_CQ, 0x5000, 0 | 7 << 16, 3, Status.QUEUE_IDENTIFIER),
        (Admin.CREATE_CQ, 0x5000, 1 | 7 << 16, 3, Status.QUEUE_IDENTIFIER),
        (Admin.CREATE_CQ, 0x5000, IO_QUEUES + 1 | 7 << 16, 3, Status.QUEUE_IDENTIFIER),
        (Admin.CREATE_CQ, 0x5000, 2, 3, Status.QUEUE_SIZE),
        (Admin.CREATE_CQ, 0x5000, 2 | MAX_QUEUE_ENTRIES << 16, 3, Status.QUEUE_SIZE),
        (Admin.CREATE_CQ, 0x5000, 2 | 7 << 16, 2, Status.INVALID_FIELD),
        (Admin.CREATE_CQ, 0x5004, 2 | 7 << 16, 3, Status.PRP_OFFSET),
        (Admin.CREATE_CQ, 0x5000, 2 | 7 << 16, 3 | 99 << 16, Status.INTERRUPT_VECTOR),
        (Admin.CREATE_SQ, 0x5000, 2 | 7 << 16, 1 | 5 << 16, Status.COMPLETION_QUEUE_INVALID),
        (Admin.CREATE_SQ, 0x5000, 2 | 7 << 16, 1, Status.COMPLETION_QUEUE_INVALID),
        (Admin.DELETE_CQ, 0, 1, 0, Status.QUEUE_DELETION),
        (Admin.DELETE_CQ, 0, 0, 0, Status.QUEUE_IDENTIFIER),
        (Admin.DELETE_SQ, 0, 0, 0, Status.QUEUE_IDENTIFIER),
        (Admin.DELETE_SQ, 0, 5, 0, Status.QUEUE_IDENTIFIER),
    ],
)
def test_queues_that_cannot_be(driver: Driver, opcode: int, base: int, size: int, flags: int, status: Status) -> None:
    assert driver.do(driver.admin, opcode, base, 0, size, flags).status == status


def test_io_queues_need_the_sizes_of_entries() -> None:
    driver = Driver()
    driver.board.use_msix()
    driver.enable()
    driver.write(CC, CC_ENABLE)
    answer = driver.do(driver.admin, Admin.CREATE_CQ, driver.io.completion, 0, 1 | 7 << 16, 3)
    assert answer.status == Status.INVALID_FIELD


def test_queues_can_be_made_again(driver: Driver) -> None:
    assert driver.do(driver.admin, Admin.DELETE_SQ, 0, 0, 1).status == Status.SUCCESS
    assert driver.do(driver.admin, Admin.DELETE_CQ, 0, 0, 1).status == Status.SUCCESS
    again = Queue(1, 0x6000, 0x7000, 4)
    driver.create_queues(again)
    assert driver.do(again, Io.FLUSH).status == Status.SUCCESS


def test_a_submission_queue_is_deleted_when_its_commands_are_done() -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.start()
    driver.put(driver.io, Io.WRITE, DATA, 0, 0, 0, 0)
    driver.submit(driver.io)
    driver.put(driver.admin, Admin.DELETE_SQ, 0, 0, 1)
    driver.submit(driver.admin)
    driver.put(driver.admin, Admin.DELETE_SQ, 0, 0, 1)
    driver.submit(driver.admin)
    assert [answer.status for answer in driver.take(driver.admin)] == [Status.QUEUE_IDENTIFIER]
    driver.worker.run_all()
    assert [answer.status for answer in driver.take(driver.io)] == [Status.SUCCESS]
    assert [answer.status for answer in driver.take(driver.admin)] == [Status.SUCCESS]


def test_each_queue_has_its_interrupt(driver: Driver) -> None:
    other = Queue(2, 0x5000, 0x6000, 4)
    driver.create_queues(other)
    driver.board.take_messages()
    driver.put(other, Io.FLUSH)
    driver.put(other, Io.FLUSH)
    driver.submit(other)
    assert driver.board.take_messages() == [102]
    driver.take(other)
    driver.transfer(Io.READ, 0, 1)
    assert driver.board.take_messages() == [101]
    driver.do(driver.admin, Admin.GET_FEATURES, 0, 0, Feature.QUEUES)
    assert driver.board.take_messages() == [100]


def test_the_pin_is_up_while_answers_are_not_taken() -> None:
    driver = Driver()
    driver.enable()
    driver.put(driver.admin, Admin.GET_FEATURES, 0, 0, Feature.QUEUES)
    driver.submit(driver.admin)
    assert driver.board.line
    driver.write(INTMS, 1)
    assert not driver.board.line
    assert driver.read(INTMC) == 1
    driver.write(INTMC, 1)
    assert driver.board.line
    driver.take(driver.admin)
    assert not driver.board.line
    driver.put(driver.admin, Admin.GET_FEATURES, 0, 0, Feature.QUEUES)
    driver.submit(driver.admin)
    driver.write(CC, 0)
    assert not driver.board.line


def test_rings_go_round_and_answers_wait_for_room(driver: Driver) -> None:
    for count in range(3 * IO_ENTRIES):
        assert driver.transfer(Io.READ, count, 1).status == Status.SUCCESS
        assert driver.data(512) == pattern(SECTORS)[512 * count :][:512]
    small = Queue(2, 0x5000, 0x6000, 2)
    large = Queue(3, 0x7000, 0x6000, IO_ENTRIES)
    driver.do(driver.admin, Admin.CREATE_CQ, small.completion, 0, 2 | 1 << 16, 3 | 2 << 16)
    driver.do(driver.admin, Admin.CREATE_SQ, large.submission, 0, 3 | (IO_ENTRIES - 1) << 16, 1 | 2 << 16)
    wanted = [driver.put(large, Io.FLUSH) for _ in range(5)]
    driver.submit(large)
    found = []
    while answers := driver.take(small):
        found += [answer.identifier for answer in answers]
    assert found == wanted


def test_more_commands_than_may_run_wait_for_others() -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.start()
    queues = [Queue(number, 0x10000 + 0x2000 * number, 0x11000 + 0x2000 * number, 64) for number in range(2, 7)]
    for queue in queues:
        driver.create_queues(queue)
        for _ in range(63):
            driver.put(queue, Io.WRITE, DATA)
        driver.submit(queue)
    driver.worker.run_all()
    assert [len(driver.take(queue)) for queue in queues] == [63] * 5


def test_bad_doorbells_are_told_to_who_asks(driver: Driver) -> None:
    first = driver.put(driver.admin, Admin.ASYNC_EVENT)
    driver.submit(driver.admin)
    assert driver.take(driver.admin) == []
    driver.ring(2, IO_ENTRIES)
    (event,) = driver.take(driver.admin)
    assert (event.identifier, event.result) == (first, 0x010100)
    driver.ring(30, 0)
    driver.ring(14, 0)
    driver.put(driver.admin, Admin.ASYNC_EVENT)
    driver.submit(driver.admin)
    assert driver.take(driver.admin) == []
    driver.do(driver.admin, Admin.GET_LOG_PAGE, DATA, 0, 1 | 15 << 16)
    driver.ring(30, 0)
    (event,) = driver.take(driver.admin)
    assert event.result == 0x010000
    assert driver.transfer(Io.READ, 0, 1).status == Status.SUCCESS


def test_so_many_events_can_be_waited_for_and_no_more(driver: Driver) -> None:
    for _ in range(4):
        driver.put(driver.admin, Admin.ASYNC_EVENT)
    driver.put(driver.admin, Admin.ASYNC_EVENT)
    driver.submit(driver.admin)
    assert [answer.status for answer in driver.take(driver.admin)] == [Status.EVENT_LIMIT]
    assert driver.do(driver.admin, Admin.ABORT, 0, 0, 1).result == 1
    assert driver.do(driver.admin, Admin.ABORT, 0, 0, 9).status == Status.INVALID_FIELD


# -- data -------------------------------------------------------------------------------------------------------------


def listed(driver: Driver, pages: list[int], at: int) -> None:
    driver.board.put(at, struct.pack(f"<{len(pages)}Q", *pages))


@pytest.mark.parametrize("cached", [True, False])
def test_data_comes_from_where_the_pages_are(cached: bool) -> None:
    driver = Driver()
    driver.start()
    driver.disk.cached = cached
    assert driver.transfer(Io.READ, 5, 7, DATA + 0x200, 0).status == Status.SUCCESS
    assert driver.data(7 * 512, DATA + 0x200) == pattern(SECTORS)[5 * 512 : 12 * 512]
    assert driver.transfer(Io.READ, 0, 12, DATA + 0x800, DATA + 0x5000).status == Status.SUCCESS
    assert driver.data(0x800, DATA + 0x800) == pattern(SECTORS)[:0x800]
    assert driver.data(PAGE, DATA + 0x5000) == pattern(SECTORS)[0x800 : 12 * 512]
    listed(driver, [DATA + 0x9000, DATA + 0xA000, DATA + 0x6000], 0x9008)
    assert driver.transfer(Io.READ, 100, 32, DATA, 0x9008).status == Status.SUCCESS
    wanted = pattern(SECTORS)[100 * 512 :]
    assert driver.data(PAGE) == wanted[:PAGE]
    assert driver.data(2 * PAGE, DATA + 0x9000) == wanted[PAGE : 3 * PAGE]
    assert driver.data(PAGE, DATA + 0x6000) == wanted[3 * PAGE : 4 * PAGE]


def test_lists_of_pages_go_on_in_other_pages(driver: Driver) -> None:
    listed(driver, [DATA + 0x2000, 0xA000], 0x9FF0)
    listed(driver, [DATA + 0x1000, DATA + 0x4000], 0xA000)
    assert driver.transfer(Io.READ, 0, 32, DATA, 0x9FF0).status == Status.SUCCESS
    for number, page in enumerate((0, 0x2000, 0x1000, 0x4000)):
        assert driver.data(PAGE, DATA + page) == pattern(SECTORS)[number * PAGE :][:PAGE]


@pytest.mark.parametrize(
    ("sectors", "prp1", "prp2", "status"),
    [
        (1, DATA + 1, 0, Status.PRP_OFFSET),
        (16, DATA, DATA + 4, Status.PRP_OFFSET),
        (24, DATA, 0x9004, Status.PRP_OFFSET),
        (24, DATA, MEMORY_BYTES, Status.DATA_TRANSFER_ERROR),
        (1, MEMORY_BYTES, 0, Status.DATA_TRANSFER_ERROR),
        (16, DATA, 1 << 63, Status.DATA_TRANSFER_ERROR),
    ],
)
@pytest.mark.parametrize("opcode", [Io.READ, Io.WRITE])
def test_pages_that_cannot_be(driver: Driver, opcode: Io, sectors: int, prp1: int, prp2: int, status: Status) -> None:
    answer = driver.transfer(opcode, 0, sectors, prp1, prp2)
    assert (answer.status, answer.is_final) == (status, status is Status.PRP_OFFSET)
    assert driver.disk.content == pattern(SECTORS)
    assert driver.transfer(opcode, 0, 1).status == Status.SUCCESS


def test_a_list_that_leads_astray_is_refused(driver: Driver) -> None:
    listed(driver, [DATA, 0x9FF4], 0x9FF0)
    assert driver.transfer(Io.READ, 0, 32, DATA, 0x9FF0).status == Status.PRP_OFFSET
    listed(driver, [DATA + 8, DATA], 0x9000)
    assert driver.transfer(Io.READ, 0, 24, DATA, 0x9000).status == Status.PRP_OFFSET


@pytest.mark.parametrize("opcode", [Io.READ, Io.WRITE, Io.WRITE_ZEROES])
@pytest.mark.parametrize(("sector", "sectors"), [(SECTORS, 1), (SECTORS - 1, 2), (2**64 - 1, 1), (2**63, 8)])
def test_the_disk_ends(driver: Driver, opcode: Io, sector: int, sectors: int) -> None:
    assert driver.transfer(opcode, sector, sectors).status == Status.LBA_RANGE
    assert driver.disk.content == pattern(SECTORS)


def test_a_transfer_has_a_limit() -> None:
    driver = Driver(MemoryDisk(4096))
    driver.start()
    listed(driver, [DATA] * 512, 0xA000)
    assert driver.transfer(Io.READ, 0, 2048, DATA, 0xA000).status == Status.SUCCESS
    assert driver.transfer(Io.READ, 0, 2049, DATA, 0xA000).status == Status.INVALID_FIELD


def test_writes_reach_the_disk_as_they_were_when_submitted() -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.start()
    driver.board.put(DATA, b"first" * 100)
    driver.put(driver.io, Io.WRITE, DATA, 0, 3, 0, 0)
    driver.submit(driver.io)
    driver.board.put(DATA, b"later" * 100)
    driver.worker.run_all()
    assert driver.take(driver.io)[0].status == Status.SUCCESS
    assert driver.disk.content[3 * 512 :].startswith(b"firstfirst")


def test_what_must_be_safe_is_flushed(driver: Driver) -> None:
    driver.transfer(Io.WRITE, 0, 1)
    assert driver.disk.calls == ["write"]
    driver.transfer(Io.WRITE, 0, 1, flags=FORCE_ACCESS)
    driver.do(driver.admin, Admin.SET_FEATURES, 0, 0, Feature.WRITE_CACHE, 0)
    driver.transfer(Io.WRITE_ZEROES, 0, 1)
    assert driver.disk.calls == ["write", "write", "flush", "write", "flush"]
    driver.write(CC, 0)
    driver.start()
    driver.transfer(Io.WRITE, 0, 1)
    assert driver.disk.calls[-1] == "write"


def test_a_flush_waits_for_writes() -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.start()
    for opcode in (Io.WRITE, Io.FLUSH, Io.READ):
        driver.put(driver.io, opcode, DATA)
    driver.submit(driver.io)
    assert len(driver.worker.queue) == 1
    driver.worker.run_all()
    assert driver.disk.calls == ["write", "read", "flush"]
    assert len(driver.take(driver.io)) == 3


def test_zeros_and_deallocated_ranges(driver: Driver) -> None:
    assert driver.transfer(Io.WRITE_ZEROES, 1, 2).status == Status.SUCCESS
    assert driver.disk.content[512:1536] == bytes(1024)
    driver.board.put(DATA, struct.pack("<IIQIIQIIQ", 0, 8, 16, 0, 0, 3, 0, 8, SECTORS - 8))
    assert driver.do(driver.io, Io.DATASET_MANAGEMENT, DATA, 0, 2, 0).status == Status.SUCCESS
    assert "discard" not in driver.disk.calls
    assert driver.do(driver.io, Io.DATASET_MANAGEMENT, DATA, 0, 2, 4).status == Status.SUCCESS
    assert driver.disk.calls.count("discard") == 2
    assert driver.disk.content[-4096:] == bytes(4096)
    driver.board.put(DATA, struct.pack("<IIQ", 0, 9, SECTORS - 8))
    assert driver.do(driver.io, Io.DATASET_MANAGEMENT, DATA, 0, 0, 4).status == Status.LBA_RANGE
    driver.disk.discard_granularity = 0
    assert driver.do(driver.io, Io.DATASET_MANAGEMENT, DATA, 0, 0, 4).status == Status.LBA_RANGE


@pytest.mark.parametrize(
    ("opcode", "status"),
    [
        (Io.READ, Status.READ_ERROR),
        (Io.WRITE, Status.WRITE_FAULT),
        (Io.WRITE_ZEROES, Status.WRITE_FAULT),
        (Io.FLUSH, Status.WRITE_FAULT),
    ],
)
def test_the_host_may_fail(driver: Driver, opcode: Io, status: Status) -> None:
    driver.disk.failing = True
    answer = driver.transfer(opcode, 0, 1)
    assert (answer.status, answer.is_final) == (status, False)
    driver.disk.failing = False
    assert driver.transfer(opcode, 0, 1).status == Status.SUCCESS


# -- reset ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["controller", "function"])
@pytest.mark.parametrize("opcode", [Io.READ, Io.WRITE])
def test_nothing_old_happens_after_a_reset(way: str, opcode: Io) -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.start()
    driver.disk.cached = False
    for _ in range(3):
        driver.put(driver.io, opcode, DATA, 0, 0, 0, 0)
    driver.submit(driver.io)
    if way == "controller":
        driver.write(CC, 0)
    else:
        driver.reset_function()
    driver.start()
    driver.board.put(DATA, b"\xaa" * 512)
    before = bytes(driver.board.memory)
    assert len(driver.worker.queue) == 3
    driver.put(driver.io, Io.WRITE, DATA, 0, 0, 0, 0)
    driver.submit(driver.io)
    assert len(driver.worker.queue) == 3, "the new write must not be overtaken by the old ones"
    for _ in range(3):
        driver.worker.run()
    assert driver.board.memory[DATA:] == before[DATA:]
    assert driver.board.memory[driver.io.completion :][:128] == before[driver.io.completion :][:128]
    driver.worker.run_all()
    assert [answer.status for answer in driver.take(driver.io)] == [Status.SUCCESS]
    assert driver.disk.content[:512] == b"\xaa" * 512


def test_many_reads_at_once_let_others_have_their_turn() -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.start()
    listed(driver, [DATA] * 512, 0xA000)
    for _ in range(IO_ENTRIES - 1):
        driver.put(driver.io, Io.READ, DATA, 0xA000, 0, 0, 2047)
    driver.submit(driver.io)
    assert len(driver.take(driver.io)) == 4
    driver.worker.run_all()
    assert len(driver.take(driver.io)) == 3


# -- hostile drivers --------------------------------------------------------------------------------------------------

registers = st.one_of(
    st.sampled_from([CAP, VS, INTMS, INTMC, CC, CSTS, AQA, ASQ, ASQ + 4, ACQ, ACQ + 4, 0x20]),
    st.integers(0, 0x3FF8),
    st.integers(0, 23).map(lambda doorbell: DOORBELLS + 4 * doorbell),
)
numbers = st.one_of(st.integers(0, 16), st.sampled_from([DATA, 0xFFFFFFFF, 1 << 31]), st.integers(0, 2**32 - 1))
places = st.one_of(
    st.sampled_from([0, DATA, 0x9000, 0x9FF8, MEMORY_BYTES - 512, MEMORY_BYTES]), st.integers(0, 2**64 - 1)
)
commands = st.tuples(
    st.sampled_from(["admin", "io"]),
    st.one_of(st.sampled_from([*Admin, *Io]), st.integers(0, 255)),
    places,
    places,
    st.lists(numbers, min_size=6, max_size=6),
    st.sampled_from([0, 1, 2, 0xFFFFFFFF]),
    st.sampled_from([0, 0, 0, 0x40, 0x01]),
)
accesses = st.tuples(st.sampled_from(["read", "write"]), registers, st.sampled_from([1, 2, 4, 8]), numbers)
deeds = st.one_of(commands, accesses, st.sampled_from(["work", "reset", "restart"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(deeds, max_size=40), st.binary(min_size=64, max_size=64), st.booleans())
def test_whatever_a_driver_does_the_controller_can_be_used_again(
    things: list[object], list_content: bytes, cached: bool
) -> None:
    driver = Driver(worker=Worker(at_once=False))
    driver.disk.cached = cached
    driver.start()
    driver.board.put(0x9000, list_content * 64)
    for thing in things:
        match thing:
            case ("admin" | "io" as name, int(opcode), int(prp1), int(prp2), list(dwords), int(namespace), int(flags)):
                queue = driver.admin if name == "admin" else driver.io
                driver.put(queue, opcode, prp1, prp2, *dwords, namespace=namespace, flags=flags)
                driver.submit(queue)
            case ("read", int(register), int(size), _):
                assert 0 <= driver.read(register, size) < 1 << 8 * size
            case ("write", int(register), int(size), int(value)):
                driver.write(register, value & (1 << 8 * size) - 1, size)
            case "work":
                if driver.worker.queue:
                    driver.worker.run()
            case "restart":
                driver.write(CC, 0)
                driver.enable()
            case "reset":
                driver.nvme.reset()
    driver.worker.run_all()
    assert driver.disk.size == SECTORS * 512
    driver.worker.at_once = True
    driver.reset_function()
    driver.start()
    assert driver.transfer(Io.READ, 0, 1).status == Status.SUCCESS
    assert driver.data(512) == driver.disk.content[:512]
