"""Which vCPUs run next: fairly by weight, by the processor time that each has had.

Where there are several processors, vCPUs run at the same time only if they are *calm*. Each exit stops the others,
which takes longer than an exit alone; so vCPUs with many exits get on faster when they take turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from xenolith.abi.vcpu import RUNSTATE_running
from xenolith.hypervisor.vcpu import Vcpu

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor

SLICE_NS: Final = 10_000_000
"""How long a vCPU runs while others want to. One that wakes does not wait for its end."""
_LONGEST_ROUND_NS: Final = 5_000_000_000
"""Of turns where the engine forgets code: one guest's is lost to that of the others, and the more there are, the longer
must each turn be to be worth translating it again. Linux complains if it had no turn for 20 s."""
_SLEEPER_BONUS_NS: Final = 1_000_000
"""How far behind the others a vCPU that wakes may at most be."""
_DEFAULT_WEIGHT: Final = 256
_CALM_NS: Final = 500_000
"""A calm vCPU runs so long from one exit to the next, on average over the last while. To stop another one costs 0.1 ms
on the slowest KVM that was measured, so that even there two calm vCPUs gain by running at once."""
_WHILE_NS: Final = 20_000_000
_SHORTEST_WHILE_NS: Final = 2_000_000
PERIOD_NS: Final = 10_000_000
"""How long a domain with a cap may at most have to wait for its next share, as with credit2."""


class Scheduler:
    """Virtual runtime: a vCPU's processor time, scaled by 256 / weight. The least one runs."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._floor_ns = 0
        self.busy_ns: Counter[int] = Counter()
        """How long vCPUs have run on each processor since power-on."""
        self._holder: Vcpu | None = None
        self._left_ns = 0
        self._woken: list[Vcpu] = []
        self._capped: WeakSet[Domain] = WeakSet()
        self._period_end_ns = 0

    def pick(self) -> Vcpu | None:
        """The runnable vCPU that has had the least; but within its slice one goes on, if none that woke goes before."""
        holder = self._holder
        keeps = holder is not None and self._left_ns > 0 and _wants(holder)
        rivals = [holder, *self._woken] if holder is not None and keeps else self._hv.all_vcpus()
        best = min(filter(_wants, rivals), key=lambda vcpu: vcpu.vruntime_ns, default=None)
        self._woken.clear()
        if best is not None:
            self._floor_ns = max(self._floor_ns, best.vruntime_ns)
        if best is not holder or not keeps:
            self._holder, self._left_ns = best, self._slice_ns()
        return best

    def _slice_ns(self) -> int:
        if not self._hv.engine.forgets_code:
            return SLICE_NS
        guests = len({vcpu.domain.domid for vcpu in self._hv.all_vcpus() if _wants(vcpu)}) or 1
        return min(SLICE_NS * guests**2, _LONGEST_ROUND_NS // guests)

    def slice_end(self, running: Sequence[Vcpu]) -> int | None:
        """The system time at which others take their turn, if those that run from now on are not stopped before; None:
        nobody waits."""
        others_wait = any(_wants(other) for other in self._hv.all_vcpus() if other not in running)
        return running[0].runstate.entered_ns + self._left_ns if others_wait else None

    def beside(self, first: Vcpu) -> list[Vcpu]:
        """Who runs at the same time as `first`; all of them get a processor on which they may run."""
        if self._hv.engine.processors == 1:
            return []
        holders: dict[int, Vcpu] = {}
        self._place(first, holders, set())
        chosen = []
        if _is_calm(first):
            others = [vcpu for vcpu in self._hv.all_vcpus() if vcpu is not first and _is_calm(vcpu) and _wants(vcpu)]
            others.sort(key=lambda vcpu: vcpu.vruntime_ns)
            chosen = [vcpu for vcpu in others if self._place(vcpu, holders, set())]
        for number, vcpu in holders.items():
            vcpu.processor = number
        return chosen

    def _place(self, vcpu: Vcpu, holders: dict[int, Vcpu], tried: set[int]) -> bool:
        """Find a processor for one more vCPU, to which others may have to make room on another one."""
        allowed = [number for number in range(self._hv.engine.processors) if vcpu.hard_affinity >> number & 1]
        allowed.sort(
            key=lambda number: (number in holders, not vcpu.soft_affinity >> number & 1, number != vcpu.processor)
        )
        for number in allowed:
            if number not in tried:
                tried.add(number)
                if number not in holders or self._place(holders[number], holders, tried):
                    holders[number] = vcpu
                    return True
        return False

    def woken(self, vcpu: Vcpu) -> None:
        """A vCPU that waited does not run for all the time that it missed, and goes before one that did not wait."""
        vcpu.vruntime_ns = max(vcpu.vruntime_ns, self._floor_ns - _SLEEPER_BONUS_NS)
        self._woken.append(vcpu)

    def yielded(self, vcpu: Vcpu) -> None:
        """Everybody else who wants to may go first."""
        waiting = [other.vruntime_ns for other in self._hv.all_vcpus() if _wants(other) and other is not vcpu]
        if waiting:
            vcpu.vruntime_ns = max(vcpu.vruntime_ns, max(waiting) + 1)
            self._holder = None
            self._hv.reschedule = True

    def account(self, vcpu: Vcpu, ran_ns: int) -> None:
        """A vCPU has run so long."""
        vcpu.vruntime_ns += ran_ns * _DEFAULT_WEIGHT // vcpu.domain.weight
        self._left_ns -= ran_ns if vcpu is self._holder else 0
        vcpu.domain.budget_ns -= ran_ns if vcpu.domain.cap else 0
        self.busy_ns[vcpu.processor] += ran_ns
        exits = vcpu.cpu.exits
        vcpu.recent_ns += ran_ns
        vcpu.recent_exits += exits - vcpu.exits_seen
        vcpu.exits_seen = exits
        while vcpu.recent_ns > _WHILE_NS:
            vcpu.recent_ns //= 2
            vcpu.recent_exits //= 2

    # -- caps ---------------------------------------------------------------------------------------------------------

    def set_cap(self, domain: Domain, percent: int) -> None:
        """Let the domain have so much of the processor in each period; 0 for as much as it can get."""
        domain.cap = percent
        domain.budget_ns = _budget(domain)
        (self._capped.add if percent else self._capped.discard)(domain)
        self._hv.reschedule = True

    def replenish(self) -> None:
        """Give the domains with a cap their time of a new period, less what they took too much in the last."""
        now = self._hv.now_ns()
        if not self._capped or now < self._period_end_ns:
            return
        self._period_end_ns = now + PERIOD_NS
        for domain in self._capped:
            domain.budget_ns = min(domain.budget_ns + _budget(domain), _budget(domain))

    def next_replenishment(self) -> int | None:
        """The system time at which a domain that has used up its time gets new; None if none has."""
        spent = any(domain.budget_ns <= 0 and not domain.is_dying for domain in self._capped)
        return self._period_end_ns if spent else None

    def budget_end(self, running: Sequence[Vcpu]) -> int | None:
        """The system time at which the first domain of vCPUs that run from now on has used up its time; None: never."""
        domains = [vcpu.domain for vcpu in running if vcpu.domain.cap]
        left = min((domain.budget_ns // domains.count(domain) for domain in domains), default=None)
        return None if left is None else self._hv.now_ns() + left

    def enter(self, vcpu: Vcpu) -> None:
        self._hv.timekeeping.set_runstate(vcpu, RUNSTATE_running)


def _wants(vcpu: Vcpu) -> bool:
    """Whether a vCPU can run and its domain has not used up its time."""
    return vcpu.runnable and (not vcpu.domain.cap or vcpu.domain.budget_ns > 0)


def _is_calm(vcpu: Vcpu) -> bool:
    """Whether a vCPU has run for a while with few exits."""
    return vcpu.recent_ns >= max(_SHORTEST_WHILE_NS, vcpu.recent_exits * _CALM_NS)


def _budget(domain: Domain) -> int:
    return PERIOD_NS * domain.cap // 100
