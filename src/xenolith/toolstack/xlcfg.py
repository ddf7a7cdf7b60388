"""The grammar of xl's configuration files (libxlutil of Xen 4.17, xl.cfg(5)): text to settings, each with its line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from xenolith.errors import UserError
from xenolith.toolstack.settings import Setting
from xenolith.toolstack.values import Atom

_TOKEN: Final = re.compile(
    r"""(?P<blank>[ \t\r]+|\#[^\n]*)
      | (?P<newline>\n)
      | (?P<word>[a-z][_0-9a-z]*)
      | (?P<number>[0-9][0-9a-fx]*)
      | (?P<text>'(?:[^'\\\n]|\\[^\n])*'|"(?:[^"\\\n]|\\[^\n])*")
      | (?P<mark>\+=|[][=,;])
      | (?P<other>\S+|.)""",
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(.))", re.DOTALL)
_LETTERS: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_PYTHON: Final = frozenset("+-.():")
_WORD: Final = re.compile(r"([a-z][_0-9a-z]*)\s*(\+?=)\s*(.*)", re.DOTALL)
_MAX_DEPTH: Final = 8
_HINT: Final = "write name = value, with texts in quotes"


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    value: str
    line: int


def parse(text: str, source: str, directory: Path) -> dict[str, Setting]:
    """The settings of a file, the last of each name. `source` names it. UserError with the first mistake's line."""
    settings: dict[str, Setting] = {}
    _Parser(text, source, directory, settings).file()
    return settings


def override(settings: dict[str, Setting], words: Iterable[str]) -> None:
    """Add what the "name=value" words of a command line say, as `xl create` does after its file.

    A value may also be a bare text: the shell has taken its quotes.
    """
    for word in words:
        match = _WORD.fullmatch(word)
        if match is None:
            raise UserError(f"'{word}' is no setting", "write name=value, as in memory=512")
        if match[3][:1] in ("'", '"', "["):
            _Parser(word, f"'{word}'", Path(), settings, has_lines=False).file()
        else:
            _store(settings, match[1], match[2], Setting(Atom(match[3]), f"'{word}'", Path()))


def _store(settings: dict[str, Setting], name: str, operator: str, setting: Setting) -> None:
    """`+=` puts a text after the text, or items after the items, that the name already has."""
    before = settings.get(name)
    if operator == "+=" and before is not None:
        if isinstance(before.value, list) != isinstance(setting.value, list):
            raise setting.error(f"'{name}' cannot be added to", "add a list to a list, or a text to a text")
        value = before.value + setting.value if isinstance(setting.value, list) else Atom(before.value + setting.value)
        places = (*before.item_places, *setting.item_places)
        setting = Setting(value, setting.place, setting.directory, places)
    settings[name] = setting


class _Parser:
    """Recursive descent over the tokens; the grammar's names are libxlu_cfg_y.y's."""

    def __init__(
        self, text: str, source: str, directory: Path, settings: dict[str, Setting], has_lines: bool = True
    ) -> None:
        self._source = source
        self._directory = directory
        self._settings = settings
        self._has_lines = has_lines
        self._tokens = self._lex(text)
        self._token = next(self._tokens)

    def file(self) -> None:
        while self._token.kind != "end":
            if self._token.kind != "newline" and self._token.value != ";":
                self._assignment()
                if self._token.kind not in ("newline", "end") and self._token.value != ";":
                    raise self._unexpected("begin a new line, or write ; between two settings")
            if self._token.kind != "end":
                self._advance()

    def _assignment(self) -> None:
        name = self._expect("word", _HINT).value
        line = self._token.line
        operator = self._expect("mark", _HINT, "=", "+=").value
        value, places = self._value(0)
        _store(self._settings, name, operator, Setting(value, self._place(line), self._directory, places))

    def _value(self, depth: int) -> tuple[Any, tuple[str, ...]]:
        if self._token.value == "[" and self._token.kind == "mark":
            return self._list(depth)
        token = self._token
        if token.kind not in ("text", "number"):
            raise self._unexpected("a value is a number, a text in quotes, or a list in [ ]")
        self._advance()
        return Atom(token.value), ()

    def _list(self, depth: int) -> tuple[list[Any], tuple[str, ...]]:
        if depth == _MAX_DEPTH:
            raise self._error(self._token.line, "lists within lists go too deep", f"{_MAX_DEPTH} levels are enough")
        items: list[Any] = []
        places: list[str] = []
        self._advance()
        self._skip_newlines()
        while self._token.value != "]" or self._token.kind != "mark":
            places.append(self._place(self._token.line))
            items.append(self._value(depth + 1)[0])
            self._skip_newlines()
            if self._token.kind != "mark" or self._token.value != "]":
                self._expect("mark", "write , between the items of a list and ] at its end", ",")
                self._skip_newlines()
        self._advance()
        return items, tuple(places)

    def _skip_newlines(self) -> None:
        while self._token.kind == "newline":
            self._advance()

    def _advance(self) -> None:
        self._token = next(self._tokens)

    def _expect(self, kind: str, hint: str, *values: str) -> _Token:
        token = self._token
        if token.kind != kind or (values and token.value not in values):
            raise self._unexpected(hint)
        self._advance()
        return token

    def _lex(self, text: str) -> Iterator[_Token]:
        line = 1
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            assert match is not None
            position = match.end()
            kind = match.lastgroup or ""
            if kind == "other":
                raise self._error(line, f"{match[0][:40]!r} cannot be understood", self._hint_for(match[0]))
            if kind == "text":
                yield _Token(kind, self._unquote(match[0][1:-1], line), line)
            elif kind != "blank":
                yield _Token(kind, match[0], line)
            line += kind == "newline"
        while True:
            yield _Token("end", "", line)

    def _hint_for(self, rest: str) -> str:
        if rest[0] in "'\"":
            return "end the text on its line with the quote that it begins with"
        return "these files are no Python: " + _HINT if rest[0] in _PYTHON else _HINT

    def _unquote(self, quoted: str, line: int) -> str:
        def character(match: re.Match[str]) -> str:
            hexadecimal, octal, letter = match.groups()
            if letter is None:
                code = int(hexadecimal, 16) if hexadecimal else int(octal, 8)
                if 0 < code < 256:
                    return chr(code)
            elif letter in "\\'\"":
                return str(letter)
            elif letter in _LETTERS:
                return _LETTERS[letter]
            raise self._error(line, f"{match[0]!r} is no character", "write \\\\ for a backslash")

        if "\0" in quoted:
            raise self._error(line, "a text cannot have the character NUL", "leave it out")
        return _ESCAPE.sub(character, quoted)

    def _unexpected(self, hint: str) -> UserError:
        names = {"end": "the end", "newline": "the end of the line"}
        found = names.get(self._token.kind, f"{self._token.value[:40]!r}")
        return self._error(self._token.line, f"{found} is not expected here", hint)

    def _error(self, line: int, problem: str, hint: str) -> UserError:
        return UserError(f"{self._place(line)}: {problem}", hint)

    def _place(self, line: int) -> str:
        return f"{self._source}:{line}" if self._has_lines else self._source
