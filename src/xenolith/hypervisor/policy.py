"""Who may do what to whom: the one place that decides, and that says, logs and counts uses and refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from xenolith.abi.errno import EPERM, XenError
from xenolith.hypervisor.domain import Capability, Domain


@dataclass(frozen=True, slots=True)
class Standing:
    """What one domain may do, and what it has done.

    `targets` are the domids that CONTROL is over, None for everybody; `created` those that it may control because it
    made them. `uses` and `refusals` count by action what went beyond the domain's own affairs.
    """

    domid: int
    capabilities: tuple[str, ...]
    targets: tuple[int, ...] | None
    created: tuple[int, ...]
    port_ranges: tuple[tuple[int, int], ...]
    iomem_ranges: tuple[tuple[int, int], ...]
    uses: dict[str, int]
    refusals: dict[str, int]


class Policy:
    """Decides by the subject's capabilities alone; a domid decides nothing. `report` is told of each refusal."""

    def __init__(self, report: Callable[[str], None] = lambda text: None) -> None:
        self.report = report
        self.uses: Counter[tuple[int, str]] = Counter()
        self.refusals: Counter[tuple[int, str]] = Counter()

    def require(self, subject: Domain, capability: Capability, action: str) -> None:
        """Raise XenError(EPERM) unless `subject` holds `capability`, which `action` needs."""
        if capability not in subject.capabilities:
            self._refuse(subject, action, f"needs the capability {capability.name}")
        self.uses[subject.domid, action] += 1

    def require_any(self, subject: Domain, capabilities: Capability, action: str) -> None:
        """Raise XenError(EPERM) unless `subject` holds one of `capabilities`."""
        if not capabilities & subject.capabilities:
            names = " or ".join(str(capability.name) for capability in capabilities)
            self._refuse(subject, action, f"needs the capability {names}")
        self.uses[subject.domid, action] += 1

    def require_target(self, subject: Domain, target: Domain, action: str) -> None:
        """Raise XenError(EPERM) unless `subject` acts on itself, on a domain that it controls, or one that it made."""
        if subject is target:
            return
        if not self.controls(subject, target):
            self._refuse(subject, action, _why_not(subject, target))
        self.uses[subject.domid, action] += 1

    def require_control(self, subject: Domain, target: Domain, action: str) -> None:
        """Raise XenError(EPERM) unless `subject` controls `target`; nobody controls itself by being itself."""
        if not self.controls(subject, target):
            self._refuse(subject, action, _why_not(subject, target))
        self.uses[subject.domid, action] += 1

    def controls(self, subject: Domain, target: Domain) -> bool:
        """Whether `subject` may act on a domain beyond its own affairs: by CONTROL over it, or because it made it."""
        if Capability.CONTROL in subject.capabilities and (subject.targets is None or target.domid in subject.targets):
            return True
        return Capability.CREATE in subject.capabilities and target.creator == subject.domid

    def require_foreign_special(self, subject: Domain, owner_domid: int, action: str) -> None:
        """Raise XenError(EPERM) unless `subject` may map frames of DOMID_IO (device memory) or DOMID_XEN (shared)."""
        if not subject.capabilities & (Capability.HARDWARE | Capability.CONTROL):
            self._refuse(subject, action, f"frames of domid {owner_domid:#x} need HARDWARE or CONTROL")
        self.uses[subject.domid, action] += 1

    def require_own(self, subject: Domain, owns: bool, what: str, action: str) -> None:
        """Raise XenError(EPERM) unless the subject has `what` itself: nobody gives away what it has not."""
        if not owns:
            self._refuse(subject, action, f"it has not {what} itself")

    def _refuse(self, subject: Domain, action: str, rule: str) -> None:
        self.refusals[subject.domid, action] += 1
        text = f"domain {subject.domid} may not {action}: {rule}"
        self.report(text)
        raise XenError(EPERM, text)

    # -- showing ------------------------------------------------------------------------------------------------------

    def standing(self, subject: Domain, created: tuple[int, ...] = ()) -> Standing:
        """What `subject` may do, having `created` these domains, and what it has done."""
        return Standing(
            subject.domid,
            tuple(str(capability.name).lower() for capability in subject.capabilities),
            None if subject.targets is None else tuple(sorted(subject.targets)),
            created,
            tuple(subject.port_ranges),
            tuple(subject.iomem_ranges),
            {action: count for (domid, action), count in self.uses.items() if domid == subject.domid},
            {action: count for (domid, action), count in self.refusals.items() if domid == subject.domid},
        )

    def forget(self, domid: int) -> None:
        """A domain is gone: its number may be another's one day."""
        for counts in (self.uses, self.refusals):
            for key in [key for key in counts if key[0] == domid]:
                del counts[key]


def _why_not(subject: Domain, target: Domain) -> str:
    if Capability.CONTROL in subject.capabilities:
        return f"domain {target.domid} is none of those that its CONTROL is over"
    if Capability.CREATE in subject.capabilities:
        return f"domain {target.domid} is not its own and it lacks CONTROL, nor did it create it"
    if subject is target:
        return "it lacks CONTROL"
    return f"domain {target.domid} is not its own and it lacks CONTROL"
