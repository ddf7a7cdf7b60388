"""Disks as users write them: xl's disk mini-language (xl-disk-configuration(5)) and its table form in TOML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from xenolith.errors import UserError
from xenolith.toolstack.parameters import Parameters, checked_parameters, known_parameters, table_to_parameters
from xenolith.toolstack.values import located, parse_number, parse_truth

FORMATS: Final = ("raw", "qcow", "qcow2", "vhd", "qed")
_ACCESS: Final = {"r": True, "ro": True, "w": False, "rw": False}
_BACKEND_TYPES: Final = ("phy", "tap", "qdisk")
PARAMETERS: Final = (
    "target",
    "format",
    "vdev",
    "access",
    "cdrom",
    "devtype",
    "backend",
    "overlay",
    "discard",
    "trusted",
    "direct-io-safe",
    "backendtype",
)
MACHINE_PARAMETERS: Final = ("target", "format", "access", "overlay")
_FLAGS: Final = {
    "cdrom": ("devtype", "cdrom"),
    "discard": ("discard", "yes"),
    "no-discard": ("discard", "no"),
    "trusted": ("trusted", "yes"),
    "untrusted": ("trusted", "no"),
    "direct-io-safe": ("direct-io-safe", "yes"),
    "overlay": ("overlay", "yes"),
}
_POSITIONS: Final = ("target", "format", "vdev", "access")
_PREFIX: Final = re.compile(r"([a-z][a-z0-9]*):(?!//[^/])")
_FORMAT_PREFIXES: Final = ("raw", "qcow", "qcow2", "vhd")
_SCRIPT_PREFIXES: Final = ("iscsi", "nbd", "enbd", "drbd")
_DROPPED_PREFIXES: Final = ("tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy")
_REMOTE: Final = re.compile(r"[a-z][a-z0-9+.-]*://")
_LETTERED: Final = re.compile(r"(xvd|hd|sd)([a-z]{1,4})([1-9][0-9]{0,3})?")
_NUMBERED: Final = re.compile(r"d([0-9]{1,7})(?:p([0-9]{1,3}))?")
_VDEV_HINT: Final = "write xvda, xvdb2, hda, sda1, d0p1, or a number"
_MAX_VBD: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a guest. `target` is a file, a host's device or a URL, and empty for a drive without a medium.

    `overlay` is where writes go instead of the target: nowhere that lasts (True), or a file.
    """

    target: str
    vdev: str
    format: str = "raw"
    readonly: bool = False
    cdrom: bool = False
    discard: bool = True
    overlay: bool | str = False
    backend: str | None = None
    trusted: bool = True

    @property
    def number(self) -> int:
        """The virtual device number in xenstore (xen-vbd-interface(7))."""
        return vbd_number(self.vdev)

    @property
    def is_remote(self) -> bool:
        return _REMOTE.match(self.target) is not None

    def located(self, directory: Path) -> Disk:
        """The same with names of files made absolute."""
        target = self.target if not self.target or self.is_remote else str(located(self.target, directory))
        overlay = str(located(self.overlay, directory)) if isinstance(self.overlay, str) else self.overlay
        return replace(self, target=target, overlay=overlay)

    def __str__(self) -> str:
        """In the mini-language; `parse_disk` reads it back."""
        return ",".join(self._words())

    def _words(self) -> Iterator[str]:
        yield f"format={self.format}"
        yield f"vdev={self.vdev}"
        yield "cdrom" if self.cdrom else f"access={'ro' if self.readonly else 'rw'}"
        if not self.discard:
            yield "no-discard"
        if self.overlay:
            yield "overlay" if self.overlay is True else f"overlay={self.overlay}"
        if self.backend is not None:
            yield f"backend={self.backend}"
        if not self.trusted:
            yield "untrusted"
        # One comma at the end would be taken for a separator, as libxlutil does.
        yield f"target={self.target}" + ("," if self.target.endswith(",") else "")


def vbd_number(vdev: str) -> int:
    """The number of a virtual device by its name, as libxl__device_disk_dev_number makes it; UserError if none."""
    if match := _NUMBERED.fullmatch(vdev):
        return _xvd_number(vdev, int(match[1]), int(match[2] or 0))
    if match := _LETTERED.fullmatch(vdev):
        kind, disk, partition = match[1], _disk_index(match[2]), int(match[3] or 0)
        if kind == "xvd":
            return _xvd_number(vdev, disk, partition)
        if kind == "hd" and disk < 4 and partition < 64:
            return (3 if disk < 2 else 22) << 8 | (disk & 1) << 6 | partition
        if kind == "sd" and disk < 16 and partition < 16:
            return 8 << 8 | disk << 4 | partition
        raise UserError(f"there is no virtual device '{vdev}'", "hda to hdd and sda to sdp exist; take xvda and so on")
    number = parse_number(vdev)
    if number is None or not 0 <= number <= _MAX_VBD:
        raise UserError(f"'{vdev}' is no virtual device", _VDEV_HINT)
    return number


def _xvd_number(vdev: str, disk: int, partition: int) -> int:
    if disk >= 1 << 20 or partition > 255:
        raise UserError(f"there is no virtual device '{vdev}'", "disks go up to 1048575, partitions up to 255")
    if disk < 16 and partition < 16:
        return 202 << 8 | disk << 4 | partition
    return 1 << 28 | disk << 8 | partition


def _disk_index(letters: str) -> int:
    """a is 0, z is 25, aa is 26."""
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1


def parse_disk(spec: str) -> Disk:
    """A disk from xl's mini-language. UserError for what it does not allow."""
    return _disk(checked_parameters(_Words(spec).parameters, "a disk"))


def disk(value: Any) -> Disk:
    """A disk from a text or a table of a configuration."""
    if isinstance(value, Mapping):
        return _disk(table_to_parameters(value, "a disk"))
    if not isinstance(value, str):
        raise TypeError("a text such as 'disk.img,raw,xvda,rw', or a table")
    return parse_disk(value)


def disk_of(parameters: Parameters, what: str) -> Disk:
    """The disk behind a device of the machine, which has no virtual device. UserError for what it cannot be."""
    known_parameters(parameters, MACHINE_PARAMETERS, what)
    if not parameters.get("target", [""])[0]:
        raise UserError(f"{what} has no target", "name an image or a device of the host: target=disk.img")
    return _disk({**parameters, "vdev": ["xvda"]})


class _Words:
    """What the words of a specification say: `parameters` by name."""

    def __init__(self, spec: str) -> None:
        self.parameters: Parameters = {}
        self._spec = spec
        self._has_prefix = False
        rest = spec.lstrip(" \t\n")
        while rest:
            if rest.startswith("target="):
                self._set("target", rest[len("target=") :].removesuffix(","))
                return
            word, _, rest = rest.partition(",")
            self._take(word)
            rest = rest.lstrip(" \t\n")

    def _take(self, word: str) -> None:
        key, equals, value = word.partition("=")
        if equals:
            self._set(key, value)
        elif word in _FLAGS:
            self._set(*_FLAGS[word])
        else:
            self._take_positional(word)

    def _take_positional(self, word: str) -> None:
        position = next((name for name in _POSITIONS if name not in self.parameters), None)
        if position is None:
            raise UserError(f"'{word}' is one word too many in the disk '{self._spec}'", "write key=value")
        if position == "target":
            word = self._strip_prefixes(word)
        elif position == "format" and ":" in word and not self.parameters["target"][0]:
            self._set("format", "empty")  # ",hdc:cdrom,r", which is xend's drive without a medium
            position = "vdev"
        if position == "vdev" and ":" in word:
            word, _, devtype = word.rpartition(":")
            self._set("devtype", devtype)
        self._set(position, word)

    def _strip_prefixes(self, target: str) -> str:
        """Without xend's prefixes, which need no saying any more, or say the format."""
        while match := _PREFIX.match(target):
            prefix, rest = match[1], target[match.end() :]
            if prefix in _SCRIPT_PREFIXES:
                raise _no_script(prefix)
            if prefix in _FORMAT_PREFIXES:
                self._set("format", prefix)
            elif prefix not in _DROPPED_PREFIXES:
                if rest[:1].isalnum():
                    break  # just a colon in a name
                raise UserError(f"there is no prefix '{prefix}:' of disks", "write target= in front of such a name")
            elif prefix == "phy" and not rest.startswith("/"):
                rest = f"/dev/{rest}"
            self.parameters.setdefault("format", [""])
            target = rest
        return target

    def _set(self, name: str, value: str) -> None:
        """Empty is not given, and may be given later; but counts as a position."""
        before = self.parameters.get(name)
        if before is not None and before[0]:
            if before[0] == value and name in ("format", "devtype", "discard", "trusted", "direct-io-safe"):
                return
            raise UserError(f"'{name}' is given twice in the disk '{self._spec}'", "say it once")
        self.parameters[name] = [value]


def _no_script(name: str) -> UserError:
    return UserError(f"scripts for disks ({name}) are not run", "give the device that the script would make, or a URL")


def _disk(parameters: Parameters) -> Disk:
    if "script" in parameters:
        raise _no_script(parameters["script"][0])
    known_parameters(parameters, PARAMETERS, "a disk")
    given = {name: values[0] for name, values in parameters.items() if values[0]}
    vdev = given.get("vdev")
    if vdev is None:
        raise UserError("the disk has no virtual device", "say as what the guest sees it: vdev=xvda")
    vbd_number(vdev)
    cdrom = _is_cdrom(given)
    target = given.get("target", "")
    if not target and not cdrom:
        raise UserError(f"the disk {vdev} has no target", "name an image or a device: target=disk.img")
    _choice(given.get("backendtype", "phy"), _BACKEND_TYPES, "backendtype")
    made = Disk(
        target=target,
        vdev=vdev,
        format=_format(given.get("format", "raw"), target),
        readonly=_readonly(given.get("access", "rw")) or cdrom,
        cdrom=cdrom,
        discard=_truth(given, "discard", True),
        overlay=_overlay(given.get("overlay", "no")),
        backend=given.get("backend"),
        trusted=_truth(given, "trusted", True),
    )
    if made.overlay and made.readonly:
        raise UserError(f"the disk {vdev} is read-only and needs no overlay", "leave overlay out, or write access=rw")
    return made


def _is_cdrom(given: Mapping[str, str]) -> bool:
    devtype = _choice(given.get("devtype", "disk"), ("disk", "cdrom"), "devtype")
    return devtype == "cdrom" or _truth(given, "cdrom", False)


def _format(name: str, target: str) -> str:
    if name == "empty" and not target:
        return "raw"
    return _choice(name, FORMATS, "format")


def _readonly(access: str) -> bool:
    return _ACCESS[_choice(access, tuple(_ACCESS), "access")]


def _truth(given: Mapping[str, str], name: str, default: bool) -> bool:
    return parse_truth(given[name], f"{name} of a disk") if name in given else default


def _overlay(given: str) -> bool | str:
    try:
        return parse_truth(given, "overlay")
    except UserError:
        if "," in given:
            raise UserError(f"the overlay {given!r} has a comma in its name", "take a name without one") from None
        return given


def _choice(value: str, known: tuple[str, ...], what: str) -> str:
    if value not in known:
        raise UserError(f"the {what} of a disk cannot be '{value}'", f"there are {', '.join(known)}")
    return value
