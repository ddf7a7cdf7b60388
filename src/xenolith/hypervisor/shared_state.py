"""The state that native code works on as well: here alone it is kept.

exits.c has the same structures. The program for ring 0 sees those of the machine and of a vCPU, where they lie in
memory of the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import (
    Array,
    Structure,
    c_bool,
    c_int32,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
    memset,
    sizeof,
)
from struct import pack_into
from typing import Any, ClassVar, Final

from xenolith.cpu.shortcuts import Processor

_KEPT_HYPERCALLS: Final = 16
_CALLBACK_TYPES: Final = 8
_VECTORS: Final = 256


class _Comparable(Structure):
    """Equal if all fields are."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name, *_ in self._fields_)

    __hash__ = None  # type: ignore[assignment]


class Gate(_Comparable):
    """A guest's handler for one trap (struct trap_info): `address` 0 means none."""

    address: int
    selector: int
    dpl: int
    masks_events: bool
    _fields_: ClassVar = [
        ("address", c_uint64),
        ("selector", c_uint16),
        ("dpl", c_uint8),
        ("masks_events", c_bool),
    ]


class Callback(_Comparable):
    """An entry point registered by callback_op; `address` 0 means none."""

    address: int
    masks_events: bool
    _fields_: ClassVar = [("address", c_uint64), ("masks_events", c_bool)]


class LastHypercalls(Structure):
    """The last few hypercalls of a vCPU, oldest first: number and the first four arguments of each."""

    made: int
    calls: Array[Array[c_uint64]]
    _fields_: ClassVar = [("made", c_uint64), ("calls", c_uint64 * 5 * _KEPT_HYPERCALLS)]

    def append(self, number: int, arguments: tuple[int, int, int, int]) -> None:
        made = self.made
        pack_into("<5Q", self, 8 + 40 * (made % _KEPT_HYPERCALLS), number, *arguments)
        self.made = made + 1

    def __iter__(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        for index in range(max(0, self.made - _KEPT_HYPERCALLS), self.made):
            number, *arguments = self.calls[index % _KEPT_HYPERCALLS]
            yield number, tuple(arguments)

    def clear(self) -> None:
        self.made = 0


class _Individual(Structure):
    """Equal to nothing but itself."""

    __hash__ = object.__hash__


class DomainState(_Individual):
    """Of a domain. `vcpu_count` is 0 as long as it has no vCPUs."""

    domid: int
    vcpu_count: int
    vm_assist: int
    _fields_: ClassVar = [("domid", c_int32), ("vcpu_count", c_uint32), ("vm_assist", c_uint64)]


class VcpuState(_Individual):
    """Of a vCPU; `Vcpu` describes the fields."""

    domain_at: int
    info_maddr: int
    kernel_root: int
    user_root: int
    kernel_sp: int
    kernel_ss: int
    other_gs_base: int
    upcall_streak: int
    shown_iopl: int
    iopl: int
    kernel_mode: bool
    nmi_pending: bool
    callbacks_: Array[Callback]
    hypercalls_: LastHypercalls
    traps_: Array[Gate]
    _fields_: ClassVar = [
        ("domain_at", c_void_p),
        ("info_maddr", c_uint64),
        ("kernel_root", c_uint64),
        ("user_root", c_uint64),
        ("kernel_sp", c_uint64),
        ("kernel_ss", c_uint64),
        ("other_gs_base", c_uint64),
        ("upcall_streak", c_uint32),
        ("shown_iopl", c_uint32),
        ("iopl", c_uint8),
        ("kernel_mode", c_bool),
        ("nmi_pending", c_bool),
        ("callbacks_", Callback * _CALLBACK_TYPES),
        ("hypercalls_", LastHypercalls),
        ("traps_", Gate * _VECTORS),
    ]


class MachineState(Structure):
    """Of the machine. `current` is the address of the running vCPU's state; what is `traced` is all Python's."""

    processor: Processor
    current: int | None
    ram: int
    ram_size: int
    frame_owners: int
    frame_counts: int
    frame_types: int
    frame_type_counts: int
    frame_flags: int
    frame_stale_epochs: int
    epoch: int
    hypercall_counts: Array[c_uint64]
    reschedule: bool
    traced: bool
    _fields_: ClassVar = [
        ("processor", Processor),
        ("current", c_void_p),
        ("ram", c_void_p),
        ("ram_size", c_uint64),
        ("frame_owners", c_void_p),
        ("frame_counts", c_void_p),
        ("frame_types", c_void_p),
        ("frame_type_counts", c_void_p),
        ("frame_flags", c_void_p),
        ("frame_stale_epochs", c_void_p),
        ("epoch", c_void_p),
        ("hypercall_counts", c_uint64 * 64),
        ("reschedule", c_bool),
        ("traced", c_bool),
    ]


def clear(array: Array[Any]) -> None:
    """Make all elements zero."""
    memset(array, 0, sizeof(array))


LAYOUT: Final = (
    sizeof(MachineState),
    sizeof(VcpuState),
    sizeof(DomainState),
    sizeof(Gate),
    sizeof(Callback),
    sizeof(Processor),
    *(getattr(MachineState, name).offset for name in ("current", "hypercall_counts", "reschedule")),
    *(getattr(VcpuState, name).offset for name in ("info_maddr", "kernel_mode", "callbacks_", "hypercalls_", "traps_")),
    DomainState.vcpu_count.offset,  # type: ignore[attr-defined]
)
"""What exits.c must have compiled to as well."""
