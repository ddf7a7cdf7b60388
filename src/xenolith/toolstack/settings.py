"""Settings of a file or a command line, each with its place, and the keys that are declared for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xenolith.errors import UserError


@dataclass(frozen=True, slots=True)
class Setting:
    """What a key was set to, and where: `place` begins every sentence about it, `item_places` those about its items.

    Names of files are relative to `directory`.
    """

    value: Any
    place: str
    directory: Path
    item_places: Sequence[str] = ()

    def error(self, problem: str, hint: str, item: int | None = None) -> UserError:
        place = self.place if item is None or item >= len(self.item_places) else self.item_places[item]
        return UserError(f"{place}: {problem}", hint)


@dataclass(frozen=True, slots=True)
class Key:
    """A key that a file may have. `convert` raises TypeError("a ...") for a wrong type and UserError for a wrong value.

    With `many` the value is a list, and `convert` gets its items one by one. `locate` then takes what was converted
    and the directory that names of files in it are relative to. `kind`, `default` and `meaning` are for the documents.
    """

    field: str
    convert: Callable[[Any], Any]
    kind: str
    default: str
    meaning: str
    many: bool = False
    locate: Callable[[Any, Path], Any] | None = None

    def read(self, name: str, setting: Setting) -> Any:
        if not self.many:
            return self._read(name, setting, setting.value, None)
        if not isinstance(setting.value, list):
            raise setting.error(f"'{name}' must be a list", f"it is {setting.value!r}")
        return tuple(self._read(name, setting, item, number) for number, item in enumerate(setting.value))

    def _read(self, name: str, setting: Setting, value: Any, item: int | None) -> Any:
        try:
            converted = self.convert(value)
            return self.locate(converted, setting.directory) if self.locate else converted
        except TypeError as error:
            raise setting.error(f"'{name}' must be {error}", f"it is {value!r}", item) from None
        except UserError as error:
            raise setting.error(f"'{name}': {error.message}", error.hint, item) from None


def require_known(settings: Mapping[str, Setting], keys: Collection[str]) -> None:
    """UserError for the first setting that no key is declared for."""
    for name, setting in settings.items():
        if name not in keys:
            raise setting.error(f"unknown key '{name}'", f"known keys here are {', '.join(keys)}")


def read_keys(settings: Mapping[str, Setting], keys: Mapping[str, Key]) -> dict[str, Any]:
    """The values of settings, converted and checked, by the fields that their keys are declared for."""
    return {keys[name].field: keys[name].read(name, setting) for name, setting in settings.items()}
