"""What a guest shall be, whoever said it: a file, options, or the description of a machine."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenolith.errors import UserError
from xenolith.hypervisor.domain import Capability

if TYPE_CHECKING:
    from xenolith.toolstack.disks import Disk
    from xenolith.toolstack.nics import Nic
    from xenolith.toolstack.rights import HardwareAccess
    from xenolith.toolstack.shares import Share

DEFAULT_GUEST_MEMORY: Final = 256 << 20
ALL_CPUS: Final = -1
_NAMESPACE: Final = uuid.UUID(int=0x5B0A8F146C1F5F5C9D6E6B7A1F0C2D11)
"""Of the uuids that are made from names, for runs that are to be the same each time."""


class Action(StrEnum):
    """What becomes of a domain that has stopped (xl.cfg(5), Event Actions)."""

    DESTROY = "destroy"
    RESTART = "restart"
    RENAME_RESTART = "rename-restart"
    PRESERVE = "preserve"
    COREDUMP_DESTROY = "coredump-destroy"
    COREDUMP_RESTART = "coredump-restart"


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """A guest. Sizes are bytes. Without a kernel the best one that can be found is taken.

    `affinity` has a bit mask of CPUs for each vCPU from the first on, ALL_CPUS for all; vCPUs beyond it run anywhere.
    `targets` are the names of the domains that CONTROL is over, None for all; `hardware` what HARDWARE is of, None for
    all. `command` is run by the ramdisk that Xenolith makes.
    """

    name: str
    kernel: str | None = None
    ramdisk: Path | None = None
    cmdline: str = ""
    memory: int = DEFAULT_GUEST_MEMORY
    vcpus: int = 1
    weight: int = 256
    command: str | None = None
    capabilities: Capability = Capability.NONE
    targets: tuple[str, ...] | None = None
    hardware: HardwareAccess | None = None
    maxmem: int | None = None
    maxvcpus: int | None = None
    affinity: tuple[int, ...] = ()
    cap: int = 0
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    shares: tuple[Share, ...] = ()
    pci: tuple[str, ...] = ()
    """PCI functions of the machine that work for it: 0000:00:02.0."""
    uuid: uuid.UUID | None = None
    on_poweroff: Action = Action.DESTROY
    on_reboot: Action = Action.RESTART
    on_crash: Action = Action.DESTROY
    on_watchdog: Action = Action.DESTROY
    on_soft_reset: Action = Action.DESTROY
    localtime: bool = False
    rtc_timeoffset: int = 0

    @property
    def max_memory(self) -> int:
        """The most memory that it can ever have."""
        return self.memory if self.maxmem is None else self.maxmem

    @property
    def max_vcpus(self) -> int:
        return self.vcpus if self.maxvcpus is None else self.maxvcpus

    def check_cpus(self, count: int) -> None:
        """UserError if a vCPU may only run on CPUs that a machine of `count` does not have."""
        for number, mask in enumerate(self.affinity):
            if not mask & (1 << count) - 1:
                raise UserError(
                    f"vCPU {number} of {self.name} can only run on CPUs that the machine does not have",
                    f"it has {count}: leave out 'cpus', or write cpus = \"0\"",
                )

    @property
    def time_offset_s(self) -> int:
        """By how many seconds its wall clock is ahead of UTC."""
        offset = self.rtc_timeoffset
        return offset + time.localtime().tm_gmtoff if self.localtime else offset

    def identified(self, repeatable: bool) -> GuestConfig:
        """The same with a uuid, devids and MAC addresses; with `repeatable` the uuid is made from the name."""
        identity = self.uuid or (uuid.uuid5(_NAMESPACE, self.name) if repeatable else uuid.uuid4())
        if not self.nics:
            return replace(self, uuid=identity)
        from xenolith.toolstack.nics import mac_of

        taken = {nic.devid for nic in self.nics}
        free = (number for number in range(len(self.nics) + len(taken)) if number not in taken)
        placed = [nic if nic.devid is not None else replace(nic, devid=next(free)) for nic in self.nics]
        nics = tuple(nic if nic.mac else replace(nic, mac=mac_of(identity, nic.devid or 0)) for nic in placed)
        return replace(self, uuid=identity, nics=nics)
