from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.unit.loader.elf_maker import Load, Section, make_elf, pv_notes
from xenolith.cli import inspect
from xenolith.errors import UserError

LEGACY = "GUEST_OS=Old,XEN_VER=xen-3.0,VIRT_BASE=0x40000000,HYPERCALL_PAGE=0x1,LOADER=generic"
SEGMENT = Load(0x1000, bytes(0x2000), memsz=0x3000, flags=5)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(tmp_path: Path, data: bytes, *options: str) -> Result:
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    return CliRunner().invoke(inspect.command, [str(path), *options], catch_exceptions=False)


def test_everything_is_said(tmp_path: Path) -> None:
    notes = pv_notes(0, 0x1000, PHYS32_ENTRY=0x1234, FEATURES="!writable_page_tables|dom0", GUEST_OS="linux")
    result = run(tmp_path, gzip.compress(make_elf([SEGMENT], notes)))
    assert result.exit_code == 0
    for words in (
        "compressed ELF, gzip",
        "x86-64, 64-bit",
        "0x1000  physical 0x1000  12 KiB  r-x",
        'GUEST_OS            "linux"',
        "ENTRY               0x1000",
        "requires      writable_page_tables",
        "supports      dom0, writable_page_tables",
        "PVH entry     0x1234",
        "at least 1 MiB",
        "yes: a 64-bit PV kernel",
    ):
        assert words in result.output, words
    assert "\x1b" not in result.output


def test_a_legacy_kernel(tmp_path: Path) -> None:
    image = make_elf(
        [Load(0x40000000, bytes(0x2000))], entry=0x40000000, sections=[Section("__xen_guest", 1, LEGACY.encode())]
    )
    output = run(tmp_path, image).output
    assert f"__xen_guest   {LEGACY}" in output
    assert "HYPERCALL_PAGE      0x40001000" in output
    assert "boots         yes" in output


def test_a_kernel_without_notes(tmp_path: Path) -> None:
    result = run(tmp_path, make_elf([SEGMENT]))
    assert result.exit_code == 0
    assert "Xen notes     none" in result.output
    assert "boots         no: it carries no Xen notes" in result.output
    assert "memory" not in result.output


def test_json(tmp_path: Path) -> None:
    notes = pv_notes(0, 0x1000, L1_MFN_VALID=b"\1" + bytes(15))
    record = json.loads(run(tmp_path, make_elf([SEGMENT], notes), "--json").output)
    assert (record["format"], record["compression"], record["bits"], record["entry"]) == ("ELF", None, 64, 0x1000)
    assert record["segments"] == [
        {
            "paddr": 0x1000,
            "vaddr": 0x1000,
            "file_bytes": 0x2000,
            "memory_bytes": 0x3000,
            "writable": False,
            "executable": True,
        }
    ]
    assert {"name": "L1_MFN_VALID", "value": "01" + "00" * 15} in record["notes"]
    assert (record["boots"], record["minimum_mib"], record["pvh_entry"]) == (True, 1, None)


def test_json_of_a_kernel_that_does_not_boot(tmp_path: Path) -> None:
    record = json.loads(run(tmp_path, make_elf([SEGMENT]), "--json").output)
    assert (record["boots"], record["minimum_mib"], record["notes"]) == (False, None, [])


def test_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither an ELF file nor a bzImage"):
        run(tmp_path, b"#!/bin/sh\n")
