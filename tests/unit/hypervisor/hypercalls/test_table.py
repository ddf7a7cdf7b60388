"""The edge at which hypercalls are decoded: every handler stands in the ABI's table, and nothing is read too early."""

from __future__ import annotations

import inspect

import pytest

from tests.unit.hypervisor.support import Bench, Guest
from xenolith.abi.domctl import XEN_DOMCTL_createdomain
from xenolith.abi.errno import EFAULT, ENOSYS, EPERM
from xenolith.abi.hypercalls import BY_NUMBER, HYPERCALLS, HYPERVISOR_domctl, HYPERVISOR_memory_op, HYPERVISOR_sched_op
from xenolith.abi.memory import XENMEM_machine_memory_map
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.hypercalls import load_all
from xenolith.hypervisor.hypercalls.table import HANDLERS, OPERATIONS, run_operation

load_all()


@pytest.fixture
def guest() -> Guest:
    return Bench().guest()


@pytest.mark.parametrize("number", sorted(HANDLERS), ids=lambda number: BY_NUMBER[number].name)
def test_a_handler_takes_the_arguments_that_the_abi_declares(number: int) -> None:
    declared = BY_NUMBER[number].arguments
    assert len(inspect.signature(HANDLERS[number]).parameters) == 2 + len(declared)


@pytest.mark.parametrize("key", sorted(OPERATIONS), ids=lambda key: OPERATIONS[key].name)
def test_an_operations_handler_says_what_it_is_and_takes_one_argument(key: tuple[int, int]) -> None:
    bound = OPERATIONS[key]
    declared = next(op for op in BY_NUMBER[key[0]].operations if op.number == key[1])
    assert bound.name == declared.name
    assert bound.argument in (declared.argument, None)
    if not bound.refuses:
        assert len(inspect.signature(bound.handler).parameters) == _parameters(key)


def _parameters(key: tuple[int, int]) -> int:
    """The hypervisor, the caller and the argument; of a domctl also the domain that it is about."""
    if key[0] != HYPERVISOR_domctl or key[1] == XEN_DOMCTL_createdomain:
        return 3
    return 3 if OPERATIONS[key].argument is None else 4


def test_every_operation_belongs_to_a_hypercall_that_is_handled() -> None:
    assert {number for number, _ in OPERATIONS} <= set(HANDLERS)
    assert set(HANDLERS) <= {call.number for call in HYPERCALLS}


def test_what_is_not_implemented_is_counted_and_told_once(guest: Guest) -> None:
    for _ in range(3):
        assert guest.call(HYPERVISOR_sched_op, 99, 0) == -ENOSYS
    assert guest.hv.unimplemented[HYPERVISOR_sched_op, 99] == 3
    assert [kind for kind, _ in guest.hv.events].count("unimplemented") == 1


def test_a_capability_is_checked_before_anything_is_read(guest: Guest) -> None:
    assert guest.call(HYPERVISOR_memory_op, XENMEM_machine_memory_map, 0) == -EPERM
    guest.domain.capabilities = Capability.HARDWARE
    assert guest.call(HYPERVISOR_memory_op, XENMEM_machine_memory_map, 0) == -EFAULT


@pytest.mark.parametrize("key", sorted(OPERATIONS), ids=lambda key: OPERATIONS[key].name)
def test_an_argument_that_cannot_be_read_reaches_no_handler(key: tuple[int, int], guest: Guest) -> None:
    if OPERATIONS[key].argument is None:
        return
    guest.domain.capabilities = Capability.ALL
    from xenolith.abi.errno import XenError

    for vaddr in (0, 0xFFFF_8000_0000_0000, (1 << 64) - 1):
        with pytest.raises(XenError) as caught:
            run_operation(guest.hv, guest.vcpu, *key, vaddr)
        assert caught.value.errno == EFAULT
