"""Which workloads to look at: those marked dirty, now, and those whose time has come. Marks bear no other payload."""

import asyncio
import heapq
from collections.abc import Iterable
from datetime import datetime


class Kick:
    """A wake-up. Kicks before the wait count, and many are one."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def __call__(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Returns when kicked since the last wait, or after timeout_s; and whether it was kicked."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            pass
        kicked = self._event.is_set()
        self._event.clear()
        return kicked


class Agenda:
    """Workload ids to plan again. Lost with the process, which is no loss: the sweep walks everything."""

    def __init__(self) -> None:
        self._dirty: dict[str, None] = {}
        self._later: list[tuple[datetime, str]] = []
        self._kick = Kick()

    def add(self, ids: Iterable[str]) -> None:
        before = len(self._dirty)
        self._dirty.update(dict.fromkeys(ids))
        if len(self._dirty) != before:
            self._kick()

    def add_at(self, when: datetime, id_: str) -> None:
        heapq.heappush(self._later, (when, id_))
        self._kick()

    def take(self, limit: int, now: datetime) -> list[str]:
        """Up to limit ids, those marked first first."""
        while self._later and self._later[0][0] <= now:
            self._dirty[heapq.heappop(self._later)[1]] = None
        taken = list(self._dirty)[:limit]
        for id_ in taken:
            del self._dirty[id_]
        return taken

    async def wait(self, now: datetime) -> None:
        """Returns when there may be something to take."""
        if self._dirty:
            return
        pause = (self._later[0][0] - now).total_seconds() if self._later else None
        if pause is not None and pause <= 0:
            return
        await self._kick.wait(pause)
