"""Directories of the host that guests may use."""
