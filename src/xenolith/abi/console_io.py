"""console_io: the emergency console (xen.h)."""

from typing import Final

# console_io sub-operations.
CONSOLEIO_write: Final = 0
CONSOLEIO_read: Final = 1
