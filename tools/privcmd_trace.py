"""What a control domain's programs ask of the hypervisor: calls to Linux's privcmd device, by a probe in the kernel.

The probe copies raw words, since what they mean is known here; a script in the control domain sets it by `PROBE`.
Facts are those of Linux 6.1's include/uapi/xen/privcmd.h and Documentation/trace/kprobetrace.rst.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from xenolith.abi.domctl import XenDomctl
from xenolith.abi.hypercalls import (
    BY_NUMBER,
    HYPERVISOR_domctl,
    HYPERVISOR_memory_op,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_multicall,
    HYPERVISOR_platform_op,
    HYPERVISOR_sysctl,
    HYPERVISOR_xsm_op,
)
from xenolith.abi.multicall import MulticallEntry
from xenolith.abi.sysctl import XenSysctl
from xenolith.abi.types import DOMID_FIRST_RESERVED, Struct

_WORDS: Final = {"call": ("$arg3", 6), "first": ("+u8($arg3)", 10), "second": ("+u16($arg3)", 4)}
_NESTED: Final = ("nested", ("+u24(+u8($arg3))", 4))
"""Where the probe copies words from, and how many: the ioctl's structure, what its first and second argument refer to,
and, for the only call in a multicall, what that one's second argument refers to."""
_FIELDS: Final = [
    f"{name}{index}=+u{8 * index}({base}):x64"
    for name, (base, count) in (*_WORDS.items(), _NESTED)
    for index in range(count)
]
PROBE: Final = f"""\
mount -t tracefs trace /sys/kernel/tracing
echo 'p:call xen_privcmd:privcmd_ioctl request=$arg2:x32 {" ".join(_FIELDS)}' > /sys/kernel/tracing/kprobe_events
echo 'r:result xen_privcmd:privcmd_ioctl value=$retval:s64' >> /sys/kernel/tracing/kprobe_events
echo 4096 > /sys/kernel/tracing/buffer_size_kb
"""
"""Shell commands that set the probe; what it has seen is then in /sys/kernel/tracing/trace."""

_LINE: Final = re.compile(r" *(\S+)-(\d+) +\[\d+\].*?: (call|result): \([^)]*\) ?(.*)")
_HYPERCALL: Final = 0x305000
_MAP_BATCH: Final = 0x205004
_MAP_RESOURCE: Final = 0x205007
_IOCTLS: Final = {
    _MAP_BATCH: "IOCTL_PRIVCMD_MMAPBATCH_V2",
    0x105005: "IOCTL_PRIVCMD_DM_OP",
    _MAP_RESOURCE: "IOCTL_PRIVCMD_MMAP_RESOURCE",
    0x0050FF: "an ioctl that does not exist",
}
_COMMAND_IN_STRUCTURE: Final = frozenset(
    (HYPERVISOR_domctl, HYPERVISOR_sysctl, HYPERVISOR_mmuext_op, HYPERVISOR_platform_op, HYPERVISOR_xsm_op)
)
"""Hypercalls whose operation is not an argument, but stands first in what that refers to."""
_SHOWN: Final = {
    "XEN_DOMCTL_createdomain": (
        "flags", "iommu_opts", "max_vcpus", "max_evtchn_port", "max_grant_frames", "max_maptrack_frames", "grant_opts",
    ),
    "XEN_DOMCTL_max_mem": ("max_memkb",),
    "XEN_DOMCTL_max_vcpus": ("max",),
    "XEN_DOMCTL_scheduler_op": ("sched_id", "cmd"),
    "XEN_DOMCTL_set_address_size": ("size",),
    "XEN_DOMCTL_settscinfo": ("tsc_mode",),
    "XEN_DOMCTL_setvcpuaffinity": ("vcpu", "flags"),
    "XEN_DOMCTL_setvcpucontext": ("vcpu",),
    "XEN_SYSCTL_cpupool_op": ("op",),
    "XEN_SYSCTL_get_cpu_featureset": ("index",),
    "XEN_SYSCTL_get_cpu_policy": ("index",),
    "XEN_SYSCTL_getdomaininfolist": ("first_domain", "max_domains"),
    "XENMEM_claim_pages": ("nr_extents", "domid"),
    "XENMEM_populate_physmap": ("nr_extents", "extent_order", "domid"),
    "XENMEM_set_memory_map": ("domid",),
    "EVTCHNOP_alloc_unbound": ("dom", "remote_dom"),
}  # fmt: skip
"""What a program has put into the structure of an operation, as far as it has the same meaning on every machine."""


@dataclass(frozen=True)
class Call:
    """One call: what it is, with which arguments, and its result (a negative one is an errno of Linux's)."""

    name: str
    arguments: str
    result: int

    @property
    def key(self) -> tuple[str, str]:
        """What must be the same for two calls to be the same one."""
        return self.name, self.arguments

    @property
    def outcome(self) -> str:
        """The result in words."""
        if self.result >= 0:
            return str(self.result)
        return f"-{errno.errorcode.get(-self.result, -self.result)}"


def parse(trace: str, program: str) -> list[Call]:
    """The calls of one program, in their order."""
    calls, pending = [], {}
    for match in filter(None, map(_LINE.match, trace.splitlines())):
        if match[1] != program:
            continue
        values = dict(part.split("=", 1) for part in match[4].split())
        if match[3] == "call":
            pending[match[2]] = values
        elif match[2] in pending:
            calls.append(_call(pending.pop(match[2]), int(values["value"])))
    return calls


def _call(values: dict[str, str], result: int) -> Call:
    request = int(values["request"], 16)
    words = {
        name: [int(values[f"{name}{index}"], 16) for index in range(count)]
        for name, (_, count) in (*_WORDS.items(), _NESTED)
    }
    if request == _HYPERCALL:
        return _hypercall(words["call"][0], words["call"][1:], words, result)
    name = _IOCTLS.get(request, f"ioctl {request:#x}")
    first, second, third = words["call"][:3]
    if request == _MAP_BATCH:
        return Call(name, f"{_low(first)} frames of domain {first >> 32 & 0xFFFF}", result)
    if request == _MAP_RESOURCE:
        return Call(name, f"domain {first & 0xFFFF}, type {first >> 32}, id {_low(second)}, {third} frames", result)
    return Call(name, "", result)


def _hypercall(number: int, arguments: Sequence[int], words: dict[str, list[int]], result: int) -> Call:
    """A hypercall; `words` has what its first two arguments refer to."""
    if number == HYPERVISOR_multicall and words["first"][0] == HYPERVISOR_memory_op:
        # The only way to a result that an int has no room for; where it stands is not copied.
        inner = words["first"][MulticallEntry.args.offset // 8 :]  # type: ignore[attr-defined]
        return _hypercall(HYPERVISOR_memory_op, inner, {"first": [], "second": words["nested"]}, result)
    hypercall, first = BY_NUMBER[number], words["first"]
    command = _low(first[0] if number in _COMMAND_IN_STRUCTURE else arguments[0])
    operation = next((operation for operation in hypercall.operations if operation.number == command), None)
    if operation is None:
        return Call(f"{hypercall.name} {command}", "", result)
    shown: list[str] = []
    structure = _bytes(words["second"])
    if number == HYPERVISOR_domctl:
        structure = _bytes(first)[XenDomctl.u.offset :]
        shown += [f"domain {_domid(first[1])}"] if _domid(first[1]) < DOMID_FIRST_RESERVED else []
    elif number == HYPERVISOR_sysctl:
        structure = _bytes(first)[XenSysctl.u.offset :]
    elif number == HYPERVISOR_mmuext_op:
        shown.append(f"domain {_domid(arguments[3])}")
    if operation.argument is not None:
        shown += _fields(operation.argument, structure, _SHOWN.get(operation.name, ()))
    return Call(operation.name, ", ".join(shown), result)


def _fields(layout: type[Struct], data: bytes, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        field: Any = getattr(layout, name)
        yield f"{name} {int.from_bytes(data[field.offset : field.offset + field.size], 'little'):#x}"


def _low(word: int) -> int:
    return word & 0xFFFF_FFFF


def _domid(word: int) -> int:
    return word & 0xFFFF


def _bytes(words: Sequence[int]) -> bytes:
    return b"".join(word.to_bytes(8, "little") for word in words)


__all__ = ["PROBE", "Call", "parse"]
