"""What a running machine does for the commands that come to its control socket. Each verb is one coroutine.

Its arguments and its result are JSON. What only the hypervisor knows (events, policy, the state of services) is looked
at from the machine's side; what changes anything goes through the toolstack's domain.
"""

from __future__ import annotations

import base64
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, TypeVar

from xenolith.abi.domctl import XenDomctlGetdomaininfo
from xenolith.abi.errno import XenError, name
from xenolith.abi.sched import SHUTDOWN_crash
from xenolith.abi.vcpu import RUNSTATE_running
from xenolith.errors import UserError
from xenolith.hypervisor.hypercalls.domctl_life import fill_info
from xenolith.services.control import DomainInfo, info_from
from xenolith.services.tasks import Future
from xenolith.toolstack.guest_config import GuestConfig
from xenolith.toolstack.lifecycle import Guest, Toolstack
from xenolith.toolstack.records import DeviceRecord, home
from xenolith.toolstack.server import Conversation, Message, Verb

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.toolstack.machine import Machine

_MIB: Final = 1 << 20
_LOG_BYTES: Final = 1 << 20
_MOST_WEIGHT: Final = 65535
_F = TypeVar("_F", bound=Callable[..., Any])
_TOLD: Final = ("create", "start", "shutdown", "crash", "destroy", "service", "refused", "bug", "unimplemented")
_REASONS: Final = {0: "poweroff", 1: "reboot", 2: "suspend", 3: "crash", 4: "watchdog", 5: "soft reset"}


class Verbs:
    """The verbs of one machine."""

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine = machine
        self._hv = machine.hv
        self._name = name
        self._started = time.time()

    def find(self, verb: str) -> Verb | None:
        method = _VERBS.get(verb)
        return None if method is None else getattr(self, method)

    @property
    def _toolstack(self) -> Toolstack:
        toolstack = self._machine.toolstack
        if toolstack is None:
            raise UserError(
                "no native domain of this machine can make domains",
                "use the control domain's own tools, or --preset split",
            )
        return toolstack

    def _guest(self, arguments: Message) -> Guest:
        return self._toolstack.find(str(arguments["domain"]))

    def _domid(self, text: str) -> int:
        """Any domain, by name or domid, native ones too. UserError if there is none."""
        for domain in self._hv.domains.values():
            if self._name_of(domain.domid) == text:
                return domain.domid
        if text.isdecimal() and int(text) in self._hv.domains:
            return int(text)
        raise UserError(f"there is no domain '{text}'", "'xenolith list' shows the domains")

    def _name_of(self, domid: int) -> str:
        toolstack = self._machine.toolstack
        if toolstack is not None and domid in toolstack.guests:
            return toolstack.guests[domid].name
        return self._hv.domains[domid].name

    # -- looking ------------------------------------------------------------------------------------------------------

    async def list(self, conversation: Conversation, arguments: Message) -> Any:
        wanted = arguments.get("domain")
        only = None if wanted is None else self._domid(str(wanted))
        return [self._row(self._hv.domains[domid]) for domid in sorted(self._hv.domains) if only in (None, domid)]

    def _row(self, domain: Domain) -> Message:
        found = XenDomctlGetdomaininfo()
        fill_info(self._hv, domain, found)
        info = info_from(found)
        native = bool(domain.vcpus) and domain.vcpus[0].native is not None
        return {
            "name": self._name_of(info.domid),
            "domid": info.domid,
            "memory_mib": -(-info.frames * 4096 // _MIB),
            "vcpus": info.vcpus_online if not native else 1,
            "state": "-b----" if native else _state(info, any(vcpu.runnable for vcpu in domain.vcpus)),
            "time_s": info.cpu_time_ns / 1e9,
            "uuid": str(info.handle),
            "native": native,
        }

    async def domid(self, conversation: Conversation, arguments: Message) -> Any:
        return self._domid(str(arguments["domain"]))

    async def domname(self, conversation: Conversation, arguments: Message) -> Any:
        return self._name_of(self._domid(str(arguments["domain"])))

    async def info(self, conversation: Conversation, arguments: Message) -> Any:
        frames = self._hv.frames
        return {
            "machine": self._name,
            "nr_cpus": self._machine.engine.processors,
            "total_memory_mib": sum(length for _, length, kind in self._hv.machine_map if kind == 1) // _MIB,
            "free_memory_mib": frames.free_frames * 4096 // _MIB,
            "domains": len(self._hv.domains),
            "xen_version": f"{self._hv.release.major}.{self._hv.release.minor}",
            "xen_scheduler": "credit2",
            "engine": self._machine.engine.name,
            "clock": "virtual" if self._machine.clock.virtual else "host",
            "started": self._started,
        }

    async def dmesg(self, conversation: Conversation, arguments: Message) -> Any:
        text, _ = self._hv.log.read(_LOG_BYTES, clear=bool(arguments.get("clear")))
        return text.decode("latin-1")

    async def uptime(self, conversation: Conversation, arguments: Message) -> Any:
        now, rows = self._hv.now_ns(), []
        toolstack = self._machine.toolstack
        created = {guest.domid: guest.created_ns for guest in toolstack.guests.values()} if toolstack else {}
        for domid in sorted(self._hv.domains):
            seconds = (now - created.get(domid, 0)) / 1e9
            rows.append({"name": self._name_of(domid), "domid": domid, "uptime_s": seconds})
        return rows

    async def vcpu_list(self, conversation: Conversation, arguments: Message) -> Any:
        wanted = arguments.get("domain")
        only = None if wanted is None else self._domid(str(wanted))
        vcpus = [vcpu for vcpu in self._hv.all_vcpus() if only in (None, vcpu.domain.domid) and vcpu.native is None]
        return [
            {
                "name": self._name_of(vcpu.domain.domid),
                "domid": vcpu.domain.domid,
                "vcpu": vcpu.vcpu_id,
                "cpu": None if vcpu.down else vcpu.processor,
                "state": "--p" if vcpu.down else "-b-" if vcpu.blocked else "r--",
                "time_s": self._hv.timekeeping.time_in(vcpu, RUNSTATE_running) / 1e9,
                "affinity": f"{self._processors(vcpu.hard_affinity)} / {self._processors(vcpu.soft_affinity)}",
            }
            for vcpu in vcpus
        ]

    def _processors(self, mask: int) -> str:
        """A bitmap of processors in xl's words."""
        numbers = [number for number in range(self._machine.engine.processors) if mask >> number & 1]
        return "all" if len(numbers) == self._machine.engine.processors else ",".join(map(str, numbers))

    async def policy(self, conversation: Conversation, arguments: Message) -> Any:
        rows = []
        for domain in self._hv.domains.values():
            created = tuple(other.domid for other in self._hv.domains.values() if other.creator == domain.domid)
            rows.append({"name": self._name_of(domain.domid), **asdict(self._hv.policy.standing(domain, created))})
        return rows

    async def events(self, conversation: Conversation, arguments: Message) -> Any:
        """Tells what happens, until the client is gone."""
        done: Future[None] = Future()

        def tell(kind: str, data: dict[str, Any]) -> None:
            if kind in _TOLD:
                conversation.send(row={"ns": self._hv.now_ns(), "event": kind, **data})

        self._hv.subscribers.append(tell)
        conversation.gone = lambda: done.set_result(None)
        try:
            await done
        finally:
            self._hv.subscribers.remove(tell)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def create(self, conversation: Conversation, arguments: Message) -> Any:
        config: GuestConfig = pickle.loads(base64.b64decode(arguments["config"]))
        if config.capabilities:
            raise UserError(
                f"{config.name} cannot be given capabilities by 'xenolith create'",
                "describe it among the domains that are there at power-on",
            )
        guest = await self._toolstack.create(
            config,
            paused=bool(arguments.get("paused")),
            progress=lambda text, part: conversation.send(progress=text, part=part),
            warn=lambda text: conversation.send(warning=text),
        )
        return {"domid": guest.domid, "name": guest.name}

    async def destroy(self, conversation: Conversation, arguments: Message) -> Any:
        await self._toolstack.destroy(self._guest(arguments))

    async def shutdown(self, conversation: Conversation, arguments: Message) -> Any:
        await self._ask_all(arguments, "poweroff")

    async def reboot(self, conversation: Conversation, arguments: Message) -> Any:
        await self._ask_all(arguments, "reboot")

    async def _ask_all(self, arguments: Message, how: str) -> None:
        toolstack = self._toolstack
        guests = [*toolstack.guests.values()] if arguments.get("all") else [self._guest(arguments)]
        for guest in guests:
            await toolstack.shutdown(guest, how)
        if arguments.get("wait"):
            for guest in guests:
                await toolstack.until_ended(guest)

    async def pause(self, conversation: Conversation, arguments: Message) -> Any:
        self._toolstack.control.pause(self._guest(arguments).domid)

    async def unpause(self, conversation: Conversation, arguments: Message) -> Any:
        guest = self._guest(arguments)
        try:
            self._toolstack.control.unpause(guest.domid)
        except XenError as error:
            raise UserError(f"{guest.name} is not paused ({name(error.errno)})") from None

    async def rename(self, conversation: Conversation, arguments: Message) -> Any:
        await self._toolstack.rename(self._guest(arguments), str(arguments["name"]))

    async def vcpu_set(self, conversation: Conversation, arguments: Message) -> Any:
        await self._toolstack.set_vcpus(self._guest(arguments), int(arguments["vcpus"]))

    async def mem_set(self, conversation: Conversation, arguments: Message) -> Any:
        await self._toolstack.set_memory(self._guest(arguments), int(arguments["memory"]))

    async def mem_max(self, conversation: Conversation, arguments: Message) -> Any:
        await self._toolstack.set_max_memory(self._guest(arguments), int(arguments["memory"]))

    async def sysrq(self, conversation: Conversation, arguments: Message) -> Any:
        await self._toolstack.sysrq(self._guest(arguments), str(arguments["key"]))

    async def trigger(self, conversation: Conversation, arguments: Message) -> Any:
        self._toolstack.trigger(self._guest(arguments), str(arguments["trigger"]), int(arguments.get("vcpu") or 0))

    async def config_update(self, conversation: Conversation, arguments: Message) -> Any:
        self._toolstack.update_config(self._guest(arguments), pickle.loads(base64.b64decode(arguments["config"])))

    async def sched_credit2(self, conversation: Conversation, arguments: Message) -> Any:
        wanted = arguments.get("domain")
        only = None if wanted is None else self._domid(str(wanted))
        if arguments.get("weight") is not None or arguments.get("cap") is not None:
            self._set_scheduling(self._guest(arguments), arguments)
        domains = [self._hv.domains[domid] for domid in sorted(self._hv.domains) if only in (None, domid)]
        return [
            {"name": self._name_of(each.domid), "domid": each.domid, "weight": each.weight, "cap": each.cap}
            for each in domains
        ]

    def _set_scheduling(self, guest: Guest, arguments: Message) -> None:
        control = self._toolstack.control
        weight, cap = control.scheduling(guest.domid)
        weight = weight if arguments.get("weight") is None else int(arguments["weight"])
        cap = cap if arguments.get("cap") is None else int(arguments["cap"])
        most = 100 * control.cpus()
        if not (1 <= weight <= _MOST_WEIGHT and 0 <= cap <= most):
            raise UserError(
                f"{guest.name} cannot have weight {weight} and cap {cap}",
                f"a weight is 1 to {_MOST_WEIGHT}, a cap 0 to {most}",
            )
        control.set_scheduling(guest.domid, weight, cap)

    # -- consoles -----------------------------------------------------------------------------------------------------

    async def console(self, conversation: Conversation, arguments: Message) -> Any:
        """Shows a console, its history first, until the client or the domain is gone."""
        domid = self._domid(str(arguments["domain"]))
        domain = self._hv.domains[domid]
        terminal = self._machine.terminals.of(domid, self._name_of(domid))
        done: Future[str] = Future()

        def show(data: bytes) -> None:
            conversation.send(data=data.decode("latin-1"))

        conversation.send(data=terminal.history.decode("latin-1"))
        terminal.viewers.append(show)
        terminal.ended.append(done)
        conversation.keys = lambda data: self._machine.type(domain, data)
        conversation.gone = lambda: done.set_result("")
        try:
            return await done
        finally:
            if show in terminal.viewers:
                terminal.viewers.remove(show)

    # -- devices ------------------------------------------------------------------------------------------------------

    async def attach(self, conversation: Conversation, arguments: Message) -> Any:
        guest, toolstack = self._guest(arguments), self._toolstack
        described = pickle.loads(base64.b64decode(arguments["device"]))
        await toolstack.attach(guest, toolstack.device(guest, described))

    async def detach(self, conversation: Conversation, arguments: Message) -> Any:
        guest = self._guest(arguments)
        record = _device(guest, str(arguments["kind"]), str(arguments["device"]))
        await self._toolstack.detach(guest, record, force=bool(arguments.get("force")))

    async def devices(self, conversation: Conversation, arguments: Message) -> Any:
        guest, store, rows = self._guest(arguments), self._toolstack.store, []
        for device in guest.devices:
            if device.kind != arguments["kind"]:
                continue
            front, back = device.frontend_path(guest.domid), device.backend_path(guest.domid)
            rows.append(
                {
                    "devid": device.devid,
                    "backend_domid": device.backend_domid,
                    "handle": 0,
                    "state": int(await store.read_or(f"{front}/state", "-1")),
                    "event_channel": int(await store.read_or(f"{front}/event-channel", "-1")),
                    "ring_ref": await store.read_or(f"{front}/ring-ref", "-1"),
                    "backend_path": back,
                    **device.backend,
                }
            )
        return rows

    # -- xenstore -----------------------------------------------------------------------------------------------------

    async def store(self, conversation: Conversation, arguments: Message) -> Any:
        path, store = str(arguments["path"]), self._toolstack.store
        try:
            match arguments["operation"]:
                case "ls":
                    return [row async for row in self._toolstack.walk(path)]
                case "read":
                    return await store.read(path)
                case "write":
                    return await store.write(path, str(arguments["value"]))
                case "rm":
                    await store.read(path)
                    return await store.remove(path)
                case "chmod":
                    return await store.set_permissions(path, arguments["permissions"])
                case "watch":
                    return await self._watch(conversation, path)
        except XenError as error:
            raise UserError(f"{path}: {name(error.errno)}", "'xenolith store ls' shows what there is") from None
        raise UserError(f"there is no operation '{arguments['operation']}' on the store")

    async def _watch(self, conversation: Conversation, path: str) -> None:
        done: Future[None] = Future()
        conversation.gone = lambda: done.set_result(None)
        token = await self._toolstack.store.watch(path, lambda changed: conversation.send(row={"path": changed}))
        await done
        await self._toolstack.store.unwatch(path, token)

    # -- services and the machine -------------------------------------------------------------------------------------

    async def services(self, conversation: Conversation, arguments: Message) -> Any:
        return [
            {
                "name": running.role.name,
                "domid": running.kernel.domid,
                "up": running.is_up,
                "starts": running.starts,
                "failures": running.failures,
                "last_failure": running.last_failure,
            }
            for running in self._machine.supervisor.running.values()
        ]

    async def service_kill(self, conversation: Conversation, arguments: Message) -> Any:
        name = str(arguments["service"])
        if name not in self._machine.supervisor.running:
            raise UserError(f"there is no native domain '{name}'", "'xenolith service list' shows them")
        self._machine.host.post(lambda: self._machine.supervisor.kill(name))

    async def halt(self, conversation: Conversation, arguments: Message) -> Any:
        """By the domain that has the hardware, if it is a native one; the machine's own switch otherwise."""
        owner = self._machine.domid_of_service("hardware")
        if owner is not None:
            await self._toolstack.store.write(f"{home(owner)}/control/shutdown", "poweroff")
        else:
            self._machine.host.post(lambda: self._hv.power("off"))


def _state(info: DomainInfo, runs: bool) -> str:
    """The six letters of `xl list`: running, blocked, paused, shut down, crashed, dying.

    No vCPU runs while this command is served, so what would run without it counts as running.
    """
    crashed = info.shutdown_reason == SHUTDOWN_crash
    flags = (
        ("r", runs),
        ("b", info.is_blocked),
        ("p", info.is_paused),
        ("s", info.shutdown_reason is not None and not crashed),
        ("c", crashed),
        ("d", info.is_dying),
    )
    return "".join(letter if is_set else "-" for letter, is_set in flags)


def _device(guest: Guest, kind: str, text: str) -> DeviceRecord:
    for device in guest.devices:
        if device.kind == kind and text in (
            device.devid,
            str(device.backend.get("dev", "")),
            str(device.backend.get("mac")),
        ):
            return device
    raise UserError(f"{guest.name} has no such device: {text}", "list them with block-list or network-list")


_VERBS: Final = {
    method.replace("_", "-"): method for method in vars(Verbs) if not method.startswith("_") and method not in ("find",)
}
