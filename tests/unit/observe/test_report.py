"""Crash reports: symbols from the files that people have, and one text that says what happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.hypervisor.support import KERNEL_BASE, Bench
from tests.unit.loader.elf_maker import Section, make_elf
from xenolith.errors import UserError
from xenolith.hypervisor.crash import CrashReport, describe
from xenolith.observe.report import Symbols, as_dict, render

MAP = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000040 T start_kernel
ffffffff81000040 t alias
not a line of a map
ffffffff82000000 D data_of_the_kernel
"""


@pytest.fixture
def system_map(tmp_path: Path) -> Symbols:
    path = tmp_path / "System.map"
    path.write_text(MAP)
    return Symbols.read(path)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0xFFFF_FFFF_8100_0000, " _stext+0x0"),
        (0xFFFF_FFFF_8100_003F, " _stext+0x3f"),
        (0xFFFF_FFFF_8200_0010, " data_of_the_kernel+0x10"),
        (0xFFFF_FFFF_8300_0000, ""),
        (0x10, " fixed_percpu_data+0x10"),
        (0xFFFF_8000_0000_0000, ""),
    ],
)
def test_names_of_addresses(system_map: Symbols, address: int, name: str) -> None:
    assert system_map.name(address) == name


def test_an_address_before_the_first_symbol_has_no_name() -> None:
    assert Symbols([(100, "first")]).name(99) == ""
    assert Symbols().name(5) == ""


@given(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.text("abc", min_size=1, max_size=3)), max_size=20),
    st.integers(0, 1 << 20),
)
def test_the_nearest_symbol_at_or_below_is_named(symbols: list[tuple[int, str]], address: int) -> None:
    below = [pair for pair in symbols if pair[0] <= address]
    name = Symbols(symbols).name(address)
    if below:
        start, expected = max(below)
        assert name == f" {expected}+{address - start:#x}"
    else:
        assert name == ""


def vmlinux() -> bytes:
    """An ELF file with a symbol table of two names."""
    names = b"\0startup\0idle\0"
    symbols = bytes(24)
    for name, value in ((1, KERNEL_BASE), (9, KERNEL_BASE + 0x100)):
        symbols += name.to_bytes(4, "little") + bytes([0x12, 0]) + b"\1\0" + value.to_bytes(8, "little") + bytes(8)
    return make_elf([], sections=[Section(".symtab", 2, symbols, link=2), Section(".strtab", 3, names)])


def test_symbols_of_an_elf_file(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux())
    assert Symbols.read(path).name(KERNEL_BASE + 0x104) == " idle+0x4"


@pytest.mark.parametrize("data", [b"", b"no symbols here", bytes(range(256)), b"\x7fELF", vmlinux()[:70]])
def test_a_file_without_symbols_is_the_users_mistake(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "symbols"
    path.write_bytes(data)
    with pytest.raises(UserError):
        Symbols.read(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            Symbols.read(path)


# -- the report --------------------------------------------------------------------------------------------------------


@pytest.fixture
def report() -> CrashReport:
    hv = Bench()
    guest = hv.guest()
    guest.put(guest.va(1, 4096 - 24), [1, 0xFFFF_FFFF_8100_0044, 3])
    guest.execute(b"\x0f\x0b", r4=guest.va(1, 4096 - 24), r0=0xABCD)
    guest.vcpu.last_hypercalls.append(1, (0x10, 2, 3, 4))
    guest.vcpu.last_hypercalls.append(63, (1, 2, 3, 4))
    hv.last_refusal = "d0v0: EINVAL: frame 0x7 is free"
    return describe(hv, guest.vcpu, "unhandled #UD")


def test_a_report_for_people(report: CrashReport, system_map: Symbols) -> None:
    text = render(report, system_map)
    lines = text.splitlines()
    assert lines[0] == "xenolith: d0v0 (guest) crashed: unhandled #UD"
    assert f"in kernel mode at {KERNEL_BASE + 0x1000:#x}" in lines[1]
    assert "rax 000000000000abcd" in text
    assert "code: 0f 0b" in text
    assert "ffffffff81000044 start_kernel+0x4" in text
    assert "mmu_update(0x10, 0x2, 0x3, 0x4)" in text
    assert "hypercall 63" in text
    assert "last rule broken: d0v0: EINVAL: frame 0x7 is free" in text


def test_a_report_for_programs(report: CrashReport) -> None:
    again = json.loads(json.dumps(as_dict(report)))
    assert again["registers"]["rax"] == 0xABCD
    assert again["code"].startswith("0f0b")
    assert again["reason"] == "unhandled #UD"


def test_a_report_of_a_guest_of_which_nothing_can_be_read() -> None:
    hv = Bench()
    guest = hv.guest()
    guest.cpu.regs[16], guest.cpu.regs[4] = 0x8000_0000_0000_0000, (1 << 64) - 8
    guest.vcpu.last_hypercalls.clear()
    hv.last_refusal = ""
    text = render(describe(hv, guest.vcpu, "x"), Symbols())
    assert "code: cannot be read" in text
    assert "the stack cannot be read" in text
    assert "last hypercalls" not in text
    assert "last rule broken" not in text
