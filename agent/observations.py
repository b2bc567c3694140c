"""What this node tells: the newest status of each allocation, under a revision that counts up with every change.

One rule: a reader that gives back the revision it got misses nothing; one whose revision isn't of this instance, or is
too old, gets everything.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Iterable

from kakuri.agentapi.v1 import agent_pb2 as wire

MAX_GONE = 4096
"""Forgotten ids that are remembered for readers. Fewer, and a reader that was away for a while reads everything."""


class Observations:
    def __init__(self, ledger_uid: str, instance: str | None = None) -> None:
        self.instance = instance or secrets.token_hex(8)
        """A name for this run of the agent."""
        self._ledger_uid = ledger_uid
        self._revision = 1
        self._statuses: dict[str, tuple[int, wire.AllocationStatus]] = {}
        self._gone: deque[tuple[int, str]] = deque()
        self._oldest_gone = 0
        self._changed = asyncio.Event()

    def get(self, id_: str) -> wire.AllocationStatus | None:
        entry = self._statuses.get(id_)
        return entry[1] if entry is not None else None

    def all(self) -> Iterable[wire.AllocationStatus]:
        return (status for _, status in self._statuses.values())

    def publish(self, status: wire.AllocationStatus) -> bool:
        """Readers learn of it, if it is news. Whether it was."""
        known = self._statuses.get(status.allocation_id)
        if known is not None and known[1] == status:
            return False
        self._statuses[status.allocation_id] = (self._next(), status)
        return True

    def withdraw(self, id_: str) -> None:
        """Readers learn that it is gone."""
        if self._statuses.pop(id_, None) is None:
            return
        self._gone.append((self._next(), id_))
        while len(self._gone) > MAX_GONE:
            self._oldest_gone, _ = self._gone.popleft()

    async def since(self, instance: str, revision: int, wait_s: float) -> wire.ObserveResponse:
        """What changed after that revision of that instance: at once, else as soon as something does, else nothing."""
        if instance != self.instance or revision > self._revision or revision < self._oldest_gone:
            return self._response(full=True, revision=0)
        if revision == self._revision:
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self._response(full=False, revision=revision)

    def _response(self, *, full: bool, revision: int) -> wire.ObserveResponse:
        changed = [status for changed_at, status in self._statuses.values() if changed_at > revision]
        gone = [] if full else [i for at, i in self._gone if at > revision and i not in self._statuses]
        return wire.ObserveResponse(
            instance=self.instance,
            revision=self._revision,
            ledger_uid=self._ledger_uid,
            full=full,
            allocations=changed,
            gone=gone,
        )

    def _next(self) -> int:
        self._revision += 1
        self._changed.set()
        self._changed = asyncio.Event()
        return self._revision
