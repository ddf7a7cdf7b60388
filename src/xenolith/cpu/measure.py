"""How fast an engine is: what an exit costs, and how many instructions of a tight loop it executes in a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from xenolith.cpu.engine import ENGINE_SLOT
from xenolith.cpu.registers import RBX, RIP, RSI
from xenolith.errors import UserError
from xenolith.machine.ram import Ram

if TYPE_CHECKING:
    from xenolith.cpu.engine import Cpu, Engine


class Speed(NamedTuple):
    """`exit_us` is microseconds from the guest to an empty handler and back."""

    exit_us: float
    million_instructions_per_second: float


def measure(create: Callable[[Ram], Engine]) -> tuple[Engine, Speed]:
    """Start an engine, which verifies what it rests on, and measure it. Raises UserError where it is not usable."""
    bench = Bench(create)
    return bench.engine, Speed(bench.exit_us(), bench.million_instructions_per_second())


_CODE: Final = 0x8000
_DATA: Final = 0x9000
_FRAMES: Final = 16
_PRESENT_WRITABLE_USER: Final = 7
_NX: Final = 1 << 63

_TRIES: Final = 12
"""Of which the fastest counts: on a busy host some are interrupted."""
_FEW_EXITS: Final = 200
_LONG_ENOUGH_S: Final = 0.002
_SYSCALL_LOOP: Final = bytes.fromhex("0f05 ebfc")
"""syscall; jmp back to it."""

_ROUNDS: Final = 1_000_000
_WORK_INSTRUCTIONS: Final = 8
_WORK_LOOP: Final = bytes.fromhex("488b06 4801d8 4831c1 488906 488d5308 480fafca 48ffcb 75e7 0f05")
"""mov rax,[rsi]; add rax,rbx; xor rcx,rax; mov [rsi],rax; lea rdx,[rbx+8]; imul rcx,rdx; dec rbx; jnz; then syscall."""


class Bench:
    """A processor with one page of code and one of data, at CPL 3, whose every exit is counted."""

    def __init__(self, create: Callable[[Ram], Engine]) -> None:
        ram = Ram(_FRAMES << 12)
        for level in range(1, 4):
            ram.words[level << 9] = (level + 1) << 12 | _PRESENT_WRITABLE_USER
        ram.words[(4 << 9) + (_CODE >> 12)] = _CODE | _PRESENT_WRITABLE_USER
        ram.words[(4 << 9) + (_DATA >> 12)] = _DATA | _PRESENT_WRITABLE_USER | _NX
        self._ram = ram
        self.engine = create(ram)
        ram.words[(1 << 9) + ENGINE_SLOT] = self.engine.entry_table
        self.engine.attach(self)
        self._cpu = self.engine.create_cpu()
        self.engine.switch_to(self._cpu)
        self.engine.load_root(1 << 12)
        self._exits_left = 0

    def exit_us(self) -> float:
        """Microseconds for one SYSCALL that is counted and nothing else."""
        exits = _FEW_EXITS
        while self._run(_SYSCALL_LOOP, exits) < _LONG_ENOUGH_S:
            exits *= 4
        return min(self._run(_SYSCALL_LOOP, exits) for _ in range(_TRIES)) / exits * 1e6

    def million_instructions_per_second(self) -> float:
        """How fast a tight loop of arithmetic with one load and one store in eight instructions runs."""
        seconds = min(self._run(_WORK_LOOP, exits=1) for _ in range(_TRIES))
        return _ROUNDS * _WORK_INSTRUCTIONS / seconds / 1e6

    def _run(self, code: bytes, exits: int) -> float:
        """Run `code` until it has exited so often; the seconds of processor time that it took."""
        self._ram.bytes[_CODE : _CODE + len(code)] = code
        self.engine.invalidate_code(_CODE, 4096)
        registers = self._cpu.regs
        registers[RIP], registers[RSI], registers[RBX] = _CODE, _DATA, _ROUNDS
        self._exits_left = exits
        started = time.thread_time()
        self.engine.run()
        seconds = time.thread_time() - started
        if self._exits_left:
            raise UserError("the engine stopped before it should", "use another one (--engine)")
        return seconds

    # -- ExitHandler: only on_syscall is expected --------------------------------------------------------------------

    def on_processor(self, cpu: Cpu) -> bool:
        return True

    def on_all_stopped(self) -> bool:
        return True

    def on_syscall(self) -> None:
        self._exits_left -= 1
        if not self._exits_left:
            self.engine.stop()

    def on_sysenter(self) -> None:
        self.on_failure("sysenter")

    def on_exception(self, vector: int, error_code: int, address: int, software: bool) -> None:
        self.on_failure(f"exception {vector} (error {error_code:#x}) at {address:#x}")

    def on_port_in(self, port: int, size: int) -> int:
        self.on_failure("in")
        return 0

    def on_port_out(self, port: int, size: int, value: int) -> bool:
        self.on_failure("out")
        return True

    def on_cpuid(self) -> None:
        self.on_failure("cpuid")

    def on_rdtsc(self) -> int:
        self.on_failure("rdtsc")
        return 0

    def on_rdtscp(self) -> int:
        self.on_failure("rdtscp")
        return 0

    def on_spin(self) -> None:
        self.on_failure("pause")

    def on_instruction_finished(self) -> None:
        self.on_failure("an instruction")

    def on_failure(self, reason: str) -> None:
        raise UserError(f"the engine failed its test: {reason}", "use another one (--engine)")
