"""tools.compare_xl_create and what it reads: probes' lines, traces of xentrace, and the alignment of two recordings."""

from __future__ import annotations

import base64
import gzip
import struct
from pathlib import Path

import pytest

from tools import compare_xl_create, privcmd_trace, xentrace
from tools.compare_xl_create import Recording, align, totals, unexplained
from tools.privcmd_trace import Call
from xenolith.abi.trace import TRC_LOST_RECORDS, TRC_PV_HYPERCALL_SUBCALL, TRC_PV_HYPERCALL_V2, TRC_SCHED_SWITCH
from xenolith.hypervisor.trace_ring import pack

DOCS = Path(__file__).parents[2] / "docs"
XEN_VERSION, DOMCTL, SYSCTL, MEMORY_OP, MULTICALL, MMUEXT = 17, 36, 35, 12, 13, 26
MAX_MEM, GETDOMAININFO, CREATEDOMAIN = 11, 5, 1
BATCH = 0x205004


def line(kind: str, program: str = "xl", pid: int = 139, **values: int) -> str:
    """As the kernel prints it; words that are not named are 0."""
    if kind == "call":
        names = [
            f"{name}{n}"
            for name, count in (("call", 6), ("first", 10), ("second", 4), ("nested", 4))
            for n in range(count)
        ]
        given = {"request": 0x305000, **dict.fromkeys(names, 0), **values}
        text = " ".join(f"{name}={value:#x}" for name, value in given.items())
        where = "(privcmd_ioctl+0x0/0xbe0 [xen_privcmd])"
    else:
        text, where = f"value={values['value']}", "(__x64_sys_ioctl+0x8d/0xd0 <- privcmd_ioctl)"
    return f"{program:>16}-{pid}     [000] .N...    20.217078: {kind}: {where} {text}"


def made(result: int, **values: int) -> Call:
    """The only call in a trace."""
    (call,) = privcmd_trace.parse(f"{line('call', **values)}\n{line('result', value=result)}", "xl")
    return call


@pytest.mark.parametrize(
    ("values", "name", "arguments"),
    [
        ({"call0": XEN_VERSION, "call1": 10}, "XENVER_build_id", ""),
        (
            {"call0": DOMCTL, "first0": 0x15 << 32 | MAX_MEM, "first1": 7, "first2": 0x20400},
            "XEN_DOMCTL_max_mem",
            "domain 7, max_memkb 0x20400",
        ),
        ({"call0": DOMCTL, "first0": GETDOMAININFO, "first1": 3, "first2": 99}, "XEN_DOMCTL_getdomaininfo", "domain 3"),
        (
            {"call0": SYSCTL, "first0": 0x15 << 32 | 6, "first1": 1 << 32 | 2},
            "XEN_SYSCTL_getdomaininfolist",
            "first_domain 0x2, max_domains 0x1",
        ),
        (
            {"call0": MULTICALL, "first0": MEMORY_OP, "first2": 6, "nested1": 64, "nested2": 9, "nested3": 1},
            "XENMEM_populate_physmap",
            "nr_extents 0x40, extent_order 0x9, domid 0x1",
        ),
        ({"call0": MMUEXT, "call4": 2, "first0": 3}, "MMUEXT_PIN_L4_TABLE", "domain 2"),
        ({"request": BATCH, "call0": 1 << 32 | 41}, "IOCTL_PRIVCMD_MMAPBATCH_V2", "41 frames of domain 1"),
        (
            {"request": 0x205007, "call0": 1 << 32 | 5, "call2": 2},
            "IOCTL_PRIVCMD_MMAP_RESOURCE",
            "domain 5, type 1, id 0, 2 frames",
        ),
        ({"request": 0x1234}, "ioctl 0x1234", ""),
        ({"call0": SYSCTL, "first0": 999}, "sysctl 999", ""),
    ],
)  # fmt: skip
def test_a_call_is_told_in_the_words_of_the_interface(values: dict[str, int], name: str, arguments: str) -> None:
    assert made(0, **values) == Call(name, arguments, 0)


def test_a_domain_that_is_made_has_no_number_yet() -> None:
    call = made(0, call0=DOMCTL, first0=CREATEDOMAIN, first1=0xFFFF)
    assert call.arguments.startswith("flags 0x0, ")


def test_results_are_told_by_their_names() -> None:
    assert made(-61, call0=XEN_VERSION, call1=10).outcome == "-ENODATA"
    assert made(4096, call0=XEN_VERSION, call1=7).outcome == "4096"


def test_only_one_program_is_looked_at_and_its_processes_are_kept_apart() -> None:
    trace = "\n".join(
        [
            "# tracer: nop",
            line("call", call0=XEN_VERSION, call1=0),
            line("call", pid=140, call0=XEN_VERSION, call1=7),
            line("call", program="xenstored", pid=1, call0=XEN_VERSION, call1=1),
            line("result", pid=140, value=4096),
            line("result", program="xenstored", pid=1, value=0),
            line("result", value=262161),
            line("result", value=5),
        ]
    )
    assert [(call.name, call.result) for call in privcmd_trace.parse(trace, "xl")] == [
        ("XENVER_pagesize", 4096),
        ("XENVER_version", 262161),
    ]


# -- traces of xentrace ------------------------------------------------------------------------------------------------


def recorded(*numbers: int) -> bytes:
    return b"".join(pack(TRC_PV_HYPERCALL_V2, (number,), 7) for number in numbers)


def test_hypercalls_are_found_among_other_records() -> None:
    sched_op = 29 | 1 << 20
    trace = (
        struct.pack("<III", 0x2001F003, 0, 100)
        + pack(TRC_SCHED_SWITCH, (0, 0, 1, 0), 1)
        + recorded(DOMCTL)
        + pack(TRC_PV_HYPERCALL_SUBCALL, (MEMORY_OP,), 2)
        + pack(TRC_PV_HYPERCALL_V2, (sched_op, 1), 3)
    )
    found = [(call.name, call.in_multicall) for call in xentrace.hypercalls(trace)]
    assert found == [("domctl", False), ("memory_op", True), ("sched_op SCHEDOP_block", False)]


def test_a_trace_that_is_not_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="ends within a record"):
        xentrace.hypercalls(recorded(DOMCTL)[:-1])
    with pytest.raises(ValueError, match="5 records were lost"):
        xentrace.hypercalls(pack(TRC_LOST_RECORDS, (5, 0, 0, 0), 1))


# -- the comparison ----------------------------------------------------------------------------------------------------

A, B, C = Call("XENVER_version", "", 1), Call("XENVER_pagesize", "", 4096), Call("XEN_DOMCTL_max_mem", "domain 1", 0)
BUILD_ID = Call("XENVER_build_id", "", 20)


def rows(theirs: list[Call], ours: list[Call]) -> list[tuple[Call | None, Call | None]]:
    return [(row.theirs, row.ours) for row in align(theirs, ours)]


def test_calls_are_aligned_by_what_is_asked() -> None:
    other = Call(C.name, C.arguments, -1)
    assert rows([A, B, C], [A, B, C]) == [(A, A), (B, B), (C, C)]
    assert rows([A, B, C], [A, other]) == [(A, A), (B, None), (C, other)]
    assert rows([A, C], [A, B, C]) == [(A, A), (None, B), (C, C)]
    assert rows([C], [Call(C.name, "domain 2", 0)]) == [(C, None), (None, Call(C.name, "domain 2", 0))]
    assert [row.is_same for row in align([A, C], [A, other])] == [True, False]
    many = [Call("XEN_SYSCTL_physinfo", "", 0)] * 300
    assert all(row.is_same for row in align(many, many))


def test_what_is_not_explained_is_told() -> None:
    denied = Call(BUILD_ID.name, "", -61)
    trace = tuple(xentrace.hypercalls(recorded(DOMCTL, 23)))
    more = tuple(xentrace.hypercalls(recorded(DOMCTL, 23, 23)))
    assert unexplained(Recording((A, BUILD_ID), trace), Recording((A, denied), more)) == []
    assert unexplained(Recording((A,), trace), Recording((A, C), trace)) == ["XEN_DOMCTL_max_mem domain 1: , 0"]
    assert unexplained(Recording((), trace), Recording((), trace[1:])) == ["domctl: 1 and 0 times"]
    assert [(total.name, total.theirs, total.ours) for total in totals(trace, more)] == [
        ("domctl", 1, 1),
        ("iret", 1, 2),
    ]


def output(*numbers: int, result: int = 0) -> str:
    """What the control domain's console shows."""
    trace = base64.encodebytes(gzip.compress(recorded(*numbers))).decode()
    calls = [line("call", call0=XEN_VERSION, call1=10), line("result", value=result)]
    return "\n".join(["noise", "=CALLS", *calls, "=TRACE", *trace.splitlines(), "(XEN) a message", "=END", "more"])


def test_the_page_and_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "xen.txt", tmp_path / "xenolith.txt"]
    page = tmp_path / "page.md"
    paths[0].write_text(output(DOMCTL, result=20))
    paths[1].write_text(output(DOMCTL, result=-61))
    assert compare_xl_create.main([str(page), "--recordings", *map(str, paths)]) == 0
    assert "| 1 | `XENVER_build_id` |  | 20 | -ENODATA | Real Xen tells by it" in page.read_text()
    paths[1].write_text(output(DOMCTL, DOMCTL, result=20))
    assert compare_xl_create.main([str(page), "--recordings", *map(str, paths)]) == 1
    assert "| `domctl` | 1 | 2 | **not explained** |" in page.read_text()
    assert "domctl: 1 and 2 times" in capsys.readouterr().err


def test_a_recording_that_was_cut_off() -> None:
    with pytest.raises(ValueError, match="did not print all"):
        Recording.parse(output(DOMCTL).rpartition("=END")[0])


def test_the_committed_comparison_is_clean() -> None:
    assert "**not explained**" not in (DOCS / "xl-create-hypercalls.md").read_text()
