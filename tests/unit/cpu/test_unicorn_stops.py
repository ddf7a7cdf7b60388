"""Stopping the Unicorn engine: from handlers, from other threads, and after a measure of work."""

from __future__ import annotations

import ctypes
import threading
import time

import pytest

from tests.unit.cpu.bench import ALL, CODE, DATA, FREE, NX, ROOT, Bench
from xenolith.cpu import unicorn
from xenolith.cpu.registers import CF, DF, FLAGS_FIXED, IF, OF, RAX, ZF

SYSCALL = "0f05"
SPIN = "ebfe"
COUNT_FOREVER = "48ff06 48ffc3 ebf8"
"""inc qword [rsi]; inc rbx; and again"""
COUNT_LOCKED_FOREVER = "f048ff06 48ffc3 ebf7"
COUNT_BY_ADDING_FOREVER = "48010e 48ffc3 ebf8"
"""add [rsi], rcx; inc rbx; and again"""


class Kicker:
    """Kicks an engine from another thread, all the time or once after a while."""

    def __init__(self, bench: Bench, delay: float = 0.0, forever: bool = True) -> None:
        self._bench, self._delay, self._forever = bench, delay, forever
        self._done = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        time.sleep(self._delay)
        while not self._done:
            self._bench.engine.kick()
            time.sleep(0.0001)
            if not self._forever:
                return

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_details: object) -> None:
        self._done = True
        self._thread.join()


@pytest.mark.parametrize("code", [COUNT_FOREVER, COUNT_LOCKED_FOREVER, COUNT_BY_ADDING_FOREVER])
def test_kicks_neither_lose_nor_repeat_an_instruction(bench: Bench, code: str) -> None:
    bench.put(code)
    bench["rsi"], bench["rcx"], bench["rbx"] = DATA, 1, 0
    runs = 0
    with Kicker(bench):
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            bench.engine.run()
            runs += 1
            # A stop is taken at the block's start, where both counts agree.
            assert bench["rip"] == CODE
            assert bench.ram.words[DATA >> 3] == bench["rbx"]
    assert runs > 1
    assert bench["rbx"] > runs


@pytest.mark.parametrize(("ours", "writes"), [(True, [1]), (False, [1, 2])])
def test_a_stop_in_the_middle_of_an_instruction(bench: Bench, ours: bool, writes: list[int]) -> None:
    """A device asks for a stop while `inc` stores to it. The library's own stop, with its check after each store, runs
    the instruction again, which is what the proof at start and `stop` spare us."""
    written: list[int] = []

    def write(_offset: int, _size: int, value: int) -> None:
        written.append(value)
        if ours:
            bench.engine.stop()
        elif len(written) == 1:
            bench.engine._lib.uc_emu_stop(bench.engine._uc)

    if not ours:
        ctypes.c_ubyte.from_address((bench.engine._uc.value or 0) + unicorn._NO_EXIT_REQUEST).value = 0
    bench.engine.map_mmio(0x10_0000, 4096, lambda _offset, _size: len(written), write)
    bench.map(FREE, 0x10_0000 | ALL | NX)
    # inc dword [rsi]; jmp to the next; syscall
    bench.run("ff06 eb00" + SYSCALL, rsi=FREE)
    assert bench["rip"] == (CODE + 4 if ours else CODE)
    bench.resume()
    assert written == writes


def test_the_guest_goes_elsewhere_when_an_instruction_is_over(bench: Bench) -> None:
    """A store to a device leads to CODE + 0x40, with registers and flags as they were after it; there STD."""
    seen: list[tuple[int, int]] = []

    def go() -> None:
        seen.append((bench["rip"], bench.cpu.flags))
        bench["rip"], bench["rax"], bench.cpu.flags = CODE + 0x40, 7, OF | IF

    bench.on["finished"] = go
    bench.engine.map_mmio(0x10_0000, 4096, lambda *_: 0, lambda *_: bench.engine.finish_instruction())
    bench.map(FREE, 0x10_0000 | ALL | NX)
    bench.put("9c 5b fd" + SYSCALL, CODE + 0x40)  # pushfq; pop rbx; std
    # stc; std; mov [rsi], eax; inc rdi; jmp to the next, syscall
    exits = bench.run("f9 fd 8906 48ffc7 eb00" + SYSCALL, rsi=FREE, rdi=1, rax=3)
    assert exits == [("finished",), ("syscall",)]
    assert seen == [(CODE + 9, CF | DF | IF | FLAGS_FIXED)]
    assert (bench["rdi"], bench["rax"], bench["rbx"]) == (2, 7, OF | IF | FLAGS_FIXED)
    assert bench.cpu.flags & DF


def test_a_guest_that_spins_is_stopped(bench: Bench) -> None:
    with Kicker(bench, delay=0.02, forever=False):
        assert bench.run(SPIN) == []
    assert bench["rip"] == CODE


def test_flags_outlive_a_stop_and_another_processor(bench: Bench) -> None:
    """jmp to the next (stopped before it); pushfq; pop rax; syscall"""
    flags = CF | ZF | OF | DF | IF | FLAGS_FIXED
    bench.cpu.flags = flags
    bench.put("eb00 9c 58" + SYSCALL)
    bench.engine.kick()
    assert bench.run() == []
    other = bench.new_cpu()
    bench.engine.switch_to(other)
    bench.engine.switch_to(bench.cpu)
    bench.engine.load_root(ROOT)
    assert bench.resume() == [("syscall",)]
    assert bench["rax"] == flags


def test_a_kick_before_the_run_is_not_lost(bench: Bench) -> None:
    bench.engine.kick()
    assert bench.run(SPIN) == []


def test_a_stop_is_spent_by_the_run_that_it_ends(bench: Bench) -> None:
    bench.run(SYSCALL)
    assert bench.resume() != []


def test_a_stop_inside_a_handler_comes_at_the_end_of_the_block(bench: Bench) -> None:
    exits = bench.run("ec 48ffc3 eb00 48ffc3" + SYSCALL, rbx=0)
    assert exits == [("in", 0, 1)]
    assert (bench["rbx"], bench["rip"]) == (1, CODE + 6)


def test_a_processor_that_waits_busily_is_told_of(bench: Bench) -> None:
    """inc rbx; pause; and again. A few PAUSEs are nobody's concern, and a stop takes effect between two of them."""
    assert bench.run("48ffc3 f390 ebf9", rbx=0) == [("spin",)]
    assert 16 < bench["rbx"] < 1000
    assert bench["rip"] == CODE + 5
    told = bench["rbx"]
    bench.resume()
    assert bench["rbx"] == 2 * told


def test_no_exit_is_lost_while_a_stop_is_pending(bench: Bench) -> None:
    """CPUID, RDTSC, RDTSCP, SYSENTER after a stop in the same block must still be the handler's to answer."""
    bench.on["rdtsc"] = lambda: 0x1122_3344_5566_7788
    bench.on["rdtscp"] = lambda: 5

    def cpuid() -> None:
        bench.cpu.regs[RAX] = 0x4711

    bench.on["cpuid"] = cpuid
    # in al, dx (stops); cpuid; mov ebx, eax; rdtscp; mov esi, edx; rdtsc; syscall
    exits = bench.run("ec 0fa2 89c3 0f01f9 89d6 0f31" + SYSCALL)
    assert [name for name, *_ in exits] == ["in", "cpuid", "rdtscp", "rdtsc", "rdtsc", "syscall"]
    assert (bench["rbx"], bench["rsi"], bench["rcx"]) == (0x4711, 0x1122_3344, 5)
    assert (bench["rax"], bench["rdx"]) == (0x5566_7788, 0x1122_3344)
    bench.on.clear()
    assert [name for name, *_ in bench.run("ec 0f34")] == ["in", "sysenter"]


# -- what is proved at start ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constant", "value"), [("_NO_EXIT_REQUEST", unicorn._NO_EXIT_REQUEST + 0x1000), ("_PROCESSOR_SIZE", 0x8000)]
)
def test_where_the_proof_fails_nothing_stops_from_outside(
    monkeypatch: pytest.MonkeyPatch, constant: str, value: int
) -> None:
    """The wrong offset is that of a byte that is 0 and has no meaning for us; the wrong size hides the class."""
    monkeypatch.setattr(unicorn, constant, value)
    bench = Bench()
    assert not bench.engine.preemptible
    bench.engine.kick()
    assert bench.run("48ffc3" + SYSCALL) == [("syscall",)]
    with Kicker(bench):
        # mov ecx, 10000000; loop to itself; syscall
        assert bench.run("b980969800 e2fe" + SYSCALL) == [("syscall",)]


def test_the_proof_leaves_no_trace(bench: Bench) -> None:
    assert bench.engine.preemptible
    assert not any(bench.ram.bytes[(len(bench.ram.bytes) - 4096) :][:64])
    assert bench.run("ec eb00" + SYSCALL, rdx=0x71) == [("in", 0x71, 1)]


# -- work ------------------------------------------------------------------------------------------------------------

LOOP = "48ffc3 ebfb"
"""inc rbx; and again: a block of five bytes"""


@pytest.fixture(params=["native", "python"])
def working(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench that counts work: natively, and as it does where there can be no native code."""

    def refuse(code: bytes) -> None:
        raise OSError

    if request.param == "python":
        monkeypatch.setattr(unicorn, "page_of_code", refuse)
    return Bench(work=True)


def test_work_is_the_bytes_of_the_blocks_that_ran(working: Bench) -> None:
    working.run("48ffc3" + SYSCALL)
    assert working.engine.work_done() == 5


def test_a_limit_of_work_stops(working: Bench) -> None:
    working.engine.set_work_limit(50)
    assert working.run(LOOP, rbx=0) == []
    # The block that goes beyond the limit is counted, and has not run.
    assert (working["rbx"], working.engine.work_done(), working["rip"]) == (10, 55, CODE)
    working.engine.set_work_limit(5)
    working.resume()
    assert (working["rbx"], working.engine.work_done(), working["rip"]) == (11, 65, CODE)


def test_the_limit_can_be_taken_back(working: Bench) -> None:
    working.engine.set_work_limit(1)
    working.engine.set_work_limit(None)
    assert working.run("48ffc3" + SYSCALL) == [("syscall",)]


def test_work_is_the_same_in_every_run(working: Bench) -> None:
    def once(bench: Bench) -> tuple[int, int, int]:
        bench.on["rdtsc"] = bench.engine.work_done
        bench.engine.set_work_limit(5000)
        # rdtsc; inc rbx; test bl, 15; jz over; add rcx, rax; over: again
        bench.run("0f31 48ffc3 f6c30f 7403 4801c1 ebf1", rbx=0, rcx=0)
        return bench.engine.work_done(), bench["rbx"], bench["rcx"]

    assert once(working) == once(Bench(work=True))
