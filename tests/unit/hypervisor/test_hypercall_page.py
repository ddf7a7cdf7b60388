"""The hypercall page, disassembled."""

from __future__ import annotations

from iced_x86 import Decoder, Mnemonic

from xenolith.abi.hypercalls import HYPERVISOR_iret, HYPERVISOR_sched_op
from xenolith.hypervisor.hypercall_page import STUB_BYTES, hypercall_page


def stub(number: int) -> list[tuple[int, str]]:
    code = hypercall_page()[number * STUB_BYTES : (number + 1) * STUB_BYTES]
    return [(instruction.mnemonic, str(instruction)) for instruction in Decoder(64, code)]


def test_size() -> None:
    assert len(hypercall_page()) == 4096


def test_a_stub_loads_its_number_and_keeps_what_syscall_destroys() -> None:
    assert [text for _, text in stub(HYPERVISOR_sched_op)][:7] == [
        "push rcx", "push r11", "mov eax,1Dh", "syscall", "pop r11", "pop rcx", "ret",
    ]  # fmt: skip


def test_iret_does_not_return() -> None:
    instructions = stub(HYPERVISOR_iret)
    assert [text for _, text in instructions][:5] == ["push rcx", "push r11", "push rax", "mov eax,17h", "syscall"]
    assert all(mnemonic == Mnemonic.INT3 for mnemonic, _ in instructions[5:])
