"""The PC: every bus, device and firmware table of one machine, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from xenolith.errors import UserError
from xenolith.machine.acpi import MAX_CPUS, build_acpi
from xenolith.machine.buses import MmioBus, PortBus
from xenolith.machine.devices.acpi_pm import PM_BASE, SCI_IRQ, AcpiPm
from xenolith.machine.devices.hpet import HPET_BYTES, Hpet
from xenolith.machine.devices.pit import Pit
from xenolith.machine.devices.reset import ResetPorts
from xenolith.machine.devices.rtc import RTC_IRQ, Rtc, cmos_contents
from xenolith.machine.devices.serial import COM1, COM1_IRQ, Serial
from xenolith.machine.e820 import (
    EBDA_START,
    ECAM_LENGTH,
    ECAM_START,
    HPET_START,
    IOAPIC_START,
    LOW_RAM_LIMIT,
    MemoryMap,
)
from xenolith.machine.interrupts import IoApic
from xenolith.machine.pci import PciBus, PciConfigPorts, PciFunction, host_bridge, lpc_bridge
from xenolith.machine.ram import PAGE_SIZE
from xenolith.machine.smbios import FIRMWARE_DATE, build_smbios

if TYPE_CHECKING:
    from xenolith.machine.clock import Clock


class SharedPorts(NamedTuple):
    """Ports of a device that several parties would program, so that a hypervisor must stand before it."""

    name: str
    ports: range
    width: int | None = None
    """The access width in bytes that is meant, where only one is; None means every access."""


SHARED_PORTS = (
    SharedPorts("pic", range(0x20, 0x22)),
    SharedPorts("pic", range(0xA0, 0xA2)),
    SharedPorts("pit", range(0x40, 0x44)),
    SharedPorts("pit", range(0x61, 0x62)),
    SharedPorts("rtc", range(0x70, 0x72)),
    SharedPorts("pci-address", range(0xCF8, 0xCF9), width=4),
    SharedPorts("pci-data", range(0xCFC, 0xD00)),
)
"""What a hypervisor arbitrates itself, as Xen does for its control domain (dom0_setup_permissions, guest_io_read)."""


class Pc:
    """A PC with `ram_bytes` of RAM and `cpus` physical CPUs. `devices` are its PCI devices by their slots (1 to 30).

    `serial_sink(data)` takes what is written to the first serial port; `power_off()` and `reset()` are called when
    software asks for them. The receiver of interrupts sets `ioapic.deliver`. UserError for an impossible size.
    """

    def __init__(
        self,
        ram_bytes: int,
        clock: Clock,
        cpus: int,
        serial_sink: Callable[[bytes], None],
        power_off: Callable[[], None],
        reset: Callable[[], None],
        devices: Mapping[int, PciFunction] | None = None,
    ) -> None:
        if not 1 <= cpus <= MAX_CPUS:
            raise UserError(f"A machine cannot have {cpus} CPUs.", f"Give it between 1 and {MAX_CPUS}.")
        self.memory_map = MemoryMap(ram_bytes)
        self.acpi_tables = build_acpi(self.memory_map, cpus)
        self.ports = PortBus()
        self.mmio = MmioBus()
        self.ioapic = IoApic()
        self.pci = PciBus(self.ports, self.mmio)
        self.pci_config = PciConfigPorts(self.pci)
        self.serial = Serial(serial_sink, self.ioapic.line(COM1_IRQ))
        self.pit = Pit(clock)
        self.hpet = Hpet(clock, lambda gsi, level: self.ioapic.line(gsi)(level))
        low_bytes = min(ram_bytes, LOW_RAM_LIMIT)
        self.rtc = Rtc(clock, self._rtc_line, cmos_contents(low_bytes, ram_bytes - low_bytes))
        self.acpi_pm = AcpiPm(clock, self.ioapic.line(SCI_IRQ), power_off)
        self._attach(ResetPorts(reset), devices or {})

    def _attach(self, reset_ports: ResetPorts, devices: Mapping[int, PciFunction]) -> None:
        self.serial.attach(self.ports, COM1)
        self.pit.attach(self.ports)
        self.rtc.attach(self.ports)
        self.acpi_pm.attach(self.ports)
        self.pci_config.attach(self.ports)
        reset_ports.attach(self.ports)
        self.mmio.claim(range(IOAPIC_START, IOAPIC_START + PAGE_SIZE), self.ioapic)
        self.mmio.claim(range(HPET_START, HPET_START + HPET_BYTES), self.hpet)
        self.mmio.claim(range(ECAM_START, ECAM_START + ECAM_LENGTH), self.pci)
        self.pci.add(host_bridge(), 0)
        self.pci.add(lpc_bridge(PM_BASE), 0x1F)
        self.pci.drive = lambda gsi, level: self.ioapic.line(gsi)(level)
        for slot, device in devices.items():
            self.pci.add(device, slot)
        self.pci.place_bars()

    def deadline(self) -> int | None:
        """The system time (ns) at which `poll` must be called for a device's interrupt to be in time, or None."""
        deadlines = (self.rtc.deadline(), self.hpet.deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def poll(self) -> None:
        """Let the devices that work by time raise what is due."""
        self.rtc.poll()
        self.hpet.poll()

    def _rtc_line(self, level: bool) -> None:
        if not self.hpet.replaces_legacy_interrupts:
            self.ioapic.line(RTC_IRQ)(level)

    def firmware(self) -> list[tuple[int, bytes]]:
        """What firmware leaves behind in memory: each piece with its machine address (bytes)."""
        return [*self.acpi_tables, *build_smbios(), *_bios_areas()]

    def install_firmware(self, memory: memoryview) -> None:
        """Write the firmware's pieces into the machine's memory (bytes, from machine address 0)."""
        for maddr, data in self.firmware():
            memory[maddr : maddr + len(data)] = data


def _bios_areas() -> list[tuple[int, bytes]]:
    """The BIOS data area, the extended one, and the last 16 bytes below 1 MiB, as software looks into them."""
    return [
        (0x400, COM1.to_bytes(2, "little")),
        (0x40E, (EBDA_START >> 4).to_bytes(2, "little")),
        (0x413, (EBDA_START >> 10).to_bytes(2, "little")),
        (EBDA_START, b"\x01"),
        # A far jump to the start of the BIOS, its date, and the model byte of a PC/AT.
        (0xFFFF0, b"\xea\x5b\xe0\x00\xf0" + FIRMWARE_DATE[:6].encode("ascii") + FIRMWARE_DATE[8:].encode("ascii")),
        (0xFFFFE, b"\xfc"),
    ]
