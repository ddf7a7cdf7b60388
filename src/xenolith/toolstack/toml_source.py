"""TOML files of users: read with every mistake told, and each key with its line, which tomllib does not keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from xenolith.errors import UserError
from xenolith.toolstack.settings import Setting

Names = tuple[str, ...]
"""Where a key stands: the names of the tables around it, and its own."""
_HEADER: Final = re.compile(r"\s*\[+([^]#]*)\]")
_ASSIGNMENT: Final = re.compile(r"""\s*((?:[\w\s.-]|"[^"]*"|'[^']*')+?)\s*=""")
_NAME: Final = re.compile(r"""["']([^"']*)["']|([\w-]+)""")


def read_text(path: Path, what: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}", f"name {what}") from None


class TomlSource:
    """A TOML text, its `data`, and the lines of its keys. UserError if it is none."""

    def __init__(self, path: Path, text: str) -> None:
        import tomllib

        self.path = path
        self._lines = text.splitlines()
        self._keys = list(_keys(self._lines))
        try:
            self.data = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # tomllib has its own error for syntax only
            raise UserError(f"{path}: {error}", "correct the TOML syntax there") from None

    def settings(self, names: Names = ()) -> dict[str, Setting]:
        """The settings of a table, which must be one if it is there."""
        table: Any = self.data
        for depth, name in enumerate(names):
            table = table.get(name, {})
            if not isinstance(table, dict):
                dotted = ".".join(names[: depth + 1])
                raise self.error(names[: depth + 1], f"'{dotted}' is not a table", f"write [{dotted}]")
        return {key: self._setting((*names, key), value) for key, value in table.items()}

    def error(self, names: Names, problem: str, hint: str) -> UserError:
        return UserError(f"{self._place(self._line(names))}: {problem}", hint)

    def _setting(self, names: Names, value: Any) -> Setting:
        items: tuple[str, ...] = ()
        if isinstance(value, list):
            headers = [number for number, name, is_header in self._keys if is_header and name == names]
            if len(headers) == len(value):
                items = tuple(self._place(number) for number in headers)
        return Setting(value, self._place(self._line(names)), self.path.parent, items)

    def _place(self, line: int) -> str:
        return f"{self.path}:{line}"

    def _line(self, wanted: Names) -> int:
        inline = 0
        for number, named, is_header in self._keys:
            if named[: len(wanted)] == wanted:
                return number
            line = self._lines[number - 1]
            if not inline and not is_header and re.search(rf"\b{re.escape(wanted[-1])}\b[\"']?\s*=", line):
                inline = number
        return inline or 1


def _names(dotted: str) -> Names:
    return tuple(quoted or plain for quoted, plain in _NAME.findall(dotted))


def _keys(lines: list[str]) -> Iterator[tuple[int, Names, bool]]:
    """Each line that begins a table or sets a key: its number, what it names, and whether it is a header."""
    here: Names = ()
    for number, line in enumerate(lines, 1):
        if header := _HEADER.match(line):
            here = _names(header[1])
            yield number, here, True
        elif assignment := _ASSIGNMENT.match(line):
            yield number, here + _names(assignment[1]), False
