"""Copies between a handler and guest virtual memory, under the guest's own page tables.

Every address is checked as Xen checks it: canonical, outside the hypervisor's range, mapped, and writable where
written. A bad pointer is the caller's EFAULT and never a fault.
"""

from __future__ import annotations

from typing import Final

from xenolith.abi.errno import EFAULT, XenError
from xenolith.hypervisor.frames import FLAG_EXECUTABLE, FrameTable
from xenolith.hypervisor.vcpu import Vcpu

HYPERVISOR_START: Final = 0xFFFF_8000_0000_0000
HYPERVISOR_END: Final = 0xFFFF_8800_0000_0000
CANONICAL_LOW_END: Final = 0x0000_8000_0000_0000
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_PRESENT_RW: Final = 3
_LARGEST_COPY: Final = 1 << 20


class GuestMemory:
    """Reads and writes guest memory through the page tables that a vCPU runs on."""

    def __init__(self, frames: FrameTable) -> None:
        self._frames = frames
        self._ram = frames.ram
        self._words = frames.ram.words
        self._bytes = frames.ram.bytes
        self._ram_size = frames.total << 12

    def walk(self, root: int, vaddr: int, needed: int = 1) -> int:
        """The machine address of `vaddr` under the L4 at machine address `root`.

        `needed` is the set of flags that every level must have (1 present, 3 writable as well).
        Raises XenError(EFAULT) where the address is unmapped, not canonical, the hypervisor's, or not in RAM.
        """
        if CANONICAL_LOW_END <= vaddr < HYPERVISOR_END or not 0 <= vaddr < 1 << 64:
            raise XenError(EFAULT)
        words = self._words
        entry = words[(root >> 3) + (vaddr >> 39 & 511)]
        if entry & needed == needed:
            entry = words[((entry & _ADDRESS) >> 3) + (vaddr >> 30 & 511)]
            if entry & needed == needed:
                entry = words[((entry & _ADDRESS) >> 3) + (vaddr >> 21 & 511)]
                if entry & needed == needed:
                    entry = words[((entry & _ADDRESS) >> 3) + (vaddr >> 12 & 511)]
                    maddr = entry & _ADDRESS
                    if entry & needed == needed and maddr < self._ram_size:
                        return maddr | (vaddr & 0xFFF)
        raise XenError(EFAULT)

    def l1e_maddr(self, root: int, vaddr: int) -> int:
        """The machine address of the L1 entry that maps `vaddr`, present or not. 0 where there is no L1 table."""
        words = self._words
        table = root
        for shift in (39, 30, 21):
            entry = words[(table >> 3) + (vaddr >> shift & 511)]
            if not entry & 1:
                return 0
            table = entry & _ADDRESS
        return table | (vaddr >> 12 & 511) << 3

    def read(self, vcpu: Vcpu, vaddr: int, size: int) -> bytes:
        """Copy `size` bytes in. Raises XenError(EFAULT)."""
        root = vcpu.root
        offset = vaddr & 0xFFF
        if offset + size <= 4096:
            maddr = self.walk(root, vaddr)
            return bytes(self._bytes[maddr : maddr + size])
        if not 0 <= size <= _LARGEST_COPY:
            raise XenError(EFAULT, f"a copy of {size} bytes")
        pieces = []
        while size > 0:
            maddr = self.walk(root, vaddr)
            piece = min(size, 4096 - (vaddr & 0xFFF))
            pieces.append(bytes(self._bytes[maddr : maddr + piece]))
            vaddr = (vaddr + piece) & 0xFFFF_FFFF_FFFF_FFFF
            size -= piece
        return b"".join(pieces)

    def read_u64(self, vcpu: Vcpu, vaddr: int) -> int:
        if vaddr & 7:
            return int.from_bytes(self.read(vcpu, vaddr, 8), "little")
        return self._words[self.walk(vcpu.root, vaddr) >> 3]

    def read_words(self, vcpu: Vcpu, vaddr: int, count: int) -> list[int]:
        """Copy `count` words of 64 bits in. Raises XenError(EFAULT)."""
        if vaddr & 7 or (vaddr & 0xFFF) + 8 * count > 4096:
            return memoryview(self.read(vcpu, vaddr, 8 * count)).cast("Q").tolist()
        at = self.walk(vcpu.root, vaddr) >> 3
        words: list[int] = self._words[at : at + count].tolist()
        return words

    def write(self, vcpu: Vcpu, vaddr: int, data: bytes) -> None:
        """Copy out. Raises XenError(EFAULT); pages before the bad one have been written, as with Xen's copies."""
        self._write(vcpu.root, vaddr, data)

    def write_kernel(self, vcpu: Vcpu, vaddr: int, data: bytes) -> None:
        """Copy out under the kernel's page tables, in whichever mode the vCPU is. Raises XenError(EFAULT)."""
        self._write(vcpu.kernel_root, vaddr, data)

    def _write(self, root: int, vaddr: int, data: bytes) -> None:
        at, size = 0, len(data)
        while at < size:
            maddr = self.walk(root, vaddr, _PRESENT_RW)
            piece = min(size - at, 4096 - (vaddr & 0xFFF))
            self.write_machine(maddr, data[at : at + piece])
            vaddr = (vaddr + piece) & 0xFFFF_FFFF_FFFF_FFFF
            at += piece

    def write_u64(self, vcpu: Vcpu, vaddr: int, value: int) -> None:
        if vaddr & 7:
            self.write(vcpu, vaddr, value.to_bytes(8, "little"))
            return
        maddr = self.walk(vcpu.root, vaddr, _PRESENT_RW)
        self._words[maddr >> 3] = value
        if self._frames.flags[maddr >> 12] & FLAG_EXECUTABLE:
            self._frames.invalidate_code(maddr, 8)

    def write_machine(self, maddr: int, data: bytes | memoryview) -> None:
        """Write within one frame, and make the engine forget code that it translated from there."""
        self._bytes[maddr : maddr + len(data)] = data
        if self._frames.flags[maddr >> 12] & FLAG_EXECUTABLE:
            self._frames.invalidate_code(maddr, len(data))

    def fetch(self, vcpu: Vcpu, vaddr: int, size: int = 15) -> bytes:
        """Up to `size` bytes of code at `vaddr`: as many as are mapped."""
        first = min(size, 4096 - (vaddr & 0xFFF))
        try:
            code = self.read(vcpu, vaddr, first)
        except XenError:
            return b""
        if first < size:
            try:
                code += self.read(vcpu, vaddr + first, size - first)
            except XenError:
                return code
        return code
