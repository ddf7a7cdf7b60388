"""The table of hypercalls is whole, free of doubles, and names structures that exist."""

import re
import subprocess
import sys

import pytest

from xenolith.abi import hypercalls
from xenolith.abi.hypercalls import BY_NUMBER, HYPERCALLS, Hypercall, Operation
from xenolith.abi.memory import XenMemoryExchange
from xenolith.abi.mmu import MmuextOp
from xenolith.abi.types import Struct

BY_CALL = pytest.mark.parametrize("call", HYPERCALLS, ids=lambda call: call.name)


def test_each_number_stands_once_and_in_order() -> None:
    numbers = [call.number for call in HYPERCALLS]
    assert numbers == sorted(set(numbers))
    assert len(BY_NUMBER) == len(HYPERCALLS)


def test_every_declared_number_has_its_row() -> None:
    declared = {name.removeprefix("HYPERVISOR_") for name in vars(hypercalls) if name.startswith("HYPERVISOR_")}
    assert declared == {call.name for call in HYPERCALLS}
    # 11 was never given out; 43 to 47 are not yet.
    assert BY_NUMBER.keys() == set(range(43)) - {11} | {48}


@BY_CALL
def test_row(call: Hypercall) -> None:
    assert getattr(hypercalls, f"HYPERVISOR_{call.name}") == call.number
    assert re.fullmatch("[U0TL-]", call.mark)
    assert len(call.arguments) <= 5
    assert len(set(call.arguments)) == len(call.arguments)
    operations = [operation.number for operation in call.operations]
    assert operations == sorted(set(operations))
    assert not call.operations or call.argument or call.arguments[0] in ("cmd", "op", "which")


@BY_CALL
def test_structures_exist(call: Hypercall) -> None:
    rows: list[Hypercall | Operation] = [call, *call.operations]
    assert all(issubclass(row.argument or int, Struct) for row in rows if row.structure)


def test_argument_is_the_structure() -> None:
    exchange = next(op for op in BY_NUMBER[12].operations if op.name == "XENMEM_exchange")
    assert exchange.argument is XenMemoryExchange
    assert BY_NUMBER[26].argument is MmuextOp
    assert Operation(0, "SCHEDOP_yield").argument is None


def test_reading_the_table_lays_out_no_structure() -> None:
    code = (
        "import sys, xenolith.abi.hypercalls as h; assert h.BY_NUMBER;"
        "print([m for m in sys.modules if m.startswith('xenolith.abi.') and m not in"
        " ('xenolith.abi.types', 'xenolith.abi.hypercalls')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[]\n"
