"""A whole hypervisor on a processor that executes nothing, and guests with page tables to call it from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tests.unit.hypervisor.fake_cpu import FakeCpu
from xenolith.abi.errno import XenError
from xenolith.abi.types import Struct
from xenolith.cpu.registers import RDI, RIP
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.frames import TYPE_L4
from xenolith.hypervisor.hypercalls.table import HANDLERS
from xenolith.hypervisor.machine import Hypervisor
from xenolith.hypervisor.release import DEFAULT_RELEASE, RELEASES
from xenolith.hypervisor.vcpu import Vcpu
from xenolith.machine.ram import Ram

P, RW, USER, A, D, PSE, GLOBAL, NX = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
KERNEL_BASE = 0xFFFF_FFFF_8000_0000
CODE = 0x1000
WALL_NS = 1_704_067_200_000_000_000


class Cpu(FakeCpu):
    """Also remembers what was loaded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[tuple[int, int, int, int, int]] = []
        self.tables = (0, 0, 0, 0)

    def load_segment(self, segment: int, selector: int, base: int, limit: int, attributes: int) -> None:
        self.selectors[segment] = selector
        self.loaded.append((segment, selector, base, limit, attributes))

    def set_descriptor_tables(self, gdt_base: int, gdt_limit: int, ldt_base: int, ldt_limit: int) -> None:
        self.tables = (gdt_base, gdt_limit, ldt_base, ldt_limit)


class Engine:
    """Remembers what it was asked for in `calls`; `program`, if any, is what the processor does when it runs."""

    name = "unicorn"
    processors = 1
    lacks: frozenset[str] = frozenset()
    entry_table = 0
    xcr0_mask = 0
    reserved = range(0)
    first_slot = 256
    tsc_khz: int | None = None
    forgets_code = False
    shadows_tables = False
    memory: memoryview | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.program: Callable[[], None] = lambda: None
        self.untold: list[Cpu] = []

    def create_cpu(self) -> Cpu:
        return Cpu()

    def read_tsc(self) -> int:
        return 0

    def release_cpu(self, cpu: Cpu) -> None:
        self.calls.append(("release", cpu))

    def mapping_removed(self, mfn: int) -> None:
        self.calls.append(("removed", mfn))

    def table_entry_changed(self, maddr: int) -> None:
        self.calls.append(("entry", maddr))

    def table_gone(self, mfn: int) -> None:
        self.calls.append(("gone", mfn))

    def switch_to(self, cpu: Cpu) -> None:
        self.calls.append(("switch", cpu))

    def attach(self, handler: Any, shortcuts: Any = None, program: Any = None) -> None:
        self.handler = handler

    def run(self, *beside: Cpu) -> None:
        self.calls.append(("run", *beside))
        self.program()

    def settle(self) -> None:
        self.calls.append(("settle",))

    def comes_first(self, cpu: Cpu) -> bool:
        self.calls.append(("comes first", cpu))
        if cpu not in self.untold:
            return False
        self.untold.remove(cpu)
        return True

    def stop(self) -> None:
        self.calls.append(("stop",))

    def finish_instruction(self) -> None:
        self.calls.append(("finish",))

    def kick(self) -> None:
        self.calls.append(("kick",))

    def load_root(self, maddr: int) -> None:
        self.calls.append(("root", maddr))

    def change_mode(self, maddr: int, kernel_mode: bool) -> bool:
        return False

    def still_has(self, maddr: int) -> bool:
        return False

    def flush_all(self) -> None:
        self.calls.append(("flush",))

    def flush_page(self, vaddr: int) -> None:
        self.calls.append(("page", vaddr))

    def invalidate_code(self, maddr: int, size: int) -> None:
        self.calls.append(("code", maddr, size))

    def host_cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        return (0, 0, 0, 0)

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)


class Clock:
    """System time that stands still until a test sets `ns`."""

    virtual = True

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def wall_ns(self) -> int:
        return WALL_NS + self.ns


class Host:
    """The world outside: `armed` and `waited` are the deadlines that it was given, `incoming` what it has to say."""

    def __init__(self) -> None:
        self.armed: list[int | None] = []
        self.waited: list[int | None] = []
        self.incoming: list[Callable[[], None]] = []

    def poll(self) -> None:
        while self.incoming:
            self.incoming.pop(0)()

    def arm(self, deadline_ns: int | None) -> None:
        self.armed.append(deadline_ns)

    def wait(self, deadline_ns: int | None) -> None:
        self.waited.append(deadline_ns)


class Bench(Hypervisor):
    """The real hypervisor on `frames` frames of memory, without a processor and without a PC."""

    engine: Engine  # type: ignore[assignment]
    clock: Clock
    host: Host

    def __init__(self, frames: int = 512, release: str = DEFAULT_RELEASE) -> None:
        super().__init__(
            Ram(frames << 12),
            Engine(),  # type: ignore[arg-type]
            Clock(),  # type: ignore[arg-type]
            Host(),
            None,
            release=RELEASES[release],
        )
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.subscribers.append(lambda kind, data: self.events.append((kind, data)))

    def domain(
        self, frames: int = 0, vcpus: int = 1, capabilities: Capability = Capability.NONE, name: str = "guest"
    ) -> Domain:
        """A domain with `frames` frames and a limit 64 above that; its vCPUs are not started."""
        domain = self.create_domain(name, frames + 64, vcpus, capabilities)
        self.give(domain, frames)
        return domain

    def give(self, domain: Domain, count: int) -> list[int]:
        mfns = self.frames.allocate(domain.domid, count)
        domain.tot_frames += count
        return mfns

    def table(self, mfn: int, entries: dict[int, int]) -> int:
        """Write entries into a frame as a guest that has it mapped would; returns the frame."""
        for slot, entry in entries.items():
            self.ram.words[(mfn << 9) + slot] = entry
        return mfn

    def entry(self, mfn: int, slot: int) -> int:
        return self.ram.words[(mfn << 9) + slot]

    def guest(self, pages: int = 8, vcpus: int = 1, capabilities: Capability = Capability.NONE) -> Guest:
        return Guest(self, pages, vcpus, capabilities)


class Guest:
    """A started domain whose `pages` data frames are mapped writable from KERNEL_BASE + 4096 on, its tables read-only.

    `data[i]` is the frame at KERNEL_BASE + 4096 * (i + 1); `l1`, `l2`, `l3`, `l4` are its tables, mapped after those.
    """

    def __init__(self, hv: Bench, pages: int, vcpus: int, capabilities: Capability) -> None:
        self.hv = hv
        self.domain = hv.domain(0, vcpus, capabilities)
        self.data = hv.give(self.domain, pages)
        self.l1, self.l2, self.l3, self.l4 = self.tables = hv.give(self.domain, 4)
        hv.table(self.l4, {511: self.l3 << 12 | P | RW | A})
        hv.table(self.l3, {510: self.l2 << 12 | P | RW | A})
        hv.table(self.l2, {0: self.l1 << 12 | P | RW | A})
        hv.table(self.l1, {1 + index: mfn << 12 | P | RW | A | D for index, mfn in enumerate(self.data)})
        hv.table(self.l1, {1 + pages + index: mfn << 12 | P | A | NX for index, mfn in enumerate(self.tables)})
        self.vcpu = self.domain.vcpus[0]
        hv.start_domain(self.domain, KERNEL_BASE + CODE, self.va(1) + 4096, 0, self.l4)
        hv.traps.current, hv.running = self.vcpu, [self.vcpu]

    @property
    def cpu(self) -> Cpu:
        cpu: Any = self.vcpu.cpu
        return cpu  # type: ignore[no-any-return]

    def va(self, index: int, offset: int = 0) -> int:
        """The address of data page `index`."""
        return KERNEL_BASE + (index + 1) * 4096 + offset

    def table_va(self, mfn: int, slot: int = 0) -> int:
        """The address, mapped read-only, of an entry of one of its tables."""
        return self.va(len(self.data) + self.tables.index(mfn), slot * 8)

    def maddr(self, index: int, offset: int = 0) -> int:
        return self.data[index] << 12 | offset

    def put(self, vaddr: int, data: bytes | Struct | Iterable[int]) -> int:
        """Write into the guest's memory as the guest would; a list is one of 64-bit words. Returns `vaddr`."""
        if isinstance(data, Struct):
            data = data.to_bytes()
        elif not isinstance(data, bytes):
            data = b"".join(word.to_bytes(8, "little") for word in data)
        self.hv.memory.write(self.vcpu, vaddr, data)
        return vaddr

    def word(self, vaddr: int) -> int:
        return self.hv.memory.read_u64(self.vcpu, vaddr)

    def call(self, number: int, *arguments: int, vcpu: Vcpu | None = None) -> int:
        """The hypercall as the dispatcher makes it: its result, or the negative errno."""
        try:
            return HANDLERS[number](self.hv, vcpu or self.vcpu, *arguments) or 0
        except XenError as error:
            return -error.errno

    def op(self, number: int, command: int, argument: Struct | None = None, page: int = 0) -> int:
        """A sub-operation whose argument is put into data page `page`, and updated from there."""
        vaddr = self.va(page)
        if argument is None:
            return self.call(number, command, 0)
        self.put(vaddr, argument)
        result = self.call(number, command, vaddr)
        changed = type(argument).from_bytes(self.hv.memory.read(self.vcpu, vaddr, type(argument).sizeof()))
        for name, *_ in argument._fields_:
            setattr(argument, name, getattr(changed, name))
        return result

    def execute(self, code: bytes, **registers: int) -> None:
        """Put an instruction where RIP is, in data page 0, and set registers by number as r0=..., r1=...."""
        self.hv.memory.write(self.vcpu, KERNEL_BASE + CODE, code)
        self.cpu.regs[RIP] = KERNEL_BASE + CODE
        for name, value in registers.items():
            self.cpu.regs[int(name[1:])] = value


def snapshot(hv: Hypervisor) -> list[tuple[int, ...]]:
    """All that the frame table knows, frame by frame; the type only of frames in use as one."""
    frames = hv.frames
    return [
        (
            frames.owner[mfn],
            frames.count[mfn],
            frames.type_count[mfn],
            frames.type[mfn] if frames.type_count[mfn] else 0,
            frames.flags[mfn] & 0b10011,
        )
        for mfn in range(frames.total)
    ]


__all__ = ["KERNEL_BASE", "RDI", "TYPE_L4", "Bench", "Guest", "snapshot"]
