"""From what a disk's description says to its image: a file, a device, a format that others know, an overlay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xenolith.errors import UserError
from xenolith.machine.disk import Image
from xenolith.services.disks import nbd
from xenolith.services.disks.file import HostFile
from xenolith.services.disks.filesystems import missing_bytes
from xenolith.services.disks.overlay import adopt_overlay, make_passing_overlay, open_overlay
from xenolith.services.disks.raw import RawImage

_RAW: Final = ("raw", "phy", "file", "aio", "tap")
"""Formats and types of libxl that all mean the bytes as they are (xl-disk-configuration.5)."""
_QEMU: Final = {
    "qcow2": "qcow2",
    "qcow": "qcow",
    "vhd": "vpc",
    "vhdx": "vhdx",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "qed": "qed",
}
"""Formats that qemu-nbd knows, by the names that a user would give them."""
FORMATS: Final = (*_RAW, *_QEMU)
_NBD: Final = ("nbd", "nbd+unix")
_NBDKIT: Final = {"http": "curl", "https": "curl", "ftp": "curl", "ftps": "curl"}


@dataclass(frozen=True, slots=True)
class DiskSource:
    """What a disk is made of. `location` is a path or a URL; `overlay`, if any, takes all that is written: a file, or
    (True) nothing that lasts.

    The format is never guessed from the content: that is the guest's to write.
    """

    location: str
    format: str = "raw"
    readonly: bool = False
    overlay: Path | bool = False

    def open(self, passing: HostFile | None = None) -> tuple[Image, HostFile | None]:
        """May block. Raises UserError if the disk cannot be had, or is shorter than the file system on it.

        For an overlay that does not last, `passing` is its file if there is one already, and comes back with the
        image: who is to go on with the disk needs it.
        """
        image = self._open_base(self.readonly or bool(self.overlay))
        try:
            self._check_length(image)
            if not self.overlay:
                return image, None
            stamp = self._stamp()
            if isinstance(self.overlay, Path):
                overlay, passing = open_overlay(self.overlay, image, stamp), None
            else:
                passing = passing or make_passing_overlay(image, stamp)
                overlay = adopt_overlay(passing, image, stamp, f"of {self.location}")
            overlay.readonly = self.readonly
            return overlay, passing
        except BaseException:
            image.close()
            raise

    def _open_base(self, readonly: bool) -> Image:
        scheme, separator, _ = self.location.partition("://")
        if separator and scheme in _NBD:
            return nbd.connect(self.location, readonly)
        if separator and scheme in _NBDKIT:
            arguments = ["--exit-with-parent", "-f", "-r", "-U", "{socket}", _NBDKIT[scheme], f"url={self.location}"]
            if not readonly:
                raise UserError(f"{self.location} can only be read", "attach the disk read-only, or with an overlay")
            return nbd.serve("nbdkit", arguments, self.location, readonly=True)
        if self.format in _RAW:
            return RawImage(HostFile.open(Path(self.location), readonly))
        if self.format not in _QEMU:
            raise UserError(f"'{self.format}' is no format of disks", f"it is one of {', '.join(FORMATS)}")
        return self._open_with_qemu(readonly)

    def _open_with_qemu(self, readonly: bool) -> Image:
        if not Path(self.location).exists():
            raise UserError(f"the disk {self.location} does not exist")
        arguments = ["--socket", "{socket}", f"--format={_QEMU[self.format]}", "--discard=unmap", "--cache=writeback"]
        arguments += ["--read-only"] if readonly else []
        what = f"the {self.format} disk {self.location}"
        return nbd.serve("qemu-nbd", [*arguments, "--", self.location], what, readonly)

    def _check_length(self, image: Image) -> None:
        try:
            missing = missing_bytes(image)
        except OSError as error:
            raise UserError(f"the disk {self.location} cannot be read: {error.strerror}") from None
        if not image.size:
            raise UserError(f"the disk {self.location} is empty", "it must have 512 bytes at least")
        if missing is not None:
            kind, count = missing
            raise UserError(
                f"the disk {self.location} is {count} bytes shorter than the {kind} file system on it",
                "bring the missing part, or shrink the file system",
            )

    def _stamp(self) -> int:
        """Tells one state of a base from another; what is not a file of the host is trusted to stay."""
        path = Path(self.location)
        return path.stat().st_mtime_ns if path.is_file() else 0
