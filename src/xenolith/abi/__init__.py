"""The public Xen ABI as data: numbers, flags and structures. Imports nothing else of Xenolith."""
