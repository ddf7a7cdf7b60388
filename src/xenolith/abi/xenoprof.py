"""xenoprof_op: the statistical profiler (xenoprof.h)."""

from typing import Final

# xenoprof_op sub-operations, and the kinds of samples.
XENOPROF_init: Final = 0
XENOPROF_reset_active_list: Final = 1
XENOPROF_reset_passive_list: Final = 2
XENOPROF_set_active: Final = 3
XENOPROF_set_passive: Final = 4
XENOPROF_reserve_counters: Final = 5
XENOPROF_counter: Final = 6
XENOPROF_setup_events: Final = 7
XENOPROF_enable_virq: Final = 8
XENOPROF_start: Final = 9
XENOPROF_stop: Final = 10
XENOPROF_disable_virq: Final = 11
XENOPROF_release_counters: Final = 12
XENOPROF_shutdown: Final = 13
XENOPROF_get_buffer: Final = 14
XENOPROF_set_backtrace: Final = 15
XENOPROF_get_ibs_caps: Final = 16
XENOPROF_ibs_counter: Final = 17
XENOPROF_last_op: Final = 17
XENOPROF_CPU_TYPE_SIZE: Final = 64
XENOPROF_ESCAPE_CODE: Final = 0xFFFFFFFFFFFFFFFF
XENOPROF_TRACE_BEGIN: Final = 1
