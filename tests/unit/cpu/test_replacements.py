"""The library's functions that are replaced: each test runs with the library's own as well."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.unit.cpu.bench import ALL, CODE, FREE, NX, OTHER_ROOT, ROOT, STACK_TOP, Bench
from xenolith.cpu.compiled import SWITCH
from xenolith.cpu.registers import RIP, RSP
from xenolith.cpu.replacements import COMPILED

WORD, LOW = (1 << 64) - 1, (1 << 32) - 1

PAGE, OTHER_PAGE = 0x20000, 0x21000
"""Frames for code."""
WHERE = 0x30000
"""The virtual address at which it is executed."""
ALIAS = 0x40000
"""Another of PAGE, which can be written to."""
MISSED = (1, 1)
"""What the library alone comes to: it does not see the write."""
TWO = "b802000000 c3"
"""mov eax, 2; ret"""


@pytest.fixture(params=["replaced", "own"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The function at WHERE is in PAGE, and returns 1; that in OTHER_PAGE returns 2."""
    if request.param == "own":
        monkeypatch.setenv(SWITCH, "0")
    elif COMPILED.missing() is not None:
        pytest.skip(f"no native code: {COMPILED.missing()}")
    bench = Bench()
    bench.map(WHERE, PAGE | 5)
    bench.map(ALIAS, PAGE | ALL | NX)
    bench.put("b801000000 c3", PAGE)
    bench.put(TWO, OTHER_PAGE)
    return bench


def test_code_is_rewritten_through_a_mapping_that_was_written_to_before_there_was_code(bench: Bench) -> None:
    """mov byte [rbx+1], 1; call rcx; mov esi, eax; mov byte [rbx+1], 7; call rcx; out dx, al"""
    bench.run("c6430101 ffd1 89c6 c6430107 ffd1 ee", rbx=ALIAS, rcx=WHERE, rsp=STACK_TOP)
    assert (bench["rsi"], bench["rax"]) == ((1, 7) if bench.engine.still_has(ROOT) else MISSED)


def test_code_is_rewritten_again_and_again(bench: Bench) -> None:
    """again: call rcx; add esi, eax; inc byte [rbx+1]; dec edi; jnz again; out dx, al"""
    bench.run("ffd1 01c6 fe4301 ffcf 75f5 ee", rbx=ALIAS, rcx=WHERE, rsi=0, rdi=50, rsp=STACK_TOP)
    assert bench["rsi"] == sum(range(1, 51)) or not bench.engine.still_has(ROOT)


@pytest.mark.parametrize("forget", ["flush_page", "flush_all", "load_root"])
def test_jumps_go_where_the_page_is_now(bench: Bench, forget: str) -> None:
    calls = "ffd1 ee ffd1 ee"  # call rcx; out dx, al; and again
    bench.run(calls, rcx=WHERE, rsp=STACK_TOP)
    assert bench["rax"] == 1
    bench.map(WHERE, OTHER_PAGE | 5)
    arguments = {"flush_page": (WHERE,), "flush_all": (), "load_root": (ROOT,)}[forget]
    getattr(bench.engine, forget)(*arguments)
    bench.resume()
    assert bench["rax"] == 2


def test_jumps_go_to_what_the_hypervisor_wrote(bench: Bench) -> None:
    bench.run("ffd1 ee ffd1 ee", rcx=WHERE, rsp=STACK_TOP)
    bench.put(TWO, PAGE)
    bench.engine.invalidate_code(PAGE, 6)
    bench.resume()
    assert bench["rax"] == 2


def test_the_same_address_is_other_code_in_another_mode(bench: Bench) -> None:
    """Translated code depends on flags: with a single step each block is one instruction."""
    bench.run("ffd1 ee", rcx=WHERE, rsp=STACK_TOP)
    bench.cpu.regs[RIP], bench.cpu.regs[RSP], bench.cpu.flags = CODE, STACK_TOP, bench.cpu.flags | 1 << 8
    assert [exit[:2] for exit in (*bench.resume(), *bench.resume())] == [("exception", 1), ("exception", 1)]
    assert bench.cpu.regs[RIP] == WHERE + 5


def test_a_processor_that_ran_last_can_go_on(bench: Bench) -> None:
    sees_all = bench.engine.still_has(ROOT)
    assert not bench.engine.still_has(OTHER_ROOT)
    other = bench.new_cpu()
    bench.engine.switch_to(other)
    assert not bench.engine.still_has(ROOT)
    bench.engine.load_root(OTHER_ROOT)
    assert bench.engine.still_has(OTHER_ROOT) == sees_all
    bench.engine.switch_to(bench.cpu)
    assert not bench.engine.still_has(OTHER_ROOT)


def test_two_engines_do_not_know_of_each_other(bench: Bench) -> None:
    another = Bench()
    bench.run("ffd1 ee", rcx=WHERE, rsp=STACK_TOP)
    another.map(WHERE, PAGE | 5)
    another.put(TWO, PAGE)
    another.run("ffd1 ee", rcx=WHERE, rsp=STACK_TOP)
    bench.run("ffd1 ee", rcx=WHERE, rsp=STACK_TOP)
    assert (bench["rax"], another["rax"]) == (1, 2)


@pytest.fixture
def modes(bench: Bench) -> Bench:
    """At OTHER_ROOT everything is mapped as at ROOT, but that OTHER_PAGE is at WHERE."""
    tables = [OTHER_ROOT, *(FREE + (level << 12) for level in range(1, 4))]
    words = bench.ram.words
    for table, following in pairwise(tables):
        words[table >> 3] = following | ALL
    words[tables[-1] >> 3 : (tables[-1] >> 3) + 512] = words[4 << 9 : 5 << 9]
    words[(tables[-1] >> 3) + (WHERE >> 12)] = OTHER_PAGE | 5
    assert not bench.engine.change_mode(OTHER_ROOT, False)
    bench.engine.load_root(OTHER_ROOT)
    return bench


def called(bench: Bench, root: int, kernel_mode: bool) -> int:
    """What the function at WHERE returns in a mode."""
    if not bench.engine.change_mode(root, kernel_mode):
        bench.engine.load_root(root)
    bench.run("ffd1 ee", rcx=WHERE, rsp=STACK_TOP)
    return bench["rax"]


def test_each_mode_has_its_own_code(modes: Bench) -> None:
    for _ in range(3):
        assert called(modes, ROOT, True) == 1
        assert called(modes, OTHER_ROOT, False) == 2


def test_a_mode_that_is_left_is_not_forgotten(modes: Bench) -> None:
    """But for what has nothing to do with it: another root, another processor."""
    assert called(modes, ROOT, True) == 1
    modes.map(WHERE, OTHER_PAGE | 5)
    assert called(modes, OTHER_ROOT, False) == 2
    kept = modes.engine.still_has(OTHER_ROOT)
    assert called(modes, ROOT, True) == (1 if kept else 2)
    modes.engine.switch_to(modes.new_cpu())
    modes.engine.load_root(OTHER_ROOT)
    modes.engine.switch_to(modes.cpu)
    modes.engine.load_root(ROOT)
    assert called(modes, ROOT, True) == 2


@pytest.mark.parametrize("forget", ["flush_page", "flush_all"])
def test_what_is_forgotten_is_forgotten_of_both_modes(modes: Bench, forget: str) -> None:
    assert called(modes, ROOT, True) == 1
    assert called(modes, OTHER_ROOT, False) == 2
    modes.map(WHERE, OTHER_PAGE | 5)
    getattr(modes.engine, forget)(*((WHERE,) if forget == "flush_page" else ()))
    assert called(modes, ROOT, True) == 2


def test_code_is_rewritten_in_the_other_mode(modes: Bench) -> None:
    assert called(modes, ROOT, True) == 1
    assert called(modes, OTHER_ROOT, False) == 2
    modes.run("c6430107 ee", rbx=ALIAS)  # mov byte [rbx+1], 7; out dx, al
    assert called(modes, ROOT, True) == 7


def test_iret_takes_its_frame_from_the_present_mode(modes: Bench) -> None:
    """The frames of both modes lie at WHERE. Their code segments, which do not exist, are in the error codes."""
    for page, selector in ((PAGE, 0x43), (OTHER_PAGE, 0x53)):
        modes.ram.words[(page >> 3) + 1] = selector
    for root, kernel_mode, error_code in ((ROOT, True, 0x40), (OTHER_ROOT, False, 0x50)) * 2:
        if not modes.engine.change_mode(root, kernel_mode):
            modes.engine.load_root(root)
        assert [exit[:3] for exit in modes.run("48cf", rsp=WHERE)] == [("exception", 13, error_code)]


SHIFTS = {
    ("71", 6): (16, lambda lane, by: lane << by), ("72", 6): (32, lambda lane, by: lane << by),
    ("73", 6): (64, lambda lane, by: lane << by), ("71", 2): (16, lambda lane, by: (lane & 0xFFFF) >> by),
    ("72", 2): (32, lambda lane, by: (lane & 0xFFFF_FFFF) >> by), ("73", 2): (64, lambda lane, by: (lane & WORD) >> by),
    ("71", 4): (16, lambda lane, by: lane >> by), ("72", 4): (32, lambda lane, by: lane >> by),
}  # fmt: skip
"""By the second byte of the opcode, and what stands in ModRM: the width of a lane, and what becomes of a signed one."""


@pytest.mark.parametrize("by", [0, 1, 7, 15, 16, 31, 32, 63, 64, 255])
@pytest.mark.parametrize("shift", SHIFTS)
def test_vectors_are_shifted(bench: Bench, shift: tuple[str, int], by: int) -> None:
    """Once by a number in the instruction, once by one in a register: the sum of both halves of each."""
    (opcode, kind), (width, lanewise) = shift, SHIFTS[shift]
    low, high = 0x8001_7FFF_FFFE_0003, 0x1234_8765_0FED_CBA9
    load = "66480f6ec0 66480f6ecb 660f6cc1"  # movq xmm0, rax; movq xmm1, rbx; punpcklqdq xmm0, xmm1
    store = "66480f7ec0 660f73d808 66480f7ec3 ee"  # movq rax, xmm0; psrldq xmm0, 8; movq rbx, xmm0; out dx, al
    register = {6: "f", 2: "d", 4: "e"}[kind] + {"71": "1", "72": "2", "73": "3"}[opcode]
    immediate = f"660f{opcode}{0xC0 | kind << 3:02x}{by:02x}"
    by_register = f"66480f6ed1 660f{register}c2"  # movq xmm2, rcx; the shift of xmm0 by xmm2
    for instruction in (immediate, by_register):
        bench.run(load + instruction + store, rax=low, rbx=high, rcx=by)
        assert (bench["rax"], bench["rbx"]) == tuple(_shifted(half, width, lanewise, by) for half in (low, high))


COMBINED = {
    "db": lambda a, b: a & b, "df": lambda a, b: ~a & b, "eb": lambda a, b: a | b, "ef": lambda a, b: a ^ b,
    "d4": lambda a, b: a + b, "fe": lambda a, b: (a & LOW) + (b & LOW) & LOW | (a & ~LOW) + (b & ~LOW),
}  # fmt: skip
"""By the second byte of the opcode: a half of the first and of the second vector to one of the result."""


@pytest.mark.parametrize("opcode", COMBINED)
def test_vectors_are_combined(bench: Bench, opcode: str) -> None:
    low, high, other = 0x8001_7FFF_FFFE_0003, 0xF234_8765_0FED_CBA9, 0x9234_5678_8BCD_EF01
    load = "66480f6ec0 66480f6ecb 660f6cc1 66480f6ed1 660f6cd2"  # xmm0: rbx, rax; xmm2: rcx twice
    store = "66480f7ec0 660f73d808 66480f7ec3 ee"
    bench.run(f"{load} 660f{opcode}c2 {store}", rax=low, rbx=high, rcx=other)
    assert (bench["rax"], bench["rbx"]) == tuple(COMBINED[opcode](half, other) & WORD for half in (low, high))


def _shifted(half: int, width: int, lanewise: Callable[[int, int], int], by: int) -> int:
    lanes = []
    for at in range(0, 64, width):
        lane = half >> at & (1 << width) - 1
        signed = lane - (1 << width) if lane >> width - 1 else lane
        lanes.append((lanewise(signed, by) & (1 << width) - 1) << at)
    return sum(lanes)
