"""Machine descriptions: read from TOML, checked, with the key and the line of every mistake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from xenolith.cpu.choose import ENGINES
from xenolith.errors import UserError
from xenolith.hypervisor.cpuid import LEVELS
from xenolith.hypervisor.release import DEFAULT_RELEASE, RELEASES
from xenolith.toolstack import values
from xenolith.toolstack.config import (
    DEFAULT_SERVICE_MEMORY,
    SERVICES,
    DomainConfig,
    MachineConfig,
    explicit_needs,
    named,
    reachable,
    store_keeper,
)
from xenolith.toolstack.guest_file import read_guest
from xenolith.toolstack.guest_keys import KEYS
from xenolith.toolstack.machine_devices import machine_device
from xenolith.toolstack.presets import PRESETS, preset
from xenolith.toolstack.settings import Key, Setting, read_keys, require_known
from xenolith.toolstack.toml_source import TomlSource, read_text

CLOCKS: Final = ("host", "virtual")
SINGLE_SERVICES: Final = ("builder", "store", "console", "hardware")
"""The services that a machine can have only once."""
_GUEST_ONLY: Final = (
    "kernel ramdisk cmdline exec maxmem vcpus maxvcpus cpus disk vif p9"
    " on_poweroff on_reboot on_crash on_watchdog on_soft_reset localtime rtc_timeoffset"
)


# -- keys -------------------------------------------------------------------------------------------------------------


def _one_of(*known: str) -> Any:
    def convert(value: Any) -> str:
        if value not in known:
            raise TypeError(" or ".join(f'"{word}"' for word in known))
        return values.text(value)

    return convert


def _services(value: Any) -> tuple[str, ...]:
    words = values.texts(value)
    for word in words:
        if word not in SERVICES:
            raise UserError(f"there is no service '{word}'", f"there are {', '.join(SERVICES)}")
    if not words or len(set(words)) < len(words):
        raise UserError("a service is named twice, or none is", f"name some of {', '.join(SERVICES)}, each once")
    return words


MACHINE_KEYS: Final[dict[str, Key]] = {
    "name": Key("name", values.name, "text", '"default"', "What verbs call it when several machines run."),
    "clock": Key(
        "clock",
        _one_of(*CLOCKS),
        '"host" or "virtual"',
        '"host"',
        "Time that passes as the host's does, or time that is worked: then idle time is skipped, nothing can be typed,"
        " and every run is the same.",
    ),
    "engine": Key(
        "engine",
        _one_of(*ENGINES),
        '"auto", "unicorn" or "kvm"',
        '"auto"',
        "What executes the guests' code; see [engines](engines.md).",
    ),
    "cpu": Key(
        "cpu",
        _one_of(*LEVELS),
        "text",
        '"host"',
        f"How much of the processor guests are shown: {', '.join(LEVELS)}.",
    ),
    "xen_version": Key(
        "xen_version",
        _one_of(*RELEASES),
        "text",
        f'"{DEFAULT_RELEASE}"',
        f"The release of Xen that it says it is: {', '.join(RELEASES)}; see"
        " [other releases of Xen](dom0.md#other-releases-of-xen).",
    ),
    "preset": Key(
        "preset", _one_of(*PRESETS), "text", "", "Domains that it has beside those described: see [presets](#presets)."
    ),
    "memory": Key(
        "memory", values.size, "memory", "what its domains need", "All the memory that the machine has for domains."
    ),
    "spare_memory": Key(
        "spare_memory",
        values.size,
        "memory",
        "0",
        "What the machine has beyond its domains' memory and what the hypervisor needs.",
    ),
    "serial": Key(
        "serial",
        values.text,
        "file",
        "",
        "What the first serial port (com1, `ttyS0`) is connected to: a file to which its output is appended, or a FIFO"
        " or terminal for both ways.",
        locate=values.located,
    ),
    "device": Key(
        "devices",
        machine_device,
        "tables",
        "",
        "PCI devices: see [below](#machinedevice).",
        many=True,
        locate=lambda device, directory: device.located(directory),
    ),
}
DOMAIN_KEYS: Final[dict[str, Key]] = {
    **{name: key for name, key in KEYS.items() if name != "name"},
    "service": Key(
        "services",
        _services,
        "text or list",
        "",
        f"What a native domain serves: {', '.join(SERVICES)}.",
    ),
    "depends": Key("depends", values.texts, "list of texts", "[]", "Names of the domains that must be started before."),
}


# -- reading ----------------------------------------------------------------------------------------------------------


def load(path: Path) -> MachineConfig:
    """Read a machine description. UserError with file, line and key for everything that is wrong in it."""
    source = TomlSource(path, read_text(path, "a machine description in TOML"))
    require_known(source.settings(), ("machine", "domain"))
    machine = source.settings(("machine",))
    require_known(machine, MACHINE_KEYS)
    config = MachineConfig(**read_keys(machine, MACHINE_KEYS))
    if config.preset is not None:
        config.domains += preset(config.preset)
    described = {name: source.settings(("domain", name)) for name in source.settings(("domain",))}
    for name, settings in described.items():
        config.domains.append(_domain(source, name, settings, config))
    if not config.domains:
        raise UserError(f"{path}: no domain is described", "add a table such as [domain.dom0]")
    _check_services(source, config)
    _check_names(source, config, described)
    _check_memory(config, machine)
    return config


def _domain(source: TomlSource, name: str, settings: Mapping[str, Setting], config: MachineConfig) -> DomainConfig:
    place = ("domain", name)
    try:
        values.check_name(name)
    except UserError as error:
        raise source.error(place, error.message, error.hint) from None
    if any(domain.name == name for domain in config.domains):
        problem = f"the preset {config.preset} has a domain '{name}' already"
        raise source.error(place, problem, "give this one another name, or leave the preset out")
    require_known(settings, DOMAIN_KEYS)
    if "service" not in settings:
        return read_guest(DomainConfig, settings, DOMAIN_KEYS, lambda text: None, name=name)
    for key in _GUEST_ONLY.split():
        if key in settings:
            raise settings[key].error(f"'{key}' is for guests, and {name} is a service", "leave one of the two out")
    return read_guest(DomainConfig, settings, DOMAIN_KEYS, lambda text: None, name=name, memory=DEFAULT_SERVICE_MEMORY)


# -- checks across domains --------------------------------------------------------------------------------------------


def _check_services(source: TomlSource, config: MachineConfig) -> None:
    for service in SINGLE_SERVICES:
        providers = [domain.name for domain in config.domains if service in domain.services]
        if len(providers) > 1:
            problem = f"{providers[0]} serves '{service}' already"
            raise source.error(("domain", providers[1], "service"), problem, "a machine has it once")
    native = [domain for domain in config.domains if domain.services]
    has_store = any("store" in domain.services for domain in native) or store_keeper(config.domains) is not None
    if native and not has_store:
        problem = "services need a store, and no domain serves 'store'"
        hint = "add 'store' to one of them, or give a Linux with xenstored the capability"
        raise source.error(("domain", native[0].name, "service"), problem, hint)


def _check_names(source: TomlSource, config: MachineConfig, described: Mapping[str, Mapping[str, Setting]]) -> None:
    """UserError for names of domains that there are not, and for domains that wait for each other."""
    names = {domain.name for domain in config.domains}
    for domain in config.domains:
        for key, wanted in named(domain):
            if wanted not in names:
                problem = f"'{key}': there is no domain '{wanted}'"
                raise described[domain.name][key].error(problem, f"there are {', '.join(sorted(names))}")
    explicit = {domain.name: explicit_needs(domain) for domain in config.domains}
    for domain in config.domains:
        if domain.name in reachable(explicit, domain.name):
            key = "depends" if "depends" in described.get(domain.name, {}) else "disk"
            cycle = ", ".join(
                sorted(n for n in reachable(explicit, domain.name) if domain.name in reachable(explicit, n))
            )
            raise source.error(
                ("domain", domain.name, key), f"these domains wait for each other: {cycle}", "leave one out"
            )


def _check_memory(config: MachineConfig, machine: Mapping[str, Setting]) -> None:
    wanted = sum(domain.memory for domain in config.domains) + config.spare_memory
    if config.memory is not None and config.memory < wanted:
        problem = f"'memory': the domains together have {wanted >> 20} MiB, and the machine {config.memory >> 20} MiB"
        raise machine["memory"].error(problem, "give the machine more, or them less")
