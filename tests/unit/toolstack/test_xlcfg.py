"""The grammar of xl.cfg files: what libxlutil of Xen 4.17 takes and refuses, and that nothing else comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenolith.errors import UserError
from xenolith.toolstack import xlcfg

VALUES = {
    "number": ("a = 512", "512"),
    "hexadecimal": ("a=0x1f", "0x1f"),
    "text": ("a = 'it'", "it"),
    "other quotes": ('a = "it\'s"', "it's"),
    "escapes": (r'a = "\"\\\n\t\x41\101"', '"\\\n\tAA'),
    "the last counts": ("a = 1\na = 2", "2"),
    "semicolons": ("b = 1; a = 2;;", "2"),
    "comments": ("# a = 1\na = 2 # more\n#", "2"),
    "lines of DOS": ("a = 2\r\n", "2"),
    "addition": ("a = 'x'\na += 'y'", "xy"),
    "addition to nothing": ("a += 'y'", "y"),
    "a list": ("a = ['x', 2]", ["x", "2"]),
    "an empty list": ("a = [\n]", []),
    "a list over lines": ("a = [ # one\n  'x',\n\n  'y',\n]", ["x", "y"]),
    "a list in a list": ("a = [['x'], []]", [["x"], []]),
    "addition of lists": ("a = ['x']\na += ['y']", ["x", "y"]),
}


@pytest.mark.parametrize(("text", "value"), VALUES.values(), ids=VALUES)
def test_a_value(text: str, value: object) -> None:
    assert xlcfg.parse(text, "x.cfg", Path())["a"].value == value


def test_places() -> None:
    settings = xlcfg.parse("\na = [\n 'x',\n\n 'y']\nb = 1", "x.cfg", Path("/d"))
    assert settings["a"].place == "x.cfg:2"
    assert settings["a"].item_places == ("x.cfg:3", "x.cfg:5")
    assert (settings["b"].place, settings["b"].directory) == ("x.cfg:6", Path("/d"))


MISTAKES = {
    "no value": (1, "the end of the line is not expected", "a =\n"),
    "no name": (1, "'=' is not expected", "= 5"),
    "a word as a value": (1, "'b' is not expected", "a = b"),
    "two on a line": (2, "'b' is not expected", "\na = 1 b = 2"),
    "capitals": (1, "'Memory' cannot be understood", "Memory = 5"),
    "Python": (1, "'(1)' cannot be understood", "a = (1)"),
    "a text that does not end": (2, '"\'x" cannot be understood', "\na = 'x"),
    "a text over lines": (1, '"\'x" cannot be understood', "a = 'x\ny'"),
    "an unknown escape": (1, r"'\\q' is no character", r"a = 'x\q'"),
    "NUL": (1, r"'\\0' is no character", r"a = '\0'"),
    "a list that does not end": (2, "the end is not expected", "a = [1,\n"),
    "a list without commas": (2, "'2' is not expected", "a = [1\n2]"),
    "a list of commas": (1, "',' is not expected", "a = [,]"),
    "lists without end": (1, "lists within lists go too deep", "a = " + "[" * 5000),
    "a list and a text": (2, "'a' cannot be added to", "a = [1]\na += 'x'"),
}


@pytest.mark.parametrize(("line", "problem", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_line(line: int, problem: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        xlcfg.parse(text, "x.cfg", Path())
    assert caught.value.message.startswith(f"x.cfg:{line}: {problem}")
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_words_of_a_command_line() -> None:
    settings = xlcfg.parse("memory = 5; extra = 'a'; disk = ['x']", "x.cfg", Path("/d"))
    xlcfg.override(settings, ["memory=7", "name=it's 5", "extra+= b", "disk+=['y']", "vif=[]"])
    assert {name: setting.value for name, setting in settings.items()} == {
        "memory": "7",
        "extra": "a" + "b",
        "disk": ["x", "y"],
        "name": "it's 5",
        "vif": [],
    }
    assert settings["memory"].place == "'memory=7'"


@pytest.mark.parametrize("word", ["", "memory", "=5", "a=[", "a='x", "A=5", "a=['x']b"])
def test_a_word_that_is_no_setting(word: str) -> None:
    with pytest.raises(UserError):
        xlcfg.override({}, [word])


PIECES = st.sampled_from(
    ["a", "=", "+=", " ", "[", "]", ",", ";", "\n", "#", "'", '"', "\\", "\\x4", "1", "0x", "'b'", "é"]
)


@given(st.text(max_size=60) | st.lists(PIECES, max_size=20).map("".join))
def test_any_text_is_read_or_is_the_users_mistake(text: str) -> None:
    try:
        settings = xlcfg.parse(text, "x", Path())
    except UserError:
        return
    assert all(isinstance(setting.value, str | list) for setting in settings.values())


@given(st.lists(st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=8), max_size=4))
def test_what_is_quoted_comes_back(texts: list[str]) -> None:
    quoted = ",\n".join('"' + "".join(f"\\x{ord(letter):02x}" for letter in text) + '"' for text in texts)
    assert xlcfg.parse(f"a = [{quoted}]", "x", Path())["a"].value == texts
