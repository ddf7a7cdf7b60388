"""PCI pass-through: the domain that has the hardware hands functions to guests, as Linux's xen-pciback does.

It offers all functions that can be given away by putting them into quarantine. Whoever makes guests assigns them. Then
it lends the guest what belongs to its functions (ports, memory, interrupts) and serves its pcifront. When the guest is
gone the hypervisor resets the functions, and they are on offer again.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final

from xenolith.abi.errno import EBUSY, EINVAL, XenError
from xenolith.abi.hypercalls import HYPERVISOR_physdev_op
from xenolith.abi.io.pciif import XEN_PCI_MAGIC, XEN_PCIF_active, XenPciOp, XenPciSharedinfo
from xenolith.abi.physdev import (
    MAP_PIRQ_TYPE_GSI,
    MAP_PIRQ_TYPE_MSI_SEG,
    PhysdevMapPirq,
    PHYSDEVOP_map_pirq,
    PHYSDEVOP_pci_device_add,
    PHYSDEVOP_setup_gsi,
    PHYSDEVOP_unmap_pirq,
    PhysdevPciDeviceAdd,
    PhysdevSetupGsi,
    PhysdevUnmapPirq,
)
from xenolith.abi.types import DOMID_IO
from xenolith.backends.pci import PciBackend
from xenolith.errors import UserError
from xenolith.hypervisor.native import Mapping
from xenolith.machine.pci import CONFIG_ADDRESS, CONFIG_DATA, CONFIG_ENABLE, INTERRUPT_LINE, INTERRUPT_PIN
from xenolith.services.backend import Backend, Ends, Nodes
from xenolith.services.control import Control
from xenolith.services.service import Context

_SLOTS: Final = range(1, 31)
_MAX_FUNCTIONS: Final = 32
_NAME: Final = re.compile(r"0000:([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_NOBODY: Final = 0xFFFF
_LEVEL, _ACTIVE_LOW = 1, 1
_OP: Final[int] = XenPciSharedinfo.op.offset


class PciService:
    """Serves what the toolstack describes in this domain's backend/pci."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._backend = Backend(context, "pci", lambda ends: _Bus(context, ends, self))
        self.stopping = False
        """Whether the code ends, and not a guest's bus."""

    async def start(self) -> None:
        self._offer()
        await self._backend.start()

    def _offer(self) -> None:
        """Announce all functions that there are, and put them up for assignment; those in use already stay so."""
        control = Control(self._context.kernel)
        for where in (slot << 3 for slot in _SLOTS):
            if config_read(self._context, where, 0, 2) == _NOBODY:
                continue
            self._context.kernel.hypercall(
                HYPERVISOR_physdev_op, PHYSDEVOP_pci_device_add, PhysdevPciDeviceAdd(bus=0, devfn=where)
            )
            try:
                control.assign(DOMID_IO, where)
            except XenError as error:
                if error.errno != EBUSY:
                    raise

    def stop(self) -> None:
        self.stopping = True
        self._backend.stop()


def config_read(context: Context, where: int, offset: int, size: int) -> int:
    """Read the configuration of function `where`, by ports."""
    context.kernel.port_out(CONFIG_ADDRESS, 4, CONFIG_ENABLE | where << 8 | offset & 0xFC)
    return context.kernel.port_in(CONFIG_DATA + (offset & 3), size)


class _Function:
    """A function that works for domain `domid` (backends.pci.Function).

    The pirqs of its messages, a byte each, are kept for the code that may come after this one.
    """

    def __init__(self, context: Context, domid: int, where: int) -> None:
        self._context = context
        self._domid = domid
        self._where = where
        self._name = f"pci {domid} {where}"
        self._pirqs = context.kernel.kept.setdefault(self._name, bytearray())

    def read(self, offset: int, size: int) -> int:
        return config_read(self._context, self._where, offset, size) if offset < 256 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset < 256:
            self._context.kernel.port_out(CONFIG_ADDRESS, 4, CONFIG_ENABLE | self._where << 8 | offset & 0xFC)
            self._context.kernel.port_out(CONFIG_DATA + (offset & 3), size, value)

    def map_msi(self, count: int) -> int:
        return self._map(PhysdevMapPirq(type=MAP_PIRQ_TYPE_MSI_SEG, entry_nr=count))

    def map_msix(self, entry: int) -> int:
        return self._map(PhysdevMapPirq(type=MAP_PIRQ_TYPE_MSI_SEG, entry_nr=entry, table_base=1))

    def _map(self, argument: PhysdevMapPirq) -> int:
        argument.domid, argument.index, argument.pirq, argument.devfn = self._domid, -1, -1, self._where
        self._context.kernel.hypercall(HYPERVISOR_physdev_op, PHYSDEVOP_map_pirq, argument)
        self._pirqs.append(argument.pirq)
        return argument.pirq

    def map_line(self) -> None:
        """Let the guest bind its interrupt pin, as the pirq that the configuration names."""
        if not self.read(INTERRUPT_PIN, 1):
            return
        gsi, kernel = self.read(INTERRUPT_LINE, 1), self._context.kernel
        line = PhysdevSetupGsi(gsi=gsi, triggering=_LEVEL, polarity=_ACTIVE_LOW)
        with suppress(XenError):  # another function's driver has bound the line, which is as it must be then
            kernel.hypercall(HYPERVISOR_physdev_op, PHYSDEVOP_setup_gsi, line)
        argument = PhysdevMapPirq(domid=self._domid, type=MAP_PIRQ_TYPE_GSI, index=gsi, pirq=gsi)
        kernel.hypercall(HYPERVISOR_physdev_op, PHYSDEVOP_map_pirq, argument)

    def unmap_all(self) -> None:
        for pirq in self._pirqs:
            try:
                self._context.kernel.hypercall(
                    HYPERVISOR_physdev_op, PHYSDEVOP_unmap_pirq, PhysdevUnmapPirq(domid=self._domid, pirq=pirq)
                )
            except XenError as error:
                if error.errno != EINVAL:  # the guest's own end has taken it with it
                    raise
        self._pirqs.clear()

    def forget(self) -> None:
        """The guest's bus is gone, and its messages with it."""
        self._context.kernel.kept.pop(self._name, None)


class _Bus:
    """The functions of one guest (services.backend.Device)."""

    def __init__(self, context: Context, ends: Ends, service: PciService) -> None:
        self._context = context
        self._ends = ends
        self._service = service
        self._functions: list[_Function] = []
        self._control = Control(context.kernel)
        self._served: PciBackend | None = None
        self._page: Mapping | None = None
        self._port = 0

    async def prepare(self) -> Nodes:
        self._functions = [_Function(self._context, self._ends.domid, where) for where in await self._described()]
        self._served = PciBackend(self._functions)
        self._lend(self._served)
        for function in self._functions:
            function.map_line()
        slots = {f"vdev-{number}": f"0000:00:{number:02x}.0" for number in range(len(self._functions))}
        return {"root_num": 1, "root-0": "0000:00", **slots}

    async def _described(self) -> list[int]:
        count = await self._ends.read("num_devs")
        if not count.isdecimal() or not 1 <= int(count) <= _MAX_FUNCTIONS:
            raise UserError(f"{count!r} devices")
        names = [await self._ends.read(f"dev-{number}") for number in range(int(count))]
        matches = [_NAME.fullmatch(name) for name in names]
        return [_number(match, name) for match, name in zip(matches, names, strict=True)]

    def _lend(self, served: PciBackend) -> None:
        ports, memory = served.resources()
        for part in ports:
            self._control.permit_ports(self._ends.domid, part)
        for part in memory:
            self._control.permit_memory(self._ends.domid, part)

    async def connect(self) -> Nodes:
        if await self._ends.front("magic") != XEN_PCI_MAGIC:
            raise UserError(f"domain {self._ends.domid} speaks another version of the protocol")
        self._page = self._context.kernel.map_grants(self._ends.domid, [await self._ends.front_number("pci-op-ref")])
        port = await self._ends.front_number("event-channel")
        self._port = self._context.kernel.bind_interdomain(self._ends.domid, port, self._asked)
        self._asked()
        return {}

    async def changed(self) -> None:
        pass

    def disconnect(self) -> None:
        if self._port:
            self._context.kernel.close(self._port)
            self._port = 0
        if self._page is not None:
            self._page.unmap()
            self._page = None

    def close(self) -> None:
        if not self._service.stopping:
            for function in self._functions:
                function.forget()

    def _asked(self) -> None:
        """Do what the guest has written into the page that both share, once."""
        if self._page is None or self._served is None:
            return
        view = self._page.views[0]
        flags = int.from_bytes(view[:4], "little")
        if not flags & XEN_PCIF_active:
            return
        op = XenPciOp.from_bytes(bytes(view[_OP : _OP + XenPciOp.sizeof()]))
        self._served.serve(op)
        view[_OP : _OP + XenPciOp.sizeof()] = op.to_bytes()
        view[:4] = (flags & ~XEN_PCIF_active).to_bytes(4, "little")
        self._context.kernel.notify(self._port)


def _number(match: re.Match[str] | None, name: str) -> int:
    if match is None:
        raise UserError(f"{name!r} is no PCI function")
    return int(match[1], 16) << 8 | int(match[2], 16) << 3 | int(match[3])
