"""Hardware breakpoints: on instructions as faults, on data and ports as traps, and nothing where none is enabled."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.unit.cpu.bench import CODE, DATA, FREE, ROOT, Bench
from xenolith.cpu.registers import DR6_BS, DR6_FIXED, RF, TF

EXECUTE, WRITE, PORT, ACCESS = range(4)
BYTES = {1: 0, 2: 1, 8: 2, 4: 3}


class Debugged:
    """A bench that goes on after #DB as a debugger's kernel would, and notes RIP, RBX and the causes each time."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.hits: list[tuple[int, int, int]] = []
        bench.on["exception"] = self._exception

    def set(self, *breakpoints: tuple[int, int, int]) -> None:
        """Enable breakpoints: kind, address, length."""
        control = 0
        for number, (kind, address, length) in enumerate(breakpoints):
            self.bench.cpu.set_debug_register(number, address)
            control |= 1 << 2 * number | kind << 16 + 4 * number | BYTES[length] << 18 + 4 * number
        self.bench.cpu.set_debug_register(7, control | 0x400)

    def run(self, code: str, **registers: int) -> list[tuple[int, int, int]]:
        """The hits on the way to the INT 0x80 at the end of the code: offset of RIP, RBX, causes."""
        self.hits.clear()
        exits = self.bench.run(code + "cd80", **{"rbx": 0, "rsi": DATA, **registers})
        assert exits[-1][:2] == ("exception", 0x80), exits[-1]
        return self.hits

    def _exception(self, vector: int, *_: Any) -> None:
        cpu = self.bench.cpu
        if vector != 1:
            self.bench.engine.stop()
            return
        status = cpu.debug_register(6)
        self.hits.append((self.bench["rip"] - CODE, self.bench["rbx"], status & ~DR6_FIXED))
        if any(self.bench["rip"] == cpu.debug_register(number) for number in range(4)):
            cpu.flags |= RF
        cpu.set_debug_register(6, DR6_FIXED)


@pytest.fixture
def debugged(bench: Bench) -> Debugged:
    return Debugged(bench)


def test_an_instruction_breakpoint_is_a_fault(debugged: Debugged) -> None:
    code = "48ffc3 48ffc3 48ffc3"  # inc rbx, three times
    assert debugged.run(code) == []
    debugged.set((EXECUTE, CODE + 3, 1), (EXECUTE, CODE + 6, 1))
    assert debugged.run(code) == [(3, 1, 1), (6, 2, 2)]
    debugged.set()
    assert debugged.run(code) == []


def test_an_instruction_breakpoint_in_a_loop(debugged: Debugged) -> None:
    debugged.set((EXECUTE, CODE + 3, 1))
    assert debugged.run("31c9 90 48ffc3 ffc1 83f903 75f6") == [(3, 0, 1), (3, 1, 1), (3, 2, 1)]


def test_resumption_passes_one_instruction_only(debugged: Debugged) -> None:
    debugged.set((EXECUTE, CODE, 1))
    debugged.bench.cpu.flags |= RF
    assert debugged.run("48ffc3 48ff0e 7f00 48ffc3") == []
    assert not debugged.bench.cpu.flags & (RF | TF)
    assert debugged.bench["rbx"] == 2


WRITES = "48c70601000000 48ffc3 c7460802000000 48ffc3 ff4608 48ffc3 8b4608 48ffc3"
"""[rsi] = 1; [rsi+8] = 2; inc [rsi+8]; eax = [rsi+8]; with inc rbx behind each."""


@pytest.mark.parametrize(
    ("kind", "hits"), [(WRITE, [(0x11, 1, 1), (0x17, 2, 1)]), (ACCESS, [(0x11, 1, 1), (0x17, 2, 1), (0x1D, 3, 1)])]
)
def test_a_data_breakpoint_is_a_trap(debugged: Debugged, kind: int, hits: list[tuple[int, int, int]]) -> None:
    debugged.set((kind, DATA + 8, 4))
    assert debugged.run(WRITES) == hits
    assert debugged.bench.ram.words[DATA // 8 + 1] == 3, "each instruction has been executed once"
    debugged.set()
    assert debugged.run(WRITES) == []


def test_data_breakpoints_cover_their_bytes_and_no_more(debugged: Debugged) -> None:
    debugged.set((WRITE, DATA + 8, 4))
    code = "c64607ff c6460cff c74604ffffffff c74605ffffffff c7460bffffffff c74609ffffffff"
    assert [offset for offset, _, _ in debugged.run(code)] == [0x16, 0x1D, 0x24]
    debugged.set((WRITE, DATA + 8, 8), (WRITE, DATA + 15, 1))
    assert debugged.run("c6460fff") == [(4, 0, 3)]


def test_read_modify_write_off_its_alignment_happens_once(debugged: Debugged) -> None:
    debugged.set((WRITE, DATA + 8, 1))
    bench = debugged.bench
    bench.ram.bytes[DATA : DATA + 16] = bytes(16)
    assert debugged.run("ff4607 f0ff4607") == [(3, 0, 1), (7, 0, 1)]
    assert bytes(bench.ram.bytes[DATA + 7 : DATA + 11]) == b"\2\0\0\0"


def test_wide_stores_and_strings(debugged: Debugged) -> None:
    bench = debugged.bench
    bench.ram.words[DATA // 8], bench.ram.words[DATA // 8 + 1] = 1, 2
    debugged.set((WRITE, DATA + 8, 1))
    assert debugged.run("480fc70e", rax=1, rdx=2, rbx=3, rcx=4) == [(4, 3, 1)]  # cmpxchg16b
    assert (bench.ram.words[DATA // 8], bench.ram.words[DATA // 8 + 1]) == (3, 4)
    assert debugged.run("fc f348a5", rsi=DATA + 256, rdi=DATA, rcx=4) == [(1, 0, 1)], "after the second element"
    assert bench["rcx"] == 0


def test_a_watched_access_that_faults_is_that_fault(debugged: Debugged) -> None:
    bench = debugged.bench
    bench.map(FREE, 0)
    bench.engine.flush_all()
    debugged.set((WRITE, FREE - 1, 1))
    exits = bench.run("c746ffffffffff", rsi=FREE)
    assert [exit[1] for exit in exits] == [14]
    assert not bench.cpu.flags & TF
    assert not debugged.hits


def test_single_steps_are_still_told(debugged: Debugged) -> None:
    debugged.set((WRITE, DATA + 8, 1))
    debugged.bench.cpu.flags |= TF
    hits = debugged.run("c6460801 48ffc3")
    assert hits[:2] == [(4, 0, DR6_BS | 1), (7, 1, DR6_BS)]


def test_port_breakpoints(debugged: Debugged) -> None:
    debugged.bench.on["in"] = lambda port, size: 5
    debugged.set((PORT, 0x61, 1))
    assert debugged.run("ec 48ffc3 e461 48ffc3", rdx=0x60) == [(6, 1, 1)]


def test_breakpoints_belong_to_a_processor(debugged: Debugged) -> None:
    bench = debugged.bench
    debugged.set((EXECUTE, CODE + 3, 1), (WRITE, DATA, 8))
    code = "48ffc3 48c70601000000"
    assert debugged.run(code) == [(3, 1, 1), (10, 1, 2)]
    first, bench.cpu = bench.cpu, bench.new_cpu()
    bench.engine.switch_to(bench.cpu)
    bench.engine.load_root(ROOT)
    assert debugged.run(code) == []
    bench.engine.switch_to(first)
    bench.engine.load_root(ROOT)
    bench.cpu = first
    assert debugged.run(code) == [(3, 1, 1), (10, 1, 2)]


def test_two_engines(debugged: Debugged) -> None:
    other = Debugged(Bench())
    debugged.set((WRITE, DATA, 8))
    code = "48c70601000000 48ffc3"
    assert other.run(code) == []
    other.set((WRITE, DATA, 8))
    debugged.set()
    assert (debugged.run(code), other.run(code)) == ([], [(7, 0, 1)])
    other.set()


def test_stops_from_outside_while_data_is_watched(debugged: Debugged) -> None:
    """Whenever the stop comes, the trap flag that the engine uses for itself is not seen, and no access is lost."""
    bench = debugged.bench
    debugged.set((WRITE, DATA, 8))
    done = threading.Event()

    def kick() -> None:
        while not done.is_set():
            bench.engine.kick()
            time.sleep(0.0005)

    thread = threading.Thread(target=kick)
    bench.put("48ff06 48ffc3 48813e00080000 75f1 cd80")  # until [rsi] is 2048: inc [rsi]; inc rbx
    bench["rip"], bench["rbx"], bench["rsi"] = CODE, 0, DATA
    bench.engine.invalidate_code(CODE, 4096)
    thread.start()
    try:
        while not any(exit[1] == 0x80 for exit in bench.resume()):
            assert not bench.cpu.flags & TF
    finally:
        done.set()
        thread.join()
    assert (bench["rbx"], len(debugged.hits)) == (2048, 2048)
