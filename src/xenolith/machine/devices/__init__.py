"""Models of the devices of a PC."""
