"""nmi_op: the guest's NMI handler (nmi.h)."""

from typing import Final

from xenolith.abi.types import U64, Struct, layout

# nmi_op sub-operations.
XENNMI_register_callback: Final = 0
XENNMI_unregister_callback: Final = 1

# ArchSharedInfo.nmi_reason.
XEN_NMIREASON_io_error: Final = 1 << 0
XEN_NMIREASON_pci_serr: Final = 1 << 1
XEN_NMIREASON_unknown: Final = 1 << 2


@layout()
class XennmiCallback(Struct):
    """The NMI handler's virtual address and an unused word."""

    handler_address: U64
    pad: U64
