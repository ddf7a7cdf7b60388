"""Checksums and segmentation, against a sum that is made word by word."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.backends.net.frames import is_right, tcp, udp, words_sum
from xenolith.machine.offload import EVERYTHING, MAX_SEGMENTS, Offers, adapt, checksum, is_sound, segments
from xenolith.machine.packet import GSO_TCPV4, GSO_TCPV6, Packet, transport

GSO = {4: GSO_TCPV4, 6: GSO_TCPV6}
versions = st.sampled_from((4, 6))


@given(st.binary(max_size=200))
@example(b"")
@example(b"\0\0")
@example(b"\xff\xff")
def test_the_checksum_is_the_complement_of_the_sum_of_all_words(data: bytes) -> None:
    assert checksum(data) == 0xFFFF - words_sum(data)


@given(st.binary(max_size=2000), versions, st.sampled_from((tcp, udp)))
def test_a_blank_checksum_is_completed_for_who_cannot(payload: bytes, version: int, make: object) -> None:
    frame = make(payload, version)  # type: ignore[operator]
    packet = Packet(frame, blank=True, validated=True)
    (completed,) = adapt(packet, Offers())
    assert is_right(completed.data)
    assert not completed.blank
    assert adapt(packet, EVERYTHING) == (packet,)


def test_a_sum_of_zero_in_udp_is_sent_as_all_ones() -> None:
    frame = bytearray(udp(b"\0\0"))
    frame[-2:] = checksum(_with_checksum(frame)).to_bytes(2, "big")
    (completed,) = adapt(Packet(bytes(frame), blank=True), Offers())
    assert completed.data[40:42] == b"\xff\xff"


def _with_checksum(frame: bytearray) -> bytes:
    """What is summed up while the last word is 0."""
    return bytes(frame[26:34]) + b"\0\0\0\x11\0\0\0\x0a" + bytes(frame[34:])


def test_what_ethernet_has_padded_is_not_summed_up() -> None:
    frame = udp(b"hello")
    (completed,) = adapt(Packet(frame + b"\x55" * 20, blank=True), Offers())
    assert is_right(completed.data[: len(frame)])


@given(st.binary(min_size=1, max_size=20000), st.integers(536, 9000), versions, st.sampled_from((b"", b"\1" * 12)))
def test_segments_are_the_packets_that_the_sender_would_have_sent(
    payload: bytes, size: int, version: int, options: bytes
) -> None:
    frame = tcp(payload, version, flags=0x99, sequence=0xFFFF_F000, options=options)
    found = list(segments(Packet(frame, True, True, GSO[version], size)))
    start = (34 if version == 4 else 54) + 20 + len(options)
    assert all(is_right(packet.data) and not packet.blank and not packet.gso_type for packet in found)
    assert b"".join(packet.data[start:] for packet in found) == payload
    assert all(len(packet.data) - start == size for packet in found[:-1])
    at = start - 20 - len(options)
    sequences = [int.from_bytes(packet.data[at + 4 : at + 8], "big") for packet in found]
    assert sequences == [(0xFFFF_F000 + number * size) & 0xFFFF_FFFF for number in range(len(found))]
    flags = [packet.data[at + 13] for packet in found]
    assert [bool(flag & 9) for flag in flags] == [False] * (len(found) - 1) + [True], "FIN and PSH: the last"
    assert [bool(flag & 0x80) for flag in flags] == [True] + [False] * (len(found) - 1), "CWR: the first"
    if version == 4:
        assert [int.from_bytes(packet.data[18:20], "big") for packet in found] == [77 + n for n in range(len(found))]


def test_a_large_packet_goes_whole_to_who_takes_it_and_gets_its_checksum_if_that_is_wanted() -> None:
    packet = Packet(tcp(bytes(9000)), True, True, GSO_TCPV4, 1448)
    assert adapt(packet, EVERYTHING) == (packet,)
    (summed,) = adapt(packet, Offers(gso_v4=True))
    assert summed.gso_size == 1448
    assert is_right(summed.data)
    assert len(adapt(packet, Offers(gso_v6=True, csum_v4=True))) == 7


def test_headers_that_are_not_what_was_said_are_unsound() -> None:
    good = tcp(bytes(3000))
    assert is_sound(Packet(good, True, True, GSO_TCPV4, 1448))
    assert not is_sound(Packet(good, True, True, GSO_TCPV6, 1448)), "it is IPv4"
    assert not is_sound(Packet(udp(bytes(3000)), True, True, GSO_TCPV4, 1448)), "it is UDP"
    assert not is_sound(Packet(good[:60], True, True, GSO_TCPV4, 1448)), "it is cut off"
    assert not is_sound(Packet(tcp(bytes(3 * MAX_SEGMENTS)), True, True, GSO_TCPV4, 2))
    assert not is_sound(Packet(b"\xff" * 60, blank=True))
    fragment = bytearray(udp(b"hello"))
    fragment[20] |= 0x20
    assert not is_sound(Packet(bytes(fragment), blank=True)), "a fragment has no checksum of its own"
    assert is_sound(Packet(b"\xff" * 60))


@given(st.binary(max_size=120), st.sampled_from((b"\x08\x00", b"\x86\xdd", b"\x81\x00\0\1\x08\x00", b"")))
def test_headers_that_are_found_are_within_the_packet(content: bytes, kind: bytes) -> None:
    data = bytes(12) + kind + content
    found = transport(data)
    if found is not None:
        assert found.network < found.start < found.checksum + 2 <= found.end <= len(data)


@given(
    st.binary(max_size=200),
    st.booleans(),
    versions,
    st.integers(0, 3),
    st.integers(0, 70000),
    st.builds(Offers, st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
def test_nothing_that_a_guest_sends_breaks_the_offloads(
    noise: bytes, blank: bool, version: int, gso_type: int, size: int, offers: Offers
) -> None:
    base = bytearray(tcp(noise, version))
    for at, value in enumerate(noise[:20]):
        base[12 + value % (len(base) - 12)] ^= at + 1
    packet = Packet(bytes(base), blank, False, gso_type, size)
    if is_sound(packet):
        assert sum(len(adapted.data) for adapted in adapt(packet, offers)) <= MAX_SEGMENTS * 200 + len(base)
