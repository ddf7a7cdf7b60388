"""Machine descriptions: what they say, and that every mistake in one is told with its file, line and key."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.errors import UserError
from xenolith.hypervisor.domain import Capability
from xenolith.toolstack import presets
from xenolith.toolstack.config import SERVICES, DomainConfig, MachineConfig, control_domain
from xenolith.toolstack.description import load
from xenolith.toolstack.guest_config import DEFAULT_GUEST_MEMORY
from xenolith.toolstack.values import MAX_MEMORY, MIN_MEMORY, check_vcpus, parse_size

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


def test_services_capabilities_and_devices(tmp_path: Path) -> None:
    config = load(
        write(
            tmp_path,
            """
            [machine]
            name = "lab"
            memory = "1GiB"

            [domain.web]
            disk = ["web.img,,xvda", {target = "nbd://host/x", vdev = "xvdb", access = "ro"}]
            vif = ["bridge=lan", {user = true, forward = ["8080:80"]}]
            p9 = ["tag=src,path=src"]
            depends = ["blocks"]

            [domain.blocks]
            service = ["block", "9p"]
            capabilities = { control = ["web"], hardware = { ports = ["0x3f8-0x3ff", "0x70"], devices = ["00:03.0"] } }

            [domain.base]
            service = "store"
            capabilities = { store = true, create = false, Control = true }
            memory = "2MiB"
            """,
        )
    )
    assert (config.name, config.memory) == ("lab", 1024 * MIB)
    web, blocks, base = config.domains
    assert [disk.target for disk in web.disks] == [str(tmp_path / "web.img"), "nbd://host/x"]
    assert [disk.number for disk in web.disks] == [51712, 51728]
    assert [(nic.bridge, nic.user) for nic in web.nics] == [("lan", False), (None, True)]
    assert web.shares[0].path == str(tmp_path / "src")
    assert (blocks.services, blocks.memory, blocks.targets) == (("block", "9p"), 4 * MIB, ("web",))
    assert blocks.capabilities == Capability.CONTROL | Capability.HARDWARE
    assert blocks.hardware is not None
    assert blocks.hardware.ports == (range(0x3F8, 0x400), range(0x70, 0x71))
    assert blocks.hardware.devices == ("0000:00:03.0",)
    assert base.capabilities == Capability.STORE | Capability.CONTROL
    assert (base.targets, base.hardware, base.memory) == (None, None, 2 * MIB)
    assert [domain.name for domain in config.start_order()] == ["base", "blocks", "web"]


def test_what_is_named_is_started_before() -> None:
    """A service that names a guest comes after it, and all else that guests need still comes before them."""
    config = MachineConfig(
        domains=[
            DomainConfig("guest"),
            DomainConfig("disks", services=("block",), depends=("driver",)),
            DomainConfig("driver"),
            DomainConfig("store", services=("store",)),
        ]
    )
    assert [domain.name for domain in config.start_order()] == ["store", "driver", "disks", "guest"]


def test_a_guest_may_keep_the_store_that_services_need(tmp_path: Path) -> None:
    config = load(write(tmp_path, '[domain.a]\ncapabilities = ["store"]\n[domain.b]\nservice = "net"\n'))
    assert [domain.name for domain in config.start_order()] == ["a", "b"]


def test_services_wait_for_the_guest_that_keeps_the_store() -> None:
    """Where no service does; what it is named for comes after it like all else."""
    domains = [
        DomainConfig("disks", services=("block",)),
        DomainConfig("guest"),
        DomainConfig("dom0", capabilities=Capability.ALL),
    ]
    config = MachineConfig(domains=domains)
    assert [domain.name for domain in config.start_order()] == ["dom0", "disks", "guest"]
    config.domains[2] = DomainConfig("dom0", capabilities=Capability.ALL, depends=("disks",))
    assert [domain.name for domain in config.start_order()] == ["disks", "guest", "dom0"], "it cannot be waited for"
    config.domains.append(DomainConfig("store", services=("store",)))
    assert [domain.name for domain in config.start_order()] == ["store", "disks", "guest", "dom0"]


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12),
    st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_every_order_starts_each_domain_once_and_after_its_needs(
    edges: list[tuple[int, int]], native: list[bool]
) -> None:
    config = MachineConfig()
    for number in range(8):
        depends = tuple(f"d{low}" for low, high in edges if high == number and low < high)
        services = (("store",) if number == 3 else ("net",)) if native[number] else ()
        config.domains.append(DomainConfig(f"d{number}", depends=depends, services=services))
    order = config.start_order()
    assert sorted(domain.name for domain in order) == [domain.name for domain in config.domains]
    started: set[str] = set()
    for domain in order:
        assert started >= set(domain.depends)
        started.add(domain.name)


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("classic", ["control"]),
        ("split", ["store", "builder", "console", "hardware", "block", "net", "9p"]),
        ("dom0", ["dom0"]),
    ],
)
def test_presets(tmp_path: Path, preset: str, names: list[str]) -> None:
    config = load(write(tmp_path, f'[machine]\npreset = "{preset}"\n[domain.guest]\n'))
    assert [domain.name for domain in config.domains] == [*names, "guest"]
    assert config.start_order()[-1].name == "guest"
    if preset != "dom0":
        assert {service for domain in config.domains for service in domain.services} == set(SERVICES)


def test_split_gives_no_capability_twice_and_no_control() -> None:
    held = [domain.capabilities for domain in presets.preset("split")]
    assert sum(bool(capability) for capability in held) == 4
    assert not any(Capability.CONTROL in capability for capability in held)


# -- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = {
    "unknown table": (3, "unknown key 'domian'", "[domain.a]\n\n[domian.b]\n"),
    "unknown key at the top": (1, "unknown key 'memory'", 'memory = 5\n[domain.a]\nmemory = "9MiB"\n'),
    "unknown key of the machine": (2, "unknown key 'clok'", '[machine]\nclok = "host"\n[domain.a]\n'),
    "unknown key of a domain": (4, "unknown key 'memry'", '[domain.a]\nmemory = 5\n[domain.b]\nmemry = "5MiB"\n'),
    "unknown table of a domain": (2, "unknown key 'disc'", "[domain.a]\n[domain.a.disc.one]\n"),
    "disks in a table": (2, "'disk' must be a list", "[domain.a]\n[domain.a.disk.one]\n"),
    "a wrong disk": (2, "'disk': the disk has no virtual device", '[domain.a]\ndisk = ["a.img"]\n'),
    "a wrong second disk": (
        5,
        "'disk': the disk xvdb has no target",
        '[domain.a]\n[[domain.a.disk]]\ntarget = "a"\nvdev = "xvda"\n[[domain.a.disk]]\nvdev = "xvdb"\n',
    ),
    "two disks of one number": (2, "'disk': two have the virtual", '[domain.a]\ndisk = ["a,,xvda", "b,,51712"]\n'),
    "a wrong vif": (2, "'vif': a vif has no 'mack'", '[domain.a]\nvif = ["mack=1"]\n'),
    "maxmem below": (3, "'maxmem' is less", "[domain.a]\nmemory = 64\nmaxmem = 32\n"),
    "maxmem below the default": (2, "'maxmem' is less", "[domain.a]\nmaxmem = 32\n"),
    "maxvcpus below": (2, "'maxvcpus' is less", "[domain.a]\nmaxvcpus = 1\nvcpus = 2\n"),
    "no such service": (2, "'service': there is no service 'disk'", '[domain.a]\nservice = "disk"\n'),
    "services of a wrong type": (2, "'service' must be a text", "[domain.a]\nservice = 1\n"),
    "a service twice in one": (2, "'service': a service is named twice", "[domain.a]\nservice = ['net', 'net']\n"),
    "a kernel for a service": (3, "'kernel' is for guests", "[domain.a]\nservice = 'net'\nkernel = 'k'\n"),
    "two stores": (4, "a serves 'store' already", "[domain.a]\nservice='store'\n[domain.b]\nservice='store'\n"),
    "a service without a store": (2, "services need a store", "[domain.a]\nservice = 'net'\n"),
    "depends on nothing": (2, "'depends': there is no domain 'b'", "[domain.a]\ndepends = ['b']\n"),
    "controls nothing": (
        2,
        "'capabilities': there is no domain 'b'",
        "[domain.a]\ncapabilities = {control = ['b']}\n",
    ),
    "a backend that there is not": (
        2,
        "'vif': there is no domain 'b'",
        "[domain.a]\nvif = ['backend=b']\n",
    ),
    "waits for itself": (2, "these domains wait for each other: a", "[domain.a]\ndepends = ['a']\n"),
    "a circle": (
        2,
        "these domains wait for each other: a, b",
        "[domain.a]\ndepends = ['b']\n[domain.b]\ndepends = ['a']\n[domain.c]\ndepends = ['a']\n",
    ),
    "a name of digits": (1, "the name '7' would be taken for a domid", "[domain.7]\n"),
    "a name of a path": (1, "'a/b' cannot be a name", '[domain."a/b"]\n'),
    "a preset that there is not": (2, "'preset' must be \"classic\" or", "[machine]\npreset = 'all'\n"),
    "a name of the preset": (3, "the preset dom0 has a domain 'dom0'", "[machine]\npreset='dom0'\n[domain.dom0]\n"),
    "too little for all": (2, "'memory': the domains together have 256 MiB", "[machine]\nmemory = 128\n[domain.a]\n"),
    "a limit of the store": (2, "'capabilities': the capability 'store'", "[domain.a]\ncapabilities={store=['b']}\n"),
    "a port that there is not": (
        2,
        "'capabilities': '0x10000' is no range",
        "[domain.a]\ncapabilities = {hardware = {ports = ['0x10000']}}\n",
    ),
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
