"""The KVM engine by itself: exits, what it leaves in the registers, kicks, and page tables that change under it."""

from __future__ import annotations

import threading
import time

import pytest

from tests.conftest import why_not_kvm
from tests.unit.cpu.bench import ALL, CODE, DATA, FREE, OTHER_ROOT, ROOT, Bench
from xenolith.cpu.engine import ENGINE_SLOT, LACKING
from xenolith.cpu.kvm import KvmEngine
from xenolith.cpu.registers import DF, GS, IF, RIP
from xenolith.errors import UserError
from xenolith.machine.ram import Ram

_WHY_NOT = why_not_kvm()
pytestmark = pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)

SYSCALL = "0f05"
NOWHERE = 0x40_0000


@pytest.fixture
def bench() -> Bench:
    bench = Bench(engine=KvmEngine)
    bench.ram.words[(ROOT >> 3) + ENGINE_SLOT] = bench.engine.entry_table
    return bench


def test_a_system_call_leaves_registers_as_they_were(bench: Bench) -> None:
    values = {name: 0x1111_2222_3333_0000 + number for number, name in enumerate(("rax", "rbx", "rsi", "r8", "r15"))}
    assert bench.run(SYSCALL, **values, rsp=0x7654_3210) == [("syscall",)]
    assert {name: bench[name] for name in values} == values
    assert bench["rsp"] == 0x7654_3210
    assert bench["rip"] == CODE + 2


def test_flags_pass_in_and_out(bench: Bench) -> None:
    bench.cpu.flags = IF | DF | 0x8D5
    bench.run(SYSCALL)
    assert bench.cpu.flags & 0xCD5 == DF | 0x8D5


@pytest.mark.parametrize(
    ("code", "exit_", "length"),
    [
        ("488b06" + SYSCALL, ("exception", 14, 4, NOWHERE, False), 0),
        ("488906" + SYSCALL, ("exception", 14, 6, NOWHERE, False), 0),
        ("0f0b", ("exception", 6, 0, 0, False), 0),
        ("fa", ("exception", 13, 0, 0, False), 0),
        ("cc", ("exception", 3, 0, 0, True), 1),
        ("cd80", ("exception", 128, 0, 0, True), 2),
        ("cd0e", ("exception", 14, 0, 0, True), 2),
        ("31c9 f7f1", ("exception", 0, 0, 0, False), 2),
        ("e671", ("exception", 13, 0, 0, False), 0),
        ("ec", ("exception", 13, 0, 0, False), 0),
        ("f4", ("exception", 13, 0, 0, False), 0),
    ],
)
def test_exceptions(bench: Bench, code: str, exit_: tuple[object, ...], length: int) -> None:
    assert bench.run(code, rsi=NOWHERE) == [exit_]
    assert bench["rip"] == CODE + length


def test_a_fault_can_be_mended_and_the_instruction_repeated(bench: Bench) -> None:
    bench.on["exception"] = lambda *_: bench.__setitem__("rsi", DATA)
    bench.ram.words[DATA >> 3] = 77
    assert bench.run("488b06" + SYSCALL, rsi=NOWHERE)[-1] == ("syscall",)
    assert bench["rax"] == 77


def test_segment_bases(bench: Bench) -> None:
    bench.cpu.fs_base = DATA
    bench.cpu.gs_base = DATA + 8
    bench.ram.words[DATA >> 3], bench.ram.words[(DATA >> 3) + 1] = 5, 6
    bench.run("64488b042500000000 65488b1c2500000000" + SYSCALL)
    assert (bench["rax"], bench["rbx"]) == (5, 6)
    assert (bench.cpu.fs_base, bench.cpu.gs_base, bench.cpu.selector(GS)) == (DATA, DATA + 8, 0)


def test_a_kick_stops_a_guest_that_spins(bench: Bench) -> None:
    kicks = threading.Timer(0.05, bench.engine.kick)
    kicks.start()
    started = time.monotonic()
    assert bench.run("48ffc0 ebfb") == []
    assert 0.03 < time.monotonic() - started < 2
    assert bench["rax"] > 1000
    assert bench["rip"] in (CODE, CODE + 3)
    before = bench["rax"]
    threading.Timer(0.02, bench.engine.kick).start()
    bench.resume()
    assert bench["rax"] > before, "it goes on where it was"


def test_a_kick_before_the_guest_runs_is_for_the_last_run(bench: Bench) -> None:
    bench.engine.kick()
    assert bench.run(SYSCALL) == [("syscall",)]


def tell(bench: Bench, *mfns: int) -> None:
    if bench.engine.shadows_tables:
        for mfn in mfns:
            bench.engine.mapping_removed(mfn)


def test_a_mapping_that_changes(bench: Bench) -> None:
    for number in range(4):
        frame = FREE + (number << 12)
        bench.ram.words[frame >> 3] = 100 + number
    for number in (0, 1, 2, 3, 2, 0):
        bench.map(DATA, FREE + (number << 12) | ALL)
        tell(bench, *((FREE >> 12) + n for n in range(4)))
        bench.engine.flush_page(DATA)
        bench.run("488b06" + SYSCALL, rsi=DATA)
        assert bench["rax"] == 100 + number


def test_a_mapping_that_becomes_read_only(bench: Bench) -> None:
    assert bench.run("488906" + SYSCALL, rsi=DATA) == [("syscall",)]
    bench.map(DATA, DATA | 5)
    tell(bench, DATA >> 12)
    bench.engine.flush_all()
    assert bench.run("488906" + SYSCALL, rsi=DATA) == [("exception", 14, 7, DATA, False)]
    bench.map(DATA, DATA | ALL)
    bench.engine.flush_all()
    assert bench.run("488906" + SYSCALL, rsi=DATA) == [("syscall",)]


def test_a_frame_that_was_a_page_table_and_is_one_again(bench: Bench) -> None:
    """Its old contents must not come back, and meanwhile it can be written to like any other."""
    table, slot = 40, DATA >> 12
    for number in (1, 2):
        bench.ram.words[(FREE >> 3) + (number << 9)] = number
        at = (table << 9) + slot
        bench.ram.words[at], bench.ram.words[(table << 9) + (CODE >> 12)] = FREE + (number << 12) | ALL, CODE | ALL
        bench.ram.words[3 << 9] = table << 12 | ALL
        bench.engine.table_entry_changed(3 << 12)
        bench.engine.flush_all()
        bench.run("488b06" + SYSCALL, rsi=DATA)
        assert bench["rax"] == number
        bench.ram.words[3 << 9] = 4 << 12 | ALL
        bench.engine.table_entry_changed(3 << 12)
        bench.engine.table_gone(table)
        bench.engine.flush_all()
        assert bench.run("488906" + SYSCALL, rsi=table << 12, rax=7) == [("syscall",)]


def test_another_root(bench: Bench) -> None:
    bench.ram.words[OTHER_ROOT >> 3] = bench.ram.words[ROOT >> 3]
    bench.engine.load_root(OTHER_ROOT)
    bench.ram.words[(OTHER_ROOT >> 3) + ENGINE_SLOT] = bench.engine.entry_table
    assert bench.run(SYSCALL) == [("syscall",)]


def test_processors_have_registers_of_their_own_and_are_used_again(bench: Bench) -> None:
    other = bench.new_cpu()
    bench.run(SYSCALL, rax=1)
    bench.engine.switch_to(other)
    bench.engine.load_root(ROOT)
    bench.resume()
    assert (bench["rax"], other.regs[0]) == (1, 0)
    bench.engine.release_cpu(other)
    other.flags = 0x8D5
    again = bench.engine.create_cpu()
    assert again is other
    assert again.flags == 0x202


def test_a_device_is_asked_byte_for_byte(bench: Bench) -> None:
    asked: list[tuple[int, ...]] = []

    def read(offset: int, width: int) -> int:
        asked.append((offset, width))
        return 0xAABB_CCDD_EEFF_0011

    bench.engine.map_mmio(1 << 30, 4096, read, lambda *access: asked.append(access))
    bench.map(DATA, 1 << 30 | ALL)
    bench.run("8b4604 66894e08" + SYSCALL, rsi=DATA, rcx=0x1234)
    assert bench["rax"] == 0xEEFF_0011
    assert asked == [(4, 4), (8, 2, 0x1234)]


def test_memory_of_the_engines_own_is_out_of_reach(bench: Bench) -> None:
    start = 0xFFFF_8000_0000_0000 + (ENGINE_SLOT - 256 << 39)
    for page in range(16):
        (exit_,) = bench.run("488b06" + SYSCALL, rsi=start + (page << 12))
        assert exit_[:2] == ("exception", 14)
    for gap in bench.engine.unmapped(1 << 40):
        assert not set(gap[:: max(len(gap) - 1, 1)]) & set(bench.engine.reserved[:: 1 << 12])


def test_what_is_lacking_has_words(bench: Bench) -> None:
    assert bench.engine.lacks <= LACKING.keys()
    assert bench.engine.preemptible


def test_without_kvm_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xenolith.cpu.kvm._DEVICE", "/nowhere/kvm")
    with pytest.raises(UserError, match="/nowhere/kvm cannot be opened: No such file"):
        KvmEngine(Ram(1 << 20))


def test_another_architecture_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UserError, match="this is aarch64"):
        KvmEngine(Ram(1 << 20))


def test_kvm_cannot_count_work(bench: Bench) -> None:
    with pytest.raises(UserError, match="cannot count"):
        bench.engine.count_work()


def test_extended_state_goes_with_its_processor(bench: Bench) -> None:
    if not bench.engine.xcr0_mask & 4:
        pytest.skip("this host's processor has no AVX")
    other = bench.new_cpu()
    for cpu in (bench.cpu, other):
        cpu.set_xcr0(7)
    bench.run("c5fe6f06" + SYSCALL, rsi=DATA)
    bench.ram.bytes[DATA : DATA + 32] = bytes(range(1, 33))
    bench.run("c5fe6f06" + SYSCALL, rsi=DATA)
    bench.engine.switch_to(other)
    bench.engine.load_root(ROOT)
    other.regs[RIP] = CODE
    bench.put("c5fdefc0" + SYSCALL)
    bench.resume()
    bench.engine.switch_to(bench.cpu)
    bench.engine.load_root(ROOT)
    bench.run("c5fe7f06" + SYSCALL, rsi=DATA + 64)
    assert bytes(bench.ram.bytes[DATA + 64 : DATA + 96]) == bytes(range(1, 33))
