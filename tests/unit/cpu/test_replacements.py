"""The library's functions that are replaced: each test runs with the library's own as well."""

from __future__ import annotations

import pytest

from tests.unit.cpu.bench import ALL, CODE, NX, OTHER_ROOT, ROOT, STACK_TOP, Bench
from xenolith.cpu.compiled import SWITCH
from xenolith.cpu.registers import RIP, RSP
from xenolith.cpu.replacements import COMPILED

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
