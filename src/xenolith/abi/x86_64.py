"""The 64-bit x86 part of the ABI: selectors, Xen's address range, page-table bits (arch-x86/xen-x86_64.h, cpuid.h)."""

from typing import Final

# Flat selectors that Xen puts into every GDT, at the frames after the guest's own.
FLAT_RING3_CS32: Final = 0xE023
FLAT_RING3_CS64: Final = 0xE033
FLAT_RING3_DS32: Final = 0xE02B
FLAT_RING3_DS64: Final = 0x0000
FLAT_RING3_SS32: Final = 0xE02B
FLAT_RING3_SS64: Final = 0xE02B
FLAT_KERNEL_DS64: Final = FLAT_RING3_DS64
FLAT_KERNEL_DS32: Final = FLAT_RING3_DS32
FLAT_KERNEL_DS: Final = FLAT_KERNEL_DS64
FLAT_KERNEL_CS64: Final = FLAT_RING3_CS64
FLAT_KERNEL_CS32: Final = FLAT_RING3_CS32
FLAT_KERNEL_CS: Final = FLAT_KERNEL_CS64
FLAT_KERNEL_SS64: Final = FLAT_RING3_SS64
FLAT_KERNEL_SS32: Final = FLAT_RING3_SS32
FLAT_KERNEL_SS: Final = FLAT_KERNEL_SS64
FLAT_USER_DS64: Final = FLAT_RING3_DS64
FLAT_USER_DS32: Final = FLAT_RING3_DS32
FLAT_USER_DS: Final = FLAT_USER_DS64
FLAT_USER_CS64: Final = FLAT_RING3_CS64
FLAT_USER_CS32: Final = FLAT_RING3_CS32
FLAT_USER_CS: Final = FLAT_USER_CS64
FLAT_USER_SS64: Final = FLAT_RING3_SS64
FLAT_USER_SS32: Final = FLAT_RING3_SS32
FLAT_USER_SS: Final = FLAT_USER_SS64

# Virtual addresses that belong to Xen, and the machine-to-physical table at their start.
HYPERVISOR_VIRT_START: Final = 0xFFFF800000000000
HYPERVISOR_VIRT_END: Final = 0xFFFF880000000000
MACH2PHYS_VIRT_START: Final = 0xFFFF800000000000
MACH2PHYS_VIRT_END: Final = 0xFFFF804000000000
MACH2PHYS_NR_ENTRIES: Final = (MACH2PHYS_VIRT_END - MACH2PHYS_VIRT_START) >> 3

# set_segment_base: which base to set.
SEGBASE_FS: Final = 0
SEGBASE_GS_USER: Final = 1
SEGBASE_GS_KERNEL: Final = 2
SEGBASE_GS_USER_SEL: Final = 3

# The first frame, byte and entry of the GDT that belong to Xen; a guest's own GDT ends before them.
FIRST_RESERVED_GDT_PAGE: Final = 14
FIRST_RESERVED_GDT_BYTE: Final = FIRST_RESERVED_GDT_PAGE * 4096
FIRST_RESERVED_GDT_ENTRY: Final = FIRST_RESERVED_GDT_BYTE // 8

XEN_EMULATE_PREFIX: Final = b"\x0f\x0bxen"
"""`ud2` and three letters: the instruction after it (cpuid) is executed by Xen, not by the processor."""
XEN_CPUID: Final = XEN_EMULATE_PREFIX + b"\x0f\xa2"

# Xen's own CPUID leaves (arch-x86/cpuid.h).
XEN_CPUID_FIRST_LEAF: Final = 0x40000000
XEN_CPUID_SIGNATURE_EBX: Final = 0x566E6558
XEN_CPUID_SIGNATURE_ECX: Final = 0x65584D4D
XEN_CPUID_SIGNATURE_EDX: Final = 0x4D4D566E
XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD: Final = 1 << 0
XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK: Final = 0xFF
XEN_CPUID_MAX_NUM_LEAVES: Final = 5

# Page-table entry bits as the processor defines them, and the one that Xen keeps for itself.
PAGE_PRESENT: Final = 1 << 0
PAGE_RW: Final = 1 << 1
PAGE_USER: Final = 1 << 2
PAGE_PWT: Final = 1 << 3
PAGE_PCD: Final = 1 << 4
PAGE_ACCESSED: Final = 1 << 5
PAGE_DIRTY: Final = 1 << 6
PAGE_PSE: Final = 1 << 7
"""Large page, in L2 and L3 entries."""
PAGE_PAT: Final = 1 << 7
"""Third bit of the memory type, in L1 entries."""
PAGE_GLOBAL: Final = 1 << 8
PAGE_AVAIL: Final = 7 << 9
"""Three bits that belong to the guest's kernel."""
PAGE_GUEST_KERNEL: Final = 1 << 52
"""Set by Xen in entries that the guest's kernel alone may use (x86_64/page.h)."""
PAGE_NX: Final = 1 << 63
PTE_ADDR_MASK: Final = 0x000F_FFFF_FFFF_F000
"""The machine address in an entry."""
