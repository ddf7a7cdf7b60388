"""Who may do what: capabilities decide, a domid never does, and every refusal is told and counted."""

from __future__ import annotations

import pytest

from xenolith.abi.errno import EPERM, XenError
from xenolith.abi.types import DOMID_IO, DOMID_XEN
from xenolith.hypervisor.domain import Capability, Domain
from xenolith.hypervisor.policy import Policy


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def policy(told: list[str]) -> Policy:
    return Policy(told.append)


def domain(domid: int, capabilities: Capability = Capability.NONE) -> Domain:
    return Domain(domid, "d", 0, capabilities)


def refuses(action: object) -> bool:
    try:
        action()  # type: ignore[operator]
    except XenError as error:
        return error.errno == EPERM
    return False


@pytest.mark.parametrize("domid", [0, 1, 0x7FEF])
@pytest.mark.parametrize("needed", [Capability.CONTROL, Capability.HARDWARE, Capability.CONSOLE, Capability.STORE])
def test_a_capability_is_had_or_not_whatever_the_domid(policy: Policy, domid: int, needed: Capability) -> None:
    assert not refuses(lambda: policy.require(domain(domid, needed), needed, "do it"))
    assert not refuses(lambda: policy.require(domain(domid, Capability.ALL), needed, "do it"))
    assert refuses(lambda: policy.require(domain(domid, Capability.ALL & ~needed), needed, "do it"))


def test_everybody_acts_on_itself_and_control_on_all(policy: Policy) -> None:
    plain, control, driver = domain(1), domain(2, Capability.CONTROL), domain(0, Capability.HARDWARE)
    assert not refuses(lambda: policy.require_target(plain, plain, "do it"))
    assert not refuses(lambda: policy.require_target(control, plain, "do it"))
    assert refuses(lambda: policy.require_target(plain, control, "do it"))
    assert refuses(lambda: policy.require_target(driver, plain, "do it"))


@pytest.mark.parametrize("owner", [DOMID_IO, DOMID_XEN])
def test_the_special_owners_are_for_the_privileged(policy: Policy, owner: int) -> None:
    for capability in (Capability.HARDWARE, Capability.CONTROL):
        policy.require_foreign_special(domain(1, capability), owner, "map")
    for capability in (Capability.NONE, Capability.CONSOLE | Capability.STORE):
        assert refuses(
            lambda capability=capability: policy.require_foreign_special(domain(0, capability), owner, "map")
        )


def test_refusals_are_told_and_counted(policy: Policy, told: list[str]) -> None:
    subject = domain(5)
    for _ in range(2):
        with pytest.raises(XenError, match="domain 5 may not power off: needs the capability HARDWARE"):
            policy.require(subject, Capability.HARDWARE, "power off")
    assert policy.refusals == {(5, "power off"): 2}
    assert told == ["domain 5 may not power off: needs the capability HARDWARE"] * 2
    policy.require_target(subject, subject, "anything")
    assert len(told) == 2
