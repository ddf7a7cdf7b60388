"""Machine descriptions: what they say, and that every mistake in one is told with its file, line and key."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.errors import UserError
from xenolith.hypervisor.domain import Capability
from xenolith.toolstack.config import (
    DEFAULT_GUEST_MEMORY,
    MAX_MEMORY,
    MIN_MEMORY,
    MachineConfig,
    check_vcpus,
    control_domain,
    load,
    parse_size,
)

MIB = 1 << 20

# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * MIB),
        ("512 MiB", 512 * MIB),
        (" 512mib ", 512 * MIB),
        ("512", 512 * MIB),
        (512, 512 * MIB),
        ("512M", 512 * MIB),
        ("512MB", 512 * MIB),
        ("2G", 2048 * MIB),
        ("2GiB", 2048 * MIB),
        ("4096K", 4 * MIB),
        ("1050000B", 1050000 & ~0xFFF),
        ("1", MIN_MEMORY),
        ("1024GiB", MAX_MEMORY),
    ],
)
def test_a_size(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-5", "1.5G", "5TiB", "0x10", "five", "1 2", "1MiB!", "9" * 5000])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="no amount of memory \\(here\\)"):
        parse_size(text, "here")


@pytest.mark.parametrize("text", ["0", "1023KiB", "1025GiB", "9" * 18])
def test_an_impossible_size(text: str) -> None:
    with pytest.raises(UserError, match="impossible"):
        parse_size(text)


@given(st.integers(1, 1 << 20))
def test_sizes_are_whole_frames(count: int) -> None:
    assert parse_size(f"{count + 1024}KiB") % 4096 == 0


@pytest.mark.parametrize("count", [0, -1, 9, 1 << 40])
def test_an_impossible_number_of_vcpus(count: int) -> None:
    with pytest.raises(UserError, match=f"cannot have {count} vCPUs"):
        check_vcpus(count)


# -- what a description says -------------------------------------------------------------------------------------------


def write(directory: Path, text: str) -> Path:
    path = directory / "machine.toml"
    path.write_text(dedent(text).lstrip("\n"))
    return path


def test_a_whole_description(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").touch()
    (tmp_path / "initrd").touch()
    config = load(
        write(
            tmp_path,
            """
            [machine]
            clock = "virtual"
            spare_memory = "64MiB"
            serial = "serial.log"

            [domain.dom0]
            kernel = "./vmlinuz"
            ramdisk = "initrd"
            cmdline = "quiet"
            memory = "1GiB"
            vcpus = 2
            weight = 512
            capabilities = ["control", "Hardware"]

            [domain."a guest"]
            kernel = "debian"
            exec = "uname -a"
            """,
        )
    )
    assert (config.clock, config.spare_memory, config.serial) == ("virtual", 64 * MIB, tmp_path / "serial.log")
    first, second = config.domains
    assert (first.name, first.kernel, first.ramdisk) == ("dom0", str(tmp_path / "vmlinuz"), tmp_path / "initrd")
    assert (first.cmdline, first.memory, first.vcpus, first.weight) == ("quiet", 1024 * MIB, 2, 512)
    assert first.capabilities == Capability.CONTROL | Capability.HARDWARE
    assert (second.name, second.kernel, second.command) == ("a guest", "debian", "uname -a")
    assert (second.memory, second.vcpus, second.capabilities) == (DEFAULT_GUEST_MEMORY, 1, Capability.NONE)


def test_the_least_description(tmp_path: Path) -> None:
    config = load(write(tmp_path, "[domain.x]"))
    assert (config.clock, [domain.name for domain in config.domains]) == ("host", ["x"])


def test_the_machine_that_nobody_described() -> None:
    domain = control_domain()
    assert domain.capabilities == Capability.ALL
    assert MachineConfig(domains=[domain]).clock == "host"


def test_a_kernel_is_a_file_beside_the_description_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "debian").touch()
    assert load(write(tmp_path, '[domain.x]\nkernel = "debian"')).domains[0].kernel == str(tmp_path / "debian")
    assert load(write(tmp_path, '[domain.x]\nkernel = "other"')).domains[0].kernel == "other"


# -- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = {
    "unknown table": (3, "unknown key 'domian'", "[domain.a]\n\n[domian.b]\n"),
    "unknown key at the top": (1, "unknown key 'memory'", 'memory = 5\n[domain.a]\nmemory = "9MiB"\n'),
    "unknown key of the machine": (2, "unknown key 'clok'", '[machine]\nclok = "host"\n[domain.a]\n'),
    "unknown key of a domain": (4, "unknown key 'memry'", '[domain.a]\nmemory = 5\n[domain.b]\nmemry = "5MiB"\n'),
    "unknown table of a domain": (2, "unknown key 'disk'", "[domain.a]\n[domain.a.disk.one]\n"),
    "unknown dotted key": (2, "unknown key 'x'", "[domain]\na.x = 5\n"),
    "unknown key of an inline table": (2, "unknown key 'x'", "[domain]\na = { x = 5 }\n"),
    "unknown quoted key": (2, "unknown key 'a key'", '[domain.a]\n"a key" = 5\n'),
    "unknown key of a quoted name": (3, "unknown key 'x'", '[domain.a]\n[domain."b.c"]\nx = 5\n'),
    "the same word elsewhere": (4, "unknown key 'clock'", '[machine]\nclock = "host"\n[domain.a]\nclock = "host"\n'),
    "domains in an array": (1, "'domain' is not a table", '[[domain]]\nname = "a"\n'),
    "domain is no table": (1, "'domain' is not a table", "domain = 5\n"),
    "machine is no table": (1, "'machine' is not a table", 'machine = "pc"\n[domain.a]\n'),
    "one domain is no table": (2, "'domain.a' is not a table", "[domain]\na = 5\n"),
    "memory of a wrong type": (2, "'memory' must be an amount of memory", "[domain.a]\nmemory = 1.5\n"),
    "memory as a truth": (2, "'memory' must be an amount of memory", "[domain.a]\nmemory = true\n"),
    "memory as a table": (2, "'memory' must be an amount of memory", "[domain.a]\n[domain.a.memory]\n"),
    "memory of no size": (2, "'memory': 'lots' is no amount", '[domain.a]\nmemory = "lots"\n'),
    "too little memory": (2, "'memory': 0 of memory is impossible", "[domain.a]\nmemory = 0\n"),
    "negative memory": (2, "'memory': '-1' is no amount", "[domain.a]\nmemory = -1\n"),
    "vcpus of a wrong type": (2, "'vcpus' must be a whole number", '[domain.a]\nvcpus = "2"\n'),
    "vcpus as a truth": (2, "'vcpus' must be a whole number", "[domain.a]\nvcpus = true\n"),
    "too many vcpus": (2, "'vcpus': a domain cannot have 9 vCPUs", "[domain.a]\nvcpus = 9\n"),
    "weight of nothing": (2, "'weight': a weight of 0 is impossible", "[domain.a]\nweight = 0\n"),
    "cmdline of a wrong type": (2, "'cmdline' must be a text in quotes", '[domain.a]\ncmdline = ["a"]\n'),
    "exec of a wrong type": (2, "'exec' must be a text in quotes", "[domain.a]\nexec = 5\n"),
    "capabilities as a text": (2, "'capabilities' must be a list", '[domain.a]\ncapabilities = "control"\n'),
    "capabilities of numbers": (2, "'capabilities' must be a list", "[domain.a]\ncapabilities = [1]\n"),
    "unknown capability": (2, "'capabilities': there is no capability 'root'", '[domain.a]\ncapabilities = ["root"]\n'),
    "a clock that there is not": (2, '\'clock\' must be "host" or "virtual"', '[machine]\nclock = "sun"\n[domain.a]\n'),
    "a clock of a wrong type": (2, "'clock' must be", "[machine]\nclock = []\n[domain.a]\n"),
    "a ramdisk that is not there": (2, "'ramdisk': there is no file", '[domain.a]\nramdisk = "missing"\n'),
    "a kernel that is not there": (2, "'kernel': there is no file", '[domain.a]\nkernel = "./missing"\n'),
    "a kernel of a wrong type": (2, "'kernel' must be a text in quotes", "[domain.a]\nkernel = 6.1\n"),
    "a name that no file has": (2, "'ramdisk': '\\x00' is no name", '[domain.a]\nramdisk = "\\u0000"\n'),
    "a home that nobody has": (2, "'ramdisk': '~nobody-here/x' is no name", '[domain.a]\nramdisk = "~nobody-here/x"\n'),
    "a long name": (2, "'ramdisk': there is no file", f'[domain.a]\nramdisk = "{"x" * 5000}"\n'),
    "a long kernel": (2, "'kernel': there is no file", f'[domain.a]\nkernel = "/{"x" * 5000}"\n'),
    "serial of a wrong type": (2, "'serial' must be a text in quotes", "[machine]\nserial = 1\n[domain.a]\n"),
}


@pytest.mark.parametrize(("line", "problem", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, line: int, problem: str, text: str) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert caught.value.message.startswith(f"{path}:{line}: {problem}")
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["[domain.a", "x = ", "[a]\n[a]", 'a = "', "= 5", f"a = {'9' * 5000}", "a = " + "[" * 100_000, "a = 1979-13-01"],
    ids=["header", "value", "twice", "quote", "key", "long number", "deep", "date"],
)
def test_what_is_no_toml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"machine\.toml: "):
        load(path)


def test_a_description_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*missing\.toml: No such file"):
        load(tmp_path / "missing.toml")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load(tmp_path)
    (tmp_path / "kernel").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="not UTF-8"):
        load(tmp_path / "kernel")


@pytest.mark.parametrize("text", ["", "[machine]\n", "[domain]\n", "# nothing\n"])
def test_a_machine_without_a_domain(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="no domain is described"):
        load(write(tmp_path, text))


@given(st.binary(max_size=200))
def test_random_bytes_are_the_users_mistake(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with pytest.raises(UserError):
        load(path)
