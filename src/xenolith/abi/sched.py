"""sched_op: give up the processor, wait, shut down (sched.h)."""

from typing import Final

from xenolith.abi.types import I32, U16, U32, U64, Handle, Struct, layout

# sched_op sub-operations.
SCHEDOP_yield: Final = 0
SCHEDOP_block: Final = 1
SCHEDOP_shutdown: Final = 2
SCHEDOP_poll: Final = 3
SCHEDOP_remote_shutdown: Final = 4
SCHEDOP_shutdown_code: Final = 5
SCHEDOP_watchdog: Final = 6
SCHEDOP_pin_override: Final = 7

# Reasons of a shutdown.
SHUTDOWN_poweroff: Final = 0
SHUTDOWN_reboot: Final = 1
SHUTDOWN_suspend: Final = 2
SHUTDOWN_crash: Final = 3
SHUTDOWN_watchdog: Final = 4
SHUTDOWN_soft_reset: Final = 5
SHUTDOWN_MAX: Final = 5


@layout()
class SchedShutdown(Struct):
    """SCHEDOP_shutdown and SCHEDOP_shutdown_code: a SHUTDOWN_* reason."""

    reason: U32


@layout()
class SchedPoll(Struct):
    """Wait for one of `nr_ports` ports at most until system time `timeout` (ns; 0 for ever)."""

    ports: Handle
    nr_ports: U32
    timeout: U64


@layout()
class SchedRemoteShutdown(Struct):
    """Declare another domain shut down for a SHUTDOWN_* reason."""

    domain_id: U16
    reason: U32


@layout()
class SchedWatchdog(Struct):
    """Set (`id` 0), kick or clear (`timeout` 0) a watchdog of `timeout` seconds."""

    id: U32
    timeout: U32


@layout()
class SchedPinOverride(Struct):
    """Pin the calling vcpu to a physical processor for a while, or (negative) end that."""

    pcpu: I32
