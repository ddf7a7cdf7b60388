"""A guest's virtual PCI bus: what of a function's configuration it sees, what it can change, and its messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.abi.errno import EEXIST, XenError
from xenolith.abi.io import pciif
from xenolith.abi.io.pciif import XenPciOp
from xenolith.backends.pci import PciBackend
from xenolith.machine.buses import MmioBus, PortBus
from xenolith.machine.pci import BAR0, COMMAND, INTERRUPT_LINE, BarKind, PciBus
from xenolith.machine.pci_device import MSIX, PciDevice


class Card(PciDevice):
    """A device with one register space of each kind."""

    def __init__(self) -> None:
        super().__init__(0x1B36, 0x0010, 0x010802, interrupt_pin=1)
        self.add_bar(0, 0x4000, BarKind.MEMORY64, self)
        self.add_bar(2, 32, BarKind.IO, self)
        self.add_msi(4)
        self.add_msix(8, 4)
        self.add_function_reset()

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        return 0

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None: ...


class Hosted:
    """A function as its host reaches it, with the messages that were asked for."""

    def __init__(self, card: Card, bus: PciBus) -> None:
        self._card, self._bus = card, bus
        self.mapped: list[str] = []
        self.limit = 8

    def read(self, offset: int, size: int) -> int:
        return self._bus.read_config(self._card.where, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._bus.write_config(self._card.where, offset, size, value)

    def map_msi(self, count: int) -> int:
        return self._map(f"msi {count}")

    def map_msix(self, entry: int) -> int:
        return self._map(f"msix {entry}")

    def _map(self, what: str) -> int:
        if len(self.mapped) == self.limit:
            raise XenError(EEXIST)
        self.mapped.append(what)
        return 255 - len(self.mapped)

    def unmap_all(self) -> None:
        self.mapped.clear()


class Bus:
    """A guest's bus with two cards."""

    def __init__(self) -> None:
        bus = PciBus(PortBus(), MmioBus())
        self.cards = [Card(), Card()]
        for slot, card in enumerate(self.cards, 5):
            bus.add(card, slot)
        bus.place_bars()
        self.hosted = [Hosted(card, bus) for card in self.cards]
        self.backend = PciBackend(self.hosted)

    def ask(self, command: int, **fields: int) -> XenPciOp:
        op = XenPciOp(cmd=command, **fields)
        self.backend.serve(op)
        return op

    def read(self, offset: int, size: int, devfn: int = 0) -> int:
        op = self.ask(pciif.XEN_PCI_OP_conf_read, devfn=devfn, offset=offset, size=size)
        assert op.err == 0
        return op.value

    def write(self, offset: int, size: int, value: int, devfn: int = 0) -> None:
        assert self.ask(pciif.XEN_PCI_OP_conf_write, devfn=devfn, offset=offset, size=size, value=value).err == 0


def test_its_functions_are_in_slots_of_their_own() -> None:
    bus = Bus()
    assert bus.read(0, 4) == bus.read(0, 4, devfn=8) == 0x00101B36
    for fields in ({"devfn": 16}, {"devfn": 1}, {"bus": 1}, {"domain": 1}, {"devfn": 1 << 31}):
        op = bus.ask(pciif.XEN_PCI_OP_conf_read, offset=0, size=4, **fields)
        assert op.err == pciif.XEN_PCI_ERR_dev_not_found


@pytest.mark.parametrize(("offset", "size"), [(1, 2), (2, 4), (0, 3), (0, 0), (0, 8), (4096, 1), (4094, 4), (-4, 4)])
def test_offsets_that_are_none(offset: int, size: int) -> None:
    assert Bus().ask(pciif.XEN_PCI_OP_conf_read, offset=offset, size=size).err == pciif.XEN_PCI_ERR_invalid_offset


def test_registers_are_sized_and_stay_where_they_are() -> None:
    bus = Bus()
    placed = [bus.read(BAR0 + 4 * index, 4) for index in range(6)]
    bus.write(BAR0, 4, 0xFFFFFFFF)
    assert bus.read(BAR0, 4) == 0xFFFFC004
    assert bus.read(BAR0 + 2, 2) == 0xFFFF
    bus.write(BAR0 + 8, 4, 0xFFFFFFFF)
    assert bus.read(BAR0 + 8, 4) == 0xFFFFFFE1
    bus.write(BAR0, 4, 0x12340000)
    bus.write(BAR0 + 8, 4, 0)
    assert [bus.read(BAR0 + 4 * index, 4) for index in range(6)] == placed
    bus.write(0x30, 4, 0xFFFFFFFF)
    assert bus.read(0x30, 4) == 0


def test_what_belongs_to_its_functions() -> None:
    bus = Bus()
    ports, memory = bus.backend.resources()
    real = [bar for card in bus.cards for bar in card.bars]
    assert ports == [bar.mapped for bar in real if bar.kind is BarKind.IO]
    assert memory == [bar.mapped for bar in real if bar.kind is not BarKind.IO]


def test_a_driver_can_switch_what_it_must() -> None:
    bus = Bus()
    bus.write(COMMAND, 2, 0xFFFF)
    assert bus.cards[0].get(COMMAND, 2) == 0x0407
    bus.write(COMMAND, 2, 0)
    assert bus.cards[0].get(COMMAND, 2) == 0
    bus.write(INTERRUPT_LINE, 1, 9)
    assert bus.read(INTERRUPT_LINE, 1) == 9


@given(st.integers(0x40, 0xFF), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF))
def test_capabilities_are_read_only(offset: int, size: int, value: int) -> None:
    bus = Bus()
    before = bytes(bus.cards[0].config)
    bus.ask(pciif.XEN_PCI_OP_conf_write, offset=offset // size * size, size=size, value=value)
    assert bytes(bus.cards[0].config) == before


def test_messages() -> None:
    bus = Bus()
    op = XenPciOp(cmd=pciif.XEN_PCI_OP_enable_msix, value=2)
    op.msix_entries[0].entry, op.msix_entries[1].entry = 0, 3
    bus.backend.serve(op)
    assert (op.err, op.value) == (0, 0)
    assert [op.msix_entries[index].vector for index in range(2)] == [254, 253]
    assert bus.hosted[0].mapped == ["msix 0", "msix 3"]
    control = next(at for at in range(0x40, 0xF0, 4) if bus.cards[0].get(at, 1) == MSIX) + 2
    assert bus.read(control, 2) & 1 << 15
    assert bus.ask(pciif.XEN_PCI_OP_disable_msi).err == 0  # as Linux says it for MSI-X, too
    assert bus.hosted[0].mapped == []
    assert not bus.read(control, 2) & 1 << 15
    assert bus.ask(pciif.XEN_PCI_OP_enable_msi, devfn=8).value == 254
    assert bus.hosted[1].mapped == ["msi 1"]


@pytest.mark.parametrize("count", [0, 129, 0xFFFFFFFF, 9])
def test_messages_that_cannot_be_had(count: int) -> None:
    bus = Bus()
    assert bus.ask(pciif.XEN_PCI_OP_enable_msix, value=count).err == pciif.XEN_PCI_ERR_op_failed
    assert bus.hosted[0].mapped == []


@given(
    st.builds(
        dict,
        cmd=st.integers(0, 12),
        devfn=st.integers(0, 20),
        offset=st.integers(-8, 5000),
        size=st.integers(-1, 9),
        value=st.integers(0, 0xFFFFFFFF),
    )
)
def test_no_request_breaks_it(fields: dict[str, int]) -> None:
    bus = Bus()
    placed = bytes(bus.cards[0].config[BAR0 : BAR0 + 24])
    op = XenPciOp(**fields)
    bus.backend.serve(op)
    assert op.err in range(-5, 1)
    assert bytes(bus.cards[0].config[BAR0 : BAR0 + 24]) == placed


def test_unknown_requests() -> None:
    assert Bus().ask(pciif.XEN_PCI_OP_aer_detected).err == pciif.XEN_PCI_ERR_not_implemented
