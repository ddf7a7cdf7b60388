"""Shared directories: the Xen transport of 9P, and a server of 9P2000.L over any file system."""
