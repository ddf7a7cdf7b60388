"""A bare engine with real page tables: a few hand-assembled instructions at CPL 3, and every exit written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from xenolith.cpu.registers import CS, DS, ES, NAMES, RIP, RSP, SS
from xenolith.cpu.unicorn import UnicornEngine
from xenolith.machine.ram import Ram

FRAMES: Final = 64
ROOT: Final = 1 << 12
CODE: Final = 0x8000
DATA: Final = 0x9000
STACK_TOP: Final = 0xB000
OTHER_ROOT: Final = 0xC000
FREE: Final = 0x10000
"""From here on frames are nobody's."""

PRESENT: Final = 1
WRITABLE: Final = 2
USER: Final = 4
NX: Final = 1 << 63
_CODE_PAGE: Final = PRESENT | USER
_DATA_PAGE: Final = PRESENT | WRITABLE | USER | NX
ALL: Final = PRESENT | WRITABLE | USER

USER_CODE: Final = 0x33
USER_DATA: Final = 0x2B
CODE64: Final = 0x00A0FB00
DATA32: Final = 0x00C0F300


class Bench:
    """The engine, one processor on it, and what happened. `on` holds what to do at an exit; most of them stop."""

    def __init__(
        self,
        size: int = FRAMES << 12,
        ram_ranges: list[range] | None = None,
        work: bool = False,
        engine: Callable[[Ram, list[range] | None], Any] = UnicornEngine,
    ) -> None:
        self.ram = Ram(size)
        self.engine = engine(self.ram, ram_ranges)
        for level in range(1, 4):
            self.ram.words[level << 9] = (level + 1) << 12 | ALL
        for frame in range(5, FRAMES):
            self.map(frame << 12, frame << 12 | _DATA_PAGE)
        self.map(CODE, CODE | _CODE_PAGE)
        self.exits: list[tuple[Any, ...]] = []
        self.on: dict[str, Callable[..., Any]] = {}
        if work:
            self.engine.count_work()
        self.engine.attach(self)
        self.cpu = self.new_cpu()
        self.engine.switch_to(self.cpu)
        self.engine.load_root(ROOT)

    def new_cpu(self) -> Any:
        cpu = self.engine.create_cpu()
        for segment in (ES, DS, SS):
            cpu.load_segment(segment, USER_DATA, 0, 0xFFFFFFFF, DATA32)
        cpu.load_segment(CS, USER_CODE, 0, 0xFFFFFFFF, CODE64)
        cpu.regs[RIP], cpu.regs[RSP] = CODE, STACK_TOP
        return cpu

    def map(self, vaddr: int, entry: int) -> None:
        """Write the L1 entry of an address below 2 MiB, and nothing else."""
        self.ram.words[(4 << 9) + (vaddr >> 12)] = entry

    def put(self, code: str, at: int = CODE) -> int:
        """Write code given in hexadecimal at a machine address; returns the address after it."""
        raw = bytes.fromhex(code)
        self.ram.bytes[at : at + len(raw)] = raw
        return at + len(raw)

    def run(self, code: str | None = None, **registers: int) -> list[tuple[Any, ...]]:
        """Run from the start of the code page, with registers as given; returns the exits of this run."""
        if code is not None:
            self.put(code)
            self.engine.invalidate_code(CODE, 4096)
        self.cpu.regs[RIP] = CODE
        for name, value in registers.items():
            self[name] = value
        return self.resume()

    def resume(self) -> list[tuple[Any, ...]]:
        before = len(self.exits)
        self.engine.run()
        return self.exits[before:]

    def __getitem__(self, name: str) -> int:
        return self.cpu.regs[_NUMBERS[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self.cpu.regs[_NUMBERS[name]] = value

    def _exit(self, name: str, *details: Any, default: Any = None) -> Any:
        self.exits.append((name, *details))
        if name in self.on:
            return self.on[name](*details)
        self.engine.stop()
        return default

    # -- ExitHandler ----------------------------------------------------------------------------------------------

    def on_processor(self, cpu: Any) -> bool:
        self.current = cpu
        return True

    def on_all_stopped(self) -> bool:
        return True

    def on_syscall(self) -> None:
        self._exit("syscall")

    def on_sysenter(self) -> None:
        self._exit("sysenter")

    def on_exception(self, vector: int, error_code: int, address: int, software: bool) -> None:
        self._exit("exception", vector, error_code, address, software)

    def on_port_in(self, port: int, size: int) -> int | None:
        answer = self._exit("in", port, size, default=0)
        return None if answer is None else int(answer)

    def on_port_out(self, port: int, size: int, value: int) -> bool:
        return bool(self._exit("out", port, size, value, default=True))

    def on_cpuid(self) -> None:
        self._exit("cpuid")

    def on_rdtsc(self) -> int:
        return int(self._exit("rdtsc", default=0))

    def on_rdtscp(self) -> int:
        return int(self._exit("rdtscp", default=0))

    def on_instruction_finished(self) -> None:
        self._exit("finished")

    def on_spin(self) -> None:
        self._exit("spin")

    def on_failure(self, reason: str) -> None:
        self._exit("failure", reason)


_NUMBERS: Final = {name: number for number, name in enumerate(NAMES)}
