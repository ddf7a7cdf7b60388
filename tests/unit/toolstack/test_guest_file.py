"""Guests from xl.cfg files, TOML, options and words: the same guest from each, and every mistake with its place."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.errors import UserError
from xenolith.hypervisor.domain import Capability
from xenolith.toolstack.guest_config import ALL_CPUS, Action, GuestConfig
from xenolith.toolstack.guest_file import load
from xenolith.toolstack.guest_keys import IGNORED_KEYS, KEYS, XL_KEYS
from xenolith.toolstack.nics import Nic
from xenolith.toolstack.settings import Setting, read_keys

ROOT = Path(__file__).parents[3]
MIB = 1 << 20

XL = """\
name = "web"
type = "pv"
kernel = "debian"
root = "/dev/xvda1 ro"
extra = "quiet"
memory = 128
maxmem = "0x100"
vcpus = 2; maxvcpus = 4
cpus = [ "0", "2-3,^2" ]
cpu_weight = 512
cap = 50
uuid = "c0ffee00-0000-4000-8000-000000000001"
disk = [
    "/images/web.img,qcow2,xvda",
    "phy:vg/data,xvdb,r",
]
vif = [ "mac=00:16:3e:00:00:01,bridge=lan" ]
p9 = [ "tag=src,path=src,security_model=none" ]
on_poweroff = "preserve"
on_crash = 'coredump-restart'
localtime = 1
"""
TOML = """\
name = "web"
kernel = "debian"
cmdline = "root=/dev/xvda1 ro quiet"
memory = "128MiB"
maxmem = 256
vcpus = 2
maxvcpus = 4
cpus = ["0", "2-3,^2"]
weight = 512
cap = 50
uuid = "c0ffee00-0000-4000-8000-000000000001"
vif = ["mac=00:16:3e:00:00:01,bridge=lan"]
p9 = [{tag = "src", path = "src"}]
on_poweroff = "preserve"
on_crash = "coredump-restart"
localtime = true
[[disk]]
target = "/images/web.img"
format = "qcow2"
vdev = "xvda"
[[disk]]
target = "/dev/vg/data"
vdev = "xvdb"
access = "r"
"""


def write(directory: Path, text: str, name: str = "guest.cfg") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_both_kinds_of_file_say_the_same(tmp_path: Path) -> None:
    guest = load(write(tmp_path, XL))
    assert guest == load(write(tmp_path, TOML, "guest.toml"))
    assert guest == load(write(tmp_path, TOML, "guest"))
    assert guest == load(write(tmp_path, XL, "guest"))
    assert (guest.name, guest.kernel, guest.cmdline) == ("web", "debian", "root=/dev/xvda1 ro quiet")
    assert (guest.memory, guest.max_memory, guest.vcpus, guest.max_vcpus) == (128 * MIB, 256 * MIB, 2, 4)
    assert (guest.affinity, guest.weight, guest.cap) == ((1, 8), 512, 50)
    assert [disk.target for disk in guest.disks] == ["/images/web.img", "/dev/vg/data"]
    assert guest.shares[0].path == str(tmp_path / "src")
    assert (guest.on_poweroff, guest.on_reboot, guest.on_crash, guest.on_watchdog, guest.on_soft_reset) == (
        Action.PRESERVE,
        Action.RESTART,
        Action.COREDUMP_RESTART,
        Action.DESTROY,
        Action.DESTROY,
    )
    assert guest.localtime


def test_options_win_over_the_file_and_words_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, XL)
    options = {"kernel": "grub", "memory": "64MiB", "disk": ["other.img,,xvda"], "name": "other", "vcpus": None}
    guest = load(path, options, ["memory=100", "extra=", 'vif=["user"]', "capabilities=['console']"])
    assert (guest.kernel, guest.name, guest.memory, guest.vcpus) == ("grub", "other", 100 * MIB, 2)
    assert guest.disks[0].target == str(Path("other.img").resolve())
    assert guest.cmdline == "root=/dev/xvda1 ro"
    assert guest.nics == (Nic(bridge=None, user=True),)
    assert guest.capabilities == Capability.CONSOLE


def test_a_guest_from_options_alone() -> None:
    guest = load(None, {"name": "web", "exec": "true", "vcpus": 2})
    assert guest == GuestConfig("web", command="true", vcpus=2)
    assert (guest.max_memory, guest.max_vcpus) == (guest.memory, 2)
    with pytest.raises(UserError, match="does not say what the guest is called"):
        load(None, {"kernel": "debian"})
    with pytest.raises(UserError, match="--memory: 'memory': 'lots' is no amount"):
        load(None, {"name": "web", "memory": "lots"})
    with pytest.raises(UserError, match="'memory=lots': 'memory': 'lots' is no amount"):
        load(None, {"name": "web"}, ["memory=lots"])


def test_warnings_name_the_key_and_its_line(tmp_path: Path) -> None:
    warnings: list[str] = []
    text = "name='a'\nvfb=['vnc=1']\nfoo=1\nseclabel='x'\nvif=[\n'bridge=a',\n'script=b']\ncmdline='c'\nroot='d'\n"
    path = write(tmp_path, text)
    assert load(path, warn=warnings.append).cmdline == "c"
    assert warnings == [
        f"{path}: without effect here: vfb, seclabel",
        f"{path}:3: there is no key 'foo'; it has no effect",
        f"{path}:8: root and extra have no effect beside cmdline",
        f"{path}:7: 'script' of a vif has no effect here",
    ]


MISTAKES = {
    "no name": (None, "does not say what the guest is called", "memory = 5"),
    "a name of digits": (1, "'name': the name '5' would be taken for a domid", "name = '5'"),
    "hvm": (2, "'type': HVM guests are not", "name='a'\ntype = 'hvm'"),
    "pvh": (2, "'type': PVH guests are not", "name='a'\ntype = 'pvh'"),
    "an old hvm": (2, "'builder': HVM guests are not", "name='a'\nbuilder = 'hvm'"),
    "a type": (2, "'type': there is no type 'vm'", "name='a'\ntype = 'vm'"),
    "bootloader": (2, "'bootloader': bootloaders are not run", "name='a'\nbootloader = 'pygrub'"),
    "firmware": (2, "'firmware': there is no firmware 'ovmf'", "name='a'\nfirmware = 'ovmf'"),
    "a list for a value": (2, "'memory' must be an amount", "name='a'\nmemory = [5]"),
    "a value for a list": (2, "'disk' must be a list", "name='a'\ndisk = 'a,,xvda'"),
    "no number": (2, "'vcpus' must be a whole number", "name='a'\nvcpus = 'two'"),
    "no octal": (2, "'vcpus' must be a whole number", "name='a'\nvcpus = 09"),
    "a long number": (2, "'vcpus' must be a whole number", f"name='a'\nvcpus = {'9' * 5000}"),
    "a line of a list": (4, "'disk': the format of a disk", "name='a'\ndisk=[\n'/a,,xvda',\n'b,zip,xvdb']"),
    "one disk twice": (3, "'disk': two have the virtual device number 51712", "name='a'\ndisk=['/a,,xvda',\n'/b,,d0']"),
    "one mac twice": (2, "'vif': two have the MAC", "name='a'\nvif=['mac=2:0:0:0:0:1','mac=2:0:0:0:0:1']"),
    "one tag twice": (2, "'p9': two have the tag x", "name='a'\np9=['tag=x,path=/a','tag=x,path=/b']"),
    "an action": (2, "'on_crash': there is no action 'cry'", "name='a'\non_crash='cry'"),
    "a soft reset": (2, "'on_crash': there is no action 'soft-reset'", "name='a'\non_crash='soft-reset'"),
    "a uuid": (2, "'uuid': 'x' is no uuid", "name='a'\nuuid='x'"),
    "cpus of a word": (2, "'cpus': 'x' is no range of CPUs", "name='a'\ncpus='x'"),
    "cpus backwards": (2, "'cpus': '3-1' is no range of CPUs", "name='a'\ncpus='3-1'"),
    "no cpus": (2, "'cpus': '^0' has no CPU in it", "name='a'\ncpus='^0'"),
    "not all cpus": (2, "'cpus': '^all' leaves no CPU", "name='a'\ncpus='0,^all'"),
    "another node": (2, "'cpus': 'node:1': the machine has one", "name='a'\ncpus='node:1'"),
    "a cap": (2, "'cap': a cap of 70000 is impossible", "name='a'\ncap=70000"),
    "syntax": (2, "'b' is not expected", "name='a'\nmemory = b"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "problem", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, line: int | None, problem: str, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load(path)
    place = f"{path} " if line is None else f"{path}:{line}: "
    assert caught.value.message.startswith(place + problem)
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_a_machine_is_no_guest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"guest\.cfg:1: this describes a machine"):
        load(write(tmp_path, "[domain.a]\n"))


@pytest.mark.parametrize(
    ("cpus", "mask"),
    [
        ("all", ALL_CPUS),
        ("all,^7", ~(1 << 7)),
        ("0-3,5,^1", 0b101101),
        ("node:0,^nodes:0,4", 1 << 4),
        ("nodes:all", ALL_CPUS),
        ("2", 4),
        ("4095", 1 << 4095),
    ],
)
def test_cpus(cpus: str, mask: int) -> None:
    assert set(load(None, {"name": "a", "cpus": cpus}).affinity) == {mask}


def test_identities() -> None:
    guest = load(None, {"name": "a", "vif": ["", "devid=0", "mac=2:0:0:0:0:1"]})
    first, second = guest.identified(repeatable=True), guest.identified(repeatable=True)
    assert first == second
    assert [nic.devid for nic in first.nics] == [1, 0, 2]
    assert first.nics[2].mac == "02:00:00:00:00:01"
    assert len({nic.mac for nic in first.nics}) == 3
    assert first.uuid != GuestConfig("b").identified(repeatable=True).uuid
    assert guest.identified(repeatable=False).uuid != guest.identified(repeatable=False).uuid
    fixed = uuid.UUID(int=5)
    assert GuestConfig("a", uuid=fixed).identified(repeatable=False).uuid == fixed


def test_no_key_is_declared_twice() -> None:
    assert not set(KEYS) & set(XL_KEYS)
    assert not (set(KEYS) | set(XL_KEYS)) & IGNORED_KEYS


@given(st.text(max_size=80), st.sampled_from(["any.cfg", "any.toml", "any"]))
def test_any_file_is_a_guest_or_the_users_mistake(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_text(text, "utf-8", "replace")
    with pytest.raises(UserError):
        load(path)


SCALARS = st.none() | st.integers() | st.text(max_size=12) | st.booleans() | st.floats()
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@pytest.mark.parametrize("key", KEYS)
@given(value=ANYTHING)
def test_any_value_of_a_key_is_taken_or_is_the_users_mistake(key: str, value: object) -> None:
    with suppress(UserError):
        assert len(read_keys({key: Setting(value, "x:1", Path("/nowhere"))}, KEYS)) == 1


@pytest.mark.parametrize("example", sorted((ROOT / "examples/guests").iterdir()), ids=lambda path: path.name)
def test_examples(example: Path) -> None:
    warnings: list[str] = []
    guest = load(example, warn=warnings.append)
    assert guest.name
    assert not warnings
