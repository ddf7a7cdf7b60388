"""What the mini-languages for devices have in common: comma-separated words or a table, and the names they may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xenolith.errors import UserError

Parameters = dict[str, list[str]]
"""What a mini-language says, by name; more than one value where a name stands more than once."""


def words_to_parameters(spec: str, what: str) -> Parameters:
    """Split "key=value,flag,..."; a flag is worth "yes". Spaces before a word and empty words do not count."""
    parameters: Parameters = {}
    for word in spec.split(","):
        key, equals, given = word.lstrip().partition("=")
        if key or equals:
            parameters.setdefault(key, []).append(given if equals else "yes")
    return checked_parameters(parameters, what)


def table_to_parameters(table: Mapping[str, Any], what: str) -> Parameters:
    """The same from a table of TOML: texts, numbers, truths, and lists of these."""
    parameters: Parameters = {}
    for key, value in table.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool):
                item = "yes" if item else "no"
            if not isinstance(item, str | int):
                raise UserError(f"{key} of {what} cannot be {item!r}", "write a text, a number, or true or false")
            parameters.setdefault(key, []).append(str(item))
    return checked_parameters(parameters, what)


def checked_parameters(parameters: Parameters, what: str) -> Parameters:
    for key, values in parameters.items():
        if any("\0" in value or "\n" in value for value in (key, *values)):
            raise UserError(f"{key!r} of {what} has a character that it cannot have", "write it on one line")
    return parameters


def known_parameters(parameters: Parameters, known: Sequence[str], what: str, repeated: Sequence[str] = ()) -> None:
    """UserError for parameters that there are not, and for those that stand twice but may not."""
    for key, values in parameters.items():
        if key not in known:
            raise UserError(f"{what} has no '{key}'", f"there are {', '.join(known)}")
        if len(values) > 1 and key not in repeated:
            raise UserError(f"'{key}' of {what} is given twice", "say it once")
