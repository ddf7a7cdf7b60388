"""Which vCPU runs next: fairly by weight, by the processor time that each has had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.vcpu import RUNSTATE_running
from xenolith.hypervisor.vcpu import Vcpu

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

SLICE_NS: Final = 2_000_000
"""How long a vCPU runs while others want to."""
_SLEEPER_BONUS_NS: Final = 1_000_000
"""How far behind the others a vCPU that wakes may at most be."""
_DEFAULT_WEIGHT: Final = 256


class Scheduler:
    """Virtual runtime: a vCPU's processor time, scaled by 256 / weight. The least one runs."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._floor_ns = 0

    def pick(self) -> Vcpu | None:
        """The runnable vCPU that has had the least."""
        best: Vcpu | None = None
        for vcpu in self._hv.all_vcpus():
            if vcpu.runnable and (best is None or vcpu.vruntime_ns < best.vruntime_ns):
                best = vcpu
        if best is not None:
            self._floor_ns = max(self._floor_ns, best.vruntime_ns)
        return best

    def others_wait(self, vcpu: Vcpu) -> bool:
        """Whether anybody else could run now."""
        return any(other.runnable for other in self._hv.all_vcpus() if other is not vcpu)

    def woken(self, vcpu: Vcpu) -> None:
        """A vCPU that waited does not run for all the time that it missed, and goes before one that did not wait."""
        vcpu.vruntime_ns = max(vcpu.vruntime_ns, self._floor_ns - _SLEEPER_BONUS_NS)

    def yielded(self, vcpu: Vcpu) -> None:
        """Everybody else who wants to may go first."""
        waiting = [other.vruntime_ns for other in self._hv.all_vcpus() if other.runnable and other is not vcpu]
        if waiting:
            vcpu.vruntime_ns = max(vcpu.vruntime_ns, max(waiting) + 1)
            self._hv.reschedule = True

    def account(self, vcpu: Vcpu, ran_ns: int) -> None:
        vcpu.vruntime_ns += ran_ns * _DEFAULT_WEIGHT // vcpu.domain.weight

    def enter(self, vcpu: Vcpu) -> None:
        self._hv.timekeeping.set_runstate(vcpu, RUNSTATE_running)
