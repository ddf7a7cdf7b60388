"""The initramfs writer, read back by an independent reader of the format."""

import stat
from pathlib import Path

from benchmarks.ramdisk import archive, busybox_ramdisk, character_device, directory, executable, symlink

HEADER_BYTES = 110


def read_back(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Mode, content and device number by path; stops at the trailer."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    offset = 0
    while True:
        assert data[offset : offset + 6] == b"070701"
        fields = [int(data[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        name_end = offset + HEADER_BYTES + fields[11]
        name = data[offset + HEADER_BYTES : name_end - 1].decode()
        content_start = -(-name_end // 4) * 4
        content = data[content_start : content_start + fields[6]]
        if name == "TRAILER!!!":
            return found
        found[name] = fields[1], content, (fields[9], fields[10])
        offset = -(-(content_start + fields[6]) // 4) * 4


def test_entries_come_back_whatever_their_length() -> None:
    contents = {f"f{'x' * n}": bytes(range(n)) for n in range(9)}
    found = read_back(archive(executable(path, content) for path, content in contents.items()))
    assert {path: content for path, (_, content, _) in found.items()} == contents


def test_kinds_of_entry() -> None:
    found = read_back(archive([directory("d"), symlink("l", "target"), character_device("dev/console", 5, 1)]))
    assert stat.S_ISDIR(found["d"][0])
    assert stat.S_ISLNK(found["l"][0])
    assert found["l"][1] == b"target"
    assert stat.S_ISCHR(found["dev/console"][0])
    assert found["dev/console"][2] == (5, 1)


def test_busybox_ramdisk_has_what_an_init_needs(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"\x7fELF")
    found = read_back(busybox_ramdisk(busybox, "#!/bin/sh\n", {"/rates": b"program"}))
    assert found["init"][0] & 0o111
    assert found["bin/sh"][1] == b"busybox"
    assert found["rates"][1] == b"program"
    assert {"proc", "sys", "dev", "dev/console"} <= set(found)
