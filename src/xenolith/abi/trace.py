"""The trace buffers: their events, their records and how they are shared (trace.h)."""

from typing import Final

from xenolith.abi.types import U32, Struct, layout

# Classes of events, and the parts of a mask.
TRC_CLS_SHIFT: Final = 16
TRC_SUBCLS_SHIFT: Final = 12
TRC_ALL: Final = 0x0FFFF000
TRC_GEN: Final = 0x0001F000
TRC_SCHED: Final = 0x0002F000
TRC_PV: Final = 0x0020F000
TRC_SCHED_VERBOSE: Final = 0x00028000
TRC_PV_ENTRY: Final = 0x00201000
TRC_PV_SUBCALL: Final = 0x00202000

# Events.
TRC_LOST_RECORDS: Final = TRC_GEN + 1
TRC_TRACE_WRAP_BUFFER: Final = TRC_GEN + 2
TRC_TRACE_CPU_CHANGE: Final = TRC_GEN + 3
TRC_SCHED_SWITCH: Final = TRC_SCHED_VERBOSE + 10
TRC_PV_HYPERCALL_V2: Final = TRC_PV_ENTRY + 13
TRC_PV_HYPERCALL_SUBCALL: Final = TRC_PV_SUBCALL + 14
TRC_PV_HYPERCALL_V2_ARG_MASK: Final = 0xFFF00000

TRC_PV_HYPERCALL_V2_ARG_SHIFT: Final = 20
"""Of a hypercall's number in a record, bit 20 + 2i says that argument i follows in 32 bits, the next one in 64."""

# The first word of a record: an event, how many words of data follow, and whether a time stamp of two words does first.
TRACE_EXTRA_SHIFT: Final = 28
TRACE_EXTRA_MAX: Final = 7
TRC_HD_CYCLE_FLAG: Final = 1 << 31


@layout("struct t_buf")
class TBuf(Struct):
    """The head of a buffer: offsets of the next record to be read and to be written, modulo twice its size."""

    cons: U32
    prod: U32
