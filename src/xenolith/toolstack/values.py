"""What the value of a key may be, whichever kind of file it stands in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from xenolith.errors import UserError
from xenolith.loader.debian_dom0 import DEBIAN_DOM0

_SIZE: Final = re.compile(r"(\d{1,18})\s*(|B|KiB|MiB|GiB|K|M|G|kB|KB|MB|GB)", re.IGNORECASE | re.ASCII)
_UNITS: Final = {
    "": 20,
    "b": 0,
    "kib": 10,
    "k": 10,
    "kb": 10,
    "mib": 20,
    "m": 20,
    "mb": 20,
    "gib": 30,
    "g": 30,
    "gb": 30,
}
_NUMBER: Final = re.compile(r"(0x[0-9a-f]{1,16})|(0[0-7]{0,21})|([1-9][0-9]{0,18})")
_NUMBER_BASES: Final = (16, 8, 10)
_TRUTHS: Final = {
    "yes": True,
    "true": True,
    "on": True,
    "1": True,
    "no": False,
    "false": False,
    "off": False,
    "0": False,
}
_NO_NAME: Final = re.compile(r"[\x00-\x1f\x7f/]")
MIN_MEMORY: Final = 1 << 20
MAX_MEMORY: Final = 1 << 40
MAX_VCPUS: Final = 8
MAX_NAME: Final = 64


class Atom(str):
    """A value of an xl.cfg file, in which texts and numbers are one: `number` reads it as either."""

    __slots__ = ()


# -- simple values ----------------------------------------------------------------------------------------------------


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text in quotes")
    return str(value)


def texts(value: Any) -> tuple[str, ...]:
    """A text, or a list of texts."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise TypeError("a text in quotes or a list of such")
    return tuple(str(item) for item in values)


def number(value: Any) -> int:
    """A whole number; from an xl.cfg file also as a text, decimal, octal (0...) or hexadecimal (0x...)."""
    if isinstance(value, Atom):
        parsed = parse_number(value)
        if parsed is not None:
            return parsed
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a whole number")
    return value


def parse_number(word: str) -> int | None:
    """The number that a word of at most 64 bits is in C's notation, with or without a sign; None if it is none."""
    negative = word.startswith("-")
    match = _NUMBER.fullmatch(word.removeprefix("-").lower())
    if match is None:
        return None
    magnitude = int(match[0], _NUMBER_BASES[(match.lastindex or 1) - 1])
    return -magnitude if negative else magnitude


def between(low: int, high: int, what: str) -> Callable[[Any], int]:
    """A converter for whole numbers from `low` to `high`."""

    def convert(value: Any) -> int:
        given = number(value)
        if not low <= given <= high:
            raise UserError(f"a {what} of {given} is impossible", f"it is a number from {low} to {high}")
        return given

    return convert


def truth(value: Any) -> bool:
    """true or false; in an xl.cfg file a number, of which only 0 is false."""
    if isinstance(value, Atom):
        return number(value) != 0
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def parse_truth(word: str, what: str) -> bool:
    """What "yes", "no" and their like mean in a mini-language."""
    if word.lower() not in _TRUTHS:
        raise UserError(f"{what} cannot be '{word}'", "write yes or no")
    return _TRUTHS[word.lower()]


def parse_size(given: str | int, what: str = "memory") -> int:
    """Bytes of "512MiB", "1G" or a plain number of MiB. UserError for anything else, or what no machine can have."""
    match = _SIZE.fullmatch(str(given).strip())
    if match is None:
        raise UserError(f"'{given}' is no amount of memory ({what})", "write a number with MiB or GiB, as in 512MiB")
    amount = int(match[1]) << _UNITS[match[2].lower()]
    if not MIN_MEMORY <= amount <= MAX_MEMORY:
        raise UserError(f"{given} of memory is impossible ({what})", "a domain has between 1 MiB and 1 TiB")
    return amount & ~0xFFF


def size(value: Any) -> int:
    """Bytes; a number counts MiB."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError('an amount of memory such as "512MiB"')
    counted = parse_number(value) if isinstance(value, Atom) else None
    return parse_size(value if counted is None else counted)


def check_vcpus(count: int) -> int:
    if not 1 <= count <= MAX_VCPUS:
        raise UserError(f"a domain cannot have {count} vCPUs", f"give it between 1 and {MAX_VCPUS}")
    return count


def vcpus(value: Any) -> int:
    return check_vcpus(number(value))


def weight(value: Any) -> int:
    given = number(value)
    if not 1 <= given <= 65535:
        raise UserError(f"a weight of {given} is impossible", "weights are 1 to 65535; 256 is usual")
    return given


def name(value: Any) -> str:
    """The name of a domain or a machine: verbs take names or domids, and files are named after it."""
    return check_name(text(value))


def check_name(given: str) -> str:
    if not given or len(given) > MAX_NAME or given != given.strip() or given[0] in "-." or _NO_NAME.search(given):
        raise UserError(
            f"{given!r} cannot be a name", f"take 1 to {MAX_NAME} letters, digits, dots, dashes or underscores"
        )
    if given.isdecimal():
        raise UserError(f"the name '{given}' would be taken for a domid", "take a name with a letter in it")
    return given


# -- files ------------------------------------------------------------------------------------------------------------


def located(given: str, directory: Path) -> Path:
    """The file that a name means, relative to a directory."""
    try:
        return (directory / Path(given).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError):
        raise UserError(f"{given!r} is no name of a file", "name a file, relative to the one that says so") from None


def existing_file(given: str, directory: Path) -> Path:
    path = located(given, directory)
    if not os.path.exists(path):  # which, unlike Path, takes any name
        raise UserError(f"there is no file {path}", "name a file that exists, relative to the one that says so")
    return path


def ramdisk(given: str, directory: Path) -> Path:
    """A file, or else the name of a file system that was pulled."""
    is_file = os.path.exists(located(given, directory))
    return Path(given) if given == DEBIAN_DOM0.alias and not is_file else existing_file(given, directory)


def kernel(given: str, directory: Path) -> str:
    """A file, or else a name for `xenolith kernels`."""
    if "/" in given or os.path.isfile(located(given, directory)):
        return str(existing_file(given, directory))
    return given
