"""What a virtual processor of the KVM engine does in ring 0 by itself, so that it need not leave the guest for it.

Each has an area of its own in the engine's pages (`kvm_entry`): a stack, some words for the code here, memory that the
hypervisor keeps its state of the virtual processor in, and a window on one page of RAM. All of that lies at fixed
distances from where RSP is in ring 0, so that one code serves all of them. What is to be done at a system call and at
a page fault is a `Program`, which the hypervisor gives; before it and behind it is what is here:

- Registers that the program uses are saved before, so that it may leave at any time (`leave`) as though nothing had
  been done: the engine is told of a system call or an exception, as always.
- While `undoable` is set, a fault in ring 0 leads there as well. The program clears it before it changes anything that
  somebody else sees.
- At the end (`go_on`) it is seen whether the engine wants the processor; else IRETQ goes to what stands in the frame.
"""

from __future__ import annotations

from ctypes import Structure, c_bool, c_uint32, c_uint64
from typing import TYPE_CHECKING, ClassVar, Final

from xenolith.cpu.registers import AC, DF, FLAGS_ARITHMETIC, FLAGS_FIXED, IF, RF, TF
from xenolith.cpu.shortcuts import Program

if TYPE_CHECKING:
    from xenolith.cpu.assembler import Assembled

SYSCALL: Final = 0
STOPPED: Final = 4
"""Ports of an OUT of four bytes: by which a system call leaves, and what has come to its end when it was wanted to."""
PAGE_FAULT: Final = 14

# An area's parts, offsets in bytes.
STUB: Final = 128
"""Where this processor's SYSCALL arrives."""
STACK_TOP: Final = 1024
FRAME: Final = STACK_TOP - 40
"""RSP in ring 0: there lies the frame of an interrupt from CPL 3, and what IRETQ takes."""
MEMORY: Final = 1280
WINDOW: Final = 8192
AREA_BYTES: Final = 12288


class Words(Structure):
    """The words at the frame (struct ring0_words in kvm_loop.c). `root` is what the guest's code runs on (CR3), `gdt`
    where its descriptors are, `segments` its CS and, in the upper half, SS, as they were last loaded. Nothing is done
    here unless `is_open`, and `stop` says that the engine wants the processor.
    """

    frame_rip: int
    frame_cs: int
    frame_flags: int
    frame_rsp: int
    frame_ss: int
    saved_rsp: int
    root: int
    gdt: int
    segments: int
    stop: bool
    undoable: bool
    by_fault: bool
    is_open: bool
    _fields_: ClassVar = [
        *((f"frame_{name}", c_uint64) for name in ("rip", "cs", "flags", "rsp", "ss")),
        *((f"saved_{name}", c_uint64) for name in ("rsp", "rax", "rcx", "rdx", "rbx", "cr2")),
        *((f"scratch_{number}", c_uint64) for number in range(5)),
        ("root", c_uint64),
        ("gdt", c_uint64),
        ("segments", c_uint32),
        ("stop", c_bool),
        ("undoable", c_bool),
        ("by_fault", c_bool),
        ("is_open", c_bool),
    ]


MAY_HAVE: Final = FLAGS_ARITHMETIC | TF | IF | DF | RF | AC | 1 << 21
"""RFLAGS of a guest that may have made them up."""
_NUMBERS: Final = {
    "SYSCALL": SYSCALL,
    "STOPPED": STOPPED,
    "PAGE_FAULT": PAGE_FAULT,
    "STUB_DISTANCE": STUB - FRAME,
    "WINDOW": WINDOW - FRAME,
    "MAY_HAVE": MAY_HAVE,
    "ALWAYS": FLAGS_FIXED | IF,
}

_COMMON: Final = """
arrive:                             ; by SYSCALL
    mov   saved_rax, rax
    mov   saved_rcx, rcx
    mov   saved_rdx, rdx
    mov   saved_rbx, rbx
arrived:
    mov   by_fault, 0
    mov   undoable, 1
    cmp   is_open, 0
    jne   system_call
leave:
    mov   rcx, saved_rcx
    mov   rdx, saved_rdx
    mov   rbx, saved_rbx
    mov   rax, saved_rax
    cmp   by_fault, 0
    jne   leave_fault
    out   SYSCALL, eax
leave_fault:
    mov   rax, saved_cr2
    mov   cr2, rax
    mov   rax, saved_rax
    sub   rsp, 8                    ; the error code is still there
own_fault:
    out   PAGE_FAULT, al

give_up:                            ; after a fault of ours while `undoable`
    mov   rax, root
    mov   cr3, rax
    jmp   leave

fault:                              ; page faults; there is an error code on the stack
    test  byte [rsp+16], 3
    je    own_fault
    add   rsp, 8
    mov   saved_rax, rax
    mov   saved_rcx, rcx
    mov   saved_rdx, rdx
    mov   saved_rbx, rbx
    mov   rax, frame_rsp
    mov   saved_rsp, rax
    mov   rax, cr2
    mov   saved_cr2, rax
    lea   rax, [rsp+STUB_DISTANCE]  ; a software KVM arrives at SYSCALL without leaving CPL 3, and cannot fetch it
    cmp   rax, frame_rip
    jne   true_fault
    and   r11d, MAY_HAVE            ; or the guest just went there
    or    r11d, ALWAYS
    mov   rax, saved_rax
    jmp   arrived
true_fault:
    mov   by_fault, 1
    mov   undoable, 1
    cmp   is_open, 0
    jne   page_fault
    jmp   leave

go_on:
    mov   rcx, saved_rcx
    mov   rdx, saved_rdx
    mov   rbx, saved_rbx
    mov   rax, saved_rax
    cmp   stop, 0
decided:
    jne   stopped
last:
    iretq
stopped:
    out   STOPPED, eax
"""


def code(program: Program, address: int, machine: int) -> Assembled:
    """The code at `address`, for a machine whose memory the processor sees at address `machine`."""
    from xenolith.cpu.assembler import Memory, assemble  # slow to import, and only for KVM

    memory = {name: Memory("rsp", *_place(name)) for name, *_ in Words._fields_}
    memory |= {name: Memory("rsp", MEMORY - FRAME + at, size) for name, (at, size) in program.processor.items()}
    memory |= {name: Memory("rip", machine + at, size) for name, (at, size) in program.machine.items()}
    return assemble(_COMMON + program.text, address, memory, _NUMBERS | dict(program.numbers))


def _place(word: str) -> tuple[int, int]:
    """The offset and size of one of `Words`."""
    field = getattr(Words, word)
    return field.offset, field.size


def stub(area: int, arrive: int) -> bytes:
    """What stands at `STUB` of the area at address `area`: SYSCALL changes no stack, so nothing else knows the area."""
    from xenolith.cpu.assembler import Memory, assemble  # slow to import

    text = "mov saved_rsp, rsp \n lea rsp, frame \n jmp arrive"
    memory = {
        "saved_rsp": Memory("rip", area + FRAME + _place("saved_rsp")[0], 8),
        "frame": Memory("rip", area + FRAME, 8),
    }
    return assemble(text, area + STUB, memory, {"arrive": arrive}).code
