"""The tables of the in-memory twin: dictionaries, and the indexes that SQL would have."""

import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from datetime import UTC, datetime

from controller.exchange import Errand
from controller.plan.snapshot import HostPort, host_ports_of
from controller.store.batch import Adopt, Batch, Confirm, R, Rows
from controller.store.contract import AllocationFilter, Change, EventFilter
from controller.store.events import place_after
from controller.store.records import NodeRecord, Restored, Usage, WorkloadRecord
from controller.store.restored import NOT_HEARD_SINCE, RAISE
from controller.store.tables import RELEASED, TOMBSTONES_KEPT, Paging, Versions
from kakuri.model import BUILT_IN, Allocation, Desired, Event, Reason, RuntimeClass, Tombstone
from kakuri.selector import Selector


class MemoryTables:
    def __init__(self, cluster_id: str, *, kept: tuple[int, int]) -> None:
        self.cluster_id = cluster_id
        self.epoch = 0
        self._changes_kept, self._events_kept = kept
        self._resource_version = 0
        self._held_after = 0
        self._restored: Restored | None = None
        self._changes: list[Change] = []
        self._workloads: dict[str, WorkloadRecord] = {}
        self._allocations: dict[str, Allocation] = {}
        self._by_workload: dict[str, set[str]] = {}
        self._by_node: dict[str, set[str]] = {}
        self._nodes: dict[str, NodeRecord] = {}
        self._forgotten: dict[str, str] = {}
        self._tombstones: dict[str, Tombstone] = {}
        self._events: dict[str, Event] = {}
        born = datetime.now(UTC)
        self._classes = {
            c.id: RuntimeClass(
                id=c.id,
                handler=c.handler,
                min_memory_mb=c.min_memory_mb,
                uid=str(uuid.uuid4()),
                generation=1,
                resource_version=0,
                created_at=born,
            )
            for c in BUILT_IN
        }

    # -- lists -------------------------------------------------------------------------------------------------------
    def list_workloads(self, selector: Selector, page: Paging) -> list[tuple[WorkloadRecord, str]]:
        found = _paged(self._workloads, page, lambda w: selector.matches(w.spec.labels))
        silent = self.silent_nodes([w.id for w in found])
        return [(w, silent.get(w.id, "")) for w in found]

    def list_allocations(self, where: AllocationFilter, page: Paging) -> list[tuple[Allocation, str]]:
        def wanted(row: Allocation) -> bool:
            return (
                (where.workload is None or row.workload == where.workload)
                and (where.node is None or row.node == where.node)
                and where.selector.matches(self._workloads[row.workload].spec.labels)
            )

        def silence(row: Allocation) -> str:
            node = self._nodes.get(row.node)
            return Reason.FORGOTTEN if node is None else "" if node.ready else node.reason

        return [(a, silence(a)) for a in _paged(self._allocations, page, wanted)]

    def list_nodes(self, selector: Selector, page: Paging) -> list[tuple[NodeRecord, Usage]]:
        found = _paged(self._nodes, page, lambda n: selector.matches(n.all_labels))
        return [(n, self._usage(n.id)) for n in found]

    def list_runtime_classes(self, page: Paging) -> list[RuntimeClass]:
        return _paged(self._classes, page, lambda _: True)

    def list_events(self, where: EventFilter, page: Paging) -> list[Event]:
        def wanted(event: Event) -> bool:
            return (
                where.object_kind in {None, event.object_kind}
                and where.object_id in {None, event.object_id}
                and where.type in {None, event.type}
                and (page.ids is None or event.id in page.ids)
            )

        found = sorted(filter(wanted, self._events.values()), key=_place)
        if page.after is not None:
            start = place_after(page.after)
            found = [e for e in found if _place(e) > start]
        return found[: page.limit + 1]

    def workload_ids(self, *, after: str, limit: int) -> list[str]:
        return sorted(id_ for id_ in self._workloads if id_ > after)[:limit]

    def waiting_ids(self, *, limit: int) -> list[str]:
        waiting = [w for w in self._workloads.values() if w.waits_for_place]
        return [w.id for w in sorted(waiting, key=lambda w: (w.resource_version, w.id))][:limit]

    # -- the counter and its log -------------------------------------------------------------------------------------
    def resource_version(self) -> int:
        return self._resource_version

    def changes_held_after(self) -> int:
        return self._held_after

    def changes_since(self, resource_version: int, *, limit: int) -> list[Change]:
        # One number a change, without gaps: the place in the list follows.
        start = resource_version - self._held_after
        return self._changes[start : start + limit]

    def lease_epoch(self) -> int:
        return self.epoch

    def restored(self) -> Restored | None:
        return self._restored

    # -- rows by key -------------------------------------------------------------------------------------------------
    def nodes(self, ids: Collection[str] | None = None) -> dict[str, NodeRecord]:
        return _some(self._nodes, self._nodes if ids is None else ids)

    def forgotten_nodes(self) -> dict[str, str]:
        return dict(self._forgotten)

    def runtime_classes(self, *, keep: Collection[str] = ()) -> dict[str, RuntimeClass]:  # noqa: ARG002 - all are kept
        return _some(self._classes, self._classes)

    def workloads(self, ids: Collection[str]) -> dict[str, WorkloadRecord]:
        return _some(self._workloads, ids)

    def silent_nodes(self, workload_ids: Collection[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for id_ in workload_ids:
            rows = [self._allocations[a] for a in self._by_workload.get(id_, ())]
            live = [a.node for a in rows if a.live and not a.state.ended]
            silent = [n for n in live if not self._nodes[n].ready]
            if silent:
                found[id_] = min(silent)
        return found

    def keep_workloads(self, ids: Collection[str]) -> None:
        pass

    def owners_on(self, node: str, ids: Collection[str] | None = None) -> list[str]:
        return sorted({a.workload for a in self.allocations_on(node) if ids is None or a.id in ids})

    def allocations(self, ids: Collection[str]) -> list[Allocation]:
        return list(_some(self._allocations, ids).values())

    def allocations_of(self, workload_ids: Collection[str]) -> list[Allocation]:
        return self.allocations([a for w in workload_ids for a in self._by_workload.get(w, ())])

    def allocations_on(self, node: str) -> list[Allocation]:
        return self.allocations(self._by_node.get(node, ()))

    def leaving(self, nodes: Collection[str]) -> list[Allocation]:
        return [a for node in nodes for a in self.allocations_on(node) if a.leaves_a_drain]

    def unseen_on(self, nodes: Collection[str]) -> list[Allocation]:
        rows = sorted(self._allocations.values(), key=lambda a: a.id)
        return [a for a in rows if a.node in nodes and not a.released and a.observed_at is None]

    def errands(self, node: str, *, limit: int) -> list[Errand]:
        unsent = [a for a in self.allocations_on(node) if a.accepted_revision < a.revision]
        unsent.sort(key=lambda a: (a.created_at, a.id))
        return [Errand(a, self._handler(a.runtime_class)) for a in unsent[:limit]]

    def nodes_to_tell(self) -> set[str]:
        unsent = {a.node for a in self._allocations.values() if a.accepted_revision < a.revision}
        return unsent | {t.node for t in self._tombstones.values()}

    def _handler(self, runtime_class: str) -> str:
        found = self._classes.get(runtime_class)
        return found.handler if found else ""

    def owes_stops(self, node: str) -> bool:
        def owed(row: Allocation) -> bool:
            # Of one that is to be removed, the revision before says that it is to stop.
            return row.released and row.accepted_revision < row.revision - (row.desired is Desired.REMOVE)

        return any(map(owed, self.allocations_on(node)))

    def has_errands(self, node: str, *, besides: Collection[str] = ()) -> bool:
        return any(a.accepted_revision < a.revision and a.id not in besides for a in self.allocations_on(node))

    def users_of(self, runtime_class: str) -> tuple[list[str], list[str]]:
        asking = [w.id for w in self._workloads.values() if w.spec.runtime_class == runtime_class]
        running = [a.id for a in self._allocations.values() if a.live and a.runtime_class == runtime_class]
        return sorted(asking), sorted(running)

    def usage(self, nodes: Collection[str] | None = None) -> dict[str, Usage]:
        return {n: self._usage(n) for n in (self._by_node if nodes is None else nodes)}

    def _usage(self, node: str) -> Usage:
        live = [a for a in self.allocations_on(node) if a.live]
        return Usage(sum(a.spec.memory_mb for a in live), sum(a.spec.cpu_millicores for a in live), len(live))

    def host_ports(self) -> dict[str, frozenset[HostPort]]:
        return {
            node: frozenset(port for a in self.allocations_on(node) if a.live for port in host_ports_of(a.spec))
            for node in self._by_node
        }

    def tombstones_on(self, nodes: Collection[str]) -> list[Tombstone]:
        return [t for _, t in sorted(self._tombstones.items()) if t.node in nodes]

    def tombstones_of(self, workload_ids: Collection[str]) -> list[Tombstone]:
        return [t for _, t in sorted(self._tombstones.items()) if t.workload in workload_ids]

    # -- writing -----------------------------------------------------------------------------------------------------
    def write(self, batch: Batch) -> Versions:
        match batch.restore:
            case Adopt() as adopt:
                self._adopt(adopt, batch.now)
            case Confirm():
                self._restored = None
                self.epoch += 1
            case None:
                pass
        changed = batch.changes()
        versions: dict[str, dict[str, int]] = {}
        for kind, id_, deleted in changed:
            self._resource_version += 1
            self._changes.append(Change(self._resource_version, kind, id_, deleted))
            versions.setdefault(kind, {})[id_] = self._resource_version
        for id_ in batch.bumped:
            bumped = self._workloads[id_]
            self._workloads[id_] = replace(bumped, version=bumped.version + 1)
        self._write_workloads(batch.workloads, versions.get("Workload", {}))
        self._write_allocations(batch.allocations, versions.get("Allocation", {}))
        self._write_nodes(batch.nodes, versions.get("Node", {}))
        stamped_classes = versions.get("RuntimeClass", {})
        for runtime_class in _written(batch.runtime_classes):
            new = runtime_class.with_(resource_version=stamped_classes[runtime_class.id])
            self._classes[new.id] = new
        for id_ in batch.runtime_classes.deleted:
            del self._classes[id_]
        for id_ in batch.forgotten:
            del self._nodes[id_]
        self._forgotten |= batch.forgotten
        self._forgotten = {id_: how for id_, how in self._forgotten.items() if how == RELEASED or id_ in self._by_node}
        for id_ in batch.tombstones.deleted:
            del self._tombstones[id_]
        self._tombstones |= batch.tombstones.inserted | batch.tombstones.updated
        self._write_events(batch, versions.get("Event", {}))
        self._trim(len(changed))
        return {(kind, id_): versions[kind][id_] for kind, id_, _ in changed}

    def _adopt(self, to: Adopt, now: datetime) -> None:
        self._changes.clear()
        self._resource_version = self._held_after = to.resource_version
        self._restored = Restored(now, to.epoch)
        self.epoch = to.epoch
        for id_, row in self._allocations.items():
            settled = row.desired is Desired.RUN or (row.released and row.accepted_revision >= row.revision)
            self._allocations[id_] = row.with_(
                revision=row.revision + RAISE,
                accepted_revision=row.revision + (RAISE if settled else 0),
                lease_bound=False,
                observed_at=row.observed_at if row.released else None,
            )
        for id_, node in self._nodes.items():
            unheard = replace(node, ready=False, reason=Reason.NODE_SILENT.value, message=NOT_HEARD_SINCE, lost_at=None)
            self._nodes[id_] = unheard

    def _write_workloads(self, rows: Rows[WorkloadRecord], versions: dict[str, int]) -> None:
        for record in _written(rows):
            self._workloads[record.id] = record
        for id_ in rows.present():
            self._workloads[id_] = replace(self._workloads[id_], resource_version=versions[id_])
        for id_ in rows.deleted:
            del self._workloads[id_]

    def _write_nodes(self, rows: Rows[NodeRecord], versions: dict[str, int]) -> None:
        for record in _written(rows):
            self._nodes[record.id] = record
        for id_ in rows.present():
            self._nodes[id_] = replace(self._nodes[id_], resource_version=versions[id_])
        for id_ in rows.deleted:
            self._nodes.pop(id_, None)
        for id_ in (*self._nodes, *rows.deleted):
            self._forgotten.pop(id_, None)

    def _write_allocations(self, rows: Rows[Allocation], versions: dict[str, int]) -> None:
        for row in _written(rows):
            self._allocations[row.id] = row
        for row in rows.inserted.values():
            self._by_workload.setdefault(row.workload, set()).add(row.id)
            self._by_node.setdefault(row.node, set()).add(row.id)
        for id_ in rows.present():
            self._allocations[id_] = self._allocations[id_].with_(resource_version=versions[id_])
        for id_ in rows.deleted:
            gone = self._allocations.pop(id_)
            for index, key in ((self._by_workload, gone.workload), (self._by_node, gone.node)):
                index[key].discard(id_)
                if not index[key]:
                    del index[key]

    def _write_events(self, batch: Batch, versions: dict[str, int]) -> None:
        for id_, (draft, count) in batch.events.items():
            old = self._events.get(id_)
            self._events[id_] = Event.model_construct(
                **draft.__dict__,
                kind="Event",
                id=id_,
                count=count + (old.count if old else 0),
                first_seen=old.first_seen if old else batch.now,
                last_seen=batch.now,
                resource_version=versions[id_],
            )

    def _trim(self, written: int) -> None:
        step = max(1, self._changes_kept // 20)
        after = self._resource_version + 1
        if (after - written) // step == after // step:
            return
        up_to = self._resource_version - self._changes_kept
        if up_to > self._held_after:
            del self._changes[: up_to - self._held_after]
            self._held_after = up_to
        spare = sorted((t for t in self._tombstones.values() if not t.blocks), key=lambda t: t.created_at)
        for tombstone in spare[: max(0, len(self._tombstones) - TOMBSTONES_KEPT)]:
            del self._tombstones[tombstone.id]
        newest_last = sorted(self._events.values(), key=lambda e: e.resource_version)
        for event in newest_last[: max(0, len(newest_last) - self._events_kept)]:
            del self._events[event.id]


def _place(event: Event) -> tuple[datetime, str]:
    return event.last_seen, event.id


def _written(rows: Rows[R]) -> Iterable[R]:
    return [*rows.inserted.values(), *rows.updated.values()]


def _some(records: dict[str, R], ids: Collection[str]) -> dict[str, R]:
    return {id_: records[id_] for id_ in sorted(set(ids)) if id_ in records}


def _paged(records: dict[str, R], page: Paging, wanted: Callable[[R], bool]) -> list[R]:
    ids = records if page.ids is None else page.ids
    found = (r for id_, r in _some(records, ids).items() if page.after is None or id_ > page.after)
    return [r for r in found if wanted(r)][: page.limit + 1]
