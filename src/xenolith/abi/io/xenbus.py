"""States through which both ends of a device go (io/xenbus.h)."""

from typing import Final

XenbusStateUnknown: Final = 0
XenbusStateInitialising: Final = 1
XenbusStateInitWait: Final = 2
XenbusStateInitialised: Final = 3
XenbusStateConnected: Final = 4
XenbusStateClosing: Final = 5
XenbusStateClosed: Final = 6
XenbusStateReconfiguring: Final = 7
XenbusStateReconfigured: Final = 8
