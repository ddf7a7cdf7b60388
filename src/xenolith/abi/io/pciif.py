"""The PCI pass-through page (io/pciif.h)."""

from ctypes import Array
from typing import Annotated, Final

from xenolith.abi.types import I32, U16, U32, Struct, layout

XEN_PCI_MAGIC: Final = "7"
"""What a frontend writes into its node "magic"."""

# XenPciOp.cmd.
XEN_PCI_OP_conf_read: Final = 0
XEN_PCI_OP_conf_write: Final = 1
XEN_PCI_OP_enable_msi: Final = 2
XEN_PCI_OP_disable_msi: Final = 3
XEN_PCI_OP_enable_msix: Final = 4
XEN_PCI_OP_disable_msix: Final = 5
XEN_PCI_OP_aer_detected: Final = 6
XEN_PCI_OP_aer_resume: Final = 7
XEN_PCI_OP_aer_mmio: Final = 8
XEN_PCI_OP_aer_slotreset: Final = 9
XEN_PCI_OP_enable_multi_msi: Final = 10

# XenPciOp.err.
XEN_PCI_ERR_success: Final = 0
XEN_PCI_ERR_dev_not_found: Final = -1
XEN_PCI_ERR_invalid_offset: Final = -2
XEN_PCI_ERR_access_denied: Final = -3
XEN_PCI_ERR_not_implemented: Final = -4
XEN_PCI_ERR_op_failed: Final = -5

# XenPciSharedinfo.flags.
XEN_PCIF_active: Final = 1 << 0
XEN_PCIB_AERHANDLER: Final = 1 << 1
XEN_PCIB_active: Final = 1 << 2

# The length of XenPciOp.msix_entries.
SH_INFO_MAX_VEC: Final = 128


@layout()
class XenMsixEntry(Struct):
    """One MSI-X vector."""

    vector: U16
    entry: U16


@layout()
class XenPciOp(Struct):
    """One operation on a device's configuration space."""

    cmd: U32
    err: I32
    domain: U32
    bus: U32
    devfn: U32
    offset: I32
    size: I32
    value: U32
    info: U32
    msix_entries: Annotated[Array[XenMsixEntry], XenMsixEntry * SH_INFO_MAX_VEC]


@layout()
class XenPcieAerOp(Struct):
    """One error-recovery operation."""

    cmd: U32
    err: I32
    domain: U32
    bus: U32
    devfn: U32


@layout()
class XenPciSharedinfo(Struct):
    """The page that both ends share."""

    flags: U32
    op: XenPciOp
    aer_op: XenPcieAerOp
