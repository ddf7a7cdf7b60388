"""GNU Mach as a PV guest: Debian's image, and the same image without the fault that stops it under every Xen.

The image stores into its own second-level page table, which no Xen allows (only writes to first-level tables are
emulated: xen/arch/x86/pv/ro-page-fault.c). Its page-fault handler then shuts the domain down by the oldest form of
sched_op, but with the argument of the newer one: an address, whose lowest byte, 252, becomes the reason. QEMU with
Xen 4.17 ends the same image with the same reason.
"""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Final

import pytest

from tests.boot.command_line import run
from tests.boot.conftest import Kernel, Record
from tests.boot.guests import GUEST, Row
from xenolith.loader import registry

_REASON: Final = "number 252, which Xen has no name for"
_FAULTY_STORE: Final = bytes.fromhex("bf00000040 31f6 488b9000100000 488910")
"""mov $0x40000000,%edi; xor %esi,%esi; mov 0x1000(%rax),%rdx; mov %rdx,(%rax): the last three bytes are the store."""
_NOTHING: Final = bytes.fromhex("0f1f00")

_UNDEFINED: Final = bytes.fromhex("0f0b")
_PROGRAM_BASE: Final = 0x08048000


@pytest.fixture
def version(kernel: Kernel) -> str:
    kernel("mach")
    found = registry.pulled("mach")
    assert found is not None
    return found.version


@pytest.fixture
def repaired(version: str, tmp_path: Path) -> Path:
    """The image without the store."""
    found = registry.pulled("mach")
    assert found is not None
    image = gzip.decompress(found.file.read_bytes())
    assert image.count(_FAULTY_STORE) == 1, f"{version} is another image: look whether it has the fault"
    path = tmp_path / "mach"
    path.write_bytes(image.replace(_FAULTY_STORE, _FAULTY_STORE[:-3] + _NOTHING))
    return path


def modules(program: bytes) -> bytes:
    """A ramdisk as Mach wants it: a table of modules by their offsets, here one, its line, and a 32-bit ELF file."""
    headers = struct.pack("<16s2H5I6H", b"\x7fELF\1\1\1", 2, 3, 1, _PROGRAM_BASE + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    size = 84 + len(program)
    headers += struct.pack("<8I", 1, 0, _PROGRAM_BASE, _PROGRAM_BASE, size, size, 5, 4096)
    table = struct.pack("<4I", 4096, 4096 + size, 256, 0)
    return (table.ljust(256, b"\0") + b"own $(task-create) $(task-resume)").ljust(4096, b"\0") + headers + program


def test_the_image_ends_as_under_xen(kernel: Kernel, version: str, record: Record) -> None:
    ended = run("run", kernel("mach"), "--json")
    assert ended.status == 4, ended.log
    told = json.loads(ended.output)
    assert told["shutdowns"] == {"guest": _REASON}
    assert (told["crashes"], told["bugs"]) == ([], [])
    reached = "its own fault: it writes to a page table that it may not write to, before it shows anything"
    record(Row("mach", GUEST, version, reached, "it ends for the same reason (252) as under Xen 4.17"))


def test_without_its_fault_it_starts(repaired: Path, version: str, record: Record) -> None:
    """Its banner, the memory that it was given, devices asked for in xenstore; then it misses its first program."""
    ended = run("run", repaired, "--memory", "256MiB")
    assert ended.status == 4, ended.log
    assert ended.lines[0][1].startswith("GNU Mach 1.8"), ended.log
    for text in (
        "Running on xen-3.0-x86_64.",
        "000000000010000000, available",
        "hd: No block device (ENOENT)",
        "eth: No net device (ENOENT)",
        "bootstrap_create: No bootstrap code loaded with the kernel!",
    ):
        assert text in ended.output, ended.log
    reached = "its own fault: it writes to a page table that it may not write to, before it shows anything"
    checked = (
        "it ends for the same reason (252) as under Xen 4.17; with that one instruction taken out of it, it shows its"
        " banner, asks xenstore for devices, and starts a 32-bit program"
    )
    record(Row("mach", GUEST, version, reached, checked))


def test_a_32_bit_program_runs_on_its_own_descriptors(repaired: Path, tmp_path: Path) -> None:
    """Its selectors are in an LDT. It does what no program may; Mach ends it, and fails at that by a fault of its own:

    it wants to write to page tables that are still below the root of its user mode.
    """
    ramdisk = tmp_path / "modules"
    ramdisk.write_bytes(modules(_UNDEFINED))
    ended = run("run", repaired, "--ramdisk", ramdisk, "--timeout", "20")
    assert ended.status == 4, ended.log
    assert "start own: panic" in ended.output, ended.log
    assert "pmap_set_page_readwrite" in ended.output
