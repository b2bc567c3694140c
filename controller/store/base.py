"""The contract's methods as transactions: each runs rules over Tables, and calls the kicks after what it committed.

One rule: what a method means stands in rules/ and here, once; the stores only say how a transaction runs.
"""

import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from controller.exchange import Owed, Report, Sent
from controller.plan.action import Plan
from controller.plan.snapshot import Snapshot
from controller.store.batch import Batch
from controller.store.contract import (
    AgentAddress,
    AllocationFilter,
    Applied,
    Change,
    EventFilter,
    Expired,
    Hold,
    NotFound,
    Outcome,
    Page,
    Recorded,
    Write,
)
from controller.store.events import token
from controller.store.own import OwnVersions
from controller.store.records import NodeRecord, Usage, shown_allocation
from controller.store.rules import agents, apply, nodes, plans, restore
from controller.store.tables import Paging, Tables, Versions
from kakuri.model import (
    Allocation,
    Drain,
    Event,
    EventDraft,
    Node,
    NodeRegistration,
    RuntimeClass,
    Tombstone,
    Workload,
)
from kakuri.selector import Selector

T = TypeVar("T")


class TransactionStore(ABC):
    """All of the contract but the leases, over two ways to run a transaction."""

    cluster_id: str
    shared: bool

    def __init__(self, new_uid: Callable[[], str] | None = None) -> None:
        self._new_uid = new_uid or (lambda: str(uuid.uuid4()))
        self._kicks: list[Callable[[], None]] = []
        self._own = OwnVersions()

    @abstractmethod
    async def _read(self, transaction: Callable[[Tables], T]) -> T: ...

    @abstractmethod
    async def _write(self, transaction: Callable[[Tables], tuple[T, Batch]]) -> tuple[T, Versions]:
        """Writes the batch too, and calls _committed once it is committed."""

    async def _done(self, transaction: Callable[[Tables], tuple[T, Batch]]) -> T:
        return (await self._write(transaction))[0]

    def on_commit(self, kick: Callable[[], None]) -> None:
        self._kicks.append(kick)

    def _committed(self, versions: Versions) -> None:
        if versions:
            self._own.add(min(versions.values()), max(versions.values()))
            self._kick()

    def _kick(self) -> None:
        for kick in self._kicks:
            kick()

    # -- what people do ----------------------------------------------------------------------------------------------
    async def apply(self, writes: Sequence[Write], *, now: datetime, dry_run: bool = False) -> list[Outcome]:
        def run(tables: Tables) -> tuple[list[Outcome], Batch]:
            return apply.apply(tables, writes, now=now, new_uid=self._new_uid)

        if dry_run:
            return (await self._read(run))[0]
        outcomes, versions = await self._write(run)
        return [_stamped(outcome, versions) for outcome in outcomes]

    async def get_workload(self, id_: str) -> Workload:
        return _only(await self.list_workloads(selector=Selector(), ids=[id_]), "workload", id_)

    async def list_workloads(
        self, *, selector: Selector, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Workload]:
        def run(tables: Tables) -> Page[Workload]:
            rows = tables.list_workloads(selector, Paging(limit, after, ids))
            return _page([w.shown(silent) for w, silent in rows], limit, tables)

        return await self._read(run)

    async def get_allocation(self, id_: str) -> Allocation:
        return _only(await self.list_allocations(AllocationFilter(), ids=[id_]), "allocation", id_)

    async def list_allocations(
        self, where: AllocationFilter, *, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Allocation]:
        def run(tables: Tables) -> Page[Allocation]:
            rows = tables.list_allocations(where, Paging(limit, after, ids))
            return _page([shown_allocation(a, silence=silence) for a, silence in rows], limit, tables)

        return await self._read(run)

    async def get_node(self, id_: str) -> Node:
        return _only(await self.list_nodes(selector=Selector(), ids=[id_]), "node", id_)

    async def list_nodes(
        self, *, selector: Selector, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Node]:
        def run(tables: Tables) -> Page[Node]:
            rows = tables.list_nodes(selector, Paging(limit, after, ids))
            return _page(_shown_nodes(tables, rows), limit, tables)

        return await self._read(run)

    async def get_runtime_class(self, id_: str) -> RuntimeClass:
        return _only(await self.list_runtime_classes(ids=[id_]), "runtime class", id_)

    async def list_runtime_classes(
        self, *, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[RuntimeClass]:
        def run(tables: Tables) -> Page[RuntimeClass]:
            return _page(tables.list_runtime_classes(Paging(limit, after, ids)), limit, tables)

        return await self._read(run)

    async def list_events(
        self, where: EventFilter, *, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Event]:
        def run(tables: Tables) -> Page[Event]:
            events = tables.list_events(where, Paging(limit, after, ids))
            more = len(events) > limit
            return Page(events[:limit], token(events[limit - 1]) if more else None, tables.resource_version())

        return await self._read(run)

    async def resource_version(self) -> int:
        return await self._read(lambda tables: tables.resource_version())

    async def changes_since(self, resource_version: int, *, limit: int = 1000) -> list[Change]:
        return await self._read(lambda tables: _changes(tables, resource_version, limit))

    async def changes_by_others(self, resource_version: int, *, limit: int = 1000) -> tuple[list[Change], int]:
        def run(tables: Tables) -> tuple[list[Change], int]:
            after = resource_version
            while (end := self._own.end_of(after + 1)) is not None:
                after = end
            if resource_version < after and after >= tables.resource_version():
                return [], after
            changes = _changes(tables, after, limit)
            newest = changes[-1].resource_version if changes else after
            return [c for c in changes if self._own.end_of(c.resource_version) is None], newest

        return await self._read(run)

    # -- what people do to nodes -------------------------------------------------------------------------------------
    async def drain_node(
        self, id_: str, drain: Drain | None, *, keep_deadline: bool = False, now: datetime
    ) -> tuple[Node, frozenset[str]]:
        (node, owners), versions = await self._write(
            lambda tables: nodes.drain(tables, id_, drain, keep_deadline=keep_deadline, now=now)
        )
        return node.with_(resource_version=versions.get(("Node", id_), node.resource_version)), owners

    async def take_back_drain(
        self, id_: str, began: Drain, *, before: Drain | None, schedulable: bool, now: datetime
    ) -> frozenset[str]:
        return await self._done(
            lambda tables: nodes.take_back_drain(tables, id_, began, before=before, schedulable=schedulable, now=now)
        )

    async def forget_node(self, id_: str, *, released: bool = False, now: datetime) -> frozenset[str]:
        return await self._done(lambda tables: nodes.forget(tables, id_, released=released, now=now))

    # -- what agents say ---------------------------------------------------------------------------------------------
    async def register_node(self, id_: str, registration: NodeRegistration, *, now: datetime) -> tuple[Node, bool]:
        (node, changed), versions = await self._write(
            lambda tables: agents.register_node(tables, id_, registration, now=now, new_uid=self._new_uid)
        )
        return node.with_(resource_version=versions.get(("Node", id_), node.resource_version)), changed

    async def set_node_ready(
        self, id_: str, *, epoch: int, ready: bool, reason: str, message: str, now: datetime
    ) -> bool:
        return await self._done(
            lambda tables: agents.set_node_ready(
                tables, id_, epoch=epoch, ready=ready, reason=reason, message=message, now=now
            )
        )

    async def set_node_lost(self, id_: str, *, epoch: int, message: str, now: datetime) -> frozenset[str]:
        return await self._done(lambda tables: agents.set_node_lost(tables, id_, epoch=epoch, message=message, now=now))

    async def owes_stops(self, node: str, *, told: Collection[str] = ()) -> bool:
        return await self._read(lambda tables: agents.owes_stops(tables, node, told))

    async def record_report(self, report: Report, *, epoch: int, now: datetime) -> Recorded:
        return await self._done(lambda tables: agents.record_report(tables, report, epoch=epoch, now=now))

    # -- what loops do -----------------------------------------------------------------------------------------------
    async def load_snapshot(self, workload_ids: Sequence[str], *, now: datetime, seed: str) -> Snapshot:
        return await self._read(lambda tables: plans.load_snapshot(tables, workload_ids, now=now, seed=seed))

    async def apply_plan(self, plan: Plan, *, epoch: int, now: datetime) -> Applied:
        return await self._done(lambda tables: plans.apply_plan(tables, plan, epoch=epoch, now=now))

    async def page_workload_ids(self, *, after: str = "", limit: int = 200) -> list[str]:
        return await self._read(lambda tables: tables.workload_ids(after=after, limit=limit))

    async def unschedulable_ids(self, *, limit: int = 200) -> list[str]:
        return await self._read(lambda tables: tables.waiting_ids(limit=limit))

    async def agent_addresses(self) -> list[AgentAddress]:
        def run(tables: Tables) -> list[AgentAddress]:
            return [
                AgentAddress(n.id, n.registration.address, n.ready, n.ledger_uid, n.uid)
                for n in tables.nodes().values()
                if n.registration is not None
            ]

        return await self._read(run)

    async def nodes_to_tell(self) -> set[str]:
        return await self._read(lambda tables: tables.nodes_to_tell())

    async def owed(self, node: str, *, limit: int = 500) -> Owed:
        def run(tables: Tables) -> Owed:
            # Nothing is ended for the sake of a restored database before a person has confirmed it.
            given_up = tables.tombstones_on([node]) if tables.restored() is None else []
            return Owed(tables.errands(node, limit=limit), given_up[:limit])

        return await self._read(run)

    async def record_sent(
        self, node: str, ledger_uid: str, sent: Sequence[Sent], *, epoch: int, now: datetime
    ) -> frozenset[str]:
        return await self._done(lambda tables: agents.record_sent(tables, node, ledger_uid, sent, epoch=epoch, now=now))

    async def record_buried(self, node: str, ids: Collection[str], *, epoch: int, now: datetime) -> frozenset[str]:
        return await self._done(lambda tables: nodes.record_buried(tables, node, ids, epoch=epoch, now=now))

    async def draining_nodes(self) -> list[Node]:
        def run(tables: Tables) -> list[Node]:
            found = {id_: n for id_, n in tables.nodes().items() if n.drain is not None}
            usage = tables.usage(found) if found else {}
            return [n.shown(usage.get(n.id, Usage())) for n in found.values()]

        return await self._read(run)

    async def record_drained(self, id_: str, seen: Drain, *, epoch: int, now: datetime) -> None:
        await self._done(lambda tables: nodes.record_drained(tables, id_, seen, epoch=epoch, now=now))

    async def lease_epoch(self) -> int:
        return await self._read(lambda tables: tables.lease_epoch())

    # -- a restored database -----------------------------------------------------------------------------------------
    async def adopt_restored(self, *, epoch: int, resource_version: int, now: datetime) -> None:
        await self._done(lambda tables: restore.adopt(tables, epoch=epoch, resource_version=resource_version, now=now))

    async def hold(self) -> Hold | None:
        return await self._read(restore.hold)

    async def confirm_restore(
        self, *, without: Collection[str] = (), served_s: float = math.inf, now: datetime
    ) -> None:
        await self._done(lambda tables: restore.confirm(tables, without=without, served_s=served_s, now=now))

    async def add_events(self, drafts: Sequence[EventDraft], *, now: datetime) -> None:
        def run(_: Tables) -> tuple[None, Batch]:
            batch = Batch(now)
            for draft in drafts:
                batch.tell(draft)
            return None, batch

        await self._done(run)


H = TypeVar("H", Workload, Allocation, Node, RuntimeClass)


def _changes(tables: Tables, resource_version: int, limit: int) -> list[Change]:
    held_after, newest = tables.changes_held_after(), tables.resource_version()
    if resource_version < held_after:
        raise Expired(f"changes up to {held_after} are no longer held, and {resource_version} is before; list again")
    if resource_version > newest:
        raise Expired(f"{resource_version} was never reached: the newest change is {newest}; list again")
    return tables.changes_since(resource_version, limit=limit) if resource_version < newest else []


def _stamped(outcome: Outcome, versions: Versions) -> Outcome:
    version = versions.get((outcome.kind, outcome.id))
    if outcome.object is None or version is None:
        return outcome
    return replace(outcome, object=outcome.object.with_(resource_version=version))


def _shown_nodes(tables: Tables, rows: Sequence[tuple[NodeRecord, Usage]]) -> list[Node]:
    buried: dict[str, list[Tombstone]] = {}
    for tombstone in tables.tombstones_on([n.id for n, _ in rows]) if rows else []:
        buried.setdefault(tombstone.node, []).append(tombstone)
    return [n.shown(usage, buried.get(n.id, ())) for n, usage in rows]


def _page(items: list[H], limit: int, tables: Tables) -> Page[H]:
    more = len(items) > limit
    return Page(items[:limit], items[limit - 1].id if more else None, tables.resource_version())


def _only(page: Page[H], noun: str, id_: str) -> H:
    if not page.items:
        raise NotFound(f'{noun} "{id_}" does not exist')
    return page.items[0]
