"""Hot loops that the host's processor runs: the same registers and flags as the emulator's, and never when not safe."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.cpu.bench import CODE, DATA, FREE, ROOT, Bench
from xenolith.cpu import hot_loops, unicorn
from xenolith.cpu.registers import FLAGS_ARITHMETIC, RF, TF

SYSCALL = "0f05"
COUNT = "48ffc0 4839c8 75f8" + SYSCALL
"""head: inc rax; cmp rax, rcx; jne head; syscall"""
LOAD = "48ffc0 483b06 75f8" + SYSCALL
"""head: inc rax; cmp rax, [rsi]; jne head; syscall"""
LOAD_AND_GO = "48ffc0 48390425 00900000 75f3" + SYSCALL
"""head: inc rax; cmp [0x9000], rax; jne head; syscall"""
ACCESSED = 1 << 5
MANY = 1_000_000

if not Bench().engine.runs_loops:
    pytest.skip("hot loops need an x86-64 host that lets us make code", allow_module_level=True)


class Counted(Bench):
    """A bench that counts how often a loop was entered natively, and how many iterations it then ran."""

    def __init__(self) -> None:
        super().__init__()
        loops = self.engine._hot_loops
        assert loops is not None
        self.loops: hot_loops.HotLoops = loops
        self.iterations: list[int] = []
        judge = loops._judge

        def count(loop: hot_loops._Ready, passed: int) -> None:
            self.iterations.append(passed)
            judge(loop, passed)

        loops._judge = count  # type: ignore[method-assign]
        self.run(SYSCALL, rsi=DATA)
        self.run("488b06" + SYSCALL, rsi=DATA)  # both pages are marked as accessed

    def heat(self, code: str, at: int = CODE) -> None:
        """Put the code and have its loop at `at` compiled, if it can be."""
        self.put(code)
        self.engine.invalidate_code(CODE, 4096)
        for _ in range(hot_loops._STOPS + 1):
            self.loops.stopped_at(at, ROOT)

    def cool(self) -> None:
        for loop in list(self.loops._loops.values()):
            self.loops._give_up(loop)
        self.loops._refused.clear()
        self.iterations.clear()


@pytest.fixture
def hot() -> Counted:
    return Counted()


def test_a_loop_that_keeps_being_stopped_in_runs_natively(hot: Counted) -> None:
    done = threading.Event()

    def kick() -> None:
        while not done.wait(0.001):
            hot.engine.kick()

    thread = threading.Thread(target=kick)
    thread.start()
    deadline = time.monotonic() + 20
    hot.put(COUNT)
    hot.engine.invalidate_code(CODE, 4096)
    hot["rip"], hot["rax"], hot["rcx"] = CODE, 0, 1 << 62
    while not sum(hot.iterations) and time.monotonic() < deadline:
        assert hot.resume() == []
    done.set()
    thread.join()
    assert hot.loops.heads == [CODE]
    assert sum(hot.iterations) > 0
    assert hot["rax"] >= sum(hot.iterations)


def test_it_ends_as_the_emulator_would_have_ended_it(hot: Counted) -> None:
    hot.heat(COUNT)
    assert hot.run(rax=0, rcx=MANY) == [("syscall",)]
    assert (hot["rax"], hot["rip"]) == (MANY, CODE + 10)
    assert sum(hot.iterations) > MANY - 10


def test_a_loop_begins_where_it_jumps_back_to(hot: Counted) -> None:
    """head: inc rax; jmp next; next: cmp rax, rcx; je out; jmp head; out: syscall"""
    hot.heat("48ffc0 eb00 4839c8 7402 ebf4" + SYSCALL, at=CODE + 5)
    assert hot.loops.heads == [CODE]
    assert hot.run(rax=0, rcx=MANY) == [("syscall",)]
    assert (hot["rax"], hot["rip"]) == (MANY, CODE + 14)
    assert len(hot.iterations) == 1


def test_a_kick_stops_it(hot: Counted) -> None:
    hot.heat(COUNT)
    hot["rip"], hot["rax"], hot["rcx"] = CODE, 0, 1 << 62
    while not hot.iterations:
        timer = threading.Timer(0.02, hot.engine.kick)
        timer.start()
        assert hot.resume() == []
        timer.join()
    assert hot["rip"] == CODE
    assert 0 < sum(hot.iterations) <= hot["rax"]
    flags = hot.cpu.flags
    hot["rcx"] = hot["rax"] + 10
    assert hot.resume() == [("syscall",)]
    assert hot["rax"] == hot["rcx"]
    assert flags & FLAGS_ARITHMETIC != hot.cpu.flags & FLAGS_ARITHMETIC


def test_a_load_sees_what_memory_holds_now(hot: Counted) -> None:
    hot.ram.words[DATA >> 3] = MANY
    hot.heat(LOAD)
    for limit in (MANY, 2 * MANY):
        hot.ram.words[DATA >> 3] = limit
        hot.run(rax=0, rsi=DATA)
        assert hot["rax"] == limit
    assert sum(hot.iterations) > 3 * MANY - 10


def test_a_load_follows_the_page_tables(hot: Counted) -> None:
    hot.heat(LOAD_AND_GO)
    hot.ram.words[DATA >> 3], hot.ram.words[FREE >> 3] = MANY, 2 * MANY
    hot.run(rax=0)
    assert hot["rax"] == MANY
    hot.map(DATA, FREE | 0x27)
    hot.engine.flush_all()
    hot.run(rax=0)
    assert hot["rax"] == 2 * MANY


@pytest.mark.parametrize(
    ("entry", "fault"),
    [(0, 4), (DATA | 0x23, 5), (DATA | 0x7, None)],
    ids=["not present", "not the user's", "never accessed"],
)
def test_a_load_that_is_not_permitted_is_the_emulators(hot: Counted, entry: int, fault: int | None) -> None:
    hot.heat(LOAD_AND_GO)
    hot.ram.words[DATA >> 3] = 1000
    hot.map(DATA, entry)
    hot.engine.flush_all()
    exits = hot.run(rax=0)
    assert exits == [("syscall",)] if fault is None else [("exception", 14, fault, DATA, False)]
    if fault is None:
        assert hot["rax"] == 1000
        assert hot.ram.words[(4 << 9) + (DATA >> 12)] & ACCESSED
    assert hot.iterations[0] == 0


def test_a_load_across_two_pages_is_the_emulators(hot: Counted) -> None:
    hot.heat(LOAD)
    hot.ram.bytes[DATA + 4092 : DATA + 4100] = (5000).to_bytes(8, "little")
    hot.run(rax=0, rsi=DATA + 4092)
    assert hot["rax"] == 5000
    assert not any(hot.iterations)


def test_changed_code_is_not_run_as_it_was(hot: Counted) -> None:
    hot.heat(COUNT)
    hot.put("48ffc8")  # dec rax
    hot.engine.invalidate_code(CODE, 4096)
    hot.run(rax=3000, rcx=1000)
    assert hot["rax"] == 1000
    assert not any(hot.iterations)


def test_code_that_changes_itself_is_seen(hot: Counted) -> None:
    """head: inc rax; cmp rax, rcx; jne head; test rcx, rcx; je out; and now make the first instruction a `dec`:
    mov byte [head+2], 0xc8; xor ecx, ecx; jmp head; out: syscall"""
    hot.map(CODE, CODE | 0x27)
    hot.engine.flush_all()
    changed = (CODE + 2).to_bytes(4, "little").hex()
    hot.heat(f"48ffc0 4839c8 75f8 4885c9 740c c60425{changed}c8 31c9 ebe7" + SYSCALL)
    assert hot.run(rax=0, rcx=MANY) == [("syscall",)]
    assert (hot["rax"], hot["rcx"]) == (0, 0)
    assert hot.iterations[0] > MANY - 10
    assert not any(hot.iterations[1:])


@pytest.mark.parametrize(
    "code",
    [
        "48ff06 48ffc9 75f8", "e800000000 ebf9", "f390 ebfc", "48ffc4 ebfb", "48890e ebfb", "488b042e 48ffc5 ebf7",
        "f00fc106 ebfa", "8ed8 ebfc", "0f20c0 ebfb", "0f31 ebfc", "48c1e009 ebfa", "660fc8 ebfb", "648b06 ebfb",
    ],
)  # fmt: skip
def test_what_does_more_than_a_loop_may_keep_is_not_compiled(hot: Counted, code: str) -> None:
    hot.heat(code)
    assert hot.loops.heads == []


def test_a_loop_is_left_where_it_does_more(hot: Counted) -> None:
    """head: test al, 15; jne on; inc qword [rsi]; on: inc rax; cmp rax, rcx; jne head"""
    hot.ram.words[DATA >> 3] = 0
    hot.heat("a80f 7503 48ff06 48ffc0 4839c8 75f1" + SYSCALL)
    hot.run(rax=0, rcx=1600, rsi=DATA)
    assert hot.ram.words[DATA >> 3] == 100
    assert any(hot.iterations)


def test_a_loop_that_is_left_too_soon_is_given_up(hot: Counted) -> None:
    """again: mov [rsi], rcx; xor eax, eax; head: inc rax; cmp rax, 4; jne head; dec rcx; jnz again; syscall"""
    hot.heat("48890e 31c0 48ffc0 4883f804 75f7 48ffc9 75ed" + SYSCALL, CODE + 5)
    assert hot.loops.heads == [CODE + 5]
    hot.run(rcx=5000, rsi=DATA)
    assert hot.loops.heads == []
    assert len(hot.iterations) < 200
    assert (hot["rax"], hot["rcx"]) == (4, 0)


def test_single_steps_are_seen(hot: Counted) -> None:
    hot.heat(COUNT)
    hot.on["exception"] = lambda *details: hot.engine.stop() if len(hot.exits) > 40 else None
    hot.exits.clear()
    hot.cpu.flags |= TF
    hot.run(rax=0, rcx=1 << 62)
    hot.cpu.flags &= ~(TF | RF)
    assert all(exit[:2] == ("exception", 1) for exit in hot.exits)
    assert not hot.iterations


def test_a_breakpoint_is_hit(hot: Counted) -> None:
    hot.heat(COUNT)
    hot.cpu.set_debug_register(0, CODE + 6)
    hot.cpu.set_debug_register(7, 1)
    assert hot.run(rax=0, rcx=MANY) == [("exception", 1, 0, 0, False)]
    assert (hot["rax"], hot["rip"]) == (1, CODE + 6)
    hot.cpu.set_debug_register(7, 0)


def test_counted_work_is_not_run_natively() -> None:
    assert not Bench(work=True).engine.runs_loops


def test_without_executable_pages_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: bytes) -> mmap.mmap:
        raise OSError

    monkeypatch.setattr(unicorn, "page_of_code", refuse)
    bench = Bench()
    assert not bench.engine.runs_loops
    assert bench.run(COUNT, rax=0, rcx=1000) == [("syscall",)]


def test_a_host_that_gives_no_more_pages_is_no_reason_to_fail(hot: Counted) -> None:
    def refuse(code: bytes) -> mmap.mmap:
        raise OSError

    hot.loops._make_page = refuse
    hot.heat(COUNT)
    assert hot.loops.heads == []
    assert hot.run(rax=0, rcx=1000) == [("syscall",)]


def test_a_loop_that_crosses_a_page(hot: Counted) -> None:
    """inc rax lies over the end of the page of code, and the rest of the loop in the next one."""
    hot.map(DATA, DATA | 0x25)
    hot.engine.flush_all()
    hot.put("e9f80f0000")  # jmp 0x8ffd
    hot.put("9048ffc0 4839c8 75f8" + SYSCALL, CODE + 0xFFD)
    hot.engine.invalidate_code(CODE, 2 * 4096)
    assert hot.run(rax=0, rcx=5) == [("syscall",)]
    hot.heat("", CODE + 0xFFE)
    assert hot.loops.heads == [CODE + 0xFFE]
    assert hot.run(rax=0, rcx=MANY) == [("syscall",)]
    assert hot["rax"] == MANY
    assert sum(hot.iterations) > MANY - 10


def test_the_oldest_of_many_loops_makes_room(hot: Counted) -> None:
    for at in range(hot_loops._MOST_LOOPS + 1):
        hot.put(COUNT, CODE + 16 * at)
    for at in range(hot_loops._MOST_LOOPS + 1):
        hot.heat("", CODE + 16 * at)
    assert hot.loops.heads == [CODE + 16 * at for at in range(1, hot_loops._MOST_LOOPS + 1)]


# -- the same as the emulator ----------------------------------------------------------------------------------------

PIECES = (
    "4801d8", "11d0", "29f2", "48ffc7", "fec9", "4885d8", "4821d3", "0fb6c3", "480f42d8", "0f94c1", "488d7c3305",
    "480fc9", "4887d8", "f6d8", "48f7d3", "19c9", "4863f8", "7203 48ffc2", "7f03 48ffca", "6601d1", "80c47f", "0fbec7",
    "4d8b06", "4c3b0425 00900000", "0fb61425 03900000", "49031cd6", "488d05 00010000", "81c2 00000080", "f5", "90",
    "4531c0", "7002 ffc8", "410f9ac1", "4c0f4dc2", "6641ffc8", "480b1425 10900000", "84e3", "4898",
)  # fmt: skip
"""Instructions that a loop may keep; r14 is the address of data and r15 counts, and both stay what they are."""
WORDS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 0x7F, 0x80, 2**31 - 1, 2**31, 2**63, 2**64 - 1]))
NAMES = ("rax", "rcx", "rdx", "rbx", "rsi", "rdi", "r8", "r9")


@pytest.fixture(scope="module")
def pair() -> tuple[Counted, Bench]:
    return Counted(), Bench()


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=10),
    values=st.lists(WORDS, min_size=len(NAMES), max_size=len(NAMES)),
    data=st.lists(WORDS, min_size=4, max_size=4),
    flags=st.integers(0, 0xFFF),
    rounds=st.integers(1, 300),
)
def test_registers_and_flags_are_the_emulators(
    pair: tuple[Counted, Bench], pieces: list[str], values: list[int], data: list[int], flags: int, rounds: int
) -> None:
    body = "".join(pieces).replace(" ", "") + "49ffcf"
    code = body + "0f85" + (-(len(body) // 2 + 6) & 0xFFFFFFFF).to_bytes(4, "little").hex() + SYSCALL
    ends = []
    for bench in pair:
        bench.ram.words[DATA >> 3 : (DATA >> 3) + 4] = memoryview((ctypes.c_uint64 * 4)(*data)).cast("B").cast("Q")
        registers = dict(zip(NAMES, values, strict=True)) | {"r14": DATA, "r15": rounds}
        # The index of `add rbx, [r14+rdx*8]` must stay inside the data; where a loop writes to rdx it is left there.
        if "49031cd6" in pieces:
            registers["rdx"] %= 4
            if any(piece in pieces for piece in ("29f2", "7203 48ffc2", "7f03 48ffca", "81c2 00000080")):
                return
            if any(piece.endswith("1425 03900000") or piece == "480b1425 10900000" for piece in pieces):
                return
        if isinstance(bench, Counted):
            bench.cool()
            bench.heat(code)
            assert bench.loops.heads == [CODE]
            code_to_run = None
        else:
            code_to_run = code
        bench.cpu.flags = flags & FLAGS_ARITHMETIC | 0x202
        assert bench.run(code_to_run, **registers) == [("syscall",)]
        ends.append((bench.cpu.regs[:17].tolist(), bench.cpu.flags))
    assert sum(pair[0].iterations) >= rounds - 1
    assert ends[0] == ends[1]


def test_every_flag_comes_in_and_goes_out(pair: tuple[Counted, Bench]) -> None:
    """lea rcx, [rcx+1]; and again, until it is stopped."""
    hot = pair[0]
    hot.cool()
    hot.heat("488d4901 ebfa")
    for bits in product((0, 1), repeat=6):
        flags = sum(bit << at for bit, at in zip(bits, (0, 2, 4, 6, 7, 11), strict=True))
        hot.iterations.clear()
        hot.cpu.flags = flags | 0x202
        hot["rip"], hot["rcx"] = CODE, 0
        while not hot.iterations:
            timer = threading.Timer(0.001, hot.engine.kick)
            timer.start()
            assert hot.resume() == []
            timer.join()
        assert hot.cpu.flags & FLAGS_ARITHMETIC == flags
        assert hot["rcx"] >= sum(hot.iterations) > 0
