"""A running PV guest that tests drive step by step, and the machine that it runs on."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import numpy as np

from tests.guest.assembler import TestImage
from tests.guest.invariants import check_invariants
from xenolith.abi.hypercalls import HYPERVISOR_mmu_update, HYPERVISOR_mmuext_op, HYPERVISOR_update_va_mapping
from xenolith.abi.mmu import MMUEXT_NEW_USER_BASEPTR, MMUEXT_PIN_L1_TABLE, UVMF_INVLPG
from xenolith.abi.types import DOMID_SELF, Struct
from xenolith.hypervisor.crash import CrashReport
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.frames import NOBODY
from xenolith.toolstack.config import DomainConfig, MachineConfig
from xenolith.toolstack.guest_config import Action
from xenolith.toolstack.host import HostLoop
from xenolith.toolstack.images import Prepared
from xenolith.toolstack.lifecycle import Toolstack
from xenolith.toolstack.machine import Boot, Machine

_T = TypeVar("_T")
PAGE: Final = 4096
MEMORY: Final = 8 << 20
SPARE: Final = 40 << 20
NO_EXCEPTION: Final = -1
USER_SYSCALL: Final = 256
FAILSAFE: Final = 257
PRESENT: Final = 1
RW: Final = 2
USER: Final = 4
NX: Final = 1 << 63
USER_CODE: Final = 0x400000
USER_DATA: Final = 0x410000
USER_STACK: Final = USER_DATA + 2 * PAGE

_STEP_WORDS: Final = 18
_GO: Final = 1
_DONE: Final = 2
_HYPERCALL: Final = 1
_CALL: Final = 2
_USER: Final = 3
_LIMIT_S: Final = 5.0
_MASK64: Final = (1 << 64) - 1
_NO_ENTRIES: Final[Mapping[int, int]] = MappingProxyType({})


@dataclass(frozen=True)
class Outcome:
    """What came of a step: RAX, and the exception if one was raised (`vector`, -1 for none).

    `error`, `rip`, `cs`, `flags` and `rsp` are those of the exception's frame; `cr2` that of a page fault.
    """

    rax: int
    vector: int
    error: int
    rip: int
    cs: int
    flags: int
    rsp: int
    cr2: int

    @property
    def fault(self) -> tuple[int, int]:
        """Vector and error code."""
        return self.vector, self.error

    @property
    def signed(self) -> int:
        """RAX as a signed number: a hypercall's result."""
        return self.rax - (1 << 64) if self.rax >> 63 else self.rax


class GuestCrashed(Exception):
    """The hypervisor stopped the guest; `report` says why."""

    def __init__(self, report: CrashReport) -> None:
        super().__init__(report.reason)
        self.report = report


class TestMachine:
    """A machine without hardware on which guests come and go, or any other."""

    __test__ = False

    def __init__(
        self,
        image: TestImage | None,
        engine: str = "auto",
        config: MachineConfig | None = None,
        place: Path | None = None,
    ) -> None:
        self.image = image
        self.console: dict[str, bytearray] = {}
        self._machine = Machine(config or MachineConfig(engine=engine, spare_memory=SPARE), self._sink, place)
        self.hv = self._machine.hv
        if config is not None:
            self._machine.power_on({})
        else:
            self.start("first").destroy()  # brings the native services into being

    def _sink(self, name: str) -> Callable[[bytes], None]:
        return self.console.setdefault(name, bytearray()).extend

    def start(
        self,
        name: str,
        capabilities: Capability = Capability.NONE,
        vcpus: int = 1,
        memory: int = MEMORY,
        symbol: str = "",
    ) -> PvGuest:
        """Build a guest and let it run until it waits for its first step."""
        stay = dict.fromkeys(("on_poweroff", "on_reboot", "on_crash", "on_watchdog"), Action.PRESERVE)
        config = DomainConfig(name, memory=memory, vcpus=vcpus, capabilities=capabilities, **stay)
        domain = self._machine.start(Boot(config, Prepared(self.image.kernel, None, config.cmdline)))
        guest = PvGuest(self, domain.domid)
        self.run(lambda: domain.vcpus[0].polling)
        return guest

    @property
    def toolstack(self) -> Toolstack:
        """What makes guests in this machine."""
        assert self._machine.toolstack is not None
        return self._machine.toolstack

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Begin a coroutine of the toolstack."""
        self._machine.spawn(coroutine)

    def do(self, coroutine: Coroutine[Any, Any, _T], limit_s: float = _LIMIT_S) -> _T:
        """What a coroutine of the toolstack comes to."""
        ended: list[_T | Exception] = []

        async def carry_out() -> None:
            try:
                ended.append(await coroutine)
            except Exception as error:
                ended.append(error)

        self.spawn(carry_out())
        self.run(lambda: bool(ended), limit_s)
        if isinstance(ended[0], Exception):
            raise ended[0]
        return ended[0]

    def kill(self, service: str) -> None:
        """Drop the code of a native domain; it is started again."""
        self._machine.supervisor.kill(service)

    def kept(self) -> list[str]:
        """The names of what native domains keep beyond the life of their code."""
        return [name for running in self._machine.supervisor.running.values() for name in running.kernel.kept]

    def run(self, until: Callable[[], bool], limit_s: float = _LIMIT_S) -> None:
        """Run the machine until `until()`. AssertionError after `limit_s` seconds."""
        deadline = time.monotonic() + limit_s
        timer = self.post_later(limit_s)
        self.hv.run(lambda: until() or time.monotonic() >= deadline)
        timer.cancel()
        assert until(), "the machine did not get there in time"

    def turn(self) -> None:
        """Let native domains do what they have to do; guests do not run."""
        self.hv.run(lambda: True)

    def run_for(self, seconds: float) -> None:
        """Run the machine for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.hv.step()

    def post_later(self, seconds: float) -> threading.Timer:
        """Something comes from outside after so long: it ends any waiting."""
        host = self._machine.host
        assert isinstance(host, HostLoop)
        timer = threading.Timer(seconds, lambda: host.post(lambda: None))
        timer.daemon = True
        timer.start()
        return timer

    def frames_left(self) -> int:
        """Frames that are free, or that native services own or hold: they go on serving the rings of dead domains."""
        frames, native = self.hv.frames, [domain for domain in self.hv.domains.values() if is_native(domain)]
        held = {mapping.active.mfn for domain in native for mapping in domain.grants._mappings.values()}
        return int(np.isin(frames.owners, [NOBODY, *(domain.domid for domain in native)]).sum()) + len(held)

    def check(self) -> None:
        check_invariants(self.hv)

    def close(self) -> None:
        self._machine.close()


def is_native(domain: Domain) -> bool:
    """Whether a domain's code is Python."""
    return bool(domain.vcpus) and domain.vcpus[0].native is not None


class PvGuest:
    """One guest. Addresses are its virtual ones unless a name says otherwise."""

    def __init__(self, machine: TestMachine, domid: int) -> None:
        self.machine = machine
        self.hv = machine.hv
        self.domid = domid
        self.domain = machine.hv.domains[domid]
        self.symbols = machine.image.symbols

    # -- memory -------------------------------------------------------------------------------------------------------

    def page(self, number: int) -> int:
        """The address of one of the 96 pages that the guest does not use itself."""
        assert 0 <= number < 96
        return self.symbols["playground"] + number * PAGE

    def maddr(self, vaddr: int) -> int:
        """The machine address of a kernel address."""
        return self.hv.memory.walk(self.domain.vcpus[0].kernel_root, vaddr)

    def mfn(self, vaddr: int) -> int:
        return self.maddr(vaddr) >> 12

    def pte_maddr(self, vaddr: int) -> int:
        """The machine address of the L1 entry for a kernel address, 0 if there is no L1 table."""
        return self.hv.memory.l1e_maddr(self.domain.vcpus[0].kernel_root, vaddr)

    def pte(self, vaddr: int) -> int:
        return self.hv.ram.words[self.pte_maddr(vaddr) >> 3]

    def write(self, vaddr: int, data: bytes) -> None:
        """Store as the guest's kernel would: only what it has mapped writable, and seen by its processor."""
        root, at = self.domain.vcpus[0].kernel_root, 0
        while at < len(data):
            piece = min(len(data) - at, PAGE - (vaddr + at) % PAGE)
            self.hv.memory.write_machine(self.hv.memory.walk(root, vaddr + at, 3), data[at : at + piece])
            at += piece

    def write_words(self, vaddr: int, *words: int) -> None:
        self.write(vaddr, struct.pack(f"<{len(words)}Q", *(word & _MASK64 for word in words)))

    def read(self, vaddr: int, size: int) -> bytes:
        root, data = self.domain.vcpus[0].kernel_root, b""
        while len(data) < size:
            maddr = self.hv.memory.walk(root, vaddr + len(data))
            piece = min(size - len(data), PAGE - maddr % PAGE)
            data += bytes(self.hv.ram.bytes[maddr : maddr + piece])
        return data

    def word(self, vaddr: int) -> int:
        return int.from_bytes(self.read(vaddr, 8), "little")

    def protect(self, vaddr: int, flags: int = 1) -> int:
        """Map a page of the guest's own with `flags` by hypercall (1: read-only); its mfn. It must succeed."""
        mfn = self.mfn(vaddr)
        assert self.hypercall(HYPERVISOR_update_va_mapping, vaddr, mfn << 12 | flags, UVMF_INVLPG) == 0
        return mfn

    def map(self, vaddr: int, entry: int) -> int:
        """update_va_mapping."""
        return self.hypercall(HYPERVISOR_update_va_mapping, vaddr, entry, UVMF_INVLPG)

    def mmu_update(self, *pairs: tuple[int, int], domid: int = DOMID_SELF) -> tuple[int, int]:
        """The result of mmu_update, and how many requests were carried out."""
        requests = self.arguments(b"".join(struct.pack("<QQ", *pair) for pair in pairs))
        done = self.arguments(bytes(8), 3 * PAGE)
        result = self.hypercall(HYPERVISOR_mmu_update, requests, len(pairs), done, domid)
        return result, self.word(done)

    def mmuext(self, command: int, arg1: int = 0, arg2: int = 0, domid: int = DOMID_SELF, vcpu: int = 0) -> int:
        """One operation of mmuext_op."""
        operation = self.arguments(struct.pack("<QQQ", command, arg1, arg2))
        return self.hypercall(HYPERVISOR_mmuext_op, operation, 1, 0, domid, vcpu=vcpu)

    def pin(self, level: int, mfn: int, domid: int = DOMID_SELF) -> int:
        return self.mmuext(MMUEXT_PIN_L1_TABLE + level - 1, mfn, domid=domid)

    def table(self, number: int, entries: Mapping[int, int] = _NO_ENTRIES) -> int:
        """Make page `number` of the playground hold these words by slot, mapped read-only; its mfn."""
        words = [0] * 512
        for slot, entry in entries.items():
            words[slot] = entry
        vaddr = self.page(number)
        if not self.pte(vaddr) & RW:
            self.protect(vaddr, PRESENT | RW)
        self.write_words(vaddr, *words)
        return self.protect(vaddr)

    def make_user_space(self, first_page: int) -> int:
        """Make an address space for user mode out of four playground pages, and let it be the user root. Its frame.

        The user routines are at USER_CODE, two writable pages (the first two of the playground) at USER_DATA.
        """
        code = {index: self.mfn(self.symbols["user_text"] + index * PAGE) << 12 | PRESENT | USER for index in range(1)}
        data = {16 + index: self.mfn(self.page(index)) << 12 | PRESENT | RW | USER | NX for index in range(2)}
        entry = self.table(first_page, code | data) << 12 | PRESENT | RW | USER
        entry = self.table(first_page + 1, {USER_CODE >> 21: entry}) << 12 | PRESENT | RW | USER
        entry = self.table(first_page + 2, {0: entry}) << 12 | PRESENT | RW | USER
        root = self.table(first_page + 3, {0: entry})
        assert self.pin(4, root) == 0
        assert self.mmuext(MMUEXT_NEW_USER_BASEPTR, root) == 0
        return root

    # -- steps --------------------------------------------------------------------------------------------------------

    def hypercall(self, number: int, *arguments: int, vcpu: int = 0) -> int:
        """The signed result. AssertionError if the guest got an exception instead."""
        outcome = self.step(_HYPERCALL, number, arguments, vcpu)
        assert outcome.vector == NO_EXCEPTION, f"hypercall {number} raised {outcome}"
        return outcome.signed

    def operation(self, number: int, command: int, argument: Struct, *more: int, vcpu: int = 0) -> int:
        """A hypercall with a command and a structure, which is updated."""
        vaddr = self.arguments(argument.to_bytes())
        result = self.hypercall(number, command, vaddr, *more, vcpu=vcpu)
        changed = type(argument).from_bytes(self.read(vaddr, argument.sizeof()))
        for name, *_ in argument._fields_:
            setattr(argument, name, getattr(changed, name))
        return result

    def arguments(self, data: bytes, offset: int = 0) -> int:
        """Put data where hypercalls' arguments go; its address."""
        assert offset + len(data) <= 4 * PAGE
        self.write(self.symbols["arguments"] + offset, data)
        return self.symbols["arguments"] + offset

    def call(self, routine: str | int, *arguments: int, vcpu: int = 0) -> Outcome:
        """Call a routine of the guest's kernel."""
        target = self.symbols[routine] if isinstance(routine, str) else routine
        return self.step(_CALL, target, arguments, vcpu)

    def user(self, routine: str | int, *arguments: int, stack: int = USER_STACK) -> Outcome:
        """Run a user routine until it makes a system call (vector USER_SYSCALL) or faults."""
        self.begin_user(routine, *arguments, stack=stack)
        return self.finish()

    def begin_user(self, routine: str | int, *arguments: int, stack: int = USER_STACK, vcpu: int = 0) -> None:
        """Let a user routine start, and do not wait for it."""
        address = self.user_address(routine) if isinstance(routine, str) else routine
        self.write_words(self.symbols[f"step_{vcpu}"] + 136, stack)
        self._prepare(_USER, address, arguments, vcpu)

    def user_address(self, routine: str) -> int:
        """Where user mode finds a routine."""
        return USER_CODE + self.symbols[routine] - self.symbols["user_text"]

    def begin(self, routine: str, *arguments: int, vcpu: int = 0) -> None:
        """Let a routine of the kernel start, and do not wait for it."""
        self._prepare(_CALL, self.symbols[routine], arguments, vcpu)

    def _prepare(self, kind: int, target: int, arguments: tuple[int, ...], vcpu: int) -> None:
        step = self.symbols[f"step_{vcpu}"]
        padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
        self.write_words(step + 8, kind, target, *padded)
        self.write_words(step, _GO)
        self.hv.wake(self.domain.vcpus[vcpu])

    def step(self, kind: int, target: int, arguments: tuple[int, ...], vcpu: int = 0) -> Outcome:
        """One step, carried out. Raises GuestCrashed if the hypervisor stopped the guest."""
        self._prepare(kind, target, arguments, vcpu)
        return self.finish(vcpu)

    def finish(self, vcpu: int = 0, limit_s: float = _LIMIT_S) -> Outcome:
        """Wait for the end of the step that is under way. Raises GuestCrashed."""
        step = self.maddr(self.symbols[f"step_{vcpu}"]) >> 3
        words = self.hv.ram.words
        processor = self.domain.vcpus[vcpu]
        self.machine.run(
            lambda: self.stopped or (words[step] == _DONE and (processor.polling or processor.down)), limit_s
        )
        if self.domain.crash_report is not None:
            raise GuestCrashed(self.domain.crash_report)
        found = words[step : step + _STEP_WORDS].tolist()
        vector = found[10] - (1 << 64) if found[10] >> 63 else found[10]
        return Outcome(found[9], vector, *found[11:16], cr2=self.hv.cr2_of(processor))

    @property
    def stopped(self) -> bool:
        return self.domain.shutdown_code is not None

    @property
    def waits(self) -> bool:
        """Whether the first vCPU has done its step and waits for the next."""
        return self.word(self.symbols["step_0"]) == _DONE and self.domain.vcpus[0].polling

    def events(self, vcpu: int = 0) -> int:
        """How many event upcalls the guest has taken."""
        return self.word(self.symbols[f"step_{vcpu}"] + 128)

    def destroy(self) -> None:
        if self.domid in self.hv.domains and self.hv.domains[self.domid] is self.domain:
            self.hv.destroy_domain(self.domain)
