"""Hostile hypercalls by the thousand: random calls with random arguments, drawn from values that mean something.

A caller is a vCPU of a real guest; its calls go through the hypercall table as those of the guest's code would. Nothing
but XenError may come out of a handler, and the frame table's books must balance all the time. Run by hand for longer:
`python -m tests.guest.fuzzing SECONDS [FIRST_SEED]`.
"""

from __future__ import annotations

import ctypes
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.guest.assembler import assemble
from tests.guest.pvguest import PAGE, PvGuest, TestMachine
from xenolith.abi.errno import XenError
from xenolith.abi.hypercalls import (
    BY_NUMBER,
    HYPERVISOR_grant_table_op,
    HYPERVISOR_iret,
    HYPERVISOR_memory_op,
    HYPERVISOR_mmu_update,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_multicall,
    HYPERVISOR_sched_op,
    HYPERVISOR_set_gdt,
    HYPERVISOR_update_descriptor,
    HYPERVISOR_update_va_mapping,
    HYPERVISOR_update_va_mapping_otherdomain,
    HYPERVISOR_vcpu_op,
)
from xenolith.abi.sched import SCHEDOP_remote_shutdown, SCHEDOP_shutdown
from xenolith.abi.types import DOMID_IO, DOMID_SELF, DOMID_XEN
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.grants import GrantError
from xenolith.hypervisor.hypercalls.table import HANDLERS, OPERATIONS, Continuation

_CALLS_PER_LIFE: Final = 250
"""Calls after which the guests are destroyed and others started."""
_CALLS_PER_CHECK: Final = 10
_PARTS: Final = 4
"""How often a call is continued before the caller loses interest."""
_RARE: Final = frozenset(((HYPERVISOR_sched_op, SCHEDOP_shutdown), (HYPERVISOR_sched_op, SCHEDOP_remote_shutdown)))
_EDGES: Final = (0, 1, 2, 3, 7, 8, 255, 511, 512, 4095, 4096, 0x7FFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 32)
_FAR: Final = ((1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1, 0x8000_0000_0000, 0xFFFF_8000_0000_0000)
_MAPPED_PAGES: Final = 24


class Fuzzer:
    """One random life after the other on `machine`; `seed` repeats it."""

    def __init__(self, machine: TestMachine, seed: int) -> None:
        self._machine = machine
        self._hv = machine.hv
        self._random = random.Random(seed)
        self._guests: list[PvGuest] = []
        self.calls = 0
        self.accepted = 0
        self.log: list[str] = []
        self.outcomes: Counter[str] = Counter()

    def live(self, calls: int = _CALLS_PER_LIFE) -> None:
        """Start guests, make random calls, destroy the guests. AssertionError, or what a handler let out."""
        free = self._machine.frames_left()
        capabilities = (Capability.NONE, Capability.NONE, Capability.CONTROL)
        self._guests = [
            self._machine.start(f"fuzz{number}", capability, vcpus=2, memory=6 << 20)
            for number, capability in enumerate(capabilities)
        ]
        for guest in self._guests:
            self._prepare(guest)
        for _ in range(calls):
            self._call(self._random.choice(self._guests))
            if self.calls % _CALLS_PER_CHECK == 0:
                self._machine.check()
        self._machine.check()
        self._random.shuffle(self._guests)
        for guest in self._guests:
            guest.destroy()
            self._machine.check()
        assert self._machine.frames_left() == free, "frames were lost"

    def _prepare(self, guest: PvGuest) -> None:
        """Pages that may become tables, and grants to the others."""
        for page in range(_MAPPED_PAGES // 2):
            entries = {slot: self._entry(guest) for slot in range(self._random.randrange(4))}
            guest.table(page, entries)
        table = guest.domain.grants
        for ref in range(8, 24):
            other = self._random.choice(self._guests)
            table.grant(ref, other.domid, self._own_mfn(guest), readonly=self._random.random() < 0.3)

    # -- values -------------------------------------------------------------------------------------------------------

    def _own_mfn(self, guest: PvGuest) -> int:
        choice = self._random.random()
        if choice < 0.7:
            maddr = guest.pte_maddr(guest.page(self._random.randrange(_MAPPED_PAGES)))
            return self._hv.ram.words[maddr >> 3] >> 12 & 0xFFFFFFF
        if choice < 0.85:
            return self._random.choice(self._hv.frames.owned_by(guest.domid) or [0])
        tables = [guest.domain.vcpus[0].kernel_root >> 12, guest.pte_maddr(guest.page(0)) >> 12]
        return self._random.choice([*tables, guest.domain.shared_info_mfn, *guest.domain.grants.frames])

    def _mfn(self, guest: PvGuest) -> int:
        choice = self._random.random()
        if choice < 0.75:
            return self._own_mfn(guest)
        if choice < 0.9:
            return self._own_mfn(self._random.choice(self._guests))
        if choice < 0.95:
            return self._random.randrange(self._hv.frames.total + 8)
        return self._random.choice((0, self._hv.frames.total, (1 << 40) - 1, (1 << 52) - 1, (1 << 64) - 1))

    def _entry(self, guest: PvGuest) -> int:
        flags = self._random.choice((1, 1, 3, 3, 5, 7, 0x63, 0, 0x83, 0x11, 0x103))
        high = self._random.choice((0, 0, 0, 1 << 63, 1 << 52))
        return (self._mfn(guest) << 12 | flags | high) & (1 << 64) - 1

    def _vaddr(self, guest: PvGuest) -> int:
        choice = self._random.random()
        if choice < 0.8:
            return guest.page(self._random.randrange(_MAPPED_PAGES)) + self._random.choice((0, 0, 0, 8, 64, 4088, 4092))
        if choice < 0.9:
            return guest.symbols["arguments"] + 8 * self._random.randrange(512)
        return self._random.choice((0, *_FAR, self._random.getrandbits(64)))

    def _pte_maddr(self, guest: PvGuest) -> int:
        if self._random.random() < 0.5:
            return guest.pte_maddr(guest.page(self._random.randrange(_MAPPED_PAGES)))
        return self._mfn(guest) << 12 | 8 * self._random.randrange(512)

    def _domid(self) -> int:
        return self._random.choice(
            (DOMID_SELF, DOMID_SELF, *(guest.domid for guest in self._guests), 999, DOMID_IO, DOMID_XEN, 0x7FF4, 0xFFFF)
        )

    def _number(self, guest: PvGuest) -> int:
        choice = self._random.random()
        if choice < 0.3:
            return self._random.randrange(32)
        if choice < 0.45:
            return self._mfn(guest)
        if choice < 0.6:
            return self._vaddr(guest)
        if choice < 0.75:
            return self._domid()
        if choice < 0.8:
            return self._mfn(guest) << 12
        return self._random.choice((*_EDGES, *_FAR))

    def _count(self) -> int:
        return self._random.choice((0, 1, 1, 1, 2, 3, 5, 512, 7168, 7169, *_EDGES))

    # -- calls --------------------------------------------------------------------------------------------------------

    def _call(self, guest: PvGuest) -> None:
        if guest.stopped:
            return
        vcpu = guest.domain.vcpus[0]
        self._hv.traps.current, self._hv.running = vcpu, [vcpu]
        self._hv.engine.switch_to(vcpu.cpu)
        self._hv.load_root(vcpu.kernel_root)
        number, arguments = self._make(guest)
        self.calls += 1
        self.log.append(f"{vcpu!r}: {BY_NUMBER[number].name}({', '.join(map(hex, arguments))})")
        try:
            for _ in range(_PARTS):
                try:
                    HANDLERS[number](self._hv, vcpu, *arguments)
                    break
                except Continuation as rest:
                    arguments = rest.arguments
            self.accepted += 1
            self.outcomes[f"{BY_NUMBER[number].name} ok"] += 1
        except XenError as error:
            self.log[-1] += f" = {error}"
            self.outcomes[f"{BY_NUMBER[number].name} {error!s:.60}"] += 1
        vcpu.blocked = vcpu.polling = False

    def _make(self, guest: PvGuest) -> tuple[int, tuple[int, ...]]:
        """A hypercall's number and its register arguments; what they point to is written into the guest's memory."""
        if self._random.random() < 0.6:
            number = self._random.choice(tuple(_MAKERS))
            return number, _MAKERS[number](self, guest)
        number = self._random.choice([known for known in HANDLERS if known not in (HYPERVISOR_iret,)])
        commands = [command for called, command in OPERATIONS if called == number]
        if commands:
            return number, self._operation(guest, number, commands)
        return number, tuple(self._number(guest) for _ in BY_NUMBER[number].arguments)

    def _write(self, guest: PvGuest, data: bytes) -> int:
        """Where the data is, if the guest still has that page writable; else nowhere good."""
        try:
            return guest.arguments(data[: 4 * PAGE])
        except XenError:
            return self._vaddr(guest)

    def _operation(self, guest: PvGuest, number: int, commands: list[int]) -> tuple[int, ...]:
        command = self._random.choice(commands)
        if (number, command) in _RARE and self._random.random() < 0.98:
            command = commands[0]
        bound = OPERATIONS[number, command]
        if bound.argument is None:
            vaddr = self._vaddr(guest)
        else:
            argument = bound.argument.from_bytes(bytes(bound.argument.sizeof()))
            self._fill(guest, argument)
            vaddr = self._write(guest, argument.to_bytes() * 3)
        if number == HYPERVISOR_vcpu_op:
            return command, self._random.choice((0, 1, 1, 2, 1 << 32)), vaddr
        if number == HYPERVISOR_grant_table_op:
            return command, vaddr, self._random.choice((*[1] * 24, 2, 2, 3, 0, 1 << 31, 4000))
        return (command, vaddr)[: len(BY_NUMBER[number].arguments)]

    def _fill(self, guest: PvGuest, argument: Any) -> None:
        """Put something that may mean something into every field."""
        for name, kind, *_bits in argument._fields_:
            if issubclass(kind, ctypes.Structure | ctypes.Union):
                self._fill(guest, getattr(argument, name))
            elif issubclass(kind, ctypes.Array):
                elements = getattr(argument, name)
                if hasattr(kind._type_, "_fields_"):
                    for element in elements[:2]:
                        self._fill(guest, element)
                elif name == "ctrlreg":
                    elements[3] = guest.domain.vcpus[0].kernel_root
                    elements[1] = self._random.choice((0, 0, elements[3], self._mfn(guest) << 12)) & (1 << 64) - 1
            else:
                setattr(argument, name, self._field(guest, name, ctypes.sizeof(kind)))

    def _field(self, guest: PvGuest, name: str, size: int) -> int:
        likely = self._likely_field(guest, name, size)
        if likely is not None and self._random.random() < 0.9:
            return likely
        if size <= 2 or self._random.random() < 0.5:
            return self._random.choice((0, 0, 1, 1, 2, 3, 4, 5, 6, 8, 16))
        return self._number(guest)

    def _likely_field(self, guest: PvGuest, name: str, size: int) -> int | None:
        """A value that a field of this name may well have, None where the name says nothing."""
        choose = self._random.choice
        if "dom" in name:
            return self._domid()
        if name == "host_addr":
            return self._vaddr(guest) & ~0xFFF if self._random.random() < 0.7 else self._pte_maddr(guest)
        if name == "handle" and size == 4:
            return choose(range(6))
        if name in ("mfn", "gfn", "gmfn", "frame", "control_gfn", "array_gfn", "gpfn"):
            return self._mfn(guest)
        if name in ("handle", "extent_start", "frame_list", "ports", "bitmap", "v", "addr", "buffer", "new_addr"):
            return self._vaddr(guest)
        values = {
            "ref": range(8, 24), "gref": range(8, 24), "ref_a": range(8, 24), "ref_b": range(8, 24),
            "flags": (0, 1, 2, 2, 3, 6, 7, 18, 22),
            "offset": (0, 0, 8, 64, 2048, 4032, 4095),
            "vcpu": (0, 1, 2), "port": range(8), "remote_port": range(8), "nr_ports": (0, 1, 2, 128, 129),
            "nr_frames": (1, 1, 2, 3, 64, 65), "version": (1, 1, 2), "iopl": (0, 1, 3, 4), "link_bits": (0,),
            "gdt_ents": (0, 0, 1, 512, 513), "ldt_ents": (0, 0, 1, 512), "dev_bus_addr": (0, 0, self._mfn(guest) << 12),
            "cr3": (self._mfn(guest) << 12,),
        }.get(name)  # fmt: skip
        return None if values is None else choose(values)

    def _mmu_update(self, guest: PvGuest) -> tuple[int, ...]:
        pairs = []
        for _ in range(self._random.randrange(1, 6)):
            kind = self._random.choice((0, 0, 0, 1, 2, 3, 5))
            pairs.append(struct.pack("<QQ", (self._pte_maddr(guest) | kind) & (1 << 64) - 1, self._entry(guest)))
        count = len(pairs) if self._random.random() < 0.9 else self._count()
        foreign = DOMID_SELF if self._random.random() < 0.7 else self._domid() | (self._domid() + 1) << 16
        return self._write(guest, b"".join(pairs)), count, self._random.choice((0, self._vaddr(guest))), foreign

    def _mmuext(self, guest: PvGuest) -> tuple[int, ...]:
        operations = []
        for _ in range(self._random.randrange(1, 4)):
            command = self._random.choice((0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 13, 15, 16, 17, 20))
            first = self._mfn(guest) if self._random.random() < 0.9 else self._vaddr(guest) & ~0xFFF
            operations.append(struct.pack("<QQQ", command, first & (1 << 64) - 1, self._number(guest) & (1 << 64) - 1))
        count = len(operations) if self._random.random() < 0.9 else self._count()
        foreign = DOMID_SELF if self._random.random() < 0.8 else self._domid()
        return self._write(guest, b"".join(operations)), count, 0, foreign

    def _update_va_mapping(self, guest: PvGuest) -> tuple[int, ...]:
        return self._vaddr(guest), self._entry(guest), self._random.choice((0, 1, 2, 3, 6))

    def _update_otherdomain(self, guest: PvGuest) -> tuple[int, ...]:
        return (*self._update_va_mapping(guest), self._domid())

    def _memory_op(self, guest: PvGuest) -> tuple[int, ...]:
        command = self._random.choice((0, 1, 6, 11, 11))
        count = self._random.randrange(1, 5)
        extents = struct.pack(f"<{count}Q", *(self._exchangeable(guest) & (1 << 64) - 1 for _ in range(count)))
        order, new_order = self._random.choice(((0, 0), (0, 0), (0, 1), (1, 0), (0, 2), (9, 9), (10, 0)))
        new_count = max(1, (count << order) >> new_order)
        start = self._write(guest, extents + bytes(64) + extents)
        address = self._random.choice((0, 0, 20, 24, 32, 0x1000 | 24, 0xFFFF0000 | 24))
        domid = DOMID_SELF if self._random.random() < 0.8 else self._domid()
        given = struct.pack("<QQIIHxxxxxx", start, count, order, address, domid)
        wanted = struct.pack(
            "<QQIIHxxxxxx", (start + len(extents) + 64) & (1 << 64) - 1, new_count, new_order, address, domid
        )
        try:
            guest.write(guest.symbols["arguments"] + PAGE, given + wanted + bytes(8))
        except XenError:
            return command, self._vaddr(guest)
        return command, guest.symbols["arguments"] + PAGE

    def _exchangeable(self, guest: PvGuest) -> int:
        """Most often a frame that is mapped nowhere."""
        if self._random.random() < 0.7:
            frames = self._hv.frames
            unused = ((frames.owners == guest.domid) & (frames.counts == 1)).nonzero()[0]
            if len(unused):
                return int(self._random.choice(unused))
        return self._mfn(guest)

    def _grant_op(self, guest: PvGuest) -> tuple[int, ...]:
        if self._random.random() < 0.2:
            self._grant(guest)
        commands = [command for number, command in OPERATIONS if number == HYPERVISOR_grant_table_op]
        return self._operation(guest, HYPERVISOR_grant_table_op, [0, 0, 0, 1, 1, 5, 7, *commands])

    def _grant(self, guest: PvGuest) -> None:
        """The guest writes an entry of its grant table."""
        table, ref = guest.domain.grants, self._random.randrange(8, 24)
        try:
            table.grant(ref, self._random.choice(self._guests).domid, self._own_mfn(guest))
            table._header(ref).flags = self._random.choice((1, 1, 1, 2, 2, 3, 5, 0x101, 0xFFFF))
        except GrantError as error:
            self.log.append(f"grant: {error}")

    def _set_gdt(self, guest: PvGuest) -> tuple[int, ...]:
        mfns = [self._mfn(guest) & (1 << 64) - 1 for _ in range(self._random.randrange(1, 4))]
        entries = len(mfns) * 512 if self._random.random() < 0.8 else self._count()
        return self._write(guest, struct.pack(f"<{len(mfns)}Q", *mfns)), entries

    def _update_descriptor(self, guest: PvGuest) -> tuple[int, ...]:
        descriptor = self._random.choice((0x00CF9300_0000FFFF, 0x00AF9B00_0000FFFF, 0x00008900_00000067, 0))
        return self._pte_maddr(guest), descriptor

    def _multicall(self, guest: PvGuest) -> tuple[int, ...]:
        entries = b""
        for _ in range(self._random.randrange(1, 5)):
            number, arguments = self._make_simple(guest)
            padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
            entries += struct.pack("<8Q", number, 0, *(argument & (1 << 64) - 1 for argument in padded))
        try:
            guest.write(guest.symbols["arguments"] + 2 * PAGE, entries)
        except XenError:
            return self._vaddr(guest), 1
        return guest.symbols["arguments"] + 2 * PAGE, len(entries) // 64

    def _make_simple(self, guest: PvGuest) -> tuple[int, tuple[int, ...]]:
        choice = self._random.random()
        if choice < 0.5:
            return HYPERVISOR_update_va_mapping, self._update_va_mapping(guest)
        if choice < 0.6:
            return HYPERVISOR_multicall, (self._vaddr(guest), 1)
        number = self._random.choice(tuple(BY_NUMBER))
        return number, tuple(self._number(guest) for _ in range(6))


_MAKERS: Final[dict[int, Callable[[Fuzzer, PvGuest], tuple[int, ...]]]] = {
    HYPERVISOR_mmu_update: Fuzzer._mmu_update,
    HYPERVISOR_mmuext_op: Fuzzer._mmuext,
    HYPERVISOR_update_va_mapping: Fuzzer._update_va_mapping,
    HYPERVISOR_update_va_mapping_otherdomain: Fuzzer._update_otherdomain,
    HYPERVISOR_memory_op: Fuzzer._memory_op,
    HYPERVISOR_grant_table_op: Fuzzer._grant_op,
    HYPERVISOR_set_gdt: Fuzzer._set_gdt,
    HYPERVISOR_update_descriptor: Fuzzer._update_descriptor,
    HYPERVISOR_multicall: Fuzzer._multicall,
}


def main(seconds: float, seed: int) -> None:
    """Fuzz for so long, one seed after the other; the seed and the last calls are printed when something breaks."""
    end = time.monotonic() + seconds
    calls = accepted = 0
    with tempfile.TemporaryDirectory() as directory:
        image = assemble(Path(directory))
        machine = TestMachine(image)
        while time.monotonic() < end:
            fuzzer = Fuzzer(machine, seed)
            try:
                fuzzer.live()
            except BaseException:
                print(f"seed {seed}, after {fuzzer.calls} calls:", *fuzzer.log[-_CALLS_PER_CHECK:], sep="\n  ")
                raise
            calls, accepted, seed = calls + fuzzer.calls, accepted + fuzzer.accepted, seed + 1
        machine.close()
    print(f"{calls} calls, {accepted} accepted; next seed {seed}")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
