"""The store over SQL: SQLite and PostgreSQL by the same statements, told apart only by what a writer locks."""

from collections.abc import Callable, Collection
from typing import TypeVar

import sqlalchemy as sa

from controller.exchange import Errand
from controller.plan.snapshot import HostPort
from controller.store import (
    allocations,
    changes,
    events,
    leases,
    nodes,
    restored,
    rows,
    runtime_classes,
    schema,
    tombstones,
    workloads,
)
from controller.store.base import TransactionStore
from controller.store.batch import Adopt, Batch, Confirm
from controller.store.contract import AllocationFilter, Change, EventFilter, Kind, Lease
from controller.store.engine import Database, give_back_free_pages
from controller.store.records import NodeRecord, Restored, Usage, WorkloadRecord
from controller.store.tables import CHANGES_KEPT, EVENTS_KEPT, TOMBSTONES_KEPT, Paging, Tables, Versions
from kakuri.model import Allocation, Event, RuntimeClass, Tombstone
from kakuri.selector import Selector

T = TypeVar("T")


class SqlStore(TransactionStore):
    def __init__(
        self,
        database: Database,
        cluster_id: str,
        *,
        changes_kept: int = CHANGES_KEPT,
        events_kept: int = EVENTS_KEPT,
    ) -> None:
        super().__init__()
        self.cluster_id = cluster_id
        self.shared = database.shared
        self._database = database
        self._kept = (changes_kept, events_kept)
        database.listen(self._kick)

    async def close(self) -> None:
        await self._database.close()

    async def ping(self) -> None:
        # Writes a page and commits it: only that meets a full disk.
        unchanged = sa.update(schema.leases).values(expires_at=schema.leases.c.expires_at)
        await self._database.write(lambda connection: connection.execute(unchanged).rowcount)

    async def _read(self, transaction: Callable[[Tables], T]) -> T:
        return await self._database.read(lambda connection: transaction(self._tables(connection, writes=False)))

    async def _write(self, transaction: Callable[[Tables], tuple[T, Batch]]) -> tuple[T, Versions]:
        def run(connection: sa.Connection) -> tuple[T, Versions]:
            tables = self._tables(connection, writes=True)
            result, batch = transaction(tables)
            return result, tables.write(batch)

        return await self._database.write(run, committed=lambda done: self._committed(done[1]))

    def _tables(self, connection: sa.Connection, *, writes: bool) -> "SqlTables":
        return SqlTables(connection, self.cluster_id, writes=writes, kept=self._kept)

    async def acquire_lease(self, holder: str, *, ttl_s: float) -> Lease:
        alone = self._database.alone
        return await self._database.lead(lambda connection: leases.acquire(connection, holder, ttl_s, alone=alone))

    async def renew_lease(self, holder: str, *, epoch: int, ttl_s: float) -> bool:
        return await self._database.lead(lambda connection: leases.renew(connection, holder, epoch, ttl_s))

    async def release_lease(self, holder: str, *, epoch: int) -> None:
        await self._database.lead(lambda connection: leases.release(connection, holder, epoch))


class SqlTables:
    """Tables of one transaction on one connection."""

    def __init__(self, connection: sa.Connection, cluster_id: str, *, writes: bool, kept: tuple[int, int]) -> None:
        self.cluster_id = cluster_id
        self._connection = connection
        # SQLite's writer is alone anyway.
        self._locks = writes and connection.dialect.name == "postgresql"
        self._changes_kept, self._events_kept = kept

    # -- lists -------------------------------------------------------------------------------------------------------
    def list_workloads(self, selector: Selector, page: Paging) -> list[tuple[WorkloadRecord, str]]:
        return workloads.list_page(self._connection, selector, page)

    def list_allocations(self, where: AllocationFilter, page: Paging) -> list[tuple[Allocation, str]]:
        return allocations.list_page(self._connection, where, page)

    def list_nodes(self, selector: Selector, page: Paging) -> list[tuple[NodeRecord, Usage]]:
        found = nodes.list_page(self._connection, selector, page)
        usage = self.usage([n.id for n in found])
        return [(n, usage.get(n.id, Usage())) for n in found]

    def list_runtime_classes(self, page: Paging) -> list[RuntimeClass]:
        return runtime_classes.list_page(self._connection, page)

    def list_events(self, where: EventFilter, page: Paging) -> list[Event]:
        return events.list_page(self._connection, where, page)

    def workload_ids(self, *, after: str, limit: int) -> list[str]:
        return workloads.ids_after(self._connection, after, limit)

    def waiting_ids(self, *, limit: int) -> list[str]:
        return workloads.waiting(self._connection, limit)

    # -- the counter and its log -------------------------------------------------------------------------------------
    def resource_version(self) -> int:
        return changes.current(self._connection)

    def changes_held_after(self) -> int:
        return changes.held_after(self._connection)

    def changes_since(self, resource_version: int, *, limit: int) -> list[Change]:
        return changes.since(self._connection, resource_version, limit)

    def lease_epoch(self) -> int:
        return leases.epoch(self._connection, keep=self._locks)

    def restored(self) -> Restored | None:
        return restored.read(self._connection)

    # -- rows by key -------------------------------------------------------------------------------------------------
    def nodes(self, ids: Collection[str] | None = None) -> dict[str, NodeRecord]:
        return nodes.by_id(self._connection, ids, keep=self._locks and ids is not None)

    def forgotten_nodes(self) -> dict[str, str]:
        return nodes.forgotten(self._connection, keep=self._locks)

    def runtime_classes(self, *, keep: Collection[str] = ()) -> dict[str, RuntimeClass]:
        return runtime_classes.all_by_id(self._connection, keep=keep if self._locks else ())

    def workloads(self, ids: Collection[str]) -> dict[str, WorkloadRecord]:
        return workloads.by_id(self._connection, ids, keep=self._locks)

    def silent_nodes(self, workload_ids: Collection[str]) -> dict[str, str]:
        return workloads.silent_nodes(self._connection, workload_ids)

    def keep_workloads(self, ids: Collection[str]) -> None:
        if self._locks and ids:
            workloads.keep(self._connection, ids)

    def owners_on(self, node: str, ids: Collection[str] | None = None) -> list[str]:
        return allocations.owners_on(self._connection, node, ids)

    def allocations(self, ids: Collection[str]) -> list[Allocation]:
        return allocations.by_id(self._connection, ids)

    def allocations_of(self, workload_ids: Collection[str]) -> list[Allocation]:
        return allocations.of_workloads(self._connection, workload_ids)

    def allocations_on(self, node: str) -> list[Allocation]:
        return allocations.on_node(self._connection, node)

    def leaving(self, nodes: Collection[str]) -> list[Allocation]:
        return allocations.leaving(self._connection, nodes)

    def unseen_on(self, nodes: Collection[str]) -> list[Allocation]:
        return allocations.unseen_on(self._connection, nodes)

    def errands(self, node: str, *, limit: int) -> list[Errand]:
        return allocations.errands(self._connection, node, limit)

    def nodes_to_tell(self) -> set[str]:
        return allocations.nodes_with_errands(self._connection) | tombstones.nodes_with_any(self._connection)

    def owes_stops(self, node: str) -> bool:
        return allocations.owes_stops(self._connection, node)

    def has_errands(self, node: str, *, besides: Collection[str] = ()) -> bool:
        return allocations.has_errands(self._connection, node, besides)

    def users_of(self, runtime_class: str) -> tuple[list[str], list[str]]:
        asking = workloads.asking_for(self._connection, runtime_class)
        return asking, allocations.live_of_class(self._connection, runtime_class)

    def usage(self, nodes: Collection[str] | None = None) -> dict[str, Usage]:
        return allocations.usage(self._connection, nodes)

    def host_ports(self) -> dict[str, frozenset[HostPort]]:
        return allocations.host_ports(self._connection)

    def tombstones_on(self, nodes: Collection[str]) -> list[Tombstone]:
        return tombstones.on_nodes(self._connection, nodes)

    def tombstones_of(self, workload_ids: Collection[str]) -> list[Tombstone]:
        return tombstones.of_workloads(self._connection, workload_ids)

    # -- writing -----------------------------------------------------------------------------------------------------
    def write(self, batch: Batch) -> Versions:
        """Rows first, then the counter, then the log and the stamps: the counter is locked for as short as can be."""
        connection = self._connection
        match batch.restore:
            case Adopt() as adopt:
                restored.adopt(connection, adopt, batch.now)
            case Confirm():
                restored.confirm(connection)
            case None:
                pass
        rows.delete(connection, schema.allocations, batch.allocations.deleted)
        rows.insert_and_update(connection, schema.runtime_classes, batch.runtime_classes, runtime_classes.to_row)
        rows.insert_and_update(connection, schema.nodes, batch.nodes, nodes.to_row)
        rows.insert_and_update(connection, schema.workloads, batch.workloads, workloads.to_row)
        rows.insert_and_update(connection, schema.allocations, batch.allocations, allocations.to_row)
        rows.delete(connection, schema.workloads, batch.workloads.deleted)
        rows.delete(connection, schema.nodes, batch.nodes.deleted)
        nodes.hide(connection, batch.forgotten)
        if batch.allocations.deleted:
            nodes.clear_hidden(connection)
        rows.delete(connection, schema.tombstones, batch.tombstones.deleted)
        tombstones.put(connection, {**batch.tombstones.inserted, **batch.tombstones.updated}.values())
        rows.delete(connection, schema.runtime_classes, batch.runtime_classes.deleted)
        workloads.bump(connection, batch.bumped)
        events.add(connection, batch.events, batch.now)
        changed = batch.changes()
        return self._log(changed) if changed else {}

    def _log(self, changed: list[tuple[Kind, str, bool]]) -> Versions:
        first = changes.log(self._connection, changed)
        stamps: dict[str, dict[str, int]] = {}
        for version, (kind, id_, deleted) in enumerate(changed, start=first):
            if not deleted:
                stamps.setdefault(kind, {})[id_] = version
        for table, versions in stamps.items():
            rows.stamp(self._connection, _TABLES[table], versions)
        self._trim(first, first + len(changed))
        return {(kind, id_): version for version, (kind, id_, _) in enumerate(changed, start=first)}

    def _trim(self, before: int, after: int) -> None:
        # Now and then is enough, and keeps the work of it off most transactions.
        step = max(1, self._changes_kept // 20)
        if before // step != after // step:
            changes.trim(self._connection, after - 1 - self._changes_kept)
            events.trim(self._connection, self._events_kept)
            tombstones.trim(self._connection, TOMBSTONES_KEPT)
            if self._connection.dialect.name == "sqlite":
                give_back_free_pages(self._connection)


_TABLES: dict[str, sa.Table] = {
    "Workload": schema.workloads,
    "Allocation": schema.allocations,
    "Node": schema.nodes,
    "RuntimeClass": schema.runtime_classes,
    "Event": schema.events,
}
