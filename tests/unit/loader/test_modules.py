from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from tests.unit.loader.module_maker import make_tree, module
from xenolith.errors import UserError


def names(tree, *wanted: str) -> list[str]:
    return [found.name for found in tree.closure(wanted)]


def test_what_a_module_needs_comes_before_it(tmp_path: Path) -> None:
    tree = make_tree(
        tmp_path, {"a.ko": module("b,c-c"), "x/b.ko": module("d"), "x/c_c.ko": module("d"), "d.ko": module()}
    )
    assert names(tree, "a") == ["d", "b", "c_c", "a"]
    assert names(tree, "d", "a") == ["d", "b", "c_c", "a"]
    assert names(tree) == []


def test_dashes_and_underscores_are_the_same(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"drivers/xen-netback.ko": module()})
    (found,) = tree.closure(["xen-netback"])
    assert (found.name, found.path) == ("xen_netback", "kernel/drivers/xen-netback.ko")
    assert "xen-netback" in tree
    assert "xen_netback" in tree
    assert "xen_blkback" not in tree


def test_compressed_modules_are_unpacked(tmp_path: Path) -> None:
    plain = module()
    files = {
        "a.ko.xz": lzma.compress(plain, check=lzma.CHECK_CRC32),
        "b.ko.zst": zstandard.compress(plain),
        "c.ko.gz": gzip.compress(plain),
    }
    tree = make_tree(tmp_path, files)
    assert [(found.path, found.data) for found in tree.closure("abc")] == [(f"kernel/{x}.ko", plain) for x in "abc"]


def test_builtin_modules_are_left_out(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"a.ko": module("core-part")}, "kernel/lib/core-part.ko\n")
    assert names(tree, "a", "core_part") == ["a"]


def test_soft_dependencies_are_taken_if_they_exist(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"a.ko": module(softdep="pre: b gone post: c"), "b.ko": module(), "c.ko": module()})
    assert names(tree, "a") == ["b", "a"]


def test_a_circle_is_broken(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"a.ko": module(softdep="pre: b"), "b.ko": module(softdep="pre: a")})
    assert sorted(names(tree, "a")) == ["a", "b"]


def test_an_unknown_module(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"xen-netback.ko": module()})
    with pytest.raises(UserError, match=r"kernel 6\.6\.6 has no module 'xen_netbak'") as caught:
        tree.closure(["xen-netbak"])
    assert "xen_netback" in caught.value.hint


@pytest.mark.parametrize(("file", "data"), [("a.ko", b"text"), ("a.ko.xz", lzma.compress(module())[:-9])])
def test_a_damaged_module(tmp_path: Path, file: str, data: bytes) -> None:
    with pytest.raises(UserError, match=r"a\.ko.* is damaged"):
        make_tree(tmp_path, {file: data}).closure(["a"])
