"""The vocabulary of the ABI: number types that must not be mixed up, page geometry, and the base of every structure."""

from collections.abc import Callable
from ctypes import (
    LittleEndianStructure,
    LittleEndianUnion,
    c_int8,
    c_int16,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    sizeof,
)
from typing import Annotated, Any, ClassVar, Final, NewType, Self, TypeAlias, TypeVar

Mfn = NewType("Mfn", int)
"""A machine frame number: machine address >> 12."""
Pfn = NewType("Pfn", int)
"""A guest's own (pseudo-physical) frame number, translated by its physical-to-machine table."""
Gfn = NewType("Gfn", int)
"""A frame number as the named guest counts: an mfn for a PV guest, a pfn for a translated one."""
Maddr = NewType("Maddr", int)
"""A machine address in bytes."""
Vaddr = NewType("Vaddr", int)
"""A guest virtual address in bytes."""
Port = NewType("Port", int)
"""An event channel number, local to one domain."""
Gref = NewType("Gref", int)
"""A grant reference: an index into one domain's grant table."""
Domid = NewType("Domid", int)
"""A domain number, or one of the reserved DOMID_* numbers."""

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
"""Bytes in one frame."""
PAGE_OFFSET_MASK: Final = PAGE_SIZE - 1

# Reserved domain numbers (xen.h). Ordinary domains are numbered below DOMID_FIRST_RESERVED.
DOMID_FIRST_RESERVED: Final = Domid(0x7FF0)
DOMID_SELF: Final = Domid(0x7FF0)
DOMID_IO: Final = Domid(0x7FF1)
DOMID_XEN: Final = Domid(0x7FF2)
DOMID_COW: Final = Domid(0x7FF3)
DOMID_INVALID: Final = Domid(0x7FF4)
DOMID_IDLE: Final = Domid(0x7FFF)
DOMID_MASK: Final = 0x7FFF

# The types of a structure's fields: an `int` to the reader, a C type to `layout`.
U8: TypeAlias = Annotated[int, c_uint8]
U16: TypeAlias = Annotated[int, c_uint16]
U32: TypeAlias = Annotated[int, c_uint32]
U64: TypeAlias = Annotated[int, c_uint64]
I8: TypeAlias = Annotated[int, c_int8]
I16: TypeAlias = Annotated[int, c_int16]
I32: TypeAlias = Annotated[int, c_int32]
I64: TypeAlias = Annotated[int, c_int64]
Handle: TypeAlias = Annotated[int, c_uint64]
"""XEN_GUEST_HANDLE: the virtual address of a buffer in the calling guest, as untrusted as any number from it."""


class _Copying:
    """What structures and unions share: conversion from and to bytes."""

    C_NAME: ClassVar[str] = ""
    """The C type's name, where `layout` was told one."""

    @classmethod
    def sizeof(cls) -> int:
        """The size of the structure in bytes, with its trailing padding."""
        return sizeof(cls)  # type: ignore[arg-type]

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Self:
        """Make a copy of the first `sizeof()` bytes of `data`. ValueError if `data` is shorter."""
        return cls.from_buffer_copy(data)  # type: ignore[attr-defined,no-any-return]

    def to_bytes(self) -> bytes:
        """The structure as it stands in memory."""
        return bytes(self)  # type: ignore[call-overload,no-any-return]


class Struct(_Copying, LittleEndianStructure):
    """Base of every ABI structure. `from_buffer` overlays guest memory without a copy; `from_bytes` copies."""


class Union(_Copying, LittleEndianUnion):
    """Base of every ABI union."""


_S = TypeVar("_S", bound=type[Struct] | type[Union])


def _ctype(annotation: Any) -> tuple[Any, ...]:
    """The C type of a field, and the width of a bit field: the marks on an Annotated type, or the class itself."""
    return annotation.__metadata__ if hasattr(annotation, "__metadata__") else (annotation,)


def layout(c_name: str = "") -> Callable[[_S], _S]:
    """Lay a structure out from its annotations, in their order, as a C compiler for x86-64 would.

    `c_name` is the type's full C name where it does not follow from the Python one ("struct mmuext_op" is MmuextOp).
    A field whose C name is a Python keyword (`in`), or starts with two underscores (`__pad`), is spelt `in_`, `pad_`.
    A class nested in another is a C type without a name of its own.
    """

    def apply(cls: _S) -> _S:
        cls._fields_ = [(name, *_ctype(annotation)) for name, annotation in cls.__annotations__.items()]
        cls.C_NAME = c_name
        return cls

    return apply
