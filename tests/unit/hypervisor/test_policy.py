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


def test_control_may_be_over_some_domains_only(policy: Policy) -> None:
    mine, other = domain(5), domain(6)
    control = domain(2, Capability.CONTROL)
    control.targets = frozenset((5,))
    assert not refuses(lambda: policy.require_target(control, mine, "do it"))
    with pytest.raises(XenError, match="domain 6 is none of those that its CONTROL is over"):
        policy.require_target(control, other, "do it")


def test_who_makes_a_domain_controls_it_and_no_other(policy: Policy) -> None:
    builder, made, other = domain(2, Capability.CREATE), domain(5), domain(6)
    made.creator, other.creator = 2, 3
    assert not refuses(lambda: policy.require_target(builder, made, "do it"))
    with pytest.raises(XenError, match="nor did it create it"):
        policy.require_target(builder, other, "do it")
    builder.capabilities = Capability.NONE
    assert refuses(lambda: policy.require_target(builder, made, "do it"))


def test_one_of_several_capabilities_is_enough(policy: Policy) -> None:
    either = Capability.STORE | Capability.CREATE
    policy.require_any(domain(1, Capability.STORE), either, "do it")
    with pytest.raises(XenError, match="needs the capability STORE or CREATE"):
        policy.require_any(domain(1, Capability.CONTROL), either, "do it")


def test_what_was_done_and_refused_is_counted_until_the_domain_is_gone(policy: Policy) -> None:
    subject, other = domain(5, Capability.CONTROL | Capability.STORE), domain(6)
    subject.targets = frozenset((6, 3))
    policy.require_target(subject, other, "pause")
    policy.require_target(subject, subject, "pause")
    policy.require(subject, Capability.STORE, "serve")
    assert refuses(lambda: policy.require(subject, Capability.HARDWARE, "power off"))
    standing = policy.standing(subject, (9,))
    assert (standing.capabilities, standing.targets, standing.created) == (("control", "store"), (3, 6), (9,))
    assert (standing.uses, standing.refusals) == ({"pause": 1, "serve": 1}, {"power off": 1})
    policy.forget(5)
    assert not policy.uses
    assert not policy.refusals


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
