"""The ACPI tables: found as an operating system finds them, consistent, and accepted by the reference disassembler."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from xenolith.machine.acpi import MAX_CPUS, build_acpi
from xenolith.machine.e820 import GIB, MIB, MIN_RAM, MemoryMap

IASL = os.environ.get("IASL") or shutil.which("iasl")


class Firmware:
    """The tables, read through the RSDP by address as an operating system reads them."""

    def __init__(self, ram_bytes: int = 512 * MIB, cpus: int = 2) -> None:
        self.map = MemoryMap(ram_bytes)
        self.placed = dict(build_acpi(self.map, cpus))
        self.rsdp = next(data for maddr, data in self.placed.items() if 0xE0000 <= maddr < 0x100000 and not maddr % 16)
        rsdt, xsdt = struct.unpack_from("<I4xQ", self.rsdp, 16)
        self.root = self.placed[xsdt]
        self.old_root = self.placed[rsdt]
        addresses = struct.unpack(f"<{(len(self.root) - 36) // 8}Q", self.root[36:])
        assert struct.unpack(f"<{(len(self.old_root) - 36) // 4}I", self.old_root[36:]) == addresses
        self.tables = {self.placed[maddr][:4].decode(): self.placed[maddr] for maddr in addresses}
        facs, dsdt = struct.unpack_from("<II", self.tables["FACP"], 36)
        assert struct.unpack_from("<QQ", self.tables["FACP"], 132) == (facs, dsdt)
        self.facs_maddr, self.facs = facs, self.placed[facs]
        self.tables["DSDT"] = self.placed[dsdt]


def test_the_root_pointer_has_both_checksums() -> None:
    rsdp = Firmware().rsdp
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) % 256 == 0
    assert sum(rsdp) % 256 == 0
    assert len(rsdp) == struct.unpack_from("<I", rsdp, 20)[0] == 36


@pytest.mark.parametrize("ram_bytes", [MIN_RAM, 512 * MIB, 6 * GIB])
@pytest.mark.parametrize("cpus", [1, 8, MAX_CPUS])
def test_every_table_is_whole_and_in_its_range(ram_bytes: int, cpus: int) -> None:
    firmware = Firmware(ram_bytes, cpus)
    assert set(firmware.tables) == {"FACP", "APIC", "MCFG", "HPET", "DSDT"}
    for table in (firmware.root, firmware.old_root, *firmware.tables.values()):
        assert sum(table) % 256 == 0
        assert struct.unpack_from("<I", table, 4)[0] == len(table)
    end = 0
    for maddr, data in sorted(firmware.placed.items()):
        assert maddr >= end
        end = maddr + len(data)
        inside = firmware.map.nvs_range if data is firmware.facs else firmware.map.acpi_range
        assert data is firmware.rsdp or (maddr in inside and end - 1 in inside)


def test_the_facs_is_aligned_and_has_its_length() -> None:
    firmware = Firmware()
    assert firmware.facs_maddr % 64 == 0
    assert struct.unpack_from("<4sI", firmware.facs) == (b"FACS", 64)
    assert len(firmware.facs) == 64


def test_the_fadt_names_the_same_blocks_twice() -> None:
    fadt = Firmware().tables["FACP"]
    assert len(fadt) == 276
    blocks = {56: (88, 148), 64: (89, 172), 76: (91, 208), 80: (92, 220)}
    for port_at, (length_at, generic_at) in blocks.items():
        space, bits, offset, _, address = struct.unpack_from("<BBBBQ", fadt, generic_at)
        assert (space, offset) == (1, 0)
        assert address == struct.unpack_from("<I", fadt, port_at)[0]
        assert bits == 8 * fadt[length_at]
    assert struct.unpack_from("<I", fadt, 48)[0] == 0, "no SMI command port: the machine is in ACPI mode already"
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, 0xCF9, 6)


@pytest.mark.parametrize("cpus", [1, 4])
def test_the_madt_lists_each_cpu_and_the_interrupt_controller(cpus: int) -> None:
    madt = Firmware(cpus=cpus).tables["APIC"]
    entries: list[tuple[int, bytes]] = []
    at = 44
    while at < len(madt):
        entries.append((madt[at], madt[at : at + madt[at + 1]]))
        at += madt[at + 1]
    assert at == len(madt)
    assert [struct.unpack_from("<BBI", entry, 2) for kind, entry in entries if kind == 0] == [
        (cpu, cpu, 1) for cpu in range(cpus)
    ]
    assert [struct.unpack_from("<II", entry, 4) for kind, entry in entries if kind == 1] == [(0xFEC00000, 0)]
    overrides = {entry[3]: struct.unpack_from("<IH", entry, 4) for kind, entry in entries if kind == 2}
    assert overrides == {0: (2, 0), 9: (9, 0xD)}


def test_the_mcfg_window_is_the_maps() -> None:
    mcfg = Firmware().tables["MCFG"]
    base, segment, first, last = struct.unpack_from("<QHBB", mcfg, 44)
    assert (base, segment, first) == (0xE0000000, 0, 0)
    reserved = [entry for entry in MemoryMap(512 * MIB).entries if entry.start == base]
    assert [entry.length for entry in reserved] == [(last + 1) * MIB]


@pytest.mark.parametrize("cpus", [0, MAX_CPUS + 1])
def test_cpus_that_cannot_be_described_are_refused(cpus: int) -> None:
    with pytest.raises(ValueError, match="CPUs"):
        build_acpi(MemoryMap(64 * MIB), cpus)


def disassemble(table: bytes, name: str, folder: Path) -> str:
    """The table's source as the reference tool prints it. The tool must not complain."""
    if IASL is None:
        pytest.skip("iasl is not here (Debian: acpica-tools); IASL may name it")
    (folder / f"{name}.aml").write_bytes(table)
    done = subprocess.run([IASL, "-d", f"{name}.aml"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"error|warning|invalid", done.stdout + done.stderr, re.IGNORECASE), done.stderr
    return (folder / f"{name}.dsl").read_text()


@pytest.mark.parametrize("name", ["FACP", "APIC", "MCFG", "DSDT"])
def test_the_reference_disassembler_reads_the_tables(name: str, tmp_path: Path) -> None:
    text = disassemble(Firmware().tables[name], name, tmp_path)
    assert not re.search(r"middle of a data structure|incorrect checksum|invalid|Unknown", text, re.IGNORECASE)


def test_the_dsdt_compiles_again_without_a_remark_and_says_what_the_machine_has(tmp_path: Path) -> None:
    text = disassemble(Firmware().tables["DSDT"], "DSDT", tmp_path)
    for part in ('EisaId ("PNP0A08")', 'EisaId ("PNP0501")', 'EisaId ("PNP0B00")', "_S5", "_PRT", "_OSC", "0x03F8"):
        assert part in text
    assert IASL is not None
    done = subprocess.run([IASL, "DSDT.dsl"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "0 Errors, 0 Warnings, 0 Remarks" in done.stdout, done.stdout
