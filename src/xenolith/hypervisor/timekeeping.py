"""Time as guests see it: the clock records in shared memory, timers, and how long each vCPU spent in which state.

The time stamp counter that guests read counts nanoseconds of system time, unless the engine has them read a
processor's own. A clock record ties a reading of the counter to system time whenever a vCPU begins to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenolith.abi.errno import XenError
from xenolith.abi.event_channel import VIRQ_TIMER
from xenolith.abi.shared_info import XEN_PVCLOCK_TSC_STABLE_BIT, SharedInfo
from xenolith.abi.vcpu import (
    XEN_RUNSTATE_UPDATE,
    RUNSTATE_blocked,
    RUNSTATE_offline,
    RUNSTATE_runnable,
    RUNSTATE_running,
)
from xenolith.abi.vm_assist import VMASST_TYPE_runstate_update_flag
from xenolith.cpu.registers import MASK64
from xenolith.hypervisor.vcpu import INFO_TIME, Vcpu

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor

NS_PER_S: Final = 1_000_000_000
_READINGS: Final = 10
_CLOSE_US: Final = 5
_NEVER: Final = 1 << 63
_WC_OFFSET: Final[int] = SharedInfo.wc_version.offset  # type: ignore[attr-defined]


class Timekeeping:
    """Clock records, timers and runstates of all vCPUs."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        stable = XEN_PVCLOCK_TSC_STABLE_BIT if hv.engine.tsc_khz is None else 0
        multiplier, shift = tsc_scale(hv.tsc_khz)
        self._scale_word = multiplier | (shift & 0xFF) << 32 | stable << 40

    # -- clock records ------------------------------------------------------------------------------------------------

    def update_vcpu_time(self, vcpu: Vcpu) -> None:
        """Write the vCPU's clock record (struct vcpu_time_info); its version grows by two."""
        now, tsc = self._reading()
        at = (vcpu.info_maddr + INFO_TIME) >> 3
        words = self._hv.ram.words
        vcpu.time_version = (vcpu.time_version + 2) & 0xFFFF_FFFE
        words[at] = vcpu.time_version | 1
        words[at + 1] = tsc
        words[at + 2] = now
        words[at + 3] = self._scale_word
        words[at] = vcpu.time_version
        if vcpu.time_area_vaddr:
            self._copy_vcpu_time(vcpu, at)

    def _reading(self) -> tuple[int, int]:
        """System time and the counter that guests read, of one moment.

        Between two readings the host may let others run for milliseconds, by which a guest's time would jump. So they
        are repeated until they lie close together.
        """
        hv = self._hv
        if hv.engine.tsc_khz is None:
            now = hv.now_ns()
            return now, now
        closest, reading = _NEVER, (0, 0)
        for _ in range(_READINGS):
            before, now, after = hv.tsc(), hv.now_ns(), hv.tsc()
            if after - before < closest:
                closest, reading = after - before, (now, (before + after) // 2)
            if closest < hv.engine.tsc_khz * _CLOSE_US // 1000:
                break
        return reading

    def _copy_vcpu_time(self, vcpu: Vcpu, at: int) -> None:
        """Keep the guest's second record in step; one that is not mapped any more is left alone."""
        words = self._hv.ram.words
        record = [words[at] | 1, words[at + 1], words[at + 2], words[at + 3]]
        try:
            self._hv.memory.write_kernel(vcpu, vcpu.time_area_vaddr, _packed(record))
            self._hv.memory.write_kernel(vcpu, vcpu.time_area_vaddr, _packed([words[at]]))
        except XenError as error:
            self._hv.note_refusal(vcpu, -1, error)

    def update_wall_clock(self, domain: Domain) -> None:
        """Write the wall clock at system time zero (seconds and nanoseconds since 1970) into the shared page.

        A time before 1970 is one modulo 2**64 ns, as Xen reckons it.
        """
        at = (domain.shared_info_mfn << 12) + _WC_OFFSET
        wall_ns = (self._hv.boot_wall_ns() + domain.time_offset_s * NS_PER_S) & MASK64
        seconds, nanoseconds = divmod(wall_ns, NS_PER_S)
        ram = self._hv.ram.bytes.cast("B")[at : at + 16].cast("I")
        version = (ram[0] + 2) & 0xFFFF_FFFE
        ram[0] = version | 1
        ram[1], ram[2], ram[3] = seconds & 0xFFFF_FFFF, nanoseconds, seconds >> 32
        ram[0] = version

    # -- timers -------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> int | None:
        """The earliest system time at which a timer expires of which a vCPU must know then: one that waits for its turn
        to run is told when that comes."""
        running = self._hv.running
        deadlines = [
            deadline
            for vcpu in self._hv.all_vcpus()
            if (deadline := _deadline_of(vcpu)) and (vcpu in running or not vcpu.runnable)
        ]
        return min(deadlines, default=None)

    def expire(self) -> None:
        """Send VIRQ_TIMER for every timer that has expired, and end polls whose time is over."""
        now = self._hv.now_ns()
        for vcpu in self._hv.all_vcpus():
            deadline = _deadline_of(vcpu)
            if deadline and deadline <= now:
                self._fire(vcpu, now)

    def _fire(self, vcpu: Vcpu, now: int) -> None:
        if vcpu.polling and vcpu.poll_deadline_ns and vcpu.poll_deadline_ns <= now:
            self._hv.wake(vcpu)
        timer = False
        if vcpu.singleshot_ns and vcpu.singleshot_ns <= now:
            vcpu.singleshot_ns = 0
            timer = True
        if vcpu.periodic_ns and vcpu.periodic_next_ns <= now:
            missed = (now - vcpu.periodic_next_ns) // vcpu.periodic_ns + 1
            vcpu.periodic_next_ns += missed * vcpu.periodic_ns
            timer = True
        if timer:
            vcpu.domain.events.notify_virq(vcpu, VIRQ_TIMER)

    # -- runstate -----------------------------------------------------------------------------------------------------

    def set_runstate(self, vcpu: Vcpu, state: int) -> None:
        """Account the time since the last change and enter `state` (RUNSTATE_*)."""
        runstate = vcpu.runstate
        if runstate.state == state:
            return
        now = self._hv.now_ns()
        runstate.times_ns[runstate.state] += now - runstate.entered_ns
        runstate.state, runstate.entered_ns = state, now

    def settle(self, vcpu: Vcpu) -> None:
        """Enter the state that a vCPU which does not run is in."""
        if vcpu.runstate.state == RUNSTATE_running or vcpu.runstate.state != _waiting_state(vcpu):
            self.set_runstate(vcpu, _waiting_state(vcpu))

    def runstate_record(self, vcpu: Vcpu) -> list[int]:
        """struct vcpu_runstate_info as six words, the time up to now included."""
        runstate = vcpu.runstate
        times = list(runstate.times_ns)
        times[runstate.state] += self._hv.now_ns() - runstate.entered_ns
        return [runstate.state, runstate.entered_ns, *times]

    def time_in(self, vcpu: Vcpu, state: int) -> int:
        """How long (ns) the vCPU has been in `state` (RUNSTATE_*), up to now."""
        return self.runstate_record(vcpu)[2 + state]

    def publish_runstate(self, vcpu: Vcpu) -> None:
        """Write the record where the guest wants it; an area that is not mapped any more is left alone."""
        area = vcpu.runstate.area_vaddr
        if not area:
            return
        words = self.runstate_record(vcpu)
        flagged = vcpu.domain.vm_assist >> VMASST_TYPE_runstate_update_flag & 1
        try:
            if flagged:
                self._hv.memory.write_kernel(vcpu, area + 8, _packed([words[1] | XEN_RUNSTATE_UPDATE]))
            self._hv.memory.write_kernel(vcpu, area, _packed(words))
        except XenError as error:
            self._hv.note_refusal(vcpu, -1, error)


def _packed(words: list[int]) -> bytes:
    return b"".join(word.to_bytes(8, "little") for word in words)


def _deadline_of(vcpu: Vcpu) -> int:
    """The next time at which this vCPU's timers want something, 0 for never."""
    deadline = vcpu.singleshot_ns
    if vcpu.periodic_ns and (not deadline or vcpu.periodic_next_ns < deadline):
        deadline = vcpu.periodic_next_ns
    if vcpu.polling and vcpu.poll_deadline_ns and (not deadline or vcpu.poll_deadline_ns < deadline):
        deadline = vcpu.poll_deadline_ns
    return deadline


def _waiting_state(vcpu: Vcpu) -> int:
    if vcpu.down or vcpu.domain.is_dying or vcpu.pause_count or vcpu.domain.pause_count:
        return RUNSTATE_offline
    return RUNSTATE_blocked if vcpu.blocked else RUNSTATE_runnable


def tsc_scale(khz: int) -> tuple[int, int]:
    """Multiplier and shift that make nanoseconds of a counter's ticks: (ticks << shift) * multiplier >> 32.

    The multiplier has its highest bit set; a negative shift is to the right (struct vcpu_time_info in public/xen.h).
    """
    nanoseconds_per_tick = (1_000_000 << 64) // khz
    shift = nanoseconds_per_tick.bit_length() - 64
    return nanoseconds_per_tick >> 32 + shift, shift
