"""Guests for tests: one machine for each module and engine; guests are destroyed at the end, their remains counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.assembler import TestImage, assemble, missing_tools
from tests.guest.pvguest import PvGuest, TestMachine, is_native
from tests.guest.second_vcpu import start_second
from xenolith.cpu.compiled import SWITCH
from xenolith.cpu.engine import LACKING
from xenolith.cpu.kvm import KvmEngine

Starter = Callable[..., PvGuest]


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> TestImage:
    if missing := missing_tools():
        pytest.skip(f"{', '.join(missing)} not installed: binutils assembles the guests")
    directory: Path = tmp_path_factory.mktemp("image")
    return assemble(directory)


def make_machine(image: TestImage, engine: str) -> TestMachine:
    """A machine on an engine: as it is, or one whose every exit is handled by Python, or that does what it can in
    ring 0."""
    name, _, variant = engine.partition("-")
    with pytest.MonkeyPatch.context() as patch:
        if variant == "without-helper":
            patch.setenv(SWITCH, "0")
        elif variant == "in-ring0":
            patch.setattr(KvmEngine, "works_in_ring0", True)
        return TestMachine(image, name)


@pytest.fixture(scope="module")
def shared_machine(image: TestImage, engine: str) -> Iterator[list[TestMachine]]:
    """The module's machine on this engine, in a list because one that a test broke is replaced."""
    machines = [make_machine(image, engine)]
    yield machines
    for machine in machines:
        machine.close()


@pytest.fixture
def machine(
    image: TestImage, shared_machine: list[TestMachine], engine: str, request: pytest.FixtureRequest
) -> Iterator[TestMachine]:
    """The machine of this module. After the test its books balance; destroying all guests gives everything back.

    A test that is marked as needing what the engine lacks here is skipped.
    """
    if not shared_machine:
        shared_machine.append(make_machine(image, engine))
    for need in request.node.iter_markers("needs"):
        if need.args[0] in shared_machine[0].hv.engine.lacks:
            pytest.skip(f"on {shared_machine[0].hv.engine.name} {LACKING[need.args[0]]}")
    machine = shared_machine.pop()
    try:
        free = machine.frames_left()
        yield machine
        machine.check()
        for domain in list(machine.hv.domains.values()):
            if not is_native(domain):  # the native services are part of the machine
                machine.hv.destroy_domain(domain)
                machine.check()
        assert machine.frames_left() == free, "frames were lost"
    except BaseException:
        machine.close()
        raise
    shared_machine.append(machine)


@pytest.fixture
def start(machine: TestMachine) -> Starter:
    """Starts a guest on the machine."""
    return machine.start


@pytest.fixture
def guest(machine: TestMachine) -> PvGuest:
    """An ordinary guest."""
    return machine.start("guest")


@pytest.fixture
def pair(machine: TestMachine) -> PvGuest:
    """A guest with two vCPUs, of which the second has not been started."""
    return machine.start("pair", vcpus=2)


@pytest.fixture
def running(pair: PvGuest) -> PvGuest:
    """A guest of which both vCPUs run."""
    start_second(pair)
    return pair


@pytest.fixture
def bystander(machine: TestMachine) -> Iterator[PvGuest]:
    """A guest that has nothing to do with what the test does, and must live on unharmed."""
    other = machine.start("bystander")
    other.write(other.page(95), b"unharmed" * 512)
    yield other
    assert not other.stopped
    assert other.read(other.page(95), 4096) == b"unharmed" * 512
    assert other.call("nothing").rax == 42
