"""The shared-info page and the per-vcpu records in it (xen.h, arch-x86/xen.h)."""

from ctypes import Array, c_uint8, c_uint64
from typing import Annotated, Final

from xenolith.abi.types import I8, U8, U32, U64, Struct, layout

# vcpus that have their record in the shared-info page; the others must register one.
XEN_LEGACY_MAX_VCPUS: Final = 32

# VcpuTimeInfo.flags.
XEN_PVCLOCK_TSC_STABLE_BIT: Final = 1 << 0
XEN_PVCLOCK_GUEST_STOPPED: Final = 1 << 1


@layout()
class VcpuTimeInfo(Struct):
    """A vcpu's clock: system time (ns) = system_time + ((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32.

    `version` is odd while Xen writes the record.
    """

    version: U32
    pad0: U32
    tsc_timestamp: U64
    system_time: U64
    tsc_to_system_mul: U32
    tsc_shift: I8
    flags: U8
    pad1: Annotated[Array[c_uint8], c_uint8 * 2]


@layout()
class ArchVcpuInfo(Struct):
    """`cr2`: the faulting virtual address of the last page fault given to the guest."""

    cr2: U64
    pad: U64


@layout()
class VcpuInfo(Struct):
    """A vcpu's events and clock. The guest writes `evtchn_upcall_mask`; Xen and the guest write the rest."""

    evtchn_upcall_pending: U8
    evtchn_upcall_mask: U8
    evtchn_pending_sel: U64
    arch: ArchVcpuInfo
    time: VcpuTimeInfo


@layout()
class ArchSharedInfo(Struct):
    """Where the guest keeps its physical-to-machine table, for tools; `max_pfn` counts its entries."""

    max_pfn: U64
    pfn_to_mfn_frame_list_list: U64
    nmi_reason: U64
    p2m_cr3: U64
    p2m_vaddr: U64
    p2m_generation: U64


@layout()
class SharedInfo(Struct):
    """The page that a domain shares with Xen: vcpus, two-level event bits, wall clock (s and ns since 1970)."""

    vcpu_info: Annotated[Array[VcpuInfo], VcpuInfo * XEN_LEGACY_MAX_VCPUS]
    evtchn_pending: Annotated[Array[c_uint64], c_uint64 * 64]
    evtchn_mask: Annotated[Array[c_uint64], c_uint64 * 64]
    wc_version: U32
    wc_sec: U32
    wc_nsec: U32
    wc_sec_hi: U32
    arch: ArchSharedInfo
