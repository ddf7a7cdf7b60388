"""A guest's end of a device, as far as it is the same for all kinds: what toolstack and guest write into the store."""

from __future__ import annotations

from collections.abc import Mapping

from tests.unit.services.bench import Services
from xenolith.abi.io.xenbus import XenbusStateInitialising


class Frontend:
    """A domain of its own, called `name`, for a device of `kind` at `service`."""

    def __init__(self, services: Services, service: str, kind: str, device: int, name: str) -> None:
        self.services = services
        self.context = services.domain(name)
        self.kernel = self.context.kernel
        self.backend_domid = services.supervisor.running[service].kernel.domid
        self.front = f"/local/domain/{self.kernel.domid}/device/{kind}/{device}"
        self.back = f"/local/domain/{self.backend_domid}/backend/{kind}/{self.kernel.domid}/{device}"

    def offer(self, back: Mapping[str, str | int]) -> None:
        """What a toolstack does for a device; `back` is what the back end is told."""
        self.services.do(self.services.toolstack, self._make({**back, "online": 1, "frontend": self.front}))
        self.services.turn()

    async def _make(self, back: Mapping[str, str | int]) -> None:
        store = self.services.toolstack.store
        await store.write(f"{self.front}/state", XenbusStateInitialising)
        for path in (self.front, f"{self.front}/state"):
            await store.set_permissions(path, [f"n{self.kernel.domid}", f"r{self.backend_domid}"])
        await store.make(self.back)
        await store.set_permissions(self.back, [f"n{self.backend_domid}", f"r{self.kernel.domid}"])
        for name, value in back.items():
            await store.write(f"{self.back}/{name}", value)

    def says(self, place: str = "", **values: str | int) -> None:
        """Write into the frontend's directory, or what is at `place` in it."""

        async def write() -> None:
            for name, value in values.items():
                await self.context.store.write(f"{self.front}/{place}{name.replace('_', '-')}", value)

        self.services.do(self.context, write())
        self.services.turn()

    def back_node(self, name: str) -> str:
        return self.services.read(f"{self.back}/{name}")

    @property
    def back_state(self) -> int:
        return int(self.back_node("state") or 0)
