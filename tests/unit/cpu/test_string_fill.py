"""REP STOS by the host: memory, registers and faults are those that the emulator leaves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.cpu.bench import CODE, FRAMES, FREE, NX, PRESENT, ROOT, USER, WRITABLE, Bench
from xenolith.cpu import hot_loops, string_fill
from xenolith.cpu.registers import DF, TF

SYSCALL = "0f05"
STORES = {1: "f3aa", 2: "66f3ab", 4: "f3ab", 8: "f348ab"}
ACCESSED, DIRTY = 1 << 5, 1 << 6
USABLE = PRESENT | WRITABLE | USER | NX | ACCESSED | DIRTY
FIRST = FREE >> 12
END = FRAMES << 12

if not Bench().engine.runs_loops:
    pytest.skip("the host carries nothing out here", allow_module_level=True)


class Filling(Bench):
    """A bench whose data pages were all written to; `stored` counts the elements that the host has stored."""

    def __init__(self) -> None:
        super().__init__()
        loops = self.engine._hot_loops
        assert loops is not None
        self.loops: hot_loops.HotLoops = loops
        self.stored = 0
        judge = loops._judge

        def count(loop: Any, passed: int) -> None:
            self.stored += passed
            judge(loop, passed)

        loops._judge = count  # type: ignore[method-assign]
        self.reset()

    def reset(self) -> None:
        for frame in range(FIRST, FRAMES):
            self.map(frame << 12, frame << 12 | USABLE)
        self.map(CODE, CODE | PRESENT | USER | ACCESSED)
        self.ram.bytes[FREE:END] = b"\xcc" * (END - FREE)
        self.engine.flush_all()
        self.stored = 0

    def heat(self, code: str) -> None:
        self.put(code + SYSCALL)
        self.engine.invalidate_code(CODE, 4096)
        for _ in range(hot_loops._STOPS + 1):
            self.loops.stopped_at(CODE, ROOT)
        assert self.loops.heads == [CODE]

    def outcome(self, exits: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        table = self.ram.words[(4 << 9) + FIRST : (4 << 9) + FRAMES].tolist()
        return exits, list(self.cpu.regs[:17]), self.cpu.flags, bytes(self.ram.bytes[FREE:END]), table


@pytest.fixture
def filling() -> Filling:
    return Filling()


@pytest.fixture(scope="module")
def hot() -> dict[int, Filling]:
    machines = {width: Filling() for width in STORES}
    for width, machine in machines.items():
        machine.heat(STORES[width])
    return machines


@pytest.fixture(scope="module")
def cold() -> Filling:
    return Filling()


PAGES = st.sampled_from([USABLE] * 12 + [0, USABLE & ~WRITABLE, USABLE & ~DIRTY, USABLE & ~USER])


@settings(max_examples=150, deadline=None)
@given(
    width=st.sampled_from(sorted(STORES)),
    value=st.one_of(st.just(0), st.integers(0, (1 << 64) - 1)),
    start=st.integers(FREE, END),
    aligned=st.booleans(),
    count=st.one_of(st.integers(0, 600), st.integers(0, 40 * 4096)),
    backwards=st.sampled_from([0] * 7 + [DF]),
    pages=st.lists(PAGES, min_size=FRAMES - FIRST, max_size=FRAMES - FIRST),
)
def test_it_does_what_the_emulator_does(
    hot: dict[int, Filling],
    cold: Filling,
    width: int,
    value: int,
    start: int,
    aligned: bool,
    count: int,
    backwards: int,
    pages: list[int],
) -> None:
    outcomes = []
    for machine, code in ((hot[width], None), (cold, STORES[width] + SYSCALL)):
        machine.reset()
        for frame, flags in enumerate(pages, FIRST):
            machine.map(frame << 12, flags and frame << 12 | flags)
        machine.cpu.flags = 0x202 | backwards
        rdi = start - start % width if aligned else start
        outcomes.append(machine.outcome(machine.run(code, rax=value, rcx=count, rdi=rdi)))
    assert outcomes[0] == outcomes[1]


def test_a_long_fill_is_the_hosts(filling: Filling) -> None:
    filling.heat(STORES[1])
    assert filling.run(rax=0x1AB, rcx=END - FREE, rdi=FREE) == [("syscall",)]
    assert filling.stored == END - FREE
    assert (filling["rcx"], filling["rdi"]) == (0, END)
    assert bytes(filling.ram.bytes[FREE:END]) == b"\xab" * (END - FREE)


def test_zeros_take_no_memory_of_the_host(filling: Filling) -> None:
    filling.heat(STORES[8])
    before = filling.ram.resident_bytes()
    filling.run(rax=0, rcx=(END - FREE) // 8 - 3, rdi=FREE + 8)
    assert filling.ram.resident_bytes() < before - (END - FREE) // 2
    assert bytes(filling.ram.bytes[FREE:END]) == b"\xcc" * 8 + bytes(END - FREE - 24) + b"\xcc" * 16


def test_code_that_is_written_over_is_forgotten(filling: Filling) -> None:
    """What was called at FREE returned; now it is filled with syscalls."""
    filling.map(FREE, FREE | PRESENT | WRITABLE | USER | ACCESSED | DIRTY)
    filling.engine.flush_all()
    filling.put("c3", FREE)
    call = "ffd6"  # call rsi
    filling.put(call + STORES[2] + call, CODE)
    for _ in range(hot_loops._STOPS + 1):
        filling.loops.stopped_at(CODE + 2, ROOT)
    filling.engine.invalidate_code(CODE, 4096)
    filling["rip"], filling["rax"], filling["rcx"], filling["rdi"] = CODE, 0x050F, 4000, FREE
    filling["rsi"], filling["rsp"] = FREE, END
    assert filling.resume() == [("syscall",)]
    assert filling.stored > 0
    assert filling["rcx"] == 0


def test_short_fills_are_given_up(filling: Filling) -> None:
    filling.heat(STORES[8])
    for _ in range(100):
        filling.run(rax=0, rcx=512, rdi=FREE)
    assert filling.loops.heads == []


def test_single_steps_are_seen(filling: Filling) -> None:
    filling.heat(STORES[8])
    filling.cpu.flags |= TF
    assert filling.run(rax=0, rcx=3, rdi=FREE)[0][:2] == ("exception", 1)
    assert filling["rcx"] == 2
    assert not filling.stored


@pytest.mark.parametrize(
    ("code", "width"), [("f3aa90", 1), ("f3ab90", 4), ("f348ab", 8), ("66f3ab", 2), ("f366ab", 2), ("aa9090", None)]
)
def test_instructions(code: str, width: int | None) -> None:
    assert string_fill.width_of(bytes.fromhex(code)) == width
