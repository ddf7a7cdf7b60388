"""physdev_op: interrupts, I/O privilege and PCI devices of the machine, for the domain that drives them (physdev.h)."""

from ctypes import Array, c_uint32
from typing import Annotated, Final

from xenolith.abi.types import I32, U8, U16, U32, U64, Handle, Struct, Union, layout

# physdev_op sub-operations.
PHYSDEVOP_eoi: Final = 12
PHYSDEVOP_pirq_eoi_gmfn_v1: Final = 17
PHYSDEVOP_pirq_eoi_gmfn_v2: Final = 28
PHYSDEVOP_irq_status_query: Final = 5
PHYSDEVOP_set_iopl: Final = 6
PHYSDEVOP_set_iobitmap: Final = 7
PHYSDEVOP_apic_read: Final = 8
PHYSDEVOP_apic_write: Final = 9
PHYSDEVOP_alloc_irq_vector: Final = 10
PHYSDEVOP_free_irq_vector: Final = 11
PHYSDEVOP_map_pirq: Final = 13
PHYSDEVOP_unmap_pirq: Final = 14
PHYSDEVOP_manage_pci_add: Final = 15
PHYSDEVOP_manage_pci_remove: Final = 16
PHYSDEVOP_restore_msi: Final = 19
PHYSDEVOP_manage_pci_add_ext: Final = 20
PHYSDEVOP_setup_gsi: Final = 21
PHYSDEVOP_get_free_pirq: Final = 23
PHYSDEVOP_pci_mmcfg_reserved: Final = 24
PHYSDEVOP_pci_device_add: Final = 25
PHYSDEVOP_pci_device_remove: Final = 26
PHYSDEVOP_restore_msi_ext: Final = 27
PHYSDEVOP_prepare_msix: Final = 30
PHYSDEVOP_release_msix: Final = 31
PHYSDEVOP_dbgp_op: Final = 29
PHYSDEVOP_pirq_eoi_gmfn: Final = PHYSDEVOP_pirq_eoi_gmfn_v2

# PhysdevIrqStatusQuery.flags.
XENIRQSTAT_needs_eoi: Final = 1 << 0
XENIRQSTAT_shared: Final = 1 << 1

# PhysdevMapPirq.type.
MAP_PIRQ_TYPE_MSI: Final = 0x0
MAP_PIRQ_TYPE_GSI: Final = 0x1
MAP_PIRQ_TYPE_UNKNOWN: Final = 0x2
MAP_PIRQ_TYPE_MSI_SEG: Final = 0x3
MAP_PIRQ_TYPE_MULTI_MSI: Final = 0x4

# PhysdevPciMmcfgReserved.flags.
XEN_PCI_MMCFG_RESERVED: Final = 0x1

# PhysdevPciDeviceAdd.flags.
XEN_PCI_DEV_EXTFN: Final = 0x1
XEN_PCI_DEV_VIRTFN: Final = 0x2
XEN_PCI_DEV_PXM: Final = 0x4

# PhysdevDbgpOp.op and .bus.
PHYSDEVOP_DBGP_RESET_PREPARE: Final = 1
PHYSDEVOP_DBGP_RESET_DONE: Final = 2
PHYSDEVOP_DBGP_BUS_UNKNOWN: Final = 0
PHYSDEVOP_DBGP_BUS_PCI: Final = 1


@layout()
class PhysdevEoi(Struct):
    """End of interrupt of one pirq."""

    irq: U32


@layout()
class PhysdevPirqEoiGmfn(Struct):
    """The frame that holds one bit per pirq: whether it needs an end of interrupt."""

    gmfn: U64


@layout()
class PhysdevIrqStatusQuery(Struct):
    """What a pirq needs: XENIRQSTAT_* flags."""

    irq: U32
    flags: U32


@layout()
class PhysdevSetIopl(Struct):
    """The I/O privilege level of the calling vcpu's kernel (1 and above: may do I/O)."""

    iopl: U32


@layout()
class PhysdevSetIobitmap(Struct):
    """The I/O permission bitmap of the calling vcpu: a virtual address and a number of ports."""

    bitmap: Handle
    nr_ports: U32


@layout()
class PhysdevApic(Struct):
    """Read or write one register of an I/O APIC."""

    apic_physbase: U64
    reg: U32
    value: U32


@layout()
class PhysdevIrq(Struct):
    """Allocate or free the vector of an interrupt."""

    irq: U32
    vector: U32


@layout()
class PhysdevMapPirq(Struct):
    """Make a pirq for a GSI or for message-signalled interrupts of a device."""

    domid: U16
    type: I32
    index: I32
    pirq: I32
    bus: I32
    devfn: I32
    entry_nr: I32
    table_base: U64


@layout()
class PhysdevUnmapPirq(Struct):
    """Give a pirq back."""

    domid: U16
    pirq: I32


@layout()
class PhysdevManagePci(Struct):
    """Announce or remove a PCI device of segment 0."""

    bus: U8
    devfn: U8


@layout()
class PhysdevRestoreMsi(Struct):
    """Restore a device's message-signalled interrupts after sleep."""

    bus: U8
    devfn: U8


@layout()
class PhysdevManagePciExt(Struct):
    """Announce a PCI device, and say whether it is a virtual function or extended."""

    @layout()
    class Physfn(Struct):
        bus: U8
        devfn: U8

    bus: U8
    devfn: U8
    is_extfn: U32
    is_virtfn: U32
    physfn: Physfn


@layout()
class PhysdevOp(Struct):
    """The argument of the call in its oldest form."""

    @layout()
    class U(Union):
        irq_status_query: PhysdevIrqStatusQuery
        set_iopl: PhysdevSetIopl
        set_iobitmap: PhysdevSetIobitmap
        apic_op: PhysdevApic
        irq_op: PhysdevIrq

    cmd: U32
    u: U


@layout()
class PhysdevSetupGsi(Struct):
    """Set trigger (0 edge, 1 level) and polarity (0 high, 1 low) of a GSI."""

    gsi: I32
    triggering: U8
    polarity: U8


@layout()
class PhysdevGetFreePirq(Struct):
    """Ask for a pirq that is not in use."""

    type: I32
    pirq: U32


@layout()
class PhysdevPciMmcfgReserved(Struct):
    """Tell Xen that a memory-mapped configuration area is reserved by the firmware."""

    address: U64
    segment: U16
    start_bus: U8
    end_bus: U8
    flags: U32


@layout()
class PhysdevPciDeviceAdd(Struct):
    """Announce a PCI device; its proximity domain may follow in `optarr`."""

    @layout()
    class Physfn(Struct):
        bus: U8
        devfn: U8

    seg: U16
    bus: U8
    devfn: U8
    flags: U32
    physfn: Physfn
    optarr: Annotated[Array[c_uint32], c_uint32 * 0]


@layout()
class PhysdevPciDevice(Struct):
    """Name a PCI device."""

    seg: U16
    bus: U8
    devfn: U8


@layout()
class PhysdevDbgpOp(Struct):
    """Say that the USB debug port's controller is about to be reset, or has been."""

    @layout()
    class U(Union):
        pci: PhysdevPciDevice

    op: U8
    bus: U8
    u: U
