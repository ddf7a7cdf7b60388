"""Dirty frames: those whose content or use has changed, told by the guest's own numbers; errors as Xen 4.17's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.hypervisor.hypercalls.domctl import run
from tests.unit.hypervisor.support import Bench, Guest
from xenolith.abi import domctl as abi
from xenolith.abi.errno import EFAULT, EINVAL, EPERM
from xenolith.hypervisor import dirty_log
from xenolith.hypervisor.frames import TYPE_L1

PAGES = 100


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


def enable(caller: Guest, target: Guest) -> int:
    mode = abi.XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY
    return shadow(caller, target, abi.XEN_DOMCTL_SHADOW_OP_ENABLE, mode=mode)[0]


class Reader:
    """Asks for the bitmap, into memory of its own that was full of ones."""

    def __init__(self, builder: Guest, made: Guest) -> None:
        self.builder, self.made = builder, made
        self.at = builder.va(4)

    def ask(self, op: int) -> set[int]:
        """The numbers of the frames that are told."""
        self.builder.put(self.at, [(1 << 64) - 1] * 2)
        result, told = shadow(self.builder, self.made, op, dirty_bitmap=self.at, pages=PAGES, mode=1)
        assert (result, told.pages) == (0, PAGES)
        bits = self.builder.word(self.at) | self.builder.word(self.at + 8) << 64
        assert bits >> -(-PAGES // 8) * 8 == (1 << 128 - -(-PAGES // 8) * 8) - 1, "beyond the bitmap nothing is written"
        found = {number for number in range(PAGES) if bits >> number & 1}
        assert told.stats.dirty_count >= len(found)
        return found


CLEAN, PEEK = abi.XEN_DOMCTL_SHADOW_OP_CLEAN, abi.XEN_DOMCTL_SHADOW_OP_PEEK


def test_what_has_changed_is_told_until_it_is_known(hv: Bench, builder: Guest, made: Guest) -> None:
    reader = Reader(builder, made)
    mfns = hv.frames.owned_by(made.domain.domid)
    assert reader.ask(CLEAN) == set(), "nobody logs"
    assert enable(builder, made) == 0
    assert reader.ask(PEEK) == set()
    hv.ram.bytes[(mfns[2] << 12) + 4095] ^= 1
    hv.ram.bytes[mfns[5] << 12] ^= 1
    assert reader.ask(PEEK) == {5, 11}
    hv.ram.bytes[mfns[2] << 12] ^= 1
    assert reader.ask(CLEAN) == {5, 11}
    assert reader.ask(CLEAN) == set()
    hv.ram.bytes[mfns[5] << 12] ^= 1
    hv.ram.bytes[mfns[5] << 12] ^= 1
    assert reader.ask(CLEAN) == set(), "it is what it was"
    assert shadow(builder, made, abi.XEN_DOMCTL_SHADOW_OP_OFF)[0] == 0
    hv.ram.bytes[mfns[5] << 12] ^= 1
    assert reader.ask(CLEAN) == set()
    assert enable(builder, made) == 0


def test_another_use_and_another_frame_are_changes(hv: Bench, builder: Guest, made: Guest) -> None:
    reader = Reader(builder, made)
    mfns = hv.frames.owned_by(made.domain.domid)
    page, number = mfns[3], hv.m2p[mfns[3]]
    assert enable(builder, made) == 0
    before, hv.frames.type[page] = hv.frames.type[page], TYPE_L1
    assert reader.ask(CLEAN) == {number}
    hv.frames.type[page] = before
    assert reader.ask(CLEAN) == {number}
    hv.m2p[page] = 2
    assert reader.ask(CLEAN) == {number, 2}, "one is gone, and one has come"


def test_it_is_done_in_parts(hv: Bench, builder: Guest, made: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirty_log, "_FRAMES_IN_A_PART", 3)
    log = dirty_log.DirtyLog(hv, made.domain)
    count = len(hv.frames.owned_by(made.domain.domid))
    assert [log.look() for _ in range(-(-count // 3))] == [False] * (-(-count // 3) - 1) + [True]
    assert log.has_begun
    mfns = hv.frames.owned_by(made.domain.domid)
    log.look()
    hv.ram.bytes[mfns[0] << 12] ^= 1  # behind where it has looked
    hv.ram.bytes[mfns[-1] << 12] ^= 1
    while not log.look():
        pass
    assert log.dirty == {hv.m2p[mfns[-1]]}
    log.clean()
    while not log.look():
        pass
    assert log.dirty == {hv.m2p[mfns[0]]}


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
