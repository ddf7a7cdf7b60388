"""Disks: xl's mini-language as xl-disk-configuration(5) and libxlutil 4.17 have it, vbd numbers, tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.errors import UserError
from xenolith.toolstack.disks import FORMATS, Disk, disk, parse_disk, vbd_number

VOLUME = Disk("/dev/vg/volume", "hda")
CDROM = Disk("/root/image.iso", "hdc", readonly=True, cdrom=True)
EMPTY = Disk("", "hdc", readonly=True, cdrom=True)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("/dev/vg/volume,,hda", VOLUME),
        ("/dev/vg/volume,raw,hda,rw", VOLUME),
        (" format=raw, vdev=hda, access=rw, target=/dev/vg/volume", VOLUME),
        ("raw:/dev/vg/volume,hda,w", VOLUME),
        ("phy:vg/volume,hda,w", VOLUME),
        ("tap2:aio:/dev/vg/volume,hda,w", VOLUME),
        ("/root/image.iso,,hdc,cdrom", CDROM),
        ("/root/image.iso,,hdc,,cdrom", CDROM),
        ("/root/image.iso,raw,hdc,devtype=cdrom", CDROM),
        ("file:/root/image.iso,hdc:cdrom,ro", CDROM),
        ("access=rw,devtype=cdrom,vdev=hdc,target=/root/image.iso", CDROM),
        ("devtype=cdrom,,,hdc", EMPTY),
        (",hdc:cdrom,r", EMPTY),
        (",,hdc:cdrom,r", EMPTY),
        (",empty,hdc:cdrom,r", EMPTY),
        ("vdev=hdc,access=r,devtype=cdrom,target=", EMPTY),
        ("tap:qcow2:/x,xvda,w", Disk("/x", "xvda", format="qcow2")),
        ("/x,vhd,xvdb,r", Disk("/x", "xvdb", format="vhd", readonly=True)),
        ("/x,,xvda,no-discard,direct-io-safe,backendtype=phy", Disk("/x", "xvda", discard=False)),
        ("/x,,xvda,backend=drivers,untrusted", Disk("/x", "xvda", backend="drivers", trusted=False)),
        ("/x,,xvda,overlay", Disk("/x", "xvda", overlay=True)),
        ("/x,,xvda,overlay=no", Disk("/x", "xvda")),
        ("/x,,xvda,overlay=/y", Disk("/x", "xvda", overlay="/y")),
        ("vdev=xvda,target=/a,b=c ,", Disk("/a,b=c ", "xvda")),
        ("nbd://host/export,,xvda", Disk("nbd://host/export", "xvda")),
        ("foo:bar,,xvda", Disk("foo:bar", "xvda")),
    ],
)
def test_a_disk(spec: str, wanted: Disk) -> None:
    assert parse_disk(spec) == wanted


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("", "no virtual device"),
        ("foo", "no virtual device"),
        ("/x,raw,xvda,rw,more", "'more' is one word too many"),
        ("/x,zip,xvda", "the format of a disk cannot be 'zip'"),
        ("/x,,xvda,maybe", "the access of a disk cannot be 'maybe'"),
        ("/x,,xvda,devtype=floppy", "the devtype of a disk cannot be 'floppy'"),
        ("/x,,floppy", "'floppy' is no virtual device"),
        (",,xvda", "the disk xvda has no target"),
        ("/x,,xvda,vdev=xvdb", "'vdev' is given twice"),
        ("/x,raw,xvda,format=vhd", "'format' is given twice"),
        ("/x,,xvda,size=5", "a disk has no 'size'"),
        ("/x,,xvda,script=block-drbd", r"scripts for disks \(block-drbd\) are not run"),
        ("iscsi:iqn.2001-05.com:0-8a,xvda,w", r"scripts for disks \(iscsi\) are not run"),
        ("zfs:/pool,xvda,w", "there is no prefix 'zfs:'"),
        ("/x,,xvda,ro,overlay", "the disk xvda is read-only"),
        ("/x,,xvda,discard=maybe", "discard of a disk cannot be 'maybe'"),
    ],
)
def test_what_is_no_disk(spec: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_disk(spec)


@pytest.mark.parametrize(
    ("vdev", "number"),
    [
        ("xvda", 202 << 8),
        ("xvdb2", 202 << 8 | 1 << 4 | 2),
        ("xvdp15", 202 << 8 | 15 << 4 | 15),
        ("xvdq", 1 << 28 | 16 << 8),
        ("xvda16", 1 << 28 | 16),
        ("xvdtq37", 1 << 28 | 536 << 8 | 37),
        ("d536p37", 1 << 28 | 536 << 8 | 37),
        ("d0", 202 << 8),
        ("hda", 3 << 8),
        ("hdb63", 3 << 8 | 1 << 6 | 63),
        ("hdc2", 22 << 8 | 2),
        ("hdd", 22 << 8 | 1 << 6),
        ("sda", 8 << 8),
        ("sdp15", 8 << 8 | 15 << 4 | 15),
        ("51712", 51712),
        ("0xca00", 51712),
        ("0145000", 51712),
    ],
)
def test_the_number_of_a_virtual_device(vdev: str, number: int) -> None:
    assert vbd_number(vdev) == number


@pytest.mark.parametrize(
    "vdev",
    [
        "",
        "xvd",
        "xvda0",
        "xvda01",
        "xvda256",
        "d1048576",
        "d0p256",
        "hde",
        "hda64",
        "sdq",
        "sda16",
        "vda",
        "-1",
        "XVDA",
        "2147483648",
        "xvd" + "z" * 20,
        "9" * 5000,
        "xvda\n",
    ],
)
def test_what_is_no_virtual_device(vdev: str) -> None:
    with pytest.raises(UserError, match="virtual device"):
        vbd_number(vdev)


def test_a_table_says_the_same() -> None:
    table = {"target": "/a,b", "vdev": "xvda", "access": "rw", "discard": False, "overlay": True, "cdrom": False}
    assert disk(table) == Disk("/a,b", "xvda", discard=False, overlay=True)
    assert disk({"vdev": "hdc", "cdrom": True}) == EMPTY


@pytest.mark.parametrize("value", [5, ["a"], None])
def test_values_that_are_no_disk(value: object) -> None:
    with pytest.raises(TypeError, match="a text such as"):
        disk(value)


@pytest.mark.parametrize(
    "table", [{"vdev": 1.5}, {"vdev": ["xvda", "xvdb"]}, {"target": "a\0b", "vdev": "xvda"}, {"x": {}}]
)
def test_tables_that_are_no_disk(table: dict[str, object]) -> None:
    with pytest.raises(UserError):
        disk(table)


def test_files_are_beside_the_file_that_names_them() -> None:
    placed = parse_disk("a.img,,xvda,overlay=b.img").located(Path("/d"))
    assert (placed.target, placed.overlay) == ("/d/a.img", "/d/b.img")
    for spec in ("nbd://host/x,,xvda", "devtype=cdrom,vdev=hdc", "/x,,xvda"):
        assert parse_disk(spec).located(Path("/d")) == parse_disk(spec)


WORDS = st.sampled_from(
    [
        "/a",
        "raw",
        "xvda",
        "hdc",
        "",
        "ro",
        "rw",
        "cdrom",
        "devtype=cdrom",
        "target=/b",
        "raw:/x",
        "tap:aio:/x",
        "hdc:cdrom",
        "=",
        "overlay=",
        "overlay",
        " format=vhd",
        "vdev=0x",
        "a:",
        "nbd://",
        "discard",
    ]
)


@given(st.text(max_size=40) | st.lists(WORDS, max_size=7).map(",".join))
def test_any_text_is_a_disk_or_the_users_mistake(text: str) -> None:
    try:
        found = parse_disk(text)
    except UserError:
        return
    assert parse_disk(str(found)) == found


@given(
    st.builds(
        Disk,
        target=st.text(st.characters(blacklist_characters="\0\n", blacklist_categories=["Cs"]), min_size=1),
        vdev=st.sampled_from(["xvda", "xvdb2", "d7", "51712"]),
        format=st.sampled_from(FORMATS),
        readonly=st.booleans(),
        discard=st.booleans(),
        backend=st.none() | st.just("drivers"),
        trusted=st.booleans(),
    )
)
def test_a_disk_comes_back_from_its_text(made: Disk) -> None:
    assert parse_disk(str(made)) == made
