"""What the runtimes have of one allocation, as far as it was looked at, and which of them has it.

One rule: what a runtime says that it did is not what is: an end counts when a look shows it. What only our own notes
know of a start or an end stands beside what the runtime says.
"""

from collections.abc import Sequence
from dataclasses import replace

from agent.clock import Clock
from agent.endpoints import Endpoint, Endpoints, list_ours
from agent.entry import Entry
from agent.notes import Notes
from agent.seen import Seen
from agent.step import is_end_unknown
from cri.client import CriClient
from cri.convert import ObservedContainer, ObservedSandbox, observed_container, observed_sandbox
from cri.errors import RuntimeFailed

TASK_LEFT = "cannot delete running task"
"""containerd's words for a container that has ended for CRI while a process of it may be there."""


class Sight:
    """Each method raises CriError, and then what was seen before stands."""

    def __init__(self, allocation_id: str, endpoints: Endpoints, clock: Clock, seen: Seen) -> None:
        self.seen = seen
        self._id = allocation_id
        self._endpoints = endpoints
        self._clock = clock
        self._homes: dict[str, CriClient] = {}

    async def look(self, entry: Entry) -> None:
        """All that bears the allocation's label has been listed."""
        at_ns = self._clock.now_ns()
        sandboxes: list[ObservedSandbox] = []
        containers: list[ObservedContainer] = []
        for endpoint in self._where(entry):
            listing = await list_ours(endpoint.client, self._id)
            sandboxes += listing.sandboxes
            containers += listing.containers
            for id_ in (*(s.id for s in listing.sandboxes), *(c.id for c in listing.containers)):
                self._homes[id_] = endpoint.client
        self.seen = self._noted(entry, self.seen.listed(sandboxes, containers, at_ns))

    async def inspect_sandbox(self, entry: Entry, id_: str) -> None:
        status = await self.home(entry, id_).pod_sandbox_status(id_)
        self.seen = self.seen.with_sandbox(observed_sandbox(status), inspected=True)

    async def inspect_container(self, entry: Entry, id_: str) -> None:
        status = await self.home(entry, id_).container_status(id_)
        sandbox_id = next((c.sandbox_id for c in self.seen.containers if c.id == id_), "")
        container = self._with_noted_end(entry, observed_container(status, sandbox_id=sandbox_id))
        self.seen = self._noted(entry, self.seen.with_container(container, inspected=True))
        if container.state == "exited" and self.seen.sandbox(sandbox_id) is not None:
            self.seen = self.seen.suspected(sandbox_id)

    async def remove_container(self, entry: Entry, id_: str) -> None:
        """The runtime has it no more, nor anything of it that it had forgotten."""
        client = self.home(entry, id_)
        try:
            await client.remove_container(id_)
        except RuntimeFailed as error:
            endpoint = next(e for e in self._endpoints.all if e.client is client)
            if endpoint.end_task is None or TASK_LEFT not in error.message:
                raise
            await endpoint.end_task(id_)
            await client.remove_container(id_)

    def home(self, entry: Entry, id_: str) -> CriClient:
        """The runtime that has this sandbox or container of it."""
        if entry.wish is not None:
            return self._endpoints.of(entry.wish.handler).client
        return self._homes[id_]

    def may_run(self, id_: str) -> tuple[str, ...]:
        """Of this container, or of those in this sandbox."""
        return tuple(c.id for c in self.seen.containers if id_ in {c.id, c.sandbox_id} and c.may_run)

    def check_ended(self, ids: Sequence[str]) -> None:
        """None of these containers was seen running. Raises RuntimeFailed."""
        if any(c.id in ids and c.may_run for c in self.seen.containers):
            raise RuntimeFailed("the runtime says that this is done, and that the container still runs")

    def _where(self, entry: Entry) -> Sequence[Endpoint]:
        return self._endpoints.all if entry.wish is None else (self._endpoints.of(entry.wish.handler),)

    def _noted(self, entry: Entry, seen: Seen) -> Seen:
        """With what is on record of its containers apart from the runtime."""
        notes = self._notes(entry)
        if entry.wish is None or notes is None:
            return seen
        told = {c.id: notes.has_begun(entry.wish.handler, c.id) for c in seen.containers}
        return replace(seen, begun={id_: begun for id_, begun in told.items() if begun is not None})

    def _with_noted_end(self, entry: Entry, container: ObservedContainer) -> ObservedContainer:
        notes = self._notes(entry)
        end = notes.end_of(container.id) if notes is not None and is_end_unknown(container) else None
        if end is None:
            return container
        return replace(container, exit_code=end.exit_code, reason="", message="", finished_at_ns=end.finished_at_ns)

    def _notes(self, entry: Entry) -> Notes | None:
        endpoint = self._endpoints.find_for(entry.wish)
        return endpoint.notes if endpoint is not None else None
