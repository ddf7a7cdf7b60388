"""kexec_op: load and start another hypervisor or kernel (kexec.h)."""

from typing import Final

from xenolith.abi.types import I32, U8, U16, U32, U64, Handle, Struct, Union, layout

# kexec_op sub-operations.
KEXEC_CMD_kexec: Final = 0
KEXEC_CMD_kexec_load_v1: Final = 1
KEXEC_CMD_kexec_unload_v1: Final = 2
KEXEC_CMD_kexec_get_range: Final = 3
KEXEC_CMD_kexec_load: Final = 4
KEXEC_CMD_kexec_unload: Final = 5
KEXEC_CMD_kexec_status: Final = 6

# Images.
KEXEC_TYPE_DEFAULT: Final = 0
KEXEC_TYPE_CRASH: Final = 1

# XenKexecRange.range.
KEXEC_RANGE_MA_CRASH: Final = 0
KEXEC_RANGE_MA_XEN: Final = 1
KEXEC_RANGE_MA_CPU: Final = 2
KEXEC_RANGE_MA_XENHEAP: Final = 3
KEXEC_RANGE_MA_BOOT_PARAM: Final = 4
KEXEC_RANGE_MA_EFI_MEMMAP: Final = 5
KEXEC_RANGE_MA_VMCOREINFO: Final = 6


@layout()
class XenKexecExec(Struct):
    """Start the image of a type."""

    type: I32


@layout()
class XenKexecRange(Struct):
    """Ask where a range of machine memory lies."""

    range: I32
    nr: I32
    size: U64
    start: U64


@layout()
class XenKexecSegment(Struct):
    """A part of an image: source in guest memory, destination in machine memory."""

    @layout()
    class Buf(Union):
        h: Handle
        _pad: U64

    buf: Buf
    buf_size: U64
    dest_maddr: U64
    dest_size: U64


@layout()
class XenKexecLoad(Struct):
    """Load an image."""

    @layout()
    class Segments(Union):
        h: Handle
        _pad: U64

    type: U8
    _pad: U8
    arch: U16
    nr_segments: U32
    segments: Segments
    entry_maddr: U64


@layout()
class XenKexecUnload(Struct):
    """Forget an image."""

    type: U8


@layout()
class XenKexecStatus(Struct):
    """Is an image of this type loaded?"""

    type: U8
