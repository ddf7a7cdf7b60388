"""The hypervisor's log: what is kept of it, and reading on where one was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenolith.hypervisor.console_ring import ConsoleRing


def test_lines_say_whose_they_are() -> None:
    ring = ConsoleRing()
    ring.write("hello")
    ring.write_guest(3, b"one\ntw")
    ring.write_guest(4, b"other\n")
    ring.write_guest(3, b"o\nend")
    ring.forget(3)
    ring.forget(3)
    assert ring.read(1000)[0] == b"(XEN) hello\n(d3) one\n(d4) other\n(d3) two\n(d3) end\n"


def test_a_line_without_an_end_is_cut() -> None:
    ring = ConsoleRing()
    for _ in range(100):
        ring.write_guest(3, b"x" * 100)
    lines = ring.read(1 << 20)[0].split(b"\n")
    assert all(len(line) == 5 + 1024 for line in lines[:-1])
    assert len(lines) == 10


def test_reading_on_and_clearing() -> None:
    ring = ConsoleRing()
    ring.write("one")
    data, index = ring.read(1000)
    assert (data, index) == (b"(XEN) one\n", 10)
    assert ring.read(1000, index) == (b"", 10)
    ring.write("two")
    assert ring.read(1000, index) == (b"(XEN) two\n", 20)
    assert ring.read(4, 10) == (b"(XEN", 14)
    assert ring.read(12, clear=True)[0] == b"(XEN) one\n(X"
    assert ring.read(1000) == (b"EN) two\n", 20)
    assert ring.read(1000, 99) == (b"EN) two\n", 20), "an index from the future is none"


@given(st.lists(st.text("ab", max_size=40), max_size=60), st.integers(0, 200))
def test_the_last_bytes_are_kept(lines: list[str], limit: int) -> None:
    ring, everything = ConsoleRing(100), b""
    for line in lines:
        ring.write(line)
        everything += b"(XEN) " + line.encode() + b"\n"
    data, index = ring.read(limit)
    kept = everything[-100:]
    assert data == kept[:limit]
    assert index == len(everything) - len(kept) + len(data)
