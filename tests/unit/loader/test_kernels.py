from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.loader.elf_maker import Load, make_elf, pv_notes
from xenolith.errors import UserError
from xenolith.loader import kernels, registry

PV = make_elf([Load(0, bytes(64))], pv_notes())
PLAIN = make_elf([Load(0, bytes(64))])


def silent(what: str, share: float) -> None:
    """Progress that nobody sees."""


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /boot, an empty /lib/modules, and a registry that cannot be reached."""
    monkeypatch.setattr(kernels, "_BOOT", tmp_path / "boot")
    monkeypatch.setattr(kernels, "_MODULES", tmp_path / "modules")

    def unreachable(alias: str, progress: registry.Progress) -> registry.Pulled:
        raise UserError("the registry is far away")

    monkeypatch.setattr(registry, "pull", unreachable)
    (tmp_path / "boot").mkdir()
    return tmp_path / "boot"


def put(home: Path, alias: str) -> Path:
    """A kernel in the cache."""
    place = home / "xenolith/kernels" / alias
    place.mkdir(parents=True)
    (place / "vmlinuz").write_bytes(PV)
    manifest = {"package": "linux", "version": "6.6", "file": "vmlinuz", "modules": None}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place / "vmlinuz"


def test_the_cache_comes_before_the_host(boot: Path, cache_home: Path) -> None:
    (boot / "vmlinuz-9").write_bytes(PV)
    path = put(cache_home, "debian-rt")
    found = kernels.find(None, silent)
    assert (found.name, found.path, found.origin) == ("debian-rt", path, "cache")
    put(cache_home, "debian")
    assert kernels.find(None, silent).name == "debian"
    assert [kernel.name for kernel in kernels.cached()] == ["debian", "debian-rt"]


def test_what_is_no_linux_is_taken_only_when_named(boot: Path, cache_home: Path) -> None:
    put(cache_home, "grub")
    assert kernels.find("grub", silent).origin == "cache"
    with pytest.raises(UserError, match="no kernel was found"):
        kernels.find(None, silent)


def test_the_newest_host_kernel_that_carries_pv_notes(boot: Path, tmp_path: Path) -> None:
    for version, data in {"6.9.0": PV, "6.10.0": PV, "6.11.0": PLAIN, "7.0": b"text"}.items():
        (boot / f"vmlinuz-{version}").write_bytes(data)
    (tmp_path / "modules/6.10.0").mkdir(parents=True)
    found = kernels.find(None, silent)
    assert (found.name, found.origin, found.modules) == ("6.10.0", "host", tmp_path / "modules/6.10.0")
    assert [kernel.name for kernel in kernels.host()] == ["7.0", "6.11.0", "6.10.0", "6.9.0"]


def test_the_registry_is_last(boot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pull(alias: str, progress: registry.Progress) -> registry.Pulled:
        asked.append(alias)
        return registry.Pulled(alias, "linux", "6.6", tmp_path / "k", None)

    monkeypatch.setattr(registry, "pull", pull)
    assert kernels.find(None, silent).path == tmp_path / "k"
    assert kernels.find("debian-cloud", silent).name == "debian-cloud"
    assert asked == ["debian", "debian-cloud"]


def test_none_to_be_had(boot: Path) -> None:
    with pytest.raises(
        UserError, match=r"no kernel was found .* none can be brought: the registry is far away"
    ) as caught:
        kernels.find(None, silent)
    assert "--kernel" in caught.value.hint


def test_a_file(boot: Path, tmp_path: Path) -> None:
    path = tmp_path / "package/boot/vmlinuz-6.6"
    path.parent.mkdir(parents=True)
    path.write_bytes(PV)
    assert kernels.find(str(path), silent).modules is None
    (tmp_path / "package/lib/modules/6.6").mkdir(parents=True)
    found = kernels.find(str(path), silent)
    assert (found.path, found.origin, found.modules) == (path, "file", tmp_path / "package/lib/modules/6.6")
    assert found.image().verdict.bootable


def test_a_file_beats_an_alias(boot: Path, cache_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache_home, "debian")
    monkeypatch.chdir(tmp_path)
    assert kernels.find("debian", silent).origin == "cache"
    (tmp_path / "debian").write_bytes(PV)
    assert kernels.find("debian", silent).origin == "file"


def test_a_missing_file_is_reported_when_it_is_read(boot: Path) -> None:
    with pytest.raises(UserError, match="there is no kernel /nowhere/vmlinuz"):
        kernels.find("/nowhere/vmlinuz", silent).image()


def test_a_host_version(boot: Path) -> None:
    (boot / "vmlinuz-6.6").write_bytes(PV)
    assert kernels.find("6.6", silent).path == boot / "vmlinuz-6.6"


@pytest.mark.parametrize(("name", "hint"), [("debain", "did you mean 'debian'"), ("zzzz", "xenolith kernels")])
def test_an_unknown_name(boot: Path, name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"no kernel '{name}'") as caught:
        kernels.find(name, silent)
    assert hint in caught.value.hint


def test_a_cached_alias_is_not_pulled_again(boot: Path, cache_home: Path) -> None:
    put(cache_home, "debian-rt")
    assert kernels.find("debian-rt", silent).origin == "cache"
    with pytest.raises(UserError, match="far away"):
        kernels.find("debian-cloud", silent)
