"""The assembler for ring 0's code, against bytes that GNU as has made of the same instructions."""

from __future__ import annotations

import pytest

from xenolith.cpu import ring0
from xenolith.cpu.assembler import Memory, assemble
from xenolith.hypervisor.ring0_exits import program

AT = 0xFFFF_8280_0000_8000
MEMORY = {"word_1": Memory("rsp", 48, 8), "half": Memory("rsp", 0x200, 4), "flag": Memory("rsp", 20, 1)}
NUMBERS = {"TF": 256, "PORT": 4}


def code_of(text: str) -> str:
    return assemble(text, AT, MEMORY, NUMBERS).code.hex()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("mov word_1, rax", "4889442430"),
        ("mov rax, word_1", "488b442430"),
        ("mov eax, half", "8b842400020000"),
        ("mov half, 0xE02BE033", "c7842400020000" + "33e02be0"),
        ("mov flag, 1", "c644241401"),
        ("mov qword [rdx+8], r11", "4c895a08"),
        ("mov rax, [rsp-8]", "488b4424f8"),
        ("mov rcx, 0xE03300000000", "48b90000000033e00000"),
        ("mov cr3, rax", "0f22d8"),
        ("mov rax, cr2", "0f20d0"),
        ("movzx eax, word [rbx]", "0fb703"),
        ("lea rbx, [rsp+rax+TF]", "488d9c0400010000"),
        ("and rax, -16", "4883e0f0"),
        ("and eax, 0xFFFFF000", "81e000f0ffff"),
        ("test r11d, TF", "41f7c300010000"),
        ("cmp flag, 0", "807c241400"),
        ("lock inc qword [rcx+rax]", "f048ff0401"),
        ("inc rax", "48ffc0"),
        ("shr rax, 43", "48c1e82b"),
        ("out PORT, eax", "e704"),
        ("out 14, al", "e60e"),
        ("rdmsr", "0f32"),
        ("iretq", "48cf"),
        ("back: \n jmp back", "ebfe"),
        ("je out \n iretq \n out: \n iretq", "7402" + "48cf" * 2),
        (" ; nothing but words \n rdmsr ; and an instruction", "0f32"),
    ],
)
def test_instructions(text: str, code: str) -> None:
    assert code_of(text.replace(": \n", ":\n")) == code


@pytest.mark.parametrize("text", ["mov rax", "frobnicate rax, rcx", "jmp nowhere", "mov [rax], 1", "add rax, 1 << 3"])
def test_what_it_does_not_know(text: str) -> None:
    with pytest.raises(ValueError, match="cannot assemble"):
        code_of(text)


def test_labels_have_addresses() -> None:
    labels = assemble("first:\n mov rax, word_1\n second:\n iretq", AT, MEMORY, NUMBERS).labels
    assert labels == {"first": AT, "second": AT + 5}


def test_places_by_address() -> None:
    code = assemble("lock inc count", AT, {"count": Memory("rip", AT + 0x1000, 8)}, {}).code
    assert code.hex() == "f048ff05" + (0x1000 - 8).to_bytes(4, "little").hex()


def test_the_program_has_its_entries() -> None:
    written = program()
    assert written is not None
    code, labels = ring0.code(written, AT, AT + 0x1000)
    assert len(code) < 4096
    assert labels["arrive"] == AT
    assert labels["go_on"] < labels["decided"] < labels["last"]
    assert code[labels["last"] - AT :][:2].hex() == "48cf"
