"""One guest in a running machine, made by `xenolith create` and by the peer's `xl create`, with the same kernel and
ramdisk; its console as it appears to whoever made it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from benchmarks import console, machine, peer, programs
from benchmarks.console import Session
from benchmarks.machine import Machine
from benchmarks.peer import files, xenolith_command

XENOLITH = "xenolith create"
PEER = "QEMU + Xen 4.17, xl create"
XL_CREATE = "XL-CREATE"
"""What the peer's control domain says just before it starts `xl`."""
MEASURE_DEVICES = "measure=devices"
MEASURE_TOOLS = "measure=tools"
MEMORY_MIB = 256
_SECONDS = 180
_PEER_SECONDS = 900
_PEER_CONTROL_MIB = 768
_WORDS = "console=hvc0 noreplace-smp"
_SERVER = "10.0.0.1"
_CLIENT = "10.0.0.2"


def xenolith(host: Machine, words: str = "", *options: str) -> Session:
    """Runs `xenolith create --console` in a running machine, until the guest ends."""
    return console.run(
        xenolith_command("create", *_linux("guest", f"{_WORDS} {words}"), "--console", *options),
        timeout=_SECONDS,
        environment=host.environment,
    )


def xenolith_devices(host: Machine) -> Session:
    """The same for a guest with a disk and a network, on which another guest answers."""
    with _server(host):
        disk = programs.empty_disk("measured", 64)
        words = f"{MEASURE_DEVICES} ip={_CLIENT}::{_SERVER}:255.255.255.0"
        return xenolith(host, words, "--disk", f"{disk},raw,xvda,rw", "--vif", "bridge=lan")


@contextlib.contextmanager
def _server(host: Machine) -> Iterator[None]:
    words = f"{_WORDS} measure=server ip={_SERVER}::{_CLIENT}:255.255.255.0"
    host.verb("create", *_linux("server", words), "--vif", "bridge=lan")
    host.find("server", "SERVING", _SECONDS)
    yield
    host.verb("destroy", "server")


def _linux(name: str, words: str) -> list[str]:
    parts = ["--name", name, "--kernel", str(files().kernel), "--ramdisk", str(programs.measured_ramdisk())]
    return [*parts, "--memory", f"{MEMORY_MIB}MiB", "--vcpus", "1", "--cmdline", words]


def running_machine() -> contextlib.AbstractContextManager[Machine]:
    """A machine with room for two such guests."""
    return machine.machine(2 * MEMORY_MIB + 64)


def xenolith_xl(words: str) -> Session:
    """Boots Xenolith with the control domain and the memory that `xl` boots the peer with."""
    ramdisk, kernel = str(programs.control_ramdisk()), str(files().kernel)
    parts = ["--preset", "dom0", "--kernel", kernel, "--ramdisk", ramdisk, "--cmdline", f"console=hvc0 {words}"]
    memory = ["--memory", f"{_PEER_CONTROL_MIB}MiB", "--machine-memory", f"{_PEER_CONTROL_MIB + MEMORY_MIB + 64}MiB"]
    environment = machine.new().environment
    return console.run(xenolith_command("boot", *parts, *memory), timeout=_SECONDS, environment=environment)


def xl(words: str = "") -> Session:
    """Boots the peer, whose control domain runs `xl create -c` and then powers off."""
    command = peer.xen_command(programs.control_ramdisk(), words, _PEER_CONTROL_MIB, MEMORY_MIB)
    return console.run(command, timeout=_PEER_SECONDS)
