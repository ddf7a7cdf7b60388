"""Binds handlers to the hypercall table of the ABI and runs sub-operations: the edge where arguments are decoded.

A handler takes the hypervisor, the calling vCPU and decoded arguments, and returns a result of 0 or above or raises
XenError; it never sees an engine. A handler of a sub-operation takes the operation's argument structure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from xenolith.abi.errno import ENOSYS, XenError
from xenolith.abi.hypercalls import BY_NUMBER
from xenolith.abi.types import Struct
from xenolith.cpu.registers import MASK64
from xenolith.hypervisor.domain import Capability

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

Handler = Callable[..., int]
_F = TypeVar("_F", bound=Callable[..., Any])


class Continuation(Exception):
    """Raised by a handler that has done a part of long work: the guest makes the call again, with these arguments.

    Between the parts the vCPU takes events, and others run; so no count that a guest names keeps the machine busy.
    """

    def __init__(self, *arguments: int) -> None:
        super().__init__(arguments)
        self.arguments = tuple(argument & MASK64 for argument in arguments)


class Reported(XenError):
    """An error of which the argument structure, which is copied back in spite of it, says more."""


class BoundOperation(NamedTuple):
    """A sub-operation's handler, its argument structure (None: the handler takes the raw address) and what it needs."""

    name: str
    handler: Callable[..., int | None]
    argument: type[Struct] | None
    copy_back: bool
    needs: Capability
    refuses: int = 0
    """The error that is always the answer; 0 for an operation that does something."""


HANDLERS: Final[dict[int, Handler]] = {}
OPERATIONS: Final[dict[tuple[int, int], BoundOperation]] = {}


def hypercall(number: int) -> Callable[[_F], _F]:
    """Declare the handler of a whole hypercall: it takes the register arguments as unsigned 64-bit integers."""

    def bind(handler: _F) -> _F:
        HANDLERS[number] = handler
        return handler

    return bind


def operation(
    number: int, command: int, *, copy_back: bool = False, needs: Capability = Capability.NONE, raw: bool = False
) -> Callable[[_F], _F]:
    """Declare the handler of a sub-operation.

    It takes the argument structure that the ABI table names (or, with `raw`, the argument's address), which is copied
    back to the caller after success if `copy_back` is set. `needs` is checked before anything is read.
    """
    declared = next(op for op in BY_NUMBER[number].operations if op.number == command)

    def bind(handler: _F) -> _F:
        argument = None if raw else declared.argument
        OPERATIONS[number, command] = BoundOperation(declared.name, handler, argument, copy_back, needs)
        return handler

    return bind


def refuse(number: int, command: int, error: int, reason: str) -> None:
    """Declare a sub-operation that is always answered with `error`, as by a Xen without that feature or hardware."""
    declared = next(op for op in BY_NUMBER[number].operations if op.number == command)

    def handler(*arguments: Any) -> int:
        raise XenError(error, f"{declared.name}: {reason}")

    OPERATIONS[number, command] = BoundOperation(declared.name, handler, None, False, Capability.NONE, error)


def run_operation(hv: Hypervisor, caller: Vcpu, number: int, command: int, vaddr: int) -> int:
    """Decode and run sub-operation `command` of hypercall `number` whose argument lies at guest address `vaddr`.

    Raises XenError: ENOSYS for what is not implemented (counted), EPERM, EFAULT, or what the handler raises.
    """
    bound = OPERATIONS.get((number, command))
    if bound is None:
        hv.count_unimplemented(number, command)
        raise XenError(ENOSYS)
    if bound.needs:
        hv.policy.require(caller.domain, bound.needs, bound.name)
    if bound.argument is None:
        return bound.handler(hv, caller, vaddr) or 0
    argument = bound.argument.from_bytes(hv.memory.read(caller, vaddr, bound.argument.sizeof()))
    result = bound.handler(hv, caller, argument) or 0
    if bound.copy_back:
        hv.memory.write(caller, vaddr, argument.to_bytes())
    return result
