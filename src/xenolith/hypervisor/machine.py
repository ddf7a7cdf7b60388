"""The hypervisor itself: it owns the machine's frames and domains, and runs vCPUs on an engine.

Everything here is semantics: the outside world (terminals, the passing of host time, files) is behind `Host`, and what
happens is told to `subscribers`.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from xenolith.abi.errno import ESRCH, XenError
from xenolith.abi.event_channel import VIRQ_CON_RING, VIRQ_DOM_EXC
from xenolith.abi.hypercalls import HYPERCALLS
from xenolith.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_suspend, SHUTDOWN_watchdog
from xenolith.abi.shared_info import SharedInfo
from xenolith.abi.types import DOMID_SELF
from xenolith.hypervisor import hardware, hypercalls, native_exits, ring0_exits
from xenolith.hypervisor.banner import banner
from xenolith.hypervisor.console_ring import ConsoleRing
from xenolith.hypervisor.contexts import Contexts
from xenolith.hypervisor.cpuid import TSC_KHZ, CpuidPolicy
from xenolith.hypervisor.crash import CrashReport, describe
from xenolith.hypervisor.descriptors import DescriptorTables
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.events import raise_global_virq
from xenolith.hypervisor.frames import (
    FLAG_SHARED,
    HYPERVISOR,
    TYPE_L4,
    TYPE_WRITABLE,
    FrameTable,
)
from xenolith.hypervisor.guest_memory import GuestMemory
from xenolith.hypervisor.hypercalls import mmu
from xenolith.hypervisor.iommu import Iommu
from xenolith.hypervisor.lifecycle import Lifecycle
from xenolith.hypervisor.pagetables import PageTables
from xenolith.hypervisor.pirqs import Pirqs
from xenolith.hypervisor.policy import Policy
from xenolith.hypervisor.release import DEFAULT_RELEASE, RELEASES, Release
from xenolith.hypervisor.scheduler import Scheduler
from xenolith.hypervisor.shared_state import MachineState
from xenolith.hypervisor.timekeeping import Timekeeping
from xenolith.hypervisor.tracing import Tracing
from xenolith.hypervisor.traps import Traps
from xenolith.hypervisor.vcpu import INFO_CR2, UPCALL_MASK, Vcpu
from xenolith.hypervisor.xenspace import XenSpace
from xenolith.machine.devices.hpet import CONFIGURATION, ENABLE

if TYPE_CHECKING:
    from xenolith.cpu.engine import Cpu, Engine
    from xenolith.machine.clock import Clock
    from xenolith.machine.pc import Pc
    from xenolith.machine.ram import Ram

_DEVICE_SPACE_END: Final = 1 << 40
"""Bytes: physical addresses that the processors have."""
_KEPT_FRAMES: Final = (0xFEC00, 0xFEE00)
"""I/O APIC and local APIC: the hypervisor's own, which a domain reaches by physdev_op and events."""
_UNIMPLEMENTED_NOTED: Final = 256
_ROUNDS_TOGETHER: Final = 16
"""How often vCPUs that run at the same time may be stopped before the scheduler decides anew."""
_MAX_PFN_OFFSET: Final[int] = SharedInfo.arch.offset
Subscriber = Callable[[str, dict[str, Any]], None]


class Host(Protocol):
    """What the hypervisor needs of the world outside."""

    def poll(self) -> None:
        """Do what has come in from outside since the last call."""

    def arm(self, deadline_ns: int | None) -> None:
        """Kick the engine at this system time, and whenever something comes in from outside."""

    def wait(self, deadline_ns: int | None) -> None:
        """Return at this system time, or earlier when something comes in from outside."""


class Hypervisor:
    """One machine under Xenolith. `pc` is its hardware below RAM and processor; None for a bare machine.

    `cpu_level` limits what guests see of the processor (a key of `cpuid.LEVELS`), `release` is what it says it is.
    `command_line` is what Xen would have been started with for the same machine.
    """

    def __init__(
        self,
        ram: Ram,
        engine: Engine,
        clock: Clock,
        host: Host,
        pc: Pc | None = None,
        cpu_level: str = "host",
        release: Release = RELEASES[DEFAULT_RELEASE],
        command_line: str = "",
    ) -> None:
        self.ram = ram
        self.cpu_level = cpu_level
        self.release = release
        self.command_line = command_line
        self.engine = engine
        self.clock = clock
        self.host = host
        self.pc = pc
        self.subscribers: list[Subscriber] = []
        self.console_sink: Callable[[Domain, bytes], None] = lambda domain, data: None
        self.console_source: Callable[[int], bytes] = lambda limit: b""
        self.domains: dict[int, Domain] = {}
        self.power_action: str | None = None
        self.state = MachineState() if engine.memory is None else MachineState.from_buffer(engine.memory)
        self.running: list[Vcpu] = []
        """The vCPUs of this turn."""
        self._rounds_left = 0
        self.in_multicall = False
        self.hypercall_counts = self.state.hypercall_counts
        self.unimplemented: Counter[tuple[int, int]] = Counter()
        self.argument_counts = {call.number: len(call.arguments) for call in HYPERCALLS}
        self.last_refusal = ""
        self._wall_offset_ns = 0
        self._cpuid: dict[int, CpuidPolicy] = {}
        self._native_ready: dict[Callable[[], None], None] = {}
        self.vcpu_op_target: Vcpu

        self.frames = FrameTable(ram)
        self.machine_map: list[tuple[int, int, int]] = []
        self._add_memory()
        self.memory = GuestMemory(self.frames)
        self.log = ConsoleRing()
        self.policy = Policy(self._note_forbidden)
        self.pagetables = PageTables(self.frames, self.memory, self.domains)
        if engine.shadows_tables:
            self.pagetables.watch(engine.mapping_removed, engine.table_entry_changed, engine.table_gone)
        self.descriptors = DescriptorTables(self.frames, self.memory, self.pagetables)
        self.xenspace = XenSpace(self.frames, engine.first_slot, engine.entry_table)
        self.m2p = self.xenspace.m2p
        self.pagetables.fill_xen_slots = self.xenspace.fill_slots
        self.pagetables.check_descriptors = self.descriptors.check_frame
        self.pagetables.drop_ldt = self._drop_ldts
        self.frames.flush = self.flush_all
        self.frames.invalidate_code = engine.invalidate_code
        self.frames.on_free = self._frame_freed
        self.lifecycle = Lifecycle(self)
        self.frames.on_unshare = self.lifecycle.frame_freed
        self.dummy_vcpu_info_maddr = self.frames.allocate(HYPERVISOR, 1)[0] << 12
        self.timekeeping = Timekeeping(self)
        self.scheduler = Scheduler(self)
        self.contexts = Contexts(self)
        self.pirqs = Pirqs(self)
        self.iommu = Iommu(self)
        self.tracing = Tracing(self)
        hypercalls.load_all()
        self.traps = Traps(self)
        engine.attach(self.traps, native_exits.shortcuts(self), ring0_exits.program())
        if pc is not None:
            self._map_devices(pc)
        for line in banner(self):
            self.log.write(line)

    def _add_memory(self) -> None:
        if self.pc is None:
            self.frames.add_ram(1, self.frames.total - 1)
            self.machine_map = [(0, self.frames.total << 12, 1)]
            return
        for mfns in self.pc.memory_map.ram_ranges:
            self.frames.add_ram(mfns.start, len(mfns))
        self.machine_map = [(entry.start, entry.length, int(entry.type)) for entry in self.pc.memory_map.entries]

    def _map_devices(self, pc: Pc) -> None:
        """Everything outside RAM goes to the memory-mapped bus, where what nobody claims reads all ones."""
        pc.install_firmware(self.ram.bytes)
        pc.pci.iommu = self.iommu
        pc.hpet.write_mmio(CONFIGURATION, 8, ENABLE)
        for space in self.engine.unmapped(_DEVICE_SPACE_END):
            self.engine.map_mmio(
                space.start,
                len(space),
                lambda offset, width, base=space.start: hardware.read(self, pc, base + offset, width),  # type: ignore[misc]
                lambda offset, width, value, base=space.start: hardware.write(  # type: ignore[misc]
                    self, pc, base + offset, width, value
                ),
            )

    def device_frames(self) -> list[tuple[int, int]]:
        """First and last frame of each range that is no memory for domains, except what the hypervisor keeps."""
        taken = [(mfns.start, mfns.stop) for mfns in self.pc.memory_map.ram_ranges] if self.pc is not None else []
        taken += [(kept, kept + 1) for kept in _KEPT_FRAMES]
        taken.append((self.engine.reserved.start >> 12, self.engine.reserved.stop >> 12))
        ranges, at = [], 0
        for start, stop in sorted(taken):
            if at < start:
                ranges.append((at, start - 1))
            at = max(at, stop)
        if at < (end := _DEVICE_SPACE_END >> 12):
            ranges.append((at, end - 1))
        return ranges

    @property
    def reschedule(self) -> bool:
        """Whether the running vCPU is to stop at its next exit, because something else has to be looked at."""
        return self.state.reschedule

    @reschedule.setter
    def reschedule(self, value: bool) -> None:
        self.state.reschedule = value

    # -- time ---------------------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """System time: nanoseconds since power-on."""
        return self.clock.now_ns()

    def tsc(self) -> int:
        """The time stamp counter that guests read: the processor's, or nanoseconds of system time."""
        return self.engine.read_tsc() if self.engine.tsc_khz else self.clock.now_ns()

    @property
    def tsc_khz(self) -> int:
        """How fast that counter counts."""
        return self.engine.tsc_khz or TSC_KHZ

    def wall_ns(self) -> int:
        """UTC in nanoseconds since 1970, as the control domain last set it."""
        return self.clock.wall_ns() + self._wall_offset_ns

    def boot_wall_ns(self) -> int:
        """UTC at system time zero."""
        return self.wall_ns() - self.now_ns()

    def set_wall_clock(self, seconds: int, nanoseconds: int, system_time_ns: int) -> None:
        """It was `seconds`.`nanoseconds` UTC at `system_time_ns`; every domain is told."""
        self._wall_offset_ns = (
            seconds * 1_000_000_000 + nanoseconds - system_time_ns - self.clock.wall_ns() + self.now_ns()
        )
        for domain in self.domains.values():
            if not domain.is_dead:
                self.timekeeping.update_wall_clock(domain)

    def timers_changed(self) -> None:
        """A timer of a running vCPU was set: the engine must be stopped in time for it."""
        if self.running:
            self.host.arm(self._deadline())

    def run_at_most(self, duration_ns: int) -> None:
        """The running vCPUs are stopped when they have run so long from now, if it was not to be earlier."""
        limit = self.now_ns() + duration_ns
        deadline = self._deadline()
        self.host.arm(limit if deadline is None else min(limit, deadline))

    # -- telling ------------------------------------------------------------------------------------------------------

    def publish(self, kind: str, **data: Any) -> None:
        """Tell every subscriber what happened."""
        for subscriber in self.subscribers:
            subscriber(kind, data)

    def count_unimplemented(self, number: int, command: int) -> None:
        """A guest asked for something that this hypervisor does not have. Only so many different things are noted."""
        if len(self.unimplemented) >= _UNIMPLEMENTED_NOTED and (number, command) not in self.unimplemented:
            return
        self.unimplemented[number, command] += 1
        if self.unimplemented[number, command] == 1:
            self.publish("unimplemented", hypercall=number, operation=command)

    def note_refusal(self, vcpu: Vcpu, number: int, error: XenError) -> None:
        """Remember the last rule that a guest broke, for its crash report."""
        if error.reason:
            self.last_refusal = f"{vcpu!r}: {error}"
            if self.subscribers:
                self.publish("error", vcpu=repr(vcpu), hypercall=number, error=str(error))

    def _note_forbidden(self, text: str) -> None:
        self.say(text)
        self.publish("refused", text=text)

    def say(self, text: str) -> None:
        """Write a line to the hypervisor's log."""
        self.log.write(text)
        raise_global_virq(self, VIRQ_CON_RING)

    def console_write(self, domain: Domain, data: bytes) -> None:
        """A domain writes to the hypervisor's console; what others than its owner print is in the log as well."""
        if not domain.can(Capability.CONSOLE):
            self.log.write_guest(domain.domid, data)
        self.console_sink(domain, data)

    def console_read(self, limit: int) -> bytes:
        """What was typed at the hypervisor's console, at most `limit` bytes."""
        return self.console_source(limit)

    # -- memory -------------------------------------------------------------------------------------------------------

    def load_root(self, maddr: int) -> None:
        if len(self.running) == 1:  # else there are others that keep their old translations
            self.frames.flushed()
        self.engine.load_root(maddr)

    def change_mode(self, vcpu: Vcpu) -> None:
        """The current vCPU is in its other mode now, whose page tables its processor uses."""
        if not self.engine.change_mode(vcpu.root, vcpu.kernel_mode):
            self.load_root(vcpu.root)

    def flush_all(self) -> None:
        self.frames.flushed()
        self.engine.flush_all()

    def flush_page(self, vaddr: int) -> None:
        self.engine.flush_page(vaddr)

    def share_frame(self, domain: Domain, writable: bool = True) -> int:
        """A frame of the hypervisor that `domain` may map; not part of the domain's memory."""
        mfn = self.frames.allocate(domain.domid, 1)[0]
        self.frames.flags[mfn] = FLAG_SHARED
        if writable:
            self.frames.get_page_type(mfn, TYPE_WRITABLE)
        return mfn

    def unshare_frame(self, mfn: int) -> None:
        """Give up the hypervisor's own references; the frame is free when the domain maps it no more."""
        if self.frames.type_count[mfn]:
            self.frames.put_page_type(mfn)
        self.frames.put_page(mfn)

    def _frame_freed(self, mfn: int, domid: int) -> None:
        domain = self.domains.get(domid)
        if domain is not None:
            domain.tot_frames -= 1
            self.lifecycle.frame_freed(domid)

    def _drop_ldts(self, domain: Domain) -> None:
        for vcpu in domain.vcpus:
            self.descriptors.drop_ldt(vcpu)

    def max_pfn_of(self, domain: Domain) -> int:
        """The highest pfn that the domain says it has (its shared_info)."""
        return self.ram.words[((domain.shared_info_mfn << 12) + _MAX_PFN_OFFSET) >> 3]

    # -- domains ------------------------------------------------------------------------------------------------------

    def domain_by_id(self, caller: Vcpu, domid: int) -> Domain:
        """The domain that a domid argument means. Raises XenError(ESRCH)."""
        if domid == DOMID_SELF:
            return caller.domain
        domain = self.domains.get(domid)
        if domain is None:
            raise XenError(ESRCH, f"domain {domid} does not exist")
        return domain

    def all_vcpus(self) -> Iterator[Vcpu]:
        for domain in self.domains.values():
            yield from domain.vcpus

    def cpuid_for(self, domain: Domain) -> CpuidPolicy:
        if domain.domid not in self._cpuid:
            self._cpuid[domain.domid] = CpuidPolicy(
                self.engine,
                domain,
                self.clock.virtual,
                (self.frames.total - 1).bit_length() + 12,
                self.cpu_level,
                self.release,
            )
        return self._cpuid[domain.domid]

    def forget_cpuid(self, domain: Domain) -> None:
        """The answers to CPUID change, or the domain is gone."""
        self._cpuid.pop(domain.domid, None)

    def cr2_of(self, vcpu: Vcpu) -> int:
        return self.ram.words[(vcpu.info_maddr + INFO_CR2) >> 3]

    def create_domain(self, name: str, max_frames: int, vcpu_count: int, capabilities: Capability) -> Domain:
        """A domain for power-on: without memory, with `vcpu_count` vCPUs that are not started, and not paused.

        Raises XenError: EINVAL for an impossible number of vCPUs, ENOMEM for lack of frames or domids.
        """
        domain = self.lifecycle.create(name, vcpu_count, capabilities)
        domain.max_frames = max_frames
        self.lifecycle.create_vcpus(domain)
        if Capability.HARDWARE in capabilities and self.pc is not None:
            domain.port_ranges = [(0, 0xFFFF)]
            domain.iomem_ranges = self.device_frames()
        self.publish("create", domid=domain.domid, name=name)
        return domain

    def start_domain(self, domain: Domain, entry: int, stack_pointer: int, start_info: int, l4_mfn: int) -> None:
        """Validate the page tables that a builder made, and let the first vCPU enter the kernel.

        Raises XenError(EINVAL) if the tables break a rule.
        """
        mmu.pin(self, domain, l4_mfn, TYPE_L4)
        self.contexts.start_of_day(domain.vcpus[0], entry, stack_pointer, start_info, l4_mfn)
        self.publish("start", domid=domain.domid)

    def create_native_domain(self, name: str, capabilities: Capability, service: Callable[[], None]) -> Domain:
        """A domain whose code is Python: `service` is called whenever one of its event channels has become pending."""
        domain = self.create_domain(name, 0, 1, capabilities)
        vcpu = domain.vcpus[0]
        vcpu.periodic_ns = 0
        vcpu.native = service
        self.ram.bytes[vcpu.info_maddr + UPCALL_MASK] = 0
        return domain

    def shutdown(self, domain: Domain, reason: int) -> None:
        """The domain stops for `reason` (SHUTDOWN_*); one that has the hardware takes the machine with it."""
        if domain.shutdown_code is not None:
            return
        if domain.announced_shutdown_code is not None and reason != SHUTDOWN_crash:
            reason = domain.announced_shutdown_code
        domain.shutdown_code = reason
        domain.pause_count += 1
        self.reschedule = True
        self.publish("shutdown", domid=domain.domid, reason=reason)
        raise_global_virq(self, VIRQ_DOM_EXC)
        if Capability.HARDWARE in domain.capabilities and reason != SHUTDOWN_suspend:
            actions = {SHUTDOWN_poweroff: "off", SHUTDOWN_reboot: "reboot", SHUTDOWN_watchdog: "reboot"}
            self.power(actions.get(reason, "crash"))

    def power(self, action: str) -> None:
        """Switch the machine off, or reboot it: "off", "reboot" or "crash"."""
        if self.power_action is None:
            self.power_action = action
            self.say(f"power: {action}")
        self.reschedule = True
        self.engine.stop()

    def crash(self, vcpu: Vcpu, reason: str) -> None:
        """Stop a domain that cannot go on, with a report; nobody else is touched."""
        domain = vcpu.domain
        if domain.shutdown_code is None:
            domain.crash_reason = reason
            domain.crash_report = describe(self, vcpu, reason)
            self.say(f"domain {domain.domid} crashed on vCPU {vcpu.vcpu_id}: {reason}")
            self.publish("crash", domid=domain.domid, vcpu=vcpu.vcpu_id, reason=reason)
        self.shutdown(domain, SHUTDOWN_crash)
        self.engine.stop()

    def destroy_domain(self, domain: Domain) -> None:
        """Take everything back that a domain holds. Frames that others still map become free when they let go."""
        while not self.lifecycle.kill(domain):
            pass

    # -- running ------------------------------------------------------------------------------------------------------

    def wake(self, vcpu: Vcpu) -> None:
        """Something became pending for `vcpu`. One that can run, but does not, finds that when its turn comes."""
        if vcpu.native is not None:
            self._native_ready[vcpu.native] = None
            self.reschedule = True
            return
        slept = vcpu.blocked
        if slept:
            vcpu.blocked = vcpu.polling = False
            vcpu.poll_ports, vcpu.poll_deadline_ns = (), 0
            self.scheduler.woken(vcpu)
        if vcpu is not self.traps.current and (slept or vcpu in self.running):
            self.reschedule = True

    def soon(self, action: Callable[[], None]) -> None:
        """Have `action` done when what runs now has stopped, which it does at the next exit or device access."""
        self._native_ready[action] = None
        self.reschedule = True

    def run(self, until: Callable[[], bool]) -> None:
        """Run domains until the power goes or `until` says so."""
        while True:
            self._look_around()
            if self.power_action is not None or until():
                return
            self._take_turn()

    def step(self) -> None:
        """One turn: what came from outside, what time has brought, and one vCPU for a while (or waiting for both)."""
        self._look_around()
        self._take_turn()

    def _look_around(self) -> None:
        """What came from outside and what time has brought; all of it may be the end of a domain or of the machine."""
        self.host.poll()
        self.timekeeping.expire()
        self.scheduler.replenish()
        if self.pc is not None and (due := self.pc.deadline()) is not None and due <= self.now_ns():
            self.pc.poll()
        self._bite()
        self.reschedule = False
        while self._native_ready:
            self._native_ready.popitem()[0]()

    def _take_turn(self) -> None:
        vcpu = self.scheduler.pick()
        if vcpu is None:
            self.host.wait(self._outer_deadline())
        else:
            self._run_vcpus([vcpu, *self.scheduler.beside(vcpu)])

    def _bite(self) -> None:
        """Watchdogs whose time is over."""
        for domain in self.domains.values():
            if any(domain.watchdogs) and any(dog and dog <= self.now_ns() for dog in domain.watchdogs):
                domain.watchdogs = [0, 0]
                self.shutdown(domain, SHUTDOWN_watchdog)

    def _outer_deadline(self) -> int | None:
        deadlines = [
            self.timekeeping.next_deadline(),
            self.scheduler.next_replenishment(),
            self.pc.deadline() if self.pc is not None else None,
        ]
        deadlines += [dog for domain in self.domains.values() for dog in domain.watchdogs if dog]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _deadline(self) -> int | None:
        scheduler, running = self.scheduler, self.running
        deadlines = [self._outer_deadline(), scheduler.budget_end(running), scheduler.slice_end(running)]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _run_vcpus(self, vcpus: list[Vcpu]) -> None:
        """Let these run at the same time, each on its processor."""
        started = self.now_ns()
        self.running = vcpus
        for vcpu in vcpus:
            self._enter(vcpu)
        self.host.arm(self._deadline())
        for vcpu in vcpus:
            self._make_current(vcpu)
            self.traps.resume(vcpu)
        self._rounds_left = _ROUNDS_TOGETHER
        if self.go_on_together():
            self._make_current(vcpus[0])
            self._run_engine([vcpu.cpu for vcpu in vcpus[1:]])
        for vcpu in vcpus:
            self.scheduler.account(vcpu, self.now_ns() - started)
            self.timekeeping.settle(vcpu)
        self.running = []

    def _make_current(self, vcpu: Vcpu) -> None:
        self.traps.current = vcpu
        self.engine.switch_to(vcpu.cpu)
        vcpu.cpu.show(vcpu.info_maddr)

    def _enter(self, vcpu: Vcpu) -> None:
        self._make_current(vcpu)
        if not self.engine.still_has(vcpu.root):
            self.load_root(vcpu.root)
        self.timekeeping.update_vcpu_time(vcpu)
        self.scheduler.enter(vcpu)
        self.timekeeping.publish_runstate(vcpu)

    def go_on_together(self) -> bool:
        """Whether the vCPUs of this turn may go on when all have stopped; not too often, without a look at others."""
        self._rounds_left -= 1
        return not self.reschedule and self._rounds_left >= 0 and all(vcpu.runnable for vcpu in self.running)

    def _run_engine(self, beside: list[Cpu]) -> None:
        """Let guest code run. A mistake of ours that it brings out ends its domain, and nobody else's."""
        run: Callable[[], None] = partial(self.engine.run, *beside)
        while True:
            try:
                run()
                return
            except Exception:
                vcpu = self.traps.current
                vcpu.domain.bug = traceback.format_exc()
                self.publish("bug", domid=vcpu.domain.domid, traceback=vcpu.domain.bug)
                self.crash(vcpu, "a bug of Xenolith")
                run = self.engine.settle


__all__ = ["CrashReport", "Host", "Hypervisor"]
