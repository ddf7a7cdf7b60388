"""Trace buffers: how `xentrace` gets them, what is in them, and that nothing is done while nobody traces."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.hypervisor.support import Bench, Guest
from xenolith.abi import sysctl as abi
from xenolith.abi import trace
from xenolith.abi.errno import EBUSY, EFAULT, EINVAL, ENOMEM, EPERM
from xenolith.abi.event_channel import VIRQ_TBUF
from xenolith.abi.hypercalls import (
    HYPERVISOR_grant_table_op,
    HYPERVISOR_iret,
    HYPERVISOR_mmu_update,
    HYPERVISOR_multicall,
    HYPERVISOR_sysctl,
    HYPERVISOR_vm_assist,
)
from xenolith.abi.mmu import MmuUpdate
from xenolith.abi.multicall import MulticallEntry
from xenolith.abi.sysctl import XenSysctl
from xenolith.abi.types import DOMID_IDLE, DOMID_XEN
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.frames import TYPE_L1
from xenolith.hypervisor.hypercalls.table import HANDLERS

PAGES = 2
SIZE = PAGES * 4096 - 8


@pytest.fixture
def hv() -> Iterator[Bench]:
    hv = Bench()
    yield hv
    hv.tracing.disable()


@pytest.fixture
def control(hv: Bench) -> Guest:
    return hv.guest(capabilities=Capability.CONTROL)


def tbuf(caller: Guest, command: int, **fields: Any) -> tuple[int, Any]:
    op = XenSysctl(cmd=abi.XEN_SYSCTL_tbuf_op, interface_version=abi.XEN_SYSCTL_INTERFACE_VERSION)
    op.u.tbuf_op.cmd = command
    for name, value in fields.items():
        setattr(op.u.tbuf_op, name, value)
    vaddr = caller.put(caller.va(0), op)
    result = caller.call(HYPERVISOR_sysctl, vaddr)
    return result, XenSysctl.from_bytes(caller.hv.memory.read(caller.vcpu, vaddr, XenSysctl.sizeof())).u.tbuf_op


class Trace:
    """What `xentrace` does: asks for buffers, finds them by the frames that it is told, and reads."""

    def __init__(self, control: Guest, mask: int = trace.TRC_ALL) -> None:
        self.hv, self.control = control.hv, control
        assert tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_evt_mask, evt_mask=mask)[0] == 0
        assert tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_size, size=PAGES)[0] == 0
        assert tbuf(control, abi.XEN_SYSCTL_TBUFOP_enable)[0] == 0
        _, info = tbuf(control, abi.XEN_SYSCTL_TBUFOP_get_info)
        self.info_mfn = info.buffer_mfn
        data = bytes(self.hv.ram.bytes[info.buffer_mfn << 12 : (info.buffer_mfn << 12) + info.size])
        pages, place = struct.unpack_from("<HH", data)
        assert pages == PAGES
        self.mfns = struct.unpack_from(f"<{pages}I", data, 4 * place)
        list(self.records())

    def records(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Event and data of each record that was not read yet."""
        data = b"".join(bytes(self.hv.ram.bytes[mfn << 12 : (mfn << 12) + 4096]) for mfn in self.mfns)
        consumed, produced = struct.unpack_from("<II", data)
        while consumed != produced:
            at = 8 + consumed % SIZE
            (header,) = struct.unpack_from("<I", data, at)
            count = header >> trace.TRACE_EXTRA_SHIFT & trace.TRACE_EXTRA_MAX
            start = 12 if header & trace.TRC_HD_CYCLE_FLAG else 4
            if header & 0xFFF_FFFF != trace.TRC_TRACE_WRAP_BUFFER:
                yield header & 0xFFF_FFFF, struct.unpack_from(f"<{count}I", data, at + start)
            consumed = (consumed + start + 4 * count) % (2 * SIZE)
        self.consume(consumed)

    def consume(self, offset: int) -> None:
        self.hv.ram.bytes[self.mfns[0] << 12 : (self.mfns[0] << 12) + 4] = offset.to_bytes(4, "little")


def number(call: int, *arguments: int) -> int:
    return call | sum(1 << trace.TRC_PV_HYPERCALL_V2_ARG_SHIFT + 2 * index for index in arguments)


def test_hypercalls_are_recorded_with_what_they_do_most(control: Guest) -> None:
    tracer = Trace(control, trace.TRC_PV)
    control.call(HYPERVISOR_vm_assist, 0, 4)
    control.call(HYPERVISOR_mmu_update, control.va(1), 0, 0, 0)
    control.call(HYPERVISOR_grant_table_op, 6, control.va(1), 0)
    assert list(tracer.records()) == [
        (trace.TRC_PV_HYPERCALL_V2, (HYPERVISOR_vm_assist,)),
        (trace.TRC_PV_HYPERCALL_V2, (number(HYPERVISOR_mmu_update, 1), 0)),
        (trace.TRC_PV_HYPERCALL_V2, (number(HYPERVISOR_grant_table_op, 0, 2), 6, 0)),
    ]


def test_calls_in_a_multicall_are_recorded_one_by_one(control: Guest) -> None:
    tracer = Trace(control, trace.TRC_PV)
    entry = MulticallEntry(op=HYPERVISOR_vm_assist)
    entry.args[1] = 4
    for index in range(20):
        control.put(control.va(1) + index * MulticallEntry.sizeof(), entry)
    control.call(HYPERVISOR_multicall, control.va(1), 20)
    assert list(tracer.records()) == [
        (trace.TRC_PV_HYPERCALL_V2, (number(HYPERVISOR_multicall, 1), 20)),
        *[(trace.TRC_PV_HYPERCALL_SUBCALL, (HYPERVISOR_vm_assist,))] * 20,
    ]


def test_an_iret_that_ends_a_multicall_is_recorded_too(control: Guest) -> None:
    tracer = Trace(control, trace.TRC_PV)
    control.put(control.va(1), MulticallEntry(op=HYPERVISOR_iret))
    control.call(HYPERVISOR_multicall, control.va(1), 1)
    assert list(tracer.records())[1:] == [(trace.TRC_PV_HYPERCALL_SUBCALL, (HYPERVISOR_iret,))]


def test_it_is_told_whose_hypercalls_they_are(hv: Bench, control: Guest) -> None:
    guest = hv.guest()
    tracer = Trace(control, trace.TRC_SCHED)
    for caller in (control, guest, guest, control):
        caller.call(HYPERVISOR_vm_assist, 0, 4)
    mine, other = (control.domain.domid, 0), (guest.domain.domid, 0)
    assert list(tracer.records()) == [
        (trace.TRC_SCHED_SWITCH, (*mine, *other)),
        (trace.TRC_SCHED_SWITCH, (*other, *mine)),
    ]


def test_the_first_to_be_told_of_came_after_nobody(control: Guest) -> None:
    tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_size, size=PAGES)
    tbuf(control, abi.XEN_SYSCTL_TBUFOP_enable)
    tracer = Trace.__new__(Trace)
    tracer.hv, tracer.mfns = control.hv, tuple(control.hv.tracing._buffers[0].mfns)
    control.call(HYPERVISOR_vm_assist, 0, 4)
    assert next(tracer.records()) == (trace.TRC_SCHED_SWITCH, (DOMID_IDLE, 0, control.domain.domid, 0))


def test_only_what_is_wanted_is_recorded_and_only_while_it_is(control: Guest) -> None:
    tracer = Trace(control, trace.TRC_PV_SUBCALL)
    control.call(HYPERVISOR_vm_assist, 0, 4)
    assert list(tracer.records()) == []
    tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_evt_mask, evt_mask=trace.TRC_PV)
    control.hv.memory.write(control.vcpu, control.va(1), b"\2")
    mask = XenSysctl().u.tbuf_op.cpu_mask
    mask.bitmap, mask.nr_bits = control.va(1), 8
    tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_cpu_mask, cpu_mask=mask)
    list(tracer.records())
    control.call(HYPERVISOR_vm_assist, 0, 4)
    assert list(tracer.records()) == []
    mask.bitmap = 0x1000
    assert tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_cpu_mask, cpu_mask=mask)[0] == -EFAULT


def test_the_table_of_hypercalls_is_as_before_when_nobody_traces(hv: Bench, control: Guest) -> None:
    before = dict(HANDLERS)
    Trace(control)
    assert before != HANDLERS
    other = Bench()
    Trace(other.guest(capabilities=Capability.CONTROL))
    tbuf(control, abi.XEN_SYSCTL_TBUFOP_disable)
    assert before != HANDLERS
    other.tracing.disable()
    assert before == HANDLERS


def test_another_machine_is_not_traced(control: Guest) -> None:
    other = Bench()
    stranger = other.guest()
    tracer = Trace(control)
    stranger.call(HYPERVISOR_vm_assist, 0, 4)
    assert list(tracer.records()) == []


def test_what_is_full_loses_records_and_calls_for_its_reader_half_way(control: Guest) -> None:
    tracer = Trace(control, trace.TRC_PV)
    raised: list[int] = []
    control.domain.events.notify_global_virq = raised.append  # type: ignore[method-assign]
    made = SIZE // 16 + 10
    for _ in range(made):
        control.call(HYPERVISOR_vm_assist, 0, 4)
    assert raised == [VIRQ_TBUF]
    found = len(list(tracer.records()))
    assert SIZE // 16 - 1 <= found <= SIZE // 16
    control.call(HYPERVISOR_vm_assist, 0, 4)
    event, data = next(tracer.records())
    assert (event, data[0]) == (trace.TRC_LOST_RECORDS, made - found)


def test_a_reader_that_writes_nonsense_ends_the_tracing(control: Guest) -> None:
    tracer = Trace(control)
    tracer.consume(3)
    assert control.call(HYPERVISOR_vm_assist, 0, 4) == 0
    assert not control.hv.tracing.enabled
    assert b"bogus cons (00000003)" in control.hv.log.read(1 << 16)[0]


def test_the_frames_can_be_mapped_and_the_list_of_them_not_written(control: Guest) -> None:
    tracer = Trace(control)
    l1 = control.l1 << 12
    buffer, info = tracer.mfns[0] << 12, tracer.info_mfn << 12

    def map_as(entry: int) -> int:
        request = control.put(control.va(1), MmuUpdate(ptr=l1 + 8 * 100, val=entry))
        return control.call(HYPERVISOR_mmu_update, request, 1, 0, DOMID_XEN)

    assert map_as(buffer | 0x63) == 0
    assert map_as(info | 0x61) == 0
    assert map_as(info | 0x63) == -EINVAL
    assert map_as(0) == 0
    with pytest.raises(Exception, match="in use as"):
        control.hv.frames.get_page_type(tracer.mfns[0], TYPE_L1)


def test_who_may_and_what_is_wrong(hv: Bench, control: Guest) -> None:
    info = abi.XEN_SYSCTL_TBUFOP_get_info
    assert tbuf(hv.guest(capabilities=Capability.HARDWARE), info)[0] == -EPERM
    control.domain.targets = frozenset()
    assert tbuf(control, info)[0] == -EPERM
    control.domain.targets = None
    result, told = tbuf(control, info)
    assert (result, told.buffer_mfn, told.size, told.evt_mask) == (0, 0, 0, trace.TRC_ALL)
    assert tbuf(control, 6)[0] == -EINVAL
    assert tbuf(control, abi.XEN_SYSCTL_TBUFOP_enable)[0] == -EINVAL
    assert tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_size, size=0)[0] == -EINVAL
    free = hv.frames.free_frames
    assert tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_size, size=100_000)[0] == -ENOMEM
    assert hv.frames.free_frames == free
    assert tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_size, size=1)[0] == 0
    assert tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_size, size=1)[0] == -EBUSY
    assert tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_size, size=2)[0] == -EINVAL


def test_each_processor_has_a_buffer(hv: Bench, control: Guest) -> None:
    hv.engine.processors = 2
    first = Trace(control, trace.TRC_PV)
    second = Trace.__new__(Trace)
    second.hv = hv
    data = bytes(hv.ram.bytes[first.info_mfn << 12 : (first.info_mfn << 12) + 4096])
    places = struct.unpack_from("<3H", data)[1:]
    assert places == (2, 2 + PAGES), "in words, each after the one before"
    second.mfns = struct.unpack_from(f"<{PAGES}I", data, 4 * places[1])
    assert not set(first.mfns) & set(second.mfns)
    control.vcpu.processor = 1
    control.call(HYPERVISOR_vm_assist, 0, 4)
    assert list(first.records()) == []
    assert list(second.records()) == [(trace.TRC_PV_HYPERCALL_V2, (HYPERVISOR_vm_assist,))]
    mask = XenSysctl().u.tbuf_op.cpu_mask
    mask.bitmap, mask.nr_bits = control.put(control.va(3), [0b01]), 2
    assert tbuf(control, abi.XEN_SYSCTL_TBUFOP_set_cpu_mask, cpu_mask=mask)[0] == 0
    list(second.records())
    control.call(HYPERVISOR_vm_assist, 0, 4)
    assert list(second.records()) == []
    control.vcpu.processor = 0
    control.call(HYPERVISOR_vm_assist, 0, 4)
    assert list(first.records()) == [(trace.TRC_PV_HYPERCALL_V2, (HYPERVISOR_vm_assist,))]
