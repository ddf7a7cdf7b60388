"""The PV console's ring: nothing lost and nothing twice, and indices that a guest makes up do no harm."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from xenolith.abi.io.console import XenconsInterface
from xenolith.backends.console import IN_SIZE, OUT_SIZE, ConsoleRing


class Frontend:
    """A guest's end of the ring, and what came out at ours."""

    def __init__(self, start: int = 0) -> None:
        self.memory = bytearray(4096)
        self.interface = XenconsInterface.from_buffer(self.memory)
        interface = self.interface
        interface.in_cons = interface.in_prod = interface.out_cons = interface.out_prod = start
        self.printed = bytearray()
        self.notified = 0
        self.ring = ConsoleRing(memoryview(self.memory), self._print, self._notify)

    def _print(self, data: bytes) -> None:
        self.printed += data

    def _notify(self) -> None:
        self.notified += 1

    def write(self, data: bytes) -> int:
        """Put into the ring as much as fits."""
        interface = self.interface
        room = OUT_SIZE - ((interface.out_prod - interface.out_cons) & 0xFFFF_FFFF)
        for byte in data[:room]:
            interface.out[interface.out_prod % OUT_SIZE] = byte
            interface.out_prod = (interface.out_prod + 1) & 0xFFFF_FFFF
        return min(room, len(data))

    def read(self, limit: int) -> bytes:
        interface = self.interface
        data = bytearray()
        while len(data) < limit and interface.in_cons != interface.in_prod:
            data.append(interface.in_[interface.in_cons % IN_SIZE])
            interface.in_cons = (interface.in_cons + 1) & 0xFFFF_FFFF
        return bytes(data)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.binary(max_size=3000)),
        st.tuples(st.just("type"), st.binary(max_size=1500)),
        st.tuples(st.just("read"), st.integers(0, 1500)),
        st.tuples(st.just("service"), st.none()),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(steps=steps, start=st.sampled_from([0, 1000, 0xFFFF_FFFF - 100, 0xFFFF_F800]))
def test_no_byte_is_lost_or_comes_twice(steps: list[tuple[str, bytes | int | None]], start: int) -> None:
    guest = Frontend(start)
    written, typed, read = bytearray(), bytearray(), bytearray()
    for what, value in steps:
        if what == "write":
            assert isinstance(value, bytes)
            written += value[: guest.write(value)]
        elif what == "type":
            assert isinstance(value, bytes)
            guest.ring.type(value)
            typed += value
        elif what == "read":
            assert isinstance(value, int)
            read += guest.read(value)
        else:
            guest.ring.service()
    while len(read) < len(typed):
        guest.ring.service()
        read += guest.read(IN_SIZE)
    guest.ring.service()
    assert guest.printed == written
    assert read == typed


indices = st.one_of(st.integers(0, 0xFFFF_FFFF), st.sampled_from([0, 1, 2047, 2048, 2049, 1 << 31, 0xFFFF_FFFF]))


@settings(deadline=None)
@given(in_cons=indices, in_prod=indices, out_cons=indices, out_prod=indices, typed=st.binary(max_size=2000))
def test_indices_that_a_guest_makes_up(in_cons: int, in_prod: int, out_cons: int, out_prod: int, typed: bytes) -> None:
    guest = Frontend()
    interface = guest.interface
    interface.in_cons, interface.in_prod = in_cons, in_prod
    interface.out_cons, interface.out_prod = out_cons, out_prod
    before_in, before_out = bytes(interface.in_), bytes(interface.out)
    guest.ring.service()
    guest.ring.type(typed)
    assert len(guest.printed) == min((out_prod - out_cons) & 0xFFFF_FFFF, OUT_SIZE)
    assert interface.out_cons == out_prod
    assert bytes(interface.out) == before_out, "what the guest prints is only read"
    room = max(0, IN_SIZE - ((in_prod - in_cons) & 0xFFFF_FFFF))
    assert (interface.in_prod - in_prod) & 0xFFFF_FFFF == min(room, len(typed))
    assert room or bytes(interface.in_) == before_in
    assert not any(guest.memory[XenconsInterface.sizeof() :])


def test_the_guest_is_told_of_progress_only() -> None:
    guest = Frontend()
    guest.ring.service()
    assert guest.notified == 0
    guest.write(b"hello")
    guest.ring.service()
    assert guest.notified == 1
    guest.ring.service()
    guest.ring.type(b"")
    assert guest.notified == 1
    guest.ring.type(b"x" * IN_SIZE)
    assert guest.notified == 2
    guest.ring.type(b"more")
    assert guest.notified == 2, "the ring is full"
    guest.read(2)
    guest.ring.service()
    assert guest.notified == 3


def test_what_waits_for_a_guest_that_does_not_read_has_an_end() -> None:
    guest = Frontend()
    for _ in range(30):
        guest.ring.type(bytes(1 << 16))
    assert len(guest.ring._input) <= 1 << 20


# -- as a native domain ------------------------------------------------------------------------------------------------
