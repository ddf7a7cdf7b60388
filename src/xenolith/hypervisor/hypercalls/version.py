"""xen_version: which Xen this is, and what it offers (public/version.h; do_xen_version in xen/common/kernel.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import EINVAL, ENODATA, XenError
from xenolith.abi.hypercalls import HYPERVISOR_xen_version
from xenolith.abi.types import PAGE_SIZE
from xenolith.abi.version import (
    XEN_CAPABILITIES_INFO_LEN,
    XEN_CHANGESET_INFO_LEN,
    XEN_COMMANDLINE_LEN,
    XEN_EXTRAVERSION_LEN,
    XenBuildId,
    XenCompileInfo,
    XENFEAT_direct_mapped,
    XENFEAT_dom0,
    XENFEAT_gnttab_map_avail_bits,
    XENFEAT_highmem_assist,
    XENFEAT_memory_op_vnode_supported,
    XENFEAT_mmu_pt_update_preserve_ad,
    XENFEAT_pae_pgdir_above_4gb,
    XenFeatureInfo,
    XenPlatformParameters,
    XENVER_build_id,
    XENVER_capabilities,
    XENVER_changeset,
    XENVER_commandline,
    XENVER_compile_info,
    XENVER_extraversion,
    XENVER_get_features,
    XENVER_guest_handle,
    XENVER_pagesize,
    XENVER_platform_parameters,
    XENVER_version,
)
from xenolith.abi.vm_assist import VMASST_TYPE_pae_extended_cr3
from xenolith.abi.x86_64 import HYPERVISOR_VIRT_START
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.hypercalls.table import hypercall, operation, run_operation
from xenolith.hypervisor.release import CHANGESET, EXTRAVERSION

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

CAPABILITIES: Final = "xen-3.0-x86_64 "
"""The guest ABIs on offer: 64-bit PV. Xen ends each with a space."""
COMPILE_INFO: Final = XenCompileInfo(
    compiler=b"none: this hypervisor is interpreted", compile_by=b"xenolith", compile_domain=b"", compile_date=b""
)
DENIED: Final = "<denied>"
"""What Xen shows of a text that the caller may not read."""

_FEATURES: Final = sum(
    1 << feature
    for feature in (
        XENFEAT_memory_op_vnode_supported,
        XENFEAT_mmu_pt_update_preserve_ad,
        XENFEAT_highmem_assist,
        XENFEAT_gnttab_map_avail_bits,
        XENFEAT_direct_mapped,
    )
)


@hypercall(HYPERVISOR_xen_version)
def xen_version(hv: Hypervisor, caller: Vcpu, command: int, vaddr: int) -> int:
    """Run one of the sub-operations. XenError(ENOSYS) for one that does not exist."""
    return run_operation(hv, caller, HYPERVISOR_xen_version, command & 0xFFFFFFFF, vaddr)


@operation(HYPERVISOR_xen_version, XENVER_version, raw=True)
def version(hv: Hypervisor, caller: Vcpu, vaddr: int) -> int:
    """The release. Linux calls this for no other reason than to be given its pending events."""
    return hv.release.major << 16 | hv.release.minor


@operation(HYPERVISOR_xen_version, XENVER_extraversion, raw=True)
def extraversion(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    _write_text(hv, caller, vaddr, EXTRAVERSION, XEN_EXTRAVERSION_LEN)


@operation(HYPERVISOR_xen_version, XENVER_compile_info, raw=True)
def compile_info(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    hv.memory.write(caller, vaddr, COMPILE_INFO.to_bytes())


@operation(HYPERVISOR_xen_version, XENVER_capabilities, raw=True)
def capabilities(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    _write_text(hv, caller, vaddr, CAPABILITIES, XEN_CAPABILITIES_INFO_LEN)


@operation(HYPERVISOR_xen_version, XENVER_changeset, raw=True)
def changeset(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    _write_text(hv, caller, vaddr, CHANGESET, XEN_CHANGESET_INFO_LEN)


@operation(HYPERVISOR_xen_version, XENVER_platform_parameters, raw=True)
def platform_parameters(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    hv.memory.write(caller, vaddr, XenPlatformParameters(virt_start=HYPERVISOR_VIRT_START).to_bytes())


@operation(HYPERVISOR_xen_version, XENVER_get_features, raw=True)
def get_features(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    """The features of submap 0. Raises XenError(EINVAL) for any other."""
    info = XenFeatureInfo.from_bytes(hv.memory.read(caller, vaddr, XenFeatureInfo.sizeof()))
    if info.submap_idx:
        raise XenError(EINVAL, f"there is no feature submap {info.submap_idx}")
    info.submap = _FEATURES
    if caller.domain.can(Capability.HARDWARE):
        info.submap |= 1 << XENFEAT_dom0
    if caller.domain.vm_assist >> VMASST_TYPE_pae_extended_cr3 & 1:
        info.submap |= 1 << XENFEAT_pae_pgdir_above_4gb
    hv.memory.write(caller, vaddr, info.to_bytes())


@operation(HYPERVISOR_xen_version, XENVER_pagesize, raw=True)
def pagesize(hv: Hypervisor, caller: Vcpu, vaddr: int) -> int:
    """Bytes in a page. Raises XenError(EINVAL) if an argument is given."""
    if vaddr:
        raise XenError(EINVAL, "XENVER_pagesize takes no argument")
    return PAGE_SIZE


@operation(HYPERVISOR_xen_version, XENVER_guest_handle, raw=True)
def guest_handle(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    """The caller's own UUID."""
    hv.memory.write(caller, vaddr, caller.domain.handle.bytes)


@operation(HYPERVISOR_xen_version, XENVER_commandline, raw=True)
def commandline(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    """The hypervisor's own command line, which only a control domain may know."""
    text = hv.command_line if caller.domain.can(Capability.CONTROL) else DENIED
    _write_text(hv, caller, vaddr, text, XEN_COMMANDLINE_LEN)


@operation(HYPERVISOR_xen_version, XENVER_build_id, raw=True, needs=Capability.CONTROL)
def build_id(hv: Hypervisor, caller: Vcpu, vaddr: int) -> None:
    """The linker's build id, which there is not: XenError(ENODATA), or XenError(EINVAL) for a buffer of no bytes."""
    if vaddr and not XenBuildId.from_bytes(hv.memory.read(caller, vaddr, XenBuildId.sizeof())).len:
        raise XenError(EINVAL, "no room for a build id")
    raise XenError(ENODATA)


def _write_text(hv: Hypervisor, caller: Vcpu, vaddr: int, text: str, size: int) -> None:
    """Copy a text out, padded to the `size` bytes that its type has."""
    hv.memory.write(caller, vaddr, text.encode("ascii").ljust(size, b"\0"))
