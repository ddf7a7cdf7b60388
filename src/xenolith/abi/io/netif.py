"""The network device rings (io/netif.h)."""

from ctypes import Array, c_uint8, c_uint16, c_uint32
from typing import Annotated, Final

from xenolith.abi.types import I16, U8, U16, U32, Struct, Union, layout

# Slots of one packet, and its length in bytes.
XEN_NETIF_NR_SLOTS_MIN: Final = 18
XEN_NETIF_MAX_TX_SIZE: Final = 0xFFFF

# The control ring.
XEN_NETIF_CTRL_HASH_TYPE_IPV4: Final = 1 << 0
XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP: Final = 1 << 1
XEN_NETIF_CTRL_HASH_TYPE_IPV6: Final = 1 << 2
XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP: Final = 1 << 3
XEN_NETIF_CTRL_HASH_ALGORITHM_NONE: Final = 0
XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ: Final = 1
XEN_NETIF_CTRL_TYPE_INVALID: Final = 0
XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS: Final = 1
XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS: Final = 2
XEN_NETIF_CTRL_TYPE_SET_HASH_KEY: Final = 3
XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE: Final = 4
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE: Final = 5
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING: Final = 6
XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM: Final = 7
XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE: Final = 8
XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING: Final = 9
XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING: Final = 10
XEN_NETIF_CTRL_STATUS_SUCCESS: Final = 0
XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED: Final = 1
XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER: Final = 2
XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW: Final = 3
XEN_NETIF_CTRLF_GREF_readonly: Final = 1 << 0

# NetifTxRequest.flags.
NETTXF_csum_blank: Final = 1 << 0
NETTXF_data_validated: Final = 1 << 1
NETTXF_more_data: Final = 1 << 2
NETTXF_extra_info: Final = 1 << 3

# NetifRxResponse.flags.
NETRXF_data_validated: Final = 1 << 0
NETRXF_csum_blank: Final = 1 << 1
NETRXF_more_data: Final = 1 << 2
NETRXF_extra_info: Final = 1 << 3
NETRXF_gso_prefix: Final = 1 << 4

# NetifExtraInfo.type and .flags.
XEN_NETIF_EXTRA_TYPE_NONE: Final = 0
XEN_NETIF_EXTRA_TYPE_GSO: Final = 1
XEN_NETIF_EXTRA_TYPE_MCAST_ADD: Final = 2
XEN_NETIF_EXTRA_TYPE_MCAST_DEL: Final = 3
XEN_NETIF_EXTRA_TYPE_HASH: Final = 4
XEN_NETIF_EXTRA_TYPE_MAX: Final = 5
XEN_NETIF_EXTRA_FLAG_MORE: Final = 1 << 0

# NetifExtraInfo.u.gso.type.
XEN_NETIF_GSO_TYPE_NONE: Final = 0
XEN_NETIF_GSO_TYPE_TCPV4: Final = 1
XEN_NETIF_GSO_TYPE_TCPV6: Final = 2

# NetifTxResponse.status, NetifRxResponse.status.
NETIF_RSP_DROPPED: Final = -2
NETIF_RSP_ERROR: Final = -1
NETIF_RSP_OKAY: Final = 0
NETIF_RSP_NULL: Final = 1


@layout()
class XenNetifCtrlRequest(Struct):
    """A request on the control ring."""

    id: U16
    type: U16
    data: Annotated[Array[c_uint32], c_uint32 * 3]


@layout()
class XenNetifCtrlResponse(Struct):
    """Its answer."""

    id: U16
    type: U16
    status: U32
    data: U32


@layout()
class XenNetifGref(Struct):
    """A grant that stays mapped."""

    ref: U32
    flags: U16
    status: U16


@layout()
class NetifTxRequest(Struct):
    """A piece of a packet that the guest sends; the first of a packet says its whole size (bytes)."""

    gref: U32
    offset: U16
    flags: U16
    id: U16
    size: U16


@layout()
class NetifExtraInfo(Struct):
    """More about the packet, in a slot of its own."""

    @layout()
    class U(Union):
        @layout()
        class Gso(Struct):
            size: U16
            type: U8
            pad: U8
            features: U16

        @layout()
        class Mcast(Struct):
            addr: Annotated[Array[c_uint8], c_uint8 * 6]

        @layout()
        class Hash(Struct):
            type: U8
            algorithm: U8
            value: Annotated[Array[c_uint8], c_uint8 * 4]

        gso: Gso
        mcast: Mcast
        hash: Hash
        pad: Annotated[Array[c_uint16], c_uint16 * 3]

    type: U8
    flags: U8
    u: U


@layout()
class NetifTxResponse(Struct):
    """The answer to a sent piece."""

    id: U16
    status: I16


@layout()
class NetifRxRequest(Struct):
    """An empty page for a packet to come."""

    id: U16
    pad: U16
    gref: U32


@layout()
class NetifRxResponse(Struct):
    """A received piece: length in bytes, or NETIF_RSP_*."""

    id: U16
    offset: U16
    flags: U16
    status: I16
