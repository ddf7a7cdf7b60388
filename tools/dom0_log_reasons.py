"""Why the control domain's log differs from the one under real Xen, message by message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Reason:
    """`text` is the reason for every difference in a message that `pattern` (a regular expression) is found in."""

    pattern: str
    text: str


_TIMES = "Differs from run to run: a time."
_FIRMWARE = "Xenolith's own firmware tables, with what its PC has; the other side has those of QEMU's BIOS."
_LAYOUT = "Each machine has its own memory map."
_TSC = "Xenolith's time stamp counter runs at 1 GHz on every host."
_PROCESSOR = "Xenolith shows another processor: what its engine can do, of a model that does not speculate."
_BUSES = "Xenolith's PC has one PCI bus, without hot plug."
_NO_PS2 = "Xenolith's PC has neither keyboard nor mouse."
_NO_DISK = "Xenolith's PC has no disk controller and no SMBus."
_NO_LINKS = "Xenolith's PC has no device that uses a PCI interrupt line."

REASONS: Final[tuple[Reason, ...]] = (
    Reason(r"^(audit: type=|sched_clock: Marking|node 0 deferred pages|rtc_cmos .*setting system clock)", _TIMES),
    Reason(r"^clocksource: Long readout interval", "Comes and goes: the host was busy with other things for a second."),
    Reason(
        r"^(Kernel c|C)ommand line: ",
        "With one vCPU Xenolith adds noreplace-smp: patching out lock prefixes would take longer than they cost.",
    ),
    Reason(r"^Memory: ", "Differs from run to run by a few KiB; and the ramdisks lie at other places."),
    Reason(r"^RAMDISK: ", "The builders leave different room between kernel and ramdisk; both are allowed."),
    Reason(r"^Xen: \[mem ", _LAYOUT),
    Reason(r"available for PCI devices$", _LAYOUT),
    Reason(r"^PCI: MMCONFIG|has been reserved$", "The PCI configuration area lies elsewhere, and covers one bus."),
    Reason(r"^pci_bus .* resource.*(window|\[bus)", "Each machine has its own windows for PCI devices."),
    Reason(r"^DMI: ", "Each machine says what it is."),
    Reason(r"^Xen version: ", "Xenolith says what it is."),
    Reason(r"^ACPI: (RSDP|RSDT|XSDT|FACP|DSDT|FACS|APIC|MCFG|HPET|WAET) ", _FIRMWARE),
    Reason(r"^ACPI: Reserving ", _FIRMWARE),
    Reason(r"^ACPI: PM: Registering ACPI NVS", _FIRMWARE),
    Reason(r"^ACPI: LAPIC_NMI", "The firmware tables say how an interrupt is wired that no machine raises."),
    Reason(r"^ACPI: INT_SRC_OVR", _NO_LINKS),
    Reason(r"^ACPI: PCI: Interrupt link", _NO_LINKS),
    Reason(r"^ACPI: Enabled \d+ GPEs", "Xenolith's PC raises no general-purpose events."),
    Reason(r"^ACPI: PM: \(supports|RTC can wake", "Xenolith's PC can be switched off, but does not sleep."),
    Reason(r"^ACPI: PCI Root Bridge", _BUSES),
    Reason(r"_OSC: (platform|OS now)", _BUSES),
    Reason(r"^PCI: (Ignoring|Using) E820 reservations", "Linux decides that by the year of the BIOS."),
    Reason(r"^pnp: PnP ACPI: found", "Without keyboard and mouse there are two devices fewer."),
    Reason(r"^rtc_cmos .* registered as", "Without keyboard and mouse the clock is the second device."),
    Reason(r"^rtc_cmos .* nvram", "The clock chip has 128 bytes of memory, as the original; QEMU's has 256."),
    Reason(r"^(i8042|serio|input): ", _NO_PS2),
    Reason(r"^xen: registering gsi (1|12) ", _NO_PS2),
    Reason(r"^pci 0000:00:1f\.[23]", _NO_DISK),
    Reason(r"GSI :4$|ttyS0 at", "Real Xen uses the serial port itself; Xenolith leaves it to the control domain."),
    Reason(
        r"PM-Timer failed|clocksource: acpi_pm", "Real Xen keeps the PM timer for itself; Xenolith has no use for it."
    ),
    Reason(
        r"^tsc: Fast TSC calibration",
        "Linux tries the interval timer first, in vain on both sides, and then takes the frequency that Xen tells.",
    ),
    Reason(r"^tsc: Detected|^clocksource: tsc|^Calibrating delay", _TSC),
    Reason(r"^Last level [id]TLB", _PROCESSOR),
    Reason(r"^Spectre V", _PROCESSOR),
    Reason(r"^Performance Events|^intel_pstate", _PROCESSOR),
    Reason(r"^AGP: ", "Linux looks for the bridge on an AMD processor only; Xenolith's is none."),
    Reason(r"^x86/fpu: |max sigframe size", "Without AVX the engine needs no XSAVE, and the frames are smaller."),
    Reason(
        r"^Console: colour",
        "Neither machine has a display. Xenolith says so to Linux; real Xen says nothing, and Linux drives one.",
    ),
)
