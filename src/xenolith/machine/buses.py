"""The buses that carry an access from a CPU to a device: 16-bit port space and memory-mapped ranges."""

from __future__ import annotations

from bisect import bisect_right
from typing import Protocol


class PortDevice(Protocol):
    """A device in port space. `size` is 1, 2 or 4 bytes; values are unsigned and fit `size`."""

    def read_port(self, port: int, size: int) -> int: ...

    def write_port(self, port: int, size: int, value: int) -> None: ...


class MmioDevice(Protocol):
    """A device in memory space. `offset` counts bytes from the start of its range; `size` is 1, 2, 4 or 8 bytes."""

    def read_mmio(self, offset: int, size: int) -> int: ...

    def write_mmio(self, offset: int, size: int, value: int) -> None: ...


ALL_ONES = {size: (1 << 8 * size) - 1 for size in (1, 2, 4, 8)}
"""What a read of `size` bytes returns where no device answers."""

PORTS = 0x10000


class PortBus:
    """The I/O port space. An unclaimed port reads all ones and ignores writes, as an undriven ISA bus does.

    An access wider than the device that owns its first port is cut into pieces as wide as that device, and each piece
    goes to the owner of its own port. An access past port 0xffff wraps, as on a PC.
    """

    def __init__(self) -> None:
        self._owners: dict[int, tuple[PortDevice, int]] = {}

    def claim(self, ports: range, device: PortDevice, width: int = 1) -> None:
        """Give `ports` to `device`, which answers accesses of up to `width` bytes (1, 2 or 4). ValueError if taken."""
        if not ports or ports.start < 0 or ports.stop > PORTS:
            raise ValueError(f"ports {ports} are outside the port space")
        if taken := [port for port in ports if port in self._owners]:
            raise ValueError(f"port {taken[0]:#x} has an owner already")
        self._owners.update(dict.fromkeys(ports, (device, width)))

    def release(self, ports: range) -> None:
        """Leave `ports` without an owner."""
        for port in ports:
            self._owners.pop(port, None)

    def owner(self, port: int) -> PortDevice | None:
        """The device that owns `port`, or None."""
        owner = self._owners.get(port)
        return owner[0] if owner else None

    def read(self, port: int, size: int) -> int:
        """Read `size` (1, 2 or 4) bytes at `port`."""
        owner = self._owners.get(port)
        if owner is None:
            if size == 1:
                return 0xFF
            step = 1
        else:
            device, step = owner
            if size <= step:
                return device.read_port(port, size)
        value = 0
        for at in range(0, size, step):
            value |= self.read((port + at) % PORTS, step) << 8 * at
        return value

    def write(self, port: int, size: int, value: int) -> None:
        """Write the low `size` (1, 2 or 4) bytes of `value` at `port`."""
        owner = self._owners.get(port)
        if owner is None:
            if size == 1:
                return
            step = 1
        else:
            device, step = owner
            if size <= step:
                device.write_port(port, size, value & ALL_ONES[size])
                return
        for at in range(0, size, step):
            self.write((port + at) % PORTS, step, value >> 8 * at & ALL_ONES[step])


class MmioBus:
    """Memory-mapped device ranges in machine address space (bytes). Ranges never overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: list[tuple[range, MmioDevice]] = []

    def claim(self, addresses: range, device: MmioDevice) -> None:
        """Give the machine addresses `addresses` to `device`. ValueError if empty or if any of them is claimed."""
        if not addresses:
            raise ValueError("an empty range of machine addresses")
        at = bisect_right(self._starts, addresses.start)
        before = self._ranges[at - 1][0] if at else range(0)
        after = self._ranges[at][0] if at < len(self._ranges) else range(addresses.stop, addresses.stop)
        if before.stop > addresses.start or after.start < addresses.stop:
            raise ValueError(f"machine addresses {addresses.start:#x}-{addresses.stop:#x} have an owner already")
        self._starts.insert(at, addresses.start)
        self._ranges.insert(at, (addresses, device))

    def release(self, addresses: range) -> None:
        """Leave a range that was claimed whole without an owner. ValueError if it was not claimed so."""
        at = bisect_right(self._starts, addresses.start) - 1
        if at < 0 or self._ranges[at][0] != addresses:
            raise ValueError(f"machine addresses {addresses.start:#x}-{addresses.stop:#x} are not claimed as one range")
        del self._starts[at], self._ranges[at]

    @property
    def ranges(self) -> list[range]:
        """The claimed ranges, in the order of their addresses."""
        return [addresses for addresses, _ in self._ranges]

    def _find(self, maddr: int, size: int) -> tuple[MmioDevice, int] | None:
        at = bisect_right(self._starts, maddr) - 1
        if at < 0:
            return None
        addresses, device = self._ranges[at]
        return (device, maddr - addresses.start) if maddr + size <= addresses.stop else None

    def read(self, maddr: int, size: int) -> int:
        """Read `size` (1, 2, 4 or 8) bytes at `maddr`; all ones where no one device answers for every byte."""
        found = self._find(maddr, size)
        return found[0].read_mmio(found[1], size) if found else ALL_ONES[size]

    def write(self, maddr: int, size: int, value: int) -> None:
        """Write the low `size` bytes of `value` at `maddr`; ignored where no one device answers for every byte."""
        if found := self._find(maddr, size):
            found[0].write_mmio(found[1], size, value & ALL_ONES[size])
