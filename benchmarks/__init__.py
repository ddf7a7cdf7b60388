"""Xenolith measured against QEMU and real Xen, from outside and in one run."""
