"""NVMe commands and their completions as they lie in queues, and the codes in them.

Source: NVM Express 1.4, section 4.2 (submission queue entry), 4.6 (completion queue entry, status), 5 and 6 (opcodes).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple, Self

COMMAND_BYTES: Final = 64
COMPLETION_BYTES: Final = 16
_COMMAND: Final = struct.Struct("<BBHI16xQQ6I")
_FUSED_OR_SGL: Final = 0xC3
"""Bits of the flags: fused operation, and which kind of data pointer; we have neither fused commands nor SGLs."""


class Admin(IntEnum):
    """Opcodes of the admin queue."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT = 0x0C


class Io(IntEnum):
    """Opcodes of the NVM command set."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class Status(IntEnum):
    """Status code type (bits 8 to 10) and status code (bits 0 to 7)."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    DATA_TRANSFER_ERROR = 0x004
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE = 0x00C
    PRP_OFFSET = 0x013
    WRITE_PROTECTED = 0x020
    LBA_RANGE = 0x080
    COMPLETION_QUEUE_INVALID = 0x100
    QUEUE_IDENTIFIER = 0x101
    QUEUE_SIZE = 0x102
    EVENT_LIMIT = 0x105
    INTERRUPT_VECTOR = 0x108
    LOG_PAGE = 0x109
    QUEUE_DELETION = 0x10C
    NOT_SAVEABLE = 0x10D
    WRITE_FAULT = 0x280
    READ_ERROR = 0x281

    @property
    def is_final(self) -> bool:
        """Whether trying once more is no use: the host did not fail, the command is wrong."""
        return self not in (Status.SUCCESS, Status.DATA_TRANSFER_ERROR, Status.WRITE_FAULT, Status.READ_ERROR)


class Refused(Exception):
    """The command ends with `status`, and nothing is done for it."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class Command(NamedTuple):
    """A submission queue entry. `dwords` are command dwords 10 to 15."""

    opcode: int
    flags: int
    identifier: int
    namespace: int
    prp1: int
    prp2: int
    dwords: tuple[int, ...]

    @classmethod
    def parse(cls, entry: memoryview) -> Self:
        """From the 64 bytes of an entry."""
        opcode, flags, identifier, namespace, prp1, prp2, *dwords = _COMMAND.unpack(entry)
        return cls(opcode, flags, identifier, namespace, prp1, prp2, tuple(dwords))

    def check_flags(self) -> None:
        """Raises Refused for a fused command and for one whose data pointer is no PRP."""
        if self.flags & _FUSED_OR_SGL:
            raise Refused(Status.INVALID_FIELD)


def completion(result: int, head: int, queue: int, identifier: int, status: Status, phase: int) -> bytes:
    """The 16 bytes of a completion queue entry; the last 4 have the phase, and are to be written last."""
    field = (0x4000 if status.is_final else 0) | status
    return struct.pack("<IIHHHH", result, 0, head, queue, identifier, field << 1 | phase)
