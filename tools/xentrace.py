"""The hypercalls in a file of `xentrace`'s (public/trace.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from xenolith.abi.hypercalls import BY_NUMBER
from xenolith.abi.trace import (
    TRACE_EXTRA_MAX,
    TRACE_EXTRA_SHIFT,
    TRC_HD_CYCLE_FLAG,
    TRC_LOST_RECORDS,
    TRC_PV_HYPERCALL_SUBCALL,
    TRC_PV_HYPERCALL_V2,
    TRC_PV_HYPERCALL_V2_ARG_SHIFT,
)

_EVENT: Final = (1 << TRACE_EXTRA_SHIFT) - 1
_NUMBER: Final = (1 << TRC_PV_HYPERCALL_V2_ARG_SHIFT) - 1
_WITH_OPERATION: Final = frozenset(("grant_table_op", "vcpu_op", "sched_op"))
"""Hypercalls of which the first argument that is recorded is the operation."""


@dataclass(frozen=True)
class Hypercall:
    """One hypercall: its name, with the operation if the record has it, and whether it was made in a multicall."""

    name: str
    in_multicall: bool


def records(data: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Event and data of each record. ValueError if the last one is not whole."""
    at = 0
    try:
        while at < len(data):
            (header,) = struct.unpack_from("<I", data, at)
            count = header >> TRACE_EXTRA_SHIFT & TRACE_EXTRA_MAX
            at += 12 if header & TRC_HD_CYCLE_FLAG else 4
            yield header & _EVENT, struct.unpack_from(f"<{count}I", data, at)
            at += 4 * count
    except struct.error:
        raise ValueError("the trace ends within a record") from None


def hypercalls(data: bytes) -> list[Hypercall]:
    """All hypercalls, in their order. ValueError if records were lost."""
    found = []
    for event, words in records(data):
        if event == TRC_LOST_RECORDS:
            raise ValueError(f"{words[0]} records were lost")
        if event in (TRC_PV_HYPERCALL_V2, TRC_PV_HYPERCALL_SUBCALL):
            found.append(Hypercall(_name(words), event == TRC_PV_HYPERCALL_SUBCALL))
    return found


def _name(words: tuple[int, ...]) -> str:
    hypercall = BY_NUMBER[words[0] & _NUMBER]
    if hypercall.name not in _WITH_OPERATION:
        return hypercall.name
    names = {operation.number: operation.name for operation in hypercall.operations}
    return f"{hypercall.name} {names.get(words[1], words[1])}"
