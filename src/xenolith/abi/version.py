"""xen_version: what hypervisor this is and what it can do (version.h, features.h)."""

from ctypes import Array, c_char, c_uint8
from typing import Annotated, Final

from xenolith.abi.types import U32, U64, Struct, layout

# xen_version sub-operations.
XENVER_version: Final = 0
XENVER_extraversion: Final = 1
XENVER_compile_info: Final = 2
XENVER_capabilities: Final = 3
XENVER_changeset: Final = 4
XENVER_platform_parameters: Final = 5
XENVER_get_features: Final = 6
XENVER_pagesize: Final = 7
XENVER_guest_handle: Final = 8
XENVER_commandline: Final = 9
XENVER_build_id: Final = 10

# Feature bits: bit number within the submaps of XENVER_get_features.
XENFEAT_writable_page_tables: Final = 0
XENFEAT_writable_descriptor_tables: Final = 1
XENFEAT_auto_translated_physmap: Final = 2
XENFEAT_supervisor_mode_kernel: Final = 3
XENFEAT_pae_pgdir_above_4gb: Final = 4
XENFEAT_mmu_pt_update_preserve_ad: Final = 5
XENFEAT_highmem_assist: Final = 6
XENFEAT_gnttab_map_avail_bits: Final = 7
XENFEAT_hvm_callback_vector: Final = 8
XENFEAT_hvm_safe_pvclock: Final = 9
XENFEAT_hvm_pirqs: Final = 10
XENFEAT_dom0: Final = 11
XENFEAT_memory_op_vnode_supported: Final = 13
XENFEAT_ARM_SMCCC_supported: Final = 14
XENFEAT_linux_rsdp_unrestricted: Final = 15
XENFEAT_not_direct_mapped: Final = 16
XENFEAT_direct_mapped: Final = 17
XENFEAT_NR_SUBMAPS: Final = 1

# Sizes in bytes of the answers that are plain strings.
XEN_EXTRAVERSION_LEN: Final = 16
XEN_CAPABILITIES_INFO_LEN: Final = 1024
XEN_CHANGESET_INFO_LEN: Final = 64
XEN_COMMANDLINE_LEN: Final = 1024


@layout()
class XenCompileInfo(Struct):
    """Who compiled this hypervisor, when and with what."""

    compiler: Annotated[bytes, c_char * 64]
    compile_by: Annotated[bytes, c_char * 16]
    compile_domain: Annotated[bytes, c_char * 32]
    compile_date: Annotated[bytes, c_char * 32]


@layout()
class XenPlatformParameters(Struct):
    """The first virtual address that belongs to Xen."""

    virt_start: U64


@layout()
class XenFeatureInfo(Struct):
    """In: which submap of 32 features; out: its bits."""

    submap_idx: U32
    submap: U32


@layout()
class XenBuildId(Struct):
    """The build's identity: `len` bytes follow."""

    len: U32
    buf: Annotated[Array[c_uint8], c_uint8 * 0]
