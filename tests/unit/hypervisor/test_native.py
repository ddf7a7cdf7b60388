"""How a native domain finds out which of its event channels are pending."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hypervisor.support import Bench
from xenolith.hypervisor.domain import Capability
from xenolith.hypervisor.native import take_pending


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 80)))
def test_every_port_that_was_signalled_is_taken_once(signalled: set[int]) -> None:
    hv = Bench()
    native = hv.create_native_domain("service", Capability.NONE, lambda: None)
    guest = hv.guest()
    ports = []
    for _ in range(81):
        theirs = guest.domain.events.alloc_unbound(native.domid)
        mine = native.events.bind_interdomain(guest.domain, theirs)
        ports.append((theirs, mine))
    take_pending(hv, native)
    for index in signalled:
        guest.domain.events.send(ports[index][0])
    assert take_pending(hv, native) == sorted(ports[index][1] for index in signalled)
    assert take_pending(hv, native) == []
    for index in signalled:
        guest.domain.events.send(ports[index][0])
    assert len(take_pending(hv, native)) == len(signalled), "and can be signalled again"


def test_an_event_has_the_service_called_once_for_all_that_is_pending() -> None:
    hv = Bench()
    calls: list[list[int]] = []
    native = hv.create_native_domain("service", Capability.NONE, lambda: calls.append(take_pending(hv, native)))
    guest = hv.guest()
    ports = [guest.domain.events.alloc_unbound(native.domid) for _ in range(2)]
    mine = [native.events.bind_interdomain(guest.domain, port) for port in ports]
    hv.step()
    calls.clear()
    for port in ports:
        guest.domain.events.send(port)
    assert not calls, "never inside the guest's own call"
    hv.step()
    assert calls == [mine]
    hv.step()
    assert calls == [mine]
