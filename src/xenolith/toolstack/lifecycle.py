"""The life of guests in a running machine: create, watch, stop, start again, and take away.

The toolstack is the code of a native domain that may create domains. It tells guests and backends what they must know
through xenstore, as xl does, and acts by hypercalls of its own domain only.
"""

from __future__ import annotations

import contextlib
import pickle
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EBUSY, ENODEV, ENOMEM, EPERM, ESRCH, XenError
from xenolith.abi.sched import (
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_soft_reset,
    SHUTDOWN_watchdog,
)
from xenolith.abi.types import PAGE_SHIFT
from xenolith.errors import UserError
from xenolith.loader import pv
from xenolith.services.console import Terminals
from xenolith.services.control import Control, DomainInfo
from xenolith.services.service import Context
from xenolith.services.tasks import Future
from xenolith.toolstack.builder import Builder, Built
from xenolith.toolstack.devices import Devices
from xenolith.toolstack.guest_config import Action, GuestConfig
from xenolith.toolstack.images import Prepared, prepare
from xenolith.toolstack.records import GUEST_NODES, DeviceRecord, guest_nodes, home
from xenolith.toolstack.rights import pci_number

if TYPE_CHECKING:
    from xenolith.toolstack.disks import Disk
    from xenolith.toolstack.nics import Nic

_KEPT: Final = "guest "
"""What is kept of a guest has a name that begins so, and ends with its domid."""
_POLL_NS: Final = 1_000_000
_DEVICE_LIMIT_NS: Final = 10_000_000_000
_SCRIPT_LIMIT_NS: Final = 40_000_000_000
"""As long as libxl waits for a script."""
_SHUTDOWN_LIMIT_NS: Final = 300_000_000_000
_RESTART_LIMIT_NS: Final = 1_000_000_000
"""A guest that restarts itself sooner than this after it was made is destroyed instead, as xl does."""
_READY: Final = ("2", "3", "4")
_CLOSED: Final = "6"
"""States of a backend (io/xenbus.h): it waits for the guest or serves it, or has done."""
_ACTIONS: Final = {
    SHUTDOWN_poweroff: "on_poweroff",
    SHUTDOWN_reboot: "on_reboot",
    SHUTDOWN_crash: "on_crash",
    SHUTDOWN_watchdog: "on_watchdog",
    SHUTDOWN_soft_reset: "on_soft_reset",
}
_FAILURES: Final = {SHUTDOWN_crash: "has crashed", SHUTDOWN_watchdog: "was stopped by its watchdog"}
Progress = Callable[[str, float], None]


def _silent(text: str, part: float) -> None:
    pass


@dataclass(slots=True)
class Guest:
    """A guest that this toolstack has made, or taken on. `acted` is set when its end is being seen to."""

    domid: int
    name: str
    handle: uuid.UUID
    config: GuestConfig
    created_ns: int
    store_mfn: int
    store_port: int
    devices: list[DeviceRecord] = field(default_factory=list)
    ready: bool = False
    """Everybody has been told of it."""
    acted: bool = False


class Toolstack:
    """The service that makes guests and sees to their ends. `ended` is told of every guest that has stopped.

    Coroutines raise UserError for what a user got wrong, with nothing left of what was begun.
    """

    def __init__(self, context: Context, devices: Devices, terminals: Terminals, repeatable: bool = False) -> None:
        self._context = context
        self._store = self.store = context.store
        self._devices = devices
        self._terminals = terminals
        self._repeatable = repeatable
        self.control = Control(context.kernel)
        self._builder = Builder(context.kernel)
        kept = [value for name, value in context.kernel.kept.items() if name.startswith(_KEPT)]
        self.guests: dict[int, Guest] = {guest.domid: guest for guest in map(pickle.loads, kept)}
        self.ended: Callable[[Guest, DomainInfo], None] = self._log_end

    async def start(self) -> None:
        for guest in list(self.guests.values()):
            guest.acted = False
            if not guest.ready or not self._exists(guest.domid):
                await self._take_away(guest)
        await self._store.watch("@releaseDomain", self._look)

    def _exists(self, domid: int) -> bool:
        try:
            return not self.control.info(domid).is_dying
        except XenError:
            return False

    def stop(self) -> None:
        pass

    def _keep(self, guest: Guest) -> None:
        self._context.kernel.kept[f"{_KEPT}{guest.domid}"] = bytearray(pickle.dumps(guest))

    async def sleep(self, duration_ns: int) -> None:
        future: Future[None] = Future()
        self._context.kernel.at(self._context.kernel.now_ns() + duration_ns, lambda: future.set_result(None))
        await future

    # -- finding ------------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Guest:
        """A guest by its name or domid. UserError if there is none."""
        for guest in self.guests.values():
            if guest.name == name:
                return guest
        if name.isdecimal() and int(name) in self.guests:
            return self.guests[int(name)]
        raise UserError(f"there is no domain '{name}' that can be acted on", "'xenolith list' shows the domains")

    def _check_name(self, name: str, except_for: int = -1) -> None:
        if any(guest.name == name and guest.domid != except_for for guest in self.guests.values()):
            raise UserError(f"there is a domain '{name}' already", "give the new one another name")

    # -- creating -----------------------------------------------------------------------------------------------------

    async def create(
        self,
        config: GuestConfig,
        paused: bool = False,
        progress: Progress = _silent,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Guest:
        """Make a guest and let it run, unless it is to stay `paused`. `warn` is told what it will lack."""
        self._check_name(config.name)
        config = config.identified(self._repeatable)
        progress(f"reading the kernel of {config.name}", 0.0)
        prepared = await self._context.host.submit(lambda: prepare(config, _silent))
        for warning in prepared.warnings:
            warn(warning)
        self._check_name(config.name)
        progress(f"building {config.name}", 0.5)
        guest = self._build(config, prepared)
        try:
            await self._introduce(guest)
            for device in guest.devices:
                await self._until_ready(guest, device)
        except Exception:
            await self._take_away(guest)
            raise
        if not paused:
            self.control.unpause(guest.domid)
        progress(f"{config.name} runs", 1.0)
        return guest

    def _build(self, config: GuestConfig, prepared: Prepared) -> Guest:
        assert config.uuid is not None
        config.check_cpus(self.control.cpus())
        devices = self._devices.of(config)
        spec = pv.PvSpec(
            image=prepared.image,
            memory_frames=config.memory >> PAGE_SHIFT,
            ramdisk=prepared.ramdisk,
            cmdline=prepared.cmdline,
        )
        try:
            built = self._builder.build(
                spec,
                config.uuid,
                config.max_vcpus,
                self._devices.store_domid,
                self._devices.console_domid,
                [pci_number(name) for name in config.pci],
            )
        except XenError as error:
            if error.errno in (ENODEV, EBUSY, EPERM) and config.pci:
                raise UserError(
                    f"{config.name} cannot have its PCI devices: {error.reason}",
                    "they must be the machine's, not another guest's, and a native domain must have them",
                ) from None
            if error.errno != ENOMEM:
                raise UserError(f"{config.name} cannot be made: {error}") from None
            free = self.control.free_memory() >> 20
            raise UserError(
                f"{config.memory >> 20} MiB for {config.name} is more than the machine has left: {free} MiB are free",
                "give it less memory, destroy another domain, or start a machine with more",
            ) from None
        self.control.set_scheduling(built.domid, config.weight, config.cap)
        for vcpu, mask in enumerate(config.affinity[: config.max_vcpus]):
            self.control.set_affinity(built.domid, vcpu, mask)
        self.control.set_time_offset(built.domid, config.time_offset_s)
        return self._record(config, built, devices)

    async def adopt(self, config: GuestConfig, built: Built) -> Guest:
        """Take on a guest that the machine made at power-on, and let it run."""
        guest = self._record(config, built, self._devices.of(config))
        await self._introduce(guest)
        self.control.unpause(guest.domid)
        return guest

    def _record(self, config: GuestConfig, built: Built, devices: list[DeviceRecord]) -> Guest:
        assert config.uuid is not None
        now = self._context.kernel.now_ns()
        guest = Guest(built.domid, config.name, config.uuid, config, now, built.store_mfn, built.store_port)
        console = [] if built.console is None else [self._devices.console(config.name, *built.console)]
        guest.devices = [*console, *devices]
        self.guests[guest.domid] = guest
        self._keep(guest)
        return guest

    async def _introduce(self, guest: Guest) -> None:
        """Tell the store, the guest and its backends of each other."""
        config, domid, store = guest.config, guest.domid, self._store
        rings = {"store/ring-ref": guest.store_mfn, "store/port": guest.store_port}
        readable = (f"n{self._context.kernel.domid}", f"r{domid}")
        nodes = [
            *guest_nodes(
                domid,
                guest.name,
                guest.handle,
                config.memory >> 10,
                config.max_memory >> 10,
                config.vcpus,
                config.max_vcpus,
            ),
            *((f"{home(domid)}/{name}", value) for name, value in rings.items()),
        ]

        async def write(transaction: int) -> None:
            await store.make_all([(path, readable) for path in (home(domid), f"/vm/{guest.handle}")], transaction)
            await store.write_all(nodes, transaction)
            await store.make_all([(f"{home(domid)}/{name}", (f"n{domid}",)) for name in GUEST_NODES], transaction)
            await self._write_devices(domid, guest.devices, transaction)

        await store.transaction(write)
        await store.introduce(domid, guest.store_mfn, guest.store_port)
        guest.ready = True
        self._keep(guest)

    async def _write_devices(self, domid: int, devices: list[DeviceRecord], transaction: int) -> None:
        directories: list[tuple[str, tuple[str, str]]] = []
        values: list[tuple[str, str | int]] = []
        for device in devices:
            front, back = device.nodes(domid)
            front_path, back_path = device.frontend_path(domid), device.backend_path(domid)
            of_backend = (f"n{device.backend_domid}", f"r{domid}")
            directories.append((front_path, (f"n{domid}", f"r{device.backend_domid}")))
            directories += [(f"{front_path}/{name}", of_backend) for name in device.told_guest]
            directories.append((back_path, of_backend))
            for path, nodes in ((front_path, front), (back_path, back)):
                values += [(f"{path}/{name}", value) for name, value in nodes.items()]
        await self._store.make_all(directories, transaction)
        await self._store.write_all(values, transaction)

    # -- ending -------------------------------------------------------------------------------------------------------

    async def destroy(self, guest: Guest) -> None:
        """End a guest at once."""
        guest.acted = True
        await self._take_away(guest)

    async def _take_away(self, guest: Guest) -> None:
        """Its devices and nodes first, so that backends let go of its memory; then the domain itself."""
        domid, store = guest.domid, self._store
        with contextlib.suppress(XenError):
            self.control.pause(domid)
        await self._leave_scripts(domid, guest.devices)
        for device in guest.devices:
            await store.remove(device.backend_path(domid))
        for path in (home(domid), f"/vm/{guest.handle}"):
            await store.remove(path)
        for device in guest.devices:
            await self._tidy(device, domid)
        with contextlib.suppress(XenError):
            await store.release(domid)
        while not self._destroyed(domid):
            await self.sleep(_POLL_NS)
        self.guests.pop(domid, None)
        self._context.kernel.kept.pop(f"{_KEPT}{domid}", None)
        self._terminals.forget(domid)

    async def _tidy(self, device: DeviceRecord, domid: int) -> None:
        """Remove the directory that held a backend's devices of a guest, once it is empty."""
        parent = device.backend_path(domid).rpartition("/")[0]
        if not await self._store.names(parent):
            await self._store.remove(parent)

    def _destroyed(self, domid: int) -> bool:
        try:
            if self.control.destroy(domid):
                self.control.info(domid)
            return False
        except XenError as error:
            if error.errno != ESRCH:
                raise
            return True

    def _look(self, path: str) -> None:
        """Domains have stopped, or are gone."""
        for guest in list(self.guests.values()):
            if guest.acted:
                continue
            if not self._exists(guest.domid):
                guest.acted = True
                self._context.tasks.spawn(self._take_away(guest))
                continue
            info = self.control.info(guest.domid)
            if info.shutdown_reason is not None:
                guest.acted = True
                self.ended(guest, info)
                self._context.tasks.spawn(self._see_to(guest, info.shutdown_reason))

    def _log_end(self, guest: Guest, info: DomainInfo) -> None:
        how = _FAILURES.get(info.shutdown_reason or 0)
        if how is not None:
            self._context.log(f"{guest.name} (domain {guest.domid}) {how}; 'xenolith dmesg' may say more")

    async def _see_to(self, guest: Guest, reason: int) -> None:
        """Do what the guest's description says of its end."""
        action: Action = getattr(guest.config, _ACTIONS.get(reason, "on_crash"))
        young = self._context.kernel.now_ns() - guest.created_ns < _RESTART_LIMIT_NS
        if action is Action.PRESERVE:
            return
        if action in (Action.RESTART, Action.COREDUMP_RESTART) and not young:
            await self._restart(guest)
        elif action is Action.RENAME_RESTART:
            await self._rename(guest, f"{guest.name}-{guest.domid}")
            await self.create(guest.config)
        else:
            await self._take_away(guest)

    async def _restart(self, guest: Guest) -> None:
        config = replace(guest.config, name=guest.name, uuid=guest.handle)
        await self._take_away(guest)
        try:
            await self.create(config)
        except UserError as error:
            self._context.log(f"{guest.name} cannot be started again: {error.message}")

    async def shutdown(self, guest: Guest, how: str = "poweroff") -> None:
        """Ask a guest to end ("poweroff" or "reboot"). UserError if it does not listen."""
        path = f"{home(guest.domid)}/control/shutdown"
        if await self._store.read_or(f"{home(guest.domid)}/control/feature-{how}", "") != "1":
            raise UserError(
                f"{guest.name} does not answer to requests to end itself (no control/feature-{how})",
                "wait until it has started, or use 'xenolith destroy'",
            )
        await self._store.write(path, how)

    async def until_ended(self, guest: Guest) -> None:
        """Wait until a guest that was asked to end is gone. UserError after five minutes."""
        await self.until(lambda: guest.domid not in self.guests, _SHUTDOWN_LIMIT_NS, f"{guest.name} has not ended")

    async def until(self, condition: Callable[[], bool], limit_ns: int, complaint: str) -> None:
        """Wait. UserError with the complaint if it takes too long."""
        deadline = self._context.kernel.now_ns() + limit_ns
        while not condition():
            if self._context.kernel.now_ns() > deadline:
                raise UserError(f"{complaint} within {limit_ns // 1_000_000_000} s")
            await self.sleep(10 * _POLL_NS)

    # -- changing -----------------------------------------------------------------------------------------------------

    async def rename(self, guest: Guest, name: str) -> None:
        self._check_name(name, guest.domid)
        await self._rename(guest, name)

    async def _rename(self, guest: Guest, name: str) -> None:
        guest.name = name
        self._keep(guest)
        await self._store.write(f"{home(guest.domid)}/name", name)
        await self._store.write(f"/vm/{guest.handle}/name", name)

    async def set_vcpus(self, guest: Guest, count: int) -> None:
        """Ask a guest to use this many of its vCPUs."""
        if not 1 <= count <= guest.config.max_vcpus:
            raise UserError(
                f"{guest.name} cannot have {count} vCPUs", f"it was made with at most {guest.config.max_vcpus}"
            )
        for number in range(guest.config.max_vcpus):
            value = "online" if number < count else "offline"
            await self._store.write(f"{home(guest.domid)}/cpu/{number}/availability", value)

    async def set_memory(self, guest: Guest, size: int) -> None:
        """Ask a guest to use this much memory (bytes)."""
        limit = await self._store.read_or(f"{home(guest.domid)}/memory/static-max", "0")
        if size >> 10 > int(limit):
            raise UserError(f"{guest.name} can have at most {int(limit) >> 10} MiB", "raise that by 'xenolith mem-max'")
        self.control.set_max_memory(guest.domid, max(size >> PAGE_SHIFT, self.control.info(guest.domid).frames))
        await self._store.write(f"{home(guest.domid)}/memory/target", size >> 10)

    async def set_max_memory(self, guest: Guest, size: int) -> None:
        """The most memory (bytes) that a guest may have from now on."""
        if size >> PAGE_SHIFT < self.control.info(guest.domid).frames:
            raise UserError(
                f"{guest.name} has more than {size >> 20} MiB now", "lower that first by 'xenolith mem-set'"
            )
        self.control.set_max_memory(guest.domid, size >> PAGE_SHIFT)
        await self._store.write(f"{home(guest.domid)}/memory/static-max", size >> 10)

    async def sysrq(self, guest: Guest, letter: str) -> None:
        if len(letter) != 1:
            raise UserError(f"'{letter}' is no SysRq key", "give one letter, as in 'xenolith sysrq guest h'")
        await self._store.write(f"{home(guest.domid)}/control/sysrq", letter)

    def trigger(self, guest: Guest, trigger: str, vcpu: int) -> None:
        """Have the hypervisor send a trigger ("nmi", …) to a vCPU."""
        try:
            self.control.trigger(guest.domid, trigger, vcpu)
        except (KeyError, XenError):
            raise UserError(
                f"the trigger '{trigger}' cannot be sent to vCPU {vcpu} of {guest.name}", "PV guests take 'nmi'"
            ) from None

    def update_config(self, guest: Guest, config: GuestConfig) -> None:
        """What the guest is to be made of when it is started next."""
        guest.config = replace(config, name=guest.name, uuid=guest.handle).identified(self._repeatable)
        self._keep(guest)

    # -- devices ------------------------------------------------------------------------------------------------------

    def device(self, guest: Guest, described: Disk | Nic) -> DeviceRecord:
        """The record of one more device. UserError if nobody can serve it."""
        from xenolith.toolstack.nics import Nic

        if not isinstance(described, Nic):
            return self._devices.disk(described)
        nics = replace(guest.config, nics=(*guest.config.nics, described)).identified(self._repeatable).nics
        return self._devices.nic(nics[-1])

    async def attach(self, guest: Guest, device: DeviceRecord) -> None:
        """Give a running guest one more device, and wait until its backend is ready."""
        if any(other.kind == device.kind and other.devid == device.devid for other in guest.devices):
            raise UserError(f"{guest.name} has a device {device.kind} {device.devid} already", "give it another number")
        guest.devices.append(device)
        self._keep(guest)
        await self._store.transaction(lambda number: self._write_devices(guest.domid, [device], number))
        try:
            await self._until_ready(guest, device)
        except UserError:
            await self._remove_device(guest, device)
            raise

    async def detach(self, guest: Guest, device: DeviceRecord, force: bool = False) -> None:
        """Take a device from a guest, which is asked to let go of it unless it is to go by `force`."""
        path = device.backend_path(guest.domid)
        if not force:
            await self._ask_to_close(path)
            await self._backend_reaches(guest, device, (_CLOSED,))
        await self._remove_device(guest, device)

    async def _remove_device(self, guest: Guest, device: DeviceRecord) -> None:
        await self._leave_scripts(guest.domid, [device])
        await self._store.remove(device.backend_path(guest.domid))
        await self._store.remove(device.frontend_path(guest.domid))
        await self._tidy(device, guest.domid)
        guest.devices.remove(device)
        self._keep(guest)

    async def _ask_to_close(self, path: str) -> None:
        """Say in the directory of a backend, if there is one, that its device is to go."""
        closing = {"": (), _CLOSED: ("online",)}
        values = {"online": "0", "state": "5"}

        async def change(transaction: int) -> None:
            state = await self._store.read_or(f"{path}/state", "", transaction)
            for name in closing.get(state, ("online", "state")):
                await self._store.write(f"{path}/{name}", values[name], transaction)

        await self._store.transaction(change)

    async def _leave_scripts(self, domid: int, devices: list[DeviceRecord]) -> None:
        """Take devices away so that a Linux backend's scripts undo what they have set up. `xl devd`, which runs them,
        removes the backend's directory when they have."""
        scripted = [device for device in devices if device.has_script]
        for device in scripted:
            await self._ask_to_close(device.backend_path(domid))
            await self._store.remove(device.frontend_path(domid))
        deadline = self._context.kernel.now_ns() + _SCRIPT_LIMIT_NS
        for device in scripted:
            while await self._store.read_or(f"{device.backend_path(domid)}/state", ""):
                if self._context.kernel.now_ns() > deadline:
                    self._context.log(f"domain {device.backend_domid} keeps {device.kind} {device.devid} of {domid}")
                    return
                await self.sleep(10 * _POLL_NS)

    async def _until_ready(self, guest: Guest, device: DeviceRecord) -> None:
        """Wait until the backend serves the guest or waits for it. UserError if it does not come to that."""
        if device.place:
            return  # the console, which has no states
        await self._backend_reaches(guest, device, _READY)
        if device.has_script:
            await self._backend_reaches(guest, device, ("connected",), "hotplug-status")
            await self._check_physical_device(guest, device)

    async def _check_physical_device(self, guest: Guest, device: DeviceRecord) -> None:
        """Xen's script for disks is content with a file that there is not, and then names no device for it."""
        path = device.backend_path(guest.domid)
        if device.kind == "vbd" and not await self._store.read_or(f"{path}/physical-device", ""):
            raise UserError(
                f"domain {device.backend_domid} has no {device.backend['params']} for {guest.name}",
                "name a file or a device of that domain",
            )

    async def _backend_reaches(
        self, guest: Guest, device: DeviceRecord, states: Iterable[str], node: str = "state"
    ) -> None:
        path = device.backend_path(guest.domid)
        limit_ns = _SCRIPT_LIMIT_NS if device.has_script else _DEVICE_LIMIT_NS
        deadline = self._context.kernel.now_ns() + limit_ns
        while await self._store.read_or(f"{path}/{node}", _CLOSED) not in states:
            errors = await self._store.read_each([f"{path}/error", f"{path}/hotplug-error"])
            if any(errors):
                told = " ".join(filter(None, errors))
                raise UserError(f"the device {device.kind} {device.devid} of {guest.name} cannot be had: {told}")
            if self._context.kernel.now_ns() > deadline:
                raise UserError(
                    f"the device {device.kind} {device.devid} of {guest.name} did not get there in"
                    f" {limit_ns // 1_000_000_000} s",
                    "the guest may be busy with it; --force takes it away",
                )
            await self.sleep(10 * _POLL_NS)

    # -- looking ------------------------------------------------------------------------------------------------------

    async def walk(self, path: str) -> AsyncIterator[tuple[str, str, list[str]]]:
        """All nodes at and below a path: path, value and permissions. Raises XenError(ENOENT)."""
        yield path, await self._store.read(path), await self._store.permissions(path)
        for name in await self._store.names(path):
            async for row in self.walk(f"{path.rstrip('/')}/{name}"):
                yield row
