"""The in-memory twin: the same rules over dictionaries, for the simulator and for tests.

One rule: a transaction never yields, so it is alone; it writes its batch last, so one that raises changed nothing.
"""

import time
import uuid
from collections.abc import Callable
from typing import TypeVar

from controller.store.base import TransactionStore
from controller.store.batch import Batch
from controller.store.contract import Lease
from controller.store.memory_tables import MemoryTables
from controller.store.tables import CHANGES_KEPT, EVENTS_KEPT, Tables, Versions

T = TypeVar("T")


class MemoryStore(TransactionStore):
    shared = False

    def __init__(
        self,
        *,
        cluster_id: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        new_uid: Callable[[], str] | None = None,
        changes_kept: int = CHANGES_KEPT,
        events_kept: int = EVENTS_KEPT,
    ) -> None:
        """clock: seconds, for leases."""
        super().__init__(new_uid)
        self.cluster_id = cluster_id or str(uuid.uuid4())
        self._clock = clock
        self._tables = MemoryTables(self.cluster_id, kept=(changes_kept, events_kept))
        self._lease = ("", 0, 0.0)

    async def close(self) -> None:
        pass

    async def ping(self) -> None:
        pass

    async def _read(self, transaction: Callable[[Tables], T]) -> T:
        return transaction(self._tables)

    async def _write(self, transaction: Callable[[Tables], tuple[T, Batch]]) -> tuple[T, Versions]:
        result, batch = transaction(self._tables)
        versions = self._tables.write(batch)
        if self._tables.epoch != self._lease[1]:
            self._lease = ("", self._tables.epoch, 0.0)
        self._committed(versions)
        return result, versions

    async def acquire_lease(self, holder: str, *, ttl_s: float) -> Lease:
        held_by, epoch, expires_at = self._lease
        left = expires_at - self._clock()
        if held_by not in {"", holder} and left > 0:
            return Lease(held_by, epoch, left, mine=False)
        self._set_lease(holder, epoch + 1, ttl_s)
        return Lease(holder, epoch + 1, ttl_s, mine=True)

    async def renew_lease(self, holder: str, *, epoch: int, ttl_s: float) -> bool:
        if self._lease[:2] != (holder, epoch):
            return False
        self._set_lease(holder, epoch, ttl_s)
        return True

    async def release_lease(self, holder: str, *, epoch: int) -> None:
        if self._lease[:2] == (holder, epoch):
            self._set_lease("", epoch, 0.0)

    def _set_lease(self, holder: str, epoch: int, ttl_s: float) -> None:
        self._lease = (holder, epoch, self._clock() + ttl_s)
        self._tables.epoch = epoch
