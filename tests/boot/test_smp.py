"""Several vCPUs: all of them take interrupts and compute, and can be taken away and given back."""

from __future__ import annotations

import hashlib
from typing import Final

import pytest

from tests.boot.command_line import run
from tests.boot.conftest import Kernel
from tests.boot.guests import CONTROL, GUEST
from tests.boot.linux import sections
from tests.boot.test_linux import arguments

_WORK: Final = 12
_REAL_TIME: Final = "debian-rt"
"""It is not asked to take vCPUs away: that is nobody's use of it."""
_SCRIPT: Final = r"""
section() { echo "@@ $1"; }
section processors; nproc
section work
for job in @JOBS@; do (seq 1 $((5000 + job)) | sha256sum > /tmp/$job) & done
wait
for job in @JOBS@; do cat /tmp/$job; done
section timers; sed -n 's/.*: *\(.*\) xen-percpu .*virq *timer\([0-9]*\)$/\2 \1/p' /proc/interrupts
section pinned
cpu=0
while [ $cpu -lt $(nproc) ]; do
    taskset $(printf %x $((1 << cpu))) cut -d ' ' -f 39 /proc/self/stat
    cpu=$((cpu + 1))
done
@MORE@
section end
""".replace("@JOBS@", " ".join(str(job) for job in range(_WORK)))
_LESS_AND_MORE: Final = r"""
section fewer; echo 0 > /sys/devices/system/cpu/cpu1/online; nproc
section again; echo 1 > /sys/devices/system/cpu/cpu1/online; nproc; taskset 2 sha256sum /dev/null
"""


def _sums() -> list[str]:
    texts = ["".join(f"{number}\n" for number in range(1, 5001 + job)) for job in range(_WORK)]
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


@pytest.mark.parametrize(
    ("alias", "role", "vcpus"),
    [
        ("debian-cloud", GUEST, 8),
        ("debian", CONTROL, 4),
        ("debian-rt", GUEST, 2),
    ],
)
def test_vcpus(alias: str, role: str, vcpus: int, kernel: Kernel) -> None:
    script = _SCRIPT.replace("@MORE@", "" if alias == _REAL_TIME else _LESS_AND_MORE)
    ended = run(*arguments(kernel(alias), role), "--vcpus", str(vcpus), "--exec", script)
    found = sections(ended)
    assert ended.status == 0, ended.log
    assert found.complaints == [], ended.log
    assert found.lines("processors") == [str(vcpus)]
    assert [line.split()[0] for line in found.lines("work")] == _sums()
    timers = [[int(word) for word in line.split()] for line in found.lines("timers")]
    assert [cpu for cpu, *_ in timers] == list(range(vcpus))
    assert all(counts[cpu] > 20 for cpu, *counts in timers), timers
    assert found.lines("pinned") == [str(cpu) for cpu in range(vcpus)]
    if alias == _REAL_TIME:
        return
    assert found.lines("fewer") == [str(vcpus - 1)]
    assert found.lines("again")[0] == str(vcpus)
    assert found.lines("again")[1].startswith(hashlib.sha256().hexdigest())
