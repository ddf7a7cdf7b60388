"""Native code that an engine asks before it calls its handler, and what such code is told of the processor."""

from __future__ import annotations

from ctypes import Structure, c_void_p
from typing import ClassVar, Final, NamedTuple

STATE_FIELDS: Final = ("eflags", "cc_src", "cc_op", "df", "hflags", "segments", "ldt", "gdt", "cr")
"""Fields of struct cpu_state (processor.h) of which native code says where it expects them."""


class Processor(Structure):
    """Addresses in an engine, and of its functions (struct processor in processor.h). The engine fills them in."""

    _fields_: ClassVar = [
        ("state", c_void_p),
        ("debug", c_void_p),
        ("error_code", c_void_p),
        ("is_software", c_void_p),
        ("old_exception", c_void_p),
        ("root", c_void_p),
        ("arithmetic_flags", c_void_p),
        ("set_root", c_void_p),
        ("processor", c_void_p),
        ("flush", c_void_p),
        ("flush_page", c_void_p),
        ("syscall", c_void_p),
        ("exception", c_void_p),
    ]


class Shortcuts(NamedTuple):
    """The functions, by address: they are called like hooks of the engine with `context` as their last argument.

    Each does all that the handler would do, or calls the engine's own hook, which `processor` names. `state_layout` is
    where they expect the STATE_FIELDS, in bytes; an engine whose processor looks different does not call them.
    """

    processor: Processor
    syscall: int
    exception: int
    context: int
    state_layout: tuple[int, ...]
