"""Compares what `xl create` asks of Xenolith with what it asks of real Xen, and what the two answer.

`python -m tools.compare_xl_create docs/xl-create-hypercalls.md` has Debian's control domain with Debian's tools make a
guest on both (real Xen in QEMU, from Debian's packages), and writes every call of `xl`'s side by side. It ends with 1
if a difference has no known reason.
"""

from __future__ import annotations

import base64
import difflib
import gzip
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import console, peer
from tools import both_sides, privcmd_trace, xentrace
from tools.dom0_log_reasons import Reason
from tools.privcmd_trace import Call
from xenolith.loader import kernels, registry
from xenolith.loader.initramfs import ExtraFile, Initramfs, standard_modules
from xenolith.loader.modules import ModuleTree

_SECONDS: Final = 600
_KERNEL: Final = "debian"
_GUEST_MIB: Final = 128
_CALLS: Final = "=CALLS"
_TRACE: Final = "=TRACE"
_END: Final = "=END"
_CONFIGURATION: Final = f"""\
name = "guest"
kernel = "/root/vmlinuz"
memory = {_GUEST_MIB}
"""
_SCRIPT: Final = f"""\
{privcmd_trace.PROBE}
xentrace -D -x -e 0x20f000 -S 256 /tmp/xentrace 2> /dev/null &
tracer=$!
sleep 2
echo 1 > /sys/kernel/tracing/events/kprobes/enable
xl create -q -e -p /root/guest.cfg
echo 0 > /sys/kernel/tracing/events/kprobes/enable
kill -INT $tracer
wait $tracer
echo {_CALLS}
cat /sys/kernel/tracing/trace
echo {_TRACE}
gzip -9 -c /tmp/xentrace | base64
echo {_END}
"""
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]{4,}={0,2}")

_REASONS: Final = (Reason("^XENVER_build_id", "Real Xen tells by it which binary it is; Xenolith is none."),)
_BY_TIME: Final = {
    "iret": "returns from interrupts, faults and signals",
    "stack_switch": "a switch between two threads",
    "set_segment_base": "a switch between two threads",
    "fpu_taskswitch": "a switch between two threads",
    "sched_op SCHEDOP_block": "waiting",
    "sched_op SCHEDOP_yield": "waiting",
    "vcpu_op VCPUOP_set_singleshot_timer": "a timer is set",
    "xen_version": "Linux asks for pending events that way",
    "multicall": "a batch for a switch between two threads",
    "mmu_update": "page tables of programs that come and go, and of what else Linux does meanwhile",
    "mmuext_op": "page tables of programs that come and go, and flushes",
    "update_va_mapping": "page tables of programs that come and go",
    "console_io": "the console",
    "event_channel_op": "events that are sent",
    "physdev_op": "interrupts that are acknowledged",
}
"""Hypercalls of the kernel's own, which are made as often as time has it."""


@dataclass(frozen=True)
class Recording:
    """What was recorded of one machine: the calls of `xl` and the hypercalls of the whole control domain."""

    calls: tuple[Call, ...]
    hypercalls: tuple[xentrace.Hypercall, ...]

    @classmethod
    def parse(cls, output: str) -> Recording:
        """What the script printed. ValueError if it is not all there."""
        lines = [line.strip() for line in output.splitlines()]
        at = [next((n for n, line in enumerate(lines) if line.endswith(mark)), -1) for mark in (_CALLS, _TRACE, _END)]
        if -1 in at:
            raise ValueError("the control domain did not print all of its recording")
        text = "".join(line for line in lines[at[1] + 1 : at[2]] if _BASE64.fullmatch(line))
        calls = privcmd_trace.parse("\n".join(lines[at[0] + 1 : at[1]]), "xl")
        return cls(tuple(calls), tuple(xentrace.hypercalls(gzip.decompress(base64.b64decode(text)))))


@dataclass(frozen=True)
class Row:
    """A call that both sides have, or only one of them."""

    theirs: Call | None
    ours: Call | None

    @property
    def call(self) -> Call:
        found = self.theirs or self.ours
        assert found is not None
        return found

    @property
    def is_same(self) -> bool:
        """Whether both sides have the call and its result."""
        return self.theirs == self.ours

    @property
    def reason(self) -> str:
        """Why there is a difference, or an empty text if nobody knows."""
        return next((reason.text for reason in _REASONS if re.search(reason.pattern, self.call.name)), "")


def align(theirs: Sequence[Call], ours: Sequence[Call]) -> list[Row]:
    """The calls of both sides in their order, those with the same arguments beside each other."""
    matcher = difflib.SequenceMatcher(None, [call.key for call in theirs], [call.key for call in ours], autojunk=False)
    return list(_rows(matcher, theirs, ours))


def _rows(
    matcher: difflib.SequenceMatcher[tuple[str, str]], theirs: Sequence[Call], ours: Sequence[Call]
) -> Iterator[Row]:
    for tag, their_start, their_end, our_start, our_end in matcher.get_opcodes():
        if tag == "equal":
            yield from map(Row, theirs[their_start:their_end], ours[our_start:our_end])
        else:
            yield from (Row(call, None) for call in theirs[their_start:their_end])
            yield from (Row(None, call) for call in ours[our_start:our_end])


@dataclass(frozen=True)
class Total:
    """How often the control domain made a hypercall on each side."""

    name: str
    theirs: int
    ours: int

    @property
    def reason(self) -> str:
        """Why the numbers may differ, or an empty text if they should not."""
        return _BY_TIME.get(self.name, "")


def totals(theirs: Sequence[xentrace.Hypercall], ours: Sequence[xentrace.Hypercall]) -> list[Total]:
    """By name; calls in multicalls count, as do the multicalls."""
    left, right = Counter(call.name for call in theirs), Counter(call.name for call in ours)
    return [Total(name, left[name], right[name]) for name in sorted(left.keys() | right.keys())]


def unexplained(theirs: Recording, ours: Recording) -> list[str]:
    """Differences without a reason, in words."""
    rows = [row for row in align(theirs.calls, ours.calls) if not row.is_same and not row.reason]
    counts = [total for total in totals(theirs.hypercalls, ours.hypercalls) if total.theirs != total.ours]
    return [
        *(f"{row.call.name} {row.call.arguments}: {_outcome(row.theirs)}, {_outcome(row.ours)}" for row in rows),
        *(f"{total.name}: {total.theirs} and {total.ours} times" for total in counts if not total.reason),
    ]


# -- the two machines --------------------------------------------------------------------------------------------------


def record_both(directory: Path) -> tuple[str, str]:
    """What the script prints under real Xen and under Xenolith, with one kernel and one ramdisk."""
    ramdisk = directory / "ramdisk"
    ramdisk.write_bytes(_ramdisk(directory))
    theirs = _run(peer.xen_command(ramdisk, "quiet"))
    machine = ["--machine-memory", f"{2 * peer.MEMORY_MIB}MiB", "--name", f"compare-{directory.name}"]
    return theirs, _run(peer.xenolith_linux("boot", ramdisk, "quiet", *machine))


def _ramdisk(directory: Path) -> bytes:
    kernel = kernels.find(_KERNEL, lambda *told: None)
    assert kernel.modules is not None
    modules = ModuleTree(kernel.modules)
    configuration = directory / "guest.cfg"
    configuration.write_text(_CONFIGURATION)
    busybox = registry.busybox()
    assert busybox is not None
    return Initramfs(
        busybox=busybox,
        command=_SCRIPT,
        modules=standard_modules(modules, tools=True),
        module_tree=modules,
        tools=registry.debian_dom0(),
        files=(ExtraFile(kernel.path, "/root/vmlinuz"), ExtraFile(configuration, "/root/guest.cfg")),
    ).build()


def _run(command: Sequence[str]) -> str:
    session = console.run(command, timeout=_SECONDS)
    session.find(_END)
    return "\n".join(line.text for line in session.lines)


# -- the page ----------------------------------------------------------------------------------------------------------

_HEAD: Final = """\
# `xl create` under Xenolith and under real Xen

Generated by `python -m tools.compare_xl_create docs/xl-create-hypercalls.md`: the same control domain (Debian's Linux
and its xl 4.17, the same kernel and ramdisk, {memory} MiB, one vCPU) makes the same guest (`xl create -p`, Debian's
Linux, {guest} MiB), once on Debian's Xen 4.17 in QEMU (Q35, software emulation), once on `xenolith boot`.

## What `xl` asks, and what it is answered

Recorded by a probe in the control domain's kernel, at its privcmd device, through which `xl` makes hypercalls and maps
memory of guests. Real Xen was asked {theirs} things and Xenolith {ours}, in this order; **{same} of them are the same
with the same results**. Arguments that are addresses are left out; what operations write back is not compared.

"""
_TOTALS: Final = """
## What all programs and the kernel ask meanwhile

Recorded by `xentrace` in the control domain, a few seconds around `xl create`; calls in multicalls are counted too.
Most of these are the kernel's own, and made as often as time has it, which passes otherwise on each side.

"""


def document(theirs: Recording, ours: Recording) -> str:
    """The page, in Markdown."""
    rows = align(theirs.calls, ours.calls)
    head = _HEAD.format(
        memory=peer.MEMORY_MIB,
        guest=_GUEST_MIB,
        theirs=len(theirs.calls),
        ours=len(ours.calls),
        same=sum(row.is_same for row in rows),
    )
    calls = [
        (str(n), f"`{row.call.name}`", row.call.arguments, _outcome(row.theirs), _outcome(row.ours), _why(row))
        for n, row in enumerate(rows, 1)
    ]
    counts = [
        (f"`{total.name}`", str(total.theirs), str(total.ours), total.reason or _exact(total))
        for total in totals(theirs.hypercalls, ours.hypercalls)
    ]
    return (
        head
        + both_sides.table(("", "Call", "Arguments", "Real Xen", "Xenolith", "Reason"), calls)
        + _TOTALS
        + both_sides.table(("Hypercall", "Real Xen", "Xenolith", ""), counts)
    )


def _outcome(call: Call | None) -> str:
    return "" if call is None else call.outcome


def _why(row: Row) -> str:
    return "" if row.is_same else row.reason or "**not explained**"


def _exact(total: Total) -> str:
    return "" if total.theirs == total.ours else "**not explained**"


def _compare(their_output: str, our_output: str) -> tuple[str, list[str]]:
    theirs, ours = Recording.parse(their_output), Recording.parse(our_output)
    return document(theirs, ours), unexplained(theirs, ours)


def main(arguments: list[str] | None = None) -> int:
    return both_sides.main(__doc__ or "", record_both, _compare, arguments)


if __name__ == "__main__":
    sys.exit(main())
