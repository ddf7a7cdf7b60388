"""mca: machine-check telemetry (arch-x86/xen-mca.h)."""

from ctypes import Array, c_char, c_uint32
from typing import Annotated, Final

from xenolith.abi.types import I32, U16, U32, U64, Handle, Struct, Union, layout

XEN_MCA_INTERFACE_VERSION: Final = 0x01ECC003

XEN_MC_fetch: Final = 1
XEN_MC_notifydomain: Final = 2
XEN_MC_physcpuinfo: Final = 3
XEN_MC_msrinject: Final = 4
XEN_MC_mceinject: Final = 5
XEN_MC_inject_v2: Final = 6

# Flags, results and kinds of injection.
XEN_MC_NONURGENT: Final = 0x0001
XEN_MC_URGENT: Final = 0x0002
XEN_MC_ACK: Final = 0x0004
XEN_MC_OK: Final = 0x0
XEN_MC_FETCHFAILED: Final = 0x1
XEN_MC_NODATA: Final = 0x2
XEN_MC_NOMATCH: Final = 0x4
XEN_MC_CANNOTHANDLE: Final = 0x8
XEN_MC_NOTDELIVERED: Final = 0x10
XEN_MC_VCPUID_INVALID: Final = 0xFFFF
XEN_MC_INJECT_TYPE_MASK: Final = 0x7
XEN_MC_INJECT_TYPE_MCE: Final = 0x0
XEN_MC_INJECT_TYPE_CMCI: Final = 0x1
XEN_MC_INJECT_TYPE_LMCE: Final = 0x2
XEN_MC_INJECT_CPU_BROADCAST: Final = 0x8

# The virtual interrupt that says a machine check was recorded.
VIRQ_MCA: Final = 16

# Kinds and flags of a record.
MC_TYPE_GLOBAL: Final = 0
MC_TYPE_BANK: Final = 1
MC_TYPE_EXTENDED: Final = 2
MC_TYPE_RECOVERY: Final = 3
MC_FLAG_CORRECTABLE: Final = 1 << 0
MC_FLAG_UNCORRECTABLE: Final = 1 << 1
MC_FLAG_RECOVERABLE: Final = 1 << 2
MC_FLAG_POLLED: Final = 1 << 3
MC_FLAG_RESET: Final = 1 << 4
MC_FLAG_CMCI: Final = 1 << 5
MC_FLAG_MCE: Final = 1 << 6
MC_NCAPS: Final = 7


@layout()
class McinfoCommon(Struct):
    """What each record begins with."""

    type: U16
    size: U16


@layout()
class McinfoMsr(Struct):
    """A model-specific register and its value."""

    reg: U64
    value: U64


@layout()
class McinfoLogicalCpu(Struct):
    """One logical processor of the machine, as machine-check tools know it."""

    mc_cpunr: U32
    mc_chipid: U32
    mc_coreid: U16
    mc_threadid: U16
    mc_apicid: U32
    mc_clusterid: U32
    mc_ncores: U32
    mc_ncores_active: U32
    mc_nthreads: U32
    mc_cpuid_level: I32
    mc_family: U32
    mc_vendor: U32
    mc_model: U32
    mc_step: U32
    mc_vendorid: Annotated[bytes, c_char * 16]
    mc_brandid: Annotated[bytes, c_char * 64]
    mc_cpu_caps: Annotated[Array[c_uint32], c_uint32 * 7]
    mc_cache_size: U32
    mc_cache_alignment: U32
    mc_nmsrvals: I32
    mc_msrvalues: Annotated[Array[McinfoMsr], McinfoMsr * 8]


@layout()
class XenMcFetch(Struct):
    """Fetch the oldest record."""

    flags: U32
    _pad0: U32
    fetch_id: U64
    data: Handle


@layout()
class XenMcNotifydomain(Struct):
    """Tell another domain of an error."""

    mc_domid: U16
    mc_vcpuid: U16
    flags: U32


@layout()
class XenMcPhyscpuinfo(Struct):
    """Describe the logical processors."""

    ncpus: U32
    _pad0: U32
    info: Handle


@layout()
class XenMcMsrinject(Struct):
    """Pretend a value of some registers."""

    mcinj_cpunr: U32
    mcinj_flags: U32
    mcinj_count: U32
    mcinj_domid: U16
    _pad0: U16
    mcinj_msr: Annotated[Array[McinfoMsr], McinfoMsr * 8]


@layout()
class XenMcMceinject(Struct):
    """Raise a machine check."""

    mceinj_cpunr: U32


@layout()
class XenMcInjectV2(Struct):
    """Raise a machine check on some processors."""

    @layout()
    class Cpumap(Struct):
        bitmap: Handle
        nr_bits: U32

    flags: U32
    cpumap: Cpumap


@layout()
class XenMc(Struct):
    """The argument of the call."""

    @layout()
    class U(Union):
        mc_fetch: XenMcFetch
        mc_notifydomain: XenMcNotifydomain
        mc_physcpuinfo: XenMcPhyscpuinfo
        mc_msrinject: XenMcMsrinject
        mc_mceinject: XenMcMceinject
        mc_inject_v2: XenMcInjectV2

    cmd: U32
    interface_version: U32
    u: U
