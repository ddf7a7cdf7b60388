"""The hardware's service: it switches the machine off when it is told through xenstore, and lends PCI devices."""

from __future__ import annotations

from typing import Final

from xenolith.abi.hypercalls import HYPERVISOR_sched_op
from xenolith.abi.sched import SCHEDOP_shutdown, SchedShutdown, SHUTDOWN_poweroff, SHUTDOWN_reboot
from xenolith.services.pci import PciService
from xenolith.services.service import Context

_REASONS: Final = {"poweroff": SHUTDOWN_poweroff, "halt": SHUTDOWN_poweroff, "reboot": SHUTDOWN_reboot}


class HardwareService:
    """Obeys `control/shutdown` of its own home, as every domain does; the machine goes with this one."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pci = PciService(context)
        self._path = f"/local/domain/{context.kernel.domid}/control/shutdown"

    async def start(self) -> None:
        await self._context.store.watch(self._path, self._noticed)
        await self._pci.start()

    def stop(self) -> None:
        self._pci.stop()

    def _noticed(self, path: str) -> None:
        self._context.tasks.spawn(self._obey())

    async def _obey(self) -> None:
        reason = _REASONS.get(await self._context.store.read_or(self._path, ""))
        if reason is not None:
            self._context.kernel.hypercall(HYPERVISOR_sched_op, SCHEDOP_shutdown, SchedShutdown(reason=reason))
