"""Processors of the KVM engine that run at the same time, and that none runs while anything is done about one."""

from __future__ import annotations

import threading
import time

import pytest

from tests.conftest import why_not_kvm
from tests.processors import HAS_TWO, one_each
from tests.unit.cpu.bench import ALL, CODE, DATA, FREE, ROOT, Bench
from xenolith.cpu.engine import ENGINE_SLOT, Cpu
from xenolith.cpu.kvm import KvmEngine
from xenolith.cpu.registers import RAX, RDI, RIP, RSI

_WHY_NOT = why_not_kvm()
pytestmark = pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)

SYSCALL = "0f05"
COUNT = "48ff06 ebfb"
"""inc qword [rsi]; jmp back"""
ANSWER = "488b06 4839f8 75f8 48ffc7 48ffc7 48ff06 ebf0"
"""wait until [rsi] is rdi; then rdi += 2, [rsi] += 1; jmp back"""
READ_DEVICE = "8b06" + SYSCALL
SECOND_CODE = CODE + 0x100
SECOND_DATA = DATA + 0x100


class Pair(Bench):
    """A second processor, with code and data of its own on the same pages."""

    def __init__(self) -> None:
        super().__init__(engine=KvmEngine)
        self.ram.words[(ROOT >> 3) + ENGINE_SLOT] = self.engine.entry_table
        self.second = self.new_cpu()
        self.prepare(self.second, SECOND_CODE, SECOND_DATA)
        self.prepare(self.cpu, CODE, DATA)

    def prepare(self, cpu: Cpu, rip: int, rsi: int) -> None:
        self.engine.switch_to(cpu)
        self.engine.load_root(ROOT)
        cpu.regs[RIP], cpu.regs[RSI] = rip, rsi

    def together(self, first: str, second: str) -> None:
        self.put(first)
        self.put(second, SECOND_CODE)
        self.resume_both()

    def resume_both(self) -> None:
        self.engine.switch_to(self.cpu)
        self.engine.run(self.second)

    def resume_second(self) -> None:
        self.engine.switch_to(self.second)
        self.engine.run()

    def word(self, at: int) -> int:
        return self.ram.words[at >> 3]

    def kick_after(self, seconds: float) -> None:
        threading.Timer(seconds, self.engine.kick).start()

    def tell(self, *mfns: int) -> None:
        if self.engine.shadows_tables:
            for mfn in mfns:
                self.engine.mapping_removed(mfn)


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_both_get_on_until_a_kick(pair: Pair) -> None:
    for _ in range(3):
        before = pair.word(DATA), pair.word(SECOND_DATA)
        pair.kick_after(0.05)
        pair.together(COUNT, COUNT)
        assert pair.word(DATA) > before[0]
        assert pair.word(SECOND_DATA) > before[1]
    assert pair.exits == []


@pytest.mark.skipif(not HAS_TWO, reason="this host has one processor")
def test_they_see_each_other_run(pair: Pair) -> None:
    """Each waits for the other's answer, thousands of times in what is one run without any exit."""
    pair.cpu.regs[RDI], pair.second.regs[RDI], pair.second.regs[RSI] = 0, 1, DATA
    pair.kick_after(0.01)
    pair.together(ANSWER, ANSWER)
    with one_each(pair.cpu, pair.second):
        pair.kick_after(0.2)
        pair.resume_both()
    assert pair.exits == []
    assert pair.word(DATA) > 1000


def test_an_exit_of_one_stops_the_other(pair: Pair) -> None:
    found = []

    def handle() -> None:
        before = pair.word(SECOND_DATA)
        time.sleep(0.02)
        found.append((pair.current is pair.cpu, pair.word(SECOND_DATA) - before))
        if len(found) >= 5 and before:
            pair.engine.stop()

    pair.on["syscall"] = handle
    pair.together("b900001000 ffc9 75fc" + SYSCALL + "ebf3", COUNT)
    assert set(found) == {(True, 0)}


def test_exits_of_both_are_told_each_with_its_processor_current(pair: Pair) -> None:
    seen: list[Cpu] = []

    def handle() -> None:
        seen.append(pair.current)
        if len(seen) > 20 and pair.cpu in seen and pair.second in seen:
            pair.engine.stop()

    pair.on["syscall"] = handle
    pair.together("48ff06" + SYSCALL + "ebf9", "48ff06" + SYSCALL + "ebf9")
    assert pair.word(DATA) == sum(cpu is pair.cpu for cpu in seen)
    assert pair.word(SECOND_DATA) == sum(cpu is pair.second for cpu in seen)
    assert pair.cpu.exits + pair.second.exits >= len(seen)


@pytest.mark.parametrize("flush", ["flush_all", "flush_page"])
def test_a_translation_that_one_changes_is_old_for_no_other(pair: Pair, flush: str) -> None:
    """The second writes to a frame all the time, and the handler of the first's exits takes it away from there."""
    frames = [FREE + (number << 12) for number in range(4)]
    pair.map(FREE, frames[0] | ALL)
    pair.prepare(pair.second, SECOND_CODE, FREE)
    pair.put(COUNT, SECOND_CODE)
    at, left = [0], []

    def take_away() -> None:
        left.append((frames[at[0]], pair.word(frames[at[0]])))
        assert all(pair.word(frame) == value for frame, value in left[-3:]), "nobody has written there since"
        at[0] = (at[0] + 1) % 4
        pair.map(FREE, frames[at[0]] | ALL)
        pair.tell(*(frame >> 12 for frame in frames))
        getattr(pair.engine, flush)(*((FREE,) if flush == "flush_page" else ()))
        if len(left) >= 100 and all(pair.word(frame) for frame in frames):
            pair.engine.stop()

    pair.on["syscall"] = take_away
    pair.together("b900001000 ffc9 75fc" + SYSCALL + "ebf3", COUNT)


def test_a_mapping_that_becomes_read_only_stops_the_others_writes(pair: Pair) -> None:
    def protect() -> None:
        pair.map(DATA, DATA | 5)
        pair.tell(DATA >> 12)
        pair.engine.flush_all()
        found.append(pair.word(SECOND_DATA))

    found: list[int] = []
    pair.on["syscall"] = protect
    pair.together("b900001000 ffc9 75fc" + SYSCALL + "ebfe", COUNT)
    assert pair.exits == [("syscall",), ("exception", 14, 7, SECOND_DATA, False)]
    assert pair.current is pair.second
    assert found == [pair.word(SECOND_DATA)]


def test_a_device_of_one_is_asked_while_the_other_stands_still(pair: Pair) -> None:
    def read(offset: int, width: int) -> int:
        before = pair.word(SECOND_DATA)
        time.sleep(0.01)
        return pair.word(SECOND_DATA) - before

    pair.engine.map_mmio(1 << 30, 4096, read, lambda *access: None)
    pair.map(FREE, 1 << 30 | ALL)
    pair.prepare(pair.cpu, CODE, FREE)
    pair.together(READ_DEVICE, COUNT)
    assert pair.exits == [("syscall",)]
    assert pair.cpu.regs[RAX] == 0


def test_a_mistake_in_handling_one_loses_nothing_of_the_other(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mistake(Exception):
        pass

    def fail() -> None:
        raise Mistake

    pair.on["syscall"] = fail
    monkeypatch.setattr(pair.engine, "_oust", lambda cpu: None)  # so that each goes on to an exit of its own
    with pytest.raises(Mistake):
        pair.together("b807000000" + SYSCALL, "b807000000" + SYSCALL)
    assert pair.current is pair.cpu
    assert pair.engine.comes_first(pair.second)
    assert not pair.engine.comes_first(pair.cpu)
    with pytest.raises(Mistake):
        pair.engine.settle()
    assert pair.current is pair.second
    assert (pair.cpu.regs[RAX], pair.second.regs[RAX]) == (7, 7)
    pair.engine.settle()
    assert pair.exits == [("syscall",)] * 2


def test_who_is_released_by_the_others_exit_runs_no_more(pair: Pair) -> None:
    def release() -> None:
        pair.engine.release_cpu(pair.second)
        stopped.append(pair.word(SECOND_DATA))
        del pair.on["syscall"]

    stopped: list[int] = []
    pair.on["syscall"] = release
    pair.together("b900001000 ffc9 75fc" + SYSCALL + "b900001000 ffc9 75fc" + SYSCALL, COUNT)
    assert pair.exits == [("syscall",)] * 2
    assert stopped == [pair.word(SECOND_DATA)]


def test_one_that_ran_beside_others_runs_alone_as_before(pair: Pair) -> None:
    pair.kick_after(0.02)
    pair.together(COUNT, COUNT)
    for cpu in (pair.second, pair.cpu, pair.second):
        pair.prepare(cpu, SECOND_CODE, SECOND_DATA)
        pair.put("48c7c00900000048ff06" + SYSCALL, SECOND_CODE)
        before = pair.word(SECOND_DATA)
        pair.engine.run()
        assert (cpu.regs[RAX], pair.word(SECOND_DATA)) == (9, before + 1)


def test_a_signal_that_raises_stops_all(pair: Pair) -> None:
    import signal

    class Ended(Exception):
        pass

    def end(*_: object) -> None:
        raise Ended

    main = threading.main_thread().ident or 0

    def interrupt(count: int) -> None:
        while pair.word(SECOND_DATA) == count:
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, end)
    try:
        for run in (pair.resume_both, pair.resume_second):
            threading.Thread(target=interrupt, args=(pair.word(SECOND_DATA),)).start()
            pair.put(COUNT)
            pair.put(COUNT, SECOND_CODE)
            with pytest.raises(Ended):
                run()
            value = pair.word(SECOND_DATA)
            time.sleep(0.01)
            assert pair.word(SECOND_DATA) == value > 0
    finally:
        signal.signal(signal.SIGUSR1, before)
