"""Guests in a machine in the background: made, looked at, changed, ended, and what users get wrong about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.background import Background, background
from tests.boot.conftest import Kernel

_MOTD = "This is a Linux kernel on Xenolith"
_NATIVE = {"store", "builder", "console", "hardware", "block", "net", "9p"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    with background(tmp_path_factory.mktemp("run"), "--preset", "split") as machine:
        yield machine


def test_the_life_of_a_guest(machine: Background, kernel: Kernel) -> None:
    """Made from a file, listed as xl lists, paused, renamed, given less, rebooted, ended."""
    file = machine.place.parent / "one.cfg"
    file.write_text(f'name = "one"\nkernel = "{kernel("debian-cloud")}"\nmemory = 160\nvcpus = 1\nmaxvcpus = 2\n')
    assert machine.do("create", file) == f"one is domain {machine.domains()['one']['domid']}\n"
    assert machine.domains().keys() == _NATIVE | {"one"}
    header, *rows = machine.do("list").splitlines()
    assert header.split() == ["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"]
    assert len(rows) == len(_NATIVE) + 1
    machine.wait_prompt("one")
    domid = machine.domains()["one"]["domid"]

    assert machine.do("domid", "one").strip() == str(domid)
    assert machine.do("domname", str(domid)).strip() == "one"
    assert machine.run("one", "echo $((6 * 7))") == "42\n"
    machine.do("pause", "one")
    assert machine.domains()["one"]["state"][2] == "p"
    machine.do("unpause", str(domid))
    machine.do("rename", "one", "uno")
    assert machine.do("store", "read", f"/local/domain/{domid}/name").strip() == "uno"
    machine.do("rename", "uno", "one")
    machine.do("vcpu-set", "one", "2")
    present = "/sys/devices/system/cpu/cpu1/online"  # Linux leaves it to udev to use a vCPU that it has got
    machine.run("one", f"until [ -e {present} ]; do sleep 0.1; done; echo 1 > {present}")
    machine.wait(lambda: machine.json("vcpu-list", "one")[1]["cpu"] is not None, "the second vCPU")
    machine.do("mem-set", "one", "128MiB")
    machine.wait(lambda: machine.domains()["one"]["memory_mib"] == 128, "the smaller memory")
    machine.do("sched-credit2", "-d", "one", "-w", "512")
    assert machine.json("sched-credit2", "-d", "one")[0]["weight"] == 512
    machine.do("sysrq", "one", "h")
    machine.wait_console("one", "sysrq: HELP")

    boots = machine.console("one").count(_MOTD)
    machine.do("reboot", "one")
    machine.wait(lambda: machine.domains().get("one", {}).get("domid", domid) != domid, "the guest again")
    machine.wait(lambda: machine.console("one").count(_MOTD) > boots, "its greeting")
    assert machine.run("one", "echo again") == "again\n"
    machine.do("shutdown", "--wait", "one")
    assert machine.domains().keys() == _NATIVE
    assert machine.do("store", "ls", "/vm").count("\n") == 1
    assert f"/local/domain/{domid}" not in machine.do("store", "ls", "/local/domain")


def test_a_guest_that_runs_a_command_and_ends_is_gone(machine: Background, kernel: Kernel) -> None:
    machine.do("create", "--kernel", kernel("debian-cloud"), "--name", "worker", "--exec", "echo done; exit 3")
    machine.wait(lambda: "worker" not in machine.domains(), "the end of the worker")
    assert "xenolith: exit status 3" in machine.console("worker")


def test_a_guest_goes_on_when_every_service_is_killed(machine: Background, kernel: Kernel) -> None:
    """Its console, its store and the toolstack come back by themselves, and nothing was lost."""
    machine.do("create", "--kernel", kernel("debian-cloud"), "--name", "survivor", "--memory", "128MiB")
    machine.wait_prompt("survivor")
    for number in range(3):
        for service in ("store", "console", "builder", "hardware", "block", "net", "9p"):
            machine.do("service", "kill", service)
        machine.wait(lambda: all(row["up"] for row in machine.json("service", "list")), "all services", 5)
        assert machine.run("survivor", f"echo {number} again") == f"{number} again\n"
    assert {row["starts"] for row in machine.json("service", "list")} == {4}
    machine.do("shutdown", "--wait", "survivor")


def test_what_users_get_wrong(machine: Background, kernel: Kernel, tmp_path: Path) -> None:
    hello = ("create", "--kernel", kernel("debian-cloud"), "--paused", "--memory", "96MiB")
    machine.do(*hello, "--name", "twin")
    free = machine.json("info")["free_memory_mib"]
    assert "there is a domain 'twin' already" in machine.refused(*hello, "--name", "twin")
    assert "more than the machine has left" in machine.refused(*hello, "--name", "big", "--memory", "64GiB")
    assert "there is no domain 'nobody'" in machine.refused("destroy", "nobody")
    assert "there is no domain '99'" in machine.refused("console", "99")
    assert "cannot have 7 vCPUs" in machine.refused("vcpu-set", "twin", "7")
    assert "at most 96 MiB" in machine.refused("mem-set", "twin", "128MiB")
    assert "does not answer" in machine.refused("shutdown", "twin")
    assert "ENOENT" in machine.refused("store", "read", "/nothing")
    assert "runs already" in machine.refused("boot", "--preset", "split", "--detach")
    assert "there is no preset" in machine.refused("boot", "--preset", "spilt", "--name", "other")
    assert "no machine 'other' runs" in machine.refused("list", "-M", "other")
    assert "cannot be the name" in machine.refused("list", "-M", "../x")
    assert "cannot have weight 65536" in machine.refused("sched-credit2", "-d", "twin", "-w", "65536")
    assert "cannot be given capabilities" in machine.refused(*hello, "--name", "x", 'capabilities=["control"]')
    assert "that the machine does not have" in machine.refused(*hello, "--name", "x", "cpus=7")
    missing = machine.refused(*hello, "--name", "x", "--disk", f"{tmp_path}/nothing.img,raw,xvda,rw")
    assert "nothing.img" in missing
    assert machine.json("info")["free_memory_mib"] == free
    assert machine.domains().keys() == _NATIVE | {"twin"}
    machine.do("destroy", "twin")


def test_presets_and_policy(tmp_path: Path, kernel: Kernel) -> None:
    """One control domain that has everything; what each may do and has done is shown."""
    with background(tmp_path, "--preset", "classic") as machine:
        assert [row["name"] for row in machine.json("list")] == ["control"]
        machine.do("create", "--kernel", kernel("debian-cloud"), "--name", "one", "--paused", "--memory", "96MiB")
        control, guest = machine.json("policy", "show")
        assert set(control["capabilities"]) == {"control", "create", "hardware", "console", "store"}
        assert control["uses"]["XEN_DOMCTL_createdomain"] == 1
        assert guest["capabilities"] == []
        assert [place["name"] for place in machine.json("machines")] == ["default"]
        machine.do("halt")
        assert machine.json("machines") == []
        assert not machine.place.exists()
