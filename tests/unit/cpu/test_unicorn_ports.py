"""Port access that is denied: the instruction faults before anything behind it is executed."""

from __future__ import annotations

import pytest

from tests.unit.cpu.bench import CODE, DATA, Bench
from xenolith.cpu.registers import CF

PORT = 0x60
STORE_BEHIND = "c60601 48ffc3 ebfe"
"""mov byte [rsi], 1; inc rbx; jmp itself"""


@pytest.mark.parametrize(
    ("code", "exit"),
    [
        ("f9 ec", ("in", PORT, 1)),
        ("f9 ed", ("in", PORT, 4)),
        ("f9 e460", ("in", PORT, 1)),
        ("f9 ee", ("out", PORT, 1, 0x88)),
    ],
)
def test_a_denied_access_is_a_fault_and_nothing_else(bench: Bench, code: str, exit: tuple[object, ...]) -> None:
    bench.on["in"] = lambda port, size: None
    bench.on["out"] = lambda port, size, value: False
    exits = bench.run(code + STORE_BEHIND, rdx=PORT, rsi=DATA, rax=0x1122_3344_5566_7788, rbx=5)
    assert exits == [exit, ("exception", 13, 0, 0, False)]
    assert bench["rip"] == CODE + 1
    assert bench["rax"] == 0x1122_3344_5566_7788
    assert bench["rbx"] == 5
    assert bench.ram.bytes[DATA] == 0, "a store in the same block"
    assert bench.cpu.flags & CF
    assert [bench.cpu.debug_register(number) for number in (0, 7)] == [0, 0x400]


@pytest.mark.parametrize(("code", "pointer"), [("fc f36d ebfe", "rdi"), ("fc f36f ebfe", "rsi")])
def test_a_denied_string_access_is_at_its_first_element(bench: Bench, code: str, pointer: str) -> None:
    bench.on["in"] = lambda port, size: None
    bench.on["out"] = lambda port, size, value: False
    exits = bench.run(code, rdx=PORT, rcx=3, **{pointer: DATA})
    assert [exit[:2] for exit in exits] == [(exits[0][0], PORT), ("exception", 13)]
    assert (bench["rip"], bench["rcx"], bench[pointer]) == (CODE + 1, 3, DATA)


def test_a_granted_access_behind_a_denied_one(bench: Bench) -> None:
    bench.on["in"] = lambda port, size: None
    bench.run("ec", rdx=PORT)
    bench.on["in"] = lambda port, size: 0x42
    assert bench.run("31c0 ec cd80", rdx=PORT)[-1] == ("exception", 0x80, 0, 0, True)
    assert bench["rax"] == 0x42
