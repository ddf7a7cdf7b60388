"""Handlers of hypercalls, one module for each family; `table` binds them to their numbers."""

from importlib import import_module
from typing import Final

FAMILIES: Final = (
    "console_io",
    "cpu",
    "cpu_policy",
    "domctl",
    "domctl_devices",
    "domctl_life",
    "domctl_log_dirty",
    "domctl_refused",
    "domctl_rights",
    "domctl_state",
    "domctl_vcpu",
    "event_channel",
    "grant_table",
    "mca",
    "memory",
    "memory_foreign",
    "misc",
    "mmu",
    "nmi",
    "physdev",
    "platform",
    "sched",
    "scheduling",
    "sysctl",
    "sysctl_tbuf",
    "version",
    "vm_assist",
    "xenpmu",
    "xsm",
)


def load_all() -> None:
    """Import every family, so that the table knows all handlers."""
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
