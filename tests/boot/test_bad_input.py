"""What a user can get wrong: one clear sentence, its exit status, and nothing left, whatever it is."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Final

import pytest

from tests.boot.command_line import Ended, run
from tests.boot.conftest import Kernel
from tests.boot.terminal import terminal
from tests.unit.loader.elf_maker import Load, make_bzimage, make_elf, note, pv_notes
from xenolith.abi import elfnotes
from xenolith.loader.elf import EM_386

BASE: Final = 0xFFFF_FFFF_8000_0000
ENTRY: Final = BASE + 0x10_0000
AARCH64: Final = 183
MISTAKE: Final = 1
USAGE: Final = 2


def check(ended: Ended, *words: str, status: int = MISTAKE) -> None:
    """It ended with this status and with one sentence that has all the words; a hint below it is a second line."""
    assert ended.status == status, ended.log
    assert ended.output == "", ended.log
    lines = ended.errors.splitlines()
    if status == USAGE:
        assert lines[0].startswith("Usage: "), ended.errors
        sentence = lines[-1]
        assert sentence.startswith("Error: ")
    else:
        assert 1 <= len(lines) <= 2, ended.errors
        sentence = lines[0]
        assert sentence.startswith("xenolith: ")
    missing = [word for word in words if word not in ended.errors]
    assert not missing, f"{missing} not in {sentence}"
    assert ended.left == []


def elf(notes: bytes | None = None, **more: int) -> bytes:
    """A kernel that could be booted if its notes were right."""
    return make_elf([Load(0x10_0000, bytes(4096))], notes=pv_notes(BASE, ENTRY) if notes is None else notes, **more)


def pvh_note() -> bytes:
    return note(elfnotes.XEN_ELFNOTE_PHYS32_ENTRY, struct.pack("<I", 0x10_0000))


KERNELS: Final[dict[str, tuple[bytes, tuple[str, ...]]]] = {
    "empty": (b"", ("is empty",)),
    "a text": (b"#!/bin/sh\necho no kernel\n", ("neither an ELF file nor a bzImage",)),
    "an EFI program": (b"MZ" + bytes(4096), ("EFI program",)),
    "cut off in its headers": (elf()[:80], ("reaches beyond the end",)),
    "cut off in its code": (elf()[:4000], ("end of the file",)),
    "a bzImage that is cut off": (make_bzimage(gzip.compress(elf()))[:-100], ("cut off",)),
    "a corrupt payload": (make_bzimage(gzip.compress(elf())[:60] + bytes(200)), ("gzip-compressed kernel is corrupt",)),
    "a payload that is no kernel": (make_bzimage(gzip.compress(b"nothing")), ("not an ELF kernel",)),
    "for another processor": (elf(machine=AARCH64), ("not for x86-64",)),
    "32 bits": (elf(machine=EM_386, bits=32), ("32-bit PV kernel",)),
    "PVH only": (elf(pvh_note()), ("PVH entry point only",)),
    "without notes": (elf(b""), ("carries no Xen notes", "CONFIG_XEN_PV")),
    "an object file": (make_elf(notes=pv_notes()), ("nothing to load",)),
    "two entry points": (elf(pv_notes(BASE, ENTRY) + pv_notes(BASE, ENTRY + 16)), ("ENTRY is given twice",)),
    "a place below all memory": (elf(pv_notes(BASE, ENTRY, PADDR_OFFSET=1 << 40)), ("negative physical address",)),
    "an entry point outside": (elf(pv_notes(BASE, BASE + 0x900_0000)), ("lies outside the image",)),
    "a hypercall page outside": (elf(pv_notes(BASE, ENTRY, HYPERCALL_PAGE=BASE)), ("HYPERCALL_PAGE", "inside the")),
    "in Xen's own range": (
        elf(pv_notes(0xFFFF_8000_0000_0000, 0xFFFF_8000_0010_0000)),
        ("address range that belongs to Xen",),
    ),
    "beyond all addresses": (elf(pv_notes(0x7FFF_FFFF_F000, 0x8000_000F_F000)), ("no usable virtual address range",)),
    "a required feature": (elf(pv_notes(BASE, ENTRY, FEATURES="!auto_translated_physmap")), ("auto_translated",)),
    "an unknown feature": (elf(pv_notes(BASE, ENTRY, FEATURES="!time_travel")), ("time_travel",)),
    "another loader": (elf(pv_notes(BASE, ENTRY, LOADER="special")), ("asks for the loader 'special'",)),
    "another interface": (elf(pv_notes(BASE, ENTRY, XEN_VERSION="xen-9.9")), ("xen-9.9",)),
    "much too large": (make_elf([Load(0x10_0000, b"", 1 << 40)], notes=pv_notes(BASE, ENTRY)), ("beyond all reason",)),
}


@pytest.mark.parametrize("what", KERNELS)
def test_a_file_that_is_no_kernel(what: str, tmp_path: Path) -> None:
    contents, words = KERNELS[what]
    path = tmp_path / "kernel"
    path.write_bytes(contents)
    check(run("run", path), str(path), *words)


def test_a_truncated_real_kernel(kernel: Kernel, tmp_path: Path) -> None:
    kernel("debian-cloud")
    from xenolith.loader import registry

    pulled = registry.pulled("debian-cloud")
    assert pulled is not None
    data = pulled.file.read_bytes()
    path = tmp_path / "vmlinuz"
    path.write_bytes(data[: len(data) // 2])
    check(run("run", path), str(path), "cut off")
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(4096) + data[middle + 4096 :])
    check(run("run", path), str(path), "corrupt")


def test_a_kernel_that_cannot_be_had(tmp_path: Path) -> None:
    check(run("run", tmp_path / "nothing"), "there is no kernel")
    check(run("run", tmp_path), "is a directory")
    check(run("run", "/dev/null"), "is a device or a pipe")
    check(run("run", "debain"), "there is no kernel 'debain'", "did you mean 'debian'?")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_files_that_may_not_be_read(hello: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"070701")
    path.chmod(0)
    check(run("run", path), "may not be read")
    check(run("run", hello, "--ramdisk", path), "cannot be read: Permission denied")


def test_ramdisks(kernel: Kernel, hello: Path, tmp_path: Path) -> None:
    path = tmp_path / "ramdisk"
    check(run("run", hello, "--ramdisk", path), "ramdisk", "No such file")
    check(run("run", hello, "--ramdisk", tmp_path), "is not a file")
    path.touch()
    check(run("run", hello, "--ramdisk", path), "ramdisk", "is empty")
    linux = kernel("debian-cloud")
    path.write_bytes(b"no archive" * 100)
    check(run("run", linux, "--ramdisk", path), "is no ramdisk for Linux")
    path.write_bytes(b"070701" + b"0" * 50)
    check(run("run", linux, "--ramdisk", path), "is damaged")
    path.write_bytes(os.urandom(1 << 20) * 12)
    check(run("run", hello, "--ramdisk", path, "--memory", "8MiB"), "too little", "and its ramdisk", "MiB is needed")


def test_what_cannot_be_asked_of_a_kernel(kernel: Kernel, hello: Path, tmp_path: Path) -> None:
    check(run("run", hello, "--exec", "true"), "--exec needs a Linux kernel")
    check(run("run", hello, "--cmdline", "x" * 1024), "command line is longer than")
    check(run("run", kernel("debian-cloud"), "--memory", "16MiB"), "is too little", "MiB is needed", "more memory")
    check(run("run", hello, "--memory", "1MiB"), "is too little", "2 MiB is needed", "more memory")


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (("--memory", "0"), ("impossible", "--memory"), MISTAKE),
        (("--memory", "1025GiB"), ("impossible", "--memory"), MISTAKE),
        (("--memory", "lots"), ("'lots' is no amount of memory", "512MiB"), MISTAKE),
        (("--memory=-5"), ("'-5' is no amount of memory",), MISTAKE),
        (("--vcpus", "0"), ("cannot have 0 vCPUs", "between 1 and"), MISTAKE),
        (("--vcpus", "1000000"), ("cannot have 1000000 vCPUs",), MISTAKE),
        (("--vcpus", "two"), ("'--vcpus'", "'two'"), USAGE),
        (("--timeout", "0"), ("--timeout",), MISTAKE),
        (("--timeout", "nan"), ("--timeout",), MISTAKE),
        (("--timeout", "soon"), ("'--timeout'", "'soon'"), USAGE),
        (("--clock", "sun"), ("'--clock'", "'sun'", "virtual"), USAGE),
        (("--log", "/nowhere/log"), ("/nowhere/log cannot be written",), MISTAKE),
        (("--symbols", "/nowhere/map"), ("/nowhere/map cannot be read",), MISTAKE),
        (("--symbols", "/dev/null"), ("has no symbols",), MISTAKE),
        (("--colour",), ("--colour",), USAGE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options(arguments: tuple[str, ...] | str, words: tuple[str, ...], status: int, hello: Path) -> None:
    given = (arguments,) if isinstance(arguments, str) else arguments
    check(run("run", hello, *given), *words, status=status)


def test_verbs() -> None:
    check(run("rnu"), "there is no verb 'rnu'", "did you mean 'run'?", status=USAGE)
    check(run("run"), "Missing argument 'KERNEL'", status=USAGE)


TABLE: Final = '[machine]\nclock = "host"\n\n[domain.first]\nkernel = "debian"\n'


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (TABLE + "memroy = 5\n", 6, ("memroy",)),
        (TABLE + "memory = true\n", 6, ("memory",)),
        (TABLE + 'memory = "lots"\n', 6, ("memory", "lots")),
        (TABLE + "vcpus = 0\n", 6, ("vcpus",)),
        (TABLE + 'vcpus = "2"\n', 6, ("vcpus",)),
        (TABLE + 'ramdisk = "./nothing"\n', 6, ("ramdisk", "nothing")),
        (TABLE + 'capabilities = ["contorl"]\n', 6, ("capabilities", "contorl")),
        (TABLE.replace('"debian"', '"./nothing"'), 5, ("kernel", "nothing")),
        (TABLE.replace('"host"', '"sun"'), 2, ("clock",)),
        ("[mashine]\n" + TABLE, 1, ("mashine",)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_machine_description(text: str, line: int, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(text)
    check(run("boot", path), f"{path}:{line}: ", *words)


def test_a_file_that_is_no_machine_description(hello: Path, tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    check(run("boot", path), str(path), "No such file")
    path.write_text("[domain\n")
    check(run("boot", path), str(path), "line 1")
    path.write_text("")
    check(run("boot", path), str(path), "no domain")
    check(run("boot", hello), str(hello), "not UTF-8")


# -- the host ----------------------------------------------------------------------------------------------------------


def test_a_host_with_less_memory_than_the_machine(hello: Path) -> None:
    check(run("run", hello, "--memory", "1000GiB"), "more than this host has", "less memory")


@pytest.mark.parametrize("mib", [400, 900])
def test_a_host_that_gives_no_more_memory(mib: int, hello: Path) -> None:
    """The limit is on addresses, below what the machine's memory takes: what `ulimit -v` does."""
    check(run("run", hello, "--memory", "1GiB", address_space=mib << 20), "memory")


# -- the terminal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [("--memory", "1MiB"), ("--log", "/nowhere/log"), ("--ramdisk", "/nowhere/ramdisk")])
def test_the_terminal_stays_as_it_was(what: tuple[str, str], hello: Path) -> None:
    """Whether the mistake is found before the terminal is the guest's, or after."""
    with terminal("run", hello, *what) as screen:
        before = screen.settings
        assert screen.wait() == MISTAKE
        screen.expect("xenolith: ")
        assert screen.settings == before
        assert screen.left() == []
