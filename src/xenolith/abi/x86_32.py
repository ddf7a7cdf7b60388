"""The 32-bit (PAE) x86 part of the ABI: selectors, Xen's address range, the magic (arch-x86/xen-x86_32.h)."""

from typing import Final

MAGIC: Final = b"xen-3.0-x86_32p"
"""`StartInfo.magic` of a 32-bit PAE guest."""

# Flat selectors that Xen puts into every GDT: ring 1 is the guest's kernel.
FLAT_RING1_CS: Final = 0xE019
FLAT_RING1_DS: Final = 0xE021
FLAT_RING1_SS: Final = 0xE021
FLAT_RING3_CS: Final = 0xE02B
FLAT_RING3_DS: Final = 0xE033
FLAT_RING3_SS: Final = 0xE033
FLAT_KERNEL_CS: Final = FLAT_RING1_CS
FLAT_KERNEL_DS: Final = FLAT_RING1_DS
FLAT_KERNEL_SS: Final = FLAT_RING1_SS
FLAT_USER_CS: Final = FLAT_RING3_CS
FLAT_USER_DS: Final = FLAT_RING3_DS
FLAT_USER_SS: Final = FLAT_RING3_SS

# Virtual addresses that belong to Xen, and the machine-to-physical table (4 bytes an entry) at their start.
HYPERVISOR_VIRT_START_PAE: Final = 0xF5800000
MACH2PHYS_VIRT_START_PAE: Final = 0xF5800000
MACH2PHYS_VIRT_END_PAE: Final = 0xF6800000
MACH2PHYS_NR_ENTRIES: Final = (MACH2PHYS_VIRT_END_PAE - MACH2PHYS_VIRT_START_PAE) >> 2
