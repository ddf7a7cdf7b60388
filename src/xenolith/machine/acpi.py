"""The ACPI tables of the PC: RSDP, RSDT, XSDT, FADT, FACS, MADT, MCFG, HPET and a DSDT.

Source: ACPI specification 6.4; MCFG: PCI Firmware Specification 3.0, section 4.1.2; HPET: IA-PC HPET
Specification 1.0a, section 3.2.4.
"""

from __future__ import annotations

import struct

from xenolith.machine import aml
from xenolith.machine.devices import acpi_pm, hpet, reset, rtc, serial
from xenolith.machine.e820 import (
    ECAM_BUSES,
    ECAM_LENGTH,
    ECAM_START,
    HPET_START,
    IOAPIC_START,
    LAPIC_START,
    PCI_WINDOWS,
    VGA_START,
    MemoryMap,
)
from xenolith.machine.pci import CONFIG_ADDRESS, intx_gsi

RSDP_MADDR = 0xF0000
MAX_CPUS = 255
"""An 8-bit local APIC number is what the MADT's simplest entry can hold."""

_OEM_ID = b"XENLTH"
_OEM_TABLE_ID = b"XENOLITH"
_CREATOR = b"XNLT"
_REVISION = 1
_TABLE_ALIGNMENT = 64
_HEADER_BYTES = 36
_LAST_BUS = ECAM_BUSES - 1
_LPC_SLOT = 0x1F
_SYSTEM_IO = 1

# FADT fields.
_FADT_REVISION = 6
_LEGACY_DEVICES = 1 << 0
_NO_VGA = 1 << 2
_BOOT_FLAGS = _LEGACY_DEVICES | _NO_VGA
_WBINVD = 1 << 0
_PROC_C1 = 1 << 2
_NO_SLEEP_BUTTON = 1 << 5
_NO_FIXED_RTC_WAKE = 1 << 6
_TIMER_32_BITS = 1 << 8
_RESET_REGISTER = 1 << 10
_FADT_FLAGS = _WBINVD | _PROC_C1 | _NO_SLEEP_BUTTON | _NO_FIXED_RTC_WAKE | _TIMER_32_BITS | _RESET_REGISTER
_DESKTOP = 1
_NO_C2 = 101
_NO_C3 = 1001

# MADT entries.
_PCAT_COMPATIBLE = 1 << 0
_CPU_ENABLED = 1 << 0
_ACTIVE_HIGH_LEVEL = 0x000D
_ACTIVE_HIGH_EDGE = 0x0005
_ALL_CPUS = 0xFF
_PIT_GSI = 2
_HPET_LEAST = 100

_OSC_PCI_UUID = "33db4d5b-1ff7-401c-9657-7441c03dd766"
_OSC_CONTROL_GRANTED = 0x1F
"""PCI Express features that the operating system may control: hot-plug (native and SHPC), PME, AER, capabilities."""
_OSC_UNKNOWN_UUID = 0x04
_OSC_CAPABILITIES_MASKED = 0x10


def _checksummed(data: bytes, at: int) -> bytes:
    """`data` with the byte at `at` chosen so that all bytes sum to 0."""
    return data[:at] + bytes([-(sum(data) - data[at]) & 0xFF]) + data[at + 1 :]


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: the 36-byte header, then `body` (5.2.6)."""
    header = struct.pack(
        "<4sIBB6s8sI4sI",
        signature,
        _HEADER_BYTES + len(body),
        revision,
        0,
        _OEM_ID,
        _OEM_TABLE_ID,
        _REVISION,
        _CREATOR,
        _REVISION,
    )
    return _checksummed(header + body, 9)


def _io_address(port: int, length: int, access: int) -> bytes:
    """A generic address structure for `length` bytes of ports; access 1 to 3 means 1, 2 or 4 bytes (5.2.3.2)."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, 8 * length, 0, access, port)


_NO_ADDRESS = bytes(12)
_NO_HYPERVISOR = bytes(8)


def _fadt(facs: int, dsdt: int) -> bytes:
    """The fixed description table (5.2.9): 32-bit fields first, then the same as generic addresses."""
    legacy = struct.pack(
        "<IIBBHIBBBBIIIIIIIIBBBBBBBBHHHHBBBBBHBI",
        facs,
        dsdt,
        0,
        _DESKTOP,
        acpi_pm.SCI_IRQ,
        # No SMI command port and no values to write there: the machine is in ACPI mode from the start.
        0,
        0,
        0,
        0,
        0,
        acpi_pm.PM1_STATUS,
        0,
        acpi_pm.PM1_CONTROL,
        0,
        0,
        acpi_pm.PM_TIMER,
        acpi_pm.GPE0,
        0,
        4,
        2,
        0,
        4,
        acpi_pm.GPE0_BYTES,
        0,
        0,
        0,
        _NO_C2,
        _NO_C3,
        0,
        0,
        0,
        0,
        0,
        0,
        rtc.CENTURY,
        _BOOT_FLAGS,
        0,
        _FADT_FLAGS,
    )
    extended = b"".join(
        (
            _io_address(reset.RESET_PORT, 1, 1),
            struct.pack("<B3xQQ", reset.RESET_VALUE, facs, dsdt),
            _io_address(acpi_pm.PM1_STATUS, 4, 2),
            _NO_ADDRESS,
            _io_address(acpi_pm.PM1_CONTROL, 2, 2),
            _NO_ADDRESS,
            _NO_ADDRESS,
            _io_address(acpi_pm.PM_TIMER, 4, 3),
            _io_address(acpi_pm.GPE0, acpi_pm.GPE0_BYTES, 1),
            _NO_ADDRESS,
            # Sleep control and status registers exist on hardware-reduced machines only.
            _NO_ADDRESS,
            _NO_ADDRESS,
            _NO_HYPERVISOR,
        )
    )
    return _table(b"FACP", _FADT_REVISION, legacy + extended)


def _facs() -> bytes:
    """The firmware control structure (5.2.10): no checksum, version 2, everything else zero."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _madt(cpus: int) -> bytes:
    """The interrupt controllers (5.2.12): one local APIC for each CPU, one I/O APIC, the ISA overrides."""
    local_apics = b"".join(struct.pack("<BBBBI", 0, 8, cpu, cpu, _CPU_ENABLED) for cpu in range(cpus))
    io_apic = struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC_START, 0)
    pit = struct.pack("<BBBBIH", 2, 10, 0, 0, _PIT_GSI, 0)
    sci = struct.pack("<BBBBIH", 2, 10, 0, acpi_pm.SCI_IRQ, acpi_pm.SCI_IRQ, _ACTIVE_HIGH_LEVEL)
    nmi = struct.pack("<BBBHB", 4, 6, _ALL_CPUS, _ACTIVE_HIGH_EDGE, 1)
    return _table(
        b"APIC", 3, struct.pack("<II", LAPIC_START, _PCAT_COMPATIBLE) + local_apics + io_apic + pit + sci + nmi
    )


def _mcfg() -> bytes:
    """The memory-mapped configuration window: segment 0, the buses that exist."""
    return _table(b"MCFG", 1, struct.pack("<8xQHBB4x", ECAM_START, 0, 0, _LAST_BUS))


def _hpet() -> bytes:
    """The event timer: what its capabilities say, where it is, its number, and the least that it can wait (ticks)."""
    place = struct.pack("<BBBBQ", 0, 64, 0, 0, HPET_START)
    return _table(b"HPET", 1, struct.pack("<I", hpet.EVENT_BLOCK) + place + struct.pack("<BHB", 0, _HPET_LEAST, 0))


def _osc() -> bytes:
    """The host bridge's _OSC (6.2.11): grants the operating system every PCI Express feature it may be granted."""
    return aml.method(
        "_OSC",
        4,
        aml.create_dword_field(aml.arg(3), 0, "CDW1"),
        aml.if_(
            aml.equal(aml.arg(0), aml.uuid(_OSC_PCI_UUID)),
            aml.create_dword_field(aml.arg(3), 8, "CDW3"),
            aml.and_(aml.name_string("CDW3"), aml.integer(_OSC_CONTROL_GRANTED), aml.local(0)),
            aml.if_(
                aml.not_(aml.equal(aml.local(0), aml.name_string("CDW3"))),
                aml.or_into("CDW1", _OSC_CAPABILITIES_MASKED),
            ),
            aml.store(aml.local(0), "CDW3"),
        ),
        aml.else_(aml.or_into("CDW1", _OSC_UNKNOWN_UUID)),
        aml.return_(aml.arg(3)),
    )


def _interrupt_routing() -> bytes:
    """_PRT (6.2.13): each slot's four pins, wired straight to the I/O APIC."""
    return aml.package(
        *(
            aml.package(
                aml.integer(slot << 16 | 0xFFFF), aml.integer(pin), aml.ZERO, aml.integer(intx_gsi(slot, pin + 1))
            )
            for slot in range(1, 32)
            for pin in range(4)
        )
    )


def _host_bridge(*children: bytes) -> bytes:
    windows = [aml.memory_window(window.start, window.stop - 1) for window in (range(VGA_START, 0xC0000), *PCI_WINDOWS)]
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.ZERO),
        aml.name("_SEG", aml.ZERO),
        aml.name("_BBN", aml.ZERO),
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.bus_numbers(0, _LAST_BUS),
                aml.io_ports(CONFIG_ADDRESS, 8),
                aml.io_window(0, CONFIG_ADDRESS - 1),
                aml.io_window(CONFIG_ADDRESS + 8, 0xFFFF),
                *windows,
            ),
        ),
        aml.name("_PRT", _interrupt_routing()),
        _osc(),
        *children,
    )


def _isa_device(path: str, hid: str, ports: range, line: int, *more: bytes) -> bytes:
    return aml.device(
        path,
        aml.name("_HID", aml.eisa_id(hid)),
        aml.name("_CRS", aml.resource_template(aml.io_ports(ports.start, len(ports)), aml.irq(line))),
        *more,
    )


def _dsdt() -> bytes:
    """The machine's devices that cannot be probed, and the one sleep state, S5."""
    isa_bridge = aml.device(
        "ISA",
        aml.name("_ADR", aml.integer(_LPC_SLOT << 16)),
        _isa_device("COM1", "PNP0501", range(serial.COM1, serial.COM1 + 8), serial.COM1_IRQ, aml.name("_UID", aml.ONE)),
        _isa_device("RTC", "PNP0B00", range(rtc.INDEX, rtc.INDEX + 2), rtc.RTC_IRQ),
    )
    # The ECAM window must be claimed by a motherboard device (PCI Firmware Specification 3.0, 4.1.2).
    motherboard = aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_CRS", aml.resource_template(aml.memory32_fixed(ECAM_START, ECAM_LENGTH))),
    )
    event_timer = aml.device(
        "HPET",
        aml.name("_HID", aml.eisa_id("PNP0103")),
        aml.name("_UID", aml.ZERO),
        aml.name("_CRS", aml.resource_template(aml.memory32_fixed(HPET_START, hpet.HPET_BYTES))),
    )
    sleep = aml.integer(acpi_pm.S5_SLEEP_TYPE)
    body = aml.scope("\\_SB", _host_bridge(isa_bridge), motherboard, event_timer)
    return _table(b"DSDT", 2, body + aml.name("\\_S5", aml.package(sleep, sleep, aml.ZERO, aml.ZERO)))


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    """The root pointer (5.2.5.3): a checksum over its first 20 bytes, another over all 36."""
    pointer = struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM_ID, 2, rsdt, 36, xsdt, 0)
    return _checksummed(_checksummed(pointer[:20], 8) + pointer[20:], 32)


def build_acpi(memory_map: MemoryMap, cpus: int) -> list[tuple[int, bytes]]:
    """Every table with its machine address (bytes), for a machine of `cpus` physical CPUs.

    The RSDP lies in the BIOS area, the FACS in the map's NVS range, the rest in its ACPI range. ValueError if there are
    more than 255 CPUs, or none, or the tables do not fit.
    """
    if not 1 <= cpus <= MAX_CPUS:
        raise ValueError(f"{cpus} CPUs cannot be described")
    facs_maddr = memory_map.nvs_range.start
    placed: list[tuple[int, bytes]] = []
    free = memory_map.acpi_range.start

    def place(table: bytes) -> int:
        nonlocal free
        maddr = free
        placed.append((maddr, table))
        free = (maddr + len(table) + _TABLE_ALIGNMENT - 1) & -_TABLE_ALIGNMENT
        if free > memory_map.acpi_range.stop:
            raise ValueError("the ACPI tables do not fit their range")
        return maddr

    dsdt = place(_dsdt())
    described = [place(_fadt(facs_maddr, dsdt)), place(_madt(cpus)), place(_mcfg()), place(_hpet())]
    rsdt = place(_table(b"RSDT", 1, struct.pack(f"<{len(described)}I", *described)))
    xsdt = place(_table(b"XSDT", 1, struct.pack(f"<{len(described)}Q", *described)))
    return [(RSDP_MADDR, _rsdp(rsdt, xsdt)), (facs_maddr, _facs()), *placed]
