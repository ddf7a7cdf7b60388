"""Exceptions as the Unicorn engine reports them: vector, error code, address, and where RIP is left."""

from __future__ import annotations

import pytest

from tests.unit.cpu.bench import ALL, CODE, DATA, FREE, NX, Bench
from xenolith.cpu.registers import AC, DR6_BS, TF
from xenolith.cpu.unicorn import UnicornEngine
from xenolith.errors import UserError

SYSCALL = "0f05"
NOWHERE = 0x40_0000
"""An address that nothing is mapped at."""
NONCANONICAL = 1 << 60


def skip(bench: Bench, length: int) -> None:
    """Have the next exceptions handled by stepping over the instruction."""

    def step(*_details: object) -> None:
        bench["rip"] += length

    bench.on["exception"] = step


# -- one fault after another --------------------------------------------------------------------------------------


def test_page_faults_follow_one_another(bench: Bench) -> None:
    skip(bench, 3)
    exits = bench.run("488b06 488b06 488906 488907" + SYSCALL, rsi=NOWHERE, rdi=CODE)
    assert exits == [
        ("exception", 14, 4, NOWHERE, False),
        ("exception", 14, 4, NOWHERE, False),
        ("exception", 14, 6, NOWHERE, False),
        ("exception", 14, 7, CODE, False),
        ("syscall",),
    ]


def test_without_forgetting_the_first_fault_the_second_is_a_double_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the state that is reset at each exception is missed, the library gives up: the proof at start finds it."""
    locate = UnicornEngine._locate_state

    def locate_wrongly(engine: UnicornEngine) -> None:
        locate(engine)
        engine._old_at += 1

    monkeypatch.setattr(UnicornEngine, "_locate_state", locate_wrongly)
    with pytest.raises(UserError, match="reports exceptions in an unknown way"):
        Bench()
    monkeypatch.setattr(UnicornEngine, "_prove_exceptions", lambda *_: None)
    bench = Bench()
    skip(bench, 3)
    exits = bench.run("488b06 488b06" + SYSCALL, rsi=NOWHERE)
    assert exits[0] == ("exception", 14, 4, NOWHERE, False)
    assert exits[1][:2] != ("exception", 14)


@pytest.mark.parametrize("wrong", ["_error_at", "_is_int_at"])
def test_a_wrong_place_of_the_exception_state_is_found_at_start(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    locate = UnicornEngine._locate_state

    def locate_wrongly(engine: UnicornEngine) -> None:
        locate(engine)
        setattr(engine, wrong, getattr(engine, wrong) - 2)

    monkeypatch.setattr(UnicornEngine, "_locate_state", locate_wrongly)
    with pytest.raises(UserError, match="reports exceptions in an unknown way"):
        Bench()


# -- page faults ---------------------------------------------------------------------------------------------------


def test_executing_a_page_that_may_not_be(bench: Bench) -> None:
    assert bench.run("ffe6", rsi=DATA) == [("exception", 14, 0x15, DATA, False)]
    assert bench["rip"] == DATA


def test_executing_what_is_not_there(bench: Bench) -> None:
    assert bench.run("ffe6", rsi=NOWHERE) == [("exception", 14, 0x14, NOWHERE, False)]


def test_a_supervisor_page_is_not_the_guests(bench: Bench) -> None:
    bench.map(FREE, FREE | (ALL & ~4) | NX)
    assert bench.run("488b06", rsi=FREE) == [("exception", 14, 5, FREE, False)]
    assert bench.run("488906", rsi=FREE) == [("exception", 14, 7, FREE, False)]


def test_a_store_across_pages_faults_at_the_second(bench: Bench) -> None:
    bench.map(FREE, FREE | ALL | NX)
    bench.map(FREE + 4096, 0)
    assert bench.run("488906", rsi=FREE + 4092) == [("exception", 14, 6, FREE + 4096, False)]


# -- other faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "length", "vector", "error_code"),
    [
        ("31c9 f7f1", 2, 0, 0),  # xor ecx, ecx; div ecx
        ("0f0b", 0, 6, 0),  # ud2
        ("0f01d9", 0, 6, 0),  # vmmcall
        ("f4", 0, 13, 0),  # hlt
        ("0f20c0", 0, 13, 0),  # mov rax, cr0
        ("0f30", 0, 13, 0),  # wrmsr
        ("b830120000 8ed8", 5, 13, 0x1230),  # mov eax, 0x1230; mov ds, eax
        ("48b80000000000000010 488b00", 10, 13, 0),  # a load from a non-canonical address
    ],
)
def test_faults(bench: Bench, code: str, length: int, vector: int, error_code: int) -> None:
    ((name, *details),) = bench.run(code)
    assert (name, details[0], details[1], details[3]) == ("exception", vector, error_code, False)
    assert bench["rip"] == CODE + length


@pytest.mark.parametrize(("code", "vector"), [("cc", 3), ("cd03", 3), ("cd80", 0x80), ("cdff", 0xFF), ("cd0e", 14)])
def test_software_interrupts_leave_rip_behind_the_instruction(bench: Bench, code: str, vector: int) -> None:
    ((name, got, _error, _address, software),) = bench.run(code)
    assert (name, got, software) == ("exception", vector, True)
    assert bench["rip"] == CODE + len(bytes.fromhex(code))


def test_a_fault_after_a_software_interrupt_is_no_software_interrupt(bench: Bench) -> None:
    bench.run("cd80")
    assert bench.run("31c9 f7f1")[0][4] is False


def test_single_step(bench: Bench) -> None:
    bench.cpu.flags |= TF
    ((name, vector, *_),) = bench.run("90 90" + SYSCALL)
    assert (name, vector, bench["rip"]) == ("exception", 1, CODE + 1)
    assert bench.cpu.debug_register(6) & DR6_BS
    bench.resume()
    assert bench["rip"] == CODE + 2
    bench.cpu.flags &= ~TF
    assert bench.resume() == [("syscall",)]


# -- the FPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["d9e8", "9b", "0f57c0", "0f6fc0"])
def test_a_switched_task_must_fetch_its_fpu_state(bench: Bench, code: str) -> None:
    bench.cpu.task_switched = True
    ((name, vector, *_),) = bench.run(code + SYSCALL)
    assert (name, vector, bench["rip"]) == ("exception", 7, CODE)
    bench.cpu.task_switched = False
    assert bench.resume() == [("syscall",)]
    assert not bench.cpu.task_switched


def test_an_unmasked_x87_error_is_reported_by_the_next_instruction(bench: Bench) -> None:
    bench.ram.bytes[DATA : DATA + 2] = (0x0340).to_bytes(2, "little")
    # fninit; fldcw [rsi]; fld1; fldz; fdivp; fwait
    ((name, vector, *_),) = bench.run("dbe3 d92e d9e8 d9ee def9 9b" + SYSCALL, rsi=DATA)
    assert (name, vector, bench["rip"]) == ("exception", 16, CODE + 10)


def test_what_the_library_does_not_raise(bench: Bench) -> None:
    """An SSE division by zero without mask, MOVAPS off its alignment, AC: a processor would fault, this one goes on."""
    bench.ram.bytes[DATA : DATA + 4] = bytes(4)
    # ldmxcsr [rsi]; xorps xmm0, xmm0; mov eax, 1; cvtsi2ss xmm1, eax; divss xmm1, xmm0
    assert bench.run("0fae16 0f57c0 b801000000 f30f2ac8 f30f5ec8" + SYSCALL, rsi=DATA) == [("syscall",)]
    assert bench.run("0f2806" + SYSCALL, rsi=DATA + 1) == [("syscall",)]
    bench.cpu.flags |= AC
    assert bench.run("8b06" + SYSCALL, rsi=DATA + 1) == [("syscall",)]
