"""A processor that executes nothing: registers to set and to look at."""

from __future__ import annotations

from xenolith.cpu.registers import CS, REGISTER_WORDS
from xenolith.hypervisor.descriptors import XEN_CS64


class FakeCpu:
    """The part of the Cpu protocol that the hypervisor's own code uses."""

    exits = 0
    memory: memoryview | None = None

    def __init__(self) -> None:
        self.regs = memoryview(bytearray(REGISTER_WORDS * 8)).cast("Q")
        self.flags = 0x202
        self.fs_base = 0
        self.gs_base = 0
        self.task_switched = False
        self.selectors = {CS: XEN_CS64}
        self.debug: dict[int, int] = {}

    def show(self, maddr: int) -> None:
        self.shown = maddr

    def selector(self, segment: int) -> int:
        return self.selectors.get(segment, 0)

    def debug_register(self, number: int) -> int:
        return self.debug.get(number, 0)

    def set_debug_register(self, number: int, value: int) -> None:
        self.debug[number] = value
