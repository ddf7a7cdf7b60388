"""hypfs_op: the hypervisor's own file system (hypfs.h)."""

from ctypes import c_char
from typing import Annotated, Final

from xenolith.abi.types import U8, U16, U32, Struct, layout

XEN_HYPFS_VERSION: Final = 1
XEN_HYPFS_MAX_PATHLEN: Final = 1024

# hypfs_op sub-operations.
XEN_HYPFS_OP_get_version: Final = 0
XEN_HYPFS_OP_read: Final = 1
XEN_HYPFS_OP_write_contents: Final = 2

# XenHypfsDirentry.type.
XEN_HYPFS_TYPE_DIR: Final = 0
XEN_HYPFS_TYPE_BLOB: Final = 1
XEN_HYPFS_TYPE_STRING: Final = 2
XEN_HYPFS_TYPE_UINT: Final = 3
XEN_HYPFS_TYPE_INT: Final = 4
XEN_HYPFS_TYPE_BOOL: Final = 5

# XenHypfsDirentry.encoding.
XEN_HYPFS_ENC_PLAIN: Final = 0
XEN_HYPFS_ENC_GZIP: Final = 1


@layout()
class XenHypfsDirentry(Struct):
    """What a node is: its type, its length and how much may be written (bytes)."""

    type: U8
    encoding: U8
    pad: U16
    content_len: U32
    max_write_len: U32


@layout()
class XenHypfsDirlistentry(Struct):
    """One entry of a directory's contents; its name follows. `off_next` is in bytes, 0 in the last."""

    e: XenHypfsDirentry
    off_next: U16
    name: Annotated[bytes, c_char * 0]
