"""What single operations cost: hypercalls, events and grants of an assembled guest, devices of a Linux guest."""

from __future__ import annotations

import json
from collections.abc import Mapping

from benchmarks import console, domu, machine, peer, programs
from benchmarks.common import Contender, Metric, Report, alternate
from benchmarks.devices import READ_4K, ROUND_TRIP, parse
from benchmarks.guest_rates import rates
from benchmarks.machine import Machine
from benchmarks.peer import xenolith_command

_SECONDS = 120
_MICROSECONDS = 1e6
_PER_MIB_4K = 256
_PINGS = 100
_OF_GUEST = {
    "null_hypercall": Metric("null hypercall (xen_version)", "µs"),
    "event_round_trip": Metric("event round trip between two guests", "µs"),
    "grant_map_unmap": Metric("grant mapped and unmapped", "µs"),
}
_BLOCK = Metric("4 KiB read from a disk, by Linux", "µs")
_NET = Metric("network round trip between two Linux guests", "µs")


def run(runs: int) -> Report:
    """Runs both kinds of guest `runs` times; there is no peer."""
    report = Report("costs", "What does a single operation cost?", (*_OF_GUEST.values(), _BLOCK, _NET))
    alternate(report, (Contender(peer.XENOLITH, _measure),), runs)
    return report


def _measure() -> Mapping[str, float]:
    with machine.machine(64) as host:
        found = _guest(host)
    with domu.running_machine() as host:
        devices = parse(domu.xenolith_devices(host))
    block = _MICROSECONDS / (devices[READ_4K.name] * _PER_MIB_4K)
    return {**found, _BLOCK.name: block, _NET.name: devices[ROUND_TRIP.name] / _PINGS * _MICROSECONDS}


def _guest(host: Machine) -> Mapping[str, float]:
    kernel = programs.costs_kernel()
    server = 1 + max(row["domid"] for row in json.loads(host.verb("list", "--json")))
    host.create("server", kernel, memory="2MiB", cmdline=f"serve {server + 1}")
    host.find("server", "SERVING", _SECONDS)
    asking = ("--name", "client", "--kernel", str(kernel), "--memory", "2MiB", "--cmdline", f"ask {server}")
    session = console.run(
        xenolith_command("create", *asking, "--console"), timeout=_SECONDS, environment=host.environment
    )
    session.find("RATES done")
    found = rates(session.lines, _OF_GUEST)
    return {metric.name: _MICROSECONDS / found[name] for name, metric in _OF_GUEST.items()}
