"""PCI configuration space: identities, base address registers, capabilities, and the two ways in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.machine.buses import MmioBus, PortBus
from xenolith.machine.pci import (
    BAR0,
    CAPABILITIES,
    COMMAND,
    COMMAND_IO,
    COMMAND_MEMORY,
    STATUS,
    STATUS_CAPABILITIES,
    BarKind,
    PciBus,
    PciConfigPorts,
    PciFunction,
    bdf,
    host_bridge,
    intx_gsi,
    lpc_bridge,
)

KINDS = st.sampled_from(BarKind)


class Window:
    """What stands behind a base address register: remembers where it was read and written."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        self.seen.append((bar, offset, size))
        return 0x5A

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        self.seen.append((bar, offset, value))


class Board:
    """A bus with one function at 05.0 and both ways to its configuration space."""

    def __init__(self) -> None:
        self.ports, self.mmio = PortBus(), MmioBus()
        self.pci = PciBus(self.ports, self.mmio)
        PciConfigPorts(self.pci).attach(self.ports)
        self.function = PciFunction(0x1AF4, 0x1042, 0x010000, revision=1, interrupt_pin=1)
        self.window = Window()
        self.at = bdf(0, 5, 0)

    def start(self, *bars: tuple[int, int, BarKind]) -> Board:
        for index, length, kind in bars:
            self.function.add_bar(index, length, kind, self.window)
        self.pci.add(self.function, 5)
        return self

    def read(self, offset: int, size: int) -> int:
        return self.pci.read_config(self.at, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.pci.write_config(self.at, offset, size, value)


def test_the_header_tells_the_identity() -> None:
    board = Board().start()
    assert board.read(0, 4) == 0x10421AF4
    assert board.read(8, 4) == 0x01000001
    assert board.read(0x0E, 1) == 0
    assert board.read(0x3D, 1) == 1
    assert board.read(0x3C, 1) == intx_gsi(5, 1)


def test_where_nothing_is_reads_all_ones() -> None:
    board = Board().start()
    board.pci.write_config(bdf(0, 6, 0), 0, 4, 0)
    assert board.pci.read_config(bdf(0, 6, 0), 0, 4) == 0xFFFFFFFF
    assert board.pci.read_config(bdf(1, 5, 0), 0, 2) == 0xFFFF


def test_a_function_that_is_removed_is_nowhere() -> None:
    board = Board().start((0, 4096, BarKind.MEMORY32), (1, 16, BarKind.IO))
    board.pci.place_bars()
    lines: list[tuple[int, bool]] = []
    board.pci.drive = lambda gsi, level: lines.append((gsi, level))
    board.pci.set_line(board.function, True)
    (memory, ports) = (bar.mapped for bar in board.function.bars)
    assert memory is not None
    assert ports is not None
    assert (board.mmio.read(memory.start, 4), board.ports.read(ports.start, 4)) == (0x5A, 0x5A)
    board.pci.remove(board.at)
    assert board.read(0, 4) == board.mmio.read(memory.start, 4) == board.ports.read(ports.start, 4) == 0xFFFFFFFF
    assert lines == [(intx_gsi(5, 1), True), (intx_gsi(5, 1), False)]
    assert board.function.bus is None


def test_two_functions_cannot_share_a_place() -> None:
    board = Board().start()
    with pytest.raises(ValueError, match=r"05\.0"):
        board.pci.add(host_bridge(), 5)
    with pytest.raises(ValueError, match="cannot be added"):
        board.pci.add(host_bridge(), 32)


@given(st.integers(0, 0x3F), st.integers(0, 0xFFFFFFFF))
def test_software_cannot_change_what_is_fixed(dword: int, value: int) -> None:
    board = Board().start()
    fixed = {0: 4, 6: 2, 8: 4, 0x0E: 1, 0x10: 24, 0x2C: 4, 0x34: 1, 0x3D: 1}
    before = {at: bytes(board.function.config[at : at + size]) for at, size in fixed.items()}
    board.write(4 * dword, 4, value)
    assert {at: bytes(board.function.config[at : at + size]) for at, size in fixed.items()} == before


@given(KINDS, st.integers(4, 28), st.integers(0, 4))
def test_writing_ones_to_a_base_register_tells_its_size(kind: BarKind, power: int, index: int) -> None:
    board = Board().start((index, 1 << power, kind))
    at = BAR0 + 4 * index
    for offset in (at, at + 4) if kind is BarKind.MEMORY64 else (at,):
        board.write(offset, 4, 0xFFFFFFFF)
    width = 64 if kind is BarKind.MEMORY64 else 32
    value = board.read(at, width // 8)
    flags = 0x3 if kind is BarKind.IO else 0xF
    assert value & flags == kind.value
    assert -(value & ~flags) % (1 << width) == 1 << power


@given(KINDS, st.integers(4, 20), st.integers(0, (1 << 64) - 1))
def test_a_base_register_holds_an_aligned_address(kind: BarKind, power: int, address: int) -> None:
    board = Board().start((0, 1 << power, kind))
    size = 8 if kind is BarKind.MEMORY64 else 4
    board.write(BAR0, size, address)
    assert board.read(BAR0, size) == address & ((1 << 8 * size) - (1 << power)) | kind.value


@pytest.mark.parametrize(
    ("index", "length", "kind"),
    [(0, 24, BarKind.IO), (0, 2, BarKind.IO), (0, 8, BarKind.MEMORY32), (6, 16, BarKind.IO), (5, 16, BarKind.MEMORY64)],
)
def test_an_impossible_base_register_is_refused(index: int, length: int, kind: BarKind) -> None:
    with pytest.raises(ValueError, match="base address register"):
        PciFunction(1, 1, 0).add_bar(index, length, kind, Window())


def test_memory_answers_where_the_base_register_puts_it_while_enabled() -> None:
    board = Board().start((1, 0x1000, BarKind.MEMORY32))
    board.write(BAR0 + 4, 4, 0xC0004000)
    assert board.mmio.read(0xC0004010, 4) == 0xFFFFFFFF
    board.write(COMMAND, 2, COMMAND_MEMORY)
    assert board.mmio.read(0xC0004010, 4) == 0x5A
    board.write(BAR0 + 4, 4, 0xC0008000)
    assert board.mmio.read(0xC0004010, 4) == 0xFFFFFFFF
    board.mmio.write(0xC0008020, 2, 7)
    assert board.window.seen == [(1, 0x10, 4), (1, 0x20, 7)]
    board.write(COMMAND, 2, 0)
    assert board.mmio.ranges == []


def test_ports_answer_where_the_base_register_puts_them_while_enabled() -> None:
    board = Board().start((0, 32, BarKind.IO))
    board.write(BAR0, 4, 0xC000)
    board.write(COMMAND, 2, COMMAND_IO)
    assert board.ports.read(0xC012, 2) == 0x5A
    board.ports.write(0xC01F, 1, 3)
    assert board.window.seen == [(0, 0x12, 2), (0, 0x1F, 3)]
    board.write(COMMAND, 2, 0)
    assert board.ports.read(0xC012, 2) == 0xFFFF


def test_a_base_register_over_something_else_stays_unmapped_until_it_moves() -> None:
    board = Board()
    other = Window()
    board.function.add_bar(2, 0x1000, BarKind.MEMORY32, other)
    board.start((0, 0x1000, BarKind.MEMORY32))
    board.write(COMMAND, 2, COMMAND_MEMORY)
    board.write(BAR0, 4, 0xC0000000)
    board.write(BAR0 + 8, 4, 0xC0000000)
    assert board.mmio.ranges.count(range(0xC0000000, 0xC0001000)) == 1
    board.write(BAR0, 4, 0xD0000000)
    board.write(BAR0 + 8, 4, 0xD0001000)
    assert {range(0xD0000000, 0xD0001000), range(0xD0001000, 0xD0002000)} == set(board.mmio.ranges)


@given(st.lists(st.tuples(st.sampled_from([COMMAND, *range(BAR0, 0x28, 4)]), st.integers(0, 0xFFFFFFFF)), max_size=30))
def test_no_sequence_of_writes_leaves_a_stale_mapping(writes: list[tuple[int, int]]) -> None:
    board = Board().start((0, 64, BarKind.IO), (1, 0x1000, BarKind.MEMORY32), (4, 0x4000, BarKind.MEMORY64))
    for offset, value in writes:
        board.write(offset, 4, value)
    board.write(COMMAND, 2, 0)
    assert board.mmio.ranges == []
    assert not [port for port in range(0, 0x10000, 64) if board.ports.owner(port)]


def test_capabilities_form_a_chain() -> None:
    function = PciFunction(0x1AF4, 0x1042, 0)
    assert not function.get(STATUS, 2) & STATUS_CAPABILITIES
    first = function.add_capability(0x05, bytes(12), b"\x71")
    second = function.add_capability(0x09, b"\x10\x01")
    assert function.get(STATUS, 2) & STATUS_CAPABILITIES
    assert function.get(CAPABILITIES, 1) == first
    assert function.get(first, 2) == 0x05 | second << 8
    assert function.get(second, 4) == 0x0110_0009
    function.write_config(first + 2, 2, 0xFFFF)
    assert function.get(first + 2, 2) == 0x71
    with pytest.raises(ValueError, match="no room"):
        function.add_capability(0x09, bytes(200))


def test_mechanism_1_reaches_a_function() -> None:
    board = Board().start()
    board.ports.write(0xCF8, 4, 0x80000000 | board.at << 8)
    assert board.ports.read(0xCF8, 4) == 0x80000000 | board.at << 8
    assert board.ports.read(0xCFC, 4) == 0x10421AF4
    assert board.ports.read(0xCFE, 2) == 0x1042
    assert board.ports.read(0xCFF, 1) == 0x10
    board.ports.write(0xCF8, 4, 0x80000004 | board.at << 8)
    board.ports.write(0xCFC, 2, COMMAND_MEMORY)
    assert board.read(COMMAND, 2) == COMMAND_MEMORY


def test_mechanism_1_needs_its_enable_bit_and_a_whole_address() -> None:
    board = Board().start()
    board.ports.write(0xCF8, 4, board.at << 8)
    assert board.ports.read(0xCFC, 4) == 0xFFFFFFFF
    board.ports.write(0xCF8, 1, 0x80)
    board.ports.write(0xCF8, 2, 0x8000)
    assert board.ports.read(0xCF8, 1) == 0xFF
    assert board.ports.read(0xCF8, 4) == board.at << 8


def test_a_data_access_past_the_window_reads_all_ones() -> None:
    board = Board().start()
    board.ports.write(0xCF8, 4, 0x80000000 | board.at << 8)
    board.ports.write(0xCFE, 4, 0)
    assert board.ports.read(0xCFE, 4) == 0xFFFFFFFF


@given(st.integers(0, (1 << 28) - 1), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1))
def test_the_ecam_window_answers_every_offset(offset: int, size: int, value: int) -> None:
    board = Board().start()
    board.pci.write_mmio(offset, size, value & (1 << 8 * size) - 1)
    read = board.pci.read_mmio(offset, size)
    assert 0 <= read < 1 << 8 * size
    if offset >> 12 != board.at:
        assert read == (1 << 8 * size) - 1
    elif offset % 4096 >= 256:
        assert read == 0


def test_the_ecam_window_shows_the_same_space() -> None:
    board = Board().start()
    assert board.pci.read_mmio(board.at << 12, 4) == 0x10421AF4
    board.pci.write_mmio(board.at << 12 | COMMAND, 2, COMMAND_MEMORY)
    assert board.read(COMMAND, 2) == COMMAND_MEMORY


@given(st.integers(0, 31), st.integers(1, 4))
def test_interrupt_pins_go_to_the_pci_inputs(slot: int, pin: int) -> None:
    assert 16 <= intx_gsi(slot, pin) < 24
    assert len({intx_gsi(slot, other) for other in range(1, 5)}) == 4


def test_the_bridges_say_what_they_are() -> None:
    assert host_bridge().get(0, 4) == 0x29C08086
    assert host_bridge().get(0x0A, 2) == 0x0600
    lpc = lpc_bridge(0x600)
    assert lpc.get(0x0A, 2) == 0x0601
    assert lpc.get(0x40, 4) == 0x601
