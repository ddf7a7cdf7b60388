"""The back end of PV disks (public/io/blkif.h)."""
