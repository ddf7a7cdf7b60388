"""Network devices as users write them: xl's vif mini-language (xl-network-configuration(5)) and its table in TOML."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from xenolith.errors import UserError
from xenolith.toolstack.parameters import Parameters, known_parameters, table_to_parameters, words_to_parameters
from xenolith.toolstack.values import located, parse_number, parse_truth

DEFAULT_BRIDGE: Final = "xenbr0"
"""The name that xl gives the switch that nobody has named."""
DEFAULT_INTERVAL_US: Final = 50_000
DEFAULT_MTU: Final = 1500
USER_MTU: Final = 65520
"""With user-mode networking, which has no wire: as much as passt(1) takes, for the fewest packets."""
IGNORED: Final = ("script", "model", "gatewaydev", "netdev", "accel")
PARAMETERS: Final = (
    "mac",
    "bridge",
    "user",
    "forward",
    "tap",
    "pcap",
    "ip",
    "rate",
    "mtu",
    "devid",
    "vifname",
    "backend",
    "trusted",
    "untrusted",
    "type",
)
MACHINE_PARAMETERS: Final = ("mac", "bridge", "user", "forward", "tap", "pcap", "mtu")
_MAC: Final = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}")
_RATE: Final = re.compile(r"([0-9]{1,10})([GMK]?)([Bb])/s(?:@([0-9]{1,10})([mu]?)s?)?")
_SCALE: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_MICROSECONDS: Final = {"": 10**6, "m": 10**3, "u": 1}
_FORWARD: Final = re.compile(r"(?:(tcp|udp):)?([0-9]{1,5}):([0-9]{1,5})")
_INTERFACE: Final = re.compile(r"[!-+\--.0-<>-~]{1,15}")
"""A name that a network interface of Linux can have: up to 15 visible characters but / and, here, comma and =."""
_LIMIT: Final = (1 << 32) - 1
_MAX_DEVID: Final = 65535


@dataclass(frozen=True, slots=True)
class Rate:
    """How much a guest may send: `bytes_per_second`, with credit given anew every `interval_us` microseconds."""

    bytes_per_second: int
    interval_us: int = DEFAULT_INTERVAL_US

    @property
    def bytes_per_interval(self) -> int:
        return self.bytes_per_second * self.interval_us // 10**6

    def __str__(self) -> str:
        bits = self.bytes_per_second * 8
        amount = next(
            f"{count // scale}{prefix}{unit}/s"
            for count, unit in ((self.bytes_per_second, "B"), (bits, "b"))
            for prefix, scale in _SCALE.items()
            if count % scale == 0 and count // scale <= _LIMIT
        )
        return f"{amount}@{self.interval_us}us"


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host that leads to one of the guest."""

    protocol: str
    host_port: int
    guest_port: int

    def __str__(self) -> str:
        return f"{self.protocol}:{self.host_port}:{self.guest_port}"


@dataclass(frozen=True, slots=True)
class Nic:
    """A network device of a guest, at one of three things: a `bridge` (switch), user-mode networking, or a `tap`.

    `mac` is six pairs of lower-case digits, or None for one made from the guest's uuid. `devid` None: its place in the
    list. `pcap` is a file that gets every packet.
    """

    mac: str | None = None
    bridge: str | None = DEFAULT_BRIDGE
    user: bool = False
    forwards: tuple[Forward, ...] = ()
    tap: str | None = None
    pcap: Path | None = None
    ip: tuple[str, ...] = ()
    rate: Rate | None = None
    mtu: int | None = None
    devid: int | None = None
    vifname: str | None = None
    backend: str | None = None
    trusted: bool = True
    ignored: tuple[str, ...] = field(default=(), compare=False)
    """What was said of it that has no effect here."""

    def located(self, directory: Path) -> Nic:
        """The same with the name of its capture file made absolute."""
        return self if self.pcap is None else replace(self, pcap=located(str(self.pcap), directory))

    def __str__(self) -> str:
        """In the mini-language; `parse_nic` reads it back."""
        return ",".join(self._words())

    def _words(self) -> Iterator[str]:
        for name in ("mac", "bridge", "tap", "pcap", "rate", "mtu", "devid", "vifname", "backend"):
            value = getattr(self, name)
            if value is not None:
                yield f"{name}={value}"
        if self.user:
            yield "user"
        yield from (f"forward={forward}" for forward in self.forwards)
        if self.ip:
            yield f"ip={' '.join(self.ip)}"
        if not self.trusted:
            yield "untrusted"


def mac_of(guest: uuid.UUID, devid: int) -> str:
    """The address in Xen's own range, 00:16:3e, that a guest's device has when none is given: always the same."""
    low = uuid.uuid5(guest, f"vif/{devid}").bytes[-3:]
    return f"00:16:3e:{low[0] & 0x7F:02x}:{low[1]:02x}:{low[2]:02x}"


def parse_nic(spec: str) -> Nic:
    """A network device from xl's mini-language. UserError for what it does not allow."""
    return _nic(words_to_parameters(spec, "a vif"))


def nic(value: Any) -> Nic:
    """A network device from a text or a table of a configuration."""
    if isinstance(value, Mapping):
        return _nic(table_to_parameters(value, "a vif"))
    if not isinstance(value, str):
        raise TypeError("a text such as 'mac=00:16:3e:00:00:01,bridge=xenbr0', or a table")
    return parse_nic(value)


def nic_of(parameters: Parameters, what: str) -> Nic:
    """What a card of the machine is connected to. UserError for what it cannot be."""
    known_parameters(parameters, MACHINE_PARAMETERS, what, repeated=("forward",))
    return _nic(parameters)


def _nic(parameters: Parameters) -> Nic:
    ignored = tuple(name for name in IGNORED if parameters.pop(name, None) is not None)
    known_parameters(parameters, PARAMETERS, "a vif", repeated=("forward",))
    given = {name: values[0] for name, values in parameters.items()}
    if given.get("type", "vif") != "vif":
        raise UserError(f"a PV guest has no vif of type '{given['type']}'", "leave type out, or write type=vif")
    user = parse_truth(given.get("user", "no"), "user of a vif")
    forwards = tuple(_forward(text) for text in parameters.get("forward", []))
    if forwards and not user:
        raise UserError("forward is for user-mode networking", "write user, or leave forward out")
    if user + ("tap" in given) + ("bridge" in given) > 1:
        raise UserError("a network device is at one of bridge, tap and user", "leave the others out")
    own = user or "tap" in given
    pcap = _nonempty(given, "pcap")
    return Nic(
        mac=_mac(given["mac"]) if "mac" in given else None,
        bridge=None if own else _interface(given.get("bridge", DEFAULT_BRIDGE), "bridge"),
        user=user,
        forwards=forwards,
        tap=_interface(given["tap"], "tap") if "tap" in given else None,
        pcap=Path(pcap) if pcap is not None else None,
        ip=_addresses(given.get("ip", "")),
        rate=parse_rate(given["rate"]) if "rate" in given else None,
        mtu=_number(given, "mtu", 68, 65535),
        devid=_number(given, "devid", 0, _MAX_DEVID),
        vifname=_interface(given["vifname"], "vifname") if "vifname" in given else None,
        backend=_nonempty(given, "backend"),
        trusted=_trusted(given),
        ignored=ignored,
    )


def _trusted(given: Mapping[str, str]) -> bool:
    if "untrusted" in given and "trusted" in given:
        raise UserError("a vif is trusted or untrusted", "say one of them")
    if "untrusted" in given:
        return not parse_truth(given["untrusted"], "untrusted of a vif")
    return parse_truth(given.get("trusted", "yes"), "trusted of a vif")


def _mac(text: str) -> str:
    if _MAC.fullmatch(text) is None:
        raise UserError(f"'{text}' is no MAC address", "write six pairs of hexadecimal digits, as in 00:16:3e:12:34:56")
    octets = [int(pair, 16) for pair in text.split(":")]
    if octets[0] & 1 or not any(octets):
        raise UserError(
            f"no device can have the MAC address {text}",
            "take one whose first octet is even, such as 00:16:3e:12:34:56",
        )
    return ":".join(f"{octet:02x}" for octet in octets)


def parse_rate(text: str) -> Rate:
    """A rate such as "10Mb/s" or "1MB/s@20ms", within the limits of libxlutil's xlu_vif_parse_rate."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise UserError(f"'{text}' is no rate", "write it as in 10Mb/s, 250KB/s or 1MB/s@20ms")
    count, prefix, unit, interval, scale = match.groups()
    amount = int(count) * _SCALE[prefix] // (8 if unit == "b" else 1)
    interval_us = DEFAULT_INTERVAL_US if interval is None else int(interval) * _MICROSECONDS[scale]
    if not amount or int(count) > _LIMIT or not 0 < interval_us <= _LIMIT or amount * interval_us >= 1 << 64:
        raise UserError(f"a rate of {text} is impossible", "take 1 B/s or more, and an interval of 1 us to 4294 s")
    return Rate(amount, interval_us)


def _forward(text: str) -> Forward:
    match = _FORWARD.fullmatch(text)
    if match is None or not all(0 < int(port) <= 65535 for port in match.groups()[1:]):
        raise UserError(
            f"'{text}' forwards no port", "write the host's port and the guest's: forward=8080:80, or udp:53:53"
        )
    return Forward(match[1] or "tcp", int(match[2]), int(match[3]))


def _interface(text: str, what: str) -> str:
    if _INTERFACE.fullmatch(text) is None or text in (".", ".."):
        raise UserError(f"'{text}' cannot be the name of a {what}", "take 1 to 15 letters and digits")
    return text


def _addresses(text: str) -> tuple[str, ...]:
    if not text.strip():
        return ()
    from ipaddress import ip_interface

    try:
        for word in text.split():
            ip_interface(word)
    except ValueError:
        raise UserError(
            f"'{text}' is no list of IP addresses", "write them with spaces between, as in 10.0.0.2 fd00::2"
        ) from None
    return tuple(text.split())


def _number(given: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    if name not in given:
        return None
    value = parse_number(given[name])
    if value is None or not low <= value <= high:
        raise UserError(f"the {name} of a vif cannot be '{given[name]}'", f"it is a number from {low} to {high}")
    return value


def _nonempty(given: Mapping[str, str], name: str) -> str | None:
    if name in given and (not given[name] or "," in given[name]):
        raise UserError(f"the {name} of a vif cannot be '{given[name]}'", "name one, without a comma")
    return given.get(name)
