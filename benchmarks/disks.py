"""Disks behind PCI that a control domain drives: our models against QEMU's own under Xen, with the same drivers."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import console, peer, programs
from benchmarks.common import Metric, Report, contend
from benchmarks.console import RunFailed
from benchmarks.devices import DISK_AMOUNTS, METRICS, durations
from benchmarks.meter import Meter

_SECONDS = 180
_PEER_SECONDS = 600
_MIB = 64
_NAMES = {"nvme": "nvme0n1", "ahci": "sda", "virtio-blk": "vda"}
"""What Linux calls the disk behind each model."""
_WORK = {part: Metric(f"processor time, {part}", "s") for part in DISK_AMOUNTS}
_QEMUS = {"nvme": "nvme,serial=1", "ahci": "ide-hd,bus=ide.0", "virtio-blk": "virtio-blk-pci,disable-legacy=on"}


def run(runs: int) -> Report:
    """Has a control domain read and write a disk, `runs` times with each model on each side, past its own cache."""
    pairs = tuple((f"{peer.XENOLITH} {model}", f"{peer.XEN}, {model}") for model in _NAMES)
    metrics = (*(METRICS[part] for part in DISK_AMOUNTS), *_WORK.values())
    report = Report("disks", "How fast are dom0's disks?", metrics, pairs)
    contend(report, _NAMES, _xenolith, _qemu, runs)
    return report


def _xenolith(model: str) -> Mapping[str, float]:
    disk = programs.empty_disk("measured", _MIB)
    command = peer.xenolith_linux("boot", programs.disk_ramdisk(), _words(model), "--device", f"{model},target={disk}")
    return _figures(command, _SECONDS)


def _qemu(model: str) -> Mapping[str, float]:
    disk = programs.empty_disk("measured", _MIB)
    command = peer.xen_command(programs.disk_ramdisk(), _words(model))
    command += ["-drive", f"file={disk},format=raw,if=none,id=disk", "-device", f"{_QEMUS[model]},drive=disk"]
    return _figures(command, _PEER_SECONDS)


def _words(model: str) -> str:
    return f"measure=disk disk={_NAMES[model]} end"


def _figures(command: list[str], limit: float) -> Mapping[str, float]:
    meter = Meter()
    session = console.run(command, timeout=limit, watch=meter.look)
    seconds = durations(session)
    if missing := DISK_AMOUNTS.keys() - seconds.keys():
        session.find(f"BEGIN {min(missing)}")
        raise RunFailed(f"'{min(missing)}' did not end")
    figures = {}
    for part, amount in DISK_AMOUNTS.items():
        begun = session.when(f"BEGIN {part}")
        figures[METRICS[part].name] = amount / seconds[part]
        figures[_WORK[part].name] = meter.at(begun + seconds[part]) - meter.at(begun)
    return figures
