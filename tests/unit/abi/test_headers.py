"""Every number, size and offset that xenolith.abi declares is the one in Xen's own public headers.

One C program, generated from what the Python modules declare, prints what a compiler makes of the headers.
"""

from __future__ import annotations

import ctypes
import importlib
import keyword
import os
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import xenolith.abi
from xenolith.abi.hypercalls import HYPERCALLS
from xenolith.abi.types import Struct, Union
from xenolith.user_cache import cache_directory

PREAMBLE = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#define __XEN_TOOLS__ 1
#include <xen/xen.h>
#include <xen/errno.h>
#include <xen/features.h>
#include <xen/version.h>
#include <xen/elfnote.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/callback.h>
#include <xen/nmi.h>
#include <xen/memory.h>
#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/physdev.h>
#include <xen/platform.h>
#include <xen/pmu.h>
#include <xen/domctl.h>
#include <xen/sysctl.h>
#include <xen/xsm/flask_op.h>
#include <xen/hypfs.h>
#include <xen/kexec.h>
#include <xen/argo.h>
#include <xen/xenoprof.h>
#include <xen/arch-x86/xen-mca.h>
#include <xen/arch-x86/cpuid.h>
#include <xen/io/ring.h>
#include <xen/io/console.h>
#include <xen/io/xs_wire.h>
#include <xen/io/xenbus.h>
#include <xen/io/blkif.h>
#include <xen/io/netif.h>
#include <xen/trace.h>
#include <xen/io/pciif.h>
#include <xen/io/protocols.h>
#include <string.h>
#include <xen/io/9pfs.h>
#define SHOW(e) printf("%d %llu\\n", (e) < 0, (unsigned long long)((e) < 0 ? -(e) : (e)))
"""


X86_32 = "xenolith.abi.x86_32"

# The line by which the headers of Xen 4.17 are known.
OUR_RELEASE = r"define XEN_DOMCTL_INTERFACE_VERSION 0x00000015\b"

# What Xenolith names although no public header does, or not as a number, each module with its own reason.
NOT_IN_HEADERS = {
    "types": {
        "PAGE_SHIFT": "fixed by the processor",
        "PAGE_SIZE": "fixed by the processor",
        "PAGE_OFFSET_MASK": "fixed by the processor",
    },
    "traps": {"TI_DPL_MASK": "hidden in TI_GET_DPL", "TI_IF": "hidden in TI_GET_IF"},
    "trace": {"TRC_PV_HYPERCALL_V2_ARG_SHIFT": "hidden in TRC_PV_HYPERCALL_V2_ARG_32"},
    "memory": {"MEMOP_EXTENT_SHIFT": "Xen's own header", "MEMOP_CMD_MASK": "Xen's own header"},
}
UNNAMED_PREFIXES = {"traps": ("TRAP_",), "x86_64": ("PAGE_", "PTE_")}

# C expressions for constants whose Python name is not the header's.
SPELLING = {"XEN_COMMANDLINE_LEN": "sizeof(xen_commandline_t)"}


def modules() -> list[str]:
    """Names of the modules of the 64-bit ABI, relative to it."""
    found = pkgutil.walk_packages(xenolith.abi.__path__, "xenolith.abi.")
    return sorted(info.name.removeprefix("xenolith.abi.") for info in found if not info.ispkg and info.name != X86_32)


def constants(module: str) -> dict[str, int]:
    """The numbers that a module declares itself, by name, as far as a public header has them."""
    skipped = NOT_IN_HEADERS.get(module, {})
    prefixes = UNNAMED_PREFIXES.get(module, ())
    namespace = vars(importlib.import_module(f"xenolith.abi.{module}"))
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, int) and not name.startswith("_") and name not in skipped and not name.startswith(prefixes)
    }


def c_constant(module: str, name: str) -> str:
    """The C expression for a constant."""
    if module == "errno":
        return f"XEN_{name}"
    if module == "hypercalls":
        return f"__{name}"
    return SPELLING.get(name, name)


def structures(module: str) -> list[type[Struct | Union]]:
    """The structures that a module declares itself."""
    loaded = importlib.import_module(f"xenolith.abi.{module}")
    return [
        value
        for value in vars(loaded).values()
        if isinstance(value, type)
        and issubclass(value, (Struct, Union))
        and value not in (Struct, Union)
        and value.__module__ == loaded.__name__
    ]


def c_type(structure: type[Struct | Union]) -> str:
    """The C name: declared, or made from the Python one (MmuextOp is struct mmuext_op)."""
    if structure.C_NAME:
        return structure.C_NAME
    kind = "union" if issubclass(structure, Union) else "struct"
    return f"{kind} {re.sub(r'(?<!^)(?=[A-Z])', '_', structure.__name__).lower()}"


def c_field(name: str) -> str:
    """The C name of a field, by the rule that `layout` states."""
    if not name.endswith("_"):
        return name
    return name[:-1] if keyword.iskeyword(name[:-1]) else f"__{name[:-1]}"


def members(structure: type[Struct | Union], path: str = "", base: int = 0) -> Iterator[tuple[str, int, int]]:
    """Each field, those of nameless nested types too: path in C, offset and size in bytes."""
    for name, kind, *bits in structure._fields_:
        if bits:
            continue  # C has no offset of a bit field; the size of the whole shows the difference.
        field = getattr(structure, name)
        where = f"{path}{c_field(name)}"
        yield where, base + field.offset, ctypes.sizeof(kind)
        if isinstance(kind, type) and issubclass(kind, (Struct, Union)) and "." in kind.__qualname__:
            yield from members(kind, f"{where}.", base + field.offset)


def is_open_ended(structure: type[Struct | Union]) -> bool:
    """Whether the structure ends in an array of no fixed length, which C compilers count differently."""
    return ctypes.sizeof(structure._fields_[-1][1]) == 0


def expectations() -> dict[str, int]:
    """Every C expression to evaluate, with the value that the Python declarations give."""
    expected: dict[str, int] = {}
    for module in modules():
        for name, value in constants(module).items():
            expected[c_constant(module, name)] = value
        for structure in structures(module):
            name = c_type(structure)
            if not is_open_ended(structure):
                expected[f"sizeof({name})"] = structure.sizeof()
            for path, offset, size in members(structure):
                expected[f"offsetof({name}, {path})"] = offset
                if size:
                    expected[f"sizeof((({name} *)0)->{path})"] = size
    for call in HYPERCALLS:
        for operation in call.operations:
            expected[f"0 + {operation.name}"] = operation.number
    return expected


def program(expressions: list[str]) -> str:
    """A C program that prints each expression's value, one a line: "1" and the magnitude if it is negative."""
    lines = [PREAMBLE, "int main(void) {"]
    lines += [f"SHOW({expression});" for expression in expressions]
    return "\n".join([*lines, "return 0; }"])


def fetch_headers(cache: Path) -> Path | None:
    """Bring libxen-dev from the distribution's registry into the user's cache; None where that cannot be done."""
    root = cache / "usr/include"
    if (root / "xen/xen.h").exists():
        return root
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    cache.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", "libxen-dev"], cwd=cache, check=True, capture_output=True, timeout=60)
        for package in cache.glob("libxen-dev_*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, cache], check=True, capture_output=True, timeout=60)
            package.unlink()
    except (subprocess.SubprocessError, OSError):
        return None
    return root if (root / "xen/xen.h").exists() else None


def include_directory() -> Path | None:
    """The directory that has xen/xen.h: what the environment names, the system's, or the user's cache."""
    named = os.environ.get("XENOLITH_XEN_HEADERS")
    if named:
        return Path(named).parent if (Path(named) / "xen.h").exists() else Path(named)
    if Path("/usr/include/xen/event_channel.h").exists():
        return Path("/usr/include")
    return fetch_headers(cache_directory() / "headers")


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    """The command that compiles against Xen's headers."""
    cc = shutil.which("cc")
    if cc is None:
        pytest.skip("no C compiler (cc) on this host")
    include = include_directory()
    if include is None:
        pytest.skip("no Xen headers: neither XENOLITH_XEN_HEADERS nor /usr/include/xen, and libxen-dev cannot be had")
    if not re.search(OUR_RELEASE, (include / "xen/domctl.h").read_text()):
        pytest.skip(f"the headers in {include} are of another release of Xen than 4.17")
    return [cc, "-std=gnu11", "-O0", "-w", "-I", str(include)]


def evaluate(compiler: list[str], directory: Path, expressions: list[str]) -> list[int]:
    """What the compiler makes of each expression."""
    source, binary = directory / "abi.c", directory / "abi"
    source.write_text(program(expressions))
    done = subprocess.run([*compiler, str(source), "-o", str(binary)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[:4000]
    lines = subprocess.run([str(binary)], capture_output=True, text=True, timeout=30, check=True).stdout.split("\n")[
        :-1
    ]
    return [-int(magnitude) if negative == "1" else int(magnitude) for negative, magnitude in map(str.split, lines)]


def differences(compiler: list[str], directory: Path, expected: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Where the headers disagree: expression, our value, the headers'."""
    actual = evaluate(compiler, directory, list(expected))
    return {e: (ours, theirs) for (e, ours), theirs in zip(expected.items(), actual, strict=True) if ours != theirs}


def test_declarations_agree_with_the_public_headers(compiler: list[str], tmp_path: Path) -> None:
    expected = expectations()
    wrong = differences(compiler, tmp_path, expected)
    assert not wrong, f"{len(wrong)} of {len(expected)} differ (ours, headers'): {dict(list(wrong.items())[:20])}"


def test_a_wrong_number_is_seen(compiler: list[str], tmp_path: Path) -> None:
    right = {"GNTST_bad_gntref": -3, "XEN_RUNSTATE_UPDATE": 1 << 63, "sizeof(struct vcpu_info)": 64}
    wrong = {"MMUEXT_SET_LDT": 14, "GNTST_eagain": 12, "offsetof(struct mmuext_op, arg2)": 8}
    assert differences(compiler, tmp_path, right | wrong) == {
        "MMUEXT_SET_LDT": (14, 13),
        "GNTST_eagain": (12, -12),
        "offsetof(struct mmuext_op, arg2)": (8, 16),
    }


def test_the_32_bit_declarations_agree_with_the_public_headers(compiler: list[str], tmp_path: Path) -> None:
    numbers = {name: value for name, value in vars(importlib.import_module(X86_32)).items() if isinstance(value, int)}
    lines = [f'_Static_assert({name} == {value}u, "{name}");' for name, value in numbers.items()]
    source = tmp_path / "abi32.c"
    source.write_text("\n".join(["#include <stdint.h>", "#include <xen/xen.h>", *lines]))
    command = [*compiler, "-m32", "-ffreestanding", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert len(lines) > 12
    assert done.returncode == 0, done.stderr[:2000]


def test_no_name_has_two_values() -> None:
    seen: dict[str, tuple[str, int]] = {}
    for module in modules():
        for name, value in constants(module).items():
            other = seen.setdefault(c_constant(module, name), (module, value))
            assert other[1] == value, f"{name} is {value} in {module} and {other[1]} in {other[0]}"


def test_the_whole_interface_is_compared() -> None:
    expected = expectations()
    for expression in (
        "MMUEXT_NEW_USER_BASEPTR",
        "XEN_EAGAIN",
        "__HYPERVISOR_iret",
        "offsetof(struct mmuext_op, arg2.src_mfn)",
        "sizeof(struct xen_domctl)",
        "0 + XEN_DOMCTL_createdomain",
    ):
        assert expression in expected
    assert len(expected) > 4000


def test_what_no_header_has_is_still_declared() -> None:
    for module, names in NOT_IN_HEADERS.items():
        namespace = vars(importlib.import_module(f"xenolith.abi.{module}"))
        assert names.keys() <= namespace.keys()
