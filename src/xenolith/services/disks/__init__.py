"""Where the content of guests' disks is kept on the host: raw files and devices, overlays, and NBD servers' exports."""
