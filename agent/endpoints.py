"""The CRI runtimes of this node, and which handler belongs to which.

One rule: an allocation lives in one runtime, found by its handler; what the ledger doesn't know may be in any.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agent import fencer
from agent.notes import Notes
from cri.client import CriClient
from cri.convert import (
    OURS,
    ContainerWish,
    ObservedContainer,
    ObservedSandbox,
    observed_container,
    observed_sandbox,
    of_allocation,
)
from cri.errors import Unavailable

EndTask = Callable[[str], Awaitable[None]]
"""Ends what a runtime still has of a container that it says has ended. Raises RuntimeFailed."""
ZONES = "edera"
"""The handler whose sandboxes are virtual machines beside this host's."""


@dataclass(frozen=True)
class Endpoint:
    client: CriClient
    handlers: tuple[str, ...]
    """Named by the runtime or by a person; a canary has to prove each."""
    simulated: bool = False
    cgroup_parent: str = ""
    notes: Notes | None = None
    """What is on record of its containers apart from the runtime."""
    end_task: EndTask | None = None
    """For a runtime that is ours alone; none for others'."""


@dataclass(frozen=True)
class Listing:
    """What bears our labels in one runtime."""

    sandboxes: tuple[ObservedSandbox, ...]
    containers: tuple[ObservedContainer, ...]


class Endpoints:
    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        """Raises ValueError when two of them have one handler."""
        self.all = tuple(endpoints)
        self._by_handler: dict[str, Endpoint] = {}
        for endpoint in endpoints:
            for handler in endpoint.handlers:
                if handler in self._by_handler:
                    raise ValueError(
                        f"the handler {handler} is given for {self._by_handler[handler].client.endpoint} and for "
                        f"{endpoint.client.endpoint}; give it to one --cri-endpoint"
                    )
                self._by_handler[handler] = endpoint

    @property
    def handlers(self) -> tuple[str, ...]:
        return tuple(self._by_handler)

    @property
    def simulated(self) -> bool:
        return any(e.simulated for e in self.all)

    @property
    def fenceable(self) -> bool:
        """Whether the fencer can end what runs with one of the handlers here."""
        return any(not self.why_unfenceable(h) for h in self._by_handler)

    def why_unfenceable(self, handler: str) -> str:
        """Why the fencer can't end what runs with this handler; empty when it can."""
        endpoint = self._by_handler.get(handler)
        if endpoint is not None and endpoint.simulated:
            return ""
        if handler == ZONES:
            return "the zones of Edera are no processes of this host, so nothing can end them when their runtime hangs"
        if not fencer.can_fence():
            return f"this agent can't end processes by their cgroups: it must be root, and {fencer.CGROUPS} be there"
        return ""

    def find(self, handler: str) -> Endpoint | None:
        return self._by_handler.get(handler)

    def find_for(self, wish: ContainerWish | None) -> Endpoint | None:
        """Where this is to run. None: no runtime here has its handler, or nobody knows what it was."""
        return self.find(wish.handler) if wish is not None else None

    def of(self, handler: str) -> Endpoint:
        """Raises Unavailable when no runtime here has it."""
        endpoint = self._by_handler.get(handler)
        if endpoint is None:
            has = ", ".join(sorted(self._by_handler)) or "none"
            raise Unavailable(f"no runtime of this node has the handler {handler} (it has: {has})")
        return endpoint


async def list_ours(client: CriClient, allocation_id: str = "") -> Listing:
    """All of ours there, or all that one allocation has."""
    labels = of_allocation(allocation_id) if allocation_id else OURS
    # In this order: a container that is listed without its sandbox would be taken for one whose sandbox died.
    containers = await client.list_containers(labels)
    sandboxes = await client.list_pod_sandboxes(labels)
    return Listing(tuple(observed_sandbox(s) for s in sandboxes), tuple(observed_container(c) for c in containers))
