"""Privileged instructions, each given as its bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.hypervisor.conftest import StandIn
from tests.unit.hypervisor.fake_cpu import FakeCpu
from xenolith.cpu.registers import (
    CS,
    DF,
    DS,
    ES,
    FS,
    MASK64,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    RIP,
    RSI,
    TF,
)
from xenolith.hypervisor import emulate, msr
from xenolith.hypervisor.vcpu import INFO_CR2, Vcpu

TSC_NOW = 0x12_3456_789A
CR0_VALUE = 0x8005_0033
CR4_VALUE = 0x660
CODE32 = 0x00CF_FB00_0000_FFFF
DATA_64K = 0x0000_F300_0000_FFFF
READ_ONLY = 0x0000_F100_0000_FFFF


class Ports:
    """A device behind every port: reads count up, writes are kept."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []
        self.next = 0x11

    def read(self, port: int, size: int) -> int:
        value, self.next = self.next, self.next + 0x11
        return value

    def write(self, port: int, size: int, value: int) -> None:
        self.written.append((port, size, value))


@pytest.fixture
def machine(hv: StandIn) -> Any:
    machine: Any = hv
    machine.descriptors = SimpleNamespace(table={}, drop_ldt=lambda vcpu: None)
    machine.descriptors.lookup = lambda vcpu, selector: machine.descriptors.table.get(selector, 0)
    machine.pc = SimpleNamespace(ports=Ports())
    machine.tsc = lambda: TSC_NOW
    machine.roots = []
    machine.load_root = machine.roots.append
    answers = {(1, 2): (0x1A, 0x2B, 0x3C, 0x4D)}
    policy = SimpleNamespace(
        query=lambda leaf, subleaf: answers.get((leaf, subleaf), (0, 0, 0, 0)),
        xcr0_mask=0,
        state_size=lambda xcr0: 576 if xcr0 == 1 else 832,
    )
    machine.cpuid_for = lambda domain: policy
    return machine


@pytest.fixture
def vcpu(machine: Any) -> Vcpu:
    """A guest kernel with its code in its second frame, every port, and I/O privilege."""
    domain = machine.create(1)
    domain.port_ranges = [(0, 0xFFFF)]
    vcpu: Vcpu = domain.vcpus[0]
    vcpu.cpu = FakeCpu()  # type: ignore[assignment]
    vcpu.iopl = 1
    return vcpu


def code_at(machine: Any, vcpu: Vcpu) -> int:
    return int(machine.memory_of(vcpu.domain)[1]) << 12


def data_at(machine: Any, vcpu: Vcpu) -> int:
    return int(machine.memory_of(vcpu.domain)[2]) << 12


def run(machine: Any, vcpu: Vcpu, code: str, attempt: emulate.Attempt = emulate.privileged) -> bool:
    """Emulate `code`; a true answer has moved RIP past it, a false one left it where it was."""
    start = code_at(machine, vcpu)
    binary = bytes.fromhex(code)
    machine.ram.bytes[start : start + 16] = binary.ljust(16, b"\x90")
    vcpu.cpu.regs[RIP] = start
    done = attempt(machine, vcpu)
    assert vcpu.cpu.regs[RIP] == start + (len(binary) if done else 0)
    return done


# -- what is not emulated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("f4", "hlt"),
        ("0f08", "invd"),
        ("0f0138", "invlpg [rax]"),
        ("0f0110", "lgdt [rax]"),
        ("0f00d8", "ltr ax"),
        ("0f01f8", "swapgs"),
        ("0f33", "rdpmc"),
        ("cf", "iret"),
        ("9d", "popf"),
        ("440f20c0", "mov rax, cr8"),
        ("0f22c8", "mov cr1, rax"),
        ("f00fa2", "lock cpuid"),
        ("90", "nop"),
        ("06", "invalid in 64-bit mode"),
    ],
)
def test_left_to_the_guest(machine: Any, vcpu: Vcpu, code: str, name: str) -> None:
    assert not run(machine, vcpu, code), name


def test_code_that_cannot_be_fetched(machine: Any, vcpu: Vcpu) -> None:
    vcpu.cpu.regs[RIP] = 1 << 40
    assert not emulate.privileged(machine, vcpu)


@pytest.mark.parametrize("code", ["0f20c0", "0f22c0", "0f21f8", "0f23f8", "0f32", "0f30", "0f06", "0f09"])
def test_user_mode_is_not_privileged(machine: Any, vcpu: Vcpu, code: str) -> None:
    vcpu.kernel_mode = False
    vcpu.cpu.regs[RCX] = msr.EFER
    assert not run(machine, vcpu, code)


# -- interrupt flag ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["fa", "fb"])
def test_cli_and_sti_follow_the_io_privilege(machine: Any, vcpu: Vcpu, code: str) -> None:
    mask = machine.ram.bytes[vcpu.info_maddr + 1]
    assert run(machine, vcpu, code)
    assert machine.ram.bytes[vcpu.info_maddr + 1] == mask
    vcpu.iopl = 0
    assert not run(machine, vcpu, code)


# -- control and debug registers --------------------------------------------------------------------------------------


def test_cr0_shows_and_takes_task_switched(machine: Any, vcpu: Vcpu) -> None:
    assert run(machine, vcpu, "0f20c0")
    assert vcpu.cpu.regs[RAX] == CR0_VALUE
    vcpu.cpu.regs[RAX] |= 8
    assert run(machine, vcpu, "0f22c0")
    assert vcpu.cpu.task_switched
    assert run(machine, vcpu, "0f20c3")
    assert vcpu.cpu.regs[RBX] == CR0_VALUE | 8
    assert run(machine, vcpu, "0f06")
    assert not vcpu.cpu.task_switched


def test_cr0_has_nothing_else_to_change(machine: Any, vcpu: Vcpu) -> None:
    vcpu.cpu.regs[RAX] = CR0_VALUE & ~(1 << 16)
    assert not run(machine, vcpu, "0f22c0")


def test_cr2_is_the_vcpus(machine: Any, vcpu: Vcpu) -> None:
    vcpu.cpu.regs[RAX] = 0x1234_5678_9ABC
    assert run(machine, vcpu, "0f22d0")
    assert machine.ram.words[(vcpu.info_maddr + INFO_CR2) >> 3] == 0x1234_5678_9ABC
    assert run(machine, vcpu, "0f20d1")
    assert vcpu.cpu.regs[RCX] == 0x1234_5678_9ABC


def test_cr3_is_the_kernels_root(machine: Any, vcpu: Vcpu) -> None:
    vcpu.kernel_root = 0x5000
    assert run(machine, vcpu, "410f20df")
    assert vcpu.cpu.regs[15] == 0x5000


def test_writing_the_same_cr3_flushes(machine: Any, vcpu: Vcpu) -> None:
    vcpu.kernel_root = vcpu.cpu.regs[RAX] = 0x5000
    assert run(machine, vcpu, "0f22d8")
    assert machine.roots == [0x5000]


def test_cr3_does_not_take_what_is_no_page_table(machine: Any, vcpu: Vcpu) -> None:
    vcpu.kernel_root = 0x5000
    vcpu.cpu.regs[RAX] = 1 << 40
    assert not run(machine, vcpu, "0f22d8")
    assert vcpu.kernel_root == 0x5000


def test_cr4_shows_xens_bits_and_takes_few(machine: Any, vcpu: Vcpu) -> None:
    assert run(machine, vcpu, "0f20e0")
    assert vcpu.cpu.regs[RAX] == CR4_VALUE
    vcpu.cpu.regs[RAX] = MASK64
    assert run(machine, vcpu, "0f22e0")
    assert run(machine, vcpu, "0f20e0")
    assert vcpu.cpu.regs[RAX] == CR4_VALUE | 1 << 2 | 1 << 3


def test_debug_registers(machine: Any, vcpu: Vcpu) -> None:
    vcpu.cpu.regs[RAX] = 0x40_0000
    assert run(machine, vcpu, "0f23c0")
    assert run(machine, vcpu, "0f21c3")
    assert vcpu.cpu.regs[RBX] == 0x40_0000
    vcpu.cpu.regs[RAX] = 1 << 13
    assert not run(machine, vcpu, "0f23f8")


def test_debug_registers_that_do_not_exist(machine: Any, vcpu: Vcpu) -> None:
    vcpu.cr4 = 1 << 3
    for code in ("0f21e0", "0f23e8"):
        with pytest.raises(emulate.GuestFault) as caught:
            run(machine, vcpu, code)
        assert caught.value.vector == 6


# -- model-specific registers, time, identification -------------------------------------------------------------------


def test_rdmsr_and_wrmsr_use_edx_and_eax(machine: Any, vcpu: Vcpu) -> None:
    regs = vcpu.cpu.regs
    regs[RCX] = 0xDEAD_BEEF_0000_0000 | msr.GS_BASE
    regs[RAX], regs[RDX] = 0xAAAA_AAAA_8100_0000, 0xBBBB_BBBB_FFFF_FFFF
    assert run(machine, vcpu, "0f30")
    assert vcpu.cpu.gs_base == 0xFFFF_FFFF_8100_0000
    regs[RAX] = regs[RDX] = MASK64
    assert run(machine, vcpu, "0f32")
    assert (regs[RAX], regs[RDX]) == (0x8100_0000, 0xFFFF_FFFF)


def test_refused_registers_are_the_guests_fault(machine: Any, vcpu: Vcpu) -> None:
    vcpu.traps[13].address = 1
    vcpu.cpu.regs[RCX] = 0xC001_0055
    assert not run(machine, vcpu, "0f32")
    assert not run(machine, vcpu, "0f30")


def test_rdtsc(machine: Any, vcpu: Vcpu) -> None:
    assert run(machine, vcpu, "0f31")
    assert (vcpu.cpu.regs[RDX], vcpu.cpu.regs[RAX]) == (TSC_NOW >> 32, TSC_NOW & 0xFFFF_FFFF)


def test_rdtscp_tells_the_processors_number(machine: Any, vcpu: Vcpu) -> None:
    msr.write(machine, vcpu, msr.TSC_AUX, 7)
    assert run(machine, vcpu, "0f01f9")
    assert vcpu.cpu.regs[RCX] == 7


def test_time_stamp_disable_holds_for_user_mode(machine: Any, vcpu: Vcpu) -> None:
    vcpu.cr4 = emulate.CR4_TSD
    assert run(machine, vcpu, "0f31")
    vcpu.kernel_mode = False
    assert not run(machine, vcpu, "0f31")
    assert not run(machine, vcpu, "0f01f9")


@pytest.mark.parametrize(
    ("code", "attempt"), [("0fa2", emulate.privileged), ("0f0b78656e0fa2", emulate.invalid_opcode)]
)
def test_cpuid(machine: Any, vcpu: Vcpu, code: str, attempt: emulate.Attempt) -> None:
    regs = vcpu.cpu.regs
    regs[RAX], regs[RCX] = 0xFFFF_FFFF_0000_0001, 0xFFFF_FFFF_0000_0002
    assert run(machine, vcpu, code, attempt)
    assert tuple(regs[register] for register in (RAX, RBX, RCX, RDX)) == (0x1A, 0x2B, 0x3C, 0x4D)


@pytest.mark.parametrize("code", ["0f0b", "0f0b78656e0f31", "0f0b78656f0fa2", "0fff"])
def test_other_invalid_opcodes_are_the_guests(machine: Any, vcpu: Vcpu, code: str) -> None:
    assert not run(machine, vcpu, code, emulate.invalid_opcode)


def test_prefix_at_the_end_of_what_is_mapped(machine: Any, vcpu: Vcpu) -> None:
    end = machine.ram.size
    machine.ram.bytes[end - 5 : end] = b"\x0f\x0bxen"
    vcpu.cpu.regs[RIP] = end - 5
    assert not emulate.invalid_opcode(machine, vcpu)


def test_wbinvd_does_nothing(machine: Any, vcpu: Vcpu) -> None:
    assert run(machine, vcpu, "0f09")


def test_xsetbv_does_not_exist_without_osxsave(machine: Any, vcpu: Vcpu) -> None:
    with pytest.raises(emulate.GuestFault) as caught:
        run(machine, vcpu, "0f01d1")
    assert caught.value.vector == 6


def with_xsave(machine: Any, vcpu: Vcpu, mask: int) -> list[int]:
    machine.cpuid_for(vcpu.domain).xcr0_mask = mask
    vcpu.cr4 = emulate.CR4_OSXSAVE
    values: list[int] = []
    vcpu.cpu.set_xcr0 = values.append
    return values


def test_xsetbv_switches_state_on(machine: Any, vcpu: Vcpu) -> None:
    values = with_xsave(machine, vcpu, 7)
    vcpu.cpu.regs[RAX] = 7
    assert run(machine, vcpu, "0f01d1")
    assert values == [7]
    assert vcpu.xcr0 == 7


@pytest.mark.parametrize(("value", "index"), [(0, 0), (4, 0), (5, 0), (0xF, 0), (0xE7, 0), (7, 1), (1 << 33 | 1, 0)])
def test_xsetbv_refuses_state_that_there_is_not(machine: Any, vcpu: Vcpu, value: int, index: int) -> None:
    values = with_xsave(machine, vcpu, 7)
    regs = vcpu.cpu.regs
    regs[RAX], regs[RDX], regs[RCX] = value & 0xFFFFFFFF, value >> 32, index
    assert not run(machine, vcpu, "0f01d1")
    assert values == []
    assert vcpu.xcr0 == 1


def test_a_program_cannot_xsetbv(machine: Any, vcpu: Vcpu) -> None:
    values = with_xsave(machine, vcpu, 7)
    vcpu.kernel_mode = False
    vcpu.cpu.regs[RAX] = 7
    assert not run(machine, vcpu, "0f01d1")
    assert values == []


def test_a_single_step_traps_after_the_instruction(machine: Any, vcpu: Vcpu) -> None:
    vcpu.cpu.flags |= TF
    with pytest.raises(emulate.GuestFault) as caught:
        run(machine, vcpu, "0f06")
    assert caught.value.vector == 1
    assert vcpu.cpu.regs[RIP] == code_at(machine, vcpu) + 2
    assert vcpu.debug[6] >> 14 & 1


# -- ports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "result"),
    [("e480", 0x1122_3344_5566_7711), ("66ed", 0x1122_3344_5566_0011), ("ed", 0x11), ("e580", 0x11)],
)
def test_in_changes_what_it_reads(machine: Any, vcpu: Vcpu, code: str, result: int) -> None:
    vcpu.cpu.regs[RAX] = 0x1122_3344_5566_7788
    vcpu.cpu.regs[RDX] = 0xFFFF_0080
    assert run(machine, vcpu, code)
    assert vcpu.cpu.regs[RAX] == result


@pytest.mark.parametrize(
    ("code", "written"),
    [
        ("e680", (0x80, 1, 0x88)),
        ("66ef", (0x3F8, 2, 0x7788)),
        ("ef", (0x3F8, 4, 0x5566_7788)),
        ("ee", (0x3F8, 1, 0x88)),
    ],
)
def test_out(machine: Any, vcpu: Vcpu, code: str, written: tuple[int, int, int]) -> None:
    vcpu.cpu.regs[RAX] = 0x1122_3344_5566_7788
    vcpu.cpu.regs[RDX] = 0xFFFF_03F8
    assert run(machine, vcpu, code)
    assert machine.pc.ports.written == [written]


@pytest.mark.parametrize("code", ["e480", "e680", "ec", "ee", "6c", "6e", "f36c", "f36e"])
def test_no_io_without_privilege(machine: Any, vcpu: Vcpu, code: str) -> None:
    vcpu.iopl = 0
    assert not run(machine, vcpu, code)
    assert not machine.pc.ports.written


def test_rep_ins(machine: Any, vcpu: Vcpu) -> None:
    at, regs = data_at(machine, vcpu), vcpu.cpu.regs
    regs[RCX], regs[RDI], regs[RDX] = 3, at, 0x80
    assert run(machine, vcpu, "f3666d")
    assert bytes(machine.ram.bytes[at : at + 8]) == b"\x11\x00\x22\x00\x33\x00\x00\x00"
    assert (regs[RCX], regs[RDI]) == (0, at + 6)


def test_rep_outs_downwards(machine: Any, vcpu: Vcpu) -> None:
    at, regs = data_at(machine, vcpu), vcpu.cpu.regs
    machine.ram.bytes[at : at + 3] = b"abc"
    regs[RCX], regs[RSI], regs[RDX] = 3, at + 2, 0x80
    vcpu.cpu.flags |= DF
    assert run(machine, vcpu, "f36e")
    assert machine.pc.ports.written == [(0x80, 1, byte) for byte in b"cba"]
    assert (regs[RCX], regs[RSI]) == (0, at - 1)


def test_outs_uses_the_segment_prefix(machine: Any, vcpu: Vcpu) -> None:
    at = data_at(machine, vcpu)
    machine.ram.words[at >> 3] = 0x0403_0201
    vcpu.cpu.fs_base = at - 16
    vcpu.cpu.regs[RSI], vcpu.cpu.regs[RDX] = 16, 0x80
    assert run(machine, vcpu, "646f")
    assert machine.pc.ports.written == [(0x80, 4, 0x0403_0201)]


def test_rep_with_nothing_to_do_touches_nothing(machine: Any, vcpu: Vcpu) -> None:
    vcpu.cpu.regs[RDI] = 1 << 40
    assert run(machine, vcpu, "f36c")
    assert machine.pc.ports.next == 0x11


def test_a_long_repetition_is_cut_and_goes_on(machine: Any, vcpu: Vcpu) -> None:
    at, regs = data_at(machine, vcpu), vcpu.cpu.regs
    start = code_at(machine, vcpu)
    machine.ram.bytes[start : start + 2] = b"\xf3\x6e"
    regs[RIP], regs[RCX], regs[RSI], regs[RDX] = start, 1500, at, 0x80
    assert emulate.privileged(machine, vcpu)
    assert (regs[RIP], regs[RCX], regs[RSI]) == (start, 1500 - 1024, at + 1024)
    assert emulate.privileged(machine, vcpu)
    assert (regs[RIP], regs[RCX], regs[RSI]) == (start + 2, 0, at + 1500)
    assert len(machine.pc.ports.written) == 1500


def test_a_fault_in_the_middle_says_where_and_can_go_on(machine: Any, vcpu: Vcpu) -> None:
    regs, end = vcpu.cpu.regs, machine.ram.size
    regs[RCX], regs[RDI], regs[RDX] = 4, end - 2, 0x80
    with pytest.raises(emulate.GuestFault) as caught:
        run(machine, vcpu, "f36c")
    assert (caught.value.vector, caught.value.error_code, caught.value.address) == (14, 2, end)
    assert (regs[RCX], regs[RDI]) == (2, end)
    assert regs[RIP] == code_at(machine, vcpu)


def test_a_fault_across_a_page_is_at_the_second_page(machine: Any, vcpu: Vcpu) -> None:
    vcpu.cpu.regs[RSI], vcpu.cpu.regs[RDX] = machine.ram.size - 2, 0x80
    with pytest.raises(emulate.GuestFault) as caught:
        run(machine, vcpu, "6f")
    assert (caught.value.vector, caught.value.error_code, caught.value.address) == (14, 0, machine.ram.size)


@pytest.mark.parametrize("address", [0xFFFF_8000_0000_0000, 0xFFFF_87FF_FFFF_FFFF, 0x0000_8000_0000_0000])
def test_the_hypervisors_range_is_no_place_to_read(machine: Any, vcpu: Vcpu, address: int) -> None:
    vcpu.cpu.regs[RSI] = address
    with pytest.raises(emulate.GuestFault) as caught:
        run(machine, vcpu, "6e")
    assert caught.value.vector == 13


# -- 32-bit code ------------------------------------------------------------------------------------------------------


@pytest.fixture
def user32(machine: Any, vcpu: Vcpu) -> Vcpu:
    """The same guest in 32-bit user code that may do I/O, with data segments of 64 KiB at its third frame."""
    vcpu.kernel_mode, vcpu.iopl = False, 3
    base = data_at(machine, vcpu)
    segment = DATA_64K | (base & 0xFF_FFFF) << 16
    machine.descriptors.table |= {0x23: CODE32, 0x2B: segment, 0x33: READ_ONLY}
    vcpu.cpu.selectors = {CS: 0x23, DS: 0x2B, ES: 0x2B, FS: 0x33}  # type: ignore[attr-defined]
    return vcpu


def test_32_bit_code_decodes_as_such(machine: Any, user32: Vcpu) -> None:
    user32.cpu.regs[RDX] = 0x3F8
    assert run(machine, user32, "6766ed")
    assert not run(machine, user32, "410f20df")


def test_32_bit_offsets_are_relative_to_their_segment(machine: Any, user32: Vcpu) -> None:
    at, regs = data_at(machine, user32), user32.cpu.regs
    regs[RCX], regs[RDI], regs[RDX] = 0xF_0000_0002, 0xF_0000_0010, 0x80
    assert run(machine, user32, "f36c")
    assert bytes(machine.ram.bytes[at + 0x10 : at + 0x12]) == b"\x11\x22"
    assert (regs[RCX], regs[RDI]) == (0, 0x12)


def test_16_bit_addresses_wrap_and_keep_the_rest(machine: Any, user32: Vcpu) -> None:
    user32.cpu.regs[RSI], user32.cpu.regs[RDX] = 0xABCD_FFFF, 0x80
    user32.cpu.selectors[DS] = 0x2B  # type: ignore[attr-defined]
    machine.descriptors.table[0x2B] = DATA_64K
    machine.ram.bytes[0xFFFF] = 0x5A
    assert run(machine, user32, "676e")
    assert user32.cpu.regs[RSI] == 0xABCD_0000
    assert machine.pc.ports.written == [(0x80, 1, 0x5A)]


def test_segments_are_checked(machine: Any, user32: Vcpu) -> None:
    regs = user32.cpu.regs
    regs[RDI] = regs[RSI] = 0x1_0000
    with pytest.raises(emulate.GuestFault) as caught:
        run(machine, user32, "6c")
    assert caught.value.vector == 13
    user32.cpu.selectors[ES] = 0x33  # type: ignore[attr-defined]
    regs[RDI] = 0
    with pytest.raises(emulate.GuestFault):
        run(machine, user32, "6c")
    user32.cpu.selectors[DS] = 0  # type: ignore[attr-defined]
    assert not run(machine, user32, "6e")
