"""What others wrote: API calls that another controller served, which could not kick our loops.

One rule: it says what to look at and nothing else; the passes look at all of it again.
"""

from dataclasses import dataclass

from controller.loops.ports import FollowStore
from controller.store.contract import Expired
from kakuri.model import workload_of

FOLLOW_S = 5.0
"""Between two looks when nothing kicked. The database tells of each commit; this is for when it could not."""
_MAX_CHANGES = 1000


@dataclass(frozen=True, slots=True)
class Followed:
    workloads: frozenset[str] = frozenset()
    """To plan again."""
    nodes: bool = False
    """Some node or runtime class changed."""
    missed: bool = False
    """Not all that changed is known: any workload may have."""
    more: bool = False
    """There is more to follow, now."""


class FollowPass:
    def __init__(self, store: FollowStore) -> None:
        self._store = store
        self._position: int | None = None

    async def __call__(self) -> Followed:
        """What others changed since the last call; at the first, all may have changed. Raises Unavailable."""
        if self._position is None:
            self._position = await self._store.resource_version()
            return Followed(nodes=True, missed=True)
        try:
            changes, self._position = await self._store.changes_by_others(self._position, limit=_MAX_CHANGES)
        except Expired:
            self._position = await self._store.resource_version()
            return Followed(nodes=True, missed=True)
        workloads = {c.id for c in changes if c.kind == "Workload"}
        workloads |= {workload_of(c.id) for c in changes if c.kind == "Allocation"}
        return Followed(
            workloads=frozenset(workloads),
            nodes=any(c.kind in {"Node", "RuntimeClass"} for c in changes),
            more=len(changes) == _MAX_CHANGES,
        )
