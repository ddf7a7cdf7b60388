"""A machine from power-on to its end: parts put together, domains built and started, consoles connected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from xenolith.abi.errno import XenError
from xenolith.abi.sched import SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_soft_reset, SHUTDOWN_suspend
from xenolith.abi.start_info import SIF_INITDOMAIN, SIF_PRIVILEGED
from xenolith.backends.console import ConsoleRing
from xenolith.cpu.unicorn import UnicornEngine
from xenolith.errors import UserError
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.machine import Hypervisor
from xenolith.loader import pv
from xenolith.machine.clock import HostClock, VirtualClock
from xenolith.machine.e820 import HIGH_RAM_START, MemoryMap
from xenolith.machine.ram import Ram
from xenolith.toolstack.config import DomainConfig, MachineConfig
from xenolith.toolstack.host import HostLoop, VirtualHost
from xenolith.toolstack.images import Prepared
from xenolith.toolstack.native_services import NativeServices
from xenolith.toolstack.serial_line import SerialLine

if TYPE_CHECKING:
    from xenolith.machine.clock import Clock
    from xenolith.machine.pc import Pc

_MIB_SHIFT: Final = 20
_OVERHEAD_BYTES: Final = 8 << 20
"""Frames for the hypervisor itself: its tables, and what it shares with domains."""
_VIRTUAL_NS_PER_BYTE: Final = 0.25
"""Virtual time for each byte of code executed: about a thousand million instructions a second."""
Sink = Callable[[bytes], None]


@dataclass(slots=True)
class Boot:
    """What one domain starts with."""

    config: DomainConfig
    prepared: Prepared


class Machine:
    """A machine that is switched on by `start` and runs in `run`. Close it afterwards.

    `console(name)` gives the sink of a domain's console output. A machine with a domain that has HARDWARE is a PC.
    """

    def __init__(self, config: MachineConfig, console: Callable[[str], Sink]) -> None:
        self._config = config
        self._console = console
        self._sinks: dict[int, Sink] = {}
        self._rings: dict[int, ConsoleRing] = {}
        self._typed = bytearray()
        memory = sum(domain.memory for domain in config.domains) + config.spare_memory
        memory += _OVERHEAD_BYTES + memory // 256
        hardware = any(Capability.HARDWARE in domain.capabilities for domain in config.domains)
        if hardware:
            memory = -(-memory >> _MIB_SHIFT) + 2 << _MIB_SHIFT
            memory_map = MemoryMap(memory)
            self.ram = Ram(memory_map.top_frame << 12)
            self.engine = UnicornEngine(self.ram, _ram_ranges(memory_map))
        else:
            self.ram = Ram(memory + 0xFFF & ~0xFFF)
            self.engine = UnicornEngine(self.ram)
        self.clock: Clock
        self.host: HostLoop | VirtualHost
        if config.clock == "virtual":
            self.engine.count_work()
            virtual = VirtualClock(self.engine.work_done, _VIRTUAL_NS_PER_BYTE)
            self.clock, self.host = virtual, VirtualHost(self.engine, virtual)
        else:
            self.clock = HostClock()
            self.host = HostLoop(self.engine, self.clock)
        self._serial = SerialLine(config.serial) if config.serial is not None and hardware else None
        self.pc = self._build_pc(memory) if hardware else None
        if self._serial is not None and self.pc is not None and isinstance(self.host, HostLoop):
            self._serial.listen(self.host, self.pc.serial.feed)
        self.hv = Hypervisor(self.ram, self.engine, self.clock, self.host, self.pc)
        self.hv.console_sink = self._hypervisor_console
        self.hv.console_source = self._take_typed
        self._services: NativeServices | None = None

    def _build_pc(self, memory: int) -> Pc:
        from xenolith.machine.pc import Pc

        return Pc(
            memory,
            self.clock,
            1,
            self._serial.write if self._serial is not None else lambda data: None,
            lambda: self.hv.power("off"),
            lambda: self.hv.power("reboot"),
        )

    # -- domains ------------------------------------------------------------------------------------------------------

    def start(self, boot: Boot) -> Domain:
        """Build a domain and let it run. UserError if the image does not fit, or breaks a rule of the ABI."""
        config = boot.config
        frames = config.memory >> 12
        spec = pv.PvSpec(
            image=boot.prepared.image,
            memory_frames=frames,
            ramdisk=boot.prepared.ramdisk,
            cmdline=boot.prepared.cmdline,
            flags=_flags(config.capabilities),
        )
        layout = pv.plan(spec)
        services = self._native_services() if spec.has_rings else None
        domain = self.hv.create_domain(config.name, frames, config.vcpus, config.capabilities)
        domain.weight = config.weight
        self._sinks[domain.domid] = self._console(config.name)
        if services is not None:
            spec = replace(spec, store_port=services.store_port(domain), console_port=services.console_port(domain))
        p2m = self._populate(domain, frames)
        try:
            day = pv.build(spec, layout, p2m, self.ram.bytes, domain.shared_info_mfn)
            self.hv.start_domain(domain, day.entry, day.stack_pointer, day.start_info_vaddr, day.l4_mfn)
        except XenError as error:
            raise UserError(
                f"{config.name} cannot be started: {error.reason or error}", "this is a bug of Xenolith"
            ) from error
        if services is not None:
            self._rings[domain.domid] = services.attach(domain, spec, day, self._sinks[domain.domid])
        return domain

    def _native_services(self) -> NativeServices:
        if self._services is None:
            self._services = NativeServices(self.hv)
        return self._services

    def _populate(self, domain: Domain, frames: int) -> npt.NDArray[np.uint64]:
        try:
            mfns = np.array(self.hv.frames.allocate(domain.domid, frames), dtype=np.uint64)
        except XenError:
            raise UserError(
                f"{frames >> 8} MiB for {domain.name} is more than the machine has left", "give the machine more memory"
            ) from None
        domain.tot_frames += frames
        np.frombuffer(self.hv.m2p, dtype=np.uint64)[mfns.astype(np.int64)] = np.arange(frames, dtype=np.uint64)
        return mfns

    # -- consoles -----------------------------------------------------------------------------------------------------

    def _hypervisor_console(self, domain: Domain, data: bytes) -> None:
        sink = self._sinks.get(domain.domid)
        if sink is not None:
            sink(data)

    def type(self, domain: Domain, data: bytes) -> None:
        """Keys for a domain's console."""
        ring = self._rings.get(domain.domid)
        if ring is not None:
            ring.type(data)
            return
        from xenolith.abi.event_channel import VIRQ_CONSOLE
        from xenolith.hypervisor.events import raise_global_virq

        self._typed += data
        raise_global_virq(self.hv, VIRQ_CONSOLE)

    def _take_typed(self, limit: int) -> bytes:
        data = bytes(self._typed[:limit])
        del self._typed[:limit]
        return data

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, stopped: Callable[[], bool]) -> None:
        """Run until the power goes, no domain is left to run, or `stopped()`."""
        self.hv.run(lambda: stopped() or not any(runs(domain) for domain in self.hv.domains.values()))

    def close(self) -> None:
        self.host.close()
        if self._serial is not None:
            self._serial.close()


_HEALTHY_REASONS: Final = (SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_suspend, SHUTDOWN_soft_reset)


def runs(domain: Domain) -> bool:
    """Whether it is a guest that has not stopped."""
    return domain.max_frames > 0 and domain.shutdown_code is None and not domain.is_dying


def crashed(domain: Domain) -> bool:
    """Whether it has stopped for another reason than one that a healthy guest gives."""
    return domain.shutdown_code is not None and domain.shutdown_code not in _HEALTHY_REASONS


def _ram_ranges(memory_map: MemoryMap) -> list[range]:
    """The machine addresses at which there is RAM: below the PCI hole, and from 4 GiB up."""
    ranges = [range(memory_map.nvs_range.stop)]
    if memory_map.top_frame << 12 > HIGH_RAM_START:
        ranges.append(range(HIGH_RAM_START, memory_map.top_frame << 12))
    return ranges


def _flags(capabilities: Capability) -> int:
    flags = SIF_PRIVILEGED if Capability.CONTROL in capabilities else 0
    return flags | (SIF_INITDOMAIN if Capability.HARDWARE in capabilities else 0)
