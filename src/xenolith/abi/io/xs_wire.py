"""The store's wire protocol and its ring (io/xs_wire.h)."""

from ctypes import Array, c_uint8
from typing import Annotated, Final

from xenolith.abi.types import U32, Struct, layout

# XsdSockmsg.type.
XS_CONTROL: Final = 0
XS_DEBUG: Final = XS_CONTROL
XS_DIRECTORY: Final = 1
XS_READ: Final = 2
XS_GET_PERMS: Final = 3
XS_WATCH: Final = 4
XS_UNWATCH: Final = 5
XS_TRANSACTION_START: Final = 6
XS_TRANSACTION_END: Final = 7
XS_INTRODUCE: Final = 8
XS_RELEASE: Final = 9
XS_GET_DOMAIN_PATH: Final = 10
XS_WRITE: Final = 11
XS_MKDIR: Final = 12
XS_RM: Final = 13
XS_SET_PERMS: Final = 14
XS_WATCH_EVENT: Final = 15
XS_ERROR: Final = 16
XS_IS_DOMAIN_INTRODUCED: Final = 17
XS_RESUME: Final = 18
XS_SET_TARGET: Final = 19
XS_RESET_WATCHES: Final = 21
XS_DIRECTORY_PART: Final = 22
XS_TYPE_COUNT: Final = 23
XS_INVALID: Final = 0xFFFF

# Parts of a watch event.
XS_WATCH_PATH: Final = 0
XS_WATCH_TOKEN: Final = 1

# Limits (bytes), and the words at the ring's end.
XENSTORE_RING_SIZE: Final = 1024
XENSTORE_PAYLOAD_MAX: Final = 4096
XENSTORE_ABS_PATH_MAX: Final = 3072
XENSTORE_REL_PATH_MAX: Final = 2048
XENSTORE_SERVER_FEATURE_RECONNECTION: Final = 1
XENSTORE_SERVER_FEATURE_ERROR: Final = 2
XENSTORE_CONNECTED: Final = 0
XENSTORE_RECONNECT: Final = 1
XENSTORE_ERROR_NONE: Final = 0
XENSTORE_ERROR_COMM: Final = 1
XENSTORE_ERROR_RINGIDX: Final = 2
XENSTORE_ERROR_PROTO: Final = 3


@layout()
class XsdSockmsg(Struct):
    """The header of each message; `len` bytes follow."""

    type: U32
    req_id: U32
    tx_id: U32
    len: U32


@layout()
class XenstoreDomainInterface(Struct):
    """The page of the store's ring: `req` towards the store, `rsp` from it; indices run freely."""

    req: Annotated[Array[c_uint8], c_uint8 * XENSTORE_RING_SIZE]
    rsp: Annotated[Array[c_uint8], c_uint8 * XENSTORE_RING_SIZE]
    req_cons: U32
    req_prod: U32
    rsp_cons: U32
    rsp_prod: U32
    server_features: U32
    connection: U32
    error: U32
