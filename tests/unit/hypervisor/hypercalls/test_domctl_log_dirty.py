"""Dirty frames: all that a domain has, told by the guest's own numbers; the errors are those of Xen 4.17."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.hypervisor.hypercalls.test_domctl_life import run
from tests.unit.hypervisor.support import Bench, Guest
from xenolith.abi import domctl as abi
from xenolith.abi.errno import EFAULT, EINVAL, EPERM
from xenolith.hypervisor.domain import Capability

PAGES = 100


@pytest.fixture
def hv() -> Bench:
    return Bench(1024)


@pytest.fixture
def builder(hv: Bench) -> Guest:
    return hv.guest(16, capabilities=Capability.CREATE)


@pytest.fixture
def made(hv: Bench, builder: Guest) -> Guest:
    """A domain whose frames call themselves 1, 3, 5, …"""
    guest = hv.guest()
    guest.domain.creator = builder.domain.domid
    for number, mfn in enumerate(hv.frames.owned_by(guest.domain.domid)):
        hv.m2p[mfn] = 2 * number + 1
    return guest


def shadow(caller: Guest, target: Guest, op: int, **fields: int) -> tuple[int, Any]:
    fields = {f"shadow_op__{name}": value for name, value in (fields | {"op": op}).items()}
    result, told = run(caller, abi.XEN_DOMCTL_shadow_op, target.domain.domid, **fields)
    return result, told.u.shadow_op


@pytest.mark.parametrize("op", [abi.XEN_DOMCTL_SHADOW_OP_CLEAN, abi.XEN_DOMCTL_SHADOW_OP_PEEK])
def test_all_that_a_domain_has_is_dirty(hv: Bench, builder: Guest, made: Guest, op: int) -> None:
    enable = (abi.XEN_DOMCTL_SHADOW_OP_ENABLE, {"mode": abi.XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY})
    bitmap = builder.put(builder.va(4), [~0 & (1 << 64) - 1] * 2)
    assert shadow(builder, made, op, dirty_bitmap=bitmap, pages=PAGES)[0] == 0
    assert [builder.word(bitmap), builder.word(bitmap + 8) & (1 << 36) - 1] == [0, 0]
    assert shadow(builder, made, enable[0], **enable[1])[0] == 0
    result, told = shadow(builder, made, op, dirty_bitmap=bitmap, pages=PAGES, mode=1)
    count = len(hv.frames.owned_by(made.domain.domid))
    assert (result, told.pages, told.stats.dirty_count) == (0, PAGES, count)
    assert builder.word(bitmap) == sum(1 << 2 * number + 1 for number in range(min(count, 32)))
    assert shadow(builder, made, abi.XEN_DOMCTL_SHADOW_OP_OFF)[0] == 0
    assert shadow(builder, made, op)[1].stats.dirty_count == 0


def test_what_is_refused(hv: Bench, builder: Guest, made: Guest) -> None:
    begin = abi.XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY
    assert shadow(builder, made, begin)[0] == 0
    assert shadow(builder, made, begin)[0] == -EINVAL
    assert shadow(builder, made, abi.XEN_DOMCTL_SHADOW_OP_PEEK, mode=2)[0] == -EINVAL
    assert shadow(builder, made, abi.XEN_DOMCTL_SHADOW_OP_ENABLE_TEST)[0] == -EINVAL
    assert shadow(builder, made, abi.XEN_DOMCTL_SHADOW_OP_PEEK, dirty_bitmap=0x1000, pages=1)[0] == -EFAULT
    assert shadow(builder, builder, begin)[0] == -EPERM
    assert shadow(made, builder, begin)[0] == -EPERM
    assert shadow(builder, made, abi.XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION, mb=7)[1].mb == 0
