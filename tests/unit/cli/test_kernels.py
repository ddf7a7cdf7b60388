from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.unit.loader.elf_maker import Load, make_elf, pv_notes
from xenolith.cli import kernels
from xenolith.loader import kernels as finding

PV = make_elf([Load(0, bytes(64))], pv_notes())
PLAIN = make_elf([Load(0, bytes(64))])


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with one kernel, and a host with two, of which one boots."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(finding, "_BOOT", tmp_path / "boot")
    place = tmp_path / "cache/xenolith/kernels/debian-rt"
    place.mkdir(parents=True)
    (place / "vmlinuz").write_bytes(PV)
    manifest = {"package": "linux", "version": "6.1-1", "file": "vmlinuz", "modules": None}
    (place / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.6").write_bytes(PV)
    (tmp_path / "boot/vmlinuz-6.5").write_bytes(PLAIN)
    (tmp_path / "boot/vmlinuz-6.4").write_bytes(b"#!/bin/sh\n")


def test_the_table_is_plain_in_a_pipe() -> None:
    result = CliRunner().invoke(kernels.command)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].split() == ["NAME", "WHERE", "BOOTS", "WHAT"]
    assert lines[1].split()[:3] == ["debian-rt", "cache", "yes"]
    assert "6.1-1" in lines[1]
    assert lines[2].split()[:3] == ["6.6", "host", "yes"]
    assert lines[3].split()[:3] == ["6.5", "host", "no"]
    assert "carries no Xen notes" in lines[3]
    assert "neither an ELF file nor a bzImage" in lines[4]
    assert ["debian", "registry"] in [line.split()[:2] for line in lines[5:]]
    assert "\x1b" not in result.output
    assert sum("debian-rt" in line for line in lines) == 1


def test_json(tmp_path: Path) -> None:
    entries = json.loads(CliRunner().invoke(kernels.command, ["--json"]).output)
    by_name = {entry["name"]: entry for entry in entries}
    assert by_name["6.6"]["path"] == str(tmp_path / "boot/vmlinuz-6.6")
    assert (by_name["6.6"]["boots"], by_name["6.5"]["boots"], by_name["debian"]["boots"]) == (True, False, None)
    assert by_name["debian"]["origin"] == "registry"
    assert all(set(entry) == set(entries[0]) for entry in entries)
