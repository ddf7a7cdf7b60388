"""The hypervisor core: domains, frames, page tables, events, grants, time, scheduling, policy."""
