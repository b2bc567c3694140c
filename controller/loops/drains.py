"""The drain pass: how far each node's drain has come, so that its end is told once.

One rule: it decides nothing. What leaves a node is planned with its workload; this only has them looked at again while
the drain lasts, since room elsewhere comes and goes without a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from controller.loops.ports import Clock, DrainStore
from controller.plan.progress import Progress, concerned, progress_of
from controller.store.contract import AllocationFilter
from kakuri.model import Allocation, Node


@dataclass(frozen=True, slots=True)
class Drained:
    """progress: of each drain that is not done yet, by its node."""

    progress: Mapping[str, Progress] = field(default_factory=dict)

    @property
    def dirty(self) -> frozenset[str]:
        """Workloads to plan again: they have something to leave a node yet, or to come up elsewhere."""
        left = {x.workload for p in self.progress.values() for x in p.left}
        return frozenset(left | {x.workload for p in self.progress.values() for x in p.waiting})


class DrainPass:
    def __init__(self, store: DrainStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def __call__(self, *, epoch: int) -> Drained:
        going_on: dict[str, Progress] = {}
        for node in await self._store.draining_nodes():
            drain = node.status.drain
            if drain is None or drain.drained_at is not None:
                continue
            progress = await self._progress(node)
            if progress.done:
                await self._store.record_drained(node.id, drain, epoch=epoch, now=self._clock.now())
            else:
                going_on[node.id] = progress
        return Drained(going_on)

    async def _progress(self, node: Node) -> Progress:
        owners = await self._owners_on(node.id)
        snapshot = await self._store.load_snapshot(owners, now=self._clock.now(), seed="")
        return progress_of(node.id, snapshot)

    async def _owners_on(self, node: str) -> list[str]:
        rows: list[Allocation] = []
        after: str | None = None
        while True:
            page = await self._store.list_allocations(AllocationFilter(node=node), after=after)
            rows += page.items
            after = page.next
            if after is None:
                return concerned(rows)
