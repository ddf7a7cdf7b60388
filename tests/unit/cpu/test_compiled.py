"""Native code is used only if it was compiled of the sources that lie beside it, and nobody has switched it off."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from xenolith.cpu import replacements
from xenolith.cpu.compiled import SWITCH, Compiled, checksum
from xenolith.hypervisor import native_exits

pytestmark = pytest.mark.skipif(
    native_exits.COMPILED.missing() is not None, reason=f"no native code: {native_exits.COMPILED.missing()}"
)


@pytest.fixture(params=[native_exits.COMPILED, replacements.COMPILED], ids=["exits", "replaced"])
def compiled(request: pytest.FixtureRequest) -> Compiled:
    assert isinstance(request.param, Compiled)
    assert request.param.missing() is None
    return request.param


def test_it_can_be_switched_off(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert compiled.missing() == "XENOLITH_NATIVE=0 switches it off"


def test_a_change_of_the_sources_is_noticed(compiled: Compiled, tmp_path: Path) -> None:
    changed = tmp_path / "changed.c"
    changed.write_bytes(compiled.sources[0].read_bytes() + b"\n")
    assert checksum((changed,)) != checksum(compiled.sources[:1])
    library = Path(shutil.copy(compiled.library, tmp_path))
    assert Compiled(library, compiled.sources).missing() is None
    other = Compiled(library, (changed, *compiled.sources[1:]))
    assert other.missing() == "it was compiled from other sources: install Xenolith again"


def test_without_a_library(compiled: Compiled, tmp_path: Path) -> None:
    absent = Compiled(tmp_path / "absent.so", compiled.sources)
    assert absent.missing() == "there was no C compiler when Xenolith was installed"
