"""The hypercall page: one stub for each hypercall, which a guest calls instead of executing `syscall` itself.

Source: pv_hypercall_page_initialise in xen/arch/x86/pv/hypercall.c.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from xenolith.abi.hypercalls import HYPERVISOR_iret
from xenolith.abi.types import PAGE_SIZE

STUB_BYTES: Final = 32

_SAVE: Final = bytes.fromhex("51 4153")  # push rcx; push r11
_RESTORE: Final = bytes.fromhex("415b 59 c3")  # pop r11; pop rcx; ret
_PUSH_RAX: Final = bytes.fromhex("50")
_LOAD_EAX: Final = bytes.fromhex("b8")
_SYSCALL: Final = bytes.fromhex("0f05")
_BREAKPOINT: Final = b"\xcc"


@cache
def hypercall_page() -> bytes:
    """The 4096 bytes for a 64-bit guest. The stub of iret is jumped to and does not return."""
    return b"".join(_stub(number) for number in range(PAGE_SIZE // STUB_BYTES))


def _stub(number: int) -> bytes:
    call = _LOAD_EAX + number.to_bytes(4, "little") + _SYSCALL
    stub = _SAVE + _PUSH_RAX + call if number == HYPERVISOR_iret else _SAVE + call + _RESTORE
    return stub.ljust(STUB_BYTES, _BREAKPOINT)
