"""The drain pass: how far each node's drain has come, so that its end is told once.

One rule: it decides nothing. What leaves a node is planned with its workload; this only has them looked at again while
the drain lasts, since room elsewhere comes and goes without a word.
"""

from dataclasses import dataclass

from controller.loops.ports import Clock, DrainStore
from controller.plan.progress import Progress, progress_of
from controller.store.contract import AllocationFilter
from kakuri.model import Node


@dataclass(frozen=True, slots=True)
class Drained:
    """dirty: workloads to plan again. going_on: a drain is not done yet."""

    dirty: frozenset[str] = frozenset()
    going_on: bool = False


class DrainPass:
    def __init__(self, store: DrainStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def __call__(self, *, epoch: int) -> Drained:
        dirty: set[str] = set()
        going_on = False
        for node in await self._store.draining_nodes():
            drain = node.status.drain
            if drain is None or drain.drained_at is not None:
                continue
            progress = await self._progress(node)
            if progress.done:
                await self._store.record_drained(node.id, drain, epoch=epoch, now=self._clock.now())
            going_on = going_on or not progress.done
            dirty |= {x.workload for x in progress.left} | {x.workload for x in progress.waiting}
        return Drained(frozenset(dirty), going_on)

    async def _progress(self, node: Node) -> Progress:
        owners = await owners_on(self._store, node.id)
        snapshot = await self._store.load_snapshot(owners, now=self._clock.now(), seed="")
        return progress_of(node.id, snapshot)


async def owners_on(store: DrainStore, node: str) -> list[str]:
    """The workloads that have an allocation there, live or ended."""
    owners: set[str] = set()
    after: str | None = None
    while True:
        page = await store.list_allocations(AllocationFilter(node=node), after=after)
        owners |= {a.workload for a in page.items}
        after = page.next
        if after is None:
            return sorted(owners)
