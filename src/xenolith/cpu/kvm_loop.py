"""The native loop around a virtual processor of KVM's (kvm_loop.c): what it shares with Python, and its start."""

from __future__ import annotations

from ctypes import CFUNCTYPE, Array, Structure, addressof, c_bool, c_int, c_int32, c_uint8, c_uint64, c_void_p, sizeof
from typing import ClassVar, Final

from xenolith.cpu.ring0 import Words
from xenolith.cpu.shortcuts import Shortcuts

_REST_OF_STATE: Final = 320
"""Bytes of struct cpu_state (processor.h) behind the registers and flags. Only native code uses them."""
SEGMENT_BYTES: Final = 24


class NativeEngine(Structure):
    """What all processors have in common (struct kvm_engine in kvm_loop.c)."""

    _fields_: ClassVar = [
        ("processor", c_void_p),
        ("syscall", c_void_p),
        ("exception", c_void_p),
        ("context", c_void_p),
        ("mirror", c_void_p),
        ("frames", c_uint64),
        ("own_root", c_uint64),
        ("shadows_tables", c_bool),
        ("has_program", c_bool),
    ]


class KvmState(Structure):
    """Of a virtual processor (struct kvm_cpu). `KvmCpu` describes the fields."""

    registers_: Array[c_uint64]
    flags: int
    code_: Array[c_uint8]
    stack_: Array[c_uint8]
    native_engine: int | None
    run_address: int
    stack_end: int
    stack_top: int
    entry: int
    root: int
    exits: int
    debug_: Array[c_uint64]
    fd: int
    flush: bool
    _fields_: ClassVar = [
        ("registers_", c_uint64 * 17),
        ("flags", c_uint64),
        ("_rest_of_state", c_uint8 * _REST_OF_STATE),
        ("code_", c_uint8 * SEGMENT_BYTES),
        ("stack_", c_uint8 * SEGMENT_BYTES),
        ("native_engine", c_void_p),
        ("run_address", c_void_p),
        ("stack_end", c_void_p),
        ("stack_top", c_uint64),
        ("entry", c_uint64),
        ("root", c_uint64),
        ("exits", c_uint64),
        ("debug_", c_uint64 * 8),
        ("_error_code", c_int32),
        ("fd", c_int32),
        ("flush", c_bool),
    ]
    __hash__ = object.__hash__


CODE_AT, STACK_AT = (int(getattr(KvmState, name).offset) for name in ("code_", "stack_"))
LAYOUT: Final = (
    sizeof(NativeEngine),
    sizeof(KvmState),
    sizeof(Words),
    Words.root.offset,  # type: ignore[attr-defined]
    *(getattr(KvmState, name).offset for name in ("flags", "code_", "root", "debug_", "flush")),
)
"""What kvm_loop.c must have compiled to as well."""


class NativeLoop:
    """Runs processors, with `shortcuts` for their exits. `engine` says what they have in common."""

    def __init__(self, shortcuts: Shortcuts, engine: NativeEngine) -> None:
        engine.processor = addressof(shortcuts.processor)
        engine.syscall, engine.exception = shortcuts.syscall_done, shortcuts.exception_done
        engine.context = shortcuts.context
        self._shortcuts = shortcuts
        self._engine = engine
        self._run = CFUNCTYPE(c_int, c_void_p)(shortcuts.kvm_run)

    def run(self, cpu: KvmState) -> int:
        """Run a processor until it has an exit that is not handled natively. Returns 0, or what KVM says (errno)."""
        return int(self._run(addressof(self.adopt(cpu))))

    def adopt(self, cpu: KvmState) -> KvmState:
        """Tell a processor of all that it has in common with others."""
        cpu.native_engine = addressof(self._engine)
        return cpu
