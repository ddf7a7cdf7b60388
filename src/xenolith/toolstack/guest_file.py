"""Guests from an xl.cfg file, from our TOML, from options: with every mistake told where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from xenolith.errors import UserError
from xenolith.machine.e820 import LOW_RAM_LIMIT
from xenolith.toolstack import values, xlcfg
from xenolith.toolstack.guest_config import GuestConfig
from xenolith.toolstack.guest_keys import IGNORED_KEYS, KEYS, XL_KEYS
from xenolith.toolstack.settings import Key, Setting, read_keys
from xenolith.toolstack.toml_source import TomlSource, read_text

Guest = TypeVar("Guest", bound=GuestConfig)
Warn = Callable[[str], None]


def load(
    path: Path | None,
    options: Mapping[str, object] | None = None,
    words: Iterable[str] = (),
    warn: Warn = lambda text: None,
) -> GuestConfig:
    """A guest from a file (xl.cfg or TOML), over which go `options` of a command line, over which "key=value" `words`.

    Options are by the names of keys, a list for what there may be several of; None is not given. `warn` gets one
    sentence for each key that is unknown, and one for all that have no effect. UserError for everything that is wrong.
    """
    settings = _read_file(path) if path is not None else {}
    for name, value in (options or {}).items():
        if value is not None:
            given = [*value] if isinstance(value, list | tuple) else values.Atom(value)
            settings[name] = Setting(given, f"--{name}", Path())
    xlcfg.override(settings, words)
    _warn(settings, warn)
    known = {name: setting for name, setting in settings.items() if name in KEYS or name in XL_KEYS}
    if "name" not in known:
        where = "it" if path is None else str(path)
        raise UserError(f"{where} does not say what the guest is called", 'write name = "guest1", or give --name')
    return read_guest(GuestConfig, known, KEYS | XL_KEYS, warn)


def _read_file(path: Path) -> dict[str, Setting]:
    """The settings of a file, which is TOML by its suffix, or if that says nothing, when it is no xl.cfg file."""
    text = read_text(path, "an xl.cfg or TOML file")
    if path.suffix != ".toml":
        try:
            return xlcfg.parse(text, str(path), path.parent)
        except UserError as error:
            not_xl = error
    try:
        settings = TomlSource(path, text).settings()
    except UserError as error:
        raise (error if path.suffix == ".toml" else not_xl) from None
    for name in ("machine", "domain"):
        if name in settings:
            raise settings[name].error("this describes a machine, not a guest", "start it with xenolith boot")
    return settings


def _warn(settings: Mapping[str, Setting], warn: Warn) -> None:
    ignored = [name for name in settings if name in IGNORED_KEYS]
    if ignored:
        file = settings[ignored[0]].place.rpartition(":")[0] or settings[ignored[0]].place
        warn(f"{file}: without effect here: {', '.join(ignored)}")
    for name, setting in settings.items():
        if name not in KEYS and name not in XL_KEYS and name not in IGNORED_KEYS:
            warn(f"{setting.place}: there is no key '{name}'; it has no effect")


def read_guest(
    kind: type[Guest], settings: Mapping[str, Setting], keys: Mapping[str, Key], warn: Warn, **defaults: Any
) -> Guest:
    """A guest from settings that `keys` declare, checked one by one and against each other."""
    result = defaults | read_keys(settings, keys)
    rights = result.pop("rights", None)
    if rights is not None:
        result |= {"capabilities": rights.capabilities, "targets": rights.targets, "hardware": rights.hardware}
    result.pop("type", None)
    _join_cmdline(result, settings, warn)
    config = kind(**result)
    for number, nic in enumerate(config.nics):
        for word in nic.ignored:
            warn(f"{_item_place(settings['vif'], number)}: '{word}' of a vif has no effect here")
    _check(config, settings)
    return config


def _join_cmdline(result: dict[str, Any], settings: Mapping[str, Setting], warn: Warn) -> None:
    """As xl's parse_cmdline: `root` and `extra` make a command line unless there is one."""
    root, extra = result.pop("root", None), result.pop("extra", None)
    if root is None and extra is None:
        return
    if "cmdline" in result:
        warn(f"{settings['cmdline'].place}: root and extra have no effect beside cmdline")
        return
    result["cmdline"] = " ".join([*([f"root={root}"] if root is not None else []), *([extra] if extra else [])])


def _item_place(setting: Setting, number: int) -> str:
    return setting.item_places[number] if number < len(setting.item_places) else setting.place


def _check(config: GuestConfig, settings: Mapping[str, Setting]) -> None:
    """UserError for values that contradict each other."""
    if config.max_memory < config.memory:
        raise settings["maxmem"].error("'maxmem' is less than the memory", f"write {config.memory >> 20} or more")
    if config.max_vcpus < config.vcpus:
        raise settings["maxvcpus"].error("'maxvcpus' is less than the vCPUs", f"write {config.vcpus} or more")
    if config.pci and config.max_memory > LOW_RAM_LIMIT:
        raise settings["pci"].error(
            "a guest with PCI devices has less memory than where they lie", f"give it {LOW_RAM_LIMIT >> 20} MiB at most"
        )
    _require_distinct("disk", settings, [disk.number for disk in config.disks], "virtual device number")
    _require_distinct("vif", settings, [nic.mac for nic in config.nics], "MAC address")
    _require_distinct("vif", settings, [nic.devid for nic in config.nics], "devid")
    _require_distinct("pci", settings, list(config.pci), "name")
    _require_distinct("p9", settings, [share.tag for share in config.shares], "tag")


def _require_distinct(key: str, settings: Mapping[str, Setting], given: list[Any], what: str) -> None:
    for number, value in enumerate(given):
        if value is not None and value in given[:number]:
            raise settings[key].error(f"'{key}': two have the {what} {value}", "give each its own", number)
