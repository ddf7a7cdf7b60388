"""The start-of-day page: what a PV guest is told when its first instruction runs (xen.h)."""

from ctypes import c_char
from typing import Annotated, Final

from xenolith.abi.types import U8, U16, U32, U64, Struct, Union, layout

MAGIC: Final = b"xen-3.0-x86_64"
"""`StartInfo.magic` of a 64-bit guest."""

# StartInfo.flags.
SIF_PRIVILEGED: Final = 1 << 0
SIF_INITDOMAIN: Final = 1 << 1
SIF_MULTIBOOT_MOD: Final = 1 << 2
SIF_MOD_START_PFN: Final = 1 << 3
SIF_VIRT_P2M_4TOOLS: Final = 1 << 4
SIF_PM_MASK: Final = 0xFF00

MAX_GUEST_CMDLINE: Final = 1024


@layout()
class StartInfo(Struct):
    """The start-of-day page.

    `shared_info` is a maddr; `store_mfn` and `console.domU.mfn` are mfns; `pt_base`, `mfn_list` and `mod_start` are
    virtual addresses (`mod_start` a pfn with SIF_MOD_START_PFN); `mod_len` is bytes; `first_p2m_pfn` is a pfn.
    """

    @layout()
    class Console(Union):
        @layout()
        class DomU(Struct):
            mfn: U64
            evtchn: U32

        @layout()
        class Dom0(Struct):
            info_off: U32
            info_size: U32

        domU: DomU
        dom0: Dom0

    magic: Annotated[bytes, c_char * 32]
    nr_pages: U64
    shared_info: U64
    flags: U32
    store_mfn: U64
    store_evtchn: U32
    console: Console
    pt_base: U64
    nr_pt_frames: U64
    mfn_list: U64
    mod_start: U64
    mod_len: U64
    cmd_line: Annotated[bytes, c_char * MAX_GUEST_CMDLINE]
    first_p2m_pfn: U64
    nr_p2m_frames: U64


@layout()
class XenMultibootModList(Struct):
    """One module of a guest started with SIF_MULTIBOOT_MOD: physical addresses of its first and last byte."""

    mod_start: U32
    mod_end: U32
    cmdline: U32
    pad: U32


# Dom0VgaConsoleInfo.video_type.
XEN_VGATYPE_TEXT_MODE_3: Final = 0x03
XEN_VGATYPE_VESA_LFB: Final = 0x23
XEN_VGATYPE_EFI_LFB: Final = 0x70


@layout()
class Dom0VgaConsoleInfo(Struct):
    """The display that the machine came up with, for the domain that drives it; its start_info says where this lies."""

    @layout()
    class U(Union):
        @layout()
        class TextMode3(Struct):
            font_height: U16
            cursor_x: U16
            cursor_y: U16
            rows: U16
            columns: U16

        @layout()
        class VesaLfb(Struct):
            width: U16
            height: U16
            bytes_per_line: U16
            bits_per_pixel: U16
            lfb_base: U32
            lfb_size: U32
            red_pos: U8
            red_size: U8
            green_pos: U8
            green_size: U8
            blue_pos: U8
            blue_size: U8
            rsvd_pos: U8
            rsvd_size: U8
            gbl_caps: U32
            mode_attrs: U16
            pad: U16
            ext_lfb_base: U32

        text_mode_3: TextMode3
        vesa_lfb: VesaLfb

    video_type: U8
    u: U
