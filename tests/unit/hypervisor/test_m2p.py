"""Loads from the M2P's fixed address where it is elsewhere: what is understood, and what stays the guest's fault."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.support import Bench, Guest
from xenolith.cpu.registers import RAX, RBX, RIP
from xenolith.hypervisor import m2p

START = 0xFFFF_8000_0000_0000


@pytest.fixture
def hv() -> Bench:
    return Bench()


@pytest.fixture
def guest(hv: Bench) -> Guest:
    hv.m2p[20] = 0x1122_3344_5566_7788
    return hv.guest()


def load(hv: Bench, guest: Guest, code: str, address: int) -> bool:
    vcpu = guest.vcpu
    hv.memory.write(vcpu, guest.va(0), bytes.fromhex(code).ljust(16, b"\x90"))
    vcpu.cpu.regs[RIP], vcpu.cpu.regs[RBX], vcpu.cpu.regs[RAX] = guest.va(0), 0, 0xAAAA_AAAA_AAAA_AAAA
    done = m2p.emulate_read(hv, vcpu, address)
    assert vcpu.cpu.regs[RIP] - guest.va(0) == (len(bytes.fromhex(code)) if done else 0)
    return done


@pytest.mark.parametrize(
    ("code", "offset", "register", "value"),
    [
        ("488b1cd8", 0, RBX, 0x1122_3344_5566_7788),
        ("48 8b 04 f8", 0, RAX, 0x1122_3344_5566_7788),
        ("8b04f8", 0, RAX, 0x5566_7788),
        ("8b44f804", 4, RAX, 0x1122_3344),
    ],
)
def test_loads(hv: Bench, guest: Guest, code: str, offset: int, register: int, value: int) -> None:
    assert load(hv, guest, code, START + 20 * 8 + offset)
    assert guest.vcpu.cpu.regs[register] == value


@pytest.mark.parametrize(
    ("code", "address"),
    [
        ("488b04f8", START + 512 * 8),
        ("488b04f8", START + (1 << 38)),
        ("488b04f8", START + 20 * 8 + 1),
        ("480304f8", START + 20 * 8),
        ("48890cf8", START + 20 * 8),
        ("668b04f8", START + 20 * 8),
        ("0f1004f8", START + 20 * 8),
        ("0b", START + 20 * 8),
    ],
)
def test_all_else_is_the_guests_fault(hv: Bench, guest: Guest, code: str, address: int) -> None:
    assert not load(hv, guest, code, address)
    assert guest.vcpu.cpu.regs[RAX] == 0xAAAA_AAAA_AAAA_AAAA
