"""A file with all packets of a device, for tcpdump and wireshark."""

from __future__ import annotations

import time
from pathlib import Path

from xenolith.backends.net import pcap
from xenolith.errors import UserError


class Capture:
    """Begins the file anew. `now_ns` is system time. UserError if the file cannot be written."""

    def __init__(self, path: Path, now_ns: int) -> None:
        self._epoch_ns = time.time_ns() - now_ns
        try:
            self._file = path.open("wb", buffering=0)
            self._file.write(pcap.HEADER)
        except OSError as error:
            raise UserError(f"packets cannot be captured in {path}: {error.strerror}") from None
        self._records: list[bytes] = []

    def add(self, data: bytes, now_ns: int) -> None:
        """A packet was seen. It is in the file after `flush`."""
        self._records.append(pcap.record(data, self._epoch_ns + now_ns))

    def flush(self) -> None:
        records, self._records = self._records, []
        try:
            if records:
                self._file.write(b"".join(records))
        except OSError:
            self._records = []  # a full disk of the host is no reason to stop a guest

    def close(self) -> None:
        self.flush()
        self._file.close()
