"""vm_assist: what Xen shall do for a guest beyond the ABI's minimum (xen.h)."""

from typing import Final

# vm_assist sub-operations.
VMASST_CMD_enable: Final = 0
VMASST_CMD_disable: Final = 1

# Kinds of assistance.
VMASST_TYPE_4gb_segments: Final = 0
VMASST_TYPE_4gb_segments_notify: Final = 1
VMASST_TYPE_writable_pagetables: Final = 2
VMASST_TYPE_pae_extended_cr3: Final = 3
VMASST_TYPE_architectural_iopl: Final = 4
VMASST_TYPE_runstate_update_flag: Final = 5
VMASST_TYPE_m2p_strict: Final = 32
