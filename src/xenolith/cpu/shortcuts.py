"""Code that an engine asks before it calls its handler: native functions, or a program for the virtual processors."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import Structure, c_uint64, c_void_p
from typing import ClassVar, Final, NamedTuple

STATE_FIELDS: Final = ("eflags", "cc_src", "cc_op", "df", "hflags", "segments", "ldt", "gdt", "cr")
"""Fields of struct cpu_state (processor.h) of which native code says where it expects them."""


class Rest(Structure):
    """A multicall of which native code has done the first part, and the handler gets the rest (struct rest in
    processor.h): RDI and RSI as the guest had them, and is to have them again. `count` is 0 without such a call.
    """

    calls: int
    count: int
    _fields_: ClassVar = [("calls", c_uint64), ("count", c_uint64)]


class Processor(Structure):
    """Addresses in an engine, and of its functions (struct processor in processor.h). The engine fills them in."""

    rest: Rest
    _fields_: ClassVar = [
        ("state", c_void_p),
        ("debug", c_void_p),
        ("error_code", c_void_p),
        ("is_software", c_void_p),
        ("old_exception", c_void_p),
        ("root", c_void_p),
        ("arithmetic_flags", c_void_p),
        ("set_root", c_void_p),
        ("change_mode", c_void_p),
        ("processor", c_void_p),
        ("flush", c_void_p),
        ("flush_page", c_void_p),
        ("mapping_removed", c_void_p),
        ("syscall", c_void_p),
        ("exception", c_void_p),
        ("uncommon_flags", c_uint64),
        ("rest", Rest),
    ]


class Shortcuts(NamedTuple):
    """The functions, by address, with `context` as an argument.

    `syscall` and `exception` are called like Unicorn's hooks. Each does all that the handler would do, or calls the
    engine's own hook, which `processor` names. `syscall_done` and `exception_done` (vector) do the former, or say by
    false that they have not; `kvm_run` is the loop that calls these. `state_layout` is where all of them expect the
    STATE_FIELDS, in bytes, and `kvm_layout` how large the loop's structures are; an engine whose processor looks
    different does not call them.
    """

    processor: Processor
    syscall: int
    exception: int
    syscall_done: int
    exception_done: int
    kvm_run: int
    context: int
    state_layout: tuple[int, ...]
    kvm_layout: tuple[int, ...]


class Field(NamedTuple):
    """A place in memory that the hypervisor keeps something in: offset and size in bytes."""

    offset: int
    size: int


class Program(NamedTuple):
    """What virtual processors execute in ring 0 themselves: text for `assembler`, to be embedded in that of `ring0`.

    It has the labels `system_call` and `page_fault`, may use RAX, RCX, RDX and RBX, leaves RSP as it is, and goes to
    `leave` or `go_on`. `processor` and `machine` name places in a processor's and in the engine's `memory`, `numbers`
    are those of its own.
    """

    text: str
    processor: Mapping[str, Field]
    machine: Mapping[str, Field]
    numbers: Mapping[str, int]
