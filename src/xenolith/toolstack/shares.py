"""Shared directories as users write them: the p9 mini-language of xl.cfg(5) and its table form in TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from xenolith.errors import UserError
from xenolith.toolstack.parameters import Parameters, known_parameters, table_to_parameters, words_to_parameters
from xenolith.toolstack.values import located

PARAMETERS: Final = ("tag", "path", "security_model", "backend")
_SECURITY_MODEL: Final = "none"


@dataclass(frozen=True, slots=True)
class Share:
    """A directory of the host that a guest mounts by its `tag`. Files belong to whom the guest says ("none" in xl)."""

    tag: str
    path: str
    backend: str | None = None

    def located(self, directory: Path) -> Share:
        """The same with an absolute path."""
        return replace(self, path=str(located(self.path, directory)))

    def __str__(self) -> str:
        """In the mini-language; `parse_share` reads it back."""
        backend = f",backend={self.backend}" if self.backend is not None else ""
        return f"tag={self.tag},path={self.path},security_model={_SECURITY_MODEL}{backend}"


def parse_share(spec: str) -> Share:
    return _share(words_to_parameters(spec, "a p9 share"))


def share(value: Any) -> Share:
    """A share from a text or a table of a configuration."""
    if isinstance(value, Mapping):
        return _share(table_to_parameters(value, "a p9 share"))
    if not isinstance(value, str):
        raise TypeError("a text such as 'tag=home,path=/srv/guest', or a table")
    return parse_share(value)


def _share(parameters: Parameters) -> Share:
    known_parameters(parameters, PARAMETERS, "a p9 share")
    given = {name: values[0] for name, values in parameters.items()}
    model = given.get("security_model", _SECURITY_MODEL)
    if model != _SECURITY_MODEL:
        raise UserError(f"a p9 share has no security_model '{model}'", 'there is "none", as in xl')
    for name in ("tag", "path"):
        if not given.get(name):
            raise UserError(f"the p9 share has no {name}", "write tag=NAME,path=DIRECTORY")
    for name, value in given.items():
        if "," in value or not value:
            raise UserError(f"the {name} of a p9 share cannot be '{value}'", "name one, without a comma")
    return Share(given["tag"], given["path"], given.get("backend"))
