"""A machine from power-on to its end: parts put together, domains built and started, consoles connected."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from xenolith.abi.errno import XenError
from xenolith.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from xenolith.abi.sched import SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_soft_reset, SHUTDOWN_suspend
from xenolith.abi.start_info import SIF_INITDOMAIN, SIF_PRIVILEGED
from xenolith.cpu.choose import create_engine
from xenolith.errors import UserError
from xenolith.hypervisor import hardware
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.machine import Hypervisor
from xenolith.hypervisor.release import RELEASES
from xenolith.loader import arrangement, pv
from xenolith.machine.clock import HostClock, VirtualClock
from xenolith.machine.e820 import HIGH_RAM_START, MemoryMap
from xenolith.machine.pci import bdf
from xenolith.machine.ram import Ram
from xenolith.services.console import Terminals
from xenolith.services.supervisor import Supervisor
from xenolith.toolstack.builder import Built
from xenolith.toolstack.cards import Cards
from xenolith.toolstack.config import DomainConfig, MachineConfig, store_keeper
from xenolith.toolstack.device_host import DeviceHost
from xenolith.toolstack.guest_config import GuestConfig
from xenolith.toolstack.host import HostLoop, VirtualHost
from xenolith.toolstack.images import Prepared
from xenolith.toolstack.machine_devices import MachineDevices
from xenolith.toolstack.rights import pci_number
from xenolith.toolstack.roles import NEEDED_SERVICES, Roles, implied_services
from xenolith.toolstack.serial_line import SerialLine

if TYPE_CHECKING:
    from xenolith.machine.clock import Clock
    from xenolith.machine.pc import Pc
    from xenolith.services.network.networks import Networks
    from xenolith.toolstack.lifecycle import Toolstack

_MIB_SHIFT: Final = 20
_OVERHEAD_BYTES: Final = 8 << 20
"""Frames for the hypervisor itself: its tables, and what it shares with domains."""
_VIRTUAL_NS_PER_BYTE: Final = 0.25
"""Virtual time for each byte of code executed: about a thousand million instructions a second."""
Sink = Callable[[bytes], None]


def _nowhere(name: str) -> Sink:
    return lambda data: None


@dataclass(slots=True)
class Boot:
    """What one domain starts with."""

    config: DomainConfig
    prepared: Prepared


class Machine:
    """A machine that is switched on by `power_on` and runs in `run`. Close it afterwards.

    `console(name)` gives the sink of a domain's console output. A machine with a domain that has HARDWARE is a PC.
    Sockets and logs are in `directory`, if there is one.
    """

    def __init__(
        self, config: MachineConfig, console: Callable[[str], Sink] = _nowhere, directory: Path | None = None
    ) -> None:
        self._config = config
        self._keeper = store_keeper(config.domains)
        self._console = console
        self._typed = bytearray()
        memory = config.memory or sum(domain.memory for domain in config.domains) + config.spare_memory
        memory += _OVERHEAD_BYTES + memory // 256
        virtual = config.clock == "virtual"
        hardware = any(Capability.HARDWARE in domain.capabilities for domain in config.domains)
        if hardware:
            memory = -(-memory >> _MIB_SHIFT) + 2 << _MIB_SHIFT
            memory_map = MemoryMap(memory)
            self.ram = Ram(memory_map.top_frame << 12)
            self.engine = create_engine(config.engine, self.ram, _ram_ranges(memory_map), virtual)
        else:
            self.ram = Ram(memory + 0xFFF & ~0xFFF)
            self.engine = create_engine(config.engine, self.ram, counts_work=virtual)
        self.clock: Clock
        self.host: HostLoop | VirtualHost
        if virtual:
            self.engine.count_work()
            clock = VirtualClock(self.engine.work_done, _VIRTUAL_NS_PER_BYTE)
            self.clock, self.host = clock, VirtualHost(self.engine, clock)
        else:
            self.clock = HostClock()
            self.host = HostLoop(self.engine, self.clock)
        self._serial = SerialLine(config.serial) if config.serial is not None and hardware else None
        if config.devices and not hardware:
            raise UserError("nobody has the machine's devices", "give a domain the capability 'hardware'")
        cards = Cards(
            config.name,
            self.clock.now_ns,
            lambda: self._networks,
            lambda text: self.log(text),
        )
        self._devices = MachineDevices(config.devices, self._device_host, cards)
        self.pc = self._build_pc(memory) if hardware else None
        if self._serial is not None and self.pc is not None and isinstance(self.host, HostLoop):
            self._serial.listen(self.host, self.pc.serial.feed)
        release = RELEASES[config.xen_version]
        self.hv = Hypervisor(
            self.ram, self.engine, self.clock, self.host, self.pc, config.cpu, release, _command_line(config)
        )
        self.hv.console_sink = self._hypervisor_console
        self.hv.console_source = self._take_typed
        self.terminals = Terminals(directory)
        self.log: Callable[[str], None] = lambda text: None
        self.supervisor = Supervisor(self.hv, self.host, directory, lambda text: self.log(text))
        self._roles = Roles(self.supervisor, self.terminals, self.clock.virtual, lambda: self._networks)
        self.domid_of_service = self._roles.domid_of_service

    def _build_pc(self, memory: int) -> Pc:
        from xenolith.machine.pc import Pc

        return Pc(
            memory,
            self.clock,
            1,
            self._serial.write if self._serial is not None else lambda data: None,
            lambda: self.hv.power("off"),
            lambda: self.hv.power("reboot"),
            self._devices.functions,
        )

    def _device_host(self, slot: int) -> DeviceHost:
        return DeviceHost(self.host, lambda action: self.hv.soon(action), partial(self._device_failed, slot))

    def _device_failed(self, slot: int, error: Exception) -> None:
        """A bug of ours in a device's model: nothing answers in its place any more."""
        report = "".join(traceback.format_exception(error))
        self.log(f"the device in slot {slot} is gone, by a bug of Xenolith:\n{report}")
        self.hv.publish("bug", device=slot, traceback=report)
        if self.pc is not None:
            self.pc.pci.remove(bdf(0, slot, 0))

    @cached_property
    def _networks(self) -> Networks:
        """Most machines have none."""
        from xenolith.services.network.networks import Networks

        return Networks()

    # -- domains ------------------------------------------------------------------------------------------------------

    def power_on(self, boots: Mapping[str, Boot]) -> list[Domain]:
        """Start all domains of the description, each after those that it needs: services, and guests by their names.

        UserError for what does not fit, or breaks a rule of the ABI.
        """
        return [
            self.start_service(domain) if domain.services else self.start(boots[domain.name])
            for domain in self._config.start_order()
        ]

    def start_service(self, config: DomainConfig) -> Domain:
        """Make a native domain and start its services. UserError where there is no memory or no store for it."""
        self._require_store(config)
        try:
            domain = self.supervisor.start(self._roles.role(config)).kernel.domain
        except XenError as error:
            raise UserError(f"{config.name} cannot be started: {error}", "give the machine more memory") from None
        self._limit_hardware(config, domain)
        return domain

    def _require_store(self, config: DomainConfig) -> None:
        if "store" in config.services or self._roles.domid_of_service("store") is not None:
            return
        if self.supervisor.store_keeper is None:
            problem = f"{config.name} needs a store, and no domain keeps one"
            raise UserError(problem, "give a domain the service 'store', or one with xenstored the capability")
        if not set(config.services).isdisjoint(NEEDED_SERVICES):
            problem = f"{config.name} makes guests or has their consoles, and the store is a guest's"
            raise UserError(problem, "leave that to the tools of the guest, or give a domain the service 'store'")

    def start(self, boot: Boot) -> Domain:
        """Build a guest and let it run. UserError if the image does not fit, or breaks a rule of the ABI."""
        config = boot.config.identified(self.clock.virtual)
        spec = pv.PvSpec(
            image=boot.prepared.image,
            memory_frames=config.memory >> 12,
            ramdisk=boot.prepared.ramdisk,
            cmdline=boot.prepared.cmdline,
            flags=_flags(config.capabilities),
            store_elsewhere=self._roles.domid_of_service("store") is not None,
        )
        layout = pv.plan(spec)
        if spec.has_store:
            self._require_services()
        domain = self._create(config)
        if self._keeper is not None and config.name == self._keeper.name:
            self.supervisor.store_keeper = domain.domid
        self.terminals.of(domain.domid, config.name).viewers.append(self._console(config.name))
        if spec.has_store:
            self._build_connected(config, domain, spec, layout)
        else:
            self._build(config, domain, spec, layout)
        return domain

    def _create(self, config: GuestConfig) -> Domain:
        assert config.uuid is not None
        config.check_cpus(self.engine.processors)
        domain = self.hv.create_domain(config.name, config.memory >> 12, config.max_vcpus, config.capabilities)
        domain.weight, domain.handle, domain.time_offset_s = config.weight, config.uuid, config.time_offset_s
        self.hv.scheduler.set_cap(domain, config.cap)
        for vcpu, mask in zip(domain.vcpus, config.affinity, strict=False):
            vcpu.hard_affinity = mask
        self._limit_hardware(config, domain)
        self._assign_devices(config, domain)
        if config.targets is not None:
            domain.targets = frozenset(
                other.domid for other in self.hv.domains.values() if other.name in config.targets
            )
        return domain

    def _assign_devices(self, config: GuestConfig, domain: Domain) -> None:
        """Have PCI functions work for a guest from the start; the domain that drives them lends it the rest."""
        for name in config.pci:
            where = pci_number(name)
            if where not in self.hv.iommu.functions() or not self.hv.iommu.can_be_assigned(where):
                raise UserError(
                    f"{config.name} cannot have the PCI device {name}", "it must be the machine's, and no other guest's"
                )
            domain.has_iommu = True
            self.hv.iommu.assign(where, domain)

    def _limit_hardware(self, config: GuestConfig, domain: Domain) -> None:
        access = config.hardware
        if access is None or Capability.HARDWARE not in domain.capabilities:
            return
        try:
            hardware.limit(self.hv, domain, access.ports, access.memory, access.functions)
        except XenError as error:
            raise UserError(
                f"{config.name} cannot have the hardware that it is to have: {error.reason}",
                "a control domain's lspci and /proc/iomem show what there is",
            ) from None

    def _build_connected(self, config: GuestConfig, domain: Domain, spec: pv.PvSpec, layout: pv.PvLayout) -> None:
        """Build a guest with a store, and a console unless that is the hypervisor's, and leave it paused until the
        toolstack has told others of it."""
        store, console = self._roles.require("store"), self._roles.require("console")
        self.hv.lifecycle.pause(domain)
        spec = replace(spec, store_port=domain.events.alloc_unbound(store))
        if spec.has_console:
            spec = replace(spec, console_port=domain.events.alloc_unbound(console))
        day = self._build(config, domain, spec, layout)
        assert day.store_mfn is not None
        domain.grants.grant(GNTTAB_RESERVED_XENSTORE, store, day.store_mfn)
        built = Built(domain.domid, day.store_mfn, spec.store_port)
        if day.console_mfn is not None:
            domain.grants.grant(GNTTAB_RESERVED_CONSOLE, console, day.console_mfn)
            built = built._replace(console=(day.console_mfn, spec.console_port))
        self._roles.adopt(config, domain, built)

    def _build(self, config: GuestConfig, domain: Domain, spec: pv.PvSpec, layout: pv.PvLayout) -> pv.StartOfDay:
        p2m = self._populate(domain, spec.memory_frames)
        try:
            day = pv.build(spec, layout, p2m, self.ram.bytes, domain.shared_info_mfn)
            self.hv.start_domain(domain, day.entry, day.stack_pointer, day.start_info_vaddr, day.l4_mfn)
        except XenError as error:
            raise UserError(
                f"{config.name} cannot be started: {error.reason or error}", "this is a bug of Xenolith"
            ) from error
        if spec.flags & SIF_INITDOMAIN:
            for line in arrangement.describe(f"Dom{domain.domid}", spec, layout, p2m):
                self.hv.log.write(line)
            self.hv.log.write(f"Dom{domain.domid} has maximum {config.max_vcpus} VCPUs")
        return day

    def _populate(self, domain: Domain, frames: int) -> npt.NDArray[np.uint64]:
        try:
            mfns = np.array(self.hv.frames.allocate(domain.domid, frames), dtype=np.uint64)
        except XenError:
            raise UserError(
                f"{frames >> 8} MiB for {domain.name} is more than the machine has left", "give the machine more memory"
            ) from None
        # Guests look up a page in both lists at once: pfn in theirs and mfn in the M2P. If the two were the same,
        # both places would be at the same distance from 2 MiB, and keep each other out of the emulator's TLB.
        mfns = np.roll(mfns, frames // 2)
        domain.tot_frames += frames
        np.frombuffer(self.hv.m2p, dtype=np.uint64)[mfns.astype(np.int64)] = np.arange(frames, dtype=np.uint64)
        return mfns

    def _require_services(self) -> None:
        """A guest needs a store, a console and a toolstack; where the description has none, one domain has them."""
        missing = [name for name in NEEDED_SERVICES if self._roles.domid_of_service(name) is None]
        if missing:
            self.start_service(implied_services(tuple(missing)))

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as code of the domain that makes guests. UserError while that is being started again."""
        tasks = self._roles.builder_tasks()
        if tasks is None:
            coroutine.close()
            raise UserError("the builder's domain is being started again", "try once more")
        tasks.spawn(coroutine)

    @property
    def toolstack(self) -> Toolstack | None:
        """What makes guests in this machine, if anything does."""
        return self._roles.toolstack

    # -- consoles -----------------------------------------------------------------------------------------------------

    def _hypervisor_console(self, domain: Domain, data: bytes) -> None:
        self.terminals.of(domain.domid, domain.name).show(data)

    def type(self, domain: Domain, data: bytes) -> None:
        """Keys for a domain's console."""
        if not _has_hypervisor_console(domain):
            self.terminals.of(domain.domid).keys(data)
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
        self.supervisor.close()
        self.terminals.close()
        self.host.close()
        self._devices.close()
        if "_networks" in vars(self):
            self._networks.close()
        if self._serial is not None:
            self._serial.close()


_HEALTHY_REASONS: Final = (SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_suspend, SHUTDOWN_soft_reset)


def runs(domain: Domain) -> bool:
    """Whether it is a guest that has not stopped."""
    is_guest = bool(domain.vcpus) and domain.vcpus[0].native is None
    return is_guest and domain.shutdown_code is None and not domain.is_dying


def _has_hypervisor_console(domain: Domain) -> bool:
    """Whether its console is the hypervisor's own, as that of a dom0 is, and no ring."""
    return Capability.HARDWARE in domain.capabilities


def crashed(domain: Domain) -> bool:
    """Whether it has stopped for another reason than one that a healthy guest gives."""
    return domain.shutdown_code is not None and domain.shutdown_code not in _HEALTHY_REASONS


def _ram_ranges(memory_map: MemoryMap) -> list[range]:
    """The machine addresses at which there is RAM: below the PCI hole, and from 4 GiB up."""
    ranges = [range(memory_map.nvs_range.stop)]
    if memory_map.top_frame << 12 > HIGH_RAM_START:
        ranges.append(range(HIGH_RAM_START, memory_map.top_frame << 12))
    return ranges


def _command_line(config: MachineConfig) -> str:
    """What Xen would be told of the domain that drives the hardware. xl takes from it that its memory stays."""
    first = next((d for d in config.domains if Capability.HARDWARE in d.capabilities and not d.services), None)
    if first is None:
        return ""
    size = f"{first.memory >> 20}M" if not first.memory % (1 << 20) else f"{first.memory >> 10}K"
    return f"dom0_mem={size},max:{size} dom0_max_vcpus={first.max_vcpus}"


def _flags(capabilities: Capability) -> int:
    flags = SIF_PRIVILEGED if Capability.CONTROL in capabilities else 0
    return flags | (SIF_INITDOMAIN if Capability.HARDWARE in capabilities else 0)
