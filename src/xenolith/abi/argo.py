"""argo_op: messages between domains (argo.h)."""

from ctypes import Array, c_uint8
from typing import Annotated, Final

from xenolith.abi.types import U16, U32, Handle, Struct, layout

# argo_op sub-operations.
XEN_ARGO_OP_register_ring: Final = 1
XEN_ARGO_OP_unregister_ring: Final = 2
XEN_ARGO_OP_sendv: Final = 3
XEN_ARGO_OP_notify: Final = 4

# Limits and flags.
XEN_ARGO_DOMID_ANY: Final = 0x7FF4
XEN_ARGO_MAX_RING_SIZE: Final = 0x1000000
XEN_ARGO_MAXIOV: Final = 8
XEN_ARGO_MSG_SLOT_SIZE: Final = 0x10
XEN_ARGO_RING_EXISTS: Final = 1 << 0
XEN_ARGO_RING_SHARED: Final = 1 << 1
XEN_ARGO_RING_EMPTY: Final = 1 << 2
XEN_ARGO_RING_SUFFICIENT: Final = 1 << 3
XEN_ARGO_RING_EMSGSIZE: Final = 1 << 4
XEN_ARGO_RING_EBUSY: Final = 1 << 5
XEN_ARGO_REGISTER_FLAG_FAIL_EXIST: Final = 0x1


@layout()
class XenArgoIov(Struct):
    """One piece of a message."""

    iov_hnd: Handle
    iov_len: U32
    pad: U32


@layout()
class XenArgoAddr(Struct):
    """One end of a channel."""

    aport: U32
    domain_id: U16
    pad: U16


@layout()
class XenArgoSendAddr(Struct):
    """Both ends of a channel."""

    src: XenArgoAddr
    dst: XenArgoAddr


@layout()
class XenArgoRing(Struct):
    """A receive ring in the receiver's memory; the messages follow."""

    rx_ptr: U32
    tx_ptr: U32
    reserved: Annotated[Array[c_uint8], c_uint8 * 56]
    ring: Annotated[Array[c_uint8], c_uint8 * 0]


@layout()
class XenArgoRegisterRing(Struct):
    """Register a receive ring."""

    aport: U32
    partner_id: U16
    pad: U16
    len: U32


@layout()
class XenArgoUnregisterRing(Struct):
    """Unregister a receive ring."""

    aport: U32
    partner_id: U16
    pad: U16


@layout()
class XenArgoRingDataEnt(Struct):
    """The room in one ring."""

    ring: XenArgoAddr
    flags: U16
    pad: U16
    space_required: U32
    max_message_size: U32


@layout()
class XenArgoRingData(Struct):
    """The rooms in a list of rings."""

    nent: U32
    pad: U32
    data: Annotated[Array[XenArgoRingDataEnt], XenArgoRingDataEnt * 0]


@layout()
class XenArgoRingMessageHeader(Struct):
    """What each message in a ring begins with."""

    len: U32
    source: XenArgoAddr
    message_type: U32
    data: Annotated[Array[c_uint8], c_uint8 * 0]
