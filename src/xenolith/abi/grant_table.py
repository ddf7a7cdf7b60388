"""grant_table_op, and the grant entries that domains share with Xen, versions 1 and 2 (grant_table.h)."""

from ctypes import Array, c_uint32
from typing import Annotated, Final

from xenolith.abi.types import I16, U16, U32, U64, Handle, Struct, Union, layout

# Entries whose use is fixed.
GNTTAB_NR_RESERVED_ENTRIES: Final = 8
GNTTAB_RESERVED_CONSOLE: Final = 0
GNTTAB_RESERVED_XENSTORE: Final = 1

# grant_table_op sub-operations.
GNTTABOP_map_grant_ref: Final = 0
GNTTABOP_unmap_grant_ref: Final = 1
GNTTABOP_setup_table: Final = 2
GNTTABOP_dump_table: Final = 3
GNTTABOP_transfer: Final = 4
GNTTABOP_copy: Final = 5
GNTTABOP_query_size: Final = 6
GNTTABOP_unmap_and_replace: Final = 7
GNTTABOP_set_version: Final = 8
GNTTABOP_get_status_frames: Final = 9
GNTTABOP_get_version: Final = 10
GNTTABOP_swap_grant_ref: Final = 11
GNTTABOP_cache_flush: Final = 12

# GrantEntryV1.flags and GrantEntryHeader.flags: the kind of grant, and what may be and is being done with it.
GTF_invalid: Final = 0
GTF_permit_access: Final = 1
GTF_accept_transfer: Final = 2
GTF_transitive: Final = 3
GTF_type_mask: Final = 3
GTF_readonly: Final = 1 << 2
GTF_reading: Final = 1 << 3
GTF_writing: Final = 1 << 4
GTF_PWT: Final = 1 << 5
GTF_PCD: Final = 1 << 6
GTF_PAT: Final = 1 << 7
GTF_sub_page: Final = 1 << 8
GTF_transfer_committed: Final = 1 << 2
GTF_transfer_completed: Final = 1 << 3

# GnttabCopy.flags.
GNTCOPY_source_gref: Final = 1 << 0
GNTCOPY_dest_gref: Final = 1 << 1

# GnttabCacheFlush.op.
GNTTAB_CACHE_CLEAN: Final = 1 << 0
GNTTAB_CACHE_INVAL: Final = 1 << 1
GNTTAB_CACHE_SOURCE_GREF: Final = 1 << 31

# GnttabMapGrantRef.flags.
GNTMAP_device_map: Final = 1 << 0
GNTMAP_host_map: Final = 1 << 1
GNTMAP_readonly: Final = 1 << 2
GNTMAP_application_map: Final = 1 << 3
GNTMAP_contains_pte: Final = 1 << 4
GNTMAP_guest_avail_mask: Final = 0xFFFF0000

# The status that each operation writes.
GNTST_okay: Final = 0
GNTST_general_error: Final = -1
GNTST_bad_domain: Final = -2
GNTST_bad_gntref: Final = -3
GNTST_bad_handle: Final = -4
GNTST_bad_virt_addr: Final = -5
GNTST_bad_dev_addr: Final = -6
GNTST_no_device_space: Final = -7
GNTST_permission_denied: Final = -8
GNTST_bad_page: Final = -9
GNTST_bad_copy_arg: Final = -10
GNTST_address_too_big: Final = -11
GNTST_eagain: Final = -12
GNTST_no_space: Final = -13


@layout()
class GrantEntryV1(Struct):
    """A grant of one frame to `domid`; written by the granter, its flags also by Xen."""

    flags: U16
    domid: U16
    frame: U32


@layout()
class GrantEntryHeader(Struct):
    """What the forms of a version 2 entry begin with."""

    flags: U16
    domid: U16


@layout()
class GrantEntryV2(Union):
    """A version 2 entry: of a whole frame, of a part of one, or of another domain's grant."""

    @layout()
    class FullPage(Struct):
        hdr: GrantEntryHeader
        pad0: U32
        frame: U64

    @layout()
    class SubPage(Struct):
        hdr: GrantEntryHeader
        page_off: U16
        length: U16
        frame: U64

    @layout()
    class Transitive(Struct):
        hdr: GrantEntryHeader
        trans_domid: U16
        pad0: U16
        gref: U32

    hdr: GrantEntryHeader
    full_page: FullPage
    sub_page: SubPage
    transitive: Transitive
    spacer_: Annotated[Array[c_uint32], c_uint32 * 4]


@layout()
class GnttabMapGrantRef(Struct):
    """Map a granted frame at `host_addr` (virtual address, or maddr of an entry with GNTMAP_contains_pte)."""

    host_addr: U64
    flags: U32
    ref: U32
    dom: U16
    status: I16
    handle: U32
    dev_bus_addr: U64


@layout()
class GnttabUnmapGrantRef(Struct):
    """Undo a mapping by its handle."""

    host_addr: U64
    dev_bus_addr: U64
    handle: U32
    status: I16


@layout()
class GnttabSetupTable(Struct):
    """Make the grant table `nr_frames` frames long; out: their numbers."""

    dom: U16
    nr_frames: U32
    status: I16
    frame_list: Handle


@layout()
class GnttabDumpTable(Struct):
    """Print a domain's grant table on Xen's console."""

    dom: U16
    status: I16


@layout()
class GnttabTransfer(Struct):
    """Give a frame away to a domain that granted a transfer."""

    mfn: U64
    domid: U16
    ref: U32
    status: I16


@layout()
class GnttabCopy(Struct):
    """Copy bytes between frames, each named by a grant or by its number."""

    @layout()
    class Source(Struct):
        @layout()
        class U(Union):
            ref: U32
            gmfn: U64

        u: U
        domid: U16
        offset: U16

    @layout()
    class Dest(Struct):
        @layout()
        class U(Union):
            ref: U32
            gmfn: U64

        u: U
        domid: U16
        offset: U16

    source: Source
    dest: Dest
    len: U16
    flags: U16
    status: I16


@layout()
class GnttabQuerySize(Struct):
    """How long a grant table is and may become, in frames."""

    dom: U16
    nr_frames: U32
    max_nr_frames: U32
    status: I16


@layout()
class GnttabUnmapAndReplace(Struct):
    """Undo a mapping and put that of `new_addr` in its place."""

    host_addr: U64
    new_addr: U64
    handle: U32
    status: I16


@layout()
class GnttabSetVersion(Struct):
    """Choose version 1 or 2; out: the version in force."""

    version: U32


@layout()
class GnttabGetStatusFrames(Struct):
    """The frames of a version 2 table's status words."""

    nr_frames: U32
    dom: U16
    status: I16
    frame_list: Handle


@layout()
class GnttabGetVersion(Struct):
    """Which version a domain uses."""

    dom: U16
    pad: U16
    version: U32


@layout()
class GnttabSwapGrantRef(Struct):
    """Exchange two entries."""

    ref_a: U32
    ref_b: U32
    status: I16


@layout()
class GnttabCacheFlush(Struct):
    """Clean or invalidate the data cache over a part of a granted page."""

    @layout()
    class A(Union):
        dev_bus_addr: U64
        ref: U32

    a: A
    offset: U16
    length: U16
    op: U32
