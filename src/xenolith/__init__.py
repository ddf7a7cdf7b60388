"""Xenolith: the Xen paravirtual hypervisor in user space."""

__version__ = "0.1.0"
