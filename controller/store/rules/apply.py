"""What people write: put and delete, all of a list or none of it.

One rule: what a write refers to is judged by the state after the whole list, so the order of documents in a file
doesn't matter; everything else goes in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from controller.store.batch import Batch
from controller.store.contract import (
    AlreadyExists,
    Delete,
    InUse,
    Invalid,
    NotFound,
    Outcome,
    Put,
    Stale,
    Terminating,
    Write,
)
from controller.store.records import NodeRecord, Usage, WorkloadRecord
from controller.store.rules.nodes import bury, drain_event, retire
from controller.store.tables import RELEASED, Tables
from kakuri.model import (
    EventDraft,
    EventType,
    NodeManifest,
    Reason,
    RuntimeClass,
    RuntimeClassManifest,
    State,
    WorkloadManifest,
    WorkloadStatus,
)

Existing = WorkloadRecord | NodeRecord | RuntimeClass
_E = TypeVar("_E", WorkloadRecord, NodeRecord, RuntimeClass)


def apply(
    tables: Tables, writes: Sequence[Write], *, now: datetime, new_uid: Callable[[], str]
) -> tuple[list[Outcome], Batch]:
    """What each write does. Raises the first error, with its index."""
    desk = _load(tables, writes, now, new_uid)
    outcomes = [desk.carry_out(index, write) for index, write in enumerate(writes)]
    desk.check_references(writes, outcomes)
    return outcomes, desk.batch


def _load(tables: Tables, writes: Sequence[Write], now: datetime, new_uid: Callable[[], str]) -> "_Desk":
    ids: dict[str, set[str]] = {"Workload": set(), "Node": set(), "RuntimeClass": set()}
    for write in writes:
        kind, id_ = _names(write)
        ids[kind].add(id_)
    named = set(ids["Node"])
    forced = {w.id for w in writes if isinstance(w, Delete) and w.kind == "Workload" and w.force}
    if forced:
        # Shown with their nodes is what they leave there; nodes are locked before workloads.
        ids["Node"] |= {a.node for a in tables.allocations_of(forced)}
    # In the order of their locks: nodes, hidden ones too, classes, workloads.
    nodes = tables.nodes(ids["Node"]) if ids["Node"] else {}
    forgotten = frozenset(tables.forgotten_nodes()) if named - nodes.keys() else frozenset()
    classes = tables.runtime_classes(keep=ids["RuntimeClass"])
    deleted = [w.id for w in writes if isinstance(w, Delete) and w.kind == "Node" and w.id in nodes]
    there = {owner for id_ in deleted for owner in tables.owners_on(id_)}
    if there:
        tables.keep_workloads(there | ids["Workload"])
    workloads = tables.workloads(ids["Workload"]) if ids["Workload"] else {}
    return _Desk(
        tables=tables,
        batch=Batch(now),
        now=now,
        new_uid=new_uid,
        # A workload's version goes on where an earlier one of the same id left off, so that a plan for the earlier
        # one can't be applied to it: no version is ever above the counter.
        first_version=tables.resource_version() + 1,
        workloads=workloads,
        nodes=nodes,
        forgotten=forgotten,
        classes=classes,
        silent=tables.silent_nodes(workloads) if workloads else {},
        usage=tables.usage(nodes) if nodes else {},
    )


def _names(write: Write) -> tuple[str, str]:
    match write:
        case Put():
            return write.manifest.kind, write.manifest.id
        case Delete():
            return write.kind, write.id


@dataclass
class _Desk:
    """The rows that the list is about, as they are after the writes so far."""

    tables: Tables
    batch: Batch
    now: datetime
    new_uid: Callable[[], str]
    first_version: int
    workloads: dict[str, WorkloadRecord]
    nodes: dict[str, NodeRecord]
    forgotten: frozenset[str]
    """Nodes that were forgotten and whose rows are still there."""
    classes: dict[str, RuntimeClass]
    silent: dict[str, str]
    usage: dict[str, Usage]

    def carry_out(self, index: int, write: Write) -> Outcome:
        match write:
            case Put(manifest=WorkloadManifest() as manifest):
                return self._put_workload(index, write, manifest)
            case Put(manifest=NodeManifest() as manifest):
                return self._put_node(index, write, manifest)
            case Put(manifest=RuntimeClassManifest() as manifest):
                return self._put_class(index, write, manifest)
            case Delete(kind="Workload", force=True):
                return self._force_delete(index, write)
            case Delete(kind="Workload"):
                return self._delete_workload(index, write)
            case Delete(kind="Node"):
                return self._delete_node(index, write)
            case Delete():
                return self._delete_class(index, write)
            case _:
                raise TypeError(f"{write!r} can't be written")

    # -- workloads ---------------------------------------------------------------------------------------------------
    def _put_workload(self, index: int, put: Put, manifest: WorkloadManifest) -> Outcome:
        old = self.workloads.get(manifest.id)
        if old is not None and old.deleted_at is not None:
            raise Terminating(
                f'workload "{old.id}" is still being deleted; wait until it is gone and apply it again', index=index
            )
        _check_put(index, put, old)
        if old is not None and old.spec == manifest.spec:
            return self._workload_outcome(old, "unchanged")
        if old is None:
            new = self._new_workload(manifest)
            self.batch.workloads.insert(new)
        else:
            new = replace(old, spec=manifest.spec, generation=old.generation + 1, version=old.version + 1)
            self.batch.workloads.update(new)
        self.workloads[new.id] = new
        return self._workload_outcome(new, "created" if old is None else "configured")

    def _new_workload(self, manifest: WorkloadManifest) -> WorkloadRecord:
        status = WorkloadStatus(
            state=State.PENDING,
            reason=Reason.SCHEDULING.value,
            message="waits for the next pass",
            desired=manifest.replicas,
        )
        return WorkloadRecord(
            id=manifest.id,
            uid=self.new_uid(),
            spec=manifest.spec,
            generation=1,
            version=self.first_version,
            status=status,
            created_at=self.now,
        )

    def _delete_workload(self, index: int, delete: Delete) -> Outcome:
        old = self.workloads.get(delete.id)
        old = _existing(index, delete, old)
        if old.deleted_at is not None:
            return self._workload_outcome(old, "deleting")
        status = old.status.with_(state=State.TERMINATING, reason=Reason.DELETED.value, message="")
        new = replace(old, deleted_at=self.now, version=old.version + 1, status=status, waits_for_place=False)
        self.batch.workloads.update(new)
        self.workloads[new.id] = new
        return self._workload_outcome(new, "deleting")

    def _force_delete(self, index: int, delete: Delete) -> Outcome:
        """Gone at once. What may still run somewhere is told, and its node is held to ending it."""
        old = _existing(index, delete, self.workloads.get(delete.id))
        rows = self.tables.allocations_of([old.id])
        for row in rows:
            self.batch.delete_allocation(row)
            if row.ledger_uid == RELEASED:
                continue
            bury(self.batch, row, Reason.FORCE_DELETED, f"workload {old.id} was deleted by force")
            if row.node in self.nodes:
                self.batch.nodes.touch(row.node)
        live = [f"{r.id} on {r.node}" for r in rows if r.live]
        told = f"{_first(live)} may still run until the node has ended it" if live else "nothing of it was left to run"
        self.batch.tell(
            EventDraft(
                object_kind="Workload",
                object_id=old.id,
                type=EventType.WARNING,
                reason=Reason.FORCE_DELETED.value,
                message=f"deleted by force: {told}",
            )
        )
        self.batch.workloads.delete(old.id)
        del self.workloads[old.id]
        return Outcome("Workload", old.id, "deleted", None)

    def _workload_outcome(self, record: WorkloadRecord, result: str) -> Outcome:
        shown = record.shown(self.silent.get(record.id, ""))
        return Outcome("Workload", record.id, result, shown)  # type: ignore[arg-type] # the callers' literals

    # -- nodes -------------------------------------------------------------------------------------------------------
    def _put_node(self, index: int, put: Put, manifest: NodeManifest) -> Outcome:
        old = self.nodes.get(manifest.id)
        _check_put(index, put, old)
        usage = self.usage.get(manifest.id, Usage())
        if old is None:
            new = NodeRecord(
                id=manifest.id,
                uid=self.new_uid(),
                labels=manifest.labels,
                schedulable=manifest.schedulable,
                generation=1,
                created_at=self.now,
                ready=False,
                reason=Reason.NEVER_SEEN.value,
                message="no agent has registered for it",
            )
            self.batch.insert_node(new, forgotten=new.id in self.forgotten)
        elif (old.labels, old.schedulable) == (manifest.labels, manifest.schedulable):
            return Outcome("Node", old.id, "unchanged", old.shown(usage))
        else:
            new = replace(old, labels=manifest.labels, schedulable=manifest.schedulable, generation=old.generation + 1)
            if manifest.schedulable and old.drain is not None:
                # What takes new work is not being emptied.
                new = replace(new, drain=None)
                self.batch.tell(drain_event(old.id, old.drain, None))
            self.batch.nodes.update(new)
        self.nodes[new.id] = new
        return Outcome("Node", new.id, "created" if old is None else "configured", new.shown(usage))

    def _delete_node(self, index: int, delete: Delete) -> Outcome:
        old = _existing(index, delete, self.nodes.get(delete.id))
        rows = self.tables.allocations_on(old.id)
        live = sorted(a.id for a in rows if a.live)
        if live:
            raise InUse(
                f'node "{old.id}" has {_some(live, "allocation")} that may still run there; delete the workloads or '
                "wait until their allocations have ended there",
                index=index,
            )
        retire(self.tables, self.batch, old.id, rows, why=f"node {old.id} was deleted", now=self.now)
        del self.nodes[old.id]
        return Outcome("Node", old.id, "deleted", None)

    # -- runtime classes ---------------------------------------------------------------------------------------------
    def _put_class(self, index: int, put: Put, manifest: RuntimeClassManifest) -> Outcome:
        old = self.classes.get(manifest.id)
        _check_put(index, put, old)
        if old is None:
            new = RuntimeClass(
                id=manifest.id,
                handler=manifest.handler,
                min_memory_mb=manifest.min_memory_mb,
                uid=self.new_uid(),
                generation=1,
                resource_version=0,
                created_at=self.now,
            )
            self.batch.runtime_classes.insert(new)
        elif (old.handler, old.min_memory_mb) == (manifest.handler, manifest.min_memory_mb):
            return Outcome("RuntimeClass", old.id, "unchanged", old)
        else:
            new = old.with_(
                handler=manifest.handler, min_memory_mb=manifest.min_memory_mb, generation=old.generation + 1
            )
            self.batch.runtime_classes.update(new)
        self.classes[new.id] = new
        return Outcome("RuntimeClass", new.id, "created" if old is None else "configured", new)

    def _delete_class(self, index: int, delete: Delete) -> Outcome:
        old = _existing(index, delete, self.classes.get(delete.id))
        self.batch.runtime_classes.delete(old.id)
        del self.classes[old.id]
        return Outcome("RuntimeClass", old.id, "deleted", None)

    # -- references --------------------------------------------------------------------------------------------------
    def check_references(self, writes: Sequence[Write], outcomes: Sequence[Outcome]) -> None:
        for index, (write, outcome) in enumerate(zip(writes, outcomes, strict=True)):
            if outcome.kind == "RuntimeClass" and outcome.result == "deleted" and outcome.id not in self.classes:
                self._check_unused(index, outcome.id)
            if outcome.kind == "Workload" and outcome.result in {"created", "configured"}:
                assert isinstance(write, Put)
                assert isinstance(write.manifest, WorkloadManifest)
                self._check_class_of(index, write.manifest)

    def _check_class_of(self, index: int, manifest: WorkloadManifest) -> None:
        runtime_class = self.classes.get(manifest.runtime_class)
        if runtime_class is None:
            known = ", ".join(sorted(self.classes))
            raise Invalid(
                f'runtime class "{manifest.runtime_class}" does not exist; use one of {known}',
                index=index,
                pointer="/runtime_class",
            )
        least = runtime_class.min_memory_mb
        if manifest.memory_mb < least:
            raise Invalid(
                f"{manifest.memory_mb} MiB is too little for runtime class {runtime_class.id}, whose sandbox needs at "
                f"least {least} MiB; set memory_mb to {least} or more, or use another runtime class",
                index=index,
                pointer="/memory_mb",
            )

    def _check_unused(self, index: int, id_: str) -> None:
        asking, running = self.tables.users_of(id_)
        asking = [w for w in asking if w not in self.workloads]
        asking += [w.id for w in self.workloads.values() if w.spec.runtime_class == id_]
        if not asking and not running:
            return
        users = _some(sorted(asking), "workload") if asking else _some(sorted(running), "allocation")
        raise InUse(f'runtime class "{id_}" is used by {users}; delete or change them first', index=index)


def _check_put(index: int, put: Put, old: Existing | None) -> None:
    kind, id_ = put.manifest.kind, put.manifest.id
    if put.mode == "create" and old is not None:
        raise AlreadyExists(f'{_words(kind)} "{id_}" exists already; PUT replaces it', index=index)
    if put.if_match is not None:
        if old is None:
            raise Stale(f'{_words(kind)} "{id_}" does not exist, so If-Match can\'t match', index=index)
        _check_match(index, kind, put.if_match, old)


def _existing(index: int, delete: Delete, old: _E | None) -> _E:
    if old is None:
        raise NotFound(f'{_words(delete.kind)} "{delete.id}" does not exist', index=index)
    if delete.if_match is not None:
        _check_match(index, delete.kind, delete.if_match, old)
    return old


def _check_match(index: int, kind: str, if_match: str, old: Existing) -> None:
    etag = f"{old.uid}.{old.generation}"
    if if_match not in {"*", etag}:
        raise Stale(
            f'{_words(kind)} "{old.id}" has changed: its ETag is {etag}, not {if_match}; get it and edit it again',
            index=index,
        )


def _words(kind: str) -> str:
    return {"Workload": "workload", "Node": "node", "RuntimeClass": "runtime class"}[kind]


def _first(texts: Sequence[str]) -> str:
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def _some(ids: Sequence[str], noun: str) -> str:
    if len(ids) == 1:
        return f'{noun} "{ids[0]}"'
    return f'{len(ids)} {noun}s, such as "{ids[0]}"'
