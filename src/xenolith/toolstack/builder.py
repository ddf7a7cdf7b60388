"""Builds one guest in a running machine: memory, start of day, first vCPU, by the calls of the control interface."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from xenolith.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from xenolith.hypervisor.native import NativeKernel
from xenolith.loader import pv
from xenolith.services.control import Control, Entry


class Built(NamedTuple):
    """A guest that is ready to run, and paused: where its rings are, and the ports for them. `console` is None for one
    with the hypervisor's own console."""

    domid: int
    store_mfn: int
    store_port: int
    console: tuple[int, int] | None = None


class Builder:
    """Acts with what `kernel` has: it must be allowed to create domains, and controls those that it has made."""

    def __init__(self, kernel: NativeKernel) -> None:
        self._kernel = kernel
        self._control = Control(kernel)

    def build(
        self,
        spec: pv.PvSpec,
        handle: uuid.UUID,
        vcpus: int,
        store_domid: int,
        console_domid: int,
        functions: Sequence[int] = (),
    ) -> Built:
        """Make a guest of `spec` for which the PCI `functions` work; nothing is left of it after an error.

        Raises UserError for an image that does not fit, XenError: ENOMEM for lack of memory, ENODEV and EBUSY for a
        function that cannot be had.
        """
        layout = pv.plan(spec)
        domid = self._control.create(handle, vcpus, spec.memory_frames, has_iommu=bool(functions))
        try:
            for where in functions:
                self._control.assign(domid, where)
            return self._fill(spec, layout, domid, store_domid, console_domid)
        except BaseException:
            while not self._control.destroy(domid):
                pass
            raise

    def _fill(self, spec: pv.PvSpec, layout: pv.PvLayout, domid: int, store_domid: int, console_domid: int) -> Built:
        control = self._control
        p2m = control.populate(domid, spec.memory_frames)
        store_port = control.alloc_unbound(domid, store_domid)
        console_port = control.alloc_unbound(domid, console_domid)
        spec = replace(spec, store_port=store_port, console_port=console_port)
        mapping = self._kernel.map_frames(domid, p2m[: layout.total_frames].tolist())
        try:
            day = pv.build(spec, layout, p2m, mapping.machine, control.info(domid).shared_info_mfn)
        finally:
            mapping.unmap()
        assert day.store_mfn is not None
        assert day.console_mfn is not None
        control.seed_grants(
            domid,
            [
                (GNTTAB_RESERVED_CONSOLE, console_domid, day.console_mfn),
                (GNTTAB_RESERVED_XENSTORE, store_domid, day.store_mfn),
            ],
        )
        control.start(domid, Entry(day.entry, day.stack_pointer, day.start_info_vaddr, day.l4_mfn))
        return Built(domid, day.store_mfn, store_port, (day.console_mfn, console_port))
