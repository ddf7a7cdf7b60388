"""Who may do what to whom: the one place that decides, and that says, logs and counts each refusal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from xenolith.abi.errno import EPERM, XenError
from xenolith.hypervisor.domain import Capability, Domain


class Policy:
    """Decides by the subject's capabilities alone; a domid decides nothing. `report` is told of each refusal."""

    def __init__(self, report: Callable[[str], None] = lambda text: None) -> None:
        self.report = report
        self.refusals: Counter[tuple[int, str]] = Counter()

    def require(self, subject: Domain, capability: Capability, action: str) -> None:
        """Raise XenError(EPERM) unless `subject` holds `capability`, which `action` needs."""
        if capability not in subject.capabilities:
            self._refuse(subject, action, f"needs the capability {capability.name}")

    def require_target(self, subject: Domain, target: Domain, action: str) -> None:
        """Raise XenError(EPERM) unless `subject` acts on itself or controls other domains."""
        if subject is not target and Capability.CONTROL not in subject.capabilities:
            self._refuse(subject, action, f"domain {target.domid} is not its own and it lacks CONTROL")

    def require_foreign_special(self, subject: Domain, owner_domid: int, action: str) -> None:
        """Raise XenError(EPERM) unless `subject` may map frames of DOMID_IO (device memory) or DOMID_XEN (shared)."""
        if not subject.capabilities & (Capability.HARDWARE | Capability.CONTROL):
            self._refuse(subject, action, f"frames of domid {owner_domid:#x} need HARDWARE or CONTROL")

    def _refuse(self, subject: Domain, action: str, rule: str) -> None:
        self.refusals[subject.domid, action] += 1
        text = f"domain {subject.domid} may not {action}: {rule}"
        self.report(text)
        raise XenError(EPERM, text)
