"""The assembled PC: firmware in memory, devices where drivers look for them, shared ports declared."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from xenolith.errors import UserError
from xenolith.machine.e820 import MIB
from xenolith.machine.pc import SHARED_PORTS, Pc

if TYPE_CHECKING:
    from .conftest import HandClock

RAM = 16 * MIB


class Owner:
    """The owner of a PC: collects its serial output and its requests, and keeps its memory."""

    def __init__(self, clock: HandClock) -> None:
        self.serial = bytearray()
        self.events: list[str] = []
        self.pc = Pc(
            RAM, clock, 2, self.serial.extend, lambda: self.events.append("off"), lambda: self.events.append("reset")
        )
        self.memory = bytearray(RAM)


@pytest.fixture
def owner(clock: HandClock) -> Owner:
    return Owner(clock)


def test_scanning_the_bios_area_finds_acpi_and_smbios(owner: Owner) -> None:
    owner.pc.install_firmware(memoryview(owner.memory))
    area = owner.memory[0xE0000:0x100000]
    anchors = {bytes(area[at : at + 8]): at for at in range(0, len(area), 16) if area[at]}
    rsdp = anchors[b"RSD PTR "]
    assert sum(area[rsdp : rsdp + 36]) % 256 == 0
    xsdt = struct.unpack_from("<Q", area, rsdp + 24)[0]
    assert owner.memory[xsdt : xsdt + 4] == b"XSDT"
    assert any(anchor.startswith(b"_SM_") for anchor in anchors)


def test_firmware_writes_only_outside_usable_ram(owner: Owner) -> None:
    owner.pc.install_firmware(memoryview(owner.memory))
    for frames in owner.pc.memory_map.ram_ranges:
        assert not any(owner.memory[frames.start << 12 : frames.stop << 12])


def test_no_two_firmware_areas_overlap(owner: Owner) -> None:
    first, second = bytearray(RAM), bytearray(b"\xaa" * RAM)
    owner.pc.install_firmware(memoryview(first))
    owner.pc.install_firmware(memoryview(second))
    written = sum(1 for one, other in zip(first[: 1 << 20], second[: 1 << 20], strict=True) if one == other)
    assert written == sum(len(data) for maddr, data in owner.pc.firmware() if maddr < 1 << 20)


def test_the_bios_data_area_names_the_serial_port_and_the_date(owner: Owner) -> None:
    owner.pc.install_firmware(memoryview(owner.memory))
    assert struct.unpack_from("<H", owner.memory, 0x400)[0] == 0x3F8
    assert struct.unpack_from("<H", owner.memory, 0x40E)[0] << 4 == 0x9FC00
    assert struct.unpack_from("<H", owner.memory, 0x413)[0] == 639
    assert owner.memory[0xFFFF5:0xFFFFD] == b"01/01/26"


def test_the_serial_port_sends_and_interrupts_on_pin_4(owner: Owner) -> None:
    delivered: list[int] = []
    owner.pc.ioapic.deliver = delivered.append
    owner.pc.ioapic.route(4, 0x34, level=False, active_low=False, masked=False)
    ports = owner.pc.ports
    for byte in b"hi":
        ports.write(0x3F8, 1, byte)
    ports.write(0x3FC, 1, 0x0B)
    ports.write(0x3F9, 1, 0x01)
    owner.pc.serial.feed(b"x")
    assert owner.serial == b"hi"
    assert delivered == [4]


def test_the_power_button_reaches_the_sci(owner: Owner) -> None:
    delivered: list[int] = []
    owner.pc.ioapic.deliver = delivered.append
    owner.pc.ioapic.route(9, 0x39, level=True, active_low=False, masked=False)
    owner.pc.ports.write(0x602, 2, 0x0100)
    owner.pc.acpi_pm.press_power_button()
    assert delivered == [9]


def test_the_clock_alarm_comes_by_poll(owner: Owner, clock: HandClock) -> None:
    delivered: list[int] = []
    owner.pc.ioapic.deliver = delivered.append
    owner.pc.ioapic.route(8, 0x38, level=False, active_low=False, masked=False)
    assert owner.pc.deadline() is None
    owner.pc.rtc.write_cmos(11, 0x12)
    due = owner.pc.deadline()
    assert due is not None
    clock.ns = due
    owner.pc.poll()
    assert delivered == [8]


def test_power_off_and_reset_reach_the_owner(owner: Owner) -> None:
    owner.pc.ports.write(0x604, 2, 5 << 10 | 1 << 13)
    owner.pc.ports.write(0xCF9, 1, 6)
    owner.pc.ports.write(0xCF8, 4, 0x80000000)
    assert owner.events == ["off", "reset"]


def test_the_bridges_are_found_by_both_configuration_mechanisms(owner: Owner) -> None:
    owner.pc.ports.write(0xCF8, 4, 0x8000F800)
    assert owner.pc.ports.read(0xCFC, 4) == 0x29188086
    assert owner.pc.mmio.read(0xE0000000, 4) == 0x29C08086
    assert owner.pc.mmio.read(0xE0000000 + (0x1F << 15), 4) == 0x29188086
    assert sorted(owner.pc.pci.functions) == [0x00, 0xF8]


def test_the_io_apic_answers_at_its_address(owner: Owner) -> None:
    owner.pc.mmio.write(0xFEC00000, 4, 1)
    assert owner.pc.mmio.read(0xFEC00010, 4) == 0x00170020


def test_interrupt_controller_ports_are_shared_and_read_all_ones(owner: Owner) -> None:
    names = {port: entry.name for entry in SHARED_PORTS for port in entry.ports}
    assert {port for port, name in names.items() if name == "pic"} == {0x20, 0x21, 0xA0, 0xA1}
    assert owner.pc.ports.read(0x21, 1) == 0xFF
    assert {0x40, 0x43, 0x61, 0x70, 0x71, 0xCF8, 0xCFC, 0xCFF} <= set(names)
    assert 0xCF9 not in names


@pytest.mark.parametrize(("ram_bytes", "cpus"), [(RAM, 0), (RAM, 256), (1000, 1)])
def test_an_impossible_machine_is_the_users_mistake(clock: HandClock, ram_bytes: int, cpus: int) -> None:
    with pytest.raises(UserError):
        Pc(ram_bytes, clock, cpus, bytearray().extend, int, int)


def test_importing_the_machine_brings_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import xenolith.machine.pc; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"numpy", "unicorn", "dataclasses", "asyncio", "subprocess", "uuid"} & set(loaded.split())
