"""Makes the domctls of the tests, as a toolstack in a guest would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.unit.hypervisor.support import Guest
from xenolith.abi.domctl import XEN_DOMCTL_INTERFACE_VERSION, XenDomctl
from xenolith.abi.hypercalls import HYPERVISOR_domctl
from xenolith.hypervisor.hypercalls.table import Continuation


def set_fields(structure: Any, fields: Mapping[str, Any]) -> None:
    """Set fields by name; `member__field` is a field of a member."""
    for name, value in fields.items():
        where = structure
        *path, last = name.split("__")
        for part in path:
            where = getattr(where, part)
        setattr(where, last, value)


def run(caller: Guest, command: int, domid: int, **fields: Any) -> tuple[int, Any]:
    """The result of a domctl, and the whole structure afterwards; `member__field` sets a field of the union."""
    op = XenDomctl(cmd=command, interface_version=XEN_DOMCTL_INTERFACE_VERSION, domain=domid)
    set_fields(op.u, fields)
    vaddr = caller.put(caller.va(0), op)
    while True:
        try:
            result = caller.call(HYPERVISOR_domctl, vaddr)
            break
        except Continuation:
            pass
    return result, XenDomctl.from_bytes(caller.hv.memory.read(caller.vcpu, vaddr, XenDomctl.sizeof()))
