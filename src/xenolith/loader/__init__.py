"""Kernels and domain images: formats, notes, the PV start of day, initramfs, finding kernels."""
